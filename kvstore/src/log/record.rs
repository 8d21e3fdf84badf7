//! The log's segments and records, byte for byte.
//!
//! ```text
//! SEGMENT HEADER, one sector: magic "SRrl", version u16, reserved u16, group u128, member u64, number u64, size u64,
//!     first record u64, its predecessor's crc u32, cut segment u64, cut offset u64, hard state 3 x u64, floor 2 x u64, last entry 2 x u64, zeroes, crc u32
//! RECORD, from a sector's start: magic "SRrr", version u16, reserved u16, body length u32, prev crc u32, number u64,
//!     segment u64, body crc u32, header crc u32; then the body: items
//! ITEM: kind u8
//!     0 hard state   term u64, vote u64, commit u64
//!     1 entry        index u64, term u64, type u8, data, context; whatever the log has from this index on goes
//!     2 floor        index u64, term u64: entries up to it are not needed any more
//!     3 reset        index u64, term u64: nothing of the log before counts; it goes on behind this entry
//! ```

use crate::wire::{Reader, Writer};
use bytes::Bytes;
use common::crc::{crc32c, crc32c_parts};
use common::{Error, ErrorKind, Result};
use raft::eraftpb::{Entry, EntryType, HardState};

pub(super) const SECTOR: usize = 512;
const SEGMENT_MAGIC: &[u8; 4] = b"SRrl";
const RECORD_MAGIC: &[u8; 4] = b"SRrr";
const VERSION: u16 = 1;
pub(super) const RECORD_HEADER: usize = 40;
/// The longest body of a record.
pub(super) const MAX_BODY: usize = 96 << 20;
/// The longest data of an entry.
pub(crate) const MAX_ENTRY_BYTES: usize = 24 << 20;
/// The longest context of an entry.
pub(crate) const MAX_CONTEXT: usize = 64 << 10;

/// Where in the log something is: an entry's index and term.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Position {
    pub index: u64,
    pub term: u64,
}

/// One thing that a record says.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Item {
    Hard(HardState),
    Entry(Entry),
    Floor(Position),
    Reset(Position),
}

impl Item {
    pub fn encode(&self, w: &mut Writer) {
        match self {
            Item::Hard(state) => {
                w.u8(0).u64(state.term).u64(state.vote).u64(state.commit);
            }
            Item::Entry(entry) => {
                w.u8(1)
                    .u64(entry.index)
                    .u64(entry.term)
                    .u8(kind(entry))
                    .bytes(&entry.data)
                    .bytes(&entry.context);
            }
            Item::Floor(at) => {
                w.u8(2).u64(at.index).u64(at.term);
            }
            Item::Reset(at) => {
                w.u8(3).u64(at.index).u64(at.term);
            }
        }
    }

    fn decode(r: &mut Reader) -> Result<Self> {
        let position =
            |r: &mut Reader| -> Result<Position> { Ok(Position { index: r.u64()?, term: r.u64()? }) };
        Ok(match r.u8()? {
            0 => Item::Hard(decode_hard(r)?),
            1 => {
                let mut entry = Entry { index: r.u64()?, term: r.u64()?, ..Entry::default() };
                entry.set_entry_type(match r.u8()? {
                    0 => EntryType::EntryNormal,
                    1 => EntryType::EntryConfChange,
                    2 => EntryType::EntryConfChangeV2,
                    _ => return Err(r.bad("an entry of an unknown type")),
                });
                entry.data = r.bytes(MAX_ENTRY_BYTES)?;
                entry.context = r.bytes(MAX_CONTEXT)?;
                Item::Entry(entry)
            }
            2 => Item::Floor(position(r)?),
            3 => Item::Reset(position(r)?),
            _ => return Err(r.bad("an item of an unknown kind")),
        })
    }
}

fn decode_hard(r: &mut Reader) -> Result<HardState> {
    Ok(HardState { term: r.u64()?, vote: r.u64()?, commit: r.u64()?, ..HardState::default() })
}

fn kind(entry: &Entry) -> u8 {
    match entry.get_entry_type() {
        EntryType::EntryNormal => 0,
        EntryType::EntryConfChange => 1,
        EntryType::EntryConfChangeV2 => 2,
    }
}

pub(super) fn decode_items(body: Bytes, what: &'static str) -> Result<Vec<Item>> {
    let mut r = Reader::new(body, what);
    let mut items = Vec::new();
    while !r.is_empty() {
        items.push(Item::decode(&mut r)?);
    }
    Ok(items)
}

/// Where the records of an earlier segment end for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Cut {
    pub segment: u64,
    pub offset: u64,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct SegmentHeader {
    pub group: u128,
    pub member: u64,
    pub number: u64,
    pub size: u64,
    /// The number of its first record, and the checksum of the record before.
    pub first_record: u64,
    pub prev_crc: u32,
    pub cut: Cut,
    /// What must be known without earlier segments: hard state, floor, last entry before.
    pub hard: HardState,
    pub floor: Position,
    pub last: Position,
}

