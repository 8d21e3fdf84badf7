//! The signal that the server stops, as a connection asks for it: very often.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Waker};
use tokio::sync::watch;

/// Notices that the server stops, at the price of one comparison per turn.
pub struct StopSignal {
    receiver: watch::Receiver<bool>,
    changed: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// The task that the future will wake.
    registered: Option<Waker>,
    stopped: bool,
}

impl StopSignal {
    /// Listens to `receiver`.
    pub fn new(receiver: watch::Receiver<bool>) -> Self {
        let mut waiting = receiver.clone();
        let changed = Box::pin(async move {
            // An error says that the sender is gone, and with it whoever could say stop.
            let _ = waiting.wait_for(|stop| *stop).await;
        });
        Self { receiver, changed, registered: None, stopped: false }
    }

    /// Whether the server stops; else the task is woken when it does.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        if self.stopped {
            return true;
        }
        let known = self.registered.as_ref().is_some_and(|w| w.will_wake(cx.waker()));
        if known && matches!(self.receiver.has_changed(), Ok(false)) {
            return false;
        }
        self.receiver.mark_unchanged();
        self.registered = Some(cx.waker().clone());
        self.stopped = self.changed.as_mut().poll(cx).is_ready();
        self.stopped
    }
}
