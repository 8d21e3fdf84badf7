//! The map of a snapshot: never changes, so it is read from the TLogs page by page as it is asked for,
//! and the pages are shared by everyone who reads the snapshot: its export, and all of its clones.
//!
//! A snapshot of a clone goes on in the snapshot that the clone began as. What a map names may move (a
//! TLog is replaced, a SCO is rewritten), so the TLogs are those of the newest Manifest that was looked at,
//! and who finds an object gone asks for a fresh look.

mod cache;
mod changes;
mod page;

pub(crate) use cache::{Block, MapCache, Tree};
pub(crate) use changes::{Clusters, mark};
pub(crate) use page::Source;

use crate::format::manifest::TLogRef;
use crate::format::{Manifest, Snapshot};
use crate::index::page::{PAGE_CLUSTERS, Page};
use crate::index::{Location, Mapped};
use crate::lsns::Lsns;
use crate::volume::chain::Chain;
use crate::volume::snapshots::SnapshotSet;
use crate::volume::tlogs::TLogSet;
use cache::{Key, Node};
use common::{Error, ErrorKind, ObjectStore, Result, VolumeId, mutant};
use futures::future::BoxFuture;
use parking_lot::{Mutex, RwLock};
use std::collections::HashMap;
use std::sync::{Arc, Weak};

/// The deepest chain of clones.
pub(crate) const MAX_DEPTH: usize = 255;

/// Where a cluster of a view lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Nowhere: it reads as zeroes.
    Hole,
    /// Allocated zeroes.
    Zero,
    /// In a SCO of this volume.
    At(VolumeId, Location),
}

/// The TLogs of a view, as some Manifest named them.
struct Map {
    /// Tells the pages made of them from all others.
    number: u64,
    /// The youngest first.
    tlogs: Vec<TLogRef>,
}

/// What one snapshot sees.
pub(crate) struct View {
    volume: VolumeId,
    /// Of a head there is none.
    snapshot: Option<u128>,
    size: u64,
    store: Arc<dyn ObjectStore>,
    cache: Arc<MapCache>,
    map: RwLock<Arc<Map>>,
    parent: Option<Arc<View>>,
    depth: usize,
}

fn map(cache: &MapCache, tlogs: &TLogSet, lsns: &Lsns) -> Arc<Map> {
    let seen = |t: &&TLogRef| lsns.hold(t.lsn_lo, t.lsn_hi) || mutant::is_on("snapshot-is-the-head");
    let mut tlogs: Vec<TLogRef> = tlogs.iter().filter(seen).copied().collect();
    tlogs.reverse();
    Arc::new(Map { number: cache.next_map(), tlogs })
}

impl View {
    /// What the LSNs of a volume see that has these TLogs, and nothing that lies below.
    pub fn own(
        store: &Arc<dyn ObjectStore>,
        cache: &Arc<MapCache>,
        volume: VolumeId,
        tlogs: &TLogSet,
        snapshot: &Snapshot,
    ) -> View {
        View {
            volume,
            snapshot: Some(snapshot.about.id),
            size: snapshot.size,
            store: store.clone(),
            cache: cache.clone(),
            map: RwLock::new(map(cache, tlogs, &Lsns::of(snapshot))),
            parent: None,
            depth: 1,
        }
    }

    /// What these LSNs of a volume see, and below them `parent`: a head as its TLogs have it.
    pub fn head(
        store: &Arc<dyn ObjectStore>,
        cache: &Arc<MapCache>,
        volume: VolumeId,
        (tlogs, lsns): (&TLogSet, &Lsns),
        parent: Option<Arc<View>>,
    ) -> View {
        View {
            volume,
            snapshot: None,
            size: u64::MAX,
            store: store.clone(),
            cache: cache.clone(),
            map: RwLock::new(map(cache, tlogs, lsns)),
            depth: parent.as_ref().map_or(0, |p| p.depth),
            parent,
        }
    }

    /// Identity of the snapshot; a head has none.
    pub fn snapshot(&self) -> Option<u128> {
        self.snapshot
    }

    /// Bytes of the volume when the snapshot was taken.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Snapshots that a read may go through, this one included.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Where `count` clusters from `addr` on lie.
    pub async fn resolve(&self, addr: u64, count: u64) -> Result<Vec<Place>> {
        let mut places = vec![Place::Hole; count as usize];
        // What this level does not know, the next one may.
        let mut unknown = vec![(addr, count)];
        let mut level = Some(self);
        while let Some(view) = level.filter(|_| !unknown.is_empty()) {
            let mut below = Vec::new();
            for (first, n) in unknown {
                let out = &mut places[(first - addr) as usize..(first - addr + n) as usize];
                view.resolve_own(first, out, &mut below).await?;
            }
            unknown = below;
            level = view.parent.as_deref();
        }
        Ok(places)
    }

