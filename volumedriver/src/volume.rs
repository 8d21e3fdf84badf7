//! An open volume: the block device, and what is told about it.
//!
//! | room | what |
//! |---|---|
//! | `write` | requests that change the log: alignment, credit, claims, the journal, flush |
//! | `read` | resolve, plan by source, verify |
//! | `fetch` | what is not in memory: from the SSD, from the backend once for all who ask, ahead of who reads on |
//! | `pump` | the volume's one background task: seal, upload, commit, TLogs, Manifests |
//! | `open` | fence, recover, cut, serve |
//! | `merge` | several TLogs become one |
//! | `scrub` | log cleaning |
//! | `reclaim` | deleting what nothing names |
//! | `fill` | the local index anew from the TLogs, in the background |
//! | `snapshots` | taking them, and the list of them |
//! | `snapshot_device` | a snapshot as a read-only block device |
//! | `differences` | where the head or a snapshot differs from another snapshot |
//! | `chain` | the Manifests |
//! | `tlogs` | the TLogs that the Manifest names |
//! | `replicas` | the logs at peers: sending, flushing, and the task that does what their state calls for |
//! | `takeover` | what a new owner recovers: sealed logs of peers, or the journal |
//! | `persist` | puts and gets that do not give up |
//!
//! Does not own: the order of the log (`core`), the committed map (`index`), the journal.

pub(crate) mod chain;
pub(crate) mod differences;
mod fetch;
mod fill;
mod merge;
pub(crate) mod open;
pub(crate) mod persist;
mod pump;
mod read;
pub(crate) mod reclaim;
pub mod replicas;
pub(crate) mod scrub;
pub mod snapshot_device;
pub(crate) mod snapshots;
mod takeover;
pub(crate) mod tlogs;
pub(crate) mod write;

use crate::config::Settings;
use crate::core::Core;
use crate::credit::{Credits, Left};
use crate::demand::Demand;
use crate::format::manifest::HistoryEntry;
use crate::format::snapshot::Description;
use crate::index::Index;
use crate::journal::{Journal, JournalLoc, Retired, Sink};
use crate::metrics::Metrics;
use crate::read_cache::{CacheUse, ReadCache};
use crate::view::{MAX_DEPTH, MapCache, View, Views};
use async_trait::async_trait;
use bytes::Bytes;
use common::kv::Lease;
use common::{
    Baseline, BlockDevice, Clock, Difference, Epoch, Error, ErrorKind, Extent, Geometry, Lsn, ObjectStore,
    Result, VolumeId, mutant,
};
use differences::Changes;
use fetch::Reads;
use parking_lot::{Mutex, MutexGuard, RwLock};
use persist::Trouble;
use pump::Command;
use replicas::{Replicas, ReplicationStatus};
pub use scrub::{Effort, ScrubStatus, Scrubbed};
use snapshot_device::SnapshotDevice;
use snapshots::Snapshots;
pub use snapshots::{SnapshotChange, SnapshotInfo};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot};

/// The integers that are the whole durability state of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Frontiers {
    /// Last LSN that was acknowledged or may be: handed to the kernel.
    pub accepted: Lsn,
    /// Last LSN that survives a power cut of this machine.
    pub synced: Lsn,
    /// Last LSN in a SCO, uploaded or not.
    pub sealed: Lsn,
    /// Last LSN that the backend alone gives back.
    pub committed: Lsn,
    /// Last LSN covered by a TLog that a Manifest names.
    pub trimmed: Lsn,
}

/// Whether a volume serves, in words for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeState {
    /// All is well.
    Serving,
    /// Serves, but the backend does not take what is sealed: the reason.
    Degraded(String),
    /// Stopped for good in this process (fenced, corrupt): the reason.
    Stopped(String),
}

/// What `show` says about an open volume.
#[derive(Debug, Clone)]
pub struct VolumeStatus {
    /// Bytes.
    pub size: u64,
    /// Bytes of the volume's SCOs and TLogs on the backend.
    pub stored_bytes: u64,
    /// Bytes of clusters that the committed head maps.
    pub live_bytes: u64,
    /// Bytes acknowledged and not committed.
    pub dirty_bytes: u64,
    /// The epoch that serves.
    pub epoch: Epoch,
    /// The durability state.
    pub frontiers: Frontiers,
    /// Whether it serves.
    pub state: VolumeState,
    /// Snapshots, on the backend or not yet.
    pub snapshots: usize,
    /// Whether it is a template.
    pub template: bool,
    /// What the read cache holds of it.
    pub cache: CacheUse,
    /// Where reads of what is on the backend found their clusters.
    pub cache_hits: CacheHits,
    /// Log cleaning.
    pub scrub: ScrubStatus,
    /// How the tail of its log is replicated; `None` where no registry says.
    pub replication: Option<ReplicationStatus>,
}

