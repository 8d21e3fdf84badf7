//! The local table on RocksDB.
//!
//! Every batch goes through the write-ahead log without a sync: the kernel has it when the call
//! returns, so the death of the process loses nothing, and a power cut loses a suffix. Recovery
//! stops at the first record that is not whole, never behind it, which is the contract of
//! [`common::Table`].

use crate::error::from_rocksdb;
use bytes::Bytes;
use common::table::{Batch, Table};
use common::{Error, Result};
use rocksdb::{BlockBasedOptions, Cache, DB, DBCompressionType, DBRecoveryMode, Options, ReadOptions};
use rocksdb::{LogLevel, WriteBatch, WriteOptions};
use std::path::{Path, PathBuf};

/// How much memory, files and threads a [`RocksTable`] may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RocksSettings {
    /// Bytes of blocks, indexes and filters kept in memory.
    pub block_cache_bytes: usize,
    /// Bytes of all write buffers together; a quarter of it is one buffer.
    pub write_buffer_bytes: usize,
    /// Files kept open, at most.
    pub max_open_files: u32,
    /// Threads for flushes and compactions, at most.
    pub background_jobs: u32,
}

impl Default for RocksSettings {
    fn default() -> Self {
        Self {
            block_cache_bytes: 128 << 20,
            write_buffer_bytes: 64 << 20,
            max_open_files: 512,
            background_jobs: 2,
        }
    }
}

impl RocksSettings {
    fn options(&self) -> Options {
        // Below these RocksDB still works, but a typo of a unit would make it crawl.
        let cache = self.block_cache_bytes.max(1 << 20);
        let buffers = self.write_buffer_bytes.max(1 << 20);
        let mut blocks = BlockBasedOptions::default();
        blocks.set_block_cache(&Cache::new_lru_cache(cache));
        blocks.set_block_size(8 << 10);
        blocks.set_bloom_filter(10.0, false);
        // Indexes and filters count against the cache, so that memory is bounded.
        blocks.set_cache_index_and_filter_blocks(true);
        blocks.set_pin_l0_filter_and_index_blocks_in_cache(true);

        let mut options = base_options(self.max_open_files, self.background_jobs);
        options.set_block_based_table_factory(&blocks);
        options.set_write_buffer_size(buffers / 4);
        options.set_max_write_buffer_number(4);
        options.set_db_write_buffer_size(buffers);
        options.set_level_compaction_dynamic_level_bytes(true);
        options.set_max_total_wal_size((buffers as u64).saturating_mul(2));
        options.set_bytes_per_sync(1 << 20);
        options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
        options
    }
}

/// What every database of ours has in common.
pub(crate) fn base_options(max_open_files: u32, background_jobs: u32) -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_max_open_files(i32::try_from(max_open_files.max(16)).unwrap_or(i32::MAX));
    options.set_max_background_jobs(background_jobs.clamp(1, 64) as i32);
    // RocksDB's own log: small, and without the periodic statistics.
    options.set_log_level(LogLevel::Warn);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(1 << 20);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options
}

/// An ordered local table in a RocksDB database.
pub struct RocksTable {
    pub(crate) db: DB,
    path: PathBuf,
    unsynced: WriteOptions,
}

