//! A segment file, and the hold that an entry has on it.

use common::DiskFile;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A file of records, in one of its lives.
pub(super) struct Segment {
    pub file: Arc<dyn DiskFile>,
    pub name: String,
    pub life: u64,
    /// Bytes of entries in it that are needed.
    pub live: AtomicU64,
    /// Found at the start: never written again, removed when free.
    pub found: bool,
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} life {}", self.name, self.life)
    }
}

/// An entry's hold on its segment: while there is one, the segment is neither used again nor removed.
#[derive(Debug)]
pub(super) struct Held {
    pub segment: Arc<Segment>,
    len: u32,
}

/// What a record says of an entry, beside it.
const OVERHEAD: u32 = 128;

impl Held {
    pub fn new(segment: &Arc<Segment>, len: u32) -> Self {
        let len = len.saturating_add(OVERHEAD);
        segment.live.fetch_add(u64::from(len), Ordering::Relaxed);
        Held { segment: segment.clone(), len }
    }
}

impl Clone for Held {
    fn clone(&self) -> Self {
        self.segment.live.fetch_add(u64::from(self.len), Ordering::Relaxed);
        Held { segment: self.segment.clone(), len: self.len }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.segment.live.fetch_sub(u64::from(self.len), Ordering::Relaxed);
    }
}
