//! What lies in a segment: header, records, items. A pure codec, bounded, that refuses what it did not write.
//!
//! Little endian. The first 512 bytes are the header:
//!
//! ```text
//! 0   magic "SRds" u32   4  version u16   6  reserved u16
//! 8   process u128       24 life u64      32 file size u64
//! 40  previous life u64  48 its end u64
//! 56  CRC32C of the above u32, then zeroes
//! ```
//!
//! A segment that is free and was used begins with a block of the magic "SRdf" and zeroes instead.
//!
//! Records begin at multiples of 512, the first at 4096:
//!
//! ```text
//! 0   magic "SRdr" u32   4  version u16   6  number of items u16
//! 8   process u128       24 life u64      32 offset u64
//! 40  durable life u64   48 durable offset u64: what was durable when it was written
//! 56  length of all bodies u32            60 reserved u32
//! 64  items, each 64 bytes: kind u8, reserved u8 and u16, length u32, crc u32, reserved u32,
//!     volume u128, epoch u64, incarnation u128, lsn u64
//!     CRC32C of all of the above u32; then the bodies, one behind the other
//! ```
//!
//! Kinds: 1 an entry (its body is the packed entry), 2 the control state of a volume, 3 the same as part of a
//! checkpoint, 4 the end of a checkpoint (`lsn` is the number of its volumes). A state's body: floor u64,
//! number of logs u16, then each: epoch u64, incarnation u128, serial u64, base u64, last u64, flags u8
//! (1 sealed, 2 suspect, 4 damaged). No logs and the highest floor: the volume was forgotten.

use super::logs::{Key, Volume};
use crate::registration::Incarnation;
use bytes::{Buf, BufMut, BytesMut};
use common::crc::crc32c;
use common::{Epoch, Lsn, VolumeId};

const SEGMENT: u32 = u32::from_le_bytes(*b"SRds");
const RECORD: u32 = u32::from_le_bytes(*b"SRdr");
const VERSION: u16 = 1;
/// What a segment that was freed begins with.
pub static FREE: [u8; HEADER] = {
    let mut block = [0; HEADER];
    [block[0], block[1], block[2], block[3]] = *b"SRdf";
    block
};
/// Bytes of a segment's header.
pub const HEADER: usize = 512;
/// The first record.
pub const FIRST: u64 = 4096;
/// Records begin at multiples of it: a disk's sector.
pub const ALIGN: u64 = 512;
const FIXED: usize = 64;
const ITEM: usize = 64;
/// The most items of a record.
pub const MAX_ITEMS: usize = 512;

/// A place among all segments. Lives are never used again, so it is an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Position {
    pub life: u64,
    pub offset: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    pub process: u128,
    pub life: u64,
    pub size: u64,
    /// Where the one before it ended.
    pub previous: Position,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Entry = 1,
    State = 2,
    Checkpoint = 3,
    CheckpointEnd = 4,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item {
    pub kind: Kind,
    pub len: u32,
    pub crc: u32,
    pub key: Key,
    pub lsn: Lsn,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub process: u128,
    pub at: Position,
    pub durable: Position,
    pub items: Vec<Item>,
    pub header_len: usize,
    pub bodies_len: usize,
}

impl Record {
    /// Bytes up to where the next one begins.
    pub fn len(&self) -> u64 {
        record_len(self.items.len(), self.bodies_len)
    }
}

pub fn record_len(items: usize, bodies: usize) -> u64 {
    ((FIXED + ITEM * items + 4 + bodies) as u64).next_multiple_of(ALIGN)
}

pub fn header_len(items: usize) -> usize {
    FIXED + ITEM * items + 4
}

