//! Of each SCO that the map may name, how many of its clusters are live. These counts choose what a scrub looks
//! at; what it keeps, TLogs decide.

use super::Index;
use crate::format::sco::ScoId;
use common::Lsn;
use std::collections::{BTreeMap, BTreeSet};

/// A SCO that the map may name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ScoUse {
    /// Bytes of the object.
    pub len: u64,
    /// Clusters that the head maps to it.
    pub live: u32,
    /// When its clusters were written, about.
    pub written: Lsn,
    /// When it was made: of a relocation SCO, later.
    pub made: Lsn,
}

#[derive(Default)]
pub(super) struct Scos {
    pub uses: BTreeMap<ScoId, ScoUse>,
    pub dirty: BTreeSet<ScoId>,
    pub stored: u64,
    pub live: u64,
    /// Bytes of SCOs without live clusters.
    pub dead: u64,
}

impl Scos {
    pub fn count(&mut self, id: ScoId, by: i32) {
        let used = self.uses.entry(id).or_default();
        let before = used.live;
        used.live = used.live.saturating_add_signed(by);
        match (before, used.live) {
            (0, 1..) => self.dead -= used.len,
            (1.., 0) => self.dead += used.len,
            _ => {}
        }
        self.live = self.live.saturating_add_signed(i64::from(by));
        self.dirty.insert(id);
    }
}

impl Index {
    /// Names a SCO: from now on its live clusters are counted. `written` is when its clusters were, about.
    pub fn add_sco(&self, id: ScoId, len: u64, written: Lsn, made: Lsn) {
        let mut scos = self.scos.lock();
        let used = scos.uses.entry(id).or_default();
        if used.len == 0 {
            used.len = len;
            (used.written, used.made) = (written, made);
            let dead = used.live == 0;
            scos.dirty.insert(id);
            scos.stored += len;
            scos.dead += if dead { len } else { 0 };
        }
    }

    /// Forgets a SCO that was deleted.
    pub fn drop_sco(&self, id: ScoId) {
        let mut scos = self.scos.lock();
        if let Some(used) = scos.uses.remove(&id) {
            scos.dirty.insert(id);
            scos.stored -= used.len;
            scos.live -= u64::from(used.live);
            scos.dead -= if used.live == 0 { used.len } else { 0 };
        }
    }

    /// Bytes of the SCOs without live clusters.
    pub fn dead_bytes(&self) -> u64 {
        self.scos.lock().dead
    }

    /// Bytes of the known SCOs, and clusters that the head maps to them.
    pub fn totals(&self) -> (u64, u64) {
        let scos = self.scos.lock();
        (scos.stored, scos.live)
    }

    /// Clusters of a SCO that the head maps.
    pub fn live(&self, id: ScoId) -> u64 {
        self.scos.lock().uses.get(&id).map_or(0, |u| u64::from(u.live))
    }

    /// When the clusters of a SCO were written, about.
    pub fn written(&self, id: ScoId) -> Lsn {
        self.scos.lock().uses.get(&id).map_or(Lsn(0), |u| u.written)
    }

    /// When a SCO was made.
    pub fn made(&self, id: ScoId) -> Lsn {
        self.scos.lock().uses.get(&id).map_or(Lsn(0), |u| u.made)
    }
}
