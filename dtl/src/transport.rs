//! Streams: where a client connects, and what a service accepts.

use async_trait::async_trait;
use rustls_pki_types::ServerName;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

/// One direction of a stream.
pub type ReadHalf = Box<dyn AsyncRead + Send + Unpin>;
/// The other one.
pub type WriteHalf = Box<dyn AsyncWrite + Send + Unpin>;

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
}

/// Where a service is.
#[derive(Clone)]
pub enum Address {
    /// Host and port; with TLS, the name that the certificate must have.
    Tcp(String, Option<(Arc<rustls::ClientConfig>, ServerName<'static>)>),
    /// A socket file.
    Unix(PathBuf),
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
}
