//! Which TLogs a scrub rewrites (ADR 13).

use super::{Effort, Limits};
use crate::format::sco::ScoId;
use crate::view::Tree;
use crate::volume::merge::Builder;
use crate::volume::tlogs::{Group, Run, Seen};
use common::{Lsn, mutant};
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

/// Runs of a group that are left as they are.
const RUNS: usize = 8;

/// Of many runs, those are merged that are smaller together than this share of all.
const SHARES: u64 = 16;

/// Some runs of a group that become one.
pub(super) struct Span<'a> {
    pub runs: &'a [Run],
    /// Nothing lies below: what is discarded need not be remembered.
    pub bottom: bool,
}

/// What is rewritten of a group, and what is read to do it.
pub(super) struct Rewrite<'a> {
    pub spans: Vec<Span<'a>>,
    /// From the first of the spans on: younger runs hide what they have.
    pub runs: &'a [Run],
    /// Of each run, its span.
    pub span_of: Vec<Option<usize>>,
}

impl<'a> Rewrite<'a> {
    /// `None` when no run of the group is rewritten.
    pub fn new(group: &'a Group, spans: &[Range<usize>], nothing_below: bool) -> Option<Rewrite<'a>> {
        let first = spans.first()?.start;
        let runs = &group.runs[first..];
        let number = |run: usize| spans.iter().position(|span| span.contains(&(run + first)));
        let span_of = (0..runs.len()).map(number).collect();
        let span = |span: &Range<usize>| {
            let runs = &group.runs[span.clone()];
            let bottom = nothing_below && runs.first().is_some_and(|run| run.lsns.0 == Lsn(1));
            Span { runs, bottom: bottom || mutant::is_on("merge-drops-tombstones") }
        };
        Some(Rewrite { spans: spans.iter().map(span).collect(), runs, span_of })
    }
}

impl Span<'_> {
    /// Makes its TLogs.
    pub fn builder(&self) -> Builder {
        let ends = self.runs.first().map(|run| run.lsns.0).zip(self.runs.last().map(|run| run.lsns.1));
        Builder::new(ends.unwrap_or_default())
    }
}

/// Which runs of a group are rewritten, each range of them as one: those that name victims; small ones, so that
/// there are few; all, when what the younger ones hide in the older ones is to be forgotten.
///
/// Runs stay as they were cut, by LSNs: the clusters of a SCO are named in one of them, and when it is cleaned
/// only that one is written anew.
pub(super) fn spans(
    group: &Group,
    trees: &[Vec<Arc<Tree>>],
    victims: &BTreeSet<ScoId>,
    fresh: Option<Lsn>,
    limits: &Limits,
) -> Vec<Range<usize>> {
    let n = group.runs.len();
    let bytes: Vec<u64> = group.runs.iter().map(Run::bytes).collect();
    let total: u64 = bytes.iter().sum();
    let stale = match fresh {
        _ if n < 2 => 0,
        Some(fresh) => group.runs.iter().filter(|run| run.lsns.1 > fresh).map(Run::bytes).sum(),
        None => total - bytes.iter().max().unwrap_or(&0),
    };
    let all = match (limits.effort, group.seen) {
        (Effort::Merge, _) if n > 1 => return std::iter::once(0..n).collect(),
        (Effort::Merge, _) => return Vec::new(),
        (Effort::Full, _) => stale > 0,
        (Effort::Due, Seen::Snapshots) => stale * 8 >= total && stale > 0,
        (Effort::Due, _) => false,
    };
    let small = limits.small_run.max(total / SHARES);
    let names =
        |run: &Vec<Arc<Tree>>| run.iter().flat_map(|tree| &tree.index.dict).any(|d| victims.contains(&d.id));
    let mut spans = Vec::new();
    let mut from = 0;
    while from < n {
        let (mut to, mut sum, mut largest) = (from + 1, bytes[from], bytes[from]);
        if all || n > RUNS {
            while to < n && sum + bytes[to] <= small {
                sum += bytes[to];
                largest = largest.max(bytes[to]);
                to += 1;
            }
            // What is merged grows by half at least: each entry is written a logarithmic number of times.
            if !all && largest * 3 > sum * 2 {
                to = from + 1;
            }
        }
        if all || to - from > 1 || names(&trees[from]) {
            spans.push(from..to);
        }
        from = to;
    }
    spans
}
