//! What clients ask, and when they are answered.

use super::core::{Member, Token};
use super::progress::encode_addresses;
use super::request::{Change, Request, Response, Status};
use crate::machine::command::check_key;
use crate::machine::layout::MAX_ADDRESS;
use crate::machine::{Command, LeaseId, Range};
use common::{Error, ErrorKind, Result, mutant};
use raft::eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2};
use raft::{ReadState, StateRole};
use std::collections::BTreeMap;

/// Rounds of ReadIndex under way at a time; what comes meanwhile shares the next one.
const READ_ROUNDS: usize = 2;
/// Requests that may wait here, of each kind.
const MAX_WAITING: usize = 16_384;
/// A learner that has all but this many entries has caught up.
const CAUGHT_UP: u64 = 1024;
/// The longest wait of a watch, in milliseconds.
const MAX_WATCH_MS: u64 = 60_000;

/// A client that waits for the entry of its command.
pub(super) struct Proposal {
    pub term: u64,
    pub token: Token,
}

/// What is answered from the state, once it is known to be new enough.
pub(super) enum Read {
    Get(String),
    Range(Range),
    KeepAlive(LeaseId),
}

/// Reads, by how far they are.
#[derive(Default)]
pub(super) struct Reads {
    rounds_begun: u64,
    collecting: Vec<(Token, Read)>,
    rounds: BTreeMap<u64, Vec<(Token, Read)>>,
    /// Confirmed for an entry that is not applied yet.
    confirmed: BTreeMap<u64, Vec<(Token, Read)>>,
}

/// A client that waits for changes.
pub(super) struct Watch {
    token: Token,
    prefix: String,
    from: u64,
    until: u64,
}

fn check_address(member: u64, address: &str) -> Result<()> {
    match address.len() {
        1..=MAX_ADDRESS => Ok(()),
        _ => Err(Error::invalid(format!("member {member} needs an address that can be reached"))),
    }
}

impl Member {
    pub(super) fn serve(&mut self, token: Token, request: Request) -> Result<()> {
        self.served += 1;
        if let Request::Status = request {
            let status = self.status();
            self.reply(token, Response::Status(status));
            return Ok(());
        }
        if self.raft.raft.state != StateRole::Leader {
            let response = self.not_leader();
            self.reply(token, response);
            return Ok(());
        }
        match request {
            Request::Command(command) => self.propose(token, command),
            Request::Get { key } => match check_key(&key) {
                Ok(()) => self.read(token, Read::Get(key))?,
                Err(e) => self.reply(token, Response::failed(&e)),
            },
            Request::Range(range) => self.read(token, Read::Range(range))?,
            Request::KeepAlive { lease } if self.machine.guard() == Some(lease) => {
                let error = Error::invalid("this lease is the registry's own, and ends by itself");
                self.reply(token, Response::failed(&error));
            }
            Request::KeepAlive { lease } => {
                // From now on, whatever becomes of the answer: later than the holder counts is safe.
                if let Some(ttl_ms) = self.machine.lease(lease) {
                    self.leases.renew(lease, ttl_ms, self.now, self.settings.tick_ms);
                }
                self.read(token, Read::KeepAlive(lease))?;
            }
            Request::Watch { prefix, from, wait_ms } => self.watch(token, prefix, from, wait_ms)?,
            Request::Change(changes) => self.change(token, &changes),
            Request::Transfer { to } => {
                let voter = self.machine.meta().configuration.voters.contains(&to);
                let response = if voter {
                    self.raft.transfer_leader(to);
                    Response::Done
                } else {
                    Response::failed(&Error::invalid(format!("member {to} does not vote: it can't lead")))
                };
                self.reply(token, response);
            }
            Request::Status => {}
        }
        Ok(())
    }

    fn not_leader(&self) -> Response {
        let leader = self.raft.raft.leader_id;
        let known = leader != raft::INVALID_ID && leader != self.id();
        let address = self.machine.members().get(&leader).cloned();
        Response::NotLeader { leader: known.then(|| (leader, address.unwrap_or_default())) }
    }

