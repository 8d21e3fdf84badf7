//! Opening a volume: fence, scan, recover, record the cut, serve. The same after a clean stop, a
//! crash, and the loss of the data directory; every open is a takeover with a new epoch.
//!
//! 1. *Fence*: put the next Manifest with the new epoch. From here on an older owner can't commit.
//! 2. *Scan* the tail: the SCOs that no TLog covers, upward until the first gap.
//! 3. *Recover* the journal's entries behind them: the contiguous run that the history allows.
//! 4. *Cut*: put a Manifest that covers the scanned SCOs with a TLog and records where every older
//!    epoch ended. What arrives late under an older epoch does not count.
//! 5. *Serve*. The recovered entries are sealed again, under the new epoch.
//!
//! A rollback is an open whose cut moves the head: one Manifest, so it happened or it did not.

use super::chain::Chain;
use super::differences::Changes;
use super::pump::Pump;
use super::replicas::Replicas;
use super::snapshots::{SnapshotSet, Snapshots};
use super::takeover;
use super::tlogs::{self, TLogSet, TailSco};
use super::{MemoryBudget, Shared, Volume};
use crate::config::Settings;
use crate::core::Core;
use crate::credit::{Account, Credits, Left};
use crate::demand::Demand;
use crate::format::envelope::{BLOCK, ObjectKind};
use crate::format::keys;
use crate::format::manifest::{HistoryEntry, Manifest, ManifestKind, TLogRef, Tail};
use crate::format::sco::{self, ScoHeader, ScoId};
use crate::format::snapshot::{Description, MAX_RANGES, Snapshot};
use crate::index::{self, Index, PageBudget};
use crate::journal::{Damage, Journal, RecoveredEntry, RecoveredVolume};
use crate::log::{Kind, cluster_crc};
use crate::lsns::Lsns;
use crate::metrics::Metrics;
use crate::pool::Pool;
use crate::read_cache::ReadCache;
use crate::replication::{Opening, Recovered};
use crate::view::{MapCache, View, Views};
use common::{Clock, Epoch, Error, ErrorKind, Lsn, ObjectStore, Result, Table, VolumeId, mutant};
use dtl::owner::Owner;
use futures::{StreamExt, TryStreamExt};
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, OnceLock};
use tokio::sync::{Notify, Semaphore, mpsc};

/// Tail SCOs that are read at a time.
const SCANS: usize = 8;

/// Bytes at the end of a SCO that usually hold its whole index.
const INDEX_GUESS: u64 = 128 << 10;

/// Bytes of TLogs above the local index's watermark that are read before the volume serves. More than that, and the
/// index is made anew beside.
const MAX_MISSED: u64 = 16 << 20;

/// Foreign Manifests that may come between before opening gives up.
const FENCE_TRIES: usize = 16;

/// What all volumes of a router share, as one of them needs it.
pub(crate) struct Home {
    pub clock: Arc<dyn Clock>,
    pub journal: Arc<Journal>,
    pub table: Arc<dyn Table>,
    pub settings: Settings,
    pub memory: Arc<MemoryBudget>,
    pub cache: Arc<ReadCache>,
    pub pages: Arc<PageBudget>,
    pub maps: Arc<MapCache>,
    pub views: Arc<Views>,
    pub uploads: Arc<Semaphore>,
    pub device: Arc<Account>,
    pub left: Arc<Left>,
    pub metrics: Metrics,
    pub demand: Arc<Demand>,
    /// The highest epoch that the journal has of each volume that it found at the start.
    pub epochs: HashMap<VolumeId, Epoch>,
    /// Volumes that this process created: what an earlier one left in the journal is not theirs.
    pub created: Mutex<HashSet<VolumeId>>,
}

/// A volume whose older owners can't commit any more.
struct Fenced {
    chain: Chain,
    /// The epoch that the backend knew.
    before: Epoch,
}

/// What the cut of an open covers and records.
struct Image {
    chain: Chain,
    tlogs: TLogSet,
    snapshots: SnapshotSet,
    /// The head from now on.
    head: Lsns,
    /// TLogs and pages that this epoch has put.
    next_object: u64,
}

