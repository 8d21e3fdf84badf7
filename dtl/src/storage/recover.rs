//! What an earlier process left: every valid entry of every segment counts for its log, wherever it lies.
//!
//! Behind an invalid record the search goes on, for entries and for what they say was durable: an invalid record
//! below that is damage, not a torn tail. After damage no log is written on again.

use super::format::{
    ALIGN, FIRST, FORGOTTEN, FREE, HEADER, Item, Kind, Position, Record, SegmentHeader, VolumeState,
    decode_record,
};
use super::logs::{Key, Limits, Log, Logs, Place, Slot};
use super::segment::{Held, Segment};
use crate::entry;
use common::crc::crc32c;
use common::error::Context;
use common::{Disk, Epoch, Lsn, Result, VolumeId, mutant};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// A place where something durable is lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The file.
    pub file: String,
    /// Bytes from its start.
    pub offset: u64,
    /// In words.
    pub what: String,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Volumes of which something is known.
    pub volumes: usize,
    /// Logs.
    pub logs: usize,
    /// Their entries.
    pub entries: usize,
    /// Places where the end of what was written is torn, which is what a loss of power does.
    pub torn: usize,
    /// Places where more than that is lost.
    pub damage: Vec<Damage>,
}

pub(super) struct Found {
    pub logs: Logs,
    pub segments: Vec<Arc<Segment>>,
    pub next_life: u64,
    pub names: u64,
    pub report: Recovered,
}

/// Something that is not as it was written.
struct Bad {
    at: Position,
    file: String,
    offset: u64,
    item: Option<Item>,
}

#[derive(Default)]
struct Scan {
    entries: HashMap<Key, BTreeMap<Lsn, Slot>>,
    states: BTreeMap<VolumeId, VolumeState>,
    /// The checkpoint that is being read.
    checkpoint: BTreeMap<VolumeId, VolumeState>,
    /// Where the last complete one ended.
    complete: Position,
    durable: Position,
    bad: Vec<Bad>,
    /// Segments, and where their records end.
    ends: Vec<(Position, String)>,
}

pub(super) async fn recover(disk: &Arc<dyn Disk>, limits: Limits) -> Result<Found> {
    let mut headers: Vec<(SegmentHeader, Arc<Segment>)> = Vec::new();
    let mut names = 0;
    for name in disk.list().await? {
        let Some(number) = name.strip_suffix(".dtl").and_then(|n| u64::from_str_radix(n, 16).ok()) else {
            continue;
        };
        names = names.max(number + 1);
        let file = disk.open(&name).await?;
        // What is read here is trusted from now on, so it must not be only in the kernel's memory.
        file.sync().await.context(format!("dtl: syncing {name}"))?;
        let Some(header) = header(&*file).await? else {
            // Never used, or nothing of it was durable.
            disk.remove(&name).await?;
            continue;
        };
        let segment = Segment { file, name, life: header.life, live: Default::default(), found: true };
        headers.push((header, Arc::new(segment)));
    }
    headers.sort_by_key(|(h, _)| h.life);
    let mut scan = Scan::default();
    for (header, segment) in &headers {
        scan.segment(header, segment).await?;
    }
    let (logs, report) = scan.finish(&headers, limits);
    let next_life = headers.last().map_or(1, |(h, _)| h.life + 1);
    let segments = headers.into_iter().map(|(_, s)| s).collect();
    Ok(Found { logs, segments, next_life, names, report })
}

/// The header of a file; where that is lost, what its first record says.
async fn header(file: &dyn common::DiskFile) -> Result<Option<SegmentHeader>> {
    if file.len() <= FIRST {
        return Ok(None);
    }
    let block = file.read_at(0, HEADER).await?;
    if let Ok(header) = SegmentHeader::decode(&block) {
        return Ok(Some(header));
    }
    if block[..] == FREE {
        return Ok(None);
    }
    // Anywhere, not only at the start: where both are lost there may be something durable behind them.
    let bytes = file.read_at(0, file.len() as usize).await?;
    let places = (FIRST..file.len()).step_by(ALIGN as usize);
    let record = |at: u64| decode_record(bytes.get(at as usize..)?).ok().filter(|r| r.at.offset == at);
    let found = places.filter_map(record).next();
    Ok(found.map(|r| SegmentHeader {
        process: r.process,
        life: r.at.life,
        size: file.len(),
        previous: Position::default(),
    }))
}

impl Scan {
    async fn segment(&mut self, header: &SegmentHeader, segment: &Arc<Segment>) -> Result<()> {
        // A checkpoint is in one segment. What is not all there was not durable.
        self.checkpoint.clear();
        // One segment at a time is in memory.
        let bytes = segment
            .file
            .read_at(0, segment.file.len() as usize)
            .await
            .context(format!("dtl: {}", segment.name))?;
        let record = |at: u64| -> Option<Record> {
            let record = decode_record(bytes.get(at as usize..)?).ok()?;
            let place = Position { life: header.life, offset: at };
            (record.process == header.process && record.at == place).then_some(record)
        };
        let size = bytes.len() as u64;
        let mut at = FIRST;
        let mut end = FIRST;
        while at + ALIGN <= size {
            match record(at) {
                Some(found) => {
                    if at > end {
                        let at = Position { life: header.life, offset: end };
                        self.bad.push(Bad { at, file: segment.name.clone(), offset: end, item: None });
                    }
                    self.record(&found, segment, &bytes);
                    at = (at + found.len()).min(size);
                    end = at;
                }
                None => at += ALIGN,
            }
        }
        self.ends.push((Position { life: header.life, offset: end }, segment.name.clone()));
        Ok(())
    }

