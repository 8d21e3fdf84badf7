//! How long requests take: counts in buckets that grow by a quarter of a power of two.

use common::osd::LatencyStatus;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Four to each power of two of microseconds, up to some hours.
const BUCKETS: usize = 4 * 34;

/// A histogram that many may add to.
#[derive(Debug)]
pub struct Latency {
    buckets: [AtomicU64; BUCKETS],
    max: AtomicU64,
}

impl Default for Latency {
    fn default() -> Self {
        Latency { buckets: [const { AtomicU64::new(0) }; BUCKETS], max: AtomicU64::new(0) }
    }
}

fn bucket(micros: u64) -> usize {
    if micros < 4 {
        return micros as usize;
    }
    let power = micros.ilog2() as usize;
    let quarter = (micros >> (power - 2)) as usize & 3;
    (power * 4 + quarter - 4).min(BUCKETS - 1)
}

/// The largest number that falls into a bucket.
fn upper(bucket: usize) -> u64 {
    if bucket < 4 {
        return bucket as u64;
    }
    let (power, quarter) = ((bucket + 4) / 4, (bucket + 4) % 4);
    ((5 + quarter as u64) << (power - 2)) - 1
}

impl Latency {
    /// Adds one.
    pub fn record(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.buckets[bucket(micros)].fetch_add(1, Ordering::Relaxed);
        self.max.fetch_max(micros, Ordering::Relaxed);
    }

    /// Where the half and 99 of 100 lie.
    pub fn status(&self) -> LatencyStatus {
        let counts: Vec<u64> = self.buckets.iter().map(|b| b.load(Ordering::Relaxed)).collect();
        let count: u64 = counts.iter().sum();
        let max = self.max.load(Ordering::Relaxed);
        let within = |permille: u64| {
            let rank = (count * permille).div_ceil(1000);
            let mut seen = 0;
            let found = counts.iter().position(|n| {
                seen += n;
                seen >= rank
            });
            found.map_or(0, upper).min(max)
        };
        LatencyStatus { count, p50: within(500), p99: within(990), max }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_cover_all_numbers_in_order() {
        for micros in (0..5000).chain([1 << 20, (1 << 30) + 12345]) {
            let b = bucket(micros);
            assert!(micros <= upper(b) && (b == 0 || micros > upper(b - 1)), "{micros} in {b}");
        }
        let latency = Latency::default();
        (1..=100).for_each(|n| latency.record(Duration::from_micros(n)));
        let status = latency.status();
        assert_eq!((status.count, status.max), (100, 100));
        assert!((50..=55).contains(&status.p50) && (99..=100).contains(&status.p99), "{status:?}");
    }
}