impl SegmentHeader {
    pub fn encode(&self) -> [u8; HEADER] {
        let mut block = [0u8; HEADER];
        let mut b = &mut block[..];
        b.put_u32_le(SEGMENT);
        b.put_u16_le(VERSION);
        b.put_u16_le(0);
        b.put_u128_le(self.process);
        b.put_u64_le(self.life);
        b.put_u64_le(self.size);
        b.put_u64_le(self.previous.life);
        b.put_u64_le(self.previous.offset);
        let crc = crc32c(&block[..56]);
        block[56..60].copy_from_slice(&crc.to_le_bytes());
        block
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        let bytes = bytes.get(..HEADER).ok_or("it is too short")?;
        let (mut b, mut crc) = (&bytes[..56], &bytes[56..60]);
        if b.get_u32_le() != SEGMENT {
            return Err("it is no segment");
        }
        if crc.get_u32_le() != crc32c(&bytes[..56]) {
            return Err("the header's checksum is wrong");
        }
        if b.get_u16_le() != VERSION || b.get_u16_le() != 0 {
            return Err("the segment's version is unknown");
        }
        Ok(SegmentHeader {
            process: b.get_u128_le(),
            life: b.get_u64_le(),
            size: b.get_u64_le(),
            previous: Position { life: b.get_u64_le(), offset: b.get_u64_le() },
        })
    }
}

pub fn encode_record(buf: &mut BytesMut, process: u128, at: Position, durable: Position, items: &[Item]) {
    let start = buf.len();
    buf.put_u32_le(RECORD);
    buf.put_u16_le(VERSION);
    buf.put_u16_le(items.len() as u16);
    buf.put_u128_le(process);
    for n in [at.life, at.offset, durable.life, durable.offset] {
        buf.put_u64_le(n);
    }
    buf.put_u32_le(items.iter().map(|i| i.len).sum());
    buf.put_u32_le(0);
    for item in items {
        buf.put_u8(item.kind as u8);
        buf.put_bytes(0, 3);
        buf.put_u32_le(item.len);
        buf.put_u32_le(item.crc);
        buf.put_u32_le(0);
        buf.put_u128_le(item.key.volume.0);
        buf.put_u64_le(item.key.epoch.0);
        buf.put_u128_le(item.key.incarnation.0);
        buf.put_u64_le(item.lsn.0);
    }
    let crc = crc32c(&buf[start..]);
    buf.put_u32_le(crc);
}

/// Reads the header of the record at the start of `bytes`, which may go on behind it.
pub fn decode_record(bytes: &[u8]) -> Result<Record, &'static str> {
    let mut b = bytes.get(..FIXED).ok_or("it is too short")?;
    if b.get_u32_le() != RECORD {
        return Err("there is no record");
    }
    if b.get_u16_le() != VERSION {
        return Err("the record's version is unknown");
    }
    let n = usize::from(b.get_u16_le());
    if n > MAX_ITEMS {
        return Err("it has too many items");
    }
    let header = bytes.get(..header_len(n)).ok_or("it is too short")?;
    let (body, mut crc) = header.split_at(header_len(n) - 4);
    if crc.get_u32_le() != crc32c(body) {
        return Err("the header's checksum is wrong");
    }
    let process = b.get_u128_le();
    let at = Position { life: b.get_u64_le(), offset: b.get_u64_le() };
    let durable = Position { life: b.get_u64_le(), offset: b.get_u64_le() };
    let bodies_len = b.get_u32_le() as usize;
    let mut b = &body[FIXED..];
    let mut items = Vec::with_capacity(n);
    let mut sum = 0usize;
    for _ in 0..n {
        let kind = match b.get_u8() {
            1 => Kind::Entry,
            2 => Kind::State,
            3 => Kind::Checkpoint,
            4 => Kind::CheckpointEnd,
            _ => return Err("the kind of an item is unknown"),
        };
        b.advance(3);
        let (len, crc) = (b.get_u32_le(), b.get_u32_le());
        b.advance(4);
        let volume = VolumeId(b.get_u128_le());
        let epoch = Epoch(b.get_u64_le());
        let incarnation = Incarnation(b.get_u128_le());
        items.push(Item {
            kind,
            len,
            crc,
            key: Key { volume, epoch, incarnation },
            lsn: Lsn(b.get_u64_le()),
        });
        sum = sum.saturating_add(len as usize);
    }
    if sum != bodies_len {
        return Err("the header contradicts itself");
    }
    Ok(Record { process, at, durable, items, header_len: header_len(n), bodies_len })
}

