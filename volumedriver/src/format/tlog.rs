//! TLogs: the map entries of a range of LSNs (and of addresses), sorted by address.
//! `first block | blocks | block index, dictionary | footer`.
//!
//! Blocks have at most [`BLOCK_MAX`] bytes, stand for themselves and are checked by the block
//! index; so one address is found with the index and one block. An entry whose checksums do not
//! fit a block is cut into pieces, and [`decode`] joins them again.

use super::cursor::{Reader, Writer, crc_error, refuse};
use super::envelope::{self, BLOCK, Envelope, FOOTER_LEN, Footer, ObjectKind, ObjectRef, read_kind};
use super::sco::{MAX_SLOTS, ScoId, check_lsns, check_range, read_entry_kind};
use crate::log::Kind;
use bytes::Bytes;
use common::crc::crc32c;
use common::{Epoch, Error, Lsn, Result, VolumeId};
use std::collections::HashSet;

/// The most entries in one TLog.
pub const MAX_ENTRIES: usize = 8 << 20;
/// The most objects in one dictionary.
pub const MAX_DICT: usize = 1 << 20;
/// The longest block, in bytes.
pub const BLOCK_MAX: usize = 16 << 10;
/// What [`TLogEntry::dict`] is when the entry has no data.
pub const NO_DICT: u32 = u32::MAX;

const KINDS: [ObjectKind; 1] = [ObjectKind::TLog];
const RECORD: usize = 32;
const BLOCK_REF: usize = 32;
const DICT: usize = 32;
/// Clusters that fit a block of their own.
const PIECE: u64 = ((BLOCK_MAX - RECORD) / 4) as u64;
/// Flag of a record: goes on where the last record of the block before ended.
const CONTINUES: u8 = 1;

/// An object that holds clusters of this TLog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DictEntry {
    /// [`ObjectKind::LogSco`] or [`ObjectKind::RelocSco`].
    pub kind: ObjectKind,
    /// Epoch and number.
    pub id: ScoId,
    /// Bytes of the object.
    pub len: u64,
    /// How many of its clusters may be live, at most.
    pub live_upper_bound: u32,
}

/// Where a range of addresses lies, or that it reads as zeroes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TLogEntry {
    /// First cluster.
    pub addr: u64,
    /// Number of clusters, at least 1.
    pub count: u64,
    /// When it was written.
    pub lsn: Lsn,
    /// [`Kind::Data`], [`Kind::Zero`] or [`Kind::Discard`]; size and markers are the Manifest's.
    pub kind: Kind,
    /// Which object of the dictionary holds the data, else [`NO_DICT`].
    pub dict: u32,
    /// Slot of the first cluster in that object, else 0.
    pub slot: u32,
}

/// A TLog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TLog {
    /// First LSN.
    pub lsn_lo: Lsn,
    /// Last LSN.
    pub lsn_hi: Lsn,
    /// First address that it speaks about.
    pub addr_lo: u64,
    /// The address behind the last one; `u64::MAX` when it is not split.
    pub addr_hi: u64,
    /// The objects that its data lies in; none twice.
    pub dict: Vec<DictEntry>,
    /// By ascending address, disjoint.
    pub entries: Vec<TLogEntry>,
    /// Checksum of each cluster of data, in the order of the entries.
    pub crcs: Vec<u32>,
}

/// What a TLog says about itself in its first block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TLogHeader {
    /// First LSN.
    pub lsn_lo: Lsn,
    /// Last LSN.
    pub lsn_hi: Lsn,
    /// First address.
    pub addr_lo: u64,
    /// The address behind the last one.
    pub addr_hi: u64,
    /// Entries, each counted once however many pieces it has.
    pub entries: u64,
    /// Clusters of data.
    pub clusters: u64,
}

/// Where a block lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockRef {
    /// Address of its first record.
    pub first_addr: u64,
    /// Where it begins, in bytes from the object's start.
    pub off: u64,
    /// Bytes.
    pub len: u32,
    /// CRC32C.
    pub crc: u32,
    /// Records.
    pub records: u32,
}

