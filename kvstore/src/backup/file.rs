//! The file of a backup.
//!
//! ```text
//! HEAD  magic "SRkvback", version u32, group u128, index u64, revision u64, made u64 (ms since 1970), crc u32
//! PART  length u32 (not 0), crc u32 of length, number u64 (from 0) and content, content: records, as in a snapshot
//! END   length u32 = 0, parts u64, bytes of all content u64, crc u32 of these and of all parts' crcs; nothing follows
//! ```

use crate::machine::staging::{Frozen, MAX_PART, PART_BYTES};
use crate::wire::{Reader, Writer};
use bytes::{Bytes, BytesMut};
use common::crc::{crc32c, crc32c_parts};
use common::{Error, ErrorKind, Result};
use std::io::{Read, Write};

const MAGIC: &[u8; 8] = b"SRkvback";
const VERSION: u32 = 1;
const HEAD: usize = 8 + 4 + 16 + 3 * 8 + 4;

/// Whose state the backup is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub group: u128,
    pub index: u64,
    pub revision: u64,
    pub made_ms: u64,
}

impl Head {
    fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        w.raw(MAGIC).u32(VERSION).u128(self.group).u64(self.index).u64(self.revision).u64(self.made_ms);
        let mut bytes = w.into_vec();
        let crc = crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn decode(bytes: Bytes) -> Result<Self> {
        let mut r = Reader::new(bytes.clone(), "head of a backup of the registry");
        if r.take(8)? != MAGIC[..] {
            return Err(r.bad("it is none"));
        }
        let version = r.u32()?;
        if version != VERSION {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "a backup of the registry has version {version}, and this storagerouter knows {VERSION}: use the \
                     release that wrote it"
                ),
            ));
        }
        let head = Self { group: r.u128()?, index: r.u64()?, revision: r.u64()?, made_ms: r.u64()? };
        if r.u32()? != crc32c(&bytes[..HEAD - 4]) {
            return Err(r.bad("its checksum is wrong"));
        }
        Ok(head)
    }
}

fn failed(e: &std::io::Error) -> Error {
    Error::io("writing a backup of the registry", e)
}

/// Writes a backup; the bytes of its content.
pub(super) fn write(out: &mut impl Write, head: &Head, frozen: &Frozen) -> Result<u64> {
    out.write_all(&head.encode()).map_err(|e| failed(&e))?;
    let (mut parts, mut bytes, mut all) = (0u64, 0u64, 0u32);
    let mut cursor = Some(Vec::new());
    while let Some(from) = cursor {
        let (content, next) = frozen.part(&from, PART_BYTES)?;
        cursor = next;
        if content.is_empty() {
            continue;
        }
        let length = (content.len() as u32).to_le_bytes();
        let crc = crc32c_parts(&[&length, &parts.to_le_bytes(), &content]);
        for piece in [&length[..], &crc.to_le_bytes(), &content] {
            out.write_all(piece).map_err(|e| failed(&e))?;
        }
        (parts, bytes, all) = (parts + 1, bytes + content.len() as u64, chain(all, crc));
    }
    let end = end(parts, bytes, all);
    out.write_all(&0u32.to_le_bytes()).and_then(|()| out.write_all(&end)).map_err(|e| failed(&e))?;
    Ok(bytes)
}

fn chain(all: u32, crc: u32) -> u32 {
    crc32c_parts(&[&all.to_le_bytes(), &crc.to_le_bytes()])
}

fn end(parts: u64, bytes: u64, all: u32) -> [u8; 20] {
    let mut end = [0; 20];
    end[..8].copy_from_slice(&parts.to_le_bytes());
    end[8..16].copy_from_slice(&bytes.to_le_bytes());
    let crc = crc32c_parts(&[&end[..16], &all.to_le_bytes()]);
    end[16..].copy_from_slice(&crc.to_le_bytes());
    end
}

/// A backup that is read.
pub(super) struct Source<R> {
    from: R,
    head: Head,
    parts: u64,
    bytes: u64,
    all: u32,
}

fn damaged(why: &str) -> Error {
    Error::corrupt(format!("a backup of the registry is damaged: {why}"))
}

impl<R: Read> Source<R> {
    pub fn open(mut from: R) -> Result<Self> {
        let mut head = [0; HEAD];
        fill(&mut from, &mut head)?;
        let head = Head::decode(Bytes::copy_from_slice(&head))?;
        Ok(Self { from, head, parts: 0, bytes: 0, all: 0 })
    }

    pub fn head(&self) -> Head {
        self.head
    }

    /// The next part; `None` when all of them were read and the backup is whole.
    pub fn next(&mut self) -> Result<Option<Bytes>> {
        let mut length = [0; 4];
        fill(&mut self.from, &mut length)?;
        let n = u32::from_le_bytes(length) as usize;
        if n == 0 {
            let mut found = [0; 20];
            fill(&mut self.from, &mut found)?;
            if found != end(self.parts, self.bytes, self.all) {
                return Err(damaged("it has not what its end says"));
            }
            return match self.from.read(&mut [0]) {
                Ok(0) => Ok(None),
                Ok(_) => Err(damaged("something follows its end")),
                Err(e) => Err(Error::io("reading a backup of the registry", &e)),
            };
        }
        if n > MAX_PART {
            return Err(damaged("a part is longer than one can be"));
        }
        let mut crc = [0; 4];
        fill(&mut self.from, &mut crc)?;
        // Room grows with what is there: a length costs nothing to claim.
        let mut content = BytesMut::new();
        while content.len() < n {
            let at = content.len();
            content.resize(n.min(at + (1 << 20)), 0);
            fill(&mut self.from, &mut content[at..])?;
        }
        if crc32c_parts(&[&length, &self.parts.to_le_bytes(), &content]) != u32::from_le_bytes(crc) {
            return Err(damaged("the checksum of a part is wrong"));
        }
        self.parts += 1;
        self.bytes += n as u64;
        self.all = chain(self.all, u32::from_le_bytes(crc));
        Ok(Some(content.freeze()))
    }
}

fn fill(from: &mut impl Read, bytes: &mut [u8]) -> Result<()> {
    from.read_exact(bytes).map_err(|e| match e.kind() {
        std::io::ErrorKind::UnexpectedEof => damaged("it ends too early"),
        _ => Error::io("reading a backup of the registry", &e),
    })
}
