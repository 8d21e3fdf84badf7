//! Streams: where a client connects, and what a server accepts.

use async_trait::async_trait;
use common::socket;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

pub use common::socket::{Reader as ReadHalf, Writer as WriteHalf};

/// A connection, its two directions apart: one thread may write while another one reads.
pub struct Stream {
    /// What comes.
    pub read: ReadHalf,
    /// What goes.
    pub write: WriteHalf,
}

impl Stream {
    /// A TCP connection. Small frames are not held back.
    ///
    /// # Errors
    /// Of the socket.
    pub fn tcp(stream: TcpStream) -> io::Result<Stream> {
        let (read, write) = socket::tcp(stream)?;
        Ok(Stream { read, write })
    }

    /// A unix socket.
    ///
    /// # Errors
    /// Of the socket.
    pub fn unix(stream: UnixStream) -> std::io::Result<Stream> {
        let (read, write) = socket::unix(stream)?;
        Ok(Stream { read, write })
    }

    /// Anything else that reads and writes: TLS, pipes of a test.
    pub fn any(stream: impl AsyncRead + AsyncWrite + Send + 'static) -> Stream {
        let (read, write) = socket::any(stream);
        Stream { read, write }
    }
}

/// Where a router listens, as text: `HOST:PORT` or `unix:PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// Host and port.
    Tcp {
        /// A name or an IP address; IPv6 in brackets.
        host: String,
        /// Its port.
        port: u16,
    },
    /// A socket file.
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = common::Error;
    fn from_str(text: &str) -> common::Result<Self> {
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            return Ok(Address::Unix(path.into()));
        }
        let parts = text.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
        match parts {
            Some((host, port)) if !host.is_empty() => Ok(Address::Tcp { host: host.into(), port }),
            _ => {
                let shown = text.escape_debug();
                Err(common::Error::invalid(format!("'{shown}' is no address: write HOST:PORT or unix:PATH")))
            }
        }
    }
}

/// How a client gets a connection.
#[async_trait]
pub trait Dial: Send + Sync {
    /// Connects to an address (its text), TLS and all.
    async fn dial(&self, address: &str) -> io::Result<Stream>;
}

/// Connects to an [`Address`]. With TLS, TCP addresses are spoken to in TLS, and the certificate must be for
/// the address's host.
#[derive(Clone, Default)]
pub struct Dialer {
    /// How TLS is spoken; `None`: not at all.
    pub tls: Option<Arc<rustls::ClientConfig>>,
}

#[async_trait]
impl Dial for Dialer {
    async fn dial(&self, address: &str) -> io::Result<Stream> {
        let invalid = |e: &dyn std::fmt::Display| io::Error::new(io::ErrorKind::InvalidInput, e.to_string());
        match address.parse::<Address>().map_err(|e| invalid(&e))? {
            Address::Unix(path) => Stream::unix(UnixStream::connect(path).await?),
            Address::Tcp { host, port } => {
                let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
                let stream = TcpStream::connect((bare.as_str(), port)).await?;
                let Some(config) = &self.tls else { return Stream::tcp(stream) };
                stream.set_nodelay(true)?;
                let name = ServerName::try_from(bare).map_err(|e| invalid(&e))?;
                let connector = tokio_rustls::TlsConnector::from(config.clone());
                Ok(Stream::any(connector.connect(name, stream).await?))
            }
        }
    }
}

/// How TLS is spoken with routers whose certificates one of the authorities in the PEM file `ca` signed, showing the
/// certificate chain and the key in two PEM files of `own`, if they ask.
///
/// # Errors
/// Names the file that does not do.
pub fn client_tls(ca: &Path, own: Option<(&Path, &Path)>) -> common::Result<Arc<rustls::ClientConfig>> {
    let wrong = |path: &Path, what: &dyn std::fmt::Display| {
        common::Error::invalid(format!("TLS: {}: {what}", path.display()))
    };
    let certificates = |path: &Path| {
        let found = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        found.map_err(|e| wrong(path, &e))
    };
    let mut roots = rustls::RootCertStore::empty();
    for certificate in certificates(ca)? {
        roots.add(certificate).map_err(|e| wrong(ca, &e))?;
    }
    if roots.is_empty() {
        return Err(wrong(ca, &"there is no certificate in it"));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| common::Error::internal(format!("TLS: {e}")))?
        .with_root_certificates(roots);
    let config = match own {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let private = PrivateKeyDer::from_pem_file(key).map_err(|e| wrong(key, &e))?;
            builder.with_client_auth_cert(certificates(cert)?, private).map_err(|e| wrong(cert, &e))?
        }
    };
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_and_port_or_a_path() {
        let tcp = |host: &str, port| Address::Tcp { host: host.into(), port };
        assert_eq!("a.b:10".parse::<Address>().unwrap(), tcp("a.b", 10));
        assert_eq!("[::1]:10".parse::<Address>().unwrap(), tcp("[::1]", 10));
        assert_eq!("unix:/x y".parse::<Address>().unwrap(), Address::Unix("/x y".into()));
        for wrong in ["", "unix:", "host", ":10", "host:", "host:65536", "host:x"] {
            assert!(wrong.parse::<Address>().is_err(), "{wrong}");
        }
    }
}
