//! The keeper of a vPool: opens its object store and its volumes, resumes what a crash cut short,
//! and tries again what failed for a reason that may pass.

use super::Router;
use crate::registry::{Stored, VdiskLife, VdiskRecord, VpoolLife};
use crate::vdisk::{Claim, Phase, Vdisk};
use crate::vpool::{PoolPhase, Vpool};
use common::{Clock, Epoch, Error, ErrorKind, Result};
use futures::StreamExt;
use std::sync::Arc;
use std::time::Duration;
use volumedriver::{CreateVolume, Pool, Volume};

/// Tries of a registry change that meets another one.
const REGISTRY_TRIES: usize = 4;
const PURGE_PAUSE: Duration = Duration::from_secs(300);

/// Pauses between tries: doubling, with chance, up to a bound.
pub(super) struct Backoff {
    next: Duration,
    max: Duration,
}

impl Backoff {
    const MIN: Duration = Duration::from_millis(200);

    pub(super) fn new(max: Duration) -> Self {
        Self { next: Self::MIN.min(max), max }
    }

    /// The pause before the next try: between half and all of the present bound.
    pub(super) fn pause(&mut self, clock: &dyn Clock) -> Duration {
        let bound = self.next;
        self.next = (bound * 2).min(self.max);
        let micros = bound.as_micros() as u64;
        Duration::from_micros(micros / 2 + clock.random() % (micros / 2 + 1))
    }

    fn reset(&mut self) {
        self.next = Self::MIN.min(self.max);
    }
}

impl Router {
    /// Starts the keeper of a vPool.
    pub(super) fn keep(self: Arc<Self>, pool: Arc<Vpool>) -> Result<()> {
        let tasks = self.tasks.clone();
        tasks.spawn(format!("keep vPool {}", pool.name), async move {
            tokio::select! {
                biased;
                () = self.tasks.stopped() => {}
                () = self.keep_pool(&pool) => {}
            }
        })
    }

    // Everything that must not be cut in two by the end of this future runs in tasks of its own.
    async fn keep_pool(self: &Arc<Self>, pool: &Arc<Vpool>) {
        let mut backoff = Backoff::new(Duration::from_secs(self.settings.retry_seconds));
        while pool.pool().is_err() && !pool.is_gone() {
            match self.open_pool(pool).await {
                Ok(opened) => {
                    tracing::info!(vpool = %pool.name, "vPool is open");
                    pool.phase.send_if_modified(|phase| match phase {
                        PoolPhase::Gone => false,
                        _ => {
                            *phase = PoolPhase::Open(opened);
                            true
                        }
                    });
                }
                Err(error) => {
                    if pool.problem().is_none_or(|seen| !seen.message().ends_with(error.message())) {
                        tracing::warn!(vpool = %pool.name, %error, "can't open vPool; trying again");
                    }
                    pool.phase.send_if_modified(|phase| match phase {
                        PoolPhase::Gone => false,
                        _ => {
                            *phase = PoolPhase::Opening(Some(error));
                            true
                        }
                    });
                    self.pause(pool, backoff.pause(&*self.clock)).await;
                }
            }
        }
        backoff.reset();
        while !pool.is_gone() {
            if self.settle(pool).await {
                backoff.reset();
                pool.kick.notified().await;
            } else {
                self.pause(pool, backoff.pause(&*self.clock)).await;
            }
        }
    }

    async fn pause(&self, pool: &Vpool, pause: Duration) {
        tokio::select! {
            biased;
            () = self.clock.sleep(pause) => {}
            () = pool.kick.notified() => {}
        }
    }

