//! How the state lies in its table: keys and records.
//!
//! Key `\0group` is the head: which generation is the state, and of which group and member; `\0log` says that the log was
//! begun. Every other key is `g` +
//! generation u32 (big endian) + a tag and what the tag says:
//!
//! ```text
//! m                  how far it has been applied, and the configuration: `Meta`
//! k + key            a pair: revision u64, lease u64 (0: none), value
//! s + session u64    a session: last used index, answered below, answers
//! l + lease u64      a live lease: time to live in ms
//! b + lease + key    a key that goes away with its lease
//! h + revision u64   what the revision changed
//! n + member u64     the address of a member
//! r                  that it was restored from a backup
//! x + member u64     a member that was removed: its id is not used again
//! ```
//! Numbers within keys are big endian, so that they sort.

use super::command::{Answer, LeaseId};
use super::{MAX_KEY_BYTES, MAX_VALUE_BYTES, WINDOW};
use crate::wire::{Reader, Writer};
use bytes::Bytes;
use common::kv::KvPair;
use common::{Error, ErrorKind, Result};
use std::collections::BTreeMap;

pub(crate) const HEAD_KEY: &[u8] = b"\0group";
/// Present once the member's log was begun: from then on a state without a log is half of what was promised.
pub(crate) const LOG_KEY: &[u8] = b"\0log";
/// Present from the beginning of a restore on: until there is a head, what is here is a part of a backup.
pub(crate) const RESTORING_KEY: &[u8] = b"\0restoring";
const HEAD_MAGIC: &[u8; 8] = b"SRgroup\0";
const HEAD_VERSION: u32 = 1;
/// The longest address of a member, in bytes.
pub(crate) const MAX_ADDRESS: usize = 256;
/// The most members that a configuration may name.
pub(crate) const MAX_MEMBERS: usize = 64;

/// Which group this is, who in it, and which generation of records is its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    pub group: u128,
    pub member: u64,
    pub generation: u32,
}

impl Head {
    pub fn encode(&self) -> Bytes {
        let mut w = Writer::new();
        w.raw(HEAD_MAGIC).u32(HEAD_VERSION).u128(self.group).u64(self.member).u32(self.generation);
        w.finish()
    }

    pub fn decode(bytes: Bytes) -> Result<Self> {
        let mut r = Reader::new(bytes, "head of the replicated registry");
        if r.take(8)? != HEAD_MAGIC[..] {
            return Err(r.bad("its magic is not that of a registry"));
        }
        let version = r.u32()?;
        if version != HEAD_VERSION {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "the replicated registry has format version {version}, and this storagerouter knows {HEAD_VERSION}: \
                     start the release that wrote it; nothing was changed"
                ),
            ));
        }
        let head = Self { group: r.u128()?, member: r.u64()?, generation: r.u32()? };
        r.end()?;
        Ok(head)
    }
}

/// Every key of a generation begins with this.
pub(crate) fn prefix(generation: u32) -> Vec<u8> {
    let mut key = Vec::with_capacity(64);
    key.push(b'g');
    key.extend_from_slice(&generation.to_be_bytes());
    key
}

pub(crate) fn tagged(generation: u32, tag: u8, rest: &[u8]) -> Vec<u8> {
    let mut key = prefix(generation);
    key.push(tag);
    key.extend_from_slice(rest);
    key
}

pub(crate) fn bound(generation: u32, lease: LeaseId, key: &str) -> Vec<u8> {
    let mut k = tagged(generation, b'b', &lease.0.to_be_bytes());
    k.extend_from_slice(key.as_bytes());
    k
}

/// The number behind the tag of a key.
pub(crate) fn number(key: &[u8]) -> Result<u64> {
    key.get(6..)
        .and_then(|n| n.first_chunk())
        .map(|n| u64::from_be_bytes(*n))
        .ok_or_else(|| Error::corrupt("replicated registry: a record has a key without its number"))
}

/// The membership that raft works with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Configuration {
    /// Who votes.
    pub voters: Vec<u64>,
    /// Who only learns.
    pub learners: Vec<u64>,
    /// Who voted before, while the change to `voters` is under way.
    pub voters_outgoing: Vec<u64>,
    /// Who will be a learner when the change is done.
    pub learners_next: Vec<u64>,
    /// Whether the change ends by itself.
    pub auto_leave: bool,
}

impl Configuration {
    pub(crate) fn from_raft(state: &raft::eraftpb::ConfState) -> Self {
        let sorted = |ids: &[u64]| {
            let mut ids = ids.to_vec();
            // Raft keeps sets without order; every member must store the same bytes.
            ids.sort_unstable();
            ids
        };
        Self {
            voters: sorted(&state.voters),
            learners: sorted(&state.learners),
            voters_outgoing: sorted(&state.voters_outgoing),
            learners_next: sorted(&state.learners_next),
            auto_leave: state.auto_leave,
        }
    }

    pub(crate) fn to_raft(&self) -> raft::eraftpb::ConfState {
        raft::eraftpb::ConfState {
            voters: self.voters.clone(),
            learners: self.learners.clone(),
            voters_outgoing: self.voters_outgoing.clone(),
            learners_next: self.learners_next.clone(),
            auto_leave: self.auto_leave,
            ..Default::default()
        }
    }

    /// Whether `member` has any part in it.
    pub fn contains(&self, member: u64) -> bool {
        self.ids().any(|id| id == member)
    }

