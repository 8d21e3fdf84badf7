//! Where clusters lie on the SSD: the index in memory, and what is known of each segment.

use super::format::{Entry, MAX_SEGMENT, UNIT};
use crate::read_cache::Key;
use crate::read_cache::usage::Usage;
use common::{DiskFile, VolumeId};
use foldhash::fast::FixedState;
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bits of a place that say where in its segment.
const UNIT_BITS: u32 = (MAX_SEGMENT / UNIT as u64).trailing_zeros();
/// Segments that a place can name.
pub(super) const MAX_SEGMENTS: u64 = 1 << (32 - UNIT_BITS);
/// No two entries begin within so many units.
const APART: u32 = 64;

/// A segment and a unit in it, in 32 bits: the index has one for each cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place(u32);

impl Place {
    pub fn new(segment: u32, unit: u32) -> Place {
        Place(segment << UNIT_BITS | unit)
    }

    pub fn segment(self) -> u32 {
        self.0 >> UNIT_BITS
    }

    pub fn unit(self) -> u32 {
        self.0 & ((1 << UNIT_BITS) - 1)
    }
}

/// A segment that holds something.
pub(super) struct Segment {
    pub file: Arc<dyn DiskFile>,
    pub life: u64,
    /// A bit for each [`APART`] units: read since it was written.
    read: Box<[AtomicU64]>,
    /// Bytes by volume.
    used: Mutex<BTreeMap<VolumeId, (Arc<Usage>, u64)>>,
}

impl Segment {
    pub fn new(file: Arc<dyn DiskFile>, life: u64) -> Arc<Segment> {
        let bits = file.len() / (UNIT as u64 * u64::from(APART)) + 1;
        let read = (0..bits.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Arc::new(Segment { file, life, read, used: Mutex::default() })
    }

    fn bit(&self, unit: u32) -> Option<(&AtomicU64, u64)> {
        let bit = unit / APART;
        Some((self.read.get(bit as usize / 64)?, 1 << (bit % 64)))
    }

    pub fn was_read(&self, unit: u32) -> bool {
        self.bit(unit).is_some_and(|(word, bit)| word.load(Ordering::Relaxed) & bit != 0)
    }

    fn note_read(&self, unit: u32) {
        if let Some((word, bit)) = self.bit(unit) {
            word.fetch_or(bit, Ordering::Relaxed);
        }
    }

    /// Counts an entry to its volume.
    fn count(&self, volume: VolumeId, bytes: u64, usage: impl FnOnce() -> Arc<Usage>) {
        let mut used = self.used.lock();
        let (usage, sum) = used.entry(volume).or_insert_with(|| (usage(), 0));
        usage.add_ssd(bytes);
        *sum += bytes;
    }

    /// What it held is gone.
    pub fn uncount(&self) {
        for (usage, bytes) in std::mem::take(&mut *self.used.lock()).into_values() {
            usage.sub_ssd(bytes);
        }
    }
}

#[derive(Default)]
struct State {
    /// By 64 bits of the hash of the key, in halves: 12 bytes for an entry, 30 at most with what the table adds. Of two
    /// keys with one hash the newer is there; the header on the disk says whose it is.
    index: HashMap<[u32; 2], Place, FixedState>,
    segments: Vec<Option<Arc<Segment>>>,
}

/// See the module's head.
#[derive(Default)]
pub(super) struct Places {
    state: RwLock<State>,
    hash: FixedState,
}

impl Places {
    /// The hash of a key, the same in each run.
    pub fn hash(&self, key: &Key) -> u64 {
        self.hash.hash_one(key)
    }

    fn short(&self, key: &Key) -> [u32; 2] {
        let hash = self.hash(key);
        [hash as u32, (hash >> 32) as u32]
    }

    /// Where the keys lie that are there, with their numbers; they count as read.
    pub fn find(&self, keys: impl Iterator<Item = Key>) -> Vec<(Key, Place, Arc<Segment>)> {
        let state = self.state.read();
        let mut found = Vec::new();
        if state.index.is_empty() {
            return found;
        }
        for key in keys {
            let Some(place) = state.index.get(&self.short(&key)) else { continue };
            let Some(Some(segment)) = state.segments.get(place.segment() as usize) else { continue };
            segment.note_read(place.unit());
            found.push((key, *place, segment.clone()));
        }
        found
    }

    pub fn contains(&self, key: &Key) -> bool {
        self.state.read().index.contains_key(&self.short(key))
    }

    /// Entries in the index.
    pub fn len(&self) -> usize {
        self.state.read().index.len()
    }

    /// Enters what was written to a segment.
    pub fn enter(&self, number: u32, entries: &[Entry], usage: impl Fn(VolumeId) -> Arc<Usage>) {
        let mut state = self.state.write();
        let Some(Some(segment)) = state.segments.get(number as usize).cloned() else { return };
        for e in entries {
            state.index.insert(self.short(&e.key), Place::new(number, e.unit));
            segment.count(e.key.volume, e.bytes(), || usage(e.key.volume));
        }
    }

    /// Takes an entry out, if it still lies there; whether it did.
    pub fn remove(&self, key: &Key, place: Place) -> bool {
        let mut state = self.state.write();
        let short = self.short(key);
        let there = state.index.get(&short) == Some(&place);
        if there {
            state.index.remove(&short);
        }
        there
    }

    /// Takes out everything that lies in a segment, whatever it is.
    pub fn remove_all_of(&self, number: u32) {
        self.state.write().index.retain(|_, place| place.segment() != number);
    }

    pub fn segment(&self, number: u32) -> Option<Arc<Segment>> {
        self.state.read().segments.get(number as usize).cloned().flatten()
    }

    /// Whether a segment has still the life that it had.
    pub fn is_current(&self, number: u32, segment: &Arc<Segment>) -> bool {
        self.segment(number).is_some_and(|now| Arc::ptr_eq(&now, segment))
    }

    /// Puts a segment in the place of the one with this number.
    pub fn set_segment(&self, number: u32, segment: Option<Arc<Segment>>) {
        let mut state = self.state.write();
        let number = number as usize;
        if state.segments.len() <= number {
            state.segments.resize(number + 1, None);
        }
        state.segments[number] = segment;
    }

    /// Forgets everything.
    pub fn clear(&self) {
        let state = std::mem::take(&mut *self.state.write());
        for segment in state.segments.into_iter().flatten() {
            segment.uncount();
        }
    }
}