/// Opens the volume with an epoch of at least `epoch`, as it was or, if so, as a snapshot has it.
pub(crate) async fn open(
    home: &Home,
    pool: &Pool,
    account: Arc<Account>,
    id: VolumeId,
    epoch: Epoch,
    back_to: Option<u128>,
    opening: Option<&Opening>,
) -> Result<Volume> {
    let store = pool.store.clone();
    let started = home.clock.now();
    let Fenced { chain, before } = fence(home, &store, id, epoch).await?;
    let behind = opening.filter(|opening| {
        before >= opening.registration.claimed && !mutant::is_on("registry-of-before-believed")
    });
    let corrected = behind.map(|opening| opening.older_than(before, home.epochs.get(&id).copied()));
    let opening = corrected.as_ref().or(opening);
    let fenced = chain.current().clone();
    let epoch = fenced.epoch;
    if 1u32.checked_shl(u32::from(fenced.cluster_log2)) != Some(pool.info.cluster_size) {
        return Err(Error::corrupt(format!("volume {id}: its cluster size is not that of the vPool")));
    }

    let tail = scan(&store, &fenced).await?;
    let covered = tail.last().map_or(fenced.tlog_lsn, |s| s.lsn_hi);
    let mut image = Image {
        tlogs: TLogSet::load(&*store, &fenced).await?,
        snapshots: SnapshotSet::load(&*store, &fenced).await?,
        head: Lsns::head(&fenced),
        next_object: 0,
        chain,
    };
    let size = cover(&store, &fenced, &tail, &mut image).await?;
    if let Some(snapshot) = back_to {
        image.head = rolled_back(&fenced, &image, snapshot, covered)?;
    }
    let of = index::Of {
        head: image.head.to_bytes(),
        relocations: fenced.relocations,
        above_parent: fenced.parent.is_some(),
    };
    let index = load_index(home, &store, id, &image, of, covered).await?;
    let parent = match &fenced.parent {
        Some(p) => {
            let view = home.views.get(&store, &home.maps, p.volume, p.snapshot).await;
            Some(view.map_err(|e| match e.kind {
                ErrorKind::NotFound => {
                    Error::corrupt(format!("volume {id} is a clone, and its origin is gone: {e}"))
                }
                _ => e.context(format!("volume {id} is a clone")),
            })?)
        }
        None => None,
    };
    let base = (!index.is_whole()).then(|| {
        let head = (&image.tlogs, &image.head);
        Arc::new(View::head(&store, &home.maps, id, head, parent.clone()))
    });
    let shared = Arc::new(Shared {
        id,
        epoch,
        cluster: pool.info.cluster_size,
        sco_size: fenced.sco_size,
        store: store.clone(),
        clock: home.clock.clone(),
        journal: home.journal.clone(),
        settings: home.settings.clone(),
        core: Mutex::new(Core::new(id, epoch, pool.info.cluster_size, size, covered)),
        index,
        credits: Credits {
            volume: Account::new(home.device.limit_bytes() / 2),
            pool: account,
            device: home.device.clone(),
        },
        left: home.left.clone(),
        memory: home.memory.clone(),
        cache: home.cache.clone(),
        reads: Default::default(),
        maps: home.maps.clone(),
        parent,
        base: RwLock::new(base),
        last_object: AtomicU64::new(image.next_object),
        next_reloc: AtomicU64::new(1),
        demand: home.demand.clone(),
        snapshots: Snapshots::default(),
        changes: Changes::default(),
        metrics: home.metrics.clone(),
        trouble: Default::default(),
        scrubbing: Default::default(),
        tlog_bytes: AtomicU64::new(0),
        wake: Notify::new(),
        history: OnceLock::new(),
        replicas: opening.map(|opening| Replicas::new(opening.peers.clone())),
        authority: opening.map(|opening| opening.authority.clone()),
        closed: AtomicBool::new(false),
        claims_free: Notify::new(),
    });

    let mut recovered = home.journal.attach(id, shared.clone()).await?;
    if home.created.lock().contains(&id) {
        recovered.damage.retain(|damage| !matches!(damage, Damage::Gap { .. }));
    }
    let outcome = finish(home, &shared, &mut image, covered, recovered, back_to.is_some(), opening).await;
    let (replayed, tails) = match outcome {
        Ok(replayed) => replayed,
        Err(error) => {
            home.journal.detach(id);
            return Err(error);
        }
    };
    home.journal.release(id, covered);

    let (commands, inbox) = mpsc::channel(16);
    let Image { chain, tlogs, snapshots, .. } = image;
    let pump = Pump::new(shared.clone(), chain, (tlogs, snapshots), home.uploads.clone(), inbox);
    let pump = tokio::spawn(pump.run());
    if let Some(replicas) = &shared.replicas {
        replicas.start(&shared, tails);
    }
    let took = home.clock.now().saturating_sub(started);
    tracing::info!(volume = %id, %epoch, committed = %covered, replayed, tail_scos = tail.len(), ?took, "volume open");
    Ok(Volume { shared, commands, pump: Mutex::new(Some(pump)), views: home.views.clone() })
}

