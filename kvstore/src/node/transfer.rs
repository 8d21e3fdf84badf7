//! Snapshots on their way, in parts: one at a time to each member that is too far behind, and one from a leader.
//!
//! A part is sent again until it is acknowledged, so a link that comes back goes on where it was; a receiver that died
//! asks for the first part again.

use super::core::{Effect, Member};
use super::guard;
use super::message::{Part, PeerMessage};
use crate::log::Position;
use crate::machine::staging::{Frozen, Staging};
use bytes::Bytes;
use common::{Error, Result};
use raft::SnapshotStatus;
use raft::eraftpb::{Message, MessageType, Snapshot};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A view that nobody reads is kept for this many election timeouts.
const KEEP_VIEW: u64 = 20;
/// A transfer without progress is given up after this many election timeouts.
const GIVE_UP: u64 = 10;

struct Outgoing {
    id: u64,
    term: u64,
    frozen: Arc<Frozen>,
    message: Message,
    sequence: u32,
    records: Bytes,
    /// Where the next part begins; none when this is the last.
    next: Option<Vec<u8>>,
    sent: u64,
    progress: u64,
}

struct Incoming {
    from: u64,
    term: u64,
    id: u64,
    next: u32,
    staging: Staging,
}

#[derive(Default)]
pub(super) struct Transfers {
    begun: u64,
    frozen: Option<(Arc<Frozen>, u64)>,
    outgoing: BTreeMap<u64, Outgoing>,
    incoming: Option<Incoming>,
    /// A whole one, for raft to decide about.
    whole: Option<(Position, Staging)>,
    /// The last one that came: its last part may be asked about again.
    last: Option<(u64, u64, u64, u32)>,
}

impl Transfers {
    pub fn stop_sending(&mut self) {
        self.outgoing.clear();
    }

    /// The first entry that a receiver of a snapshot will need.
    pub fn needs_from(&self) -> Option<u64> {
        self.outgoing.values().map(|o| o.frozen.meta().index).min()
    }

    pub fn take_whole(&mut self, at: Position) -> Option<Staging> {
        self.whole.take_if(|(position, _)| *position == at).map(|(_, staging)| staging)
    }
}

impl Outgoing {
    fn part(&self) -> PeerMessage {
        PeerMessage::Part(Part {
            term: self.term,
            id: self.id,
            sequence: self.sequence,
            records: self.records.clone(),
            message: self.next.is_none().then(|| self.message.clone()),
        })
    }

    fn read(&mut self, cursor: &[u8], part_bytes: usize) -> Result<()> {
        (self.records, self.next) = self.frozen.part(cursor, part_bytes)?;
        Ok(())
    }
}

impl Member {
    /// Makes a view of the state when raft asked for one.
    pub(super) fn freeze_if_wanted(&mut self) -> Result<()> {
        let keep = KEEP_VIEW * self.settings.election_ticks as u64;
        if self.transfers.outgoing.is_empty()
            && self.transfers.frozen.as_ref().is_some_and(|(_, since)| since + keep < self.now)
        {
            self.transfers.frozen = None;
            self.raft.mut_store().set_snapshot(None);
        }
        if !self.raft.mut_store().take_wanted() || !self.leads || self.machine.index() == 0 {
            return Ok(());
        }
        let frozen = match self.machine.freeze() {
            Ok(frozen) => Arc::new(frozen),
            Err(error) => {
                // The disk may be full; who is behind waits, the others need not. Raft asks again.
                tracing::warn!(%error, "no snapshot of the registry could be made for a member that is behind");
                return Ok(());
            }
        };
        let mut snapshot = Snapshot::default();
        let meta = snapshot.mut_metadata();
        meta.index = frozen.meta().index;
        meta.term = frozen.meta().term;
        meta.set_conf_state(frozen.meta().configuration.to_raft());
        self.raft.mut_store().set_snapshot(Some(snapshot));
        self.transfers.frozen = Some((frozen, self.now));
        Ok(())
    }

    /// Raft sends a snapshot to `to`: its parts go first.
    pub(super) fn begin_transfer(&mut self, to: u64, message: Message) {
        let index = message.get_snapshot().get_metadata().index;
        let frozen =
            self.transfers.frozen.as_ref().filter(|(f, _)| f.meta().index == index).map(|(f, _)| f.clone());
        let Some(frozen) = frozen else {
            self.raft.report_snapshot(to, SnapshotStatus::Failure);
            return;
        };
        self.transfers.begun += 1;
        let mut outgoing = Outgoing {
            id: self.transfers.begun,
            term: message.term,
            frozen,
            message,
            sequence: 0,
            records: Bytes::new(),
            next: None,
            sent: self.now,
            progress: self.now,
        };
        if let Err(error) = outgoing.read(&[], self.settings.part_bytes) {
            tracing::error!(%error, "a snapshot of the registry can't be read");
            self.raft.report_snapshot(to, SnapshotStatus::Failure);
            return;
        }
        self.effects.push(Effect::Send { to, message: outgoing.part() });
        self.transfers.outgoing.insert(to, outgoing);
    }

