//! Snapshots of vDisks, clones of snapshots, rollback, templates.
//!
//! A snapshot lives in its volume; that a clone depends on it is in the record of the clone. Making a clone
//! asserts the revision of its parent's record, and whoever takes a snapshot away changes that record
//! first: so of the two one fails, on whatever router they run.

use super::Router;
use super::vpools::named;
use crate::registry::{ParentRecord, SnapshotId, Stored, VdiskLife, VdiskRecord};
use crate::vdisk::{Phase, Vdisk, VdiskInfo};
use bytes::Bytes;
use common::error::Context;
use common::{BlockDevice, Error, ErrorKind, Name, Result, VolumeId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use volumedriver::{Description, SnapshotChange, SnapshotInfo, Volume};

/// How long the backend has to take what a clone, a rollback or a deletion needs to be there.
const PATIENCE: Duration = Duration::from_secs(60);
/// The name of the snapshot that a template is.
const TEMPLATE: &str = "template";
/// The most bytes that may be attached to a snapshot.
const MAX_METADATA: usize = 4096;
/// The most vDisks in one group.
const MAX_GROUP: usize = 64;

/// What a new snapshot is.
#[derive(Debug, Clone)]
pub struct TakeSnapshot {
    /// Its name, unique in its vDisk.
    pub name: Name,
    /// Whether the guest has nothing in flight.
    pub consistent: bool,
    /// Whether schedules leave it alone.
    pub sticky: bool,
    /// Anything, at most 4,096 bytes.
    pub metadata: Bytes,
}

/// Other words about a snapshot; `None` leaves as it is.
#[derive(Debug, Clone, Default)]
pub struct DescribeSnapshot {
    /// Whether the guest had nothing in flight.
    pub consistent: Option<bool>,
    /// Whether schedules leave it alone.
    pub sticky: Option<bool>,
    /// Anything, at most 4,096 bytes.
    pub metadata: Option<Bytes>,
}

/// A snapshot, and who depends on it.
#[derive(Debug, Clone)]
pub struct SnapshotShown {
    /// What the volume says of it.
    pub info: SnapshotInfo,
    /// vDisks that are clones of it, in order of name.
    pub clones: Vec<Name>,
}

impl TakeSnapshot {
    fn check(&self) -> Result<()> {
        check_metadata(&self.metadata)
    }

    fn describe(&self, router: &Router) -> Description {
        Description {
            id: router.clock.random_u128(),
            name: self.name.to_string(),
            created_at: router.clock.unix_time().as_secs(),
            consistent: self.consistent,
            sticky: self.sticky,
            template: false,
            metadata: self.metadata.clone(),
        }
    }
}

fn check_metadata(metadata: &Bytes) -> Result<()> {
    match metadata.len() {
        0..=MAX_METADATA => Ok(()),
        n => Err(Error::invalid(format!("metadata of {n} bytes: at most {MAX_METADATA}"))),
    }
}

fn denied(text: String) -> Error {
    Error::new(ErrorKind::Denied, text)
}

impl Router {
    /// The vDisk and its open volume.
    pub(super) async fn open_vdisk(
        self: &Arc<Self>,
        vpool: &str,
        name: &str,
    ) -> Result<(Arc<Vdisk>, Arc<Volume>)> {
        let vdisk = self.find_vdisk(vpool, name)?;
        self.serve(&vdisk).await?;
        match vdisk.volume() {
            Some(volume) => Ok((vdisk, volume)),
            None => Err(vdisk.why_closed()),
        }
    }

    /// Takes a snapshot, also while the vDisk is in use, and while its backend is away.
    pub async fn take_snapshot(
        self: &Arc<Self>,
        vpool: &str,
        name: &str,
        spec: TakeSnapshot,
    ) -> Result<SnapshotShown> {
        let all = [(vpool.to_owned(), name.to_owned())];
        let mut taken = self.take_snapshots(&all, spec).await?;
        taken.pop().map(|(_, shown)| shown).ok_or_else(|| Error::internal("no snapshot was taken"))
    }

    /// Takes a snapshot of each vDisk, (vPool, name) each, under one name and at one instant. This router has to own all of them: an instant
    /// is one at which no client has an answer of any of them, and only their owner gives those.
    ///
    /// # Errors
    /// `Conflict`, with their names, when they have several owners; `NotOwner` when all of them have another one.
    pub async fn take_snapshots(
        self: &Arc<Self>,
        vdisks: &[(String, String)],
        spec: TakeSnapshot,
    ) -> Result<Vec<(VdiskInfo, SnapshotShown)>> {
        spec.check()?;
        if vdisks.is_empty() || vdisks.len() > MAX_GROUP {
            return Err(Error::invalid(format!("a group of {} vDisks: 1 to {MAX_GROUP}", vdisks.len())));
        }
        self.has_one_owner(vdisks)?;
        let mut open = Vec::with_capacity(vdisks.len());
        for (vpool, name) in vdisks {
            let (vdisk, volume) = self.open_vdisk(vpool, name).await?;
            if volume.template().is_some() {
                return Err(denied(format!("vDisk '{vdisk}' is a template: it does not change, clone it")));
            }
            if open.iter().any(|(other, _): &(Arc<Vdisk>, _)| other.id == vdisk.id) {
                return Err(Error::invalid(format!("vDisk '{vdisk}' is in the group twice")));
            }
            open.push((vdisk, volume));
        }
        let router = self.clone();
        let task = format!("take snapshot {}", spec.name);
        let work = async move {
            let about = |_: &_| spec.describe(&router);
            let group: Vec<_> = open.iter().map(|each| (each.1.clone(), about(each))).collect();
            Volume::snapshot_group(&group).await?;
            let shown = open.iter().zip(group).map(|((vdisk, volume), (_, about))| {
                let info = volume.find_snapshot(&about.name)?;
                tracing::info!(vdisk = %vdisk, snapshot = about.name, "snapshot taken");
                Ok((router.info(vdisk), SnapshotShown { info, clones: Vec::new() }))
            });
            shown.collect()
        };
        self.tasks.run(task, work).await
    }

    /// Fails where vDisks have several owners, and says how they get one.
    fn has_one_owner(&self, vdisks: &[(String, String)]) -> Result<()> {
        let mut owners: BTreeMap<Name, Vec<String>> = BTreeMap::new();
        for (vpool, name) in vdisks {
            let vdisk = self.find_vdisk(vpool, name)?;
            if let Some(owner) = self.successor(&vdisk) {
                owners.entry(owner).or_default().push(vdisk.to_string());
            }
        }
        // Where most of them are, the others go.
        let Some((most, _)) = owners.iter().max_by_key(|(_, vdisks)| vdisks.len()) else { return Ok(()) };
        let rest: Vec<_> = owners.iter().filter(|(owner, _)| *owner != most).collect();
        if rest.is_empty() {
            return Ok(());
        }
        let where_they_are: Vec<_> =
            owners.iter().map(|(owner, vdisks)| format!("'{owner}' has {}", vdisks.join(", "))).collect();
        let moves: Vec<_> = rest.iter().flat_map(|(_, vdisks)| vdisks.iter()).collect();
        Err(Error::conflict(format!(
            "one storage router has to own all vDisks of a group, so that all of them stand still at one instant: {}; move {} to '{most}' \
             first (storagerouter vdisk move NAME --to {most}); no snapshot was taken",
            where_they_are.join("; "),
            named(moves.into_iter())
        )))
    }

    /// The snapshots of a vDisk, the oldest first.
    pub async fn snapshots(self: &Arc<Self>, vpool: &str, name: &str) -> Result<Vec<SnapshotShown>> {
        let (vdisk, volume) = self.open_vdisk(vpool, name).await?;
        let shown =
            |info: SnapshotInfo| SnapshotShown { clones: self.clones(&vdisk, Some(info.about.id)), info };
        Ok(volume.snapshots().into_iter().map(shown).collect())
    }

    /// A snapshot by name or id.
    pub async fn snapshot(
        self: &Arc<Self>,
        vpool: &str,
        name: &str,
        snapshot: &str,
    ) -> Result<SnapshotShown> {
        let (vdisk, volume) = self.open_vdisk(vpool, name).await?;
        let info = volume.find_snapshot(snapshot).context(format!("vDisk '{vdisk}'"))?;
        Ok(SnapshotShown { clones: self.clones(&vdisk, Some(info.about.id)), info })
    }

    /// Changes what is said about a snapshot.
    pub async fn describe_snapshot(
        self: &Arc<Self>,
        vpool: &str,
        name: &str,
        snapshot: &str,
        words: DescribeSnapshot,
    ) -> Result<SnapshotShown> {
        let DescribeSnapshot { consistent, sticky, metadata } = words;
        metadata.as_ref().map_or(Ok(()), check_metadata)?;
        let change = SnapshotChange::Describe { consistent, sticky, metadata };
        let (vdisk, volume) = self.open_vdisk(vpool, name).await?;
        let found = volume.find_snapshot(snapshot).context(format!("vDisk '{vdisk}'"))?;
        volume.change_snapshot(found.about.id, change, PATIENCE).await.context(format!("vDisk '{vdisk}'"))?;
        self.snapshot(vpool, name, snapshot).await
    }

    /// The vDisks that are clones of a vDisk, or of one snapshot of it.
    pub(super) fn clones(&self, of: &Vdisk, snapshot: Option<u128>) -> Vec<Name> {
        let vdisks = self.vdisks_of(&of.pool.name).into_iter();
        let clones = vdisks.filter(|v| {
            let parent = v.stored().record.parent;
            parent.is_some_and(|p| p.volume == of.id && snapshot.is_none_or(|s| p.snapshot.0 == s))
        });
        clones.map(|v| v.name.clone()).collect()
    }

    /// Deletes a snapshot. `Denied`, with their names, when it has clones.
    pub async fn delete_snapshot(self: &Arc<Self>, vpool: &str, name: &str, snapshot: &str) -> Result<()> {
        let (vdisk, volume) = self.open_vdisk(vpool, name).await?;
        let found = volume.find_snapshot(snapshot).context(format!("vDisk '{vdisk}'"))?;
        let router = self.clone();
        let task = format!("delete snapshot {vdisk}@{}", found.about.name);
        let work = async move {
            let _work = vdisk.work.lock().await;
            let id = SnapshotId(found.about.id);
            let what = format!("snapshot '{}' of vDisk '{vdisk}'", found.about.name);
            if found.about.template {
                return Err(denied(format!("{what} is what the template is: delete the vDisk")));
            }
            {
                // From here on nobody clones it.
                let _lineage = vdisk.pool.lineage.lock().await;
                let clones = router.clones(&vdisk, Some(id.0));
                if !clones.is_empty() {
                    return Err(denied(format!(
                        "{what} is not deleted: {} clone(s) of it: {}; delete them first",
                        clones.len(),
                        named(clones.into_iter())
                    )));
                }
                router
                    .change_record(&vdisk, |record| {
                        if !record.leaving.contains(&id) {
                            record.leaving.push(id);
                        }
                    })
                    .await?;
            }
            router.finish_leaving(&vdisk, &volume).await
        };
        self.tasks.run(task, work).await
    }

    /// Deletes the snapshots that are marked for it; the caller holds `work`.
    async fn finish_leaving(&self, vdisk: &Arc<Vdisk>, volume: &Volume) -> Result<()> {
        for id in vdisk.stored().record.leaving {
            match volume.change_snapshot(id.0, SnapshotChange::Delete, PATIENCE).await {
                Err(error) if error.kind == ErrorKind::NotFound => {}
                outcome => outcome.context(format!("vDisk '{vdisk}'"))?,
            }
            self.change_record(vdisk, |record| record.leaving.retain(|other| *other != id)).await?;
        }
        Ok(())
    }

    /// Resumes the deletion of snapshots that a crash, or a store that was away, cut short.
    pub(super) fn resume_leaving(self: &Arc<Self>, vdisk: &Arc<Vdisk>, volume: &Arc<Volume>) -> Result<()> {
        if vdisk.stored().record.leaving.is_empty() {
            return Ok(());
        }
        let (router, vdisk, volume) = (self.clone(), vdisk.clone(), volume.clone());
        self.tasks.spawn(format!("delete snapshots of {vdisk}"), async move {
            let _work = vdisk.work.lock().await;
            if let Err(error) = router.finish_leaving(&vdisk, &volume).await {
                tracing::warn!(vdisk = %vdisk, %error, "a snapshot is not deleted yet; the next start goes on");
            }
        })
    }

    /// Makes a vDisk that begins as a snapshot (or, without one, as a template) of another: instant,
    /// whatever the size.
    pub async fn clone_vdisk(
        self: &Arc<Self>,
        vpool: &str,
        name: &str,
        snapshot: Option<&str>,
        clone: Name,
    ) -> Result<VdiskInfo> {
        let (parent, volume) = self.open_vdisk(vpool, name).await?;
        let found = match (snapshot, volume.template()) {
            (Some(snapshot), _) => volume.find_snapshot(snapshot).context(format!("vDisk '{parent}'"))?,
            (None, Some(template)) => template,
            (None, None) => {
                return Err(Error::invalid(format!(
                    "vDisk '{parent}' is not a template: say which snapshot, as in {parent}@NAME"
                )));
            }
        };
        let router = self.clone();
        let task = format!("clone {parent}@{} as {clone}", found.about.name);
        self.tasks.run(task, async move { router.do_clone(parent, volume, found, clone).await }).await
    }

    async fn do_clone(
        self: &Arc<Self>,
        parent: Arc<Vdisk>,
        volume: Arc<Volume>,
        found: SnapshotInfo,
        clone: Name,
    ) -> Result<VdiskInfo> {
        let what = format!("vDisk '{parent}' can't be cloned");
        // Its marker must be on the backend, else the clone could outlive what it is a clone of.
        if found.lsn.is_none() {
            volume.drain(PATIENCE).await.context(what.clone())?;
        }
        let found = volume.find_snapshot(&found.about.name).context(what.clone())?;
        let lsn = found.lsn.ok_or_else(|| Error::unavailable(format!("{what} yet: try again")))?;
        volume.check_depth().context(what)?;
        let vpool = parent.pool.clone();
        let _members = vpool.members.read().await;
        let lineage = vpool.lineage.lock().await;
        let Stored { record: of, revision } = parent.stored();
        let id = SnapshotId(found.about.id);
        if of.state != VdiskLife::Active || of.leaving.contains(&id) {
            return Err(Error::conflict(format!(
                "snapshot '{}' of vDisk '{parent}' is being deleted",
                found.about.name
            )));
        }
        let mut record = VdiskRecord::new(VolumeId(self.clock.random_u128()), found.size, of.sco_size);
        record.parent = Some(ParentRecord { volume: parent.id, snapshot: id, lsn });
        self.add_vdisk(&vpool, clone, record, Some((&parent.name, revision, lineage))).await
    }

    /// Brings a vDisk back to a snapshot: its size and all of its snapshots stay. One that is in use is
    /// refused unless `force`; then its clients are cut off. `Unavailable` when the backend does not take
    /// what was acknowledged before; then nothing changed.
    pub async fn roll_back(
        self: &Arc<Self>,
        vpool: &str,
        name: &str,
        snapshot: &str,
        force: bool,
    ) -> Result<VdiskInfo> {
        let (vdisk, volume) = self.open_vdisk(vpool, name).await?;
        let found = volume.find_snapshot(snapshot).context(format!("vDisk '{vdisk}'"))?;
        if volume.template().is_some() {
            return Err(denied(format!("vDisk '{vdisk}' is a template: it does not change")));
        }
        let router = self.clone();
        let task = format!("roll back {vdisk} to {}", found.about.name);
        self.tasks.run(task, async move { router.do_roll_back(&vdisk, found.about.id, force).await }).await
    }

    async fn do_roll_back(
        self: &Arc<Self>,
        vdisk: &Arc<Vdisk>,
        snapshot: u128,
        force: bool,
    ) -> Result<VdiskInfo> {
        let _work = vdisk.work.lock().await;
        let pool = vdisk.pool.pool()?;
        let before = vdisk.leave(force, "rolled back")?;
        let Phase::Open(volume) = &before else {
            vdisk.stay(before);
            return Err(vdisk.why_closed());
        };
        // Whoever is still there is cut off before the last writes are gathered.
        vdisk.revoke();
        if let Err(error) = volume.drain(PATIENCE).await {
            vdisk.stay(before);
            self.expel_if_lost(vdisk);
            return Err(error.context(format!("vDisk '{vdisk}' is not rolled back")));
        }
        volume.close().await;
        let rolled_back = async {
            let claim = self.claim(vdisk).await?;
            let epoch = claim.volume.registration.claimed;
            let opening = self.opening(&claim, false);
            let rolled_back = self.driver.roll_back(&pool, vdisk.id, epoch, snapshot, Some(&opening)).await;
            if rolled_back.is_err() {
                self.release(std::slice::from_ref(vdisk)).await;
            }
            rolled_back
        };
        match rolled_back.await {
            Ok(volume) => {
                tracing::info!(vdisk = %vdisk, snapshot = format!("{snapshot:032x}"), "rolled back");
                self.opened(vdisk, volume).await;
                Ok(self.info(vdisk))
            }
            Err(error) => {
                // It is what it was, or what it should be: opening tells.
                if let Err(reopen) = self.open_volume(vdisk, &pool).await {
                    vdisk.tried(Phase::Failed(reopen));
                    vdisk.pool.kick.notify_one();
                }
                Err(error.context(format!("rolling vDisk '{vdisk}' back")))
            }
        }
    }

    /// Makes a vDisk a template: it is never written again, and cloned by its name. One that is in use is
    /// refused unless `force`; then its clients are cut off.
    pub async fn make_template(self: &Arc<Self>, vpool: &str, name: &str, force: bool) -> Result<VdiskInfo> {
        let (vdisk, volume) = self.open_vdisk(vpool, name).await?;
        if volume.template().is_some() {
            return Ok(self.info(&vdisk));
        }
        let router = self.clone();
        let task = format!("make {vdisk} a template");
        let work = async move {
            let _work = vdisk.work.lock().await;
            let before = vdisk.leave(force, "made a template")?;
            vdisk.revoke();
            let about = Description {
                id: router.clock.random_u128(),
                name: TEMPLATE.to_owned(),
                created_at: router.clock.unix_time().as_secs(),
                consistent: true,
                sticky: true,
                template: true,
                metadata: Bytes::new(),
            };
            let taken = volume.snapshot(about).await;
            vdisk.stay(before);
            router.expel_if_lost(&vdisk);
            taken.context(format!("vDisk '{vdisk}' is not made a template"))?;
            router.change_record(&vdisk, |record| record.read_only = true).await?;
            Ok(router.info(&vdisk))
        };
        self.tasks.run(task, work).await
    }

    /// Opens a snapshot for a client, to read it.
    pub(super) async fn open_snapshot(
        self: &Arc<Self>,
        vdisk: &Arc<Vdisk>,
        snapshot: &str,
    ) -> Result<Arc<dyn BlockDevice>> {
        self.serve(vdisk).await?;
        let Some(volume) = vdisk.volume() else { return Err(vdisk.why_closed()) };
        let device = volume.open_snapshot(snapshot, PATIENCE).await.context(format!("vDisk '{vdisk}'"))?;
        match vdisk.enter_as(Arc::new(device)) {
            Some(handle) => Ok(Arc::new(handle) as Arc<dyn BlockDevice>),
            None => Err(vdisk.why_closed()),
        }
    }
}