/// Clusters that were read, by where they were found, since the volume was opened. What has not left the write buffer
/// does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CacheHits {
    /// In memory.
    pub memory: u64,
    /// On the SSD.
    pub ssd: u64,
    /// On the backend.
    pub missed: u64,
}

/// How long a volume that closes waits for its background task.
const CLOSE_WAIT: Duration = Duration::from_secs(3);

/// Memory for data that is not on the backend yet, shared by all volumes of the router.
#[derive(Debug)]
pub(crate) struct MemoryBudget {
    limit: i64,
    used: AtomicI64,
}

impl MemoryBudget {
    pub fn new(bytes: u64) -> Arc<Self> {
        Arc::new(Self { limit: bytes as i64, used: AtomicI64::new(0) })
    }

    fn add(&self, bytes: u64) {
        self.used.fetch_add(bytes as i64, Ordering::Relaxed);
    }

    fn sub(&self, bytes: u64) {
        self.used.fetch_sub(bytes as i64, Ordering::Relaxed);
    }

    fn excess(&self) -> u64 {
        (self.used.load(Ordering::Relaxed) - self.limit).max(0) as u64
    }
}

/// What the rooms of a volume share.
pub(crate) struct Shared {
    pub id: VolumeId,
    pub epoch: Epoch,
    /// Bytes in a cluster.
    pub cluster: u32,
    /// Bytes of clusters in a SCO.
    pub sco_size: u32,
    pub store: Arc<dyn ObjectStore>,
    pub clock: Arc<dyn Clock>,
    pub journal: Arc<Journal>,
    pub settings: Settings,
    pub core: Mutex<Core>,
    pub index: Index,
    pub credits: Credits,
    pub left: Arc<Left>,
    pub memory: Arc<MemoryBudget>,
    pub cache: Arc<ReadCache>,
    pub reads: Reads,
    pub maps: Arc<MapCache>,
    /// What a clone began as.
    pub parent: Option<Arc<View>>,
    /// The head as its TLogs have it, and what lies below: while the index is not whole.
    pub base: RwLock<Option<Arc<View>>>,
    /// The last number of a TLog or list page that this epoch gave out, and that of a relocation SCO.
    pub last_object: AtomicU64,
    pub next_reloc: AtomicU64,
    pub demand: Arc<Demand>,
    pub snapshots: Snapshots,
    pub changes: Changes,
    pub metrics: Metrics,
    pub trouble: Trouble,
    pub scrubbing: scrub::Progress,
    /// Bytes of the TLogs that the newest Manifest names.
    pub tlog_bytes: AtomicU64,
    /// There may be something to seal.
    pub wake: Notify,
    /// How far each earlier epoch goes, as the cut of this one has it.
    pub history: OnceLock<Vec<HistoryEntry>>,
    /// Logs at peers; `None` where nobody is asked.
    pub replicas: Option<Replicas>,
    /// Under which clients are answered; `None` where nobody else could own the volume.
    pub authority: Option<Arc<dyn Lease>>,
    /// Nobody is answered any more: somebody else may own the volume from now on.
    pub closed: AtomicBool,
    /// A claimed cluster was given free, or the volume stopped.
    pub claims_free: Notify,
}

impl VolumeStatus {
    /// Stored bytes for one that the head or a snapshot reads; `None` when there is none.
    pub fn space_amplification(&self) -> Option<f64> {
        let live = self.live_bytes + self.scrub.snapshot_bytes;
        (live > 0).then(|| self.stored_bytes as f64 / live as f64)
    }
}

impl Shared {
    /// Stops the volume for good: everybody who waits, and everybody who comes, learns why.
    pub fn stop(&self, error: Error) {
        {
            let mut core = self.core.lock();
            if core.stopped().is_none() {
                tracing::error!(volume = %self.id, epoch = %self.epoch, %error, "the volume stops");
            }
            core.stop(error);
        }
        self.credits.volume.close();
        self.claims_free.notify_waiters();
        self.wake.notify_one();
    }

