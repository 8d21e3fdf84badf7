//! What must hold: of a vDisk's content, whatever happens to routers, and of its record in the registry.

use super::host;
use super::world::World;
use crate::sim::model::{Model, Promise};
use common::kv::{KvChange, KvChanges};
use common::{Epoch, Name};
use dtl::registration::Holder;
use dtl::{Mode, Status};
use objectrouter::VolumeRecord;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// Clusters of a vDisk.
pub const CLUSTERS: usize = 24;

/// A vDisk, as its clients know it.
pub struct Vdisk {
    /// Its number.
    pub number: usize,
    /// Its name in the vPool `p`.
    pub name: String,
    /// Its clients die when this changes.
    pub death: watch::Sender<u64>,
    content: Mutex<Content>,
}

/// What its clients know of its content.
pub struct Content {
    /// What it may hold.
    pub model: Model,
    /// What was acknowledged before this moment is flushed.
    pub flushed: u64,
    /// What was not flushed may be lost, as far as the rules go; clients that live do it again.
    pub lenient: bool,
    /// Somebody gave up by force what was at risk.
    pub forced: bool,
    /// How often a client that came in found everything as it should be.
    pub settled: u64,
}

impl Vdisk {
    /// A vDisk of zeroes.
    pub fn new(number: usize) -> Vdisk {
        let sectors = CLUSTERS * crate::sim::model::PER_CLUSTER;
        let model = Model::new(number as u64, sectors, sectors);
        let content = Content { model, flushed: 0, lenient: false, forced: false, settled: 0 };
        Vdisk {
            number,
            name: format!("d{number}"),
            death: watch::Sender::new(0),
            content: Mutex::new(content),
        }
    }

    /// As clients call it.
    pub fn export(&self) -> String {
        format!("p/{}", self.name)
    }

    /// What is known of its content.
    pub fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody new came in and found `image`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn settle(&self, image: &[u8], by_log_alone: bool) -> Result<(), String> {
        let mut content = self.content();
        let content = &mut *content;
        let promise = match (content.forced, content.lenient) {
            (true, _) => Promise::Committed(0),
            (_, true) => Promise::Flushed(content.flushed),
            _ => Promise::Everything,
        };
        content.model.settle(image, promise).map_err(|wrong| format!("{promise:?}: {wrong}"))?;
        content.lenient = by_log_alone;
        content.forced = false;
        content.settled += 1;
        Ok(())
    }
}

/// Whether the rules let what was acknowledged and not flushed go with the owner's memory, its peers being well.
pub fn tail_is_in_memory(record: &VolumeRecord) -> bool {
    let config = &record.registration.config;
    config.mode != Mode::Sync || config.status != Status::InSync
}

impl World {
    /// Whether all that was acknowledged can be had from somewhere, when these routers have died so.
    pub fn has_copy(&self, record: &VolumeRecord, dying: &[(usize, super::plan::Death)]) -> bool {
        use super::plan::Death;
        let registration = &record.registration;
        if registration.clean && registration.tails.is_empty() {
            return true;
        }
        let death = |n: usize| dying.iter().find(|(dead, _)| *dead == n).map(|(_, death)| *death);
        let config = &registration.config;
        let named = config.mode != Mode::None && config.status == Status::InSync && !config.peers.is_empty();
        if let Some(owner) = host::number(registration.owner.as_str())
            && let Some(journal) = &record.journal
        {
            let (device, boot) = self.host(owner, |host| (host.device, host.boot));
            let there = journal.device == device && death(owner) != Some(Death::Lost);
            let whole = there
                && journal.boot == format!("boot {boot} of {owner}")
                && death(owner) != Some(Death::Power);
            if whole || there && (!named || config.mode == Mode::Async) {
                return true;
            }
        }
        let log_lives = |node: &Name, incarnation, epoch: Epoch, trusted: bool| {
            let Some(n) = host::number(node.as_str()).filter(|n| death(*n).is_none()) else { return false };
            let keeper = self.host(n, |host| host.keeper.as_ref().map(|keeper| keeper.service.clone()));
            let Some(service) = keeper else { return false };
            let Some(id) = self.id_of(&record.vdisk) else { return false };
            let (_, logs) = service.store().status(id);
            logs.iter().any(|log| {
                log.incarnation == incarnation
                    && log.epoch == epoch
                    && !(trusted && log.suspect || log.damaged)
            })
        };
        let trusted = config.mode == Mode::Sync;
        let logs = config.peers.iter();
        let living = logs.filter(|p| log_lives(&p.node, p.incarnation, registration.epoch, trusted)).count();
        let tails = registration.tails.iter().all(|tail| {
            tail.holders.iter().any(|holder| match holder {
                Holder::Log(log) => log_lives(&log.node, log.incarnation, tail.epoch, false),
                Holder::Journal(_) => false,
            })
        });
        named && living >= config.sealed_needed() && tails
    }

