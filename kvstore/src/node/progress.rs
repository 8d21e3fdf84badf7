//! One round of raft: what it wants durable, said and applied.

use super::core::{Effect, Member, Waiting};
use super::message::PeerMessage;
use super::request::Response;
use crate::log::{LogBatch, Position};
use crate::machine::{Answer, Configuration};
use crate::wire::{Reader, Writer};
use bytes::Bytes;
use common::{Error, Result, mutant};
use protobuf::Message as _;
use raft::eraftpb::{ConfChangeV2, Entry, EntryType, Message, MessageType, Snapshot};
use raft::{StateRole, Storage as _};
use std::collections::BTreeMap;

/// What became of a command, told when all of its round is in the table.
struct Applied {
    index: u64,
    term: u64,
    answer: Option<Answer>,
    /// It was a change of the membership.
    change: bool,
}

impl Member {
    /// Does rounds until there is nothing to do.
    pub(super) fn progress(&mut self) -> Result<()> {
        self.begin_reads();
        self.say_what_is_durable();
        while self.raft.has_ready() {
            self.round()?;
            self.begin_reads();
        }
        self.answer_change();
        self.freeze_if_wanted()
    }

    fn round(&mut self) -> Result<()> {
        let mut ready = self.raft.ready();
        let mut leads = None;
        if let Some(state) = ready.ss() {
            leads = Some(state.raft_state == StateRole::Leader);
        }
        self.send(ready.take_messages());
        let mut batch = LogBatch::default();
        if !ready.snapshot().is_empty() {
            batch.reset = Some(self.install(ready.snapshot())?);
        }
        if let Some(hard) = ready.hs() {
            self.raft.mut_store().set_hard(hard.clone());
        }
        batch.entries = ready.take_entries();
        self.raft.mut_store().append(&batch.entries);
        let committed = ready.take_committed_entries();
        let reads = ready.take_read_states();
        let messages = ready.take_persisted_messages();
        let number = ready.number();
        let mut on_disk = ready.must_sync();
        if mutant::is_on("vote-not-durable") && batch.entries.is_empty() && batch.reset.is_none() {
            on_disk = false;
        }
        self.raft.advance_append_async(ready);
        let installed = batch.reset.map(|at| at.index);
        self.waiting.push_back(Waiting { number, messages, on_disk, installed });
        if on_disk {
            batch.hard = Some(self.raft.raft.hard_state());
            self.effects.push(Effect::Persist { number, batch });
        }
        if let Some(leads) = leads {
            self.role_changed(leads);
        }
        self.apply(committed)?;
        self.reads_confirmed(reads)?;
        self.say_what_is_durable();
        Ok(())
    }

    /// Rounds are durable in order; one that needs no disk only waits for those before it.
    fn say_what_is_durable(&mut self) {
        while let Some(first) = self.waiting.front() {
            if first.on_disk && first.number > self.durable {
                break;
            }
            let Some(round) = self.waiting.pop_front() else { break };
            self.send(round.messages);
            self.raft.on_persist_ready(round.number);
            if let Some(index) = round.installed {
                self.raft.advance_apply_to(index);
            }
            if round.on_disk && mutant::is_on("ack-before-quorum") {
                self.pretend_a_quorum();
            }
        }
    }

    fn pretend_a_quorum(&mut self) {
        if !self.is_leader() {
            return;
        }
        let (id, term, index) = (self.id(), self.raft.raft.term, self.raft.raft.raft_log.persisted);
        for voter in self.machine.meta().configuration.voters.clone() {
            let mut message = Message::default();
            message.set_msg_type(MessageType::MsgAppendResponse);
            (message.from, message.to, message.term, message.index) = (voter, id, term, index);
            if voter != id {
                let _ = self.raft.step(message);
            }
        }
    }

    fn send(&mut self, messages: Vec<Message>) {
        for message in messages {
            let to = message.to;
            if message.get_msg_type() == MessageType::MsgSnapshot {
                self.begin_transfer(to, message);
                continue;
            }
            self.effects.push(Effect::Send { to, message: PeerMessage::Raft(message) });
        }
    }

    fn role_changed(&mut self, leads: bool) {
        if leads == self.leads {
            return;
        }
        self.leads = leads;
        if leads {
            self.leases.restart(self.machine.leases(), self.now, self.settings.tick_ms);
        } else {
            self.leases.stop();
            self.stop_serving();
        }
        self.transfers.stop_sending();
    }

    fn install(&mut self, snapshot: &Snapshot) -> Result<Position> {
        let meta = snapshot.get_metadata();
        let at = Position { index: meta.index, term: meta.term };
        let staging = self.transfers.take_whole(at).ok_or_else(|| {
            Error::internal(format!("raft restores a snapshot of entry {} that did not arrive", at.index))
        })?;
        self.machine.install(staging, at.index, at.term)?;
        self.raft.mut_store().reset(at);
        tracing::info!(member = self.id(), index = at.index, "the registry's state came as a snapshot");
        Ok(at)
    }

