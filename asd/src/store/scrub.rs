//! Reading everything, slowly, all the time: what a disk forgets quietly is found while others still have it.

use super::Core;
use super::commit::Job;
use bytes::Bytes;
use common::osd::{KeyRange, Priority};
use common::{Result, osd::ScrubStatus};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// Values that are read before the next rest.
const STEP: usize = 16;
/// Rest between two rounds, and after something went wrong.
const PAUSE: Duration = Duration::from_secs(60);
/// How often it is written down how far it has come.
const NOTE: Duration = Duration::from_secs(60);

/// Runs until the store is closed.
pub async fn run(core: Arc<Core>, from: Bytes) {
    if core.settings.scrub_rate == 0 {
        return;
    }
    let mut from = from;
    loop {
        if let Err(error) = core.round(from).await {
            tracing::warn!(osd = %core.id, %error, "reading everything has to wait");
        }
        from = Bytes::new();
        core.clock.sleep(PAUSE).await;
    }
}

impl Core {
    async fn round(&self, from: Bytes) -> Result<()> {
        let began = self.clock.unix_time().as_secs();
        {
            let mut scrub = self.scrub.lock();
            *scrub = ScrubStatus { rounds: scrub.rounds, began, ..ScrubStatus::default() };
        }
        let mut noted = self.clock.now();
        let mut next = Some(from);
        while let Some(from) = next {
            let range = KeyRange { from, to: None };
            let begin = self.clock.now();
            let step = self.verify(&range, STEP, || true).await?;
            {
                let mut scrub = self.scrub.lock();
                scrub.keys += step.keys;
                scrub.bytes += step.bytes;
            }
            next = step.next;
            let now = self.clock.now();
            if let Some(cursor) = next.clone().filter(|_| now.saturating_sub(noted) >= NOTE) {
                noted = now;
                self.note_scrub(cursor).await;
            }
            let nanos = step.bytes.max(1 << 12).saturating_mul(1_000_000_000) / self.settings.scrub_rate;
            let rest = Duration::from_nanos(nanos).saturating_sub(now.saturating_sub(begin));
            self.clock.sleep(rest).await;
        }
        let damaged = {
            let mut scrub = self.scrub.lock();
            scrub.rounds += 1;
            let damage = self.damage.lock();
            damage.0.len() as u64 + damage.1
        };
        self.note_scrub(Bytes::new()).await;
        tracing::info!(osd = %self.id, damaged, "everything was read once");
        Ok(())
    }

    /// A restart goes on about here. That it is lost costs only time.
    async fn note_scrub(&self, cursor: Bytes) {
        let (done, answer) = oneshot::channel();
        if self.queue.push(Priority::Maintenance, Job::Scrubbed(cursor, done)).is_ok() {
            let _ = super::answered(answer).await;
        }
    }
}
