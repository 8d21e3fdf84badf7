//! Checks a volume's backend image end to end: every object there, every checksum right, every
//! address resolves. Reads only; may run while a router serves the volume.

use crate::extent_map::ExtentMap;
use crate::format::keys::{self, Key};
use crate::format::manifest::{Manifest, manifest_crc};
use crate::format::sco::{self, Sco, ScoId};
use crate::log::Kind;
use crate::lsns::Lsns;
use crate::pool::Pool;
use crate::volume::chain::Chain;
use crate::volume::open::scan;
use crate::volume::snapshots::SnapshotSet;
use crate::volume::tlogs::{self, TLogSet};
use common::object::list_all;
use common::{ErrorKind, Result, VolumeId};
use futures::StreamExt;
use std::collections::{BTreeMap, BTreeSet};

/// SCOs that are read at a time.
const READS: usize = 4;

/// How often the check begins again when the image changed under it.
const TRIES: usize = 5;

/// What a check found.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Number of the Manifest that was checked.
    pub manifest: u64,
    /// Bytes of the volume.
    pub size: u64,
    /// Manifests, list pages, TLogs and SCOs that were read whole.
    pub objects: u64,
    /// Bytes of those.
    pub bytes: u64,
    /// Clusters whose checksum was verified.
    pub clusters: u64,
    /// Clusters that the head maps.
    pub mapped: u64,
    /// Snapshots.
    pub snapshots: u64,
    /// What is wrong, each by the name of the object. Empty means that the image is whole.
    pub problems: Vec<String>,
    /// Objects that nothing names: space, not damage.
    pub orphans: Vec<String>,
}

/// Where the head says that a run of clusters lies.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Place {
    base: u64,
    sco: ScoId,
    slot: u32,
}

/// What the check knows of a SCO before it reads it.
#[derive(Default)]
struct Expected {
    len: Option<u64>,
    /// Runs of the head: address, slot, checksums.
    runs: Vec<(u64, u32, Vec<u32>)>,
}

/// Checks the image; `progress` is told the number of SCOs that were read, and of all.
///
/// An error means that the check itself could not go on (no such volume, store away).
pub async fn check(pool: &Pool, id: VolumeId, progress: &mut (dyn FnMut(u64, u64) + Send)) -> Result<Report> {
    let mut last = None;
    for _ in 0..TRIES {
        let chain = Chain::newest(&pool.store, id).await?;
        let report = check_once(pool, chain.current(), progress).await?;
        if report.problems.is_empty() {
            return Ok(report);
        }
        // A router at work replaces and deletes; what is wrong with an image that stands still is wrong.
        let moved = Chain::newest(&pool.store, id).await?.current().number != report.manifest;
        last = Some(report);
        if !moved {
            break;
        }
    }
    Ok(last.unwrap_or_default())
}

