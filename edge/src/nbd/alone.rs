//! A client that sends one small request at a time has a thread to itself.
//!
//! For such a client most of a request's time goes into being woken: the runtime's reactor wakes a
//! worker, on another CPU as a rule, and what waits for a disk goes to a further thread and back. A
//! thread that waits in the socket's own `recv` is woken by the client's `send` where the client
//! runs, and may wait for the disk where it is. As soon as there is more to do than one thing after
//! the other, or nothing at all, the connection goes back to the runtime.

use common::alone::SINGLES;
pub use common::alone::{PATIENCE, Threads};
use tokio::sync::OwnedSemaphorePermit;

/// Requests between two looks at whether the server stops.
pub const LOOK: u32 = 64;

/// How a client has been sending lately.
#[derive(Default)]
pub struct Habit {
    singles: u32,
    /// Requests since bytes last arrived.
    started: u32,
}

impl Habit {
    /// A request was decoded.
    pub fn started(&mut self) {
        self.started += 1;
    }

    /// Bytes arrived; `idle` when nothing was being worked on, nothing was to be sent, and they are
    /// no part of a large payload.
    pub fn received(&mut self, idle: bool) {
        self.singles = if idle && self.started <= 1 { self.singles.saturating_add(1) } else { 0 };
        self.started = 0;
    }

    /// Whether the last bytes came alone.
    pub fn is_single(&self) -> bool {
        self.singles > 0
    }

    /// A thread, if the client has earned one and one is free.
    pub fn thread(&mut self, threads: &Threads) -> Option<OwnedSemaphorePermit> {
        if self.singles < SINGLES {
            return None;
        }
        // Whether or not there is one: not to be asked for at each request.
        self.singles = 0;
        threads.take()
    }

    /// It has to be earned again.
    pub fn forget(&mut self) {
        self.singles = 0;
    }
}
