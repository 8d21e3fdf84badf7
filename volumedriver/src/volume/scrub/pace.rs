//! How fast a scrub goes: what it takes of the disk and the processors, it takes from clients.

use crate::volume::Shared;
use common::Result;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Percent of the live bytes that may gather while a scrub is at work.
const SLACK: u64 = 2;

/// Beside clients that wait for nothing, it works for one part in so many of the time: fewer of their requests
/// meet it than a 99th percentile counts.
const GENTLE: f64 = 128.0;

/// The longest rest: a step that syncs may stop a disk for a tenth of a second.
const REST: Duration = Duration::from_secs(10);

/// How often a rest looks whether it is still right.
const LOOK: Duration = Duration::from_millis(250);

/// It rests not at all when so many SCOs could be sealed and are held back for it.
const BACKLOG: u64 = 8;

/// What reads no objects and takes as long as this is a step.
const STEP: Duration = Duration::from_millis(5);

impl Shared {
    /// Bytes of SCOs and TLogs on the backend.
    pub(in crate::volume) fn stored(&self) -> u64 {
        self.index.totals().0 + self.tlog_bytes.load(Ordering::Relaxed)
    }

    /// Whether more is stored than this for each 100 live bytes, and there is more garbage than this.
    pub(in crate::volume) fn is_over(&self, stored: u64, percent: u64, least: u64) -> bool {
        let (_, head) = self.index.totals();
        let live = head * u64::from(self.cluster) + self.scrubbing.status().snapshot_bytes;
        stored.saturating_sub(live) > least && stored * 100 > live * percent
    }

    /// Whether garbage comes faster than the scrub at work gives it back: then new SCOs wait for its end.
    pub(in crate::volume) fn is_tight(&self) -> bool {
        let stored = self.stored() + self.scrubbing.status().copied;
        let least = 4 * u64::from(self.sco_size);
        self.scrubbing.is_due() && self.is_over(stored, self.settings.scrub_percent + SLACK, least)
    }

    /// How long to rest after a step of a scrub, for clients that are there: the less, the more waits for its end.
    fn rest(&self, step: Duration) -> Duration {
        let held = match self.is_tight() {
            true => self.core.lock().unsealed().0,
            false => 0,
        };
        step.mul_f64(GENTLE.powf(1.0 - self.urgency(held)) - 1.0).min(REST)
    }

    /// How much a scrub is to hurry when so many bytes wait for it to be sealed: 0.0 to 1.0.
    pub(in crate::volume) fn urgency(&self, held: u64) -> f64 {
        (held as f64 / (BACKLOG * u64::from(self.sco_size)) as f64).min(1.0)
    }
}

/// Steps of a scrub, and the rests between them.
pub(super) struct Pace<'a> {
    shared: &'a Shared,
    began: Duration,
    /// Requests of clients before.
    seen: u64,
}

impl<'a> Pace<'a> {
    pub fn new(shared: &'a Shared) -> Pace<'a> {
        Pace { shared, began: shared.clock.now(), seen: shared.demand.count() }
    }

    /// A step has ended. Fails when the volume has stopped.
    pub async fn rest(&mut self) -> Result<()> {
        let shared = self.shared;
        shared.core.lock().check()?;
        let step = shared.clock.now().saturating_sub(self.began);
        let began = shared.clock.now();
        while shared.scrubbing.is_due() && shared.demand.since(&mut self.seen) {
            let rested = shared.clock.now().saturating_sub(began);
            let left = shared.rest(step).saturating_sub(rested);
            if left.is_zero() {
                break;
            }
            shared.clock.sleep(left.min(LOOK)).await;
            shared.core.lock().check()?;
        }
        self.began = shared.clock.now();
        Ok(())
    }

    /// Something small was done, of which many make a step.
    pub async fn go_on(&mut self) -> Result<()> {
        match self.shared.clock.now().saturating_sub(self.began) > STEP {
            true => self.rest().await,
            false => Ok(()),
        }
    }
}
