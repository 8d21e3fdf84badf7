//! Replies: their headers, and the queue that sends many with one system call, payload uncopied.

use super::handshake::{Replies, shorten};
use super::meta::Run;
use super::proto::{self, Request, chunk};
use bytes::Bytes;
use std::collections::VecDeque;
use std::io::IoSlice;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::AsyncWrite;

/// Payload smaller than this is copied behind its header.
const COPY_BELOW: usize = 1024;
/// Pieces in one system call.
const PIECES: usize = 64;
/// Shortest zero payload that is sent as a hole.
const HOLE_FROM: usize = 4096;
/// Memory that the queue keeps for headers when it is empty.
const KEEP: usize = 16 << 10;

enum Piece {
    /// So many bytes of `small`.
    Small(usize),
    /// A payload, and the request's length that it stands for.
    Large(Bytes, u64),
}

/// Replies that wait for the socket.
pub struct Queue {
    replies: Replies,
    small: Vec<u8>,
    /// How much of `small` is sent.
    small_sent: usize,
    pieces: VecDeque<Piece>,
    /// How much of the first piece is sent.
    first_sent: usize,
    unflushed: bool,
}

impl Queue {
    /// An empty queue of replies of this shape.
    pub fn new(replies: Replies) -> Self {
        Self {
            replies,
            small: Vec::new(),
            small_sent: 0,
            pieces: VecDeque::new(),
            first_sent: 0,
            unflushed: false,
        }
    }

