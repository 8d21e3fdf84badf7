//! The state machine of the replicated registry: what every member makes of the same log.
//!
//! | room | what |
//! |---|---|
//! | [`command`] | what an entry says and what it answers |
//! | `layout` | how the state lies in its table |
//! | `apply` | commands become effects; the overlay of what is not written yet |
//! | `read` | pairs, ranges, history |
//! | `staging` | a state from elsewhere: snapshot, import |
//! | `store` | the table behind it, and frozen views |
//!
//! Nothing here knows time, raft or the network: the same entries give the same state, byte for byte.
//! The state is never ahead of the log and may be behind it: entries are applied again from `Machine::index` on.

mod apply;
pub mod command;
pub(crate) mod layout;
mod read;
pub(crate) mod staging;
pub mod store;
#[cfg(test)]
mod tests;

pub use command::{Answer, Assert, Command, LeaseId, Op, RequestId};
pub use layout::{Configuration, Event};
pub use read::{Page, Range};
pub use store::{RocksState, StateStore};

use crate::backup::Restored;
use bytes::Bytes;
use common::table::Batch;
use common::{Error, Result};
use layout::{HEAD_KEY, Head, Meta, Session, number, prefix, tagged};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

/// The longest key, in bytes.
pub const MAX_KEY_BYTES: usize = 512;
/// The longest value, in bytes.
pub const MAX_VALUE_BYTES: usize = 1 << 20;
/// The most asserts and operations of one transaction, together.
pub const MAX_TXN_OPS: usize = 16_384;
/// The most bytes of one transaction, keys and values together.
pub const MAX_TXN_BYTES: usize = 16 << 20;
/// The longest time to live of a lease, in milliseconds: a day.
pub const MAX_TTL_MS: u64 = 86_400_000;
/// The most keys that go away with one lease.
pub const MAX_LEASE_KEYS: usize = 16_384;
/// The most leases that live at a time.
pub const MAX_LEASES: usize = 65_536;
/// How many requests of a session may be without their answer.
pub const WINDOW: u64 = 256;
/// The most sessions that are remembered.
pub(crate) const MAX_SESSIONS: usize = 4096;
/// The history keeps at most this many revisions.
pub(crate) const HISTORY_REVISIONS: usize = 8192;
/// The history keeps at most this many bytes.
pub(crate) const HISTORY_BYTES: usize = 16 << 20;

/// Limits that tests make small. They are part of the replicated rule: the same on every member.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub sessions: usize,
    pub history_revisions: usize,
    pub history_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { sessions: MAX_SESSIONS, history_revisions: HISTORY_REVISIONS, history_bytes: HISTORY_BYTES }
    }
}

/// A live lease.
#[derive(Debug, Clone, Default)]
struct Lease {
    ttl_ms: u64,
    keys: BTreeSet<String>,
}

/// The state, and what of it is kept in memory.
pub(crate) struct Machine {
    store: Arc<dyn StateStore>,
    limits: Limits,
    head: Head,
    meta: Meta,
    sessions: BTreeMap<u64, Session>,
    /// Sessions by the index that last used them.
    by_use: BTreeSet<(u64, u64)>,
    leases: BTreeMap<LeaseId, Lease>,
    members: BTreeMap<u64, String>,
    /// Members that were removed.
    gone: BTreeSet<u64>,
    restored: Option<Restored>,
    /// Revision and size of each record of the history.
    history: VecDeque<(u64, usize)>,
    history_bytes: usize,
    /// What has been applied and is not in the table yet.
    batch: Batch,
    overlay: HashMap<String, Option<Bytes>>,
}

impl Machine {
    /// The state in `store`; `None` when there is none yet.
    pub fn open(store: Arc<dyn StateStore>, limits: Limits) -> Result<Option<Self>> {
        let Some(head) = store.get(HEAD_KEY)? else { return Ok(None) };
        let head = Head::decode(head)?;
        Self::load_of(store, limits, head).map(Some)
    }

    fn load_of(store: Arc<dyn StateStore>, limits: Limits, head: Head) -> Result<Self> {
        let mut machine = Self {
            store,
            limits,
            head,
            meta: Meta::default(),
            sessions: BTreeMap::new(),
            by_use: BTreeSet::new(),
            leases: BTreeMap::new(),
            members: BTreeMap::new(),
            gone: BTreeSet::new(),
            restored: None,
            history: VecDeque::new(),
            history_bytes: 0,
            batch: Batch::default(),
            overlay: HashMap::new(),
        };
        machine.load()?;
        Ok(machine)
    }

    /// Whether a staged state is one: read as if it was in place, before it is.
    pub fn check(&self, staging: &staging::Staging) -> Result<()> {
        let head = Head { generation: staging.generation(), ..self.head };
        let machine = Self::load_of(self.store.clone(), self.limits, head)?;
        match machine.meta.configuration.is_sound() {
            true => Ok(()),
            false => Err(Error::corrupt("replicated registry: its members can't be")),
        }
    }

