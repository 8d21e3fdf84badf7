//! Deleting what nothing reads: SCOs whose clusters neither the head nor a snapshot maps, TLogs that are in
//! no view, replaced TLogs and Manifests, and what crashed uploads of closed epochs left behind.
//!
//! A SCO goes only when a durable TLog covers its LSNs and no named TLog mentions it. So first
//! the TLog that mentions it is replaced by one of the same LSN range without it, in a Manifest;
//! then it is deleted. A crash in between leaves an orphan, which the sweep of the next open finds.

use super::Shared;
use super::pump::Pump;
use super::snapshots::SnapshotSet;
use super::tlogs::{self, TLogSet};
use crate::format::Snapshot;
use crate::format::keys::{self, Key};
use crate::format::manifest::{Manifest, ManifestKind, TLogRef};
use crate::format::sco::ScoId;
use crate::format::tlog::TLog;
use crate::index::Mapped;
use crate::log::Kind;
use crate::lsns::Lsns;
use crate::view::{Place, View};
use common::object::list_all;
use common::{Epoch, ObjectStore, Result, VolumeId, mutant};
use futures::StreamExt;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// The shortest time between two idle looks.
pub(super) const PERIOD: Duration = Duration::from_secs(10);

/// Dead bytes that are worth a TLog and a Manifest: this much, or an eighth of what is stored.
const WORTH: u64 = 64 << 20;

/// Deletes that run at a time.
const DELETES: usize = 16;

impl Pump {
    /// Whether the SCOs without live clusters are worth the objects that it takes to delete them.
    pub(super) fn reclaim_pays(&self) -> bool {
        let pinned: u64 = self.pinned.values().sum();
        let dead = self.shared.index.dead_bytes().saturating_sub(pinned);
        let (stored, _) = self.shared.index.totals();
        dead > 0 && dead >= WORTH.min(stored / 8)
    }

    /// Whether a TLog is in no view: neither in the head nor in a snapshot.
    pub(super) fn has_unseen(&self) -> bool {
        let views = self.views();
        self.tlogs.iter().any(|t| unseen(&views, t))
    }

    fn views(&self) -> Vec<Lsns> {
        let head = Lsns::head(self.chain.current());
        std::iter::once(head).chain(self.snapshots.iter().map(|s| Lsns::of(s))).collect()
    }

    /// Deletes the TLogs that are in no view any more (behind a rollback, or with a snapshot), and their SCOs.
    pub(super) async fn drop_unseen(&mut self) -> Result<()> {
        let views = self.views();
        let unseen: Vec<TLogRef> = self.tlogs.iter().filter(|t| unseen(&views, t)).copied().collect();
        if unseen.is_empty() {
            return Ok(());
        }
        let shared = self.shared.clone();
        let mut scos = Vec::new();
        for named in &unseen {
            let what = "reading a TLog to collect its SCOs";
            let tlog = shared.persist(what, || tlogs::load(&*shared.store, shared.id, named)).await?;
            scos.extend(tlog.dict.iter().map(|d| d.id));
        }
        self.tlogs.take_if(|t| unseen.contains(t));
        self.put_manifest(ManifestKind::Normal, |_| {}).await?;
        let tlogs = unseen.iter().map(|t| keys::object_key(shared.id, &t.obj));
        let keys = scos.iter().map(|id| keys::sco_key(shared.id, *id)).chain(tlogs);
        delete_quietly(&*shared.store, keys.collect()).await;
        shared.metrics.deleted_scos.inc_by(scos.len() as u64);
        for id in &scos {
            shared.index.drop_sco(*id);
        }
        tracing::info!(volume = %shared.id, scos = scos.len(), tlogs = unseen.len(), "deleted what no view has any more");
        Ok(())
    }

