//! The member: its state, and the inputs that move it.

use super::leases::LeaseClock;
use super::message::PeerMessage;
use super::request::{Request, Response};
use super::serve::{Proposal, Reads, Watch};
use super::storage::Memory;
use super::transfer::Transfers;
use super::{Settings, guard, logger};
use crate::log::{LogBatch, Position, Recovered};
use crate::machine::{LeaseId, Machine};
use common::{Error, Result};
use raft::eraftpb::Message;
use raft::{Config, RawNode, StateRole};
use std::collections::{BTreeMap, VecDeque};

/// Names a request of a client until its response.
pub(crate) type Token = u64;

/// What the member wants done, in order.
#[derive(Debug)]
pub(crate) enum Effect {
    /// Add to the log, durably; then [`Member::persisted`].
    Persist { number: u64, batch: LogBatch },
    /// Make the state durable, then give up the log up to here.
    Compact { floor: Position },
    /// Send; it may be lost.
    Send { to: u64, message: PeerMessage },
    /// Answer a client.
    Reply { token: Token, response: Response },
}

/// How a member is, for whoever looks after it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Vitals {
    pub term: u64,
    /// 0 when nobody is known to lead.
    pub leader: u64,
    pub leads: bool,
    pub committed: u64,
    pub applied: u64,
    pub revision: u64,
    pub log_bytes: u64,
    pub waiting: u64,
    /// Commands since its start.
    pub proposed: u64,
    /// Requests of clients that came here.
    pub served: u64,
    pub watches: u64,
    pub leases: u64,
    pub sessions: u64,
    /// How many entries each other member lacks, if it leads.
    pub lags: Vec<(u64, u64)>,
}

/// A round of raft that waits for the disk, or for one that does.
pub(super) struct Waiting {
    pub number: u64,
    /// What may be said when it is durable.
    pub messages: Vec<Message>,
    pub on_disk: bool,
    /// The entry of a snapshot that was installed with it.
    pub installed: Option<u64>,
}

/// A member of a group, without I/O. Time is the number of its ticks.
pub(crate) struct Member {
    pub(super) settings: Settings,
    pub(super) raft: RawNode<Memory>,
    pub(super) machine: Machine,
    pub(super) now: u64,
    pub(super) effects: Vec<Effect>,
    pub(super) waiting: VecDeque<Waiting>,
    pub(super) durable: u64,
    pub(super) leads: bool,
    pub(super) proposals: BTreeMap<u64, Proposal>,
    pub(super) proposed: u64,
    pub(super) served: u64,
    /// Who waits for the end of a change of the membership.
    pub(super) changing: Option<Token>,
    /// The entry of the last change of the membership.
    pub(super) last_change: u64,
    pub(super) reads: Reads,
    pub(super) watches: Vec<Watch>,
    pub(super) leases: LeaseClock,
    pub(super) transfers: Transfers,
    pub(super) removed: bool,
    /// What was applied since somebody looked, for the simulation.
    #[cfg(test)]
    pub applied: Vec<raft::eraftpb::Entry>,
}

impl Member {
    /// The member whose state and log these are. The log must reach to the state: see [`fits`].
    pub fn new(settings: Settings, machine: Machine, recovered: Recovered) -> Result<Self> {
        let applied = machine.index();
        let mut recovered = recovered;
        // What was applied is committed, whether or not the hard state says so yet.
        let last = recovered.floor.index + recovered.entries.len() as u64;
        recovered.hard.commit = recovered.hard.commit.min(last).max(applied).max(recovered.floor.index);
        let config = Config {
            id: machine.head().member,
            election_tick: settings.election_ticks,
            heartbeat_tick: settings.heartbeat_ticks,
            applied,
            max_size_per_msg: 1 << 20,
            max_inflight_msgs: 64,
            check_quorum: true,
            pre_vote: true,
            max_uncommitted_size: 64 << 20,
            max_committed_size_per_ready: 16 << 20,
            ..Config::default()
        };
        let known = &machine.meta().configuration;
        if !known.is_sound() {
            return Err(Error::corrupt(format!("replicated registry: {known:?} can't be its members")));
        }
        // It was told so, and then the process died.
        let removed = applied > 0 && !known.contains(machine.head().member);
        let configuration = known.to_raft();
        let raft = RawNode::new(&config, Memory::new(recovered, configuration), &logger::logger());
        let raft = raft.map_err(|e| Error::internal(format!("raft does not start: {e}")))?;
        let mut member = Self {
            settings,
            raft,
            machine,
            now: 0,
            effects: Vec::new(),
            waiting: VecDeque::new(),
            durable: 0,
            leads: false,
            proposals: BTreeMap::new(),
            proposed: 0,
            served: 0,
            changing: None,
            last_change: 0,
            reads: Reads::default(),
            watches: Vec::new(),
            leases: LeaseClock::default(),
            transfers: Transfers::default(),
            removed,
            #[cfg(test)]
            applied: Vec::new(),
        };
        member.draw_timeout();
        member.lead_if_alone();
        Ok(member)
    }

