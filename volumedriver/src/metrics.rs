//! What the volume driver counts, all volumes together. Per volume, the frontiers tell.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

/// Handles of the volume driver's metrics.
#[derive(Debug, Clone, Default)]
pub(crate) struct Metrics {
    pub scos: Counter,
    pub sco_bytes: Counter,
    pub sealed_bytes: Counter,
    pub tlogs: Counter,
    pub manifests: Counter,
    pub deleted_scos: Counter,
    pub backend_reads: Counter,
    pub backend_read_bytes: Counter,
    pub cache_hits: Counter,
    pub checksum_errors: Counter,
}

impl Metrics {
    /// Registers the metrics.
    pub fn new(registry: &mut Registry) -> Metrics {
        let m = Metrics::default();
        let mut add = |name: &str, help: &str, counter: &Counter| {
            registry.register(format!("storagerouter_volumedriver_{name}"), help, counter.clone());
        };
        add("scos", "SCOs on the backend", &m.scos);
        add("sco_bytes", "Bytes of SCOs put on the backend", &m.sco_bytes);
        add("sealed_bytes", "Bytes of clusters in sealed SCOs, after coalescing", &m.sealed_bytes);
        add("tlogs", "TLogs put on the backend", &m.tlogs);
        add("manifests", "Manifests put on the backend", &m.manifests);
        add("deleted_scos", "SCOs without live clusters that were deleted", &m.deleted_scos);
        add("backend_reads", "Ranged reads of SCOs", &m.backend_reads);
        add("backend_read_bytes", "Bytes read from SCOs", &m.backend_read_bytes);
        add("read_cache_hits", "Clusters found in the read cache", &m.cache_hits);
        add("checksum_errors", "Clusters read whose checksum was wrong", &m.checksum_errors);
        m
    }
}
