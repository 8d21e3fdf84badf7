//! Where a thread may wait for the disk.
//!
//! The runtime's workers must not wait; what waits goes to a thread of its own and comes back, at the
//! price of two wake-ups. A thread that serves one client alone may as well wait itself: it says so
//! with [`allow`], and what it polls inside waits in place.
//!
//! What a request waits for may come over a connection of this process, which a task of the runtime receives as a rule.
//! Who sends the question says so with [`expect`], and a thread that may wait looks for the answer itself, with [`look`].

use crate::error::{Error, Result};
use std::cell::{Cell, RefCell};
use std::sync::Arc;

thread_local! {
    static ALLOWED: Cell<bool> = const { Cell::new(false) };
    static EXPECTED: RefCell<Vec<Arc<dyn Lookout>>> = const { RefCell::new(Vec::new()) };
}

/// Rounds of [`look`] in which nothing comes: some 100 us where nobody else wants the processor.
const ROUNDS: u32 = 150;

/// Where an answer may come from.
pub trait Lookout: Send + Sync {
    /// Takes what has come, without waiting.
    fn look(&self);

    /// Nobody looks any more: what comes is for the runtime to receive.
    fn leave(&self);
}

/// Whether this thread may wait.
pub fn is_allowed() -> bool {
    ALLOWED.get()
}

/// An answer may come from there. Only to be said on a thread that may wait.
pub fn expect(lookout: Arc<dyn Lookout>) {
    EXPECTED.with_borrow_mut(|expected| {
        if !expected.iter().any(|known| Arc::ptr_eq(known, &lookout)) {
            expected.push(lookout);
        }
    });
}

/// Looks for what this thread expects, for a short time, until `came`. It lets others run between two looks.
pub fn look(came: impl Fn() -> bool) -> bool {
    let expected = EXPECTED.take();
    if expected.is_empty() {
        return false;
    }
    for _ in 0..ROUNDS {
        for lookout in &expected {
            lookout.look();
        }
        if came() {
            // It may not be all that is waited for.
            EXPECTED.set(expected);
            return true;
        }
        std::thread::yield_now();
    }
    for lookout in &expected {
        lookout.leave();
    }
    false
}

/// Runs `f` on this thread, which may wait from now until it returns.
pub fn allow<T>(f: impl FnOnce() -> T) -> T {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            ALLOWED.set(self.0);
            for lookout in EXPECTED.take() {
                lookout.leave();
            }
        }
    }
    let _restore = Restore(ALLOWED.replace(true));
    f()
}

/// Runs `f`, which may wait for a disk: here if this thread may, else on one that may.
///
/// # Errors
/// That of `f`; [`crate::ErrorKind::Internal`] when its thread did not end well.
pub async fn run<T: Send + 'static>(f: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    if ALLOWED.get() {
        return f();
    }
    match tokio::task::spawn_blocking(f).await {
        Ok(result) => result,
        Err(e) => Err(Error::internal(format!("a request to a disk did not finish: {e}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread::current;

    #[tokio::test]
    async fn waits_elsewhere_unless_this_thread_may() {
        let here = current().id();
        let other = run(|| Ok(current().id())).await.unwrap();
        assert_ne!(other, here);
        let inside = allow(|| futures::executor::block_on(run(|| Ok(current().id()))).unwrap());
        assert_eq!(inside, here);
        assert_ne!(run(|| Ok(current().id())).await.unwrap(), here, "only while it is allowed");
    }
}
