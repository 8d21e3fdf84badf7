//! What lies beside each fragment on its disk: enough to make the object's record anew from the disks alone.

use super::ObjectId;
use super::shape::Shape;
use crate::alba::preset::MAX_FRAGMENTS;
use crate::alba::wire::{Reader, Writer};
use crate::key::MAX_KEY_BYTES;
use bytes::Bytes;
use common::crc::crc32c;
use common::{Error, ErrorKind, Result};

const MAGIC: &[u8; 8] = b"SRfragmt";
const VERSION: u16 = 1;

/// Where the parts of an object are kept at OSDs: the same for its fragments and their headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FragmentKey {
    /// Whose object.
    pub namespace: u32,
    /// The collection epoch that it was put in.
    pub epoch: u64,
    /// Which object.
    pub id: ObjectId,
    /// Which fragment.
    pub fragment: u8,
    /// 0 as it was put; a repair takes the next one, so that nothing is ever overwritten.
    pub version: u16,
}

const DATA: u8 = b'f';
const HEADER: u8 = b'h';
const CLOSED: u8 = b'x';

impl FragmentKey {
    fn written(&self, kind: u8) -> Vec<u8> {
        let mut key = Vec::with_capacity(36);
        key.push(kind);
        key.extend_from_slice(&self.namespace.to_be_bytes());
        key.extend_from_slice(&self.epoch.to_be_bytes());
        key.extend_from_slice(&self.id.0.to_be_bytes());
        key.push(self.fragment);
        key.extend_from_slice(&self.version.to_be_bytes());
        key
    }

    /// The key of one of its values.
    pub fn value(&self, value: usize) -> Bytes {
        let mut key = self.written(DATA);
        key.extend_from_slice(&(value as u16).to_be_bytes());
        key.into()
    }

    /// The key of its header.
    pub fn header(&self) -> Bytes {
        self.written(HEADER).into()
    }

    /// What all headers of an epoch begin with, or of a namespace.
    pub fn headers(namespace: u32, epoch: Option<u64>) -> Vec<u8> {
        let mut prefix = vec![HEADER];
        prefix.extend_from_slice(&namespace.to_be_bytes());
        prefix.extend(epoch.into_iter().flat_map(u64::to_be_bytes));
        prefix
    }

    /// The key that says at an OSD that an epoch of a namespace is over: nothing of it is taken any more.
    pub fn closed(namespace: u32, epoch: u64) -> Bytes {
        let mut key = vec![CLOSED];
        key.extend_from_slice(&namespace.to_be_bytes());
        key.extend_from_slice(&epoch.to_be_bytes());
        key.into()
    }

    /// Reads the key of a header, as a listing of the disk shows it.
    ///
    /// # Errors
    /// `Corrupt` when it is none.
    pub fn of_header(key: &[u8]) -> Result<Self> {
        let wrong = || Error::corrupt(format!("key {} is no header's", common::osd::shown(key)));
        let [HEADER, rest @ ..] = key else { return Err(wrong()) };
        if rest.len() != 31 {
            return Err(wrong());
        }
        let number = |at: std::ops::Range<usize>| rest[at].iter().fold(0u128, |n, b| n << 8 | u128::from(*b));
        Ok(Self {
            namespace: number(0..4) as u32,
            epoch: number(4..12) as u64,
            id: ObjectId(number(12..28)),
            fragment: rest[28],
            version: number(29..31) as u16,
        })
    }
}

/// What lies beside each fragment on its disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FragmentHeader {
    /// Its place among the others.
    pub key: FragmentKey,
    /// The object's key.
    pub name: String,
    /// When it was put, in milliseconds of Unix time: of two objects of one name the later one counts when records are made
    /// anew.
    pub put_at: u64,
    /// CRC32C of each fragment.
    pub crcs: Vec<u32>,
    /// How to read it.
    pub shape: Shape,
}

impl FragmentHeader {
    /// The header as it is stored.
    pub fn encode(&self) -> Bytes {
        let mut w = Writer::default();
        w.bytes(MAGIC).u16(VERSION).u16(0).u32(0);
        w.u32(self.key.namespace).u64(self.key.epoch).u8(self.key.fragment).u8(0).u16(self.key.version);
        w.u64(self.put_at).text(&self.name);
        self.shape.write(&mut w);
        self.crcs.iter().for_each(|crc| {
            w.u32(*crc);
        });
        let crc = crc32c(&w.buf);
        w.buf[12..16].copy_from_slice(&crc.to_le_bytes());
        w.buf.into()
    }

    /// Reads a header.
    ///
    /// # Errors
    /// `Corrupt`, `Unsupported`.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut r = Reader::new("fragment header", bytes);
        if r.take(8)? != MAGIC {
            return Err(r.corrupt("it does not begin as one"));
        }
        let (version, zero, crc) = (r.u16()?, r.u16()?, r.u32()?);
        let mut summed = bytes.to_vec();
        summed[12..16].fill(0);
        let is = crc32c(&summed);
        if is != crc {
            return Err(r.corrupt(format!("checksum is {is:08x}, should be {crc:08x}")));
        }
        if version != VERSION {
            let what = format!("fragment header of version {version}: upgrade this router");
            return Err(Error::new(ErrorKind::Unsupported, what));
        }
        let (namespace, epoch) = (r.u32()?, r.u64()?);
        let (fragment, reserved, fragment_version) = (r.u8()?, r.u8()?, r.u16()?);
        let (put_at, name) = (r.u64()?, r.text(MAX_KEY_BYTES)?);
        let shape = Shape::read(&mut r)?;
        let all = shape.policy.fragments();
        if zero != 0 || reserved != 0 || usize::from(fragment) >= all.min(MAX_FRAGMENTS) {
            return Err(
                r.corrupt(format!("fragment {fragment} of {all}, or reserved bytes that are not zero"))
            );
        }
        let crcs = (0..all).map(|_| r.u32()).collect::<Result<_>>()?;
        r.end()?;
        let key = FragmentKey { namespace, epoch, id: shape.id, fragment, version: fragment_version };
        Ok(Self { key, name, put_at, crcs, shape })
    }
}
