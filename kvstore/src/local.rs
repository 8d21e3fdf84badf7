//! The registry of one node: a durable linearizable map in a RocksDB database.
//!
//! One thread writes. It takes every transaction that waits, checks each against the database and
//! those before it in the group, writes them all as one synced batch, and only then answers: one
//! sync serves the group, and a reader can only see what is durable.
//!
//! Format, version 1. The database has one column family. Key `\0format` holds the magic
//! `SRKVFMT\0` and the version as u32, key `\0revision` the last revision given as u64; every
//! other key is `k` + the caller's key, its value the revision that wrote it as u64 and then the
//! caller's bytes. Integers are little endian; RocksDB's checksums cover all of it.

pub(crate) mod moving;
mod writer;

use crate::error::from_rocksdb;
use crate::table::{base_options, prefix_end};
use async_trait::async_trait;
use bytes::Bytes;
use common::kv::{Kv, KvAssert, KvOp, KvPair};
use common::{Error, ErrorKind, Result};
use rocksdb::{DB, DBRecoveryMode, Options, ReadOptions, WriteBatch, WriteOptions};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};
use writer::{Request, Writer};

/// The longest key, in bytes.
pub const MAX_KEY_BYTES: usize = 512;
/// The longest value, in bytes.
pub const MAX_VALUE_BYTES: usize = 1 << 20;
/// The most asserts and operations of one transaction, together.
pub const MAX_TXN_OPS: usize = 16_384;

const FORMAT_KEY: &[u8] = b"\0format";
const REVISION_KEY: &[u8] = b"\0revision";
const FORMAT_MAGIC: &[u8; 8] = b"SRKVFMT\0";
const FORMAT_VERSION: u32 = 1;
/// What the version becomes when the records have moved to a replicated registry: no release may write here again.
const MOVED_VERSION: u32 = 2;
/// Transactions that wait for the writer; the next caller waits for room.
const QUEUE: usize = 256;

/// The database, and how its records look.
struct Store {
    db: DB,
    path: PathBuf,
}

impl Store {
    fn fail(&self, what: &str, error: &rocksdb::Error) -> Error {
        from_rocksdb(what, &self.path, error)
    }

    fn get(&self, key: &str) -> Result<Option<KvPair>> {
        let stored = self.db.get_pinned(data_key(key)).map_err(|e| self.fail("read the registry", &e))?;
        stored.map(|stored| self.pair(key, &stored)).transpose()
    }

    fn pair(&self, key: &str, stored: &[u8]) -> Result<KvPair> {
        let (revision, value) = stored.split_first_chunk::<8>().ok_or_else(|| {
            Error::corrupt(format!("registry {}: the record of '{key}' is too short", self.path.display()))
        })?;
        Ok(KvPair {
            key: key.to_string(),
            value: Bytes::copy_from_slice(value),
            revision: u64::from_le_bytes(*revision),
        })
    }

    fn scan(&self, prefix: &str) -> Result<Vec<KvPair>> {
        let prefix = data_key(prefix);
        let mut options = ReadOptions::default();
        if let Some(end) = prefix_end(&prefix) {
            options.set_iterate_upper_bound(end);
        }
        let mut iterator = self.db.raw_iterator_opt(options);
        iterator.seek(&prefix);
        let mut pairs = Vec::new();
        while let Some((key, stored)) = iterator.item() {
            let key = std::str::from_utf8(&key[1..]).map_err(|_| {
                Error::corrupt(format!("registry {}: a key is not text", self.path.display()))
            })?;
            pairs.push(self.pair(key, stored)?);
            iterator.next();
        }
        iterator.status().map_err(|e| self.fail("scan the registry", &e))?;
        Ok(pairs)
    }

    /// Checks the format of the database, writes it into a new one, and returns the last revision.
    fn check_format(&self) -> Result<u64> {
        let place = self.path.display();
        let read = |key| self.db.get_pinned(key).map_err(|e| self.fail("read the registry", &e));
        let Some(format) = read(FORMAT_KEY)? else {
            let mut first = self.db.raw_iterator();
            first.seek_to_first();
            if first.valid() {
                return Err(Error::corrupt(format!(
                    "registry {place}: there are records but no format version; this is no registry of \
                     storagerouter, or it is damaged"
                )));
            }
            first.status().map_err(|e| self.fail("read the registry", &e))?;
            drop(first);
            let mut batch = WriteBatch::default();
            batch.put(FORMAT_KEY, [FORMAT_MAGIC.as_slice(), &FORMAT_VERSION.to_le_bytes()].concat());
            batch.put(REVISION_KEY, 0u64.to_le_bytes());
            self.db.write_opt(batch, &synced()).map_err(|e| self.fail("write to the registry", &e))?;
            return Ok(0);
        };
        let version = format.strip_prefix(FORMAT_MAGIC).and_then(|rest| rest.first_chunk::<4>());
        match version.map(|version| u32::from_le_bytes(*version)) {
            Some(FORMAT_VERSION) => {}
            Some(MOVED_VERSION) => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!(
                        "registry {place} has moved to the replicated registry beside it, and is not used any more"
                    ),
                ));
            }
            Some(newer) if newer > FORMAT_VERSION => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!(
                        "registry {place} has format version {newer}, and this storagerouter knows versions up \
                         to {FORMAT_VERSION}: start the newer release that wrote it; nothing was changed"
                    ),
                ));
            }
            _ => return Err(Error::corrupt(format!("registry {place}: its format version can't be read"))),
        }
        let revision = read(REVISION_KEY)?;
        let revision = revision.as_deref().and_then(|r| <[u8; 8]>::try_from(r).ok());
        revision
            .map(u64::from_le_bytes)
            .ok_or_else(|| Error::corrupt(format!("registry {place}: its last revision can't be read")))
    }
}

