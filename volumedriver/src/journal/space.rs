//! Segments: made ahead of need, freed when nothing in them is needed and nobody holds them, used again
//! under a new life; and the housekeeper who does it in the background.

use super::record::Position;
use super::recover::{Kept, RecoveredEntry, RecoveredVolume, Recovery};
use super::segment::{Segment, SegmentHeader, file_name};
use super::{Journal, JournalSettings, Sink};
use common::{Clock, DiskFile, Error, ErrorKind, Lsn, Result, VolumeId, mutant};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::Notify;

/// Segments kept ready: one for copying forward, two for the next writes.
const READY: usize = 3;
/// Segments that this process may have whatever it found.
const OWN_MIN: usize = 2;
/// How often a disk without space is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// What a segment holds of one volume.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    pub min: Lsn,
    pub max: Lsn,
    /// Bytes to copy if all of it is needed.
    pub bytes: u64,
}

impl Default for Span {
    fn default() -> Self {
        Self { min: Lsn(u64::MAX), max: Lsn(0), bytes: 0 }
    }
}

impl Span {
    pub fn add(&mut self, lsn: Lsn, bytes: u64) {
        self.min = self.min.min(lsn);
        self.max = self.max.max(lsn);
        self.bytes += bytes;
    }

    /// About how many bytes are needed when everything up to `released` is not.
    fn live(&self, released: Lsn) -> u64 {
        if released >= self.max {
            return 0;
        }
        let all = u128::from(self.max.0 - self.min.0) + 1;
        let needed = u128::from(self.max.0 - released.0.max(self.min.0.saturating_sub(1)));
        (u128::from(self.bytes) * needed).div_ceil(all) as u64
    }
}

/// A segment that is full: nothing is written to it in this life.
pub(super) struct Slot {
    pub process: u128,
    pub segno: u64,
    pub life: u64,
    pub file: Arc<dyn DiskFile>,
    /// Left by an earlier process: removed, not used again.
    pub found: bool,
    /// Its records end here; once that is durable, it may go.
    pub end: Position,
    pub pin: Weak<Segment>,
    pub spans: HashMap<VolumeId, Span>,
    /// Not all of it is readable: it is never copied.
    pub damaged: bool,
    /// Kept for inspection: nobody knows what it holds.
    pub unknown: bool,
    /// Copying it does not pay until more is released.
    pub dense: bool,
}

impl Slot {
    fn live(&self, volumes: &BTreeMap<VolumeId, VolumeState>) -> u64 {
        self.spans.iter().map(|(v, span)| span.live(released(volumes, v))).sum()
    }

    /// Holds the segment.
    pub fn hold(&mut self, wake: &Arc<Notify>) -> Arc<Segment> {
        if let Some(segment) = self.pin.upgrade() {
            return segment;
        }
        let segment = Arc::new(Segment {
            file: self.file.clone(),
            segno: self.segno,
            life: self.life,
            wake: wake.clone(),
        });
        self.pin = Arc::downgrade(&segment);
        segment
    }
}

pub(super) fn released(volumes: &BTreeMap<VolumeId, VolumeState>, volume: &VolumeId) -> Lsn {
    volumes.get(volume).map_or(Lsn(0), |v| v.released)
}

/// A segment whose header of a new life is durable.
pub(super) struct Prepared {
    pub segno: u64,
    pub life: u64,
    pub file: Arc<dyn DiskFile>,
}

/// What the journal knows of a volume.
#[derive(Default)]
pub(super) struct VolumeState {
    pub released: Lsn,
    /// Weak: a volume knows its journal, and would else live as long as that does.
    pub sink: Option<Weak<dyn Sink>>,
    /// Recovered and not yet asked for.
    pub kept: Option<Kept>,
    /// It was attached before: what there is of it must be looked up again.
    pub seen: bool,
    /// Forgotten: segments of lives below this one may hold entries of it.
    forgotten: Option<u64>,
}

/// All segments and who needs them.
pub(super) struct Space {
    pub sealed: BTreeMap<u64, Slot>,
    ready: VecDeque<Prepared>,
    spare: Vec<(u64, Arc<dyn DiskFile>)>,
    /// The segment that is being written.
    pub active: Option<Weak<Segment>>,
    pub volumes: BTreeMap<VolumeId, VolumeState>,
    /// What volumes without entries are told at attach.
    pub gaps: Vec<super::Damage>,
    bytes: u64,
    own: usize,
    segment_size: u64,
    capacity: u64,
    next_segno: u64,
    next_life: u64,
    /// Why there is no new segment, and when to try again.
    blocked: Option<(String, Duration)>,
    /// A header of this process is durable: the cuts it names are known to whoever comes next.
    begun: bool,
    /// The committer waits for a segment.
    waiting: bool,
}