/// The index area of a TLog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TLogIndex {
    /// By ascending address, without gaps between their bytes.
    pub blocks: Vec<BlockRef>,
    /// The dictionary.
    pub dict: Vec<DictEntry>,
}

impl TLogIndex {
    /// The only block that can hold `addr`.
    pub fn find(&self, addr: u64) -> Option<usize> {
        self.blocks.partition_point(|b| b.first_addr <= addr).checked_sub(1)
    }
}

impl TLogHeader {
    fn write(&self) -> Vec<u8> {
        let mut w = Writer::default();
        w.u64(self.lsn_lo.0).u64(self.lsn_hi.0).u64(self.addr_lo).u64(self.addr_hi);
        w.u64(self.entries).u64(self.clusters);
        w.buf
    }

    fn read(envelope: &Envelope, body: &[u8]) -> Result<TLogHeader> {
        let mut r = Reader::new(envelope, body);
        let header = TLogHeader {
            lsn_lo: Lsn(r.u64()?),
            lsn_hi: Lsn(r.u64()?),
            addr_lo: r.u64()?,
            addr_hi: r.u64()?,
            entries: r.u64()?,
            clusters: r.u64()?,
        };
        r.end()?;
        header.check(envelope)?;
        Ok(header)
    }

    fn check(&self, envelope: &Envelope) -> Result<()> {
        check_lsns(envelope, self.lsn_lo, self.lsn_hi)?;
        if self.addr_lo >= self.addr_hi {
            return Err(Error::corrupt(format!(
                "{envelope}: addresses {} to {} are not a range",
                self.addr_lo, self.addr_hi
            )));
        }
        if self.entries > MAX_ENTRIES as u64 {
            return Err(Error::corrupt(format!(
                "{envelope}: {} entries, more than the limit of {MAX_ENTRIES}",
                self.entries
            )));
        }
        Ok(())
    }

    /// Whether entry (or piece) `e` may stand behind one that ended at `end`; its own end.
    fn check_entry(
        &self,
        envelope: &Envelope,
        dict: usize,
        i: usize,
        e: &TLogEntry,
        end: u64,
    ) -> Result<u64> {
        let bad = |what: String| Err(Error::corrupt(format!("{envelope}: entry {i} {what}")));
        if !(self.lsn_lo..=self.lsn_hi).contains(&e.lsn) {
            return bad(format!("has LSN {}, outside of {} to {}", e.lsn, self.lsn_lo, self.lsn_hi));
        }
        if e.addr < end {
            return bad(format!("at address {} overlaps, or sorts before, its predecessor", e.addr));
        }
        let end = check_range(envelope, i, e.addr, e.count)?;
        if e.addr < self.addr_lo || end > self.addr_hi {
            return bad(format!(
                "has addresses {} to {end}, outside of {} to {}",
                e.addr, self.addr_lo, self.addr_hi
            ));
        }
        match e.kind {
            Kind::Data => {
                if e.dict as usize >= dict {
                    return bad(format!("names object {} of a dictionary of {dict}", e.dict));
                }
                if e.count > MAX_SLOTS as u64 || u64::from(e.slot) + e.count > MAX_SLOTS as u64 {
                    return bad(format!(
                        "has slots {} + {}, more than the limit of {MAX_SLOTS}",
                        e.slot, e.count
                    ));
                }
            }
            Kind::Zero | Kind::Discard => {
                if e.dict != NO_DICT || e.slot != 0 {
                    return bad(format!("has no data, but object {} and slot {}", e.dict, e.slot));
                }
            }
            kind => return bad(format!("is a {kind:?}, which is not part of the map")),
        }
        Ok(end)
    }
}

impl TLog {
    fn header(&self) -> TLogHeader {
        TLogHeader {
            lsn_lo: self.lsn_lo,
            lsn_hi: self.lsn_hi,
            addr_lo: self.addr_lo,
            addr_hi: self.addr_hi,
            entries: self.entries.len() as u64,
            clusters: self.crcs.len() as u64,
        }
    }

