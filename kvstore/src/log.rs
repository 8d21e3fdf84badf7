//! The log of a member of the replicated registry: entries and hard state, on preallocated segments.
//!
//! | room | what |
//! |---|---|
//! | `record` | segments and records, byte for byte |
//! | `fuzz` | both as functions of bytes |
//! | `recover` | what an earlier process left: what is torn is cut, what is damaged is refused |
//!
//! One record and one fdatasync serve everything that waits ([`Log::append`]). A record begins on a sector of a file
//! that was zeroed and is never used twice, and is written only when the one before is synced. So at most the last record can
//! be torn, and then the sectors that are missing are zero.
//!
//! Does not own: what entries mean, and the copy of them in memory that raft reads.

mod fuzz;
mod record;
mod recover;
#[cfg(test)]
mod tests;

pub(crate) use fuzz::fuzz;
pub(crate) use record::{MAX_CONTEXT, MAX_ENTRY_BYTES, Position};

use crate::wire::Writer;
use bytes::Bytes;
use common::{Disk, DiskFile, Error, ErrorKind, Result, mutant};
use raft::eraftpb::{Entry, HardState};
use record::{Cut, Item, MAX_BODY, RecordHeader, SECTOR, SegmentHeader};
use std::sync::Arc;

/// The header has a page of its own, so that the kernel never reads one to write a record.
const HEADER_BLOCK: u64 = 4096;

/// How the log uses its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LogSettings {
    /// Bytes of a segment; a record that is larger gets a segment of its own size.
    pub segment_bytes: u64,
    /// A record takes no further item behind this many bytes.
    pub record_bytes: usize,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self { segment_bytes: 8 << 20, record_bytes: 16 << 20 }
    }
}

/// What one round of the member adds to the log.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct LogBatch {
    /// The log is replaced by a snapshot of this entry.
    pub reset: Option<Position>,
    /// Entries; the first may be one that the log has already: the log ends before it then.
    pub entries: Vec<Entry>,
    /// The hard state from now on.
    pub hard: Option<HardState>,
}

/// What the log holds.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Recovered {
    /// The hard state.
    pub hard: HardState,
    /// The entry before the first one.
    pub floor: Position,
    /// Entries, dense.
    pub entries: Vec<Entry>,
}

struct Segment {
    number: u64,
    name: String,
    /// The highest index of an entry in it.
    highest: u64,
}

/// The log on its disk. One user at a time.
pub(crate) struct Log {
    disk: Arc<dyn Disk>,
    settings: LogSettings,
    group: u128,
    member: u64,
    segments: Vec<Segment>,
    file: Arc<dyn DiskFile>,
    /// Where the next record goes in `file`.
    offset: u64,
    next_record: u64,
    prev_crc: u32,
    hard: HardState,
    floor: Position,
    last: Position,
    failed: Option<Error>,
}

fn name_of(number: u64) -> String {
    format!("{number:016x}.log")
}

impl Log {
    /// Opens the log on `disk`. A log that is not there begins behind entry `base`.
    ///
    /// Errors: `Corrupt` when it is damaged, with the place; `Unsupported`; those of the disk.
    pub async fn open(
        disk: Arc<dyn Disk>,
        settings: LogSettings,
        group: u128,
        member: u64,
        base: Position,
    ) -> Result<(Self, Recovered)> {
        recover::open(disk, settings, group, member, base).await
    }

    /// Whether there is a log on `disk`, whole or damaged. Making one that a power cut interrupts leaves none.
    pub async fn is_there(disk: &dyn Disk) -> Result<bool> {
        recover::is_there(disk).await
    }

    /// Adds `batches`, in order, as one record unless they are large; durable when it returns. After an error other than `NoSpace` nothing can be added.
    pub async fn append(&mut self, batches: &[LogBatch]) -> Result<()> {
        let mut items = Vec::new();
        let mut hard = None;
        for batch in batches {
            items.extend(batch.reset.map(Item::Reset));
            items.extend(batch.entries.iter().cloned().map(Item::Entry));
            hard = batch.hard.clone().or(hard);
        }
        // Last: a part of what is written here is a log without the newest hard state, on which nothing was promised.
        items.extend(hard.map(Item::Hard));
        let (mut record, mut bytes) = (Vec::new(), 0);
        for item in items {
            if let Item::Entry(entry) = &item {
                bytes += entry.data.len() + entry.context.len() + 32;
            }
            record.push(item);
            if bytes >= self.settings.record_bytes {
                self.write(std::mem::take(&mut record)).await?;
                bytes = 0;
            }
        }
        if record.is_empty() { Ok(()) } else { self.write(record).await }
    }

