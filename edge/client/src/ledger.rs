//! What a device has under way and what it keeps for a replay (rules 2 and 3); sans-I/O: replies and time in,
//! frames out.
//!
//! - A **flight** is a request that somebody waits for. It waits in the queue until it is sent, and when the
//!   connection broke it goes back to the queue, in the order in which it was asked for.
//! - A write that was answered is **kept**, by its LSN, until a flush says that everything up to there is
//!   durable. When a new owner names what it recovered, what it lacks goes to the **replay**: in the order of the
//!   log, before anything else, nothing before what it overlaps is answered.
//! - Where there is nothing to replay with, the tail is **lost**: every flush fails from then on.
//!
//! Does not own: the connection, whom to ask next.

mod flight;
mod replies;

pub use flight::{Flight, Origin, State};
pub use replies::Broken;

use crate::wire::{Credit, Granted, Mode, Op, Recovered, Request};
use common::{Epoch, Error, Geometry, Lsn, Result, mutant};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::task::Waker;
use std::time::Duration;

/// What a kept request costs beside its payload, in bytes.
const KEPT_COST: usize = 64;
/// When a request is tried again that the owner could not do just now.
const PAUSE: Duration = Duration::from_millis(100);

/// What happened so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Attachments after the first one.
    pub reconnects: u64,
    /// Requests that were sent again: answered writes that a new owner lacked, and what was under way.
    pub replayed: u64,
    /// Times that a router named another owner.
    pub moved: u64,
    /// Flushes that the client did by itself, to keep less.
    pub own_flushes: u64,
    /// Bytes that are kept for a replay now.
    pub kept_bytes: u64,
}

enum Phase {
    /// There is no attachment now.
    Away,
    /// What a new owner lacks is sent; everything else waits.
    Replaying,
    Live,
    /// For good.
    Dead(Error),
}

/// The state of one device.
pub struct Ledger {
    mode: Mode,
    /// Bytes of answered writes that are kept.
    keep: usize,
    phase: Phase,
    sequence: u64,
    flights: HashMap<u64, Flight>,
    /// Flights to be sent, in order.
    queue: VecDeque<u64>,
    /// Flights that the owner could not do just now, and when to try again.
    resting: VecDeque<(Duration, u64)>,
    /// Answered, and not known to be durable; where nothing can be replayed, only the last one.
    kept: BTreeMap<(Lsn, u64), Op>,
    kept_bytes: usize,
    /// Bytes of changes that were sent and not answered.
    changing: usize,
    /// What a new owner lacks, in the order of the log.
    replay: VecDeque<Op>,
    /// Flights of the replay that are under way.
    replaying: Vec<u64>,
    own_flush: bool,
    credit: Credit,
    epoch: Epoch,
    geometry: Option<Geometry>,
    in_sync: bool,
    /// Everything up to here is durable, a flush said.
    durable: Lsn,
    /// A process before this one may have writes that no flush covered.
    unknown_tail: bool,
    lost: Option<Error>,
    counters: Counters,
}

impl Ledger {
    /// Of a device that keeps `keep` bytes of answered writes.
    pub fn new(mode: Mode, keep: usize, resumed: bool) -> Self {
        Ledger {
            mode,
            keep,
            phase: Phase::Away,
            sequence: 0,
            flights: HashMap::new(),
            queue: VecDeque::new(),
            resting: VecDeque::new(),
            kept: BTreeMap::new(),
            kept_bytes: 0,
            changing: 0,
            replay: VecDeque::new(),
            replaying: Vec::new(),
            own_flush: false,
            credit: Credit::default(),
            epoch: Epoch(0),
            geometry: None,
            in_sync: false,
            durable: Lsn(0),
            unknown_tail: resumed,
            lost: None,
            counters: Counters::default(),
        }
    }

    /// The epoch of the newest attachment.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// What the owner said; `None` before the first attachment.
    pub fn geometry(&self) -> Option<Geometry> {
        self.geometry
    }

    /// Whether the DTL was in sync in the newest reply, and there is an attachment.
    pub fn in_sync(&self) -> bool {
        self.in_sync && !matches!(self.phase, Phase::Away | Phase::Dead(_))
    }

