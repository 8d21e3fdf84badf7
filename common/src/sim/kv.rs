//! A registry in memory.

use crate::error::{Error, Result};
use crate::kv::{Kv, KvAssert, KvChange, KvChanges, KvOp, KvPair, Lease, Registry};
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

#[derive(Default)]
struct Inner {
    map: BTreeMap<String, KvPair>,
    /// Keys that go away with a lease.
    bound: BTreeMap<String, u64>,
    /// Every lease that was granted, and whether it is live.
    leases: BTreeMap<u64, watch::Sender<bool>>,
    history: Vec<KvChange>,
    revision: u64,
}

impl Inner {
    fn set(&mut self, key: String, value: Option<Bytes>, lease: Option<u64>) {
        let revision = self.revision;
        self.bound.remove(&key);
        match &value {
            Some(value) => {
                let pair = KvPair { key: key.clone(), value: value.clone(), revision };
                self.map.insert(key.clone(), pair);
                self.bound.extend(lease.map(|lease| (key.clone(), lease)));
            }
            None if self.map.remove(&key).is_none() => return,
            None => {}
        }
        self.history.push(KvChange { key, value, revision });
    }

    fn is_live(&self, lease: u64) -> Option<bool> {
        self.leases.get(&lease).map(|live| *live.borrow())
    }

    fn end(&mut self, lease: u64) {
        let Some(true) = self.leases.get(&lease).map(|live| live.send_replace(false)) else { return };
        self.revision += 1;
        let bound: Vec<String> =
            self.bound.iter().filter(|(_, of)| **of == lease).map(|(key, _)| key.clone()).collect();
        for key in bound {
            self.set(key, None, None);
        }
    }
}

/// A registry in memory. Its leases end when a test says so.
#[derive(Clone, Default)]
pub struct SimKv {
    inner: Arc<Mutex<Inner>>,
    changed: Arc<watch::Sender<u64>>,
}

impl SimKv {
    /// An empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends a lease, as when nobody has heard of its holder; its holder may not know.
    pub fn expire(&self, lease: u64) {
        let revision = {
            let mut inner = self.inner.lock();
            inner.end(lease);
            inner.revision
        };
        self.changed.send_replace(revision);
    }
}

#[async_trait]
impl Kv for SimKv {
    async fn get(&self, key: &str) -> Result<Option<KvPair>> {
        Ok(self.inner.lock().map.get(key).cloned())
    }

    async fn scan(&self, prefix: &str) -> Result<Vec<KvPair>> {
        Ok(self.snapshot(prefix).await?.0)
    }

    async fn txn(&self, asserts: Vec<KvAssert>, ops: Vec<KvOp>) -> Result<u64> {
        let mut inner = self.inner.lock();
        for assert in &asserts {
            let held = match assert {
                KvAssert::Absent(key) => !inner.map.contains_key(key),
                KvAssert::Revision(key, r) => inner.map.get(key).is_some_and(|pair| pair.revision == *r),
                KvAssert::LeaseLive(lease) => inner.is_live(*lease) == Some(true),
                KvAssert::LeaseEnded(lease) => inner.is_live(*lease) == Some(false),
            };
            if !held {
                return Err(Error::conflict(format!("registry: {assert:?} does not hold")));
            }
        }
        inner.revision += 1;
        for op in ops {
            match op {
                KvOp::Put(key, value) => inner.set(key, Some(value), None),
                KvOp::PutWithLease(key, value, lease) => inner.set(key, Some(value), Some(lease)),
                KvOp::Delete(key) => inner.set(key, None, None),
            }
        }
        let revision = inner.revision;
        drop(inner);
        self.changed.send_replace(revision);
        Ok(revision)
    }
}

struct SimLease {
    id: u64,
    live: watch::Receiver<bool>,
    registry: SimKv,
}

#[async_trait]
impl Lease for SimLease {
    fn id(&self) -> u64 {
        self.id
    }

    fn is_live(&self) -> bool {
        *self.live.borrow()
    }

    async fn ended(&self) {
        // A registry that is gone has no leases either.
        let _ = self.live.clone().wait_for(|live| !live).await;
    }

    async fn release(&self) -> Result<()> {
        self.registry.expire(self.id);
        Ok(())
    }
}

#[async_trait]
impl Registry for SimKv {
    async fn snapshot(&self, prefix: &str) -> Result<(Vec<KvPair>, u64)> {
        let inner = self.inner.lock();
        let pairs = inner.map.range(prefix.to_string()..).take_while(|(k, _)| k.starts_with(prefix));
        Ok((pairs.map(|(_, pair)| pair.clone()).collect(), inner.revision))
    }

    async fn changes(&self, prefix: &str, from: u64) -> Result<KvChanges> {
        let mut changed = self.changed.subscribe();
        loop {
            {
                let inner = self.inner.lock();
                let new = inner.history.iter().filter(|c| c.revision >= from && c.key.starts_with(prefix));
                let new: Vec<KvChange> = new.cloned().collect();
                if !new.is_empty() {
                    return Ok(KvChanges::Changed(new, inner.revision + 1));
                }
            }
            changed.changed().await.map_err(|_| Error::unavailable("the registry is gone"))?;
        }
    }

    async fn hold(&self, _: Duration) -> Result<Arc<dyn Lease>> {
        let mut inner = self.inner.lock();
        inner.revision += 1;
        let id = inner.revision;
        let live = watch::Sender::new(true);
        let lease = SimLease { id, live: live.subscribe(), registry: self.clone() };
        inner.leases.insert(id, live);
        Ok(Arc::new(lease))
    }

    async fn end_lease(&self, lease: u64) -> Result<()> {
        self.expire(lease);
        Ok(())
    }
}
