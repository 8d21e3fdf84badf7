//! The cache of open files, and reads.
//!
//! A file that is open stays the object that it was when its name is replaced or removed. So who
//! replaces or removes a name drops the open file while no other thread is between opening that
//! name and remembering the file.

use bytes::Bytes;
use parking_lot::RwLock;
use quick_cache::sync::Cache;
use rustix::io::{Errno, ReadWriteFlags};
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::IoSliceMut;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Files kept open, at most: well below the 1,024 that a process may open by default.
const OPEN_FILES: usize = 256;
/// Reads of at most this many bytes are tried from the page cache first.
const SMALL_READ: usize = 128 << 10;
const SHARDS: usize = 64;

/// An open object.
pub(super) struct Object {
    file: File,
    pub(super) len: u64,
    /// The file system answers a read that must not wait.
    nowait: AtomicBool,
}

impl Object {
    /// `len` bytes at `offset`, when they are in memory: never waits for the disk.
    pub(super) fn read_cached(&self, offset: u64, len: usize) -> Option<Bytes> {
        if len > SMALL_READ || !self.nowait.load(Ordering::Relaxed) {
            return None;
        }
        let mut data = vec![0; len];
        let mut slices = [IoSliceMut::new(&mut data)];
        match rustix::io::preadv2(&self.file, &mut slices, offset, ReadWriteFlags::NOWAIT) {
            Ok(n) if n == len => Some(Bytes::from(data)),
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                self.nowait.store(false, Ordering::Relaxed);
                None
            }
            // Not in memory, or only in part.
            _ => None,
        }
    }

    /// `len` bytes at `offset`.
    pub(super) fn read(&self, offset: u64, len: usize) -> std::io::Result<Bytes> {
        let mut data = vec![0; len];
        self.file.read_exact_at(&mut data, offset)?;
        Ok(Bytes::from(data))
    }
}

pub(super) struct Files {
    open: Cache<Box<str>, Arc<Object>>,
    /// Shared: a name is being opened and remembered. Exclusive: it is being replaced or removed.
    names: Box<[RwLock<()>]>,
    hasher: RandomState,
}

impl Files {
    pub(super) fn new() -> Self {
        Self {
            open: Cache::new(OPEN_FILES),
            names: (0..SHARDS).map(|_| RwLock::new(())).collect(),
            hasher: RandomState::new(),
        }
    }

    fn shard(&self, key: &str) -> &RwLock<()> {
        &self.names[self.hasher.hash_one(key) as usize % SHARDS]
    }

    /// The file, if it is open.
    pub(super) fn cached(&self, key: &str) -> Option<Arc<Object>> {
        self.open.get(key)
    }

    /// The file, opened if it is not; `None` when the name is no file.
    pub(super) fn open(&self, key: &str, path: &Path) -> std::io::Result<Option<Arc<Object>>> {
        if let Some(file) = self.open.get(key) {
            return Ok(Some(file));
        }
        let _opening = self.shard(key).read();
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        let file = std::fs::OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path)?;
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Ok(None);
        }
        let file = Arc::new(Object { file, len: meta.len(), nowait: AtomicBool::new(true) });
        self.open.insert(key.into(), file.clone());
        Ok(Some(file))
    }

    /// Does `change` to the name of `key`, and forgets the file that had it.
    pub(super) fn replace(
        &self,
        key: &str,
        change: impl FnOnce() -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        let _changing = self.shard(key).write();
        let outcome = change();
        self.open.remove(key);
        outcome
    }
}