    fn check(&self, envelope: &Envelope, header: &TLogHeader) -> Result<()> {
        header.check(envelope)?;
        check_dict(envelope, &self.dict)?;
        let (mut end, mut clusters) = (0, 0);
        for (i, e) in self.entries.iter().enumerate() {
            end = header.check_entry(envelope, self.dict.len(), i, e, end)?;
            clusters += if e.kind == Kind::Data { e.count } else { 0 };
        }
        if clusters != header.clusters {
            return Err(Error::corrupt(format!(
                "{envelope}: {} checksums for {clusters} clusters",
                header.clusters
            )));
        }
        Ok(())
    }
}

fn check_dict(envelope: &Envelope, dict: &[DictEntry]) -> Result<()> {
    if dict.len() > MAX_DICT {
        return Err(Error::corrupt(format!(
            "{envelope}: {} objects in the dictionary, more than the limit of {MAX_DICT}",
            dict.len()
        )));
    }
    let mut seen = HashSet::with_capacity(dict.len());
    for d in dict {
        if !matches!(d.kind, ObjectKind::LogSco | ObjectKind::RelocSco) {
            return Err(Error::corrupt(format!("{envelope}: the dictionary names {} {}", d.kind, d.id)));
        }
        if d.kind != d.id.kind() {
            return Err(Error::corrupt(format!(
                "{envelope}: the dictionary names {} {}, a number of the other kind of SCO",
                d.kind, d.id
            )));
        }
        if !seen.insert((d.kind, d.id)) {
            return Err(Error::corrupt(format!(
                "{envelope}: the dictionary names {} {} twice",
                d.kind, d.id
            )));
        }
    }
    Ok(())
}

/// Cuts entries into blocks while they are written.
struct Blocks {
    out: Writer,
    refs: Vec<BlockRef>,
    start: usize,
    first_addr: u64,
    records: u32,
}

impl Blocks {
    fn room(&self) -> usize {
        BLOCK_MAX - (self.out.buf.len() - self.start)
    }

    fn close(&mut self) {
        if self.records > 0 {
            let block = &self.out.buf[self.start..];
            self.refs.push(BlockRef {
                first_addr: self.first_addr,
                off: (BLOCK + self.start) as u64,
                len: block.len() as u32,
                crc: crc32c(block),
                records: self.records,
            });
            self.start = self.out.buf.len();
            self.records = 0;
        }
    }

    fn push(&mut self, mut e: TLogEntry, mut crcs: &[u32]) {
        let mut flags = 0;
        loop {
            if self.room() < RECORD + 4 * crcs.len() {
                self.close();
            }
            // What is left fits a block, unless it is data for more than one.
            let piece = if e.kind == Kind::Data { e.count.min(PIECE) } else { e.count };
            let (now, later) = crcs.split_at(crcs.len().min(piece as usize));
            if self.records == 0 {
                self.first_addr = e.addr;
            }
            self.out.u64(e.addr).u64(piece).u64(e.lsn.0);
            self.out.u8(e.kind as u8).u8(flags).u16(e.slot as u16).u32(e.dict);
            for crc in now {
                self.out.u32(*crc);
            }
            self.records += 1;
            if piece == e.count {
                return;
            }
            (crcs, flags) = (later, CONTINUES);
            e = TLogEntry { addr: e.addr + piece, count: e.count - piece, slot: e.slot + piece as u32, ..e };
        }
    }
}

/// The whole object, and how others name it.
pub fn encode(envelope: &Envelope, tlog: &TLog) -> Result<(Bytes, ObjectRef)> {
    envelope::check_kind(envelope, &KINDS)?;
    tlog.check(envelope, &tlog.header()).map_err(refuse)?;
    encode_unchecked(envelope, tlog)
}