    fn apply(&mut self, entries: Vec<Entry>) -> Result<()> {
        let Some(last) = entries.last().map(|e| e.index) else { return Ok(()) };
        #[cfg(test)]
        self.applied.extend(entries.iter().cloned());
        let mut applied = Vec::with_capacity(entries.len());
        for mut entry in entries {
            let (index, term) = (entry.index, entry.term);
            let change = entry.get_entry_type() != EntryType::EntryNormal;
            let answer = match entry.get_entry_type() {
                EntryType::EntryNormal => {
                    let empty = entry.data.is_empty();
                    let answer = self.machine.apply(index, term, std::mem::take(&mut entry.data))?;
                    (!empty).then_some(answer)
                }
                _ => {
                    self.apply_change(&entry)?;
                    None
                }
            };
            applied.push(Applied { index, term, answer, change });
        }
        self.machine.commit()?;
        self.raft.advance_apply_to(last);
        for done in applied {
            self.answer(done);
        }
        self.serve_watches()?;
        self.serve_reads()
    }

    fn apply_change(&mut self, entry: &Entry) -> Result<()> {
        let bad = |e| Error::corrupt(format!("entry {} of the registry's log: {e}", entry.index));
        let change = ConfChangeV2::parse_from_carllerche_bytes(&entry.data).map_err(bad)?;
        let configuration = match self.raft.apply_conf_change(&change) {
            Ok(state) => Configuration::from_raft(&state),
            // The same on every member: the change is void.
            Err(error) => {
                tracing::warn!(%error, index = entry.index, "a change of the registry's members is void");
                self.machine.meta().configuration.clone()
            }
        };
        let addresses = decode_addresses(&change.context)?;
        self.last_change = entry.index;
        let was = self.machine.meta().configuration.contains(self.id());
        self.removed |= was && !configuration.contains(self.id());
        let id = self.id();
        if self.is_leader()
            && !configuration.voters.contains(&id)
            && !configuration.voters_outgoing.contains(&id)
        {
            // It came to lead while its vote was being taken away. Raft would let it go on, and answer its reads without
            // asking anybody once a single other member votes, who may have been elected meanwhile.
            let term = self.raft.raft.term;
            self.raft.raft.become_follower(term, raft::INVALID_ID);
        }
        self.machine.apply_configuration(entry.index, entry.term, configuration, &addresses)
    }

    fn answer(&mut self, done: Applied) {
        if let (true, Some(Answer::Granted { lease })) = (self.leads, &done.answer)
            && let Some(ttl_ms) = self.machine.lease(*lease)
        {
            self.leases.renew(*lease, ttl_ms, self.now, self.settings.tick_ms);
        }
        let Some(proposal) = self.proposals.remove(&done.index) else { return };
        if proposal.term != done.term {
            self.reply(proposal.token, Response::Lost);
            return;
        }
        match done.answer {
            Some(answer) => self.reply(proposal.token, Response::Answer(answer)),
            None if done.change => self.changing = Some(proposal.token),
            // Raft made nothing of it, since another one was under way.
            None => {
                let error =
                    Error::unavailable("another change of the members was under way: it was not done");
                self.reply(proposal.token, Response::failed(&error));
            }
        }
    }

    /// Gives up the older half of the log when it is large.
    pub(super) fn compact(&mut self) {
        let memory = self.raft.store();
        if memory.bytes() <= self.settings.compact_bytes {
            return;
        }
        let mut limit = self.machine.index();
        // A member that gets a snapshot goes on with what follows it, unless that keeps too much.
        if let Some(needed) = self.transfers.needs_from()
            && memory.bytes() < 4 * self.settings.compact_bytes
        {
            limit = limit.min(needed);
        }
        let Some(floor) = memory.compaction(self.settings.compact_bytes / 2, limit) else { return };
        if memory.first_index().is_ok_and(|first| floor.index >= first) {
            self.raft.mut_store().compact(floor);
            self.effects.push(Effect::Compact { floor });
        }
    }
}

/// The addresses of new members travel with the change.
pub(super) fn encode_addresses(addresses: &BTreeMap<u64, String>) -> Bytes {
    let mut w = Writer::new();
    w.u32(addresses.len() as u32);
    for (id, address) in addresses {
        w.u64(*id).bytes(address.as_bytes());
    }
    w.finish()
}

fn decode_addresses(context: &Bytes) -> Result<BTreeMap<u64, String>> {
    let mut addresses = BTreeMap::new();
    if context.is_empty() {
        return Ok(addresses);
    }
    let mut r = Reader::new(context.clone(), "addresses of the registry's members");
    for _ in 0..r.count(crate::machine::layout::MAX_MEMBERS, 12)? {
        addresses.insert(r.u64()?, r.string(crate::machine::layout::MAX_ADDRESS)?);
    }
    Ok(addresses)
}
