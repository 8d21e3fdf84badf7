//! The block front end's door: an open virtual disk, and the directory that opens one by name.

use crate::error::{Error, Result};
use async_trait::async_trait;
use bytes::Bytes;
use std::sync::Arc;

/// What a client must know of a device before its first request. All in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Size of the device. May grow while the device is open.
    pub size: u64,
    /// Smallest unit of a request: offset and length are multiples of it.
    pub min_block: u32,
    /// Unit that is served without read-modify-write, and never torn.
    pub preferred_block: u32,
    /// Largest payload of one request.
    pub max_payload: u32,
    /// Whether writes of any kind are refused.
    pub read_only: bool,
}

/// A run of a device with one allocation state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Length in bytes, never 0.
    pub len: u64,
    /// Nothing is stored here (a hole; reads as zeroes).
    pub hole: bool,
    /// Reads as zeroes.
    pub zero: bool,
}

/// A snapshot of a device's disk that it can be compared with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Baseline {
    /// Its name.
    pub name: String,
    /// Its identity, which no other snapshot of the disk ever has.
    pub id: u128,
}

/// A run of a device that may differ from a snapshot, or does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Difference {
    /// Length in bytes, never 0.
    pub len: u64,
    /// It may differ. What is not `changed` reads as in the snapshot.
    pub changed: bool,
}

/// An open virtual disk.
///
/// Requests may be issued concurrently, from any number of tasks. A request that has returned is
/// visible to every request issued later, on any handle of the device. A request whose future is
/// dropped may or may not take effect. Offsets and lengths need not be aligned to
/// `preferred_block`; beyond the end is [`crate::ErrorKind::Invalid`] for reads and
/// [`crate::ErrorKind::NoSpace`] for writes.
#[async_trait]
pub trait BlockDevice: Send + Sync {
    /// Size, block sizes, read-only. Cheap; asks again at each call.
    fn geometry(&self) -> Geometry;

    /// Reads `len` bytes at `offset`.
    async fn read(&self, offset: u64, len: u32) -> Result<Bytes>;

    /// Writes `data` at `offset`. Acknowledged means: survives the death of this process. With
    /// `fua`: survives whatever a completed flush survives.
    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<()>;

    /// Makes the range read as zeroes, keeping it allocated in the client's eyes unless `hole`
    /// is set. Costs the same for any length.
    async fn write_zeroes(&self, offset: u64, len: u64, hole: bool, fua: bool) -> Result<()>;

    /// Gives the range back: it reads as zeroes and is a hole.
    async fn discard(&self, offset: u64, len: u64, fua: bool) -> Result<()>;

    /// Returns when every request that had completed before this call is durable.
    async fn flush(&self) -> Result<()>;

    /// The allocation state of the range, as runs in order that add up to `len` or to less
    /// (never nothing).
    async fn extents(&self, offset: u64, len: u64) -> Result<Vec<Extent>>;

    /// Brings the range nearer (a read that nobody waits for). May do nothing.
    async fn prefetch(&self, offset: u64, len: u64) -> Result<()>;

    /// The snapshots that [`BlockDevice::differences`] compares with, the oldest first.
    fn baselines(&self) -> Vec<Baseline> {
        Vec::new()
    }

    /// Where the range may differ from the snapshot with this identity, as runs in order that add up to
    /// `len` or to less (never nothing). What was acknowledged before the call counts. `NotFound`
    /// once the snapshot is gone.
    async fn differences(&self, since: u128, offset: u64, len: u64) -> Result<Vec<Difference>> {
        let _ = (offset, len);
        Err(Error::not_found(format!("there is no snapshot {since:032x}")))
    }
}

/// A line of the export list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportInfo {
    /// The full name, `vpool/vdisk`.
    pub name: String,
    /// A text for people.
    pub description: String,
}

/// Opens block devices by name.
#[async_trait]
pub trait Exports: Send + Sync {
    /// All exports, in order of name.
    async fn list(&self) -> Result<Vec<ExportInfo>>;

    /// Opens the device called `name`: `vpool/vdisk`, or the vDisk's name alone when no other
    /// vPool has one of that name. The device counts as in use while the handle lives.
    async fn open(&self, name: &str) -> Result<Arc<dyn BlockDevice>>;
}
