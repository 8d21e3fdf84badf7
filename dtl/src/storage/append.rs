//! Records: many entries of many logs in one write, and one fdatasync for all that wait.

use super::format::{
    ALIGN, FIRST, HEADER, Item, Kind, MAX_ITEMS, Position, SegmentHeader, VolumeState, encode_record,
    header_len, record_len,
};
use super::logs::{Admission, Key, Logs, Place, Slot};
use super::segment::{Held, Segment};
use super::{DiskSettings, Incoming};
use crate::registration::Incarnation;
use bytes::{Bytes, BytesMut};
use common::crc::crc32c;
use common::{Clock, Disk, DiskFile, Epoch, Error, Lsn, Result, VolumeId, mutant};
use parking_lot::Mutex;
use smallvec::SmallVec;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::sync::Notify;

const PAGE: u64 = 4096;
static ZEROES: [u8; PAGE as usize] = [0; PAGE as usize];
/// Bytes of bodies in one record, unless one alone has more.
const MAX_BODIES: usize = 2 << 20;

/// The segment that is written.
struct Active {
    segment: Arc<Segment>,
    offset: u64,
}

/// Who appends; one at a time.
#[derive(Default)]
pub(super) struct Appender {
    active: Option<Active>,
    /// Where the last segment ended.
    previous: Position,
    header: BytesMut,
    parts: Vec<Bytes>,
}

impl Appender {
    pub fn is_open(&self) -> bool {
        self.active.is_some()
    }
}

/// How far it is written, and how far that is durable.
#[derive(Default)]
struct Frontier {
    written: u64,
    at: Position,
    durable: u64,
    durable_at: Position,
    /// Segments with unsynced records, and the last of them.
    dirty: Vec<(Arc<Segment>, u64)>,
}

/// A segment that can be written.
pub(super) struct Spare {
    pub file: Arc<dyn DiskFile>,
    pub name: String,
}

/// All segments but the one that is written.
pub(super) struct Space {
    pub spares: Vec<Spare>,
    pub closed: Vec<Arc<Segment>>,
    /// Files, the active one too.
    pub files: usize,
    /// The most files: two more than were found where those are all that there may be, or nothing could ever be
    /// written again, and so nothing freed.
    pub most: usize,
    pub next_name: u64,
    next_life: u64,
}

/// Disk storage: what lies behind the logs.
pub(super) struct DiskBack {
    pub settings: DiskSettings,
    pub disk: Arc<dyn Disk>,
    process: u128,
    pub appender: tokio::sync::Mutex<Appender>,
    frontier: Mutex<Frontier>,
    syncing: tokio::sync::Mutex<()>,
    pub space: Mutex<Space>,
    syncs: AtomicU64,
    failed: AtomicBool,
    failure: Mutex<Option<Error>>,
    /// Somebody has needed a place to write: from then on there are segments.
    pub needed: AtomicBool,
    /// One at a time makes segments.
    pub housework: tokio::sync::Mutex<()>,
    pub wake: Arc<Notify>,
}

/// A body and what is said of it.
pub(super) type Work = (Item, Bytes);

pub(super) fn entry_item(key: Key, lsn: Lsn, crc: u32, body: Bytes) -> Work {
    (Item { kind: Kind::Entry, len: body.len() as u32, crc, key, lsn }, body)
}

/// A record is being written. Whoever gives up meanwhile leaves a place that may be written at any time: that is
/// the end of this storage, as a failed write is.
struct Whole<'b>(&'b DiskBack);

impl Drop for Whole<'_> {
    fn drop(&mut self) {
        self.0.fail(Error::internal("a write to the DTL's storage was abandoned"));
    }
}

fn state_item(kind: Kind, volume: VolumeId, state: &VolumeState) -> Work {
    let mut body = BytesMut::new();
    state.encode(&mut body);
    let key = Key { volume, epoch: state.floor, incarnation: Incarnation(0) };
    (Item { kind, len: body.len() as u32, crc: crc32c(&body), key, lsn: Lsn(0) }, body.freeze())
}

