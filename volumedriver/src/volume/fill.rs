//! Filling the local index in from the TLogs, when it was lost or is that of another head. The volume serves
//! meanwhile: what the index does not know yet is looked up in the TLogs (`Shared::base`).

use super::Shared;
use super::merge::{Merge, source};
use super::tlogs::{self, Run, Seen, TLogSet};
use crate::index::Change;
use crate::log::Kind;
use crate::lsns::Lsns;
use common::Result;
use std::sync::Arc;

/// Clusters, about, that are filled in at a time: readers and writers get in between.
const BATCH: usize = 1024;

/// Fills the index; `tlogs` are those that were there when the volume was opened.
pub(super) async fn fill(shared: Arc<Shared>, tlogs: TLogSet, head: Lsns) {
    if shared.index.is_whole() {
        return;
    }
    let begin = shared.clock.now();
    match carry_out(&shared, &tlogs, head).await {
        Ok(entries) => {
            *shared.base.write() = None;
            let took = shared.clock.now().saturating_sub(begin);
            tracing::info!(volume = %shared.id, entries, ?took, "the local index is whole");
            // A scrub may wait for it.
            shared.wake.notify_one();
        }
        // The volume serves on, with the TLogs for a map, and is not scrubbed.
        Err(error) => tracing::error!(volume = %shared.id, %error, "the local index can't be filled in"),
    }
}

async fn carry_out(shared: &Shared, tlogs: &TLogSet, head: Lsns) -> Result<u64> {
    let source = source(shared);
    let groups = tlogs::groups(tlogs, &[head]);
    let seen = groups.into_iter().filter(|group| group.seen != Seen::Nobody);
    let runs: Vec<Run> = seen.flat_map(|group| group.runs).collect();
    for named in tlogs.iter() {
        let tree = shared.persist("reading a TLog", || source.tree(named)).await?;
        for d in &tree.index.dict {
            shared.index.add_sco(d.id, d.len, named.lsn_hi, named.lsn_hi);
        }
    }
    let mut merge = Merge::new(shared, &runs, shared.index.filled());
    let mut entries = 0;
    let mut batch: Vec<(Kind, u64, u64, Option<At>)> = Vec::new();
    let mut clusters = 0;
    let mut seen = shared.demand.count();
    loop {
        let to = {
            let piece = merge.next().await?;
            if let Some(piece) = &piece {
                let at = piece.at.map(|(sco, slot, crcs)| At { sco, slot, crcs: crcs.to_vec() });
                clusters += 1 + piece.at.map_or(0, |(_, _, crcs)| crcs.len());
                batch.push((piece.kind, piece.addr, piece.count, at));
                entries += 1;
            }
            piece.map_or(u64::MAX, |piece| piece.addr + piece.count)
        };
        if clusters >= BATCH || to == u64::MAX {
            let begin = shared.clock.now();
            let changes: Vec<Change<'_>> = batch.iter().map(change).collect();
            shared.persist("writing the local index", || async { shared.index.fill(&changes, to) }).await?;
            batch.clear();
            clusters = 0;
            // Clients come first.
            let took = shared.clock.now().saturating_sub(begin);
            match shared.demand.since(&mut seen) && !took.is_zero() {
                true => shared.clock.sleep(took).await,
                false => tokio::task::yield_now().await,
            }
        }
        if to == u64::MAX {
            return Ok(entries);
        }
    }
}

/// Where clusters lie.
struct At {
    sco: crate::format::sco::ScoId,
    slot: u32,
    crcs: Vec<u32>,
}

fn change((kind, addr, count, at): &(Kind, u64, u64, Option<At>)) -> Change<'_> {
    let (addr, count) = (*addr, *count);
    match (kind, at) {
        (_, Some(at)) => Change::Data { addr, sco: at.sco, slot: at.slot, crcs: &at.crcs },
        (Kind::Zero, None) => Change::Zero { addr, count },
        _ => Change::Discard { addr, count },
    }
}