impl Space {
    pub fn new(recovery: Recovery, settings: &JournalSettings) -> Self {
        let bytes = recovery.slots.values().map(|s| s.file.len()).sum();
        let kept = |kept| VolumeState { kept: Some(kept), ..VolumeState::default() };
        Self {
            sealed: recovery.slots,
            ready: VecDeque::new(),
            spare: Vec::new(),
            active: None,
            volumes: recovery.volumes.into_iter().map(|(id, k)| (id, kept(k))).collect(),
            gaps: recovery.gaps,
            bytes,
            own: 0,
            segment_size: settings.segment_size,
            capacity: settings.capacity,
            next_segno: recovery.next_segno,
            next_life: recovery.next_life,
            blocked: None,
            begun: false,
            waiting: false,
        }
    }

    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// The next segment to write. The last one is for copies.
    pub fn take_ready(&mut self, copying: bool) -> Option<Prepared> {
        if self.ready.len() < if copying { 1 } else { 2 } {
            return None;
        }
        self.waiting = false;
        self.ready.pop_front()
    }

    pub fn activated(&mut self, segment: &Arc<Segment>) {
        self.active = Some(Arc::downgrade(segment));
        segment.wake.notify_one();
    }

    pub fn left(
        &mut self,
        segment: &Arc<Segment>,
        process: u128,
        spans: HashMap<VolumeId, Span>,
        end: Position,
    ) {
        self.active = None;
        self.sealed.insert(
            segment.life,
            Slot {
                process,
                segno: segment.segno,
                life: segment.life,
                file: segment.file.clone(),
                found: false,
                end,
                pin: Arc::downgrade(segment),
                spans,
                damaged: false,
                unknown: false,
                dense: false,
            },
        );
    }

    pub fn problem(&self) -> Option<String> {
        if let Some((why, _)) = &self.blocked
            && self.ready.len() < 2
        {
            return Some(why.clone());
        }
        (self.waiting && !self.can_grow()).then(|| {
            format!(
                "write buffer is full: {} segments hold what the backend does not have yet",
                self.sealed.len()
            )
        })
    }

    pub fn sinks(&self) -> Vec<Arc<dyn Sink>> {
        self.volumes.values().filter_map(|v| v.sink.as_ref()?.upgrade()).collect()
    }

    fn can_grow(&self) -> bool {
        self.bytes + self.segment_size <= self.capacity || self.own < OWN_MIN
    }

    /// Whether segments are so short that copying forward is called for, and possible.
    pub fn is_short(&self) -> bool {
        self.ready.len() == 1 && self.spare.is_empty() && (!self.can_grow() || self.blocked.is_some())
    }

    /// The segment to copy forward: the emptiest, if it pays.
    pub fn victim(&self) -> Option<u64> {
        self.sealed
            .values()
            .filter(|s| !s.damaged && !s.unknown && !s.dense && s.file.len() <= self.segment_size)
            .map(|s| (s.live(&self.volumes), s))
            .filter(|(live, s)| *live > 0 && pays(*live, s.file.len()))
            .min_by_key(|(live, s)| (*live, s.life))
            .map(|(_, s)| s.life)
    }
}

/// Whether copying `live` bytes out of a segment of `size` gives enough room back.
pub(super) fn pays(live: u64, size: u64) -> bool {
    live.saturating_mul(10) < size.saturating_mul(6)
}

/// Which segments can go now.
#[derive(Default)]
struct Freed {
    found: Vec<Slot>,
    unsynced: bool,
}

impl Journal {
    /// A volume opens: from now on `sink` hears of it. Returns what the journal holds of it.
    pub async fn attach(self: &Arc<Self>, volume: VolumeId, sink: Arc<dyn Sink>) -> Result<RecoveredVolume> {
        self.check()?;
        {
            let mut space = self.space.lock();
            let state = space.volumes.entry(volume).or_default();
            if state.sink.is_some() {
                return Err(Error::conflict(format!(
                    "volume {volume} is attached to the write buffer already"
                )));
            }
            state.sink = Some(Arc::downgrade(&sink));
            state.forgotten = None;
            if !std::mem::replace(&mut state.seen, true) {
                let kept = state.kept.take();
                return Ok(match kept {
                    Some(kept) => RecoveredVolume { entries: kept.entries, damage: kept.damage },
                    None => RecoveredVolume { entries: Vec::new(), damage: space.gaps.clone() },
                });
            }
        }
        // Of this process: whoever opens counts all of it as durable, as what earlier processes left is.
        self.sync().await?;
        Ok(self.look_up(volume).await)
    }

