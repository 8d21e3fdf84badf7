//! The stream of a connection, which the runtime watches, or which one thread has for itself.

use common::socket::Poller;
use std::io::Write;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// What a transmission runs over.
pub trait Line: AsyncRead + AsyncWrite + Unpin + Send {
    /// Whether one thread can have it for itself.
    const OWNABLE: bool;

    /// Takes the stream away from the runtime: from here on a read waits for bytes on the calling
    /// thread, for at most `patience`, and is then `Pending` without waking anyone.
    fn take_out(&mut self, patience: Duration) -> std::io::Result<()>;

    /// Gives the stream back to the runtime.
    fn put_back(&mut self) -> std::io::Result<()>;
}

/// A stream that always belongs to the runtime.
macro_rules! runtime_only {
    ($($stream:tt)*) => {
        impl $($stream)* {
            const OWNABLE: bool = false;

            fn take_out(&mut self, _: std::time::Duration) -> std::io::Result<()> {
                Err(std::io::ErrorKind::Unsupported.into())
            }

            fn put_back(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
    };
}

runtime_only!(Line for tokio::io::DuplexStream);
runtime_only!(<S: AsyncRead + AsyncWrite + Unpin + Send> Line for tokio_rustls::server::TlsStream<S>);

/// A client's socket.
pub enum Socket {
    /// TCP, watched by the runtime.
    Tcp(TcpStream),
    /// A unix socket, watched by the runtime.
    Unix(UnixStream),
    /// TCP, of one thread.
    OwnTcp(std::net::TcpStream, Poller),
    /// A unix socket, of one thread.
    OwnUnix(std::os::unix::net::UnixStream, Poller),
    /// It got lost between the two: every use is an error.
    Lost,
}

fn lost() -> std::io::Error {
    std::io::ErrorKind::NotConnected.into()
}

/// Time out is "not now" for a socket with a time limit.
fn in_time<T>(result: std::io::Result<T>) -> Poll<std::io::Result<T>> {
    match result {
        Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => Poll::Pending,
        // A signal: the caller comes again.
        Err(e) if e.kind() == std::io::ErrorKind::Interrupted => Poll::Pending,
        other => Poll::Ready(other),
    }
}

impl Line for Socket {
    const OWNABLE: bool = true;

    fn take_out(&mut self, patience: Duration) -> std::io::Result<()> {
        *self = match std::mem::replace(self, Socket::Lost) {
            Socket::Tcp(stream) => {
                let own = stream.into_std()?;
                own.set_nonblocking(false)?;
                own.set_read_timeout(Some(patience))?;
                own.set_write_timeout(Some(patience))?;
                Socket::OwnTcp(own, Poller::default())
            }
            Socket::Unix(stream) => {
                let own = stream.into_std()?;
                own.set_nonblocking(false)?;
                own.set_read_timeout(Some(patience))?;
                own.set_write_timeout(Some(patience))?;
                Socket::OwnUnix(own, Poller::default())
            }
            other => other,
        };
        Ok(())
    }

    fn put_back(&mut self) -> std::io::Result<()> {
        *self = match std::mem::replace(self, Socket::Lost) {
            Socket::OwnTcp(own, _) => {
                own.set_nonblocking(true)?;
                Socket::Tcp(TcpStream::from_std(own)?)
            }
            Socket::OwnUnix(own, _) => {
                own.set_nonblocking(true)?;
                Socket::Unix(UnixStream::from_std(own)?)
            }
            other => other,
        };
        Ok(())
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let n = match self.get_mut() {
            Socket::Tcp(stream) => return Pin::new(stream).poll_read(cx, buffer),
            Socket::Unix(stream) => return Pin::new(stream).poll_read(cx, buffer),
            Socket::OwnTcp(own, poller) => {
                ready!(in_time(poller.receive(&*own, buffer.initialize_unfilled())))?
            }
            Socket::OwnUnix(own, poller) => {
                ready!(in_time(poller.receive(&*own, buffer.initialize_unfilled())))?
            }
            Socket::Lost => return Poll::Ready(Err(lost())),
        };
        buffer.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        self.poll_write_vectored(cx, &[std::io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, parts),
            Socket::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, parts),
            Socket::OwnTcp(own, _) => in_time(own.write_vectored(parts)),
            Socket::OwnUnix(own, _) => in_time(own.write_vectored(parts)),
            Socket::Lost => Poll::Ready(Err(lost())),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        // A socket keeps nothing back.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::OwnTcp(own, _) => Poll::Ready(own.shutdown(std::net::Shutdown::Write)),
            Socket::OwnUnix(own, _) => Poll::Ready(own.shutdown(std::net::Shutdown::Write)),
            Socket::Lost => Poll::Ready(Err(lost())),
        }
    }
}