impl SegmentHeader {
    pub fn encode(&self) -> Bytes {
        let mut w = Writer::new();
        w.raw(SEGMENT_MAGIC)
            .u16(VERSION)
            .u16(0)
            .u128(self.group)
            .u64(self.member)
            .u64(self.number)
            .u64(self.size);
        w.u64(self.first_record).u32(self.prev_crc).u64(self.cut.segment).u64(self.cut.offset);
        w.u64(self.hard.term).u64(self.hard.vote).u64(self.hard.commit);
        for at in [self.floor, self.last] {
            w.u64(at.index).u64(at.term);
        }
        let mut bytes = w.into_vec();
        bytes.resize(SECTOR - 4, 0);
        let crc = crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes.into()
    }

    pub fn decode(block: Bytes) -> Result<Self> {
        let mut r = Reader::new(block.clone(), "header of a segment");
        if block.len() < SECTOR || r.take(4)? != SEGMENT_MAGIC[..] {
            return Err(r.bad("it does not begin with its magic"));
        }
        let stored =
            u32::from_le_bytes([block[SECTOR - 4], block[SECTOR - 3], block[SECTOR - 2], block[SECTOR - 1]]);
        if crc32c(&block[..SECTOR - 4]) != stored {
            return Err(r.bad("its checksum is wrong"));
        }
        check_version(r.u16()?, "segment")?;
        r.u16()?;
        let position =
            |r: &mut Reader| -> Result<Position> { Ok(Position { index: r.u64()?, term: r.u64()? }) };
        let (group, member, number, size) = (r.u128()?, r.u64()?, r.u64()?, r.u64()?);
        let (first_record, prev_crc) = (r.u64()?, r.u32()?);
        let cut = Cut { segment: r.u64()?, offset: r.u64()? };
        let hard = decode_hard(&mut r)?;
        let (floor, last) = (position(&mut r)?, position(&mut r)?);
        Ok(Self { group, member, number, size, first_record, prev_crc, cut, hard, floor, last })
    }
}

fn check_version(version: u16, of: &str) -> Result<()> {
    if version == VERSION {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Unsupported,
        format!(
            "a {of} of the registry's log has version {version}, and this storagerouter knows {VERSION}: start the \
             release that wrote it; nothing was changed"
        ),
    ))
}

/// The head of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RecordHeader {
    pub body: usize,
    pub prev_crc: u32,
    pub number: u64,
    pub segment: u64,
    pub body_crc: u32,
}

impl RecordHeader {
    /// The record as it goes to the disk, filled up to a sector.
    pub fn seal(prev_crc: u32, number: u64, segment: u64, body: &[u8]) -> (Bytes, u32) {
        let body_crc = crc32c(body);
        let mut w = Writer::new();
        w.raw(RECORD_MAGIC).u16(VERSION).u16(0).u32(body.len() as u32).u32(prev_crc).u64(number).u64(segment);
        w.u32(body_crc);
        let mut bytes = w.into_vec();
        let crc = crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes.extend_from_slice(body);
        bytes.resize(bytes.len().next_multiple_of(SECTOR), 0);
        (bytes.into(), chain(crc, body_crc))
    }

    /// The header at the start of `sector`. `None` when it is not one.
    pub fn decode(sector: &[u8]) -> Option<Result<Self>> {
        let header: &[u8; RECORD_HEADER] = sector.first_chunk()?;
        let word =
            |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let long = |at: usize| u64::from(word(at)) | (u64::from(word(at + 4)) << 32);
        if header[..4] != RECORD_MAGIC[..] || crc32c(&header[..36]) != word(36) {
            return None;
        }
        let version = u16::from_le_bytes([header[4], header[5]]);
        if let Err(e) = check_version(version, "record") {
            return Some(Err(e));
        }
        Some(Ok(Self {
            body: word(8) as usize,
            prev_crc: word(12),
            number: long(16),
            segment: long(24),
            body_crc: word(32),
        }))
    }

    /// Bytes from the start of the record to the start of the next one.
    pub fn len(&self) -> usize {
        (RECORD_HEADER + self.body).next_multiple_of(SECTOR)
    }

    /// What the next record names as its predecessor.
    pub fn crc(&self, sector: &[u8]) -> u32 {
        let crc = sector.get(36..40).map_or(0, |c| u32::from_le_bytes([c[0], c[1], c[2], c[3]]));
        chain(crc, self.body_crc)
    }
}

fn chain(header: u32, body: u32) -> u32 {
    crc32c_parts(&[&header.to_le_bytes(), &body.to_le_bytes()])
}
