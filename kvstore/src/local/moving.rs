//! Out of here: the records of a [`super::LocalKv`] on their way to a replicated registry.

use super::{FORMAT_KEY, FORMAT_MAGIC, FORMAT_VERSION, MOVED_VERSION, REVISION_KEY, Store, options, synced};
use crate::error::from_rocksdb;
use bytes::Bytes;
use common::{Error, Result};
use rocksdb::{DB, WriteBatch};
use std::path::Path;

/// The registry of one node, opened so that nobody else uses it, to be read and then marked as moved.
pub(crate) struct Moving(Store);

impl Moving {
    /// The registry in `path`; `None` when there is none. One that was marked and not made use of is read again.
    pub fn open(path: &Path) -> Result<Option<Self>> {
        // RocksDB's own mark of a database; the folder alone may have been made for it.
        if !path.join("CURRENT").exists() {
            return Ok(None);
        }
        let mut options = options();
        options.create_if_missing(false);
        let db = DB::open(&options, path).map_err(|e| from_rocksdb("open the registry", path, &e))?;
        let moving = Self(Store { db, path: path.to_path_buf() });
        if moving.version()? != Some(MOVED_VERSION) {
            moving.0.check_format()?;
        }
        Ok(Some(moving))
    }

    fn version(&self) -> Result<Option<u32>> {
        let format = self.0.db.get_pinned(FORMAT_KEY).map_err(|e| self.0.fail("read the registry", &e))?;
        let version =
            format.as_deref().and_then(|f| f.strip_prefix(FORMAT_MAGIC)).and_then(|v| v.first_chunk::<4>());
        Ok(version.map(|v| u32::from_le_bytes(*v)))
    }

    /// The last revision that it gave.
    pub fn revision(&self) -> Result<u64> {
        let stored = self.0.db.get_pinned(REVISION_KEY).map_err(|e| self.0.fail("read the registry", &e))?;
        let stored = stored.as_deref().and_then(|r| <[u8; 8]>::try_from(r).ok()).map(u64::from_le_bytes);
        stored.ok_or_else(|| {
            Error::corrupt(format!("registry {}: its last revision can't be read", self.0.path.display()))
        })
    }

    /// Up to `limit` pairs from `from` on: key, revision, value.
    pub fn pairs(&self, from: &str, limit: usize) -> Result<Vec<(String, u64, Bytes)>> {
        let from = super::data_key(from);
        let found = crate::table::scan(&self.0.db, b"k", &from, limit)
            .map_err(|e| self.0.fail("read the registry", &e))?;
        let pair = |(key, stored): (Vec<u8>, Bytes)| {
            let key = std::str::from_utf8(&key[1..]).map_err(|_| {
                Error::corrupt(format!("registry {}: a key is not text", self.0.path.display()))
            })?;
            let pair = self.0.pair(key, &stored)?;
            Ok((pair.key, pair.revision, pair.value))
        };
        found.into_iter().map(pair).collect()
    }

    /// From now on every release refuses to write here.
    pub fn mark_moved(&self) -> Result<()> {
        debug_assert_ne!(FORMAT_VERSION, MOVED_VERSION);
        let mut batch = WriteBatch::default();
        batch.put(FORMAT_KEY, [FORMAT_MAGIC.as_slice(), &MOVED_VERSION.to_le_bytes()].concat());
        self.0.db.write_opt(batch, &synced()).map_err(|e| self.0.fail("write to the registry", &e))
    }
}
