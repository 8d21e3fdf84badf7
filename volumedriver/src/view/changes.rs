//! Which clusters TLogs speak about, whatever they say of them: how two views of a volume differ.

use super::cache::MapCache;
use super::page::Source;
use crate::format::manifest::TLogRef;
use common::{ObjectStore, Result, VolumeId};
use futures::{StreamExt, TryStreamExt};

/// Blocks that are read at a time.
const READS: usize = 8;

/// A set of clusters among `count` from `first` on.
#[derive(Debug, Clone)]
pub(crate) struct Clusters {
    first: u64,
    count: u64,
    words: Vec<u64>,
}

impl Clusters {
    /// None of them yet.
    pub fn none(first: u64, count: u64) -> Clusters {
        Clusters { first, count, words: vec![0; count.div_ceil(64) as usize] }
    }

    /// The address behind the last one.
    fn end(&self) -> u64 {
        self.first + self.count
    }

    /// Adds those of `count` clusters from `addr` on that may be in the set.
    pub fn add(&mut self, addr: u64, count: u64) {
        let (from, to) = (addr.max(self.first), addr.saturating_add(count).min(self.end()));
        let mut at = from.saturating_sub(self.first);
        let end = to.saturating_sub(self.first);
        while at < end {
            let (word, bit) = ((at / 64) as usize, at % 64);
            let n = (64 - bit).min(end - at);
            self.words[word] |= (u64::MAX >> (64 - n)) << bit;
            at += n;
        }
    }

    /// Runs in order: their number of clusters, and whether they are in the set.
    pub fn runs(&self) -> Vec<(u64, bool)> {
        let mut runs: Vec<(u64, bool)> = Vec::new();
        let mut at = 0;
        while at < self.count {
            let word = self.words[(at / 64) as usize] >> (at % 64);
            let is_in = word & 1 == 1;
            let same = if is_in { word.trailing_ones() } else { word.trailing_zeros() };
            let n = u64::from(same).min(64 - at % 64).min(self.count - at);
            match runs.last_mut() {
                Some(last) if last.1 == is_in => last.0 += n,
                _ => runs.push((n, is_in)),
            }
            at += n;
        }
        runs
    }
}

/// Adds every cluster that one of the TLogs has an entry of. `NotFound` when one of them is gone.
pub(crate) async fn mark(
    store: &dyn ObjectStore,
    cache: &MapCache,
    volume: VolumeId,
    tlogs: &[TLogRef],
    clusters: &mut Clusters,
) -> Result<()> {
    let source = Source { store, cache, volume };
    let (from, to) = (clusters.first, clusters.end());
    for named in tlogs.iter().filter(|t| t.addr_lo < to && from < t.addr_hi) {
        let tree = source.tree(named).await?;
        // The block before the first that begins in the range may reach into it.
        let first = tree.index.find(from).unwrap_or(0);
        let end = tree.index.blocks.partition_point(|b| b.first_addr < to);
        let mut blocks = futures::stream::iter(first..end)
            .map(|number| source.block(named, &tree, number))
            .buffer_unordered(READS);
        while let Some(block) = blocks.try_next().await? {
            for e in &block.entries {
                clusters.add(e.addr, e.count);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_set_of_clusters_is_an_array_of_bits(
            first in prop_oneof![0u64..200, Just(u64::MAX - 1000)],
            count in 1u64..400,
            adds in prop::collection::vec((0u64..700, 0u64..150), 0..12),
        ) {
            let mut set = Clusters::none(first, count);
            let mut model = vec![false; count as usize];
            for (at, n) in adds {
                let addr = first.saturating_sub(100) + at;
                set.add(addr, n);
                for a in addr.max(first)..addr.saturating_add(n).min(first + count) {
                    model[(a - first) as usize] = true;
                }
            }
            let runs = set.runs();
            let flat: Vec<bool> = runs.iter().flat_map(|(n, is_in)| vec![*is_in; *n as usize]).collect();
            prop_assert_eq!(flat, model);
            prop_assert!(runs.windows(2).all(|w| w[0].1 != w[1].1));
        }
    }
}