/// As [`encode`], whatever the entries say.
pub(super) fn encode_unchecked(envelope: &Envelope, tlog: &TLog) -> Result<(Bytes, ObjectRef)> {
    let header = tlog.header();
    let mut blocks = Blocks {
        out: Writer::with_capacity(tlog.entries.len() * RECORD + tlog.crcs.len() * 4),
        refs: Vec::new(),
        start: 0,
        first_addr: 0,
        records: 0,
    };
    let mut crcs = tlog.crcs.as_slice();
    for e in &tlog.entries {
        let of_entry = if e.kind == Kind::Data { e.count as usize } else { 0 };
        let (mine, later) = crcs.split_at(of_entry.min(crcs.len()));
        blocks.push(*e, mine);
        crcs = later;
    }
    blocks.close();

    let mut index = Writer::with_capacity(16 + blocks.refs.len() * BLOCK_REF + tlog.dict.len() * DICT);
    index.u32(blocks.refs.len() as u32).u32(tlog.dict.len() as u32).u64(0);
    for b in &blocks.refs {
        index.u64(b.first_addr).u64(b.off).u32(b.len).u32(b.crc).u32(b.records).u32(0);
    }
    for d in &tlog.dict {
        index.u8(d.kind as u8).zeroes(3).u32(d.live_upper_bound);
        index.u64(d.id.epoch.0).u64(d.id.number).u64(d.len);
    }
    let area = blocks.out.buf;
    envelope::assemble(envelope, &header.write(), area.len(), |buf| buf.extend_from_slice(&area), &index.buf)
}

/// What the first block says.
pub fn decode_head(block: &[u8]) -> Result<(Envelope, TLogHeader)> {
    let (envelope, body) = Envelope::decode_as(&KINDS, block)?;
    let header = TLogHeader::read(&envelope, body)?;
    Ok((envelope, header))
}

/// What the end says; `tail` are the last bytes (at least 64) of an object of `total_len` bytes.
pub fn decode_footer(tail: &[u8], total_len: u64) -> Result<Footer> {
    let footer = Footer::decode(tail, total_len)?;
    match footer.kind {
        ObjectKind::TLog => Ok(footer),
        kind => Err(Error::corrupt(format!("footer: that of a {kind}, should be that of a TLog"))),
    }
}

/// Block index and dictionary, from the bytes that the footer names.
pub fn decode_index(
    envelope: &Envelope,
    header: &TLogHeader,
    footer: &Footer,
    bytes: &[u8],
) -> Result<TLogIndex> {
    footer.check_index(envelope, bytes)?;
    let mut r = Reader::new(envelope, bytes);
    let blocks = r.count("blocks", BLOCK_REF, MAX_ENTRIES * 2)?;
    let dict = r.count("objects in the dictionary", DICT, MAX_DICT)?;
    r.zeroes(8)?;
    let mut index = TLogIndex { blocks: Vec::with_capacity(blocks), dict: Vec::new() };
    let (mut off, mut addr) = (BLOCK as u64, header.addr_lo);
    for i in 0..blocks {
        let b =
            BlockRef { first_addr: r.u64()?, off: r.u64()?, len: r.u32()?, crc: r.u32()?, records: r.u32()? };
        r.zeroes(4)?;
        let len = b.len as usize;
        if b.off != off || len > BLOCK_MAX || b.records == 0 || b.records as usize > len / RECORD {
            return Err(Error::corrupt(format!(
                "{envelope}: block {i} with {} records in {len} bytes at {} can't be (it should begin at {off})",
                b.records, b.off
            )));
        }
        if b.first_addr < addr || (i > 0 && b.first_addr == addr) || b.first_addr >= header.addr_hi {
            return Err(Error::corrupt(format!(
                "{envelope}: block {i} begins with address {}, out of order",
                b.first_addr
            )));
        }
        (off, addr) = (off + u64::from(b.len), b.first_addr);
        index.blocks.push(b);
    }
    if off != footer.index_off {
        return Err(Error::corrupt(format!(
            "{envelope}: blocks end at {off}, should end at {}",
            footer.index_off
        )));
    }
    index.dict.reserve_exact(dict);
    for _ in 0..dict {
        let kind = read_kind(&mut r)?;
        r.zeroes(3)?;
        let live_upper_bound = r.u32()?;
        let id = ScoId { epoch: Epoch(r.u64()?), number: r.u64()? };
        index.dict.push(DictEntry { kind, id, len: r.u64()?, live_upper_bound });
    }
    r.end()?;
    check_dict(envelope, &index.dict)?;
    Ok(index)
}

