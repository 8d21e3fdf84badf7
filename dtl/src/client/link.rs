//! Sending: whoever queues something sends it, if nobody is sending; who comes meanwhile is sent with the next write.

use crate::entry::Entry;
use crate::transport::WriteHalf;
use crate::wire::{self, Request};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::io::IoSlice;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use tokio::io::AsyncWrite;
use tokio::sync::Notify;

/// Payload up to here is copied to its neighbours; more is sent from where it lies.
const COPIED: usize = 32 << 10;
/// Parts of one write.
const PARTS: usize = 64;

/// Bytes to be sent, in order: whole parts, then what is still growing.
#[derive(Default)]
struct Queue {
    parts: VecDeque<Bytes>,
    tail: BytesMut,
    bytes: usize,
    /// There is no connection: nothing is queued.
    closed: bool,
}

/// Who sends.
#[derive(Default)]
struct Sender {
    stream: Option<WriteHalf>,
    parts: VecDeque<Bytes>,
    tail: BytesMut,
    /// The stream (TLS) may keep something back.
    unflushed: bool,
}

/// Tells the task that something can be sent again.
struct Writable(Arc<Notify>, AtomicBool);

impl Wake for Writable {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.1.store(true, Ordering::Release);
        self.0.notify_one();
    }
}

/// The sending half of a connection.
pub(super) struct Link {
    queue: Mutex<Queue>,
    sender: Mutex<Sender>,
    /// The socket takes nothing now; the task goes on when it does.
    blocked: AtomicBool,
    /// A write failed: the task is to notice.
    broken: AtomicBool,
    wake: Arc<Notify>,
    writable: Arc<Writable>,
    waker: Waker,
    limit: usize,
}

impl Link {
    pub fn new(limit: usize) -> Self {
        let wake = Arc::new(Notify::new());
        let writable = Arc::new(Writable(wake.clone(), AtomicBool::new(false)));
        let queue = Queue { closed: true, ..Queue::default() };
        Link {
            queue: Mutex::new(queue),
            sender: Mutex::default(),
            blocked: AtomicBool::new(false),
            broken: AtomicBool::new(false),
            wake,
            waker: Waker::from(writable.clone()),
            writable,
            limit,
        }
    }

    /// Tells the task to look for work.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    /// Returns when there may be work.
    pub async fn woken(&self) {
        self.wake.notified().await;
    }

    pub fn connect(&self, stream: WriteHalf) {
        let mut sender = self.sender.lock();
        *sender = Sender { stream: Some(stream), ..Sender::default() };
        self.blocked.store(false, Ordering::Release);
        self.broken.store(false, Ordering::Release);
        *self.queue.lock() = Queue::default();
    }

    pub fn disconnect(&self) {
        *self.queue.lock() = Queue { closed: true, ..Queue::default() };
        // Whoever sends now finds the stream gone next time.
        *self.sender.lock() = Sender::default();
    }

    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// Queues a request; `false`: there is no connection.
    pub fn request(&self, request: &Request, id: u32) -> bool {
        let mut queue = self.queue.lock();
        if queue.closed {
            return false;
        }
        let before = queue.tail.len();
        request.put(&mut queue.tail, id);
        queue.bytes += queue.tail.len() - before;
        true
    }

    /// Queues an entry for a channel; `false`: there is no connection, or too much waits already.
    pub fn append(&self, entry: &Entry, channel: u32) -> bool {
        let mut queue = self.queue.lock();
        if queue.closed || queue.bytes >= self.limit {
            return false;
        }
        let queue = &mut *queue;
        let len = entry.packed_len();
        // The frame's head needs the checksum of what follows: room is left for it.
        let at = queue.tail.len();
        queue.tail.reserve(wire::HEAD + len.min(COPIED + crate::entry::HEAD));
        queue.tail.put_bytes(0, wire::HEAD);
        let crc = entry.pack_head(&mut queue.tail);
        wire::fill_append_head(&mut queue.tail[at..at + wire::HEAD], channel, len, crc);
        if entry.payload.len() <= COPIED {
            queue.tail.put_slice(&entry.payload);
        } else {
            queue.parts.push_back(queue.tail.split().freeze());
            queue.parts.push_back(entry.payload.clone());
        }
        queue.bytes += wire::HEAD + len;
        true
    }

