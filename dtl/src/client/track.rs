//! What a log was sent, what it has confirmed, and what is to be sent next; sans-I/O.

use super::{LinkState, Progress, Start};
use crate::registration::{Incarnation, LogInfo};
use crate::wire::Open;
use common::{ErrorKind, Lsn};
use std::collections::VecDeque;

/// Where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// There is no channel.
    Closed,
    /// A channel was asked for.
    Opening,
    /// Entries are read again and sent.
    Lagging,
    /// Each entry is sent as it comes.
    Live,
    /// The service has no room.
    Stalled,
    /// It is over.
    Lost(ErrorKind),
}

#[derive(Debug)]
pub(super) struct Track {
    start: Start,
    pub phase: Phase,
    /// The channel on the present connection.
    pub channel: u32,
    incarnation: Option<Incarnation>,
    /// The last entry that the volume gave out.
    accepted: Lsn,
    /// The next to be sent.
    next: Lsn,
    confirmed: Lsn,
    flushed: Lsn,
    /// The log restarted: what it says counts when it has again what it had confirmed, and was told so.
    suspect: bool,
    vouching: bool,
    /// What it has beyond what counts.
    has: Lsn,
    /// Sent and not confirmed.
    under_way: VecDeque<(Lsn, u32)>,
    under_way_bytes: u64,
    window: u64,
    flush_wanted: Lsn,
    flush_sent: Lsn,
    trimmed: Lsn,
    trim_sent: Lsn,
    /// A chunk is being read.
    pub reading: bool,
}

/// What is to be sent now, beside entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Control {
    Trim(Lsn),
    Flush,
    Vouch(Lsn),
}

impl Track {
    pub fn new(start: Start) -> Self {
        Track {
            start,
            phase: Phase::Closed,
            channel: 0,
            incarnation: None,
            accepted: start.accepted.max(start.committed),
            next: start.committed.next(),
            confirmed: Lsn(0),
            flushed: Lsn(0),
            suspect: false,
            vouching: false,
            has: Lsn(0),
            under_way: VecDeque::new(),
            under_way_bytes: 0,
            window: 0,
            flush_wanted: Lsn(0),
            flush_sent: Lsn(0),
            trimmed: start.committed,
            trim_sent: start.committed,
            reading: false,
        }
    }

    pub fn progress(&self) -> Progress {
        let state = match self.phase {
            Phase::Closed | Phase::Opening => LinkState::Away,
            Phase::Lagging | Phase::Stalled => LinkState::CatchingUp,
            Phase::Live if self.suspect => LinkState::CatchingUp,
            Phase::Live => LinkState::Live,
            Phase::Lost(_) => LinkState::Lost,
        };
        Progress { incarnation: self.incarnation, confirmed: self.confirmed, flushed: self.flushed, state }
    }

    /// The volume gave out `lsn`; whether to send it, at once.
    pub fn accept(&mut self, lsn: Lsn, bytes: usize) -> bool {
        self.accepted = self.accepted.max(lsn);
        if self.phase != Phase::Live {
            return false;
        }
        if lsn == self.next && self.fits(bytes) {
            return true;
        }
        if self.next <= lsn {
            self.phase = Phase::Lagging;
        }
        false
    }

    /// An entry could not be queued.
    pub fn missed(&mut self) {
        if self.phase == Phase::Live {
            self.phase = Phase::Lagging;
        }
    }

    /// It was queued.
    pub fn sent(&mut self, lsn: Lsn, bytes: usize) {
        self.under_way.push_back((lsn, bytes as u32));
        self.under_way_bytes += bytes as u64;
        self.next = lsn.next();
    }

    /// Whether so many more bytes may be under way: one entry always may.
    pub fn fits(&self, bytes: usize) -> bool {
        self.under_way.is_empty() || self.under_way_bytes + bytes as u64 <= self.window
    }

    /// How to open a channel.
    pub fn hello(&mut self, channel: u32) -> Open {
        self.phase = Phase::Opening;
        self.channel = channel;
        match self.incarnation {
            Some(incarnation) => Open::Resume(incarnation),
            None => Open::Create { serial: self.start.serial, base: self.trimmed },
        }
    }

    /// The channel is open.
    pub fn opened(&mut self, info: &LogInfo, window: u32) {
        self.under_way.clear();
        self.under_way_bytes = 0;
        self.window = u64::from(window);
        let other = self.incarnation.is_some_and(|known| known != info.incarnation);
        // It confirmed more than it has, and says that it lost nothing; or it has what was never given out. What the
        // backend has counts as confirmed, and the trim that says so may have been lost with the connection.
        let fewer = !info.suspect && info.last < self.confirmed && self.confirmed > self.trimmed;
        let impossible = fewer || info.last > self.accepted.max(self.trimmed);
        if other || impossible || info.sealed || info.damaged {
            self.phase = Phase::Lost(if other { ErrorKind::NotFound } else { ErrorKind::Corrupt });
            return;
        }
        self.incarnation = Some(info.incarnation);
        self.suspect = info.suspect;
        self.vouching = false;
        self.has = info.last;
        self.next = info.last.next();
        self.trim_sent = info.base;
        self.flush_sent = Lsn(0);
        if !self.suspect {
            self.flushed = self.flushed.max(info.flushed);
            self.confirmed = self.confirmed.max(info.last);
        }
        self.phase = Phase::Lagging;
        self.catch_up();
    }

