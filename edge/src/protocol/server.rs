//! Listeners, shutdown.

use super::connection;
use super::door::Attachments;
use super::settings::Settings;
use crate::config::TlsMode;
use crate::listen::{ACCEPT_PAUSE, Accepted, SocketFile, accept_tcp, accept_unix, bind_tcp, bind_unix};
use crate::memory::Memory;
use crate::tls;
use common::alone::Threads;
use common::{Clock, Result};
use edge_client::transport::Stream;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

/// Time for requests under way when the server stops.
const GRACE: Duration = Duration::from_secs(5);
/// Between two looks for what nobody is attached to.
const TIDY: Duration = Duration::from_secs(1);

/// Counters of a server.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    pub(super) connections: Gauge,
    pub(super) refused: Counter,
    pub(super) attachments: Gauge,
    pub(super) moved: Counter,
    pub(super) requests: Counter,
    pub(super) errors: Counter,
    pub(super) memory_waits: Counter,
    pub(super) protocol_errors: Counter,
}

impl Metrics {
    /// Registers them.
    pub fn new(registry: &mut Registry) -> Self {
        let m = Metrics::default();
        let name = |n: &str| format!("storagerouter_edge_protocol_{n}");
        registry.register(name("connections"), "Open connections", m.connections.clone());
        registry.register(name("refused_connections"), "Connections turned away", m.refused.clone());
        registry.register(name("attachments"), "Attachments whose client is here", m.attachments.clone());
        registry.register(name("moved"), "Clients that were sent to another owner", m.moved.clone());
        registry.register(name("requests"), "Requests answered", m.requests.clone());
        registry.register(name("errors"), "Requests answered with an error", m.errors.clone());
        registry.register(name("memory_waits"), "Requests that waited for memory", m.memory_waits.clone());
        registry.register(
            name("protocol_errors"),
            "Connections cut for what they said",
            m.protocol_errors.clone(),
        );
        m
    }

    /// Requests that had to wait for memory.
    pub fn memory_waits(&self) -> u64 {
        self.memory_waits.get()
    }

    /// Connections that were cut for what they said.
    pub fn protocol_errors(&self) -> u64 {
        self.protocol_errors.get()
    }
}

/// A server of the edge protocol.
pub struct Server {
    pub(super) name: String,
    pub(super) settings: Settings,
    pub(super) attachments: Arc<dyn Attachments>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) metrics: Metrics,
    pub(super) memory: Memory,
    pub(super) threads: Threads,
    connections: Arc<Semaphore>,
}

/// What a server listens on.
pub struct Listeners {
    tcp: Option<TcpListener>,
    unix: Option<(UnixListener, SocketFile)>,
    acceptor: Option<TlsAcceptor>,
}

impl Server {
    /// A server of the router called `name`.
    pub fn new(
        name: String,
        settings: Settings,
        attachments: Arc<dyn Attachments>,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
    ) -> Arc<Server> {
        let connections = Arc::new(Semaphore::new(settings.max_connections));
        let memory = Memory::new(settings.memory_mib << 20);
        let threads = Threads::new(settings.alone_threads);
        Arc::new(Server { name, settings, attachments, clock, metrics, memory, threads, connections })
    }

    /// Binds the listeners of the settings and reads the certificates; serves nobody yet.
    ///
    /// # Errors
    /// Names the setting and the address, path or file that does not do: an address in use is
    /// [`common::ErrorKind::Conflict`].
    pub async fn bind(&self) -> Result<Listeners> {
        let settings = &self.settings;
        // Who may listen where was decided by the caller of `Settings::check`.
        settings.check(true)?;
        let files = (&settings.tls_cert, &settings.tls_key, &settings.tls_client_ca);
        let acceptor = tls::acceptor("edge", settings.tls == TlsMode::Require, files)?;
        let tcp = match settings.tcp() {
            Some(address) => Some(bind_tcp("edge", address).await?),
            None => None,
        };
        let unix = match settings.unix_path() {
            Some(path) => Some(bind_unix("edge", path).await?),
            None => None,
        };
        Ok(Listeners { tcp, unix, acceptor })
    }

