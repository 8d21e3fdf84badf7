//! Deleting what nothing names: replaced Manifests and list pages, what crashed uploads and scrubs of closed
//! epochs left behind, and whole volumes. What of a volume nobody reads any more, `scrub` finds.

use super::Shared;
use super::chain::Chain;
use super::merge::source;
use super::pump::Pump;
use super::snapshots::SnapshotSet;
use super::tlogs::TLogSet;
use crate::format::keys::{self, Key};
use crate::format::manifest::{Manifest, ManifestKind};
use crate::format::sco::ScoId;
use crate::lsns::Lsns;
use common::object::list_all;
use common::{Epoch, ObjectStore, Result, VolumeId, mutant};
use futures::StreamExt;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// Dead bytes that are worth a TLog and a Manifest: this much, or an eighth of what is stored.
pub(super) const WORTH: u64 = 64 << 20;

/// Deletes that run at a time.
const DELETES: usize = 16;

impl Pump {
    /// Whether a TLog is in no view: neither in the head nor in a snapshot.
    pub(super) fn has_unseen(&self) -> bool {
        let views = self.views();
        self.tlogs.iter().any(|t| !views.iter().any(|lsns| lsns.hold(t.lsn_lo, t.lsn_hi)))
    }

    /// Which LSNs somebody reads: those of the head and of each snapshot.
    pub(super) fn views(&self) -> Vec<Lsns> {
        let head = Lsns::head(self.chain.current());
        std::iter::once(head).chain(self.snapshots.iter().map(|s| Lsns::of(s))).collect()
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

/// Deletes objects; what can't be deleted now is an orphan for a later sweep.
pub(super) async fn delete_quietly(store: &dyn ObjectStore, keys: Vec<String>) {
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

/// The gap between deletes that nobody waits for, beside clients: each takes a few milliseconds of a disk.
const GAP: Duration = Duration::from_millis(20);

/// As [`delete_quietly`], one after the other, with gaps in which clients are served.
pub(super) async fn delete_gently(shared: Arc<Shared>, keys: Vec<String>) {
    let mut seen = shared.demand.count();
    for key in keys {
        delete_quietly(&*shared.store, vec![key]).await;
        if shared.demand.since(&mut seen) {
            shared.clock.sleep(GAP).await;
        }
    }
}

/// When it is looked for orphans a second time, after the open, and the time between later looks: what a fenced
/// owner had under way may arrive late.
const SECOND_LOOK: Duration = Duration::from_secs(3600);
const LATER_LOOKS: Duration = Duration::from_secs(24 * 3600);

/// Finds and deletes the objects of closed epochs that nothing names, now and then again. Nobody writes under an
/// older epoch any more but zombies, whose objects do not count: what the newest Manifest does not name, none will.
pub(super) async fn sweep(shared: Arc<Shared>) {
    let mut wait = SECOND_LOOK;
    loop {
        match orphans(&shared).await {
            Ok(keys) if keys.is_empty() => {}
            Ok(keys) => {
                tracing::info!(volume = %shared.id, objects = keys.len(), "deleting orphans of closed epochs");
                delete_quietly(&*shared.store, keys).await;
            }
            Err(error) => {
                tracing::warn!(volume = %shared.id, %error, "looking for orphans failed; it is looked again");
            }
        }
        shared.clock.sleep(wait).await;
        wait = LATER_LOOKS;
    }
}

async fn orphans(shared: &Shared) -> Result<Vec<String>> {
    // The objects first: what comes later is of an epoch that is open.
    let objects = list_all(&*shared.store, &keys::volume_prefix(shared.id)).await?;
    let chain = Chain::newest(&shared.store, shared.id).await?;
    let manifest = chain.current();
    if manifest.epoch != shared.epoch {
        return Ok(Vec::new());
    }
    let tlogs = TLogSet::load(&*shared.store, manifest).await?;
    let snapshots = SnapshotSet::load(&*shared.store, manifest).await?;
    let mut scos: BTreeSet<ScoId> = BTreeSet::new();
    let mut named: BTreeSet<(Epoch, u64)> = tlogs.pages().map(|p| (p.obj.epoch, p.obj.number)).collect();
    named.extend(snapshots.pages().map(|p| (p.obj.epoch, p.obj.number)));
    let source = source(shared);
    for tlog in tlogs.iter() {
        named.insert((tlog.obj.epoch, tlog.obj.number));
        scos.extend(source.tree(tlog).await?.index.dict.iter().map(|d| d.id));
    }
    let mut orphans = Vec::new();
    for object in objects {
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