impl RocksTable {
    /// Opens the table in the directory `path`, which is created when it is missing.
    ///
    /// Errors: `Unavailable` when another process holds it, `Corrupt` or `Unsupported` when it can
    /// not be read (then [`RocksTable::destroy`] makes room for a new one), `NoSpace`, `Denied`.
    pub fn open(path: impl AsRef<Path>, settings: RocksSettings) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        std::fs::create_dir_all(&path)
            .map_err(|e| Error::io(format!("create the table directory {}", path.display()), &e))?;
        let db = DB::open(&settings.options(), &path)
            .map_err(|e| from_rocksdb("open the local table", &path, &e))?;
        let mut unsynced = WriteOptions::default();
        unsynced.set_sync(false);
        Ok(Self { db, path, unsynced })
    }

    /// Removes the table in the directory `path`, damaged or not; removing what is not there is a
    /// success.
    ///
    /// Errors: `Unavailable` when a process holds it.
    pub fn destroy(path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        if !path.exists() {
            return Ok(());
        }
        // RocksDB's own destroy checks the lock first. What it can not read it leaves behind;
        // the directory belongs to the table alone, so the rest goes with it.
        if let Err(e) = DB::destroy(&Options::default(), path) {
            let told = from_rocksdb("remove the local table", path, &e);
            if told.kind == common::ErrorKind::Unavailable {
                return Err(told);
            }
            tracing::warn!(error = %told, "the local table is removed file by file");
        }
        match std::fs::remove_dir_all(path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io(format!("remove the table directory {}", path.display()), &e))
            }
            _ => Ok(()),
        }
    }

    fn fail(&self, what: &str, error: &rocksdb::Error) -> Error {
        from_rocksdb(what, &self.path, error)
    }

    /// The last key of the table, which has to be known when no key sorts behind a prefix.
    fn last_key(&self) -> Result<Option<Vec<u8>>> {
        let mut iterator = self.db.raw_iterator();
        iterator.seek_to_last();
        let key = iterator.key().map(<[u8]>::to_vec);
        iterator.status().map_err(|e| self.fail("read the local table", &e))?;
        Ok(key)
    }
}

/// The first key behind every key that begins with `prefix`, when there is one.
pub(crate) fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let kept = prefix.iter().rposition(|byte| *byte != 0xff)?;
    let mut end = prefix[..=kept].to_vec();
    end[kept] += 1;
    Some(end)
}

/// Up to `limit` pairs of `db` whose key begins with `prefix`, from `from` on.
pub(crate) fn scan(
    db: &DB,
    prefix: &[u8],
    from: &[u8],
    limit: usize,
) -> Result<Vec<(Vec<u8>, Bytes)>, rocksdb::Error> {
    let mut options = ReadOptions::default();
    if let Some(end) = prefix_end(prefix) {
        options.set_iterate_upper_bound(end);
    }
    let mut iterator = db.raw_iterator_opt(options);
    iterator.seek(prefix.max(from));
    let mut pairs = Vec::new();
    while pairs.len() < limit {
        match iterator.item() {
            Some((key, value)) if key.starts_with(prefix) => {
                pairs.push((key.to_vec(), Bytes::copy_from_slice(value)));
                iterator.next();
            }
            _ => break,
        }
    }
    iterator.status()?;
    Ok(pairs)
}

impl Table for RocksTable {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        let value = self.db.get_pinned(key).map_err(|e| self.fail("read the local table", &e))?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn scan(&self, prefix: &[u8], from: &[u8], limit: usize) -> Result<Vec<(Vec<u8>, Bytes)>> {
        scan(&self.db, prefix, from, limit).map_err(|e| self.fail("scan the local table", &e))
    }

    fn write(&self, batch: Batch) -> Result<()> {
        let mut writes = WriteBatch::default();
        for (key, value) in &batch.ops {
            match value {
                Some(value) => writes.put(key, value),
                None => writes.delete(key),
            }
        }
        self.db.write_opt(writes, &self.unsynced).map_err(|e| self.fail("write to the local table", &e))
    }

    fn delete_prefix(&self, prefix: &[u8]) -> Result<()> {
        let mut writes = WriteBatch::default();
        match prefix_end(prefix) {
            Some(end) => writes.delete_range(prefix.to_vec(), end),
            None => {
                let Some(last) = self.last_key()?.filter(|last| last.starts_with(prefix)) else {
                    return Ok(());
                };
                writes.delete_range(prefix.to_vec(), last.clone());
                writes.delete(last);
            }
        }
        self.db.write_opt(writes, &self.unsynced).map_err(|e| self.fail("write to the local table", &e))
    }

    fn checkpoint(&self) -> Result<()> {
        self.db.flush_wal(true).map_err(|e| self.fail("sync the local table", &e))
    }
}

#[cfg(test)]
mod tests;
