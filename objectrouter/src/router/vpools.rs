//! vPools: create, adopt, delete, detach.

use super::{OpenedStore, Router};
use crate::registry::{NewVdisk, ParentRecord, Stored, VdiskRecord, VolumeRecord, VpoolLife, VpoolRecord};
use crate::sizes;
use crate::vdisk::{Phase, Vdisk};
use crate::vpool::{PoolPhase, Vpool, VpoolInfo};
use common::error::Context;
use common::object::list_all;
use common::{Error, ErrorKind, Name, Result, VolumeId};
use futures::StreamExt;
use serde_json::Value;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use volumedriver::{ImageInfo, Pool, PoolInfo, VolumeState};

/// What a new vPool is.
#[derive(Debug, Clone)]
pub struct CreateVpool {
    /// Its name here.
    pub name: Name,
    /// The backend specification.
    pub backend: Value,
    /// Bytes in a cluster; [`sizes::DEFAULT_CLUSTER_SIZE`] unless said otherwise. When adopting, what
    /// is expected to be found.
    pub cluster_size: Option<u32>,
    /// Open the vPool that lies there, with its vDisks, in place of making a new one.
    pub adopt: bool,
}

/// A vDisk found by an adoption.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adopted {
    /// Its name from now on.
    pub name: Name,
    /// Identity of its volume.
    pub id: VolumeId,
    /// The name in the image, when another had to be taken.
    pub renamed_from: Option<String>,
}

/// How many names an error lists.
const NAMED: usize = 5;
/// Objects deleted at a time.
const DELETES: usize = 16;

/// Some of the names, and how many more there are.
pub(super) fn named<T: ToString>(names: impl ExactSizeIterator<Item = T>) -> String {
    let count = names.len();
    let mut text = names.take(NAMED).map(|n| format!("'{}'", n.to_string())).collect::<Vec<_>>().join(", ");
    if count > NAMED {
        text.push_str(&format!(" and {} more", count - NAMED));
    }
    text
}

/// A valid name for each image, all different: its own where that can be.
pub(super) fn adopted_names(images: &[ImageInfo]) -> Vec<Adopted> {
    let mut order: Vec<_> = images.iter().collect();
    order.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
    // Names that images have in their own right are not given to others.
    let own: BTreeSet<&str> = images.iter().map(|i| i.name.as_str()).collect();
    let mut taken = BTreeSet::new();
    let mut adopted = Vec::with_capacity(order.len());
    for image in order {
        let mut name = image.name.parse::<Name>().ok().filter(|name| !taken.contains(name));
        let valid = image.name.parse::<Name>().is_ok();
        let base = if valid { image.name.clone() } else { format!("vdisk-{:.8}", image.id.to_string()) };
        let mut suffix = if valid { 2 } else { 1 };
        while name.is_none() {
            let tail = if suffix == 1 { String::new() } else { format!("-{suffix}") };
            let head: String = base.chars().take(Name::MAX - tail.len()).collect();
            let candidate = format!("{head}{tail}");
            name = candidate
                .parse::<Name>()
                .ok()
                .filter(|name| !taken.contains(name) && !own.contains(name.as_str()));
            suffix += 1;
        }
        let Some(name) = name else { continue };
        taken.insert(name.clone());
        let renamed_from = (name.as_str() != image.name).then(|| image.name.clone());
        adopted.push(Adopted { name, id: image.id, renamed_from });
    }
    adopted
}

/// Whether the key lies in the folder of a volume: `{32 hexadecimal digits}/...`.
fn is_volume_key(key: &str) -> bool {
    key.split_once('/').is_some_and(|(volume, _)| volume.parse::<VolumeId>().is_ok())
}

impl Router {
    /// Makes a vPool on an empty place, or adopts the one that lies there.
    pub async fn create_vpool(self: &Arc<Self>, spec: CreateVpool) -> Result<(VpoolInfo, Vec<Adopted>)> {
        let router = self.clone();
        let name = format!("create vPool {}", spec.name);
        self.tasks.run(name, async move { router.do_create_vpool(spec).await }).await
    }