    fn record(&mut self, record: &Record, segment: &Arc<Segment>, bytes: &bytes::Bytes) {
        self.durable = self.durable.max(record.durable);
        let mut body_at = record.at.offset as usize + record.header_len;
        for item in &record.items {
            let offset = body_at;
            body_at += item.len as usize;
            let body = bytes.get(offset..body_at).filter(|b| crc32c(b) == item.crc);
            let Some(body) = body else {
                let file = segment.name.clone();
                self.bad.push(Bad { at: record.at, file, offset: offset as u64, item: Some(*item) });
                continue;
            };
            match item.kind {
                Kind::Entry => {
                    let fits =
                        entry::head(body).is_ok_and(|h| h.lsn == item.lsn && h.volume == item.key.volume);
                    if fits {
                        let held = Held::new(segment, item.len);
                        let place = Place::Disk { held, offset: offset as u64 };
                        let slot = Slot { crc: item.crc, len: item.len, place };
                        self.entries.entry(item.key).or_default().entry(item.lsn).or_insert(slot);
                    }
                }
                Kind::State | Kind::Checkpoint => {
                    let Ok(state) = VolumeState::decode(body) else { continue };
                    if item.kind == Kind::Checkpoint {
                        self.checkpoint.insert(item.key.volume, state);
                    } else {
                        self.states.insert(item.key.volume, state);
                    }
                }
                Kind::CheckpointEnd => {
                    let complete = std::mem::take(&mut self.checkpoint);
                    if complete.len() as u64 == item.lsn.0 {
                        self.states = complete;
                        self.complete = record.at;
                    } else {
                        // A part of it is lost: what there is is newer, what there is not is not gone.
                        self.states.extend(complete);
                    }
                }
            }
        }
    }

    fn finish(mut self, headers: &[(SegmentHeader, Arc<Segment>)], limits: Limits) -> (Logs, Recovered) {
        let mut report = Recovered::default();
        let mut all_damaged = false;
        let mut damaged: Vec<(Key, Lsn)> = Vec::new();
        for bad in &self.bad {
            if bad.at >= self.durable {
                report.torn += 1;
                continue;
            }
            let what = match bad.item {
                // Control state that was written again since is not missed.
                Some(i) if i.kind != Kind::Entry && bad.at < self.complete => continue,
                Some(i) if i.kind == Kind::Entry => {
                    damaged.push((i.key, i.lsn));
                    format!("entry {} of volume {}", i.lsn, i.key.volume)
                }
                Some(_) => {
                    all_damaged = true;
                    "control state".into()
                }
                None => {
                    all_damaged = true;
                    "records".into()
                }
            };
            report.damage.push(Damage { file: bad.file.clone(), offset: bad.offset, what });
        }
        for (i, (end, file)) in self.ends.iter().enumerate() {
            let next = headers.get(i + 1).map(|(h, _)| h.previous);
            let expected = match next {
                Some(previous) if previous.life == end.life => previous.offset,
                _ => end.offset,
            };
            let expected =
                if self.durable.life == end.life { expected.max(self.durable.offset) } else { expected };
            if end.offset < expected {
                if *end < self.durable {
                    all_damaged = true;
                    let what = "the end of the segment".into();
                    report.damage.push(Damage { file: file.clone(), offset: end.offset, what });
                } else {
                    report.torn += 1;
                }
            }
        }
        let mut logs = Logs::new(limits);
        for (id, state) in std::mem::take(&mut self.states) {
            if state == FORGOTTEN {
                continue;
            }
            report.volumes += 1;
            let forgotten = mutant::is_on("seal-forgotten-at-restart");
            let floor = if forgotten { Epoch(0) } else { state.floor };
            let mut restored = BTreeMap::new();
            for l in state.logs {
                let key = Key { volume: id, epoch: l.epoch, incarnation: l.incarnation };
                let mut there = self.entries.remove(&key).unwrap_or_default();
                let mut log = Log {
                    incarnation: l.incarnation,
                    serial: l.serial,
                    base: l.base,
                    flushed: l.base,
                    sealed: l.sealed && !forgotten,
                    suspect: true,
                    damaged: false,
                    entries: Default::default(),
                };
                while let Some(slot) = there.remove(&log.last().next()) {
                    log.entries.push_back(slot);
                }
                log.flushed = log.last();
                // The seal was written behind all that it seals.
                log.suspect = !l.sealed || l.suspect || log.last() < l.last;
                if mutant::is_on("not-suspect-after-a-restart") {
                    log.suspect = false;
                }
                let misses = |(k, lsn): &(Key, Lsn)| *k == key && *lsn > log.last();
                log.damaged = l.damaged || all_damaged || damaged.iter().any(misses);
                report.logs += 1;
                report.entries += log.entries.len();
                restored.insert(l.epoch, log);
            }
            logs.restore(id, floor, restored);
        }
        if !report.damage.is_empty() {
            for d in &report.damage {
                tracing::error!(file = %d.file, offset = d.offset, what = %d.what, "the DTL's storage is damaged");
            }
        }
        (logs, report)
    }
}
