//! A client that sends one small request at a time has a thread to itself.
//!
//! For such a client most of a request's time goes into being woken: the runtime's reactor wakes a
//! worker, on another CPU as a rule, and what waits for a disk goes to a further thread and back. A
//! thread that waits in the socket's own `recv` is woken by the client's `send` where the client
//! runs, and may wait for the disk where it is. As soon as there is more to do than one thing after
//! the other, or nothing at all, the connection goes back to the runtime.

use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Requests in a row, each sent after the reply to the one before, that show such a client.
const SINGLES: u32 = 64;
/// Time without a request after which the thread is given back.
pub const PATIENCE: Duration = Duration::from_millis(20);
/// Requests between two looks at whether the server stops.
pub const LOOK: u32 = 64;

/// The threads that connections may have to themselves.
#[derive(Clone)]
pub struct Threads(Arc<Semaphore>);

impl Threads {
    /// At most `limit`, and one for each processor.
    pub fn new(limit: usize) -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self(Arc::new(Semaphore::new(cpus.min(limit))))
    }

    fn take(&self) -> Option<OwnedSemaphorePermit> {
        // In a runtime of one thread there is no other to do the rest.
        let several = Handle::try_current().is_ok_and(|h| h.runtime_flavor() == RuntimeFlavor::MultiThread);
        several.then(|| self.0.clone().try_acquire_owned().ok()).flatten()
    }
}

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
