//! What a member counts and measures.

use super::core::Vitals;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use std::time::Duration;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MemberLabel {
    member: u64,
}

/// Handles of everything that a member counts. A process with several groups gives each a registry with a label of its own.
#[derive(Clone)]
pub struct Metrics {
    term: Gauge,
    leader: Gauge,
    leads: Gauge,
    committed: Gauge,
    applied: Gauge,
    revision: Gauge,
    log_bytes: Gauge,
    waiting: Gauge,
    watches: Gauge,
    leases: Gauge,
    sessions: Gauge,
    proposals: Counter,
    served: Counter,
    /// Messages that were refused.
    pub(super) refused: Counter,
    lag: Family<MemberLabel, Gauge>,
    writes: Counter,
    write_seconds: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            term: Gauge::default(),
            leader: Gauge::default(),
            leads: Gauge::default(),
            committed: Gauge::default(),
            applied: Gauge::default(),
            revision: Gauge::default(),
            log_bytes: Gauge::default(),
            waiting: Gauge::default(),
            watches: Gauge::default(),
            leases: Gauge::default(),
            sessions: Gauge::default(),
            proposals: Counter::default(),
            served: Counter::default(),
            refused: Counter::default(),
            lag: Family::default(),
            writes: Counter::default(),
            write_seconds: Histogram::new(exponential_buckets(16e-6, 2.0, 18)),
        }
    }
}

impl Metrics {
    /// Registers everything in `registry`.
    pub fn new(registry: &mut Registry) -> Self {
        let m = Self::default();
        let gauges = [
            ("term", "Raft's term", &m.term),
            ("leader", "The member that leads as far as this one knows, 0 when nobody does", &m.leader),
            ("leads", "Whether this member leads", &m.leads),
            (
                "committed_entry",
                "Last entry of the log that is decided, as far as is known here",
                &m.committed,
            ),
            ("applied_entry", "Last entry of the log that is in the state", &m.applied),
            ("revision", "Last revision that was given", &m.revision),
            ("log_bytes", "Bytes of the log that are kept, in memory and on the disk", &m.log_bytes),
            ("waiting_proposals", "Commands that wait to be decided", &m.waiting),
            ("watches", "Watches that wait for a change", &m.watches),
            ("leases", "Leases that live", &m.leases),
            ("sessions", "Sessions that are remembered", &m.sessions),
        ];
        for (name, help, gauge) in gauges {
            registry.register(format!("storagerouter_kvstore_{name}"), help, gauge.clone());
        }
        registry.register(
            "storagerouter_kvstore_proposals",
            "Commands that this member put into the log",
            m.proposals.clone(),
        );
        registry.register(
            "storagerouter_kvstore_requests",
            "Requests of clients that came to this member, also those that it sent on to another one",
            m.served.clone(),
        );
        registry.register(
            "storagerouter_kvstore_refused_messages",
            "Messages of members that no honest one sends",
            m.refused.clone(),
        );
        registry.register(
            "storagerouter_kvstore_member_lag_entries",
            "Entries that a member lacks, told by the leader",
            m.lag.clone(),
        );
        registry.register(
            "storagerouter_kvstore_log_writes",
            "Writes to the log, each with its fdatasync",
            m.writes.clone(),
        );
        registry.register(
            "storagerouter_kvstore_log_write_seconds",
            "Time of a write to the log",
            m.write_seconds.clone(),
        );
        m
    }

    pub(super) fn wrote(&self, took: Duration) {
        self.writes.inc();
        self.write_seconds.observe(took.as_secs_f64());
    }

    pub(super) fn update(&self, vitals: &Vitals) {
        let set = |gauge: &Gauge, value: u64| {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        set(&self.term, vitals.term);
        set(&self.leader, vitals.leader);
        set(&self.leads, u64::from(vitals.leads));
        set(&self.committed, vitals.committed);
        set(&self.applied, vitals.applied);
        set(&self.revision, vitals.revision);
        set(&self.log_bytes, vitals.log_bytes);
        set(&self.waiting, vitals.waiting);
        set(&self.watches, vitals.watches);
        set(&self.leases, vitals.leases);
        set(&self.sessions, vitals.sessions);
        self.proposals.inc_by(vitals.proposed.saturating_sub(self.proposals.get()));
        self.served.inc_by(vitals.served.saturating_sub(self.served.get()));
        // Who is no member any more, or is told of by another leader.
        self.lag.clear();
        for (member, lag) in &vitals.lags {
            set(&self.lag.get_or_create(&MemberLabel { member: *member }), *lag);
        }
    }
}