    async fn resolve_own(&self, addr: u64, out: &mut [Place], below: &mut Vec<(u64, u64)>) -> Result<()> {
        let map = self.map.read().clone();
        let (mut next, end) = (addr, addr + out.len() as u64);
        while next < end {
            let (number, first) = (next / PAGE_CLUSTERS, next % PAGE_CLUSTERS);
            let n = (PAGE_CLUSTERS - first).min(end - next);
            let page = self.page(&map, number).await?;
            for at in next..next + n {
                out[(at - addr) as usize] = match page.get(at % PAGE_CLUSTERS) {
                    Mapped::Hole => Place::Hole,
                    Mapped::Zero => Place::Zero,
                    Mapped::At(location) => Place::At(self.volume, location),
                    Mapped::Absent => {
                        match below.last_mut() {
                            Some((from, count)) if *from + *count == at => *count += 1,
                            _ => below.push((at, 1)),
                        }
                        continue;
                    }
                };
            }
            next += n;
        }
        Ok(())
    }

    async fn page(&self, map: &Map, number: u64) -> Result<Arc<Page>> {
        let key = Key::Page { map: map.number, number };
        let node = self.cache.get_or_make(key, || async {
            let source = page::Source { store: &*self.store, cache: &self.cache, volume: self.volume };
            page::build(&source, &map.tlogs, number).await.map(Node::Page)
        });
        match node.await? {
            Node::Page(page) => Ok(page),
            _ => Err(Error::internal("the map cache mixes its keys up")),
        }
    }

    /// Looks at the newest Manifest, of this volume and of all that it goes on in: something was gone.
    pub async fn refresh(&self) -> Result<()> {
        let mut level = Some(self);
        while let Some(view) = level {
            if let Some(snapshot) = view.snapshot {
                let (_, snapshot, tlogs) = look(&view.store, view.volume, snapshot).await?;
                *view.map.write() = map(&view.cache, &tlogs, &Lsns::of(&snapshot));
            }
            level = view.parent.as_deref();
        }
        Ok(())
    }
}

/// Manifests that may be put while one is being read, before that is given up.
const LOOKS: usize = 16;

/// What the newest Manifest of a volume says of a snapshot. `NotFound` when it does not list it.
async fn look(
    store: &Arc<dyn ObjectStore>,
    volume: VolumeId,
    snapshot: u128,
) -> Result<(Manifest, Arc<Snapshot>, TLogSet)> {
    let mut seen = None;
    for _ in 0..LOOKS {
        let chain = Chain::newest(store, volume).await?;
        let manifest = chain.current();
        let pages = async {
            let snapshots = SnapshotSet::load(&**store, manifest).await?;
            let Some(found) = snapshots.find(snapshot) else { return Ok::<_, Error>(None) };
            Ok(Some((found.clone(), TLogSet::load(&**store, manifest).await?)))
        };
        match pages.await {
            Ok(Some((found, tlogs))) => return Ok((manifest.clone(), found, tlogs)),
            Ok(None) => {
                return Err(Error::not_found(format!("volume {volume} has no snapshot {snapshot:032x}")));
            }
            // Its owner put the next one meanwhile, and collected the pages that only this one named.
            Err(e) if e.kind == ErrorKind::NotFound && seen != Some(manifest.number) => {
                seen = Some(manifest.number);
            }
            Err(e) => return Err(e),
        }
    }
    Err(Error::unavailable(format!("the Manifests of volume {volume} change faster than they can be read")))
}

/// The views that somebody reads.
#[derive(Default)]
pub(crate) struct Views(Mutex<HashMap<(VolumeId, u128), Weak<View>>>);

impl Views {
    /// The view of a snapshot that the newest Manifest of its volume lists. `NotFound` when it does not.
    pub fn get<'a>(
        &'a self,
        store: &'a Arc<dyn ObjectStore>,
        cache: &'a Arc<MapCache>,
        volume: VolumeId,
        snapshot: u128,
    ) -> BoxFuture<'a, Result<Arc<View>>> {
        Box::pin(async move {
            if let Some(view) = self.0.lock().get(&(volume, snapshot)).and_then(Weak::upgrade) {
                return Ok(view);
            }
            let (manifest, found, tlogs) = look(store, volume, snapshot).await?;
            let found = &*found;
            let parent = match &manifest.parent {
                Some(parent) => Some(self.get(store, cache, parent.volume, parent.snapshot).await?),
                None => None,
            };
            let depth = 1 + parent.as_ref().map_or(0, |p| p.depth);
            if depth > MAX_DEPTH {
                return Err(Error::corrupt(format!(
                    "volume {volume}: more than {MAX_DEPTH} clones of clones"
                )));
            }
            let view = Arc::new(View { parent, depth, ..View::own(store, cache, volume, &tlogs, found) });
            let mut views = self.0.lock();
            views.retain(|_, view| view.strong_count() > 0);
            Ok(match views.get(&(volume, snapshot)).and_then(Weak::upgrade) {
                Some(first) => first,
                None => {
                    views.insert((volume, snapshot), Arc::downgrade(&view));
                    view
                }
            })
        })
    }
}
