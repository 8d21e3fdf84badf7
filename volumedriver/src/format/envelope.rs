//! What every object on the store has: a first block that says what it is and who wrote it, a
//! footer that says where its index lies, and the reference that names it in another object.
//!
//! Checksums stand before what they cover or in another structure, never behind it: the CRC of
//! bytes followed by their own CRC is a constant, and a checksum over that would see nothing.

use super::cursor::{Reader, Writer, crc_error, refuse};
use super::sco::ScoId;
use bytes::Bytes;
use common::crc::{crc32c, crc32c_parts};
use common::{Epoch, Error, ErrorKind, Result, VolumeId};
use std::fmt;

/// Bytes of the first block of every object.
pub const BLOCK: usize = 4096;
/// Bytes of the footer.
pub const FOOTER_LEN: usize = 64;
/// The longest body that a kind may put in the first block, in bytes.
pub const MAX_BODY: usize = 3072;
/// First bytes of every object.
pub const MAGIC: [u8; 8] = *b"SRobject";
/// First bytes of a footer.
pub const FOOTER_MAGIC: [u8; 8] = *b"SRfooter";
/// The version of envelope and footer that is written, and the highest that is read.
pub const VERSION: u16 = 1;

const HEADER: usize = 96;
const RESERVED_AT: usize = 11;
const CRC_AT: usize = 12;
/// Mandatory features that this version knows.
const KNOWN_INCOMPAT: u64 = 0;

/// What an object is. The numbers are those of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum ObjectKind {
    /// The `vpool` object.
    Pool = 1,
    /// The root of a volume.
    Manifest = 2,
    /// Clusters of a range of the log.
    LogSco = 3,
    /// Clusters that scrub moved; never read as log.
    RelocSco = 4,
    /// The map entries of an LSN range.
    TLog = 5,
    /// A page of references to TLogs.
    ListPage = 6,
    /// A page of snapshots.
    SnapshotPage = 7,
}

impl ObjectKind {
    /// The kind with number `n`.
    pub fn from_u8(n: u8) -> Option<ObjectKind> {
        Some(match n {
            1 => ObjectKind::Pool,
            2 => ObjectKind::Manifest,
            3 => ObjectKind::LogSco,
            4 => ObjectKind::RelocSco,
            5 => ObjectKind::TLog,
            6 => ObjectKind::ListPage,
            7 => ObjectKind::SnapshotPage,
            _ => return None,
        })
    }
}

impl fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ObjectKind::Pool => "vpool object",
            ObjectKind::Manifest => "Manifest",
            ObjectKind::LogSco => "SCO",
            ObjectKind::RelocSco => "relocation SCO",
            ObjectKind::TLog => "TLog",
            ObjectKind::ListPage => "list page",
            ObjectKind::SnapshotPage => "page of snapshots",
        })
    }
}

/// Who and what an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Envelope {
    /// What it is.
    pub kind: ObjectKind,
    /// Whose it is; 0 for the `vpool` object.
    pub volume: VolumeId,
    /// The epoch that wrote it; 0 for the `vpool` object.
    pub epoch: Epoch,
    /// Its number, as in its key; 0 for the `vpool` object.
    pub number: u64,
    /// Random, drawn by the process that wrote it: tells two writers of one name apart.
    pub writer: u128,
    /// Features that a reader may ignore; none is defined yet.
    pub compat: u64,
}

impl fmt::Display for Envelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            ObjectKind::Pool => self.kind.fmt(f),
            kind => write!(f, "{kind} {}/{}", self.epoch, self.number),
        }
    }
}

impl Envelope {
    /// The first block, with `body` (at most [`MAX_BODY`] bytes) in it.
    pub fn encode(&self, body: &[u8]) -> Result<Vec<u8>> {
        if body.len() > MAX_BODY {
            return Err(Error::internal(format!("will not write {self}: a body of {} bytes", body.len())));
        }
        let mut w = Writer::with_capacity(BLOCK);
        w.bytes(&MAGIC).u16(VERSION).u8(self.kind as u8).u8(0).u32(0);
        w.u64(KNOWN_INCOMPAT).u64(self.compat).u32((HEADER + body.len()) as u32).u32(0);
        w.u128(self.volume.0).u64(self.epoch.0).u64(self.number).u128(self.writer).u64(0);
        w.bytes(body).zeroes(BLOCK - HEADER - body.len());
        set_crc(&mut w.buf);
        Ok(w.buf)
    }

