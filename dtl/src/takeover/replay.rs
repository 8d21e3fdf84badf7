//! The order of a replay: by LSN, one entry each, of the newest epoch that may have it; a contiguous run.

use crate::entry::Entry;
use common::{Epoch, Error, Lsn, Result};

/// Takes what logs hold, in any order of logs, and gives out the contiguous run.
#[derive(Debug)]
pub struct Replay {
    /// How far each earlier epoch counts (the Manifest's history, and the tails of the registration).
    cuts: Vec<(Epoch, Lsn)>,
    last: Lsn,
    epoch: Epoch,
}

impl Replay {
    /// A replay of what comes behind `committed`; an entry of an epoch in `cuts` counts up to its LSN.
    pub fn new(committed: Lsn, cuts: Vec<(Epoch, Lsn)>) -> Self {
        Replay { cuts, last: committed, epoch: Epoch(0) }
    }

    /// The last LSN that was replayed, or the committed one.
    pub fn last(&self) -> Lsn {
        self.last
    }

    /// Whether `entry` is the next to be replayed. One that was replayed or does not count is not.
    ///
    /// # Errors
    /// `Corrupt` where it would leave a gap or the epochs go backwards: what was read is not the log.
    pub fn takes(&mut self, entry: &Entry) -> Result<bool> {
        let cut = self.cuts.iter().find(|(epoch, _)| *epoch == entry.epoch);
        if entry.lsn <= self.last || cut.is_some_and(|(_, last)| entry.lsn > *last) {
            return Ok(false);
        }
        if entry.lsn != self.last.next() || entry.epoch < self.epoch {
            return Err(Error::corrupt(format!(
                "volume {}: entry ({}, {}) can't follow ({}, {})",
                entry.volume, entry.epoch, entry.lsn, self.epoch, self.last
            )));
        }
        (self.last, self.epoch) = (entry.lsn, entry.epoch);
        Ok(true)
    }
}
