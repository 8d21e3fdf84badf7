//! The service: what a storage router offers to the owners of volumes, and to those who take over.
//!
//! One task per connection reads at all times. What a log has no room for is dropped and its channel told so, so no
//! channel can hold up another one and nothing is queued. Slow things (a sync, a seal, reading) go on beside it.
//!
//! Does not own: the logs ([`crate::storage`]), who may connect (TLS and the socket file's mode decide that).

mod channel;
mod connection;

use crate::metrics::ServiceMetrics;
use crate::storage::Store;
use crate::transport::Stream;
use common::Clock;
use common::alone::Threads;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

/// Pause after `accept` failed, for want of file descriptors as a rule.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Bounds of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Connections; each takes at most about 1.3 MiB.
    pub max_connections: usize,
    /// Channels of one connection.
    pub max_channels: usize,
    /// Unconfirmed bytes that a channel may have under way.
    pub window: u32,
    /// A connection that says nothing for this long is closed.
    pub idle: Duration,
    /// The same before it has said who it is: it takes one of few places.
    pub handshake: Duration,
    /// Threads for connections on which one entry comes at a time.
    pub alone_threads: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            max_connections: 256,
            max_channels: 16384,
            window: 4 << 20,
            idle: Duration::from_secs(30),
            handshake: Duration::from_secs(5),
            alone_threads: 4,
        }
    }
}

/// A DTL service. Clones share it.
#[derive(Clone)]
pub struct Service {
    store: Arc<Store>,
    settings: Settings,
    clock: Arc<dyn Clock>,
    metrics: ServiceMetrics,
    connections: Arc<Semaphore>,
    threads: Threads,
}

impl Service {
    /// A service of the logs in `store`.
    pub fn new(
        store: Arc<Store>,
        settings: Settings,
        clock: Arc<dyn Clock>,
        metrics: ServiceMetrics,
    ) -> Self {
        let connections = Arc::new(Semaphore::new(settings.max_connections));
        metrics.watch(&store);
        let threads = Threads::new(settings.alone_threads);
        Service { store, settings, clock, metrics, connections, threads }
    }

    /// The logs.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Serves one connection until it ends, or its future is dropped.
    pub async fn serve(&self, stream: Stream) {
        let Some(permit) = self.admit() else { return };
        self.serve_admitted(stream, permit).await;
    }

    fn admit(&self) -> Option<OwnedSemaphorePermit> {
        let permit = self.connections.clone().try_acquire_owned().ok();
        if permit.is_none() {
            self.metrics.refused.inc();
            tracing::warn!(
                limit = self.settings.max_connections,
                "DTL: a connection was turned away: so many are open"
            );
        }
        permit
    }

    async fn serve_admitted(&self, stream: Stream, _permit: OwnedSemaphorePermit) {
        self.metrics.connections.inc();
        let end = connection::serve(self, stream).await;
        self.metrics.connections.dec();
        if let Err(why) = end {
            tracing::debug!("DTL: a connection ended: {why}");
        }
    }

    /// Serves who comes to `door` until `shutdown` turns true or its sender is gone.
    pub async fn listen(&self, door: Door, shutdown: watch::Receiver<bool>) {
        let mut stop = shutdown;
        let mut tasks = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                biased;
                _ = stop.wait_for(|s| *s) => break,
                Some(_) = tasks.join_next(), if !tasks.is_empty() => continue,
                accepted = door.accept() => accepted,
            };
            let guest = match accepted {
                Ok(guest) => guest,
                Err(error) => {
                    tracing::warn!(%error, "DTL: a connection could not be accepted");
                    self.clock.sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Some(permit) = self.admit() else { continue };
            let service = self.clone();
            tasks.spawn(async move {
                let stream = tokio::select! {
                    biased;
                    stream = guest.shake_hands() => stream,
                    () = service.clock.sleep(service.settings.handshake) => Err(std::io::ErrorKind::TimedOut.into()),
                };
                match stream {
                    Ok(stream) => service.serve_admitted(stream, permit).await,
                    Err(error) => tracing::debug!(%error, "DTL: no connection came of it"),
                }
            });
        }
        tasks.shutdown().await;
    }
}

/// Where connections come in.
pub enum Door {
    /// TCP, with TLS where it is to be spoken.
    Tcp(TcpListener, Option<TlsAcceptor>),
    /// A socket file: its mode says who may come.
    Unix(UnixListener),
}

/// Who came, before TLS.
enum Guest {
    Tcp(TcpStream, Option<TlsAcceptor>),
    Unix(UnixStream),
}

impl Door {
    async fn accept(&self) -> std::io::Result<Guest> {
        Ok(match self {
            Door::Tcp(listener, tls) => Guest::Tcp(listener.accept().await?.0, tls.clone()),
            Door::Unix(listener) => Guest::Unix(listener.accept().await?.0),
        })
    }
}

impl Guest {
    async fn shake_hands(self) -> std::io::Result<Stream> {
        match self {
            Guest::Tcp(stream, None) => Stream::tcp(stream),
            Guest::Tcp(stream, Some(tls)) => {
                stream.set_nodelay(true)?;
                Ok(Stream::any(tls.accept(stream).await?))
            }
            Guest::Unix(stream) => Stream::unix(stream),
        }
    }
}
