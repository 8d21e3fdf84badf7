//! The stream of an exported vDisk: what it holds, or what of it changed, as records (docs/formats.md).
//!
//! `head | begin | data, zero and hole by ascending offset | end`. Sans-I/O: [`Encoder`] makes records, and
//! [`Decoder`] takes bytes as they come and holds no more than one record.

use bytes::{Buf, Bytes, BytesMut};
use common::crc::crc32c_parts;
use common::{Error, ErrorKind, Name, Result};

/// The most bytes of content in one record.
pub const MAX_DATA: usize = 1 << 20;

const MAGIC: &[u8; 8] = b"SRexport";
const VERSION: u16 = 1;
const HEAD: usize = 16;
const RECORD: usize = 32;
/// The unit of offsets and lengths.
const SECTOR: u64 = 512;
/// The largest vDisk that a stream may be of.
const MAX_SIZE: u64 = 64 << 40;
/// The longest payload of a record that is not data.
const MAX_WORDS: usize = 8 << 10;
const MAX_METADATA: usize = 4096;

const BEGIN: u8 = 1;
const DATA: u8 = 2;
const ZERO: u8 = 3;
const HOLE: u8 = 4;
const END: u8 = 5;
const FAILURE: u8 = 6;

const CONSISTENT: u16 = 1;

/// A snapshot, as a stream names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamSnapshot {
    /// Its identity. A snapshot that an import takes gets the same: what has one identity has one content.
    pub id: u128,
    /// Its name.
    pub name: Name,
    /// When it was taken, seconds since 1970 UTC.
    pub created_at: u64,
    /// Whether the guest had nothing in flight.
    pub consistent: bool,
    /// Whatever is attached to it.
    pub metadata: Bytes,
}

/// What a stream begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Begin {
    /// The vDisk that it was exported from, as `VPOOL/NAME`.
    pub vdisk: String,
    /// Bytes of the vDisk.
    pub size: u64,
    /// Bytes in a cluster.
    pub cluster_size: u32,
    /// What it is the content of; `None`: of the head.
    pub target: Option<StreamSnapshot>,
    /// What it must be put on; `None`: it is everything.
    pub base: Option<StreamSnapshot>,
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// The first.
    Begin(Box<Begin>),
    /// Content at an offset.
    Data(u64, Bytes),
    /// So many allocated zeroes from an offset on.
    Zero(u64, u64),
    /// So many bytes that nothing is stored of, from an offset on.
    Hole(u64, u64),
    /// The last one: all is there.
    End(Totals),
}

/// What a stream held.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Bytes of content.
    pub data: u64,
    /// Bytes of allocated zeroes.
    pub zero: u64,
    /// Bytes of holes.
    pub hole: u64,
    /// Records between the first and the last.
    pub records: u64,
}

impl Totals {
    fn add(&mut self, kind: u8, len: u64) {
        self.records += 1;
        match kind {
            DATA => self.data += len,
            ZERO => self.zero += len,
            _ => self.hole += len,
        }
    }
}

/// Makes records.
#[derive(Debug, Default)]
pub struct Encoder {
    totals: Totals,
    chain: u32,
}

impl Encoder {
    /// The head of the stream and its first record.
    pub fn begin(&mut self, begin: &Begin) -> Bytes {
        let mut words = Vec::with_capacity(256);
        words.extend(begin.size.to_le_bytes());
        words.extend(begin.cluster_size.to_le_bytes());
        text(&mut words, begin.vdisk.as_bytes());
        for snapshot in [&begin.target, &begin.base] {
            words.push(u8::from(snapshot.is_some()));
            if let Some(s) = snapshot {
                words.extend(s.id.to_le_bytes());
                words.extend(s.created_at.to_le_bytes());
                words.extend(if s.consistent { CONSISTENT } else { 0 }.to_le_bytes());
                text(&mut words, s.name.as_str().as_bytes());
                text(&mut words, &s.metadata);
            }
        }
        let mut out = Vec::with_capacity(HEAD + RECORD + words.len());
        out.extend(MAGIC);
        out.extend(VERSION.to_le_bytes());
        out.extend([0; 6]);
        self.record(&mut out, BEGIN, 0, 0, &words);
        out.into()
    }

    /// Content; at most [`MAX_DATA`] bytes.
    pub fn data(&mut self, offset: u64, data: &[u8]) -> Bytes {
        self.range(DATA, offset, data.len() as u64, data)
    }

