//! The disk and the object store as one process has them.

use super::gate::Gate;
use super::net::{Net, Node};
use async_trait::async_trait;
use bytes::Bytes;
use common::disk::DiskFile;
use common::object::{Listing, Precondition};
use common::sim::{SimClock, SimDisk, SimObjectStore};
use common::{Clock, Disk, Error, ObjectStore, Result};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// How long a request to a store that can't be reached takes to fail.
const PATIENCE: Duration = Duration::from_secs(2);

/// The disk of a process: void after its death.
pub struct ProcessDisk {
    disk: SimDisk,
    gate: Gate,
}

impl ProcessDisk {
    /// The disk for a process that begins now.
    pub fn new(disk: &SimDisk, gate: Gate) -> Self {
        Self { disk: disk.process(), gate }
    }

    fn file(&self, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(ProcessFile { file, gate: self.gate.clone() })
    }
}

#[async_trait]
impl Disk for ProcessDisk {
    async fn create(&self, name: &str, size: u64) -> Result<Arc<dyn DiskFile>> {
        self.gate.effect().await;
        self.disk.create(name, size).await.map(|file| self.file(file))
    }

    async fn open(&self, name: &str) -> Result<Arc<dyn DiskFile>> {
        self.gate.pass().await;
        self.disk.open(name).await.map(|file| self.file(file))
    }

    async fn available(&self) -> Result<u64> {
        self.gate.pass().await;
        self.disk.available().await
    }

    async fn list(&self) -> Result<Vec<String>> {
        self.gate.pass().await;
        self.disk.list().await
    }

    async fn remove(&self, name: &str) -> Result<()> {
        self.gate.effect().await;
        self.disk.remove(name).await
    }
}

struct ProcessFile {
    file: Arc<dyn DiskFile>,
    gate: Gate,
}

#[async_trait]
impl DiskFile for ProcessFile {
    fn len(&self) -> u64 {
        self.file.len()
    }

    async fn write_at(&self, offset: u64, parts: &[Bytes]) -> Result<()> {
        self.gate.effect().await;
        self.file.write_at(offset, parts).await
    }

    async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes> {
        self.gate.pass().await;
        self.file.read_at(offset, len).await
    }

    async fn sync(&self) -> Result<()> {
        self.gate.effect().await;
        let result = self.file.sync().await;
        self.gate.pass().await;
        result
    }
}

/// The way of a process to the object store. What it had asked for when it died or stood still is done all the same.
pub struct ProcessStore {
    store: SimObjectStore,
    net: Arc<Net>,
    clock: Arc<SimClock>,
    node: Node,
    gate: Gate,
}

impl ProcessStore {
    /// The way of the process `gate` at `node`.
    pub fn new(store: SimObjectStore, net: Arc<Net>, clock: Arc<SimClock>, node: Node, gate: Gate) -> Self {
        Self { store, net, clock, node, gate }
    }

    async fn within_patience(&self, from: Node, to: Node) -> Result<()> {
        let nobody = || Error::unavailable("simulated network: the object store does not answer");
        self.net.travel().await;
        if self.net.is_open(from, to) {
            return Ok(());
        }
        tokio::select! {
            biased;
            () = self.net.opened(from, to) => Ok(()),
            () = self.clock.sleep(PATIENCE) => Err(nobody()),
        }
    }

    /// A request there and back again.
    async fn ask<T>(&self, request: impl Future<Output = Result<T>>) -> Result<T> {
        self.gate.effect().await;
        let result = async {
            self.within_patience(self.node, Node::Store).await?;
            let answer = request.await;
            self.within_patience(Node::Store, self.node).await?;
            answer
        };
        let result = result.await;
        self.gate.pass().await;
        result
    }
}

#[async_trait]
impl ObjectStore for ProcessStore {
    async fn put(&self, key: &str, data: Bytes, precondition: Precondition) -> Result<()> {
        self.ask(self.store.put(key, data, precondition)).await
    }

    async fn get(&self, key: &str) -> Result<Bytes> {
        self.ask(self.store.get(key)).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        self.ask(self.store.get_range(key, range)).await
    }

    async fn head(&self, key: &str) -> Result<Option<u64>> {
        self.ask(self.store.head(key)).await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        delimiter: bool,
        limit: usize,
    ) -> Result<Listing> {
        self.ask(self.store.list(prefix, after, delimiter, limit)).await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.ask(self.store.delete(key)).await
    }

    fn describe(&self) -> String {
        self.store.describe()
    }
}
