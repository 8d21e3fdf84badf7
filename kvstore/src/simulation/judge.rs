//! Whether what everybody saw can be.
//!
//! The members tell which entries they applied; they must all tell the same. A model of its own executes these
//! entries once, in order. Then every answer that a client got must be the model's, at its revision, and revisions must
//! respect real time: what was answered before something else was asked comes before it. So the log is the witness of a
//! linearization, and what it says is believed only as far as the clients saw the same.

use super::plan::Tally;
use crate::machine::{Answer, Assert, Command, LeaseId, Op, Page};
use crate::node::request::{Request, Response};
use bytes::Bytes;
use common::ErrorKind;
use common::crc::crc32c;
use common::kv::KvPair;
use raft::eraftpb::Entry;
use std::collections::{BTreeMap, BTreeSet};

struct Asked {
    request: Request,
    at: u64,
    answered: Option<(u64, Response)>,
}

struct Entered {
    entry: Entry,
    /// When a member first applied it.
    at: u64,
    by: u64,
}

#[derive(Default)]
pub(super) struct Judge {
    asked: BTreeMap<u64, Asked>,
    log: BTreeMap<u64, Entered>,
    leaders: BTreeMap<u64, u64>,
    digests: BTreeMap<u64, (u64, u32)>,
    believed: BTreeMap<LeaseId, u64>,
}

impl Judge {
    pub fn asked(&mut self, token: u64, request: Request, at: u64) {
        self.asked.insert(token, Asked { request, at, answered: None });
    }

    pub fn answered(&mut self, token: u64, at: u64, response: Response) {
        if let Some(asked) = self.asked.get_mut(&token) {
            asked.answered = Some((at, response));
        }
    }

    pub fn believes(&mut self, lease: LeaseId, until: u64) {
        let known = self.believed.entry(lease).or_default();
        *known = until.max(*known);
    }

    pub fn leaders(&self) -> u64 {
        self.leaders.len() as u64
    }

    pub fn applied(&self) -> u64 {
        self.log.len() as u64
    }

    pub fn leads(&mut self, member: u64, term: u64) -> Result<(), String> {
        let first = *self.leaders.entry(term).or_insert(member);
        if first != member {
            return Err(format!("members {first} and {member} both lead in term {term}"));
        }
        Ok(())
    }

    pub fn state(&mut self, member: u64, index: u64, digest: u32) -> Result<(), String> {
        let (first, known) = *self.digests.entry(index).or_insert((member, digest));
        if known != digest {
            return Err(format!("members {first} and {member} have different states of entry {index}"));
        }
        Ok(())
    }

    pub fn applied_by(&mut self, member: u64, now: u64, entries: Vec<Entry>) -> Result<(), String> {
        for entry in entries {
            match self.log.get(&entry.index) {
                None => {
                    self.log.insert(entry.index, Entered { entry, at: now, by: member });
                }
                Some(known) => {
                    let same = |e: &Entry| (e.term, e.get_entry_type(), crc32c(&e.data));
                    if same(&known.entry) != same(&entry) {
                        return Err(format!(
                            "members {} and {member} applied different entries {}: of terms {} and {}",
                            known.by, entry.index, known.entry.term, entry.term
                        ));
                    }
                }
            }
        }
        Ok(())
    }

    /// The end: does it all fit together?
    pub fn verdict(&self, contents: &[KvPair], tally: &mut Tally) -> Result<(), String> {
        let mut model = Model::default();
        // The state that all begin with is that of entry 1.
        for (expected, (index, entered)) in (2..).zip(&self.log) {
            if *index != expected {
                return Err(format!("nobody applied entry {expected}"));
            }
            if !entered.entry.data.is_empty()
                && entered.entry.get_entry_type() == raft::eraftpb::EntryType::EntryNormal
            {
                let command = Command::decode(entered.entry.data.clone()).map_err(|e| e.to_string())?;
                model.execute(*index, entered.at, command);
            }
        }
        self.check_answers(&model)?;
        self.check_order(&model)?;
        for (lease, ended) in &model.expired {
            tally.leases_ended += 1;
            if let Some(until) = self.believed.get(lease).filter(|until| *until > ended) {
                return Err(format!(
                    "lease {} ended at {ended}, and its holder believed in it until {until} (microseconds)",
                    lease.0
                ));
            }
        }
        let should: Vec<KvPair> = model.at("", model.revision);
        if should != contents {
            return Err(format!(
                "the state at the end is not that of the log: {contents:?} instead of {should:?}"
            ));
        }
        Ok(())
    }

