//! Listeners, connections, shutdown.

use super::alone::Threads;
use super::buffers::Buffers;
use super::handshake::Outcome;
use super::handshake::{self, Chosen, Failure, Handshake, Patience};
use super::input::Input;
use super::socket::{Line, Socket};
use super::transmission::{End, Serving, transmit};
use crate::config::{Settings, TlsMode};
use crate::listen::{ACCEPT_PAUSE, Accepted, SocketFile, accept_tcp, accept_unix, bind_tcp, bind_unix};
use crate::memory::Memory;
use crate::metrics::Metrics;
use crate::tls;
use common::{Clock, Exports, Result};
use prometheus_client::registry::Registry;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

/// Time for requests in flight when the server stops.
const GRACE: Duration = Duration::from_secs(5);

/// An NBD server that is bound to its addresses.
pub struct Server {
    settings: Arc<Settings>,
    tcp: Option<TcpListener>,
    unix: Option<(UnixListener, SocketFile)>,
    acceptor: Option<TlsAcceptor>,
    exports: Arc<dyn Exports>,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
}

/// Everything a connection needs.
struct Shared {
    serving: Serving,
    exports: Arc<dyn Exports>,
    acceptor: Option<TlsAcceptor>,
}

impl Server {
    /// Binds the listeners of `settings` and reads its certificates; serves nobody yet.
    ///
    /// # Errors
    /// Names the setting and the address, path or file that does not do: an address in use is
    /// [`common::ErrorKind::Conflict`].
    pub async fn bind(
        settings: Settings,
        exports: Arc<dyn Exports>,
        clock: Arc<dyn Clock>,
        registry: &mut Registry,
    ) -> Result<Server> {
        // Who may listen where was decided by the caller of `Settings::check`.
        settings.check(true)?;
        let files = (&settings.tls_cert, &settings.tls_key, &settings.tls_client_ca);
        let acceptor = tls::acceptor("nbd", settings.tls != TlsMode::Off, files)?;
        let tcp = match settings.tcp() {
            Some(address) => Some(bind_tcp("nbd", address).await?),
            None => None,
        };
        let unix = match settings.unix_path() {
            Some(path) => Some(bind_unix("nbd", path).await?),
            None => None,
        };
        let metrics = Metrics::new(registry);
        Ok(Server { settings: Arc::new(settings), tcp, unix, acceptor, exports, clock, metrics })
    }

    /// The TCP address that is listened on; with port 0 in the settings, the port that was found.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.tcp.as_ref().and_then(|l| l.local_addr().ok())
    }

    /// The path of the unix socket that is listened on.
    pub fn unix_path(&self) -> Option<&Path> {
        self.unix.as_ref().map(|(_, file)| file.path())
    }

    /// Serves until `shutdown` turns true (or its sender is dropped); then accepts nobody, lets
    /// requests in flight finish, for at most 5 s, and closes.
    pub async fn serve(self, mut shutdown: watch::Receiver<bool>) {
        let Server { settings, tcp, unix, acceptor, exports, clock, metrics } = self;
        let shared = Arc::new(Shared {
            serving: Serving {
                memory: Arc::new(Memory::new(settings.memory_mib << 20)),
                threads: Threads::new(settings.alone_threads),
                settings,
                metrics,
                clock,
                shutdown: shutdown.clone(),
                buffers: Buffers::default(),
            },
            exports,
            acceptor,
        });
        let serving = &shared.serving;
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                _ = shutdown.wait_for(|stop| *stop) => break,
                Some(ended) = connections.join_next(), if !connections.is_empty() => {
                    report(ended);
                    continue;
                }
                accepted = accept_tcp(tcp.as_ref()) => accepted,
                accepted = accept_unix(unix.as_ref()) => accepted,
            };
            let accepted = match accepted {
                Ok(accepted) => accepted,
                Err(e) => {
                    tracing::warn!("NBD: a connection could not be accepted: {e}");
                    serving.clock.sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            while let Some(ended) = connections.try_join_next() {
                report(ended);
            }
            let limit = serving.settings.max_connections;
            if connections.len() >= limit {
                serving.metrics.refused.inc();
                tracing::warn!(
                    limit,
                    "NBD: connection turned away: so many are open; raise nbd.max_connections (or the limit on open \
                     files), or close some"
                );
                continue;
            }
            connections.spawn(connection(accepted, shared.clone()));
        }
        drop((tcp, unix));
        let open = connections.len();
        let all = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(GRACE, all).await.is_err() {
            tracing::warn!(
                open = connections.len(),
                "NBD: requests did not finish within {} s: their connections are cut",
                GRACE.as_secs()
            );
            connections.shutdown().await;
        }
        tracing::debug!(closed = open, "NBD server stopped");
    }
}

fn report(ended: std::result::Result<(), tokio::task::JoinError>) {
    if let Err(e) = ended
        && e.is_panic()
    {
        tracing::error!("NBD: a connection's task failed: {e}");
    }
}

/// Counts a connection while it lives.
struct Counted<'a>(&'a Metrics);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.connections.dec();
    }
}

async fn connection(accepted: Accepted, shared: Arc<Shared>) {
    let metrics = &shared.serving.metrics;
    metrics.connections.inc();
    let _counted = Counted(metrics);
    match accepted {
        Accepted::Tcp(stream, peer) => {
            // A reply must not wait for the acknowledgement of the one before it.
            let _ = stream.set_nodelay(true);
            converse(Socket::Tcp(stream), &peer.to_string(), &shared).await;
        }
        Accepted::Unix(stream) => converse(Socket::Unix(stream), "unix", &shared).await,
    }
}

