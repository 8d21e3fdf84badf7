//! vDisks: create, resize, drain, scrub, delete.

use super::Router;
use super::vpools::named;
use crate::registry::{Stored, VdiskLife, VdiskRecord, VolumeRecord, VpoolLife};
use crate::sizes;
use crate::vdisk::{Phase, Vdisk, VdiskInfo};
use crate::vpool::Vpool;
use common::error::Context;
use common::{Error, ErrorKind, Name, Result, VolumeId};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::MutexGuard;
use volumedriver::{Effort, Scrubbed, Volume};

/// How long work that nobody waits for may take.
const IN_BACKGROUND: Duration = Duration::from_secs(3600);

/// What a new vDisk is.
#[derive(Debug, Clone)]
pub struct CreateVdisk {
    /// Name or id of its vPool.
    pub vpool: String,
    /// Its name.
    pub name: Name,
    /// Bytes: a multiple of the vPool's cluster size, one cluster to 64 TiB.
    pub size: u64,
    /// Bytes of clusters in one SCO; [`sizes::DEFAULT_SCO_SIZE`] unless said otherwise.
    pub sco_size: Option<u32>,
}

impl Router {
    /// Makes a vDisk and opens it. When only the opening fails the vDisk exists, and its state says
    /// why; it is tried again by itself.
    pub async fn create_vdisk(self: &Arc<Self>, spec: CreateVdisk) -> Result<VdiskInfo> {
        let router = self.clone();
        let name = format!("create vDisk {}", spec.name);
        self.tasks.run(name, async move { router.do_create_vdisk(spec).await }).await
    }

    async fn do_create_vdisk(self: &Arc<Self>, spec: CreateVdisk) -> Result<VdiskInfo> {
        let vpool = self.find_pool(&spec.vpool)?;
        let _members = vpool.members.read().await;
        let cluster_size = vpool.stored().record.cluster_size;
        let sco_size = spec.sco_size.unwrap_or(sizes::DEFAULT_SCO_SIZE);
        sizes::check_size(spec.size, cluster_size)?;
        sizes::check_sco_size(sco_size, cluster_size)?;
        let id = VolumeId(self.clock.random_u128());
        let record = VdiskRecord::new(id, spec.size, sco_size);
        self.add_vdisk(&vpool, spec.name, record, None).await
    }