    async fn do_create_vpool(self: &Arc<Self>, spec: CreateVpool) -> Result<(VpoolInfo, Vec<Adopted>)> {
        let _admin = self.admin.lock().await;
        if let Some(size) = spec.cluster_size {
            sizes::check_cluster_size(size)?;
        }
        if self.catalog.read().vpools.contains_key(&spec.name) {
            return Err(Error::conflict(format!("vPool '{}' exists already", spec.name)));
        }
        let OpenedStore { store, description, warning } = (self.stores.attach)(spec.backend.clone()).await?;
        let (pool, images) = if spec.adopt {
            let pool = Pool::open(store).await.context(format!("vPool '{}' was not adopted", spec.name))?;
            self.check_adoption(&spec, &pool)?;
            let images = self.driver.images(&pool).await?;
            (pool, images)
        } else {
            let info = PoolInfo {
                id: self.clock.random_u128(),
                name: spec.name.to_string(),
                cluster_size: spec.cluster_size.unwrap_or(sizes::DEFAULT_CLUSTER_SIZE),
            };
            match Pool::create(store.clone(), info, self.clock.unix_time()).await {
                Ok(pool) => (pool, Vec::new()),
                Err(error) if error.kind == ErrorKind::Conflict => {
                    let hint = match Pool::open(store).await {
                        Ok(_) => "; use --adopt to open it with its vDisks",
                        Err(_) => {
                            "; a vPool needs a place of its own: give another folder, bucket or prefix \
                                   (--adopt opens a vPool that lies there already)"
                        }
                    };
                    let message = error.message();
                    return Err(Error::conflict(format!(
                        "vPool '{}' was not created: {message}{hint}",
                        spec.name
                    )));
                }
                Err(error) => return Err(error.context(format!("vPool '{}' was not created", spec.name))),
            }
        };
        let adopted = adopted_names(&images);
        let vdisks: Vec<NewVdisk> = adopted
            .iter()
            .filter_map(|adopted| {
                let image = images.iter().find(|image| image.id == adopted.id)?;
                let mut record = VdiskRecord::new(image.id, image.size, image.sco_size);
                record.parent = image.parent.map(ParentRecord::from);
                // What this router's write buffer still has of it counts; nobody else is known to have anything.
                let names = (spec.name.clone(), adopted.name.clone());
                let (me, journal) = (self.cluster.me().clone(), self.cluster.write_buffer().clone());
                let dtl = self.cluster.default_config(self.settings.dtl);
                let volume = VolumeRecord::found(names, image.epoch, me, journal, dtl);
                Some((adopted.name.clone(), record, volume))
            })
            .collect();
        let record = VpoolRecord::new(pool.info.id, spec.backend, pool.info.cluster_size, warning.clone());
        let revision = match self.records().add_vpool(&spec.name, &record, &vdisks).await {
            Ok(revision) => revision,
            Err(error) => {
                // Leave the place as it was found, unless the registry may have it after all.
                if !spec.adopt && !error.kind.is_transient() {
                    pool.store.delete("vpool").await?;
                }
                return Err(error.context(format!("vPool '{}' was not created", spec.name)));
            }
        };
        // The registry may have told this router of them already.
        let vpool = self.know_vpool(spec.name, Stored { record, revision }, PoolPhase::Open(pool))?;
        vpool.set_about(description, warning);
        for (name, record, volume) in vdisks {
            self.know_vdisk(&vpool, name, Stored { record, revision }, Stored { record: volume, revision });
        }
        vpool.kick.notify_one();
        Ok((vpool.info(adopted.len()), adopted))
    }

    fn check_adoption(&self, spec: &CreateVpool, pool: &Pool) -> Result<()> {
        let found = &pool.info;
        if let Some(other) = self.pools().iter().find(|p| p.stored().record.id.0 == found.id) {
            return Err(Error::conflict(format!("that vPool is here already, as '{}'", other.name)));
        }
        match spec.cluster_size {
            Some(size) if size != found.cluster_size => Err(Error::invalid(format!(
                "the vPool there has clusters of {} bytes, not {size}",
                found.cluster_size
            ))),
            _ => Ok(()),
        }
    }

    /// Deletes an empty vPool: the object store is left without it.
    pub async fn delete_vpool(self: &Arc<Self>, name: &str) -> Result<()> {
        let vpool = self.find_pool(name)?;
        let router = self.clone();
        let task = format!("delete vPool {}", vpool.name);
        self.tasks.run(task, async move { router.do_delete_vpool(&vpool).await }).await
    }

    async fn do_delete_vpool(self: &Arc<Self>, vpool: &Arc<Vpool>) -> Result<()> {
        let _admin = self.admin.lock().await;
        {
            let _members = vpool.members.write().await;
            let vdisks = self.vdisks_of(&vpool.name);
            if !vdisks.is_empty() {
                return Err(Error::conflict(format!(
                    "vPool '{}' has {} vDisk(s): {}; delete them first, or use --detach to forget the vPool \
                     here and leave its data where it is",
                    vpool.name,
                    vdisks.len(),
                    named(vdisks.iter().map(|v| v.name.clone()))
                )));
            }
            let pool = vpool.pool().context("use --detach to forget it here")?;
            let images = self.driver.images(&pool).await?;
            if !images.is_empty() {
                return Err(Error::conflict(format!(
                    "the object store of vPool '{}' has {} vDisk(s) that this storage router does not know: {}; \
                     use --detach, and adopt the vPool to get at them",
                    vpool.name,
                    images.len(),
                    named(images.iter().map(|i| i.name.clone()))
                )));
            }
            let Stored { mut record, revision } = vpool.stored();
            record.state = VpoolLife::Deleting;
            record.deleted_by = Some(self.cluster.me().clone());
            let revision = self.records().put_vpool(&vpool.name, &record, revision).await?;
            vpool.set_stored(Stored { record, revision });
        }
        let result = self.finish_vpool_delete(vpool).await;
        vpool.kick.notify_one();
        result.context(format!("vPool '{}' is being deleted, and this goes on by itself", vpool.name))
    }

