//! One entry of a log, as it travels and as it lies: packed once by the owner, checked everywhere, changed nowhere.
//!
//! Little endian:
//!
//! ```text
//! 0   volume u128      16 epoch u64        24 lsn u64
//! 32  addr u64         40 count u64
//! 48  number of cluster checksums u32      52 payload length u32
//! 56  kind u8          57 flags u8         58 reserved u16, u32
//! 64  checksums u32 each, then the payload
//! ```
//!
//! Its CRC32C covers all of it and stands outside (in the frame's header, in the record's). What `kind`,
//! `addr`, `count` and `flags` mean is the owner's business.

use bytes::{BufMut, Bytes, BytesMut};
use common::crc::{crc32c, crc32c_parts};
use common::{Epoch, Lsn, VolumeId};
use smallvec::SmallVec;

/// Bytes of an entry before its checksums and payload.
pub const HEAD: usize = 64;
/// The largest payload of an entry: the volume driver's largest.
pub const MAX_PAYLOAD: usize = 1 << 20;
/// The most checksums of an entry.
pub const MAX_CRCS: usize = 1024;
/// The largest entry, packed.
pub const MAX_PACKED: usize = HEAD + 4 * MAX_CRCS + MAX_PAYLOAD;

/// An entry of a volume's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Whose log.
    pub volume: VolumeId,
    /// The epoch that accepted it: that of the owner who sends it, or an earlier one (a replayed tail).
    pub epoch: Epoch,
    /// Its position; dense within a log.
    pub lsn: Lsn,
    /// What it does.
    pub kind: u8,
    /// Of the owner.
    pub flags: u8,
    /// First cluster, or whatever `kind` says.
    pub addr: u64,
    /// Number of clusters, or whatever `kind` says.
    pub count: u64,
    /// Of the clusters of the payload.
    pub crcs: SmallVec<[u32; 2]>,
    /// The content.
    pub payload: Bytes,
}

/// An entry in its bytes, which were checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// Its checksum.
    pub crc: u32,
    /// All of it.
    pub bytes: Bytes,
}

impl Entry {
    /// Bytes when packed.
    pub fn packed_len(&self) -> usize {
        HEAD + 4 * self.crcs.len() + self.payload.len()
    }

    /// Whether it is within the bounds of the formats.
    pub fn fits(&self) -> bool {
        self.crcs.len() <= MAX_CRCS && self.payload.len() <= MAX_PAYLOAD && self.lsn.0 > 0
    }

    /// Appends all but the payload to `buf`; returns the checksum of head and payload.
    pub fn pack_head(&self, buf: &mut BytesMut) -> u32 {
        let start = buf.len();
        buf.reserve(HEAD + 4 * self.crcs.len());
        buf.put_u128_le(self.volume.0);
        buf.put_u64_le(self.epoch.0);
        buf.put_u64_le(self.lsn.0);
        buf.put_u64_le(self.addr);
        buf.put_u64_le(self.count);
        buf.put_u32_le(self.crcs.len() as u32);
        buf.put_u32_le(self.payload.len() as u32);
        buf.put_u8(self.kind);
        buf.put_u8(self.flags);
        buf.put_bytes(0, 6);
        for crc in &self.crcs {
            buf.put_u32_le(*crc);
        }
        crc32c_parts(&[&buf[start..], &self.payload])
    }

