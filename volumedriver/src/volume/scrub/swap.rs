//! Taking over what a scrub made: Manifest, index, then deleting; and when to begin the next one.

use super::pace::hurried;
use super::{Effort, Failed, Outcome, Plan, run};
use crate::background;
use crate::format::keys;
use crate::format::manifest::ManifestKind;
use crate::format::sco::ScoId;
use crate::volume::pump::{LAST_STEP, Pump};
use crate::volume::reclaim::{WORTH, delete_gently, delete_quietly};
use crate::volume::tlogs;
use common::{Error, Lsn, Result, mutant};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

/// The shortest time between two scrubs of a volume that nobody writes.
const PERIOD: Duration = Duration::from_secs(10);

/// What a scrub that somebody asked for did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// SCOs that were deleted.
    pub scos: u64,
    /// Bytes of clusters that were copied before.
    pub copied: u64,
    /// TLogs that were replaced or deleted.
    pub tlogs: u64,
}

/// The scrubs of a volume: the one at work, and those that somebody waits for.
#[derive(Debug, Default)]
pub(in crate::volume) struct Scrubs {
    /// One at a time.
    job: JoinSet<Result<Outcome, Failed>>,
    /// It ends early when this is dropped: a thread can't be aborted.
    keep: Option<oneshot::Sender<()>>,
    /// What nothing names any more is being deleted.
    deletes: JoinSet<()>,
    effort: Option<Effort>,
    asked: Vec<(Effort, Scrubbed, oneshot::Sender<Result<Scrubbed>>)>,
    damaged: BTreeSet<ScoId>,
    /// See [`Plan::fresh`].
    fresh: BTreeMap<Lsn, Lsn>,
    /// Bytes that were stored when the last one gained nothing.
    in_vain: u64,
    ended: Duration,
}

impl Scrubs {
    pub fn ask(&mut self, effort: Effort, done: oneshot::Sender<Result<Scrubbed>>) {
        self.asked.push((effort, Scrubbed::default(), done));
    }

    pub fn is_asked(&self) -> bool {
        !self.asked.is_empty()
    }

    pub fn is_running(&self) -> bool {
        !self.job.is_empty()
    }

    /// When the job has ended; never when there is none.
    pub async fn ended(&mut self) -> Result<Outcome, Failed> {
        match self.job.join_next().await {
            Some(Ok(outcome)) => outcome,
            Some(Err(error)) => Err(Error::internal(format!("a scrub did not end: {error}")).into()),
            None => std::future::pending().await,
        }
    }

    pub async fn stop(&mut self, error: &Error) {
        // It sees at its next step that the volume has stopped: a put that was cut off may land after the volume was
        // deleted. It is not waited for where the store does not answer.
        let ended = async {
            while self.job.join_next().await.is_some() {}
            while self.deletes.join_next().await.is_some() {}
        };
        if tokio::time::timeout(LAST_STEP, ended).await.is_err() {
            self.keep = None;
            while self.job.join_next().await.is_some() {}
            // What is left of them the next owner's sweep finds.
            self.deletes.shutdown().await;
        }
        for (_, _, done) in self.asked.drain(..) {
            // Who asked may have gone.
            let _ = done.send(Err(error.clone()));
        }
    }

    /// What deleting a snapshot changes: what only it read is garbage.
    pub fn snapshots_changed(&mut self) {
        self.in_vain = 0;
    }
}

