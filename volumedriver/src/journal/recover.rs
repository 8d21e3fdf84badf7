//! What earlier processes left: which of their records count, and what of them is damaged.
//!
//! Segments are read in the order of their lives, process by process. The first record that is not
//! valid ends a process's part, if it lies above every durable position that the process named: it was
//! torn by a power cut, and what follows was never promised. The same below a durable position is
//! damage: it is reported, and reading goes on behind it. Where a later process already made a cut, that
//! cut holds: everything below it counts, whatever lies beyond it does not.
//!
//! What is found is made durable first, so that nothing that is accepted here is lost later.

use super::JournalSettings;
use super::record::{EntryHead, Position};
use super::segment::{
    Cut, HEADER_BLOCK, JournalLoc, MAX_CUTS, MAX_NUMBER, Segment, SegmentHeader, file_name, segno_of,
};
use super::space::{Slot, Span};
use super::walk::{Found, Identity, Step, Walk};
use crate::log::{Crcs, Kind};
use common::{Disk, DiskFile, Epoch, Error, ErrorKind, Lsn, Result, VolumeId, mutant};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Weak};
use tokio::sync::Notify;

/// How many numbers must be left to go on with: more than any device has writes in its life.
const ROOM: u64 = 1 << 60;

/// An entry that an earlier process, or this one, appended.
#[derive(Debug, Clone)]
pub struct RecoveredEntry {
    /// The epoch that accepted it.
    pub epoch: Epoch,
    /// Its position in its volume's log.
    pub lsn: Lsn,
    /// What it does.
    pub kind: Kind,
    /// First cluster, or the size.
    pub addr: u64,
    /// Number of clusters.
    pub count: u64,
    /// Checksums of the clusters.
    pub crcs: Crcs,
    /// Where its payload lies.
    pub loc: JournalLoc,
}

/// Something that was durable and is not readable any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Damage {
    /// The content of an entry; the entry is not delivered.
    Payload {
        /// The segment's file.
        segment: String,
        /// Where its record begins, in bytes.
        offset: u64,
        /// Whose entry.
        volume: VolumeId,
        /// Its epoch.
        epoch: Epoch,
        /// Its position in the volume's log.
        lsn: Lsn,
        /// The first cluster whose checksum is wrong.
        addr: u64,
    },
    /// A record of which nobody knows whose entries it held. A volume with later entries is whole if
    /// its LSNs are dense; one without may miss its last ones.
    Gap {
        /// The segment's file.
        segment: String,
        /// Where reading failed, in bytes.
        offset: u64,
        /// What is wrong there.
        why: &'static str,
    },
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Damage::Payload { segment, offset, volume, epoch, lsn, addr } => write!(
                f,
                "journal segment {segment}, record at {offset}: the content of volume {volume}, \
                 epoch {epoch}, LSN {lsn}, cluster {addr} has a wrong checksum"
            ),
            Damage::Gap { segment, offset, why } => {
                write!(f, "journal segment {segment}: what was durable at offset {offset} is lost: {why}")
            }
        }
    }
}

/// What was found of one volume, in short.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveredSummary {
    /// Entries.
    pub entries: usize,
    /// The lowest LSN.
    pub first: Lsn,
    /// The highest LSN.
    pub last: Lsn,
    /// The highest epoch.
    pub epoch: Epoch,
}

/// What was found; [`Journal::attach`](super::Journal::attach) hands a volume's entries over.
#[derive(Debug, Clone, Default)]
pub struct Recovered {
    /// Volumes that have entries.
    pub volumes: HashMap<VolumeId, RecoveredSummary>,
    /// Everything that is damaged.
    pub damage: Vec<Damage>,
    /// Segments found.
    pub segments: usize,
}

/// What the journal holds of a volume.
#[derive(Debug, Clone, Default)]
pub struct RecoveredVolume {
    /// Sorted by (LSN, epoch), each once.
    pub entries: Vec<RecoveredEntry>,
    /// What is damaged, and the gaps behind which it has no entry. A volume without any entry gets
    /// every gap: the caller knows whether it can have had one.
    pub damage: Vec<Damage>,
}