    /// The entry in its bytes.
    pub fn pack(&self) -> Packed {
        let mut buf = BytesMut::with_capacity(self.packed_len());
        let crc = self.pack_head(&mut buf);
        buf.put_slice(&self.payload);
        Packed { crc, bytes: buf.freeze() }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// What a log needs to know of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Whose log.
    pub volume: VolumeId,
    /// The epoch that accepted it.
    pub epoch: Epoch,
    /// Its position.
    pub lsn: Lsn,
}

/// Looks at the head of packed `bytes`, and whether all lengths agree. The checksum is the caller's.
pub fn head(bytes: &[u8]) -> Result<Head, &'static str> {
    let fixed = bytes.get(..HEAD).ok_or("an entry is too short")?;
    let volume = VolumeId(u128::from_le_bytes(*fixed.first_chunk().ok_or("an entry is too short")?));
    let number = |at| u64_at(fixed, at).ok_or("an entry is too short");
    let (crcs, payload) = (u32_at(fixed, 48).unwrap_or(0) as usize, u32_at(fixed, 52).unwrap_or(0) as usize);
    if crcs > MAX_CRCS || payload > MAX_PAYLOAD || bytes.len() != HEAD + 4 * crcs + payload {
        return Err("an entry's length contradicts itself");
    }
    if fixed[58..].iter().any(|b| *b != 0) {
        return Err("reserved bytes of an entry are set");
    }
    let head = Head { volume, epoch: Epoch(number(16)?), lsn: Lsn(number(24)?) };
    // The last number is kept free, so that there is always a next one.
    if head.lsn.0 == 0 || head.lsn.0 == u64::MAX { Err("an entry's LSN is impossible") } else { Ok(head) }
}

impl Packed {
    /// Checks `bytes` against `crc` and themselves.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn check(crc: u32, bytes: Bytes) -> Result<(Head, Packed), &'static str> {
        if crc32c(&bytes) != crc {
            return Err("an entry's checksum is wrong");
        }
        Ok((head(&bytes)?, Packed { crc, bytes }))
    }

    /// The entry; its payload shares these bytes.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn unpack(&self) -> Result<Entry, &'static str> {
        let bytes = &self.bytes;
        if crc32c(bytes) != self.crc {
            return Err("an entry's checksum is wrong");
        }
        let head = head(bytes)?;
        let crcs = u32_at(bytes, 48).unwrap_or(0) as usize;
        Ok(Entry {
            volume: head.volume,
            epoch: head.epoch,
            lsn: head.lsn,
            addr: u64_at(bytes, 32).unwrap_or(0),
            count: u64_at(bytes, 40).unwrap_or(0),
            kind: bytes[56],
            flags: bytes[57],
            crcs: (0..crcs).filter_map(|i| u32_at(bytes, HEAD + 4 * i)).collect(),
            payload: bytes.slice(HEAD + 4 * crcs..),
        })
    }
}

/// The decoder, for fuzzers: what is read is written the same.
pub fn fuzz(bytes: &[u8]) {
    let _ = head(bytes);
    let bytes = Bytes::copy_from_slice(bytes);
    if let Ok((_, packed)) = Packed::check(crc32c(&bytes), bytes) {
        let again = packed.unpack().map(|entry| entry.pack());
        assert_eq!(again, Ok(packed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_entry_comes_back_as_it_was_packed(
            volume: u128, epoch: u64, lsn in 1..u64::MAX, addr: u64, count: u64, kind: u8, flags: u8,
            crcs in prop::collection::vec(any::<u32>(), 0..9), payload in prop::collection::vec(any::<u8>(), 0..9000),
        ) {
            let entry = Entry {
                volume: VolumeId(volume), epoch: Epoch(epoch), lsn: Lsn(lsn), kind, flags, addr, count,
                crcs: crcs.into(), payload: payload.into(),
            };
            let packed = entry.pack();
            prop_assert_eq!(packed.bytes.len(), entry.packed_len());
            let (head, again) = Packed::check(packed.crc, packed.bytes.clone()).unwrap();
            prop_assert_eq!(head.lsn, entry.lsn);
            prop_assert_eq!(again.unpack().unwrap(), entry);
        }

        #[test]
        fn hostile_bytes_are_refused_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = head(&bytes);
            let crc = crc32c(&bytes);
            if let Ok((_, packed)) = Packed::check(crc, bytes.into()) {
                packed.unpack().unwrap();
            }
        }

        #[test]
        fn a_flipped_bit_is_seen(at in 0usize..200, bit in 0u8..8) {
            let entry = Entry {
                volume: VolumeId(7), epoch: Epoch(1), lsn: Lsn(9), kind: 1, flags: 0, addr: 1, count: 1,
                crcs: SmallVec::from_slice(&[5]), payload: vec![3; 200].into(),
            };
            let packed = entry.pack();
            let mut bytes = packed.bytes.to_vec();
            bytes[at] ^= 1 << bit;
            prop_assert!(Packed::check(packed.crc, bytes.into()).is_err());
        }
    }
}
