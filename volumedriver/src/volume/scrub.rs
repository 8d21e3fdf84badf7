//! Scrub: log cleaning, and the merging of TLogs. What is garbage, and what of it goes now.
//!
//! Scrub is a merge. Of a group of TLogs that the same views see, the youngest entry of an address hides all
//! others from everybody; what is left is what is live. Live clusters of the SCOs that are to go (the
//! *victims*) are verified and copied to relocation SCOs, and the TLogs that named them are replaced by TLogs
//! of the same LSNs. Nothing enters the log, so nothing can overtake a write; until a Manifest names the new
//! TLogs, nothing has happened.
//!
//! | room | what |
//! |---|---|
//! | this one | which SCOs are worth it |
//! | `spans` | which TLogs are rewritten |
//! | `job` | carrying it out, beside the pump |
//! | `pace` | how fast: clients come first |
//! | `progress` | how far it has come, for people |
//! | `swap` | the Manifest, the index, deleting: in the pump, where all change of a volume is |
//!
//! The local counts of live clusters only choose victims. What is kept and what is dropped is decided by
//! TLogs alone.

mod job;
mod pace;
mod progress;
mod spans;
mod swap;

pub(super) use job::{Failed, Outcome, Plan, run};
pub(crate) use progress::Progress;
pub use progress::ScrubStatus;
pub use swap::Scrubbed;
pub(super) use swap::Scrubs;

use super::tlogs::{Group, Seen};
use crate::format::sco::ScoId;
use crate::index::Index;
use crate::view::Tree;
use common::Lsn;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// How much is wanted of a scrub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// What pays, down to the share of garbage that the settings allow.
    Due,
    /// Everything that gives space back.
    Full,
    /// No SCO is rewritten; each group of TLogs becomes one.
    Merge,
}

/// What a volume takes on the backend, as its TLogs tell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Space {
    /// Bytes of the SCOs that TLogs name.
    pub stored: u64,
    /// Clusters of them that the head or a snapshot has, about: never fewer.
    pub live: u64,
    /// Those of them that the head does not have.
    pub of_snapshots: u64,
}

/// Bytes that a SCO takes beside its clusters and their index.
const FRAME: u64 = 4096 + 64 + 16;

/// Bytes in the index of a SCO for one cluster.
const ENTRY: u64 = 36;

/// Bytes of live clusters that one job copies at most: bounds what it remembers of them, and how long it takes.
const COPY: u64 = 256 << 20;

/// Until it has ended, what it copied is stored twice: not more than this share of what is live, either.
const COPY_SHARE: u64 = 48;

/// Runs that one job rewrites because they name victims.
const TOUCHED: usize = 3;

/// What the TLogs say of a SCO.
#[derive(Debug, Clone, Default)]
pub(super) struct Use {
    pub len: u64,
    /// Clusters that TLogs map to it, shadowed ones too.
    pub named: u64,
    /// Those of them in TLogs that snapshots see.
    pub by_snapshots: u64,
    /// The runs that name it, each with its group: one, while a scrub has its way.
    pub runs: BTreeSet<(usize, usize)>,
}

/// A SCO that may be worth rewriting.
struct Candidate {
    id: ScoId,
    len: u64,
    live: u64,
    runs: BTreeSet<(usize, usize)>,
    score: f64,
}

/// What each SCO is used for.
pub(super) fn uses(groups: &[(Group, Vec<Vec<Arc<Tree>>>)]) -> BTreeMap<ScoId, Use> {
    let mut uses: BTreeMap<ScoId, Use> = BTreeMap::new();
    for (number, (group, runs)) in groups.iter().enumerate() {
        let named =
            runs.iter().enumerate().flat_map(|(run, trees)| trees.iter().map(move |tree| (run, tree)));
        for (run, d) in named.flat_map(|(run, tree)| tree.index.dict.iter().map(move |d| (run, d))) {
            let used = uses.entry(d.id).or_default();
            let clusters = u64::from(d.live_upper_bound);
            used.len = d.len;
            used.named += clusters;
            used.by_snapshots += if group.seen == Seen::Snapshots { clusters } else { 0 };
            used.runs.insert((number, run));
        }
    }
    uses
}

