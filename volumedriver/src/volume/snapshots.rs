//! Taking snapshots, and the list of those that there are.
//!
//! A snapshot is a marker in the log: taking one is an append and a flush, whatever the backend does.
//! When its marker is committed the next Manifest lists it.

use super::Shared;
use super::tlogs::NewObject;
use crate::core::Append;
use crate::format::envelope::{Envelope, ObjectKind};
use crate::format::snapshot::{self, Description, MAX_PER_PAGE, Snapshot, SnapshotPageRef};
use crate::format::{Manifest, keys};
use crate::log::{Kind, cluster_crcs};
use bytes::Bytes;
use common::{Baseline, Epoch, Error, Lsn, ObjectStore, Result, mutant};
use parking_lot::Mutex;
use std::sync::Arc;

/// A snapshot, as a list of them shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// What was said about it.
    pub about: Description,
    /// Bytes of the volume then.
    pub size: u64,
    /// Its place in the log; `None` until the backend alone gives it back.
    pub lsn: Option<Lsn>,
}

/// The snapshots of a volume, as everybody sees them.
#[derive(Debug, Default)]
pub(crate) struct Snapshots(Mutex<Lists>);

#[derive(Debug, Default)]
struct Lists {
    /// In the log, and not in a Manifest yet.
    taken: Vec<SnapshotInfo>,
    /// In the newest Manifest.
    listed: Vec<Arc<Snapshot>>,
}

impl Snapshots {
    /// All of them, the oldest first.
    pub fn all(&self) -> Vec<SnapshotInfo> {
        let lists = self.0.lock();
        let info =
            |s: &Arc<Snapshot>| SnapshotInfo { about: s.about.clone(), size: s.size, lsn: Some(s.lsn) };
        lists.listed.iter().map(info).chain(lists.taken.iter().cloned()).collect()
    }

    /// Whether it is in the log, and not in a Manifest yet.
    pub fn is_pending(&self, id: u128) -> bool {
        self.0.lock().taken.iter().any(|s| s.about.id == id)
    }

    /// Those that the device can be compared with.
    pub fn baselines(&self) -> Vec<Baseline> {
        let lists = self.0.lock();
        let all = lists.listed.iter().map(|s| &s.about).chain(lists.taken.iter().map(|s| &s.about));
        all.map(|about| Baseline { name: about.name.clone(), id: about.id }).collect()
    }

    /// The one with this name or, in hexadecimal digits, this identity.
    pub fn find(&self, name: &str) -> Option<SnapshotInfo> {
        let all = self.all();
        let by_name = all.iter().find(|s| s.about.name == name);
        by_name.or_else(|| all.iter().find(|s| format!("{:032x}", s.about.id) == name)).cloned()
    }

    /// A marker goes to the log. `Conflict` when its name is taken.
    pub fn take(&self, about: Description, size: u64) -> Result<()> {
        let mut lists = self.0.lock();
        let names = lists.listed.iter().map(|s| &s.about).chain(lists.taken.iter().map(|s| &s.about));
        if names.into_iter().any(|other| other.name == about.name || other.id == about.id) {
            return Err(Error::conflict(format!("there is a snapshot '{}' already", about.name)));
        }
        lists.taken.push(SnapshotInfo { about, size, lsn: None });
        Ok(())
    }

    /// Its marker did not go to the log after all.
    fn give_up(&self, id: u128) {
        self.0.lock().taken.retain(|t| t.about.id != id);
    }

    /// A Manifest lists these now.
    pub fn list(&self, listed: Vec<Arc<Snapshot>>) {
        let mut lists = self.0.lock();
        lists.taken.retain(|t| listed.iter().all(|s| s.about.id != t.about.id));
        lists.listed = listed;
    }
}

/// What is to be changed in the list.
#[derive(Debug, Clone)]
pub enum SnapshotChange {
    /// The snapshot goes; what nothing else reads goes with it.
    Delete,
    /// Other words about it. `None` leaves as it is.
    Describe {
        /// Whether schedules leave it alone.
        sticky: Option<bool>,
        /// Whether the guest had nothing in flight.
        consistent: Option<bool>,
        /// At most 4,096 bytes.
        metadata: Option<Bytes>,
    },
}

/// The snapshots that the newest Manifest lists, by ascending LSN, in the pages in which they lie.
#[derive(Debug, Default, Clone)]
pub(crate) struct SnapshotSet {
    /// A page that changed has no object yet.
    pages: Vec<(Option<SnapshotPageRef>, Vec<Arc<Snapshot>>)>,
}

impl SnapshotSet {
    /// Reads the pages that the Manifest names.
    pub async fn load(store: &dyn ObjectStore, manifest: &Manifest) -> Result<SnapshotSet> {
        let mut pages = Vec::with_capacity(manifest.snapshots.len());
        for page in &manifest.snapshots {
            let key = keys::object_key(manifest.volume, &page.obj);
            let told = |e: Error| e.context(format!("page of snapshots '{key}'"));
            let (envelope, snapshots) =
                snapshot::decode(&store.get(&key).await.map_err(told)?).map_err(told)?;
            if envelope.volume != manifest.volume || snapshots.len() != page.count as usize {
                return Err(told(Error::corrupt("it is not the one that the Manifest names")));
            }
            pages.push((Some(*page), snapshots.into_iter().map(Arc::new).collect()));
        }
        Ok(SnapshotSet { pages })
    }