    /// What a first block says, and its body.
    pub fn decode(block: &[u8]) -> Result<(Envelope, &[u8])> {
        let Some(block) = block.get(..BLOCK) else {
            return Err(Error::corrupt(format!(
                "object header: cut off: {} bytes instead of {BLOCK}",
                block.len()
            )));
        };
        let mut r = Reader::new(&"object header", block);
        let magic = r.take(8)?;
        if magic != MAGIC {
            return Err(Error::corrupt(format!(
                "object header: not an object of ours: begins with \"{}\"",
                magic.escape_ascii()
            )));
        }
        // Magic, version and checksum stay where they are in all versions; so a flipped bit in the
        // version is told from a newer version.
        let version = r.u16()?;
        let (kind, reserved) = (r.u8()?, r.u8()?);
        let (stored, computed) = (r.u32()?, crc_without_field(block));
        if stored != computed {
            return Err(crc_error(&"object header", "header", computed, stored));
        }
        if version != VERSION {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("object header: version {version}, this program reads version {VERSION}"),
            ));
        }
        let Some(kind) = ObjectKind::from_u8(kind) else {
            return Err(Error::new(ErrorKind::Unsupported, format!("object header: unknown kind {kind}")));
        };
        let (incompat, compat) = (r.u64()?, r.u64()?);
        let header_len = r.u32()? as usize;
        r.zeroes(4)?;
        let (volume, epoch, number, writer) = (VolumeId(r.u128()?), Epoch(r.u64()?), r.u64()?, r.u128()?);
        r.zeroes(8)?;
        let envelope = Envelope { kind, volume, epoch, number, writer, compat };
        let unknown = incompat & !KNOWN_INCOMPAT;
        if unknown != 0 {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "{envelope}: needs feature {} that this program does not know",
                    unknown.trailing_zeros()
                ),
            ));
        }
        if !(HEADER..=HEADER + MAX_BODY).contains(&header_len) {
            return Err(Error::corrupt(format!("{envelope}: header length {header_len} can't be")));
        }
        if reserved != 0 {
            return Err(Error::corrupt(format!(
                "{envelope}: reserved byte at offset {RESERVED_AT} is not zero"
            )));
        }
        if let Some(i) = block[header_len..].iter().position(|b| *b != 0) {
            return Err(Error::corrupt(format!(
                "{envelope}: the byte at offset {}, behind the header, is not zero",
                header_len + i
            )));
        }
        Ok((envelope, &block[HEADER..header_len]))
    }

    /// As [`Envelope::decode`], for an object that must be one of `kinds`.
    pub fn decode_as<'a>(kinds: &[ObjectKind], block: &'a [u8]) -> Result<(Envelope, &'a [u8])> {
        let (envelope, body) = Self::decode(block)?;
        match kinds.first() {
            Some(wanted) if !kinds.contains(&envelope.kind) => {
                Err(Error::corrupt(format!("{envelope} stands where a {wanted} should be")))
            }
            _ => Ok((envelope, body)),
        }
    }

    /// Whether the object is the one that its key promised: misplaced bytes are `Corrupt`.
    pub fn check_place(&self, volume: VolumeId, reference: &ObjectRef) -> Result<()> {
        if (self.kind, self.volume, self.epoch, self.number)
            == (reference.kind, volume, reference.epoch, reference.number)
        {
            return Ok(());
        }
        Err(Error::corrupt(format!(
            "{self} of volume {} stands in the place of {reference} of volume {volume}",
            self.volume
        )))
    }
}

/// The CRC of a structure whose own CRC field, at offset 12, counts as zero.
fn crc_without_field(bytes: &[u8]) -> u32 {
    crc32c_parts(&[&bytes[..CRC_AT], &[0; 4], &bytes[CRC_AT + 4..]])
}

