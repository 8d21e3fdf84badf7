//! Carrying a scrub out: reads TLogs, copies the live clusters of victims, puts new TLogs. It changes nothing
//! that is there; what it made counts when the pump has put a Manifest that names it.

use super::pace::Pace;
use super::spans::{Rewrite, Span, spans};
use super::{COPY, Effort, Limits, Space, space, uses, victims};
use crate::format::envelope::{BLOCK, Envelope, ObjectKind};
use crate::format::keys;
use crate::format::manifest::TLogRef;
use crate::format::sco::{self, FIRST_RELOC, MapEntry, ScoHeader, ScoId, ScoIndex, cluster_offset};
use crate::format::tlog::TLog;
use crate::index::{Location, Move};
use crate::log::Kind;
use crate::view::Tree;
use crate::volume::Shared;
use crate::volume::merge::{Builder, Merge, Piece, source};
use crate::volume::reclaim::{WORTH, delete_quietly};
use crate::volume::tlogs::{self, Group, Seen};
use bytes::Bytes;
use common::object::Haste;
use common::{Error, ErrorKind, Lsn, Result, mutant};
use foldhash::fast::FixedState;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What a job is to do.
#[derive(Debug)]
pub(in crate::volume) struct Plan {
    pub groups: Vec<Group>,
    pub effort: Effort,
    /// SCOs with damage: copying would launder it.
    pub damaged: BTreeSet<ScoId>,
    /// The end of the log.
    pub tip: Lsn,
    /// Of groups, by their first LSN, the LSN up to which no run of them hides anything in an older one.
    pub fresh: BTreeMap<Lsn, Lsn>,
}

/// What a job made, for the pump to take over.
#[derive(Debug, Default)]
pub(in crate::volume) struct Outcome {
    pub removed: Vec<TLogRef>,
    pub added: Vec<TLogRef>,
    /// Relocation SCOs: bytes, and when their clusters were written, on average.
    pub relocated: Vec<(ScoId, u64, Lsn)>,
    pub moves: Vec<Move>,
    /// Discards were dropped: a map from before them does not learn of them any more.
    pub forgot: bool,
    /// What is fresh now, see [`Plan::fresh`].
    pub fresh: BTreeMap<Lsn, Lsn>,
    /// SCOs that nothing will name any more.
    pub gone: Vec<ScoId>,
    /// What the TLogs took before.
    pub space: Space,
    /// Bytes of clusters that were copied.
    pub copied: u64,
    /// Bytes of SCOs that go, and of those that come.
    pub freed: u64,
    pub spent: u64,
}

/// Why a job did not end, and the SCO that is to blame.
#[derive(Debug)]
pub(in crate::volume) struct Failed {
    pub sco: Option<ScoId>,
    pub error: Error,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Failed {
        Failed { sco: None, error }
    }
}

/// Where a cluster was, and where it is now.
type Moved = HashMap<(ScoId, u32), (ScoId, u32), FixedState>;

/// A cluster that is to be copied.
#[derive(Clone, Copy)]
struct Live {
    addr: u64,
    lsn: Lsn,
    slot: u32,
    crc: u32,
}

/// Carries out a plan.
pub(in crate::volume) async fn run(shared: Arc<Shared>, writer: u128, plan: Plan) -> Result<Outcome, Failed> {
    let outcome = attempt(&shared, writer, &plan, true).await;
    match &outcome {
        // Nothing can be copied on a full store: what is all garbage goes without.
        Err(Failed { sco: None, error }) if error.kind == ErrorKind::NoSpace => {
            tracing::warn!(volume = %shared.id, %error, "no room to copy live clusters: deleting what has none");
            attempt(&shared, writer, &plan, false).await
        }
        _ => outcome,
    }
}

async fn attempt(shared: &Shared, writer: u128, plan: &Plan, copies: bool) -> Result<Outcome, Failed> {
    let mut job = Job { shared, writer, plan, copies, pace: Pace::new(shared), made: Vec::new() };
    let outcome = job.run().await;
    if outcome.is_err() {
        // Nothing will name them.
        delete_quietly(&*shared.store, job.made).await;
    }
    outcome
}

