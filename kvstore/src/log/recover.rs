//! What an earlier process left.

use super::record::{Cut, Item, Position, RECORD_HEADER, RecordHeader, SECTOR, SegmentHeader, decode_items};
use super::{HEADER_BLOCK, Log, LogSettings, Recovered, Segment, create, name_of};
use bytes::Bytes;
use common::crc::crc32c;
use common::{Disk, DiskFile, Error, Result, mutant};
use raft::eraftpb::{Entry, HardState};
use std::collections::VecDeque;
use std::sync::Arc;

/// A segment that was found.
struct Found {
    header: SegmentHeader,
    name: String,
    file: Arc<dyn DiskFile>,
}

fn corrupt(name: &str, offset: u64, why: &str) -> Error {
    Error::corrupt(format!(
        "the registry's log is damaged: segment {name}, offset {offset}: {why}; restore this member from the others \
         (remove it and add it under a new id)"
    ))
}

pub(super) async fn open(
    disk: Arc<dyn Disk>,
    settings: LogSettings,
    group: u128,
    member: u64,
    base: Position,
) -> Result<(Log, Recovered)> {
    let found = find(&*disk, group, member).await?;
    if found.is_empty() {
        let log = begin(disk, settings, group, member, base).await?;
        return Ok((log, Recovered { floor: base, ..Recovered::default() }));
    }
    let mut replay = Replay::new(&found[0].header);
    let mut segments = Vec::new();
    let (mut offset, mut clean) = (HEADER_BLOCK, true);
    for (i, segment) in found.iter().enumerate() {
        let cut = found.get(i + 1).map(|next| next.header.cut);
        check_chain(segment, &replay, i)?;
        replay.highest = 0;
        (offset, clean) = read(segment, cut, &mut replay).await?;
        let number = segment.header.number;
        segments.push(Segment { number, name: segment.name.clone(), highest: replay.highest });
    }
    let last = &found[found.len() - 1];
    replay.check(&last.name)?;
    let mut log = Log {
        disk,
        settings,
        group,
        member,
        segments,
        file: last.file.clone(),
        offset,
        next_record: replay.next_record,
        prev_crc: replay.prev_crc,
        hard: replay.hard.clone(),
        floor: replay.floor,
        last: replay.last,
        failed: None,
    };
    if !clean {
        // Nothing is written where torn bytes lie: the header of the next segment says where this one ends.
        log.roll(0).await?;
    }
    let Replay { hard, floor, entries, .. } = replay;
    Ok((log, Recovered { hard, floor, entries: entries.into() }))
}

