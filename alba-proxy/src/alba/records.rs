//! The records of a namespace, in the registry of its manager group.
//!
//! Data comes first, then one transaction makes the object exist: its record, its entry in the repair index when it has fewer
//! fragments than it should, and what it replaces in the list of what is to be deleted. Every change asserts the revision of the
//! record that it was made from, so a repair can't bring back what was deleted, and that the collection epoch of what it names is
//! open, so it names nothing that a collection may have taken for garbage.
//!
//! | key | value |
//! |---|---|
//! | `alba/{namespace:08x}/o/{key}` | the record of an object |
//! | `alba/{namespace:08x}/r/{spare:02x}/{key}` | it has fewer fragments than it should; those that may lose the fewest come first |
//! | `alba/{namespace:08x}/d/{object id}` | the record of an object that is gone, until its fragments are |
//! | `alba/{namespace:08x}/e/{epoch:016x}` | a collection epoch that is open |

pub mod namespace;
mod record;

#[cfg(test)]
mod tests;

pub use namespace::{Namespace, OsdRegistration, Use};
pub use record::{Place, Record};

use crate::alba::layout::ObjectId;
use crate::key::{check_key, check_prefix};
use bytes::Bytes;
use common::kv::{KvAssert, KvOp, KvPair};
use common::object::{Listing, ObjectMeta};
use common::{Error, Kv, Result};
use std::sync::Arc;

/// The longest key of an object: the registry's own limit, less what stands before it there.
pub const MAX_KEY: usize = 480;
/// Pairs of one question to the registry: a record may have half a MiB.
const PAGE: usize = 100;

fn epoch_key(namespace: u32, epoch: u64) -> String {
    format!("alba/{namespace:08x}/e/{epoch:016x}")
}

/// A collection epoch that is open, and the revision that opened it: asserted by every record that names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Epoch {
    /// Its number.
    pub number: u64,
    revision: u64,
}

/// A record as it was read: what a change of it is made from.
#[derive(Debug, Clone)]
pub struct Found {
    /// The record.
    pub record: Arc<Record>,
    /// The revision that wrote it.
    pub revision: u64,
}

/// The records of a namespace.
#[derive(Clone)]
pub struct Records {
    kv: Arc<dyn Kv>,
    namespace: u32,
}

impl Records {
    /// The records of `namespace`.
    pub fn new(kv: Arc<dyn Kv>, namespace: u32) -> Self {
        Self { kv, namespace }
    }

    /// Which namespace.
    pub fn namespace(&self) -> u32 {
        self.namespace
    }

    fn object_key(&self, key: &str) -> String {
        format!("alba/{:08x}/o/{key}", self.namespace)
    }

    fn repair_key(&self, key: &str, record: &Record) -> Option<String> {
        if common::mutant::is_on("alba-repair-index-forgotten") {
            return None;
        }
        record.spare_if_incomplete().map(|spare| format!("alba/{:08x}/r/{spare:02x}/{key}", self.namespace))
    }

    fn deleted_key(&self, id: ObjectId) -> String {
        format!("alba/{:08x}/d/{id}", self.namespace)
    }

    /// Checks the key of an object.
    ///
    /// # Errors
    /// `Invalid`.
    pub fn check(key: &str) -> Result<()> {
        check_key(key)?;
        if key.len() > MAX_KEY {
            return Err(Error::invalid(format!(
                "object key of {} bytes: this store takes {MAX_KEY}",
                key.len()
            )));
        }
        Ok(())
    }

    fn found(key: &str, pair: &KvPair) -> Result<Found> {
        let record = Record::decode(&format!("record of object '{key}'"), &pair.value)?;
        Ok(Found { record: Arc::new(record), revision: pair.revision })
    }

    /// The record of `key`, as it is now.
    ///
    /// # Errors
    /// Those of the registry; `Corrupt`.
    pub async fn get(&self, key: &str) -> Result<Option<Found>> {
        let pair = self.kv.get(&self.object_key(key)).await?;
        pair.map(|pair| Self::found(key, &pair)).transpose()
    }

