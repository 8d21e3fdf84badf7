//! The volume's one background task: seal -> upload -> commit -> TLog -> Manifest.
//!
//! SCOs upload in parallel and commit in order. `committed` moves when the prefix of SCOs is
//! durable and a look begun after that finds no foreign Manifest. A Manifest is put when TLogs,
//! snapshots, size or epoch change, not per SCO.

use super::Shared;
use super::chain::Chain;
use super::scrub::{Effort, Scrubbed, Scrubs};
use super::snapshots::{SnapshotChange, SnapshotSet};
use super::tlogs::{self, TLogSet, TailSco};
use crate::core::{SealPlan, Source};
use crate::format::envelope::{Envelope, ObjectKind};
use crate::format::keys;
use crate::format::manifest::ManifestKind;
use crate::format::sco::{self, MapEntry, ScoHeader, ScoId, ScoIndex};
use crate::format::snapshot::{Description, Snapshot};
use crate::log::Kind;
use crate::lsns::Lsns;
use bytes::Bytes;
use common::{Error, ErrorKind, Lsn, Result, mutant};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;

/// How long writes that do not urge may wait to be sealed because more is stored than should be.
const HOLD: Duration = Duration::from_secs(10);

/// How long a step that has begun may take to end, when the volume closes.
pub(super) const LAST_STEP: Duration = Duration::from_secs(2);

/// What the pump is asked for.
pub(crate) enum Command {
    /// Say when everything up to `target` is committed.
    Drain { target: Lsn, done: oneshot::Sender<Result<()>> },
    /// Change the list of snapshots, and say when a Manifest knows.
    Snapshot { id: u128, change: SnapshotChange, done: oneshot::Sender<Result<()>> },
    /// Give space back, and say what was done.
    Scrub { effort: Effort, done: oneshot::Sender<Result<Scrubbed>> },
    /// Stop; what is not uploaded stays in the journal.
    Close,
}

/// A SCO on its way to the backend.
struct Upload {
    sco: TailSco,
    /// The size of the volume changed in it.
    resized: bool,
    done: bool,
}

/// See the module's head.
pub(super) struct Pump {
    pub shared: Arc<Shared>,
    pub chain: Chain,
    pub tlogs: TLogSet,
    pub snapshots: SnapshotSet,
    /// Committed SCOs that no TLog covers yet.
    pub tail: Vec<TailSco>,
    pub writer: u128,
    next_sco: u64,
    uploads: VecDeque<Upload>,
    tasks: JoinSet<(ScoId, Result<()>)>,
    slots: Arc<Semaphore>,
    drains: Vec<(Lsn, oneshot::Sender<Result<()>>)>,
    commands: mpsc::Receiver<Command>,
    pub scrubs: Scrubs,
    /// Changes of snapshots that wait for their turn, or for the snapshot to be committed.
    edits: Vec<(u128, SnapshotChange, oneshot::Sender<Result<()>>)>,
}

impl Pump {
    /// The task of a volume that was opened with an empty tail: its first SCO has number 1.
    pub fn new(
        shared: Arc<Shared>,
        chain: Chain,
        (tlogs, snapshots): (TLogSet, SnapshotSet),
        slots: Arc<Semaphore>,
        commands: mpsc::Receiver<Command>,
    ) -> Pump {
        let writer = chain.current().writer;
        Pump {
            shared,
            chain,
            tlogs,
            snapshots,
            tail: Vec::new(),
            writer,
            next_sco: 1,
            uploads: VecDeque::new(),
            tasks: JoinSet::new(),
            slots,
            drains: Vec::new(),
            commands,
            scrubs: Scrubs::default(),
            edits: Vec::new(),
        }
    }

