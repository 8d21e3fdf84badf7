//! What a daemon counts: its connections, and what its store says of itself when it is asked.

use crate::store::Store;
use common::osd::OsdState;
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
pub struct Metrics {
    pub(crate) refused: Counter,
    pub(crate) connections: Gauge,
    held: Held,
}

fn name(n: &str) -> String {
    format!("storagerouter_asd_{n}")
}

impl Metrics {
    /// Registers them, and what the store of the service that gets them says.
    pub fn new(registry: &mut Registry) -> Self {
        let m = Metrics::default();
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

#[derive(Debug, Clone, Default)]
struct Held(Arc<OnceLock<Weak<Store>>>);

impl Collector for Held {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(store) = self.0.get().and_then(Weak::upgrade) else { return Ok(()) };
        let status = store.status();
        let space = &status.space;
        let gauges = [
            ("capacity_bytes", "What it may take of its disk", space.capacity),
            ("segment_bytes", "What segments take", space.segments),
            ("live_bytes", "Values in segments", space.live),
            ("dead_bytes", "What is deleted in segments and not given back yet", space.dead),
            ("table_bytes", "What records and small values count for", space.table),
            ("free_bytes", "What nothing has taken", space.free),
            ("full", "Whether sets are refused for want of space", space.full.into()),
            ("keys", "Keys", status.keys),
            ("value_bytes", "Bytes of all values as they were given", status.bytes),
            ("damaged_keys", "Values that are known to be damaged", status.damaged_keys),
            ("scrub_permille", "How much was read in this round", status.scrub.done_permille.into()),
            ("read_only", "Whether its disk failed", (status.state != OsdState::Serving).into()),
            ("apply_p99_microseconds", "Of 100 changes 99 took no longer", status.apply.p99),
            ("get_p99_microseconds", "Of 100 reads 99 took no longer", status.get.p99),
        ];
        for (n, help, value) in gauges {
            let name = name(n);
            let metric = encoder.encode_descriptor(&name, help, None, MetricType::Gauge)?;
            ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(metric)?;
        }
        for (n, value) in &status.counters {
            let name = name(n);
            let metric =
                encoder.encode_descriptor(&name, "Counted since the start", None, MetricType::Counter)?;
            ConstCounter::new(*value).encode(metric)?;
        }
        Ok(())
    }
}