    /// Whether everything was handed to the transport and flushed.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty() && !self.unflushed
    }

    /// Bytes held in the queue's own memory (payload is counted where it was asked for).
    pub fn held(&self) -> usize {
        self.small.len()
    }

    /// Gives memory back, if nothing is queued.
    pub fn shrink(&mut self) {
        if self.is_empty() {
            *self = Self::new(self.replies);
        }
    }

    /// Success without payload.
    pub fn ok(&mut self, request: &Request) {
        match self.replies {
            // A client that knows structured replies takes a simple one for a reply without payload.
            Replies::Simple | Replies::Structured => self.simple(request, 0),
            Replies::Extended => self.chunk(request, chunk::NONE, 0),
        }
    }

    /// An error, with a text where the protocol has room for one.
    pub fn error(&mut self, request: &Request, errno: u32, message: &str) {
        if self.replies == Replies::Simple {
            return self.simple(request, errno);
        }
        let message = shorten(message).as_bytes();
        self.chunk(request, chunk::ERROR, 6 + message.len() as u64);
        self.put(&errno.to_be_bytes());
        self.put(&(message.len() as u16).to_be_bytes());
        self.put(message);
    }

    /// The bytes of a read. Returns how much of the request's payload is accounted for at once;
    /// the rest is when it was sent.
    pub fn data(&mut self, request: &Request, data: Bytes) -> u64 {
        let length = request.length;
        if self.replies == Replies::Simple {
            self.simple(request, 0);
        } else if data.is_empty() {
            self.chunk(request, chunk::NONE, 0);
        } else if data.len() >= HOLE_FROM && is_zero(&data) {
            self.chunk(request, chunk::OFFSET_HOLE, 12);
            self.put(&request.offset.to_be_bytes());
            self.put(&(data.len() as u32).to_be_bytes());
            return length;
        } else {
            self.chunk(request, chunk::OFFSET_DATA, 8 + data.len() as u64);
            self.put(&request.offset.to_be_bytes());
        }
        if data.len() < COPY_BELOW {
            self.put(&data);
            return length;
        }
        self.pieces.push_back(Piece::Large(data, length));
        0
    }

    /// Block status: a chunk for each context.
    pub fn status(&mut self, request: &Request, contexts: &[(u32, Vec<Run>)]) {
        for (n, (id, runs)) in contexts.iter().enumerate() {
            let flags = if n + 1 == contexts.len() { chunk::FLAG_DONE } else { 0 };
            self.runs(request, flags, *id, runs);
        }
    }

    fn runs(&mut self, request: &Request, flags: u16, id: u32, runs: &[Run]) {
        if self.replies == Replies::Extended {
            self.chunk_with(request, flags, chunk::BLOCK_STATUS_EXT, 8 + 16 * runs.len() as u64);
            self.put(&id.to_be_bytes());
            self.put(&(runs.len() as u32).to_be_bytes());
            for run in runs {
                self.put(&run.len.to_be_bytes());
                self.put(&u64::from(run.state).to_be_bytes());
            }
        } else {
            self.chunk_with(request, flags, chunk::BLOCK_STATUS, 4 + 8 * runs.len() as u64);
            self.put(&id.to_be_bytes());
            for run in runs {
                // The request's length has 32 bits, and no run is longer.
                self.put(&(run.len as u32).to_be_bytes());
                self.put(&run.state.to_be_bytes());
            }
        }
    }

    fn simple(&mut self, request: &Request, errno: u32) {
        let mut head = [0; 16];
        head[..4].copy_from_slice(&proto::SIMPLE_REPLY_MAGIC.to_be_bytes());
        head[4..8].copy_from_slice(&errno.to_be_bytes());
        head[8..].copy_from_slice(&request.cookie.to_be_bytes());
        self.put(&head);
    }

    /// The header of a chunk that is its request's last.
    fn chunk(&mut self, request: &Request, kind: u16, length: u64) {
        self.chunk_with(request, chunk::FLAG_DONE, kind, length);
    }

    fn chunk_with(&mut self, request: &Request, flags: u16, kind: u16, length: u64) {
        let extended = self.replies == Replies::Extended;
        let magic = if extended { proto::EXTENDED_REPLY_MAGIC } else { proto::STRUCTURED_REPLY_MAGIC };
        let mut head = [0; 32];
        head[..4].copy_from_slice(&magic.to_be_bytes());
        head[4..6].copy_from_slice(&flags.to_be_bytes());
        head[6..8].copy_from_slice(&kind.to_be_bytes());
        head[8..16].copy_from_slice(&request.cookie.to_be_bytes());
        if extended {
            head[16..24].copy_from_slice(&request.offset.to_be_bytes());
            head[24..].copy_from_slice(&length.to_be_bytes());
            self.put(&head);
        } else {
            // Payload is at most a read of 32 bits less the offset; runs and texts are short.
            head[16..20].copy_from_slice(&(length as u32).to_be_bytes());
            self.put(&head[..20]);
        }
    }

    fn put(&mut self, bytes: &[u8]) {
        self.small.extend_from_slice(bytes);
        match self.pieces.back_mut() {
            Some(Piece::Small(n)) => *n += bytes.len(),
            _ => self.pieces.push_back(Piece::Small(bytes.len())),
        }
    }

    /// Sends what the transport takes. `Ready` with the payload that is accounted for now, and
    /// whether everything is sent.
    pub fn poll_send<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> std::io::Result<(u64, Poll<()>)> {
        let mut freed = 0;
        while !self.pieces.is_empty() {
            let sent = {
                let mut slices = [IoSlice::new(&[]); PIECES];
                let count = self.slices(&mut slices);
                match Pin::new(&mut *stream).poll_write_vectored(cx, &slices[..count]) {
                    Poll::Ready(sent) => sent?,
                    Poll::Pending => return Ok((freed, Poll::Pending)),
                }
            };
            if sent == 0 {
                return Err(std::io::ErrorKind::WriteZero.into());
            }
            self.unflushed = true;
            freed += self.advance(sent);
        }
        if self.unflushed {
            match Pin::new(stream).poll_flush(cx) {
                Poll::Ready(flushed) => flushed?,
                Poll::Pending => return Ok((freed, Poll::Pending)),
            }
            self.unflushed = false;
        }
        Ok((freed, Poll::Ready(())))
    }

    fn slices<'s>(&'s self, slices: &mut [IoSlice<'s>; PIECES]) -> usize {
        let mut small = self.small_sent;
        let mut skip = self.first_sent;
        let mut count = 0;
        for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
            *slice = match piece {
                Piece::Small(n) => {
                    let from = small;
                    small += n - skip;
                    IoSlice::new(&self.small[from..small])
                }
                Piece::Large(data, _) => IoSlice::new(&data[skip..]),
            };
            skip = 0;
            count += 1;
        }
        count
    }

    fn advance(&mut self, mut sent: usize) -> u64 {
        let mut freed = 0;
        while sent > 0 {
            let Some(piece) = self.pieces.front() else { break };
            let (length, credit, is_small) = match piece {
                Piece::Small(n) => (*n, 0, true),
                Piece::Large(data, credit) => (data.len(), *credit, false),
            };
            let step = sent.min(length - self.first_sent);
            sent -= step;
            self.first_sent += step;
            if is_small {
                self.small_sent += step;
            }
            if self.first_sent == length {
                self.pieces.pop_front();
                self.first_sent = 0;
                freed += credit;
            }
        }
        if self.pieces.is_empty() {
            self.small.clear();
            self.small_sent = 0;
            if self.small.capacity() > KEEP {
                self.small.shrink_to(KEEP);
            }
        } else if self.small_sent > KEEP && self.small_sent * 2 > self.small.len() {
            self.small.drain(..self.small_sent);
            self.small_sent = 0;
        }
        freed
    }
}

/// Whether all bytes are zero. Looks at the first few before it looks at all.
fn is_zero(data: &[u8]) -> bool {
    let (head, rest) = data.split_at(data.len().min(64));
    head.iter().all(|b| *b == 0) && rest.chunks(256).all(|c| c.iter().fold(0, |a, b| a | b) == 0)
}

#[cfg(test)]
mod tests;
