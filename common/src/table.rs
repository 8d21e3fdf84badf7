//! The local table's door: an ordered map on the local disk, without durability of its own.

use crate::error::Result;
use bytes::Bytes;

/// Keys and values set or removed together.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// `Some` sets, `None` removes.
    pub ops: Vec<(Vec<u8>, Option<Bytes>)>,
}

impl Batch {
    /// Sets `key`.
    pub fn put(&mut self, key: impl Into<Vec<u8>>, value: impl Into<Bytes>) {
        self.ops.push((key.into(), Some(value.into())));
    }

    /// Removes `key`.
    pub fn delete(&mut self, key: impl Into<Vec<u8>>) {
        self.ops.push((key.into(), None));
    }
}

/// An ordered local table.
///
/// Batches are atomic and applied in order. A crash may lose any suffix of the batches that were
/// written since the last [`Table::checkpoint`], never one in the middle: who keeps a watermark in
/// each batch knows what is missing. Calls are short and may be made from async code.
pub trait Table: Send + Sync {
    /// The value of `key`.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>>;

    /// Up to `limit` pairs whose key begins with `prefix`, in order, from `from` on.
    fn scan(&self, prefix: &[u8], from: &[u8], limit: usize) -> Result<Vec<(Vec<u8>, Bytes)>>;

    /// Applies the batch.
    fn write(&self, batch: Batch) -> Result<()>;

    /// Removes every key that begins with `prefix`.
    fn delete_prefix(&self, prefix: &[u8]) -> Result<()>;

    /// Returns when every batch written before is durable.
    fn checkpoint(&self) -> Result<()>;
}
