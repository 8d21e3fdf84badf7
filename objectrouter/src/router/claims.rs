//! The right to open volumes: claimed in the registry in the name of this router's seat, and given back.

use super::Router;
use crate::cluster::{RegistryPeers, changed_meanwhile};
use crate::registry::{Incarnation, Stored, VdiskLife, VolumeRecord};
use crate::vdisk::{Claim, Vdisk};
use common::kv::{KvAssert, Lease};
use common::{Error, ErrorKind, Name, Result, VolumeId, mutant};
use std::collections::BTreeSet;
use std::sync::Arc;
use volumedriver::Opening;

/// Volumes claimed or released in one registry transaction.
const TOGETHER: usize = 100;
/// Tries of a claim that meets another change.
const TRIES: usize = 8;

/// The record with the next epoch claimed by `me`, and what must hold for that (rule 4): whoever may have authority over
/// it has none any more.
fn claimed(record: &VolumeRecord, me: &Incarnation) -> Result<(VolumeRecord, Option<KvAssert>)> {
    let over = match &record.holder {
        Some(holder) if holder != me && !mutant::is_on("claims-over-a-live-lease") => {
            Some(KvAssert::LeaseEnded(holder.lease))
        }
        _ => None,
    };
    let registration = &record.registration;
    let next = registration.claimed.max(registration.epoch).next();
    let registration = registration.claim(next)?;
    Ok((VolumeRecord { registration, holder: Some(me.clone()), ..record.clone() }, over))
}

/// Nobody claims in the name of a seat that is over: the request may have been long on its way.
fn seated(lease: u64) -> Vec<KvAssert> {
    match mutant::is_on("claims-without-a-lease") {
        true => Vec::new(),
        false => vec![KvAssert::LeaseLive(lease)],
    }
}

impl Router {
    /// Claims many vDisks in few transactions. What fails here is done again, one by one, when the volume is opened.
    pub(super) async fn claim_together(&self, vdisks: &[Arc<Vdisk>]) {
        let wanting: Vec<_> = vdisks
            .iter()
            .filter(|v| v.stored().record.state == VdiskLife::Active && !v.has_claim())
            .collect();
        for chunk in wanting.chunks(TOGETHER) {
            if let Err(error) = self.claim_chunk(chunk).await {
                tracing::warn!(%error, "can't claim vDisks together; one by one now");
            }
        }
    }

    async fn claim_chunk(&self, chunk: &[&Arc<Vdisk>]) -> Result<()> {
        let seat = self.cluster.seat()?;
        let me = self.cluster.incarnation()?;
        let mut changes = Vec::with_capacity(chunk.len());
        let mut held = Vec::with_capacity(chunk.len());
        let mut over = BTreeSet::new();
        for vdisk in chunk {
            // A busy vDisk is being opened by a client right now, and claims its own.
            let Ok(work) = vdisk.work.try_lock() else { continue };
            let Stored { record, revision } = vdisk.owned();
            if vdisk.has_claim() || vdisk.volume().is_some() {
                continue;
            }
            let (record, assert) = claimed(&record, &me)?;
            if let Some(KvAssert::LeaseEnded(lease)) = assert {
                over.insert(lease);
            }
            changes.push((vdisk.id, record, revision));
            held.push((vdisk, work));
        }
        if changes.is_empty() {
            return Ok(());
        }
        let mut asserts = seated(me.lease);
        asserts.extend(over.into_iter().map(KvAssert::LeaseEnded));
        let revision = self.records().put_volumes(&changes, asserts).await?;
        for ((vdisk, _work), (_, record, _)) in held.into_iter().zip(changes) {
            vdisk.set_owned(Stored { record: record.clone(), revision });
            vdisk.give_claim(Claim { seat: seat.clone(), volume: record });
        }
        Ok(())
    }

    /// The claim of a vDisk that is this router's: one that was made already, or a new one. The caller holds `work`.
    ///
    /// # Errors
    /// `NotOwner` when another router has it or should have it.
    pub(super) async fn claim(&self, vdisk: &Vdisk) -> Result<Claim> {
        let seat = self.cluster.seat()?;
        if let Some(claim) = vdisk.take_claim().filter(|claim| claim.seat.id() == seat.id()) {
            return Ok(claim);
        }
        self.claim_anyway(vdisk, seat, false).await
    }

    /// Fails where another router should have it, or nobody may.
    fn must_be_mine(&self, vdisk: &Vdisk) -> Result<()> {
        match self.successor(vdisk) {
            Some(name) if name == *self.cluster.me() => Ok(()),
            Some(name) => Err(not_owner(vdisk, name.as_str())),
            None => Err(Error::new(
                ErrorKind::NotOwner,
                format!(
                    "vDisk '{vdisk}' is orphaned: router '{}' is away, and nobody else is known to have what it \
                         acknowledged; start that router, or force it and lose that (storagerouter vdisk force {vdisk})",
                    vdisk.owned().record.registration.owner
                ),
            )),
        }
    }