    /// How the member sees its group.
    pub fn status(&self) -> Status {
        let meta = self.machine.meta();
        Status {
            member: self.id(),
            leader: Some(self.raft.raft.leader_id).filter(|l| *l != raft::INVALID_ID),
            term: self.term(),
            applied: meta.index,
            revision: meta.revision,
            configuration: meta.configuration.clone(),
            members: self.machine.members().clone(),
        }
    }

    fn busy(&mut self, token: Token) {
        let error = Error::unavailable("the registry has too much to do at the moment: try again");
        self.reply(token, Response::failed(&error));
    }

    fn propose(&mut self, token: Token, command: Command) {
        let refused = match &command {
            Command::Expire { .. } => Err(Error::invalid("leases expire by themselves; revoke it")),
            command => command.check(),
        };
        if let Err(e) = refused {
            return self.reply(token, Response::failed(&e));
        }
        if self.proposals.len() >= MAX_WAITING {
            return self.busy(token);
        }
        match self.raft.propose(Vec::new(), command.encode().to_vec()) {
            Ok(()) => self.await_entry(token),
            // Too much is not committed yet, or the lead is being handed over.
            Err(_) => self.busy(token),
        }
    }

    fn await_entry(&mut self, token: Token) {
        self.proposed += 1;
        let index = self.raft.raft.raft_log.last_index();
        let proposal = Proposal { term: self.raft.raft.term, token };
        if let Some(before) = self.proposals.insert(index, proposal) {
            // An entry of an earlier lead that was replaced.
            self.reply(before.token, Response::Lost);
        }
    }

    fn change(&mut self, token: Token, changes: &[Change]) {
        match self.change_of(changes) {
            Ok(change) => match self.raft.propose_conf_change(Vec::new(), change) {
                Ok(()) => self.await_entry(token),
                Err(_) => self.busy(token),
            },
            Err(e) => self.reply(token, Response::failed(&e)),
        }
    }

    fn change_of(&self, changes: &[Change]) -> Result<ConfChangeV2> {
        let now = &self.machine.meta().configuration;
        if self.changing.is_some() || self.raft.raft.has_pending_conf() || !now.voters_outgoing.is_empty() {
            return Err(Error::unavailable(
                "another change of the members is under way: try again when it is done",
            ));
        }
        let mut change = ConfChangeV2::default();
        let mut addresses = BTreeMap::new();
        let (mut voters, mut members) = (now.voters.clone(), now.voters.len() + now.learners.len());
        for step in changes {
            let mut single = ConfChangeSingle::default();
            match step {
                Change::AddLearner { member, address } => {
                    if self.machine.is_gone(*member) {
                        return Err(Error::conflict(format!(
                            "member {member} was removed, and what an old folder of it says would be believed: \
                             choose an id that was never used"
                        )));
                    }
                    if *member == 0 || now.contains(*member) || addresses.contains_key(member) {
                        return Err(Error::conflict(format!(
                            "member {member} is there already, or can't be"
                        )));
                    }
                    check_address(*member, address)?;
                    addresses.insert(*member, address.clone());
                    members += 1;
                    single.set_change_type(ConfChangeType::AddLearnerNode);
                    single.node_id = *member;
                }
                Change::Promote { member } => {
                    self.check_caught_up(*member)?;
                    voters.push(*member);
                    single.set_change_type(ConfChangeType::AddNode);
                    single.node_id = *member;
                }
                Change::Relocate { member, address } => {
                    if !now.contains(*member) {
                        return Err(Error::not_found(format!("there is no member {member}")));
                    }
                    check_address(*member, address)?;
                    addresses.insert(*member, address.clone());
                    // It is made what it is: only the address that travels along changes something.
                    single.set_change_type(match now.voters.contains(member) {
                        true => ConfChangeType::AddNode,
                        false => ConfChangeType::AddLearnerNode,
                    });
                    single.node_id = *member;
                }
                Change::Demote { member } | Change::Remove { member } => {
                    if *member == self.id() {
                        return Err(Error::conflict(format!(
                            "member {member} leads: hand over the lead first, then ask the new leader"
                        )));
                    }
                    if !now.contains(*member) {
                        return Err(Error::not_found(format!("there is no member {member}")));
                    }
                    voters.retain(|v| v != member);
                    let demote = matches!(step, Change::Demote { .. });
                    single.set_change_type(match demote {
                        true => ConfChangeType::AddLearnerNode,
                        false => ConfChangeType::RemoveNode,
                    });
                    single.node_id = *member;
                }
            }
            change.changes.push(single);
        }
        if changes.is_empty() || voters.is_empty() || members > crate::machine::layout::MAX_MEMBERS {
            return Err(Error::invalid(
                "a change of the members changes something, and leaves 1 to 64 of them",
            ));
        }
        change.set_transition(ConfChangeTransition::Auto);
        change.context = encode_addresses(&addresses);
        Ok(change)
    }

