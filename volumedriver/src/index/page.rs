//! A page of the map: 256 locations of 16 bytes.

use super::Mapped;
use crate::format::sco::ScoId;
use bytes::Bytes;
use common::crc::crc32c;
use common::{Epoch, Error, Result};

/// Clusters in a page.
pub(crate) const PAGE_CLUSTERS: u64 = 256;

/// Where a cluster lies: a slot of a SCO, and its checksum. 16 bytes: `epoch:32 number:32 crc:32
/// slot:24 kind:8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Location(u128);

const ABSENT: u128 = 0;
const DATA: u128 = 1;
const ZERO: u128 = 2;
const HOLE: u128 = 3;

impl Location {
    /// The location, if its numbers fit: 2^32 epochs and SCOs per epoch, 2^24 slots.
    pub fn new(sco: ScoId, slot: u32, crc: u32) -> Result<Location> {
        let narrow = |n: u64| u32::try_from(n).ok();
        match (narrow(sco.epoch.0), narrow(sco.number), slot < 1 << 24) {
            (Some(epoch), Some(number), true) => Ok(Location(
                u128::from(epoch) << 96
                    | u128::from(number) << 64
                    | u128::from(crc) << 32
                    | u128::from(slot) << 8
                    | DATA,
            )),
            _ => {
                Err(Error::internal(format!("SCO {sco} slot {slot} is beyond what the local index can hold")))
            }
        }
    }

    /// The SCO.
    pub fn sco(self) -> ScoId {
        ScoId { epoch: Epoch((self.0 >> 96) as u64), number: u64::from((self.0 >> 64) as u32) }
    }

    /// Number of the cluster in the SCO.
    pub fn slot(self) -> u32 {
        (self.0 >> 8) as u32 & 0xff_ffff
    }

    /// Checksum of the cluster.
    pub fn crc(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// 256 locations.
pub(crate) struct Page([u128; PAGE_CLUSTERS as usize]);

fn pack(mapped: Mapped) -> u128 {
    match mapped {
        Mapped::Absent => ABSENT,
        Mapped::Hole => HOLE,
        Mapped::Zero => ZERO,
        Mapped::At(location) => location.0,
    }
}

fn unpack(raw: u128) -> Mapped {
    match raw & 0xff {
        ABSENT => Mapped::Absent,
        HOLE => Mapped::Hole,
        ZERO => Mapped::Zero,
        _ => Mapped::At(Location(raw)),
    }
}

impl Page {
    /// Memory of a page.
    pub const BYTES: u64 = PAGE_CLUSTERS * 16;

    pub fn filled(mapped: Mapped) -> Box<Page> {
        Box::new(Page([pack(mapped); PAGE_CLUSTERS as usize]))
    }

    pub fn get(&self, at: u64) -> Mapped {
        unpack(self.0[at as usize])
    }

    /// Sets a location; what was there before.
    pub fn set(&mut self, at: u64, mapped: Mapped) -> Mapped {
        unpack(std::mem::replace(&mut self.0[at as usize], pack(mapped)))
    }

    pub fn is_absent(&self) -> bool {
        self.0.iter().all(|&raw| raw == ABSENT)
    }

    /// The locations and a checksum.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(Self::BYTES as usize + 4);
        for raw in &self.0 {
            out.extend_from_slice(&raw.to_le_bytes());
        }
        out.extend_from_slice(&crc32c(&out).to_le_bytes());
        out.into()
    }

    /// `None` when the bytes are not a page.
    pub fn decode(bytes: &[u8]) -> Option<Box<Page>> {
        let (body, crc) = bytes.split_last_chunk::<4>()?;
        if body.len() as u64 != Self::BYTES || crc32c(body) != u32::from_le_bytes(*crc) {
            return None;
        }
        let mut page = Page::filled(Mapped::Absent);
        for (slot, raw) in page.0.iter_mut().zip(body.chunks_exact(16)) {
            *slot = u128::from_le_bytes(raw.try_into().ok()?);
            if *slot & 0xff > HOLE {
                return None;
            }
        }
        Some(page)
    }
}

/// Input of a fuzzer: raw, and with a right checksum. What is read is written the same.
pub(crate) fn fuzz(data: &[u8]) {
    let mut sealed = data.to_vec();
    sealed.resize(Page::BYTES as usize, 0);
    sealed.extend_from_slice(&crc32c(&sealed).to_le_bytes());
    for bytes in [data, &sealed] {
        let Some(page) = Page::decode(bytes) else { continue };
        for at in 0..PAGE_CLUSTERS {
            if let Mapped::At(location) = page.get(at) {
                assert_eq!(
                    Location::new(location.sco(), location.slot(), location.crc()).ok(),
                    Some(location)
                );
            }
        }
        assert!(page.encode() == bytes, "a page that is read is written the same");
    }
}
