//! The requests of one connection that are being worked on: a table of futures, polled by the
//! connection's own task.
//!
//! A slot keeps its waker from one request to the next, so a request costs no allocation here. A
//! future that wakes itself while it is polled (a device that gathers neighbours does) is polled
//! again in the same pass over the table, without a trip through the runtime's queues.

use super::meta::Run;
use super::proto::Request;
use bytes::Bytes;
use common::Result;
use futures::task::AtomicWaker;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

/// Passes over the table before the connection looks at its socket again.
const PASSES: usize = 3;

/// A future of the device.
pub type DeviceFuture<'d, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'd>>;

/// What the device was asked to do.
pub enum Work<'d> {
    /// A read.
    Read(DeviceFuture<'d, Bytes>),
    /// Anything that returns nothing.
    Unit(DeviceFuture<'d, ()>),
    /// A block status, in each context.
    Status(DeviceFuture<'d, Vec<(u32, Vec<Run>)>>),
}

/// What came out of it.
pub enum Outcome {
    /// Of a read.
    Read(Result<Bytes>),
    /// Of anything that returns nothing.
    Unit(Result<()>),
    /// Of a block status.
    Status(Result<Vec<(u32, Vec<Run>)>>),
}

impl Work<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Outcome> {
        match self {
            Work::Read(f) => f.as_mut().poll(cx).map(Outcome::Read),
            Work::Unit(f) => f.as_mut().poll(cx).map(Outcome::Unit),
            Work::Status(f) => f.as_mut().poll(cx).map(Outcome::Status),
        }
    }
}

/// A request that is done.
pub struct Done {
    /// What was asked.
    pub request: Request,
    /// When it was decoded.
    pub start: Duration,
    /// What came out.
    pub outcome: Outcome,
}

/// Which slots want to be polled, and whom to wake for it.
struct Ready {
    words: Box<[AtomicU64]>,
    /// Set while the task sleeps; cleared by the first that wakes it.
    armed: AtomicBool,
    task: AtomicWaker,
}

struct SlotWaker {
    slot: usize,
    ready: Arc<Ready>,
}

impl Wake for SlotWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ready.mark(self.slot);
        if self.ready.armed.swap(false, Ordering::SeqCst) {
            self.ready.task.wake();
        }
    }
}

impl Ready {
    fn mark(&self, slot: usize) {
        self.words[slot / 64].fetch_or(1 << (slot % 64), Ordering::SeqCst);
    }
}

struct Slot<'d> {
    work: Option<(Request, Duration, Work<'d>)>,
    waker: Waker,
}

/// The table.
pub struct Inflight<'d> {
    slots: Vec<Slot<'d>>,
    free: Vec<usize>,
    ready: Arc<Ready>,
    limit: usize,
    busy: usize,
}

impl<'d> Inflight<'d> {
    /// A table for at most `limit` requests at a time; it grows with use.
    pub fn new(limit: usize) -> Self {
        let words = (0..limit.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        let ready = Ready { words, armed: AtomicBool::new(false), task: AtomicWaker::new() };
        Self { slots: Vec::new(), free: Vec::new(), ready: Arc::new(ready), limit, busy: 0 }
    }

    /// Requests that are being worked on.
    pub fn len(&self) -> usize {
        self.busy
    }

    /// Whether one more request has to wait.
    pub fn is_full(&self) -> bool {
        self.busy == self.limit
    }

    /// Adds a request; it is polled in the next pass. There must be room.
    pub fn push(&mut self, request: Request, start: Duration, work: Work<'d>) {
        debug_assert!(!self.is_full(), "the caller asks is_full first");
        let slot = self.free.pop().unwrap_or_else(|| {
            let slot = self.slots.len();
            let waker = Waker::from(Arc::new(SlotWaker { slot, ready: self.ready.clone() }));
            self.slots.push(Slot { work: None, waker });
            slot
        });
        self.slots[slot].work = Some((request, start, work));
        self.busy += 1;
        self.ready.mark(slot);
    }

    /// Polls what wants to be polled, a bounded number of times; appends what is done to `done`. Returns
    /// whether anything was polled.
    pub fn poll(&mut self, done: &mut Vec<Done>) -> bool {
        self.ready.armed.store(false, Ordering::SeqCst);
        let mut polled = false;
        for _ in 0..PASSES {
            let mut again = false;
            for word in 0..self.slots.len().div_ceil(64) {
                let mut bits = self.ready.words[word].swap(0, Ordering::SeqCst);
                while bits != 0 {
                    let slot = word * 64 + bits.trailing_zeros() as usize;
                    bits &= bits - 1;
                    again = true;
                    self.poll_slot(slot, done);
                }
            }
            polled |= again;
            if !again {
                break;
            }
        }
        polled
    }

    fn poll_slot(&mut self, index: usize, done: &mut Vec<Done>) {
        let Some(slot) = self.slots.get_mut(index) else { return };
        // A waker may outlive its request: an empty slot, or a later request polled once too often.
        let Some((_, _, work)) = &mut slot.work else { return };
        if let Poll::Ready(outcome) = work.poll(&mut Context::from_waker(&slot.waker))
            && let Some((request, start, _)) = slot.work.take()
        {
            self.busy -= 1;
            self.free.push(index);
            done.push(Done { request, start, outcome });
        }
    }

    /// Whether something wants to be polled.
    pub fn is_ready(&self) -> bool {
        self.ready.words.iter().any(|w| w.load(Ordering::SeqCst) != 0)
    }

    /// Asks for a wake-up of this task when something wants to be polled. Returns false when
    /// something already does.
    pub fn arm(&self, cx: &Context<'_>) -> bool {
        self.ready.task.register(cx.waker());
        self.ready.armed.store(true, Ordering::SeqCst);
        let idle = self.ready.words.iter().all(|w| w.load(Ordering::SeqCst) == 0);
        if !idle {
            self.ready.armed.store(false, Ordering::SeqCst);
        }
        idle
    }
}