/// A volume's entries, until it is attached.
#[derive(Default)]
pub(super) struct Kept {
    pub entries: Vec<RecoveredEntry>,
    pub damage: Vec<Damage>,
}

/// Where the journal stands after reading.
#[derive(Default)]
pub(super) struct Recovery {
    pub device: Option<u128>,
    pub slots: BTreeMap<u64, Slot>,
    pub volumes: HashMap<VolumeId, Kept>,
    pub gaps: Vec<Damage>,
    pub cuts: Vec<Cut>,
    pub next_life: u64,
    pub next_segno: u64,
}

impl Recovery {
    pub fn summary(&self) -> Recovered {
        let mut recovered = Recovered { segments: self.slots.len(), ..Recovered::default() };
        for (volume, kept) in &self.volumes {
            recovered
                .damage
                .extend(kept.damage.iter().filter(|d| matches!(d, Damage::Payload { .. })).cloned());
            if let (Some(first), Some(last)) = (kept.entries.first(), kept.entries.last()) {
                let epoch = kept.entries.iter().map(|e| e.epoch).max().unwrap_or_default();
                let summary =
                    RecoveredSummary { entries: kept.entries.len(), first: first.lsn, last: last.lsn, epoch };
                recovered.volumes.insert(*volume, summary);
            }
        }
        recovered.damage.extend(self.gaps.iter().cloned());
        recovered
    }
}

/// One entry and where its record is.
struct Located {
    entry: RecoveredEntry,
    at: Position,
    copy: bool,
}

/// What reading gathers.
#[derive(Default)]
struct Gathered {
    entries: HashMap<VolumeId, Vec<Located>>,
    damage: HashMap<VolumeId, Vec<Damage>>,
    gaps: Vec<(Position, Damage)>,
}

impl Gathered {
    /// Takes a record that counts. Entries whose content is bad (`bad`) are damage.
    fn take(&mut self, found: &Found, segment: &Arc<Segment>, spans: &mut HashMap<VolumeId, Span>) -> bool {
        let at = found.record.place.at;
        let mut whole = true;
        for e in &found.record.entries {
            spans.entry(e.volume).or_default().add(e.lsn, e.cost());
            if let Some(damage) = e.damage(found).filter(|_| !mutant::is_on("torn-payload-accepted")) {
                whole = false;
                self.damage.entry(e.volume).or_default().push(damage);
                continue;
            }
            let entry = recovered(e, found.payload_at, segment);
            self.entries.entry(e.volume).or_default().push(Located { entry, at, copy: e.copy });
        }
        whole
    }

    /// Sorts, drops what is there twice, and tells each volume its damage.
    fn finish(self, recovery: &mut Recovery) {
        let Gathered { entries, mut damage, gaps } = self;
        let mut volumes: HashSet<VolumeId> = entries.keys().copied().collect();
        volumes.extend(damage.keys());
        let mut entries = entries;
        for volume in volumes {
            let located = entries.remove(&volume).unwrap_or_default();
            let newest = located.iter().filter(|l| !l.copy).map(|l| l.at).max().unwrap_or_default();
            let entries = deduplicate(located);
            let mut damage = damage.remove(&volume).unwrap_or_default();
            damage.retain(|d| match d {
                Damage::Payload { epoch, lsn, .. } => {
                    entries.binary_search_by_key(&(*lsn, *epoch), |e| (e.lsn, e.epoch)).is_err()
                }
                Damage::Gap { .. } => true,
            });
            damage.extend(gaps.iter().filter(|(at, _)| *at > newest).map(|(_, gap)| gap.clone()));
            recovery.volumes.insert(volume, Kept { entries, damage });
        }
        recovery.gaps = gaps.into_iter().map(|(_, gap)| gap).collect();
    }
}

impl EntryHead {
    /// What copying the entry takes, in bytes.
    pub(super) fn cost(&self) -> u64 {
        self.payload_len as u64 + super::record::entry_len(self.crcs.len()) as u64
    }

