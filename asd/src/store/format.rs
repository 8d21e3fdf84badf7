//! The codec of what lies on the disk (docs/formats.md): the identity, heads of segments, and records of the table. Bounded,
//! never panics.
//!
//! Records are little endian; numbers in keys are big endian, so that they sort.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use common::crc::crc32c;
use common::osd::{BLOCK, BackendId, MAX_VALUE, OsdId};
use common::{Error, Result};

/// Bytes of a segment before its first value.
pub const HEADER: u64 = BLOCK as u64;
/// Values up to here lie in the table.
pub const INLINE: usize = 4096;
/// The file that says which disk this is.
pub const IDENTITY: &str = "identity";
/// What comes with every row of the table, as RocksDB keeps it.
pub const ROW: u64 = 32;

const VERSION: u16 = 1;
const IDENTITY_MAGIC: &[u8; 8] = b"SRasdid\0";
const SEGMENT_MAGIC: &[u8; 8] = b"SRasdseg";

/// Keys of the table.
pub mod keys {
    /// The identity, as the file has it: the table belongs to this disk.
    pub const IDENTITY: &[u8] = b"i";
    /// The backend that has claimed the disk.
    pub const CLAIM: &[u8] = b"c";
    /// Totals.
    pub const TOTALS: &[u8] = b"a";
    /// Up to where the scrub of this round has come.
    pub const SCRUB: &[u8] = b"p";
    /// What is in each segment.
    pub const SEGMENTS: &[u8] = b"s";
    /// Which key's value lies where.
    pub const PLACES: &[u8] = b"r";
    /// Values.
    pub const VALUES: &[u8] = b"v";

    /// The row of a segment.
    pub fn segment(number: u64) -> Vec<u8> {
        [SEGMENTS, &number.to_be_bytes()].concat()
    }

    /// The rows of all values in a segment.
    pub fn places(number: u64) -> Vec<u8> {
        [PLACES, &number.to_be_bytes()].concat()
    }

    /// The row of the value that lies there.
    pub fn place(number: u64, offset: u64) -> Vec<u8> {
        [PLACES, &number.to_be_bytes(), &offset.to_be_bytes()].concat()
    }

    /// The row of a key.
    pub fn value(key: &[u8]) -> Vec<u8> {
        [VALUES, key].concat()
    }
}

/// The name of a segment's file.
pub fn segment_name(number: u64) -> String {
    format!("{number:016x}.seg")
}

/// The segment that a file is, if it is one.
pub fn segment_number(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".seg").filter(|d| d.len() == 16)?;
    let number = u64::from_str_radix(digits, 16).ok()?;
    (segment_name(number) == name).then_some(number)
}

/// What a disk was formatted as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Which disk.
    pub id: OsdId,
    /// Bytes of a segment.
    pub segment_size: u64,
}

fn block(magic: &[u8; 8], id: OsdId, fields: &[u64]) -> Bytes {
    let mut b = BytesMut::with_capacity(BLOCK);
    b.put_slice(magic);
    b.put_u16_le(VERSION);
    b.put_bytes(0, 6);
    b.put_u128_le(id.0);
    fields.iter().for_each(|f| b.put_u64_le(*f));
    b.put_bytes(0, BLOCK - 4 - b.len());
    let crc = crc32c(&b);
    b.put_u32_le(crc);
    b.freeze()
}

/// Reads a block that [`block`] made: the disk it belongs to, and what follows.
fn read_block(mut bytes: &[u8], magic: &[u8; 8], what: &str) -> Result<(OsdId, [u64; 2])> {
    let whole = bytes.len() == BLOCK && crc32c(&bytes[..BLOCK - 4]).to_le_bytes() == bytes[BLOCK - 4..];
    if !whole || !bytes.starts_with(magic) {
        return Err(Error::corrupt(format!("{what} is damaged, or is none")));
    }
    bytes.advance(8);
    let version = bytes.get_u16_le();
    if version != VERSION {
        return Err(Error::new(
            common::ErrorKind::Unsupported,
            format!("{what} was written as version {version}: this program knows version {VERSION}"),
        ));
    }
    bytes.advance(6);
    Ok((OsdId(bytes.get_u128_le()), [bytes.get_u64_le(), bytes.get_u64_le()]))
}

impl Identity {
    /// The block that is the identity's file.
    pub fn encode(&self) -> Bytes {
        block(IDENTITY_MAGIC, self.id, &[self.segment_size])
    }

    /// Reads it.
    ///
    /// # Errors
    /// `Corrupt`, `Unsupported`.
    pub fn decode(bytes: &[u8]) -> Result<Identity> {
        let (id, [segment_size, _]) = read_block(bytes, IDENTITY_MAGIC, "the identity of this disk")?;
        Ok(Identity { id, segment_size })
    }
}