    async fn open_pool(self: &Arc<Self>, pool: &Arc<Vpool>) -> Result<Pool> {
        let Stored { record, .. } = pool.stored();
        let opened = (self.stores.open)(record.backend.clone()).await?;
        pool.set_about(opened.description, opened.warning);
        let found = match Pool::open(opened.store.clone()).await {
            Ok(found) => found,
            // Its deletion got as far as its root before a crash.
            Err(error) if error.kind == ErrorKind::NotFound && record.state == VpoolLife::Deleting => {
                return Ok(Pool {
                    info: volumedriver::PoolInfo {
                        id: record.id.0,
                        name: pool.name.to_string(),
                        cluster_size: record.cluster_size,
                    },
                    store: opened.store,
                });
            }
            Err(error) => return Err(error),
        };
        if found.info.id != record.id.0 {
            return Err(Error::conflict(format!(
                "another vPool lies there: '{}' with id {:032x}, expected {}",
                found.info.name, found.info.id, record.id
            )));
        }
        if found.info.cluster_size != record.cluster_size {
            return Err(Error::corrupt(format!(
                "the vPool there has clusters of {} bytes, the registry says {}",
                found.info.cluster_size, record.cluster_size
            )));
        }
        Ok(found)
    }

    /// Brings the vDisks of an open vPool to where their records say; true when nothing is left
    /// that another try may change.
    async fn settle(self: &Arc<Self>, pool: &Arc<Vpool>) -> bool {
        if pool.stored().record.state == VpoolLife::Deleting {
            let by = pool.stored().record.deleted_by;
            if by.is_some_and(|name| name != *self.cluster.me() && self.cluster.node(&name).is_some()) {
                // That router is at it.
                return true;
            }
            let (router, subject) = (self.clone(), pool.clone());
            let work = async move { router.finish_vpool_delete(&subject).await };
            let result = self.tasks.run(format!("delete vPool {}", pool.name), work).await;
            if let Err(error) = &result {
                tracing::warn!(vpool = %pool.name, %error, "can't delete vPool yet; trying again");
            }
            return result.is_ok();
        }
        let unsettled: Vec<_> = self.unsettled(pool);
        self.claim_together(&unsettled).await;
        futures::stream::iter(unsettled)
            .for_each_concurrent(self.settings.parallel_opens, |vdisk| async move {
                let Ok(_permit) = self.opens.acquire().await else { return };
                let (router, subject, seen) = (self.clone(), vdisk.clone(), vdisk.tries());
                let work = async move {
                    router.advance(&subject, seen).await;
                    Ok(())
                };
                // Its only error is that the router stops.
                let _ = self.tasks.run(format!("open vDisk {vdisk}"), work).await;
            })
            .await;
        self.unsettled(pool).is_empty()
    }

    /// vDisks that are this router's, and not where they should be.
    fn unsettled(&self, pool: &Vpool) -> Vec<Arc<Vdisk>> {
        let mut vdisks = self.vdisks_of(&pool.name);
        vdisks.retain(|v| v.is_unsettled() && self.is_mine(v));
        vdisks
    }

    /// Changes the record of a vDisk whose `work` the caller holds.
    pub(super) async fn change_record(
        &self,
        vdisk: &Vdisk,
        change: impl Fn(&mut VdiskRecord),
    ) -> Result<VdiskRecord> {
        self.change_record_if(vdisk, |record| {
            change(record);
            Ok(())
        })
        .await
    }

    /// The same, where the record as it is then may be refused.
    pub(super) async fn change_record_if(
        &self,
        vdisk: &Vdisk,
        change: impl Fn(&mut VdiskRecord) -> Result<()>,
    ) -> Result<VdiskRecord> {
        let mut tries = REGISTRY_TRIES;
        loop {
            let Stored { mut record, revision } = vdisk.stored();
            change(&mut record)?;
            match self.records().put_vdisk(&vdisk.pool.name, &vdisk.name, &record, revision).await {
                Ok(revision) => {
                    vdisk.set_stored(Stored { record: record.clone(), revision });
                    return Ok(record);
                }
                Err(error) if error.kind == ErrorKind::Conflict && tries > 1 => {
                    tries -= 1;
                    match self.records().vdisk(&vdisk.pool.name, &vdisk.name).await? {
                        Some(now) if now.record.id == vdisk.id => {
                            vdisk.set_stored(now);
                        }
                        _ => {
                            return Err(Error::not_found(format!(
                                "the registry has no vDisk '{vdisk}' any more"
                            )));
                        }
                    }
                }
                Err(error) => return Err(error.context(format!("vDisk '{vdisk}'"))),
            }
        }
    }