    /// An empty state for a member that will get its content from others, or from entry 1 on.
    pub fn create(store: Arc<dyn StateStore>, group: u128, member: u64) -> Result<()> {
        if store.get(HEAD_KEY)?.is_some() {
            return Err(Error::conflict("there is a replicated registry here already"));
        }
        store.delete_prefix(&prefix(1))?;
        let mut batch = Batch::default();
        let meta = Meta { history_from: 1, ..Meta::default() };
        batch.put(tagged(1, b'm', b""), meta.encode());
        batch.put(HEAD_KEY, Head { group, member, generation: 1 }.encode());
        store.write(batch)?;
        store.checkpoint()
    }

    /// Reads the generation that the head names.
    fn load(&mut self) -> Result<()> {
        let generation = self.head.generation;
        let meta = self.store.get(&tagged(generation, b'm', b""))?;
        let meta = meta.ok_or_else(|| Error::corrupt("replicated registry: its state is missing"))?;
        self.meta = Meta::decode(meta)?;
        self.sessions.clear();
        self.by_use.clear();
        self.leases.clear();
        self.members.clear();
        self.gone.clear();
        self.history.clear();
        self.history_bytes = 0;
        for (key, value) in self.all(b's')? {
            let (id, session) = (number(&key)?, Session::decode(value)?);
            self.by_use.insert((session.last_used, id));
            self.sessions.insert(id, session);
        }
        for (key, value) in self.all(b'l')? {
            let ttl_ms = crate::wire::Reader::new(value, "replicated registry: a lease").u64()?;
            self.leases.insert(LeaseId(number(&key)?), Lease { ttl_ms, keys: BTreeSet::new() });
        }
        for (key, _) in self.all(b'b')? {
            let text = key.get(14..).and_then(|k| std::str::from_utf8(k).ok());
            let text =
                text.ok_or_else(|| Error::corrupt("replicated registry: a key of a lease is not text"))?;
            let lease = LeaseId(number(&key)?);
            let lease = self.leases.get_mut(&lease).ok_or_else(|| {
                Error::corrupt(format!("replicated registry: key '{text}' is bound to no live lease"))
            })?;
            lease.keys.insert(text.to_string());
        }
        for (key, value) in self.all(b'n')? {
            let address = std::str::from_utf8(&value)
                .map_err(|_| Error::corrupt("replicated registry: the address of a member is not text"))?;
            self.members.insert(number(&key)?, address.to_string());
        }
        let restored = self.store.get(&tagged(generation, b'r', b""))?;
        self.restored = restored.map(Restored::decode).transpose()?;
        for (key, _) in self.all(b'x')? {
            self.gone.insert(number(&key)?);
        }
        for (key, value) in self.all(b'h')? {
            self.history.push_back((number(&key)?, value.len()));
            self.history_bytes += value.len();
        }
        Ok(())
    }

    /// All records with `tag`, which are bounded by the limits of what they are.
    fn all(&self, tag: u8) -> Result<Vec<(Vec<u8>, Bytes)>> {
        let prefix = tagged(self.head.generation, tag, b"");
        self.store.scan(&prefix, &prefix, usize::MAX)
    }

    /// The last entry in the state.
    pub fn index(&self) -> u64 {
        self.meta.index
    }

    /// How far the state is.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// The last revision given.
    pub fn revision(&self) -> u64 {
        self.meta.revision
    }

    /// Which group this is, and who in it.
    pub fn head(&self) -> Head {
        self.head
    }

    /// The addresses of the members.
    pub fn members(&self) -> &BTreeMap<u64, String> {
        &self.members
    }

    /// How many sessions are remembered.
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// The lease that keeps all others from being granted, and from counting as ended: right after a restore.
    pub fn guard(&self) -> Option<LeaseId> {
        self.restored.map(|r| r.guard).filter(|guard| self.leases.contains_key(guard))
    }

    /// Whether `member` was removed once: its id is used up.
    pub fn is_gone(&self, member: u64) -> bool {
        self.gone.contains(&member)
    }

    /// The live leases with their time to live, in milliseconds.
    pub fn leases(&self) -> impl Iterator<Item = (LeaseId, u64)> + '_ {
        self.leases.iter().map(|(id, lease)| (*id, lease.ttl_ms))
    }

    /// The time to live of `lease`, in milliseconds, while it lives.
    pub fn lease(&self, lease: LeaseId) -> Option<u64> {
        self.leases.get(&lease).map(|l| l.ttl_ms)
    }

    /// Everything in the state, in order, told as one number. For tests: equal states have equal ones.
    #[cfg(test)]
    pub fn digest(&self) -> Result<u32> {
        let prefix = prefix(self.head.generation);
        let mut bytes = Vec::new();
        for (key, value) in self.store.scan(&prefix, &prefix, usize::MAX)? {
            // How far the history goes back is the same; how the state came here is not.
            if key[5] == b'm' {
                let meta = Meta { installed: 0, ..Meta::decode(value)? };
                bytes.extend_from_slice(&meta.encode());
                continue;
            }
            bytes.extend_from_slice(&key[5..]);
            bytes.extend_from_slice(&(value.len() as u32).to_le_bytes());
            bytes.extend_from_slice(&value);
        }
        Ok(common::crc::crc32c(&bytes))
    }
}
