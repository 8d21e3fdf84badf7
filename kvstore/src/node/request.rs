//! What clients ask a member and what it answers, with their codecs.

use crate::machine::command::{Answer, Command, LeaseId, bounded, decode_kind, encode_kind};
use crate::machine::layout::{Event, MAX_ADDRESS, MAX_EVENTS, MAX_MEMBERS, decode_events, encode_events};
use crate::machine::{Configuration, MAX_KEY_BYTES, MAX_TXN_BYTES, MAX_VALUE_BYTES, Page, Range};
use crate::wire::{Reader, Writer};
use bytes::Bytes;
use common::kv::KvPair;
use common::{Error, ErrorKind, Result};
use std::collections::BTreeMap;

/// The longest message of a failure.
const MAX_MESSAGE: usize = 1024;
/// The longest encoded command.
const MAX_COMMAND: usize = MAX_TXN_BYTES + (1 << 20);

/// One step of a change of the membership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Adds a member that does not vote, to catch up. Ids are never used again.
    AddLearner {
        /// Its id.
        member: u64,
        /// Where it listens.
        address: String,
    },
    /// Lets a learner that has caught up vote.
    Promote {
        /// Its id.
        member: u64,
    },
    /// Takes a voter's vote away; it goes on learning.
    Demote {
        /// Its id.
        member: u64,
    },
    /// Removes a member for ever.
    Remove {
        /// Its id.
        member: u64,
    },
    /// From now on the others reach a member elsewhere.
    Relocate {
        /// Its id.
        member: u64,
        /// Where it listens.
        address: String,
    },
}

/// What a client asks.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Request {
    Command(Command),
    Get {
        key: String,
    },
    Range(Range),
    KeepAlive {
        lease: LeaseId,
    },
    /// Changes from revision `from` on, waited for at most `wait_ms`.
    Watch {
        prefix: String,
        from: u64,
        wait_ms: u64,
    },
    Status,
    Change(Vec<Change>),
    Transfer {
        to: u64,
    },
}

/// How a member sees itself and its group.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Status {
    /// The member that says so.
    pub member: u64,
    /// Who leads, as far as it knows.
    pub leader: Option<u64>,
    /// The term.
    pub term: u64,
    /// The last entry that it applied.
    pub applied: u64,
    /// The last revision that it knows.
    pub revision: u64,
    /// Who votes, who learns.
    pub configuration: Configuration,
    /// Where the members listen.
    pub members: BTreeMap<u64, String>,
}

/// What a member answers.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Response {
    Answer(Answer),
    Pair {
        pair: Option<KvPair>,
        revision: u64,
    },
    Page(Page),
    Alive {
        ttl_ms: u64,
    },
    Events {
        events: Vec<Event>,
        next: u64,
    },
    Compacted {
        oldest: u64,
    },
    Status(Status),
    Done,
    Failed {
        kind: ErrorKind,
        message: String,
    },
    /// Nothing was done here; ask the leader.
    NotLeader {
        leader: Option<(u64, String)>,
    },
    /// It may happen or not: the member stopped leading before it knew.
    Lost,
}

impl Response {
    pub fn failed(error: &Error) -> Self {
        Response::Failed { kind: error.kind, message: bounded(error.message()).to_string() }
    }
}

impl Change {
    fn encode(&self, w: &mut Writer) {
        match self {
            Change::AddLearner { member, address } => w.u8(0).u64(*member).bytes(address.as_bytes()),
            Change::Promote { member } => w.u8(1).u64(*member),
            Change::Demote { member } => w.u8(2).u64(*member),
            Change::Remove { member } => w.u8(3).u64(*member),
            Change::Relocate { member, address } => w.u8(4).u64(*member).bytes(address.as_bytes()),
        };
    }

    fn decode(r: &mut Reader) -> Result<Self> {
        Ok(match r.u8()? {
            0 => Change::AddLearner { member: r.u64()?, address: r.string(MAX_ADDRESS)? },
            1 => Change::Promote { member: r.u64()? },
            2 => Change::Demote { member: r.u64()? },
            3 => Change::Remove { member: r.u64()? },
            4 => Change::Relocate { member: r.u64()?, address: r.string(MAX_ADDRESS)? },
            _ => return Err(r.bad("a change of an unknown kind")),
        })
    }
}

