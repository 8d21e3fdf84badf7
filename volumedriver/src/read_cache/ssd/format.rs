//! A segment of the SSD tier on disk: `entries | free | index | trailer`. Nothing here is needed for ever: what does
//! not add up is as if it were not there.

use crate::format::cursor::{Reader, Writer, crc_error};
use crate::format::sco::ScoId;
use crate::read_cache::Key;
use bytes::Bytes;
use common::crc::crc32c;
use common::{Epoch, Error, ErrorKind, Result, VolumeId};
use std::ops::RangeInclusive;

/// What entries are aligned to, and the length of their headers and of the trailer.
pub(crate) const UNIT: usize = 64;
/// Bytes of an entry in the index.
pub(crate) const RECORD: usize = 48;
/// The largest segment: an offset is a number of units in 19 bits.
pub(crate) const MAX_SEGMENT: u64 = 32 << 20;
/// Bytes in a cluster.
const CLUSTERS: RangeInclusive<u32> = 4096..=65536;

const ENTRY: &[u8; 4] = b"SRce";
const TRAILER: &[u8; 8] = b"SRcsegmt";
const VERSION: u16 = 1;

/// Where a cluster lies in a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub key: Key,
    /// Where its header begins, in units.
    pub unit: u32,
    /// Bytes of the cluster.
    pub len: u32,
}

impl Entry {
    /// Bytes with the header.
    pub fn bytes(&self) -> u64 {
        (UNIT + self.len as usize) as u64
    }

    /// Where its header begins.
    pub fn offset(&self) -> u64 {
        u64::from(self.unit) * UNIT as u64
    }
}

/// What stands before a cluster.
pub(crate) fn entry_header(key: &Key, len: u32, life: u64) -> Bytes {
    let mut w = Writer::with_capacity(UNIT);
    w.bytes(ENTRY).u32(len);
    put_key(&mut w, key);
    w.u64(life).zeroes(8);
    let crc = crc32c(&w.buf);
    w.u32(crc);
    w.buf.into()
}

/// The key, length and life that a header names.
pub(crate) fn read_entry_header(header: &[u8]) -> Result<(Key, u32, u64)> {
    let who = &"entry of the read cache";
    let mut r = Reader::new(who, header);
    let summed = Reader::new(who, header).take(UNIT - 4)?;
    if r.take(4)? != ENTRY {
        return Err(Error::corrupt(format!("{who}: it does not begin as one")));
    }
    let len = r.u32()?;
    let key = read_key(&mut r)?;
    let life = r.u64()?;
    r.zeroes(8)?;
    let (is, should) = (crc32c(summed), r.u32()?);
    match is == should {
        true => Ok((key, len, life)),
        false => Err(crc_error(who, "header", is, should)),
    }
}

fn put_key(w: &mut Writer, key: &Key) {
    w.u128(key.volume.0).u64(key.sco.epoch.0).u64(key.sco.number).u32(key.slot);
}

fn read_key(r: &mut Reader<'_>) -> Result<Key> {
    let volume = VolumeId(r.u128()?);
    let sco = ScoId { epoch: Epoch(r.u64()?), number: r.u64()? };
    Ok(Key { volume, sco, slot: r.u32()? })
}

/// The last bytes of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Trailer {
    /// Which use of the segment it is; of two that have the same cluster, the higher has the newer copy.
    pub life: u64,
    /// Entries in the index, which lies right before.
    pub count: u32,
    pub index_crc: u32,
}

impl Trailer {
    pub fn encode(&self) -> Bytes {
        let mut w = Writer::with_capacity(UNIT);
        w.bytes(TRAILER).u16(VERSION).zeroes(6).u64(self.life).u32(self.count).u32(self.index_crc).zeroes(28);
        let crc = crc32c(&w.buf);
        w.u32(crc);
        w.buf.into()
    }