    /// Follows all records of volumes: what must hold from one to the next.
    pub async fn follow_records(self: Arc<Self>) {
        let mut known: BTreeMap<String, VolumeRecord> = BTreeMap::new();
        let mut from = 1;
        loop {
            match self.truth.changes("volume/", from).await {
                Ok(KvChanges::Changed(changes, next)) => {
                    changes.into_iter().for_each(|change| self.record_changed(&mut known, change));
                    from = next;
                }
                _ => return,
            }
        }
    }

    fn record_changed(&self, known: &mut BTreeMap<String, VolumeRecord>, change: KvChange) {
        let Some(value) = change.value else {
            known.remove(&change.key);
            return;
        };
        let record: VolumeRecord = match serde_json::from_slice(&value) {
            Ok(record) => record,
            Err(error) => return self.wrong(format!("{}: {error}", change.key)),
        };
        let before = known.insert(change.key, record.clone());
        if let Err(rule) = self.may_follow(before.as_ref(), &record) {
            self.wrong(format!("{}: {rule}: {record:?} came after {before:?}", record.vdisk));
        }
    }

    /// The rules that a change of a record shows to be broken.
    fn may_follow(&self, before: Option<&VolumeRecord>, record: &VolumeRecord) -> Result<(), String> {
        let new = &record.registration;
        // Rule 7: an owner is never its own peer.
        let own = |p: &dtl::PeerLog| record.holder.as_ref().is_some_and(|holder| holder.node == p.node);
        if new.claimed == new.epoch && new.config.peers.iter().any(own) {
            return Err("rule 7: an owner is its own peer".into());
        }
        let Some(before) = before else { return Ok(()) };
        let old = &before.registration;
        // R5: epochs only rise.
        if new.claimed < old.claimed || new.epoch < old.epoch {
            return Err("R5: an epoch went down".into());
        }
        // Rule 4: nobody gets authority while somebody else has it.
        if let (Some(was), Some(is)) = (&before.holder, &record.holder)
            && was != is
            && self.truth.is_live(was.lease)
        {
            return Err(format!("rule 4: {is:?} claimed it from {was:?}, whose lease lives"));
        }
        if let Some(is) = &record.holder
            && before.holder.as_ref() != Some(is)
            && self.truth.had_ended(is.lease)
        {
            return Err(format!("rule 4: {is:?} claimed it, whose lease has ended"));
        }
        // R3: a change of the configuration is one of its epoch, and each has the next number.
        if new.epoch == old.epoch && new.config != old.config {
            if new.config.config != old.config.config + 1 {
                return Err("R3: a configuration was passed over".into());
            }
            let seated = record.holder.as_ref().is_some_and(|holder| !self.truth.had_ended(holder.lease));
            if !seated {
                return Err("R3: the configuration was changed by who has no authority".into());
            }
        }
        // Rule 7: a new epoch begins alone, and the tail of the one before has a holder until the backend has it.
        if new.epoch > old.epoch && new.config.status == Status::InSync {
            return Err("rule 7: an epoch began in sync".into());
        }
        // R6: what was given up is recorded, and nobody gives up anything unasked.
        if new.losses.len() > old.losses.len() && !self.is_forced(&record.vdisk) {
            return Err("R6: something was given up, and nobody forced it".into());
        }
        Ok(())
    }

    /// An answer came from a router: it has authority (R1), and nobody else (rule 4).
    pub fn answered(&self, vdisk: &Vdisk, router: usize) {
        let Some(record) = self.record(vdisk) else { return };
        let name = host::name(router);
        let holder = record.holder.as_ref().filter(|holder| holder.node == name);
        match holder {
            Some(holder) if !self.truth.had_ended(holder.lease) => {}
            _ => self
                .wrong(format!("R1: {name} answered for {}, and the registry says {record:?}", vdisk.name)),
        }
    }
}
