//! What the NBD server counts.

use crate::nbd::proto::Command;
use common::ErrorKind;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::time::Duration;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CommandLabel {
    command: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DirectionLabel {
    direction: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ErrorLabel {
    kind: &'static str,
}

/// The counters of one command, looked up once.
#[derive(Clone)]
struct PerCommand {
    requests: Counter,
    seconds: Histogram,
}

/// Handles of everything the server counts.
#[derive(Clone)]
pub struct Metrics {
    /// Connections that are open now.
    pub connections: Gauge,
    /// Connections that have a thread to themselves now.
    pub alone: Gauge,
    /// Connections that were turned away because there were too many.
    pub refused: Counter,
    /// Connections that were closed because the client broke the protocol.
    pub protocol_errors: Counter,
    /// Payload sent to clients.
    pub bytes_read: Counter,
    /// Payload received from clients.
    pub bytes_written: Counter,
    errors: Family<ErrorLabel, Counter>,
    commands: Vec<PerCommand>,
}

impl Metrics {
    /// Registers everything in `registry`.
    pub fn new(registry: &mut Registry) -> Self {
        let connections = Gauge::default();
        let alone = Gauge::default();
        let refused = Counter::default();
        let protocol_errors = Counter::default();
        let bytes = Family::<DirectionLabel, Counter>::default();
        let errors = Family::<ErrorLabel, Counter>::default();
        let requests = Family::<CommandLabel, Counter>::default();
        let seconds = Family::<CommandLabel, Histogram>::new_with_constructor(|| {
            Histogram::new([
                20e-6, 50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 2e-3, 5e-3, 10e-3, 50e-3, 200e-3, 1.0, 5.0, 30.0,
            ])
        });
        registry.register("storagerouter_edge_connections", "Open NBD connections", connections.clone());
        registry.register(
            "storagerouter_edge_alone_connections",
            "NBD connections with a thread to themselves: their clients send one request at a time",
            alone.clone(),
        );
        registry.register(
            "storagerouter_edge_refused_connections",
            "NBD connections turned away at nbd.max_connections",
            refused.clone(),
        );
        registry.register(
            "storagerouter_edge_protocol_errors",
            "NBD connections closed because the client broke the protocol",
            protocol_errors.clone(),
        );
        registry.register("storagerouter_edge_payload_bytes", "Payload of NBD requests", bytes.clone());
        registry.register("storagerouter_edge_errors", "NBD requests answered with an error", errors.clone());
        registry.register("storagerouter_edge_requests", "NBD requests", requests.clone());
        registry.register(
            "storagerouter_edge_request_seconds",
            "From a request decoded to its reply queued",
            seconds.clone(),
        );
        let commands = Command::ALL
            .iter()
            .map(|c| {
                let label = CommandLabel { command: c.name() };
                PerCommand {
                    requests: requests.get_or_create_owned(&label),
                    seconds: seconds.get_or_create_owned(&label),
                }
            })
            .collect();
        Self {
            connections,
            alone,
            refused,
            protocol_errors,
            bytes_read: bytes.get_or_create_owned(&DirectionLabel { direction: "read" }),
            bytes_written: bytes.get_or_create_owned(&DirectionLabel { direction: "write" }),
            errors,
            commands,
        }
    }

    /// A request of `command` was answered after `took`.
    pub(crate) fn request(&self, command: Command, took: Duration) {
        if let Some(c) = self.commands.get(command as usize) {
            c.requests.inc();
            c.seconds.observe(took.as_secs_f64());
        }
    }

    /// A request was answered with an error of `kind`.
    pub(crate) fn error(&self, kind: ErrorKind) {
        self.errors.get_or_create(&ErrorLabel { kind: kind.code() }).inc();
    }
}