    /// The volume closes; what is needed of it stays until it is released or forgotten.
    pub fn detach(&self, volume: VolumeId) {
        let state = self.space.lock().volumes.get_mut(&volume).and_then(|state| state.sink.take());
        drop(state);
    }

    /// The volume's entries up to `committed` are needed no more.
    pub fn release(&self, volume: VolumeId, committed: Lsn) {
        {
            let mut space = self.space.lock();
            let state = space.volumes.entry(volume).or_default();
            if state.released >= committed {
                return;
            }
            state.released = committed;
            if let Some(kept) = &mut state.kept {
                kept.entries.retain(|e| e.lsn > committed);
            }
            for slot in space.sealed.values_mut() {
                if slot.dense && slot.spans.contains_key(&volume) {
                    slot.dense = false;
                }
            }
        }
        self.wake.notify_one();
    }

    /// The volume is deleted: none of its entries is needed.
    pub fn forget(&self, volume: VolumeId) {
        self.release(volume, Lsn(u64::MAX));
        let mut space = self.space.lock();
        let newest = space.next_life;
        let state = space.volumes.entry(volume).or_default();
        state.forgotten = Some(newest);
        let gone = (state.sink.take(), state.kept.take());
        drop(space);
        drop(gone);
    }

    /// The committer found no segment.
    pub(super) async fn wait_for_room(&self) -> Result<()> {
        if self.queue.lock().is_closed() {
            return Err(Error::unavailable("the write buffer was closed while it was full"));
        }
        self.space.lock().waiting = true;
        self.wake.notify_one();
        self.room.notified().await;
        Ok(())
    }

    /// One round of the housekeeper; returns when to come back unasked.
    async fn keep_house_once(self: &Arc<Self>) -> Result<Option<Duration>> {
        loop {
            let mut again = self.reclaim().await?;
            again |= self.prepare().await?;
            let short = {
                let space = self.space.lock();
                self.metrics.free.set((space.ready.len() + space.spare.len()) as i64);
                space.is_short()
            };
            if short && !again {
                again = self.copy_forward().await?;
            }
            if !again {
                break;
            }
        }
        let mut space = self.space.lock();
        if space.ready.len() >= READY || !space.can_grow() {
            space.blocked = None;
        }
        Ok(space.blocked.as_ref().map(|(_, at)| at.saturating_sub(self.clock.now())))
    }

    /// Frees what is needed no more. True if something changed that calls for another look.
    async fn reclaim(self: &Arc<Self>) -> Result<bool> {
        let freed = self.take_freed();
        let mut changed = false;
        for mut slot in freed.found {
            let name = file_name(slot.segno);
            match self.disk.remove(&name).await {
                Ok(()) => {
                    self.space.lock().bytes -= slot.file.len();
                    changed = true;
                }
                Err(e) if e.kind == ErrorKind::NotFound => self.space.lock().bytes -= slot.file.len(),
                Err(error) => {
                    tracing::warn!(segment = name, %error, "a journal segment that is needed no more stays");
                    // It stays counted; the next process tries again.
                    slot.unknown = true;
                    self.space.lock().sealed.insert(slot.life, slot);
                }
            }
        }
        if freed.unsynced {
            self.sync().await?;
            changed = true;
        }
        Ok(changed)
    }

    fn take_freed(&self) -> Freed {
        let durable = self.durable_position();
        let mut freed = Freed::default();
        let mut space = self.space.lock();
        let space = &mut *space;
        let Space { sealed, volumes, spare, begun, blocked, active, .. } = space;
        // The cuts of earlier processes stay on the disk until a header of ours names them.
        let may_remove = *begun || blocked.is_some();
        let lives: Vec<u64> = sealed
            .values()
            .filter(|s| {
                !s.unknown
                    && (s.pin.strong_count() == 0 || mutant::is_on("segment-freed-too-early"))
                    && s.spans.iter().all(|(v, span)| {
                        span.max <= released(volumes, v) || mutant::is_on("segment-freed-too-early")
                    })
            })
            .map(|s| s.life)
            .collect();
        for life in lives {
            let Some(slot) = sealed.get(&life) else { continue };
            if slot.found {
                if may_remove {
                    freed.found.extend(sealed.remove(&life));
                }
            } else if slot.end > durable {
                // Whoever reads the journal later must know that nothing before it is torn.
                freed.unsynced = true;
            } else if let Some(slot) = sealed.remove(&life) {
                spare.push((slot.segno, slot.file));
            }
        }
        let oldest = sealed.keys().next().copied().unwrap_or(u64::MAX);
        let oldest = active.as_ref().and_then(Weak::upgrade).map_or(oldest, |a| oldest.min(a.life));
        volumes.retain(|_, v| v.forgotten.is_none_or(|life| v.sink.is_some() || oldest < life));
        freed
    }

