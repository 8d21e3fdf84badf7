//! A disk in memory that forgets unsynced sectors in a crash.

use crate::disk::{Disk, DiskFile};
use crate::error::{Error, ErrorKind, Result};
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const SECTOR: usize = 512;

/// What goes wrong on a [`SimDisk`], from now on.
#[derive(Debug, Clone, Default)]
pub struct SimDiskFaults {
    /// Creating a file finds no space.
    pub full: bool,
    /// The next this many syncs fail.
    pub failing_syncs: u32,
    /// The next this many writes fail.
    pub failing_writes: u32,
}

#[derive(Default)]
struct Content {
    now: Vec<u8>,
    durable: Vec<u8>,
    unsynced: BTreeSet<usize>,
}

#[derive(Default)]
struct Inner {
    files: BTreeMap<String, Arc<Mutex<Content>>>,
    faults: SimDiskFaults,
    generation: u64,
    writes: u64,
    crash_at_write: Option<u64>,
}

/// A disk in memory. Clones share it; [`SimDisk::crash`] makes every open file handle fail.
#[derive(Clone, Default)]
pub struct SimDisk {
    inner: Arc<Mutex<Inner>>,
    /// The life that this handle belongs to; `None` for the tester's own.
    life: Option<u64>,
}

impl SimDisk {
    /// An empty disk.
    pub fn new() -> Self {
        Self::default()
    }

    /// The disk as one process sees it: void after the next [`SimDisk::kill`] or [`SimDisk::crash`].
    pub fn process(&self) -> SimDisk {
        SimDisk { inner: self.inner.clone(), life: Some(self.inner.lock().generation) }
    }

    fn alive(&self) -> Result<parking_lot::MutexGuard<'_, Inner>> {
        let inner = self.inner.lock();
        match self.life {
            Some(life) if life != inner.generation => Err(Error::internal("this process is dead")),
            _ => Ok(inner),
        }
    }

    /// Sets what goes wrong from now on.
    pub fn set_faults(&self, faults: SimDiskFaults) {
        self.inner.lock().faults = faults;
    }

    /// Number of writes and syncs so far.
    pub fn effects(&self) -> u64 {
        self.inner.lock().writes
    }

    /// From effect number `n` on, every write and sync fails, as for a process that was killed.
    pub fn die_at_effect(&self, n: Option<u64>) {
        self.inner.lock().crash_at_write = n;
    }

    /// The death of the process: handles of before are void, nothing that was written is lost.
    pub fn kill(&self) {
        let mut inner = self.inner.lock();
        inner.generation += 1;
        inner.crash_at_write = None;
    }

    /// A power cut: each unsynced sector keeps its new or its old content, as `keep` says; handles
    /// of before are void.
    pub fn crash(&self, mut keep: impl FnMut() -> bool) {
        let mut inner = self.inner.lock();
        inner.generation += 1;
        inner.crash_at_write = None;
        for content in inner.files.values() {
            let mut content = content.lock();
            let content = &mut *content;
            for sector in std::mem::take(&mut content.unsynced) {
                let range = sector * SECTOR..((sector + 1) * SECTOR).min(content.now.len());
                if !keep() {
                    content.now[range.clone()].copy_from_slice(&content.durable[range]);
                }
            }
            content.durable.copy_from_slice(&content.now);
        }
    }

    /// Flips one bit of the file's content, durably.
    pub fn flip_bit(&self, name: &str, offset: usize, bit: u8) {
        if let Some(content) = self.inner.lock().files.get(name) {
            let mut content = content.lock();
            content.now[offset] ^= 1 << bit;
            content.durable[offset] ^= 1 << bit;
        }
    }

    fn handle(&self, inner: &Inner, name: &str, content: &Arc<Mutex<Content>>) -> Arc<dyn DiskFile> {
        Arc::new(SimFile {
            disk: self.clone(),
            name: name.to_string(),
            content: content.clone(),
            generation: inner.generation,
            len: content.lock().now.len() as u64,
        })
    }
}

#[async_trait]
impl Disk for SimDisk {
    async fn create(&self, name: &str, size: u64) -> Result<Arc<dyn DiskFile>> {
        let mut inner = self.alive()?;
        if inner.faults.full {
            return Err(Error::new(ErrorKind::NoSpace, format!("creating {name}: no space left on device")));
        }
        if inner.files.contains_key(name) {
            return Err(Error::conflict(format!("{name} exists")));
        }
        let zeroes = vec![0u8; size as usize];
        let content =
            Arc::new(Mutex::new(Content { now: zeroes.clone(), durable: zeroes, unsynced: BTreeSet::new() }));
        inner.files.insert(name.to_string(), content.clone());
        Ok(self.handle(&inner, name, &content))
    }

    async fn open(&self, name: &str) -> Result<Arc<dyn DiskFile>> {
        let inner = self.alive()?;
        match inner.files.get(name) {
            Some(content) => Ok(self.handle(&inner, name, content)),
            None => Err(Error::not_found(format!("{name} does not exist"))),
        }
    }

    async fn list(&self) -> Result<Vec<String>> {
        Ok(self.alive()?.files.keys().cloned().collect())
    }

    async fn remove(&self, name: &str) -> Result<()> {
        match self.alive()?.files.remove(name) {
            Some(_) => Ok(()),
            None => Err(Error::not_found(format!("{name} does not exist"))),
        }
    }
}

struct SimFile {
    disk: SimDisk,
    name: String,
    content: Arc<Mutex<Content>>,
    generation: u64,
    len: u64,
}

impl SimFile {
    fn effect(&self, failing: impl FnOnce(&mut SimDiskFaults) -> &mut u32) -> Result<()> {
        let mut inner = self.disk.inner.lock();
        if inner.generation != self.generation {
            return Err(Error::internal(format!("{}: this process is dead", self.name)));
        }
        inner.writes += 1;
        if inner.crash_at_write.is_some_and(|n| inner.writes >= n) {
            return Err(Error::internal(format!("{}: this process is dying", self.name)));
        }
        let failing = failing(&mut inner.faults);
        if *failing > 0 {
            *failing -= 1;
            return Err(Error::internal(format!("{}: simulated I/O error", self.name)));
        }
        Ok(())
    }
}

#[async_trait]
impl DiskFile for SimFile {
    fn len(&self) -> u64 {
        self.len
    }

    async fn write_at(&self, offset: u64, parts: &[Bytes]) -> Result<()> {
        self.effect(|f| &mut f.failing_writes)?;
        let mut content = self.content.lock();
        let mut at = offset as usize;
        for part in parts {
            let Some(target) = content.now.get_mut(at..at + part.len()) else {
                return Err(Error::internal(format!("{}: write beyond the end", self.name)));
            };
            target.copy_from_slice(part);
            at += part.len();
        }
        let sectors = offset as usize / SECTOR..at.div_ceil(SECTOR);
        content.unsynced.extend(sectors);
        Ok(())
    }

    async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes> {
        let content = self.content.lock();
        match content.now.get(offset as usize..offset as usize + len) {
            Some(bytes) => Ok(Bytes::copy_from_slice(bytes)),
            None => Err(Error::corrupt(format!("{}: read beyond the end", self.name))),
        }
    }

    async fn sync(&self) -> Result<()> {
        self.effect(|f| &mut f.failing_syncs)?;
        let mut content = self.content.lock();
        let content = &mut *content;
        for sector in std::mem::take(&mut content.unsynced) {
            let range = sector * SECTOR..((sector + 1) * SECTOR).min(content.now.len());
            content.durable[range.clone()].copy_from_slice(&content.now[range]);
        }
        Ok(())
    }
}