    /// Makes a vDisk as the record says and opens it; the caller holds `members` of the vPool. A clone comes
    /// with its parent's name and revision, and the lock that it gives back once the clone is known.
    pub(super) async fn add_vdisk(
        self: &Arc<Self>,
        vpool: &Arc<Vpool>,
        name: Name,
        mut record: VdiskRecord,
        parent: Option<(&Name, u64, MutexGuard<'_, ()>)>,
    ) -> Result<VdiskInfo> {
        let Stored { record: vpool_record, revision: vpool_revision } = vpool.stored();
        if vpool_record.state == VpoolLife::Deleting || vpool.is_gone() {
            return Err(Error::conflict(format!("vPool '{}' is being deleted", vpool.name)));
        }
        let exists = || Error::conflict(format!("vDisk '{}/{name}' exists already", vpool.name));
        if self.find_vdisk(vpool.name.as_str(), name.as_str()).is_ok() {
            return Err(exists());
        }
        let pool = vpool.pool()?;
        record.state = VdiskLife::Creating;
        let unchanged = parent.as_ref().map(|(name, revision, _)| (*name, *revision));
        let dtl = self.cluster.default_config(self.settings.dtl);
        let volume =
            VolumeRecord::created(vpool.name.clone(), name.clone(), self.cluster.incarnation()?, dtl);
        let new = (name.clone(), record, volume);
        let added = self.records().add_vdisk(&vpool.name, vpool_revision, &new, unchanged).await;
        let revision = match added {
            Ok(revision) => revision,
            Err(error) if error.kind == ErrorKind::Conflict => {
                let there = self.records().vdisk(&vpool.name, &name).await?.is_some();
                return Err(if there { exists() } else { error });
            }
            Err(error) => return Err(error),
        };
        let (_, record, volume) = new;
        // The registry may have told this router of it already.
        let (stored, volume) = (Stored { record, revision }, Stored { record: volume, revision });
        let vdisk = self.know_vdisk(vpool, name, stored, volume);
        let _work = vdisk.work.lock().await;
        drop(parent);

        if vdisk.volume().is_some() {
            return Ok(self.info(&vdisk));
        }
        if vdisk.stored().record.state == VdiskLife::Creating
            && let Err(error) = self.finish_create(&vdisk, &pool).await
        {
            self.undo_create(&vdisk, &pool).await;
            return Err(error.context(format!("vDisk '{vdisk}' was not created")));
        }
        if let Err(error) = self.open_volume(&vdisk, &pool).await {
            tracing::warn!(vdisk = %vdisk, %error, "can't open the new vDisk");
            vdisk.tried(Phase::Failed(error));
            vpool.kick.notify_one();
        }
        Ok(self.info(&vdisk))
    }

    /// Takes back a creation that failed; what can't be taken back now is resumed by the keeper.
    async fn undo_create(self: &Arc<Self>, vdisk: &Arc<Vdisk>, pool: &volumedriver::Pool) {
        let undone = async {
            self.change_record_if(vdisk, |record| match record.state {
                VdiskLife::Active => Err(Error::conflict("another router has completed it")),
                _ => {
                    record.state = VdiskLife::Deleting;
                    Ok(())
                }
            })
            .await?;
            vdisk.stay(Phase::Leaving);
            self.finish_delete(vdisk, pool).await
        };
        if let Err(error) = undone.await {
            tracing::warn!(vdisk = %vdisk, %error, "can't take back a failed creation yet; trying again");
            vdisk.tried(Phase::Failed(Error::unavailable(error.message())));
            vdisk.pool.kick.notify_one();
        }
    }

    /// Grows a vDisk, online. Clients that connect from now on see the new size.
    pub async fn resize_vdisk(self: &Arc<Self>, vpool: &str, name: &str, size: u64) -> Result<VdiskInfo> {
        let vdisk = self.find_vdisk(vpool, name)?;
        sizes::check_size(size, vdisk.pool.stored().record.cluster_size)?;
        self.serve(&vdisk).await?;
        let router = self.clone();
        let work = async move {
            let _work = vdisk.work.lock().await;
            let Some(volume) = vdisk.volume() else { return Err(vdisk.why_closed()) };
            vdisk.must_not_be_template()?;
            let present = volume.status().size;
            sizes::check_growth(present, size, vdisk.pool.stored().record.cluster_size)
                .context(format!("vDisk '{vdisk}'"))?;
            if size > present {
                volume.resize(size).await.context(format!("vDisk '{vdisk}'"))?;
            }
            // The log has the new size; the registry learns it now, or at the next open.
            if let Err(error) = router.change_record(&vdisk, |record| record.size = size).await {
                tracing::warn!(vdisk = %vdisk, %error, "can't note the new size in the registry");
            }
            Ok(router.info(&vdisk))
        };
        self.tasks.run(format!("resize vDisk {vpool}/{name}"), work).await
    }

    /// Makes a vDisk read-only, or writable, for clients that connect from now on.
    pub async fn set_read_only(
        self: &Arc<Self>,
        vpool: &str,
        name: &str,
        read_only: bool,
    ) -> Result<VdiskInfo> {
        let vdisk = self.find_vdisk(vpool, name)?;
        self.not_elsewhere(&vdisk)?;
        let router = self.clone();
        let task = format!("change vDisk {vdisk}");
        let work = async move {
            let _work = vdisk.work.lock().await;
            if !read_only {
                vdisk.must_not_be_template()?;
            }
            router.change_record(&vdisk, |record| record.read_only = read_only).await?;
            Ok(router.info(&vdisk))
        };
        self.tasks.run(task, work).await
    }

    /// Seals and uploads everything accepted before the call; `Unavailable` when `wait` passes
    /// first, and then it goes on by itself. Without `wait` it only begins.
    pub async fn drain_vdisk(
        self: &Arc<Self>,
        vpool: &str,
        name: &str,
        wait: Option<Duration>,
    ) -> Result<VdiskInfo> {
        let work = async move |volume: Arc<Volume>, wait| volume.drain(wait).await;
        Ok(self.long(vpool, name, "drain", wait, work).await?.0)
    }

    /// Gives back the space of what nobody reads any more; `Unavailable` when `wait` passes first, and then it
    /// goes on by itself. Without `wait` it only begins; [`VolumeStatus::scrub`] tells how far it is.
    ///
    /// [`VolumeStatus::scrub`]: volumedriver::VolumeStatus
    pub async fn scrub_vdisk(
        self: &Arc<Self>,
        vpool: &str,
        name: &str,
        effort: Effort,
        wait: Option<Duration>,
    ) -> Result<(VdiskInfo, Scrubbed)> {
        let work = async move |volume: Arc<Volume>, wait| volume.scrub(effort, wait).await;
        self.long(vpool, name, "scrub", wait, work).await
    }

    /// Does what takes long with a volume, or begins it when there is no `wait`.
    async fn long<T, F>(
        self: &Arc<Self>,
        vpool: &str,
        name: &str,
        what: &'static str,
        wait: Option<Duration>,
        work: impl FnOnce(Arc<Volume>, Duration) -> F,
    ) -> Result<(VdiskInfo, T)>
    where
        T: Default + Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let vdisk = self.find_vdisk(vpool, name)?;
        self.serve(&vdisk).await?;
        let Some(volume) = vdisk.volume() else { return Err(vdisk.why_closed()) };
        let mut done = T::default();
        match wait {
            Some(wait) => done = work(volume, wait).await.context(format!("vDisk '{vdisk}'"))?,
            None => {
                let (tasks, subject, work) = (self.tasks.clone(), vdisk.clone(), work(volume, IN_BACKGROUND));
                self.tasks.spawn(format!("{what} vDisk {vdisk}"), async move {
                    tokio::select! {
                        biased;
                        () = tasks.stopped() => {}
                        result = work => if let Err(error) = result {
                            tracing::warn!(vdisk = %subject, %error, "{what}");
                        }
                    }
                })?;
            }
        }
        Ok((self.info(&vdisk), done))
    }

