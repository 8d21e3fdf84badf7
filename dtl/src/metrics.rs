//! What a service counts. The owners' side is told with their volumes (volumedriver's `ReplicationStatus`).

use crate::storage::Store;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;
use std::fmt;
use std::sync::{Arc, OnceLock, Weak};

/// Counters of a service.
#[derive(Debug, Clone, Default)]
pub struct ServiceMetrics {
    pub(crate) entries: Counter,
    pub(crate) bytes: Counter,
    pub(crate) flushes: Counter,
    pub(crate) stalls: Counter,
    pub(crate) seals: Counter,
    pub(crate) refused: Counter,
    pub(crate) connections: Gauge,
    held: Held,
}

fn name(n: &str) -> String {
    format!("storagerouter_dtl_{n}")
}

impl ServiceMetrics {
    /// Registers them, and what the store of the service that gets them holds.
    pub fn new(registry: &mut Registry) -> Self {
        let m = ServiceMetrics::default();
        registry.register(name("appended_entries"), "Entries taken into logs", m.entries.clone());
        registry.register(name("appended_bytes"), "Their bytes", m.bytes.clone());
        registry.register(name("flushes"), "Flushes of logs", m.flushes.clone());
        registry.register(name("stalls"), "Times that a log had no room", m.stalls.clone());
        registry.register(name("seals"), "Volumes sealed at a new epoch", m.seals.clone());
        registry.register(name("refused_connections"), "Connections turned away", m.refused.clone());
        registry.register(name("connections"), "Open connections", m.connections.clone());
        registry.register_collector(Box::new(m.held.clone()));
        m
    }

    /// From now on it is told what `store` holds.
    pub(crate) fn watch(&self, store: &Arc<Store>) {
        let _ = self.held.0.set(Arc::downgrade(store));
    }
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, n: &str, help: &str, value: u64) -> fmt::Result {
    let name = name(n);
    let metric = encoder.encode_descriptor(&name, help, None, MetricType::Gauge)?;
    ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(metric)
}

/// What a store holds, looked up when it is asked for.
#[derive(Debug, Clone, Default)]
struct Held(Arc<OnceLock<Weak<Store>>>);

impl Collector for Held {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(store) = self.0.get().and_then(Weak::upgrade) else { return Ok(()) };
        let tally = store.tally();
        gauge(&mut encoder, "volumes", "Volumes of which something is known", tally.volumes)?;
        gauge(&mut encoder, "logs", "Logs that are kept for others", tally.logs)?;
        gauge(&mut encoder, "held_bytes", "Bytes of all logs", tally.bytes)?;
        gauge(&mut encoder, "capacity_bytes", "The most bytes of all logs", tally.capacity)?;
        gauge(
            &mut encoder,
            "failed",
            "Whether a write or a sync failed, so that nothing is taken",
            tally.failed.into(),
        )?;
        let name = name("fsyncs");
        let syncs = encoder.encode_descriptor(&name, "Syncs of segments", None, MetricType::Counter)?;
        ConstCounter::new(tally.syncs).encode(syncs)
    }
}