    /// What is wrong with its content.
    pub(super) fn damage(&self, found: &Found) -> Option<Damage> {
        self.bad_cluster(&found.payload).map(|addr| Damage::Payload {
            segment: file_name(found.record.place.at.segno),
            offset: found.record.place.at.offset,
            volume: self.volume,
            epoch: self.epoch,
            lsn: self.lsn,
            addr,
        })
    }
}

fn deduplicate(mut located: Vec<Located>) -> Vec<RecoveredEntry> {
    // Of copies the newest is kept, so that the oldest segments get free.
    if mutant::is_on("recovery-misses-the-last-entry") {
        located.pop();
    }
    located.sort_by_key(|l| (l.entry.lsn, l.entry.epoch, std::cmp::Reverse(l.at)));
    located.dedup_by_key(|l| (l.entry.lsn, l.entry.epoch));
    located.into_iter().map(|l| l.entry).collect()
}

/// Sorts entries found anywhere in the journal, and drops what is there twice.
pub(super) fn sorted(entries: Vec<(Position, RecoveredEntry)>) -> Vec<RecoveredEntry> {
    deduplicate(entries.into_iter().map(|(at, entry)| Located { entry, at, copy: false }).collect())
}

/// The entry as callers see it.
pub(super) fn recovered(e: &EntryHead, payload_at: u64, segment: &Arc<Segment>) -> RecoveredEntry {
    RecoveredEntry {
        epoch: e.epoch,
        lsn: e.lsn,
        kind: e.kind,
        addr: e.addr,
        count: e.count,
        crcs: e.crcs.clone(),
        loc: JournalLoc {
            segment: segment.clone(),
            offset: payload_at + e.payload_at as u64,
            len: e.payload_len as u32,
        },
    }
}

/// A segment of an earlier process.
struct Left {
    segno: u64,
    life: u64,
    align: u64,
    file: Arc<dyn DiskFile>,
}

/// All that one earlier process left.
struct Predecessor {
    process: u128,
    segments: Vec<Left>,
    /// The highest durable position that its headers name.
    durable: Position,
    cut: Option<Position>,
}

/// Reads what is on `disk`.
pub(super) async fn recover(
    disk: &Arc<dyn Disk>,
    settings: &JournalSettings,
    wake: &Arc<Notify>,
) -> Result<Recovery> {
    let mut recovery = Recovery { next_life: 1, next_segno: 1, ..Recovery::default() };
    let mut gathered = Gathered::default();
    let predecessors = find(disk, settings, &mut recovery, &mut gathered).await?;
    for p in predecessors {
        let cut = p.read(&mut recovery, &mut gathered, wake).await;
        recovery.cuts.push(Cut { process: p.process, life: cut.life, offset: cut.offset });
    }
    // The newest cuts matter most: an older process's parts end at what is invalid in them anyway.
    recovery.cuts.reverse();
    recovery.cuts.truncate(MAX_CUTS);
    gathered.finish(&mut recovery);
    for damage in recovery.summary().damage {
        tracing::error!("{damage}");
    }
    Ok(recovery)
}

