//! Which entries make the next SCO, coalesced: of several writes to one cluster only the last counts.

use super::{Core, Source};
use crate::extent_map::ExtentMap;
use crate::log::{Crcs, Kind};
use common::{Lsn, mutant};
use std::time::Duration;

/// The content of the next SCO.
#[derive(Debug)]
pub(crate) struct SealPlan {
    pub lsn_lo: Lsn,
    pub lsn_hi: Lsn,
    /// Ranges in order of address, disjoint.
    pub runs: Vec<SealRun>,
    /// Entries without a range, in LSN order. A snapshot's marker is the last entry of all.
    pub controls: Vec<SealRun>,
}

/// A range of a SCO, or an entry without one.
#[derive(Debug)]
pub(crate) struct SealRun {
    pub addr: u64,
    pub count: u64,
    pub lsn: Lsn,
    pub kind: Kind,
    /// Where the content is, if there is any.
    pub source: Source,
    /// The checksums of the content.
    pub crcs: Crcs,
}

/// Ranges that one SCO may hold at most: bounds the time under the volume's lock.
const MAX_RANGES: usize = 32 * 1024;

impl Core {
    /// Bytes that wait for sealing, and since when the oldest does.
    pub fn unsealed(&self) -> (u64, Option<Duration>) {
        (self.unsealed_bytes, self.unsealed_since)
    }

    /// Decides the next SCO of at most `max_clusters` and moves `sealed`. `None` when nothing is
    /// unsealed.
    pub fn plan_seal(&mut self, max_clusters: u64) -> Option<SealPlan> {
        let lsn_lo = self.frontiers.sealed.next();
        if lsn_lo > self.frontiers.accepted {
            return None;
        }
        let mut ranges: ExtentMap<Lsn> = ExtentMap::default();
        let mut controls = Vec::new();
        let mut lsn_hi = self.frontiers.sealed;
        let (mut clusters, mut taken_bytes) = (0, 0);
        while lsn_hi < self.frontiers.accepted {
            let lsn = lsn_hi.next();
            let Some(rec) = self.rec(lsn) else { break };
            if mutant::is_on("coalescing-keeps-the-older")
                && ranges.overlapping(rec.addr, rec.count).next().is_some()
            {
                lsn_hi = lsn;
                continue;
            }
            if rec.kind.is_range() {
                let replaced: u64 = ranges
                    .overlapping(rec.addr, rec.count)
                    .filter(|p| self.rec(p.value).is_some_and(|r| r.kind == Kind::Data))
                    .map(|p| p.count)
                    .sum();
                let added = if rec.kind == Kind::Data { rec.count } else { 0 };
                let full =
                    clusters + added - replaced.min(clusters) > max_clusters || ranges.len() >= MAX_RANGES;
                if full && lsn > lsn_lo {
                    break;
                }
                clusters = clusters + added - replaced;
                taken_bytes += added * self.cluster_size;
                if rec.kind == Kind::Data || !mutant::is_on("sco-without-discards") {
                    ranges.insert(rec.addr, rec.count, lsn);
                }
            } else {
                taken_bytes += self.content_bytes(rec.kind, rec.count);
                controls.push(self.seal_run(lsn, rec.addr, rec.count)?);
            }
            lsn_hi = lsn;
            // A TLog ends at every snapshot, and so does a SCO.
            if rec.kind == Kind::Snapshot && !mutant::is_on("sco-across-a-snapshot") {
                break;
            }
        }
        let runs = ranges.iter().filter_map(|p| self.seal_run(p.value, p.addr, p.count)).collect();
        self.frontiers.sealed = lsn_hi;
        self.unsealed_bytes -= taken_bytes;
        let remains = lsn_hi < self.frontiers.accepted;
        self.unsealed_since = self.rec(lsn_hi.next()).filter(|_| remains).map(|rec| rec.retired_at);
        self.assert_order();
        Some(SealPlan { lsn_lo, lsn_hi, runs, controls })
    }

    /// What the entry with this LSN does to `count` clusters from `addr` on.
    fn seal_run(&self, lsn: Lsn, addr: u64, count: u64) -> Option<SealRun> {
        let rec = self.rec(lsn)?;
        let crcs = if rec.kind.has_content() {
            let skip = (addr - rec.addr) as usize;
            rec.crcs[skip..skip + count as usize].into()
        } else {
            Crcs::new()
        };
        Some(SealRun { addr, count, lsn, kind: rec.kind, source: self.source(lsn, addr, count), crcs })
    }
}
