//! The buffer a connection reads into: one piece of memory, reused, grown while a client keeps it
//! full and shrunk when the client goes quiet.

use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, ReadBuf};

/// Size of an idle connection's buffer. Holds the largest option header plus room for pipelining.
const SMALL: usize = 8 << 10;
/// Size beyond which it does not grow.
const LARGE: usize = 256 << 10;

/// Bytes that were read and not yet decoded.
pub struct Input {
    memory: Box<[u8]>,
    start: usize,
    end: usize,
    filled: bool,
}

impl Input {
    /// An empty, small buffer.
    pub fn new() -> Self {
        Self { memory: vec![0; SMALL].into_boxed_slice(), start: 0, end: 0, filled: false }
    }

    /// What was read and not yet consumed.
    pub fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.end]
    }

    /// Forgets the first `n` bytes.
    pub fn consume(&mut self, n: usize) {
        self.start = (self.start + n).min(self.end);
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
    }

    /// Whether more than an idle connection's memory is held.
    pub fn is_large(&self) -> bool {
        self.memory.len() > SMALL
    }

    /// What filled the buffer goes elsewhere from here on: no reason to grow.
    pub fn stay_small(&mut self) {
        self.filled = false;
    }

    /// Gives memory back, if nothing is buffered.
    pub fn shrink(&mut self) {
        if self.start == self.end && self.is_large() {
            *self = Self::new();
        }
    }

    /// Makes room for at least `total` bytes from the first unconsumed one on.
    pub fn hold(&mut self, total: usize) {
        if total > self.memory.len() {
            self.resize(total.next_power_of_two());
        } else if self.start + total > self.memory.len() {
            self.compact();
        }
    }

    /// Reads once. `Ok(0)` is the end of the stream.
    pub fn poll_fill<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<std::io::Result<usize>> {
        if self.filled && self.memory.len() < LARGE {
            self.resize(self.memory.len() * 2);
        } else if self.memory.len() - self.end < self.memory.len() / 4 {
            self.compact();
        }
        if self.end == self.memory.len() {
            self.resize(self.memory.len() * 2);
        }
        let mut buffer = ReadBuf::new(&mut self.memory[self.end..]);
        match Pin::new(stream).poll_read(cx, &mut buffer) {
            Poll::Ready(Ok(())) => {
                let n = buffer.filled().len();
                // A read that fills the buffer says that more was waiting.
                self.filled = buffer.remaining() == 0;
                self.end += n;
                Poll::Ready(Ok(n))
            }
            Poll::Ready(Err(e)) => Poll::Ready(Err(e)),
            Poll::Pending => Poll::Pending,
        }
    }

    fn compact(&mut self) {
        self.memory.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
    }

    fn resize(&mut self, size: usize) {
        let mut memory = vec![0; size].into_boxed_slice();
        memory[..self.end - self.start].copy_from_slice(&self.memory[self.start..self.end]);
        self.memory = memory;
        self.end -= self.start;
        self.start = 0;
        self.filled = false;
    }
}
