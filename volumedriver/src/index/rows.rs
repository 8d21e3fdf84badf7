//! The index in its table: a row for each page, for each SCO, one for the pages that are all the same, and the
//! watermark's. What changed is written in one batch.

use super::{Index, Mapped, ScoUse};
use crate::format::sco::ScoId;
use bytes::Bytes;
use common::table::Batch;
use common::{Epoch, Error, Lsn, Result, Table, VolumeId, mutant};
use std::sync::atomic::Ordering;

/// Dirty pages of one volume after which a checkpoint is due.
pub(super) const CHECKPOINT_PAGES: usize = 4096;

pub(super) const PAGE: u8 = b'p';
const SCO: u8 = b's';
const FILLS: u8 = b'z';
pub(super) const WATERMARK: u8 = b'w';
const TABLE_VERSION: u8 = 4;

/// Bytes of a watermark's row before the head.
const MARK: usize = 25;

/// In a row of fills: these pages are holes, not zeroes.
const HOLES: u64 = 1 << 63;

pub(super) fn key(volume: VolumeId, kind: u8, rest: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(17 + rest.len());
    key.extend_from_slice(&volume.0.to_be_bytes());
    key.push(kind);
    key.extend_from_slice(rest);
    key
}

/// Forgets what the table knows of a volume.
pub(crate) fn forget(table: &dyn Table, volume: VolumeId) -> Result<()> {
    table.delete_prefix(&volume.0.to_be_bytes())
}

fn sco_row(id: ScoId) -> [u8; 16] {
    let mut row = [0; 16];
    row[..8].copy_from_slice(&id.epoch.0.to_be_bytes());
    row[8..].copy_from_slice(&id.number.to_be_bytes());
    row
}

pub(super) fn damaged(volume: VolumeId) -> Error {
    Error::corrupt(format!("the local index of volume {volume} does not decode"))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

impl Index {
    pub(super) fn load(&self) -> Result<Option<Lsn>> {
        let Some(mark) = self.table.get(&key(self.volume, WATERMARK, &[]))? else { return Ok(None) };
        if mark.first() != Some(&TABLE_VERSION) {
            return Err(damaged(self.volume));
        }
        let (Some(watermark), Some(relocations), Some(filled), Some(head)) =
            (u64_at(&mark, 1).map(Lsn), u64_at(&mark, 9), u64_at(&mark, 17), mark.get(MARK..))
        else {
            return Err(damaged(self.volume));
        };
        let other_head = head != self.of.head && !mutant::is_on("index-of-another-head");
        if other_head || relocations != self.of.relocations {
            tracing::info!(volume = %self.volume, "the local index is that of another head: rebuilding it");
            forget(&*self.table, self.volume)?;
            return Ok(None);
        }
        self.filled.store(filled, Ordering::Relaxed);
        self.above.store(self.of.above_parent || filled != u64::MAX, Ordering::Relaxed);
        if let Some(fills) = self.table.get(&key(self.volume, FILLS, &[]))? {
            let mut pages = self.pages.write();
            for pair in fills.chunks(16) {
                let (Some(page), Some(count)) = (u64_at(pair, 0), u64_at(pair, 8)) else {
                    return Err(damaged(self.volume));
                };
                let fill = if count & HOLES == 0 { Mapped::Zero } else { Mapped::Hole };
                pages.fills.insert(page, count & !HOLES, fill);
            }
        }
        let prefix = key(self.volume, SCO, &[]);
        let mut from = prefix.clone();
        let mut scos = self.scos.lock();
        loop {
            let rows = self.table.scan(&prefix, &from, 1024)?;
            let Some((last, _)) = rows.last() else { break };
            from = [last.as_slice(), &[0]].concat();
            for (row, value) in &rows {
                let id = row.get(17..33).ok_or_else(|| damaged(self.volume))?;
                let number =
                    |at: usize| id[at..at + 8].try_into().map(u64::from_be_bytes).unwrap_or_default();
                let id = ScoId { epoch: Epoch(number(0)), number: number(8) };
                let (Some(len), Some(live), Some(written), Some(made)) = (
                    u64_at(value, 0),
                    u64_at(value, 8),
                    u64_at(value, 16).map(Lsn),
                    u64_at(value, 24).map(Lsn),
                ) else {
                    return Err(damaged(self.volume));
                };
                scos.uses.insert(id, ScoUse { len, live: live as u32, written, made });
                scos.stored += len;
                scos.live += live;
                scos.dead += if live == 0 { len } else { 0 };
            }
        }
        Ok(Some(watermark))
    }

    /// Whether so much has changed that a checkpoint is due.
    pub fn checkpoint_due(&self) -> bool {
        let pages = self.pages.read();
        pages.dirty.len() >= CHECKPOINT_PAGES || (pages.dirty.len() > 64 && self.budget.over())
    }

    /// Writes everything that changed, with the watermark, in one batch.
    pub fn checkpoint(&self, watermark: Lsn) -> Result<()> {
        let _changing = self.changing.lock();
        self.write_out(watermark)
    }

    /// As [`Index::checkpoint`], by who holds `changing`.
    pub(super) fn write_out(&self, watermark: Lsn) -> Result<()> {
        let mut batch = Batch::default();
        let written: Vec<u64> = {
            let pages = self.pages.read();
            for number in &pages.dirty {
                if let Some(slot) = pages.map.get(number) {
                    let name = key(self.volume, PAGE, &number.to_be_bytes());
                    if slot.page.is_absent() {
                        batch.delete(name);
                    } else {
                        batch.put(name, slot.page.encode());
                    }
                }
            }
            if pages.fills_dirty {
                let ranges = pages.fills.iter().flat_map(|p| {
                    let holes = if p.value == Mapped::Hole { HOLES } else { 0 };
                    [p.addr.to_le_bytes(), (p.count | holes).to_le_bytes()]
                });
                batch.put(key(self.volume, FILLS, &[]), Bytes::from(ranges.flatten().collect::<Vec<u8>>()));
            }
            pages.dirty.iter().copied().collect()
        };
        let changed = std::mem::take(&mut self.scos.lock().dirty);
        {
            let scos = self.scos.lock();
            for id in &changed {
                let name = key(self.volume, SCO, &sco_row(*id));
                match scos.uses.get(id) {
                    Some(u) => {
                        let row =
                            [u.len, u64::from(u.live), u.written.0, u.made.0].map(u64::to_le_bytes).concat();
                        batch.put(name, row);
                    }
                    None => batch.delete(name),
                }
            }
        }
        let watermark = match mutant::is_on("watermark-ahead") {
            true => Lsn(watermark.0 + 2),
            false => watermark,
        };
        let relocations = self.relocations.load(Ordering::Relaxed).to_le_bytes();
        let filled = self.filled().to_le_bytes();
        let mark = [&[TABLE_VERSION][..], &watermark.0.to_le_bytes(), &relocations, &filled, &self.of.head];
        let mark = mark.concat();
        batch.put(key(self.volume, WATERMARK, &[]), mark);
        if let Err(error) = self.table.write(batch) {
            self.scos.lock().dirty.extend(changed);
            return Err(error);
        }
        let mut pages = self.pages.write();
        let pages = &mut *pages;
        for number in written {
            pages.dirty.remove(&number);
            if let Some(slot) = pages.map.get_mut(&number) {
                slot.dirty = false;
            }
        }
        pages.fills_dirty = false;
        self.watermark.store(watermark.0, Ordering::Relaxed);
        Ok(())
    }
}
