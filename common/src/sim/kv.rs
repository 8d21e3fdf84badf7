//! A registry in memory.

use crate::error::{Error, Result};
use crate::kv::{Kv, KvAssert, KvOp, KvPair};
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::BTreeMap;

#[derive(Default)]
struct Inner {
    map: BTreeMap<String, (Bytes, u64)>,
    revision: u64,
}

/// A registry in memory.
#[derive(Default)]
pub struct SimKv {
    inner: Mutex<Inner>,
}

impl SimKv {
    /// An empty registry.
    pub fn new() -> Self {
        Self::default()
    }
}

#[async_trait]
impl Kv for SimKv {
    async fn get(&self, key: &str) -> Result<Option<KvPair>> {
        let inner = self.inner.lock();
        Ok(inner.map.get(key).map(|(value, revision)| KvPair {
            key: key.to_string(),
            value: value.clone(),
            revision: *revision,
        }))
    }

    async fn scan(&self, prefix: &str) -> Result<Vec<KvPair>> {
        let inner = self.inner.lock();
        let pairs = inner.map.range(prefix.to_string()..).take_while(|(k, _)| k.starts_with(prefix));
        Ok(pairs
            .map(|(k, (value, revision))| KvPair {
                key: k.clone(),
                value: value.clone(),
                revision: *revision,
            })
            .collect())
    }

    async fn txn(&self, asserts: Vec<KvAssert>, ops: Vec<KvOp>) -> Result<u64> {
        let mut inner = self.inner.lock();
        for assert in &asserts {
            let (key, held) = match assert {
                KvAssert::Absent(key) => (key, !inner.map.contains_key(key)),
                KvAssert::Revision(key, r) => (key, inner.map.get(key).is_some_and(|(_, have)| have == r)),
            };
            if !held {
                return Err(Error::conflict(format!("registry key '{key}' is not as expected")));
            }
        }
        inner.revision += 1;
        let revision = inner.revision;
        for op in ops {
            match op {
                KvOp::Put(key, value) => inner.map.insert(key, (value, revision)),
                KvOp::Delete(key) => inner.map.remove(&key),
            };
        }
        Ok(revision)
    }
}
