//! What an entry of the log says, and what its application answers: types and codecs.

use super::{MAX_KEY_BYTES, MAX_TXN_BYTES, MAX_TXN_OPS, MAX_VALUE_BYTES};
use crate::wire::{Reader, Writer};
use bytes::Bytes;
use common::{Error, ErrorKind, Result};

const VERSION: u8 = 1;
/// The longest message of an answer, in bytes: it holds a key.
const MAX_MESSAGE: usize = 1024;

/// The identity of one grant of a lease: never given twice, so it is the incarnation too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct LeaseId(pub u64);

/// What must hold for a transaction to happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Assert {
    /// There is no such key.
    Absent(String),
    /// The key was last written by this revision.
    Revision(String, u64),
    /// The lease was granted, and has neither expired nor been revoked.
    LeaseLive(LeaseId),
    /// The lease was granted, and has expired or been revoked.
    LeaseExpired(LeaseId),
}

/// What a transaction does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Sets the key.
    Put {
        /// The key.
        key: String,
        /// Its value.
        value: Bytes,
        /// The lease that it goes away with.
        lease: Option<LeaseId>,
    },
    /// Removes the key, if it is there.
    Delete {
        /// The key.
        key: String,
    },
}

/// Which request of which session; the same request is executed once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RequestId {
    /// The session, as [`Command::OpenSession`] answered.
    pub session: u64,
    /// The number of the request within it, from 1.
    pub sequence: u64,
    /// The client needs no answer of any lower number any more.
    pub answered_below: u64,
}

/// One entry of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// A new session; its id is the index of this entry.
    OpenSession,
    /// A transaction.
    Txn {
        /// Whose.
        request: RequestId,
        /// What must hold.
        asserts: Vec<Assert>,
        /// What is done then.
        ops: Vec<Op>,
    },
    /// A new lease; its id is the revision of this entry.
    Grant {
        /// Whose.
        request: RequestId,
        /// How long it lives without a renewal, in milliseconds.
        ttl_ms: u64,
    },
    /// The end of a lease, asked for.
    Revoke {
        /// Whose.
        request: RequestId,
        /// Which.
        lease: LeaseId,
    },
    /// The end of a lease, by the leader: it was not renewed in time.
    Expire {
        /// Which.
        lease: LeaseId,
    },
}

/// What the application of a command answers. The same for the same request, for ever.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The id of the new session.
    Session(u64),
    /// It happened.
    Done {
        /// As this revision.
        revision: u64,
    },
    /// The lease, which lives from now on.
    Granted {
        /// Its id.
        lease: LeaseId,
    },
    /// It did not happen.
    Refused {
        /// The revision at which it was judged.
        revision: u64,
        /// Why, by what the caller does about it.
        kind: ErrorKind,
        /// Why.
        message: String,
    },
    /// It did not happen: the session is not known (any more).
    NoSession,
    /// It did not happen: the session said that it has the answer already.
    Stale,
}

/// Whether a key is one.
pub(crate) fn check_key(key: &str) -> Result<()> {
    if key.is_empty() || key.len() > MAX_KEY_BYTES {
        return Err(Error::invalid(format!(
            "a registry key has 1 to {MAX_KEY_BYTES} bytes, this one has {}",
            key.len()
        )));
    }
    Ok(())
}

