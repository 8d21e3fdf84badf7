//! Frames that wait to be sent, in the parts in which they lie in memory.

use bytes::{Buf, Bytes};
use std::collections::VecDeque;
use std::io::IoSlice;
use tokio::io::{AsyncWrite, AsyncWriteExt};

/// Parts of one write.
const PARTS: usize = 64;

/// What waits to be sent; each part may hold on to something until it is gone.
pub struct Outbox<H> {
    parts: VecDeque<(Bytes, Option<H>)>,
}

impl<H> Default for Outbox<H> {
    fn default() -> Self {
        Outbox { parts: VecDeque::new() }
    }
}

impl<H> Outbox<H> {
    /// Adds a frame. `hold` is dropped when all of it is sent.
    pub fn push(&mut self, frame: Vec<Bytes>, hold: Option<H>) {
        self.parts.extend(frame.into_iter().map(|part| (part, None)));
        if let Some((_, last)) = self.parts.back_mut() {
            *last = hold;
        }
    }

    /// Adds all that another one has.
    pub fn append(&mut self, other: &mut Outbox<H>) {
        self.parts.append(&mut other.parts);
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Sends everything. Cancelled between two writes, it goes on where it was.
    ///
    /// # Errors
    /// Of the stream.
    pub async fn send(&mut self, stream: &mut (impl AsyncWrite + Unpin + ?Sized)) -> std::io::Result<()> {
        while !self.parts.is_empty() {
            let mut slices = [IoSlice::new(&[]); PARTS];
            let mut n = 0;
            for (part, _) in self.parts.iter().take(PARTS) {
                slices[n] = IoSlice::new(part);
                n += 1;
            }
            let mut sent = stream.write_vectored(&slices[..n]).await?;
            if sent == 0 {
                return Err(std::io::ErrorKind::WriteZero.into());
            }
            while let Some((part, _)) = self.parts.front_mut() {
                let n = sent.min(part.len());
                part.advance(n);
                sent -= n;
                if !part.is_empty() {
                    break;
                }
                self.parts.pop_front();
            }
        }
        // TLS keeps back what the socket does not take, until it is flushed.
        stream.flush().await
    }
}
