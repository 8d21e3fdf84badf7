//! What each volume takes of the cache, and the most that it may.

use super::Key;
use common::VolumeId;
use foldhash::fast::FixedState;
use parking_lot::{Mutex, RwLock};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// No quota.
const NONE: u64 = u64::MAX;

/// The part of the cache that holds clusters from SCOs of one volume.
#[derive(Debug)]
pub(crate) struct Usage {
    memory: AtomicU64,
    ssd: AtomicU64,
    quota: AtomicU64,
    /// Clusters in memory, the oldest first, and some that are gone. Kept while there is a quota.
    order: Mutex<VecDeque<Key>>,
}

impl Default for Usage {
    fn default() -> Self {
        let (memory, ssd) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { memory, ssd, quota: AtomicU64::new(NONE), order: Mutex::default() }
    }
}

impl Usage {
    /// Bytes in memory.
    pub fn memory(&self) -> u64 {
        self.memory.load(Ordering::Relaxed)
    }

    /// Bytes on the SSD.
    pub fn ssd(&self) -> u64 {
        self.ssd.load(Ordering::Relaxed)
    }

    pub(super) fn add_memory(&self, bytes: u64) {
        self.memory.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn sub_memory(&self, bytes: u64) {
        self.memory.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(super) fn add_ssd(&self, bytes: u64) {
        self.ssd.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn sub_ssd(&self, bytes: u64) {
        self.ssd.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// The most that both tiers together may hold.
    pub fn quota(&self) -> Option<u64> {
        Some(self.quota.load(Ordering::Relaxed)).filter(|quota| *quota != NONE)
    }

    pub(super) fn set_quota(&self, quota: Option<u64>) {
        self.quota.store(quota.unwrap_or(NONE), Ordering::Relaxed);
        if quota.is_none() {
            *self.order.lock() = VecDeque::new();
        }
    }

    /// The most in memory: half of the quota where there is an SSD for the other half.
    pub(super) fn memory_limit(&self, with_ssd: bool) -> Option<u64> {
        self.quota().map(|quota| if with_ssd { quota / 2 } else { quota })
    }

    /// Whether `bytes` more may go to the SSD.
    pub(super) fn fits_ssd(&self, bytes: u64) -> bool {
        self.quota().is_none_or(|quota| self.ssd().saturating_add(bytes) <= quota - quota / 2)
    }

    /// Notes a cluster that is in memory now.
    pub(super) fn noted(&self, key: Key, is_there: impl Fn(&Key) -> bool) {
        let mut order = self.order.lock();
        order.push_back(key);
        // Those that the cache forgot by itself are left in the line; it stays a small multiple of what is there.
        let most = 64 + (self.memory() / 1024) as usize;
        if order.len() > most {
            order.retain(|key| is_there(key));
        }
    }

    /// The oldest cluster that is noted.
    pub(super) fn oldest(&self) -> Option<Key> {
        self.order.lock().pop_front()
    }

    /// Notes these clusters instead of those that were.
    pub(super) fn note_all(&self, keys: VecDeque<Key>) {
        *self.order.lock() = keys;
    }

    fn is_idle(&self) -> bool {
        self.memory() == 0 && self.ssd() == 0 && self.quota().is_none()
    }
}

/// Volumes after which those that take nothing are forgotten.
const SOME: usize = 1024;

/// The usage of all volumes.
#[derive(Debug, Default)]
pub(crate) struct Usages(RwLock<HashMap<VolumeId, Arc<Usage>, FixedState>>);

impl Usages {
    /// That of one volume.
    pub fn of(&self, volume: VolumeId) -> Arc<Usage> {
        if let Some(usage) = self.0.read().get(&volume) {
            return usage.clone();
        }
        let mut all = self.0.write();
        if all.len() >= SOME && all.len().is_power_of_two() {
            all.retain(|_, usage| Arc::strong_count(usage) > 1 || !usage.is_idle());
        }
        all.entry(volume).or_default().clone()
    }
}
