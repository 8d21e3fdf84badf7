//! The committed head map: a derived store, never ahead of what the backend gives back.
//!
//! Pages of locations in memory, changed there and written to the local [`Table`] in one batch
//! with the watermark (a *checkpoint*). What is newer than the watermark is read again from TLogs
//! and SCOs after a crash; losing the table loses nothing. Beside the map lies, per SCO, how many
//! of its clusters are live.
//!
//! Lookups share a read lock, and read a page that is not there without any lock.
//!
//! A map that was lost begins empty and is served at once: what it does not know yet is looked up in the TLogs
//! (`Shared::base`), from which it is filled in the background, by ascending address. A discard leaves a hole
//! meanwhile, so that nothing older shows through.
//!
//! | room | what |
//! |---|---|
//! | this one | pages in memory: looking up, and applying what is committed |
//! | `page` | one page |
//! | `rows` | the table: loading, checkpoints |
//! | `scos` | live clusters of each SCO |
//! | `fill` | a map that is not whole yet; clusters that a scrub moves |

mod fill;
pub(crate) mod page;
mod rows;
mod scos;
#[cfg(test)]
mod tests;

pub(crate) use fill::Move;
pub(crate) use page::Location;
pub(crate) use rows::forget;
pub(crate) use scos::ScoUse;

use crate::extent_map::{ExtentMap, Piece};
use crate::format::sco::ScoId;
use bytes::Bytes;
use common::{Lsn, Result, Table, VolumeId, mutant};
use page::{PAGE_CLUSTERS, Page};
use parking_lot::{Mutex, RwLock};
use rows::{CHECKPOINT_PAGES, PAGE, damaged, key};
use scos::Scos;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

/// Memory for pages, shared by all volumes of the router.
#[derive(Debug)]
pub(crate) struct PageBudget {
    limit: i64,
    used: AtomicI64,
}

impl PageBudget {
    pub fn new(bytes: u64) -> Arc<Self> {
        let limit = (bytes / Page::BYTES).max(64) as i64;
        Arc::new(Self { limit, used: AtomicI64::new(0) })
    }

    fn over(&self) -> bool {
        self.used.load(Ordering::Relaxed) > self.limit
    }
}

/// A change of the map, from a committed log.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Change<'a> {
    /// Clusters of a SCO, `crcs.len()` of them.
    Data { addr: u64, sco: ScoId, slot: u32, crcs: &'a [u32] },
    /// Allocated zeroes.
    Zero { addr: u64, count: u64 },
    /// A hole.
    Discard { addr: u64, count: u64 },
}

/// What a map says of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mapped {
    /// Never written (or discarded, where nothing lies below): whatever the parent has.
    Absent,
    /// Discarded, above a parent.
    Hole,
    /// Allocated zeroes.
    Zero,
    /// In this slot of this SCO.
    At(Location),
}

struct Slot {
    page: Box<Page>,
    dirty: bool,
    used: AtomicBool,
}

#[derive(Default)]
struct Pages {
    map: HashMap<u64, Slot>,
    /// Order of eviction; each page in `map` once.
    ring: VecDeque<u64>,
    dirty: BTreeSet<u64>,
    /// Whole pages that are zero, or holes. What is here is neither in `map` nor in the table.
    fills: ExtentMap<Mapped>,
    fills_dirty: bool,
    /// Raised whenever a page leaves memory: a page that was read meanwhile may be old.
    evictions: u64,
}

/// Which map it is that an index keeps a copy of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Of {
    /// The LSNs of the head: a copy of another head is of no use.
    pub head: Bytes,
    /// How often clusters were moved: a copy from before names SCOs that are gone.
    pub relocations: u64,
    /// Whether a discard has to hide what a parent has.
    pub above_parent: bool,
}

