//! Out of here: the records of a [`super::LocalKv`] on their way to a replicated registry.

use super::{FORMAT_KEY, FORMAT_MAGIC, FORMAT_VERSION, MOVED_VERSION, REVISION_KEY, Store, options, synced};
use crate::error::from_rocksdb;
use bytes::Bytes;
use common::{Error, Result};
use rocksdb::{DB, WriteBatch};
use std::path::Path;

/// Behind the version: the replicated registry has the records, and may have changed them since.
const DONE: u8 = 1;

/// The registry of one node, opened so that nobody else uses it, to be read and then marked as moved.
pub(crate) struct Moving(Store);

impl Moving {
    /// The registry in `path`; `None` when there is none. One that was marked and not made use of is read again.
    ///
    /// Errors: `Conflict` when it was made use of: what it has is old.
    pub fn open(path: &Path) -> Result<Option<Self>> {
        let moving = Self::look(path)?;
        if let Some(moving) = &moving
            && moving.is_done()?
        {
            return Err(Error::conflict(format!(
                "registry {} has moved to the replicated registry, and whatever happened since is there alone; the folder of \
                 that one is empty now: mount its disk, or add this node to the others under a new id, or restore a backup",
                path.display()
            )));
        }
        Ok(moving)
    }

    /// Notes that the replicated registry has begun with the records of the one in `path`, if they were taken.
    pub fn finish(path: &Path) -> Result<()> {
        match Self::look(path)? {
            Some(moving) if moving.version()? == Some(MOVED_VERSION) && !moving.is_done()? => {
                moving.mark_done()
            }
            _ => Ok(()),
        }
    }

    fn look(path: &Path) -> Result<Option<Self>> {
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

    /// What stands behind the magic: the version, and the mark.
    fn format(&self) -> Result<Option<Vec<u8>>> {
        let format = self.0.db.get_pinned(FORMAT_KEY).map_err(|e| self.0.fail("read the registry", &e))?;
        Ok(format.as_deref().and_then(|f| f.strip_prefix(FORMAT_MAGIC)).map(<[u8]>::to_vec))
    }

    fn version(&self) -> Result<Option<u32>> {
        let format = self.format()?;
        Ok(format.and_then(|f| f.first_chunk::<4>().map(|v| u32::from_le_bytes(*v))))
    }

    fn is_done(&self) -> Result<bool> {
        Ok(self.version()? == Some(MOVED_VERSION) && self.format()?.is_some_and(|f| f.get(4) == Some(&DONE)))
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
        self.mark(&[])
    }

    /// From now on its records are not taken again.
    pub fn mark_done(&self) -> Result<()> {
        self.mark(&[DONE])
    }

    fn mark(&self, behind: &[u8]) -> Result<()> {
        let mut batch = WriteBatch::default();
        batch.put(FORMAT_KEY, [FORMAT_MAGIC.as_slice(), &MOVED_VERSION.to_le_bytes(), behind].concat());
        self.0.db.write_opt(batch, &synced()).map_err(|e| self.0.fail("write to the registry", &e))
    }
}
