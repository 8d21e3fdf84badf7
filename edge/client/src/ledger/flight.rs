//! A request that is under way.

use crate::wire::{Op, Outcome};
use common::Result;
use std::task::Waker;
use std::time::Duration;

/// What a caller gets: `Done`, `Data` or `Extents`.
pub type Answer = Result<Outcome>;

/// Who asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A caller, who waits.
    Caller,
    /// A caller who did not wait for it.
    Nobody,
    /// The replay of an answered write.
    Replay,
    /// The ledger, which keeps too much.
    Ledger,
}

/// Where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// To be sent.
    Queued,
    /// To be sent after a while.
    Resting,
    /// At the owner.
    Sent,
    /// Answered by the owner.
    Answered,
}

/// A request that is under way, or whose answer nobody has fetched.
pub struct Flight {
    /// What is asked.
    pub op: Op,
    /// Who asks.
    pub origin: Origin,
    /// Where it is.
    pub state: State,
    /// When it fails.
    pub deadline: Option<Duration>,
    /// Whom to wake.
    pub waker: Option<Waker>,
    /// What came of it.
    pub result: Option<Answer>,
}

impl Flight {
    /// One that is to be sent.
    pub fn new(op: Op, origin: Origin, deadline: Option<Duration>) -> Self {
        Flight { op, origin, state: State::Queued, deadline, waker: None, result: None }
    }

    /// Whether both touch a byte.
    pub fn overlaps(&self, other: &Op) -> bool {
        let ((a, n), (b, m)) = (self.op.range(), other.range());
        a < b.saturating_add(m) && b < a.saturating_add(n)
    }

    /// Nobody fetches its answer.
    pub fn is_unwanted(&self) -> bool {
        self.origin != Origin::Caller
    }

    /// A flush whose caller waits.
    pub fn is_waiting_flush(&self) -> bool {
        matches!(self.op, Op::Flush) && self.origin == Origin::Caller && self.result.is_none()
    }
}
