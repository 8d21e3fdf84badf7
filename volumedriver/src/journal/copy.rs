//! Reading segments of this journal while it runs: to copy what is still needed out of a segment that
//! is mostly free (so that a volume whose backend is stuck does not hold everyone's room), and to find
//! again what there is of a volume that closed and opens once more.

use super::record::{EntryHead, Position};
use super::recover::{Damage, RecoveredEntry, RecoveredVolume, recovered, sorted};
use super::segment::{JournalLoc, Segment, file_name};
use super::space::{Slot, pays, released};
use super::walk::{Found, Identity, Step, Walk};
use super::{Journal, PAGE};
use crate::log::LogEntry;
use common::{Result, VolumeId};
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use tokio::sync::Notify;

/// A segment to read, held meanwhile.
struct Source {
    segment: Arc<Segment>,
    process: u128,
    limit: u64,
}

impl Source {
    fn of(slot: &mut Slot, wake: &Arc<Notify>) -> Self {
        Source { segment: slot.hold(wake), process: slot.process, limit: slot.end.offset }
    }

    fn walk(&self, align: u64) -> Walk {
        let id =
            Identity { process: self.process, segno: self.segment.segno, life: self.segment.life, align };
        Walk::new(self.segment.file.clone(), id, self.limit, None)
    }
}

impl Journal {
    /// What there is of a volume and not released, from the segments that hold some.
    pub(super) async fn look_up(&self, volume: VolumeId) -> RecoveredVolume {
        let mut sources = Vec::new();
        {
            let mut space = self.space.lock();
            let after = released(&space.volumes, &volume);
            for slot in space.sealed.values_mut() {
                if slot.spans.get(&volume).is_some_and(|span| span.max > after) {
                    sources.push(Source::of(slot, &self.wake));
                }
            }
            if let Some(segment) = space.active.as_ref().and_then(Weak::upgrade) {
                let at = self.written_position();
                if at.life == segment.life {
                    sources.push(Source { segment, process: self.process, limit: at.offset });
                }
            }
        }
        let mut entries: Vec<(Position, RecoveredEntry)> = Vec::new();
        let mut damage = Vec::new();
        for source in &sources {
            let mut walk = source.walk(u64::from(self.settings.align));
            loop {
                let found = match walk.next().await {
                    Step::Record(found) => found,
                    Step::Last | Step::Limit => break,
                    Step::Invalid(why) => {
                        let segment = file_name(source.segment.segno);
                        damage.push(Damage::Gap { segment, offset: walk.offset, why });
                        if walk.search().await {
                            continue;
                        }
                        break;
                    }
                };
                let after = released(&self.space.lock().volumes, &volume);
                for e in found.record.entries.iter().filter(|e| e.volume == volume && e.lsn > after) {
                    match e.damage(&found) {
                        Some(bad) => damage.push(bad),
                        None => entries
                            .push((found.record.place.at, recovered(e, found.payload_at, &source.segment))),
                    }
                }
            }
        }
        RecoveredVolume { entries: sorted(entries), damage }
    }

    /// Copies the entries that are needed out of the emptiest segment. True if one was copied, or
    /// turned out not to be worth it: then there may be another.
    pub(super) async fn copy_forward(self: &Arc<Self>) -> Result<bool> {
        let (life, source) = {
            let mut space = self.space.lock();
            let Some(life) = space.victim() else { return Ok(false) };
            let Some(slot) = space.sealed.get_mut(&life) else { return Ok(false) };
            (life, Source::of(slot, &self.wake))
        };
        let size = source.segment.file.len();
        let Some(live) = self.live_bytes(&source).await else {
            self.give_up(life, |slot| slot.damaged = true);
            return Ok(true);
        };
        if !pays(live, size) {
            self.give_up(life, |slot| slot.dense = true);
            return Ok(true);
        }
        self.reserve_for_copies(live);
        let moved = self.copy_out(&source, live).await;
        self.reserve_for_copies(0);
        let moved = moved?;
        // Only what is durable elsewhere may be given up here.
        self.sync().await?;
        for (volume, entries) in moved {
            self.relocate(volume, &entries);
        }
        self.give_up(life, |slot| slot.spans.clear());
        Ok(true)
    }

