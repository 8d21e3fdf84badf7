//! The record of an object: what is put last, and makes it exist.

use crate::alba::layout::{FragmentKey, ObjectId, Shape};
use crate::alba::wire::{Reader, Writer};
use bytes::Bytes;
use common::crc::crc32c;
use common::osd::OsdId;
use common::{Error, ErrorKind, Result};

const MAGIC: &[u8; 4] = b"SRor";
const VERSION: u16 = 1;

/// Where a fragment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The disk.
    pub osd: OsdId,
    /// The collection epoch in which it was written there.
    pub epoch: u64,
    /// 0 as it was put, more when a repair wrote it.
    pub version: u16,
}

/// The record of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// How to read it.
    pub shape: Shape,
    /// When it was put, in milliseconds of Unix time.
    pub put_at: u64,
    /// Where each fragment is; `None`: nowhere.
    pub places: Vec<Option<Place>>,
    /// CRC32C of each fragment.
    pub crcs: Vec<u32>,
}

impl Record {
    /// Which object.
    pub fn id(&self) -> ObjectId {
        self.shape.id
    }

    /// Fragments that are stored.
    pub fn stored(&self) -> usize {
        self.places.iter().flatten().count()
    }

    /// Fragments that may still be lost; `None` when it has all that it should have.
    pub fn spare_if_incomplete(&self) -> Option<usize> {
        let stored = self.stored();
        (stored < self.places.len()).then(|| stored.saturating_sub(self.shape.policy.data()))
    }

    /// The key of a fragment at its OSD.
    pub fn key(&self, namespace: u32, fragment: usize) -> Option<(OsdId, FragmentKey)> {
        let place = (*self.places.get(fragment)?)?;
        let (id, fragment) = (self.id(), fragment as u8);
        Some((place.osd, FragmentKey { namespace, epoch: place.epoch, id, fragment, version: place.version }))
    }

    /// The record as it is stored.
    pub fn encode(&self) -> Bytes {
        let mut w = Writer::default();
        w.bytes(MAGIC).u16(VERSION).u16(0).u32(0).u64(self.put_at);
        self.shape.write(&mut w);
        for (place, crc) in self.places.iter().zip(&self.crcs) {
            w.u32(*crc).u8(u8::from(place.is_some()));
            if let Some(Place { osd, epoch, version }) = place {
                w.u128(osd.0).u64(*epoch).u16(*version);
            }
        }
        let crc = crc32c(&w.buf);
        w.buf[8..12].copy_from_slice(&crc.to_le_bytes());
        w.buf.into()
    }

    /// Reads a record; `who` names it in errors.
    ///
    /// # Errors
    /// `Corrupt`, `Unsupported`.
    pub fn decode(who: &str, bytes: &[u8]) -> Result<Self> {
        let mut r = Reader::new(who, bytes);
        if r.take(4)? != MAGIC {
            return Err(r.corrupt("it is no record of an object"));
        }
        let (version, zero, crc) = (r.u16()?, r.u16()?, r.u32()?);
        let mut summed = bytes.to_vec();
        summed[8..12].fill(0);
        let is = crc32c(&summed);
        if is != crc {
            return Err(r.corrupt(format!("checksum is {is:08x}, should be {crc:08x}")));
        }
        if version != VERSION {
            let what = format!("{who}: a record of version {version}: upgrade this router");
            return Err(Error::new(ErrorKind::Unsupported, what));
        }
        let put_at = r.u64()?;
        let shape = Shape::read(&mut r)?;
        let all = shape.policy.fragments();
        let (mut places, mut crcs) = (Vec::with_capacity(all), Vec::with_capacity(all));
        for _ in 0..all {
            crcs.push(r.u32()?);
            places.push(match r.u8()? {
                0 => None,
                1 => Some(Place { osd: OsdId(r.u128()?), epoch: r.u64()?, version: r.u16()? }),
                other => return Err(r.corrupt(format!("a fragment is stored {other} times"))),
            });
        }
        r.end()?;
        if zero != 0 {
            return Err(r.corrupt("reserved bytes are not zero"));
        }
        let twice = places.iter().enumerate().any(|(n, place): (usize, &Option<Place>)| {
            place.is_some_and(|p| places[..n].iter().flatten().any(|q| q.osd == p.osd))
        });
        if twice {
            return Err(r.corrupt("two fragments on one disk"));
        }
        Ok(Self { shape, put_at, places, crcs })
    }
}