struct Job<'a> {
    shared: &'a Shared,
    writer: u128,
    plan: &'a Plan,
    /// Victims with live clusters go too.
    copies: bool,
    pace: Pace<'a>,
    /// Objects that were put so far.
    made: Vec<String>,
}

/// Where clusters of victims went, and how long SCOs are.
struct Moves<'a> {
    victims: &'a BTreeSet<ScoId>,
    moved: &'a Moved,
    uses: &'a BTreeMap<ScoId, super::Use>,
    new: BTreeMap<ScoId, u64>,
}

impl Moves<'_> {
    fn len(&self, id: ScoId) -> u64 {
        self.uses.get(&id).map(|used| used.len).or_else(|| self.new.get(&id).copied()).unwrap_or(0)
    }
}

/// Bytes of a SCO that are read at a time beside clients: one of theirs waits for no more than that.
const READ: u64 = 64 << 10;

/// Spans that are written in one pass over the addresses: bounds the memory for TLogs in the making.
const PASS: usize = 8;

impl Job<'_> {
    async fn run(&mut self) -> Result<Outcome, Failed> {
        let (shared, plan) = (self.shared, self.plan);
        let source = source(shared);
        self.pace.begin().await?;
        let mut groups: Vec<(Group, Vec<Vec<Arc<Tree>>>)> = Vec::new();
        for group in &plan.groups {
            let mut runs = Vec::with_capacity(group.runs.len());
            for run in &group.runs {
                let mut trees = Vec::with_capacity(run.parts.len());
                for named in &run.parts {
                    trees.push(shared.persist("reading a TLog", || source.tree(named)).await?);
                    self.pace.go_on().await?;
                }
                runs.push(trees);
            }
            groups.push((group.clone(), runs));
        }
        let uses = uses(&groups);
        let seen = |used: &super::Use| used.runs.iter().any(|(g, _)| groups[*g].0.seen != Seen::Nobody);
        let mut outcome = Outcome { space: space(&uses, &shared.index), ..Outcome::default() };
        let limits = Limits {
            effort: plan.effort,
            cluster: u64::from(shared.cluster),
            sco_size: u64::from(shared.sco_size),
            target: shared.settings.scrub_percent - LOWER,
            // Where there is no room, the least of it helps.
            worth: if self.copies { WORTH } else { 0 },
            tip: plan.tip,
            small_run: shared.settings.tlog_entries as u64,
        };
        let mut victims = match plan.effort {
            Effort::Merge => BTreeSet::new(),
            _ => {
                let copies = self.copies;
                let kept = |id: ScoId, used: &super::Use| {
                    let full = !copies && used.live(shared.index.live(id)) > 0;
                    full || plan.damaged.contains(&id) || !seen(used)
                };
                victims(&uses, &shared.index, &limits, kept)
            }
        };

        let mut rewrites: Vec<Rewrite<'_>> = Vec::new();
        let mut names: BTreeSet<ScoId> = BTreeSet::new();
        for (group, trees) in &groups {
            if group.seen == Seen::Nobody {
                outcome.removed.extend(group.runs.iter().flat_map(|run| &run.parts));
                continue;
            }
            let ends = group.runs.first().map(|run| run.lsns.0).zip(group.runs.last().map(|run| run.lsns.1));
            let Some((begin, end)) = ends else { continue };
            let fresh = plan.fresh.get(&begin).copied();
            let spans = spans(group, trees, &victims, fresh, &limits);
            let rewritten: usize = spans.iter().map(Range::len).sum();
            let fresh = if rewritten == group.runs.len() { Some(end) } else { fresh };
            outcome.fresh.extend(fresh.map(|fresh| (begin, fresh)));
            for (run, trees) in trees.iter().enumerate() {
                if !spans.iter().any(|span| span.contains(&run)) {
                    names.extend(trees.iter().flat_map(|tree| &tree.index.dict).map(|d| d.id));
                }
            }
            rewrites.extend(Rewrite::new(group, &spans, shared.parent.is_none()));
        }

        let mut live = self.live(&rewrites, &victims).await?;
        if !self.copies {
            // Counts that came to zero after the TLogs were written: those SCOs stay for now.
            for id in std::mem::take(&mut live).into_values().flat_map(BTreeMap::into_keys) {
                victims.remove(&id);
            }
        }
        let clusters: usize = live.values().flatten().map(|(_, live)| live.len()).sum();
        shared.scrubbing.plan(clusters as u64 * u64::from(shared.cluster));
        let mut moved = Moved::with_hasher(FixedState::default());
        // Each apart: the clusters of a SCO are named in one run.
        for of_span in live.into_values() {
            self.relocate(of_span, &uses, &mut moved, &mut outcome).await?;
        }
        let new = outcome.relocated.iter().map(|(id, len, _)| (*id, *len)).collect();
        let moves = Moves { victims: &victims, moved: &moved, uses: &uses, new };
        let (mut removed, mut added): (Vec<TLogRef>, Vec<TLogRef>) = (Vec::new(), Vec::new());
        let mut forgot = false;
        for rewrite in &rewrites {
            for first in (0..rewrite.spans.len()).step_by(PASS) {
                let pass = first..(first + PASS).min(rewrite.spans.len());
                added.extend(self.rewrite(rewrite, pass, &moves, &mut names, &mut forgot).await?);
            }
            removed.extend(rewrite.spans.iter().flat_map(|span| span.runs).flat_map(|run| &run.parts));
        }
        outcome.forgot = forgot;
        outcome.removed.extend(removed);
        outcome.added = added;
        outcome.gone = uses.keys().filter(|id| !names.contains(id)).copied().collect();
        outcome.freed = outcome.gone.iter().filter_map(|id| uses.get(id)).map(|used| used.len).sum();
        outcome.spent = outcome.relocated.iter().map(|r| r.1).sum();
        Ok(outcome)
    }

    /// The clusters of the victims that somebody reads, by the span that names them and by victim.
    async fn live(
        &mut self,
        rewrites: &[Rewrite<'_>],
        victims: &BTreeSet<ScoId>,
    ) -> Result<BTreeMap<(usize, usize), BTreeMap<ScoId, Vec<Live>>>> {
        let mut live: BTreeMap<(usize, usize), BTreeMap<ScoId, Vec<Live>>> = BTreeMap::new();
        if victims.is_empty() {
            return Ok(live);
        }
        for (number, rewrite) in rewrites.iter().enumerate() {
            let mut merge = Merge::new(self.shared, rewrite.runs, 0);
            while let Some(piece) = merge.next().await? {
                self.pace.go_on().await?;
                let Some((sco, slot, crcs)) = piece.at.filter(|(sco, ..)| victims.contains(sco)) else {
                    continue;
                };
                if mutant::is_on("live-cluster-not-copied") && piece.addr % 2 == 1 {
                    continue;
                }
                let clusters = (piece.addr..).zip(slot..).zip(crcs);
                let found = clusters.map(|((addr, slot), &crc)| Live { addr, lsn: piece.lsn, slot, crc });
                let Some(span) = rewrite.span_of[piece.run] else {
                    return Err(Error::internal(format!("the victim {sco} is named in a TLog that stays")));
                };
                live.entry((number, span)).or_default().entry(sco).or_default().extend(found);
            }
        }
        Ok(live)
    }

    /// Copies live clusters to relocation SCOs, those of old victims apart from those of young ones.
    async fn relocate(
        &mut self,
        live: BTreeMap<ScoId, Vec<Live>>,
        uses: &BTreeMap<ScoId, super::Use>,
        moved: &mut Moved,
        outcome: &mut Outcome,
    ) -> Result<(), Failed> {
        let shared = self.shared;
        let mut victims: Vec<(ScoId, Vec<Live>)> = live.into_iter().collect();
        victims.sort_by_key(|(id, _)| (shared.index.written(*id), *id));
        let full = (shared.sco_size / shared.cluster) as usize;
        // One address may be live twice, for the head and for a snapshot; a SCO has each once.
        let mut batch: BTreeMap<u64, (ScoId, Live, Bytes)> = BTreeMap::new();
        for (id, mut clusters) in victims {
            clusters.sort_by_key(|c| (c.slot, c.addr));
            let len = uses.get(&id).map_or(0, |used| used.len);
            let content = self.read(id, len, &clusters).await?;
            for (c, data) in clusters.into_iter().zip(content) {
                if batch.len() >= full || batch.contains_key(&c.addr) {
                    self.put(std::mem::take(&mut batch), moved, outcome).await?;
                }
                batch.insert(c.addr, (id, c, data));
            }
        }
        if !batch.is_empty() {
            self.put(batch, moved, outcome).await?;
        }
        Ok(())
    }

    /// Reads clusters of a victim, in the order of their slots, and verifies each.
    async fn read(&mut self, id: ScoId, len: u64, clusters: &[Live]) -> Result<Vec<Bytes>, Failed> {
        let shared = self.shared;
        let key = keys::sco_key(shared.id, id);
        let size = u64::from(shared.cluster);
        let of_victim = |error: Error| {
            let broken = matches!(error.kind, ErrorKind::Corrupt | ErrorKind::NotFound);
            Failed { sco: broken.then_some(id), error: error.context(format!("scrubbing '{key}'")) }
        };
        let read = async |first: u32, last: u32| {
            let (from, to) =
                (cluster_offset(first, shared.cluster), cluster_offset(last, shared.cluster) + size);
            shared
                .persist("reading a SCO to scrub it", || async {
                    let data = shared.store.get_range(&key, from..to).await?;
                    let wanted = clusters.iter().filter(|c| (first..=last).contains(&c.slot));
                    for c in wanted {
                        let at = (c.slot - first) as usize * size as usize;
                        let cluster = data.get(at..at + size as usize).unwrap_or_default();
                        if mutant::is_on("scrub-launders") {
                            continue;
                        }
                        shared.verify(shared.id, c.addr, cluster, &[c.crc], || format!("object '{key}'"))?;
                    }
                    Ok(data)
                })
                .await
        };
        let mut out = Vec::with_capacity(clusters.len());
        // What lies between is read too where most of it is wanted.
        let whole = clusters.len() as u64 * size * 4 >= len.saturating_sub(BLOCK as u64);
        let mut rest = clusters;
        while let Some(first) = rest.first().map(|c| c.slot) {
            let most = if self.pace.haste() == Haste::Gentle { READ } else { len };
            let near = |slot: u32| u64::from(slot - first) * size < most;
            let next = |w: &[Live]| near(w[1].slot) && (whole || w[1].slot <= w[0].slot + 1);
            let n = 1 + rest.windows(2).take_while(|w| next(w)).count();
            let (run, later) = rest.split_at(n);
            rest = later;
            let data = read(first, run[n - 1].slot).await.map_err(of_victim)?;
            out.extend(run.iter().map(|c| {
                let at = (c.slot - first) as usize * size as usize;
                data.slice(at..at + size as usize)
            }));
            self.pace.rest().await?;
        }
        Ok(out)
    }

    /// Puts a relocation SCO.
    async fn put(
        &mut self,
        batch: BTreeMap<u64, (ScoId, Live, Bytes)>,
        moved: &mut Moved,
        outcome: &mut Outcome,
    ) -> Result<()> {
        let shared = self.shared;
        let number = shared.next_reloc.fetch_add(1, Ordering::Relaxed);
        let id = ScoId { epoch: shared.epoch, number: FIRST_RELOC + number };
        let mut index = ScoIndex::default();
        let mut clusters = Vec::with_capacity(batch.len());
        let (mut lo, mut hi, mut sum) = (Lsn(u64::MAX), Lsn(0), 0u128);
        for ((addr, (old, c, data)), slot) in batch.into_iter().zip(0u32..) {
            (lo, hi, sum) = (lo.min(c.lsn), hi.max(c.lsn), sum + u128::from(c.lsn.0));
            match index.entries.last_mut() {
                Some(last) if last.addr + last.count == addr && last.lsn == c.lsn => last.count += 1,
                _ => {
                    index.entries.push(MapEntry { addr, count: 1, lsn: c.lsn, kind: Kind::Data, slot });
                }
            }
            index.crcs.push(c.crc);
            clusters.push(data);
            moved.insert((old, c.slot), (id, slot));
            let (from, to) = (Location::new(old, c.slot, c.crc)?, Location::new(id, slot, c.crc)?);
            outcome.moves.push(Move { addr, from, to });
        }
        let written = Lsn((sum / index.crcs.len().max(1) as u128) as u64);
        let envelope = Envelope {
            kind: ObjectKind::RelocSco,
            volume: shared.id,
            epoch: id.epoch,
            number: id.number,
            writer: self.writer,
            compat: 0,
        };
        let header = ScoHeader {
            lsn_lo: lo,
            lsn_hi: hi,
            committed_sco: 0,
            cluster_log2: shared.cluster.trailing_zeros() as u8,
            codec: 0,
        };
        let copied = index.crcs.len() as u64 * u64::from(shared.cluster);
        outcome.copied += copied;
        let parts = sco::encode(&envelope, &header, &index, clusters)?;
        let len = parts.iter().map(|part| part.len() as u64).sum();
        let key = keys::sco_key(shared.id, id);
        self.pace.rest().await?;
        let haste = self.pace.haste();
        shared.persist_put_if_room("putting a relocation SCO", &key, &parts, haste).await?;
        self.made.push(key);
        self.pace.end(haste).await?;
        shared.metrics.relocated_bytes.inc_by(len);
        shared.scrubbing.copied(copied);
        outcome.relocated.push((id, len, written));
        Ok(())
    }

    /// Puts the TLogs that replace some spans, and notes the SCOs that they name.
    async fn rewrite(
        &mut self,
        rewrite: &Rewrite<'_>,
        pass: Range<usize>,
        moves: &Moves<'_>,
        names: &mut BTreeSet<ScoId>,
        forgot: &mut bool,
    ) -> Result<Vec<TLogRef>> {
        let mut added = Vec::new();
        let mut builders: Vec<Builder> = rewrite.spans[pass.clone()].iter().map(Span::builder).collect();
        let mut merge = Merge::new(self.shared, rewrite.runs, 0);
        while let Some(piece) = merge.next().await? {
            self.pace.go_on().await?;
            let Some(span) = rewrite.span_of[piece.run].filter(|span| pass.contains(span)) else { continue };
            if piece.kind == Kind::Discard && rewrite.spans[span].bottom {
                *forgot = true;
                continue;
            }
            let builder = &mut builders[span - pass.start];
            let mut full = Vec::new();
            match piece.at {
                Some((sco, slot, crcs)) if moves.victims.contains(&sco) => {
                    for (i, crc) in (0u32..).zip(crcs) {
                        let Some(&(sco, slot)) = moves.moved.get(&(sco, slot + i)) else {
                            if mutant::is_on("live-cluster-not-copied") {
                                continue;
                            }
                            return Err(Error::internal(format!(
                                "slot {} of SCO {sco} was not copied",
                                slot + i
                            )));
                        };
                        let at = Some((sco, slot, std::slice::from_ref(crc)));
                        let one = Piece { addr: piece.addr + u64::from(i), count: 1, at, ..piece };
                        full.extend(builder.add(one, |id| moves.len(id)));
                    }
                }
                _ => full.extend(builder.add(piece, |id| moves.len(id))),
            }
            for tlog in full {
                added.push(self.put_tlog(tlog, names).await?);
            }
        }
        for builder in builders {
            added.push(self.put_tlog(builder.finish(), names).await?);
        }
        Ok(added)
    }

    async fn put_tlog(&mut self, tlog: TLog, names: &mut BTreeSet<ScoId>) -> Result<TLogRef> {
        let shared = self.shared;
        let name = ScoId { epoch: shared.epoch, number: shared.object_number() };
        let (object, named) = tlogs::encode(shared.id, name, self.writer, &tlog)?;
        names.extend(tlog.dict.iter().map(|d| d.id));
        drop(tlog);
        self.pace.rest().await?;
        let haste = self.pace.haste();
        shared.persist_put_at("putting a TLog", &object.key, &[object.bytes], haste).await?;
        self.made.push(object.key);
        self.pace.end(haste).await?;
        shared.metrics.tlogs.inc();
        Ok(named)
    }
}

/// Percent of the live bytes by which a scrub goes below where it begins.
const LOWER: u64 = 2;

const _: () = assert!(COPY >= 128 << 20, "one SCO of the largest size can be copied");
