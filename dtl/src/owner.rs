//! The owner's side of replication, sans-I/O: what may be acknowledged, and what to propose to the registry.
//!
//! Events in (progress of logs, outcomes of proposals, time), [`Action`]s out. It holds rules 5 and 13 and
//! R2 to R4 of the design:
//!
//! - An acknowledgement satisfies **every** configuration that may be the registry's: the one that was read
//!   last, each proposal whose outcome is unknown, and the one that is about to be proposed.
//! - InSync is proposed only when its peers have confirmed everything that was acknowledged; from the moment
//!   that it is intended (*armed*), acknowledgements wait for them, so that nothing can slip in between.
//! - A proposal of unknown outcome is settled by a success or by a higher number in the registry, never by a
//!   look that did not see it: it may still be under way.
//!
//! Does not own: connections, the registry, the clock (time is an argument), who is chosen as a peer
//! ([`crate::placement`]), and the local journal, which an acknowledgement needs as well.

mod limits;
mod plan;

#[cfg(test)]
mod tests;

use crate::registration::{Config, Mode, PeerLog, Status};
use common::{Epoch, Lsn, Name, mutant};
use std::collections::VecDeque;
use std::time::Duration;

/// How long things may take before the owner acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// A peer that is away, or confirms nothing though something waits, for this long has failed.
    pub fail_after: Duration,
    /// A peer that failed is given up, for another one, after this long.
    pub replace_after: Duration,
    /// Time between two attempts (to find a peer, to settle a proposal).
    pub retry_after: Duration,
    /// A log that lags by so many entries is close enough for acknowledgements to wait for it.
    pub close_enough: u64,
}

impl Default for Patience {
    fn default() -> Self {
        Patience {
            fail_after: Duration::from_millis(1500),
            replace_after: Duration::from_secs(5),
            retry_after: Duration::from_millis(500),
            close_enough: 256,
        }
    }
}

/// How a log is doing, as its client sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkState {
    /// It is being sent what it misses.
    CatchingUp,
    /// It is sent each entry as it comes.
    Live,
    /// No connection; the client tries again.
    Away,
    /// It does not exist any more, or refuses this epoch.
    Lost,
}

/// What became of a proposal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The registry has it.
    Applied,
    /// The assertion did not hold; this is what the registry has. `None`: no such volume.
    Refused(Option<(Epoch, Config)>),
    /// No answer: it may have been applied, or be applied yet.
    Unknown,
}

/// What the owner asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Compare and swap in the registry; answer with [`Owner::outcome`].
    Propose {
        /// The epoch and config number to assert.
        expect: (Epoch, u64),
        /// The new value.
        new: Config,
    },
    /// Choose peers, make logs there; answer with [`Owner::joined`] for each, nothing when there is none.
    Recruit {
        /// How many.
        want: usize,
        /// Nodes that are peers already, or just failed.
        avoid: Vec<Name>,
    },
    /// Let go of a log: nothing needs it. It may be forgotten at its node.
    Release(PeerLog),
    /// Ask a log for a flush up to this LSN: it is to be named, and earlier flushes were promised or asked of others
    /// without it.
    Flush(PeerLog, Lsn),
    /// Another epoch owns the volume: stop.
    Fenced,
}

/// A log that is written to.
#[derive(Debug, Clone)]
struct Link {
    peer: PeerLog,
    confirmed: Lsn,
    flushed: Lsn,
    state: LinkState,
    /// Since when it has been in this state.
    since: Duration,
    /// Since when it has owed a confirmation, as far as it owes one: its last progress, or when it began to owe.
    write_since: Duration,
    /// The same for flushes.
    flush_since: Duration,
    /// It was asked to flush up to here.
    flush_asked: Lsn,
}

impl Link {
    /// It is asked for a flush up to `lsn`; where it owed none, the time begins.
    fn ask_for_flush(&mut self, lsn: Lsn, now: Duration) {
        if self.flushed >= self.flush_asked {
            self.flush_since = now;
        }
        self.flush_asked = self.flush_asked.max(lsn);
    }
}

