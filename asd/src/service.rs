//! The service: what a daemon offers to the backend that has claimed its disk.
//!
//! One task per connection reads requests, runs many at a time and answers each when it is done. Who asks for more than
//! there is memory for is not read any further, and waits in TCP: payload that is received, kept and sent takes from one
//! bound for all connections.
//!
//! Does not own: the values ([`crate::store`]), who may connect (TLS and the socket file's mode decide that).

mod connection;

use crate::local::LocalOsd;
use crate::metrics::Metrics;
use crate::store::Store;
use crate::transport::{Door, Stream};
use common::Clock;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

/// Pause after `accept` failed, for want of file descriptors as a rule.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Bounds of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Connections at a time.
    pub max_connections: usize,
    /// Requests of one connection that are under way.
    pub max_requests: usize,
    /// KiB of payload of all connections.
    pub memory_kib: u32,
    /// A connection that says nothing for this long is closed.
    pub idle: Duration,
    /// The same before it has said who it is.
    pub handshake: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            max_connections: 1024,
            max_requests: 256,
            memory_kib: 256 << 10,
            idle: Duration::from_secs(30),
            handshake: Duration::from_secs(5),
        }
    }
}

/// A service of one disk. Clones share it.
#[derive(Clone)]
pub struct Service {
    osd: LocalOsd,
    settings: Settings,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    connections: Arc<Semaphore>,
    memory: Arc<Semaphore>,
}

impl Service {
    /// A service of the values in `store`.
    pub fn new(store: Arc<Store>, settings: Settings, metrics: Metrics) -> Self {
        metrics.watch(&store);
        Service {
            clock: store.clock().clone(),
            osd: LocalOsd::new(store, None),
            settings,
            metrics,
            connections: Arc::new(Semaphore::new(settings.max_connections)),
            // What is larger than all of it could never be received.
            memory: Arc::new(Semaphore::new(settings.memory_kib.max(128 << 10) as usize)),
        }
    }

    /// Serves one connection until it ends, or its future is dropped.
    pub async fn serve(&self, stream: Stream) {
        let Ok(_permit) = self.connections.try_acquire() else {
            self.metrics.refused.inc();
            tracing::warn!(
                limit = self.settings.max_connections,
                "ASD: a connection was turned away: so many are open"
            );
            return;
        };
        self.metrics.connections.inc();
        let end = connection::serve(self, stream).await;
        self.metrics.connections.dec();
        if let Err(why) = end {
            tracing::debug!("ASD: a connection ended: {why}");
        }
    }

    /// Serves who comes to `door` until `shutdown` turns true or its sender is gone.
    pub async fn listen(&self, door: Door, shutdown: watch::Receiver<bool>) {
        let mut stop = shutdown;
        let mut tasks = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                _ = stop.wait_for(|s| *s) => break,
                Some(_) = tasks.join_next(), if !tasks.is_empty() => continue,
                accepted = door.accept() => accepted,
            };
            let guest = match accepted {
                Ok(guest) => guest,
                Err(error) => {
                    tracing::warn!(%error, "ASD: a connection could not be accepted");
                    self.clock.sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            // Those that have not shaken hands are bounded, too.
            if tasks.len() >= 2 * self.settings.max_connections {
                self.metrics.refused.inc();
                continue;
            }
            let service = self.clone();
            tasks.spawn(async move {
                let stream = tokio::select! {
                    stream = guest.shake_hands() => stream,
                    () = service.clock.sleep(service.settings.handshake) => Err(std::io::ErrorKind::TimedOut.into()),
                };
                match stream {
                    Ok(stream) => service.serve(stream).await,
                    Err(error) => tracing::debug!(%error, "ASD: no connection came of it"),
                }
            });
        }
        tasks.shutdown().await;
    }
}