/// Whether a transaction is within the limits.
pub(crate) fn check_txn(asserts: &[Assert], ops: &[Op]) -> Result<()> {
    let count = asserts.len() + ops.len();
    if count > MAX_TXN_OPS {
        return Err(Error::invalid(format!(
            "a registry transaction has at most {MAX_TXN_OPS} asserts and operations, this one has {count}"
        )));
    }
    let mut bytes = 64;
    for assert in asserts {
        bytes += 16;
        if let Assert::Absent(key) | Assert::Revision(key, _) = assert {
            check_key(key)?;
            bytes += key.len();
        }
    }
    for op in ops {
        let (Op::Put { key, .. } | Op::Delete { key }) = op;
        check_key(key)?;
        bytes += 24 + key.len();
        if let Op::Put { value, .. } = op {
            bytes += value.len();
            if value.len() > MAX_VALUE_BYTES {
                return Err(Error::invalid(format!(
                    "the value of registry key '{key}' has {} bytes, more than {MAX_VALUE_BYTES}",
                    value.len()
                )));
            }
        }
    }
    if bytes > MAX_TXN_BYTES {
        return Err(Error::invalid(format!(
            "a registry transaction has at most {MAX_TXN_BYTES} bytes, this one has {bytes}: divide it"
        )));
    }
    Ok(())
}

impl RequestId {
    fn encode(&self, w: &mut Writer) {
        w.u64(self.session).u64(self.sequence).u64(self.answered_below);
    }

    fn decode(r: &mut Reader) -> Result<Self> {
        Ok(Self { session: r.u64()?, sequence: r.u64()?, answered_below: r.u64()? })
    }
}

pub(crate) fn encode_asserts(w: &mut Writer, asserts: &[Assert]) {
    w.u32(asserts.len() as u32);
    for assert in asserts {
        match assert {
            Assert::Absent(key) => w.u8(0).bytes(key.as_bytes()),
            Assert::Revision(key, revision) => w.u8(1).bytes(key.as_bytes()).u64(*revision),
            Assert::LeaseLive(lease) => w.u8(2).u64(lease.0),
            Assert::LeaseExpired(lease) => w.u8(3).u64(lease.0),
        };
    }
}

pub(crate) fn decode_asserts(r: &mut Reader) -> Result<Vec<Assert>> {
    let n = r.count(MAX_TXN_OPS, 5)?;
    let mut asserts = Vec::with_capacity(n);
    for _ in 0..n {
        asserts.push(match r.u8()? {
            0 => Assert::Absent(r.string(MAX_KEY_BYTES)?),
            1 => Assert::Revision(r.string(MAX_KEY_BYTES)?, r.u64()?),
            2 => Assert::LeaseLive(LeaseId(r.u64()?)),
            3 => Assert::LeaseExpired(LeaseId(r.u64()?)),
            _ => return Err(r.bad("an assert of an unknown kind")),
        });
    }
    Ok(asserts)
}

pub(crate) fn encode_ops(w: &mut Writer, ops: &[Op]) {
    w.u32(ops.len() as u32);
    for op in ops {
        match op {
            Op::Put { key, value, lease } => {
                w.u8(0).bytes(key.as_bytes()).bytes(value).u64(lease.map_or(0, |l| l.0))
            }
            Op::Delete { key } => w.u8(1).bytes(key.as_bytes()),
        };
    }
}

pub(crate) fn decode_ops(r: &mut Reader) -> Result<Vec<Op>> {
    let n = r.count(MAX_TXN_OPS, 5)?;
    let mut ops = Vec::with_capacity(n);
    for _ in 0..n {
        ops.push(match r.u8()? {
            0 => Op::Put {
                key: r.string(MAX_KEY_BYTES)?,
                value: r.bytes(MAX_VALUE_BYTES)?,
                lease: Some(r.u64()?).filter(|l| *l != 0).map(LeaseId),
            },
            1 => Op::Delete { key: r.string(MAX_KEY_BYTES)? },
            _ => return Err(r.bad("an operation of an unknown kind")),
        });
    }
    Ok(ops)
}

impl Command {
    /// The request that it is, unless it is the leader's or opens a session.
    pub(crate) fn request(&self) -> Option<RequestId> {
        match self {
            Command::Txn { request, .. }
            | Command::Grant { request, .. }
            | Command::Revoke { request, .. } => Some(*request),
            Command::OpenSession | Command::Expire { .. } => None,
        }
    }