/// The first block of a segment.
pub fn encode_header(id: OsdId, number: u64, size: u64) -> Bytes {
    block(SEGMENT_MAGIC, id, &[number, size])
}

/// Whether `bytes` are the first block of this segment of this disk.
///
/// # Errors
/// `Corrupt`, `Unsupported`.
pub fn check_header(bytes: &[u8], id: OsdId, number: u64) -> Result<()> {
    let name = segment_name(number);
    let (of, [is, _]) = read_block(bytes, SEGMENT_MAGIC, &format!("the head of segment {name}"))?;
    if (of, is) == (id, number) {
        return Ok(());
    }
    Err(Error::corrupt(format!("segment {name} says that it is segment {} of OSD {of}", segment_name(is))))
}

/// Where a value is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// Here.
    Inline(Bytes),
    /// In a segment.
    Placed {
        /// Which one.
        segment: u64,
        /// Where its first byte is.
        offset: u64,
        /// CRC32C of each block, u32 each.
        crcs: Bytes,
    },
}

/// What the table has of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Bytes of the value.
    pub len: u32,
    /// CRC32C of the value.
    pub crc: u32,
    /// Where it is.
    pub body: Body,
}

/// Bytes that a value takes in a segment.
pub fn padded(len: usize) -> u64 {
    len.next_multiple_of(BLOCK) as u64
}

/// CRC32C of each block of a value.
pub fn block_crcs(bytes: &[u8]) -> Bytes {
    let mut crcs = BytesMut::with_capacity(bytes.len().div_ceil(BLOCK) * 4);
    bytes.chunks(BLOCK).for_each(|block| crcs.put_u32_le(crc32c(block)));
    crcs.freeze()
}

impl Record {
    /// As the table keeps it.
    pub fn encode(&self) -> Bytes {
        let mut b = BytesMut::with_capacity(self.encoded_len());
        b.put_u8(VERSION as u8);
        b.put_u8(match &self.body {
            Body::Inline(_) => 1,
            Body::Placed { .. } => 2,
        });
        b.put_u16_le(0);
        b.put_u32_le(self.len);
        b.put_u32_le(self.crc);
        match &self.body {
            Body::Inline(bytes) => b.put_slice(bytes),
            Body::Placed { segment, offset, crcs } => {
                b.put_u64_le(*segment);
                b.put_u64_le(*offset);
                b.put_slice(crcs);
            }
        }
        b.freeze()
    }

    fn encoded_len(&self) -> usize {
        12 + match &self.body {
            Body::Inline(bytes) => bytes.len(),
            Body::Placed { crcs, .. } => 16 + crcs.len(),
        }
    }

    /// Reads one.
    ///
    /// # Errors
    /// `Corrupt`, `Unsupported`.
    pub fn decode(mut bytes: Bytes) -> Result<Record> {
        let bad = || Error::corrupt("a record of the table can't be read");
        if bytes.len() < 12 {
            return Err(bad());
        }
        let (version, kind, reserved) = (bytes.get_u8(), bytes.get_u8(), bytes.get_u16_le());
        if u16::from(version) != VERSION {
            return Err(Error::new(
                common::ErrorKind::Unsupported,
                format!("a record of the table has version {version}: this program knows version {VERSION}"),
            ));
        }
        let (len, crc) = (bytes.get_u32_le(), bytes.get_u32_le());
        let body = match kind {
            1 if bytes.len() == len as usize && bytes.len() <= INLINE => Body::Inline(bytes),
            2 if bytes.len() >= 16 => {
                let (segment, offset) = (bytes.get_u64_le(), bytes.get_u64_le());
                let blocks = (len as usize).div_ceil(BLOCK);
                let placed = offset.checked_add(padded(len as usize)).is_some();
                if bytes.len() != blocks * 4 || !placed || len as usize > MAX_VALUE || offset < HEADER {
                    return Err(bad());
                }
                Body::Placed { segment, offset, crcs: bytes }
            }
            _ => return Err(bad()),
        };
        if reserved != 0 {
            return Err(bad());
        }
        Ok(Record { len, crc, body })
    }

    /// What it counts for in the table, with its key and the row of its place.
    pub fn table_bytes(&self, key: &[u8]) -> u64 {
        let own = (self.encoded_len() + key.len()) as u64 + ROW;
        match &self.body {
            Body::Inline(_) => own,
            Body::Placed { .. } => own + key.len() as u64 + 16 + ROW,
        }
    }
}

/// What is in a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentState {
    /// Everything behind it was never written, or does not count.
    pub end: u64,
    /// Bytes of values, rounded up to blocks.
    pub live: u64,
    /// Values.
    pub count: u64,
}