    /// Everybody who has a part in it; who has two is named twice.
    pub fn ids(&self) -> impl Iterator<Item = u64> + '_ {
        [&self.voters, &self.learners, &self.voters_outgoing, &self.learners_next]
            .into_iter()
            .flatten()
            .copied()
    }

    /// Whether there can be such a membership. Raft takes its sets for what they say.
    pub(crate) fn is_sound(&self) -> bool {
        let sets = [&self.voters, &self.learners, &self.voters_outgoing, &self.learners_next];
        let ascending = sets.iter().all(|set| set.windows(2).all(|two| two[0] < two[1]));
        let named = sets.iter().all(|set| !set.contains(&raft::INVALID_ID));
        let joint = !self.voters_outgoing.is_empty();
        let apart =
            !self.learners.iter().any(|l| self.voters.contains(l) || self.voters_outgoing.contains(l));
        let next =
            self.learners_next.iter().all(|l| self.voters_outgoing.contains(l) && !self.voters.contains(l));
        let empty = *self == Self::default();
        ascending
            && named
            && apart
            && next
            && (joint || !self.auto_leave)
            && (empty || !self.voters.is_empty())
    }

    pub(crate) fn encode(&self, w: &mut Writer) {
        for set in [&self.voters, &self.learners, &self.voters_outgoing, &self.learners_next] {
            w.u32(set.len() as u32);
            for id in set {
                w.u64(*id);
            }
        }
        w.u8(u8::from(self.auto_leave));
    }

    pub(crate) fn decode(r: &mut Reader) -> Result<Self> {
        let set = |r: &mut Reader| -> Result<Vec<u64>> {
            let n = r.count(MAX_MEMBERS, 8)?;
            (0..n).map(|_| r.u64()).collect()
        };
        Ok(Self {
            voters: set(r)?,
            learners: set(r)?,
            voters_outgoing: set(r)?,
            learners_next: set(r)?,
            auto_leave: r.bool()?,
        })
    }
}

/// How far the state is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Meta {
    /// The last entry in it.
    pub index: u64,
    /// Its term.
    pub term: u64,
    /// The last revision given.
    pub revision: u64,
    /// The first revision from which the history is whole.
    pub history_from: u64,
    /// The last index that is in it by a snapshot or an import, not by the log.
    pub installed: u64,
    pub configuration: Configuration,
}

impl Meta {
    pub fn encode(&self) -> Bytes {
        let mut w = Writer::new();
        w.u64(self.index).u64(self.term).u64(self.revision).u64(self.history_from).u64(self.installed);
        self.configuration.encode(&mut w);
        w.finish()
    }

    pub fn decode(bytes: Bytes) -> Result<Self> {
        let mut r = Reader::new(bytes, "replicated registry: how far it is");
        let meta = Self {
            index: r.u64()?,
            term: r.u64()?,
            revision: r.u64()?,
            history_from: r.u64()?,
            installed: r.u64()?,
            configuration: Configuration::decode(&mut r)?,
        };
        r.end()?;
        Ok(meta)
    }
}

pub(crate) fn encode_pair(revision: u64, lease: Option<LeaseId>, value: &[u8]) -> Bytes {
    let mut stored = Vec::with_capacity(value.len() + 16);
    stored.extend_from_slice(&revision.to_le_bytes());
    stored.extend_from_slice(&lease.map_or(0, |l| l.0).to_le_bytes());
    stored.extend_from_slice(value);
    stored.into()
}

pub(crate) fn decode_pair(key: &str, stored: Bytes) -> Result<(KvPair, Option<LeaseId>)> {
    let mut r = Reader::new(stored, "replicated registry: a pair");
    let revision = r.u64()?;
    let lease = Some(r.u64()?).filter(|l| *l != 0).map(LeaseId);
    let value = r.take_rest();
    Ok((KvPair { key: key.to_string(), value, revision }, lease))
}

/// What a session has asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Session {
    pub last_used: u64,
    pub answered_below: u64,
    pub answers: BTreeMap<u64, Answer>,
}

impl Session {
    pub fn encode(&self) -> Bytes {
        let mut w = Writer::new();
        w.u64(self.last_used).u64(self.answered_below).u32(self.answers.len() as u32);
        for (sequence, answer) in &self.answers {
            w.u64(*sequence);
            answer.encode(&mut w);
        }
        w.finish()
    }

    pub fn decode(bytes: Bytes) -> Result<Self> {
        let mut r = Reader::new(bytes, "replicated registry: a session");
        let (last_used, answered_below) = (r.u64()?, r.u64()?);
        let n = r.count(WINDOW as usize + 1, 9)?;
        let mut answers = BTreeMap::new();
        for _ in 0..n {
            answers.insert(r.u64()?, Answer::decode(&mut r)?);
        }
        r.end()?;
        Ok(Self { last_used, answered_below, answers })
    }
}

/// One change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The revision that did it.
    pub revision: u64,
    /// The key.
    pub key: String,
    /// Its value, `None` when it was removed.
    pub value: Option<Bytes>,
}

pub(crate) fn encode_events(events: &[Event]) -> Bytes {
    let mut w = Writer::new();
    w.u32(events.len() as u32);
    for event in events {
        w.u64(event.revision).bytes(event.key.as_bytes());
        match &event.value {
            Some(value) => w.u8(1).bytes(value),
            None => w.u8(0),
        };
    }
    w.finish()
}

/// The most events of one record or answer.
pub(crate) const MAX_EVENTS: usize = 1 << 20;

pub(crate) fn decode_events(r: &mut Reader) -> Result<Vec<Event>> {
    let n = r.count(MAX_EVENTS, 13)?;
    let mut events = Vec::with_capacity(n.min(4096));
    for _ in 0..n {
        let (revision, key) = (r.u64()?, r.string(MAX_KEY_BYTES)?);
        let value = if r.bool()? { Some(r.bytes(MAX_VALUE_BYTES)?) } else { None };
        events.push(Event { revision, key, value });
    }
    Ok(events)
}
