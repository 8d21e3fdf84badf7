//! The registry's door: a linearizable ordered map.

use crate::error::Result;
use async_trait::async_trait;
use bytes::Bytes;

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
}

/// What a transaction does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KvOp {
    /// Sets the key.
    Put(String, Bytes),
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

    /// Checks every assert and then does every operation, all or nothing; durable when it
    /// returns. The result is the transaction's revision. A failed assert is
    /// [`crate::ErrorKind::Conflict`].
    async fn txn(&self, asserts: Vec<KvAssert>, ops: Vec<KvOp>) -> Result<u64>;
}