    /// A voter that is far behind would count for the quorum and be of no use.
    fn check_caught_up(&self, member: u64) -> Result<()> {
        if !self.machine.meta().configuration.learners.contains(&member) {
            return Err(Error::conflict(format!("member {member} is no learner: add it as one first")));
        }
        let raft = &self.raft.raft;
        let matched = raft.prs().get(member).filter(|p| p.recent_active).map_or(0, |p| p.matched);
        if matched == 0 || matched + CAUGHT_UP < raft.raft_log.committed {
            return Err(Error::unavailable(format!(
                "member {member} has not caught up (entry {matched} of {}): try again later",
                raft.raft_log.committed
            )));
        }
        Ok(())
    }

    /// A change is done when the group has left the joint configuration, and enough members of the new one know so: until then the
    /// old one may be needed to elect a leader.
    pub(super) fn answer_change(&mut self) {
        if self.changing.is_none() || !self.machine.meta().configuration.voters_outgoing.is_empty() {
            return;
        }
        let (id, raft) = (self.id(), &self.raft.raft);
        let voters = &self.machine.meta().configuration.voters;
        let knows = |v: &&u64| {
            **v == id || raft.prs().get(**v).is_some_and(|p| p.committed_index >= self.last_change)
        };
        if voters.iter().filter(knows).count() * 2 > voters.len()
            && let Some(token) = self.changing.take()
        {
            self.reply(token, Response::Done);
        }
    }

    fn read(&mut self, token: Token, read: Read) -> Result<()> {
        if mutant::is_on("stale-read") && !matches!(read, Read::KeepAlive(_)) {
            return self.answer_read(token, read);
        }
        if self.reads.collecting.len() >= MAX_WAITING {
            self.busy(token);
            return Ok(());
        }
        self.reads.collecting.push((token, read));
        Ok(())
    }

    /// Asks the others whether this still is the leader, for all reads that came meanwhile.
    pub(super) fn begin_reads(&mut self) {
        // Before its first entry is committed a leader does not know what is.
        let ready = self.is_leader() && self.raft.raft.commit_to_current_term();
        if !ready || self.reads.collecting.is_empty() || self.reads.rounds.len() >= READ_ROUNDS {
            return;
        }
        self.reads.rounds_begun += 1;
        let round = self.reads.rounds_begun;
        let reads = std::mem::take(&mut self.reads.collecting);
        self.reads.rounds.insert(round, reads);
        self.raft.read_index(round.to_le_bytes().to_vec());
    }

    pub(super) fn reads_confirmed(&mut self, states: Vec<ReadState>) -> Result<()> {
        for state in states {
            let Ok(round) = <[u8; 8]>::try_from(&state.request_ctx[..]).map(u64::from_le_bytes) else {
                continue;
            };
            if let Some(reads) = self.reads.rounds.remove(&round) {
                self.reads.confirmed.entry(state.index).or_default().extend(reads);
            }
        }
        self.serve_reads()
    }

    /// Answers the reads whose entry is applied.
    pub(super) fn serve_reads(&mut self) -> Result<()> {
        while let Some(first) = self.reads.confirmed.first_entry() {
            if *first.key() > self.machine.index() {
                break;
            }
            for (token, read) in first.remove() {
                self.answer_read(token, read)?;
            }
        }
        Ok(())
    }