    /// What lies below the local index: to be asked for before the index is, which only learns.
    pub fn below(&self) -> Option<Arc<View>> {
        let base = if self.index.is_whole() { None } else { self.base.read().clone() };
        base.or_else(|| self.parent.clone())
    }

    /// A number for a TLog or list page of this epoch, never given out before.
    pub fn object_number(&self) -> u64 {
        self.last_object.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub fn sco_clusters(&self) -> u64 {
        u64::from(self.sco_size / self.cluster)
    }

    /// Accepts what may be accepted now, and does what follows from it.
    pub fn advance(&self, mut core: MutexGuard<'_, Core>) {
        let now = self.clock.now();
        let (before, since) = core.unsealed();
        let held = core.advance(now);
        self.memory.add(held);
        let excess = self.memory.excess();
        let evicted = (excess > 0).then(|| core.evict(excess));
        self.memory.sub(evicted.as_ref().map_or(0, |freed| freed.memory));
        let (bytes, _) = core.unsealed();
        let full = u64::from(self.sco_size);
        let claims = core.take_unclaimed();
        drop(core);
        drop(evicted);
        if since.is_none() || (before < full && bytes >= full) {
            self.wake.notify_one();
        }
        if claims {
            self.claims_free.notify_waiters();
        }
    }

    /// What a client is told when this is the outcome: nothing, once somebody else may own the volume (R1, rule 4).
    #[inline]
    fn answer<T>(&self, outcome: Result<T>) -> Result<T> {
        match &self.authority {
            Some(authority) if !authority.is_live() && !mutant::is_on("answers-without-a-lease") => {
                Err(Error::new(
                    ErrorKind::NotOwner,
                    format!("volume {}: the lease of this router has run out", self.id),
                ))
            }
            _ if self.closed.load(Ordering::Acquire) && !mutant::is_on("answers-when-closed") => {
                Err(Error::unavailable(CLOSED))
            }
            _ => outcome,
        }
    }

    /// Sees to it that everything that was given out is sent to the peers and handed to the kernel. Without the
    /// volume's lock.
    pub fn commit(&self) {
        if let Some(replicas) = &self.replicas {
            replicas.drive();
        }
        self.journal.commit();
    }
}

impl Sink for Shared {
    fn retired(&self, entries: &mut dyn Iterator<Item = Retired>) {
        let mut core = self.core.lock();
        for entry in entries {
            core.journaled(entry.lsn, entry.loc, entry.mark);
        }
        self.advance(core);
    }

    fn relocated(&self, epoch: Epoch, lsn: Lsn, loc: JournalLoc) {
        self.core.lock().relocate(epoch, lsn, loc);
    }

    fn failed(&self, error: &Error) {
        self.stop(error.clone().context("the write buffer failed"));
    }
}

/// An open volume.
pub struct Volume {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    pump: Mutex<Option<tokio::task::JoinHandle<()>>>,
    views: Arc<Views>,
}

impl Volume {
    /// Identity.
    pub fn id(&self) -> VolumeId {
        self.shared.id
    }

    /// What `show` says.
    pub fn status(&self) -> VolumeStatus {
        let shared = &self.shared;
        let (scos, live) = shared.index.totals();
        let snapshots = shared.snapshots.all();
        let core = shared.core.lock();
        let state = match (core.stopped(), shared.trouble.get()) {
            (Some(error), _) => VolumeState::Stopped(error.to_string()),
            (None, Some(reason)) => VolumeState::Degraded(reason),
            (None, None) => VolumeState::Serving,
        };
        VolumeStatus {
            size: core.size(),
            stored_bytes: scos + shared.tlog_bytes.load(Ordering::Relaxed),
            live_bytes: live * u64::from(shared.cluster),
            dirty_bytes: core.dirty_bytes(),
            epoch: shared.epoch,
            frontiers: core.frontiers(),
            state,
            snapshots: snapshots.len(),
            template: snapshots.iter().any(|s| s.about.template),
            cache: shared.cache.usage(shared.id),
            cache_hits: CacheHits {
                memory: shared.reads.memory.load(Ordering::Relaxed),
                ssd: shared.reads.ssd.load(Ordering::Relaxed),
                missed: shared.reads.missed.load(Ordering::Relaxed),
            },
            scrub: shared.scrubbing.status(),
            replication: core
                .replication()
                .map(|config| ReplicationStatus { config: config.clone(), in_sync: core.is_in_sync() }),
        }
    }

