//! What is counted, and the wrapper that counts it for every kind of store.

use async_trait::async_trait;
use bytes::Bytes;
use common::object::{Haste, Listing, ObjectStore, Precondition};
use common::{Clock, ErrorKind, Result};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::ops::Range;
use std::sync::Arc;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    store: &'static str,
    operation: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Operation {
    store: &'static str,
    operation: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Direction {
    store: &'static str,
    direction: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    store: &'static str,
}

/// The handles of this crate's metrics. Register once per process; clones share the numbers.
#[derive(Clone)]
pub struct Metrics {
    requests: Family<Outcome, Counter>,
    seconds: Family<Operation, Histogram, fn() -> Histogram>,
    bytes: Family<Direction, Counter>,
    retries: Family<Kind, Counter>,
}

fn histogram() -> Histogram {
    // 10 us to 80 s, each bound about three times the one before.
    Histogram::new([1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 80.0])
}

impl Metrics {
    /// Registers the metrics.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::unregistered();
        registry.register(
            "storagerouter_alba_proxy_requests",
            "Requests to object stores, by store kind, operation and outcome",
            metrics.requests.clone(),
        );
        registry.register(
            "storagerouter_alba_proxy_request_seconds",
            "Time of requests to object stores, retries included",
            metrics.seconds.clone(),
        );
        registry.register(
            "storagerouter_alba_proxy_transferred_bytes",
            "Bytes of objects that were put and got",
            metrics.bytes.clone(),
        );
        registry.register(
            "storagerouter_alba_proxy_retries",
            "Attempts that were repeated inside a request",
            metrics.retries.clone(),
        );
        metrics
    }

    /// Handles that nobody reads, for tools.
    pub fn unregistered() -> Self {
        Self {
            requests: Family::default(),
            seconds: Family::new_with_constructor(histogram as fn() -> Histogram),
            bytes: Family::default(),
            retries: Family::default(),
        }
    }

    pub(crate) fn retries(&self, store: &'static str) -> Counter {
        self.retries.get_or_create_owned(&Kind { store })
    }

    fn operation(&self, store: &'static str, operation: &'static str) -> OperationMetrics {
        let of = |outcome| self.requests.get_or_create_owned(&Outcome { store, operation, outcome });
        OperationMetrics {
            ok: of("ok"),
            refused: of("refused"),
            failed: of("failed"),
            seconds: self.seconds.get_or_create_owned(&Operation { store, operation }),
        }
    }

    fn direction(&self, store: &'static str, direction: &'static str) -> Counter {
        self.bytes.get_or_create_owned(&Direction { store, direction })
    }
}

/// The numbers of one operation, looked up once.
struct OperationMetrics {
    ok: Counter,
    /// The store answered no: not found, conflict.
    refused: Counter,
    failed: Counter,
    seconds: Histogram,
}

/// A store whose requests are counted.
pub(crate) struct Metered<S> {
    inner: S,
    clock: Arc<dyn Clock>,
    put: OperationMetrics,
    get: OperationMetrics,
    get_range: OperationMetrics,
    head: OperationMetrics,
    list: OperationMetrics,
    delete: OperationMetrics,
    bytes_put: Counter,
    bytes_got: Counter,
}

impl<S: ObjectStore> Metered<S> {
    pub(crate) fn new(inner: S, kind: &'static str, clock: Arc<dyn Clock>, metrics: &Metrics) -> Self {
        Self {
            inner,
            clock,
            put: metrics.operation(kind, "put"),
            get: metrics.operation(kind, "get"),
            get_range: metrics.operation(kind, "get_range"),
            head: metrics.operation(kind, "head"),
            list: metrics.operation(kind, "list"),
            delete: metrics.operation(kind, "delete"),
            bytes_put: metrics.direction(kind, "put"),
            bytes_got: metrics.direction(kind, "get"),
        }
    }

    async fn count<T>(
        &self,
        metrics: &OperationMetrics,
        request: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let start = self.clock.now();
        let outcome = request.await;
        metrics.seconds.observe(self.clock.now().saturating_sub(start).as_secs_f64());
        let counter = match &outcome {
            Ok(_) => &metrics.ok,
            Err(e) if matches!(e.kind, ErrorKind::NotFound | ErrorKind::Conflict) => &metrics.refused,
            Err(_) => &metrics.failed,
        };
        counter.inc();
        outcome
    }
}

#[async_trait]
impl<S: ObjectStore> ObjectStore for Metered<S> {
    async fn put(&self, key: &str, data: Bytes, precondition: Precondition) -> Result<()> {
        let len = data.len() as u64;
        self.count(&self.put, self.inner.put(key, data, precondition)).await?;
        self.bytes_put.inc_by(len);
        Ok(())
    }

    async fn put_parts(
        &self,
        key: &str,
        parts: &[Bytes],
        precondition: Precondition,
        haste: Haste,
    ) -> Result<()> {
        let len = parts.iter().map(|part| part.len() as u64).sum();
        self.count(&self.put, self.inner.put_parts(key, parts, precondition, haste)).await?;
        self.bytes_put.inc_by(len);
        Ok(())
    }

    async fn get(&self, key: &str) -> Result<Bytes> {
        let data = self.count(&self.get, self.inner.get(key)).await?;
        self.bytes_got.inc_by(data.len() as u64);
        Ok(data)
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        let data = self.count(&self.get_range, self.inner.get_range(key, range)).await?;
        self.bytes_got.inc_by(data.len() as u64);
        Ok(data)
    }

    async fn head(&self, key: &str) -> Result<Option<u64>> {
        self.count(&self.head, self.inner.head(key)).await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        delimiter: bool,
        limit: usize,
    ) -> Result<Listing> {
        self.count(&self.list, self.inner.list(prefix, after, delimiter, limit)).await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.count(&self.delete, self.inner.delete(key)).await
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }
}
