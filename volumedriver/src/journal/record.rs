//! The record: what one append writes. A pure codec, bounded, that refuses what it did not write.
//!
//! Little endian. A record begins at a multiple of the journal's alignment:
//!
//! ```text
//! 0   magic u32        4  version u16     6  flags u16 (1: last record of the segment)
//! 8   header_len u32   12 payload_len u32
//! 16  process u128     32 segno u64       40 life u64      48 offset u64
//! 56  durable segno u64, life u64, offset u64: the durable position known when it was written
//! 80  CRC32C of the header before it u32  84 number of entries u32
//! 88  entries, each: volume u128, epoch u64, lsn u64, addr u64, count u64, payload_len u32,
//!     kind u8, flags u8 (1: copy), reserved u16, crc u32 for each cluster of content
//!     CRC32C of all of the above u32; that is header_len bytes
//!     payloads, one behind the other, in the order of the entries; zeroes up to the alignment
//! ```

use crate::log::{Crcs, Kind, LogEntry, cluster_crc};
use bytes::BytesMut;
use common::crc::crc32c;
use common::{Epoch, Lsn, VolumeId};
use std::cmp::Ordering;

pub(super) const MAGIC: u32 = u32::from_le_bytes(*b"SRjr");
const VERSION: u16 = 1;
const FLAG_LAST: u16 = 1;
const ENTRY_COPY: u8 = 1;

/// Bytes of a header without its entries and its checksum.
pub(super) const FIXED: usize = 88;
const CRC: usize = 4;
const ENTRY: usize = 56;
/// The longest header that is read or written.
pub(super) const MAX_HEADER: usize = 4 << 20;

/// A place in the journal. Lives are never reused, so (life, offset) orders all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Position {
    /// The file's number, for people; the life tells which.
    pub segno: u64,
    /// The segment's life: one number for each time that a segment is put to use.
    pub life: u64,
    /// Bytes from the start of the segment.
    pub offset: u64,
}

impl PartialOrd for Position {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Position {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.life, self.offset).cmp(&(other.life, other.offset))
    }
}

/// What a record says about where it belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub process: u128,
    pub at: Position,
    pub durable: Position,
    pub prev_crc: u32,
}

/// One entry as its record's header tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EntryHead {
    pub volume: VolumeId,
    pub epoch: Epoch,
    pub lsn: Lsn,
    pub kind: Kind,
    pub copy: bool,
    pub addr: u64,
    pub count: u64,
    /// Bytes from the start of the record's payload.
    pub payload_at: usize,
    pub payload_len: usize,
    pub crcs: Crcs,
}

impl EntryHead {
    /// The first cluster whose content in `payload` (the whole record's) is not what was written.
    pub fn bad_cluster(&self, payload: &[u8]) -> Option<u64> {
        if self.crcs.is_empty() {
            return None;
        }
        let Some(data) = payload.get(self.payload_at..self.payload_at + self.payload_len) else {
            return Some(self.addr);
        };
        let size = self.payload_len / self.crcs.len();
        data.chunks(size)
            .zip(self.addr..)
            .zip(&self.crcs)
            .find(|((cluster, addr), crc)| cluster_crc(self.volume, *addr, cluster) != **crc)
            .map(|((_, addr), _)| addr)
    }
}

/// A record's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub place: Place,
    /// Nothing follows in this segment.
    pub last: bool,
    pub header_len: usize,
    pub payload_len: usize,
    pub entries: Vec<EntryHead>,
    pub crc: u32,
}

impl Record {
    /// Bytes on disk up to where the next record begins.
    pub fn len(&self, align: u64) -> u64 {
        record_len(self.header_len, self.payload_len, align)
    }
}

/// Bytes of an entry with `crcs` checksums in a header.
pub(super) fn entry_len(crcs: usize) -> usize {
    ENTRY + 4 * crcs
}

/// Bytes of a header that has `entries` bytes of entries.
pub(super) fn header_len(entries: usize) -> usize {
    FIXED + entries + CRC
}

/// Bytes on disk of a record.
pub(super) fn record_len(header: usize, payload: usize, align: u64) -> u64 {
    (header as u64 + payload as u64).next_multiple_of(align)
}

