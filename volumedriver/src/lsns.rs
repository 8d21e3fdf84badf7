//! Which LSNs a view of a volume (its head, a snapshot) is made of. A gap is what a rollback left behind.

use crate::format::{Manifest, Snapshot};
use bytes::Bytes;
use common::Lsn;

/// Ranges of LSNs, first and last, ascending and disjoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lsns(Vec<(Lsn, Lsn)>);

impl Lsns {
    /// Those of the head. A Manifest without ranges is of a volume that was never rolled back.
    pub fn head(manifest: &Manifest) -> Lsns {
        match manifest.head.as_slice() {
            [] => Lsns(vec![(Lsn(1), Lsn(u64::MAX))]),
            ranges => Lsns(ranges.to_vec()),
        }
    }

    /// Those of a snapshot.
    pub fn of(snapshot: &Snapshot) -> Lsns {
        Lsns(snapshot.view.clone())
    }

    /// As a Manifest has the head.
    pub fn to_manifest(&self) -> Vec<(Lsn, Lsn)> {
        match self.0.as_slice() {
            [(Lsn(1), Lsn(u64::MAX))] => Vec::new(),
            ranges => ranges.to_vec(),
        }
    }

    /// Whether all of `lo` to `hi` is in it.
    pub fn hold(&self, lo: Lsn, hi: Lsn) -> bool {
        self.0.iter().any(|(first, last)| *first <= lo && hi <= *last)
    }

    /// Its part up to `lsn`.
    pub fn up_to(&self, lsn: Lsn) -> Vec<(Lsn, Lsn)> {
        self.0
            .iter()
            .filter(|(first, _)| *first <= lsn)
            .map(|&(first, last)| (first, last.min(lsn)))
            .collect()
    }

    /// The head after a rollback to this view: its log goes on behind `last`, and what lies between
    /// does not count.
    pub fn rolled_back(&self, last: Lsn) -> Lsns {
        let mut ranges = self.0.clone();
        match ranges.last_mut() {
            Some((_, end)) if end.next() > last => *end = Lsn(u64::MAX),
            _ => ranges.push((last.next(), Lsn(u64::MAX))),
        }
        Lsns(ranges)
    }

    /// How many ranges there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// All of them, as bytes.
    pub fn to_bytes(&self) -> Bytes {
        self.0.iter().flat_map(|(lo, hi)| [lo.0.to_le_bytes(), hi.0.to_le_bytes()]).flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lsns(ranges: &[(u64, u64)]) -> Lsns {
        Lsns(ranges.iter().map(|&(lo, hi)| (Lsn(lo), Lsn(hi))).collect())
    }

    #[test]
    fn a_rollback_leaves_a_gap_and_only_where_something_was() {
        let all = lsns(&[(1, u64::MAX)]);
        let snapshot = Lsns(all.up_to(Lsn(10)));
        assert_eq!(snapshot, lsns(&[(1, 10)]));
        let back = snapshot.rolled_back(Lsn(25));
        assert_eq!(back, lsns(&[(1, 10), (26, u64::MAX)]));
        assert!(back.hold(Lsn(5), Lsn(10)) && back.hold(Lsn(26), Lsn(99)));
        assert!(!back.hold(Lsn(11), Lsn(25)) && !back.hold(Lsn(5), Lsn(30)));
        assert_eq!(snapshot.rolled_back(Lsn(10)), all, "nothing came behind it");
        // A snapshot of the new head, and back from it, and back to the old one.
        let second = Lsns(back.up_to(Lsn(30)));
        assert_eq!(second.rolled_back(Lsn(40)), lsns(&[(1, 10), (26, 30), (41, u64::MAX)]));
        assert_eq!(snapshot.rolled_back(Lsn(40)), lsns(&[(1, 10), (41, u64::MAX)]));
    }
}
