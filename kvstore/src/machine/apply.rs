//! Commands become effects. Everything that is decided here depends on the state and the entry alone.

use super::command::{Answer, Assert, Command, LeaseId, Op, RequestId};
use super::layout::{
    Configuration, Event, MAX_ADDRESS, Session, bound, decode_pair, encode_events, encode_pair, tagged,
};
use super::{Lease, MAX_LEASE_KEYS, MAX_LEASES, Machine, WINDOW};
use bytes::Bytes;
use common::{Error, ErrorKind, Result};
use std::collections::BTreeMap;

/// Why a command does not happen.
struct Refusal(ErrorKind, String);

impl From<Refusal> for Error {
    fn from(r: Refusal) -> Self {
        Error::new(r.0, r.1)
    }
}

impl Machine {
    /// Applies an entry that holds a command. An error means that this member can't go on.
    pub fn apply(&mut self, index: u64, term: u64, data: Bytes) -> Result<Answer> {
        self.step(index, term)?;
        if data.is_empty() {
            // A new leader's first entry.
            return Ok(Answer::Stale);
        }
        let command = Command::decode(data)?;
        let Some(request) = command.request() else { return self.execute(index, command) };
        if let Err(answer) = self.admit(request) {
            return Ok(answer);
        }
        let answer = self.execute(index, command)?;
        self.remember(index, request, answer.clone());
        Ok(answer)
    }

    /// Applies an entry that changed the configuration; `addresses` are those of new members.
    pub fn apply_configuration(
        &mut self,
        index: u64,
        term: u64,
        configuration: Configuration,
        addresses: &BTreeMap<u64, String>,
    ) -> Result<()> {
        self.step(index, term)?;
        for (id, address) in addresses {
            if address.len() <= MAX_ADDRESS {
                self.members.insert(*id, address.clone());
                self.batch.put(self.key(b'n', &id.to_be_bytes()), address.clone().into_bytes());
            }
        }
        let gone: Vec<u64> = self.members.keys().copied().filter(|id| !configuration.contains(*id)).collect();
        for id in gone {
            self.members.remove(&id);
            self.batch.delete(self.key(b'n', &id.to_be_bytes()));
        }
        let was = std::mem::replace(&mut self.meta.configuration, configuration);
        for id in was.ids() {
            if !self.meta.configuration.contains(id) && self.gone.insert(id) {
                self.batch.put(self.key(b'x', &id.to_be_bytes()), Bytes::new());
            }
        }
        Ok(())
    }

    /// Writes what has been applied. After an error the state in memory is ahead, and must not be used.
    pub fn commit(&mut self) -> Result<()> {
        let mut batch = std::mem::take(&mut self.batch);
        self.overlay.clear();
        batch.put(self.key(b'm', b""), self.meta.encode());
        self.store.write(batch)
    }

    fn key(&self, tag: u8, rest: &[u8]) -> Vec<u8> {
        tagged(self.head.generation, tag, rest)
    }

    fn step(&mut self, index: u64, term: u64) -> Result<()> {
        if index != self.meta.index + 1 {
            return Err(Error::internal(format!(
                "replicated registry: entry {index} is applied behind entry {}",
                self.meta.index
            )));
        }
        self.meta.index = index;
        self.meta.term = term;
        Ok(())
    }

    /// Whether the request is to be executed; its answer otherwise.
    fn admit(&mut self, request: RequestId) -> Result<(), Answer> {
        let Some(session) = self.sessions.get(&request.session) else { return Err(Answer::NoSession) };
        if let Some(answer) = session.answers.get(&request.sequence) {
            return Err(answer.clone());
        }
        if request.sequence < session.answered_below {
            return Err(Answer::Stale);
        }
        if request.answered_below > request.sequence || request.sequence - request.answered_below >= WINDOW {
            return Err(Answer::Refused {
                revision: self.meta.revision,
                kind: ErrorKind::Invalid,
                message: format!("a session may have at most {WINDOW} requests without an answer"),
            });
        }
        Ok(())
    }

    fn remember(&mut self, index: u64, request: RequestId, answer: Answer) {
        let Some(session) = self.sessions.get_mut(&request.session) else { return };
        self.by_use.remove(&(session.last_used, request.session));
        session.last_used = index;
        session.answered_below = session.answered_below.max(request.answered_below);
        session.answers = session.answers.split_off(&session.answered_below);
        session.answers.insert(request.sequence, answer);
        let record = session.encode();
        self.by_use.insert((index, request.session));
        self.batch.put(self.key(b's', &request.session.to_be_bytes()), record);
    }