impl DiskBack {
    pub fn new(
        settings: DiskSettings,
        disk: Arc<dyn Disk>,
        closed: Vec<Arc<Segment>>,
        next_life: u64,
        next_name: u64,
        clock: &dyn Clock,
    ) -> Self {
        let files = closed.len();
        let most = settings.segments.max(files + 2);
        let space = Space { spares: Vec::new(), files, most, closed, next_name, next_life };
        DiskBack {
            settings,
            disk,
            process: clock.random_u128(),
            appender: tokio::sync::Mutex::default(),
            frontier: Mutex::default(),
            syncing: tokio::sync::Mutex::default(),
            space: Mutex::new(space),
            syncs: AtomicU64::new(0),
            failed: AtomicBool::new(false),
            failure: Mutex::default(),
            needed: AtomicBool::new(false),
            housework: tokio::sync::Mutex::default(),
            wake: Arc::new(Notify::new()),
        }
    }

    pub fn check(&self) -> Result<()> {
        if !self.failed.load(Ordering::Acquire) {
            return Ok(());
        }
        let error = self.failure.lock().clone();
        Err(error.unwrap_or_else(|| Error::internal("it stopped")).context("the DTL's storage failed"))
    }

    /// The end: after a failed write or sync nothing unsynced counts, so nothing is taken any more.
    pub fn fail(&self, error: Error) -> Error {
        self.failure.lock().get_or_insert_with(|| error.clone());
        self.failed.store(true, Ordering::Release);
        tracing::error!(%error, "the DTL's storage failed; its logs are suspect from the next start on");
        error
    }

