//! The chain of numbered Manifests: the root of a volume, and its fence.
//!
//! Putting number n+1 if absent is the compare-and-swap; the highest number is the truth.

use super::persist::put_own;
use crate::format::keys;
use crate::format::manifest::{Manifest, ManifestKind, manifest_crc};
use bytes::Bytes;
use common::{Error, ErrorKind, ObjectStore, Result, VolumeId};
use std::sync::Arc;

/// The newest Manifest of a volume, and how to put the next one.
#[derive(Clone)]
pub(crate) struct Chain {
    store: Arc<dyn ObjectStore>,
    current: Manifest,
    crc: u32,
}

impl Chain {
    /// Reads the newest Manifest. `NotFound` when the volume has none.
    pub async fn newest(store: &Arc<dyn ObjectStore>, volume: VolumeId) -> Result<Chain> {
        let prefix = keys::manifest_prefix(volume);
        // A Manifest may be collected between the listing and the reading: then a newer one is there.
        for _ in 0..16 {
            let page = store.list(&prefix, None, false, 1).await?;
            let Some(first) = page.objects.first() else {
                return Err(Error::not_found(format!(
                    "volume {volume} has no Manifest on {}",
                    store.describe()
                )));
            };
            let bytes = match store.get(&first.key).await {
                Ok(bytes) => bytes,
                Err(e) if e.kind == ErrorKind::NotFound => continue,
                Err(e) => return Err(e),
            };
            let current = Manifest::decode(&bytes).map_err(|e| e.context(format!("'{}'", first.key)))?;
            if current.volume != volume || keys::manifest_key(volume, current.number) != first.key {
                return Err(Error::corrupt(format!("'{}' holds the Manifest of something else", first.key)));
            }
            return Ok(Chain { store: store.clone(), crc: manifest_crc(&bytes), current });
        }
        Err(Error::unavailable(format!(
            "the Manifests of volume {volume} change faster than they can be read"
        )))
    }

    /// Puts the first Manifest of a new volume. It stays while the volume exists, as each epoch's first does.
    pub async fn create(store: &Arc<dyn ObjectStore>, first: Manifest) -> Result<Chain> {
        let bytes = first.encode()?;
        put_own(&**store, &keys::manifest_key(first.volume, first.number), std::slice::from_ref(&bytes))
            .await?;
        Ok(Chain { store: store.clone(), crc: manifest_crc(&bytes), current: first })
    }

    /// The newest Manifest.
    pub fn current(&self) -> &Manifest {
        &self.current
    }

    /// The successor of the newest Manifest: the same but for its number and predecessor.
    pub fn successor(&self, kind: ManifestKind) -> Manifest {
        let mut next = self.current.clone();
        next.kind = kind;
        next.number += 1;
        next.prev_crc = self.crc;
        next
    }

    /// Puts the successor. `Conflict` when another one is there already; try the same `next` again
    /// after any other error, its outcome is unknown.
    pub async fn put(&mut self, next: Manifest) -> Result<()> {
        let bytes = next.encode()?;
        put_own(&*self.store, &keys::manifest_key(next.volume, next.number), std::slice::from_ref(&bytes))
            .await?;
        self.crc = manifest_crc(&bytes);
        self.current = next;
        Ok(())
    }

    /// Looks whether somebody put a Manifest behind ours: `Fenced` then.
    pub async fn look(&self) -> Result<()> {
        let key = keys::manifest_key(self.current.volume, self.current.number + 1);
        match self.store.head(&key).await? {
            None => Ok(()),
            Some(_) => Err(self.foreign(&key).await),
        }
    }

    /// Says who put the Manifest at `key`.
    pub async fn foreign(&self, key: &str) -> Error {
        let volume = self.current.volume;
        let epoch = self.current.epoch;
        match self.store.get(key).await.and_then(|bytes: Bytes| Manifest::decode(&bytes)) {
            Ok(other)
                if other.epoch > epoch || (other.epoch == epoch && other.writer != self.current.writer) =>
            {
                Error::fenced(format!(
                    "volume {volume}: epoch {} took over from epoch {epoch} (Manifest {})",
                    other.epoch, other.number
                ))
            }
            Ok(other) => Error::corrupt(format!(
                "volume {volume}: Manifest {} is there with the older epoch {}",
                other.number, other.epoch
            )),
            Err(e) => e.context(format!("volume {volume}: a foreign Manifest '{key}'")),
        }
    }
}
