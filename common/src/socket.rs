//! The two halves of a stream: the runtime watches them, and where they are a plain socket, threads may use them as well.
//!
//! A half that the runtime watches costs a wake-up of one of its threads for whatever comes. Where a thread waits for just
//! that anyway, it may look itself ([`Reader::look`]), and the runtime need not hear of it ([`Reader::unwatch`]). A
//! connection whose client sends one request at a time has a thread to itself ([`crate::alone`]); its reader then waits in
//! the socket.
//!
//! A [`Writer`] sends at once, and asks the runtime only when the socket is full: a unix socket that is watched for room
//! wakes its sender for everything that its receiver takes.

use crate::alone::Solo;
use bytes::BufMut;
use rustix::io::{Errno, ioctl_fionbio};
use rustix::net::sockopt::{Timeout, set_socket_send_buffer_size, set_socket_timeout};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, recv, sendmsg, shutdown};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::runtime::Handle;

/// Bytes that a thread receives at a time.
const RECEIVE: usize = 32 << 10;
/// What a unix socket is asked to hold; the kernel gives what it allows.
const UNIX_BUFFER: usize = 1 << 20;

/// What comes.
pub enum Reader {
    /// A socket.
    Plain(Box<PlainReader>),
    /// TLS, a pipe of a test.
    Any(Box<dyn AsyncRead + Send + Unpin>),
}

/// What goes.
pub enum Writer {
    /// A socket.
    Plain(PlainWriter),
    /// TLS, a pipe of a test.
    Any(Box<dyn AsyncWrite + Send + Unpin>),
}

/// The halves of a TCP connection. Small frames are not held back.
///
/// # Errors
/// Of the socket.
pub fn tcp(stream: TcpStream) -> io::Result<(Reader, Writer)> {
    stream.set_nodelay(true)?;
    Ok(halves(Kind::Tcp, stream.into_std()?.into()))
}

/// The halves of a unix socket.
///
/// # Errors
/// Of the socket.
pub fn unix(stream: UnixStream) -> io::Result<(Reader, Writer)> {
    let fd: OwnedFd = stream.into_std()?.into();
    // With less than it asks for it works as well.
    let _ = set_socket_send_buffer_size(&fd, UNIX_BUFFER);
    Ok(halves(Kind::Unix, fd))
}

/// The halves of anything else.
pub fn any(stream: impl AsyncRead + AsyncWrite + Send + 'static) -> (Reader, Writer) {
    let (read, write) = tokio::io::split(stream);
    (Reader::Any(Box::new(read)), Writer::Any(Box::new(write)))
}

fn halves(kind: Kind, fd: OwnedFd) -> (Reader, Writer) {
    let fd = Arc::new(fd);
    let reader = PlainReader {
        kind,
        fd: fd.clone(),
        watched: None,
        scratch: None,
        solo: None,
        own: false,
        poller: Poller::default(),
    };
    let writer = PlainWriter { kind, fd, watched: None, runtime: Handle::current() };
    (Reader::Plain(Box::new(reader)), Writer::Plain(writer))
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Tcp,
    Unix,
}

/// The runtime's view of a socket, by a file descriptor of its own: dropped, the runtime hears no more of it.
enum Watched {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Watched {
    fn new(kind: Kind, fd: &OwnedFd) -> io::Result<Self> {
        let fd = fd.try_clone()?;
        Ok(match kind {
            Kind::Tcp => Watched::Tcp(TcpStream::from_std(fd.into())?),
            Kind::Unix => Watched::Unix(UnixStream::from_std(fd.into())?),
        })
    }

    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Watched::Tcp(stream) => stream.poll_write_ready(cx),
            Watched::Unix(stream) => stream.poll_write_ready(cx),
        }
    }

    fn try_write<T>(&self, write: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        match self {
            Watched::Tcp(stream) => stream.try_io(Interest::WRITABLE, write),
            Watched::Unix(stream) => stream.try_io(Interest::WRITABLE, write),
        }
    }
}

/// Looks at a socket many times before it sleeps for it: to be woken costs more than a peer that answers at once needs (on
/// a virtual machine some 20 us, a sleeping CPU wakes through the host). It lets others run between two looks, and stops
/// where it does not pay.
#[derive(Debug, Default)]
pub struct Poller {
    /// Times in a row that nothing came.
    missed: u32,
}

/// Looks before sleeping: some 50 us where nobody else wants the processor.
const LOOKS: u32 = 100;
/// So many times in vain, and it sleeps at once.
const MISSES: u32 = 8;
/// So many times later it tries again.
const REST: u32 = 256;

impl Poller {
    /// Receives what comes; waits for it, as long as the socket's own time limit says.
    ///
    /// # Errors
    /// Of the socket; `WouldBlock` when nothing came in time.
    pub fn receive(&mut self, socket: impl AsFd, bytes: &mut [u8]) -> io::Result<usize> {
        self.missed += 1;
        if self.missed <= MISSES {
            for _ in 0..LOOKS {
                match recv(socket.as_fd(), &mut *bytes, RecvFlags::DONTWAIT) {
                    Ok((n, _)) => {
                        self.missed = 0;
                        return Ok(n);
                    }
                    Err(Errno::AGAIN) => std::thread::yield_now(),
                    Err(e) => return Err(e.into()),
                }
            }
        } else if self.missed > REST {
            self.missed = 0;
        }
        match recv(socket.as_fd(), &mut *bytes, RecvFlags::empty()) {
            Ok((n, _)) => Ok(n),
            // A signal: the caller comes again.
            Err(Errno::INTR) => Err(io::ErrorKind::WouldBlock.into()),
            Err(e) => Err(e.into()),
        }
    }
}