fn data_key(key: &str) -> Vec<u8> {
    let mut data_key = Vec::with_capacity(key.len() + 1);
    data_key.push(b'k');
    data_key.extend_from_slice(key.as_bytes());
    data_key
}

fn synced() -> WriteOptions {
    let mut options = WriteOptions::default();
    options.set_sync(true);
    options
}

fn options() -> Options {
    let mut options = base_options(64, 2);
    options.set_write_buffer_size(4 << 20);
    options.set_max_write_buffer_number(2);
    options.set_max_total_wal_size(16 << 20);
    // A torn end of the log is a transaction that was never acknowledged. Damage anywhere else is
    // refused, since what lies behind it was acknowledged.
    options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    options.set_track_and_verify_wals_in_manifest(true);
    options
}

/// A durable linearizable ordered map on one node.
pub struct LocalKv {
    store: Arc<Store>,
    requests: Option<mpsc::Sender<Request>>,
    writer: Option<std::thread::JoinHandle<()>>,
}

impl LocalKv {
    /// Opens the registry in the directory `path`, which is created when it is missing.
    ///
    /// Errors: `Unavailable` when another process holds it, `Unsupported` when its format is newer
    /// than this code, `Corrupt`, `NoSpace`, `Denied`.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        std::fs::create_dir_all(&path)
            .map_err(|e| Error::io(format!("create the registry directory {}", path.display()), &e))?;
        let db = DB::open(&options(), &path).map_err(|e| from_rocksdb("open the registry", &path, &e))?;
        let store = Arc::new(Store { db, path });
        let revision = store.check_format()?;
        let (requests, queue) = mpsc::channel(QUEUE);
        let writer = Writer::new(store.clone(), revision);
        let writer = std::thread::Builder::new()
            .name("registry-writer".into())
            .spawn(move || writer.run(queue))
            .map_err(|e| Error::io("start the registry's writer thread", &e))?;
        Ok(Self { store, requests: Some(requests), writer: Some(writer) })
    }

    async fn read<T: Send + 'static>(
        &self,
        what: impl FnOnce(&Store) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let store = self.store.clone();
        tokio::task::spawn_blocking(move || what(&store))
            .await
            .map_err(|e| Error::internal(format!("a read of the registry did not finish: {e}")))?
    }
}

impl Drop for LocalKv {
    fn drop(&mut self) {
        // The writer ends when nobody can send any more; the database closes with it, so that the
        // directory can be opened again when this returns.
        self.requests = None;
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!(path = %self.store.path.display(), "the registry's writer thread had panicked");
        }
    }
}

fn check_key(key: &str) -> Result<()> {
    if key.is_empty() || key.len() > MAX_KEY_BYTES {
        return Err(Error::invalid(format!(
            "a registry key has 1 to {MAX_KEY_BYTES} bytes, this one has {}",
            key.len()
        )));
    }
    Ok(())
}

/// A registry of one node has nobody who could outlive another.
fn no_leases() -> Error {
    Error::new(ErrorKind::Unsupported, "a registry of one node has no leases")
}

fn check_txn(asserts: &[KvAssert], ops: &[KvOp]) -> Result<()> {
    let count = asserts.len() + ops.len();
    if count > MAX_TXN_OPS {
        return Err(Error::invalid(format!(
            "a registry transaction has at most {MAX_TXN_OPS} asserts and operations, this one has {count}"
        )));
    }
    for assert in asserts {
        let (KvAssert::Absent(key) | KvAssert::Revision(key, _)) = assert else { return Err(no_leases()) };
        check_key(key)?;
    }
    for op in ops {
        let (KvOp::Put(key, _) | KvOp::Delete(key)) = op else { return Err(no_leases()) };
        check_key(key)?;
        if let KvOp::Put(_, value) = op
            && value.len() > MAX_VALUE_BYTES
        {
            return Err(Error::invalid(format!(
                "the value of registry key '{key}' has {} bytes, more than {MAX_VALUE_BYTES}",
                value.len()
            )));
        }
    }
    Ok(())
}

#[async_trait]
impl Kv for LocalKv {
    async fn get(&self, key: &str) -> Result<Option<KvPair>> {
        check_key(key)?;
        let key = key.to_string();
        self.read(move |store| store.get(&key)).await
    }

    async fn scan(&self, prefix: &str) -> Result<Vec<KvPair>> {
        let prefix = prefix.to_string();
        self.read(move |store| store.scan(&prefix)).await
    }

    async fn txn(&self, asserts: Vec<KvAssert>, ops: Vec<KvOp>) -> Result<u64> {
        check_txn(&asserts, &ops)?;
        let gone = || Error::internal("the registry's writer is gone; look in the log, then restart");
        let requests = self.requests.as_ref().ok_or_else(gone)?;
        let (reply, answer) = oneshot::channel();
        requests.send(Request { asserts, ops, reply }).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

#[cfg(test)]
mod tests;