    /// Whether it is worth reading more to be sent.
    pub fn has_room(&self) -> bool {
        self.queue.lock().bytes < self.limit
    }

    /// Sends what waits, unless somebody is doing so.
    pub fn drive(&self) {
        if !self.blocked.load(Ordering::Acquire) {
            self.send();
        }
    }

    /// The same, where something waits at all.
    pub fn drive_waiting(&self) {
        if self.queue.lock().bytes > 0 {
            self.drive();
        }
    }

    /// The same, from the task: also when the socket took nothing last time, if it may take something now.
    pub fn drive_again(&self) {
        if self.is_writable() || !self.blocked.load(Ordering::Acquire) {
            self.send();
        }
    }

    fn is_writable(&self) -> bool {
        self.writable.1.load(Ordering::Acquire)
    }

    fn send(&self) {
        loop {
            // Who holds it looks at the queue, and for room in the socket, once more after letting go.
            let Some(mut sender) = self.sender.try_lock() else { return };
            // It is asked now. What it says later is said to the waker, and is only forgotten by asking again.
            self.writable.1.store(false, Ordering::Release);
            let state = sender.send(&self.queue, &self.waker);
            self.blocked.store(!matches!(state, Poll::Ready(Ok(()))), Ordering::Release);
            drop(sender);
            match state {
                Poll::Pending if self.is_writable() => {}
                Poll::Pending => return,
                Poll::Ready(Err(_)) => {
                    self.broken.store(true, Ordering::Release);
                    return self.wake();
                }
                Poll::Ready(Ok(())) if self.queue.lock().bytes == 0 => return,
                Poll::Ready(Ok(())) => {}
            }
        }
    }
}

impl Sender {
    fn send(&mut self, queue: &Mutex<Queue>, waker: &Waker) -> Poll<std::io::Result<()>> {
        let Sender { stream: Some(stream), parts, tail, unflushed } = self else {
            // Nobody is connected; what was queued is gone with the connection.
            return Poll::Ready(Ok(()));
        };
        let mut cx = Context::from_waker(waker);
        loop {
            if parts.is_empty() && tail.is_empty() {
                if *unflushed {
                    match Pin::new(&mut *stream).poll_flush(&mut cx) {
                        Poll::Ready(Ok(())) => *unflushed = false,
                        other => return other,
                    }
                }
                let mut queue = queue.lock();
                if queue.bytes == 0 {
                    return Poll::Ready(Ok(()));
                }
                queue.bytes = 0;
                std::mem::swap(parts, &mut queue.parts);
                // Both buffers keep their memory.
                std::mem::swap(tail, &mut queue.tail);
                queue.tail.clear();
            }
            let mut slices = [IoSlice::new(&[]); PARTS];
            let mut n = 0;
            for part in parts.iter().map(|p| &p[..]).chain([&tail[..]]).filter(|p| !p.is_empty()).take(PARTS)
            {
                slices[n] = IoSlice::new(part);
                n += 1;
            }
            let sent = match Pin::new(&mut *stream).poll_write_vectored(&mut cx, &slices[..n]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(std::io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(sent)) => sent,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            };
            advance(parts, tail, sent);
            *unflushed = true;
        }
    }
}

fn advance(parts: &mut VecDeque<Bytes>, tail: &mut BytesMut, mut sent: usize) {
    while let Some(first) = parts.front_mut() {
        let n = sent.min(first.len());
        first.advance(n);
        sent -= n;
        if !first.is_empty() {
            return;
        }
        parts.pop_front();
    }
    tail.advance(sent);
}

#[cfg(test)]
mod tests;
