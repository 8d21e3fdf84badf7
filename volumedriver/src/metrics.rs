//! What the volume driver counts, all volumes together. Per volume, the frontiers tell.

use crate::read_cache::Counters;
use common::Clock;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use std::time::Duration;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StageLabel {
    stage: &'static str,
}

/// How long a stage of the path of a write or a read takes.
#[derive(Debug, Clone)]
pub(crate) struct Stage(Histogram);

impl Stage {
    /// It began at `begin` and ends now.
    pub fn done(&self, clock: &dyn Clock, begin: Duration) {
        self.0.observe(clock.now().saturating_sub(begin).as_secs_f64());
    }
}

/// The stages behind the write buffer. What comes before is told by `edge_request_seconds` and `journal_*_seconds`.
#[derive(Debug, Clone)]
pub(crate) struct Stages {
    /// Making a SCO of what is in the write buffer.
    pub seal: Stage,
    /// A SCO's put, with all tries.
    pub upload: Stage,
    /// Looking for a newer owner, feeding the index, giving credit back.
    pub commit: Stage,
    /// Reading clusters back from the write buffer.
    pub read_journal: Stage,
    /// A ranged read of a SCO, with all tries.
    pub read_backend: Stage,
}

impl Stages {
    fn new(registry: &mut Registry) -> Self {
        // From 16 us to 17 s.
        let new: fn() -> Histogram = || Histogram::new(exponential_buckets(16e-6, 4.0, 11));
        let family = Family::<StageLabel, Histogram, fn() -> Histogram>::new_with_constructor(new);
        let name = "storagerouter_volumedriver_stage_seconds";
        registry.register(name, "Time that a stage behind the write buffer takes", family.clone());
        let stage = |stage| Stage(family.get_or_create_owned(&StageLabel { stage }));
        Self {
            seal: stage("seal"),
            upload: stage("upload"),
            commit: stage("commit"),
            read_journal: stage("read_journal"),
            read_backend: stage("read_backend"),
        }
    }
}

/// Handles of the volume driver's metrics.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    pub stages: Stages,
    pub scos: Counter,
    pub sco_bytes: Counter,
    pub sealed_bytes: Counter,
    pub tlogs: Counter,
    pub manifests: Counter,
    pub deleted_scos: Counter,
    pub relocated_bytes: Counter,
    pub damaged_scos: Counter,
    pub backend_reads: Counter,
    pub backend_read_bytes: Counter,
    pub cache: Counters,
    pub checksum_errors: Counter,
}

impl Metrics {
    /// Registers the metrics.
    pub fn new(registry: &mut Registry) -> Metrics {
        let m = Metrics {
            stages: Stages::new(registry),
            scos: Counter::default(),
            sco_bytes: Counter::default(),
            sealed_bytes: Counter::default(),
            tlogs: Counter::default(),
            manifests: Counter::default(),
            deleted_scos: Counter::default(),
            relocated_bytes: Counter::default(),
            damaged_scos: Counter::default(),
            backend_reads: Counter::default(),
            backend_read_bytes: Counter::default(),
            cache: Counters::new(registry),
            checksum_errors: Counter::default(),
        };
        let mut add = |name: &str, help: &str, counter: &Counter| {
            registry.register(format!("storagerouter_volumedriver_{name}"), help, counter.clone());
        };
        add("scos", "SCOs on the backend", &m.scos);
        add("sco_bytes", "Bytes of SCOs put on the backend", &m.sco_bytes);
        add("sealed_bytes", "Bytes of clusters in sealed SCOs, after coalescing", &m.sealed_bytes);
        add("tlogs", "TLogs put on the backend", &m.tlogs);
        add("manifests", "Manifests put on the backend", &m.manifests);
        add(
            "deleted_scos",
            "SCOs that were deleted, with nothing in them that anybody reads",
            &m.deleted_scos,
        );
        add("relocated_bytes", "Bytes of relocation SCOs put on the backend", &m.relocated_bytes);
        add("damaged_scos", "SCOs that a scrub could not read", &m.damaged_scos);
        add("backend_reads", "Ranged reads of SCOs", &m.backend_reads);
        add("backend_read_bytes", "Bytes read from SCOs", &m.backend_read_bytes);
        add("checksum_errors", "Clusters read whose checksum was wrong", &m.checksum_errors);
        m
    }
}
