//! A table in memory that forgets any suffix of its unsynced batches in a crash.

use crate::error::{Error, ErrorKind, Result};
use crate::table::{Batch, Table};
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::BTreeMap;

type Map = BTreeMap<Vec<u8>, Bytes>;

#[derive(Default)]
struct Inner {
    now: Map,
    durable: Map,
    unsynced: Vec<Batch>,
    failing_writes: u32,
    failed_writes: u64,
}

/// A table in memory.
#[derive(Default)]
pub struct SimTable {
    inner: Mutex<Inner>,
}

fn apply(map: &mut Map, batch: &Batch) {
    for (key, value) in &batch.ops {
        match value {
            Some(value) => map.insert(key.clone(), value.clone()),
            None => map.remove(key),
        };
    }
}

impl SimTable {
    /// An empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// The table as the next process finds it after a kill: whoever still holds this one writes
    /// into the void.
    pub fn successor(&self) -> SimTable {
        let inner = self.inner.lock();
        let (now, durable) = (inner.now.clone(), inner.durable.clone());
        let unsynced = inner.unsynced.clone();
        let failed_writes = inner.failed_writes;
        SimTable { inner: Mutex::new(Inner { now, durable, unsynced, failing_writes: 0, failed_writes }) }
    }

    /// The next `n` writes fail for want of space.
    pub fn fail_writes(&self, n: u32) {
        self.inner.lock().failing_writes = n;
    }

    /// Writes that failed so far.
    pub fn failed_writes(&self) -> u64 {
        self.inner.lock().failed_writes
    }

    /// A crash that keeps the first `keep(n)` of the `n` unsynced batches.
    pub fn crash(&self, keep: impl FnOnce(usize) -> usize) {
        let mut inner = self.inner.lock();
        let unsynced = std::mem::take(&mut inner.unsynced);
        let keep = keep(unsynced.len()).min(unsynced.len());
        for batch in &unsynced[..keep] {
            apply(&mut inner.durable, batch);
        }
        inner.now = inner.durable.clone();
    }
}

impl Table for SimTable {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        Ok(self.inner.lock().now.get(key).cloned())
    }

    fn scan(&self, prefix: &[u8], from: &[u8], limit: usize) -> Result<Vec<(Vec<u8>, Bytes)>> {
        let start = prefix.max(from).to_vec();
        let inner = self.inner.lock();
        let pairs = inner.now.range(start..).take_while(|(k, _)| k.starts_with(prefix)).take(limit);
        Ok(pairs.map(|(k, v)| (k.clone(), v.clone())).collect())
    }

    fn write(&self, batch: Batch) -> Result<()> {
        let mut inner = self.inner.lock();
        if inner.failing_writes > 0 {
            inner.failing_writes -= 1;
            inner.failed_writes += 1;
            return Err(Error::new(ErrorKind::NoSpace, "simulated table: no space left on device"));
        }
        apply(&mut inner.now, &batch);
        inner.unsynced.push(batch);
        Ok(())
    }

    fn delete_prefix(&self, prefix: &[u8]) -> Result<()> {
        let mut batch = Batch::default();
        for (key, _) in self.scan(prefix, prefix, usize::MAX)? {
            batch.delete(key);
        }
        self.write(batch)
    }

    fn checkpoint(&self) -> Result<()> {
        let mut inner = self.inner.lock();
        inner.unsynced.clear();
        inner.durable = inner.now.clone();
        Ok(())
    }
}