/// The control state of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogState {
    pub epoch: Epoch,
    pub incarnation: Incarnation,
    pub serial: u64,
    pub base: Lsn,
    pub last: Lsn,
    pub sealed: bool,
    pub suspect: bool,
    pub damaged: bool,
}

/// The control state of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeState {
    pub floor: Epoch,
    pub logs: Vec<LogState>,
}

/// A volume that was forgotten.
pub const FORGOTTEN: VolumeState = VolumeState { floor: Epoch(u64::MAX), logs: Vec::new() };

impl VolumeState {
    pub fn of(volume: Option<&Volume>) -> Self {
        let Some(volume) = volume else { return FORGOTTEN };
        let logs = volume.logs.iter().map(|(epoch, l)| LogState {
            epoch: *epoch,
            incarnation: l.incarnation,
            serial: l.serial,
            base: l.base,
            last: l.last(),
            sealed: l.sealed,
            suspect: l.suspect,
            damaged: l.damaged,
        });
        VolumeState { floor: volume.floor, logs: logs.collect() }
    }

    pub fn encode(&self, buf: &mut BytesMut) {
        buf.put_u64_le(self.floor.0);
        buf.put_u16_le(self.logs.len() as u16);
        for l in &self.logs {
            buf.put_u64_le(l.epoch.0);
            buf.put_u128_le(l.incarnation.0);
            buf.put_u64_le(l.serial);
            buf.put_u64_le(l.base.0);
            buf.put_u64_le(l.last.0);
            buf.put_u8(u8::from(l.sealed) | u8::from(l.suspect) << 1 | u8::from(l.damaged) << 2);
        }
    }

    pub fn decode(mut b: &[u8]) -> Result<Self, &'static str> {
        const LOG: usize = 49;
        if b.len() < 10 {
            return Err("a state is too short");
        }
        let (floor, n) = (Epoch(b.get_u64_le()), usize::from(b.get_u16_le()));
        if b.len() != n * LOG {
            return Err("a state's length contradicts itself");
        }
        let mut logs: Vec<LogState> = Vec::with_capacity(n);
        for _ in 0..n {
            let (epoch, incarnation) = (Epoch(b.get_u64_le()), Incarnation(b.get_u128_le()));
            let (serial, base, last) = (b.get_u64_le(), Lsn(b.get_u64_le()), Lsn(b.get_u64_le()));
            let flags = b.get_u8();
            if flags > 7 || last < base || last.0 == u64::MAX || logs.last().is_some_and(|l| l.epoch >= epoch)
            {
                return Err("a state contradicts itself");
            }
            let (sealed, suspect, damaged) = (flags & 1 != 0, flags & 2 != 0, flags & 4 != 0);
            logs.push(LogState { epoch, incarnation, serial, base, last, sealed, suspect, damaged });
        }
        Ok(VolumeState { floor, logs })
    }
}

/// A header, or a record, with its checksum made right.
pub fn with_checksums(bytes: &[u8]) -> Vec<u8> {
    let mut made = bytes.to_vec();
    if made.starts_with(&SEGMENT.to_le_bytes()) && made.len() >= HEADER {
        let crc = crc32c(&made[..56]);
        made[56..60].copy_from_slice(&crc.to_le_bytes());
    } else if made.starts_with(&RECORD.to_le_bytes()) && made.len() >= FIXED {
        let items = usize::from(u16::from_le_bytes([made[6], made[7]])).min(MAX_ITEMS);
        let end = header_len(items) - 4;
        if made.len() >= end + 4 {
            let crc = crc32c(&made[..end]);
            made[end..end + 4].copy_from_slice(&crc.to_le_bytes());
        }
    }
    made
}