/// The replication state of one volume in one epoch.
#[derive(Debug)]
pub struct Owner {
    epoch: Epoch,
    patience: Patience,
    /// What the registry is known to have had; it may have one of `proposals` by now.
    base: Config,
    /// Proposed, outcome unknown; each asserts `base.config`.
    proposals: Vec<Config>,
    /// The last of `proposals` was sent and is not answered.
    in_flight: bool,
    /// To be proposed as soon as its peers have what was acknowledged.
    armed: Option<Config>,
    links: Vec<Link>,
    accepted: Lsn,
    acked: Lsn,
    flush_wanted: Lsn,
    flush_acked: Lsn,
    may_ack: Lsn,
    may_flush: Lsn,
    retry_at: Duration,
    recruit_at: Duration,
    /// Nodes that failed lately.
    shunned: Vec<(Name, Duration)>,
    fenced: bool,
    actions: VecDeque<Action>,
}

impl Owner {
    /// The owner of `epoch`, in which the registry has `config`; `accepted` is what recovery found.
    pub fn new(epoch: Epoch, config: Config, accepted: Lsn, patience: Patience) -> Self {
        let mut owner = Owner {
            epoch,
            patience,
            base: config,
            proposals: Vec::new(),
            in_flight: false,
            armed: None,
            links: Vec::new(),
            accepted,
            // What recovery found was, or may have been, acknowledged by somebody: it must not be lost again.
            acked: accepted,
            flush_wanted: accepted,
            flush_acked: accepted,
            may_ack: Lsn(0),
            may_flush: Lsn(0),
            retry_at: Duration::ZERO,
            recruit_at: Duration::ZERO,
            shunned: Vec::new(),
            fenced: false,
            actions: VecDeque::new(),
        };
        owner.refresh();
        owner
    }

    /// The last configuration that the registry is known to have had.
    pub fn config(&self) -> &Config {
        &self.base
    }

    /// What every reply to a client says: whether the loss of this machine loses nothing that was promised.
    pub fn is_in_sync(&self) -> bool {
        self.base.status == Status::InSync && self.proposals.iter().all(|c| c.status == Status::InSync)
    }

    /// Up to which LSN the peers allow writes to be acknowledged; `u64::MAX` where they have no say.
    pub fn may_acknowledge(&self) -> Lsn {
        self.may_ack
    }

    /// Up to which LSN the peers allow flushes to be acknowledged; `u64::MAX` where they have no say.
    pub fn may_acknowledge_flush(&self) -> Lsn {
        self.may_flush
    }

    /// The volume gave out LSNs up to `lsn`.
    pub fn accepted(&mut self, lsn: Lsn, now: Duration) {
        // Of whom nothing was owed until now, the time begins.
        for link in self.links.iter_mut().filter(|l| l.confirmed >= self.accepted) {
            link.write_since = now;
        }
        self.accepted = self.accepted.max(lsn);
    }

    /// Whether a write at `lsn` may be acknowledged, as far as the peers go. A `true` is a promise from then
    /// on: it is noted before the reply is sent.
    #[must_use]
    pub fn acknowledge(&mut self, lsn: Lsn) -> bool {
        let may = lsn <= self.may_ack && !self.fenced;
        if may {
            self.acked = self.acked.max(lsn);
            self.accepted = self.accepted.max(lsn);
        }
        may
    }

    /// Somebody waits for a flush up to `lsn`. Whether to ask the peers for it: all of them, now.
    #[must_use]
    pub fn flush_wanted(&mut self, lsn: Lsn, now: Duration) -> bool {
        self.flush_wanted = self.flush_wanted.max(lsn);
        let ask = self.may_flush < lsn;
        if ask {
            for link in &mut self.links {
                link.ask_for_flush(lsn, now);
            }
        }
        ask
    }

    /// Whether a flush up to `lsn` may be acknowledged, as far as the peers go. A `true` is a promise.
    #[must_use]
    pub fn acknowledge_flush(&mut self, lsn: Lsn) -> bool {
        let may = lsn <= self.may_flush && !self.fenced;
        if may {
            self.flush_acked = self.flush_acked.max(lsn);
        }
        may
    }

