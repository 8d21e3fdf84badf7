//! Going from record to record through one segment.

use super::record::{self, FIXED, MAGIC, Record};
use super::segment::{HEADER_BLOCK, MAX_NUMBER};
use bytes::Bytes;
use common::DiskFile;
use std::sync::Arc;

/// Read at a time, in bytes.
const WINDOW: usize = 256 << 10;

/// Which records belong: those of one life of one segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    pub process: u128,
    pub segno: u64,
    pub life: u64,
    pub align: u64,
}

/// A valid header, and its payload as it was found.
pub(super) struct Found {
    pub record: Record,
    /// Bytes from the start of the segment to the payload.
    pub payload_at: u64,
    pub payload: Bytes,
}

/// What comes next.
pub(super) enum Step {
    Record(Found),
    /// The segment was left here.
    Last,
    /// The limit was reached.
    Limit,
    /// What is at the offset is not the next record.
    Invalid(&'static str),
}

/// A walk over a segment from its first record on.
pub(super) struct Walk {
    file: Arc<dyn DiskFile>,
    id: Identity,
    window: Bytes,
    window_at: u64,
    limit: u64,
    /// The next record begins here.
    pub offset: u64,
    /// Checksum of the header before it, when known.
    pub prev_crc: Option<u32>,
}

impl Walk {
    /// A walk that ends at `limit` (bytes from the start of the segment).
    pub fn new(file: Arc<dyn DiskFile>, id: Identity, limit: u64, prev_crc: Option<u32>) -> Self {
        let limit = limit.min(file.len());
        Self { file, id, window: Bytes::new(), window_at: 0, limit, offset: HEADER_BLOCK, prev_crc }
    }

    /// `len` bytes at `at`; `None` beyond the end, and when the disk can't read them.
    async fn fetch(&mut self, at: u64, len: usize) -> Option<Bytes> {
        let end = at.checked_add(len as u64)?;
        if end > self.file.len() {
            return None;
        }
        let inside =
            |at: u64, window: &Bytes| at >= self.window_at && end <= self.window_at + window.len() as u64;
        if !inside(at, &self.window) {
            let want = WINDOW.max(len).min((self.file.len() - at) as usize);
            self.window = match self.file.read_at(at, want).await {
                Ok(bytes) => bytes,
                // A bad sector further on must not hide what is before it.
                Err(_) => match self.file.read_at(at, len).await {
                    Ok(bytes) => bytes,
                    Err(e) => {
                        tracing::warn!(offset = at, error = %e, "journal segment {:016x} is unreadable", self.id.segno);
                        return None;
                    }
                },
            };
            self.window_at = at;
        }
        let from = (at - self.window_at) as usize;
        self.window.get(from..from + len)?;
        Some(self.window.slice(from..from + len))
    }

    /// The record at `at`, whoever wrote it before it.
    async fn record_at(&mut self, at: u64) -> Result<Record, &'static str> {
        let fixed = self.fetch(at, FIXED).await.ok_or("it is beyond the end or unreadable")?;
        let len = record::claimed_header_len(&fixed)?;
        let header = self.fetch(at, len).await.ok_or("the header is beyond the end or unreadable")?;
        let record = record::decode(&header)?;
        let place = &record.place;
        if place.at.segno != self.id.segno || place.at.offset != at || place.at.life >= MAX_NUMBER {
            return Err("the record belongs elsewhere");
        }
        if at + record.len(self.id.align) > self.file.len() {
            return Err("the record is longer than its segment");
        }
        Ok(record)
    }

    fn is_mine(&self, record: &Record) -> bool {
        record.place.process == self.id.process && record.place.at.life == self.id.life
    }

    /// The next record. After [`Step::Invalid`] the walk stays where it is; see [`Walk::search`].
    pub async fn next(&mut self) -> Step {
        if self.offset >= self.limit {
            return Step::Limit;
        }
        let record = match self.record_at(self.offset).await {
            Ok(record) if !self.is_mine(&record) => return Step::Invalid("the record is of an earlier life"),
            Ok(record) => record,
            Err(why) => return Step::Invalid(why),
        };
        if self.prev_crc.is_some_and(|crc| crc != record.place.prev_crc) {
            return Step::Invalid("the record does not follow the one before it");
        }
        let payload_at = self.offset + record.header_len as u64;
        let Some(payload) = self.fetch(payload_at, record.payload_len).await else {
            return Step::Invalid("the payload is unreadable");
        };
        self.offset += record.len(self.id.align);
        self.prev_crc = Some(record.crc);
        if record.last {
            return Step::Last;
        }
        Step::Record(Found { record, payload_at, payload })
    }

    /// Goes to the next valid record behind the offset, whatever lies between; false if there is none.
    pub async fn search(&mut self) -> bool {
        let mut at = self.offset + self.id.align;
        while let Some(candidate) = self.next_magic(at).await {
            if let Ok(record) = self.record_at(candidate).await
                && self.is_mine(&record)
            {
                self.offset = candidate;
                self.prev_crc = None;
                return true;
            }
            at = candidate + self.id.align;
        }
        false
    }

    /// The first place from `at` on where a record may begin: one that has the magic number.
    async fn next_magic(&mut self, mut at: u64) -> Option<u64> {
        let align = self.id.align;
        while at + FIXED as u64 <= self.limit {
            // The whole of the window at once: most of a segment's end is zeroes.
            if self.fetch(at, 4).await.is_some() {
                let from = (at - self.window_at) as usize;
                let hit = self.window[from..]
                    .chunks(align as usize)
                    .position(|c| c.starts_with(&MAGIC.to_le_bytes()));
                if let Some(hit) = hit {
                    return Some(at + hit as u64 * align).filter(|hit| hit + FIXED as u64 <= self.limit);
                }
                at += ((self.window.len() - from) as u64).next_multiple_of(align);
            } else {
                at += align;
            }
        }
        None
    }

    /// Who wrote into a segment whose header block is unreadable: of the records found, those of the
    /// highest life tell.
    pub async fn identify(file: Arc<dyn DiskFile>, segno: u64, align: u64) -> Option<Identity> {
        let id = Identity { process: 0, segno, life: 0, align };
        let limit = file.len();
        let mut walk = Walk::new(file, id, limit, None);
        let mut best: Option<Identity> = None;
        let mut at = HEADER_BLOCK;
        while let Some(candidate) = walk.next_magic(at).await {
            if let Ok(record) = walk.record_at(candidate).await
                && best.is_none_or(|b| b.life < record.place.at.life)
            {
                best = Some(Identity { process: record.place.process, life: record.place.at.life, ..id });
            }
            at = candidate + align;
        }
        best
    }
}