    /// Serves until `shutdown` turns true (or its sender is dropped); then accepts nobody, lets requests under way
    /// finish, for at most 5 s, and closes.
    pub async fn serve(self: Arc<Self>, listeners: Listeners, shutdown: watch::Receiver<bool>) {
        let Listeners { tcp, unix, acceptor } = listeners;
        let mut stop = shutdown.clone();
        let stop = async {
            // Without its sender nobody could say stop any more.
            let _ = stop.wait_for(|stop| *stop).await;
        };
        tokio::pin!(stop);
        let mut tasks = JoinSet::new();
        // Beside accepting: it may wait for a registry.
        let tidy = async {
            loop {
                self.clock.sleep(TIDY).await;
                self.attachments.tidy().await;
            }
        };
        tokio::pin!(tidy);
        loop {
            let accepted = tokio::select! {
                biased;
                () = &mut stop => break,
                Some(_) = tasks.join_next(), if !tasks.is_empty() => continue,
                () = &mut tidy => continue,
                accepted = accept_tcp(tcp.as_ref()) => accepted,
                accepted = accept_unix(unix.as_ref()) => accepted,
            };
            let accepted = match accepted {
                Ok(accepted) => accepted,
                Err(e) => {
                    tracing::warn!("edge: a connection could not be accepted: {e}");
                    self.clock.sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Some(permit) = self.admit() else { continue };
            let (server, acceptor, shutdown) = (self.clone(), acceptor.clone(), shutdown.clone());
            tasks.spawn(async move {
                match server.stream(accepted, acceptor).await {
                    Ok(stream) => server.serve_admitted(stream, shutdown, permit).await,
                    Err(error) => tracing::debug!(%error, "edge: no connection came of it"),
                }
            });
        }
        drop((tcp, unix));
        let all = async { while tasks.join_next().await.is_some() {} };
        tokio::select! {
            biased;
            () = all => {}
            () = self.clock.sleep(GRACE) => {
                tracing::warn!("edge: requests did not finish within {} s: their connections are cut", GRACE.as_secs());
                tasks.shutdown().await;
            }
        }
    }

    async fn stream(&self, accepted: Accepted, acceptor: Option<TlsAcceptor>) -> std::io::Result<Stream> {
        match (accepted, acceptor) {
            (Accepted::Unix(stream), _) => Stream::unix(stream),
            (Accepted::Tcp(stream, _), None) => Stream::tcp(stream),
            (Accepted::Tcp(stream, _), Some(acceptor)) => {
                stream.set_nodelay(true)?;
                tokio::select! {
                    biased;
                    stream = acceptor.accept(stream) => Ok(Stream::any(stream?)),
                    () = self.clock.sleep(Duration::from_secs(self.settings.idle_seconds)) => {
                        Err(std::io::ErrorKind::TimedOut.into())
                    }
                }
            }
        }
    }

    fn admit(&self) -> Option<OwnedSemaphorePermit> {
        let permit = self.connections.clone().try_acquire_owned().ok();
        if permit.is_none() {
            self.metrics.refused.inc();
            tracing::warn!(
                limit = self.settings.max_connections,
                "edge: a connection was turned away: so many are open; raise edge.max_connections, or close some"
            );
        }
        permit
    }

    /// Serves one connection until it ends, or `shutdown` turns true. To be run to its end: see [`super::Attached::call`].
    pub async fn serve_stream(&self, stream: Stream, shutdown: watch::Receiver<bool>) {
        let Some(permit) = self.admit() else { return };
        self.serve_admitted(stream, shutdown, permit).await;
    }

    async fn serve_admitted(
        &self,
        stream: Stream,
        shutdown: watch::Receiver<bool>,
        _permit: OwnedSemaphorePermit,
    ) {
        self.metrics.connections.inc();
        let end = connection::serve(self, stream, shutdown).await;
        self.metrics.connections.dec();
        match end {
            Ok(()) => {}
            Err(connection::End::Gone(why)) => tracing::debug!("edge: a connection ended: {why}"),
            Err(connection::End::Protocol(why)) => {
                self.metrics.protocol_errors.inc();
                tracing::warn!("edge: a connection was cut: {why}");
            }
        }
    }
}

impl Listeners {
    /// The TCP address that is listened on; with port 0 in the settings, the port that was found.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.tcp.as_ref().and_then(|l| l.local_addr().ok())
    }

    /// The path of the unix socket that is listened on.
    pub fn unix_path(&self) -> Option<&Path> {
        self.unix.as_ref().map(|(_, file)| file.path())
    }
}