    /// Allocated zeroes.
    pub fn zero(&mut self, offset: u64, len: u64) -> Bytes {
        self.range(ZERO, offset, len, &[])
    }

    /// A hole.
    pub fn hole(&mut self, offset: u64, len: u64) -> Bytes {
        self.range(HOLE, offset, len, &[])
    }

    fn range(&mut self, kind: u8, offset: u64, len: u64, data: &[u8]) -> Bytes {
        self.totals.add(kind, len);
        let mut out = Vec::with_capacity(RECORD + data.len());
        self.record(&mut out, kind, offset, len, data);
        out.into()
    }

    /// The last record.
    pub fn end(&mut self) -> Bytes {
        let Totals { data, zero, hole, records } = self.totals;
        let mut words: Vec<u8> = [data, zero, hole, records].iter().flat_map(|n| n.to_le_bytes()).collect();
        words.extend(self.chain.to_le_bytes());
        let mut out = Vec::with_capacity(RECORD + words.len());
        self.record(&mut out, END, 0, 0, &words);
        out.into()
    }

    /// In place of the last record: what is missing can't be had, and why.
    pub fn failure(&mut self, why: &str) -> Bytes {
        let mut end = why.len().min(1024);
        while !why.is_char_boundary(end) {
            end -= 1;
        }
        let mut out = Vec::new();
        self.record(&mut out, FAILURE, 0, 0, &why.as_bytes()[..end]);
        out.into()
    }

    fn record(&mut self, out: &mut Vec<u8>, kind: u8, offset: u64, len: u64, payload: &[u8]) {
        let mut head = [0; RECORD];
        head[0] = kind;
        head[4..8].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        head[8..16].copy_from_slice(&offset.to_le_bytes());
        head[16..24].copy_from_slice(&len.to_le_bytes());
        let crc = crc32c_parts(&[&head[..28], payload]);
        head[28..].copy_from_slice(&crc.to_le_bytes());
        self.chain = crc32c_parts(&[&self.chain.to_le_bytes(), &crc.to_le_bytes()]);
        out.extend(head);
        out.extend(payload);
    }
}

fn text(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as u16).to_le_bytes());
    out.extend(bytes);
}

/// Takes a stream apart.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: BytesMut,
    /// Bytes that were taken apart.
    done: u64,
    /// What the first record says: size, and whether it is everything.
    begun: Option<(u64, bool)>,
    /// Where the last range ended.
    reached: u64,
    totals: Totals,
    chain: u32,
    ended: bool,
}

impl Decoder {
    /// More bytes of the stream. The caller asks [`Decoder::next`] until there is nothing, then gives more.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Up to which byte of the vDisk records came.
    pub fn reached(&self) -> u64 {
        self.reached
    }

    fn corrupt(&self, what: impl std::fmt::Display) -> Error {
        Error::corrupt(format!("byte {} of the stream: {what}", self.done))
    }

    /// The next record, when it is complete.
    pub fn next_record(&mut self) -> Result<Option<Record>> {
        if self.done == 0 {
            if self.buffer.len() < HEAD {
                return Ok(None);
            }
            self.head()?;
        }
        if self.ended {
            return match self.buffer.is_empty() {
                true => Ok(None),
                false => Err(self.corrupt("something follows its last record")),
            };
        }
        let Some(head) = self.buffer.get(..RECORD) else { return Ok(None) };
        let number = |from: usize, n: usize| {
            head[from..from + n].iter().rev().fold(0u64, |number, byte| number << 8 | u64::from(*byte))
        };
        let (kind, n, offset, len, crc) =
            (head[0], number(4, 4) as usize, number(8, 8), number(16, 8), number(28, 4));
        let most = if kind == DATA { MAX_DATA } else { MAX_WORDS };
        if n > most || !(BEGIN..=FAILURE).contains(&kind) || number(1, 3) != 0 || number(24, 4) != 0 {
            return Err(self.corrupt("this is no record of an export"));
        }
        let Some(payload) = self.buffer.get(RECORD..RECORD + n) else { return Ok(None) };
        let is = crc32c_parts(&[&head[..28], payload]);
        if u64::from(is) != crc {
            return Err(self.corrupt(format!("the record's checksum is {is:08x}, should be {crc:08x}")));
        }
        let payload = self.buffer.split_to(RECORD + n).freeze().split_off(RECORD);
        let record = self.record(kind, offset, len, payload)?;
        self.done += (RECORD + n) as u64;
        self.chain = crc32c_parts(&[&self.chain.to_le_bytes(), &is.to_le_bytes()]);
        Ok(Some(record))
    }