    /// Makes segments ready. True if one was.
    async fn prepare(self: &Arc<Self>) -> Result<bool> {
        enum From {
            Spare(u64, Arc<dyn DiskFile>),
            New(u64),
        }
        let mut changed = false;
        loop {
            let from = {
                let mut space = self.space.lock();
                if space.ready.len() >= READY {
                    break;
                }
                if let Some((segno, file)) = space.spare.pop() {
                    From::Spare(segno, file)
                } else if space.can_grow()
                    && space.blocked.as_ref().is_none_or(|(_, at)| self.clock.now() >= *at)
                {
                    space.next_segno += 1;
                    From::New(space.next_segno - 1)
                } else {
                    break;
                }
            };
            let (segno, file) = match from {
                From::Spare(segno, file) => (segno, file),
                From::New(segno) => {
                    match self.disk.create(&file_name(segno), self.settings.segment_size).await {
                        Ok(file) => {
                            let mut space = self.space.lock();
                            space.own += 1;
                            space.bytes += file.len();
                            space.blocked = None;
                            (segno, file)
                        }
                        Err(error) => {
                            self.blocked(&error);
                            break;
                        }
                    }
                }
            };
            let header = {
                let mut space = self.space.lock();
                space.next_life += 1;
                SegmentHeader {
                    device: self.device,
                    process: self.process,
                    segno,
                    life: space.next_life - 1,
                    size: file.len(),
                    align: self.settings.align,
                    durable: self.durable_position(),
                    cuts: self.cuts.clone(),
                }
            };
            file.write_at(0, &[header.encode()]).await?;
            file.sync().await?;
            {
                let mut space = self.space.lock();
                space.begun = true;
                space.ready.push_back(Prepared { segno, life: header.life, file });
            }
            self.room.notify_one();
            changed = true;
        }
        Ok(changed)
    }

    fn blocked(&self, error: &Error) {
        let why = if error.kind == ErrorKind::NoSpace {
            format!("write buffer disk is full: {error}; free some space, writes go on by themselves")
        } else {
            format!("write buffer can't grow: {error}; it is tried again every second")
        };
        let mut space = self.space.lock();
        if space.blocked.is_none() {
            tracing::warn!("{why}");
        }
        space.blocked = Some((why, self.clock.now() + RETRY));
    }

    /// Tells everyone who must know that an entry lies elsewhere.
    pub(super) fn relocate(&self, volume: VolumeId, moved: &[RecoveredEntry]) {
        let sink = {
            let mut space = self.space.lock();
            let Some(state) = space.volumes.get_mut(&volume) else { return };
            if let Some(kept) = &mut state.kept {
                for m in moved {
                    if let Ok(i) = kept.entries.binary_search_by_key(&(m.lsn, m.epoch), |e| (e.lsn, e.epoch))
                    {
                        kept.entries[i].loc = m.loc.clone();
                    }
                }
            }
            state.sink.as_ref().and_then(Weak::upgrade)
        };
        if let Some(sink) = sink {
            moved.iter().for_each(|m| sink.relocated(m.epoch, m.lsn, m.loc.clone()));
        }
    }
}

/// The housekeeper: lives as long as the journal does.
pub(super) async fn keep_house(journal: Weak<Journal>, wake: Arc<Notify>, clock: Arc<dyn Clock>) {
    loop {
        let Some(strong) = journal.upgrade() else { return };
        if strong.failed.load(Ordering::Acquire) {
            return;
        }
        let again = strong.keep_house_once().await;
        let again = match again {
            Ok(again) => again,
            Err(error) => {
                strong.fail(error);
                return;
            }
        };
        drop(strong);
        match again {
            None => wake.notified().await,
            Some(delay) => {
                tokio::select! {
                    biased;
                    () = wake.notified() => {}
                    () = clock.sleep(delay.max(Duration::from_millis(10))) => {}
                }
            }
        }
    }
}
