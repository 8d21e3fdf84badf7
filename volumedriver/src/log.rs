//! The words of the log: what one entry is, wherever it lies (memory, journal, DTL, SCO).

use bytes::Bytes;
use common::crc::crc32c_parts;
use common::{Epoch, Lsn, VolumeId};
use smallvec::SmallVec;

/// Logical cluster number: byte offset divided by the vPool's cluster size.
pub type ClusterAddress = u64;

/// The most clusters that describe a snapshot.
pub const MAX_MARKER: u64 = 8;

/// CRC32C of each cluster of an entry, in order of address (see [`cluster_crc`]).
pub type Crcs = SmallVec<[u32; 2]>;

/// What an entry does. The numbers are those of every format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Clusters with content.
    Data = 1,
    /// A range that reads as zeroes and stays allocated.
    Zero = 2,
    /// A range that reads as zeroes and is a hole.
    Discard = 3,
    /// A snapshot: whatever came before it, for ever. Its content describes it ([`crate::format::snapshot`]).
    Snapshot = 4,
    /// A new size of the volume, in bytes, in the place of the address.
    Resize = 5,
    /// Reserved: a rollback is recorded in the cut of a new epoch, not in the log.
    Rollback = 6,
}

impl Kind {
    /// The kind with number `n`.
    pub fn from_u8(n: u8) -> Option<Kind> {
        Some(match n {
            1 => Kind::Data,
            2 => Kind::Zero,
            3 => Kind::Discard,
            4 => Kind::Snapshot,
            5 => Kind::Resize,
            6 => Kind::Rollback,
            _ => return None,
        })
    }

    /// Whether `addr` and `count` name a range of clusters.
    pub fn is_range(self) -> bool {
        matches!(self, Kind::Data | Kind::Zero | Kind::Discard)
    }

    /// Whether it has clusters with content.
    pub fn has_content(self) -> bool {
        matches!(self, Kind::Data | Kind::Snapshot)
    }

    /// Whether `count` clusters from `addr` on are what an entry of this kind names: a range that is not
    /// empty and ends somewhere, the few clusters that describe a snapshot, or none.
    pub fn fits(self, addr: u64, count: u64) -> bool {
        match self {
            Kind::Data | Kind::Zero | Kind::Discard => count > 0 && addr.checked_add(count).is_some(),
            Kind::Snapshot => addr == 0 && (1..=MAX_MARKER).contains(&count),
            Kind::Resize | Kind::Rollback => count == 0,
        }
    }
}

/// One entry of a volume's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// Whose log.
    pub volume: VolumeId,
    /// The epoch that accepted it; a copy keeps it.
    pub epoch: Epoch,
    /// Its position; dense within the volume.
    pub lsn: Lsn,
    /// What it does.
    pub kind: Kind,
    /// First cluster ([`Kind::is_range`]), or the new size in bytes ([`Kind::Resize`]).
    pub addr: u64,
    /// Number of clusters; 0 when the kind has neither a range nor content.
    pub count: u64,
    /// The content: `count` clusters if the kind has any ([`Kind::has_content`]), else empty.
    pub data: Bytes,
    /// One per cluster of the content.
    pub crcs: Crcs,
}

/// The checksum of a cluster: over (writing volume, address, content), so that a misdirected
/// cluster is caught as surely as a flipped bit. The LSN is covered by the checksums of the
/// structures that name the cluster.
pub fn cluster_crc(volume: VolumeId, addr: ClusterAddress, data: &[u8]) -> u32 {
    crc32c_parts(&[&volume.0.to_le_bytes(), &addr.to_le_bytes(), data])
}

/// The checksums of consecutive clusters from `addr` on.
pub fn cluster_crcs(volume: VolumeId, addr: ClusterAddress, data: &[u8], cluster_size: usize) -> Crcs {
    data.chunks(cluster_size).zip(addr..).map(|(cluster, addr)| cluster_crc(volume, addr, cluster)).collect()
}
