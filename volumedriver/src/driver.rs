//! All volumes of one storage router: the journal they share, the index, the caches.

use crate::config::Settings;
use crate::credit::Account;
use crate::format::keys;
use crate::format::manifest::{Manifest, ManifestKind, Parent, Tail};
use crate::index::{self, PageBudget};
use crate::journal::{Journal, JournalSettings};
use crate::metrics::Metrics;
use crate::pool::Pool;
use crate::read_cache::ReadCache;
use crate::replication::Opening;
use crate::view::MapCache;
use crate::volume::chain::Chain;
use crate::volume::open::{self, Home};
use crate::volume::{MemoryBudget, Volume, reclaim};
use common::{Clock, Disk, Epoch, Error, ErrorKind, Lsn, Result, Table, VolumeId};
use futures::{StreamExt, TryStreamExt};
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::Semaphore;

pub use crate::volume::write::check_size;

/// What a new volume is.
#[derive(Debug, Clone)]
pub struct CreateVolume {
    /// Random identity, never used before.
    pub id: VolumeId,
    /// The vDisk's name, kept in the Manifest for adoption.
    pub name: String,
    /// Bytes; a multiple of the cluster size, 1 cluster to 64 TiB.
    pub size: u64,
    /// Bytes of clusters in one SCO: 1 to 128 MiB, a multiple of the cluster size.
    pub sco_size: u32,
    /// The epoch of the first owner, at least 1.
    pub epoch: Epoch,
    /// The snapshot that it is a clone of, in the same vPool and on the backend.
    pub parent: Option<Parent>,
}

/// A volume as its newest Manifest describes it, without opening it.
#[derive(Debug, Clone)]
pub struct ImageInfo {
    /// Identity.
    pub id: VolumeId,
    /// The vDisk's name.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Bytes of clusters in one SCO.
    pub sco_size: u32,
    /// The highest epoch seen.
    pub epoch: Epoch,
    /// The snapshot that it is a clone of.
    pub parent: Option<Parent>,
}

/// Bytes of the data directory's disk that the read cache leaves free, beside the whole write buffer.
const RESERVE: u64 = 1 << 30;

/// Newest Manifests that are read at a time.
const READS: usize = 16;

#[derive(Default)]
struct Open {
    volumes: HashMap<VolumeId, Weak<Volume>>,
    opening: HashSet<VolumeId>,
    pools: HashMap<u128, Arc<Account>>,
}

/// The volume driver of one storage router.
pub struct Driver {
    home: Home,
    open: Mutex<Open>,
}

impl Driver {
    /// Scans the journal and starts the shared machinery. Volumes are opened one by one, later. The read cache is in
    /// memory alone.
    pub async fn start(
        settings: Settings,
        disk: Arc<dyn Disk>,
        table: Arc<dyn Table>,
        clock: Arc<dyn Clock>,
        registry: &mut prometheus_client::registry::Registry,
    ) -> Result<Arc<Driver>> {
        Self::start_with_ssd_cache(settings, disk, None, table, clock, registry).await
    }

