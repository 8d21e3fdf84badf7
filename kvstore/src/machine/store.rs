//! Where the state lies: a local table of which a frozen view can be taken, to stream snapshots from.

use crate::error::from_rocksdb;
use crate::table::{RocksSettings, RocksTable, base_options, scan};
use bytes::Bytes;
use common::sim::SimTable;
use common::table::{Batch, Table};
use common::{Error, Result};
use rocksdb::DB;
use rocksdb::checkpoint::Checkpoint;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// A local table that can be looked at as it is at one moment, for as long as it takes.
pub trait StateStore: Table {
    /// The table as it is now, unmoved by later writes.
    fn view(&self) -> Result<Box<dyn View>>;
}

/// A table as it was at one moment.
pub trait View: Send + Sync {
    /// Up to `limit` pairs whose key begins with `prefix`, in order, from `from` on.
    fn scan(&self, prefix: &[u8], from: &[u8], limit: usize) -> Result<Vec<(Vec<u8>, Bytes)>>;
}

impl StateStore for SimTable {
    fn view(&self) -> Result<Box<dyn View>> {
        Ok(Box::new(self.successor()))
    }
}

impl View for SimTable {
    fn scan(&self, prefix: &[u8], from: &[u8], limit: usize) -> Result<Vec<(Vec<u8>, Bytes)>> {
        Table::scan(self, prefix, from, limit)
    }
}

/// The state in a RocksDB database of its own. A view is a checkpoint beside it: hard links, removed when it is dropped.
pub struct RocksState {
    table: RocksTable,
    views: PathBuf,
    next: AtomicU64,
}

impl RocksState {
    /// Opens the database in `dir`/state, which is created when it is missing.
    ///
    /// Errors: those of [`RocksTable::open`].
    pub fn open(dir: impl AsRef<Path>, settings: RocksSettings) -> Result<Self> {
        let table = RocksTable::open(dir.as_ref().join("state"), settings)?;
        // Under the database's lock: whatever views there are belong to a process that is gone.
        let views = dir.as_ref().join("views");
        match std::fs::remove_dir_all(&views) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io(format!("remove old views in {}", views.display()), &e));
            }
            _ => {}
        }
        std::fs::create_dir_all(&views).map_err(|e| Error::io(format!("create {}", views.display()), &e))?;
        Ok(Self { table, views, next: AtomicU64::new(0) })
    }
}

impl Table for RocksState {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        self.table.get(key)
    }

    fn scan(&self, prefix: &[u8], from: &[u8], limit: usize) -> Result<Vec<(Vec<u8>, Bytes)>> {
        self.table.scan(prefix, from, limit)
    }

    fn write(&self, batch: Batch) -> Result<()> {
        self.table.write(batch)
    }

    fn delete_prefix(&self, prefix: &[u8]) -> Result<()> {
        self.table.delete_prefix(prefix)
    }

    fn checkpoint(&self) -> Result<()> {
        self.table.checkpoint()
    }
}

impl StateStore for RocksState {
    fn view(&self) -> Result<Box<dyn View>> {
        let path = self.views.join(self.next.fetch_add(1, Ordering::Relaxed).to_string());
        let fail = |e| from_rocksdb("take a view of the registry", &path, &e);
        Checkpoint::new(&self.table.db).and_then(|c| c.create_checkpoint(&path)).map_err(fail)?;
        let mut options = base_options(64, 1);
        options.create_if_missing(false);
        let db = DB::open_for_read_only(&options, &path, false).map_err(fail)?;
        Ok(Box::new(RocksView { db: Some(db), path }))
    }
}

struct RocksView {
    db: Option<DB>,
    path: PathBuf,
}

impl View for RocksView {
    fn scan(&self, prefix: &[u8], from: &[u8], limit: usize) -> Result<Vec<(Vec<u8>, Bytes)>> {
        let db = self.db.as_ref().ok_or_else(|| Error::internal("a view of the registry is closed"))?;
        scan(db, prefix, from, limit).map_err(|e| from_rocksdb("read a view of the registry", &self.path, &e))
    }
}

impl Drop for RocksView {
    fn drop(&mut self) {
        self.db = None;
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            // The next open removes it.
            tracing::warn!(%error, path = %self.path.display(), "a view of the registry could not be removed");
        }
    }
}