/// See [`Reader::Plain`].
pub struct PlainReader {
    kind: Kind,
    fd: Arc<OwnedFd>,
    watched: Option<Watched>,
    /// Kept for its memory.
    scratch: Option<Box<[u8]>>,
    solo: Option<Arc<Solo>>,
    /// A thread waits in the socket; it has a time limit.
    own: bool,
    poller: Poller,
}

impl Reader {
    /// It waits in the socket while `solo` says that a thread is there for it alone. Whether that can be.
    pub fn attend(&mut self, solo: &Arc<Solo>) -> bool {
        if let Reader::Plain(plain) = self {
            plain.solo = Some(solo.clone());
        }
        matches!(self, Reader::Plain(_))
    }

    /// Receives what is there, without waiting; `None`: nothing, or it can't be known. 0 is the end.
    ///
    /// # Errors
    /// Of the socket.
    pub fn look(&mut self, into: &mut impl BufMut) -> io::Result<Option<usize>> {
        let Reader::Plain(plain) = self else { return Ok(None) };
        let (fd, scratch) = (plain.fd.clone(), plain.scratch());
        match recv(&*fd, &mut *scratch, RecvFlags::DONTWAIT) {
            Ok((n, _)) => {
                into.put_slice(scratch.get(..n).unwrap_or_default());
                Ok(Some(n))
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// The runtime hears no more of it, until it is polled again. Whether that can be.
    pub fn unwatch(&mut self) -> bool {
        match self {
            Reader::Plain(plain) => {
                plain.watched = None;
                true
            }
            Reader::Any(_) => false,
        }
    }
}

impl PlainReader {
    fn scratch(&mut self) -> &mut [u8] {
        self.scratch.get_or_insert_with(|| vec![0; RECEIVE].into_boxed_slice())
    }

    /// Goes to the thread that is there for it, and back.
    fn settle(&mut self) -> io::Result<()> {
        let alone = self.solo.as_ref().is_some_and(|solo| solo.is_alone());
        if alone != self.own {
            self.watched = None;
            set_socket_timeout(&*self.fd, Timeout::Recv, alone.then_some(crate::alone::PATIENCE))?;
            ioctl_fionbio(&*self.fd, !alone)?;
            self.own = alone;
        }
        Ok(())
    }

    /// On a thread of its own: waits if nothing else is to be done meanwhile.
    fn receive(&mut self, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Some(solo) = self.solo.clone() else { return Poll::Pending };
        let fd = self.fd.clone();
        let most = buffer.remaining().min(RECEIVE);
        let mut poller = std::mem::take(&mut self.poller);
        let scratch = self.scratch().get_mut(..most).unwrap_or_default();
        let received = match solo.may_wait() {
            true => poller.receive(&*fd, scratch),
            false => recv(&*fd, &mut *scratch, RecvFlags::DONTWAIT).map(|(n, _)| n).map_err(Into::into),
        };
        let result = match received {
            Ok(n) => {
                buffer.put_slice(scratch.get(..n).unwrap_or_default());
                Poll::Ready(Ok(()))
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                if solo.may_wait() {
                    solo.leave();
                }
                Poll::Pending
            }
            Err(e) => Poll::Ready(Err(e)),
        };
        self.poller = poller;
        result
    }
}

impl AsyncRead for Reader {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let plain = match self.get_mut() {
            Reader::Any(any) => return Pin::new(any).poll_read(cx, buffer),
            Reader::Plain(plain) => plain,
        };
        plain.settle()?;
        if plain.own {
            return plain.receive(buffer);
        }
        let watched = match &mut plain.watched {
            Some(watched) => watched,
            none => none.insert(Watched::new(plain.kind, &plain.fd)?),
        };
        match watched {
            Watched::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Watched::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

/// See [`Writer::Plain`].
pub struct PlainWriter {
    kind: Kind,
    fd: Arc<OwnedFd>,
    /// While the socket is full.
    watched: Option<Watched>,
    /// It may be asked for from a thread that is none of the runtime's.
    runtime: Handle,
}

impl PlainWriter {
    fn send(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        loop {
            match sendmsg(&*self.fd, parts, &mut SendAncillaryBuffer::default(), flags) {
                Err(Errno::INTR) => {}
                sent => return sent.map_err(Into::into),
            }
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if self.watched.is_none() {
            match self.send(parts) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                sent => return Poll::Ready(sent),
            }
            let _runtime = self.runtime.enter();
            self.watched = Some(Watched::new(self.kind, &self.fd)?);
        }
        let Some(watched) = &self.watched else { return Poll::Pending };
        let sent = loop {
            ready!(watched.poll_write_ready(cx))?;
            match watched.try_write(|| self.send(parts)) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                sent => break sent,
            }
        };
        self.watched = None;
        Poll::Ready(sent)
    }
}

impl AsyncWrite for Writer {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Writer::Any(any) => Pin::new(any).poll_write(cx, bytes),
            Writer::Plain(plain) => plain.poll_send(cx, &[IoSlice::new(bytes)]),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Writer::Any(any) => Pin::new(any).poll_write_vectored(cx, parts),
            Writer::Plain(plain) => plain.poll_send(cx, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Writer::Any(any) => any.is_write_vectored(),
            Writer::Plain(_) => true,
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Writer::Any(any) => Pin::new(any).poll_flush(cx),
            // A socket keeps nothing back.
            Writer::Plain(_) => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Writer::Any(any) => Pin::new(any).poll_shutdown(cx),
            Writer::Plain(plain) => Poll::Ready(shutdown(&*plain.fd, Shutdown::Write).map_err(Into::into)),
        }
    }
}