    /// Does what is next for a vDisk that does not serve: completes its creation, opens it, or
    /// resumes its deletion. Does nothing when another try ended since `seen`. The outcome is the
    /// vDisk's phase.
    pub(super) async fn advance(self: &Arc<Self>, vdisk: &Arc<Vdisk>, seen: u64) {
        let _work = vdisk.work.lock().await;
        if vdisk.tries() != seen || vdisk.volume().is_some() {
            return;
        }
        let pool = match vdisk.pool.pool() {
            Ok(pool) => pool,
            Err(error) => return vdisk.tried(Phase::Failed(error)),
        };
        let state = vdisk.stored().record.state;
        let result = match state {
            VdiskLife::Deleting => self.finish_delete(vdisk, &pool).await,
            // Somebody is about to decide.
            _ if matches!(vdisk.phase(), Phase::Leaving) => return,
            VdiskLife::Creating => match self.finish_create(vdisk, &pool).await {
                Ok(()) => self.open_volume(vdisk, &pool).await,
                Err(error) => Err(error),
            },
            VdiskLife::Active => self.open_volume(vdisk, &pool).await,
        };
        if let Err(error) = result {
            let what = match state {
                VdiskLife::Deleting => "delete",
                VdiskLife::Creating => "create",
                VdiskLife::Active => "open",
            };
            tracing::warn!(vdisk = %vdisk, volume = %vdisk.id, %error, "can't {what} vDisk");
            vdisk.tried(Phase::Failed(error));
        }
    }

    /// Opens the volume under a new epoch; the caller holds `work`.
    pub(super) async fn open_volume(self: &Arc<Self>, vdisk: &Arc<Vdisk>, pool: &Pool) -> Result<()> {
        let claim = self.claim(vdisk).await?;
        self.open_claimed(vdisk, pool, &claim, false).await
    }

    /// Opens what was claimed; the caller holds `work`. What can't be opened is given back: somebody else may have what
    /// this router lacks.
    pub(super) async fn open_claimed(
        self: &Arc<Self>,
        vdisk: &Arc<Vdisk>,
        pool: &Pool,
        claim: &Claim,
        forced: bool,
    ) -> Result<()> {
        let opening = self.opening(claim, forced);
        self.driver.set_cache_quota(vdisk.id, vdisk.stored().record.cache_quota);
        let epoch = claim.volume.registration.claimed;
        match self.driver.take_over(pool, vdisk.id, epoch, &opening).await {
            Ok(volume) => {
                self.opened(vdisk, volume).await;
                Ok(())
            }
            Err(error) => {
                self.release(std::slice::from_ref(vdisk)).await;
                Err(match error.kind {
                    // Those who did not answer may be back: it is tried again.
                    ErrorKind::Denied => Error::unavailable(error.message()),
                    _ => error,
                })
            }
        }
    }

    /// A volume is open: it serves, and the registry learns what it says; the caller holds `work`.
    pub(super) async fn opened(self: &Arc<Self>, vdisk: &Arc<Vdisk>, volume: Arc<Volume>) {
        let status = volume.status();
        tracing::info!(vdisk = %vdisk, volume = %vdisk.id, epoch = status.epoch.0, "vDisk is open");
        vdisk.tried(Phase::Open(volume.clone()));
        // After that: who loses the seat looks for what is open.
        self.expel_if_lost(vdisk);
        if let Err(error) = self.resume_leaving(vdisk, &volume) {
            tracing::warn!(vdisk = %vdisk, %error, "can't go on deleting snapshots");
        }
        self.relearn_volume(vdisk).await;
        // The log may know a size that was changed right before a crash. The registry is told; when it can't be, the
        // next open finds out again.
        if vdisk.stored().record.size != status.size
            && let Err(error) = self.change_record(vdisk, |record| record.size = status.size).await
        {
            tracing::warn!(vdisk = %vdisk, %error, "can't note the size in the registry");
        }
    }