    fn check_answers(&self, model: &Model) -> Result<(), String> {
        for asked in self.asked.values() {
            let Some((at, response)) = &asked.answered else { continue };
            let wrong = |what: String| {
                Err(format!(
                    "{:?}, asked at {} and answered at {at}: {response:?}, {what} (microseconds)",
                    asked.request, asked.at
                ))
            };
            match (&asked.request, response) {
                (Request::Command(Command::OpenSession), Response::Answer(Answer::Session(id)))
                    if !model.sessions.contains_key(id) =>
                {
                    return wrong("and there is no such session".into());
                }
                (Request::Command(command), Response::Answer(answer)) => {
                    let Some(request) = command.request() else { continue };
                    let session = model.sessions.get(&request.session);
                    let Some(executed) = session.and_then(|s| s.answers.get(&request.sequence)) else {
                        return wrong("and it is nowhere in the log: it was lost".into());
                    };
                    if !same(&executed.answer, answer) {
                        return wrong(format!("instead of {:?}", executed.answer));
                    }
                }
                (Request::Get { key }, Response::Pair { pair, revision }) => {
                    let should = model.get_at(key, *revision);
                    if should != *pair {
                        return wrong(format!("instead of {should:?}"));
                    }
                }
                (Request::Range(_), Response::Page(Page { pairs, revision, .. })) => {
                    let should = model.at("k", *revision);
                    if should != *pairs {
                        return wrong(format!("instead of {should:?}"));
                    }
                }
                (Request::Watch { prefix, from, .. }, Response::Events { events, next }) => {
                    let should: Vec<_> = model
                        .events
                        .iter()
                        .filter(|(revision, key, _)| {
                            (*from..*next).contains(revision) && key.starts_with(prefix)
                        })
                        .collect();
                    let same = should.len() == events.len()
                        && should
                            .iter()
                            .zip(events)
                            .all(|((r, k, v), e)| *r == e.revision && *k == e.key && *v == e.value);
                    if !same {
                        return wrong(format!("instead of {should:?}"));
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Revisions respect real time.
    fn check_order(&self, model: &Model) -> Result<(), String> {
        // (time, is it an asking, the revision, whether that was new, token)
        let mut moments: Vec<(u64, bool, u64, bool, u64)> = Vec::new();
        for (token, asked) in &self.asked {
            let executed = match &asked.request {
                Request::Command(command) => command
                    .request()
                    .and_then(|r| model.sessions.get(&r.session).and_then(|s| s.answers.get(&r.sequence))),
                _ => None,
            };
            let judged = match (&executed, asked.answered.as_ref().map(|(_, r)| r)) {
                (Some(e), _) => Some((e.revision, e.new)),
                (None, Some(Response::Pair { revision, .. })) => Some((*revision, false)),
                (None, Some(Response::Page(page))) => Some((page.revision, false)),
                _ => None,
            };
            let Some((revision, new)) = judged else { continue };
            moments.push((asked.at, true, revision, new, *token));
            if let Some((at, _)) = &asked.answered {
                moments.push((*at, false, revision, new, *token));
            }
        }
        // At the same time the asking comes first: that demands nothing.
        moments.sort_by_key(|m| (m.0, !m.1));
        let mut floor = (0, 0);
        for (at, asking, revision, new, token) in moments {
            if !asking {
                floor = floor.max((revision, token));
                continue;
            }
            if revision < floor.0 || (new && revision == floor.0) {
                let before = self.asked.get(&floor.1).map(|a| (&a.request, a.at, &a.answered));
                let this = self.asked.get(&token).map(|a| (&a.request, &a.answered));
                return Err(format!(
                    "{this:?}, asked at {at} (microseconds), has revision {revision}, and this had been answered before \
                     it was asked: {before:?}"
                ));
            }
        }
        Ok(())
    }
}

/// Answers agree, whatever the words.
fn same(a: &Answer, b: &Answer) -> bool {
    match (a, b) {
        (Answer::Refused { revision: r1, kind: k1, .. }, Answer::Refused { revision: r2, kind: k2, .. }) => {
            (r1, k1) == (r2, k2)
        }
        _ => a == b,
    }
}

struct Executed {
    answer: Answer,
    revision: u64,
    new: bool,
}

#[derive(Default)]
struct Session {
    below: u64,
    answers: BTreeMap<u64, Executed>,
}

/// The registry, in a few lines.
#[derive(Default)]
struct Model {
    revision: u64,
    map: BTreeMap<String, (u64, Option<LeaseId>)>,
    /// Of each key, all that it ever was.
    versions: BTreeMap<String, Vec<(u64, Option<Bytes>)>>,
    events: Vec<(u64, String, Option<Bytes>)>,
    live: BTreeSet<LeaseId>,
    expired: BTreeMap<LeaseId, u64>,
    sessions: BTreeMap<u64, Session>,
}

impl Model {
    fn execute(&mut self, index: u64, now: u64, command: Command) {
        match &command {
            Command::OpenSession => {
                self.sessions.insert(index, Session::default());
                return;
            }
            Command::Expire { lease } => {
                if self.live.contains(lease) {
                    self.expired.insert(*lease, now);
                    self.end(*lease);
                }
                return;
            }
            _ => {}
        }
        let Some(request) = command.request() else { return };
        let Some(session) = self.sessions.get_mut(&request.session) else { return };
        if session.answers.contains_key(&request.sequence) || request.sequence < session.below {
            return;
        }
        session.below = session.below.max(request.answered_below);
        let before = self.revision;
        let answer = match command {
            Command::Txn { asserts, ops, .. } => self.transact(&asserts, ops),
            Command::Grant { .. } => {
                self.revision += 1;
                self.live.insert(LeaseId(self.revision));
                Answer::Granted { lease: LeaseId(self.revision) }
            }
            Command::Revoke { lease, .. } if self.live.contains(&lease) => self.end(lease),
            _ => self.refused(ErrorKind::NotFound),
        };
        let executed = Executed { answer, revision: self.revision, new: self.revision > before };
        if let Some(session) = self.sessions.get_mut(&request.session) {
            session.answers.insert(request.sequence, executed);
        }
    }

    fn refused(&self, kind: ErrorKind) -> Answer {
        Answer::Refused { revision: self.revision, kind, message: String::new() }
    }

    fn end(&mut self, lease: LeaseId) -> Answer {
        self.live.remove(&lease);
        self.revision += 1;
        let bound: Vec<String> =
            self.map.iter().filter(|(_, (_, l))| *l == Some(lease)).map(|(k, _)| k.clone()).collect();
        for key in bound {
            self.set(key, None, None);
        }
        Answer::Done { revision: self.revision }
    }

    fn set(&mut self, key: String, value: Option<Bytes>, lease: Option<LeaseId>) {
        if value.is_none() && !self.map.contains_key(&key) {
            return;
        }
        match value {
            Some(_) => self.map.insert(key.clone(), (self.revision, lease)),
            None => self.map.remove(&key),
        };
        self.versions.entry(key.clone()).or_default().push((self.revision, value.clone()));
        self.events.push((self.revision, key, value));
    }

    fn transact(&mut self, asserts: &[Assert], ops: Vec<Op>) -> Answer {
        let holds = asserts.iter().all(|assert| match assert {
            Assert::Absent(key) => !self.map.contains_key(key),
            Assert::Revision(key, revision) => self.map.get(key).is_some_and(|(r, _)| r == revision),
            Assert::LeaseLive(lease) => self.live.contains(lease),
            Assert::LeaseExpired(lease) => !self.live.contains(lease),
        });
        let bound =
            ops.iter().all(|op| !matches!(op, Op::Put { lease: Some(l), .. } if !self.live.contains(l)));
        if !holds || !bound {
            return self.refused(ErrorKind::Conflict);
        }
        self.revision += 1;
        for op in ops {
            match op {
                Op::Put { key, value, lease } => self.set(key, Some(value), lease),
                Op::Delete { key } => self.set(key, None, None),
            }
        }
        Answer::Done { revision: self.revision }
    }

    fn get_at(&self, key: &str, revision: u64) -> Option<KvPair> {
        let versions = self.versions.get(key)?;
        let (revision, value) = versions.iter().rev().find(|(r, _)| *r <= revision)?;
        Some(KvPair { key: key.to_string(), value: value.clone()?, revision: *revision })
    }

    fn at(&self, prefix: &str, revision: u64) -> Vec<KvPair> {
        let keys = self.versions.keys().filter(|key| key.starts_with(prefix));
        keys.filter_map(|key| self.get_at(key, revision)).collect()
    }
}
