//! Listening: sockets that are bound as the configuration says, with errors that name the setting.

use common::error::Context;
use common::{Error, Result};
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixSocket, UnixStream};

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;
/// Pause after `accept` failed, for want of file descriptors as a rule.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// The file of a unix socket; removed with the server.
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl SocketFile {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

/// A connection.
pub enum Accepted {
    /// And who connected.
    Tcp(TcpStream, SocketAddr),
    /// From this machine.
    Unix(UnixStream),
}

/// The next TCP connection; never, without a listener.
pub async fn accept_tcp(listener: Option<&TcpListener>) -> std::io::Result<Accepted> {
    match listener {
        Some(listener) => listener.accept().await.map(|(stream, peer)| Accepted::Tcp(stream, peer)),
        None => std::future::pending().await,
    }
}

/// The next one of the unix socket; never, without a listener.
pub async fn accept_unix(listener: Option<&(UnixListener, SocketFile)>) -> std::io::Result<Accepted> {
    match listener {
        Some((listener, _)) => listener.accept().await.map(|(stream, _)| Accepted::Unix(stream)),
        None => std::future::pending().await,
    }
}

/// Binds `listen` of the configuration's section.
///
/// # Errors
/// Names the setting; an address in use is [`common::ErrorKind::Conflict`].
pub async fn bind_tcp(section: &str, address: &str) -> Result<TcpListener> {
    let resolved: Vec<SocketAddr> = tokio::net::lookup_host(address)
        .await
        .context(format!("{section}.listen: {address} is no address"))?
        .collect();
    let mut last = Error::invalid(format!("{section}.listen: {address} resolves to nothing"));
    for socket_address in resolved {
        match listen_tcp(socket_address) {
            Ok(listener) => return Ok(listener),
            Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => {
                return Err(Error::conflict(format!(
                    "{section}.listen: {socket_address} is in use, perhaps by another storage router, nbd-server, \
                     nbdkit or qemu-nbd (`ss -ltnp sport = :{}` shows which): stop that, or choose another \
                     {section}.listen",
                    socket_address.port()
                )));
            }
            Err(e) => last = Error::io(format!("{section}.listen: listening on {socket_address}"), &e),
        }
    }
    Err(last)
}

fn listen_tcp(address: SocketAddr) -> std::io::Result<TcpListener> {
    use rustix::net::sockopt;
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    // Accepted connections inherit these: a client whose machine died must not keep its disk in
    // use for ever.
    socket.set_keepalive(true)?;
    sockopt::set_tcp_keepidle(&socket, Duration::from_secs(60))?;
    sockopt::set_tcp_keepintvl(&socket, Duration::from_secs(10))?;
    sockopt::set_tcp_keepcnt(&socket, 6)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Binds a unix socket that nobody but this user can ever connect to: the file gets its mode
/// before anyone listens and its name after.
///
/// # Errors
/// Names the setting; a socket in use is [`common::ErrorKind::Conflict`].
pub async fn bind_unix(section: &str, path: &Path) -> Result<(UnixListener, SocketFile)> {
    let shown = path.display();
    match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(Error::io(format!("{section}.unix: looking at {shown}"), &e)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(Error::conflict(format!(
                "{section}.unix: {shown} exists and is no socket: remove it, or choose another {section}.unix"
            )));
        }
        Ok(_) => match UnixStream::connect(path).await {
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => {
                tracing::debug!("{section}.unix: replacing {shown}, on which nobody listens");
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io(format!("{section}.unix: looking who listens on {shown}"), &e)),
            Ok(_) => {
                return Err(Error::conflict(format!(
                    "{section}.unix: {shown} is in use by another process (`ss -lxp` shows which): stop that, or \
                     choose another {section}.unix"
                )));
            }
        },
    }
    let mut early = path.as_os_str().to_owned();
    early.push(".new");
    let early = PathBuf::from(early);
    let bound = (|| {
        let _ = std::fs::remove_file(&early);
        let socket = UnixSocket::new_stream()?;
        socket.bind(&early)?;
        std::fs::set_permissions(&early, std::fs::Permissions::from_mode(0o600))?;
        let listener = socket.listen(BACKLOG)?;
        std::fs::rename(&early, path)?;
        Ok(listener)
    })();
    let listener = bound.map_err(|e: std::io::Error| {
        let _ = std::fs::remove_file(&early);
        Error::io(format!("{section}.unix: listening on {shown}"), &e)
    })?;
    Ok((listener, SocketFile(path.to_owned())))
}