    /// Completes a creation, or turns it into a deletion when it can't be; the caller holds `work`.
    pub(super) async fn finish_create(self: &Arc<Self>, vdisk: &Arc<Vdisk>, pool: &Pool) -> Result<()> {
        let record = vdisk.stored().record;
        let spec = CreateVolume {
            id: vdisk.id,
            name: vdisk.name.to_string(),
            size: record.size,
            sco_size: record.sco_size,
            epoch: Epoch(1),
            parent: record.parent.map(Into::into),
        };
        match self.driver.create(pool, spec).await {
            Ok(()) => {}
            // The id is random and ours: an earlier try got that far.
            Err(error) if error.kind == ErrorKind::Conflict => {}
            Err(error) if error.kind.is_transient() => return Err(error),
            Err(error) => {
                self.change_record(vdisk, |record| record.state = VdiskLife::Deleting).await?;
                vdisk.pool.kick.notify_one();
                return Err(error);
            }
        }
        self.change_record(vdisk, |record| record.state = VdiskLife::Active).await?;
        Ok(())
    }

    /// Removes the objects of a vDisk and then its record; the caller holds `work`.
    pub(super) async fn finish_delete(self: &Arc<Self>, vdisk: &Arc<Vdisk>, pool: &Pool) -> Result<()> {
        let stored = vdisk.stored();
        let epoch = vdisk.owned().record.registration.claimed;
        match self.driver.delete(pool, vdisk.id, epoch).await {
            Ok(()) => {}
            // Nothing of it ever reached the object store, or nothing is left.
            Err(error) if error.kind == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let now = self.clock.unix_time().as_secs();
        self.records().bury_vdisk(&vdisk.pool.name, &vdisk.name, &stored, now).await?;
        {
            // Its name may be another one's by now.
            let mut catalog = self.catalog.write();
            let names = (vdisk.pool.name.clone(), vdisk.name.clone());
            if catalog.vdisks.get(&names).is_some_and(|known| known.id == vdisk.id) {
                catalog.vdisks.remove(&names);
            }
        }
        vdisk.tried(Phase::Leaving);
        tracing::info!(vdisk = %vdisk, volume = %vdisk.id, "vDisk is deleted");
        Ok(())
    }

    /// Removes the last traces of deleted vDisks when their grace is over, until the router stops.
    pub(super) async fn purge(self: Arc<Self>) {
        while self.tasks.sleep(&*self.clock, PURGE_PAUSE).await {
            for vpool in self.pools() {
                let Ok(pool) = vpool.pool() else { continue };
                if let Err(error) = self.purge_pool(&vpool, &pool).await {
                    tracing::warn!(vpool = %vpool.name, %error, "can't remove what is left of deleted vDisks");
                }
            }
        }
    }

    async fn purge_pool(&self, vpool: &Vpool, pool: &Pool) -> Result<()> {
        let now = self.clock.unix_time().as_secs();
        let _members = vpool.members.read().await;
        for (id, record, revision) in self.records().deleted(&vpool.name).await? {
            if now.saturating_sub(record.deleted_at) < self.settings.purge_after_seconds {
                continue;
            }
            match self.driver.purge(pool, id).await {
                Ok(()) => self.records().forget_deleted(&vpool.name, id, revision).await?,
                // The put of its first Manifest was thought lost and came late: delete it again.
                Err(error) if error.kind == ErrorKind::Conflict => {
                    self.driver.delete(pool, id, Epoch(1)).await?;
                }
                Err(error) => return Err(error.context(format!("volume {id}, once '{}'", record.name))),
            }
        }
        Ok(())
    }
}