    /// Live, if there is nothing left to be read again.
    pub fn catch_up(&mut self) {
        if self.phase == Phase::Lagging && self.next > self.accepted {
            self.phase = Phase::Live;
        }
    }

    /// There is no connection any more.
    pub fn closed(&mut self) {
        if !matches!(self.phase, Phase::Lost(_)) {
            self.phase = Phase::Closed;
        }
        self.reading = false;
    }

    pub fn lost(&mut self, kind: ErrorKind) {
        self.phase = Phase::Lost(kind);
    }

    pub fn confirmed(&mut self, lsn: Lsn) {
        while self.under_way.front().is_some_and(|(sent, _)| *sent <= lsn) {
            if let Some((_, bytes)) = self.under_way.pop_front() {
                self.under_way_bytes -= u64::from(bytes);
            }
        }
        // Nothing is confirmed that was not sent; who says so is not believed.
        self.has = self.has.max(Lsn(lsn.0.min(self.next.0 - 1)));
        if !self.suspect {
            self.confirmed = self.confirmed.max(self.has);
        }
    }

    pub fn flushed(&mut self, lsn: Lsn) {
        if !self.suspect {
            self.flushed = self.flushed.max(lsn.min(self.confirmed));
        }
    }

    pub fn vouched(&mut self) {
        if std::mem::take(&mut self.vouching) {
            self.suspect = false;
            self.confirmed = self.confirmed.max(self.has);
            // What was asked before it counted is asked again.
            self.flush_sent = Lsn(0);
        }
    }

    pub fn stalled(&mut self) {
        if matches!(self.phase, Phase::Live | Phase::Lagging) {
            self.phase = Phase::Stalled;
        }
    }

    /// There is room again: everything behind `last` is to be sent again. What is not behind it is there, or was
    /// trimmed, and nothing else will confirm it where all that was dropped was trimmed.
    pub fn resumed(&mut self, last: Lsn) {
        if self.phase == Phase::Stalled {
            // Nothing is there that was not given out; who says so is not believed.
            let last = last.min(self.accepted.max(self.trimmed));
            self.under_way.clear();
            self.under_way_bytes = 0;
            self.next = last.next();
            self.confirmed(last);
            // A flush that was asked for is of what was dropped.
            self.flush_sent = Lsn(0);
            self.phase = Phase::Lagging;
            self.catch_up();
        }
    }

    pub fn want_flush(&mut self, lsn: Lsn) {
        self.flush_wanted = self.flush_wanted.max(lsn);
    }

    pub fn want_trim(&mut self, lsn: Lsn) {
        self.trimmed = self.trimmed.max(lsn);
    }

    /// Where to read on, if that is needed and possible.
    pub fn wants_chunk(&self, least: usize) -> Option<Lsn> {
        let wants =
            self.phase == Phase::Lagging && !self.reading && self.next <= self.accepted && self.fits(least);
        wants.then_some(self.next)
    }

    /// What comes up to `committed` need not be sent: the log begins anew behind it. Whether it is so.
    pub fn skip(&mut self, committed: Lsn) -> Option<Control> {
        if self.phase != Phase::Lagging || committed < self.next {
            return None;
        }
        self.next = committed.next();
        self.accepted = self.accepted.max(committed);
        self.trimmed = self.trimmed.max(committed);
        self.trim_sent = committed;
        self.has = self.has.max(committed);
        if !self.suspect {
            self.confirmed = self.confirmed.max(committed);
        }
        Some(Control::Trim(committed))
    }

    pub fn is_next(&self, lsn: Lsn) -> bool {
        self.phase == Phase::Lagging && self.next == lsn
    }

    /// What else is to be sent now; call until there is nothing.
    pub fn control(&mut self) -> Option<Control> {
        if !matches!(self.phase, Phase::Live | Phase::Lagging | Phase::Stalled) {
            return None;
        }
        if self.suspect && !self.vouching && self.has >= self.confirmed {
            self.vouching = true;
            return Some(Control::Vouch(self.confirmed));
        }
        // A trim beyond what was sent is for `skip` to do.
        let trim = Lsn(self.trimmed.0.min(self.next.0 - 1));
        if trim > self.trim_sent {
            self.trim_sent = trim;
            return Some(Control::Trim(trim));
        }
        let sent = Lsn(self.next.0 - 1);
        let asked = self.flushed.max(self.flush_sent);
        if self.phase != Phase::Stalled && self.flush_wanted > asked && sent >= self.flush_wanted {
            self.flush_sent = sent;
            return Some(Control::Flush);
        }
        None
    }
}

#[cfg(test)]
mod tests;
