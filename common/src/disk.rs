//! The local disk's door: named files of a fixed size.

pub mod local;

use crate::error::Result;
use async_trait::async_trait;
use bytes::Bytes;
use std::sync::Arc;

/// A folder of files.
#[async_trait]
pub trait Disk: Send + Sync {
    /// Creates `name`, `size` bytes, allocated and written with zeroes once, durable with its
    /// name when this returns. A full disk is `NoSpace` and leaves nothing behind.
    async fn create(&self, name: &str, size: u64) -> Result<Arc<dyn DiskFile>>;

    /// As [`Disk::create`], but what is in it may not be written yet, only taken: for large files that are written once,
    /// from one end to the other, where writing zeroes first would double every byte. Reads as zeroes; syncs may cost more.
    async fn allocate(&self, name: &str, size: u64) -> Result<Arc<dyn DiskFile>> {
        self.create(name, size).await
    }

    /// Opens `name` for reading and writing.
    async fn open(&self, name: &str) -> Result<Arc<dyn DiskFile>>;

    /// Bytes that could still be taken from the file system that this is on.
    async fn available(&self) -> Result<u64>;

    /// Names of all files, in order.
    async fn list(&self) -> Result<Vec<String>>;

    /// Removes `name`, durably.
    async fn remove(&self, name: &str) -> Result<()>;
}

/// A file of a fixed size, overwritten in place.
#[async_trait]
pub trait DiskFile: Send + Sync {
    /// Size in bytes.
    fn len(&self) -> u64;

    /// Whether the file has no bytes at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes `parts`, one behind the other, at `offset`. When it returns, the kernel has them:
    /// the death of this process loses nothing. Order among unsynced writes is not kept by a
    /// power cut, and any 512-byte sector of them may be lost.
    async fn write_at(&self, offset: u64, parts: &[Bytes]) -> Result<()>;

    /// Reads `len` bytes at `offset`.
    async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes>;

    /// Returns when every write that had returned before this call survives a power cut. After
    /// an error nothing unsynced in this file may be counted on, ever.
    async fn sync(&self) -> Result<()>;
}
