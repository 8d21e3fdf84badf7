//! Streams: where a client connects, and what a daemon accepts.

use async_trait::async_trait;
use rustls_pki_types::ServerName;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_rustls::TlsAcceptor;

/// One direction of a stream.
pub type ReadHalf = Box<dyn AsyncRead + Send + Unpin>;
/// The other one.
pub type WriteHalf = Box<dyn AsyncWrite + Send + Unpin>;

/// A connection, its two directions apart.
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
    pub fn tcp(stream: TcpStream) -> std::io::Result<Stream> {
        stream.set_nodelay(true)?;
        let (read, write) = stream.into_split();
        Ok(Stream { read: Box::new(read), write: Box::new(write) })
    }

    /// A unix socket.
    pub fn unix(stream: UnixStream) -> Stream {
        let (read, write) = stream.into_split();
        Stream { read: Box::new(read), write: Box::new(write) }
    }

    /// Anything else that reads and writes: TLS, pipes of a test.
    pub fn any(stream: impl AsyncRead + AsyncWrite + Send + 'static) -> Stream {
        let (read, write) = tokio::io::split(stream);
        Stream { read: Box::new(read), write: Box::new(write) }
    }
}

/// How a client gets a connection.
#[async_trait]
pub trait Dial: Send + Sync {
    /// Connects, TLS and all.
    async fn dial(&self) -> std::io::Result<Stream>;

    /// A text that tells a person where.
    fn describe(&self) -> String;
}

/// Where a daemon is.
#[derive(Clone)]
pub enum Address {
    /// Host and port; with TLS, the name that the certificate must have.
    Tcp(String, Option<(Arc<rustls::ClientConfig>, ServerName<'static>)>),
    /// A socket file.
    Unix(PathBuf),
}

impl std::str::FromStr for Address {
    type Err = common::Error;

    /// `HOST:PORT` without TLS, or `unix:PATH`.
    fn from_str(text: &str) -> Result<Self, common::Error> {
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            return Ok(Address::Unix(path.into()));
        }
        match text.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {
                Ok(Address::Tcp(text.to_owned(), None))
            }
            _ => Err(common::Error::invalid(format!(
                "'{}' is no address: write HOST:PORT or unix:PATH",
                text.escape_debug()
            ))),
        }
    }
}

#[async_trait]
impl Dial for Address {
    async fn dial(&self) -> std::io::Result<Stream> {
        match self {
            Address::Tcp(address, tls) => {
                let stream = TcpStream::connect(address).await?;
                match tls {
                    None => Stream::tcp(stream),
                    Some((config, name)) => {
                        stream.set_nodelay(true)?;
                        let connector = tokio_rustls::TlsConnector::from(config.clone());
                        Ok(Stream::any(connector.connect(name.clone(), stream).await?))
                    }
                }
            }
            Address::Unix(path) => Ok(Stream::unix(UnixStream::connect(path).await?)),
        }
    }

    fn describe(&self) -> String {
        match self {
            Address::Tcp(address, _) => address.clone(),
            Address::Unix(path) => format!("unix:{}", path.display()),
        }
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
pub(crate) enum Guest {
    Tcp(TcpStream, Option<TlsAcceptor>),
    Unix(UnixStream),
}

impl Door {
    pub(crate) async fn accept(&self) -> std::io::Result<Guest> {
        Ok(match self {
            Door::Tcp(listener, tls) => Guest::Tcp(listener.accept().await?.0, tls.clone()),
            Door::Unix(listener) => Guest::Unix(listener.accept().await?.0),
        })
    }
}

impl Guest {
    pub(crate) async fn shake_hands(self) -> std::io::Result<Stream> {
        match self {
            Guest::Tcp(stream, None) => Stream::tcp(stream),
            Guest::Tcp(stream, Some(tls)) => {
                stream.set_nodelay(true)?;
                Ok(Stream::any(tls.accept(stream).await?))
            }
            Guest::Unix(stream) => Ok(Stream::unix(stream)),
        }
    }
}
