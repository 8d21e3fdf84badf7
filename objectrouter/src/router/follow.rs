//! What others change in the registry, who comes and goes, and a seat of this router that is lost.
//!
//! One watch tells everything in order. What this router changed itself comes back too, with a revision that it knows.

use super::Router;
use super::open::Backoff;
use crate::registry::{
    NODES, NodeRecord, Stored, VDISKS, VOLUMES, VPOOLS, VolumeRecord, name_of, pair, vdisk_of, volume_of,
};
use crate::vdisk::Vdisk;
use crate::vpool::{PoolPhase, Vpool};
use common::kv::{KvChange, KvChanges};
use common::{Error, Name, Result, VolumeId};
use std::sync::Arc;
use std::time::Duration;

/// A router that went may be back at once, with what it had: others wait for so long.
const SETTLE: Duration = Duration::from_millis(200);
/// The longest pause when the registry does not answer.
const PAUSE: Duration = Duration::from_secs(2);

fn lost_seat() -> Error {
    Error::unavailable("this storage router has lost its lease of the registry, and takes another one")
}

impl Router {
    /// Follows the registry from `from` on, until the router stops.
    pub(super) async fn follow(self: &Arc<Self>, mut from: u64) {
        let mut backoff = Backoff::new(PAUSE);
        loop {
            let changes = tokio::select! {
                biased;
                () = self.tasks.stopped() => return,
                changes = self.records().kv().changes("", from) => changes,
            };
            let outcome = match changes {
                Ok(KvChanges::Changed(changes, next)) => {
                    let heard = self.heard_all(changes).await;
                    // What is not known for want of an answer is asked for again.
                    heard.map(|()| from = next)
                }
                Ok(KvChanges::Forgotten) => self.read_again().await.map(|revision| from = revision + 1),
                Err(error) => Err(error),
            };
            match outcome {
                Ok(()) => backoff = Backoff::new(PAUSE),
                Err(error) => {
                    tracing::debug!(%error, "can't follow the registry; trying again");
                    if !self.tasks.sleep(&*self.clock, backoff.pause(&*self.clock)).await {
                        return;
                    }
                }
            }
        }
    }