    /// As [`Driver::start`], with the second tier of the read cache on `cache`: a folder of its own, for nothing in it is
    /// ever needed.
    pub async fn start_with_ssd_cache(
        settings: Settings,
        disk: Arc<dyn Disk>,
        cache: Option<Arc<dyn Disk>>,
        table: Arc<dyn Table>,
        clock: Arc<dyn Clock>,
        registry: &mut prometheus_client::registry::Registry,
    ) -> Result<Arc<Driver>> {
        settings.check().map_err(Error::invalid)?;
        let mib = |n: u64| n << 20;
        let journal = JournalSettings::new(mib(settings.segment_mib), mib(settings.journal_mib));
        let (journal, recovered) = Journal::open(journal, disk, clock.clone(), registry).await?;
        for damage in &recovered.damage {
            tracing::error!(%damage, "the write buffer is damaged");
        }
        let entries: usize = recovered.volumes.values().map(|v| v.entries).sum();
        tracing::info!(
            segments = recovered.segments,
            volumes = recovered.volumes.len(),
            entries,
            "write buffer scanned"
        );
        // What the segments hold beside entries, and what waits to be freed, takes room too.
        let device = Account::new(journal.capacity() / 10 * 8);
        let metrics = Metrics::new(registry);
        let mut read_cache = ReadCache::new(mib(settings.read_cache_mib), metrics.cache.clone());
        if let Some(disk) = cache {
            // The write buffer may still have all of its files to make, and what else lies there grows too.
            let reserve = mib(settings.journal_mib) + RESERVE;
            read_cache.add_ssd(mib(settings.ssd_cache_mib), reserve, disk, clock.clone()).await;
        }
        let home = Home {
            clock,
            journal,
            table,
            memory: MemoryBudget::new(mib(settings.buffer_mib)),
            cache: Arc::new(read_cache),
            // The head maps take three quarters, what is read from TLogs the rest.
            pages: PageBudget::new(mib(settings.index_cache_mib) / 4 * 3),
            maps: Arc::new(MapCache::new(mib(settings.index_cache_mib) / 4)),
            views: Arc::default(),
            uploads: Arc::new(Semaphore::new(settings.uploads)),
            device,
            left: Arc::default(),
            demand: Arc::default(),
            created: Mutex::default(),
            metrics,
            epochs: recovered.volumes.iter().map(|(id, v)| (*id, v.epoch)).collect(),
            settings,
        };
        Ok(Arc::new(Driver { home, open: Mutex::default() }))
    }

    /// Puts the first Manifest of a new volume. It is not open afterwards.
    pub async fn create(&self, pool: &Pool, spec: CreateVolume) -> Result<()> {
        let cluster = pool.info.cluster_size;
        check_size(spec.size, cluster)?;
        check_sco_size(spec.sco_size, cluster)?;
        let manifest = Manifest {
            kind: ManifestKind::Fence,
            volume: spec.id,
            epoch: spec.epoch,
            number: 1,
            writer: spec.id.0,
            prev_crc: 0,
            name: spec.name,
            size: spec.size,
            cluster_log2: cluster.trailing_zeros() as u8,
            sco_size: spec.sco_size,
            created_at: self.home.clock.unix_time().as_secs(),
            deleted_at: 0,
            parent: spec.parent,
            tail: Tail { epoch: spec.epoch, first_sco: 1 },
            tlog_lsn: Lsn(0),
            history: Vec::new(),
            head: Vec::new(),
            pages: Vec::new(),
            tlogs: Vec::new(),
            snapshots: Vec::new(),
            relocations: 0,
        };
        self.home.created.lock().insert(spec.id);
        match Chain::create(&pool.store, manifest).await {
            // The id is random: what is there was put by an earlier try to create this volume.
            Err(e) if e.kind == ErrorKind::Conflict => Ok(()),
            outcome => outcome.map(drop),
        }
    }

    /// Opens a volume: fences, recovers, records the cut, serves. `epoch` is the registry's new
    /// epoch; when the backend or the journal knows a higher one, a higher one is taken, and
    /// [`Volume::status`] tells which. One open handle per volume: a second open is `Conflict`.
    pub async fn open(self: &Arc<Self>, pool: &Pool, id: VolumeId, epoch: Epoch) -> Result<Arc<Volume>> {
        self.open_at(pool, id, epoch, None, None).await
    }

    /// Opens a volume of which the registry knows who owned it and how it was replicated: recovers what was
    /// acknowledged from the peers or from the write buffer, and replicates it from then on. `Denied` when what was
    /// acknowledged may be out of reach.
    pub async fn take_over(
        self: &Arc<Self>,
        pool: &Pool,
        id: VolumeId,
        epoch: Epoch,
        opening: &Opening,
    ) -> Result<Arc<Volume>> {
        self.open_at(pool, id, epoch, None, Some(opening)).await
    }