    /// Who votes alone has nobody to wait for: all of its log is durable as it was just read.
    fn lead_if_alone(&mut self) {
        if self.machine.meta().configuration.voters == [self.id()] && !self.removed {
            // When it may not stand yet (a change of the membership is not applied), it does so at its time.
            let _ = self.raft.campaign();
        }
    }

    /// Its id.
    pub fn id(&self) -> u64 {
        self.raft.raft.id
    }

    /// Whether it believes that it leads.
    pub fn leads(&self) -> bool {
        self.leads
    }

    /// Its term.
    pub fn term(&self) -> u64 {
        self.raft.raft.term
    }

    /// Whether the group has gone on without it.
    pub fn is_removed(&self) -> bool {
        self.removed
    }

    /// How it is.
    pub(super) fn vitals(&self) -> Vitals {
        let raft = &self.raft.raft;
        let last = raft.raft_log.last_index();
        let others = raft.prs().iter().filter(|(id, _)| **id != raft.id);
        let mut lags: Vec<_> = others.map(|(id, p)| (*id, last.saturating_sub(p.matched))).collect();
        if !self.leads {
            lags.clear();
        }
        Vitals {
            term: raft.term,
            leader: raft.leader_id,
            leads: self.leads,
            committed: raft.raft_log.committed,
            applied: self.machine.index(),
            revision: self.machine.revision(),
            log_bytes: self.raft.store().bytes() as u64,
            waiting: self.proposals.len() as u64,
            proposed: self.proposed,
            served: self.served,
            watches: self.watches.len() as u64,
            leases: self.machine.leases().count() as u64,
            sessions: self.machine.sessions() as u64,
            lags,
        }
    }

    /// Its state.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// One tick has passed; never more often than they do on the clock.
    pub fn tick(&mut self) {
        self.now += 1;
        // A lone voter leads as soon as it stands, and raft takes it that all of its log is durable then.
        let alone = self.machine.meta().configuration.voters == [self.id()] && !self.leads;
        let not_yet = alone && self.waiting.iter().any(|round| round.on_disk);
        if !not_yet && !self.is_installing() {
            self.raft.tick();
        }
        self.draw_timeout();
        self.end_leases();
        self.leave_joint();
        self.tick_transfers();
        self.tick_watches();
    }

    /// A message came from member `from`, who was authenticated. What is refused is told and changes nothing.
    pub fn peer(&mut self, from: u64, message: PeerMessage) -> Result<()> {
        match message {
            PeerMessage::Raft(message) => {
                guard::check(&self.raft, from, &message)?;
                let blank_vote = self.is_blank() && guard::asks_for_a_vote(&message);
                if self.is_installing() || blank_vote || guard::is_hasty(&self.raft, &message) {
                    // As good as lost on the way.
                    return Ok(());
                }
                // Who is not a member (any more) gets no answer; that is no fault.
                let _ = self.raft.step(message);
                self.draw_timeout();
                Ok(())
            }
            PeerMessage::Part(part) => self.part(from, part),
            PeerMessage::PartAck { term, id, next } => self.part_ack(from, term, id, next),
        }
    }

    /// The link to `peer` broke, or has no room: messages were lost.
    pub fn unreachable(&mut self, peer: u64) {
        self.raft.report_unreachable(peer);
    }

    /// Everything up to round `number` is durable.
    pub fn persisted(&mut self, number: u64) {
        self.durable = number;
    }

    /// A client asks; the answer is an effect, now or later.
    pub fn request(&mut self, token: Token, request: Request) -> Result<()> {
        self.serve(token, request)
    }