    pub(super) fn part_ack(&mut self, from: u64, term: u64, id: u64, next: u32) -> Result<()> {
        let part_bytes = self.settings.part_bytes;
        let Some(outgoing) = self.transfers.outgoing.get_mut(&from).filter(|o| (o.term, o.id) == (term, id))
        else {
            return Ok(());
        };
        let cursor = if next == 0 && outgoing.sequence > 0 {
            // It died, or gave up for another one.
            outgoing.sequence = 0;
            Vec::new()
        } else if next == outgoing.sequence + 1 {
            match outgoing.next.take() {
                Some(cursor) => {
                    outgoing.sequence = next;
                    cursor
                }
                None => {
                    self.transfers.outgoing.remove(&from);
                    self.raft.report_snapshot(from, SnapshotStatus::Finish);
                    return Ok(());
                }
            }
        } else {
            return Ok(());
        };
        if let Err(error) = outgoing.read(&cursor, part_bytes) {
            tracing::error!(%error, "a snapshot of the registry can't be read");
            self.transfers.outgoing.remove(&from);
            self.raft.report_snapshot(from, SnapshotStatus::Failure);
            return Ok(());
        }
        (outgoing.sent, outgoing.progress) = (self.now, self.now);
        self.effects.push(Effect::Send { to: from, message: outgoing.part() });
        Ok(())
    }

    pub(super) fn tick_transfers(&mut self) {
        let give_up = GIVE_UP * self.settings.election_ticks as u64;
        let resend = 2 * self.settings.heartbeat_ticks as u64;
        let mut failed = Vec::new();
        for (to, outgoing) in &mut self.transfers.outgoing {
            if outgoing.progress + give_up < self.now {
                failed.push(*to);
            } else if outgoing.sent + resend <= self.now {
                outgoing.sent = self.now;
                self.effects.push(Effect::Send { to: *to, message: outgoing.part() });
            }
        }
        for to in failed {
            self.transfers.outgoing.remove(&to);
            self.raft.report_snapshot(to, SnapshotStatus::Failure);
        }
    }

    pub(super) fn part(&mut self, from: u64, part: Part) -> Result<()> {
        if part.term < self.term() || (part.term == self.term() && self.is_leader()) {
            return Ok(());
        }
        let ack = |next| Effect::Send {
            to: from,
            message: PeerMessage::PartAck { term: part.term, id: part.id, next },
        };
        if let Some((f, term, id, next)) = self.transfers.last
            && (f, term, id) == (from, part.term, part.id)
        {
            self.effects.push(ack(next));
            return Ok(());
        }
        let known = self.transfers.incoming.as_ref();
        if known.is_none_or(|i| (i.from, i.term, i.id) != (from, part.term, part.id)) {
            if part.sequence != 0 {
                self.effects.push(ack(0));
                return Ok(());
            }
            let staging = self.machine.stage()?;
            self.transfers.incoming = Some(Incoming { from, term: part.term, id: part.id, next: 0, staging });
        }
        let Some(incoming) = self.transfers.incoming.as_mut() else { return Ok(()) };
        if part.sequence == incoming.next {
            incoming.staging.add(part.records)?;
            incoming.next += 1;
        }
        let next = incoming.next;
        if part.sequence + 1 == next
            && let Some(message) = part.message
            && let Some(incoming) = self.transfers.incoming.take()
        {
            self.transfers.last = Some((from, part.term, part.id, next));
            self.restore(from, message, incoming.staging)?;
        }
        self.effects.push(ack(next));
        Ok(())
    }

    /// All parts are here: raft decides whether they are of use.
    fn restore(&mut self, from: u64, message: Message, staging: Staging) -> Result<()> {
        let meta = message.get_snapshot().get_metadata();
        let at = Position { index: meta.index, term: meta.term };
        let fine = message.get_msg_type() == MessageType::MsgSnapshot
            && (message.from, message.to) == (from, self.id());
        let same = staging.meta().is_ok_and(|m| {
            (m.index, m.term) == (at.index, at.term)
                && m.configuration == crate::machine::Configuration::from_raft(meta.get_conf_state())
        });
        if !fine || !same || guard::check_term(&self.raft, from, &message).is_err() {
            staging.abandon()?;
            return Err(Error::invalid(format!("a snapshot of member {from} is not what its message says")));
        }
        if let Err(error) = self.machine.check(&staging) {
            staging.abandon()?;
            return Err(Error::invalid(format!(
                "a snapshot of member {from} is no state: {}",
                error.message()
            )));
        }
        let configuration = crate::machine::Configuration::from_raft(meta.get_conf_state());
        let (id, votes) = (self.id(), [&configuration.voters, &configuration.voters_outgoing]);
        if self.is_blank() && votes.iter().any(|set| set.contains(&id)) {
            staging.abandon()?;
            return Err(Error::fenced(format!(
                "member {id} votes in its group, and its folder is empty: what it voted for and confirmed is lost; \
                 remove it from the group and add it again under a new id"
            )));
        }
        self.transfers.whole = Some((at, staging));
        let _ = self.raft.step(message);
        self.draw_timeout();
        // Now: the next snapshot is received in the same place.
        self.progress()?;
        match self.transfers.whole.take() {
            Some((_, staging)) => staging.abandon(),
            None => Ok(()),
        }
    }
}