/// The committed head map of one volume.
pub(crate) struct Index {
    volume: VolumeId,
    of: Of,
    relocations: AtomicU64,
    /// A discard has to hide something: of a parent, or of TLogs that were not filled in when the index was
    /// opened. It stays so when they are: a reader may have begun to look there before.
    above: AtomicBool,
    /// The addresses below are filled in from TLogs; `u64::MAX` when all are.
    filled: AtomicU64,
    /// Who changes the map holds this. Readers do not.
    changing: Mutex<()>,
    table: Arc<dyn Table>,
    budget: Arc<PageBudget>,
    pages: RwLock<Pages>,
    scos: Mutex<Scos>,
    /// The LSN of the last checkpoint: what the table has is at least this new.
    watermark: AtomicU64,
}

impl Index {
    /// The map as the table has it, and its watermark. LSN 0 when it is lost, damaged, ahead of `committed` or of
    /// another head: then it is to begin anew.
    pub fn open(
        volume: VolumeId,
        table: Arc<dyn Table>,
        budget: Arc<PageBudget>,
        committed: Lsn,
        of: Of,
    ) -> Result<(Index, Lsn)> {
        let index = Index {
            volume,
            relocations: AtomicU64::new(of.relocations),
            above: AtomicBool::new(true),
            filled: AtomicU64::new(0),
            changing: Mutex::new(()),
            of,
            table,
            budget,
            pages: RwLock::new(Pages::default()),
            scos: Mutex::new(Scos::default()),
            watermark: AtomicU64::new(0),
        };
        match index.load() {
            Ok(Some(watermark)) if watermark <= committed => {
                index.watermark.store(watermark.0, Ordering::Relaxed);
                return Ok((index, watermark));
            }
            Ok(None) => return Ok((index, Lsn(0))),
            Ok(Some(watermark)) => {
                tracing::warn!(%volume, %watermark, %committed, "the local index is ahead of the backend: rebuilding it");
            }
            Err(error) => tracing::warn!(%volume, %error, "the local index is damaged: rebuilding it"),
        }
        index.begin_anew(Lsn(0), false)?;
        Ok((index, Lsn(0)))
    }

    /// Where each of `count` clusters from `addr` on lies.
    pub fn lookup(&self, addr: u64, count: u64, out: &mut Vec<Mapped>) -> Result<()> {
        let mut next = addr;
        let end = addr + count;
        while next < end {
            let (number, first) = (next / PAGE_CLUSTERS, next % PAGE_CLUSTERS);
            let n = (PAGE_CLUSTERS - first).min(end - next);
            let absent =
                self.with_page(number, |page| out.extend((first..first + n).map(|i| page.get(i))))?;
            if let Some(mapped) = absent {
                out.extend((0..n).map(|_| mapped));
            }
            next += n;
        }
        Ok(())
    }

    /// Calls `f` with the page, loading it if need be; tells what the whole page reads as when
    /// there is none.
    fn with_page(&self, number: u64, f: impl FnOnce(&Page)) -> Result<Option<Mapped>> {
        loop {
            let evictions = {
                let pages = self.pages.read();
                if let Some(slot) = pages.map.get(&number) {
                    slot.used.store(true, Ordering::Relaxed);
                    f(&slot.page);
                    return Ok(None);
                }
                if let Some(fill) = pages.fills.overlapping(number, 1).next() {
                    return Ok(Some(fill.value));
                }
                pages.evictions
            };
            let Some(bytes) = self.table.get(&key(self.volume, PAGE, &number.to_be_bytes()))? else {
                let pages = self.pages.read();
                // Made meanwhile, perhaps.
                if pages.map.contains_key(&number) || pages.evictions != evictions {
                    continue;
                }
                return Ok(Some(Mapped::Absent));
            };
            let page = Page::decode(&bytes).ok_or_else(|| damaged(self.volume))?;
            let mut pages = self.pages.write();
            if !pages.map.contains_key(&number) {
                if pages.evictions != evictions {
                    continue;
                }
                self.insert(&mut pages, number, page);
            }
        }
    }