/// Covers the tail with TLogs, each up to a snapshot or to the end; the size of the volume then.
async fn cover(
    store: &Arc<dyn ObjectStore>,
    fenced: &Manifest,
    tail: &[TailSco],
    image: &mut Image,
) -> Result<u64> {
    let mut size = fenced.size;
    for part in tail.split_inclusive(|sco| sco.marker.is_some()) {
        let Some(tlog) = tlogs::merge(part) else { continue };
        image.next_object += 1;
        let name = ScoId { epoch: fenced.epoch, number: image.next_object };
        let (object, named) = tlogs::encode(fenced.volume, name, fenced.writer, &tlog)?;
        super::persist::put_own(&**store, &object.key, &[object.bytes]).await?;
        image.tlogs.push(named);
        let entries = part.iter().flat_map(|s| &s.index.entries);
        size = entries.filter(|e| e.kind == Kind::Resize).map(|e| e.addr).fold(size, u64::max);
        if let Some(TailSco { lsn_hi, marker: Some(about), .. }) = part.last() {
            let (about, lsn, view) = (about.clone(), *lsn_hi, image.head.up_to(*lsn_hi));
            image.snapshots.push(Snapshot { about, lsn, size, view });
        }
    }
    Ok(size)
}

/// The head after a rollback to a snapshot.
fn rolled_back(fenced: &Manifest, image: &Image, snapshot: u128, covered: Lsn) -> Result<Lsns> {
    let Some(snapshot) = image.snapshots.find(snapshot) else {
        return Err(Error::not_found(format!("volume {} has no snapshot {snapshot:032x}", fenced.volume)));
    };
    let head = Lsns::of(snapshot).rolled_back(covered);
    match head.len() <= MAX_RANGES {
        true => Ok(head),
        false => Err(Error::new(
            ErrorKind::Unsupported,
            format!("volume {} was rolled back too often: clone the snapshot instead", fenced.volume),
        )),
    }
}

