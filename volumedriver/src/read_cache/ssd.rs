//! The tier on the SSD: a log of clusters in segments that are written once and reclaimed in turn.
//!
//! | room | what |
//! |---|---|
//! | `format` | a segment on disk |
//! | `places` | the index in memory |
//! | `writer` | the one background task: loads, appends, reclaims |
//!
//! It is a cache: what can't be read is as if it were not there, what does not fit the queue is not written, and a
//! device that fails is left alone from then on. Content is not believed: whoever reads a cluster here has its
//! checksum from the map, and says so when it is another.

pub(super) mod format;
mod places;
#[cfg(test)]
mod tests;
mod writer;

use super::memory::Memory;
use super::usage::Usages;
use super::{Counters, Key};
use bytes::Bytes;
use common::{Clock, Disk, Error};
use format::{MAX_SEGMENT, UNIT};
use parking_lot::Mutex;
use places::{MAX_SEGMENTS, Place, Places, Segment};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// The largest tier: what a place can name.
pub(crate) const MAX_MIB: u64 = (MAX_SEGMENTS * MAX_SEGMENT) >> 20;

/// Bytes that wait for the writer; what comes beyond is not written.
const QUEUE: usize = 8 << 20;
/// Bytes of one read that takes several clusters.
const MAX_READ: usize = 1 << 20;
/// Segments at least, so that reclaiming one does not empty the cache.
const LEAST_SEGMENTS: u64 = 8;
/// Tags of clusters that were fetched once.
const MAX_TAGS: u64 = 1 << 20;
/// How long a stop waits for what is to be written.
const CLOSE_WAIT: Duration = Duration::from_secs(2);

/// How large it is, and what it leaves to others.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    /// Bytes on disk at most.
    pub bytes: u64,
    /// Bytes of the file system that others may need: it takes nothing beyond.
    pub reserve: u64,
}

#[derive(Default)]
struct Queue {
    offers: VecDeque<(Key, Bytes)>,
    bytes: usize,
}