    /// Whether requests are sent as they come.
    pub fn is_live(&self) -> bool {
        matches!(self.phase, Phase::Live)
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        Counters { kept_bytes: self.kept_bytes as u64, ..self.counters }
    }

    /// A router named another owner.
    pub fn moved(&mut self) {
        self.counters.moved += 1;
    }

    /// The device grew.
    pub fn resized(&mut self, size: u64) {
        if let Some(geometry) = &mut self.geometry {
            geometry.size = size;
        }
    }

    /// Takes a request in; it fails at `deadline`. Returns its number.
    pub fn submit(&mut self, op: Op, deadline: Option<Duration>) -> u64 {
        let refused = match &self.phase {
            Phase::Dead(error) => Some(error.clone()),
            _ if matches!(op, Op::Flush) => self.lost.clone(),
            _ => None,
        };
        let sequence = self.add(op, Origin::Caller, deadline);
        match refused {
            Some(error) => self.complete(sequence, Err(error)),
            None => self.queue.push_back(sequence),
        }
        sequence
    }

    fn add(&mut self, op: Op, origin: Origin, deadline: Option<Duration>) -> u64 {
        self.sequence += 1;
        self.flights.insert(self.sequence, Flight::new(op, origin, deadline));
        self.sequence
    }

    /// Hands everything to `emit` that may be sent now.
    pub fn dispatch(&mut self, mut emit: impl FnMut(Request)) {
        if matches!(self.phase, Phase::Replaying) {
            self.dispatch_replay(&mut emit);
        }
        if !matches!(self.phase, Phase::Live) {
            return;
        }
        if self.kept_bytes * 2 >= self.keep {
            // So that nobody waits, as a rule.
            self.flush_by_itself();
        }
        while let Some(sequence) = self.queue.front().copied() {
            // What failed while it waited is not sent any more.
            let Some(flight) = self.flights.get(&sequence).filter(|flight| flight.result.is_none()) else {
                self.queue.pop_front();
                continue;
            };
            if !self.affords(&flight.op) {
                return;
            }
            if self.is_full_for(&flight.op) {
                if !self.flush_by_itself() {
                    return;
                }
                continue;
            }
            self.queue.pop_front();
            self.send(sequence, &mut emit);
        }
    }

    /// The next ones that a new owner lacks.
    fn dispatch_replay(&mut self, emit: &mut impl FnMut(Request)) {
        for place in 0..self.replaying.len() {
            let sequence = self.replaying[place];
            // One that the owner could not do at first.
            if self.flights.get(&sequence).is_some_and(|f| f.state == State::Queued && self.affords(&f.op)) {
                self.send(sequence, emit);
            }
        }
        while let Some(op) = self.replay.front() {
            let waits = self.replaying.iter().any(|s| self.flights.get(s).is_some_and(|f| f.overlaps(op)));
            if waits && !mutant::is_on("replay-out-of-order") || !self.affords(op) {
                return;
            }
            let Some(op) = (match mutant::is_on("replay-out-of-order") {
                true => self.replay.pop_back(),
                false => self.replay.pop_front(),
            }) else {
                return;
            };
            let sequence = self.add(op, Origin::Replay, None);
            self.replaying.push(sequence);
            self.counters.replayed += 1;
            self.send(sequence, emit);
        }
        if self.replaying.is_empty() {
            self.phase = Phase::Live;
        }
    }

    /// Whether the credit allows one more.
    fn affords(&self, op: &Op) -> bool {
        let cost = op.cost();
        (self.credit.requests >= cost.requests && self.credit.bytes >= cost.bytes)
            || mutant::is_on("credits-ignored")
    }

    /// Whether a change has to wait until less is kept.
    fn is_full_for(&self, op: &Op) -> bool {
        op.changes() && self.kept_bytes > 0 && self.kept_bytes + self.changing + kept_cost(op) > self.keep
    }

    /// Puts a flush of its own in front, if there is none and it is of use.
    fn flush_by_itself(&mut self) -> bool {
        if self.own_flush || self.kept_bytes == 0 {
            return false;
        }
        self.own_flush = true;
        self.counters.own_flushes += 1;
        let sequence = self.add(Op::Flush, Origin::Ledger, None);
        self.queue.push_front(sequence);
        true
    }

