//! What a file would be without the writes since its last sync.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::{File, OpenOptions};
use std::io::Result;
use std::os::unix::fs::FileExt;
use std::path::Path;

const SECTOR: u64 = 512;

type Content = Box<[u8]>;

/// The writes of one file that are not synced: what their sectors held before.
#[derive(Default)]
pub(super) struct Unsynced {
    before: HashMap<u64, Content>,
    /// A sync failed with these: no later one helps, only writing them again.
    doomed: HashMap<u64, Content>,
    failed: bool,
    /// The length that is durable, if it is another one.
    length: Option<u64>,
}

impl Unsynced {
    /// `length` bytes at `offset` are about to be written.
    pub fn note(&mut self, file: &File, offset: u64, length: u64) -> Result<()> {
        let old_length = file.metadata()?.len();
        if offset + length > old_length {
            self.length.get_or_insert(old_length);
        }
        for sector in offset / SECTOR..(offset + length).div_ceil(SECTOR) {
            if let Some(content) = self.doomed.remove(&sector) {
                self.before.entry(sector).or_insert(content);
            } else if let Entry::Vacant(place) = self.before.entry(sector) {
                let mut content = vec![0; SECTOR as usize];
                let at = sector * SECTOR;
                let there = old_length.saturating_sub(at).min(SECTOR) as usize;
                file.read_exact_at(&mut content[..there], at)?;
                place.insert(content.into());
            }
        }
        Ok(())
    }

    /// The file has grown without a write.
    pub fn grown(&mut self, from: u64) {
        self.length.get_or_insert(from);
    }

    /// The file was cut off, durably.
    pub fn truncated(&mut self, length: u64) {
        if self.length.is_some_and(|durable| durable >= length) {
            self.length = None;
        }
        let within = |sector: &u64, _: &mut Content| *sector * SECTOR < length;
        self.before.retain(within);
        self.doomed.retain(within);
    }

    /// A sync succeeded.
    pub fn synced(&mut self) {
        self.before.clear();
        self.length = None;
    }

    /// Whether a sync has failed.
    pub fn has_failed(&self) -> bool {
        self.failed
    }

    /// A sync failed.
    pub fn sync_failed(&mut self) {
        self.failed = true;
        for (sector, content) in self.before.drain() {
            self.doomed.entry(sector).or_insert(content);
        }
    }

    /// Forgets a share of the sectors, and all that are doomed; returns how many.
    pub fn cut(self, path: &Path, forgets: f64, random: &mut fastrand::Rng) -> Result<usize> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let length = file.metadata()?.len();
        let mut forgotten = 0;
        let chosen = self.before.into_iter().filter(|_| random.f64() < forgets);
        for (sector, content) in chosen.collect::<Vec<_>>().into_iter().chain(self.doomed) {
            let at = sector * SECTOR;
            let there = length.saturating_sub(at).min(SECTOR) as usize;
            file.write_all_at(&content[..there], at)?;
            forgotten += 1;
        }
        if let Some(durable) = self.length.filter(|durable| *durable < length) {
            file.set_len(random.u64(durable..=length))?;
        }
        Ok(forgotten)
    }
}
