//! Memory for large payloads, used again and again: fresh memory costs the kernel as much to clear as the
//! payload costs to receive. It begins at a page, so that a disk can be written from it directly.

use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

const PAGE: usize = 4096;
/// Idle memory that is kept.
const KEPT: usize = 64 << 20;

#[derive(FromBytes, Immutable, IntoBytes)]
#[repr(C, align(4096))]
struct Page([u8; PAGE]);

/// Buffers of all connections that nobody uses now, by their number of pages: clients send payloads of few sizes.
#[derive(Clone, Default)]
pub struct Buffers(Arc<Mutex<Idle>>);

#[derive(Default)]
struct Idle {
    by_pages: HashMap<usize, Vec<Box<[Page]>>>,
    bytes: usize,
}

/// A buffer; it goes back when the last that uses it is done.
pub struct Buffer {
    pages: Box<[Page]>,
    length: usize,
    filled: usize,
    home: Buffers,
}

impl Buffers {
    /// A buffer for `length` bytes. `None` when there is no memory.
    pub fn take(&self, length: usize) -> Option<Buffer> {
        let count = length.div_ceil(PAGE);
        let idle = {
            let mut idle = self.0.lock();
            let found = idle.by_pages.get_mut(&count).and_then(Vec::pop);
            if idle.by_pages.get(&count).is_some_and(Vec::is_empty) {
                idle.by_pages.remove(&count);
            }
            idle.bytes -= found.as_ref().map_or(0, |pages| pages.len() * PAGE);
            found
        };
        let pages = match idle {
            Some(pages) => pages,
            None => <[Page]>::new_box_zeroed_with_elems(count).ok()?,
        };
        Some(Buffer { pages, length, filled: 0, home: self.clone() })
    }

    fn put(&self, pages: Box<[Page]>) {
        let bytes = pages.len() * PAGE;
        let mut idle = self.0.lock();
        // Sizes that are no longer asked for make room, one at a time.
        let other =
            (idle.bytes + bytes > KEPT).then(|| idle.by_pages.keys().copied().find(|n| *n != pages.len()));
        let dropped = other.flatten().and_then(|other| idle.by_pages.remove(&other));
        idle.bytes -= dropped.iter().flatten().map(|pages| pages.len() * PAGE).sum::<usize>();
        let unwanted = if bytes > 0 && idle.bytes + bytes <= KEPT {
            idle.bytes += bytes;
            idle.by_pages.entry(pages.len()).or_default().push(pages);
            None
        } else {
            Some(pages)
        };
        // Memory goes back to the system without the lock.
        drop(idle);
        drop((dropped, unwanted));
    }
}

impl Buffer {
    /// Bytes that are there.
    pub fn len(&self) -> usize {
        self.filled
    }

    /// Where the next bytes go.
    pub fn rest(&mut self) -> &mut [u8] {
        &mut self.pages.as_mut_bytes()[self.filled..self.length]
    }

    /// `n` more bytes are there.
    pub fn advance(&mut self, n: usize) {
        self.filled = (self.filled + n).min(self.length);
    }

    /// What is there, to be shared.
    pub fn freeze(self) -> Bytes {
        let filled = self.filled;
        Bytes::from_owner(self).slice(..filled)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.pages.as_bytes()[..self.length]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.home.put(std::mem::take(&mut self.pages));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn idle(buffers: &Buffers) -> usize {
        let idle = buffers.0.lock();
        let sum = idle.by_pages.iter().map(|(pages, all)| pages * PAGE * all.len()).sum();
        assert_eq!(idle.bytes, sum);
        sum
    }

    #[test]
    fn memory_is_used_again_once_its_last_slice_is_gone() {
        let buffers = Buffers::default();
        let mut buffer = buffers.take(5000).unwrap();
        buffer.rest()[..3].copy_from_slice(b"abc");
        buffer.advance(3);
        assert_eq!(buffer.rest().len(), 4997);
        let place = buffer.as_ref().as_ptr();
        assert_eq!(place.addr() % PAGE, 0);
        let bytes = buffer.freeze();
        assert_eq!(&bytes[..], b"abc");
        let part = bytes.slice(1..);
        drop(bytes);
        assert_eq!(idle(&buffers), 0, "a slice is still there");
        drop(part);
        assert_eq!(idle(&buffers), 2 * PAGE);
        let again = buffers.take(8192).unwrap();
        assert_eq!((again.as_ref().as_ptr(), again.len(), idle(&buffers)), (place, 0, 0));
    }

    #[test]
    fn idle_memory_is_bounded_and_old_sizes_give_way() {
        let buffers = Buffers::default();
        let take = |length, n| (0..n).map(|_| buffers.take(length).unwrap()).collect::<Vec<_>>();
        drop(take(1 << 20, 100));
        assert!(idle(&buffers) <= KEPT);
        drop(take(3 << 20, 30));
        assert!(idle(&buffers) <= KEPT && buffers.0.lock().by_pages.contains_key(&(3 << 8)));
        drop(take(KEPT + 1, 1));
        assert!(idle(&buffers) <= KEPT, "what is larger than all that is kept is not kept");
    }
}
