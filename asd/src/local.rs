//! A store as a backend in the same process sees it: the door, without a wire.

use crate::gate::Gate;
use crate::store::Store;
use async_trait::async_trait;
use bytes::Bytes;
use common::osd::{BackendId, Call, Changes, KeyPage, KeyRange, OsdStatus, Value, Verified};
use common::{Osd, Result};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// The door to a store in this process, for one backend. The service answers its clients through it, too.
#[derive(Clone)]
pub struct LocalOsd {
    store: Arc<Store>,
    gate: Arc<Gate>,
    backend: Option<BackendId>,
}

impl LocalOsd {
    /// The store as `backend` sees it.
    pub fn new(store: Arc<Store>, backend: Option<BackendId>) -> LocalOsd {
        let gate = Arc::new(Gate::new(store.clock().clone()));
        LocalOsd { store, gate, backend }
    }

    /// The same store as somebody else sees it; together they take turns.
    #[must_use]
    pub fn by(&self, backend: Option<BackendId>) -> LocalOsd {
        LocalOsd { backend, ..self.clone() }
    }

    /// The store.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    fn deadline(&self, call: Call) -> Duration {
        self.store.clock().now().saturating_add(call.timeout)
    }

    /// In its turn, if that comes in time.
    async fn read<T>(&self, call: Call, work: impl Future<Output = Result<T>>) -> Result<T> {
        self.store.admit(self.backend)?;
        let _turn = self.gate.enter(call.priority, self.deadline(call)).await?;
        work.await
    }
}

#[async_trait]
impl Osd for LocalOsd {
    async fn apply(&self, call: Call, changes: Changes) -> Result<()> {
        self.store.apply(call.priority, self.deadline(call), self.backend, changes).await
    }

    async fn get(&self, call: Call, key: &[u8]) -> Result<Option<Value>> {
        self.read(call, self.store.get(key)).await
    }

    async fn get_range(&self, call: Call, key: &[u8], range: Range<u64>) -> Result<Option<Bytes>> {
        self.read(call, self.store.get_range(key, range)).await
    }

    async fn multi_get(&self, call: Call, keys: &[Bytes]) -> Result<Vec<Option<Value>>> {
        self.read(call, self.store.multi_get(keys)).await
    }

    async fn range(&self, call: Call, range: KeyRange, limit: usize) -> Result<KeyPage> {
        self.read(call, self.store.range(&range, limit)).await
    }

    async fn verify(&self, call: Call, range: KeyRange, limit: usize) -> Result<Verified> {
        // The answer must get home in time, too.
        let until = self.store.clock().now().saturating_add(call.timeout / 2);
        self.read(call, self.store.verify(&range, limit, until)).await
    }

    async fn status(&self, _call: Call) -> Result<OsdStatus> {
        Ok(self.store.status())
    }

    async fn claim(&self, _call: Call, from: Option<BackendId>, to: Option<BackendId>) -> Result<()> {
        self.store.claim(from, to).await
    }

    fn describe(&self) -> String {
        format!("OSD {}", self.store.id())
    }
}
