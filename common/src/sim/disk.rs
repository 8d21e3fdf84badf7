//! A disk in memory that forgets unsynced sectors in a crash.

use crate::disk::{Disk, DiskFile};
use crate::error::{Error, ErrorKind, Result};
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

const SECTOR: usize = 512;
const PAGE: usize = 4096;
/// What was never written, to be lent out: most of what recovery reads.
static ZEROES: [u8; 1 << 20] = [0; 1 << 20];

/// What goes wrong on a [`SimDisk`], from now on.
#[derive(Debug, Clone, Default)]
pub struct SimDiskFaults {
    /// Creating a file finds no space.
    pub full: bool,
    /// The next this many syncs fail.
    pub failing_syncs: u32,
    /// The next this many writes fail.
    pub failing_writes: u32,
    /// The next this many reads return one wrong bit.
    pub flipped_reads: u32,
    /// Each sync takes up to this long.
    pub max_latency: Duration,
}

/// What did go wrong on a [`SimDisk`], counted.
#[derive(Debug, Clone, Copy, Default)]
pub struct SimDiskTally {
    /// Creations that found no space.
    pub full: u64,
    /// Writes that failed.
    pub failed_writes: u64,
    /// Syncs that failed.
    pub failed_syncs: u64,
    /// Reads with a wrong bit.
    pub flipped_reads: u64,
    /// Effects that a dying process did not get done.
    pub dead_effects: u64,
    /// Unsynced sectors that a power cut kept.
    pub kept_sectors: u64,
    /// Unsynced sectors that a power cut, or an earlier failed sync, lost.
    pub lost_sectors: u64,
}

/// Bytes that are zero until they are written, kept by the page.
#[derive(Default)]
struct Sparse {
    pages: BTreeMap<usize, Box<[u8; PAGE]>>,
    len: usize,
}

impl Sparse {
    fn read(&self, at: usize, out: &mut [u8]) {
        let mut done = 0;
        while done < out.len() {
            let (page, skip) = ((at + done) / PAGE, (at + done) % PAGE);
            let n = (PAGE - skip).min(out.len() - done);
            if let Some(page) = self.pages.get(&page) {
                out[done..done + n].copy_from_slice(&page[skip..skip + n]);
            }
            done += n;
        }
    }

    fn is_zero(&self, at: usize, len: usize) -> bool {
        self.pages.range(at / PAGE..(at + len).div_ceil(PAGE)).next().is_none()
    }

    fn write(&mut self, at: usize, data: &[u8]) {
        let mut done = 0;
        while done < data.len() {
            let (page, skip) = ((at + done) / PAGE, (at + done) % PAGE);
            let n = (PAGE - skip).min(data.len() - done);
            let page = self.pages.entry(page).or_insert_with(|| Box::new([0; PAGE]));
            page[skip..skip + n].copy_from_slice(&data[done..done + n]);
            done += n;
        }
    }

    fn copy_sector(&mut self, from: &Sparse, sector: usize) {
        let mut bytes = [0; SECTOR];
        from.read(sector * SECTOR, &mut bytes);
        self.write(sector * SECTOR, &bytes);
    }
}

#[derive(Default)]
struct Content {
    now: Sparse,
    durable: Sparse,
    unsynced: BTreeSet<usize>,
    /// Sectors whose sync failed: clean in the kernel's eyes, and not on the platter. No later sync writes them.
    dropped: BTreeSet<usize>,
}

#[derive(Default)]
struct Inner {
    files: BTreeMap<String, Arc<Mutex<Content>>>,
    faults: SimDiskFaults,
    tally: SimDiskTally,
    random: Option<fastrand::Rng>,
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

    /// The source of latencies; without one there are none.
    pub fn set_random(&self, random: fastrand::Rng) {
        self.inner.lock().random = Some(random);
    }

    /// What went wrong so far.
    pub fn tally(&self) -> SimDiskTally {
        self.inner.lock().tally
    }

    /// Counts what goes wrong from zero again.
    pub fn forget_tally(&self) {
        self.inner.lock().tally = SimDiskTally::default();
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
        let Inner { files, tally, .. } = &mut *inner;
        for content in files.values() {
            let mut content = content.lock();
            let content = &mut *content;
            for sector in std::mem::take(&mut content.unsynced) {
                if keep() {
                    tally.kept_sectors += 1;
                    content.durable.copy_sector(&content.now, sector);
                } else {
                    tally.lost_sectors += 1;
                    content.now.copy_sector(&content.durable, sector);
                }
            }
            for sector in std::mem::take(&mut content.dropped) {
                tally.lost_sectors += 1;
                content.now.copy_sector(&content.durable, sector);
            }
        }
    }

