//! Connections whose client sends one request at a time, on a thread of their own (ADR 9).
//!
//! For such a client most of a request's time goes into being woken: the runtime's reactor wakes a worker, on another CPU
//! as a rule. A thread that waits for this connection alone looks at its socket before it sleeps, and may wait for the
//! disk where it is. What else a request waits for, it looks at itself ([`crate::blocking::look`]). As soon as there is
//! more to do than one thing after the other, or nothing at all, the connection goes back to the runtime.

use crate::blocking;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Requests in a row, each sent after the reply to the one before, that show such a client.
pub const SINGLES: u32 = 64;
/// Time without a request after which the thread is given back.
pub const PATIENCE: Duration = Duration::from_millis(20);

/// The threads that connections may have to themselves.
#[derive(Clone, Debug)]
pub struct Threads(Arc<Semaphore>);

impl Threads {
    /// At most `limit`, and one for each processor.
    pub fn new(limit: usize) -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self(Arc::new(Semaphore::new(cpus.min(limit))))
    }

    /// One of them, if one is free.
    pub fn take(&self) -> Option<OwnedSemaphorePermit> {
        // In a runtime of one thread there is no other to do the rest.
        let several = Handle::try_current().is_ok_and(|h| h.runtime_flavor() == RuntimeFlavor::MultiThread);
        several.then(|| self.0.clone().try_acquire_owned().ok()).flatten()
    }
}

/// What the task of a connection, its reader and its thread tell each other.
#[derive(Debug)]
pub struct Solo {
    threads: Threads,
    in_place: bool,
    singles: AtomicU32,
    alone: AtomicBool,
    may_wait: AtomicBool,
}

/// Remembers that it was called.
#[derive(Default)]
struct Bell(AtomicBool);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }
}

impl Solo {
    /// Of one connection. `in_place`: its requests may wait for the disk on its thread; not where others share the
    /// connection and must not wait for that.
    pub fn new(threads: Threads, in_place: bool) -> Arc<Self> {
        Arc::new(Self {
            threads,
            in_place,
            singles: AtomicU32::new(0),
            alone: AtomicBool::new(false),
            may_wait: AtomicBool::new(false),
        })
    }

    /// Told before each read: `requests` came since the one before it, and whether the connection is `idle`: it does
    /// nothing until more comes.
    pub fn turn(&self, requests: usize, idle: bool) {
        self.may_wait.store(idle, Ordering::Relaxed);
        match requests {
            0 => {}
            1 => _ = self.singles.fetch_add(1, Ordering::Relaxed),
            _ => self.leave(),
        }
    }

    /// Whether a thread is there for it.
    pub fn is_alone(&self) -> bool {
        self.alone.load(Ordering::Relaxed)
    }

    /// Whether the reader may keep the thread waiting.
    pub fn may_wait(&self) -> bool {
        self.may_wait.load(Ordering::Relaxed)
    }

    /// It goes back to the runtime, and has to earn its thread again.
    pub fn leave(&self) {
        self.alone.store(false, Ordering::Relaxed);
        self.singles.store(0, Ordering::Relaxed);
    }

    fn thread(&self) -> Option<OwnedSemaphorePermit> {
        if self.singles.load(Ordering::Relaxed) < SINGLES {
            return None;
        }
        // Whether or not there is one: not to be asked for at each request.
        self.singles.store(0, Ordering::Relaxed);
        self.threads.take()
    }

    /// Runs the connection's task: on a thread of its own while its client deserves one.
    pub async fn run<F: Future>(&self, connection: F) -> F::Output {
        let mut connection = pin!(connection);
        poll_fn(|cx| {
            loop {
                if let Poll::Ready(end) = connection.as_mut().poll(cx) {
                    return Poll::Ready(end);
                }
                let Some(_thread) = self.thread() else { return Poll::Pending };
                self.alone.store(true, Ordering::Relaxed);
                let end = tokio::task::block_in_place(|| {
                    let bell = Arc::new(Bell::default());
                    let waker = Waker::from(bell.clone());
                    let mut serve = || {
                        while self.is_alone() {
                            bell.0.store(false, Ordering::Release);
                            let polled = connection.as_mut().poll(&mut Context::from_waker(&waker));
                            if polled.is_ready() {
                                return polled;
                            }
                            // Its client is silent, or a request waits for something.
                            let called = || bell.0.load(Ordering::Acquire);
                            if self.is_alone() && !called() && !blocking::look(called) {
                                self.leave();
                            }
                        }
                        Poll::Pending
                    };
                    if self.in_place { blocking::allow(serve) } else { serve() }
                });
                self.leave();
                if end.is_ready() {
                    return end;
                }
                // Polled once more, it tells the runtime what it waits for.
            }
        })
        .await
    }
}