/// Steps 3 and 4, with the journal attached; the number of entries that were recovered from it.
async fn finish(
    home: &Home,
    shared: &Arc<Shared>,
    image: &mut Image,
    covered: Lsn,
    recovered: RecoveredVolume,
    rollback: bool,
    opening: Option<&Opening>,
) -> Result<(usize, Vec<dtl::registration::Tail>)> {
    let fenced = image.chain.current().clone();
    let mut run = contiguous(&fenced, covered, recovered)?;
    let mut lost = None;
    if let Some(opening) = opening {
        let cut = |epoch| fenced.last_lsn(epoch);
        let tail = takeover::recover(shared, opening, covered, &cut, run).await?;
        (run, lost) = (tail.run, tail.lost);
    }
    let last = Lsn(covered.0 + run.len() as u64);
    if rollback && !run.is_empty() {
        // They would come behind the snapshot, and snapshots among them would be lost.
        return Err(Error::conflict(format!(
            "volume {}: {} writes are not on the backend yet: it can't be rolled back now",
            shared.id,
            run.len()
        )));
    }
    let markers = markers(shared, &run).await?;

    let mut cut = image.chain.successor(ManifestKind::Cut);
    cut.size = shared.core.lock().committed_size();
    cut.tail = Tail { epoch: shared.epoch, first_sco: 1 };
    cut.tlog_lsn = covered;
    if !mutant::is_on("rollback-forgotten") {
        cut.head = image.head.to_manifest();
    }
    record_cut(&mut cut, fenced.tail.epoch, last);
    let history = cut.history.clone();
    let epoch = shared.epoch;
    let name = || (epoch, shared.object_number());
    let mut pages = image.tlogs.write_into(&mut cut, fenced.writer, name)?;
    pages.extend(image.snapshots.write_into(&mut cut, fenced.writer, name)?);
    for page in &pages {
        super::persist::put_own(&*shared.store, &page.key, std::slice::from_ref(&page.bytes)).await?;
    }
    let key = keys::manifest_key(shared.id, cut.number);
    if mutant::is_on("serves-before-the-cut") {
        // The epoch that begins is recorded by whatever Manifest comes next.
        cut.number = 0;
    }
    match if cut.number == 0 { Ok(()) } else { image.chain.put(cut).await } {
        Err(e) if e.kind == ErrorKind::Conflict => return Err(image.chain.foreign(&key).await),
        outcome => outcome?,
    }
    // Said once, before anybody can ask.
    let _ = shared.history.set(history);
    // Only now is it known how far the epoch went that ended: the registry is told, and who has its end.
    let begun = match opening {
        Some(opening) => {
            let recovered = Recovered { epoch, committed: covered, last, lost };
            Some((opening.peers.begin(shared.id, recovered).await?, opening.patience))
        }
        None => None,
    };
    shared.tlog_bytes.store(image.tlogs.bytes(), std::sync::atomic::Ordering::Relaxed);
    let listed: Vec<_> = image.snapshots.iter().cloned().collect();
    shared.changes.named(image.chain.current(), &image.tlogs, listed.clone());
    shared.snapshots.list(listed);

    let replayed = run.len();
    home.left.settle(shared.id);
    let now = home.clock.now();
    let mut core = shared.core.lock();
    for entry in run {
        let units = shared.credits.take_now(entry.loc.len() as u64);
        let marker = markers.get(&entry.lsn);
        core.replay(entry, units, now);
        if let Some(about) = marker {
            shared.snapshots.take(about.clone(), core.size())?;
        }
    }
    let tails = begun.map(|(registration, patience)| {
        core.replicate(Owner::new(epoch, registration.config, last, patience));
        registration.tails
    });
    Ok((replayed, tails.unwrap_or_default()))
}

/// The snapshots whose markers are among these entries of the write buffer.
async fn markers(shared: &Shared, run: &[RecoveredEntry]) -> Result<BTreeMap<Lsn, Description>> {
    let mut markers = BTreeMap::new();
    for e in run.iter().filter(|e| e.kind == Kind::Snapshot) {
        let what = "reading the write buffer";
        let read = || shared.read_journal(e.lsn, e.addr, &e.loc, 0, &e.crcs);
        markers.insert(e.lsn, Description::decode_marker(&shared.persist(what, read).await?)?);
    }
    Ok(markers)
}

/// Step 1. A foreign Manifest that comes between only means: read again, one epoch higher.
async fn fence(home: &Home, store: &Arc<dyn ObjectStore>, id: VolumeId, epoch: Epoch) -> Result<Fenced> {
    let journal = home.epochs.get(&id).copied().unwrap_or_default();
    for _ in 0..FENCE_TRIES {
        let mut chain = Chain::newest(store, id).await?;
        let newest = chain.current();
        if newest.kind == ManifestKind::Deleted {
            return Err(Error::not_found(format!("volume {id} is deleted")));
        }
        let before = newest.epoch;
        let mut fence = chain.successor(ManifestKind::Fence);
        fence.epoch = epoch.max(journal.next()).max(newest.epoch.next());
        if mutant::is_on("epoch-not-raised") {
            fence.epoch = newest.epoch;
        }
        fence.writer = home.clock.random_u128();
        match chain.put(fence).await {
            Ok(()) => return Ok(Fenced { chain, before }),
            Err(e) if e.kind == ErrorKind::Conflict => continue,
            Err(e) => return Err(e),
        }
    }
    Err(Error::unavailable(format!("volume {id}: other routers keep opening it")))
}