    /// Whether it is within all limits.
    pub(crate) fn check(&self) -> Result<()> {
        match self {
            Command::Txn { asserts, ops, .. } => check_txn(asserts, ops),
            Command::Grant { ttl_ms, .. } if !(1..=super::MAX_TTL_MS).contains(ttl_ms) => {
                Err(Error::invalid(format!(
                    "a lease lives 1 to {} milliseconds without renewal, this one asks for {ttl_ms}",
                    super::MAX_TTL_MS
                )))
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn encode(&self) -> Bytes {
        let mut w = Writer::new();
        w.u8(VERSION);
        match self {
            Command::OpenSession => {
                w.u8(0);
            }
            Command::Txn { request, asserts, ops } => {
                w.u8(1);
                request.encode(&mut w);
                encode_asserts(&mut w, asserts);
                encode_ops(&mut w, ops);
            }
            Command::Grant { request, ttl_ms } => {
                w.u8(2);
                request.encode(&mut w);
                w.u64(*ttl_ms);
            }
            Command::Revoke { request, lease } => {
                w.u8(3);
                request.encode(&mut w);
                w.u64(lease.0);
            }
            Command::Expire { lease } => {
                w.u8(4).u64(lease.0);
            }
        }
        w.finish()
    }

    pub(crate) fn decode(bytes: Bytes) -> Result<Self> {
        let mut r = Reader::new(bytes, "registry command");
        let version = r.u8()?;
        if version != VERSION {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "a registry command has version {version}, and this storagerouter knows {VERSION}: start the \
                     newer release"
                ),
            ));
        }
        let command = match r.u8()? {
            0 => Command::OpenSession,
            1 => Command::Txn {
                request: RequestId::decode(&mut r)?,
                asserts: decode_asserts(&mut r)?,
                ops: decode_ops(&mut r)?,
            },
            2 => Command::Grant { request: RequestId::decode(&mut r)?, ttl_ms: r.u64()? },
            3 => Command::Revoke { request: RequestId::decode(&mut r)?, lease: LeaseId(r.u64()?) },
            4 => Command::Expire { lease: LeaseId(r.u64()?) },
            _ => return Err(r.bad("a command of an unknown kind")),
        };
        r.end()?;
        Ok(command)
    }
}

pub(crate) fn encode_kind(kind: ErrorKind) -> u8 {
    kind.number()
}

pub(crate) fn decode_kind(r: &mut Reader) -> Result<ErrorKind> {
    ErrorKind::from_number(r.u8()?).ok_or_else(|| r.bad("an error of an unknown kind"))
}

/// `text`, shortened to what an answer may hold.
pub(crate) fn bounded(text: &str) -> &str {
    if text.len() <= MAX_MESSAGE {
        return text;
    }
    let end = (0..=MAX_MESSAGE).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    &text[..end]
}

impl Answer {
    pub(crate) fn encode(&self, w: &mut Writer) {
        match self {
            Answer::Session(id) => {
                w.u8(0).u64(*id);
            }
            Answer::Done { revision } => {
                w.u8(1).u64(*revision);
            }
            Answer::Granted { lease } => {
                w.u8(2).u64(lease.0);
            }
            Answer::Refused { revision, kind, message } => {
                w.u8(3).u64(*revision).u8(encode_kind(*kind)).bytes(bounded(message).as_bytes());
            }
            Answer::NoSession => {
                w.u8(4);
            }
            Answer::Stale => {
                w.u8(5);
            }
        }
    }

    pub(crate) fn decode(r: &mut Reader) -> Result<Self> {
        Ok(match r.u8()? {
            0 => Answer::Session(r.u64()?),
            1 => Answer::Done { revision: r.u64()? },
            2 => Answer::Granted { lease: LeaseId(r.u64()?) },
            3 => {
                Answer::Refused { revision: r.u64()?, kind: decode_kind(r)?, message: r.string(MAX_MESSAGE)? }
            }
            4 => Answer::NoSession,
            5 => Answer::Stale,
            _ => return Err(r.bad("an answer of an unknown kind")),
        })
    }
}