fn set_crc(bytes: &mut [u8]) {
    let crc = crc_without_field(bytes);
    bytes[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
}

/// The last bytes of an object: where its index lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Footer {
    /// What the object is.
    pub kind: ObjectKind,
    /// Where the index begins, in bytes.
    pub index_off: u64,
    /// Bytes of the index; the footer follows it at once.
    pub index_len: u64,
    /// CRC32C of the index.
    pub index_crc: u32,
    /// The checksum that the first block carries: head and tail belong together.
    pub header_crc: u32,
    /// Bytes of the whole object.
    pub total_len: u64,
}

impl Footer {
    fn encode(&self) -> Vec<u8> {
        let mut w = Writer::with_capacity(FOOTER_LEN);
        w.bytes(&FOOTER_MAGIC).u16(VERSION).u8(self.kind as u8).u8(0).u32(0);
        w.u64(self.index_off).u64(self.index_len).u32(self.index_crc).u32(self.header_crc);
        w.u64(self.total_len).zeroes(16);
        set_crc(&mut w.buf);
        w.buf
    }

    /// The footer in the last 64 bytes of `tail`, the end of an object of `total_len` bytes.
    pub fn decode(tail: &[u8], total_len: u64) -> Result<Footer> {
        let Some(bytes) = tail.len().checked_sub(FOOTER_LEN).and_then(|at| tail.get(at..)) else {
            return Err(Error::corrupt(format!("footer: cut off: {} bytes", tail.len())));
        };
        let mut r = Reader::new(&"footer", bytes);
        let magic = r.take(8)?;
        if magic != FOOTER_MAGIC {
            return Err(Error::corrupt(format!(
                "footer: not there: the last {FOOTER_LEN} bytes begin with \"{}\" (is the object cut off?)",
                magic.escape_ascii()
            )));
        }
        let version = r.u16()?;
        let (kind, reserved) = (r.u8()?, r.u8()?);
        let (stored, computed) = (r.u32()?, crc_without_field(bytes));
        if stored != computed {
            return Err(crc_error(&"footer", "footer", computed, stored));
        }
        if version != VERSION {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("footer: version {version}, this program reads version {VERSION}"),
            ));
        }
        let Some(kind) = ObjectKind::from_u8(kind) else {
            return Err(Error::new(ErrorKind::Unsupported, format!("footer: unknown kind {kind}")));
        };
        if reserved != 0 {
            return Err(Error::corrupt(format!("footer: reserved byte at offset {RESERVED_AT} is not zero")));
        }
        let (index_off, index_len) = (r.u64()?, r.u64()?);
        let (index_crc, header_crc) = (r.u32()?, r.u32()?);
        let footer = Footer { kind, index_off, index_len, index_crc, header_crc, total_len: r.u64()? };
        r.zeroes(16)?;
        if footer.total_len != total_len {
            return Err(Error::corrupt(format!(
                "footer: the {kind} has {total_len} bytes, should have {}",
                footer.total_len
            )));
        }
        let end = index_off.checked_add(index_len).and_then(|end| end.checked_add(FOOTER_LEN as u64));
        if index_off < BLOCK as u64 || end != Some(total_len) {
            return Err(Error::corrupt(format!(
                "footer: an index of {index_len} bytes at {index_off} does not fit a {kind} of {total_len} bytes"
            )));
        }
        Ok(footer)
    }

    /// Whether the object with first block `block` (already decoded as `envelope`) ends in this footer.
    pub fn check_head(&self, envelope: &Envelope, block: &[u8]) -> Result<()> {
        let header_crc = Reader::new(envelope, block.get(CRC_AT..).unwrap_or_default()).u32()?;
        if self.kind != envelope.kind || self.header_crc != header_crc {
            return Err(Error::corrupt(format!("{envelope}: the footer belongs to another object")));
        }
        Ok(())
    }

    /// Whether `index` is the index that this footer means.
    pub fn check_index(&self, who: &dyn fmt::Display, index: &[u8]) -> Result<()> {
        if index.len() as u64 != self.index_len {
            return Err(Error::corrupt(format!(
                "{who}: index has {} bytes, should have {}",
                index.len(),
                self.index_len
            )));
        }
        match crc32c(index) {
            crc if crc == self.index_crc => Ok(()),
            crc => Err(crc_error(who, "index", crc, self.index_crc)),
        }
    }
}

