//! The registry of a member that does not run, as tools read it: nothing is written, not even by opening it.
//!
//! It shows what the member had applied. Entries that only its log has are not shown: whether they were committed, the others know.

use crate::error::from_rocksdb;
use crate::machine::store::{StateStore, View};
use crate::machine::{Limits, Machine, Range};
use crate::node::Status;
use crate::table::{base_options, scan};
use async_trait::async_trait;
use bytes::Bytes;
use common::kv::{Kv, KvAssert, KvOp, KvPair};
use common::table::{Batch, Table};
use common::{Error, ErrorKind, Result};
use rocksdb::DB;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The registry of a member that does not run; whoever opens it sees to that.
pub struct Stopped {
    machine: Machine,
}

impl Stopped {
    /// Opens what the member with the folder `dir` has; `None` when there is nothing.
    ///
    /// Errors: `Corrupt`, `Unsupported`, `Denied`.
    pub fn open(dir: impl AsRef<Path>) -> Result<Option<Self>> {
        let path = dir.as_ref().join("state");
        // RocksDB's own mark of a database; the folder alone may have been made for it.
        if !path.join("CURRENT").exists() {
            return Ok(None);
        }
        let mut options = base_options(64, 1);
        options.create_if_missing(false);
        let db = DB::open_for_read_only(&options, &path, false)
            .map_err(|e| from_rocksdb("read the registry", &path, &e))?;
        let store: Arc<dyn StateStore> = Arc::new(ReadOnly { db, path });
        Ok(Machine::open(store, Limits::default())?.map(|machine| Self { machine }))
    }

    /// Its group.
    pub fn group(&self) -> u128 {
        self.machine.head().group
    }

    /// How the member saw its group; it does not know who leads.
    pub fn status(&self) -> Status {
        let meta = self.machine.meta();
        Status {
            member: self.machine.head().member,
            leader: None,
            term: meta.term,
            applied: meta.index,
            revision: meta.revision,
            configuration: meta.configuration.clone(),
            members: self.machine.members().clone(),
        }
    }
}

#[async_trait]
impl Kv for Stopped {
    async fn get(&self, key: &str) -> Result<Option<KvPair>> {
        self.machine.get(key)
    }

    async fn scan(&self, prefix: &str) -> Result<Vec<KvPair>> {
        Ok(self.machine.range(&Range::prefix(prefix))?.pairs)
    }

    async fn txn(&self, _: Vec<KvAssert>, _: Vec<KvOp>) -> Result<u64> {
        Err(read_only())
    }
}

fn read_only() -> Error {
    Error::new(ErrorKind::Unsupported, "the registry of a router that does not run can only be read")
}

/// The state's database, opened without its lock.
struct ReadOnly {
    db: DB,
    path: PathBuf,
}

impl ReadOnly {
    fn fail(&self, error: &rocksdb::Error) -> Error {
        from_rocksdb("read the registry", &self.path, error)
    }
}

impl Table for ReadOnly {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        let value = self.db.get_pinned(key).map_err(|e| self.fail(&e))?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn scan(&self, prefix: &[u8], from: &[u8], limit: usize) -> Result<Vec<(Vec<u8>, Bytes)>> {
        scan(&self.db, prefix, from, limit).map_err(|e| self.fail(&e))
    }

    fn write(&self, _: Batch) -> Result<()> {
        Err(read_only())
    }

    fn delete_prefix(&self, _: &[u8]) -> Result<()> {
        Err(read_only())
    }

    fn checkpoint(&self) -> Result<()> {
        Err(read_only())
    }
}

impl StateStore for ReadOnly {
    fn view(&self) -> Result<Box<dyn View>> {
        Err(read_only())
    }
}

#[cfg(test)]
mod tests;
