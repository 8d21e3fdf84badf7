//! The object store's door: immutable blobs by key.

use crate::error::Result;
use async_trait::async_trait;
use bytes::Bytes;
use std::ops::Range;

/// What a put demands of the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precondition {
    /// Nothing: put whatever is there.
    None,
    /// No object has the key. Two racing puts have one winner; the loser gets
    /// [`crate::ErrorKind::Conflict`].
    IfAbsent,
}

/// How much of a disk a put may take while others use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Haste {
    /// All of it: somebody waits, or will.
    Full,
    /// Nobody waits: a store on a disk writes little at a time, with gaps in which others are served.
    Gentle,
}

/// An object as a listing shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectMeta {
    /// The whole key.
    pub key: String,
    /// Length in bytes.
    pub len: u64,
}

/// One page of a listing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// Objects in ascending byte order of their keys.
    pub objects: Vec<ObjectMeta>,
    /// With a delimiter: the distinct prefixes up to and with it, in order.
    pub prefixes: Vec<String>,
    /// There is more: go on with `after` = this.
    pub next: Option<String>,
}

/// Immutable blobs by key. Linearizable per key, reads of absent keys included.
///
/// Keys are 1 to 512 bytes of `a-z A-Z 0-9 . _ - /`. Errors: `Unavailable` (retry), `NotFound`,
/// `Conflict` (precondition), `NoSpace`, `Denied`, `Invalid`, `Corrupt`.
/// A put that returns `Unavailable` has an unknown outcome: it may appear later.
#[async_trait]
pub trait ObjectStore: Send + Sync {
    /// Puts a whole object; when it returns, the object is durable.
    async fn put(&self, key: &str, data: Bytes, precondition: Precondition) -> Result<()>;

    /// As [`ObjectStore::put`], of an object that lies in memory in pieces.
    async fn put_parts(
        &self,
        key: &str,
        parts: &[Bytes],
        precondition: Precondition,
        _haste: Haste,
    ) -> Result<()> {
        self.put(key, parts.concat().into(), precondition).await
    }

    /// The whole object.
    async fn get(&self, key: &str) -> Result<Bytes>;

    /// Bytes `range` of the object; a range that goes beyond its end is `Corrupt`.
    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes>;

    /// Length of the object, or `None` when there is none.
    async fn head(&self, key: &str) -> Result<Option<u64>>;

    /// A page of the keys that begin with `prefix` and sort behind `after`, at most `limit` (and
    /// never more than 1,000). With `delimiter`, keys that hold a `/` behind the prefix are folded
    /// into [`Listing::prefixes`].
    async fn list(&self, prefix: &str, after: Option<&str>, delimiter: bool, limit: usize)
    -> Result<Listing>;

    /// Deletes the object; deleting what is not there is a success.
    async fn delete(&self, key: &str) -> Result<()>;

    /// A text that tells a person which store this is (never a secret).
    fn describe(&self) -> String;
}

/// Every key under `prefix`, page by page.
pub async fn list_all(store: &dyn ObjectStore, prefix: &str) -> Result<Vec<ObjectMeta>> {
    let mut all = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let page = store.list(prefix, after.as_deref(), false, 1000).await?;
        all.extend(page.objects);
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(all),
        }
    }
}