impl Request {
    pub fn encode(&self) -> Bytes {
        let mut w = Writer::new();
        match self {
            Request::Command(command) => w.u8(0).bytes(&command.encode()),
            Request::Get { key } => w.u8(1).bytes(key.as_bytes()),
            Request::Range(range) => {
                w.u8(2).bytes(&range.start).u32(range.limit);
                match &range.end {
                    Some(end) => w.u8(1).bytes(end),
                    None => w.u8(0),
                }
            }
            Request::KeepAlive { lease } => w.u8(3).u64(lease.0),
            Request::Watch { prefix, from, wait_ms } => {
                w.u8(4).bytes(prefix.as_bytes()).u64(*from).u64(*wait_ms)
            }
            Request::Status => w.u8(5),
            Request::Change(changes) => {
                w.u8(6).u32(changes.len() as u32);
                changes.iter().for_each(|c| c.encode(&mut w));
                &mut w
            }
            Request::Transfer { to } => w.u8(7).u64(*to),
        };
        w.finish()
    }

    pub fn decode(bytes: Bytes) -> Result<Self> {
        let mut r = Reader::new(bytes, "request to the registry");
        let request = match r.u8()? {
            0 => Request::Command(Command::decode(r.bytes(MAX_COMMAND)?)?),
            1 => Request::Get { key: r.string(MAX_KEY_BYTES)? },
            2 => {
                let (start, limit) = (r.bytes(MAX_KEY_BYTES + 1)?.to_vec(), r.u32()?);
                let end = if r.bool()? { Some(r.bytes(MAX_KEY_BYTES + 1)?.to_vec()) } else { None };
                Request::Range(Range { start, end, limit })
            }
            3 => Request::KeepAlive { lease: LeaseId(r.u64()?) },
            4 => Request::Watch { prefix: r.string(MAX_KEY_BYTES)?, from: r.u64()?, wait_ms: r.u64()? },
            5 => Request::Status,
            6 => {
                let n = r.count(MAX_MEMBERS, 9)?;
                Request::Change((0..n).map(|_| Change::decode(&mut r)).collect::<Result<_>>()?)
            }
            7 => Request::Transfer { to: r.u64()? },
            _ => return Err(r.bad("it is of an unknown kind")),
        };
        r.end()?;
        Ok(request)
    }
}

fn encode_pair(w: &mut Writer, pair: &KvPair) {
    w.bytes(pair.key.as_bytes()).u64(pair.revision).bytes(&pair.value);
}

fn decode_pair(r: &mut Reader) -> Result<KvPair> {
    let (key, revision) = (r.string(MAX_KEY_BYTES)?, r.u64()?);
    Ok(KvPair { key, revision, value: r.bytes(MAX_VALUE_BYTES)? })
}

impl Status {
    fn encode(&self, w: &mut Writer) {
        w.u64(self.member).u64(self.leader.unwrap_or(0)).u64(self.term).u64(self.applied).u64(self.revision);
        self.configuration.encode(w);
        w.u32(self.members.len() as u32);
        for (id, address) in &self.members {
            w.u64(*id).bytes(address.as_bytes());
        }
    }

    fn decode(r: &mut Reader) -> Result<Self> {
        let (member, leader, term) = (r.u64()?, r.u64()?, r.u64()?);
        let mut status = Self {
            member,
            leader: Some(leader).filter(|l| *l != 0),
            term,
            applied: r.u64()?,
            revision: r.u64()?,
            configuration: Configuration::decode(r)?,
            members: BTreeMap::new(),
        };
        for _ in 0..r.count(MAX_MEMBERS, 12)? {
            status.members.insert(r.u64()?, r.string(MAX_ADDRESS)?);
        }
        Ok(status)
    }
}

