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
    /// See [`Progress::is_due`].
    due: AtomicBool,
}

impl Progress {
    pub fn begin(&self, due: bool) {
        self.due.store(due, Ordering::Relaxed);
        self.to_copy.store(0, Ordering::Relaxed);
        self.copied.store(0, Ordering::Relaxed);
        self.running.store(true, Ordering::Relaxed);
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
    }

    /// It has deleted so many SCOs, after it had copied so many bytes.
    pub fn gained(&self, scos: u64, bytes: u64) {
        self.deleted_scos.fetch_add(scos, Ordering::Relaxed);
        self.relocated_bytes.fetch_add(bytes, Ordering::Relaxed);
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
