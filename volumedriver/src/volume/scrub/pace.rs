//! How fast a scrub goes: what it takes of the disk and the processors, it takes from clients.

use crate::volume::Shared;
use common::Result;
use common::object::Haste;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Percent of the live bytes that may gather while a scrub is at work.
const SLACK: u64 = 2;

/// Beside clients that wait for nothing, it works for one part in so many of the time: fewer of their requests
/// meet it than a 99th percentile counts.
const GENTLE: f64 = 320.0;

/// The longest rest: a step that syncs may stop a disk for a tenth of a second.
const REST: Duration = Duration::from_secs(10);

/// How often a rest looks whether it is still right.
const LOOK: Duration = Duration::from_millis(250);

/// Clients that asked for nothing for so long are not there.
const THERE: Duration = Duration::from_secs(2);

/// It hurries the more, the more is stored beyond that and beyond what it had come to: at so many percent of the
/// live bytes more, all it can. What was garbage before, as a deleted snapshot's, is worked off in peace.
const HURRY: u64 = 3;

/// So it does when so many SCOs could be sealed and are held back for it.
const BACKLOG: u64 = 8;

/// What reads no objects and takes as long as this is a step.
const STEP: Duration = Duration::from_millis(5);

impl Shared {
    /// Bytes of SCOs and TLogs on the backend.
    pub(in crate::volume) fn stored(&self) -> u64 {
        self.index.totals().0 + self.tlog_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of clusters that the head or a snapshot has for sure.
    pub(in crate::volume) fn live(&self) -> u64 {
        self.index.totals().1 * u64::from(self.cluster) + self.scrubbing.surely_of_snapshots()
    }

    /// Whether more is stored than this for each 100 live bytes, and there is more garbage than this.
    pub(in crate::volume) fn is_over(&self, stored: u64, percent: u64, least: u64) -> bool {
        let live = self.live();
        stored.saturating_sub(live) > least && stored * 100 > live * percent
    }

    /// Whether garbage comes faster than the scrub at work gives it back: then new SCOs wait for its end.
    pub(in crate::volume) fn is_tight(&self) -> bool {
        let stored = self.stored() + self.scrubbing.status().copied;
        let least = 4 * u64::from(self.sco_size);
        self.scrubbing.is_due() && self.is_over(stored, self.settings.scrub_percent + SLACK, least)
    }

    /// How much a scrub is to hurry, 0.0 to 1.0: for the sake of the store, and of writes that wait for it to be
    /// sealed, so many bytes of them.
    pub(in crate::volume) fn urgency(&self, held: u64) -> f64 {
        // Without what it copied itself, which is bounded.
        let (live, stored) = (self.live(), self.stored());
        let begin = (live * (self.settings.scrub_percent + SLACK) / 100).max(self.scrubbing.worked_off(live));
        let over = stored.saturating_sub(begin) as f64 / (live * HURRY / 100).max(1) as f64;
        // Long before clients wait for credit, however large SCOs are.
        let backlog = held as f64 / (BACKLOG * u64::from(self.sco_size)) as f64;
        over.max(backlog).max(self.credits.fill() * 2.0).min(1.0)
    }
}

/// How urgent a scrub is that no longer gives way to every thread of the machine.
const PRESSING: f64 = 0.5;

/// Returns when the scrub at work is to hurry.
pub(super) async fn hurried(shared: Arc<Shared>) {
    let presses = || shared.is_tight() && shared.urgency(shared.core.lock().unsealed().0) >= PRESSING;
    while shared.scrubbing.is_due() && !presses() {
        shared.clock.sleep(LOOK).await;
    }
}

/// Steps of a scrub, and the rests between them.
pub(super) struct Pace<'a> {
    shared: &'a Shared,
    began: Duration,
    /// Requests of clients before, and when there was the last one.
    seen: u64,
    last: Option<Duration>,
}

impl<'a> Pace<'a> {
    pub fn new(shared: &'a Shared) -> Pace<'a> {
        Pace { shared, began: shared.clock.now(), seen: shared.demand.count(), last: None }
    }

    /// Whether it is to give way: nobody waits for the scrub, and clients are there.
    fn gives_way(&mut self) -> bool {
        let now = self.shared.clock.now();
        if self.shared.demand.since(&mut self.seen) {
            self.last = Some(now);
        }
        self.shared.scrubbing.is_due() && self.last.is_some_and(|last| now.saturating_sub(last) < THERE)
    }

    /// How long to rest after a step: the less, the more waits for the end of the scrub.
    fn pause(&self, step: Duration) -> Duration {
        let shared = self.shared;
        let urgency = match shared.is_tight() {
            true => shared.urgency(shared.core.lock().unsealed().0),
            false => 0.0,
        };
        step.mul_f64(GENTLE.powf(1.0 - urgency) - 1.0).min(REST)
    }

    /// Nothing is done yet: time to see whether clients are there, and a gap behind the end of the scrub before.
    pub async fn begin(&mut self) -> Result<()> {
        if self.shared.scrubbing.is_due() && !self.pause(STEP).is_zero() {
            self.shared.clock.sleep(LOOK).await;
        }
        self.began = self.shared.clock.now();
        self.shared.core.lock().check()
    }

    /// How much of a disk a put may take now.
    pub fn haste(&mut self) -> Haste {
        match self.gives_way() && !self.pause(STEP).is_zero() {
            true => Haste::Gentle,
            false => Haste::Full,
        }
    }

    /// A put has ended: what was gentle has left gaps for others by itself.
    pub async fn end(&mut self, haste: Haste) -> Result<()> {
        if haste == Haste::Gentle {
            self.began = self.shared.clock.now();
        }
        self.rest().await
    }

    /// A step has ended. Fails when the volume has stopped.
    pub async fn rest(&mut self) -> Result<()> {
        let shared = self.shared;
        shared.core.lock().check()?;
        let began = shared.clock.now();
        let step = began.saturating_sub(self.began);
        while self.gives_way() {
            let rested = shared.clock.now().saturating_sub(began);
            let left = self.pause(step).saturating_sub(rested);
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
