//! A map that is not whole yet, and clusters that move: what changes the map beside the log.

use super::page::PAGE_CLUSTERS;
use super::rows::forget;
use super::scos::Scos;
use super::{Change, Index, Location, Mapped, Pages};
use common::{Lsn, Result, mutant};
use std::sync::atomic::Ordering;

/// A cluster that lies elsewhere now.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Move {
    pub addr: u64,
    pub from: Location,
    pub to: Location,
}

/// Dirty pages after which those that were filled in are written.
const FILLED_PAGES: usize = 256;

impl Index {
    /// Forgets everything: the map is what the TLogs up to `watermark` say, and is to be filled; unless there are
    /// none.
    pub fn begin_anew(&self, watermark: Lsn, nothing: bool) -> Result<()> {
        forget(&*self.table, self.volume)?;
        let mut pages = self.pages.write();
        self.budget.used.fetch_sub(pages.map.len() as i64, Ordering::Relaxed);
        *pages = Pages::default();
        *self.scos.lock() = Scos::default();
        self.above.store(self.of.above_parent || !nothing, Ordering::Relaxed);
        self.filled.store(if nothing { u64::MAX } else { 0 }, Ordering::Relaxed);
        self.watermark.store(watermark.0, Ordering::Relaxed);
        Ok(())
    }

    /// Whether the map is complete: what it does not know was never written.
    pub fn is_whole(&self) -> bool {
        self.filled() == u64::MAX
    }

    /// The addresses below are filled in.
    pub fn filled(&self) -> u64 {
        self.filled.load(Ordering::Relaxed)
    }

    /// Fills in what TLogs say, where nothing younger is known; `to` is where they go on.
    pub fn fill(&self, changes: &[Change<'_>], to: u64) -> Result<()> {
        let _changing = self.changing.lock();
        // Where nothing lies below, what was discarded is what is not there.
        let hidden = |change: &&Change<'_>| self.of.above_parent || !matches!(change, Change::Discard { .. });
        for change in changes.iter().filter(hidden) {
            self.change(change, mutant::is_on("fill-overwrites"))?;
        }
        self.filled.store(to, Ordering::Relaxed);
        // Their order is that of the pages: one that is full is not touched again. Little at a time, for who waits.
        self.relieve(FILLED_PAGES)
    }

    /// Clusters lie elsewhere now, where nothing younger is mapped.
    pub fn relocate(&self, moves: &[Move], relocations: u64) -> Result<()> {
        let _changing = self.changing.lock();
        for moved in moves {
            self.change_page(moved.addr / PAGE_CLUSTERS, |page, count| {
                let at = moved.addr % PAGE_CLUSTERS;
                let is = page.get(at) == Mapped::At(moved.from);
                if is || mutant::is_on("relocation-overwrites") {
                    count(page.set(at, Mapped::At(moved.to)), Some(moved.to.sco()));
                }
                Ok(())
            })?;
        }
        self.relocations.store(relocations, Ordering::Relaxed);
        Ok(())
    }
}