    fn execute(&mut self, index: u64, command: Command) -> Result<Answer> {
        if let Err(error) = command.check() {
            return Ok(self.refused(Refusal(error.kind, error.message().to_string())));
        }
        match command {
            Command::OpenSession => {
                self.open_session(index);
                Ok(Answer::Session(index))
            }
            Command::Txn { asserts, ops, .. } => self.transact(asserts, ops),
            Command::Grant { ttl_ms, .. } => Ok(self.grant(ttl_ms)),
            Command::Revoke { lease, .. } => match self.leases.contains_key(&lease) {
                true => self.end_lease(lease),
                false => {
                    let why = format!("lease {} has ended already, or was never granted", lease.0);
                    Ok(self.refused(Refusal(ErrorKind::NotFound, why)))
                }
            },
            Command::Expire { lease } => match self.leases.contains_key(&lease) {
                true => self.end_lease(lease),
                // Revoked meanwhile.
                false => Ok(Answer::Stale),
            },
        }
    }

    fn refused(&self, refusal: Refusal) -> Answer {
        Answer::Refused { revision: self.meta.revision, kind: refusal.0, message: refusal.1 }
    }

    fn open_session(&mut self, index: u64) {
        while self.sessions.len() >= self.limits.sessions {
            let Some((_, oldest)) = self.by_use.pop_first() else { break };
            self.sessions.remove(&oldest);
            self.batch.delete(self.key(b's', &oldest.to_be_bytes()));
        }
        let session = Session { last_used: index, ..Session::default() };
        self.batch.put(self.key(b's', &index.to_be_bytes()), session.encode());
        self.by_use.insert((index, index));
        self.sessions.insert(index, session);
    }

    fn grant(&mut self, ttl_ms: u64) -> Answer {
        if self.guard().is_some() {
            let why = "the registry was restored a moment ago: holders of leases of before may still believe in them; ask \
                       again soon";
            return self.refused(Refusal(ErrorKind::Unavailable, why.into()));
        }
        if self.leases.len() >= MAX_LEASES {
            let why = format!("there are {MAX_LEASES} live leases already");
            return self.refused(Refusal(ErrorKind::NoSpace, why));
        }
        self.meta.revision += 1;
        let lease = LeaseId(self.meta.revision);
        self.batch.put(self.key(b'l', &lease.0.to_be_bytes()), ttl_ms.to_le_bytes().to_vec());
        self.leases.insert(lease, Lease { ttl_ms, ..Lease::default() });
        Answer::Granted { lease }
    }

    /// Ends a live lease: what is bound to it goes with it.
    fn end_lease(&mut self, lease: LeaseId) -> Result<Answer> {
        let Some(ended) = self.leases.remove(&lease) else { return Ok(Answer::Stale) };
        self.meta.revision += 1;
        self.batch.delete(self.key(b'l', &lease.0.to_be_bytes()));
        let mut events = Vec::with_capacity(ended.keys.len());
        for key in ended.keys {
            self.batch.delete(bound(self.head.generation, lease, &key));
            self.batch.delete(self.key(b'k', key.as_bytes()));
            self.overlay.insert(key.clone(), None);
            events.push(Event { revision: self.meta.revision, key, value: None });
        }
        self.record(&events);
        Ok(Answer::Done { revision: self.meta.revision })
    }

    /// The pair of `key` as stored, what is not written yet included.
    fn current(&self, key: &str) -> Result<Option<Bytes>> {
        match self.overlay.get(key) {
            Some(stored) => Ok(stored.clone()),
            None => self.store.get(&self.key(b'k', key.as_bytes())),
        }
    }

    fn revision_of(&self, key: &str) -> Result<Option<u64>> {
        self.current(key)?.map(|stored| Ok(decode_pair(key, stored)?.0.revision)).transpose()
    }

    fn lease_of(&self, key: &str) -> Result<Option<LeaseId>> {
        Ok(self
            .current(key)?
            .map(|stored| decode_pair(key, stored))
            .transpose()?
            .and_then(|(_, lease)| lease))
    }

