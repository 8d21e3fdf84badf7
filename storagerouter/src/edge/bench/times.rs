//! How long requests took: counted by size, to within 1 %, in memory that does not grow with their number.

use std::time::Duration;

/// Each power of two has half as many counters.
const PARTS: u64 = 256;

/// A histogram of nanoseconds.
pub struct Times {
    counts: Vec<u64>,
    count: u64,
}

impl Default for Times {
    fn default() -> Self {
        Times { counts: vec![0; index(u64::MAX) + 1], count: 0 }
    }
}

/// The counter of a value: values below `PARTS` have one each.
fn index(value: u64) -> usize {
    let shift = (u64::BITS - (value | (PARTS - 1)).leading_zeros()).saturating_sub(PARTS.trailing_zeros());
    (u64::from(shift) * PARTS + (value >> shift)) as usize
}

/// The largest value of a counter.
fn highest(index: usize) -> u64 {
    let (shift, part) = (index as u64 / PARTS, index as u64 % PARTS);
    let end = u128::from(part + 1) << shift;
    u64::try_from(end - 1).unwrap_or(u64::MAX)
}

impl Times {
    /// One more.
    pub fn add(&mut self, time: Duration) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.counts[index(nanoseconds)] += 1;
        self.count += 1;
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// What a part of them, such as 0.99, did not take longer than.
    pub fn percentile(&self, part: f64) -> Duration {
        let wanted = (self.count as f64 * part).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return Duration::from_nanos(highest(index));
            }
        }
        Duration::ZERO
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_right_to_within_one_percent() {
        let mut times = Times::default();
        for micros in 1..=100_000 {
            times.add(Duration::from_micros(micros));
        }
        for (part, micros) in [(0.5, 50_000.0), (0.99, 99_000.0), (0.999, 99_900.0), (1.0, 100_000.0)] {
            let found = times.percentile(part).as_secs_f64() * 1e6;
            assert!((found / micros - 1.0).abs() < 0.01, "{part}: {found} for {micros}");
        }
    }

    #[test]
    fn every_value_is_counted_where_it_belongs() {
        let mut before = 0;
        for shift in 0..64 {
            for value in
                [1u64 << shift, (1 << shift) + (1 << shift) / 2, (1u64 << shift) | ((1 << shift) - 1)]
            {
                let found = index(value);
                assert!(found >= before && highest(found) >= value, "{value}");
                assert!(found == 0 || highest(found - 1) < value, "{value}");
                before = found;
            }
        }
        let mut times = Times::default();
        times.add(Duration::MAX);
        assert_eq!(times.percentile(0.5), Duration::from_nanos(u64::MAX));
        assert_eq!(Times::default().percentile(0.5), Duration::ZERO);
    }
}
