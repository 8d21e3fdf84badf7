//! What lies in a `directory` store, seen from outside: bytes by kind, everything that was ever put, and
//! which clusters a head or a snapshot still needs, by a walk from the newest Manifest.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use common::{Lsn, VolumeId};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use volumedriver::format::keys::{self, Key};
use volumedriver::format::{Manifest, ObjectRef, Snapshot, TLogRef, list, sco, snapshot, tlog};
use volumedriver::log::Kind;

/// How many objects there are of a kind, and their bytes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Amount {
    /// Objects.
    pub objects: u64,
    /// Bytes of all of them.
    pub bytes: u64,
}

/// Amounts by kind: `vpool`, `manifest`, `sco`, `relocation`, `tlog`, `list`.
pub type Amounts = BTreeMap<&'static str, Amount>;

/// The names and sizes of all objects in the folder of a store. One that goes while we look is left out.
pub fn objects(store: &Path) -> Result<HashMap<String, u64>> {
    let mut found = HashMap::new();
    let mut folders: Vec<PathBuf> = vec![store.into()];
    // Each folder is visited once: there are no links to folders in a store.
    while let Some(folder) = folders.pop() {
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e).with_context(|| format!("listing {}", folder.display())),
        };
        for entry in entries {
            let Ok(entry) = entry else { continue };
            let Ok(meta) = entry.metadata() else { continue };
            let path = entry.path();
            if meta.is_dir() {
                // What is not complete has no name yet, and is no object.
                if entry.file_name() != ".tmp" {
                    folders.push(path);
                }
            } else if let Ok(key) = path.strip_prefix(store) {
                found.insert(key.display().to_string(), meta.len());
            }
        }
    }
    Ok(found)
}

/// What kind of object a name is of.
pub fn kind(key: &str) -> &'static str {
    match keys::parse(key) {
        Ok(Key::Pool) => "vpool",
        Ok(Key::Manifest { .. }) => "manifest",
        Ok(Key::Sco { .. }) => "sco",
        Ok(Key::Reloc { .. }) => "relocation",
        Ok(Key::TLog { .. }) => "tlog",
        Ok(Key::List { .. }) => "list",
        Err(_) => "foreign",
    }
}

/// Sums sizes by kind.
pub fn amounts<'a>(objects: impl IntoIterator<Item = (&'a String, &'a u64)>) -> Amounts {
    let mut amounts = Amounts::new();
    for (key, len) in objects {
        let amount = amounts.entry(kind(key)).or_default();
        amount.objects += 1;
        amount.bytes += len;
    }
    amounts
}

/// All bytes of some amounts.
pub fn total(amounts: &Amounts) -> u64 {
    amounts.values().map(|amount| amount.bytes).sum()
}

/// Every object that was ever seen in a store: names are never used again, so what was put is the sum of
/// them. What comes and goes between two looks is missed.
#[derive(Debug, Default)]
pub struct Seen(HashMap<String, u64>);

impl Seen {
    /// Looks; the bytes that are there now.
    pub fn look(&mut self, store: &Path) -> Result<u64> {
        let now = objects(store)?;
        let bytes = now.values().sum();
        self.0.extend(now);
        Ok(bytes)
    }

    /// All that was seen, by kind.
    pub fn amounts(&self) -> Amounts {
        amounts(&self.0)
    }
}

/// Which clusters of a volume are needed, found without its router.
#[derive(Debug, Clone, Copy)]
pub struct Live {
    /// Bytes of clusters that the head maps.
    pub head: u64,
    /// Bytes of clusters that the head or a snapshot maps, each version counted once.
    pub all: u64,
    /// Snapshots.
    pub snapshots: usize,
}

/// One view of a volume: for each address the LSN that counts (0 for none), and whether it is data.
struct View {
    lsns: Vec<(Lsn, Lsn)>,
    map: Vec<(u64, bool)>,
}

impl View {
    fn new(lsns: Vec<(Lsn, Lsn)>, clusters: u64) -> Self {
        Self { lsns, map: vec![(0, false); clusters as usize] }
    }