/// Step 2: the tail's SCOs from the first one on, without a gap.
pub(crate) async fn scan(store: &Arc<dyn ObjectStore>, manifest: &Manifest) -> Result<Vec<TailSco>> {
    let Tail { epoch, first_sco } = manifest.tail;
    let listed = list_scos(store, manifest.volume, epoch, first_sco).await?;
    let dense: Vec<(u64, u64)> =
        (first_sco..).map_while(|number| listed.get(&number).map(|len| (number, *len))).collect();
    let dense = match mutant::is_on("scan-goes-on-behind-a-gap") {
        true => listed.iter().map(|(number, len)| (*number, *len)).collect(),
        false => dense,
    };
    let gap = first_sco + dense.len() as u64;
    for (&number, &len) in listed.range(gap..) {
        let (_, header) = read_sco(store, manifest, ScoId { epoch, number }, len).await?;
        if header.committed_sco >= gap && !mutant::is_on("missing-sco-is-the-end") {
            return Err(Error::corrupt(format!(
                "object '{}' is missing: SCO {epoch}/{number} knew it as committed",
                keys::sco_key(manifest.volume, ScoId { epoch, number: gap })
            )));
        }
    }
    let tail: Vec<TailSco> = futures::stream::iter(dense)
        .map(|(number, len)| async move {
            read_sco(store, manifest, ScoId { epoch, number }, len).await.map(|(sco, _)| sco)
        })
        .buffered(SCANS)
        .try_collect()
        .await?;
    let mut before = manifest.tlog_lsn;
    for sco in &tail {
        if sco.lsn_lo != before.next() && !mutant::is_on("scan-goes-on-behind-a-gap") {
            return Err(Error::corrupt(format!(
                "object '{}' begins at LSN {} and should at {}",
                keys::sco_key(manifest.volume, sco.id),
                sco.lsn_lo,
                before.next()
            )));
        }
        before = sco.lsn_hi;
    }
    Ok(tail)
}

async fn list_scos(
    store: &Arc<dyn ObjectStore>,
    volume: VolumeId,
    epoch: Epoch,
    first: u64,
) -> Result<BTreeMap<u64, u64>> {
    let prefix = keys::sco_prefix(volume, epoch);
    let mut after = (first > 1).then(|| keys::sco_key(volume, ScoId { epoch, number: first - 1 }));
    let mut listed = BTreeMap::new();
    loop {
        let page = store.list(&prefix, after.as_deref(), false, 1000).await?;
        for object in page.objects {
            if let Ok(keys::Key::Sco { id, .. }) = keys::parse(&object.key) {
                listed.insert(id.number, object.len);
            }
        }
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(listed),
        }
    }
}

/// Reads what a SCO says of itself, without its clusters.
async fn read_sco(
    store: &Arc<dyn ObjectStore>,
    manifest: &Manifest,
    id: ScoId,
    len: u64,
) -> Result<(TailSco, ScoHeader)> {
    let key = keys::sco_key(manifest.volume, id);
    let told = |e: Error| e.context(format!("object '{key}'"));
    let head = store.get_range(&key, 0..(BLOCK as u64).min(len)).await?;
    let (envelope, header) = sco::decode_head(&head).map_err(told)?;
    if envelope.volume != manifest.volume
        || envelope.kind != ObjectKind::LogSco
        || (envelope.epoch, envelope.number) != (id.epoch, id.number)
        || header.cluster_log2 != manifest.cluster_log2
    {
        return Err(told(Error::corrupt("it is not the SCO that its name says")));
    }
    let from = len.saturating_sub(INDEX_GUESS);
    let end = store.get_range(&key, from..len).await?;
    let footer = sco::decode_footer(&end, len).map_err(told)?;
    let (off, index_end) = (footer.index_off, footer.index_off + footer.index_len);
    let bytes = if off >= from {
        end.slice((off - from) as usize..(index_end - from) as usize)
    } else {
        store.get_range(&key, off..index_end).await?
    };
    let index = sco::decode_index(&envelope, &header, &footer, &bytes).map_err(told)?;
    let (lsn_lo, lsn_hi) = (header.lsn_lo, header.lsn_hi);
    let mut marker = None;
    if let Some(e) = index.entries.iter().find(|e| e.kind == Kind::Snapshot) {
        if e.lsn != lsn_hi {
            return Err(told(Error::corrupt(format!("it goes on behind the snapshot at LSN {}", e.lsn))));
        }
        let cluster = header.cluster_size();
        let from = sco::cluster_offset(e.slot, cluster);
        let content = store.get_range(&key, from..from + e.count * u64::from(cluster)).await?;
        let crcs = index.crcs.get(e.slot as usize..).unwrap_or_default();
        let clusters = content.chunks(cluster as usize).zip(0..);
        if clusters.zip(crcs).any(|((data, addr), crc)| cluster_crc(manifest.volume, addr, data) != *crc) {
            return Err(told(Error::corrupt("the marker of a snapshot has a wrong checksum")));
        }
        marker = Some(Description::decode_marker(&content).map_err(told)?);
    }
    Ok((TailSco { id, len, lsn_lo, lsn_hi, index, marker }, header))
}

