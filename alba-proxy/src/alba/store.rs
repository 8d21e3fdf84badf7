//! The `alba` store: [`ObjectStore`] over OSDs and the records in the registry.
//!
//! A put writes fragments, all at a time, and when enough of them are durable one transaction makes the object exist. A get
//! finds the record, and reads no more of the fragments than it needs, from those that answer. Nothing is ever changed in place, so a
//! record that is out of date can lead to what is gone, and never to what is wrong.

mod collect;
mod read;
mod write;

#[cfg(test)]
mod tests;

pub use collect::Collected;

use crate::alba::keys::{NamespaceKey, ObjectKey};
use crate::alba::layout::ObjectId;
use crate::alba::osds::Osds;
use crate::alba::preset::{Compression, Preset};
use crate::alba::records::{Epoch, Found, Record, Records};
use async_trait::async_trait;
use bytes::Bytes;
use common::object::{Haste, Listing, Precondition};
use common::osd::{Call, Changes};
use common::{Clock, Error, ErrorKind, ObjectStore, Result};
use parking_lot::Mutex;
use quick_cache::sync::Cache;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// How long an OSD may take for one request.
const CALL: Duration = Duration::from_secs(10);
/// For how long a put waits for OSDs before it says why it does not go on; whoever asked asks again.
const PATIENCE: Duration = Duration::from_secs(30);
/// An OSD that was away is asked again by a put that waits, so often.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Times that a change of a record is tried when others change it too.
const ATTEMPTS: usize = 64;
/// Records that are remembered for reads of parts.
const CACHED: usize = 16 << 10;
/// For how long they are: so long, a part may be read of an object that another process deleted or replaced.
const REMEMBERED: Duration = Duration::from_secs(10);

/// Draws the ids of objects: for a product [`crate::alba::keys::random_id`].
pub type DrawId = Arc<dyn Fn() -> Result<ObjectId> + Send + Sync>;

/// What a store is made of.
pub struct Parts {
    /// The records of its namespace.
    pub records: Records,
    /// How objects are protected and packed.
    pub preset: Preset,
    /// The keys of the namespace; the last one seals what is put.
    pub keys: Vec<NamespaceKey>,
    /// The OSDs of the backend.
    pub osds: Arc<Osds>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Where ids come from.
    pub draw: DrawId,
    /// A text that tells a person which store this is.
    pub name: String,
}

struct Inner {
    records: Records,
    preset: Preset,
    keys: BTreeMap<u32, NamespaceKey>,
    osds: Arc<Osds>,
    clock: Arc<dyn Clock>,
    draw: DrawId,
    name: String,
    epoch: Mutex<Option<Epoch>>,
    /// Records that [`ObjectStore::get_range`] found; everything else asks the registry.
    cache: Cache<String, Remembered>,
    waiting: Mutex<Option<String>>,
}

/// A record, and since when it is known.
#[derive(Clone)]
struct Remembered {
    found: Found,
    since: Duration,
}

/// The `alba` store.
#[derive(Clone)]
pub struct AlbaStore {
    inner: Arc<Inner>,
}

impl AlbaStore {
    /// A store of these parts.
    ///
    /// # Errors
    /// `Invalid`: the preset; it wants encryption and there is no key.
    pub fn new(parts: Parts) -> Result<Self> {
        parts.preset.check()?;
        let sealed = parts.preset.encryption != crate::alba::preset::Encryption::None;
        if sealed && parts.keys.is_empty() {
            return Err(Error::invalid(format!("{}: its preset encrypts, and no key was given", parts.name)));
        }
        Ok(Self {
            inner: Arc::new(Inner {
                records: parts.records,
                preset: parts.preset,
                keys: parts.keys.into_iter().map(|key| (key.number(), key)).collect(),
                osds: parts.osds,
                clock: parts.clock,
                draw: parts.draw,
                name: parts.name,
                epoch: Mutex::default(),
                cache: Cache::new(CACHED),
                waiting: Mutex::default(),
            }),
        })
    }

    /// Why puts wait, while they do.
    pub fn waiting(&self) -> Option<String> {
        self.inner.waiting.lock().clone()
    }