    fn apply(&mut self, addr: u64, count: u64, lsn: Lsn, data: bool) {
        if !self.lsns.iter().any(|(lo, hi)| (*lo..=*hi).contains(&lsn)) {
            return;
        }
        let end = addr.saturating_add(count).min(self.map.len() as u64);
        for place in self.map.iter_mut().take(end as usize).skip(addr as usize) {
            if place.0 <= lsn.0 {
                *place = (lsn.0, data);
            }
        }
    }
}

/// The newest Manifest of a volume.
pub fn newest(store: &Path, volume: VolumeId) -> Result<Manifest> {
    let folder = store.join(keys::manifest_prefix(volume));
    let names = std::fs::read_dir(&folder).with_context(|| format!("{}", folder.display()))?;
    let first = names.filter_map(|entry| Some(entry.ok()?.path())).min().context("no Manifest")?;
    Ok(Manifest::decode(&std::fs::read(first)?)?)
}

/// Walks from the newest Manifest over list pages, TLogs, the tail and the snapshots. The router must have
/// stopped. Takes 16 bytes of memory for each cluster of the volume and each snapshot.
pub fn live(store: &Path, volume: VolumeId) -> Result<Live> {
    let manifest = newest(store, volume)?;
    let read = |what: &ObjectRef| -> Result<Vec<u8>> {
        let key = keys::object_key(volume, what);
        std::fs::read(store.join(&key)).with_context(|| format!("object '{key}'"))
    };
    let mut snapshots: Vec<Snapshot> = Vec::new();
    for page in &manifest.snapshots {
        snapshots.extend(snapshot::decode(&read(&page.obj)?)?.1);
    }
    let mut tlogs: Vec<TLogRef> = Vec::new();
    for page in &manifest.pages {
        tlogs.extend(list::decode(&read(&page.obj)?)?.1);
    }
    tlogs.extend(&manifest.tlogs);

    let cluster = 1u64 << manifest.cluster_log2;
    let clusters = manifest.size / cluster;
    let everything = vec![(Lsn(1), Lsn(u64::MAX))];
    let head = if manifest.head.is_empty() { everything } else { manifest.head.clone() };
    let mut views = vec![View::new(head, clusters)];
    views.extend(snapshots.iter().map(|snapshot| View::new(snapshot.view.clone(), clusters)));
    for named in &tlogs {
        let (_, tlog) = tlog::decode(&read(&named.obj)?)?;
        for view in &mut views {
            for e in &tlog.entries {
                view.apply(e.addr, e.count, e.lsn, e.kind == Kind::Data);
            }
        }
    }
    let mut tail = manifest.tail.first_sco;
    // Dense numbers, so it ends where the log does.
    loop {
        let id = sco::ScoId { epoch: manifest.tail.epoch, number: tail };
        let path = store.join(keys::sco_key(volume, id));
        let Ok(bytes) = std::fs::read(&path) else { break };
        let sco = sco::decode(&Bytes::from(bytes)).with_context(|| path.display().to_string())?;
        for e in &sco.index.entries {
            // A snapshot in the tail is not in a Manifest yet; after a drain there is none.
            ensure!(e.kind != Kind::Snapshot, "a snapshot that no Manifest lists: drain first");
            for view in views.iter_mut().filter(|_| e.kind.is_range()) {
                view.apply(e.addr, e.count, e.lsn, e.kind == Kind::Data);
            }
        }
        tail += 1;
    }
    let (mut in_head, mut all) = (0, 0);
    let mut versions = Vec::with_capacity(views.len());
    for addr in 0..clusters as usize {
        versions.clear();
        versions.extend(views.iter().map(|view| view.map[addr]).filter(|(_, data)| *data));
        in_head += u64::from(views[0].map[addr].1);
        versions.sort_unstable();
        versions.dedup();
        all += versions.len() as u64;
    }
    Ok(Live { head: in_head * cluster, all: all * cluster, snapshots: snapshots.len() })
}
