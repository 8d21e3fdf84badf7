//! What lets the requests of a session pass, and waits for the last of them.

use common::{Error, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Notify;

const SHUT: u64 = 1 << 63;

/// The gate of one session. Shut, it stays shut.
#[derive(Default)]
pub struct Gate {
    /// Requests that are inside, and whether it is shut.
    state: AtomicU64,
    empty: Notify,
    /// Nobody speaks for the session any more.
    left: AtomicBool,
    /// When there was a sign of life, in nanoseconds.
    heard: AtomicU64,
}

/// Lets one request be inside. One that is dropped before its end stays inside for ever: nobody can say when
/// it takes effect.
#[must_use]
pub struct Pass(Arc<Gate>);

impl Gate {
    /// A gate whose client was heard at `now`.
    pub fn new(now: Duration) -> Arc<Gate> {
        let gate = Gate::default();
        gate.hear(now);
        Arc::new(gate)
    }

    /// Lets a request in.
    ///
    /// # Errors
    /// `Fenced`: it is shut.
    pub fn enter(self: &Arc<Self>) -> Result<Pass> {
        if self.state.fetch_add(1, Ordering::AcqRel) & SHUT == 0 {
            return Ok(Pass(self.clone()));
        }
        Pass(self.clone()).end();
        Err(Error::fenced("the session has ended: its client is attached again, or was revoked"))
    }

    /// Lets nobody in from now on.
    pub fn shut(&self) {
        self.state.fetch_or(SHUT, Ordering::AcqRel);
    }

    /// Whether it lets nobody in.
    pub fn is_shut(&self) -> bool {
        self.state.load(Ordering::Acquire) & SHUT != 0
    }

    /// Returns when nobody is inside any more; to be called when it is shut.
    pub async fn drained(&self) {
        loop {
            let waiting = self.empty.notified();
            tokio::pin!(waiting);
            waiting.as_mut().enable();
            if self.state.load(Ordering::Acquire) & !SHUT == 0 {
                return;
            }
            waiting.await;
        }
    }

    /// There was a sign of life.
    pub fn hear(&self, now: Duration) {
        self.heard.store(now.as_nanos() as u64, Ordering::Relaxed);
    }

    /// Nobody speaks for the session any more.
    pub fn leave(&self, now: Duration) {
        self.hear(now);
        self.left.store(true, Ordering::Release);
    }

    /// Whether its client is here, or was less than `lease` ago.
    pub fn is_live(&self, now: Duration, lease: Duration) -> bool {
        let heard = Duration::from_nanos(self.heard.load(Ordering::Relaxed));
        !self.left.load(Ordering::Acquire) || now.saturating_sub(heard) < lease
    }
}

impl Pass {
    /// The request has taken effect, or never will.
    pub fn end(self) {
        if self.0.state.fetch_sub(1, Ordering::AcqRel) == SHUT + 1 {
            self.0.empty.notify_waiters();
        }
    }
}
