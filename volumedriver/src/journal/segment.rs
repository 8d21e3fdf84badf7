//! Segments: the header block at the start of each, the hold that keeps one from being reused,
//! and where a payload lies.
//!
//! The header fills one 512-byte sector (a disk writes a sector whole or not at all) of a 4096-byte
//! block. It is durable before the first record of its life is written, so a segment is always
//! read as what it is: records of an earlier life carry another number.
//!
//! ```text
//! magic u32, version u16, n u16 (cuts), device u128, process u128, segno u64, life u64, size u64,
//! align u32, crc of the block with this field zero u32, durable segno u64, life u64, offset u64,
//! n times: process u128, life u64, offset u64: what this process accepted of an earlier one
//! ```

use super::record::{Position, Reader};
use bytes::Bytes;
use common::crc::crc32c;
use common::{DiskFile, Error, ErrorKind, Result};
use std::sync::Arc;
use tokio::sync::Notify;

/// Bytes of the header block; the first record begins behind it.
pub(super) const HEADER_BLOCK: u64 = 4096;
const MAGIC: u32 = u32::from_le_bytes(*b"SRjs");
const VERSION: u16 = 1;
const FIXED: usize = 96;
const CRC_AT: usize = 68;
const CUT: usize = 32;
const SECTOR: usize = 512;
/// Numbers of segments and lives stay far below what they could be, so that counting on never ends.
pub(super) const MAX_NUMBER: u64 = 1 << 62;
/// The most cuts that fit the header's sector.
pub(super) const MAX_CUTS: usize = (SECTOR - FIXED) / CUT;

/// Where the records of an earlier process end: beyond it nothing of that process counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cut {
    pub process: u128,
    pub life: u64,
    pub offset: u64,
}

/// The header block of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub device: u128,
    pub process: u128,
    pub segno: u64,
    pub life: u64,
    pub size: u64,
    pub align: u32,
    pub durable: Position,
    pub cuts: Vec<Cut>,
}