/// Entries (or pieces of entries) of block `i` and the checksums of their clusters, from the bytes
/// that the block index names.
pub fn decode_block(
    envelope: &Envelope,
    header: &TLogHeader,
    index: &TLogIndex,
    i: usize,
    bytes: &[u8],
) -> Result<(Vec<TLogEntry>, Vec<u32>)> {
    let records = index.blocks.get(i).map_or(0, |b| b.records as usize);
    let mut entries = Vec::with_capacity(records.min(bytes.len() / RECORD));
    let mut crcs = Vec::new();
    read_block(envelope, header, index, i, bytes, &mut entries, &mut crcs)?;
    Ok((entries, crcs))
}

/// Appends block `i`; whether its first record is the rest of an entry of the block before.
fn read_block(
    envelope: &Envelope,
    header: &TLogHeader,
    index: &TLogIndex,
    i: usize,
    bytes: &[u8],
    entries: &mut Vec<TLogEntry>,
    crcs: &mut Vec<u32>,
) -> Result<bool> {
    let bad = |what: String| Err(Error::corrupt(format!("{envelope}: block {i} {what}")));
    let Some(block) = index.blocks.get(i) else {
        return bad(format!("does not exist, there are {}", index.blocks.len()));
    };
    if bytes.len() != block.len as usize {
        return bad(format!("has {} bytes, should have {}", bytes.len(), block.len));
    }
    let crc = crc32c(bytes);
    if crc != block.crc {
        return Err(crc_error(envelope, &format!("block {i}"), crc, block.crc));
    }
    let mut r = Reader::new(envelope, bytes);
    let mut continues = false;
    let mut end = block.first_addr;
    for n in 0..block.records as usize {
        let (addr, count, lsn) = (r.u64()?, r.u64()?, Lsn(r.u64()?));
        let kind = read_entry_kind(envelope, &mut r)?;
        let flags = r.u8()?;
        let (slot, dict) = (u32::from(r.u16()?), r.u32()?);
        let e = TLogEntry { addr, count, lsn, kind, dict, slot };
        if n == 0 && addr != block.first_addr {
            return bad(format!("begins with address {addr}, should with {}", block.first_addr));
        }
        if flags != 0 {
            if flags != CONTINUES || n != 0 || i == 0 || kind != Kind::Data {
                return bad(format!("has flags {flags:#x} in record {n}"));
            }
            continues = true;
        }
        end = header
            .check_entry(envelope, index.dict.len(), n, &e, end)
            .map_err(|e| Error::new(e.kind, format!("{} (block {i})", e.message())))?;
        if kind == Kind::Data {
            // No more than 65,536, checked above.
            for crc in r.take(count as usize * 4)?.chunks_exact(4) {
                crcs.push(u32::from_le_bytes([crc[0], crc[1], crc[2], crc[3]]));
            }
        }
        entries.push(e);
    }
    r.end()?;
    match index.blocks.get(i + 1) {
        Some(next) if next.first_addr < end => {
            bad(format!("ends at address {end}, the next begins at {}", next.first_addr))
        }
        _ => Ok(continues),
    }
}

/// The whole TLog.
pub fn decode(bytes: &[u8]) -> Result<(Envelope, TLog)> {
    let (envelope, body, footer, index) = envelope::take_apart(&KINDS, bytes)?;
    let header = TLogHeader::read(&envelope, body)?;
    let index = decode_index(&envelope, &header, &footer, index)?;
    let most = bytes.len() / 4;
    let mut entries: Vec<TLogEntry> = Vec::with_capacity((header.entries as usize).min(most / 8));
    let mut crcs = Vec::with_capacity((header.clusters.min(most as u64)) as usize);
    for (i, block) in index.blocks.iter().enumerate() {
        let (from, to) = (block.off as usize, block.off as usize + block.len as usize);
        let before = entries.len();
        let block = bytes.get(from..to).unwrap_or_default();
        if read_block(&envelope, &header, &index, i, block, &mut entries, &mut crcs)? {
            join(&envelope, i, &mut entries, before)?;
        }
    }
    let found = (entries.len() as u64, crcs.len() as u64);
    if found != (header.entries, header.clusters) {
        return Err(Error::corrupt(format!(
            "{envelope}: {} entries with {} clusters, should be {} with {}",
            found.0, found.1, header.entries, header.clusters
        )));
    }
    let TLogHeader { lsn_lo, lsn_hi, addr_lo, addr_hi, .. } = header;
    Ok((envelope, TLog { lsn_lo, lsn_hi, addr_lo, addr_hi, dict: index.dict, entries, crcs }))
}