impl Pump {
    /// Whether a scrub would pay, as far as the local counts tell.
    pub(in crate::volume) fn scrub_due(&self, idle: bool) -> bool {
        let shared = &self.shared;
        if !shared.settings.scrub || self.scrubs.is_running() || !shared.index.is_whole() {
            return false;
        }
        let stored = shared.stored();
        let dead = shared.index.dead_bytes();
        if idle && (self.has_unseen() || (dead > 0 && dead >= WORTH.min(stored / 8))) {
            return stored != self.scrubs.in_vain;
        }
        // What came since the last one in vain is worth looking at again.
        let grown =
            stored.saturating_sub(self.scrubs.in_vain).max(self.scrubs.in_vain.saturating_sub(stored));
        let fresh = self.scrubs.in_vain == 0 || grown * 50 >= stored;
        let least = if idle { 0 } else { 4 * u64::from(shared.sco_size) };
        fresh && shared.is_over(stored, shared.settings.scrub_percent, least)
    }

    /// When an idle volume, or one that can't upload, looks whether something can be cleaned.
    pub(in crate::volume) fn idle_wait(&self) -> Option<Duration> {
        // Uploads that do not succeed may wait for room.
        if (self.is_uploading() && self.shared.trouble.get().is_none()) || !self.scrub_due(true) {
            return None;
        }
        let since = self.shared.clock.now().saturating_sub(self.scrubs.ended);
        Some(PERIOD.saturating_sub(since).max(Duration::from_millis(1)))
    }

    /// Begins a scrub of everything that is committed.
    pub(in crate::volume) async fn begin_scrub(&mut self, effort: Effort) -> Result<()> {
        self.roll().await?;
        let plan = Plan {
            groups: tlogs::groups(&self.tlogs, &self.views()),
            effort,
            damaged: self.scrubs.damaged.clone(),
            tip: self.chain.current().tlog_lsn,
            fresh: self.scrubs.fresh.clone(),
        };
        self.scrubs.effort = Some(effort);
        self.shared.scrubbing.begin(effort == Effort::Due, self.shared.stored(), self.shared.live());
        let (keep, dropped) = oneshot::channel();
        self.scrubs.keep = Some(keep);
        let work = run(self.shared.clone(), self.writer, plan);
        let job = async move {
            tokio::select! {
                biased;
                _ = dropped => Err(Error::unavailable("the volume is closing").into()),
                outcome = work => outcome,
            }
        };
        match Handle::current().runtime_flavor() {
            RuntimeFlavor::MultiThread => {
                let hurry = hurried(self.shared.clone());
                self.scrubs.job.spawn(async {
                    background::run("scrub", job, hurry).await.unwrap_or_else(|e| Err(e.into()))
                })
            }
            _ => self.scrubs.job.spawn(job),
        };
        Ok(())
    }

    /// Begins what somebody waits for, or what is due.
    pub(in crate::volume) async fn scrub_if_due(&mut self) -> Result<()> {
        if self.scrubs.is_running() || self.is_uploading() && self.scrubs.is_asked() {
            return Ok(());
        }
        match self.scrubs.asked.first().map(|asked| asked.0) {
            Some(_) if !self.shared.index.is_whole() => Ok(()),
            Some(effort) => self.begin_scrub(effort).await,
            None if self.scrub_due(false) => self.begin_scrub(Effort::Due).await,
            None => Ok(()),
        }
    }

