//! Clusters read from the backend, by immutable location: never invalidated, only forgotten.
//!
//! | room | what |
//! |---|---|
//! | `memory` | the tier in memory |
//! | `ssd` | the tier on the SSD, which a restart finds again |
//! | `usage` | what each volume takes, and its quota |
//! | `flights` | reads from the backend that are under way, so that nothing is read twice |
//! | `streams` | who reads sequentially, and how far to read ahead |
//!
//! A cluster that is used a second time goes to the SSD: a scan leaves nothing there. Clusters belong to the volume
//! in whose SCO they lie, so those of a snapshot are shared by its clones, and count to the volume that it is of.

pub(crate) mod flights;
mod memory;
mod ssd;
pub(crate) mod streams;
#[cfg(test)]
mod tests;
mod usage;

pub(crate) use memory::Origin;
pub(crate) use ssd::MAX_MIB as MAX_SSD_CACHE_MIB;
pub(crate) use ssd::format::fuzz;

use crate::format::sco::ScoId;
use bytes::Bytes;
use common::{Clock, Disk, Result, VolumeId};
use flights::Flights;
use memory::Memory;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use ssd::{Size, Ssd};
use std::ops::Range;
use std::sync::Arc;
use tokio::sync::Semaphore;
use usage::Usages;

/// The name of a cluster: it means the same for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    pub volume: VolumeId,
    pub sco: ScoId,
    pub slot: u32,
}

/// Ranges that are read ahead at a time, for all volumes.
const AHEAD: usize = 8;
/// The most that is read ahead of one reader.
const MAX_AHEAD: u64 = 4 << 20;
/// A reader's window is at most this part of the memory, so that it is there when its turn comes.
const AHEAD_PART: u64 = 64;

/// What the cache counts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counters {
    pub memory_hits: Counter,
    pub ssd_hits: Counter,
    pub misses: Counter,
    pub joined: Counter,
    pub ahead_bytes: Counter,
    pub ssd_written_bytes: Counter,
    pub ssd_dropped: Counter,
    pub ssd_evicted: Counter,
    pub ssd_wrong: Counter,
    pub ssd_errors: Counter,
    pub ssd_clusters: Gauge,
}

impl Counters {
    /// Registers them.
    pub fn new(registry: &mut Registry) -> Self {
        let c = Self::default();
        let name = |name: &str| format!("storagerouter_volumedriver_read_cache_{name}");
        let mut add =
            |n: &str, help: &str, counter: &Counter| registry.register(name(n), help, counter.clone());
        add("hits", "Clusters found in the read cache's memory", &c.memory_hits);
        add("ssd_hits", "Clusters found in the read cache on the SSD", &c.ssd_hits);
        add("misses", "Clusters that a reader had to wait for the backend for", &c.misses);
        add("joined", "Clusters that a reader had from a backend read that was under way", &c.joined);
        add("ahead_bytes", "Bytes read from the backend ahead of a sequential reader", &c.ahead_bytes);
        add("ssd_written_bytes", "Bytes written to the read cache on the SSD", &c.ssd_written_bytes);
        add("ssd_dropped", "Clusters not written to the SSD: too many at once, or no room", &c.ssd_dropped);
        add("ssd_evicted", "Clusters on the SSD that gave way to others", &c.ssd_evicted);
        add("ssd_wrong", "Clusters on the SSD that were not what they should be", &c.ssd_wrong);
        add("ssd_errors", "Times that the SSD's part was turned off because of an error", &c.ssd_errors);
        let help = "Clusters in the read cache on the SSD";
        registry.register(name("ssd_clusters"), help, c.ssd_clusters.clone());
        c
    }
}

/// What the cache holds of a volume, and the most that it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CacheUse {
    /// Bytes in memory.
    pub memory_bytes: u64,
    /// Bytes on the SSD.
    pub ssd_bytes: u64,
    /// The most of both.
    pub quota: Option<u64>,
}

/// Both tiers, and the reads that fill them.
pub(crate) struct ReadCache {
    memory: Arc<Memory>,
    memory_bytes: u64,
    ssd: Option<Arc<Ssd>>,
    usages: Arc<Usages>,
    counters: Counters,
    pub flights: Flights,
    /// Ranges that may be read ahead now.
    pub ahead: Arc<Semaphore>,
}

impl ReadCache {
    /// A cache of at most `bytes` in memory.
    pub fn new(bytes: u64, counters: Counters) -> Self {
        Self {
            memory: Arc::new(Memory::new(bytes)),
            memory_bytes: bytes,
            ssd: None,
            usages: Arc::default(),
            counters,
            flights: Flights::default(),
            ahead: Arc::new(Semaphore::new(AHEAD)),
        }
    }