    fn give_up(&self, life: u64, how: impl FnOnce(&mut Slot)) {
        if let Some(slot) = self.space.lock().sealed.get_mut(&life) {
            how(slot);
        }
    }

    fn needs(&self, e: &EntryHead) -> bool {
        e.lsn > released(&self.space.lock().volumes, &e.volume)
    }

    /// Bytes that copying takes; `None` if a checksum is wrong: damage is not moved about.
    async fn live_bytes(&self, source: &Source) -> Option<u64> {
        let mut walk = source.walk(u64::from(self.settings.align));
        let mut live = 0;
        let mut entries = 0u64;
        while let Some(found) = next(&mut walk).await {
            for e in found.record.entries.iter().filter(|e| self.needs(e)) {
                if e.bad_cluster(&found.payload).is_some() {
                    return None;
                }
                live += e.cost();
                entries += 1;
            }
        }
        let s = &self.settings;
        let records = live / (s.max_batch_bytes as u64).max(1) + entries / s.max_batch_entries as u64 + 3;
        Some(live + records * PAGE / 2)
    }

    async fn copy_out(
        self: &Arc<Self>,
        source: &Source,
        mut live: u64,
    ) -> Result<BTreeMap<VolumeId, Vec<RecoveredEntry>>> {
        let mut moved: BTreeMap<VolumeId, Vec<RecoveredEntry>> = BTreeMap::new();
        let mut walk = source.walk(u64::from(self.settings.align));
        let mut batch: Vec<LogEntry> = Vec::new();
        let mut bytes = 0;
        loop {
            let found = next(&mut walk).await;
            let done = found.is_none();
            if let Some(found) = found {
                for e in found.record.entries.iter().filter(|e| self.needs(e)) {
                    bytes += e.payload_len;
                    batch.push(entry(e, &found));
                }
            }
            let full =
                bytes >= self.settings.max_batch_bytes || batch.len() >= self.settings.max_batch_entries;
            if !batch.is_empty() && (done || full) {
                let entries = std::mem::take(&mut batch);
                let heads: Vec<(VolumeId, RecoveredEntry)> =
                    entries.iter().map(|e| (e.volume, head(e, &source.segment))).collect();
                let locs = self.append_copies(entries).await?;
                live = live.saturating_sub(bytes as u64 + PAGE / 2);
                bytes = 0;
                self.reserve_for_copies(live);
                for ((volume, entry), loc) in heads.into_iter().zip(locs) {
                    moved.entry(volume).or_default().push(RecoveredEntry { loc, ..entry });
                }
            }
            if done {
                return Ok(moved);
            }
        }
    }
}

/// The next record, up to where the segment was left.
async fn next(walk: &mut Walk) -> Option<Found> {
    match walk.next().await {
        Step::Record(found) => Some(found),
        Step::Last | Step::Limit | Step::Invalid(_) => None,
    }
}

/// The entry once more, as it was submitted.
fn entry(e: &EntryHead, found: &Found) -> LogEntry {
    LogEntry {
        volume: e.volume,
        epoch: e.epoch,
        lsn: e.lsn,
        kind: e.kind,
        addr: e.addr,
        count: e.count,
        // A copy of its own: a slice would keep the whole window in memory.
        data: bytes::Bytes::copy_from_slice(&found.payload[e.payload_at..e.payload_at + e.payload_len]),
        crcs: e.crcs.clone(),
    }
}

fn head(e: &LogEntry, segment: &Arc<Segment>) -> RecoveredEntry {
    RecoveredEntry {
        epoch: e.epoch,
        lsn: e.lsn,
        kind: e.kind,
        addr: e.addr,
        count: e.count,
        crcs: e.crcs.clone(),
        loc: JournalLoc { segment: segment.clone(), offset: 0, len: e.data.len() as u32 },
    }
}
