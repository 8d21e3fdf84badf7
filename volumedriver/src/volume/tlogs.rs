//! The TLogs that the newest Manifest names, and the making of one from the tail.

use crate::extent_map::ExtentMap;
use crate::format::envelope::{Envelope, ObjectKind};
use crate::format::manifest::{Manifest, PageRef, TLogRef};
use crate::format::sco::{ScoId, ScoIndex};
use crate::format::snapshot::Description;
use crate::format::tlog::{self, DictEntry, NO_DICT, TLog, TLogEntry};
use crate::format::{keys, list};
use crate::index::Change;
use crate::log::Kind;
use crate::lsns::Lsns;
use bytes::Bytes;
use common::{Epoch, Lsn, ObjectStore, Result, VolumeId, mutant};
use std::collections::BTreeSet;

/// A committed SCO of the tail: its place in the log and what it holds.
#[derive(Debug)]
pub(crate) struct TailSco {
    pub id: ScoId,
    /// Bytes of the object.
    pub len: u64,
    pub lsn_lo: Lsn,
    pub lsn_hi: Lsn,
    pub index: ScoIndex,
    /// The snapshot whose marker is its last entry.
    pub marker: Option<Description>,
}

impl TailSco {
    /// What the SCO changes in the head map.
    pub fn changes(&self) -> Vec<Change<'_>> {
        let crcs = &self.index.crcs;
        let changes = self.index.entries.iter().filter_map(|e| match e.kind {
            Kind::Data => {
                let crcs = crcs.get(e.slot as usize..e.slot as usize + e.count as usize)?;
                Some(Change::Data { addr: e.addr, sco: self.id, slot: e.slot, crcs })
            }
            Kind::Zero => Some(Change::Zero { addr: e.addr, count: e.count }),
            Kind::Discard => Some(Change::Discard { addr: e.addr, count: e.count }),
            Kind::Snapshot | Kind::Resize | Kind::Rollback => None,
        });
        changes.collect()
    }
}

/// What a TLog changes in the head map.
pub(crate) fn changes(tlog: &TLog) -> Vec<Change<'_>> {
    let mut at = 0;
    let mut changes = Vec::with_capacity(tlog.entries.len());
    for e in &tlog.entries {
        match e.kind {
            Kind::Data => {
                let crcs = &tlog.crcs[at..at + e.count as usize];
                at += e.count as usize;
                changes.push(Change::Data {
                    addr: e.addr,
                    sco: tlog.dict[e.dict as usize].id,
                    slot: e.slot,
                    crcs,
                });
            }
            Kind::Zero => changes.push(Change::Zero { addr: e.addr, count: e.count }),
            _ => changes.push(Change::Discard { addr: e.addr, count: e.count }),
        }
    }
    changes
}

/// The TLog of consecutive tail SCOs: the latest entry of each address.
pub(crate) fn merge(tail: &[TailSco]) -> Option<TLog> {
    let (first, last) = (tail.first()?, tail.last()?);
    let mut map: ExtentMap<(u32, u32)> = ExtentMap::default();
    for (sco, at) in tail.iter().zip(0u32..) {
        for (entry, i) in sco.index.entries.iter().zip(0u32..).filter(|(e, _)| e.kind.is_range()) {
            map.insert(entry.addr, entry.count, (at, i));
        }
    }
    let dict = tail.iter().map(|s| DictEntry {
        kind: ObjectKind::LogSco,
        id: s.id,
        len: s.len,
        live_upper_bound: 0,
    });
    let mut tlog = TLog {
        lsn_lo: first.lsn_lo,
        lsn_hi: last.lsn_hi,
        addr_lo: 0,
        addr_hi: u64::MAX,
        dict: dict.collect(),
        entries: Vec::with_capacity(map.len()),
        crcs: Vec::new(),
    };
    for piece in map.iter() {
        let (at, i) = piece.value;
        let sco = &tail[at as usize];
        let entry = &sco.index.entries[i as usize];
        let (mut dict, mut slot) = (NO_DICT, 0);
        if entry.kind == Kind::Data {
            dict = at;
            slot = entry.slot + (piece.addr - entry.addr) as u32;
            tlog.crcs.extend_from_slice(&sco.index.crcs[slot as usize..slot as usize + piece.count as usize]);
            tlog.dict[at as usize].live_upper_bound += piece.count as u32;
        }
        let (addr, count) = (piece.addr, piece.count);
        tlog.entries.push(TLogEntry { addr, count, lsn: entry.lsn, kind: entry.kind, dict, slot });
    }
    Some(tlog)
}