    pub fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }

    /// Whether data may take another segment.
    pub fn has_room(&self) -> bool {
        self.space.lock().spares.len() >= 2
    }

    pub async fn append(&self, logs: &Mutex<Logs>, batch: &[Incoming]) -> Vec<Result<Admission>> {
        let mut appender = self.appender.lock().await;
        if let Err(error) = self.check() {
            return batch.iter().map(|_| Err(error.clone())).collect();
        }
        let mut verdicts = self.admit(&logs.lock(), batch);
        let taken = |v: &Result<Admission>| matches!(v, Ok(Admission::Take));
        let (mut work, states) = self.states(logs);
        let entries = batch.iter().zip(&verdicts).filter(|(_, v)| taken(v));
        work.extend(
            entries.map(|(i, _)| entry_item(i.key, i.head.lsn, i.packed.crc, i.packed.bytes.clone())),
        );
        let first = states.len();
        if work.len() == first {
            // Nothing to append; states can wait for the next record.
            logs.lock().dirty.extend(states);
            return verdicts;
        }
        let whole = Whole(self);
        let written = self.write(&mut appender, logs, &work, false).await;
        std::mem::forget(whole);
        // The appender is held until the entries are in the logs: who comes next must see them, above all a seal.
        let early = mutant::is_on("dtl-seal-overtakes-an-append");
        if early {
            drop(appender);
            tokio::task::yield_now().await;
        }
        let mut logs = logs.lock();
        let places = match written {
            Ok(places) => places,
            Err(error) => {
                verdicts.iter_mut().filter(|v| taken(v)).for_each(|v| *v = Err(error.clone()));
                return verdicts;
            }
        };
        if places.len() < first {
            logs.dirty.extend(states);
        }
        let mut places = places.into_iter().skip(first);
        for (i, verdict) in batch.iter().zip(&mut verdicts).filter(|(_, v)| taken(v)) {
            *verdict = match places.next() {
                None => Ok(Admission::Full),
                Some((segment, offset)) => {
                    let len = i.packed.bytes.len() as u32;
                    let place = Place::Disk { held: Held::new(&segment, len), offset };
                    logs.insert(&i.key, i.head.lsn, Slot { crc: i.packed.crc, len, place })
                }
            };
        }
        // What came twice in this batch is there only if the first one found room.
        for (i, verdict) in batch.iter().zip(&mut verdicts).filter(|(_, v)| matches!(v, Ok(Admission::Have)))
        {
            if logs.log(&i.key).is_ok_and(|log| log.last() < i.head.lsn) {
                *verdict = Ok(Admission::Full);
            }
        }
        verdicts
    }

    fn admit(&self, logs: &Logs, batch: &[Incoming]) -> Vec<Result<Admission>> {
        let mut nexts: SmallVec<[(Key, Lsn); 4]> = SmallVec::new();
        let mut ahead = 0;
        let mut admit = |i: &Incoming| {
            if i.packed.bytes.len() as u64 > self.settings.segment_size / 2 {
                return Err(Error::invalid("an entry is larger than half a segment of this DTL"));
            }
            let at = match nexts.iter().position(|(key, _)| *key == i.key) {
                Some(at) => at,
                None => {
                    nexts.push((i.key, logs.log(&i.key)?.last().next()));
                    nexts.len() - 1
                }
            };
            let admission = logs.admit(&i.key, &i.head, &i.packed, nexts[at].1, ahead)?;
            if admission == Admission::Take {
                nexts[at].1 = nexts[at].1.next();
                ahead += Logs::cost(&i.packed);
            } else if admission == Admission::Gap && i.head.lsn < nexts[at].1 {
                // Twice in one batch.
                return Ok(Admission::Have);
            }
            Ok(admission)
        };
        batch.iter().map(&mut admit).collect()
    }

    /// The control state of volumes that changed, which is as good as written.
    fn states(&self, logs: &Mutex<Logs>) -> (Vec<Work>, Vec<VolumeId>) {
        let mut logs = logs.lock();
        let dirty: Vec<VolumeId> = std::mem::take(&mut logs.dirty).into_iter().collect();
        let item = |v: &VolumeId| state_item(Kind::State, *v, &VolumeState::of(logs.volumes.get(v)));
        (dirty.iter().map(item).collect(), dirty)
    }

    /// Writes the control state of volumes that changed; there is always room for it, or nearly.
    pub async fn write_states(&self, logs: &Mutex<Logs>, appender: &mut Appender) -> Result<()> {
        self.check()?;
        let (work, states) = self.states(logs);
        let places = self.write(appender, logs, &work, true).await?;
        if places.len() < work.len() {
            logs.lock().dirty.extend(states);
            return Err(Error::new(common::ErrorKind::NoSpace, "the DTL's disk is full"));
        }
        Ok(())
    }

    /// Writes `work` as records; returns where the bodies lie. Fewer than asked: there is no room for more.
    pub async fn write(
        &self,
        appender: &mut Appender,
        logs: &Mutex<Logs>,
        work: &[Work],
        control: bool,
    ) -> Result<Vec<(Arc<Segment>, u64)>> {
        let mut places = Vec::with_capacity(work.len());
        while places.len() < work.len() {
            let rest = &work[places.len()..];
            let n = self.fitting(appender, rest);
            if n > 0 {
                self.record(appender, &rest[..n], &mut places).await?;
            } else if !self.roll(appender, logs, control).await? {
                break;
            }
        }
        Ok(places)
    }

    /// How many make the next record of the active segment.
    fn fitting(&self, appender: &Appender, work: &[Work]) -> usize {
        let Some(active) = &appender.active else { return 0 };
        let room = self.settings.segment_size - active.offset;
        let mut bodies = 0;
        let fits = |(n, (_, body)): &(usize, &Work)| {
            bodies += body.len();
            *n < MAX_ITEMS && (*n == 0 || bodies <= MAX_BODIES) && record_len(n + 1, bodies) <= room
        };
        work.iter().enumerate().take_while(fits).count()
    }

    async fn record(
        &self,
        appender: &mut Appender,
        work: &[Work],
        places: &mut Vec<(Arc<Segment>, u64)>,
    ) -> Result<()> {
        let Appender { active: Some(active), header, parts, .. } = appender else {
            return Err(Error::internal("no segment of the DTL is open"));
        };
        let at = Position { life: active.segment.life, offset: active.offset };
        let durable = self.frontier.lock().durable_at;
        let items: SmallVec<[Item; 8]> = work.iter().map(|(item, _)| *item).collect();
        encode_record(header, self.process, at, durable, &items);
        parts.clear();
        parts.push(header.split().freeze());
        let mut body_at = active.offset + header_len(items.len()) as u64;
        for (_, body) in work {
            places.push((active.segment.clone(), body_at));
            body_at += body.len() as u64;
            parts.push(body.clone());
        }
        let end = body_at.next_multiple_of(ALIGN);
        // Whole pages, so that the kernel need not read one first. What follows begins in a page that it has.
        let pad = end.next_multiple_of(PAGE) - body_at;
        parts.push(Bytes::from_static(&ZEROES[..pad as usize]));
        let written = active.segment.file.write_at(active.offset, parts).await;
        parts.clear();
        written.map_err(|e| self.fail(e))?;
        active.offset = end;
        self.wrote(&active.segment, Position { offset: end, ..at });
        Ok(())
    }

    fn wrote(&self, segment: &Arc<Segment>, at: Position) {
        let mut f = self.frontier.lock();
        f.written += 1;
        f.at = at;
        let n = f.written;
        match f.dirty.last_mut() {
            Some((last, written)) if Arc::ptr_eq(last, segment) => *written = n,
            _ => f.dirty.push((segment.clone(), n)),
        }
    }

    /// Goes on in another segment, which begins with the control state of everything. `false`: there is none.
    pub async fn roll(&self, appender: &mut Appender, logs: &Mutex<Logs>, control: bool) -> Result<bool> {
        let (spare, life) = {
            let mut space = self.space.lock();
            // The last one is for control and for cleaning, without which there would never be room again.
            let keep = if control { 0 } else { 1 };
            if space.spares.len() <= keep {
                drop(space);
                self.wake.notify_one();
                return Ok(false);
            }
            let Some(spare) = space.spares.pop() else { return Ok(false) };
            space.next_life += 1;
            (spare, space.next_life - 1)
        };
        if let Some(active) = appender.active.take() {
            appender.previous = Position { life: active.segment.life, offset: active.offset };
            self.space.lock().closed.push(active.segment);
            self.wake.notify_one();
        }
        let segment = Arc::new(Segment {
            file: spare.file,
            name: spare.name,
            life,
            live: Default::default(),
            found: false,
        });
        let header = SegmentHeader {
            process: self.process,
            life,
            size: self.settings.segment_size,
            previous: appender.previous,
        };
        let block = Bytes::copy_from_slice(&header.encode());
        debug_assert_eq!(block.len(), HEADER);
        let pad = Bytes::from_static(&ZEROES[..PAGE as usize - HEADER]);
        segment.file.write_at(0, &[block, pad]).await.map_err(|e| self.fail(e))?;
        self.wrote(&segment, Position { life, offset: FIRST });
        appender.active = Some(Active { segment, offset: FIRST });
        self.checkpoint(appender, logs).await?;
        Ok(true)
    }

    async fn checkpoint(&self, appender: &mut Appender, logs: &Mutex<Logs>) -> Result<()> {
        let mut work: Vec<Work> = {
            // They stay marked: of what is being written a part may be older than this, and be read as the newer.
            let logs = logs.lock();
            logs.volumes
                .iter()
                .map(|(id, v)| state_item(Kind::Checkpoint, *id, &VolumeState::of(Some(v))))
                .collect()
        };
        let end = Key { volume: VolumeId(0), epoch: Epoch(0), incarnation: Incarnation(0) };
        let n = Lsn(work.len() as u64);
        work.push((
            Item { kind: Kind::CheckpointEnd, len: 0, crc: crc32c(&[]), key: end, lsn: n },
            Bytes::new(),
        ));
        let (mut places, mut done) = (Vec::new(), 0);
        while done < work.len() {
            let n = self.fitting(appender, &work[done..]);
            if n == 0 {
                return Err(self.fail(Error::internal("the control state does not fit a segment of the DTL")));
            }
            self.record(appender, &work[done..done + n], &mut places).await?;
            done += n;
        }
        Ok(())
    }

    /// Returns when everything that was written before the call survives a loss of power. Who comes while a sync
    /// runs is served by the next one, together.
    pub async fn sync(&self) -> Result<()> {
        self.check()?;
        let target = self.frontier.lock().written;
        if self.frontier.lock().durable >= target {
            return Ok(());
        }
        let _one = self.syncing.lock().await;
        self.check()?;
        let (target, at, dirty) = {
            let f = self.frontier.lock();
            if f.durable >= target {
                return Ok(());
            }
            (f.written, f.at, f.dirty.clone())
        };
        let skip = if mutant::is_on("dtl-sync-of-the-last-segment-only") {
            dirty.len().saturating_sub(1)
        } else {
            0
        };
        for (segment, _) in dirty.iter().skip(skip) {
            self.syncs.fetch_add(1, Ordering::Relaxed);
            let synced = segment.file.sync().await;
            if mutant::is_on("dtl-failed-sync-ignored") {
                continue;
            }
            synced.map_err(|e| self.fail(e))?;
        }
        // A write may have failed meanwhile: then nothing is promised any more.
        self.check()?;
        let mut f = self.frontier.lock();
        f.dirty.retain(|(_, written)| *written > target);
        (f.durable, f.durable_at) = (target, at);
        Ok(())
    }
}