/// How one object names another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ObjectRef {
    /// What it is.
    pub kind: ObjectKind,
    /// Epoch in its key.
    pub epoch: Epoch,
    /// Number in its key.
    pub number: u64,
    /// Bytes of the whole object.
    pub len: u64,
    /// CRC32C of its index, as in its footer.
    pub index_crc: u32,
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.epoch, self.number)
    }
}

impl ObjectRef {
    /// Bytes of a reference.
    pub(crate) const LEN: usize = 32;

    /// Epoch and number.
    pub fn id(&self) -> ScoId {
        ScoId { epoch: self.epoch, number: self.number }
    }

    pub(crate) fn write(&self, w: &mut Writer) {
        w.u8(self.kind as u8).zeroes(3).u32(self.index_crc).u64(self.epoch.0).u64(self.number).u64(self.len);
    }

    pub(crate) fn read(r: &mut Reader<'_>) -> Result<ObjectRef> {
        let kind = read_kind(r)?;
        r.zeroes(3)?;
        let index_crc = r.u32()?;
        Ok(ObjectRef { kind, index_crc, epoch: Epoch(r.u64()?), number: r.u64()?, len: r.u64()? })
    }

    /// Whether the object that was read (its footer, and its envelope) is the one that was meant.
    pub fn check(&self, volume: VolumeId, envelope: &Envelope, footer: &Footer) -> Result<()> {
        envelope.check_place(volume, self)?;
        if self.len != footer.total_len {
            return Err(Error::corrupt(format!(
                "{self}: has {} bytes, should have {}",
                footer.total_len, self.len
            )));
        }
        if self.index_crc != footer.index_crc {
            return Err(crc_error(self, "index", footer.index_crc, self.index_crc));
        }
        Ok(())
    }
}

/// The kind of an object that a record names.
pub(crate) fn read_kind(r: &mut Reader<'_>) -> Result<ObjectKind> {
    let n = r.u8()?;
    ObjectKind::from_u8(n).ok_or_else(|| {
        Error::new(ErrorKind::Unsupported, format!("a reference to an object of unknown kind {n}"))
    })
}

/// What lies around the `middle_len` bytes in the middle of an object: first block; index and footer.
pub(crate) fn frame(
    envelope: &Envelope,
    body: &[u8],
    middle_len: usize,
    index: &[u8],
) -> Result<(Bytes, Bytes, ObjectRef)> {
    let block = envelope.encode(body)?;
    let header_crc = Reader::new(envelope, &block[CRC_AT..]).u32()?;
    let index_off = (block.len() + middle_len) as u64;
    let total_len = index_off + (index.len() + FOOTER_LEN) as u64;
    let index_crc = crc32c(index);
    let (kind, index_len) = (envelope.kind, index.len() as u64);
    let footer = Footer { kind, index_off, index_len, index_crc, header_crc, total_len };
    let mut end = Vec::with_capacity(index.len() + FOOTER_LEN);
    end.extend_from_slice(index);
    end.extend_from_slice(&footer.encode());
    let (epoch, number) = (envelope.epoch, envelope.number);
    let reference = ObjectRef { kind, epoch, number, len: total_len, index_crc };
    Ok((Bytes::copy_from_slice(&block), Bytes::from(end), reference))
}

/// Puts an object together: first block, the `middle_len` bytes that `middle` appends, `index`, footer.
pub(crate) fn assemble(
    envelope: &Envelope,
    body: &[u8],
    middle_len: usize,
    middle: impl FnOnce(&mut Vec<u8>),
    index: &[u8],
) -> Result<(Bytes, ObjectRef)> {
    let (block, end, reference) = frame(envelope, body, middle_len, index)?;
    let mut buf = Vec::with_capacity(reference.len as usize);
    buf.extend_from_slice(&block);
    middle(&mut buf);
    buf.extend_from_slice(&end);
    Ok((Bytes::from(buf), reference))
}