    /// As [`BlockDevice::write`]; the result is the last place of the write in the log.
    pub async fn log_write(&self, offset: u64, data: Bytes, fua: bool) -> Result<Lsn> {
        let lsn = self.shared.write(offset, data).await?;
        if fua && !mutant::is_on("fua-ignored") {
            self.shared.flush().await?;
        }
        self.shared.answer(Ok(lsn))
    }

    /// As [`BlockDevice::write_zeroes`]; the result is its last place in the log.
    pub async fn log_zeroes(&self, offset: u64, len: u64, hole: bool, fua: bool) -> Result<Lsn> {
        let lsn = self.shared.write_range(offset, len, hole).await?;
        if fua {
            self.shared.flush().await?;
        }
        self.shared.answer(Ok(lsn))
    }

    /// As [`BlockDevice::flush`]; the result is how far the log is durable, which is at least everything that was
    /// answered before the call.
    pub async fn log_flush(&self) -> Result<Lsn> {
        self.shared.answer(self.shared.flush().await)
    }

    /// Whether the loss of this machine loses nothing that clients were told: the peers have it, or it was promised to
    /// nobody that they have.
    pub fn is_in_sync(&self) -> bool {
        let core = self.shared.core.lock();
        core.replication().is_none_or(|config| config.mode == dtl::Mode::None) || core.is_in_sync()
    }

    /// How much is here of what clients were told until the epoch `since` ended, and in all epochs between that and this
    /// one: everything up to this LSN. `None` is all of it: `since` is this epoch, or a later one.
    pub fn recovered(&self, since: Epoch) -> Option<Lsn> {
        let history = self.shared.history.get().map_or(&[][..], |history| history);
        history.iter().filter(|ended| ended.epoch_hi >= since).map(|ended| ended.last_lsn).min()
    }

    /// Grows the volume, online; durable when it returns. Shrinking is `Unsupported`.
    pub async fn resize(&self, size: u64) -> Result<()> {
        self.shared.answer(self.shared.resize(size).await)
    }

    /// Seals and uploads everything accepted before the call; `Unavailable` when `deadline` passes
    /// first.
    pub async fn drain(&self, deadline: Duration) -> Result<()> {
        drain(&self.shared, &self.commands, deadline).await
    }

    /// Gives back the space of what nobody reads any more, and merges TLogs, as far as `effort` goes. What was
    /// acknowledged before is on the backend then. `Unavailable` when `deadline` passes first; it goes on by itself.
    pub async fn scrub(&self, effort: Effort, deadline: Duration) -> Result<Scrubbed> {
        let begin = self.shared.clock.now();
        self.drain(deadline).await?;
        let left = (begin + deadline).saturating_sub(self.shared.clock.now());
        let (done, scrubbed) = oneshot::channel();
        let ask = Command::Scrub { effort, done };
        command(&self.shared, &self.commands, ask, scrubbed, ("it is not scrubbed", left)).await
    }

    /// Takes a snapshot: durable on this machine when it returns, whether the backend answers or not.
    /// `Conflict` when there is one of that name.
    pub async fn snapshot(&self, about: Description) -> Result<()> {
        self.shared.answer(Shared::snapshot(&[(self.shared.clone(), about)]).await)
    }

    /// Takes one snapshot of each volume, all at one instant. When one can't be taken, none is, unless a
    /// write buffer fails on the way.
    pub async fn snapshot_group(group: &[(Arc<Volume>, Description)]) -> Result<()> {
        let group: Vec<_> = group.iter().map(|(v, about)| (v.shared.clone(), about.clone())).collect();
        Shared::snapshot(&group).await?;
        group.iter().try_for_each(|(shared, _)| shared.answer(Ok(())))
    }

    /// The snapshots, the oldest first.
    pub fn snapshots(&self) -> Vec<SnapshotInfo> {
        self.shared.snapshots.all()
    }