    /// Runs until the volume closes or stops.
    pub async fn run(mut self) {
        // Beside the work, and no longer than it.
        let mut beside = JoinSet::new();
        beside.spawn(super::reclaim::sweep(self.shared.clone()));
        let head = Lsns::head(self.chain.current());
        beside.spawn(super::fill::fill(self.shared.clone(), self.tlogs.clone(), head));
        if let Err(error) = self.work().await {
            self.shared.stop(error);
        }
        beside.shutdown().await;
        let error = self.shared.core.lock().stopped().cloned();
        let error = error.unwrap_or_else(|| Error::unavailable("the volume is closing"));
        // A put that is cut off may land after the volume was deleted. It is not waited for where the store does
        // not answer.
        let last = async { while self.tasks.join_next().await.is_some() {} };
        let (last, ()) = tokio::join!(tokio::time::timeout(LAST_STEP, last), self.scrubs.stop(&error));
        if last.is_err() {
            self.tasks.shutdown().await;
        }
        let drains = self.drains.drain(..).map(|(_, done)| done);
        for done in drains.chain(self.edits.drain(..).map(|(_, _, done)| done)) {
            let _ = done.send(Err(error.clone()));
        }
        let committed = self.shared.core.lock().frontiers().committed;
        if let Err(error) = self.shared.index.checkpoint(committed) {
            tracing::warn!(volume = %self.shared.id, %error, "the local index could not be written; it will be rebuilt");
        }
    }

    async fn work(&mut self) -> Result<()> {
        let shared = self.shared.clone();
        loop {
            self.commit().await?;
            self.answer_drains();
            self.edit().await?;
            if self.tail.len() >= shared.settings.tlog_scos
                || self.tail_entries() >= shared.settings.tlog_entries
            {
                self.roll().await?;
            }
            self.scrub_if_due().await?;
            let wait = self.seal_wait();
            if wait == Some(Duration::ZERO) {
                // The buffers of SCOs under way are bounded over all volumes: first a slot, then the buffer.
                let slots = self.slots.clone();
                tokio::select! {
                    biased;
                    command = self.commands.recv() => if self.obey(command) { return Ok(()) },
                    Some(done) = self.tasks.join_next(), if !self.tasks.is_empty() => self.uploaded(done)?,
                    outcome = self.scrubs.ended(), if self.scrubs.is_running() => self.end_scrub(outcome).await?,
                    slot = slots.acquire_owned() => {
                        let slot = slot.map_err(|_| Error::unavailable("the router is stopping"))?;
                        self.seal(slot).await?;
                    }
                }
                continue;
            }
            let idle = self.idle_wait();
            tokio::select! {
                biased;
                command = self.commands.recv() => if self.obey(command) { return Ok(()) },
                Some(done) = self.tasks.join_next(), if !self.tasks.is_empty() => self.uploaded(done)?,
                outcome = self.scrubs.ended(), if self.scrubs.is_running() => self.end_scrub(outcome).await?,
                () = shared.wake.notified() => {}
                () = sleep(&shared, wait), if wait.is_some() => {}
                () = sleep(&shared, idle), if wait.is_none() && idle.is_some() => self.begin_scrub(Effort::Due).await?,
            }
            if let Some(error) = shared.core.lock().stopped() {
                return Err(error.clone());
            }
        }
    }

    /// Whether to stop.
    fn obey(&mut self, command: Option<Command>) -> bool {
        match command {
            Some(Command::Drain { target, done }) => {
                self.drains.push((target, done));
                false
            }
            Some(Command::Snapshot { id, change, done }) => {
                self.edits.push((id, change, done));
                false
            }
            Some(Command::Scrub { effort, done }) => {
                // It is next: what is at work is waited for.
                self.shared.scrubbing.hurry();
                self.scrubs.ask(effort, done);
                false
            }
            Some(Command::Close) | None => true,
        }
    }

    fn answer_drains(&mut self) {
        let committed = self.shared.core.lock().frontiers().committed;
        for (_, done) in self.drains.extract_if(.., |(target, _)| *target <= committed) {
            // Who asked may have gone.
            let _ = done.send(Ok(()));
        }
    }

