//! A map of disjoint ranges: the newest insertion wins where ranges overlap.

use std::collections::BTreeMap;

/// Ranges of `u64` addresses, each with a value. A lookup gives the value and the part of the range.
#[derive(Debug, Clone)]
pub(crate) struct ExtentMap<V> {
    map: BTreeMap<u64, (u64, V)>,
}

/// A part of a range: `count` addresses from `addr` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece<V> {
    pub addr: u64,
    pub count: u64,
    pub value: V,
}

impl<V> Default for ExtentMap<V> {
    fn default() -> Self {
        Self { map: BTreeMap::new() }
    }
}

impl<V: Copy + PartialEq> ExtentMap<V> {
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Sets `count` addresses from `addr` on to `value`.
    pub fn insert(&mut self, addr: u64, count: u64, value: V) {
        if count == 0 {
            return;
        }
        // The common case: the same single range again.
        if let Some(slot) = self.map.get_mut(&addr)
            && slot.0 == count
        {
            slot.1 = value;
            return;
        }
        self.clear(addr, count);
        self.map.insert(addr, (count, value));
    }

    /// Removes whatever lies in the range.
    pub fn clear(&mut self, addr: u64, count: u64) {
        let end = addr.saturating_add(count);
        if let Some((&start, &(n, value))) = self.map.range(..addr).next_back()
            && start + n > addr
        {
            self.map.insert(start, (addr - start, value));
            if start + n > end {
                self.map.insert(end, (start + n - end, value));
                return;
            }
        }
        while let Some((&start, &(n, value))) = self.map.range(addr..end).next() {
            self.map.remove(&start);
            if start + n > end {
                self.map.insert(end, (start + n - end, value));
            }
        }
    }

    /// Removes the parts of the range that have this value.
    pub fn remove_value(&mut self, addr: u64, count: u64, value: V) {
        // The common case: the whole range, untouched since.
        if let Some(&(n, v)) = self.map.get(&addr)
            && n == count
        {
            if v == value {
                self.map.remove(&addr);
            }
            return;
        }
        let victims: Vec<_> = self.overlapping(addr, count).filter(|p| p.value == value).collect();
        for piece in victims {
            self.clear(piece.addr, piece.count);
        }
    }

    /// The parts of ranges that lie within `count` addresses from `addr` on, in order.
    pub fn overlapping(&self, addr: u64, count: u64) -> impl Iterator<Item = Piece<V>> + '_ {
        let end = addr.saturating_add(count);
        let before = self.map.range(..addr).next_back().filter(|(s, (n, _))| *s + n > addr);
        before.into_iter().chain(self.map.range(addr..end)).map(move |(&start, &(n, value))| {
            let from = start.max(addr);
            Piece { addr: from, count: (start + n).min(end) - from, value }
        })
    }

    /// Every range, in order.
    pub fn iter(&self) -> impl Iterator<Item = Piece<V>> + '_ {
        self.map.iter().map(|(&addr, &(count, value))| Piece { addr, count, value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    enum Op {
        Insert(u64, u64, u8),
        Clear(u64, u64),
        Remove(u64, u64, u8),
    }

    fn op() -> impl Strategy<Value = Op> {
        let range = (0u64..60, 1u64..20);
        prop_oneof![
            4 => (range.clone(), 0u8..6).prop_map(|((a, n), v)| Op::Insert(a, n, v)),
            1 => range.clone().prop_map(|(a, n)| Op::Clear(a, n)),
            1 => (range, 0u8..6).prop_map(|((a, n), v)| Op::Remove(a, n, v)),
        ]
    }

    proptest! {
        #[test]
        fn behaves_like_an_array(ops in proptest::collection::vec(op(), 1..60)) {
            let mut model = [None; 100];
            let mut map = ExtentMap::default();
            for op in ops {
                match op {
                    Op::Insert(a, n, v) => {
                        map.insert(a, n, v);
                        model[a as usize..(a + n) as usize].fill(Some(v));
                    }
                    Op::Clear(a, n) => {
                        map.clear(a, n);
                        model[a as usize..(a + n) as usize].fill(None);
                    }
                    Op::Remove(a, n, v) => {
                        // Only ever asked for a range that was inserted whole, or for its rest.
                        map.remove_value(a, n, v);
                        if map.overlapping(a, n).any(|p| p.value == v) {
                            continue;
                        }
                        for slot in &mut model[a as usize..(a + n) as usize] {
                            if *slot == Some(v) {
                                *slot = None;
                            }
                        }
                    }
                }
                let mut seen = [None; 100];
                for p in map.iter() {
                    for a in p.addr..p.addr + p.count {
                        prop_assert_eq!(seen[a as usize], None, "overlap");
                        seen[a as usize] = Some(p.value);
                    }
                }
                prop_assert_eq!(&seen[..], &model[..]);
            }
        }
    }
}