/// Finds the segments, makes them durable, and groups them by process, in order.
async fn find(
    disk: &Arc<dyn Disk>,
    settings: &JournalSettings,
    recovery: &mut Recovery,
    gathered: &mut Gathered,
) -> Result<Vec<Predecessor>> {
    let mut by_process: HashMap<u128, Predecessor> = HashMap::new();
    let mut cuts: HashMap<u128, (u64, Position)> = HashMap::new();
    for name in disk.list().await? {
        let Some(segno) = segno_of(&name) else {
            tracing::warn!(file = name, "a file in the write buffer's folder is not a journal segment");
            continue;
        };
        check_number(&name, "number", segno)?;
        recovery.next_segno = recovery.next_segno.max(segno.saturating_add(1));
        let file = disk.open(&name).await?;
        if file.len() < HEADER_BLOCK {
            disk.remove(&name).await?;
            continue;
        }
        file.sync().await.map_err(|e| e.context(format!("making journal segment {name} durable")))?;
        let block = file.read_at(0, HEADER_BLOCK as usize).await;
        if block.as_ref().is_ok_and(|b| b.iter().all(|b| *b == 0)) {
            // Made, and never begun.
            drop(file);
            disk.remove(&name).await?;
            continue;
        }
        let header = block.and_then(|b| SegmentHeader::decode(&b)).and_then(|h| match h.segno == segno {
            true => Ok(h),
            false => Err(Error::corrupt(format!("it is a copy of segment {}", file_name(h.segno)))),
        });
        let id = match &header {
            Ok(h) => {
                if *recovery.device.get_or_insert(h.device) != h.device {
                    return Err(Error::invalid(format!(
                        "journal segment {name} belongs to another write device ({:032x}); \
                         move it out of this folder",
                        h.device
                    )));
                }
                Some(Identity { process: h.process, segno, life: h.life, align: u64::from(h.align) })
            }
            Err(e) if e.kind == ErrorKind::Unsupported => {
                return Err(e.clone().context(format!("journal segment {name}")));
            }
            Err(error) => {
                tracing::error!(segment = name, %error, "a journal segment's header is unreadable");
                Walk::identify(file.clone(), segno, u64::from(settings.align)).await
            }
        };
        let Some(id) = id else {
            let gap = Damage::Gap {
                segment: name,
                offset: 0,
                why: "neither its header nor any record is readable",
            };
            gathered.gaps.push((Position { segno, life: u64::MAX, offset: 0 }, gap));
            recovery.slots.insert(u64::MAX - segno, unknown(segno, file));
            continue;
        };
        check_number(&name, "life", id.life)?;
        recovery.next_life = recovery.next_life.max(id.life.saturating_add(1));
        let p = by_process.entry(id.process).or_insert_with(|| Predecessor {
            process: id.process,
            segments: Vec::new(),
            durable: Position::default(),
            cut: None,
        });
        if let Ok(h) = header {
            p.durable = p.durable.max(h.durable);
            for cut in &h.cuts {
                let at = Position { segno: 0, life: cut.life, offset: cut.offset };
                let known = cuts.entry(cut.process).or_insert((h.life, at));
                if h.life < known.0 {
                    // The first who cut it knew it best.
                    *known = (h.life, at);
                }
            }
        }
        p.segments.push(Left { segno, life: id.life, align: id.align, file });
    }
    let mut predecessors: Vec<Predecessor> = by_process.into_values().collect();
    for p in &mut predecessors {
        p.segments.sort_by_key(|s| s.life);
        p.cut = cuts.get(&p.process).map(|(_, at)| *at);
    }
    predecessors.sort_by_key(|p| p.segments.first().map(|s| s.life));
    let lives: Vec<u64> = predecessors.iter().flat_map(|p| p.segments.iter().map(|s| s.life)).collect();
    if let Some(pair) = lives.windows(2).find(|pair| pair[0] >= pair[1]) {
        return Err(Error::corrupt(format!(
            "two journal segments claim life {}: two storage routers used this write device",
            pair[1]
        )));
    }
    Ok(predecessors)
}

/// Numbers go on from what is found. Near their end the segments of this process would get numbers that nobody
/// reads again, and what is in them would be lost.
fn check_number(name: &str, what: &str, number: u64) -> Result<()> {
    if number < MAX_NUMBER - ROOM {
        return Ok(());
    }
    Err(Error::corrupt(format!(
        "journal segment {name} has the {what} {number}, which no journal reaches by counting: \
         move it out of this folder"
    )))
}

fn unknown(segno: u64, file: Arc<dyn DiskFile>) -> Slot {
    Slot {
        process: 0,
        segno,
        life: u64::MAX - segno,
        file,
        found: true,
        end: Position::default(),
        pin: Weak::new(),
        spans: HashMap::new(),
        damaged: true,
        unknown: true,
        dense: false,
    }
}