    /// Reads the trailer of a segment of `size` bytes.
    pub fn decode(bytes: &[u8], size: u64) -> Result<Trailer> {
        let who = &"trailer of a segment of the read cache";
        let summed = Reader::new(who, bytes).take(UNIT - 4)?;
        let mut r = Reader::new(who, bytes);
        if r.take(8)? != TRAILER {
            return Err(Error::corrupt(format!("{who}: there is none")));
        }
        let version = r.u16()?;
        let should = Reader::new(who, &bytes[UNIT - 4..]).u32()?;
        let is = crc32c(summed);
        if is != should {
            return Err(crc_error(who, "its", is, should));
        }
        if version != VERSION {
            return Err(Error::new(ErrorKind::Unsupported, format!("{who}: version {version}")));
        }
        r.zeroes(6)?;
        let trailer = Trailer { life: r.u64()?, count: r.u32()?, index_crc: r.u32()? };
        r.zeroes(28)?;
        let least = UNIT as u64 + trailer.index_len() as u64;
        let clusters = u64::from(trailer.count) * (UNIT as u64 + u64::from(*CLUSTERS.start()));
        if size > MAX_SEGMENT || least.saturating_add(clusters) > size {
            return Err(Error::corrupt(format!("{who}: {} entries do not fit {size} bytes", trailer.count)));
        }
        Ok(trailer)
    }

    /// Bytes of the index.
    pub fn index_len(&self) -> usize {
        self.count as usize * RECORD
    }
}

/// The index of a segment, and its trailer.
pub(crate) fn encode_index(entries: &[Entry], life: u64) -> Vec<Bytes> {
    let mut w = Writer::with_capacity(entries.len() * RECORD);
    for e in entries {
        put_key(&mut w, &e.key);
        w.u32(e.unit).u32(e.len).zeroes(4);
    }
    let trailer = Trailer { life, count: entries.len() as u32, index_crc: crc32c(&w.buf) };
    vec![w.buf.into(), trailer.encode()]
}

/// Reads the index of a segment of `size` bytes.
pub(crate) fn decode_index(bytes: &[u8], trailer: &Trailer, size: u64) -> Result<Vec<Entry>> {
    let who = &"index of a segment of the read cache";
    let mut r = Reader::new(who, bytes);
    if r.left() != trailer.index_len() {
        return Err(Error::corrupt(format!("{who}: {} bytes for {} entries", r.left(), trailer.count)));
    }
    let is = crc32c(bytes);
    if is != trailer.index_crc {
        return Err(crc_error(who, "its", is, trailer.index_crc));
    }
    let room = size.saturating_sub((UNIT + bytes.len()) as u64);
    let (mut entries, mut end) = (Vec::with_capacity(trailer.count as usize), 0);
    while r.left() > 0 {
        let key = read_key(&mut r)?;
        let entry = Entry { key, unit: r.u32()?, len: r.u32()? };
        r.zeroes(4)?;
        if !CLUSTERS.contains(&entry.len) || !entry.len.is_power_of_two() || entry.offset() < end {
            return Err(Error::corrupt(format!("{who}: entry {} can't be", entries.len())));
        }
        end = entry.offset() + entry.bytes();
        if end > room {
            return Err(Error::corrupt(format!("{who}: entry {} is beyond its room", entries.len())));
        }
        entries.push(entry);
    }
    Ok(entries)
}

/// Input of a fuzzer: as a header, and as index and trailer, raw and with right checksums.
pub(crate) fn fuzz(data: &[u8]) {
    check(data);
    let mut fixed = data.to_vec();
    if fixed.len() >= UNIT {
        let crc = crc32c(&fixed[..UNIT - 4]);
        fixed[UNIT - 4..UNIT].copy_from_slice(&crc.to_le_bytes());
        check(&fixed);
        let at = fixed.len() - UNIT;
        let count = Reader::new(&"", &fixed[at + 24..]).u32().unwrap_or(0) as usize;
        let from = at.saturating_sub(count.saturating_mul(RECORD));
        let index_crc = crc32c(&fixed[from..at]);
        fixed[at + 28..at + 32].copy_from_slice(&index_crc.to_le_bytes());
        let crc = crc32c(&fixed[at..at + UNIT - 4]);
        fixed[at + UNIT - 4..].copy_from_slice(&crc.to_le_bytes());
        check(&fixed);
    }
}

/// Whatever is read is written the same.
fn check(data: &[u8]) {
    if let Ok((key, len, life)) = read_entry_header(data) {
        assert_eq!(entry_header(&key, len, life), data[..UNIT]);
    }
    // A segment has more room than what is in the input.
    let size = MAX_SEGMENT;
    let Some(at) = data.len().checked_sub(UNIT) else { return };
    let Ok(trailer) = Trailer::decode(&data[at..], size) else { return };
    assert_eq!(trailer.encode(), data[at..]);
    let Some(from) = at.checked_sub(trailer.index_len()) else { return };
    if let Ok(entries) = decode_index(&data[from..at], &trailer, size) {
        assert_eq!(encode_index(&entries, trailer.life).concat(), data[from..]);
    }
}