    /// Makes `record` the one of `key` in place of `old`, whose fragments are then garbage unless it is the same object. `epoch` is
    /// that of the places that are new in it.
    ///
    /// # Errors
    /// `Conflict`: something else is there than `old`, or the epoch is closed: nothing happened. `Unavailable`: unknown.
    pub async fn put(&self, key: &str, record: &Record, old: Option<&Found>, epoch: Epoch) -> Result<Found> {
        let at = self.object_key(key);
        let mut asserts = vec![match old {
            Some(old) => KvAssert::Revision(at.clone(), old.revision),
            None => KvAssert::Absent(at.clone()),
        }];
        if !common::mutant::is_on("alba-record-ignores-epoch") {
            asserts.push(KvAssert::Revision(epoch_key(self.namespace, epoch.number), epoch.revision));
        }
        let mut ops = vec![KvOp::Put(at, record.encode())];
        if let Some(old) = old {
            ops.extend(self.repair_key(key, &old.record).map(KvOp::Delete));
            if old.record.id() != record.id() {
                ops.push(KvOp::Put(self.deleted_key(old.record.id()), old.record.encode()));
            }
        }
        ops.extend(self.repair_key(key, record).map(|key| KvOp::Put(key, Bytes::new())));
        let revision = self.kv.txn(asserts, ops).await?;
        Ok(Found { record: Arc::new(record.clone()), revision })
    }

    /// Makes the object not exist; its fragments are then garbage.
    ///
    /// # Errors
    /// `Conflict`: it was changed meanwhile. `Unavailable`: unknown.
    pub async fn delete(&self, key: &str, old: &Found) -> Result<()> {
        let at = self.object_key(key);
        let mut ops =
            vec![KvOp::Delete(at.clone()), KvOp::Put(self.deleted_key(old.record.id()), old.record.encode())];
        ops.extend(self.repair_key(key, &old.record).map(KvOp::Delete));
        self.kv.txn(vec![KvAssert::Revision(at, old.revision)], ops).await.map(|_| ())
    }

    /// Up to `limit` objects that are gone, and whose fragments may still be there.
    ///
    /// # Errors
    /// Those of the registry; `Corrupt`.
    pub async fn deleted(&self, limit: usize) -> Result<Vec<Record>> {
        let pairs = self.kv.page(&format!("alba/{:08x}/d/", self.namespace), None, limit).await?;
        pairs
            .iter()
            .map(|pair| Record::decode(&format!("registry key '{}'", pair.key), &pair.value))
            .collect()
    }

    /// The fragments of a deleted object are gone.
    ///
    /// # Errors
    /// Those of the registry.
    pub async fn forget(&self, id: ObjectId) -> Result<()> {
        self.kv.txn(Vec::new(), vec![KvOp::Delete(self.deleted_key(id))]).await.map(|_| ())
    }

    /// Keys of objects with fewer fragments than they should have, and how many they may still lose: the fewest first, behind
    /// the one that is given.
    ///
    /// # Errors
    /// Those of the registry.
    pub async fn to_repair(
        &self,
        after: Option<(usize, &str)>,
        limit: usize,
    ) -> Result<Vec<(usize, String)>> {
        let prefix = format!("alba/{:08x}/r/", self.namespace);
        let after = after.map(|(spare, key)| format!("{prefix}{spare:02x}/{key}"));
        let pairs = self.kv.page(&prefix, after.as_deref(), limit).await?;
        let entry = |pair: &KvPair| {
            let (spare, key) = pair.key[prefix.len()..].split_once('/')?;
            Some((usize::from_str_radix(spare, 16).ok()?, key.to_string()))
        };
        let wrong =
            |pair: &KvPair| Error::corrupt(format!("registry key '{}' is no entry of repair", pair.key));
        pairs.iter().map(|pair| entry(pair).ok_or_else(|| wrong(pair))).collect()
    }

    /// The youngest open epoch: what is put now belongs to it.
    ///
    /// # Errors
    /// `NotFound` when the namespace is gone; those of the registry.
    pub async fn epoch(&self) -> Result<Epoch> {
        let open = self.open_epochs().await?;
        open.last().copied().ok_or_else(|| Error::not_found(format!("namespace {} is gone", self.namespace)))
    }

