//! What the peers have to say: entries retire, and flushes are answered, when they allow it too.

use super::{Core, Rec};
use crate::journal::JournalLoc;
use crate::log::{Crcs, Kind};
use bytes::Bytes;
use common::{Epoch, Lsn, VolumeId, mutant};
use dtl::owner::{Action, Outcome, Owner};
use dtl::{Config, PeerLog};
use std::time::Duration;
use tokio::sync::oneshot;

/// An entry above `committed`, to be sent to a peer that misses it.
#[derive(Debug, Clone)]
pub(crate) struct TailEntry {
    pub volume: VolumeId,
    pub epoch: Epoch,
    pub lsn: Lsn,
    pub kind: Kind,
    pub addr: u64,
    pub count: u64,
    pub crcs: Crcs,
    pub content: Content,
}

/// Where the content of a [`TailEntry`] is.
#[derive(Debug, Clone)]
pub(crate) enum Content {
    Memory(Bytes),
    Journal(JournalLoc),
    Nothing,
}

impl Core {
    /// From now on the peers are asked. Entries that were replayed are accepted whatever they say.
    pub fn replicate(&mut self, owner: Owner) {
        self.owner = Some(Box::new(owner));
    }

    /// The replication as the registry is known to have it.
    pub fn replication(&self) -> Option<&Config> {
        self.owner.as_ref().map(|owner| owner.config())
    }

    /// Whether the loss of this machine loses nothing that was promised.
    pub fn is_in_sync(&self) -> bool {
        self.owner.as_ref().is_some_and(|owner| owner.is_in_sync())
    }

    /// Up to where entries may retire now; what is promised by that is noted first.
    pub(super) fn may_retire(&mut self) -> Lsn {
        let Some(owner) = &mut self.owner else { return self.journaled };
        if mutant::is_on("peers-not-waited-for") {
            return self.journaled;
        }
        let to = self.journaled.min(owner.may_acknowledge());
        if to > self.frontiers.accepted && owner.acknowledge(to) { to } else { self.frontiers.accepted }
    }

    /// Event: an entry was given out and is being sent to the peers.
    pub fn sent(&mut self, lsn: Lsn, now: Duration) {
        if let Some(owner) = &mut self.owner {
            owner.accepted(lsn, now);
        }
    }

    /// Event: there is a log at a peer, which is being sent what it misses.
    pub fn joined(&mut self, peer: PeerLog, now: Duration) {
        if let Some(owner) = &mut self.owner {
            owner.joined(peer, now);
        }
    }

    /// Event: what a log at a peer has. [`Core::advance`] follows.
    pub fn progress(&mut self, peer: &PeerLog, progress: &dtl::client::Progress, now: Duration) {
        if let Some(owner) = &mut self.owner {
            owner.progress(peer, progress.confirmed, progress.flushed, progress.state, now);
        }
        self.answer_flushes();
    }

    /// Event: what became of a proposal. [`Core::advance`] follows.
    pub fn proposed(&mut self, proposal: &Config, outcome: Outcome, now: Duration) {
        if let Some(owner) = &mut self.owner {
            owner.outcome(proposal, outcome, now);
        }
        self.answer_flushes();
    }

    /// Event: this is what the registry has. [`Core::advance`] follows.
    pub fn observed(&mut self, epoch: Epoch, config: Config, now: Duration) {
        if let Some(owner) = &mut self.owner {
            owner.observed(epoch, config, now);
        }
        self.answer_flushes();
    }

    /// Whether [`Core::tick`] has something to do at once.
    pub fn has_actions(&self) -> bool {
        self.owner.as_ref().is_some_and(|owner| owner.has_actions())
    }

    /// Event: time passes; what is to be done. [`Core::advance`] follows.
    pub fn tick(&mut self, now: Duration) -> Vec<Action> {
        let Some(owner) = &mut self.owner else { return Vec::new() };
        owner.tick(now);
        let actions = std::iter::from_fn(|| owner.take_action()).collect();
        self.answer_flushes();
        actions
    }

    /// Somebody wants everything up to `lsn` to survive. Whether peers are to be asked for it.
    pub fn flush_wanted(&mut self, lsn: Lsn, now: Duration) -> bool {
        self.owner.as_mut().is_some_and(|owner| owner.flush_wanted(lsn, now))
    }

    /// A signal for when the peers have flushed up to `lsn`; `None` when they have, or have no say.
    pub fn wait_flushed(&mut self, lsn: Lsn) -> Option<oneshot::Receiver<()>> {
        let owner = self.owner.as_mut()?;
        if owner.acknowledge_flush(lsn) {
            return None;
        }
        let (tx, rx) = oneshot::channel();
        self.flush_waiters.push((lsn, tx));
        Some(rx)
    }

    fn answer_flushes(&mut self) {
        let Some(owner) = &mut self.owner else { return };
        if self.flush_waiters.is_empty() {
            return;
        }
        for (_, waiter) in self.flush_waiters.extract_if(.., |(lsn, _)| owner.acknowledge_flush(*lsn)) {
            let _ = waiter.send(());
        }
    }

    /// What a peer is to be sent from `from` on, about `max` bytes of it, and what is committed.
    pub fn tail(&self, from: Lsn, max: usize) -> (Lsn, Vec<TailEntry>) {
        let committed = self.frontiers.committed;
        let first = from.max(committed.next());
        let skip = (first.0 - committed.0 - 1) as usize;
        let mut bytes = 0;
        let mut entries = Vec::new();
        for (rec, lsn) in self.recs.iter().skip(skip).zip(first.0..) {
            if !entries.is_empty() && bytes >= max {
                break;
            }
            bytes += 64 + self.content_bytes(rec.kind, rec.count) as usize;
            entries.push(self.tail_entry(rec, Lsn(lsn)));
        }
        (committed, entries)
    }

    fn tail_entry(&self, rec: &Rec, lsn: Lsn) -> TailEntry {
        let content = match (&rec.data, &rec.loc) {
            (Some(data), _) => Content::Memory(data.clone()),
            (None, Some(loc)) if rec.kind.has_content() => Content::Journal(loc.clone()),
            _ => Content::Nothing,
        };
        TailEntry {
            volume: self.volume,
            epoch: rec.epoch,
            lsn,
            kind: rec.kind,
            addr: rec.addr,
            count: rec.count,
            crcs: rec.crcs.clone(),
            content,
        }
    }
}