    /// The snapshot of this name or identity (32 hexadecimal digits). `NotFound` names those that there are.
    pub fn find_snapshot(&self, name: &str) -> Result<SnapshotInfo> {
        self.shared.snapshots.find(name).ok_or_else(|| {
            let all = self.snapshots();
            let names: Vec<String> =
                all.iter().rev().take(8).map(|s| format!("'{}'", s.about.name)).collect();
            let there = match all.len() {
                0 => "there are none".to_owned(),
                n if n <= 8 => format!("there are {}", names.join(", ")),
                n => format!("there are {n}, the last of them {}", names.join(", ")),
            };
            Error::not_found(format!("there is no snapshot '{}': {there}", name.escape_debug()))
        })
    }

    /// The snapshot that a template is; `None` for any other volume.
    pub fn template(&self) -> Option<SnapshotInfo> {
        self.snapshots().into_iter().find(|s| s.about.template)
    }

    /// `Unsupported` when a clone of this volume would have more clones above it than may be.
    pub fn check_depth(&self) -> Result<()> {
        match self.shared.parent.as_ref().map_or(0, |p| p.depth()) {
            MAX_DEPTH.. => Err(Error::new(
                ErrorKind::Unsupported,
                format!("it is a clone of a clone, {MAX_DEPTH} deep: copy it instead"),
            )),
            _ => Ok(()),
        }
    }

    /// Changes or deletes a snapshot; a Manifest knows when it returns. One that is not on the backend
    /// yet is waited for. `Unavailable` when `deadline` passes first; then it goes on by itself.
    pub async fn change_snapshot(&self, id: u128, change: SnapshotChange, deadline: Duration) -> Result<()> {
        let (done, changed) = oneshot::channel();
        let ask = Command::Snapshot { id, change, done };
        command(&self.shared, &self.commands, ask, changed, (NOT_THERE, deadline)).await
    }

    /// A snapshot as a read-only device. It is on the backend when this returns; `Unavailable` when
    /// `deadline` passes first.
    pub async fn open_snapshot(&self, name: &str, deadline: Duration) -> Result<SnapshotDevice> {
        let mut found = self.find_snapshot(name)?;
        if found.lsn.is_none() {
            self.drain(deadline).await?;
            found = self.find_snapshot(name)?;
        }
        let (shared, id) = (&self.shared, found.about.id);
        let what = format!("reading the list of snapshots of volume {}", shared.id);
        let view =
            shared.persist(&what, || self.views.get(&shared.store, &shared.maps, shared.id, id)).await?;
        Ok(SnapshotDevice::new(shared.clone(), view, self.commands.downgrade()))
    }

    /// This is what the registry has of the volume's replication: somebody changed it, or took the volume over.
    pub fn observe(&self, epoch: Epoch, config: dtl::Config) {
        let shared = &self.shared;
        let mut core = shared.core.lock();
        core.observed(epoch, config, shared.clock.now());
        shared.advance(core);
        if let Some(replicas) = &shared.replicas {
            replicas.wake();
        }
    }

    /// Whether [`Volume::close`] was called.
    pub(crate) fn is_closed(&self) -> bool {
        self.pump.lock().is_none()
    }

    /// Stops the volume; requests fail from now on. What is not on the backend stays in the journal. The result is
    /// whether the backend has everything that was ever acknowledged, and that this call stopped it.
    pub async fn close(&self) -> bool {
        let pump = self.pump.lock().take();
        let Some(pump) = pump else { return false };
        {
            let mut core = self.shared.core.lock();
            core.stop(Error::unavailable(CLOSED));
        }
        // What began before, a read of the store say, is too late.
        self.shared.closed.store(true, Ordering::Release);
        self.shared.credits.volume.close();
        self.shared.claims_free.notify_waiters();
        // A pump that is gone already has closed by itself.
        let _ = self.commands.send(Command::Close).await;
        let abort = pump.abort_handle();
        match tokio::time::timeout(CLOSE_WAIT, pump).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::error!(volume = %self.shared.id, %error, "the volume's background task did not end well");
            }
            // It waits for a store that does not answer; what it was at is as safe as in a crash.
            Err(_) => abort.abort(),
        }
        if let Some(replicas) = &self.shared.replicas {
            replicas.stop();
        }
        // Nothing was acknowledged since it was stopped.
        let (frontiers, left) = {
            let mut core = self.shared.core.lock();
            (core.frontiers(), core.forget_entries())
        };
        self.shared.memory.sub(left.memory);
        self.shared.left.put(self.shared.id, &self.shared.credits, left.units);
        self.shared.journal.detach(self.shared.id);
        frontiers.accepted == frontiers.committed
    }

    /// Closes it when the backend has everything that was acknowledged: from this call on writes wait, until it is closed
    /// or, where that takes longer than `deadline`, goes on.
    ///
    /// # Errors
    /// `Unavailable`, and then it is open.
    pub async fn close_drained(&self, deadline: Duration) -> Result<()> {
        let frozen = self.shared.freeze();
        let retired = self.shared.core.lock().wait_retired();
        if let Some(retired) = retired {
            tokio::select! {
                biased;
                // An error is a volume that has stopped, which the drain tells.
                _ = retired => {}
                () = self.shared.clock.sleep(deadline) => {
                    return Err(Error::unavailable(format!("writes that are under way did not end in {deadline:?}")));
                }
            }
        }
        self.drain(deadline).await?;
        let clean = self.close().await;
        drop(frozen);
        match clean {
            true => Ok(()),
            false => {
                Err(Error::internal("a volume that was drained has something that is not on the backend"))
            }
        }
    }

    /// The lease under which its clients are answered.
    pub fn lease(&self) -> Option<u64> {
        self.shared.authority.as_ref().map(|lease| lease.id())
    }
}