    /// Deletes a vDisk, its snapshots and its objects. One that has clones is refused, with their names. One
    /// that is in use is refused unless `force`; then the requests of its clients fail from now on.
    pub async fn delete_vdisk(self: &Arc<Self>, vpool: &str, name: &str, force: bool) -> Result<()> {
        let vdisk = self.find_vdisk(vpool, name)?;
        let router = self.clone();
        let task = format!("delete vDisk {vdisk}");
        self.tasks.run(task, async move { router.do_delete_vdisk(&vdisk, force).await }).await
    }

    async fn do_delete_vdisk(self: &Arc<Self>, vdisk: &Arc<Vdisk>, force: bool) -> Result<()> {
        let _work = vdisk.work.lock().await;
        if self.find_vdisk(vdisk.pool.name.as_str(), vdisk.name.as_str()).is_err() {
            return Ok(());
        }
        self.not_elsewhere(vdisk)?;
        let attached = vdisk.owned().record.attached;
        if let Some(client) = attached.first().filter(|_| vdisk.volume().is_none() && !force) {
            return Err(Error::new(
                ErrorKind::Denied,
                format!(
                    "vDisk '{vdisk}' is not deleted: it is attached by '{}' and not open now; use --force to take it away",
                    client.client
                ),
            ));
        }
        let pool = vdisk.pool.pool().context(format!("vDisk '{vdisk}' can't be deleted now"))?;
        let lineage = vdisk.pool.lineage.lock().await;
        let clones = self.clones(vdisk, None);
        if !clones.is_empty() {
            return Err(Error::new(
                ErrorKind::Denied,
                format!(
                    "vDisk '{vdisk}' is not deleted: {} clone(s) of it: {}; delete them first",
                    clones.len(),
                    named(clones.into_iter())
                ),
            ));
        }
        let before = vdisk.leave(force, "deleted")?;
        if let Err(error) = self.change_record(vdisk, |record| record.state = VdiskLife::Deleting).await {
            vdisk.stay(before);
            self.expel_if_lost(vdisk);
            return Err(error);
        }
        drop(lineage);
        vdisk.revoke();
        if let Phase::Open(volume) = before {
            volume.close().await;
        }
        if let Err(error) = self.finish_delete(vdisk, &pool).await {
            // It must go on, whatever the reason: nothing else may be done with this vDisk.
            vdisk.tried(Phase::Failed(Error::unavailable(error.message())));
            vdisk.pool.kick.notify_one();
            return Err(
                error.context(format!("vDisk '{vdisk}' is being deleted, and this goes on by itself"))
            );
        }
        Ok(())
    }
}