/// An encoded object that waits for its put.
#[derive(Debug)]
pub(crate) struct NewObject {
    pub key: String,
    pub bytes: Bytes,
}

/// Encodes a TLog; the reference is what a Manifest names it by.
pub(crate) fn encode(volume: VolumeId, id: ScoId, writer: u128, tlog: &TLog) -> Result<(NewObject, TLogRef)> {
    let envelope =
        Envelope { kind: ObjectKind::TLog, volume, epoch: id.epoch, number: id.number, writer, compat: 0 };
    let (bytes, obj) = tlog::encode(&envelope, tlog)?;
    let named = TLogRef {
        obj,
        lsn_lo: tlog.lsn_lo,
        lsn_hi: tlog.lsn_hi,
        addr_lo: tlog.addr_lo,
        addr_hi: tlog.addr_hi,
        sco_bytes: tlog.dict.iter().map(|d| d.len).sum(),
    };
    Ok((NewObject { key: keys::tlog_key(volume, id.epoch, id.number), bytes }, named))
}

/// Reads a TLog that a Manifest names.
pub(crate) async fn load(store: &dyn ObjectStore, volume: VolumeId, named: &TLogRef) -> Result<TLog> {
    let key = keys::object_key(volume, &named.obj);
    let bytes = store.get(&key).await.map_err(|e| e.context(format!("TLog '{key}'")))?;
    let (envelope, tlog) = tlog::decode(&bytes).map_err(|e| e.context(format!("TLog '{key}'")))?;
    if envelope.volume != volume || tlog.lsn_lo != named.lsn_lo || tlog.lsn_hi != named.lsn_hi {
        return Err(common::Error::corrupt(format!("TLog '{key}' is not the one that the Manifest names")));
    }
    Ok(tlog)
}

/// The TLogs of a volume, in LSN order: the older ones in list pages, the younger in the Manifest.
#[derive(Debug, Default, Clone)]
pub(crate) struct TLogSet {
    pages: Vec<(PageRef, Vec<TLogRef>)>,
    inline: Vec<TLogRef>,
}

impl TLogSet {
    /// Reads the list pages that the Manifest names.
    pub async fn load(store: &dyn ObjectStore, manifest: &Manifest) -> Result<TLogSet> {
        let mut pages = Vec::with_capacity(manifest.pages.len());
        for page in &manifest.pages {
            let key = keys::object_key(manifest.volume, &page.obj);
            let bytes = store.get(&key).await.map_err(|e| e.context(format!("list page '{key}'")))?;
            let (_, refs) = list::decode(&bytes).map_err(|e| e.context(format!("list page '{key}'")))?;
            pages.push((*page, refs));
        }
        Ok(TLogSet { pages, inline: manifest.tlogs.clone() })
    }