/// What a client of a closed volume is told.
const CLOSED: &str = "the volume is closed";

/// See [`Volume::drain`].
async fn drain(shared: &Shared, commands: &mpsc::Sender<Command>, deadline: Duration) -> Result<()> {
    let (done, drained) = oneshot::channel();
    let target = shared.core.lock().accepted().0;
    command(shared, commands, Command::Drain { target, done }, drained, (NOT_THERE, deadline)).await
}

/// What a drain that takes too long has to say.
const NOT_THERE: &str = "not everything is on the backend";

async fn command<T>(
    shared: &Shared,
    commands: &mpsc::Sender<Command>,
    command: Command,
    done: oneshot::Receiver<Result<T>>,
    (undone, deadline): (&str, Duration),
) -> Result<T> {
    let answer = async {
        let closing = || Error::unavailable("the volume is closing");
        commands.send(command).await.map_err(|_| closing())?;
        done.await.map_err(|_| closing())?
    };
    match tokio::time::timeout(deadline, answer).await {
        Ok(outcome) => outcome,
        Err(_) => {
            let reason = shared.trouble.get().unwrap_or_else(|| "it takes longer".into());
            Err(Error::unavailable(format!("{undone} after {deadline:?}: {reason}")))
        }
    }
}

#[async_trait]
impl BlockDevice for Volume {
    fn geometry(&self) -> Geometry {
        Geometry {
            size: self.shared.core.lock().size(),
            min_block: 512,
            preferred_block: self.shared.cluster,
            max_payload: 32 << 20,
            read_only: false,
        }
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Bytes> {
        self.shared.look_ahead(&self.shared.reads.streams, None, offset, len);
        self.shared.answer(self.shared.read(offset, len).await)
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<()> {
        self.log_write(offset, data, fua).await.map(drop)
    }

    async fn write_zeroes(&self, offset: u64, len: u64, hole: bool, fua: bool) -> Result<()> {
        self.log_zeroes(offset, len, hole, fua).await.map(drop)
    }

    async fn discard(&self, offset: u64, len: u64, fua: bool) -> Result<()> {
        self.log_zeroes(offset, len, true, fua).await.map(drop)
    }

    async fn flush(&self) -> Result<()> {
        self.log_flush().await.map(drop)
    }

    async fn extents(&self, offset: u64, len: u64) -> Result<Vec<Extent>> {
        self.shared.answer(self.shared.extents(offset, len).await)
    }

    async fn prefetch(&self, offset: u64, len: u64) -> Result<()> {
        // The most that one request brings nearer: what a read of it would.
        let len = len.min(1 << 20) as u32;
        self.shared.read(offset, len).await.map(drop)
    }

    fn baselines(&self) -> Vec<Baseline> {
        self.shared.snapshots.baselines()
    }

    async fn differences(&self, since: u128, offset: u64, len: u64) -> Result<Vec<Difference>> {
        self.shared.check_read(offset, len)?;
        let found = self.shared.differences_from(Some(&self.commands), None, since, (offset, len)).await;
        self.shared.answer(found)
    }
}
