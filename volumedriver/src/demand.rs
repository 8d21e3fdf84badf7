//! Whether clients are there: what works in the background gives way to them.

use std::sync::atomic::{AtomicU64, Ordering};

/// Requests of the clients of all volumes of a router: they share its disks and processors.
#[derive(Debug, Default)]
pub(crate) struct Demand(AtomicU64);

impl Demand {
    /// A client asks for something.
    pub fn arrived(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Requests so far.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Whether there were requests since there were `seen`, which is brought up to now.
    pub fn since(&self, seen: &mut u64) -> bool {
        let now = self.count();
        std::mem::replace(seen, now) != now
    }
}
