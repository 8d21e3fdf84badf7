//! What a reply does to the ledger.

use super::{Ledger, Origin, PAUSE, State, kept_cost};
use crate::wire::{Mode, Moved, Op, Outcome, Reply};
use common::{Error, ErrorKind, Lsn, mutant};
use std::time::Duration;

/// Why a channel is of no use any more. What was sent over it is to be sent again over another one.
#[derive(Debug)]
pub enum Broken {
    /// Somebody else owns the volume.
    Moved(Moved),
    /// What was wrong.
    Why(String),
}

impl Ledger {
    /// Takes in a reply that came at `now`.
    ///
    /// # Errors
    /// The channel is of no use any more.
    pub fn reply(&mut self, reply: Reply, now: Duration) -> Result<(), Broken> {
        if reply.epoch != self.epoch && !mutant::is_on("stale-epoch-reply-believed") {
            return Err(Broken::Why(format!(
                "a reply of epoch {} in a channel of epoch {}",
                reply.epoch, self.epoch
            )));
        }
        self.credit.requests = self.credit.requests.saturating_add(reply.grant.requests);
        self.credit.bytes = self.credit.bytes.saturating_add(reply.grant.bytes);
        self.in_sync = reply.in_sync;
        let sequence = reply.sequence;
        // One that failed at its deadline, or whose caller went away, is not there any more.
        let Some(flight) = self.flights.get_mut(&sequence).filter(|flight| flight.state == State::Sent)
        else {
            return Ok(());
        };
        match &reply.outcome {
            Outcome::Moved(moved) => return Err(Broken::Moved(moved.clone())),
            Outcome::Failed(e) if matches!(e.kind, ErrorKind::NotOwner | ErrorKind::Fenced) => {
                return Err(Broken::Why(e.to_string()));
            }
            _ => {}
        }
        flight.state = State::Answered;
        let cost = if flight.op.changes() { kept_cost(&flight.op) } else { 0 };
        self.changing = self.changing.saturating_sub(cost);
        match reply.outcome {
            Outcome::Failed(error) if error.kind == ErrorKind::Unavailable => {
                if flight.result.is_none() {
                    tracing::debug!(sequence, "edge: a request is tried again: {error}");
                    self.rest(sequence, now + PAUSE);
                }
            }
            Outcome::Failed(error) => self.failed(sequence, error, now),
            outcome => self.succeeded(sequence, reply.lsn, outcome),
        }
        Ok(())
    }

    fn rest(&mut self, sequence: u64, until: Duration) {
        if let Some(flight) = self.flights.get_mut(&sequence) {
            flight.state = State::Resting;
            self.resting.push_back((until, sequence));
        }
    }

    fn failed(&mut self, sequence: u64, error: Error, now: Duration) {
        let Some(flight) = self.flights.get(&sequence) else { return };
        match flight.origin {
            Origin::Replay => {
                self.replaying.retain(|s| *s != sequence);
                self.flights.remove(&sequence);
                self.lose(&format!("a write that was answered could not be done again: {error}"));
            }
            Origin::Ledger => {
                // What is kept stays kept; it is tried again.
                self.rest(sequence, now + PAUSE);
            }
            Origin::Caller | Origin::Nobody => self.complete(sequence, Err(error)),
        }
    }

    fn succeeded(&mut self, sequence: u64, lsn: Lsn, outcome: Outcome) {
        let Some(flight) = self.flights.get(&sequence) else { return };
        let origin = flight.origin;
        if flight.op.changes() {
            let op = flight.op.clone();
            self.keep(lsn, sequence, op);
        } else if matches!(flight.op, Op::Flush) {
            self.flushed(lsn);
        }
        match origin {
            Origin::Replay => {
                self.replaying.retain(|s| *s != sequence);
                self.flights.remove(&sequence);
            }
            Origin::Ledger => {
                self.own_flush = false;
                self.flights.remove(&sequence);
            }
            Origin::Caller | Origin::Nobody => self.complete(sequence, Ok(outcome)),
        }
    }

    fn keep(&mut self, lsn: Lsn, sequence: u64, op: Op) {
        if lsn <= self.durable || self.lost.is_some() {
            return;
        }
        if self.mode != Mode::Exclusive {
            // Beside others that write, only the last place counts: it tells whether something is lost.
            if self.kept.last_key_value().is_some_and(|(last, _)| last.0 >= lsn) {
                return;
            }
            self.kept.clear();
            self.kept_bytes = 0;
            self.kept.insert((lsn, sequence), Op::Flush);
            self.kept_bytes = kept_cost(&Op::Flush);
            return;
        }
        self.kept_bytes += kept_cost(&op);
        self.kept.insert((lsn, sequence), op);
    }

    fn flushed(&mut self, durable: Lsn) {
        self.unknown_tail = false;
        if durable <= self.durable {
            return;
        }
        self.durable = durable;
        let end = if mutant::is_on("kept-until-any-flush") { Lsn(u64::MAX) } else { durable.next() };
        let rest = self.kept.split_off(&(end, 0));
        let gone = std::mem::replace(&mut self.kept, rest);
        self.kept_bytes -= gone.values().map(kept_cost).sum::<usize>();
    }

    /// Whether every request was answered.
    pub fn is_idle(&self) -> bool {
        self.replay.is_empty() && self.flights.values().all(|flight| flight.result.is_some())
    }
}
