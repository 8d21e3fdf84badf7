//! One direction of a vDisk: who may go at once, and the line of those who have to wait.
//!
//! The first in line holds `turn`, and sleeps until both buckets hold what it costs; the others queue
//! for `turn`, which is fair. So nobody is overtaken, at most one timer runs, and a request that is
//! dropped leaves the line with nothing taken.

use super::Waited;
use super::bucket::Bucket;
use common::Clock;
use parking_lot::Mutex;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Notify;

/// Reads or writes of one vDisk.
pub(crate) struct Lane {
    /// Whether there is any limit: all that a request without limits looks at.
    limited: AtomicBool,
    buckets: Mutex<Buckets>,
    turn: tokio::sync::Mutex<()>,
    /// Tells the first in line that something else may be true now.
    changed: Notify,
    clock: Arc<dyn Clock>,
    waited_requests: AtomicU64,
    waited_nanos: AtomicU64,
}

#[derive(Default)]
struct Buckets {
    requests: Option<Bucket>,
    bytes: Option<Bucket>,
}

impl Buckets {
    /// Takes one request with its bytes out of both, or out of none and says how long to wait.
    fn pay(&mut self, bytes: u64, now: Duration) -> Result<(), Duration> {
        let wait =
            |bucket: &mut Option<Bucket>, cost| bucket.as_mut().map_or(Duration::ZERO, |b| b.wait(cost, now));
        let wait = wait(&mut self.requests, 1).max(wait(&mut self.bytes, bytes));
        if !wait.is_zero() {
            return Err(wait);
        }
        for (bucket, cost) in [(&mut self.requests, 1), (&mut self.bytes, bytes)] {
            if let Some(bucket) = bucket {
                bucket.take(cost);
            }
        }
        Ok(())
    }
}

fn change(bucket: &mut Option<Bucket>, rate: Option<u64>, burst: Duration, now: Duration) {
    // A rate of 0 gets into no record of ours; taken for no limit it harms nobody.
    match (rate.and_then(NonZeroU64::new), &mut *bucket) {
        (None, _) => *bucket = None,
        (Some(rate), Some(bucket)) => bucket.change(rate, burst, now),
        (Some(rate), None) => *bucket = Some(Bucket::full(rate, burst, now)),
    }
}

impl Lane {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            limited: AtomicBool::new(false),
            buckets: Mutex::default(),
            turn: tokio::sync::Mutex::new(()),
            changed: Notify::new(),
            clock,
            waited_requests: AtomicU64::new(0),
            waited_nanos: AtomicU64::new(0),
        }
    }

    /// Limits, in requests and bytes per second.
    pub(super) fn set(&self, requests: Option<u64>, bytes: Option<u64>, burst: Duration) {
        let now = self.clock.now();
        let mut buckets = self.buckets.lock();
        change(&mut buckets.requests, requests, burst, now);
        change(&mut buckets.bytes, bytes, burst, now);
        let limited = buckets.requests.is_some() || buckets.bytes.is_some();
        self.limited.store(limited, Ordering::Relaxed);
        drop(buckets);
        self.look_again();
    }

    pub(super) fn look_again(&self) {
        // Kept for the next one when nobody is first in line; that one looks once more than it has to.
        self.changed.notify_one();
    }

    /// Whether requests have to pay.
    #[inline]
    pub(crate) fn is_limited(&self) -> bool {
        self.limited.load(Ordering::Relaxed)
    }

    /// Pays for a request, if it may go at once. False when it has to wait, and nothing was taken.
    pub(crate) fn try_pay(&self, bytes: u64) -> bool {
        // Whoever waits is in front.
        let Ok(_turn) = self.turn.try_lock() else { return false };
        let now = self.clock.now();
        self.buckets.lock().pay(bytes, now).is_ok()
    }

    /// Waits until a request may go, and pays for it; or until `is_over` says that it need not wait,
    /// which is asked again after [`super::Limiter::look_again`].
    pub(crate) async fn pay(&self, bytes: u64, is_over: impl Fn() -> bool) {
        let _waiting = Waiting::begin(self);
        let _turn = self.turn.lock().await;
        while !is_over() {
            let now = self.clock.now();
            let Err(wait) = self.buckets.lock().pay(bytes, now) else { return };
            tokio::select! {
                biased;
                () = self.clock.sleep(wait) => {}
                () = self.changed.notified() => {}
            }
        }
    }

    pub(crate) fn waited(&self) -> Waited {
        Waited {
            requests: self.waited_requests.load(Ordering::Relaxed),
            time: Duration::from_nanos(self.waited_nanos.load(Ordering::Relaxed)),
        }
    }
}

/// Counts a request that waits, however its wait ends.
struct Waiting<'a> {
    lane: &'a Lane,
    since: Duration,
}

impl<'a> Waiting<'a> {
    fn begin(lane: &'a Lane) -> Self {
        lane.waited_requests.fetch_add(1, Ordering::Relaxed);
        Self { lane, since: lane.clock.now() }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let time = self.lane.clock.now().saturating_sub(self.since);
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.lane.waited_nanos.fetch_add(nanos, Ordering::Relaxed);
    }
}