    /// Deletes the SCOs without live clusters that TLogs cover.
    pub(super) async fn reclaim_dead(&mut self) -> Result<()> {
        if !self.reclaim_pays() {
            return Ok(());
        }
        let shared = self.shared.clone();
        let tail: BTreeSet<ScoId> = self.tail.iter().map(|s| s.id).collect();
        let mut dead: BTreeSet<ScoId> =
            shared.index.dead_scos().into_iter().map(|(id, _)| id).filter(|id| !tail.contains(id)).collect();
        self.pinned.clear();
        // SCOs that are not committed yet are unknown to the index, so none of them is here.
        let mut victims = BTreeSet::new();
        let mut replaced: Vec<TLogRef> = Vec::new();
        for named in self.tlogs.iter().cloned().collect::<Vec<_>>() {
            let what = "reading a TLog to collect its dead SCOs";
            let tlog = shared.persist(what, || tlogs::load(&*shared.store, shared.id, &named)).await?;
            let mut here: Vec<ScoId> =
                tlog.dict.iter().map(|d| d.id).filter(|id| dead.contains(id)).collect();
            for alive in self.still_mapped(&tlog, &dead)? {
                tracing::error!(volume = %shared.id, sco = %alive, "the count of live clusters is wrong: keeping the SCO");
                dead.remove(&alive);
                here.retain(|id| *id != alive);
            }
            if !here.is_empty() && !mutant::is_on("snapshots-do-not-pin") {
                for (pinned, len) in self.still_read(&named, &tlog, &dead).await? {
                    self.pinned.insert(pinned, len);
                    dead.remove(&pinned);
                    here.retain(|id| *id != pinned);
                }
            }
            if here.is_empty() {
                continue;
            }
            let (epoch, number) = self.object_number();
            let rewritten = tlogs::without(&tlog, |id| dead.contains(&id));
            let (object, new) = tlogs::encode(shared.id, ScoId { epoch, number }, self.writer, &rewritten)?;
            shared.persist_put("putting a TLog", &object.key, &[object.bytes]).await?;
            self.tlogs.replace(&named.obj, &new);
            replaced.push(named);
            for id in here {
                dead.remove(&id);
                victims.insert(id);
            }
        }
        // What is dead and in no TLog was collected before, but for its local row.
        victims.extend(dead);
        if victims.is_empty() {
            return Ok(());
        }
        if mutant::is_on("delete-before-the-manifest") {
            let scos = victims.iter().map(|id| keys::sco_key(shared.id, *id));
            delete_quietly(&*shared.store, scos.collect()).await;
        }
        self.put_manifest(ManifestKind::Normal, |_| {}).await?;
        let scos = victims.iter().map(|id| keys::sco_key(shared.id, *id));
        let old = replaced.iter().map(|t| keys::object_key(shared.id, &t.obj));
        delete_quietly(&*shared.store, scos.chain(old).collect()).await;
        shared.metrics.deleted_scos.inc_by(victims.len() as u64);
        for id in &victims {
            shared.index.drop_sco(*id);
        }
        tracing::info!(volume = %shared.id, scos = victims.len(), tlogs = replaced.len(), "deleted SCOs without live clusters");
        Ok(())
    }

    /// Asks the map itself, before it is too late, whether every entry of the dead SCOs is shadowed.
    fn still_mapped(&self, tlog: &TLog, dead: &BTreeSet<ScoId>) -> Result<BTreeSet<ScoId>> {
        let mut alive = BTreeSet::new();
        let mut mapped = Vec::new();
        for e in tlog.entries.iter().filter(|e| e.kind == Kind::Data) {
            let sco = tlog.dict[e.dict as usize].id;
            if dead.contains(&sco) {
                mapped.clear();
                self.shared.index.lookup(e.addr, e.count, &mut mapped)?;
                if mutant::is_on("live-sco-is-dead") {
                    continue;
                }
                if mapped.iter().any(|m| matches!(m, Mapped::At(location) if location.sco() == sco)) {
                    alive.insert(sco);
                }
            }
        }
        Ok(alive)
    }

    /// Of the dead SCOs in this TLog, those that some snapshot reads, with their bytes.
    async fn still_read(
        &self,
        named: &TLogRef,
        tlog: &TLog,
        dead: &BTreeSet<ScoId>,
    ) -> Result<BTreeMap<ScoId, u64>> {
        let shared = &self.shared;
        let mut read = BTreeMap::new();
        for snapshot in first_with(&self.snapshots, named) {
            let view = View::own(&shared.store, &shared.maps, shared.id, &self.tlogs, &snapshot);
            for e in tlog.entries.iter().filter(|e| e.kind == Kind::Data) {
                let sco = &tlog.dict[e.dict as usize];
                if !dead.contains(&sco.id) || read.contains_key(&sco.id) {
                    continue;
                }
                let what = "reading the map of a snapshot";
                let places = shared.persist(what, || view.resolve(e.addr, e.count)).await?;
                if places.iter().any(|p| matches!(p, Place::At(_, at) if at.sco() == sco.id)) {
                    read.insert(sco.id, sco.len);
                }
            }
        }
        Ok(read)
    }

    /// Deletes the Manifest before the newest, and the pages that only it named. An epoch's
    /// first Manifest stays: it is the fence.
    pub(super) async fn collect(&mut self, previous: &Manifest) {
        let mut keys = Vec::new();
        let named: BTreeSet<(Epoch, u64)> = self.tlogs.pages().map(|p| (p.obj.epoch, p.obj.number)).collect();
        for page in previous.pages.iter().filter(|p| !named.contains(&(p.obj.epoch, p.obj.number))) {
            keys.push(keys::object_key(previous.volume, &page.obj));
        }
        let named: BTreeSet<(Epoch, u64)> =
            self.snapshots.pages().map(|p| (p.obj.epoch, p.obj.number)).collect();
        for page in previous.snapshots.iter().filter(|p| !named.contains(&(p.obj.epoch, p.obj.number))) {
            keys.push(keys::object_key(previous.volume, &page.obj));
        }
        if previous.kind != ManifestKind::Fence {
            keys.push(keys::manifest_key(previous.volume, previous.number));
        }
        delete_quietly(&*self.shared.store, keys).await;
    }
}