    fn send(&mut self, sequence: u64, emit: &mut impl FnMut(Request)) {
        let Some(flight) = self.flights.get_mut(&sequence) else { return };
        let cost = flight.op.cost();
        self.credit.requests = self.credit.requests.saturating_sub(cost.requests);
        self.credit.bytes = self.credit.bytes.saturating_sub(cost.bytes);
        flight.state = State::Sent;
        if flight.op.changes() {
            self.changing += kept_cost(&flight.op);
        }
        emit(Request { sequence, epoch: self.epoch, op: flight.op.clone() });
    }

    /// The connection is gone: nothing is sent until there is another attachment.
    pub fn away(&mut self) {
        if !matches!(self.phase, Phase::Dead(_)) {
            self.phase = Phase::Away;
        }
    }

    /// Ends it: everything fails with `error`, now and later.
    pub fn die(&mut self, error: Error) {
        if matches!(self.phase, Phase::Dead(_)) {
            return;
        }
        let waiting: Vec<u64> = self.flights.keys().copied().collect();
        self.phase = Phase::Dead(error.clone());
        for sequence in waiting {
            self.complete(sequence, Err(error.clone()));
        }
    }

    /// Why it ended.
    pub fn dead(&self) -> Option<&Error> {
        if let Phase::Dead(error) = &self.phase { Some(error) } else { None }
    }

    /// There is an attachment: what is to be sent again, and in which order.
    ///
    /// # Errors
    /// The router speaks for an owner that was deposed.
    pub fn attached(&mut self, granted: &Granted) -> Result<()> {
        if matches!(self.phase, Phase::Dead(_)) {
            return Ok(());
        }
        if granted.epoch < self.epoch && !mutant::is_on("stale-epoch-reply-believed") {
            return Err(Error::unavailable(format!(
                "the owner of epoch {} answered, and there is one of epoch {}",
                granted.epoch, self.epoch
            )));
        }
        let again = self.geometry.is_some();
        self.counters.reconnects += u64::from(again);
        self.gather();
        let same = again && granted.epoch == self.epoch;
        if !same {
            self.compare(granted.recovered);
        }
        if self.unknown_tail && (again && !same || !again && !granted.known) {
            self.lose("another process wrote before this one, and what it had not flushed may be gone");
        }
        self.epoch = granted.epoch;
        self.geometry = Some(granted.geometry);
        self.in_sync = granted.in_sync;
        self.credit = granted.credit;
        self.phase = Phase::Replaying;
        Ok(())
    }

    /// Puts back what was under way, in the order in which it was asked for.
    fn gather(&mut self) {
        let mut replaying = std::mem::take(&mut self.replaying);
        replaying.sort_unstable();
        for sequence in replaying.into_iter().rev() {
            if let Some(flight) = self.flights.remove(&sequence) {
                self.replay.push_front(flight.op);
            }
        }
        self.resting.clear();
        self.changing = 0;
        // An own flush is asked for anew, if it is still wanted.
        self.flights.retain(|_, flight| flight.origin != Origin::Ledger);
        self.own_flush = false;
        let waits = |f: &Flight| f.result.is_none();
        let sent = self.flights.values().filter(|f| waits(f) && f.state == State::Sent).count();
        self.counters.replayed += sent as u64;
        let mut order: Vec<u64> = self.flights.iter().filter(|(_, f)| waits(f)).map(|(s, _)| *s).collect();
        order.sort_unstable();
        for sequence in &order {
            if let Some(flight) = self.flights.get_mut(sequence) {
                flight.state = State::Queued;
            }
        }
        self.queue = order.into();
    }

