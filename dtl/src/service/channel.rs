//! What a connection knows of one log that is written over it.

use crate::storage::{Admission, Key};
use common::{Error, Lsn};

/// Whether entries are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    Open,
    /// There was no room, and the client does not know of any: everything is dropped.
    Stalled,
    /// The client was told to go on; what it had sent before it knew is still dropped.
    Resuming,
}

/// A log that is written over this connection.
#[derive(Debug)]
pub(super) struct Channel {
    pub key: Key,
    pub last: Lsn,
    flow: Flow,
    /// It is on the list of those whose confirmation is to be sent.
    pub touched: bool,
    /// A flush is under way.
    pub flushing: bool,
    /// Another one was asked for meanwhile.
    pub flush_again: bool,
}

/// What the client is to be told of an entry.
#[derive(Debug)]
pub(super) enum Verdict {
    Nothing,
    Confirm,
    Stall,
    Close(Error),
}

impl Channel {
    pub fn new(key: Key, last: Lsn) -> Self {
        Channel { key, last, flow: Flow::Open, touched: false, flushing: false, flush_again: false }
    }

    /// Whether an entry at `lsn` is to be looked at, or is what follows one that was dropped.
    pub fn listens(&mut self, lsn: Lsn) -> bool {
        match self.flow {
            Flow::Open => true,
            Flow::Stalled => false,
            Flow::Resuming if lsn <= self.last.next() => {
                self.flow = Flow::Open;
                true
            }
            Flow::Resuming => false,
        }
    }

    /// What becomes of an entry at `lsn`.
    pub fn judge(&mut self, lsn: Lsn, admission: Result<Admission, Error>) -> Verdict {
        if self.flow == Flow::Stalled {
            // Behind one of the same batch that found no room.
            return Verdict::Nothing;
        }
        match admission {
            Ok(Admission::Take | Admission::Have) => {
                self.last = self.last.max(lsn);
                Verdict::Confirm
            }
            Ok(Admission::Full) => {
                self.flow = Flow::Stalled;
                Verdict::Stall
            }
            Ok(Admission::Gap) => Verdict::Close(Error::invalid(format!(
                "volume {}: LSN {lsn} does not follow {}",
                self.key.volume, self.last
            ))),
            Err(error) => Verdict::Close(error),
        }
    }

    pub fn is_stalled(&self) -> bool {
        self.flow == Flow::Stalled
    }

    pub fn resume(&mut self) {
        self.flow = Flow::Resuming;
    }
}