    fn transact(&mut self, asserts: Vec<Assert>, ops: Vec<Op>) -> Result<Answer> {
        for assert in &asserts {
            if let Some(refusal) = self.fails(assert)? {
                return Ok(self.refused(refusal));
            }
        }
        if let Some(refusal) = self.bad_binding(&ops) {
            return Ok(self.refused(refusal));
        }
        self.meta.revision += 1;
        let revision = self.meta.revision;
        let mut events: Vec<Event> = Vec::with_capacity(ops.len());
        for op in ops {
            let (Op::Put { key, .. } | Op::Delete { key }) = &op;
            let existed = self.current(key)?.is_some();
            if let Some(lease) = self.lease_of(key)? {
                self.batch.delete(bound(self.head.generation, lease, key));
                if let Some(lease) = self.leases.get_mut(&lease) {
                    lease.keys.remove(key);
                }
            }
            match op {
                Op::Put { key, value, lease } => {
                    if let Some(id) = lease {
                        self.batch.put(bound(self.head.generation, id, &key), Bytes::new());
                        if let Some(lease) = self.leases.get_mut(&id) {
                            lease.keys.insert(key.clone());
                        }
                    }
                    let stored = encode_pair(revision, lease, &value);
                    self.batch.put(self.key(b'k', key.as_bytes()), stored.clone());
                    self.overlay.insert(key.clone(), Some(stored));
                    events.push(Event { revision, key, value: Some(value) });
                }
                Op::Delete { key } => {
                    if existed {
                        self.batch.delete(self.key(b'k', key.as_bytes()));
                        self.overlay.insert(key.clone(), None);
                        events.push(Event { revision, key, value: None });
                    }
                }
            }
        }
        self.record(&events);
        Ok(Answer::Done { revision })
    }

    fn fails(&self, assert: &Assert) -> Result<Option<Refusal>> {
        let conflict = |why: String| Some(Refusal(ErrorKind::Conflict, why));
        Ok(match assert {
            Assert::Absent(key) => {
                self.revision_of(key)?.and_then(|_| conflict(format!("registry key '{key}' exists")))
            }
            Assert::Revision(key, expected) => match self.revision_of(key)? {
                Some(have) if have == *expected => None,
                Some(have) => conflict(format!(
                    "registry key '{key}' has revision {have}, expected revision {expected}: it changed meanwhile"
                )),
                None => conflict(format!(
                    "registry key '{key}' does not exist, expected revision {expected}: it changed meanwhile"
                )),
            },
            Assert::LeaseLive(lease) => match self.leases.contains_key(lease) {
                true => None,
                false => conflict(format!("lease {} does not live", lease.0)),
            },
            // A number that was not given yet may become a lease.
            Assert::LeaseExpired(lease) if self.guard().is_some() => conflict(format!(
                "the registry was restored a moment ago: the holder of lease {} may still believe in it",
                lease.0
            )),
            Assert::LeaseExpired(lease) => {
                match self.leases.contains_key(lease) || lease.0 > self.meta.revision {
                    true => conflict(format!("lease {} has not ended", lease.0)),
                    false => None,
                }
            }
        })
    }

    /// Whether a key is put under a lease that does not live, or that has too many.
    fn bad_binding(&self, ops: &[Op]) -> Option<Refusal> {
        let mut more: BTreeMap<LeaseId, usize> = BTreeMap::new();
        for op in ops {
            let Op::Put { lease: Some(lease), key, .. } = op else { continue };
            let Some(live) = self.leases.get(lease) else {
                let why = format!("lease {} of registry key '{key}' does not live", lease.0);
                return Some(Refusal(ErrorKind::Conflict, why));
            };
            let more = more.entry(*lease).or_default();
            *more += 1;
            if live.keys.len() + *more > MAX_LEASE_KEYS {
                let why = format!("lease {} would have more than {MAX_LEASE_KEYS} keys", lease.0);
                return Some(Refusal(ErrorKind::Invalid, why));
            }
        }
        None
    }

    /// Adds to the history, and drops the oldest of it beyond the limits.
    fn record(&mut self, events: &[Event]) {
        if events.is_empty() {
            return;
        }
        let record = encode_events(events);
        self.history.push_back((self.meta.revision, record.len()));
        self.history_bytes += record.len();
        self.batch.put(self.key(b'h', &self.meta.revision.to_be_bytes()), record);
        while self.history.len() > self.limits.history_revisions
            || self.history_bytes > self.limits.history_bytes
        {
            // The newest one stays whatever its size.
            if self.history.len() == 1 {
                break;
            }
            let Some((revision, bytes)) = self.history.pop_front() else { break };
            self.history_bytes -= bytes;
            self.batch.delete(self.key(b'h', &revision.to_be_bytes()));
            self.meta.history_from = revision + 1;
        }
    }
}