    /// Adds a tier of at most `bytes` on `disk`, which leaves `reserve` bytes of the file system to others. With 0 bytes
    /// there is none, and what an earlier one left is removed.
    pub async fn add_ssd(&mut self, bytes: u64, reserve: u64, disk: Arc<dyn Disk>, clock: Arc<dyn Clock>) {
        if bytes == 0 {
            if let Err(error) = clear(&*disk).await {
                tracing::warn!(%error, "the read cache on the SSD is off, and its files can't be removed");
            }
            return;
        }
        let (memory, usages) = (self.memory.clone(), self.usages.clone());
        let size = Size { bytes, reserve };
        self.ssd = Some(Ssd::start(size, disk, clock, memory, usages, self.counters.clone()));
    }

    /// A cluster in memory, for somebody who uses it.
    pub fn get(&self, key: &Key) -> Option<Bytes> {
        let found = self.memory.get(key)?;
        if found.again
            && let Some(ssd) = &self.ssd
            && !ssd.offer(*key, &found.data)
        {
            self.memory.not_kept(key);
        }
        Some(found.data)
    }

    /// A cluster in memory, for somebody who waits for it already.
    pub fn peek(&self, key: &Key) -> Option<Bytes> {
        self.memory.peek(key)
    }

    /// Whether a cluster is in one of the tiers.
    pub fn contains(&self, key: &Key) -> bool {
        self.memory.contains(key) || self.ssd.as_ref().is_some_and(|ssd| ssd.contains(key))
    }

    /// The clusters among these slots that the SSD has, not verified.
    pub async fn read_ssd(
        &self,
        volume: VolumeId,
        sco: ScoId,
        slots: Range<u32>,
        cluster: u32,
    ) -> Vec<(Key, Bytes)> {
        match &self.ssd {
            Some(ssd) => ssd.read(slots.map(|slot| Key { volume, sco, slot }), cluster).await,
            None => Vec::new(),
        }
    }

    /// What the SSD gave for this cluster is something else.
    pub fn wrong(&self, key: &Key) {
        if let Some(ssd) = &self.ssd {
            ssd.wrong(key);
        }
    }

    /// Keeps a verified cluster that was fetched, read ahead or found on the SSD. It is copied out of a larger buffer
    /// (`shared`), so that it holds no more than itself.
    pub fn insert(&self, key: Key, cluster: &Bytes, shared: bool, origin: Origin) {
        let usage = self.usages.of(key.volume);
        let limit = usage.memory_limit(self.ssd.is_some());
        if limit.is_some_and(|limit| limit < cluster.len() as u64) {
            return;
        }
        let mut origin = origin;
        if origin == Origin::Used
            && let Some(ssd) = &self.ssd
            && ssd.fetched_before(&key)
            && ssd.offer(key, cluster)
        {
            origin = Origin::Kept;
        }
        self.memory.insert(key, cluster, shared, origin, usage, limit);
    }

    /// The most that may be read ahead of one reader, in bytes.
    pub fn most_ahead(&self) -> u64 {
        MAX_AHEAD.min(self.memory_bytes / AHEAD_PART)
    }

    /// Holds a volume to a quota, or to none. In memory it holds at once; on the SSD nothing is added until it does.
    pub fn set_quota(&self, volume: VolumeId, quota: Option<u64>) {
        let usage = self.usages.of(volume);
        usage.set_quota(quota);
        if let Some(limit) = usage.memory_limit(self.ssd.is_some()) {
            self.memory.limit(volume, &self.usages, limit);
        }
    }

    /// What the cache holds of a volume.
    pub fn usage(&self, volume: VolumeId) -> CacheUse {
        let usage = self.usages.of(volume);
        CacheUse { memory_bytes: usage.memory(), ssd_bytes: usage.ssd(), quota: usage.quota() }
    }

    /// Bytes in memory.
    #[cfg(test)]
    pub fn memory_bytes(&self) -> u64 {
        self.memory.bytes()
    }

    /// Why the tier on the SSD is off, if it should not be.
    pub fn problem(&self) -> Option<String> {
        self.ssd.as_ref()?.problem()
    }

    /// Writes what the next start should find.
    pub async fn close(&self) {
        if let Some(ssd) = &self.ssd {
            ssd.close().await;
        }
    }
}

impl Drop for ReadCache {
    fn drop(&mut self) {
        if let Some(ssd) = &self.ssd {
            ssd.abandon();
        }
    }
}

async fn clear(disk: &dyn Disk) -> Result<()> {
    for name in disk.list().await? {
        disk.remove(&name).await?;
    }
    Ok(())
}
