//! A disk in memory, thin in chunks of 64 KiB, that can be slow, broken or read-only.

use async_trait::async_trait;
use bytes::Bytes;
use common::{Baseline, BlockDevice, Difference, Error, ExportInfo, Exports, Extent, Geometry, Result};
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

const CHUNK: usize = 64 << 10;

/// Absent: a hole.
type Chunk = RwLock<Option<Box<[u8]>>>;

/// The disk.
pub struct Memory {
    size: AtomicU64,
    pub read_only: bool,
    chunks: RwLock<Vec<Chunk>>,
    pub flushes: AtomicUsize,
    pub fuas: AtomicUsize,
    /// While held, reads and writes wait.
    pub gate: tokio::sync::RwLock<()>,
    /// Bytes of payload that wait at the gate, and the most there ever were.
    pub waiting: Mutex<(u64, u64)>,
    /// The offset at which everything fails.
    pub broken: Mutex<Option<(u64, Error)>>,
}

impl Memory {
    pub fn new(size: u64, read_only: bool) -> Self {
        let memory = Self {
            size: AtomicU64::new(0),
            read_only,
            chunks: RwLock::new(Vec::new()),
            flushes: AtomicUsize::new(0),
            fuas: AtomicUsize::new(0),
            gate: tokio::sync::RwLock::new(()),
            waiting: Mutex::new((0, 0)),
            broken: Mutex::new(None),
        };
        memory.grow(size);
        memory
    }

    pub fn grow(&self, size: u64) {
        self.chunks.write().resize_with(size.div_ceil(CHUNK as u64) as usize, || RwLock::new(None));
        self.size.store(size, Ordering::SeqCst);
    }

    fn check(&self, offset: u64, len: u64) -> Result<()> {
        if let Some((at, error)) = &*self.broken.lock()
            && (offset..offset + len.max(1)).contains(at)
        {
            return Err(error.clone());
        }
        assert!(offset + len <= self.size.load(Ordering::SeqCst), "the server checks bounds");
        Ok(())
    }

    async fn pass(&self, bytes: u64) {
        if let Ok(_open) = self.gate.try_read() {
            return;
        }
        {
            let mut waiting = self.waiting.lock();
            waiting.0 += bytes;
            waiting.1 = waiting.1.max(waiting.0);
        }
        drop(self.gate.read().await);
        self.waiting.lock().0 -= bytes;
    }

    fn each(&self, offset: u64, len: u64, mut f: impl FnMut(&Chunk, usize, usize, usize)) {
        let chunks = self.chunks.read();
        let mut done = 0;
        while done < len {
            let at = offset + done;
            let inside = (at % CHUNK as u64) as usize;
            let n = (CHUNK - inside).min((len - done) as usize);
            f(&chunks[(at / CHUNK as u64) as usize], inside, n, done as usize);
            done += n as u64;
        }
    }

    fn clear(&self, offset: u64, len: u64, hole: bool) {
        self.each(offset, len, |chunk, inside, n, _| {
            let mut chunk = chunk.write();
            if hole && n == CHUNK {
                *chunk = None;
            } else if !hole {
                let data = chunk.get_or_insert_with(|| vec![0; CHUNK].into_boxed_slice());
                data[inside..inside + n].fill(0);
            } else if let Some(data) = &mut *chunk {
                data[inside..inside + n].fill(0);
            }
        });
    }

    fn count(&self, fua: bool) {
        self.fuas.fetch_add(usize::from(fua), Ordering::SeqCst);
    }
}

#[async_trait]
impl BlockDevice for Memory {
    fn geometry(&self) -> Geometry {
        Geometry {
            size: self.size.load(Ordering::SeqCst),
            min_block: 512,
            preferred_block: 4096,
            max_payload: 32 << 20,
            read_only: self.read_only,
        }
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Bytes> {
        self.check(offset, u64::from(len))?;
        self.pass(u64::from(len)).await;
        let mut data = Vec::with_capacity(len as usize);
        self.each(offset, u64::from(len), |chunk, inside, n, _| match &*chunk.read() {
            Some(chunk) => data.extend_from_slice(&chunk[inside..inside + n]),
            None => data.resize(data.len() + n, 0),
        });
        Ok(data.into())
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<()> {
        self.check(offset, data.len() as u64)?;
        assert!(!self.read_only);
        self.pass(data.len() as u64).await;
        // As a device that gathers its neighbours does: asks to be polled once more.
        let mut yielded = false;
        std::future::poll_fn(|cx| {
            if std::mem::replace(&mut yielded, true) {
                return std::task::Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            std::task::Poll::Pending
        })
        .await;
        self.count(fua);
        self.each(offset, data.len() as u64, |chunk, inside, n, from| {
            let mut chunk = chunk.write();
            let chunk = chunk.get_or_insert_with(|| vec![0; CHUNK].into_boxed_slice());
            chunk[inside..inside + n].copy_from_slice(&data[from..from + n]);
        });
        Ok(())
    }

    async fn write_zeroes(&self, offset: u64, len: u64, hole: bool, fua: bool) -> Result<()> {
        self.check(offset, len)?;
        self.count(fua);
        self.clear(offset, len, hole);
        Ok(())
    }

    async fn discard(&self, offset: u64, len: u64, fua: bool) -> Result<()> {
        self.check(offset, len)?;
        self.count(fua);
        self.clear(offset, len, true);
        Ok(())
    }

    async fn flush(&self) -> Result<()> {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    async fn extents(&self, offset: u64, len: u64) -> Result<Vec<Extent>> {
        self.check(offset, len)?;
        let mut extents = Vec::new();
        self.each(offset, len, |chunk, inside, n, _| {
            let (hole, zero) = match &*chunk.read() {
                None => (true, true),
                Some(data) => (false, data[inside..inside + n].iter().all(|b| *b == 0)),
            };
            extents.push(Extent { len: n as u64, hole, zero });
        });
        Ok(extents)
    }

    async fn prefetch(&self, offset: u64, len: u64) -> Result<()> {
        self.check(offset, len)
    }

    /// Two of the empty disk, and one that goes when it is asked for.
    fn baselines(&self) -> Vec<Baseline> {
        let named = |(name, id): (&str, u128)| Baseline { name: name.into(), id };
        [("first", 7), ("second", 8), ("gone", 9)].map(named).to_vec()
    }

    async fn differences(&self, since: u128, offset: u64, len: u64) -> Result<Vec<Difference>> {
        if since == 9 {
            return Err(Error::not_found("there is no snapshot 'gone'"));
        }
        let extents = self.extents(offset, len).await?;
        Ok(extents.iter().map(|e| Difference { len: e.len, changed: !e.hole }).collect())
    }
}

/// Disks by name.
#[derive(Default)]
pub struct Shelf(pub BTreeMap<String, Arc<Memory>>);

#[async_trait]
impl Exports for Shelf {
    async fn list(&self) -> Result<Vec<ExportInfo>> {
        let line = |name: &String| ExportInfo { name: name.clone(), description: format!("about {name}") };
        Ok(self.0.keys().map(line).collect())
    }

    async fn open(&self, name: &str) -> Result<Arc<dyn BlockDevice>> {
        let suffix = format!("/{name}");
        let found = self.0.iter().find(|(full, _)| *full == name || full.ends_with(&suffix));
        match found {
            Some((_, disk)) => Ok(disk.clone()),
            None => Err(Error::not_found(format!("there is no vDisk {name:?}"))),
        }
    }
}