    /// A job has ended: its TLogs are named, what they do not name is deleted.
    pub(in crate::volume) async fn end_scrub(&mut self, outcome: Result<Outcome, Failed>) -> Result<()> {
        let shared = self.shared.clone();
        self.scrubs.ended = shared.clock.now();
        let effort = self.scrubs.effort.take();
        shared.scrubbing.end();
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(Failed { sco: Some(sco), error }) => {
                // It stays as it is, for a repair; everything else goes on.
                tracing::error!(volume = %shared.id, %sco, %error, "a SCO is damaged: it is not scrubbed");
                shared.metrics.damaged_scos.inc();
                self.scrubs.damaged.insert(sco);
                return Ok(());
            }
            Err(Failed { sco: None, error }) => {
                if shared.core.lock().stopped().is_some() {
                    return Err(error);
                }
                tracing::error!(volume = %shared.id, %error, "a scrub failed");
                self.scrubs.in_vain = shared.stored();
                self.answer_scrub(effort, Err(error));
                return Ok(());
            }
        };
        let (scos, tlogs, copied) = (outcome.gone.len(), outcome.removed.len(), outcome.copied);
        let nothing = outcome.removed.is_empty();
        // As it was, not as it was thought: clusters of one address do not fit one SCO.
        let freed = outcome.freed > outcome.spent;
        shared.scrubbing.snapshots_hold(outcome.space.of_snapshots * u64::from(shared.cluster));
        if !nothing {
            self.swap(outcome).await?;
            shared.scrubbing.gained(scos as u64, copied);
            tracing::info!(volume = %shared.id, scos, tlogs, copied, ?effort, "scrubbed");
        }
        let gained = freed || (effort == Some(Effort::Merge) && !nothing);
        self.scrubs.in_vain = if gained { 0 } else { shared.stored() };
        if let Some(asked) = self.scrubs.asked.first_mut().filter(|asked| Some(asked.0) == effort) {
            asked.1.scos += scos as u64;
            asked.1.tlogs += tlogs as u64;
            asked.1.copied += copied;
            let so_far = asked.1;
            if !gained || effort == Some(Effort::Merge) {
                self.answer_scrub(effort, Ok(so_far));
            }
        }
        Ok(())
    }

    fn answer_scrub(&mut self, effort: Option<Effort>, answer: Result<Scrubbed>) {
        if self.scrubs.asked.first().is_some_and(|asked| Some(asked.0) == effort) {
            // Who asked may have gone.
            let _ = self.scrubs.asked.remove(0).2.send(answer);
        }
    }

    async fn swap(&mut self, outcome: Outcome) -> Result<()> {
        let shared = self.shared.clone();
        let Outcome { removed, added, relocated, moves, forgot, gone, fresh, .. } = outcome;
        let key_of = |t: &crate::format::manifest::TLogRef| keys::object_key(shared.id, &t.obj);
        let scos = |ids: &[ScoId]| ids.iter().map(|id| keys::sco_key(shared.id, *id)).collect::<Vec<_>>();
        if !self.tlogs.swap(&removed, &added) {
            // What it began with is not there any more: what it made is of no use.
            let new: Vec<ScoId> = relocated.iter().map(|r| r.0).collect();
            delete_quietly(&*shared.store, added.iter().map(key_of).chain(scos(&new)).collect()).await;
            return Ok(());
        }
        self.scrubs.fresh = fresh;
        if mutant::is_on("delete-before-the-manifest") {
            delete_quietly(&*shared.store, scos(&gone)).await;
        }
        let moved = !moves.is_empty() || forgot;
        self.put_manifest(ManifestKind::Normal, |m| {
            m.relocations += u64::from(moved && !mutant::is_on("relocation-not-counted"));
        })
        .await?;
        let made = self.chain.current().tlog_lsn;
        for (id, len, written) in &relocated {
            shared.index.add_sco(*id, *len, *written, made);
        }
        if moved {
            let committed = shared.core.lock().frontiers().committed;
            let relocations = self.chain.current().relocations;
            let what = "writing the local index";
            shared
                .persist(what, || async {
                    shared.index.relocate(&moves, relocations)?;
                    // What comes next deletes what an older copy of the map names.
                    shared.index.checkpoint(committed)
                })
                .await?;
        }
        for id in &gone {
            shared.index.drop_sco(*id);
        }
        while self.scrubs.deletes.try_join_next().is_some() {}
        let old = scos(&gone).into_iter().chain(removed.iter().map(key_of)).collect();
        match self.scrubs.is_asked() {
            // Who asked for the room waits for it.
            true => delete_quietly(&*shared.store, old).await,
            false => drop(self.scrubs.deletes.spawn(delete_gently(shared.clone(), old))),
        }
        shared.metrics.deleted_scos.inc_by(gone.len() as u64);
        Ok(())
    }
}