    /// Gives up the entries up to `floor`, and the segments that have no others.
    pub async fn compact(&mut self, floor: Position) -> Result<()> {
        if floor.index <= self.floor.index {
            return Ok(());
        }
        self.write(vec![Item::Floor(floor)]).await?;
        while self.segments.len() > 1 && self.segments[0].highest <= floor.index {
            self.disk.remove(&self.segments[0].name).await?;
            self.segments.remove(0);
        }
        Ok(())
    }

    async fn write(&mut self, items: Vec<Item>) -> Result<()> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let mut w = Writer::new();
        for item in &items {
            if let Item::Entry(entry) = item
                && (entry.data.len() > MAX_ENTRY_BYTES || w.len() > MAX_BODY - MAX_ENTRY_BYTES - (1 << 20))
            {
                return Err(Error::internal("what is to be added to the registry's log is too large"));
            }
            item.encode(&mut w);
        }
        let body = w.finish();
        let need = ((record::RECORD_HEADER + body.len()).next_multiple_of(SECTOR)) as u64;
        if self.offset + need > self.file.len() {
            self.roll(need).await?;
        }
        let segment = self.segments.last().map_or(0, |s| s.number);
        let (bytes, crc) = RecordHeader::seal(self.prev_crc, self.next_record, segment, &body);
        let done = self.put(self.offset, bytes).await;
        if let Err(error) = done {
            // What of it reached the disk is not known: nothing may be written behind it.
            let error = error.context("the registry's log failed");
            // Also when its disk is full, which is rare in a file that has its room: there is no waiting for it.
            let error = Error::new(
                if error.kind == ErrorKind::NoSpace { ErrorKind::Internal } else { error.kind },
                error.message(),
            );
            self.failed = Some(error.clone());
            return Err(error);
        }
        self.offset += need;
        self.next_record += 1;
        self.prev_crc = crc;
        self.note(items);
        Ok(())
    }

    fn note(&mut self, items: Vec<Item>) {
        for item in items {
            match item {
                Item::Hard(hard) => self.hard = hard,
                Item::Entry(entry) => {
                    self.last = Position { index: entry.index, term: entry.term };
                    if let Some(segment) = self.segments.last_mut() {
                        segment.highest = segment.highest.max(entry.index);
                    }
                }
                Item::Floor(at) => self.floor = at,
                Item::Reset(at) => (self.floor, self.last) = (at, at),
            }
        }
    }

    async fn put(&self, offset: u64, bytes: Bytes) -> Result<()> {
        self.file.write_at(offset, &[bytes]).await?;
        if mutant::is_on("log-not-synced") {
            return Ok(());
        }
        self.file.sync().await
    }

    /// Begins a new segment, behind the records that there are.
    async fn roll(&mut self, need: u64) -> Result<()> {
        let cut = Cut { segment: self.segments.last().map_or(0, |s| s.number), offset: self.offset };
        let number = cut.segment + 1;
        let size = self.settings.segment_bytes.max(HEADER_BLOCK + need).next_multiple_of(HEADER_BLOCK);
        let (name, file) = create(&*self.disk, number, size).await?;
        let header = SegmentHeader {
            group: self.group,
            member: self.member,
            number,
            size,
            first_record: self.next_record,
            prev_crc: self.prev_crc,
            cut,
            hard: self.hard.clone(),
            floor: self.floor,
            last: self.last,
        };
        let done = async {
            file.write_at(0, &[header.encode()]).await?;
            file.sync().await
        };
        if let Err(error) = done.await {
            // The segment is there and not begun: a start removes it.
            let error =
                Error::internal(format!("the registry's log can't begin a segment: {}", error.message()));
            self.failed = Some(error.clone());
            return Err(error);
        }
        self.file = file;
        self.offset = HEADER_BLOCK;
        self.segments.push(Segment { number, name, highest: 0 });
        Ok(())
    }
}

async fn create(disk: &dyn Disk, number: u64, size: u64) -> Result<(String, Arc<dyn DiskFile>)> {
    let name = name_of(number);
    match disk.create(&name, size).await {
        Ok(file) => Ok((name, file)),
        Err(e) if e.kind == ErrorKind::NoSpace => Err(e.context("the registry's log needs a new segment")),
        Err(e) => Err(e),
    }
}
