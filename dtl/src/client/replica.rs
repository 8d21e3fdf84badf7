//! The handle of one log.

use super::track::{Control, Phase, Track};
use super::{Progress, Shared, Sink, Source, Start};
use crate::entry::Entry;
use crate::registration::Incarnation;
use crate::wire::Request;
use common::{Lsn, VolumeId};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What the task and the handle share of a log.
pub(super) struct Inner {
    pub start: Start,
    pub track: Mutex<Track>,
    pub source: Arc<dyn Source>,
    sink: Arc<dyn Sink>,
    confirmed: AtomicU64,
    flushed: AtomicU64,
    pub dropped: AtomicBool,
}

impl Inner {
    pub fn new(start: Start, source: Arc<dyn Source>, sink: Arc<dyn Sink>) -> Self {
        Inner {
            start,
            track: Mutex::new(Track::new(start)),
            source,
            sink,
            confirmed: AtomicU64::new(0),
            flushed: AtomicU64::new(0),
            dropped: AtomicBool::new(false),
        }
    }

    /// Changes the track, sends what follows from it, and tells the sink.
    pub fn update(&self, shared: &Shared, f: impl FnOnce(&mut Track)) {
        let (progress, changed) = {
            let mut track = self.track.lock();
            let before = track.progress();
            f(&mut track);
            while let Some(control) = track.control() {
                self.send(shared, &track, control);
            }
            let after = track.progress();
            (after, after != before)
        };
        if changed {
            self.confirmed.store(progress.confirmed.0, Ordering::Release);
            self.flushed.store(progress.flushed.0, Ordering::Release);
            self.sink.progress(&progress);
        }
    }

    pub fn send(&self, shared: &Shared, track: &Track, control: Control) {
        let request = match control {
            Control::Trim(lsn) => Request::Trim(lsn),
            Control::Flush => Request::Flush,
            Control::Vouch(lsn) => Request::Vouch(lsn),
        };
        // Without a connection it is asked anew when there is one.
        shared.link.request(&request, track.channel);
    }
}

/// A log of one volume at one service. It names one incarnation: when that is gone the replica is `Lost`, and another
/// one begins anew.
pub struct Replica {
    inner: Arc<Inner>,
    shared: Arc<Shared>,
}

impl Replica {
    pub(super) fn new(inner: Arc<Inner>, shared: Arc<Shared>) -> Self {
        Replica { inner, shared }
    }

    /// The volume.
    pub fn volume(&self) -> VolumeId {
        self.inner.start.volume
    }

    /// The volume gave out `entry`, the next one; to be called in the order of LSNs, when [`Source`] has it. Sends
    /// it, or sees to it that it is sent later; never waits.
    pub fn append(&self, entry: &Entry) {
        if self.queue(entry) {
            self.drive();
        }
    }

    /// As [`Replica::append`], but it is sent by the next [`Replica::drive`]; `false` when there is nothing to send now.
    pub fn queue(&self, entry: &Entry) -> bool {
        let bytes = entry.packed_len();
        let (queued, lags) = {
            let mut track = self.inner.track.lock();
            let live = track.phase == Phase::Live;
            let mut queued = false;
            if track.accept(entry.lsn, bytes) {
                if self.shared.link.append(entry, track.channel) {
                    track.sent(entry.lsn, bytes);
                    queued = true;
                } else {
                    track.missed();
                }
            }
            (queued, live && track.phase != Phase::Live)
        };
        if lags {
            self.shared.link.wake();
        }
        queued
    }

    /// Sends what is queued, unless somebody is doing so.
    pub fn drive(&self) {
        self.shared.link.drive();
        self.shared.awaited();
    }

    /// Asks for everything up to `lsn` to survive a loss of power there; [`Progress::flushed`] tells when.
    pub fn flush(&self, lsn: Lsn) {
        self.update(|track| track.want_flush(lsn));
        self.shared.awaited();
    }

    /// The backend has everything up to `lsn`.
    pub fn trim(&self, lsn: Lsn) {
        self.update(|track| track.want_trim(lsn));
    }

    fn update(&self, f: impl FnOnce(&mut Track)) {
        {
            let mut track = self.inner.track.lock();
            f(&mut track);
            while let Some(control) = track.control() {
                self.inner.send(&self.shared, &track, control);
            }
        }
        self.shared.link.drive();
    }

    /// Everything up to here is in the log.
    pub fn confirmed(&self) -> Lsn {
        Lsn(self.inner.confirmed.load(Ordering::Acquire))
    }

    /// Everything up to here survives a loss of power there.
    pub fn flushed(&self) -> Lsn {
        Lsn(self.inner.flushed.load(Ordering::Acquire))
    }

    /// How it is doing.
    pub fn progress(&self) -> Progress {
        self.inner.track.lock().progress()
    }

    /// The log, once there is one.
    pub fn incarnation(&self) -> Option<Incarnation> {
        self.progress().incarnation
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.inner.dropped.store(true, Ordering::Release);
        self.shared.link.wake();
    }
}