impl SegmentHeader {
    pub fn encode(&self) -> Bytes {
        let cuts = &self.cuts[..self.cuts.len().min(MAX_CUTS)];
        let mut b = Vec::with_capacity(HEADER_BLOCK as usize);
        b.extend_from_slice(&MAGIC.to_le_bytes());
        b.extend_from_slice(&VERSION.to_le_bytes());
        b.extend_from_slice(&(cuts.len() as u16).to_le_bytes());
        b.extend_from_slice(&self.device.to_le_bytes());
        b.extend_from_slice(&self.process.to_le_bytes());
        for v in [self.segno, self.life, self.size] {
            b.extend_from_slice(&v.to_le_bytes());
        }
        b.extend_from_slice(&self.align.to_le_bytes());
        b.extend_from_slice(&[0; 4]);
        for v in [self.durable.segno, self.durable.life, self.durable.offset] {
            b.extend_from_slice(&v.to_le_bytes());
        }
        for cut in cuts {
            b.extend_from_slice(&cut.process.to_le_bytes());
            b.extend_from_slice(&cut.life.to_le_bytes());
            b.extend_from_slice(&cut.offset.to_le_bytes());
        }
        b.resize(HEADER_BLOCK as usize, 0);
        let crc = crc32c(&b);
        b[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
        b.into()
    }

    /// Reads a header block. `Unsupported` when a newer release wrote it, else `Corrupt`.
    pub fn decode(block: &[u8]) -> Result<SegmentHeader> {
        Self::parse(block).map_err(|(kind, why)| Error::new(kind, why))
    }

    fn parse(block: &[u8]) -> Result<SegmentHeader, (ErrorKind, &'static str)> {
        let corrupt = |why| (ErrorKind::Corrupt, why);
        if block.len() != HEADER_BLOCK as usize {
            return Err(corrupt("the header block is too short"));
        }
        let mut r = Reader(block);
        if r.u32().map_err(corrupt)? != MAGIC {
            return Err(corrupt("this is no journal segment"));
        }
        let version = r.u16().map_err(corrupt)?;
        let mut copy = block.to_vec();
        copy[CRC_AT..CRC_AT + 4].fill(0);
        if Reader(&block[CRC_AT..]).u32().map_err(corrupt)? != crc32c(&copy) {
            return Err(corrupt("the checksum of the segment's header is wrong"));
        }
        if version != VERSION {
            return Err((ErrorKind::Unsupported, "a newer release wrote this segment; use that release"));
        }
        Self::fields(&mut r).map_err(corrupt)
    }

    fn fields(r: &mut Reader<'_>) -> Result<SegmentHeader, &'static str> {
        let n = r.u16()? as usize;
        if n > MAX_CUTS {
            return Err("the number of cuts is impossible");
        }
        let (device, process, segno, life, size) = (r.u128()?, r.u128()?, r.u64()?, r.u64()?, r.u64()?);
        let align = r.u32()?;
        r.u32()?;
        let durable = r.position()?;
        let cuts = (0..n)
            .map(|_| Ok(Cut { process: r.u128()?, life: r.u64()?, offset: r.u64()? }))
            .collect::<Result<_, &'static str>>()?;
        if life >= MAX_NUMBER {
            return Err("the life is impossible");
        }
        if !(512..=4096).contains(&align) || !align.is_power_of_two() {
            return Err("the alignment is impossible");
        }
        Ok(SegmentHeader { device, process, segno, life, size, align, durable, cuts })
    }
}

/// For fuzzing: whatever the bytes, the header is refused or written back the same.
pub fn fuzz_header(bytes: &[u8]) {
    if let Ok(header) = SegmentHeader::decode(bytes)
        && bytes[FIXED + CUT * header.cuts.len()..].iter().all(|b| *b == 0)
    {
        assert_eq!(&header.encode()[..], bytes, "a header that is read is written the same");
    }
}

/// The same segment with a right checksum of its header: for the fuzzer.
pub(super) fn with_checksum(bytes: &[u8]) -> Vec<u8> {
    let mut fixed = bytes.to_vec();
    if let Some(block) = fixed.get_mut(..HEADER_BLOCK as usize) {
        block[CRC_AT..CRC_AT + 4].fill(0);
        let crc = crc32c(block);
        block[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
    }
    fixed
}

/// The file of segment `segno`.
pub(super) fn file_name(segno: u64) -> String {
    format!("{segno:016x}")
}

/// The number of the segment in file `name`.
pub(super) fn segno_of(name: &str) -> Option<u64> {
    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if name.len() != 16 || !name.bytes().all(hex) {
        return None;
    }
    u64::from_str_radix(name, 16).ok().filter(|segno| *segno < MAX_NUMBER)
}

/// One life of a segment. While anyone holds it, the segment is neither reused nor removed.
pub(super) struct Segment {
    pub file: Arc<dyn DiskFile>,
    pub segno: u64,
    pub life: u64,
    pub wake: Arc<Notify>,
}

impl Drop for Segment {
    fn drop(&mut self) {
        // Nobody reads it any more: the housekeeper may reuse it.
        self.wake.notify_one();
    }
}

/// Where the payload of an entry lies. A clone keeps the segment from being reused or removed.
#[derive(Clone)]
pub struct JournalLoc {
    pub(super) segment: Arc<Segment>,
    pub(super) offset: u64,
    pub(super) len: u32,
}

impl JournalLoc {
    /// Bytes of the payload; 0 for an entry without content.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Reads `len` bytes at `offset` within the payload. Checksums are the caller's to check: it has them.
    pub async fn read(&self, offset: u64, len: usize) -> Result<Bytes> {
        if offset.checked_add(len as u64).is_none_or(|end| end > u64::from(self.len)) {
            return Err(Error::invalid(format!(
                "{len} bytes at {offset} of a journal payload of {} bytes",
                self.len
            )));
        }
        self.segment.file.read_at(self.offset + offset, len).await
    }
}

impl std::fmt::Debug for JournalLoc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}+{}+{}", file_name(self.segment.segno), self.segment.life, self.offset, self.len)
    }
}