async fn check_once(
    pool: &Pool,
    manifest: &Manifest,
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Result<Report> {
    let mut report = Report { manifest: manifest.number, size: manifest.size, ..Report::default() };
    let id = manifest.volume;
    let listed: BTreeMap<String, u64> =
        list_all(&*pool.store, &keys::volume_prefix(id)).await?.into_iter().map(|o| (o.key, o.len)).collect();
    check_chain(pool, id, &listed, &mut report).await?;

    let mut named: BTreeSet<String> = BTreeSet::new();
    let set = match TLogSet::load(&*pool.store, manifest).await {
        Ok(set) => set,
        Err(e) => return fault(report, e),
    };
    for page in set.pages() {
        named.insert(keys::object_key(id, &page.obj));
        report.objects += 1;
    }
    match SnapshotSet::load(&*pool.store, manifest).await {
        Ok(snapshots) => {
            named.extend(snapshots.pages().map(|page| keys::object_key(id, &page.obj)));
            report.objects += snapshots.pages().count() as u64;
            report.snapshots = snapshots.iter().count() as u64;
        }
        Err(e) => report = fault(report, e)?,
    }
    let mut head: ExtentMap<Option<Place>> = ExtentMap::default();
    // By slot; what no entry mentions stays 0 and is never asked for.
    let mut crcs: BTreeMap<ScoId, Vec<u32>> = BTreeMap::new();
    let mut learn = |sco: ScoId, slot: u32, sums: &[u32]| {
        let known = crcs.entry(sco).or_default();
        let end = slot as usize + sums.len();
        known.resize(known.len().max(end), 0);
        known[slot as usize..end].copy_from_slice(sums);
    };
    let mut scos: BTreeMap<ScoId, Expected> = BTreeMap::new();
    let lsns = Lsns::head(manifest);
    for tlog_ref in set.iter() {
        let in_head = lsns.hold(tlog_ref.lsn_lo, tlog_ref.lsn_hi);
        named.insert(keys::object_key(id, &tlog_ref.obj));
        let tlog = match tlogs::load(&*pool.store, id, tlog_ref).await {
            Ok(tlog) => tlog,
            Err(e) => {
                report = fault(report, e)?;
                continue;
            }
        };
        report.objects += 1;
        report.bytes += tlog_ref.obj.len;
        for d in &tlog.dict {
            scos.entry(d.id).or_default().len = Some(d.len);
        }
        let mut at = 0;
        for e in &tlog.entries {
            let mut place = None;
            if e.kind == Kind::Data {
                let sco = tlog.dict[e.dict as usize].id;
                learn(sco, e.slot, &tlog.crcs[at..at + e.count as usize]);
                at += e.count as usize;
                place = Some(Place { base: e.addr, sco, slot: e.slot });
            }
            if in_head {
                head.insert(e.addr, e.count, place);
            }
        }
    }
    match scan(&pool.store, manifest).await {
        Ok(tail) => {
            for sco in tail {
                scos.entry(sco.id).or_default().len = Some(sco.len);
                for e in sco.index.entries.iter().filter(|e| e.kind.is_range()) {
                    let place =
                        (e.kind == Kind::Data).then_some(Place { base: e.addr, sco: sco.id, slot: e.slot });
                    head.insert(e.addr, e.count, place);
                }
                learn(sco.id, 0, &sco.index.crcs);
                let sizes = sco.index.entries.iter().filter(|e| e.kind == Kind::Resize).map(|e| e.addr);
                report.size = sizes.fold(report.size, u64::max);
            }
        }
        Err(e) => report = fault(report, e)?,
    }

    let end = report.size >> manifest.cluster_log2;
    for piece in head.iter() {
        let Some(place) = piece.value else { continue };
        report.mapped += piece.count;
        if piece.addr + piece.count > end {
            report
                .problems
                .push(format!("cluster {} lies beyond the end of the volume", piece.addr + piece.count - 1));
        }
        let slot = place.slot + (piece.addr - place.base) as u32;
        let known =
            crcs.get(&place.sco).and_then(|c| c.get(slot as usize..slot as usize + piece.count as usize));
        let sums = known.unwrap_or_default().to_vec();
        scos.entry(place.sco).or_default().runs.push((piece.addr, slot, sums));
    }
    drop(crcs);
    named.extend(scos.keys().map(|sco| keys::sco_key(id, *sco)));
    check_scos(pool, id, scos, &mut report, progress).await?;
    report.orphans = listed
        .into_keys()
        .filter(|key| !named.contains(key) && !matches!(keys::parse(key), Ok(Key::Manifest { .. })))
        .collect();
    Ok(report)
}

/// Every Manifest that is there decodes, and names the checksum of the one before it.
async fn check_chain(
    pool: &Pool,
    id: VolumeId,
    listed: &BTreeMap<String, u64>,
    report: &mut Report,
) -> Result<()> {
    let mut newer: Option<Manifest> = None;
    for key in listed.keys() {
        let Ok(Key::Manifest { number, .. }) = keys::parse(key) else { continue };
        let bytes = match pool.store.get(key).await {
            Ok(bytes) => bytes,
            // Collected since the listing.
            Err(e) if e.kind == ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        report.objects += 1;
        report.bytes += bytes.len() as u64;
        match Manifest::decode(&bytes) {
            Ok(m) if m.volume != id || m.number != number => {
                report.problems.push(format!("'{key}' holds the Manifest of something else"));
            }
            Ok(m) => {
                if let Some(newer) = &newer
                    && newer.number == number + 1
                    && newer.prev_crc != manifest_crc(&bytes)
                {
                    report.problems.push(format!("'{key}' is not the Manifest that its successor followed"));
                }
                newer = Some(m);
            }
            Err(e) => report.problems.push(format!("'{key}': {e}")),
        }
    }
    Ok(())
}

async fn check_scos(
    pool: &Pool,
    id: VolumeId,
    scos: BTreeMap<ScoId, Expected>,
    report: &mut Report,
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Result<()> {
    let all = scos.len() as u64;
    let mut reads = futures::stream::iter(scos)
        .map(|(sco, expected)| async move {
            let key = keys::sco_key(id, sco);
            let bytes = pool.store.get(&key).await;
            (key, sco, expected, bytes)
        })
        .buffer_unordered(READS);
    let mut done = 0;
    while let Some((key, name, expected, bytes)) = reads.next().await {
        done += 1;
        progress(done, all);
        let bytes = match bytes {
            Ok(bytes) => bytes,
            Err(e) if e.kind == ErrorKind::NotFound => {
                report.problems.push(format!("'{key}' is missing"));
                continue;
            }
            Err(e) => return Err(e),
        };
        report.objects += 1;
        report.bytes += bytes.len() as u64;
        if expected.len.is_some_and(|len| len != bytes.len() as u64) {
            report.problems.push(format!(
                "'{key}' has {} bytes and should have {:?}",
                bytes.len(),
                expected.len
            ));
        }
        match sco::decode(&bytes) {
            Ok(sco) if sco.envelope.volume != id || sco.id() != name => {
                report.problems.push(format!("'{key}' holds something else"));
            }
            Ok(sco) => check_sco(&key, &sco, &expected, report),
            Err(e) => report.problems.push(format!("'{key}': {e}")),
        }
    }
    Ok(())
}

fn check_sco(key: &str, sco: &Sco, expected: &Expected, report: &mut Report) {
    report.clusters += sco.index.crcs.len() as u64;
    if let Err(e) = sco.verify_clusters() {
        report.problems.push(format!("'{key}': {e}"));
    }
    let mut addresses: BTreeMap<u32, u64> = BTreeMap::new();
    for e in sco.index.entries.iter().filter(|e| e.kind == Kind::Data) {
        addresses.extend((e.slot..).zip(e.addr..e.addr + e.count));
    }
    for (addr, slot, sums) in &expected.runs {
        for ((slot, addr), crc) in (*slot..).zip(*addr..).zip(sums) {
            if addresses.get(&slot) != Some(&addr) || sco.index.crcs.get(slot as usize) != Some(crc) {
                report.problems.push(format!("'{key}': slot {slot} is not cluster {addr} as the map says"));
                return;
            }
        }
    }
}

/// Damage goes into the report; what keeps the check from going on is an error.
fn fault(mut report: Report, error: common::Error) -> Result<Report> {
    match error.kind {
        ErrorKind::Corrupt | ErrorKind::NotFound | ErrorKind::Unsupported => {
            report.problems.push(error.to_string());
            Ok(report)
        }
        _ => Err(error),
    }
}