    fn insert(&self, pages: &mut Pages, number: u64, page: Box<Page>) {
        pages.map.insert(number, Slot { page, dirty: false, used: AtomicBool::new(true) });
        pages.ring.push_back(number);
        self.budget.used.fetch_add(1, Ordering::Relaxed);
        // A bounded look for a page to give back: second chance, never a dirty one.
        for _ in 0..8 {
            if !self.budget.over() {
                return;
            }
            let Some(candidate) = pages.ring.pop_front() else { return };
            let Some(slot) = pages.map.get_mut(&candidate) else { continue };
            if std::mem::take(slot.used.get_mut()) || slot.dirty || candidate == number {
                pages.ring.push_back(candidate);
            } else {
                pages.map.remove(&candidate);
                pages.evictions += 1;
                self.budget.used.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// Applies committed changes, in LSN order. Short slices under the lock: readers get in between.
    pub fn apply(&self, changes: &[Change<'_>]) -> Result<()> {
        for slice in changes.chunks(256) {
            let _changing = self.changing.lock();
            for change in slice {
                self.change(change, true)?;
            }
            self.relieve(2 * CHECKPOINT_PAGES)?;
        }
        Ok(())
    }

    /// One change of the map: of what it knows already, only if `all`.
    fn change(&self, change: &Change<'_>, all: bool) -> Result<()> {
        match *change {
            Change::Data { addr, sco, slot, crcs } => self.apply_data(addr, sco, slot, crcs, all),
            Change::Zero { addr, count } => self.apply_range(addr, count, Mapped::Zero, all),
            Change::Discard { addr, count } => self.apply_range(addr, count, self.hole(), all),
        }
    }

    /// Bounds the dirty pages inside a long change. Pages may be newer than the watermark beside
    /// them, since the same changes come again; but they and the counts must be of one moment.
    fn relieve(&self, most: usize) -> Result<()> {
        if self.pages.read().dirty.len() < most {
            return Ok(());
        }
        self.write_out(Lsn(self.watermark.load(Ordering::Relaxed)))
    }

    fn apply_data(&self, addr: u64, sco: ScoId, slot: u32, crcs: &[u32], all: bool) -> Result<()> {
        let (mut next, mut at) = (addr, 0);
        while at < crcs.len() {
            let (number, first) = (next / PAGE_CLUSTERS, next % PAGE_CLUSTERS);
            let n = ((PAGE_CLUSTERS - first) as usize).min(crcs.len() - at);
            self.change_page(number, |page, count| {
                for (i, &crc) in crcs[at..at + n].iter().enumerate() {
                    if !all && page.get(first + i as u64) != Mapped::Absent {
                        continue;
                    }
                    let location = Location::new(sco, slot + (at + i) as u32, crc)?;
                    count(page.set(first + i as u64, Mapped::At(location)), Some(sco));
                }
                Ok(())
            })?;
            next += n as u64;
            at += n;
        }
        Ok(())
    }

    /// What a discard leaves.
    fn hole(&self) -> Mapped {
        let hides = self.above.load(Ordering::Relaxed) && !mutant::is_on("clone-without-tombstones");
        if hides { Mapped::Hole } else { Mapped::Absent }
    }

    fn apply_range(&self, addr: u64, count: u64, fill: Mapped, all: bool) -> Result<()> {
        let end = addr + count;
        let whole = addr.div_ceil(PAGE_CLUSTERS)..end / PAGE_CLUSTERS;
        let edge = |from: u64, to: u64| -> Result<()> {
            let mut next = from;
            while next < to {
                let (number, first) = (next / PAGE_CLUSTERS, next % PAGE_CLUSTERS);
                let n = (PAGE_CLUSTERS - first).min(to - next);
                self.change_page(number, |page, count| {
                    for i in first..first + n {
                        if all || page.get(i) == Mapped::Absent {
                            count(page.set(i, fill), None);
                        }
                    }
                    Ok(())
                })?;
                next += n;
            }
            Ok(())
        };
        if whole.is_empty() {
            return edge(addr, end);
        }
        edge(addr, whole.start * PAGE_CLUSTERS)?;
        edge(whole.end * PAGE_CLUSTERS, end)?;
        self.apply_whole_pages(whole.start, whole.end, fill, all)
    }

    /// Costs the pages that exist, not the length of the range.
    fn apply_whole_pages(&self, from: u64, to: u64, fill: Mapped, all: bool) -> Result<()> {
        let prefix = key(self.volume, PAGE, &[]);
        let mut present: BTreeSet<u64> =
            self.pages.read().map.keys().copied().filter(|p| (from..to).contains(p)).collect();
        let mut at = from;
        'table: loop {
            let rows = self.table.scan(&prefix, &key(self.volume, PAGE, &at.to_be_bytes()), 1024)?;
            if rows.is_empty() {
                break;
            }
            for (row, _) in rows {
                let number =
                    row[17..].try_into().map(u64::from_be_bytes).map_err(|_| damaged(self.volume))?;
                if number >= to {
                    break 'table;
                }
                present.insert(number);
                at = number + 1;
            }
        }
        for &number in &present {
            self.change_page(number, |page, count| {
                for i in 0..PAGE_CLUSTERS {
                    if all || page.get(i) == Mapped::Absent {
                        count(page.set(i, fill), None);
                    }
                }
                Ok(())
            })?;
            self.relieve(2 * CHECKPOINT_PAGES)?;
        }
        let mut pages = self.pages.write();
        if fill != Mapped::Absent {
            let known: Vec<Piece<Mapped>> = match all {
                true => Vec::new(),
                false => pages.fills.overlapping(from, to - from).collect(),
            };
            pages.fills.insert(from, to - from, fill);
            known.into_iter().for_each(|known| pages.fills.insert(known.addr, known.count, known.value));
            for number in present {
                pages.fills.clear(number, 1);
            }
            pages.fills_dirty = true;
        } else if pages.fills.overlapping(from, to - from).next().is_some() {
            pages.fills.clear(from, to - from);
            pages.fills_dirty = true;
        }
        Ok(())
    }

    /// Changes one page; `f` reports each replaced mapping and the SCO that gained a cluster.
    fn change_page(
        &self,
        number: u64,
        f: impl FnOnce(&mut Page, &mut dyn FnMut(Mapped, Option<ScoId>)) -> Result<()>,
    ) -> Result<()> {
        let absent = self.with_page(number, |_| {})?;
        let mut pages = self.pages.write();
        if !pages.map.contains_key(&number) {
            // Nobody else changes pages, so what was absent is absent; what was evicted since is read again.
            let page = match absent {
                Some(mapped) => Page::filled(mapped),
                None => match self.table.get(&key(self.volume, PAGE, &number.to_be_bytes()))? {
                    Some(bytes) => Page::decode(&bytes).ok_or_else(|| damaged(self.volume))?,
                    None => Page::filled(Mapped::Absent),
                },
            };
            if absent.is_some_and(|fill| fill != Mapped::Absent) {
                pages.fills.clear(number, 1);
                pages.fills_dirty = true;
            }
            self.insert(&mut pages, number, page);
        }
        let pages = &mut *pages;
        let Some(slot) = pages.map.get_mut(&number) else { return Err(damaged(self.volume)) };
        let mut scos = self.scos.lock();
        let mut count = |old: Mapped, new: Option<ScoId>| {
            if let Mapped::At(old) = old {
                scos.count(old.sco(), -1);
            }
            if let Some(new) = new {
                scos.count(new, 1);
            }
        };
        f(&mut slot.page, &mut count)?;
        slot.dirty = true;
        pages.dirty.insert(number);
        Ok(())
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.pages.get_mut().map.len() as i64, Ordering::Relaxed);
    }
}