    /// Every snapshot.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Snapshot>> {
        self.pages.iter().flat_map(|(_, snapshots)| snapshots)
    }

    /// Every page that is an object.
    pub fn pages(&self) -> impl Iterator<Item = &SnapshotPageRef> {
        self.pages.iter().filter_map(|(page, _)| page.as_ref())
    }

    /// The one with this identity.
    pub fn find(&self, id: u128) -> Option<&Arc<Snapshot>> {
        self.iter().find(|s| s.about.id == id)
    }

    /// Adds the youngest.
    pub fn push(&mut self, snapshot: Snapshot) {
        match self.pages.last_mut() {
            Some((page, snapshots)) if snapshots.len() < MAX_PER_PAGE => {
                *page = None;
                snapshots.push(Arc::new(snapshot));
            }
            _ => self.pages.push((None, vec![Arc::new(snapshot)])),
        }
    }

    /// Changes the one with this identity, if it is there.
    pub fn change(&mut self, id: u128, change: &SnapshotChange) {
        for (page, snapshots) in &mut self.pages {
            let Some(at) = snapshots.iter().position(|s| s.about.id == id) else { continue };
            *page = None;
            match change {
                SnapshotChange::Delete => drop(snapshots.remove(at)),
                SnapshotChange::Describe { sticky, consistent, metadata } => {
                    let about = &mut Arc::make_mut(&mut snapshots[at]).about;
                    about.sticky = sticky.unwrap_or(about.sticky);
                    about.consistent = consistent.unwrap_or(about.consistent);
                    about.metadata = metadata.clone().unwrap_or_else(|| about.metadata.clone());
                }
            }
        }
        self.pages.retain(|(_, snapshots)| !snapshots.is_empty());
    }

    /// Writes the set into a Manifest; the pages to put first.
    pub fn write_into(
        &mut self,
        manifest: &mut Manifest,
        writer: u128,
        mut number: impl FnMut() -> (Epoch, u64),
    ) -> Result<Vec<NewObject>> {
        let mut objects = Vec::new();
        let volume = manifest.volume;
        for (page, snapshots) in self.pages.iter_mut().filter(|(page, _)| page.is_none()) {
            let (epoch, number) = number();
            let envelope =
                Envelope { kind: ObjectKind::SnapshotPage, volume, epoch, number, writer, compat: 0 };
            let all: Vec<Snapshot> = snapshots.iter().map(|s| Snapshot::clone(s)).collect();
            let (bytes, named) = snapshot::encode(&envelope, &all)?;
            objects.push(NewObject { key: keys::list_key(volume, epoch, number), bytes });
            *page = Some(named);
        }
        manifest.snapshots = self.pages().copied().collect();
        Ok(objects)
    }
}

/// No write of a volume gets a place in the log while this lives; snapshots do.
pub(crate) struct Frozen<'a>(&'a Shared);

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        self.0.core.lock().thaw();
        self.0.claims_free.notify_waiters();
    }
}

impl Shared {
    /// Holds writes back that have no place in the log yet.
    pub fn freeze(&self) -> Frozen<'_> {
        self.core.lock().freeze();
        Frozen(self)
    }

    /// Takes one snapshot of each volume, all at one instant: what was acknowledged before a write that is
    /// in one of them was issued is in all of them. Durable when it returns.
    pub async fn snapshot(group: &[(Arc<Shared>, Description)]) -> Result<()> {
        let mut markers = Vec::with_capacity(group.len());
        for (shared, about) in group {
            let content = about.encode_marker(shared.cluster as usize)?;
            // Nobody else waits for what we hold while we wait: credit comes before the freeze.
            let credit = shared.credits.acquire(content.len() as u64).await?;
            markers.push((shared, content, credit));
        }
        let mut submitted = Vec::with_capacity(markers.len());
        {
            let _frozen: Vec<Frozen<'_>> = match group.len() {
                // One append is one instant.
                1 => Vec::new(),
                _ => group.iter().map(|(shared, _)| shared.freeze()).collect(),
            };
            for (at, (shared, about)) in group.iter().enumerate() {
                let core = shared.core.lock();
                let taken = core.check().and_then(|()| shared.snapshots.take(about.clone(), core.size()));
                if let Err(error) = taken {
                    group[..at].iter().for_each(|(shared, about)| shared.snapshots.give_up(about.id));
                    return Err(error);
                }
            }
            for (shared, content, credit) in markers {
                let mut core = shared.core.lock();
                let count = (content.len() / shared.cluster as usize) as u64;
                let crcs = cluster_crcs(shared.id, 0, &content, shared.cluster as usize);
                let units = credit.keep();
                let append =
                    Append { kind: Kind::Snapshot, addr: 0, count, data: content, crcs, units, claim: None };
                submitted.push((shared, shared.submit_alone(&mut core, append)?));
            }
        }
        for (shared, waiting) in submitted {
            waiting.retired().await?;
            if !mutant::is_on("snapshot-not-flushed") {
                shared.flush().await?;
            }
        }
        Ok(())
    }
}