    /// Opens a volume as the snapshot with this identity has it: its head goes back there. Its size stays, and
    /// so do all snapshots. Everything that was acknowledged must be on the backend ([`Volume::drain`]), else
    /// `Conflict`. After an error it happened or it did not; nothing in between.
    pub async fn roll_back(
        self: &Arc<Self>,
        pool: &Pool,
        id: VolumeId,
        epoch: Epoch,
        snapshot: u128,
        opening: Option<&Opening>,
    ) -> Result<Arc<Volume>> {
        self.open_at(pool, id, epoch, Some(snapshot), opening).await
    }

    async fn open_at(
        self: &Arc<Self>,
        pool: &Pool,
        id: VolumeId,
        epoch: Epoch,
        back_to: Option<u128>,
        opening: Option<&Opening>,
    ) -> Result<Arc<Volume>> {
        let _busy = self.begin(id)?;
        let account = {
            let mut open = self.open.lock();
            // One sick vPool leaves a quarter of the write buffer to the others.
            let limit = self.home.device.limit_bytes() / 4 * 3;
            open.pools.entry(pool.info.id).or_insert_with(|| Account::new(limit)).clone()
        };
        let volume = Arc::new(open::open(&self.home, pool, account, id, epoch, back_to, opening).await?);
        self.open.lock().volumes.insert(id, Arc::downgrade(&volume));
        Ok(volume)
    }

