//! A token bucket, exact: tokens are counted in billionths, so that a nanosecond brings a whole number.

use std::num::NonZeroU64;
use std::time::Duration;

const BILLION: i128 = 1_000_000_000;

/// Tokens per second, up to a capacity. What costs more than the capacity goes when the bucket is full,
/// and leaves a debt.
#[derive(Debug)]
pub(super) struct Bucket {
    /// Tokens per second, which is billionths per nanosecond.
    rate: i128,
    /// Billionths, as `level`.
    capacity: i128,
    /// Below zero in debt.
    level: i128,
    /// When `level` was right.
    at: Duration,
}

impl Bucket {
    /// A full bucket of `rate` tokens per second, which holds what comes in `burst`.
    pub(super) fn full(rate: NonZeroU64, burst: Duration, now: Duration) -> Self {
        let rate = i128::from(rate.get());
        let capacity = rate.saturating_mul(nanos(burst));
        Self { rate, capacity, level: capacity, at: now }
    }

    /// Another rate and burst from `now` on. What is in it stays, and so does a debt.
    pub(super) fn change(&mut self, rate: NonZeroU64, burst: Duration, now: Duration) {
        self.refill(now);
        let changed = Self::full(rate, burst, self.at);
        *self = Self { level: self.level.min(changed.capacity), ..changed };
    }

    /// How long until `tokens` may be taken; zero when they may be now.
    pub(super) fn wait(&mut self, tokens: u64, now: Duration) -> Duration {
        self.refill(now);
        let missing = (i128::from(tokens) * BILLION).min(self.capacity) - self.level;
        if missing <= 0 {
            return Duration::ZERO;
        }
        let wait = (missing - 1) / self.rate + 1;
        Duration::from_nanos(u64::try_from(wait).unwrap_or(u64::MAX))
    }

    /// Takes `tokens`, whether they are there or not.
    pub(super) fn take(&mut self, tokens: u64) {
        self.level -= i128::from(tokens) * BILLION;
    }

    fn refill(&mut self, now: Duration) {
        let came = self.rate.saturating_mul(nanos(now.saturating_sub(self.at)));
        self.level = self.level.saturating_add(came).min(self.capacity);
        self.at = self.at.max(now);
    }
}

fn nanos(duration: Duration) -> i128 {
    i128::try_from(duration.as_nanos()).unwrap_or(i128::MAX)
}
