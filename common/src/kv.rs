//! The registry's door: a linearizable ordered map.

use crate::error::Result;
use async_trait::async_trait;
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;

/// A key with its value and the revision that wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvPair {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Bytes,
    /// The revision of the transaction that last wrote it; grows with each transaction.
    pub revision: u64,
}

/// What must hold for a transaction to happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KvAssert {
    /// There is no such key.
    Absent(String),
    /// The key was last written by this revision.
    Revision(String, u64),
    /// The lease was granted, and has neither expired nor been ended.
    LeaseLive(u64),
    /// The lease was granted, and has expired or been ended.
    LeaseEnded(u64),
}

/// What a transaction does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KvOp {
    /// Sets the key.
    Put(String, Bytes),
    /// Sets the key, which goes away with this lease.
    PutWithLease(String, Bytes, u64),
    /// Removes the key, if it is there.
    Delete(String),
}

/// The linearizable ordered map that holds the registry.
#[async_trait]
pub trait Kv: Send + Sync {
    /// The value of `key`.
    async fn get(&self, key: &str) -> Result<Option<KvPair>>;

    /// All pairs whose key begins with `prefix`, in order of key.
    async fn scan(&self, prefix: &str) -> Result<Vec<KvPair>>;

    /// At most `limit` pairs whose key begins with `prefix` and sorts behind `after`, in order of key: fewer only when
    /// there are no more.
    async fn page(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<KvPair>> {
        let mut pairs = self.scan(prefix).await?;
        pairs.retain(|pair| after.is_none_or(|after| pair.key.as_str() > after));
        pairs.truncate(limit);
        Ok(pairs)
    }

    /// Checks every assert and then does every operation, all or nothing; durable when it
    /// returns. The result is the transaction's revision. A failed assert is
    /// [`crate::ErrorKind::Conflict`].
    async fn txn(&self, asserts: Vec<KvAssert>, ops: Vec<KvOp>) -> Result<u64>;
}

/// A key that was changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvChange {
    /// The key.
    pub key: String,
    /// Its value, `None` when it was removed.
    pub value: Option<Bytes>,
    /// The revision that did it.
    pub revision: u64,
}

/// What [`Registry::changes`] tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KvChanges {
    /// Changes in order of revision, none of the prefix in between left out, and the revision to go on from.
    Changed(Vec<KvChange>, u64),
    /// The history begins later than that: read everything again.
    Forgotten,
}

/// A lease that is kept by heartbeats until it is dropped. Its id is its incarnation: an ended one never comes back.
#[async_trait]
pub trait Lease: Send + Sync {
    /// Which one.
    fn id(&self) -> u64;

    /// Whether its holder may act on it: to be asked right before what depends on it becomes visible.
    fn is_live(&self) -> bool;

    /// Waits until the registry has said that it ended. Safe to cancel.
    async fn ended(&self);

    /// Ends it at once, with the keys that are bound to it.
    async fn release(&self) -> Result<()>;
}

/// The registry of a cluster: the map, what changes in it, and who is alive.
#[async_trait]
pub trait Registry: Kv {
    /// All pairs whose key begins with `prefix` as they are at one moment, and the revision of it: [`Registry::changes`]
    /// from one more goes on from there.
    async fn snapshot(&self, prefix: &str) -> Result<(Vec<KvPair>, u64)>;

    /// Waits for changes of keys that begin with `prefix`, from revision `from` on. Safe to cancel.
    async fn changes(&self, prefix: &str, from: u64) -> Result<KvChanges>;

    /// A new lease that ends when nobody has heard of its holder for `ttl`.
    async fn hold(&self, ttl: Duration) -> Result<Arc<dyn Lease>>;

    /// Ends the lease of somebody who is surely gone; one that has ended is fine.
    async fn end_lease(&self, lease: u64) -> Result<()>;
}