    /// Claims a vDisk; by `force` also where nobody should have it. Who has authority over it still keeps it. The caller
    /// holds `work`.
    pub(super) async fn claim_anyway(
        &self,
        vdisk: &Vdisk,
        seat: Arc<dyn Lease>,
        force: bool,
    ) -> Result<Claim> {
        let me = Incarnation { node: self.cluster.me().clone(), lease: seat.id() };
        for _ in 0..TRIES {
            // Anew each time: the record may say something else now.
            if !force {
                self.must_be_mine(vdisk)?;
            }
            let Stored { record, revision } = vdisk.owned();
            let holder = record.holder.clone();
            let (record, over) = claimed(&record, &me)?;
            let asserts = seated(me.lease).into_iter().chain(over).collect();
            match self.records().put_volumes(&[(vdisk.id, record.clone(), revision)], asserts).await {
                Ok(revision) => {
                    vdisk.set_owned(Stored { record: record.clone(), revision });
                    return Ok(Claim { seat, volume: record });
                }
                Err(error) if changed_meanwhile(&error) => match self.records().volume(vdisk.id).await? {
                    Some(now) if now.revision == revision => {
                        let holder = holder.map_or("nobody".to_owned(), |holder| holder.node.to_string());
                        return Err(not_owner(vdisk, &holder));
                    }
                    Some(now) => {
                        vdisk.set_owned(now);
                    }
                    None => {
                        return Err(Error::not_found(format!(
                            "the registry has no vDisk '{vdisk}' any more"
                        )));
                    }
                },
                Err(error) => return Err(error.context(format!("vDisk '{vdisk}'"))),
            }
        }
        Err(Error::unavailable(format!("the record of vDisk '{vdisk}' changes too often: try again")))
    }

    /// What the volume driver is to know of a claim.
    pub(super) fn opening(&self, claim: &Claim, forced: bool) -> Opening {
        let mine = self.cluster.write_buffer();
        let (volume, me) = (&claim.volume, self.cluster.me());
        let ours = volume.journal.as_ref().filter(|journal| journal.device == mine.device);
        let holder = Incarnation { node: me.clone(), lease: claim.seat.id() };
        Opening {
            registration: volume.registration.clone(),
            same_journal: ours.is_some() && volume.registration.owner == *me,
            same_boot: ours.is_some_and(|journal| journal.boot == mine.boot),
            forced,
            peers: Arc::new(RegistryPeers::new(self.cluster.clone(), holder)),
            patience: self.cluster.patience(),
            authority: claim.seat.clone(),
        }
    }

    /// Lets others claim these vDisks, which are not open here any more.
    pub(super) async fn release(&self, vdisks: &[Arc<Vdisk>]) {
        let changes: Vec<_> = vdisks.iter().map(|vdisk| (vdisk.clone(), false)).collect();
        if let Err(error) = self.let_go(&changes, None).await {
            tracing::warn!(%error, "can't give vDisks back to the registry; their lease will end");
        }
    }

    /// Gives up volumes that are closed here; of each, whether the backend has everything that was acknowledged. With
    /// `to` they go there.
    pub(super) async fn let_go(&self, vdisks: &[(Arc<Vdisk>, bool)], to: Option<&Name>) -> Result<()> {
        let me = self.cluster.incarnation()?;
        for chunk in vdisks.chunks(TOGETHER) {
            for tried in 1.. {
                let mut changes: Vec<(VolumeId, VolumeRecord, u64)> = Vec::with_capacity(chunk.len());
                for (vdisk, clean) in chunk {
                    let Stored { mut record, revision } = vdisk.owned();
                    if record.holder.as_ref() != Some(&me) {
                        continue;
                    }
                    record.holder = None;
                    record.moving_to = to.cloned();
                    // It says so of this epoch: one that was claimed and never begun says what it said before.
                    let begun = record.registration.epoch == record.registration.claimed;
                    record.registration.clean |= (*clean || mutant::is_on("clean-whatever-came")) && begun;
                    changes.push((vdisk.id, record, revision));
                }
                if changes.is_empty() {
                    break;
                }
                match self.records().put_volumes(&changes, seated(me.lease)).await {
                    Ok(revision) => {
                        for (vdisk, _) in chunk {
                            if let Some((_, record, _)) = changes.iter().find(|(id, ..)| *id == vdisk.id) {
                                vdisk.set_owned(Stored { record: record.clone(), revision });
                            }
                        }
                        break;
                    }
                    Err(error) if changed_meanwhile(&error) && tried < TRIES => {
                        for (vdisk, _) in chunk {
                            self.relearn_volume(vdisk).await;
                        }
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Changes the record of a volume that this router holds; the caller need not hold `work`.
    pub(super) async fn change_volume(
        &self,
        vdisk: &Vdisk,
        change: impl Fn(&mut VolumeRecord) + Send + Sync,
    ) -> Result<()> {
        for _ in 0..TRIES {
            let Some(Stored { mut record, revision }) = self.records().volume(vdisk.id).await? else {
                return Err(Error::not_found(format!("the registry has no vDisk '{vdisk}' any more")));
            };
            let before = record.clone();
            change(&mut record);
            if record == before {
                return Ok(());
            }
            // As its holder only while it is: its lease may end while this is on its way.
            let asserts = match self.cluster.incarnation() {
                Ok(me) if before.holder.as_ref() == Some(&me) => seated(me.lease),
                _ => Vec::new(),
            };
            match self.records().put_volumes(&[(vdisk.id, record.clone(), revision)], asserts).await {
                Ok(revision) => {
                    vdisk.set_owned(Stored { record, revision });
                    return Ok(());
                }
                Err(error) if changed_meanwhile(&error) => {}
                Err(error) => return Err(error.context(format!("vDisk '{vdisk}'"))),
            }
        }
        Err(Error::unavailable(format!("the record of vDisk '{vdisk}' changes too often: try again")))
    }

    /// Reads the record of a volume again; what can't be read is told by the registry in time.
    pub(super) async fn relearn_volume(&self, vdisk: &Vdisk) {
        if let Ok(Some(now)) = self.records().volume(vdisk.id).await {
            vdisk.set_owned(now);
        }
    }
}

fn not_owner(vdisk: &Vdisk, owner: &str) -> Error {
    Error::new(ErrorKind::NotOwner, format!("vDisk '{vdisk}' is owned by storage router '{owner}'"))
}