/// Appends the header of a record with `entries` (and whether each is a copy) to `buf`; returns its checksum.
pub(super) fn encode<'a>(
    buf: &mut BytesMut,
    place: &Place,
    last: bool,
    entries: impl Iterator<Item = &'a LogEntry>,
    copy: bool,
) -> u32 {
    let start = buf.len();
    buf.extend_from_slice(&[0; FIXED]);
    let (mut n, mut payload) = (0u32, 0u32);
    for e in entries {
        let mut head = [0u8; ENTRY];
        head[0..16].copy_from_slice(&e.volume.0.to_le_bytes());
        head[16..24].copy_from_slice(&e.epoch.0.to_le_bytes());
        head[24..32].copy_from_slice(&e.lsn.0.to_le_bytes());
        head[32..40].copy_from_slice(&e.addr.to_le_bytes());
        head[40..48].copy_from_slice(&e.count.to_le_bytes());
        head[48..52].copy_from_slice(&(e.data.len() as u32).to_le_bytes());
        head[52] = e.kind as u8;
        head[53] = if copy { ENTRY_COPY } else { 0 };
        buf.extend_from_slice(&head);
        for crc in &e.crcs {
            buf.extend_from_slice(&crc.to_le_bytes());
        }
        n += 1;
        payload += e.data.len() as u32;
    }
    let header_len = (buf.len() - start + CRC) as u32;
    let fixed = &mut buf[start..start + FIXED];
    fixed[0..4].copy_from_slice(&MAGIC.to_le_bytes());
    fixed[4..6].copy_from_slice(&VERSION.to_le_bytes());
    fixed[6..8].copy_from_slice(&if last { FLAG_LAST } else { 0 }.to_le_bytes());
    fixed[8..12].copy_from_slice(&header_len.to_le_bytes());
    fixed[12..16].copy_from_slice(&payload.to_le_bytes());
    fixed[16..32].copy_from_slice(&place.process.to_le_bytes());
    for (i, v) in [
        place.at.segno,
        place.at.life,
        place.at.offset,
        place.durable.segno,
        place.durable.life,
        place.durable.offset,
    ]
    .into_iter()
    .enumerate()
    {
        fixed[32 + 8 * i..40 + 8 * i].copy_from_slice(&v.to_le_bytes());
    }
    fixed[80..84].copy_from_slice(&place.prev_crc.to_le_bytes());
    fixed[84..88].copy_from_slice(&n.to_le_bytes());
    let crc = crc32c(&buf[start..]);
    buf.extend_from_slice(&crc.to_le_bytes());
    crc
}

/// Takes fixed-width numbers off the front of a slice; never reads beyond its end.
pub(super) struct Reader<'a>(pub &'a [u8]);

impl Reader<'_> {
    pub fn take<const N: usize>(&mut self) -> Result<[u8; N], &'static str> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or("it is too short")?;
        self.0 = rest;
        Ok(*head)
    }

    pub fn u8(&mut self) -> Result<u8, &'static str> {
        Ok(u8::from_le_bytes(self.take()?))
    }

    pub fn u16(&mut self) -> Result<u16, &'static str> {
        Ok(u16::from_le_bytes(self.take()?))
    }

    pub fn u32(&mut self) -> Result<u32, &'static str> {
        Ok(u32::from_le_bytes(self.take()?))
    }

    pub fn u64(&mut self) -> Result<u64, &'static str> {
        Ok(u64::from_le_bytes(self.take()?))
    }

    pub fn u128(&mut self) -> Result<u128, &'static str> {
        Ok(u128::from_le_bytes(self.take()?))
    }

    pub fn position(&mut self) -> Result<Position, &'static str> {
        Ok(Position { segno: self.u64()?, life: self.u64()?, offset: self.u64()? })
    }
}

/// The header length that the first [`FIXED`] bytes of a record claim.
pub(super) fn claimed_header_len(bytes: &[u8]) -> Result<usize, &'static str> {
    let mut r = Reader(bytes);
    if r.u32()? != MAGIC {
        return Err("there is no record");
    }
    if r.u16()? != VERSION {
        return Err("the record's version is unknown");
    }
    r.u16()?;
    let len = r.u32()? as usize;
    if (FIXED + CRC..=MAX_HEADER).contains(&len) { Ok(len) } else { Err("the header's length is impossible") }
}

