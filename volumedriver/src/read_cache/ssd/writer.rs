//! The one task that changes the SSD: finds what is there, appends what is offered, and reclaims the oldest segment
//! when there is no other.

use super::format::{self, Entry, RECORD, Trailer, UNIT};
use super::places::{Place, Segment};
use super::{Queue, Ssd};
use crate::read_cache::Key;
use bytes::Bytes;
use common::{DiskFile, ErrorKind, Result, VolumeId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long offers gather before they are written together.
const GATHER: Duration = Duration::from_millis(20);
/// Quiet time after which the index of a segment that is not full is written too.
const QUIET: Duration = Duration::from_secs(1);
/// Bytes of one write.
const MAX_WRITE: usize = 256 << 10;
/// Bytes of a reclaimed segment that are written again, because they are in use.
const MAX_SECOND_CHANCE: usize = 8 << 20;

/// The segment that is being written.
struct Open {
    number: u32,
    segment: Arc<Segment>,
    end: u64,
    entries: Vec<Entry>,
    /// Entries that the index on disk names.
    indexed: usize,
}

/// See the module's head.
pub(super) struct Writer {
    ssd: Arc<Ssd>,
    open: Option<Open>,
    /// Segments that are full, the oldest first.
    full: VecDeque<u32>,
    /// Files that hold nothing.
    empty: Vec<(u32, Arc<dyn DiskFile>)>,
    /// Numbers of segments that have no file.
    absent: BTreeSet<u32>,
    next_life: u64,
}

fn name(number: u32) -> String {
    format!("segment-{number:05}")
}

fn parse(name: &str) -> Option<u32> {
    let number = name.strip_prefix("segment-")?.parse().ok()?;
    (self::name(number) == name).then_some(number)
}

impl Writer {
    pub fn new(ssd: Arc<Ssd>) -> Writer {
        let absent = (0..ssd.segments).collect();
        Writer { ssd, open: None, full: VecDeque::new(), empty: Vec::new(), absent, next_life: 1 }
    }

    pub async fn run(mut self) {
        if let Err(error) = self.work().await {
            self.ssd.turn_off(&error);
        }
    }

    async fn work(&mut self) -> Result<()> {
        self.load().await?;
        loop {
            let quiet = self.open.as_ref().is_some_and(|open| open.indexed < open.entries.len());
            let ssd = self.ssd.clone();
            tokio::select! {
                biased;
                () = ssd.wake.notified() => {}
                () = ssd.clock.sleep(QUIET), if quiet => {
                    self.write_index().await?;
                    continue;
                }
            }
            if ssd.is_off() {
                return Ok(());
            }
            let closing = ssd.closing.load(Ordering::Relaxed);
            if !closing {
                ssd.clock.sleep(GATHER).await;
            }
            let Queue { offers, .. } = std::mem::take(&mut *ssd.queue.lock());
            self.append(offers).await?;
            if closing {
                return self.write_index().await;
            }
        }
    }

    /// Finds what an earlier process left, by the indexes alone.
    async fn load(&mut self) -> Result<()> {
        let ssd = self.ssd.clone();
        let begin = ssd.clock.now();
        let mut found = Vec::new();
        for name in ssd.disk.list().await? {
            let file = match parse(&name).filter(|number| *number < ssd.segments) {
                Some(number) => Some((number, ssd.disk.open(&name).await?)),
                None => None,
            };
            // Another size was set.
            let Some((number, file)) = file.filter(|(_, file)| file.len() == ssd.segment_size) else {
                ssd.disk.remove(&name).await?;
                continue;
            };
            self.absent.remove(&number);
            match self.trailer(&*file).await? {
                Some(trailer) => found.push((trailer.life, number, file, trailer)),
                None => self.empty.push((number, file)),
            }
        }
        found.sort_by_key(|(life, number, ..)| (*life, *number));
        for (life, number, file, trailer) in found {
            self.next_life = self.next_life.max(life.saturating_add(1));
            match self.index(&*file, &trailer).await? {
                Some(entries) => {
                    ssd.places.set_segment(number, Some(Segment::new(file, life)));
                    ssd.places.enter(number, &entries, |volume| ssd.usages.of(volume));
                    self.full.push_back(number);
                }
                None => self.empty.push((number, file)),
            }
        }
        let clusters = ssd.places.len();
        ssd.counters.ssd_clusters.set(clusters as i64);
        let took = ssd.clock.now().saturating_sub(begin);
        tracing::info!(segments = self.full.len(), clusters, ?took, "read cache on the SSD found");
        Ok(())
    }

    async fn trailer(&self, file: &dyn DiskFile) -> Result<Option<Trailer>> {
        let bytes = file.read_at(file.len() - UNIT as u64, UNIT).await?;
        Ok(Trailer::decode(&bytes, file.len()).ok())
    }

    async fn index(&self, file: &dyn DiskFile, trailer: &Trailer) -> Result<Option<Vec<Entry>>> {
        let at = file.len() - (UNIT + trailer.index_len()) as u64;
        let bytes = file.read_at(at, trailer.index_len()).await?;
        Ok(format::decode_index(&bytes, trailer, file.len()).ok())
    }

    /// Writes offers, in a few large writes.
    async fn append(&mut self, mut offers: VecDeque<(Key, Bytes)>) -> Result<()> {
        while let Some((_, data)) = offers.front() {
            let bytes = (UNIT + data.len()) as u64;
            if !self.has_room(bytes) {
                let Some(again) = self.next_segment().await? else {
                    self.ssd.counters.ssd_dropped.inc_by(offers.len() as u64);
                    return Ok(());
                };
                // They were there before what is offered now.
                again.into_iter().rev().for_each(|offer| offers.push_front(offer));
                continue;
            }
            self.write_some(&mut offers).await?;
        }
        Ok(())
    }

    fn has_room(&self, bytes: u64) -> bool {
        let Some(open) = &self.open else { return false };
        let index = (UNIT + (open.entries.len() + 1) * RECORD) as u64;
        open.end + bytes + index <= self.ssd.segment_size
    }

    /// Writes the first of the offers, as many as there is room for and one write takes.
    async fn write_some(&mut self, offers: &mut VecDeque<(Key, Bytes)>) -> Result<()> {
        let ssd = self.ssd.clone();
        let Some(open) = &mut self.open else { return Ok(()) };
        let (from, first) = (open.end, open.entries.len());
        let mut parts = Vec::new();
        // What is in this write counts to its volumes only afterwards.
        let mut more: BTreeMap<VolumeId, u64> = BTreeMap::new();
        while let Some((key, data)) = offers.front() {
            let bytes = (UNIT + data.len()) as u64;
            let index = (UNIT + (open.entries.len() + 1) * RECORD) as u64;
            let full = open.end + bytes + index > ssd.segment_size;
            if full || (open.end > from && (open.end - from + bytes) as usize > MAX_WRITE) {
                break;
            }
            let sum = more.entry(key.volume).or_default();
            if !ssd.usages.of(key.volume).fits_ssd(*sum + bytes) {
                offers.pop_front();
                continue;
            }
            *sum += bytes;
            let entry = Entry { key: *key, unit: (open.end / UNIT as u64) as u32, len: data.len() as u32 };
            parts.push(format::entry_header(key, entry.len, open.segment.life));
            parts.push(data.clone());
            open.entries.push(entry);
            open.end += bytes;
            offers.pop_front();
        }
        if parts.is_empty() {
            return Ok(());
        }
        open.segment.file.write_at(from, &parts).await?;
        ssd.counters.ssd_written_bytes.inc_by(open.end - from);
        ssd.places.enter(open.number, &open.entries[first..], |volume| ssd.usages.of(volume));
        ssd.counters.ssd_clusters.set(ssd.places.len() as i64);
        Ok(())
    }

    /// Writes the index of the open segment, if there is anything new in it.
    async fn write_index(&mut self) -> Result<()> {
        let Some(open) = &mut self.open else { return Ok(()) };
        if open.indexed == open.entries.len() {
            return Ok(());
        }
        let parts = format::encode_index(&open.entries, open.segment.life);
        let len: usize = parts.iter().map(Bytes::len).sum();
        open.segment.file.write_at(self.ssd.segment_size - len as u64, &parts).await?;
        open.indexed = open.entries.len();
        Ok(())
    }

    /// Begins a segment: a new one while there is room, else the oldest. Gives back what of that is to be written
    /// again; `None` when there is no room at all.
    async fn next_segment(&mut self) -> Result<Option<Vec<(Key, Bytes)>>> {
        let ssd = self.ssd.clone();
        self.write_index().await?;
        if let Some(open) = self.open.take() {
            // Bounds what the kernel has still to write, beside the journal, to one segment.
            open.segment.file.sync().await?;
            self.full.push_back(open.number);
        }
        let mut again = Vec::new();
        let available = ssd.disk.available().await?;
        if available < ssd.reserve {
            self.give_back().await?;
        }
        let (number, file) = if let Some(empty) = self.empty.pop() {
            empty
        } else if let Some(new) = self.create(available).await? {
            new
        } else if let Some(number) = self.full.pop_front() {
            let Some(segment) = ssd.places.segment(number) else { return Ok(None) };
            again = self.reclaim(number, &segment).await?;
            (number, segment.file.clone())
        } else {
            return Ok(None);
        };
        let life = self.next_life;
        self.next_life += 1;
        // The trailer of an earlier life names what is written over from now on.
        file.write_at(ssd.segment_size - UNIT as u64, &[Bytes::from_static(&[0; UNIT])]).await?;
        let segment = Segment::new(file, life);
        ssd.places.set_segment(number, Some(segment.clone()));
        self.open = Some(Open { number, segment, end: 0, entries: Vec::new(), indexed: 0 });
        Ok(Some(again))
    }

    /// A new file, if the file system has room for it beside what others may need.
    async fn create(&mut self, available: u64) -> Result<Option<(u32, Arc<dyn DiskFile>)>> {
        let ssd = self.ssd.clone();
        let Some(&number) = self.absent.first() else { return Ok(None) };
        if available < ssd.reserve.saturating_add(ssd.segment_size) {
            return Ok(None);
        }
        match ssd.disk.create(&name(number), ssd.segment_size).await {
            Ok(file) => {
                self.absent.remove(&number);
                Ok(Some((number, file)))
            }
            Err(error) if error.kind == ErrorKind::NoSpace => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The file system has become short of room: removes a file.
    async fn give_back(&mut self) -> Result<()> {
        let number = match self.empty.pop() {
            Some((number, _)) => number,
            None => {
                let Some(number) = self.full.pop_front() else { return Ok(()) };
                if let Some(segment) = self.ssd.places.segment(number) {
                    self.ssd.places.remove_all_of(number);
                    segment.uncount();
                }
                self.ssd.places.set_segment(number, None);
                number
            }
        };
        self.ssd.disk.remove(&name(number)).await?;
        self.absent.insert(number);
        Ok(())
    }

    /// Takes a segment out of the index; what of it is in use, up to half of it.
    async fn reclaim(&mut self, number: u32, segment: &Arc<Segment>) -> Result<Vec<(Key, Bytes)>> {
        let ssd = self.ssd.clone();
        let entries = match self.trailer(&*segment.file).await? {
            Some(trailer) if trailer.life == segment.life => self.index(&*segment.file, &trailer).await?,
            _ => None,
        };
        let mut used = Vec::new();
        for e in entries.iter().flatten() {
            if ssd.places.remove(&e.key, Place::new(number, e.unit)) {
                ssd.counters.ssd_evicted.inc();
                if segment.was_read(e.unit) || ssd.memory.contains(&e.key) {
                    used.push(*e);
                }
            }
        }
        if entries.is_none() {
            ssd.places.remove_all_of(number);
        }
        segment.uncount();
        let most = MAX_SECOND_CHANCE.min(ssd.segment_size as usize / 2);
        let (mut again, mut bytes) = (Vec::new(), 0);
        for e in used {
            bytes += e.bytes() as usize;
            if bytes > most {
                break;
            }
            // A volume at its quota makes room by what it used longest ago.
            if !ssd.usages.of(e.key.volume).fits_ssd(e.bytes()) {
                continue;
            }
            let data = match ssd.memory.peek(&e.key) {
                Some(data) => data,
                None => {
                    let read = segment.file.read_at(e.offset(), e.bytes() as usize).await?;
                    let header = format::read_entry_header(&read);
                    if header.ok() != Some((e.key, e.len, segment.life)) {
                        continue;
                    }
                    read.slice(UNIT..)
                }
            };
            again.push((e.key, data));
        }
        Ok(again)
    }
}