    /// Does what has become possible. An error means that the member can't go on: what it has in memory is ahead of its disk.
    pub fn flush(&mut self) -> Result<Vec<Effect>> {
        self.progress()?;
        self.compact();
        self.draw_timeout();
        Ok(std::mem::take(&mut self.effects))
    }

    /// Hands the lead to whoever is nearest to it; `false` when there is nobody, or it does not lead.
    pub fn hand_over(&mut self) -> bool {
        if !self.leads {
            return false;
        }
        let id = self.id();
        let raft = &self.raft.raft;
        let voters = raft.prs().conf().to_conf_state().voters;
        let matched = |v: &u64| raft.prs().get(*v).filter(|p| p.recent_active).map(|p| (p.matched, *v));
        match voters.iter().filter(|v| **v != id).filter_map(matched).max() {
            Some((_, to)) => {
                self.raft.transfer_leader(to);
                true
            }
            None => false,
        }
    }

    pub(super) fn reply(&mut self, token: Token, response: Response) {
        self.effects.push(Effect::Reply { token, response });
    }

    /// Raft draws its timeouts from the process's own chance; here they follow from seed, member and term, so that a
    /// simulation can be repeated.
    pub(super) fn draw_timeout(&mut self) {
        let raft = &mut self.raft.raft;
        let mut x = self.settings.seed ^ raft.id.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (raft.term << 20);
        for _ in 0..2 {
            x = (x ^ (x >> 31)).wrapping_mul(0x7fb5_d329_728e_a185);
        }
        let range = self.settings.election_ticks.max(1);
        let timeout = range + ((x >> 33) as usize) % range;
        if raft.randomized_election_timeout() != timeout {
            raft.set_randomized_election_timeout(timeout);
        }
    }

    fn end_leases(&mut self) {
        if !self.leads {
            return;
        }
        self.leases.keep(|id| self.machine.lease(id).is_some());
        for lease in self.leases.due(self.now) {
            if self.propose_expiry(lease) {
                self.leases.proposed(lease);
            }
        }
    }

    fn propose_expiry(&mut self, lease: LeaseId) -> bool {
        let command = crate::machine::Command::Expire { lease };
        self.raft.propose(Vec::new(), command.encode().to_vec()).is_ok()
    }

    /// Raft leaves a joint configuration by itself only on the leader that entered it.
    fn leave_joint(&mut self) {
        let joint = !self.machine.meta().configuration.voters_outgoing.is_empty();
        if self.leads && joint && !self.raft.raft.has_pending_conf() {
            let _ = self.raft.propose_conf_change(Vec::new(), raft::eraftpb::ConfChangeV2::default());
        }
    }

    /// Until an installed snapshot is durable raft knows its entry as committed and not as applied, and would look for
    /// the entries before it when it stands for election.
    fn is_installing(&self) -> bool {
        self.waiting.iter().any(|round| round.installed.is_some())
    }

    /// Whether it never had a state. Such a member is a new one that waits for its first snapshot, or one that
    /// lost its disk and with it its votes and what it confirmed. Either way nobody may count on its vote.
    pub(super) fn is_blank(&self) -> bool {
        self.machine.index() == 0
    }

    pub(super) fn is_leader(&self) -> bool {
        self.raft.raft.state == StateRole::Leader
    }
}

/// Whether a state of entry `applied`, which came by a snapshot of entry `installed`, and a log go together. `Ok(true)` when the log
/// has to begin anew behind the state: a snapshot was installed, and then the process died.
pub(crate) fn fits(applied: Position, installed: u64, recovered: &Recovered) -> Result<bool> {
    let last = recovered.floor.index + recovered.entries.len() as u64;
    let at = if applied.index == recovered.floor.index {
        Some(recovered.floor.term)
    } else {
        let behind = applied.index.checked_sub(recovered.floor.index + 1);
        behind.and_then(|n| recovered.entries.get(n as usize)).map(|e| e.term)
    };
    match at {
        Some(term) if term == applied.term => Ok(false),
        _ if installed == applied.index && applied.index > recovered.floor.index => Ok(true),
        _ => Err(Error::corrupt(format!(
            "the registry's state is that of entry {} of term {}, and its log has entries {} to {last}: one of them was \
             lost or comes from elsewhere; remove this member and add it again under a new id",
            applied.index,
            applied.term,
            recovered.floor.index + 1
        ))),
    }
}