/// Whether no view has the TLog's LSNs.
fn unseen(views: &[Lsns], tlog: &TLogRef) -> bool {
    // The first is the head.
    let views = if mutant::is_on("tlogs-of-snapshots-dropped") { &views[..1] } else { views };
    !views.iter().any(|lsns| lsns.hold(tlog.lsn_lo, tlog.lsn_hi))
}

/// The first snapshots that have the TLog's LSNs: what one of those behind them reads of it, they read too.
fn first_with(snapshots: &SnapshotSet, tlog: &TLogRef) -> Vec<Arc<Snapshot>> {
    let mut first: Vec<Arc<Snapshot>> = Vec::new();
    for snapshot in snapshots.iter() {
        let lsns = Lsns::of(snapshot);
        if lsns.hold(tlog.lsn_lo, tlog.lsn_hi) && !first.iter().any(|f| lsns.up_to(f.lsn) == f.view) {
            first.push(snapshot.clone());
        }
    }
    first
}

/// Deletes objects; what can't be deleted now is an orphan for a later sweep.
async fn delete_quietly(store: &dyn ObjectStore, keys: Vec<String>) {
    let mut deletes = futures::stream::iter(keys)
        .map(|key| async move {
            let outcome = store.delete(&key).await;
            (key, outcome)
        })
        .buffer_unordered(DELETES);
    while let Some((key, outcome)) = deletes.next().await {
        if let Err(error) = outcome {
            tracing::warn!(key, %error, "an object that nothing names could not be deleted; a later sweep will");
        }
    }
}

/// Finds and deletes the objects of closed epochs that nothing names. `tlogs` are those of the
/// cut of the epoch that is open now; nobody writes under an older epoch any more but zombies,
/// whose objects do not count.
pub(super) async fn sweep(shared: Arc<Shared>, tlogs: TLogSet, snapshots: SnapshotSet) {
    match orphans(&shared, &tlogs, &snapshots).await {
        Ok(keys) if keys.is_empty() => {}
        Ok(keys) => {
            tracing::info!(volume = %shared.id, objects = keys.len(), "deleting orphans of closed epochs");
            delete_quietly(&*shared.store, keys).await;
        }
        Err(error) => {
            tracing::warn!(volume = %shared.id, %error, "looking for orphans failed; the next open looks again")
        }
    }
}

async fn orphans(shared: &Shared, tlogs: &TLogSet, snapshots: &SnapshotSet) -> Result<Vec<String>> {
    let mut scos: BTreeSet<ScoId> = BTreeSet::new();
    let mut named: BTreeSet<(Epoch, u64)> = tlogs.pages().map(|p| (p.obj.epoch, p.obj.number)).collect();
    named.extend(snapshots.pages().map(|p| (p.obj.epoch, p.obj.number)));
    for tlog in tlogs.iter() {
        named.insert((tlog.obj.epoch, tlog.obj.number));
        scos.extend(tlogs::load(&*shared.store, shared.id, tlog).await?.dict.iter().map(|d| d.id));
    }
    let mut orphans = Vec::new();
    for object in list_all(&*shared.store, &keys::volume_prefix(shared.id)).await? {
        let orphan = match keys::parse(&object.key) {
            Ok(Key::Sco { id, .. }) if mutant::is_on("sweep-of-the-open-epoch") => !scos.contains(&id),
            Ok(Key::Sco { id, .. } | Key::Reloc { id, .. }) => id.epoch < shared.epoch && !scos.contains(&id),
            Ok(Key::TLog { id, .. } | Key::List { id, .. }) => {
                id.epoch < shared.epoch && !named.contains(&(id.epoch, id.number))
            }
            // Manifests have their own order; what we can't name is not ours to delete.
            Ok(Key::Manifest { .. } | Key::Pool) | Err(_) => false,
        };
        if orphan {
            orphans.push(object.key);
        }
    }
    Ok(orphans)
}

/// Deletes every object of a deleted volume but its Manifests.
pub(crate) async fn delete_data(store: &dyn ObjectStore, volume: VolumeId) -> Result<usize> {
    let objects = list_all(store, &keys::volume_prefix(volume)).await?;
    let data = objects
        .into_iter()
        .map(|o| o.key)
        .filter(|key| !matches!(keys::parse(key), Ok(Key::Manifest { .. })));
    let mut deletes = futures::stream::iter(data)
        .map(
            |key| async move { store.delete(&key).await.map_err(|e| e.context(format!("deleting '{key}'"))) },
        )
        .buffer_unordered(DELETES);
    let mut n = 0;
    while let Some(outcome) = deletes.next().await {
        outcome?;
        n += 1;
    }
    Ok(n)
}