    fn head(&mut self) -> Result<()> {
        let head = self.buffer.split_to(HEAD);
        if head[..8] != MAGIC[..] {
            return Err(Error::invalid("this is no export of a vDisk: it does not begin with 'SRexport'"));
        }
        let version = u16::from_le_bytes([head[8], head[9]]);
        if version != VERSION {
            let text =
                format!("the export has version {version}, this storage router reads version {VERSION}");
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        if head[10..].iter().any(|b| *b != 0) {
            return Err(self.corrupt("reserved bytes of its head are not zero"));
        }
        self.done = HEAD as u64;
        Ok(())
    }

    fn record(&mut self, kind: u8, offset: u64, len: u64, payload: Bytes) -> Result<Record> {
        if !matches!(kind, DATA | ZERO | HOLE) && (offset, len) != (0, 0) {
            return Err(self.corrupt("a record without a range has one"));
        }
        if kind == FAILURE {
            let why = String::from_utf8_lossy(&payload).escape_debug().to_string();
            return Err(Error::unavailable(format!("the export failed where it was made: {why}")));
        }
        let Some((size, everything)) = self.begun else {
            if kind != BEGIN {
                return Err(self.corrupt("its first record does not say what it is of"));
            }
            let begin = begin(payload).map_err(|what| self.corrupt(what))?;
            self.begun = Some((begin.size, begin.base.is_none()));
            return Ok(Record::Begin(Box::new(begin)));
        };
        match kind {
            BEGIN => return Err(self.corrupt("it begins twice")),
            END => return self.end(size, everything, &payload),
            _ => {}
        }
        let end = offset.checked_add(len).filter(|end| *end <= size);
        let whole = offset.is_multiple_of(SECTOR) && len.is_multiple_of(SECTOR);
        let Some(end) = end.filter(|_| len > 0 && whole) else {
            return Err(self.corrupt(format!("a range of {len} bytes at {offset}, of a vDisk of {size}")));
        };
        if offset < self.reached || (everything && offset != self.reached) {
            return Err(
                self.corrupt(format!("a range at {offset} follows one that ends at {}", self.reached))
            );
        }
        if payload.len() as u64 != if kind == DATA { len } else { 0 } {
            return Err(self.corrupt(format!("{} bytes of content for a range of {len}", payload.len())));
        }
        self.reached = end;
        self.totals.add(kind, len);
        Ok(match kind {
            DATA => Record::Data(offset, payload),
            ZERO => Record::Zero(offset, len),
            _ => Record::Hole(offset, len),
        })
    }

    fn end(&mut self, size: u64, everything: bool, payload: &[u8]) -> Result<Record> {
        let Totals { data, zero, hole, records } = self.totals;
        let mut words: Vec<u8> = [data, zero, hole, records].iter().flat_map(|n| n.to_le_bytes()).collect();
        words.extend(self.chain.to_le_bytes());
        if words != payload {
            return Err(
                self.corrupt("its totals are not those of what came: a part of it is missing or was changed")
            );
        }
        if everything && self.reached != size {
            return Err(self.corrupt(format!("it ends at {} of a vDisk of {size} bytes", self.reached)));
        }
        self.ended = true;
        Ok(Record::End(self.totals))
    }

    /// No more bytes come. An error unless the last record was there.
    pub fn finish(&self) -> Result<()> {
        match self.ended && self.buffer.is_empty() {
            true => Ok(()),
            false => Err(Error::invalid(format!(
                "the stream is cut off: it ends after {} bytes, without its last record",
                self.done + self.buffer.len() as u64
            ))),
        }
    }
}

fn begin(mut words: Bytes) -> std::result::Result<Begin, String> {
    let cut = || "its first record is cut off".to_owned();
    let size = words.try_get_u64_le().map_err(|_| cut())?;
    let cluster_size = words.try_get_u32_le().map_err(|_| cut())?;
    let vdisk = take_text(&mut words, 2 * Name::MAX + 1).ok_or_else(cut)?;
    let vdisk = String::from_utf8(vdisk.to_vec()).map_err(|_| "the vDisk's name is not UTF-8")?;
    let cluster_ok = cluster_size.is_power_of_two() && (4096..=65536).contains(&cluster_size);
    if !cluster_ok || size == 0 || size > MAX_SIZE || !size.is_multiple_of(SECTOR) {
        return Err(format!("a vDisk of {size} bytes in clusters of {cluster_size}"));
    }
    let mut snapshots = [None, None];
    for snapshot in &mut snapshots {
        *snapshot = match words.try_get_u8().map_err(|_| cut())? {
            0 => None,
            1 => {
                let id = words.try_get_u128_le().map_err(|_| cut())?;
                let created_at = words.try_get_u64_le().map_err(|_| cut())?;
                let flags = words.try_get_u16_le().map_err(|_| cut())?;
                let name = take_text(&mut words, Name::MAX).ok_or_else(cut)?;
                let name = std::str::from_utf8(&name).map_err(|_| "a snapshot's name is not UTF-8")?;
                let name = name.parse().map_err(|e: Error| e.to_string())?;
                let metadata = take_text(&mut words, MAX_METADATA).ok_or_else(cut)?;
                if flags & !CONSISTENT != 0 {
                    return Err(format!("a snapshot has flags {flags:#x}"));
                }
                Some(StreamSnapshot { id, name, created_at, consistent: flags & CONSISTENT != 0, metadata })
            }
            n => return Err(format!("{n} snapshots in place of one or none")),
        };
    }
    if !words.is_empty() {
        return Err(format!("its first record has {} bytes too many", words.len()));
    }
    let [target, base] = snapshots;
    if base.is_some() && target.is_none() {
        return Err("it goes on from a snapshot to none".into());
    }
    Ok(Begin { vdisk, size, cluster_size, target, base })
}

fn take_text(words: &mut Bytes, most: usize) -> Option<Bytes> {
    let n = usize::from(words.try_get_u16_le().ok()?);
    (n <= most && n <= words.len()).then(|| words.split_to(n))
}

/// Input of a fuzzer, at once and in pieces, also with right checksums; what is read is written the same.
pub(crate) fn fuzz(data: &[u8]) {
    check(data);
    check(&with_checksums(data));
}

fn check(data: &[u8]) {
    let read = |piece: usize| {
        let mut decoder = Decoder::default();
        let mut records = Vec::new();
        for bytes in data.chunks(piece) {
            decoder.push(bytes);
            while let Some(record) = decoder.next_record().map_err(|e| e.to_string())? {
                records.push(record);
            }
            assert!(decoder.buffer.len() <= RECORD + MAX_DATA.max(MAX_WORDS) + piece, "it holds too much");
        }
        decoder.finish().map(|()| records).map_err(|e| e.to_string())
    };
    let (whole, pieces) = (read(data.len().max(1)), read(7));
    assert_eq!(whole, pieces, "the pieces in which it comes do not matter");
    if let Ok(records) = whole {
        let mut encoder = Encoder::default();
        let mut again = Vec::new();
        for record in &records {
            again.extend(match record {
                Record::Begin(begin) => encoder.begin(begin),
                Record::Data(offset, data) => encoder.data(*offset, data),
                Record::Zero(offset, len) => encoder.zero(*offset, *len),
                Record::Hole(offset, len) => encoder.hole(*offset, *len),
                Record::End(_) => encoder.end(),
            });
        }
        assert_eq!(again, data);
    }
}

/// The same with right checksums of the records, as far as they can be told apart.
fn with_checksums(data: &[u8]) -> Vec<u8> {
    let mut fixed = data.to_vec();
    let (mut at, mut chain) = (HEAD, 0u32);
    while let Some(rest) = fixed.get_mut(at..).filter(|rest| rest.len() >= RECORD) {
        let n = u32::from_le_bytes([rest[4], rest[5], rest[6], rest[7]]) as usize;
        let Some(end) = RECORD.checked_add(n).filter(|end| *end <= rest.len()) else { break };
        if rest[0] == END && n == 36 {
            rest[RECORD + 32..RECORD + 36].copy_from_slice(&chain.to_le_bytes());
        }
        let crc = crc32c_parts(&[&rest[..28], &rest[RECORD..end]]);
        rest[28..32].copy_from_slice(&crc.to_le_bytes());
        chain = crc32c_parts(&[&chain.to_le_bytes(), &crc.to_le_bytes()]);
        at += end;
    }
    fixed
}

#[cfg(test)]
mod tests;
