//! Frames that wait to be sent, in order: many of them with one system call, large payload from where it lies.

use crate::transport::WriteHalf;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::AsyncWrite;

/// Payload up to here is copied to its neighbours; more is sent from where it lies.
const COPIED: usize = 16 << 10;
/// Parts of one write.
const PARTS: usize = 64;
/// Memory that is kept when nothing waits.
const KEPT: usize = 256 << 10;

/// The queue: whole parts, then what is still growing.
#[derive(Default)]
pub struct Outgoing {
    parts: VecDeque<Bytes>,
    tail: BytesMut,
    bytes: usize,
    /// Bytes that ever came.
    queued: u64,
    /// The stream (TLS) may keep something back.
    unflushed: bool,
}

impl Outgoing {
    /// Bytes that wait.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Bytes that were ever appended; `len` of them are not sent yet.
    pub fn queued(&self) -> u64 {
        self.queued
    }

    /// Whether nothing waits, also not in the stream.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0 && !self.unflushed
    }

    /// Appends the frame that `put` writes, and the payload that it returns.
    pub fn frame(&mut self, put: impl FnOnce(&mut BytesMut) -> Bytes) {
        let before = self.tail.len();
        let payload = put(&mut self.tail);
        let added = self.tail.len() - before + payload.len();
        self.bytes += added;
        self.queued += added as u64;
        if payload.len() <= COPIED {
            self.tail.put_slice(&payload);
        } else {
            self.parts.push_back(self.tail.split().freeze());
            self.parts.push_back(payload);
        }
    }

    /// Gives all frames to `other`, which has none.
    pub fn hand_over(&mut self, other: &mut Outgoing) {
        std::mem::swap(&mut self.parts, &mut other.parts);
        // Both buffers keep their memory.
        std::mem::swap(&mut self.tail, &mut other.tail);
        other.bytes = std::mem::take(&mut self.bytes);
        self.tail.clear();
    }

    /// Sends what the stream takes; `Ready` when everything is sent.
    ///
    /// # Errors
    /// Of the stream.
    pub fn poll_send(&mut self, stream: &mut WriteHalf, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.bytes > 0 {
            let mut slices = [IoSlice::new(&[]); PARTS];
            let mut n = 0;
            let parts = self.parts.iter().map(|part| &part[..]).chain([&self.tail[..]]);
            for part in parts.filter(|part| !part.is_empty()).take(PARTS) {
                slices[n] = IoSlice::new(part);
                n += 1;
            }
            let sent = ready!(Pin::new(&mut *stream).poll_write_vectored(cx, &slices[..n]))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.advance(sent);
            self.unflushed = true;
        }
        if self.unflushed {
            ready!(Pin::new(&mut *stream).poll_flush(cx))?;
            self.unflushed = false;
        }
        if self.tail.capacity() > KEPT {
            self.tail = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }

    fn advance(&mut self, mut sent: usize) {
        self.bytes -= sent;
        while let Some(first) = self.parts.front_mut() {
            let n = sent.min(first.len());
            first.advance(n);
            sent -= n;
            if !first.is_empty() {
                return;
            }
            self.parts.pop_front();
        }
        self.tail.advance(sent);
        if self.tail.is_empty() {
            self.tail.clear();
        }
    }
}