    /// How long until something is to be sealed; zero for now, `None` when nothing is unsealed or
    /// enough is under way.
    fn seal_wait(&self) -> Option<Duration> {
        let shared = &self.shared;
        if self.uploads.len() >= shared.settings.uploads_per_volume {
            return None;
        }
        let held = self.drains.is_empty() && shared.is_tight();
        let core = shared.core.lock();
        let (bytes, since) = core.unsealed();
        let age = shared.clock.now().saturating_sub(since?);
        let sealed = core.frontiers().sealed;
        let full = bytes >= u64::from(shared.sco_size);
        let wait = match full || self.drains.iter().any(|(target, _)| *target > sealed) {
            true => Duration::ZERO,
            false => Duration::from_secs(shared.settings.seal_age_seconds).saturating_sub(age),
        };
        match held {
            // The scrub hurries now: writers are as fast as it is.
            true if shared.urgency(bytes) >= 1.0 => None,
            true => Some(wait.max(HOLD.saturating_sub(age))),
            false => Some(wait),
        }
    }

    fn tail_entries(&self) -> usize {
        self.tail.iter().map(|s| s.index.entries.len()).sum()
    }

    /// Whether there are SCOs under way.
    pub fn is_uploading(&self) -> bool {
        !self.uploads.is_empty()
    }

    async fn seal(&mut self, slot: OwnedSemaphorePermit) -> Result<()> {
        let shared = self.shared.clone();
        let plan = shared.core.lock().plan_seal(shared.sco_clusters());
        let Some(plan) = plan else { return Ok(()) };
        let id = ScoId { epoch: shared.epoch, number: self.next_sco };
        self.next_sco += 1;
        let resized = plan.controls.iter().any(|run| run.kind == Kind::Resize);
        let committed_sco = id.number - 1 - self.uploads.len() as u64;
        let begin = shared.clock.now();
        let (sco, parts) = build(&shared, id, self.writer, committed_sco, plan).await?;
        shared.metrics.stages.seal.done(&*shared.clock, begin);
        tracing::debug!(volume = %shared.id, sco = %id, lsn = %sco.lsn_hi, bytes = sco.len, "sealed");
        self.uploads.push_back(Upload { sco, resized, done: false });
        self.tasks.spawn(async move {
            let key = keys::sco_key(shared.id, id);
            let begin = shared.clock.now();
            let put = shared.persist_put(&format!("uploading '{key}'"), &key, &parts).await;
            shared.metrics.stages.upload.done(&*shared.clock, begin);
            drop(slot);
            (id, put)
        });
        Ok(())
    }

    fn uploaded(&mut self, done: Result<(ScoId, Result<()>), tokio::task::JoinError>) -> Result<()> {
        let (id, put) = done.map_err(|e| Error::internal(format!("an upload did not end: {e}")))?;
        put.map_err(|e| match e.kind {
            // Somebody else's bytes under a name that only this epoch gives out.
            ErrorKind::Conflict => Error::corrupt(format!("SCO {id} is there with other content: {e}")),
            _ => e,
        })?;
        if let Some(upload) = self.uploads.iter_mut().find(|u| u.sco.id == id) {
            upload.done = true;
        }
        Ok(())
    }

    /// Moves `committed` over the prefix of durable SCOs.
    async fn commit(&mut self) -> Result<()> {
        if mutant::is_on("commit-out-of-order")
            && let Some(done) = self.uploads.iter().position(|u| u.done)
        {
            self.uploads.iter_mut().take(done).for_each(|u| u.done = true);
        }
        let n = self.uploads.iter().take_while(|u| u.done).count();
        if n == 0 {
            return Ok(());
        }
        let shared = self.shared.clone();
        let begin = shared.clock.now();
        if !mutant::is_on("no-look-before-commit") {
            shared.persist("looking for a newer Manifest", || self.chain.look()).await?;
        }
        let mut resized = false;
        for Upload { sco, resized: r, .. } in self.uploads.drain(..n).collect::<Vec<_>>() {
            resized |= r;
            let marker = sco.marker.clone().map(|about| (about, sco.lsn_hi));
            // The index first, then the overlay gives way: a reader finds the data in one of them.
            shared.index.add_sco(sco.id, sco.len, sco.lsn_hi, sco.lsn_hi);
            if !mutant::is_on("index-not-fed") {
                shared.index.apply(&sco.changes())?;
            }
            shared.changes.committed(&sco);
            let freed = shared.core.lock().commit(sco.lsn_hi);
            shared.credits.release(freed.units);
            shared.memory.sub(freed.memory);
            shared.metrics.scos.inc();
            shared.metrics.sco_bytes.inc_by(sco.len);
            shared.journal.release(shared.id, sco.lsn_hi);
            if let Some(replicas) = &shared.replicas {
                replicas.committed(sco.lsn_hi);
            }
            tracing::debug!(volume = %shared.id, sco = %sco.id, committed = %sco.lsn_hi, "committed");
            self.tail.push(sco);
            if let Some((about, lsn)) = marker {
                self.list_snapshot(about, lsn).await?;
            }
        }
        shared.metrics.stages.commit.done(&*shared.clock, begin);
        if shared.index.checkpoint_due() {
            let committed = shared.core.lock().frontiers().committed;
            shared
                .persist("writing the local index", || async { shared.index.checkpoint(committed) })
                .await?;
        }
        if resized {
            // The size of an image that is adopted is the one in its Manifest.
            self.put_manifest(ManifestKind::Normal, |_| {}).await?;
        }
        Ok(())
    }