    fn begin(&self, id: VolumeId) -> Result<Busy<'_>> {
        let mut open = self.open.lock();
        let is_open = open.volumes.get(&id).and_then(Weak::upgrade).is_some_and(|v| !v.is_closed());
        if is_open || !open.opening.insert(id) {
            return Err(Error::conflict(format!("volume {id} is open, or being opened or deleted")));
        }
        Ok(Busy { driver: self, id })
    }

    /// Deletes a volume that is not open: puts the `deleted` Manifest, drops its journal records
    /// and index, removes its objects. May be called again after a crash or an error.
    /// Returns when no object but Manifests is left; [`Driver::purge`] removes those later.
    pub async fn delete(&self, pool: &Pool, id: VolumeId, epoch: Epoch) -> Result<()> {
        let _busy = self.begin(id)?;
        match self.mark_deleted(pool, id, epoch).await {
            Err(e) if e.kind == ErrorKind::NotFound => {}
            outcome => outcome?,
        }
        self.home.journal.forget(id);
        self.home.left.settle(id);
        index::forget(&*self.home.table, id)?;
        let objects = reclaim::delete_data(&*pool.store, id).await?;
        self.home.created.lock().remove(&id);
        tracing::info!(volume = %id, objects, "volume deleted");
        Ok(())
    }

    async fn mark_deleted(&self, pool: &Pool, id: VolumeId, epoch: Epoch) -> Result<()> {
        loop {
            let mut chain = Chain::newest(&pool.store, id).await?;
            if chain.current().kind == ManifestKind::Deleted {
                return Ok(());
            }
            let mut deleted = chain.successor(ManifestKind::Deleted);
            deleted.epoch = epoch.max(chain.current().epoch.next());
            deleted.writer = self.home.clock.random_u128();
            deleted.deleted_at = self.home.clock.unix_time().as_secs();
            deleted.tlogs.clear();
            deleted.pages.clear();
            deleted.snapshots.clear();
            match chain.put(deleted).await {
                Err(e) if e.kind == ErrorKind::Conflict => continue,
                outcome => return outcome,
            }
        }
    }

    /// Removes the Manifests of a deleted volume, once nobody can be left who writes to it. A
    /// volume that is not deleted is `Conflict`.
    pub async fn purge(&self, pool: &Pool, id: VolumeId) -> Result<()> {
        match Chain::newest(&pool.store, id).await {
            Ok(chain) if chain.current().kind != ManifestKind::Deleted => {
                return Err(Error::conflict(format!("volume {id} is not deleted")));
            }
            Ok(_) => {}
            Err(e) if e.kind == ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e),
        }
        reclaim::delete_data(&*pool.store, id).await?;
        let manifests = common::object::list_all(&*pool.store, &keys::manifest_prefix(id)).await?;
        // The oldest first, which is the last of the listing: the newest says "deleted" to the end.
        for object in manifests.iter().rev() {
            pool.store.delete(&object.key).await?;
        }
        Ok(())
    }

    /// Every volume of a vPool that is not deleted, from the newest Manifests: for adoption.
    pub async fn images(&self, pool: &Pool) -> Result<Vec<ImageInfo>> {
        let mut ids = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let page = pool.store.list("", after.as_deref(), true, 1000).await?;
            ids.extend(page.prefixes.iter().filter_map(|p| keys::parse_volume_prefix(p).ok()));
            match page.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        let images: Vec<Option<ImageInfo>> = futures::stream::iter(ids)
            .map(|id| async move {
                match Chain::newest(&pool.store, id).await {
                    Ok(chain) => Ok(Self::image(chain.current())),
                    // Remains of a volume whose Manifests are gone.
                    Err(e) if e.kind == ErrorKind::NotFound => Ok(None),
                    Err(e) => Err(e),
                }
            })
            .buffered(READS)
            .try_collect()
            .await?;
        Ok(images.into_iter().flatten().collect())
    }

    fn image(manifest: &Manifest) -> Option<ImageInfo> {
        (manifest.kind != ManifestKind::Deleted).then(|| ImageInfo {
            id: manifest.volume,
            name: manifest.name.clone(),
            size: manifest.size,
            sco_size: manifest.sco_size,
            epoch: manifest.epoch,
            parent: manifest.parent,
        })
    }

    /// Why the write buffer makes writers wait, or has failed; `None` when all is well.
    pub fn journal_problem(&self) -> Option<String> {
        self.home.journal.problem()
    }

    /// Why a part of the read cache is off, if it should not be.
    pub fn read_cache_problem(&self) -> Option<String> {
        self.home.cache.problem()
    }

    /// Bounds what the read cache holds of a volume, open or not; `None` for no bound. It holds until this process ends.
    pub fn set_cache_quota(&self, id: VolumeId, quota: Option<u64>) {
        self.home.cache.set_quota(id, quota);
    }

    /// Share of the write buffer that acknowledged and uncommitted data takes, 0.0 to 1.0.
    pub fn buffer_fill(&self) -> f64 {
        self.home.device.fill()
    }

    /// Stops: every open volume flushes and uploads what it can until `deadline` has passed. The result is which of them
    /// have everything on the backend.
    pub async fn shutdown(&self, deadline: Duration) -> HashSet<VolumeId> {
        let volumes: Vec<Arc<Volume>> = self.open.lock().volumes.values().filter_map(Weak::upgrade).collect();
        let until = self.home.clock.now() + deadline;
        let stops = volumes.iter().filter(|v| !v.is_closed()).map(|volume| async move {
            let left = until.saturating_sub(self.home.clock.now());
            if let Err(error) = volume.drain(left).await {
                tracing::warn!(volume = %volume.id(), %error, "stays in the write buffer until the next start");
            }
            volume.close().await.then(|| volume.id())
        });
        let drained: Vec<Option<VolumeId>> =
            futures::stream::iter(stops).buffer_unordered(64).collect().await;
        self.home.cache.close().await;
        self.home.journal.close().await;
        drained.into_iter().flatten().collect()
    }
}

/// A volume that is being opened or deleted; nobody else does either meanwhile.
struct Busy<'a> {
    driver: &'a Driver,
    id: VolumeId,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.driver.open.lock().opening.remove(&self.id);
    }
}

/// Whether a volume may have SCOs of this size.
fn check_sco_size(size: u32, cluster: u32) -> Result<()> {
    if !(1 << 20..=128 << 20).contains(&size) || !size.is_multiple_of(cluster) {
        return Err(Error::invalid(format!(
            "a SCO size of {size} bytes is not possible: 1 MiB to 128 MiB, a multiple of the cluster size ({cluster})"
        )));
    }
    Ok(())
}
