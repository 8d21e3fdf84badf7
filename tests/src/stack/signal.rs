//! A value that many wait for, woken in the order in which they began to wait: tokio's `watch` draws that order, and
//! then the same seed would not be the same world.

use std::sync::{Mutex, PoisonError};
use tokio::sync::Notify;

/// See the module's head.
#[derive(Default)]
pub struct Signal<T> {
    value: Mutex<T>,
    changed: Notify,
}

impl<T> Signal<T> {
    /// With a first value.
    pub fn new(value: T) -> Self {
        Signal { value: Mutex::new(value), changed: Notify::new() }
    }

    /// Something about the value.
    pub fn see<R>(&self, f: impl FnOnce(&T) -> R) -> R {
        f(&self.value.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes it, and wakes everybody.
    pub fn change<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        let result = f(&mut self.value.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_waiters();
        result
    }

    /// Waits until it is so.
    pub async fn wait(&self, holds: impl Fn(&T) -> bool) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.see(&holds) {
                return;
            }
            changed.await;
        }
    }
}