/// Reads the header at the start of `bytes`, which may go on behind it.
pub(super) fn decode(bytes: &[u8]) -> Result<Record, &'static str> {
    let header_len = claimed_header_len(bytes)?;
    let header = bytes.get(..header_len).ok_or("it is too short")?;
    let (body, crc) = header.split_at(header_len - CRC);
    let crc = Reader(crc).u32()?;
    if crc32c(body) != crc {
        return Err("the header's checksum is wrong");
    }
    let mut r = Reader(&body[6..]);
    let flags = r.u16()?;
    r.u32()?;
    let payload_len = r.u32()? as usize;
    let place = Place { process: r.u128()?, at: r.position()?, durable: r.position()?, prev_crc: r.u32()? };
    let n = r.u32()? as usize;
    if n > header_len / ENTRY {
        return Err("the number of entries is impossible");
    }
    let mut entries = Vec::with_capacity(n);
    let mut payload_at = 0usize;
    for _ in 0..n {
        let entry = decode_entry(&mut r, payload_at)?;
        payload_at += entry.payload_len;
        entries.push(entry);
    }
    if !r.0.is_empty() || payload_at != payload_len || flags & !FLAG_LAST != 0 {
        return Err("the header contradicts itself");
    }
    Ok(Record { place, last: flags & FLAG_LAST != 0, header_len, payload_len, entries, crc })
}

fn decode_entry(r: &mut Reader<'_>, payload_at: usize) -> Result<EntryHead, &'static str> {
    let volume = VolumeId(r.u128()?);
    let epoch = Epoch(r.u64()?);
    let lsn = Lsn(r.u64()?);
    let addr = r.u64()?;
    let count = r.u64()?;
    let payload_len = r.u32()? as usize;
    let kind = Kind::from_u8(r.u8()?).ok_or("the kind of an entry is unknown")?;
    let flags = r.u8()?;
    if r.u16()? != 0 || flags & !ENTRY_COPY != 0 {
        return Err("an unknown flag is set");
    }
    if !kind.fits(addr, count) {
        return Err("an entry's range is impossible");
    }
    let crcs = if kind.has_content() {
        if payload_len == 0 || !(payload_len as u64).is_multiple_of(count) {
            return Err("an entry's length is not that of its clusters");
        }
        if count > r.0.len() as u64 / 4 {
            return Err("an entry has more clusters than checksums");
        }
        (0..count).map(|_| r.u32()).collect::<Result<Crcs, _>>()?
    } else if payload_len != 0 {
        return Err("an entry without content has a payload");
    } else {
        Crcs::new()
    };
    let copy = flags & ENTRY_COPY != 0;
    Ok(EntryHead { volume, epoch, lsn, kind, copy, addr, count, payload_at, payload_len, crcs })
}

/// The same header with a right checksum, when it is all there: for the fuzzer.
pub(super) fn with_checksum(bytes: &[u8]) -> Vec<u8> {
    let mut fixed = bytes.to_vec();
    if let Ok(len) = claimed_header_len(bytes)
        && let Some(header) = bytes.get(..len - CRC)
        && let Some(crc) = fixed.get_mut(len - CRC..len)
    {
        crc.copy_from_slice(&crc32c(header).to_le_bytes());
    }
    fixed
}

/// For fuzzing: whatever the bytes, the codec neither panics nor accepts what it would write differently.
pub fn fuzz(bytes: &[u8]) {
    let Ok(record) = decode(bytes) else { return };
    let zeroes = vec![0u8; record.payload_len.min(1 << 20)];
    for e in &record.entries {
        e.bad_cluster(&zeroes);
    }
    if record.payload_len > 1 << 20 || record.entries.iter().any(|e| e.copy) {
        return;
    }
    let entries: Vec<LogEntry> = record
        .entries
        .iter()
        .map(|e| LogEntry {
            volume: e.volume,
            epoch: e.epoch,
            lsn: e.lsn,
            kind: e.kind,
            addr: e.addr,
            count: e.count,
            data: vec![0; e.payload_len].into(),
            crcs: e.crcs.clone(),
        })
        .collect();
    let mut again = BytesMut::new();
    encode(&mut again, &record.place, record.last, entries.iter(), false);
    assert_eq!(&again[..], &bytes[..record.header_len], "a record that is read is written the same");
}