impl Predecessor {
    fn identity(&self, s: &Left) -> Identity {
        Identity { process: self.process, segno: s.segno, life: s.life, align: s.align }
    }

    /// Reads the records that count into `gathered`; returns where they end.
    async fn read(&self, recovery: &mut Recovery, gathered: &mut Gathered, wake: &Arc<Notify>) -> Position {
        // Everything below it was promised.
        let mut solid = self.cut.unwrap_or(self.durable);
        let mut looked_ahead = self.cut.is_some();
        let mut end = self.cut.unwrap_or_default();
        let mut torn = false;
        let mut before: Option<(u64, u32)> = None;
        for (i, s) in self.segments.iter().enumerate() {
            let segment =
                Arc::new(Segment { file: s.file.clone(), segno: s.segno, life: s.life, wake: wake.clone() });
            let mut slot = unknown(s.segno, s.file.clone());
            slot.process = self.process;
            slot.life = s.life;
            slot.unknown = false;
            slot.damaged = false;
            slot.pin = Arc::downgrade(&segment);
            let limit = match self.cut {
                Some(cut) if s.life > cut.life => 0,
                Some(cut) if s.life == cut.life => cut.offset,
                _ => s.file.len(),
            };
            let prev = before.take().filter(|(life, _)| life + 1 == s.life).map(|(_, crc)| crc);
            let mut walk = Walk::new(s.file.clone(), self.identity(s), limit, prev);
            while !torn && limit > 0 {
                let here = Position { segno: s.segno, life: s.life, offset: walk.offset };
                let step = walk.next().await;
                let bad = match &step {
                    Step::Limit => break,
                    Step::Last => {
                        before = walk.prev_crc.map(|crc| (s.life, crc));
                        end = end.max(Position { offset: walk.offset, ..here });
                        break;
                    }
                    Step::Invalid(_) => true,
                    Step::Record(found) => {
                        solid =
                            solid.max(if self.cut.is_none() { found.record.place.durable } else { solid });
                        !mutant::is_on("torn-payload-accepted")
                            && found.record.entries.iter().any(|e| e.bad_cluster(&found.payload).is_some())
                    }
                };
                if mutant::is_on("recovery-jumps-over-what-is-torn") {
                    solid = Position { life: u64::MAX, ..here };
                }
                if bad && here >= solid && !looked_ahead {
                    solid = solid.max(self.look_ahead(i, here).await);
                    looked_ahead = true;
                }
                if bad && here >= solid {
                    torn = true;
                    end = here;
                    break;
                }
                match step {
                    Step::Record(found) => {
                        slot.damaged |= !gathered.take(&found, &segment, &mut slot.spans);
                        end = end.max(Position { offset: walk.offset, ..here });
                        slot.end = Position { offset: walk.offset, ..here };
                    }
                    Step::Last | Step::Limit => break,
                    Step::Invalid(why) => {
                        slot.damaged = true;
                        let gap = Damage::Gap { segment: file_name(s.segno), offset: here.offset, why };
                        gathered.gaps.push((here, gap));
                        if !walk.search().await {
                            break;
                        }
                    }
                }
            }
            recovery.slots.insert(slot.life, slot);
        }
        end
    }

    /// The highest durable position that any record behind `here` names: a record that is not valid
    /// below it is not torn.
    async fn look_ahead(&self, from: usize, here: Position) -> Position {
        let mut durable = Position::default();
        for s in self.segments.iter().skip(from) {
            let mut walk = Walk::new(s.file.clone(), self.identity(s), s.file.len(), None);
            if s.life == here.life {
                walk.offset = here.offset;
                if !walk.search().await {
                    continue;
                }
            }
            loop {
                match walk.next().await {
                    Step::Record(found) => durable = durable.max(found.record.place.durable),
                    Step::Last | Step::Limit => break,
                    Step::Invalid(_) => {
                        if !walk.search().await {
                            break;
                        }
                    }
                }
            }
        }
        durable
    }
}