    /// Removes what is left of a vPool without vDisks, its root last, and then its record.
    pub(super) async fn finish_vpool_delete(&self, vpool: &Vpool) -> Result<()> {
        let _members = vpool.members.write().await;
        if vpool.is_gone() {
            return Ok(());
        }
        let pool = vpool.pool()?;
        // Somebody else may have ended it, and the place may be another vPool's now.
        let stored = vpool.stored();
        self.cluster.seat()?;
        match self.records().vpool(&vpool.name).await? {
            Some(now) if now.record.id == stored.record.id && now.record.state == VpoolLife::Deleting => {}
            _ => return Ok(()),
        }
        match Pool::open(pool.store.clone()).await {
            Ok(found) if found.info.id != stored.record.id.0 => {
                return Err(Error::conflict(format!("another vPool lies where '{}' was", vpool.name)));
            }
            Err(error) if error.kind != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let objects = list_all(&*pool.store, "").await?;
        let rest: Vec<_> = objects.into_iter().map(|o| o.key).filter(|key| is_volume_key(key)).collect();
        let store = &pool.store;
        let mut deletes = futures::stream::iter(rest)
            .map(|key| async move { store.delete(&key).await })
            .buffer_unordered(DELETES);
        while let Some(deleted) = deletes.next().await {
            deleted?;
        }
        drop(deletes);
        pool.store.delete("vpool").await?;
        self.records().remove_vpool(&vpool.name, vpool.stored().revision, &[]).await?;
        self.forget(vpool);
        Ok(())
    }

    /// Forgets a vPool and its vDisks here and leaves the data on the object store. Without `force`
    /// nobody may use them, and everything acknowledged is uploaded first.
    pub async fn detach_vpool(self: &Arc<Self>, name: &str, force: bool) -> Result<()> {
        let vpool = self.find_pool(name)?;
        let router = self.clone();
        let task = format!("detach vPool {}", vpool.name);
        self.tasks.run(task, async move { router.do_detach_vpool(&vpool, force).await }).await
    }

    async fn do_detach_vpool(self: &Arc<Self>, vpool: &Arc<Vpool>, force: bool) -> Result<()> {
        let _admin = self.admin.lock().await;
        let _members = vpool.members.write().await;
        let vdisks = self.vdisks_of(&vpool.name);
        let mut work = Vec::with_capacity(vdisks.len());
        let mut left: Vec<(&Arc<Vdisk>, Phase)> = Vec::with_capacity(vdisks.len());
        let result = async {
            for vdisk in &vdisks {
                work.push(vdisk.work.lock().await);
                // Also by force: it would go on serving what the registry has forgotten.
                self.not_elsewhere(vdisk).context("move it here first (storagerouter vdisk move)")?;
                if !force && vdisk.volume().is_none() {
                    return Err(Error::new(
                        ErrorKind::Denied,
                        format!(
                            "vDisk '{vdisk}' is not open, so it is not known whether all of its data is on the \
                             object store; wait until it is, or use --force"
                        ),
                    ));
                }
                left.push((vdisk, vdisk.leave(force, "detached")?));
            }
            for (vdisk, phase) in &left {
                let Phase::Open(volume) = phase else { continue };
                if force {
                    vdisk.revoke();
                }
                let serves = volume.status().state == VolumeState::Serving;
                let deadline = Duration::from_secs(self.settings.detach_drain_seconds);
                let drained = if serves || !force {
                    volume.drain(deadline).await
                } else {
                    Err(Error::unavailable("it can't send to the object store"))
                };
                match drained {
                    Ok(()) => {}
                    Err(error) if force => {
                        tracing::warn!(vdisk = %vdisk, %error, "detached with unsent data, as was forced");
                    }
                    Err(error) => {
                        return Err(error.context(format!(
                            "vDisk '{vdisk}' has data that is not on the object store; wait, or use --force to \
                             leave it behind"
                        )));
                    }
                }
            }
            let records: Vec<_> = vdisks.iter().map(|v| (v.name.clone(), v.id, v.stored().revision)).collect();
            self.records().remove_vpool(&vpool.name, vpool.stored().revision, &records).await
        }
        .await;
        if let Err(error) = result {
            for (vdisk, phase) in left {
                vdisk.stay(phase);
            }
            return Err(error.context(format!("vPool '{}' was not detached", vpool.name)));
        }
        for (vdisk, phase) in left {
            vdisk.revoke();
            if let Phase::Open(volume) = phase {
                volume.close().await;
            }
        }
        self.forget(vpool);
        Ok(())
    }

    pub(super) fn forget(&self, vpool: &Vpool) {
        let mut catalog = self.catalog.write();
        catalog.vdisks.retain(|(pool, _), _| *pool != vpool.name);
        catalog.vpools.remove(&vpool.name);
        drop(catalog);
        vpool.phase.send_replace(PoolPhase::Gone);
        vpool.kick.notify_one();
    }
}