impl Response {
    /// The response in parts of bounded size, for one frame each.
    pub fn encode(self, part_bytes: usize) -> Vec<Bytes> {
        let Response::Page(page) = self else { return vec![self.encode_one()] };
        let mut parts = Vec::new();
        let (mut pairs, mut bytes) = (Vec::new(), 0);
        for pair in page.pairs {
            bytes += pair.key.len() + pair.value.len() + 16;
            pairs.push(pair);
            if bytes >= part_bytes {
                parts.push(encode_page(&pairs, page.more, page.revision, true));
                pairs.clear();
                bytes = 0;
            }
        }
        parts.push(encode_page(&pairs, page.more, page.revision, false));
        parts
    }

    fn encode_one(&self) -> Bytes {
        let mut w = Writer::new();
        match self {
            Response::Answer(answer) => answer.encode(w.u8(0)),
            Response::Pair { pair, revision } => {
                w.u8(1).u64(*revision);
                match pair {
                    Some(pair) => encode_pair(w.u8(1), pair),
                    None => {
                        w.u8(0);
                    }
                }
            }
            // Encoded in parts.
            Response::Page(page) => return encode_page(&page.pairs, page.more, page.revision, false),
            Response::Alive { ttl_ms } => {
                w.u8(3).u64(*ttl_ms);
            }
            Response::Events { events, next } => {
                w.u8(4).u64(*next).raw(&encode_events(events));
            }
            Response::Compacted { oldest } => {
                w.u8(5).u64(*oldest);
            }
            Response::Status(status) => status.encode(w.u8(6)),
            Response::Done => {
                w.u8(7);
            }
            Response::Failed { kind, message } => {
                w.u8(8).u8(encode_kind(*kind)).bytes(bounded(message).as_bytes());
            }
            Response::NotLeader { leader } => {
                w.u8(9);
                match leader {
                    Some((id, address)) => w.u8(1).u64(*id).bytes(address.as_bytes()),
                    None => w.u8(0),
                };
            }
            Response::Lost => {
                w.u8(10);
            }
        }
        w.finish()
    }

    /// The response in one part, and whether more parts follow.
    pub fn decode(bytes: Bytes) -> Result<(Self, bool)> {
        let mut r = Reader::new(bytes, "response of the registry");
        let mut goes_on = false;
        let response = match r.u8()? {
            0 => Response::Answer(Answer::decode(&mut r)?),
            1 => {
                let revision = r.u64()?;
                let pair = if r.bool()? { Some(decode_pair(&mut r)?) } else { None };
                Response::Pair { pair, revision }
            }
            2 => {
                goes_on = r.bool()?;
                let (more, revision) = (r.bool()?, r.u64()?);
                let n = r.count(MAX_EVENTS, 16)?;
                let pairs = (0..n).map(|_| decode_pair(&mut r)).collect::<Result<_>>()?;
                Response::Page(Page { pairs, more, revision })
            }
            3 => Response::Alive { ttl_ms: r.u64()? },
            4 => {
                let next = r.u64()?;
                Response::Events { events: decode_events(&mut r)?, next }
            }
            5 => Response::Compacted { oldest: r.u64()? },
            6 => Response::Status(Status::decode(&mut r)?),
            7 => Response::Done,
            8 => Response::Failed { kind: decode_kind(&mut r)?, message: r.string(MAX_MESSAGE)? },
            9 => Response::NotLeader {
                leader: if r.bool()? { Some((r.u64()?, r.string(MAX_ADDRESS)?)) } else { None },
            },
            10 => Response::Lost,
            _ => return Err(r.bad("it is of an unknown kind")),
        };
        r.end()?;
        Ok((response, goes_on))
    }
}

fn encode_page(pairs: &[KvPair], more: bool, revision: u64, goes_on: bool) -> Bytes {
    let mut w = Writer::new();
    w.u8(2).u8(u8::from(goes_on)).u8(u8::from(more)).u64(revision).u32(pairs.len() as u32);
    pairs.iter().for_each(|pair| encode_pair(&mut w, pair));
    w.finish()
}
