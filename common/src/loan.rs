//! Whether the runtime hears of what comes over a connection, or threads that look for it ([`crate::blocking::look`]).
//!
//! When nobody but such threads has waited for a while, the connection is lent to them, and no task is woken for each
//! answer. It is taken back as soon as anybody else waits, a thread gives up, or nobody looks.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};

/// Threads came to look so often, and nobody else waited: the connection is lent to them.
const AFTER: u32 = 16;

/// See the module's head.
#[derive(Debug, Default)]
pub struct Loan {
    /// How often threads came to look since somebody else waited.
    looks: AtomicU32,
    lent: AtomicBool,
}

impl Loan {
    /// A thread waits, and is about to look.
    pub fn expected(&self) {
        self.looks.fetch_add(1, SeqCst);
    }

    /// Whether the task leaves it to threads. Whoever takes it back wakes the task.
    pub fn is_lent(&self) -> bool {
        self.lent.load(SeqCst)
    }

    /// Somebody waits who does not look, or nobody looks any more. Whether the task has to be woken.
    pub fn recall(&self) -> bool {
        // In this order, and `lend` in the other one: one of both sees what the other did.
        if self.looks.load(SeqCst) != 0 {
            self.looks.store(0, SeqCst);
        }
        self.lent.load(SeqCst) && self.lent.swap(false, SeqCst)
    }

    /// Lends it if that is due and `unwatch` does. Whether the task has to be woken: it was taken back at once.
    pub fn lend(&self, unwatch: impl FnOnce() -> bool) -> bool {
        let due = || self.looks.load(SeqCst) >= AFTER;
        if self.is_lent() || !due() || !unwatch() {
            return false;
        }
        self.lent.store(true, SeqCst);
        !due() && self.lent.swap(false, SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_lent_to_those_who_look_until_somebody_else_waits() {
        let loan = Loan::default();
        for _ in 0..AFTER {
            assert!(!loan.lend(|| true) && !loan.is_lent());
            loan.expected();
        }
        assert!(!loan.lend(|| false) && !loan.is_lent(), "not where the runtime can't let go");
        assert!(!loan.lend(|| true) && loan.is_lent());
        assert!(loan.recall(), "the task is to be woken, once");
        assert!(!loan.recall() && !loan.is_lent());
        assert!(!loan.lend(|| true) && !loan.is_lent(), "it has to be earned again");
    }
}
