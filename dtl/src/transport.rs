//! Streams: where a client connects, and what a service accepts.

use async_trait::async_trait;
use common::socket;
use rustls_pki_types::ServerName;
use std::path::PathBuf;
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
    pub fn tcp(stream: TcpStream) -> std::io::Result<Stream> {
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
    /// A socket file where this machine has it and somebody listens there; anything else otherwise. The file's name must
    /// be nobody else's on any machine.
    Near(PathBuf, Box<Address>),
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
            Address::Near(path, far) => match UnixStream::connect(path).await {
                Ok(stream) => Stream::unix(stream),
                // Most routers are on other machines, and some under other users.
                Err(_) => far.dial().await,
            },
        }
    }
}