/// One connection by itself, over any stream, without a listener.
pub(super) async fn session<S>(
    stream: S,
    settings: Settings,
    exports: Arc<dyn Exports>,
    clock: Arc<dyn Clock>,
) where
    S: Line,
{
    // The sender must live as long as the connection: without it the server stops.
    let (_running, shutdown) = watch::channel(false);
    let metrics = Metrics::new(&mut Registry::default());
    let memory = Arc::new(Memory::new(settings.memory_mib << 20));
    let threads = Threads::new(settings.alone_threads);
    let serving = Serving {
        settings: Arc::new(settings),
        metrics,
        memory,
        clock,
        shutdown,
        threads,
        buffers: Buffers::default(),
    };
    converse(stream, "somebody", &Shared { serving, exports, acceptor: None }).await;
}

/// A connection from its greeting to its end.
async fn converse<S>(mut stream: S, peer: &str, shared: &Shared)
where
    S: Line,
{
    let mut stop = shared.serving.shutdown.clone();
    let greeted = tokio::select! {
        greeted = shake(&mut stream, shared) => greeted,
        _ = stop.wait_for(|stop| *stop) => return,
    };
    let ended = match greeted {
        Ok(Shaken::Left) => return tracing::debug!(peer, "NBD client left before it chose an export"),
        Ok(Shaken::Plain(input, chosen)) => {
            serve_export(&mut stream, input, chosen, peer, false, shared).await
        }
        Ok(Shaken::Upgrade { no_zeroes, mut patience }) => {
            let Some(acceptor) = &shared.acceptor else { return };
            let upgraded = async {
                let mut secure = patience.wait(acceptor.accept(&mut stream)).await?;
                let mut input = Input::new();
                let context = context(shared, true);
                let mut phase = Handshake::new(&mut secure, &mut input, context, &mut patience);
                phase.set_no_zeroes(no_zeroes);
                let outcome = phase.negotiate().await?;
                Ok::<_, Failure>((secure, input, outcome))
            };
            let upgraded = tokio::select! {
                upgraded = upgraded => upgraded,
                _ = stop.wait_for(|stop| *stop) => return,
            };
            match upgraded {
                Ok((mut secure, input, Outcome::Go(chosen))) => {
                    serve_export(&mut secure, input, chosen, peer, true, shared).await
                }
                Ok(_) => return tracing::debug!(peer, "NBD client left before it chose an export"),
                Err(e) => Err(e),
            }
        }
        Err(e) => Err(e),
    };
    if let Err(failure) = ended {
        match failure {
            Failure::Gone(e) => tracing::debug!(peer, "NBD client went away during the handshake: {e}"),
            Failure::Slow => tracing::warn!(
                peer,
                "NBD handshake not done within {} s: the client is cut",
                handshake::PATIENCE.as_secs()
            ),
            Failure::Protocol(what) => {
                shared.serving.metrics.protocol_errors.inc();
                tracing::warn!(peer, "NBD handshake given up: {what}");
            }
        }
    }
}

enum Shaken<'a> {
    Left,
    Plain(Input, Chosen),
    Upgrade { no_zeroes: bool, patience: Patience<'a> },
}

fn context(shared: &Shared, secure: bool) -> handshake::Context<'_> {
    handshake::Context { exports: &*shared.exports, tls: shared.serving.settings.tls, secure }
}

/// The phase in plain text.
async fn shake<'a, S>(stream: &mut S, shared: &'a Shared) -> std::result::Result<Shaken<'a>, Failure>
where
    S: Line,
{
    let mut patience = Patience::new(&*shared.serving.clock, handshake::PATIENCE);
    let mut input = Input::new();
    let mut phase = Handshake::new(stream, &mut input, context(shared, false), &mut patience);
    phase.greet().await?;
    let no_zeroes = phase.no_zeroes();
    Ok(match phase.negotiate().await? {
        Outcome::Go(chosen) => Shaken::Plain(input, chosen),
        Outcome::StartTls => Shaken::Upgrade { no_zeroes, patience },
        Outcome::Left => Shaken::Left,
    })
}

/// Transmission, and what the log says about it.
async fn serve_export<S>(
    stream: &mut S,
    input: Input,
    chosen: Chosen,
    peer: &str,
    tls: bool,
    shared: &Shared,
) -> std::result::Result<(), Failure>
where
    S: Line,
{
    let export = chosen.name.as_str();
    tracing::info!(export, peer, tls, replies = ?chosen.replies, "NBD client connected");
    match transmit(stream, input, &chosen, &shared.serving).await {
        End::Disconnected => tracing::info!(export, peer, "NBD client disconnected"),
        End::Gone(None) => tracing::info!(export, peer, "NBD client went away"),
        End::Gone(Some(e)) => tracing::info!(export, peer, "NBD client went away: {e}"),
        End::Stopped => tracing::info!(export, peer, "NBD connection closed: the server stops"),
        End::Protocol(what) => {
            shared.serving.metrics.protocol_errors.inc();
            tracing::warn!(export, peer, "NBD client cut: {what}");
        }
    }
    Ok(())
}
