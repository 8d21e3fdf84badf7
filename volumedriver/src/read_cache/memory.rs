//! The tier in memory: verified clusters, bounded in bytes.

use super::Key;
use super::usage::{Usage, Usages};
use bytes::Bytes;
use common::{VolumeId, mutant};
use foldhash::fast::FixedState;
use parking_lot::Mutex;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, Weighter};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// What an entry costs beside its bytes, about.
const OVERHEAD: u64 = 192;

/// Share of the memory for what was used again; the rest is for what is new, and for what was read ahead: it must not
/// be gone before it is used.
const HOT: f64 = 0.9;

/// How a cluster came into memory, or what became of it there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Origin {
    /// Read ahead, and not used yet.
    Ahead = 0,
    /// Used once.
    Used = 1,
    /// The SSD has it, or was offered it.
    Kept = 2,
}

struct Cluster {
    data: Bytes,
    origin: AtomicU8,
    usage: Arc<Usage>,
}

impl Cluster {
    fn weight(&self) -> u64 {
        self.data.len() as u64 + OVERHEAD
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.usage.sub_memory(self.weight());
    }
}

#[derive(Clone)]
struct ByLength;

impl Weighter<Key, Arc<Cluster>> for ByLength {
    fn weight(&self, _: &Key, cluster: &Arc<Cluster>) -> u64 {
        cluster.weight()
    }
}

/// A cluster that was found.
pub(crate) struct Found {
    pub data: Bytes,
    /// It is used for the second time, and nobody has offered it to the SSD yet: whoever got this should.
    pub again: bool,
}

/// A bounded cache of verified clusters (S3-FIFO: a scan does not wash it out).
pub(crate) struct Memory {
    /// Hashed the same way in each run, so that a simulation is the same again. The keys are ours: nobody can choose them.
    cache: Cache<Key, Arc<Cluster>, ByLength, FixedState>,
}

impl Memory {
    /// A cache of at most `bytes`.
    pub fn new(bytes: u64) -> Self {
        let items = (bytes / 4096).max(16) as usize;
        let (hash, lifecycle) = (FixedState::default(), DefaultLifecycle::default());
        let mut options = OptionsBuilder::new();
        options.estimated_items_capacity(items).weight_capacity(bytes).hot_allocation(HOT);
        let cache = match options.build() {
            Ok(options) => Cache::with_options(options, ByLength, hash, lifecycle),
            // Both numbers are given, so this does not happen.
            Err(_) => Cache::with(items, bytes, ByLength, hash, lifecycle),
        };
        Self { cache }
    }

    /// Bytes in use.
    #[cfg(test)]
    pub fn bytes(&self) -> u64 {
        self.cache.weight()
    }

    /// A cluster, for somebody who uses it.
    pub fn get(&self, key: &Key) -> Option<Found> {
        let slot = if mutant::is_on("cache-returns-another-key") { key.slot & !1 } else { key.slot };
        let cluster = self.cache.get(&Key { slot, ..*key })?;
        let data = cluster.data.clone();
        let origin = cluster.origin.load(Ordering::Relaxed);
        if origin == Origin::Kept as u8 {
            return Some(Found { data, again: false });
        }
        // Of two at once one is first; that both are one use does not matter.
        let swap =
            cluster.origin.compare_exchange(origin, origin + 1, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        Some(Found { data, again: swap && origin == Origin::Used as u8 })
    }

    /// A cluster, without counting as a use.
    pub fn peek(&self, key: &Key) -> Option<Bytes> {
        self.cache.peek(key).map(|cluster| cluster.data.clone())
    }

    /// Whether it is there.
    pub fn contains(&self, key: &Key) -> bool {
        self.cache.contains_key(key)
    }

    /// The SSD did not take it: it may be offered again.
    pub fn not_kept(&self, key: &Key) {
        if let Some(cluster) = self.cache.peek(key) {
            cluster.origin.store(Origin::Used as u8, Ordering::Relaxed);
        }
    }

    /// Keeps a verified cluster; `shared` when `data` is a part of something larger, which it must not hold.
    pub fn insert(
        &self,
        key: Key,
        data: &Bytes,
        shared: bool,
        origin: Origin,
        usage: Arc<Usage>,
        limit: Option<u64>,
    ) {
        let data = if shared { Bytes::copy_from_slice(data) } else { data.clone() };
        let cluster = Cluster { data, origin: AtomicU8::new(origin as u8), usage: usage.clone() };
        usage.add_memory(cluster.weight());
        self.cache.insert(key, Arc::new(cluster));
        if let Some(limit) = limit {
            usage.noted(key, |key| self.cache.contains_key(key));
            self.shrink(&usage, limit);
        }
    }

    /// Forgets the oldest clusters of a volume beyond its part.
    fn shrink(&self, usage: &Usage, limit: u64) {
        while usage.memory() > limit {
            let Some(oldest) = usage.oldest() else { return };
            self.cache.remove(&oldest);
        }
    }

    /// Holds a volume to another part.
    pub fn limit(&self, volume: VolumeId, usages: &Usages, limit: u64) {
        let usage = usages.of(volume);
        let keys = Mutex::new(VecDeque::new());
        self.cache.retain(|key, _| {
            if key.volume == volume {
                keys.lock().push_back(*key);
            }
            true
        });
        usage.note_all(keys.into_inner());
        self.shrink(&usage, limit);
    }
}
