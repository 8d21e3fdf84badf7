//! How many bytes lie above an LSN, about: marks in a bounded list.

use common::Lsn;
use std::collections::VecDeque;

/// Bytes between two marks.
const STEP: u64 = 256 << 10;
/// The most marks; beyond them every other one goes.
const MARKS: usize = 4096;

/// Bytes that were given out, by LSN.
#[derive(Debug, Default)]
pub(super) struct Sizes {
    total: u64,
    marks: VecDeque<(Lsn, u64)>,
}

impl Sizes {
    pub fn add(&mut self, lsn: Lsn, bytes: usize) {
        let marked = self.marks.back().map_or(0, |(_, total)| *total);
        if self.marks.is_empty() || self.total >= marked + STEP {
            // What is above the LSN before this one begins here.
            self.marks.push_back((Lsn(lsn.0 - 1), self.total));
        }
        self.total += bytes as u64;
        if self.marks.len() > MARKS {
            let mut n = 0u64;
            self.marks.retain(|_| {
                n += 1;
                n % 2 == 1
            });
        }
    }

    /// Nothing up to `lsn` is asked for any more.
    pub fn forget(&mut self, lsn: Lsn) {
        while self.marks.get(1).is_some_and(|(mark, _)| *mark <= lsn) {
            self.marks.pop_front();
        }
    }

    /// Bytes above `lsn`; up to a step more.
    pub fn above(&self, lsn: Lsn) -> u64 {
        let n = self.marks.partition_point(|(mark, _)| *mark <= lsn);
        let below = n.checked_sub(1).and_then(|i| self.marks.get(i));
        self.total - below.or(self.marks.front()).map_or(self.total, |(_, total)| *total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_right_within_a_step_and_bounded() {
        let mut sizes = Sizes::default();
        assert_eq!(sizes.above(Lsn(0)), 0);
        for lsn in 1..=100_000u64 {
            sizes.add(Lsn(lsn), 4096);
        }
        for lsn in [0u64, 1, 5000, 99_999] {
            let exact = (100_000 - lsn) * 4096;
            let about = sizes.above(Lsn(lsn));
            assert!((exact..=exact + STEP + 4096).contains(&about), "{about} for {exact}");
        }
        for lsn in 100_001..=2_000_000u64 {
            sizes.add(Lsn(lsn), 4096);
        }
        assert!(sizes.marks.len() <= MARKS + 1);
        sizes.forget(Lsn(2_000_000));
        assert_eq!(sizes.marks.len(), 1);
    }
}
