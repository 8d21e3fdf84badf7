//! The listener: HTTP/1.1 with or without TLS, a bounded number of connections, a graceful end.

#[cfg(test)]
mod tests;

use axum::Router;
use common::Result;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

/// Connections at a time; more wait to be accepted.
const CONNECTIONS: usize = 512;
/// For the TLS handshake, and for the head of each request.
const PATIENCE: Duration = Duration::from_secs(15);
/// For the requests that run when the end comes.
const END: Duration = Duration::from_secs(10);
/// After the system refused to accept, for lack of file descriptors for instance.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves `app` until `shutdown` returns and the requests of that moment are answered, or ten
/// seconds later.
pub async fn serve(
    listener: TcpListener,
    app: Router,
    tls: Option<Arc<ServerConfig>>,
    shutdown: impl Future<Output = ()>,
) -> Result<()> {
    let tls = tls.map(TlsAcceptor::from);
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => continue,
            accepted = async {
                let place = places.clone().acquire_owned().await;
                (place, listener.accept().await)
            } => accepted,
        };
        let (Ok(place), accepted) = accepted else { break };
        match accepted {
            Ok((stream, peer)) => {
                let (app, tls, watcher) = (app.clone(), tls.clone(), graceful.watcher());
                connections.spawn(async move {
                    let _place = place;
                    if let Err(reason) = converse(stream, app, tls, watcher).await {
                        tracing::debug!(%peer, reason, "API connection ended");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "can't accept an API connection");
                let _ = timeout(ACCEPT_PAUSE, std::future::pending::<()>()).await;
            }
        }
    }
    drop(listener);
    if timeout(END, graceful.shutdown()).await.is_err() {
        tracing::warn!("API requests still ran at the end");
    }
    connections.shutdown().await;
    Ok(())
}

async fn converse(
    stream: TcpStream,
    app: Router,
    tls: Option<TlsAcceptor>,
    watcher: Watcher,
) -> std::result::Result<(), String> {
    // Without it only the latency of small answers suffers.
    let _ = stream.set_nodelay(true);
    match tls {
        None => http(stream, app, watcher).await,
        Some(tls) => match timeout(PATIENCE, tls.accept(stream)).await {
            Ok(Ok(stream)) => http(stream, app, watcher).await,
            Ok(Err(error)) => Err(format!("TLS: {error}")),
            Err(_) => Err("no TLS handshake in time".into()),
        },
    }
}

async fn http<S>(stream: S, app: Router, watcher: Watcher) -> std::result::Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(64 << 10)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(app));
    watcher.watch(connection).await.map_err(|error| error.to_string())
}