    /// Every TLog, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &TLogRef> {
        self.pages.iter().flat_map(|(_, refs)| refs).chain(&self.inline)
    }

    /// Every list page.
    pub fn pages(&self) -> impl Iterator<Item = &PageRef> {
        self.pages.iter().map(|(page, _)| page)
    }

    /// Bytes of all TLogs.
    pub fn bytes(&self) -> u64 {
        self.iter().map(|t| t.obj.len).sum()
    }

    /// Adds the youngest TLog.
    pub fn push(&mut self, tlog: TLogRef) {
        self.inline.push(tlog);
    }

    /// Puts `new` where `old` were, of the same LSNs; whether all of `old` were there. Pages that held them become stale.
    pub fn swap(&mut self, old: &[TLogRef], new: &[TLogRef]) -> bool {
        let names: BTreeSet<ScoId> = old.iter().map(|t| t.obj.id()).collect();
        if self.iter().filter(|t| names.contains(&t.obj.id())).count() != names.len() {
            return false;
        }
        let is_old = |t: &TLogRef| names.contains(&t.obj.id());
        if let Some(at) = self.pages.iter().position(|(_, refs)| refs.iter().any(is_old)) {
            self.unpage(at);
        }
        self.inline.retain(|t| !is_old(t));
        self.inline.extend(new);
        self.inline.sort_by_key(|t| (t.lsn_lo, t.addr_lo));
        true
    }

    /// This page and all younger ones go back into the Manifest; what is too much is paged again.
    fn unpage(&mut self, at: usize) {
        let back: Vec<TLogRef> = self.pages.drain(at..).flat_map(|(_, refs)| refs).collect();
        self.inline.splice(0..0, back);
    }

    /// Writes the set into a Manifest, paging out what is too much for it; the pages to put first.
    pub fn write_into(
        &mut self,
        manifest: &mut Manifest,
        writer: u128,
        mut number: impl FnMut() -> (Epoch, u64),
    ) -> Result<Vec<NewObject>> {
        let mut objects = Vec::new();
        loop {
            manifest.pages = self.pages.iter().map(|(page, _)| *page).collect();
            manifest.tlogs = self.inline.clone();
            let excess = manifest.excess_tlogs();
            if excess == 0 {
                return Ok(objects);
            }
            // Half of a full page at least, so that not every Manifest makes a page.
            let n = excess.clamp(list::MAX_REFS / 2, list::MAX_REFS).min(self.inline.len());
            let (epoch, number) = number();
            let volume = manifest.volume;
            let envelope = Envelope { kind: ObjectKind::ListPage, volume, epoch, number, writer, compat: 0 };
            let refs: Vec<TLogRef> = self.inline.drain(..n).collect();
            let (bytes, page) = list::encode(&envelope, &refs)?;
            objects.push(NewObject { key: keys::list_key(volume, epoch, number), bytes });
            self.pages.push((page, refs));
        }
    }
}

/// TLogs of the same LSNs, each of a part of the addresses.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    pub lsns: (Lsn, Lsn),
    /// By ascending address.
    pub parts: Vec<TLogRef>,
}

impl Run {
    /// Bytes of its TLogs.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|t| t.obj.len).sum()
    }
}

/// Who sees a TLog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seen {
    Nobody,
    /// The head and nobody else: what a younger TLog of the head says hides it from everybody.
    HeadAlone,
    Snapshots,
}

/// Adjacent runs that the same views see: they may become one.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    /// The oldest first.
    pub runs: Vec<Run>,
    pub seen: Seen,
}

/// All TLogs, the oldest first. Of the views, the first is the head.
pub(crate) fn groups(set: &TLogSet, views: &[Lsns]) -> Vec<Group> {
    let mut runs: Vec<Run> = Vec::new();
    for t in set.iter() {
        match runs.last_mut() {
            Some(run) if run.lsns == (t.lsn_lo, t.lsn_hi) => run.parts.push(*t),
            _ => runs.push(Run { lsns: (t.lsn_lo, t.lsn_hi), parts: vec![*t] }),
        }
    }
    let seen_by =
        |(lo, hi): (Lsn, Lsn)| -> Vec<bool> { views.iter().map(|view| view.hold(lo, hi)).collect() };
    let mut groups: Vec<Group> = Vec::new();
    let mut before: Vec<bool> = Vec::new();
    for run in runs {
        let by = seen_by(run.lsns);
        if let Some(group) = groups.last_mut()
            && let Some(first) = group.runs.first()
            && (by == before || mutant::is_on("merge-across-a-snapshot"))
            // Not across what a rollback left behind, either.
            && (seen_by((first.lsns.0, run.lsns.1)) == by || mutant::is_on("merge-across-a-snapshot"))
        {
            group.runs.push(run);
            continue;
        }
        let seen = match by.split_first() {
            Some((false, _)) if mutant::is_on("tlogs-of-snapshots-dropped") => Seen::Nobody,
            Some((_, snapshots)) if snapshots.contains(&true) => Seen::Snapshots,
            Some((true, _)) => Seen::HeadAlone,
            _ => Seen::Nobody,
        };
        groups.push(Group { runs: vec![run], seen });
        before = by;
    }
    groups
}