/// See the module's head.
pub(crate) struct Ssd {
    disk: Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
    segment_size: u64,
    segments: u32,
    reserve: u64,
    places: Places,
    usages: Arc<Usages>,
    memory: Arc<Memory>,
    queue: Mutex<Queue>,
    wake: Notify,
    closing: AtomicBool,
    /// What was fetched from the backend once, by hash, forgotten by chance.
    fetched: Box<[AtomicU32]>,
    /// Why it is off.
    problem: Mutex<Option<String>>,
    off: AtomicBool,
    counters: Counters,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Ssd {
    /// Starts the tier; what an earlier process left is found in the background.
    pub fn start(
        size: Size,
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        memory: Arc<Memory>,
        usages: Arc<Usages>,
        counters: Counters,
    ) -> Arc<Ssd> {
        let segment = (size.bytes / LEAST_SEGMENTS).clamp(128 << 10, MAX_SEGMENT);
        let segment_size = segment - segment % UNIT as u64;
        let segments = (size.bytes / segment_size).min(MAX_SEGMENTS) as u32;
        let tags = (size.bytes / 4096).next_power_of_two().clamp(1024, MAX_TAGS);
        let ssd = Arc::new(Ssd {
            disk,
            clock,
            segment_size,
            segments,
            reserve: size.reserve,
            places: Places::default(),
            usages,
            memory,
            queue: Mutex::default(),
            wake: Notify::new(),
            closing: AtomicBool::new(false),
            fetched: (0..tags).map(|_| AtomicU32::new(0)).collect(),
            problem: Mutex::default(),
            off: AtomicBool::new(false),
            counters,
            task: Mutex::default(),
        });
        let task = tokio::spawn(writer::Writer::new(ssd.clone()).run());
        *ssd.task.lock() = Some(task);
        ssd
    }

    /// Why it is off, if it is.
    pub fn problem(&self) -> Option<String> {
        self.problem.lock().clone()
    }

    /// Leaves the device alone from now on.
    fn turn_off(&self, error: &Error) {
        if self.off.swap(true, Ordering::Relaxed) {
            return;
        }
        tracing::error!(%error, "the read cache's device fails: its part of the cache is off until the next start");
        *self.problem.lock() = Some(error.to_string());
        self.counters.ssd_errors.inc();
        *self.queue.lock() = Queue::default();
        self.places.clear();
        self.counters.ssd_clusters.set(0);
    }

    fn is_off(&self) -> bool {
        self.off.load(Ordering::Relaxed)
    }

    /// Whether a cluster is there, or seems to be.
    pub fn contains(&self, key: &Key) -> bool {
        !self.is_off() && self.places.contains(key)
    }

    /// Notes that a cluster was fetched; whether it was before, as far as is remembered.
    pub fn fetched_before(&self, key: &Key) -> bool {
        let hash = self.places.hash(key);
        let tag = (hash >> 32) as u32 | 1;
        match self.fetched.get((hash as usize) & (self.fetched.len() - 1)) {
            Some(there) => there.swap(tag, Ordering::Relaxed) == tag,
            None => false,
        }
    }

    /// Offers a cluster that is worth keeping; whether it is written, if nothing comes between.
    pub fn offer(&self, key: Key, data: &Bytes) -> bool {
        if self.is_off() || self.places.contains(&key) {
            return true;
        }
        if !self.usages.of(key.volume).fits_ssd((data.len() + UNIT) as u64) {
            return false;
        }
        let mut queue = self.queue.lock();
        if queue.bytes + data.len() > QUEUE {
            drop(queue);
            self.counters.ssd_dropped.inc();
            return false;
        }
        queue.bytes += data.len();
        queue.offers.push_back((key, data.clone()));
        let first = queue.offers.len() == 1;
        drop(queue);
        if first {
            self.wake.notify_one();
        }
        true
    }

    /// The clusters among these that are there, not verified.
    pub async fn read(&self, keys: impl Iterator<Item = Key>, cluster: u32) -> Vec<(Key, Bytes)> {
        if self.is_off() {
            return Vec::new();
        }
        let found = self.places.find(keys);
        let mut read = Vec::with_capacity(found.len());
        let entry = UNIT + cluster as usize;
        let mut rest = found.as_slice();
        while let [(_, first, segment), ..] = rest {
            // Clusters that were written together lie together.
            let joins = |(i, (_, place, of)): (usize, &(Key, Place, Arc<Segment>))| {
                Arc::ptr_eq(of, segment)
                    && place.unit() as usize == first.unit() as usize + i * (entry / UNIT)
                    && (i + 1) * entry <= MAX_READ
            };
            let n = rest.iter().enumerate().take_while(|found| joins((found.0, found.1))).count().max(1);
            let (run, behind) = rest.split_at(n);
            rest = behind;
            let offset = u64::from(first.unit()) * UNIT as u64;
            if offset + (n * entry) as u64 > segment.file.len() {
                continue;
            }
            let bytes = match segment.file.read_at(offset, n * entry).await {
                Ok(bytes) => bytes,
                Err(error) => {
                    self.turn_off(&error);
                    return read;
                }
            };
            for (i, (key, place, _)) in run.iter().enumerate() {
                let at = i * entry;
                let header = format::read_entry_header(&bytes[at..at + UNIT]);
                if header.is_ok_and(|header| header == (*key, cluster, segment.life)) {
                    read.push((*key, bytes.slice(at + UNIT..at + entry)));
                } else if self.places.is_current(place.segment(), segment) {
                    // Torn, flipped, or of another cluster with the same hash.
                    self.places.remove(key, *place);
                    self.counters.ssd_wrong.inc();
                }
            }
        }
        read
    }

    /// What was read was not what should be there.
    pub fn wrong(&self, key: &Key) {
        self.counters.ssd_wrong.inc();
        if let Some((key, place, _)) = self.places.find(std::iter::once(*key)).pop() {
            self.places.remove(&key, place);
        }
    }

    /// Writes what waits and the index of what was written last, and ends.
    pub async fn close(&self) {
        let Some(task) = self.task.lock().take() else { return };
        self.closing.store(true, Ordering::Relaxed);
        self.wake.notify_one();
        let abort = task.abort_handle();
        if tokio::time::timeout(CLOSE_WAIT, task).await.is_err() {
            abort.abort();
        }
    }

    /// Ends without a word, as a process that is killed.
    pub fn abandon(&self) {
        if let Some(task) = self.task.lock().take() {
            task.abort();
        }
    }
}