/// The committed head map: what the local table has, and what TLogs say above its watermark.
async fn load_index(
    home: &Home,
    store: &Arc<dyn ObjectStore>,
    id: VolumeId,
    image: &Image,
    of: index::Of,
    covered: Lsn,
) -> Result<Index> {
    let (index, watermark) = Index::open(id, home.table.clone(), home.pages.clone(), covered, of)?;
    let in_head = |t: &&TLogRef| t.lsn_hi > watermark && image.head.hold(t.lsn_lo, t.lsn_hi);
    let missed: u64 = image.tlogs.iter().filter(in_head).map(|t| t.obj.len).sum();
    if watermark == Lsn(0) || missed > MAX_MISSED {
        // It is filled in while the volume serves.
        index.begin_anew(covered, missed == 0)?;
        return Ok(index);
    }
    let mut applied = watermark;
    for named in image.tlogs.iter().filter(in_head) {
        if named.lsn_hi > applied && index.checkpoint_due() {
            // All TLogs of those LSNs are in it: of one that is merged there may be several.
            index.checkpoint(applied)?;
        }
        let tlog = tlogs::load(&**store, id, named).await?;
        for sco in &tlog.dict {
            index.add_sco(sco.id, sco.len, named.lsn_hi, named.lsn_hi);
        }
        index.apply(&tlogs::changes(&tlog))?;
        applied = named.lsn_hi;
    }
    if applied > watermark {
        index.checkpoint(applied)?;
    }
    Ok(index)
}

/// Step 3: which of the journal's entries count: behind `covered`, without a hole, of the epoch
/// that wrote the tail or of an older one up to where the history says it ended.
fn contiguous(manifest: &Manifest, covered: Lsn, recovered: RecoveredVolume) -> Result<Vec<RecoveredEntry>> {
    let counts = |epoch: Epoch, lsn: Lsn| {
        let end = manifest.last_lsn(epoch);
        if mutant::is_on("journal-ignores-the-cut") {
            return lsn > covered;
        }
        lsn > covered
            && (end.is_some_and(|end| lsn <= end) || (end.is_none() && epoch == manifest.tail.epoch))
    };
    for damage in &recovered.damage {
        let harmful = match damage {
            Damage::Payload { epoch, lsn, .. } => counts(*epoch, *lsn),
            Damage::Gap { .. } => true,
        };
        if harmful {
            return Err(Error::corrupt(format!(
                "volume {}: the write buffer is damaged: {damage}",
                manifest.volume
            )));
        }
    }
    let mut run: Vec<RecoveredEntry> = Vec::new();
    for entry in recovered.entries.into_iter().filter(|e| counts(e.epoch, e.lsn)) {
        let next = Lsn(covered.0 + run.len() as u64 + 1);
        if entry.lsn == next {
            run.push(entry);
        } else if entry.lsn > next {
            return Err(Error::corrupt(format!(
                "volume {}: the write buffer has LSN {} and misses LSN {next}",
                manifest.volume, entry.lsn
            )));
        } else if let Some(last) = run.last_mut()
            && entry.epoch > last.epoch
        {
            // Two epochs can't both have this LSN within their history.
            return Err(Error::corrupt(format!(
                "volume {}: LSN {} is in the write buffer with epochs {} and {}",
                manifest.volume, entry.lsn, last.epoch, entry.epoch
            )));
        }
    }
    Ok(run)
}

/// Writes into the history that the epoch `ended` goes up to `last`, and that no older one goes
/// beyond: an old data directory that comes back adds nothing.
fn record_cut(manifest: &mut Manifest, ended: Epoch, last: Lsn) {
    for entry in &mut manifest.history {
        if !mutant::is_on("cut-does-not-bound") {
            entry.last_lsn = entry.last_lsn.min(last);
        }
    }
    manifest.history.push(HistoryEntry { epoch_lo: ended, epoch_hi: ended, last_lsn: last });
    manifest.fold_history();
}
