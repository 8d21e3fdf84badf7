//! How far a scrub has come, and what scrubs did so far.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What is told about the scrubs of a volume since it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ScrubStatus {
    /// One is at work.
    pub running: bool,
    /// Bytes of clusters that it has to copy, and those that it has copied.
    pub to_copy: u64,
    /// See `to_copy`.
    pub copied: u64,
    /// SCOs that scrubs deleted.
    pub deleted_scos: u64,
    /// Bytes of clusters that ended scrubs copied.
    pub relocated_bytes: u64,
    /// Bytes of clusters that only snapshots read, as the last scrub found them.
    pub snapshot_bytes: u64,
}

/// Where [`ScrubStatus`] is kept.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    running: AtomicBool,
    to_copy: AtomicU64,
    copied: AtomicU64,
    deleted_scos: AtomicU64,
    relocated_bytes: AtomicU64,
    snapshot_bytes: AtomicU64,
    /// See [`Progress::forget`].
    recount: AtomicBool,
    /// See [`Progress::is_due`].
    due: AtomicBool,
    /// See [`Progress::worked_off`]: per mille, and one more.
    lowest: AtomicU64,
}

impl Progress {
    /// One begins, which is due or was asked for, with so many bytes stored and so many live.
    pub fn begin(&self, due: bool, stored: u64, live: u64) {
        let now = (stored.saturating_mul(1000) / live.max(1)).saturating_add(1);
        let lowest = self.lowest.load(Ordering::Relaxed);
        self.lowest.store(if lowest == 0 { now } else { lowest.min(now) }, Ordering::Relaxed);
        self.due.store(due, Ordering::Relaxed);
        self.to_copy.store(0, Ordering::Relaxed);
        self.copied.store(0, Ordering::Relaxed);
        self.running.store(true, Ordering::Relaxed);
    }

    /// How much was stored for so many live bytes when it was least, of all times when a scrub began.
    pub fn worked_off(&self, live: u64) -> u64 {
        live.saturating_mul(self.lowest.load(Ordering::Relaxed)) / 1000
    }

    /// Bytes may have become garbage at once that no client overwrote: what snapshots hold is to be counted anew.
    pub fn forget(&self) {
        self.lowest.store(0, Ordering::Relaxed);
        self.recount.store(true, Ordering::Relaxed);
    }

    /// Bytes of clusters that only snapshots read, for sure: none until they are counted again.
    pub fn surely_of_snapshots(&self) -> u64 {
        match self.recount.load(Ordering::Relaxed) {
            true => 0,
            false => self.snapshot_bytes.load(Ordering::Relaxed),
        }
    }

    /// So much is to be copied.
    pub fn plan(&self, bytes: u64) {
        self.to_copy.store(bytes, Ordering::Relaxed);
    }

    pub fn copied(&self, bytes: u64) {
        self.copied.fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn snapshots_hold(&self, bytes: u64) {
        self.snapshot_bytes.store(bytes, Ordering::Relaxed);
        self.recount.store(false, Ordering::Relaxed);
    }

    /// It has deleted so many SCOs, after it had copied so many bytes.
    pub fn gained(&self, scos: u64, bytes: u64) {
        self.deleted_scos.fetch_add(scos, Ordering::Relaxed);
        self.relocated_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Somebody waits for the end of the one at work, if there is one.
    pub fn hurry(&self) {
        self.due.store(false, Ordering::Relaxed);
    }

    /// One is at work that nobody waits for: clients come first.
    pub fn is_due(&self) -> bool {
        self.due.load(Ordering::Relaxed)
    }

    pub fn end(&self) {
        self.due.store(false, Ordering::Relaxed);
        self.running.store(false, Ordering::Relaxed);
    }

    pub fn status(&self) -> ScrubStatus {
        let get = |number: &AtomicU64| number.load(Ordering::Relaxed);
        ScrubStatus {
            running: self.running.load(Ordering::Relaxed),
            to_copy: get(&self.to_copy),
            copied: get(&self.copied),
            deleted_scos: get(&self.deleted_scos),
            relocated_bytes: get(&self.relocated_bytes),
            snapshot_bytes: get(&self.snapshot_bytes),
        }
    }
}