    /// Finds out what another owner lacks.
    fn compare(&mut self, recovered: Recovered) {
        let (from, known) = match recovered {
            Recovered::All => return,
            Recovered::UpTo(lsn) => (lsn.next(), lsn),
            Recovered::Flushed => {
                // Its log has other numbers, too.
                self.durable = Lsn(0);
                (Lsn(0), Lsn(0))
            }
        };
        let mut missing = self.kept.split_off(&(from, 0));
        self.kept_bytes -= missing.values().map(kept_cost).sum::<usize>();
        if mutant::is_on("no-replay-of-completed") {
            missing.clear();
        }
        if self.mode != Mode::Exclusive && !missing.is_empty() {
            return self.lose("writes that were answered are gone, and others write to the device as well");
        }
        // What was being replayed to the owner before this one was asked for later than what overlaps it here.
        let mut ops: VecDeque<Op> = missing.into_values().collect();
        ops.append(&mut self.replay);
        self.replay = ops;
        if known < self.durable {
            let durable = std::mem::replace(&mut self.durable, known);
            self.lose(&format!(
                "a flush had covered the log up to {durable}, and the new owner has it up to {known}"
            ));
        }
    }

    /// From now on every flush fails.
    fn lose(&mut self, why: &str) {
        if mutant::is_on("flush-lies-after-lost-tail") {
            return;
        }
        let error = Error::corrupt(format!("a flush can't succeed any more; attach again: {why}"));
        let flushes: Vec<u64> =
            self.flights.iter().filter(|(_, f)| f.is_waiting_flush()).map(|(s, _)| *s).collect();
        for sequence in flushes {
            self.complete(sequence, Err(error.clone()));
        }
        self.lost.get_or_insert(error);
        // Nobody will hear that any of it is durable.
        self.kept.clear();
        self.kept_bytes = 0;
    }

    /// Fails what has waited for too long, and sends again what rested. Returns whether anything is to be sent.
    pub fn tick(&mut self, now: Duration) -> bool {
        let late = |f: &Flight| f.result.is_none() && f.deadline.is_some_and(|deadline| deadline <= now);
        let late: Vec<u64> = self.flights.iter().filter(|(_, f)| late(f)).map(|(s, _)| *s).collect();
        for sequence in late {
            let error = Error::unavailable("no router has answered within the deadline of the request");
            self.complete(sequence, Err(error));
        }
        let mut again = false;
        while self.resting.front().is_some_and(|(until, _)| *until <= now) {
            let Some((_, sequence)) = self.resting.pop_front() else { break };
            let Some(flight) = self.flights.get_mut(&sequence) else { continue };
            flight.state = State::Queued;
            if flight.origin != Origin::Replay {
                self.queue.push_front(sequence);
            }
            again = true;
        }
        again
    }

    fn complete(&mut self, sequence: u64, result: flight::Answer) {
        let Some(flight) = self.flights.get_mut(&sequence) else { return };
        if flight.result.is_some() {
            return;
        }
        if flight.is_unwanted() {
            self.remove(sequence);
            return;
        }
        flight.result = Some(result);
        if let Some(waker) = flight.waker.take() {
            waker.wake();
        }
    }

    /// What came of a request, or wakes `waker` when it is there.
    pub fn poll(&mut self, sequence: u64, waker: &Waker) -> Option<flight::Answer> {
        match self.flights.get_mut(&sequence) {
            None => Some(Err(Error::internal("a request was asked for twice"))),
            Some(flight) if flight.result.is_some() => self.remove(sequence).and_then(|flight| flight.result),
            Some(flight) => {
                match &mut flight.waker {
                    Some(old) => old.clone_from(waker),
                    none => *none = Some(waker.clone()),
                }
                None
            }
        }
    }

    /// Nobody waits for it any more. What was sent is done all the same.
    pub fn abandon(&mut self, sequence: u64) {
        if let Some(flight) = self.flights.get_mut(&sequence) {
            flight.origin = Origin::Nobody;
            if flight.result.is_some() || flight.state == State::Queued {
                self.remove(sequence);
            }
        }
    }

    fn remove(&mut self, sequence: u64) -> Option<Flight> {
        let flight = self.flights.remove(&sequence)?;
        if flight.state == State::Sent && flight.op.changes() {
            // It failed before it was answered.
            self.changing = self.changing.saturating_sub(kept_cost(&flight.op));
        }
        Some(flight)
    }
}

/// What it takes to keep a request.
fn kept_cost(op: &Op) -> usize {
    KEPT_COST + if let Op::Write { data, .. } = op { data.len() } else { 0 }
}

#[cfg(test)]
mod tests;
