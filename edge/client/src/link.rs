//! Sending: whoever queues something sends it, if nobody is sending; who comes meanwhile is sent with the next
//! write. A request costs its encoding and one system call; no task is woken on the way out.

use crate::outgoing::Outgoing;
use crate::transport::WriteHalf;
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use tokio::sync::Notify;

/// Tells the task that something can be sent again.
struct Writable(Arc<Notify>, AtomicBool);

impl Wake for Writable {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.1.store(true, Ordering::Release);
        self.0.notify_one();
    }
}

/// The sending half of a connection, and of the next one.
pub struct Link {
    queue: Mutex<Outgoing>,
    sender: Mutex<(Option<WriteHalf>, Outgoing)>,
    /// The socket takes nothing now; the task goes on when it does.
    blocked: AtomicBool,
    /// A write failed: the task is to notice.
    broken: AtomicBool,
    wake: Arc<Notify>,
    writable: Arc<Writable>,
    waker: Waker,
}

impl Link {
    pub fn new() -> Self {
        let wake = Arc::new(Notify::new());
        let writable = Arc::new(Writable(wake.clone(), AtomicBool::new(false)));
        Link {
            queue: Mutex::default(),
            sender: Mutex::default(),
            blocked: AtomicBool::new(false),
            broken: AtomicBool::new(false),
            wake,
            waker: Waker::from(writable.clone()),
            writable,
        }
    }

    /// Tells the task to look for work.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    /// Returns when there may be work.
    pub async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Whatever was queued before goes nowhere.
    pub fn connect(&self, stream: WriteHalf) {
        let mut sender = self.sender.lock();
        *sender = (Some(stream), Outgoing::default());
        self.blocked.store(false, Ordering::Release);
        self.broken.store(false, Ordering::Release);
        *self.queue.lock() = Outgoing::default();
    }

    pub fn disconnect(&self) {
        // Whoever sends now finds the stream gone next time.
        *self.sender.lock() = (None, Outgoing::default());
        *self.queue.lock() = Outgoing::default();
    }

    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// Queues the frame that `put` writes, with the payload that it returns.
    pub fn frame(&self, put: impl FnOnce(&mut BytesMut) -> Bytes) {
        self.queue.lock().frame(put);
    }

    /// Sends what waits, unless somebody is doing so.
    pub fn drive(&self) {
        if !self.blocked.load(Ordering::Acquire) {
            self.send();
        }
    }

    /// The same, from the task: also when the socket took nothing last time, if it may take something now.
    pub fn drive_again(&self) {
        if self.writable.1.swap(false, Ordering::AcqRel) || !self.blocked.load(Ordering::Acquire) {
            self.blocked.store(false, Ordering::Release);
            self.send();
        }
    }

    fn send(&self) {
        loop {
            // Who holds it looks at the queue once more after letting go.
            let Some(mut sender) = self.sender.try_lock() else { return };
            let state = self.send_locked(&mut sender);
            if state.is_pending() {
                self.blocked.store(true, Ordering::Release);
            }
            drop(sender);
            match state {
                Poll::Pending => return,
                Poll::Ready(Err(_)) => {
                    self.broken.store(true, Ordering::Release);
                    self.blocked.store(true, Ordering::Release);
                    return self.wake();
                }
                Poll::Ready(Ok(())) if self.queue.lock().is_empty() => return,
                Poll::Ready(Ok(())) => {}
            }
        }
    }

    fn send_locked(&self, sender: &mut (Option<WriteHalf>, Outgoing)) -> Poll<std::io::Result<()>> {
        let (Some(stream), out) = sender else {
            // Nobody is connected; what was queued is gone with the connection.
            *self.queue.lock() = Outgoing::default();
            return Poll::Ready(Ok(()));
        };
        let mut cx = Context::from_waker(&self.waker);
        loop {
            match out.poll_send(stream, &mut cx) {
                Poll::Ready(Ok(())) => {}
                other => return other,
            }
            let mut queue = self.queue.lock();
            if queue.is_empty() {
                return Poll::Ready(Ok(()));
            }
            queue.hand_over(out);
        }
    }
}