    /// The marker of a snapshot is committed: a TLog ends there, and the Manifest lists it.
    async fn list_snapshot(&mut self, about: Description, lsn: Lsn) -> Result<()> {
        let size = self.shared.core.lock().committed_size();
        let view = Lsns::head(self.chain.current()).up_to(lsn);
        tracing::info!(volume = %self.shared.id, snapshot = about.name, %lsn, "snapshot is on the backend");
        if !mutant::is_on("marker-lost") {
            self.snapshots.push(Snapshot { about, lsn, size, view });
        }
        self.roll().await
    }

    /// Changes the list of snapshots as it was asked for.
    async fn edit(&mut self) -> Result<()> {
        // One that is only in the log so far is waited for.
        let taken = self.shared.snapshots.all();
        let waits = |id: u128| taken.iter().any(|s| s.about.id == id && s.lsn.is_none());
        let now: Vec<_> = self.edits.extract_if(.., |(id, ..)| !waits(*id)).collect();
        if now.is_empty() {
            return Ok(());
        }
        let mut answers = Vec::with_capacity(now.len());
        for (id, change, done) in now {
            let found = self.snapshots.find(id).map(|s| s.about.name.clone());
            if let Some(name) = &found {
                tracing::info!(volume = %self.shared.id, snapshot = name, ?change, "changing a snapshot");
                self.snapshots.change(id, &change);
                // What only it read may go now.
                self.scrubs.snapshots_changed();
                self.shared.scrubbing.forget();
                if self.snapshots.iter().next().is_none() {
                    self.shared.scrubbing.snapshots_hold(0);
                }
            }
            let gone = || Error::not_found(format!("there is no snapshot {id:032x}"));
            answers.push((done, found.map(drop).ok_or_else(gone)));
        }
        self.put_manifest(ManifestKind::Normal, |_| {}).await?;
        for (done, answer) in answers {
            // Who asked may have gone.
            let _ = done.send(answer);
        }
        Ok(())
    }

    /// Covers the tail with a TLog.
    pub async fn roll(&mut self) -> Result<()> {
        let Some(tlog) = tlogs::merge(&self.tail) else { return Ok(()) };
        let shared = self.shared.clone();
        let name = ScoId { epoch: shared.epoch, number: shared.object_number() };
        let (object, named) = tlogs::encode(shared.id, name, self.writer, &tlog)?;
        shared.persist_put("putting a TLog", &object.key, &[object.bytes]).await?;
        shared.metrics.tlogs.inc();
        let lsn = named.lsn_hi;
        self.tlogs.push(named);
        let scos = self.tail.len();
        let first_sco = self.tail.last().map_or(1, |s| s.id.number + 1);
        self.put_manifest(ManifestKind::Normal, |m| {
            m.tail.first_sco = first_sco;
            m.tlog_lsn = lsn;
        })
        .await?;
        self.tail.clear();
        shared.changes.rolled();
        shared.core.lock().trimmed(lsn);
        tracing::info!(volume = %shared.id, %lsn, scos, entries = tlog.entries.len(), "rolled a TLog");
        Ok(())
    }