impl Use {
    /// Clusters that somebody reads, about: never fewer, unless the head's count is wrong.
    pub fn live(&self, head: u64) -> u64 {
        self.named.min(self.by_snapshots + head)
    }
}

/// What all of them take.
pub(super) fn space(uses: &BTreeMap<ScoId, Use>, index: &Index) -> Space {
    let mut space = Space::default();
    for (id, used) in uses {
        let head = index.live(*id);
        let live = used.live(head);
        space.stored += used.len;
        space.live += live;
        space.of_snapshots += live.saturating_sub(head);
    }
    space
}

/// Which SCOs go, the best first: much garbage for little copying, and rather those that were made long ago and
/// still are so full, since they will not empty soon. The score is that of minimal declining cost (Lomet and Luo,
/// "Efficiently Reclaiming Space in a Log Structured Store", 2021), with the garbage since a SCO was made for the
/// rate at which its clusters are overwritten.
pub(super) fn victims(
    uses: &BTreeMap<ScoId, Use>,
    index: &Index,
    limits: &Limits,
    kept: impl Fn(ScoId, &Use) -> bool,
) -> BTreeSet<ScoId> {
    let space = space(uses, index);
    let live_bytes = space.live * limits.cluster;
    let mut candidates: Vec<Candidate> = Vec::new();
    for (&id, used) in uses.iter().filter(|(id, used)| !kept(**id, used)) {
        let live = used.live(index.live(id));
        let after = live * (limits.cluster + ENTRY);
        if after + FRAME >= used.len && live > 0 && limits.effort == Effort::Due {
            continue;
        }
        let full = (after as f64 / used.len as f64).min(1.0);
        let age = limits.tip.0.saturating_sub(index.made(id).0) as f64 + 1.0;
        let score = if live == 0 { f64::INFINITY } else { (1.0 - full) * age / (full * full) };
        candidates.push(Candidate { id, len: used.len, live, runs: used.runs.clone(), score });
    }
    candidates.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.id.cmp(&b.id)));
    let most = match limits.effort {
        Effort::Due => COPY.min((live_bytes / COPY_SHARE).max(4 * limits.sco_size)),
        _ => COPY,
    };
    let mut stored = space.stored;
    let mut chosen: Vec<Candidate> = Vec::new();
    let mut touched: BTreeSet<(usize, usize)> = BTreeSet::new();
    let (mut copied, mut freed) = (0, 0);
    for c in candidates {
        let enough = stored <= live_bytes.saturating_mul(limits.target) / 100;
        if c.live > 0 && limits.effort == Effort::Due && enough {
            break;
        }
        if c.live > 0 && copied + c.live * limits.cluster > most {
            break;
        }
        if c.live > 0 && limits.effort == Effort::Due {
            // Each run that names a victim is written anew.
            if c.runs.difference(&touched).count() + touched.len() > TOUCHED.max(c.runs.len()) {
                continue;
            }
            touched.extend(&c.runs);
        }
        copied += c.live * limits.cluster;
        freed += c.len;
        stored = stored.saturating_sub(c.len) + c.live * (limits.cluster + ENTRY);
        chosen.push(c);
    }
    let scos = copied.div_ceil(limits.sco_size.max(1));
    let cost = copied + copied / limits.cluster * ENTRY + scos * FRAME;
    // Copying for next to nothing would go on for ever.
    let least = if limits.effort == Effort::Due { freed / 16 } else { 0 };
    if freed.saturating_sub(cost) <= least {
        chosen.retain(|c| c.live == 0);
    }
    if limits.effort == Effort::Due && chosen.iter().all(|c| c.live == 0) {
        let dead: u64 = chosen.iter().map(|c| c.len).sum();
        if dead < limits.worth.min(space.stored / 8) {
            return BTreeSet::new();
        }
    }
    chosen.into_iter().map(|c| c.id).collect()
}

/// What bounds the choice of victims.
pub(super) struct Limits {
    pub effort: Effort,
    /// Bytes.
    pub cluster: u64,
    /// Bytes of clusters in a SCO.
    pub sco_size: u64,
    /// Stored bytes that may be left, in percent of the live ones.
    pub target: u64,
    /// Dead bytes that are worth a TLog and a Manifest.
    pub worth: u64,
    /// The end of the log.
    pub tip: Lsn,
    /// Bytes of runs that are worth merging, however few there are.
    pub small_run: u64,
}