/// Takes an object apart that [`assemble`] made: (envelope, body, footer, index), every checksum
/// but those of the middle verified.
pub(crate) fn take_apart<'a>(
    kinds: &[ObjectKind],
    bytes: &'a [u8],
) -> Result<(Envelope, &'a [u8], Footer, &'a [u8])> {
    let (envelope, body) = Envelope::decode_as(kinds, bytes)?;
    let footer = Footer::decode(bytes, bytes.len() as u64).map_err(|e| e.context(envelope))?;
    footer.check_head(&envelope, bytes)?;
    let (from, to) = (footer.index_off as usize, (footer.index_off + footer.index_len) as usize);
    let index = bytes.get(from..to).unwrap_or_default();
    footer.check_index(&envelope, index)?;
    Ok((envelope, body, footer, index))
}

/// `bytes` with the checksums of first block, footer and index made right, to show what a damaged
/// object seems to say. Nothing read from it may be used for anything else.
pub(crate) fn with_checksums(bytes: &[u8]) -> Vec<u8> {
    let mut fixed = bytes.to_vec();
    let Some(tail) = fixed.len().checked_sub(FOOTER_LEN).filter(|tail| *tail >= BLOCK) else {
        if fixed.len() >= BLOCK {
            set_crc(&mut fixed[..BLOCK]);
        }
        return fixed;
    };
    set_crc(&mut fixed[..BLOCK]);
    let index_off = Reader::new(&"", &fixed[tail + 16..]).u64().unwrap_or(u64::MAX);
    let index = usize::try_from(index_off).ok().filter(|from| *from <= tail).map(|from| &fixed[from..tail]);
    if let Some(index_crc) = index.map(crc32c) {
        let header_crc: [u8; 4] = [fixed[12], fixed[13], fixed[14], fixed[15]];
        fixed[tail + 32..tail + 36].copy_from_slice(&index_crc.to_le_bytes());
        fixed[tail + 36..tail + 40].copy_from_slice(&header_crc);
    }
    set_crc(&mut fixed[tail..]);
    fixed
}

/// An encoder may only write an object of `kinds`.
pub(crate) fn check_kind(envelope: &Envelope, kinds: &[ObjectKind]) -> Result<()> {
    if kinds.contains(&envelope.kind) {
        return Ok(());
    }
    Err(refuse(Error::corrupt(format!("{envelope}: the content is that of another kind"))))
}

/// As [`with_checksums`], with a footer whose lengths are those of the object as well.
pub(crate) fn with_ends(bytes: &[u8]) -> Vec<u8> {
    let mut fitted = bytes.to_vec();
    if let Some(tail) = fitted.len().checked_sub(FOOTER_LEN).filter(|tail| *tail >= BLOCK) {
        let index_off = Reader::new(&"", &fitted[tail + 16..]).u64().unwrap_or(0);
        let (index_len, total_len) = ((tail as u64).saturating_sub(index_off), fitted.len() as u64);
        fitted[tail + 24..tail + 32].copy_from_slice(&index_len.to_le_bytes());
        fitted[tail + 40..tail + 48].copy_from_slice(&total_len.to_le_bytes());
    }
    with_checksums(&fitted)
}

/// Input of a fuzzer: raw, and as a block and a footer with right checksums. What is read is written the same.
pub fn fuzz(data: &[u8]) {
    let head = |block: &[u8]| {
        if let Ok((envelope, body)) = Envelope::decode(block) {
            assert!(envelope.encode(body).is_ok_and(|again| again == block[..BLOCK]), "{envelope:?}");
        }
    };
    let end = |tail: &[u8], total_len: u64| {
        if let Ok(footer) = Footer::decode(tail, total_len) {
            assert!(footer.encode() == tail[tail.len() - FOOTER_LEN..], "{footer:?}");
        }
    };
    head(data);
    end(data, data.len() as u64);
    let mut block = data.to_vec();
    block.resize(BLOCK, 0);
    block[..8].copy_from_slice(&MAGIC);
    set_crc(&mut block);
    head(&block);
    let mut tail = data.to_vec();
    tail.resize(FOOTER_LEN, 0);
    tail[..8].copy_from_slice(&FOOTER_MAGIC);
    set_crc(&mut tail);
    let total_len = Reader::new(&"", &tail[40..]).u64().unwrap_or(0);
    end(&tail, total_len);
}