    /// Puts the next Manifest with the TLogs as they are now, changed by `change`, and collects
    /// the one before.
    pub async fn put_manifest(
        &mut self,
        kind: ManifestKind,
        change: impl FnOnce(&mut crate::format::manifest::Manifest),
    ) -> Result<()> {
        let shared = self.shared.clone();
        let previous = self.chain.current().clone();
        let mut next = self.chain.successor(kind);
        next.size = shared.core.lock().committed_size();
        change(&mut next);
        let number = || (shared.epoch, shared.object_number());
        let pages = self.tlogs.write_into(&mut next, self.writer, number)?;
        let snapshots = self.snapshots.write_into(&mut next, self.writer, number)?;
        for page in pages.iter().chain(&snapshots) {
            shared.persist_put("putting a list page", &page.key, std::slice::from_ref(&page.bytes)).await?;
        }
        let mut chain = self.chain.clone();
        let put = shared
            .persist("putting a Manifest", || {
                let (mut chain, next) = (chain.clone(), next.clone());
                async move { chain.put(next).await.map(|()| chain) }
            })
            .await;
        match put {
            Ok(put) => chain = put,
            Err(e) if e.kind == ErrorKind::Conflict => {
                return Err(self.chain.foreign(&keys::manifest_key(shared.id, next.number)).await);
            }
            Err(e) => return Err(e),
        }
        self.chain = chain;
        shared.metrics.manifests.inc();
        shared.tlog_bytes.store(self.tlogs.bytes(), Ordering::Relaxed);
        let listed: Vec<_> = self.snapshots.iter().cloned().collect();
        shared.changes.named(self.chain.current(), &self.tlogs, listed.clone());
        shared.snapshots.list(listed);
        self.collect(&previous).await;
        Ok(())
    }
}

async fn sleep(shared: &Shared, duration: Option<Duration>) {
    if let Some(duration) = duration {
        shared.clock.sleep(duration).await;
    }
}

/// Reads what the plan names and makes the SCO, in the pieces in which it lies in memory.
async fn build(
    shared: &Shared,
    id: ScoId,
    writer: u128,
    committed_sco: u64,
    plan: SealPlan,
) -> Result<(TailSco, Vec<Bytes>)> {
    let mut index = ScoIndex { entries: Vec::with_capacity(plan.runs.len()), crcs: Vec::new() };
    let mut clusters = Vec::with_capacity(plan.runs.len());
    let mut marker = None;
    for run in plan.runs.into_iter().chain(plan.controls) {
        let mut slot = 0;
        if run.kind.has_content() {
            let data = match run.source {
                Source::Memory(data) => data,
                Source::Journal { lsn, loc, offset, crcs } => {
                    // What can't be read here ends the volume: not for a bit that flipped on the way.
                    let read = || shared.read_journal(lsn, run.addr, &loc, offset, &crcs);
                    shared.persist("reading the write buffer", read).await?
                }
                Source::Zero | Source::Hole | Source::Committed => {
                    return Err(Error::internal(format!("LSN {} has lost its content", run.lsn)));
                }
            };
            slot = index.crcs.len() as u32;
            index.crcs.extend_from_slice(&run.crcs);
            if run.kind == Kind::Snapshot {
                marker = Some(Description::decode_marker(&data)?);
            }
            clusters.push(data);
        }
        index.entries.push(MapEntry { addr: run.addr, count: run.count, lsn: run.lsn, kind: run.kind, slot });
    }
    shared.metrics.sealed_bytes.inc_by(index.crcs.len() as u64 * u64::from(shared.cluster));
    let envelope = Envelope {
        kind: ObjectKind::LogSco,
        volume: shared.id,
        epoch: id.epoch,
        number: id.number,
        writer,
        compat: 0,
    };
    let header = ScoHeader {
        lsn_lo: plan.lsn_lo,
        lsn_hi: plan.lsn_hi,
        committed_sco,
        cluster_log2: shared.cluster.trailing_zeros() as u8,
        codec: 0,
    };
    let parts = sco::encode(&envelope, &header, &index, clusters)?;
    let len = parts.iter().map(|part| part.len() as u64).sum();
    let sco = TailSco { id, len, lsn_lo: plan.lsn_lo, lsn_hi: plan.lsn_hi, index, marker };
    Ok((sco, parts))
}
