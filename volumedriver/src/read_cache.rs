//! Clusters read from the backend, by immutable location: never invalidated, only forgotten.

use crate::format::sco::ScoId;
use bytes::Bytes;
use common::VolumeId;
use foldhash::fast::FixedState;
use quick_cache::Weighter;
use quick_cache::sync::{Cache, DefaultLifecycle};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    volume: VolumeId,
    sco: ScoId,
    slot: u32,
}

#[derive(Clone)]
struct ByLength;

/// What an entry costs beside its bytes, about.
const OVERHEAD: u64 = 128;

impl Weighter<Key, Bytes> for ByLength {
    fn weight(&self, _: &Key, value: &Bytes) -> u64 {
        value.len() as u64 + OVERHEAD
    }
}

/// A bounded cache of verified clusters (S3-FIFO: a scan does not wash it out).
pub(crate) struct ReadCache {
    /// Hashed the same way in each run, so that a simulation is the same again. The keys are ours: nobody can choose them.
    cache: Cache<Key, Bytes, ByLength, FixedState>,
}

impl ReadCache {
    /// A cache of at most `bytes`.
    pub fn new(bytes: u64) -> Self {
        let items = (bytes / 4096).max(16) as usize;
        let (hash, lifecycle) = (FixedState::default(), DefaultLifecycle::default());
        Self { cache: Cache::with(items, bytes, ByLength, hash, lifecycle) }
    }

    pub fn get(&self, volume: VolumeId, sco: ScoId, slot: u32) -> Option<Bytes> {
        self.cache.get(&Key { volume, sco, slot })
    }

    /// Keeps a verified cluster; it is copied out of a larger buffer, so that it pins no more than itself.
    pub fn insert(&self, volume: VolumeId, sco: ScoId, slot: u32, cluster: &Bytes, shared: bool) {
        let cluster = if shared { Bytes::copy_from_slice(cluster) } else { cluster.clone() };
        self.cache.insert(Key { volume, sco, slot }, cluster);
    }
}
