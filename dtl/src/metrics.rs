//! What the DTL counts: the service's side, and the owners'.

use crate::registration::Status;
use crate::replication::{Health, Replication};
use crate::storage::Store;
use common::VolumeId;
use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

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
}

fn name(n: &str) -> String {
    format!("storagerouter_dtl_{n}")
}

impl ServiceMetrics {
    /// Registers them, and what `store` holds.
    pub fn new(registry: &mut Registry, store: &Arc<Store>) -> Self {
        let m = ServiceMetrics::default();
        registry.register(name("appended_entries"), "Entries taken into logs", m.entries.clone());
        registry.register(name("appended_bytes"), "Their bytes", m.bytes.clone());
        registry.register(name("flushes"), "Flushes of logs", m.flushes.clone());
        registry.register(name("stalls"), "Times that a log had no room", m.stalls.clone());
        registry.register(name("seals"), "Volumes sealed at a new epoch", m.seals.clone());
        registry.register(name("refused_connections"), "Connections turned away", m.refused.clone());
        registry.register(name("connections"), "Open connections", m.connections.clone());
        registry.register_collector(Box::new(Held(Arc::downgrade(store))));
        m
    }
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, n: &str, help: &str, value: u64) -> fmt::Result {
    let name = name(n);
    let metric = encoder.encode_descriptor(&name, help, None, MetricType::Gauge)?;
    ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(metric)
}

/// What a store holds, looked up when it is asked for.
#[derive(Debug)]
struct Held(Weak<Store>);

impl Collector for Held {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(store) = self.0.upgrade() else { return Ok(()) };
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

/// Metrics of the owners of volumes. Clones share them.
#[derive(Debug, Clone)]
pub struct OwnerMetrics {
    seconds: Histogram,
    owners: Owners,
}

impl Default for OwnerMetrics {
    fn default() -> Self {
        // From 16 us to 17 s.
        OwnerMetrics {
            seconds: Histogram::new(exponential_buckets(16e-6, 4.0, 11)),
            owners: Owners::default(),
        }
    }
}

impl OwnerMetrics {
    /// Registers them.
    pub fn new(registry: &mut Registry) -> Self {
        let m = OwnerMetrics::default();
        let help = "Time from the journal to the confirmation that an acknowledgement waits for";
        registry.register(name("confirmation_seconds"), help, m.seconds.clone());
        registry.register_collector(Box::new(m.owners.clone()));
        m
    }

    pub(crate) fn add(&self, volume: VolumeId, replication: &Arc<Replication>) {
        let mut owners = self.owners.0.lock();
        owners.retain(|_, o| o.strong_count() > 0);
        owners.insert(volume, Arc::downgrade(replication));
    }

    pub(crate) fn confirmed(&self, took: Duration) {
        self.seconds.observe(took.as_secs_f64());
    }
}

/// The volumes that are owned here: one that is gone leaves no line behind.
#[derive(Clone, Default)]
struct Owners(Arc<Mutex<BTreeMap<VolumeId, Weak<Replication>>>>);

impl fmt::Debug for Owners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} owners", self.0.lock().len())
    }
}

impl Collector for Owners {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let owners: Vec<(VolumeId, Health)> = {
            let owners = self.0.lock();
            owners.iter().filter_map(|(v, o)| Some((*v, o.upgrade()?.health()))).collect()
        };
        let value = |status| match status {
            Status::Degraded => 0,
            Status::CatchingUp => 1,
            Status::InSync => 2,
        };
        type Of = fn(&Health) -> u64;
        let live: Of = |h| h.live as u64;
        let (lag, bytes): (Of, Of) = (|h| h.lag, |h| h.lag_bytes);
        for (n, help, of) in [
            ("peers", "Peers that are sent each entry as it comes", live),
            ("lag_entries", "Entries that the peer furthest behind has not confirmed", lag),
            ("lag_bytes", "Their bytes, about", bytes),
        ] {
            let name = name(n);
            let mut metric = encoder.encode_descriptor(&name, help, None, MetricType::Gauge)?;
            for (volume, health) in &owners {
                let labels = [("volume", volume.to_string())];
                let value = i64::try_from(of(health)).unwrap_or(i64::MAX);
                ConstGauge::new(value).encode(metric.encode_family(&labels)?)?;
            }
        }
        let help = "What the registry says: 0 degraded, 1 catching up, 2 in sync";
        let name = name("status");
        let mut metric = encoder.encode_descriptor(&name, help, None, MetricType::Gauge)?;
        for (volume, health) in &owners {
            let labels = [("volume", volume.to_string())];
            ConstGauge::new(value(health.status)).encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