    /// A log was made for this volume and epoch; entries are being sent to it.
    pub fn joined(&mut self, peer: PeerLog, now: Duration) {
        if self.links.iter().all(|l| l.peer != peer) {
            self.links.push(Link {
                peer,
                confirmed: Lsn(0),
                flushed: Lsn(0),
                state: LinkState::CatchingUp,
                since: now,
                write_since: now,
                flush_since: now,
                flush_asked: Lsn(0),
            });
        }
        self.step(now);
    }

    /// What a log has: cumulative, of this incarnation only.
    pub fn progress(
        &mut self,
        peer: &PeerLog,
        confirmed: Lsn,
        flushed: Lsn,
        state: LinkState,
        now: Duration,
    ) {
        let Some(link) = self.links.iter_mut().find(|l| l.peer == *peer) else { return };
        if link.state == LinkState::Lost {
            return;
        }
        if confirmed > link.confirmed {
            (link.confirmed, link.write_since) = (confirmed, now);
        }
        if flushed > link.flushed {
            (link.flushed, link.flush_since) = (flushed, now);
        }
        let changed = std::mem::replace(&mut link.state, state) != state;
        if changed {
            (link.since, link.write_since, link.flush_since) = (now, now, now);
        }
        self.refresh();
        // The hot path ends here: nothing but a confirmation, and nothing is intended.
        if changed || self.armed.is_some() || self.base.status != Status::InSync {
            self.step(now);
        }
    }

    /// What became of a proposal.
    pub fn outcome(&mut self, proposal: &Config, outcome: Outcome, now: Duration) {
        if self.fenced || proposal.config <= self.base.config {
            // Settled meanwhile by another answer.
            return;
        }
        match outcome {
            Outcome::Applied => self.settle(proposal.clone(), now),
            Outcome::Unknown if mutant::is_on("unknown-proposal-counts") => {
                self.settle(proposal.clone(), now)
            }
            Outcome::Refused(Some((epoch, found))) if epoch == self.epoch => {
                self.in_flight = false;
                if found.config > self.base.config {
                    self.settle(found, now);
                } else {
                    // It was looked at before something that is under way: ask again, but not at once.
                    self.retry_at = now + self.patience.retry_after;
                }
            }
            Outcome::Refused(_) => self.fence(),
            Outcome::Unknown => {
                self.in_flight = false;
                self.retry_at = now + self.patience.retry_after;
            }
        }
        self.step(now);
    }

    /// The registry was seen to have `found` (a watch, or somebody changed the mode).
    pub fn observed(&mut self, epoch: Epoch, found: Config, now: Duration) {
        if epoch > self.epoch {
            self.fence();
        } else if epoch == self.epoch && found.config > self.base.config {
            self.settle(found, now);
            self.step(now);
        }
    }

    /// Time passes; call it a few times per [`Patience::fail_after`].
    pub fn tick(&mut self, now: Duration) {
        self.step(now);
    }

    /// Whether there is something to be done.
    pub fn has_actions(&self) -> bool {
        !self.actions.is_empty()
    }

    /// What is to be done now.
    pub fn take_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// The registry has `config`, and nothing that was proposed from an earlier one can come true any more.
    fn settle(&mut self, config: Config, now: Duration) {
        self.base = config;
        self.proposals.clear();
        self.in_flight = false;
        self.armed = None;
        self.retry_at = now;
        self.refresh();
    }

    fn fence(&mut self) {
        if !self.fenced {
            self.fenced = true;
            self.may_ack = Lsn(0);
            self.may_flush = Lsn(0);
            self.actions.clear();
            self.actions.push_back(Action::Fenced);
        }
    }

    fn possible(&self) -> impl Iterator<Item = &Config> {
        std::iter::once(&self.base).chain(&self.proposals).chain(&self.armed)
    }

    fn link(&self, peer: &PeerLog) -> Option<&Link> {
        self.links.iter().find(|l| l.peer == *peer)
    }

    /// Whether the peers of this volume are of any use.
    fn replicates(&self) -> bool {
        self.base.mode != Mode::None && self.base.wanted > 0
    }
}