/// Joins the piece at `at`, first record of block `block`, to the entry before it.
fn join(envelope: &Envelope, block: usize, entries: &mut Vec<TLogEntry>, at: usize) -> Result<()> {
    let piece = entries.get(at).copied();
    if let (Some(piece), Some(whole)) = (piece, at.checked_sub(1).and_then(|i| entries.get_mut(i))) {
        let expected = TLogEntry {
            addr: whole.addr + whole.count,
            count: piece.count,
            slot: whole.slot.saturating_add(whole.count as u32),
            ..*whole
        };
        if whole.kind == Kind::Data && piece == expected {
            whole.count += piece.count;
            entries.remove(at);
            return Ok(());
        }
    }
    Err(Error::corrupt(format!("{envelope}: block {block} does not go on where the one before ended")))
}

/// Input of a fuzzer: raw, and as header, index and one block with right checksums.
pub fn fuzz(data: &[u8]) {
    check(data);
    let envelope = Envelope {
        kind: ObjectKind::TLog,
        volume: VolumeId(1),
        epoch: Epoch(1),
        number: 1,
        writer: 1,
        compat: 0,
    };
    let (body, rest) = data.split_at(data.len().min(48));
    if let Ok((bytes, _)) = envelope::assemble(&envelope, body, 0, |_| {}, rest) {
        check(&bytes);
    }
    let first_addr = Reader::new(&"", rest).u64().unwrap_or(0);
    let records = (1..=4).filter(|n| n * RECORD <= rest.len()).max().unwrap_or(1) as u32;
    let block = &rest[..rest.len().min(BLOCK_MAX)];
    let mut index = Writer::default();
    index.u32(1).u32(1).u64(0);
    index.u64(first_addr).u64(BLOCK as u64).u32(block.len() as u32).u32(crc32c(block)).u32(records).u32(0);
    index.u8(ObjectKind::LogSco as u8).zeroes(3).u32(1).u64(1).u64(1).u64(8192);
    let fill = |buf: &mut Vec<u8>| buf.extend_from_slice(block);
    if let Ok((bytes, _)) = envelope::assemble(&envelope, body, block.len(), fill, &index.buf) {
        check(&bytes);
    }
}

/// Whatever is read is written so that the same is read again; its blocks may be cut elsewhere.
pub(crate) fn check(data: &[u8]) {
    let _ = decode_head(data);
    let _ = decode_footer(data, data.len() as u64);
    if let Ok((envelope, tlog)) = decode(data) {
        let again = encode(&envelope, &tlog);
        assert_eq!(again.and_then(|(bytes, _)| decode(&bytes)).ok(), Some((envelope, tlog)));
    }
}

/// The same TLog with right checksums of its blocks, as far as its index can be read: for the fuzzer.
pub(crate) fn with_checksums(bytes: &[u8]) -> Vec<u8> {
    let mut fixed = bytes.to_vec();
    let tail = bytes.len().saturating_sub(FOOTER_LEN);
    let number = |from: usize, n: usize| {
        let bytes = bytes.get(from..from.checked_add(n)?)?;
        Some(bytes.iter().rev().fold(0u64, |number, byte| number << 8 | u64::from(*byte)) as usize)
    };
    let Some(index) = number(tail + 16, 8).filter(|index| *index < tail) else { return fixed };
    for i in 0..number(index, 4).unwrap_or(0) {
        let at = index + 16 + i * BLOCK_REF;
        let (Some(off), Some(len)) = (number(at + 8, 8), number(at + 16, 4)) else { break };
        let Some(block) = off.checked_add(len).and_then(|end| bytes.get(off..end)) else { break };
        if let Some(crc) = fixed.get_mut(at + 20..at + 24) {
            crc.copy_from_slice(&crc32c(block).to_le_bytes());
        }
    }
    fixed
}
