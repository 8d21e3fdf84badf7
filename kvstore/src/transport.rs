//! How members and clients reach each other.
//!
//! | room | what |
//! |---|---|
//! | `frame` | frames with length and checksum, and the greeting of a connection |
//! | `tcp` | messages to members over TCP or TLS; connections that come in |
//! | `memory` | a network for the simulation, which loses, delays and cuts |
//!
//! Messages between members may be lost, doubled and reordered: raft is made for that. A connection carries one direction.

pub(crate) mod frame;
#[cfg(test)]
pub(crate) mod memory;
pub(crate) mod tcp;

use crate::node::message::PeerMessage;
use common::{Error, Result};
use rustls_pki_types::ServerName;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// Carries messages to members.
pub(crate) trait Transport: Send + Sync {
    /// Sends, if there is room; nobody is told when it is lost on the way.
    fn send(&self, to: u64, message: PeerMessage);

    /// Where the members are from now on.
    fn set_members(&self, members: &BTreeMap<u64, String>);
}

/// TLS in both directions: members and clients show certificates to each other.
#[derive(Clone)]
pub struct Tls {
    /// For connections that come in; it should ask for a certificate.
    pub server: Arc<rustls::ServerConfig>,
    /// For connections that go out.
    pub client: Arc<rustls::ClientConfig>,
}

/// A byte stream, encrypted or not.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Connects to `address` (host:port).
pub(crate) async fn connect(
    address: &str,
    tls: Option<&Arc<rustls::ClientConfig>>,
) -> Result<Box<dyn Stream>> {
    let what = || format!("connecting to member {address} of the registry");
    let stream =
        TcpStream::connect(address).await.map_err(|e| Error::unavailable(format!("{}: {e}", what())))?;
    // Small messages that somebody waits for.
    stream.set_nodelay(true).map_err(|e| Error::io(what(), &e))?;
    give_up_soon(&stream);
    let Some(config) = tls else { return Ok(Box::new(stream)) };
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']').to_string();
    let name = ServerName::try_from(host).map_err(|e| Error::invalid(format!("{}: {e}", what())))?;
    let stream = TlsConnector::from(config.clone()).connect(name, stream).await;
    Ok(Box::new(stream.map_err(|e| Error::unavailable(format!("{}: TLS: {e}", what())))?))
}

/// A link that was cut and heals is used again soon: without this the kernel waits twice as long after each attempt.
fn give_up_soon(stream: &TcpStream) {
    use rustix::net::sockopt::{set_socket_keepalive, set_tcp_keepidle, set_tcp_keepintvl};
    const UNACKNOWLEDGED_MS: u32 = 3000;
    const QUIET: std::time::Duration = std::time::Duration::from_secs(3);
    if let Err(error) = rustix::net::sockopt::set_tcp_user_timeout(stream, UNACKNOWLEDGED_MS) {
        tracing::debug!(%error, "a connection of the registry has the kernel's own patience");
    }
    // Who waits for the other to say something has nothing unacknowledged: without this he would wait for a machine that is
    // gone, and a member would run out of connections.
    let asked = set_socket_keepalive(stream, true)
        .and_then(|()| set_tcp_keepidle(stream, QUIET))
        .and_then(|()| set_tcp_keepintvl(stream, QUIET));
    if let Err(error) = asked {
        tracing::debug!(%error, "a connection of the registry is not asked whether it is alive");
    }
}

/// Shakes hands with whoever connected.
pub(crate) async fn accept(stream: TcpStream, tls: Option<&Tls>) -> Result<Box<dyn Stream>> {
    let fail = |e| Error::io("a connection to the registry", &e);
    stream.set_nodelay(true).map_err(fail)?;
    give_up_soon(&stream);
    let Some(tls) = tls else { return Ok(Box::new(stream)) };
    let stream = TlsAcceptor::from(tls.server.clone()).accept(stream).await;
    Ok(Box::new(stream.map_err(|e| Error::unavailable(format!("a connection to the registry: TLS: {e}")))?))
}