    fn answer_read(&mut self, token: Token, read: Read) -> Result<()> {
        let revision = self.machine.revision();
        let response = match read {
            Read::Get(key) => Response::Pair { pair: self.machine.get(&key)?, revision },
            Read::Range(range) => match self.machine.range(&range) {
                Ok(page) => Response::Page(page),
                Err(e) if e.kind == ErrorKind::Invalid => Response::failed(&e),
                Err(e) => return Err(e),
            },
            Read::KeepAlive(lease) => self.keep_alive(lease),
        };
        self.reply(token, response);
        Ok(())
    }

    fn keep_alive(&self, lease: LeaseId) -> Response {
        if mutant::is_on("lapsed-lease-renewed") {
            return Response::Alive { ttl_ms: self.machine.lease(lease).unwrap_or(1000) };
        }
        match self.machine.lease(lease) {
            Some(_) if self.leases.is_ending(lease) => Response::failed(&Error::unavailable(format!(
                "whether lease {} has ended is being decided",
                lease.0
            ))),
            Some(ttl_ms) => Response::Alive { ttl_ms },
            None => Response::failed(&Error::fenced(format!(
                "lease {} has ended, and what has ended is not renewed: ask for another one",
                lease.0
            ))),
        }
    }

    fn watch(&mut self, token: Token, prefix: String, from: u64, wait_ms: u64) -> Result<()> {
        if self.watches.len() >= MAX_WAITING {
            self.busy(token);
            return Ok(());
        }
        let until = self.now + wait_ms.min(MAX_WATCH_MS).div_ceil(self.settings.tick_ms.max(1));
        let watch = Watch { token, prefix, from, until };
        self.look(watch)
    }

    /// Answers the watch if there is something to say, else keeps it.
    fn look(&mut self, mut watch: Watch) -> Result<()> {
        let oldest = self.machine.history_from();
        if watch.from < oldest {
            self.reply(watch.token, Response::Compacted { oldest });
            return Ok(());
        }
        // Behind what this member knows: another one has said so, and it will come here too.
        if watch.from <= self.machine.revision() {
            let (events, next) = self.machine.events(&watch.prefix, watch.from)?;
            if !events.is_empty() {
                self.reply(watch.token, Response::Events { events, next });
                return Ok(());
            }
            watch.from = next;
        }
        if watch.until <= self.now {
            self.reply(watch.token, Response::Events { events: Vec::new(), next: watch.from });
        } else {
            self.watches.push(watch);
        }
        Ok(())
    }

    pub(super) fn serve_watches(&mut self) -> Result<()> {
        let revision = self.machine.revision();
        if self.watches.iter().all(|w| w.from > revision) {
            return Ok(());
        }
        for watch in std::mem::take(&mut self.watches) {
            self.look(watch)?;
        }
        Ok(())
    }

    pub(super) fn tick_watches(&mut self) {
        let now = self.now;
        let (over, rest) = std::mem::take(&mut self.watches).into_iter().partition(|w| w.until <= now);
        self.watches = rest;
        let over: Vec<Watch> = over;
        for watch in over {
            self.reply(watch.token, Response::Events { events: Vec::new(), next: watch.from });
        }
    }

    /// It does not lead any more: what waits is to be asked elsewhere.
    pub(super) fn stop_serving(&mut self) {
        let response = self.not_leader();
        let reads = std::mem::take(&mut self.reads);
        self.reads.rounds_begun = reads.rounds_begun;
        let rest = reads.rounds.into_values().chain(reads.confirmed.into_values()).flatten();
        let tokens: Vec<Token> = reads.collecting.into_iter().chain(rest).map(|(token, _)| token).collect();
        for token in tokens.into_iter().chain(std::mem::take(&mut self.watches).into_iter().map(|w| w.token))
        {
            self.reply(token, response.clone());
        }
        let proposals = std::mem::take(&mut self.proposals).into_values().map(|p| p.token);
        let lost: Vec<Token> = proposals.chain(self.changing.take()).collect();
        for token in lost {
            self.reply(token, Response::Lost);
        }
    }
}