    /// Changes in order; one that can't be read is told and passed over.
    async fn heard_all(self: &Arc<Self>, changes: Vec<KvChange>) -> Result<()> {
        for change in changes {
            let key = change.key.clone();
            match self.heard(change).await {
                Err(error) if error.kind.is_transient() => return Err(error),
                Err(error) => tracing::error!(key, %error, "the registry says what this router can't read"),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// Reads everything again, after the history of what this router has not heard was given up.
    async fn read_again(self: &Arc<Self>) -> Result<u64> {
        tracing::warn!("this router was away from the registry for long: it reads all of it again");
        let revision = self.cluster.meet().await?;
        let (mut all, _) = self.records().kv().snapshot("").await?;
        // A vDisk is known by its vPool.
        all.sort_by_key(|pair| !pair.key.starts_with(VPOOLS));
        let gone: Vec<_> = {
            let has = |key: String| all.iter().any(|pair| pair.key == key);
            let vdisks = self.all_vdisks().into_iter().map(|v| format!("{VDISKS}{v}"));
            vdisks
                .chain(self.pools().iter().map(|p| format!("{VPOOLS}{}", p.name)))
                .filter(|key| !has(key.clone()))
                .collect()
        };
        let gone = gone.into_iter().map(|key| KvChange { key, value: None, revision });
        let found = all.into_iter();
        let found = found.map(|p| KvChange { key: p.key, value: Some(p.value), revision: p.revision });
        self.heard_all(gone.chain(found).collect()).await?;
        self.reconsider();
        Ok(revision)
    }

    /// One change.
    async fn heard(self: &Arc<Self>, change: KvChange) -> Result<()> {
        let KvChange { key, value, revision } = change;
        let kind = |prefix: &str| key.starts_with(prefix);
        match value {
            Some(value) if kind(VPOOLS) => {
                let name = name_of(&key, VPOOLS)?;
                let stored: Stored<crate::registry::VpoolRecord> = Stored::read(&pair(key, value, revision))?;
                let known = self.catalog.read().vpools.get(&name).cloned();
                match known {
                    Some(vpool) if vpool.stored().record.id == stored.record.id => vpool.set_stored(stored),
                    // Another one has its name now.
                    Some(vpool) if vpool.stored().revision < revision => {
                        self.forget_vpool(&vpool)?;
                        self.know_vpool(name, stored, PoolPhase::Opening(None))?;
                    }
                    Some(_) => {}
                    None => {
                        self.know_vpool(name, stored, PoolPhase::Opening(None))?;
                    }
                }
            }
            None if kind(VPOOLS) => {
                let known = self.catalog.read().vpools.get(&name_of(&key, VPOOLS)?).cloned();
                if let Some(vpool) = known.filter(|vpool| vpool.stored().revision < revision) {
                    self.forget_vpool(&vpool)?;
                }
            }
            Some(value) if kind(VDISKS) => {
                let (vpool, name) = vdisk_of(&key)?;
                self.heard_of_vdisk(vpool, name, Stored::read(&pair(key, value, revision))?).await?;
            }
            None if kind(VDISKS) => {
                let names = vdisk_of(&key)?;
                let known = self.catalog.read().vdisks.get(&names).cloned();
                if let Some(vdisk) = known.filter(|vdisk| vdisk.stored().revision < revision) {
                    self.catalog.write().vdisks.remove(&names);
                    self.expel(vdisk, Error::not_found("it was deleted"))?;
                }
            }
            Some(value) if kind(VOLUMES) => {
                let id = volume_of(&key)?;
                self.heard_of_volume(id, Stored::read(&pair(key, value, revision))?)?;
            }
            Some(value) if kind(NODES) => {
                let name = name_of(&key, NODES)?;
                let node: Stored<NodeRecord> = Stored::read(&pair(key, value, revision))?;
                tracing::info!(router = %name, lease = node.record.lease, "a storage router is there");
                self.cluster.came(name, node.record);
                self.reconsider();
            }
            None if kind(NODES) => {
                let name = name_of(&key, NODES)?;
                // This router knows by itself whether it has a seat.
                if name != *self.cluster.me() {
                    tracing::warn!(router = %name, "a storage router is away");
                    self.cluster.went(&name);
                    let router = self.clone();
                    self.tasks.spawn(format!("do without router {name}"), async move {
                        if router.tasks.sleep(&*router.clock, SETTLE).await {
                            router.reconsider();
                        }
                    })?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    async fn heard_of_vdisk(
        self: &Arc<Self>,
        vpool: Name,
        name: Name,
        stored: Stored<crate::registry::VdiskRecord>,
    ) -> Result<()> {
        let names = (vpool, name);
        let known = self.catalog.read().vdisks.get(&names).cloned();
        if let Some(vdisk) = known {
            if vdisk.id == stored.record.id {
                vdisk.set_stored(stored);
                return Ok(());
            }
            if vdisk.stored().revision > stored.revision {
                return Ok(());
            }
            self.expel(vdisk, Error::not_found("it was deleted"))?;
        }
        let Some(pool) = self.catalog.read().vpools.get(&names.0).cloned() else { return Ok(()) };
        // Written in the same transaction; it is gone when the vDisk is.
        let Some(volume) = self.records().volume(stored.record.id).await? else { return Ok(()) };
        self.know_vdisk(&pool, names.1, stored, volume);
        pool.kick.notify_one();
        Ok(())
    }

    /// Puts a vDisk into the catalog, if it is not there by this identity.
    pub(super) fn know_vdisk(
        &self,
        pool: &Arc<Vpool>,
        name: Name,
        stored: Stored<crate::registry::VdiskRecord>,
        volume: Stored<VolumeRecord>,
    ) -> Arc<Vdisk> {
        let mut catalog = self.catalog.write();
        let names = (pool.name.clone(), name.clone());
        if let Some(known) = catalog.vdisks.get(&names).filter(|known| known.id == stored.record.id) {
            let known = known.clone();
            drop(catalog);
            known.set_stored(stored);
            known.set_owned(volume);
            return known;
        }
        let vdisk = Vdisk::new(pool.clone(), name, (stored, volume), self.clock.clone());
        catalog.vdisks.insert(names, vdisk.clone());
        vdisk
    }

    /// Puts a vPool into the catalog and keeps it, if it is not there by this identity.
    pub(super) fn know_vpool(
        self: &Arc<Self>,
        name: Name,
        stored: Stored<crate::registry::VpoolRecord>,
        phase: PoolPhase,
    ) -> Result<Arc<Vpool>> {
        let vpool = {
            let mut catalog = self.catalog.write();
            let same = |known: &&Arc<Vpool>| known.stored().record.id == stored.record.id;
            if let Some(known) = catalog.vpools.get(&name).filter(same).cloned() {
                drop(catalog);
                known.set_stored(stored);
                known.opened(phase);
                return Ok(known);
            }
            let vpool = Arc::new(Vpool::new(name.clone(), stored, phase));
            catalog.vpools.insert(name, vpool.clone());
            vpool
        };
        self.clone().keep(vpool.clone())?;
        Ok(vpool)
    }

    /// Closes what is open of a vPool that the registry has no more, and forgets it.
    fn forget_vpool(self: &Arc<Self>, vpool: &Vpool) -> Result<()> {
        for vdisk in self.vdisks_of(&vpool.name) {
            self.expel(vdisk, Error::not_found(format!("vPool '{}' was removed", vpool.name)))?;
        }
        self.forget(vpool);
        Ok(())
    }

    fn heard_of_volume(self: &Arc<Self>, id: VolumeId, stored: Stored<VolumeRecord>) -> Result<()> {
        let names = (stored.record.vpool.clone(), stored.record.vdisk.clone());
        let Some(vdisk) = self.catalog.read().vdisks.get(&names).filter(|v| v.id == id).cloned() else {
            return Ok(());
        };
        let now = stored.record.clone();
        // The answer to what this router did itself may be slower than the watch.
        let given_up = now.holder.is_none() && self.holds(&vdisk.owned().record);
        if !vdisk.set_owned(stored) {
            return Ok(());
        }
        match vdisk.volume() {
            Some(volume) if self.holds(&now) => {
                volume.observe(now.registration.claimed, now.registration.config);
            }
            Some(_) => {
                let owner = now
                    .holder
                    .map_or("another router".to_owned(), |holder| format!("router '{}'", holder.node));
                self.expel(vdisk, Error::new(common::ErrorKind::NotOwner, format!("{owner} owns it now")))?;
            }
            // Who could not open it tries again in a while, and not as soon as it hears that it gave it back.
            None if given_up => {}
            None => self.reconsider_one(&vdisk),
        }
        Ok(())
    }

    /// Whether it is this router's, in its present seat.
    pub(super) fn holds(&self, record: &VolumeRecord) -> bool {
        self.cluster.incarnation().is_ok_and(|me| record.holder.as_ref() == Some(&me))
    }

    /// Closes what is open of a vDisk if it was claimed in a seat that was lost meanwhile.
    pub(super) fn expel_if_lost(self: &Arc<Self>, vdisk: &Arc<Vdisk>) {
        let lease = self.cluster.seat().ok().map(|seat| seat.id());
        if vdisk.is_of_another_seat(lease) {
            // A router that is stopping closes it in any case.
            let _ = self.expel(vdisk.clone(), lost_seat());
        }
    }

    /// Closes what is open of a vDisk, for good or until this router claims it again.
    fn expel(self: &Arc<Self>, vdisk: Arc<Vdisk>, why: Error) -> Result<()> {
        let router = self.clone();
        self.tasks.spawn(format!("close vDisk {vdisk}"), async move { router.close_lost(&vdisk, why).await })
    }

    async fn close_lost(&self, vdisk: &Arc<Vdisk>, why: Error) {
        // At once, whoever works on it: nobody gets an answer of it any more.
        let volume = vdisk.evict(why.clone());
        let _work = vdisk.work.lock().await;
        let volume = match volume {
            Some(volume) => Some(volume),
            None => vdisk.evict(why),
        };
        if let Some(volume) = volume {
            tracing::warn!(vdisk = %vdisk, "this router does not own the vDisk any more");
            volume.close().await;
        }
        self.reconsider_one(vdisk);
    }

    /// Somebody came or went: what has become this router's is opened.
    pub(super) fn reconsider(&self) {
        for vdisk in self.all_vdisks() {
            self.reconsider_one(&vdisk);
        }
    }

    fn reconsider_one(&self, vdisk: &Vdisk) {
        if vdisk.volume().is_none() && self.is_mine(vdisk) {
            vdisk.forgive();
            vdisk.pool.kick.notify_one();
        }
    }

    /// Sees to it that this router has a seat, until it stops.
    pub(super) async fn keep_seat(self: &Arc<Self>) {
        loop {
            if let Ok(seat) = self.cluster.seat() {
                tokio::select! {
                    biased;
                    () = self.tasks.stopped() => return,
                    () = seat.ended() => {}
                }
                tracing::error!(
                    lease = seat.id(),
                    "the registry has given up this router: it closes its volumes"
                );
                self.cluster.leave_seat();
                // Without waiting: its lease answers nobody, and nothing is opened twice.
                for vdisk in self.all_vdisks() {
                    let ours = vdisk.volume().is_some() || vdisk.has_claim();
                    if ours && self.expel(vdisk, lost_seat()).is_err() {
                        return;
                    }
                }
            }
            let mut backoff = Backoff::new(PAUSE);
            while let Err(error) = self.cluster.take_seat().await {
                tracing::warn!(%error, "can't take a seat in the registry; trying again");
                if !self.tasks.sleep(&*self.clock, backoff.pause(&*self.clock)).await {
                    return;
                }
            }
            self.reconsider();
        }
    }
}