    /// Removes the fragments of objects that are gone and whose removal was cut off, up to `limit` objects; how many were done.
    ///
    /// # Errors
    /// Those of the registry.
    pub async fn remove_deleted(&self, limit: usize) -> Result<usize> {
        let mut done = 0;
        for record in self.inner.records.deleted(limit).await? {
            done += usize::from(self.inner.remove(&record).await?);
        }
        Ok(done)
    }
}

impl Inner {
    /// The key that the frames of an object are sealed with; `None` when they are not.
    fn object_key(&self, record: &Record) -> Result<Option<ObjectKey>> {
        let Some(number) = record.shape.packing.key else { return Ok(None) };
        let key = self.keys.get(&number).ok_or_else(|| {
            Error::new(
                ErrorKind::Denied,
                format!(
                    "object {} is sealed with key {number} of {}, which is not unlocked",
                    record.id(),
                    self.name
                ),
            )
        })?;
        key.object(record.id()).map(Some)
    }

    fn compression(&self) -> Compression {
        self.preset.compression
    }

    /// Removes the fragments of an object that is gone; false when an OSD is away and it must be tried again.
    async fn remove(&self, record: &Record) -> Result<bool> {
        let removals = (0..record.places.len()).filter_map(|n| {
            let (osd, key) = record.key(self.records.namespace(), n)?;
            let changes = (0..record.shape.values()).fold(Changes::new(), |c, v| c.delete(key.value(v)));
            Some((osd, changes.delete(key.header())))
        });
        let removed = futures::future::join_all(removals.map(|(id, changes)| async move {
            let Some(osd) = self.osds.get(id) else { return false };
            match osd.apply(Call::maintenance(CALL), changes).await {
                Ok(()) => true,
                Err(error) => {
                    self.osds.report_error(id, &error);
                    false
                }
            }
        }))
        .await;
        let all = removed.into_iter().all(|done| done);
        if all {
            self.records.forget(record.id()).await?;
        }
        Ok(all)
    }

    /// Removes in the background what is gone already; what is cut off is found in the list of what is to be deleted.
    fn remove_later(self: &Arc<Self>, record: Arc<Record>) {
        let inner = self.clone();
        tokio::spawn(async move {
            if let Err(error) = inner.remove(&record).await {
                tracing::debug!(object = %record.id(), %error, "fragments of a deleted object stay for maintenance");
            }
        });
    }

    async fn delete(self: &Arc<Self>, key: &str) -> Result<()> {
        for _ in 0..ATTEMPTS {
            let Some(found) = self.records.get(key).await? else { return Ok(()) };
            match self.records.delete(key, &found).await {
                Ok(()) => {
                    self.cache.remove(key);
                    self.remove_later(found.record);
                    return Ok(());
                }
                Err(e) if e.kind == ErrorKind::Conflict => {}
                Err(e) => return Err(e),
            }
        }
        Err(Error::unavailable(format!("object '{key}' changes all the time")))
    }
}

#[async_trait]
impl ObjectStore for AlbaStore {
    async fn put(&self, key: &str, data: Bytes, precondition: Precondition) -> Result<()> {
        self.put_parts(key, &[data], precondition, Haste::Full).await
    }

    async fn put_parts(
        &self,
        key: &str,
        parts: &[Bytes],
        precondition: Precondition,
        _: Haste,
    ) -> Result<()> {
        Records::check(key)?;
        let put = self.inner.put(key, parts, precondition).await;
        put.map_err(|e| e.context(format!("{}: put '{key}'", self.inner.name)))
    }

    async fn get(&self, key: &str) -> Result<Bytes> {
        Records::check(key)?;
        let got = self.inner.get(key, None).await;
        got.map_err(|e| e.context(format!("{}: get '{key}'", self.inner.name)))
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        Records::check(key)?;
        let got = self.inner.get(key, Some(range)).await;
        got.map_err(|e| e.context(format!("{}: read '{key}'", self.inner.name)))
    }

    async fn head(&self, key: &str) -> Result<Option<u64>> {
        Records::check(key)?;
        Ok(self.inner.records.get(key).await?.map(|found| found.record.shape.len))
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        delimiter: bool,
        limit: usize,
    ) -> Result<Listing> {
        self.inner.records.list(prefix, after, delimiter, limit).await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        Records::check(key)?;
        self.inner.delete(key).await
    }

    fn describe(&self) -> String {
        self.inner.name.clone()
    }
}
