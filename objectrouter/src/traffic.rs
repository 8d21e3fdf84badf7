//! Where what is asked of a vDisk comes from.

use common::Name;
use edge::protocol::Op;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// So many bytes count as one request: a large request is as much as many small ones.
const UNIT: u64 = 64 << 10;

/// How much was asked for: a request counts once for each 64 KiB begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Asked {
    /// By reads.
    pub reads: u64,
    /// By writes; zeroes and discards count once.
    pub writes: u64,
}

impl Asked {
    /// What came since `before`.
    pub(crate) fn since(self, before: Asked) -> Asked {
        Asked {
            reads: self.reads.saturating_sub(before.reads),
            writes: self.writes.saturating_sub(before.writes),
        }
    }

    pub(crate) fn total(self) -> u64 {
        self.reads.saturating_add(self.writes)
    }
}

/// Counts up, for as long as the process lives.
#[derive(Default)]
pub(crate) struct Tally {
    reads: AtomicU64,
    writes: AtomicU64,
}

fn weight(bytes: u64) -> u64 {
    bytes.div_ceil(UNIT).max(1)
}

impl Tally {
    #[inline]
    pub(crate) fn read(&self, bytes: u64) {
        self.reads.fetch_add(weight(bytes), Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn wrote(&self, bytes: u64) {
        self.writes.fetch_add(weight(bytes), Ordering::Relaxed);
    }

    /// What a request of the edge protocol counts.
    pub(crate) fn weigh(op: &Op) -> Asked {
        match op {
            Op::Read { len, .. } => Asked { reads: weight((*len).into()), writes: 0 },
            Op::Write { data, .. } => Asked { reads: 0, writes: weight(data.len() as u64) },
            Op::Zeroes { .. } | Op::Discard { .. } => Asked { reads: 0, writes: 1 },
            Op::Flush | Op::Extents { .. } | Op::Prefetch { .. } => Asked::default(),
        }
    }

    pub(crate) fn add(&self, asked: Asked) {
        self.reads.fetch_add(asked.reads, Ordering::Relaxed);
        self.writes.fetch_add(asked.writes, Ordering::Relaxed);
    }

    fn asked(&self) -> Asked {
        Asked { reads: self.reads.load(Ordering::Relaxed), writes: self.writes.load(Ordering::Relaxed) }
    }
}

/// What was asked of a vDisk here, all of it and by way of other routers.
#[derive(Default)]
pub(crate) struct Traffic {
    /// All of it, from wherever.
    pub(crate) all: Tally,
    by_way_of: Mutex<BTreeMap<Name, Arc<Tally>>>,
}

/// [`Traffic`] at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Uses {
    /// All of it, from wherever.
    pub all: Asked,
    /// What came by way of other routers.
    pub by_way_of: BTreeMap<Name, Asked>,
}

impl Traffic {
    /// What counts the requests that come by way of `router`.
    pub(crate) fn by_way_of(&self, router: &Name) -> Arc<Tally> {
        self.by_way_of.lock().entry(router.clone()).or_default().clone()
    }

    pub(crate) fn uses(&self) -> Uses {
        let by_way_of = self.by_way_of.lock();
        let by_way_of = by_way_of.iter().map(|(name, tally)| (name.clone(), tally.asked())).collect();
        // Read last: what comes by way of others is never more than all.
        Uses { by_way_of, all: self.all.asked() }
    }
}