/// What is on the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Keys.
    pub keys: u64,
    /// Bytes of all values as they were given.
    pub bytes: u64,
    /// What their rows in the table count for.
    pub table: u64,
}

fn triple(a: u64, b: u64, c: u64) -> Bytes {
    let mut out = BytesMut::with_capacity(24);
    [a, b, c].iter().for_each(|n| out.put_u64_le(*n));
    out.freeze()
}

fn read_triple(mut bytes: Bytes, what: &str) -> Result<(u64, u64, u64)> {
    if bytes.len() != 24 {
        return Err(Error::corrupt(format!("the table's record of {what} can't be read")));
    }
    Ok((bytes.get_u64_le(), bytes.get_u64_le(), bytes.get_u64_le()))
}

impl SegmentState {
    /// As the table keeps it.
    pub fn encode(&self) -> Bytes {
        triple(self.end, self.live, self.count)
    }

    /// Reads one.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn decode(bytes: Bytes) -> Result<SegmentState> {
        let (end, live, count) = read_triple(bytes, "a segment")?;
        if end < HEADER || live > end - HEADER || (live == 0) != (count == 0) {
            return Err(Error::corrupt("the table's record of a segment contradicts itself"));
        }
        Ok(SegmentState { end, live, count })
    }
}

impl Totals {
    /// As the table keeps it.
    pub fn encode(&self) -> Bytes {
        triple(self.keys, self.bytes, self.table)
    }

    /// Reads one.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn decode(bytes: Bytes) -> Result<Totals> {
        let (keys, bytes, table) = read_triple(bytes, "totals")?;
        Ok(Totals { keys, bytes, table })
    }
}

/// The backend, as the table keeps it.
pub fn encode_claim(backend: BackendId) -> Bytes {
    Bytes::copy_from_slice(&backend.0.to_le_bytes())
}

/// Reads it.
///
/// # Errors
/// `Corrupt`.
pub fn decode_claim(bytes: &[u8]) -> Result<BackendId> {
    match bytes.try_into() {
        Ok(bytes) => Ok(BackendId(u128::from_le_bytes(bytes))),
        Err(_) => Err(Error::corrupt("the table's record of who has claimed this disk can't be read")),
    }
}

/// Decoders of what lies on the disk, for fuzzers: they must not panic, and what is read is written the same.
pub fn fuzz(bytes: &[u8]) {
    let bytes = Bytes::copy_from_slice(bytes);
    if let Ok(identity) = Identity::decode(&bytes) {
        assert_eq!(Identity::decode(&identity.encode()).ok(), Some(identity));
    }
    let _ = check_header(&bytes, OsdId(1), 1);
    if let Ok(record) = Record::decode(bytes.clone()) {
        assert_eq!(record.encode(), bytes);
        let _ = record.table_bytes(b"k");
    }
    if let Ok(state) = SegmentState::decode(bytes.clone()) {
        assert_eq!(state.encode(), bytes);
    }
    if let Ok(totals) = Totals::decode(bytes.clone()) {
        assert_eq!(totals.encode(), bytes);
    }
    let _ = decode_claim(&bytes);
}

/// The same block with its checksum made right, for fuzzers.
pub fn with_checksum(bytes: &[u8]) -> Vec<u8> {
    let mut block = bytes.to_vec();
    block.resize(BLOCK, 0);
    let crc = crc32c(&block[..BLOCK - 4]);
    block[BLOCK - 4..].copy_from_slice(&crc.to_le_bytes());
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_the_same() {
        let identity = Identity { id: OsdId(7), segment_size: 64 << 20 };
        assert_eq!(Identity::decode(&identity.encode()).unwrap(), identity);
        check_header(&encode_header(OsdId(7), 3, 1 << 20), OsdId(7), 3).unwrap();
        for (id, number) in [(8, 3), (7, 4)] {
            let error = check_header(&encode_header(OsdId(7), 3, 1 << 20), OsdId(id), number).unwrap_err();
            assert!(error.message().contains("says that it is"), "{error}");
        }
        let mut torn = identity.encode().to_vec();
        torn[600] ^= 1;
        assert_eq!(Identity::decode(&torn).unwrap_err().kind, common::ErrorKind::Corrupt);
        let value = vec![5u8; 10_000];
        for body in [
            Body::Inline(Bytes::from_static(b"abc")),
            Body::Placed { segment: 9, offset: 8192, crcs: block_crcs(&value) },
        ] {
            let len = if matches!(body, Body::Inline(_)) { 3 } else { 10_000 };
            let record = Record { len, crc: 1, body };
            assert_eq!(Record::decode(record.encode()).unwrap(), record);
        }
        assert_eq!(segment_number(&segment_name(255)), Some(255));
        assert_eq!(segment_number("00000000000000FF.seg"), None);
    }
}
