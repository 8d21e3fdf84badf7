//! Where a thread may wait for the disk.
//!
//! The runtime's workers must not wait; what waits goes to a thread of its own and comes back, at the
//! price of two wake-ups. A thread that serves one client alone may as well wait itself: it says so
//! with [`allow`], and what it polls inside waits in place.

use crate::error::{Error, Result};
use std::cell::Cell;

thread_local! {
    static ALLOWED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f` on this thread, which may wait from now until it returns.
pub fn allow<T>(f: impl FnOnce() -> T) -> T {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            ALLOWED.set(self.0);
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