    /// The open epochs, in order.
    ///
    /// # Errors
    /// Those of the registry; `Corrupt`.
    pub async fn open_epochs(&self) -> Result<Vec<Epoch>> {
        let prefix = format!("alba/{:08x}/e/", self.namespace);
        let number = |pair: &KvPair| {
            let number = u64::from_str_radix(&pair.key[prefix.len()..], 16);
            number.map_err(|_| Error::corrupt(format!("registry key '{}' is no epoch", pair.key)))
        };
        let pairs = self.kv.scan(&prefix).await?;
        pairs.iter().map(|pair| Ok(Epoch { number: number(pair)?, revision: pair.revision })).collect()
    }

    /// Opens the epoch behind `last`, if that is still the youngest.
    ///
    /// # Errors
    /// `Conflict` when somebody else did.
    pub async fn open_epoch(&self, last: Epoch) -> Result<()> {
        let (old, new) = (epoch_key(self.namespace, last.number), epoch_key(self.namespace, last.number + 1));
        let asserts = vec![KvAssert::Revision(old, last.revision), KvAssert::Absent(new.clone())];
        self.kv.txn(asserts, vec![KvOp::Put(new, Bytes::new())]).await.map(|_| ())
    }

    /// Closes an epoch for ever: no record will name anything new of it.
    ///
    /// # Errors
    /// `Invalid` for the youngest one; those of the registry.
    pub async fn close_epoch(&self, epoch: u64) -> Result<()> {
        let youngest = self.epoch().await?;
        if epoch >= youngest.number {
            return Err(Error::invalid(format!(
                "epoch {epoch} is the one that puts belong to: open the next one first"
            )));
        }
        self.kv.txn(Vec::new(), vec![KvOp::Delete(epoch_key(self.namespace, epoch))]).await.map(|_| ())
    }

    /// A page of the objects, as [`common::ObjectStore::list`] says.
    ///
    /// # Errors
    /// `Invalid` for the prefix; those of the registry.
    pub async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        delimiter: bool,
        limit: usize,
    ) -> Result<Listing> {
        check_prefix(prefix)?;
        let (limit, base, after_asked) = (limit.clamp(1, 1000), self.object_key(""), after);
        let mut listing = Listing::default();
        // No key sorts between a folded prefix and this one behind all that it folds.
        let behind = |folded: &str| format!("{folded}\u{7f}");
        let folded = |after: &str| delimiter && after.len() > prefix.len() && after.ends_with('/');
        let mut from = after.map(|after| if folded(after) { behind(after) } else { after.to_string() });
        let mut last = None;
        loop {
            let after = from.as_ref().map(|from| format!("{base}{from}"));
            let asked = PAGE.min(limit + 1);
            let pairs = self.kv.page(&format!("{base}{prefix}"), after.as_deref(), asked).await?;
            let all = pairs.len() < asked;
            let mut jumped = false;
            for pair in &pairs {
                let key = &pair.key[base.len()..];
                let folded = match key[prefix.len()..].find('/') {
                    Some(at) if delimiter => Some(&key[..prefix.len() + at + 1]),
                    _ => None,
                };
                // A page that went on from inside of a folded prefix does not show it again.
                if let (Some(folded), Some(after)) = (folded, after_asked)
                    && folded <= after
                {
                    (from, jumped) = (Some(behind(folded)), true);
                    break;
                }
                if listing.objects.len() + listing.prefixes.len() == limit {
                    listing.next = last;
                    return Ok(listing);
                }
                match folded {
                    Some(folded) => {
                        // All that it folds is jumped over, however much it is.
                        listing.prefixes.push(folded.to_string());
                        last = Some(folded.to_string());
                        from = Some(behind(folded));
                        jumped = true;
                        break;
                    }
                    None => {
                        let len = Self::found(key, pair)?.record.shape.len;
                        listing.objects.push(ObjectMeta { key: key.to_string(), len });
                        (last, from) = (Some(key.to_string()), Some(key.to_string()));
                    }
                }
            }
            if all && !jumped {
                return Ok(listing);
            }
        }
    }
}