pub(super) async fn is_there(disk: &dyn Disk) -> Result<bool> {
    for name in disk.list().await? {
        if !name.ends_with(".log") {
            continue;
        }
        let file = disk.open(&name).await?;
        if file.len() < SECTOR as u64 || file.read_at(0, SECTOR).await?.iter().any(|b| *b != 0) {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn begin(
    disk: Arc<dyn Disk>,
    settings: LogSettings,
    group: u128,
    member: u64,
    base: Position,
) -> Result<Log> {
    let size = settings.segment_bytes.next_multiple_of(HEADER_BLOCK).max(2 * HEADER_BLOCK);
    let (name, file) = create(&*disk, 1, size).await?;
    let header = SegmentHeader {
        group,
        member,
        number: 1,
        size,
        first_record: 1,
        prev_crc: 0,
        cut: Cut::default(),
        hard: HardState::default(),
        floor: base,
        last: base,
    };
    file.write_at(0, &[header.encode()]).await?;
    file.sync().await?;
    Ok(Log {
        disk,
        settings,
        group,
        member,
        segments: vec![Segment { number: 1, name, highest: 0 }],
        file,
        offset: HEADER_BLOCK,
        next_record: 1,
        prev_crc: 0,
        hard: HardState::default(),
        floor: base,
        last: base,
        failed: None,
    })
}

/// The segments, in order. Those that were made and never begun are removed.
async fn find(disk: &dyn Disk, group: u128, member: u64) -> Result<Vec<Found>> {
    let mut numbers = Vec::new();
    for name in disk.list().await? {
        let number = name.strip_suffix(".log").filter(|n| n.len() == 16);
        match number.and_then(|n| u64::from_str_radix(n, 16).ok()).filter(|n| name_of(*n) == name) {
            Some(number) => numbers.push(number),
            None => {
                tracing::warn!(file = name, "a file in the folder of the registry's log is no segment of it")
            }
        }
    }
    numbers.sort_unstable();
    let mut found: Vec<Found> = Vec::new();
    for (i, number) in numbers.iter().enumerate() {
        let name = name_of(*number);
        let file = disk.open(&name).await?;
        // What is read must be what a later power cut leaves.
        file.sync().await?;
        let block = if file.len() < HEADER_BLOCK {
            Bytes::from_static(&[0; SECTOR])
        } else {
            file.read_at(0, SECTOR).await?
        };
        if block.iter().all(|b| *b == 0) {
            if i + 1 < numbers.len() {
                return Err(corrupt(&name, 0, "its header is missing"));
            }
            drop(file);
            disk.remove(&name).await?;
            break;
        }
        let header = SegmentHeader::decode(block).map_err(|e| match e.kind {
            common::ErrorKind::Corrupt => corrupt(&name, 0, e.message()),
            _ => e.context(format!("segment {name}")),
        })?;
        if (header.group, header.member) != (group, member) {
            return Err(Error::invalid(format!(
                "segment {name} of the registry's log belongs to member {} of group {:032x}: move it out of this folder",
                header.member, header.group
            )));
        }
        if header.number != *number || header.size != file.len() {
            return Err(corrupt(&name, 0, "it is a copy of another segment, or it was cut"));
        }
        if let Some(before) = found.last()
            && before.header.number + 1 != *number
        {
            return Err(corrupt(&name, 0, "the segment before it is missing"));
        }
        found.push(Found { header, name, file });
    }
    Ok(found)
}

fn check_chain(segment: &Found, replay: &Replay, i: usize) -> Result<()> {
    let header = &segment.header;
    let goes_on = (header.first_record, header.prev_crc) == (replay.next_record, replay.prev_crc);
    if i > 0 && (!goes_on || header.cut.segment + 1 != header.number) {
        return Err(corrupt(&segment.name, 0, "it does not go on where the segment before it ends"));
    }
    Ok(())
}

/// Reads the records of a segment, up to `cut` if it is known; returns where they end, and whether only zeroes follow.
async fn read(segment: &Found, cut: Option<Cut>, replay: &mut Replay) -> Result<(u64, bool)> {
    let size = segment.file.len();
    let limit = cut.map_or(size, |cut| cut.offset.min(size));
    let bytes = segment.file.read_at(0, limit as usize).await?;
    let mut at = HEADER_BLOCK as usize;
    while at + SECTOR <= bytes.len() {
        let step = look(&bytes, at, segment.header.number, replay);
        match step {
            Look::Record { items, header } => {
                let items = items.map_err(|e| corrupt(&segment.name, at as u64, e.message()))?;
                replay.next_record += 1;
                replay.prev_crc = header.crc(&bytes[at..]);
                for item in items {
                    replay.apply(item).map_err(|why| corrupt(&segment.name, at as u64, why))?;
                }
                at += header.len();
            }
            Look::Unsupported(error) => return Err(error.context(format!("segment {}", segment.name))),
            Look::Damaged(why) => return Err(corrupt(&segment.name, at as u64, why)),
            Look::Torn if cut.is_some() => {
                return Err(corrupt(&segment.name, at as u64, "a record is missing that others follow"));
            }
            Look::Torn => {
                if let Some(later) = later_record(&bytes, at + SECTOR, segment.header.number, replay) {
                    let why = format!(
                        "a record is missing, and at offset {later} there is one that was written later"
                    );
                    return Err(corrupt(&segment.name, at as u64, &why));
                }
                let clean = bytes[at..].iter().all(|b| *b == 0);
                if !clean {
                    tracing::info!(
                        segment = segment.name,
                        offset = at,
                        "the registry's log ends in a torn record"
                    );
                }
                return Ok((at as u64, clean));
            }
        }
    }
    if cut.is_some() && at as u64 != limit {
        return Err(corrupt(&segment.name, at as u64, "a record reaches beyond its end"));
    }
    Ok((at as u64, true))
}

enum Look {
    Record {
        header: RecordHeader,
        items: Result<Vec<Item>>,
    },
    /// The end of the log, unless something valid follows.
    Torn,
    Damaged(&'static str),
    Unsupported(Error),
}

fn look(bytes: &Bytes, at: usize, segment: u64, replay: &Replay) -> Look {
    let sector = &bytes[at..at + SECTOR];
    if sector.iter().all(|b| *b == 0) {
        return Look::Torn;
    }
    // A sector is written whole or not at all, so what is here is what was written.
    let header = match RecordHeader::decode(sector) {
        None => return Look::Damaged("the header of a record is not valid"),
        Some(Err(error)) => return Look::Unsupported(error),
        Some(Ok(header)) => header,
    };
    if (header.segment, header.number, header.prev_crc) != (segment, replay.next_record, replay.prev_crc) {
        return Look::Damaged("a record does not follow the one before it");
    }
    let Some(record) = at.checked_add(header.len()).and_then(|end| bytes.get(at..end)) else {
        return Look::Damaged("a record is longer than its segment");
    };
    let body = RECORD_HEADER..RECORD_HEADER + header.body;
    if crc32c(&record[body.clone()]) != header.body_crc {
        let missing = record.chunks(SECTOR).any(|sector| sector.iter().all(|b| *b == 0));
        return if missing { Look::Torn } else { Look::Damaged("the checksum of a record is wrong") };
    }
    let items = decode_items(bytes.slice(at + body.start..at + body.end), "record of the registry's log");
    Look::Record { header, items }
}

/// A record from `from` on that was written later than the one that is missing.
fn later_record(bytes: &Bytes, from: usize, segment: u64, replay: &Replay) -> Option<usize> {
    (from..bytes.len().saturating_sub(SECTOR - 1)).step_by(SECTOR).find(|at| {
        let header = RecordHeader::decode(&bytes[*at..*at + SECTOR]);
        matches!(header, Some(Ok(h)) if h.segment == segment && h.number > replay.next_record)
    })
}

/// What the records say, taken together.
struct Replay {
    next_record: u64,
    prev_crc: u32,
    hard: HardState,
    floor: Position,
    last: Position,
    entries: VecDeque<Entry>,
    highest: u64,
}

impl Replay {
    fn new(header: &SegmentHeader) -> Self {
        Self {
            next_record: header.first_record,
            prev_crc: header.prev_crc,
            hard: header.hard.clone(),
            floor: header.floor,
            last: header.last,
            entries: VecDeque::new(),
            highest: 0,
        }
    }

    fn apply(&mut self, item: Item) -> Result<(), &'static str> {
        match item {
            Item::Hard(hard) => self.hard = hard,
            Item::Reset(at) => {
                self.entries.clear();
                (self.floor, self.last) = (at, at);
            }
            Item::Floor(at) => {
                self.floor = at;
                while self.entries.front().is_some_and(|e| e.index <= at.index) {
                    self.entries.pop_front();
                }
                if self.last.index < at.index {
                    self.last = at;
                }
            }
            Item::Entry(entry) => self.entry(entry)?,
        }
        Ok(())
    }

    fn entry(&mut self, entry: Entry) -> Result<(), &'static str> {
        if entry.index > self.last.index + 1 || entry.index <= self.floor.index {
            return Err("an entry is not where the log ends");
        }
        self.highest = self.highest.max(entry.index);
        if entry.index <= self.last.index && mutant::is_on("conflicting-suffix-kept") {
            if let Some(slot) = self.entries.iter_mut().find(|e| e.index == entry.index) {
                *slot = entry;
            }
            return Ok(());
        }
        // It replaces what the log had from here on.
        while self.entries.back().is_some_and(|e| e.index >= entry.index) {
            self.entries.pop_back();
        }
        self.last = Position { index: entry.index, term: entry.term };
        self.entries.push_back(entry);
        Ok(())
    }

    fn check(&self, name: &str) -> Result<()> {
        let mut before = self.floor;
        for entry in &self.entries {
            if entry.index != before.index + 1 {
                return Err(corrupt(name, 0, &format!("entry {} is missing", before.index + 1)));
            }
            if entry.term < before.term {
                return Err(corrupt(
                    name,
                    0,
                    &format!("entry {} is of an older term than the one before", entry.index),
                ));
            }
            before = Position { index: entry.index, term: entry.term };
        }
        if before != self.last {
            return Err(corrupt(name, 0, &format!("the entries from {} on are missing", before.index + 1)));
        }
        Ok(())
    }
}