    /// Flips one bit of the file's content, durably.
    pub fn flip_bit(&self, name: &str, offset: usize, bit: u8) {
        if let Some(content) = self.inner.lock().files.get(name) {
            let mut content = content.lock();
            let content = &mut *content;
            for copy in [&mut content.now, &mut content.durable] {
                let mut byte = [0];
                copy.read(offset, &mut byte);
                copy.write(offset, &[byte[0] ^ (1 << bit)]);
            }
        }
    }

    fn handle(&self, inner: &Inner, name: &str, content: &Arc<Mutex<Content>>) -> Arc<dyn DiskFile> {
        Arc::new(SimFile {
            disk: self.clone(),
            name: name.to_string(),
            content: content.clone(),
            generation: inner.generation,
            len: content.lock().now.len as u64,
        })
    }
}

#[async_trait]
impl Disk for SimDisk {
    async fn create(&self, name: &str, size: u64) -> Result<Arc<dyn DiskFile>> {
        let mut inner = self.alive()?;
        if inner.faults.full {
            inner.tally.full += 1;
            return Err(Error::new(ErrorKind::NoSpace, format!("creating {name}: no space left on device")));
        }
        if inner.files.contains_key(name) {
            return Err(Error::conflict(format!("{name} exists")));
        }
        let empty = || Sparse { len: size as usize, ..Sparse::default() };
        let content = Content { now: empty(), durable: empty(), ..Content::default() };
        let content = Arc::new(Mutex::new(content));
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

    async fn available(&self) -> Result<u64> {
        Ok(if self.alive()?.faults.full { 0 } else { 1 << 40 })
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
    fn effect(&self, failing: impl FnOnce(&mut Inner) -> (&mut u32, &mut u64)) -> Result<()> {
        let mut inner = self.disk.inner.lock();
        if inner.generation != self.generation {
            return Err(Error::internal(format!("{}: this process is dead", self.name)));
        }
        inner.writes += 1;
        if inner.crash_at_write.is_some_and(|n| inner.writes >= n) {
            inner.tally.dead_effects += 1;
            return Err(Error::internal(format!("{}: this process is dying", self.name)));
        }
        let (failing, count) = failing(&mut inner);
        if *failing > 0 {
            *failing -= 1;
            *count += 1;
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
        self.effect(|i| (&mut i.faults.failing_writes, &mut i.tally.failed_writes))?;
        let mut content = self.content.lock();
        let mut at = offset as usize;
        for part in parts {
            if at + part.len() > content.now.len {
                return Err(Error::internal(format!("{}: write beyond the end", self.name)));
            }
            content.now.write(at, part);
            at += part.len();
        }
        for sector in offset as usize / SECTOR..at.div_ceil(SECTOR) {
            content.unsynced.insert(sector);
            content.dropped.remove(&sector);
        }
        Ok(())
    }

    async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes> {
        let mut bytes = Vec::new();
        {
            let content = self.content.lock();
            if offset as usize + len > content.now.len {
                return Err(Error::corrupt(format!("{}: read beyond the end", self.name)));
            }
            if content.now.is_zero(offset as usize, len) && len <= ZEROES.len() {
                return Ok(Bytes::from_static(&ZEROES[..len]));
            }
            bytes.resize(len, 0);
            content.now.read(offset as usize, &mut bytes);
        }
        let mut inner = self.disk.inner.lock();
        if inner.faults.flipped_reads > 0 && len > 0 {
            inner.faults.flipped_reads -= 1;
            inner.tally.flipped_reads += 1;
            bytes[len / 2] ^= 1;
        }
        Ok(bytes.into())
    }

    async fn sync(&self) -> Result<()> {
        let latency = {
            let mut inner = self.disk.inner.lock();
            let max = inner.faults.max_latency.as_micros() as u64;
            inner.random.as_mut().map_or(0, |random| if max == 0 { 0 } else { random.u64(0..=max) })
        };
        if latency > 0 {
            #[allow(clippy::disallowed_methods)]
            tokio::time::sleep(Duration::from_micros(latency)).await;
        }
        let before = self.disk.tally().failed_syncs;
        let failing = self.effect(|i| (&mut i.faults.failing_syncs, &mut i.tally.failed_syncs));
        let dropped = self.disk.tally().failed_syncs > before;
        let mut content = self.content.lock();
        let content = &mut *content;
        if dropped {
            let unsynced = std::mem::take(&mut content.unsynced);
            content.dropped.extend(unsynced);
        }
        failing?;
        for sector in std::mem::take(&mut content.unsynced) {
            content.durable.copy_sector(&content.now, sector);
        }
        Ok(())
    }
}
