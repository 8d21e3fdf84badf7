//! The protocol's codec: bounded, never panics on hostile bytes.
//!
//! Little endian. A client begins with a prologue of 16 bytes: magic `SRedg\r\n\0`, lowest and highest version
//! u16 each, CRC32C of the 12 bytes before it. The server answers with the version that it chose as both, or 0
//! and closes. Then frames, either way:
//!
//! ```text
//! 0   length of the body u32    4  verb u8, reserved u8 and u16    8  channel u32
//! 12  CRC32C of the body u32   16  CRC32C of the 16 bytes before it u32
//! 20  body
//! ```
//!
//! A channel is one attachment in one session, from `attach` on; the client numbers it, and never twice on one
//! connection. What comes for a channel that is not open (any more) is ignored.

mod decode;

pub use decode::{Decoder, Frame};

use bytes::{BufMut, Bytes, BytesMut};
use common::crc::{crc32c, crc32c_parts};
use common::{Epoch, Error, ErrorKind, Extent, Geometry, Lsn};

/// The version that is spoken.
pub const VERSION: u16 = 1;
/// Bytes of a prologue.
pub const PROLOGUE: usize = 16;
/// Bytes of a frame before its body.
pub const HEAD: usize = 20;
/// The largest body of a frame without payload.
pub const MAX_SMALL: usize = 64 << 10;
/// The largest payload of a request or a reply, in bytes.
pub const MAX_PAYLOAD: u32 = 32 << 20;
/// The largest body.
pub const MAX_BODY: usize = REQUEST + MAX_PAYLOAD as usize;
/// The longest name of an export, a client or a router, and the longest address, in bytes.
pub const MAX_NAME: usize = 255;
/// The most addresses of one router.
pub const MAX_ADDRESSES: usize = 16;
/// The most runs of one reply; the rest is asked for again.
pub const MAX_EXTENTS: usize = 4096;
/// Bytes of a request before its payload.
const REQUEST: usize = 40;
/// The longest message of an error.
const MAX_MESSAGE: usize = 1024;
const MAGIC: &[u8; 8] = b"SRedg\r\n\0";

/// Who else may be attached (R9).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Nobody.
    #[default]
    Exclusive,
    /// Others that only read, or that share. Writes are refused.
    ReadOnly,
    /// Others that share: they keep order among themselves.
    Shared,
}

/// What a client asks for when it attaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attach {
    /// `vpool/vdisk` or `vpool/vdisk@snapshot`.
    pub export: String,
    /// Who else may be attached.
    pub mode: Mode,
    /// Drawn at random by the client, once.
    pub attachment: u128,
    /// Raised by the client with each attempt; what comes in a lower one is refused from then on.
    pub session: u64,
    /// The epoch of the last session; 0: there was none, or nobody remembers.
    pub since: Epoch,
    /// The client is another process than the one that drew `attachment`: it has nothing to replay.
    pub resumed: bool,
    /// The client was sent to the owner and can't reach it: it asks to be served through whoever can.
    pub pass_on: bool,
    /// Routers that passed this on. An owner answers; nobody passes on what was passed on before.
    pub hops: u8,
    /// Who asks, as people call it: told to others that are refused.
    pub client: String,
    /// The router on behalf of whose clients this is asked, or that passed it on; empty: none.
    pub via: String,
}

/// How much may be under way: requests, and bytes of their payload or of the payload that they ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Credit {
    /// Requests.
    pub requests: u32,
    /// Bytes.
    pub bytes: u32,
}

/// What a new owner found of the log of the client's last session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovered {
    /// It is the same owner in the same epoch: nothing is missing.
    All,
    /// Everything up to here, and nothing behind it.
    UpTo(Lsn),
    /// Everything that a flush covered; of the rest it can't tell.
    Flushed,
}

/// What an attached client knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Granted {
    /// Sizes, and whether writes are refused.
    pub geometry: Geometry,
    /// The owner's epoch; each request and reply of the channel carries it.
    pub epoch: Epoch,
    /// What there is of what the client wrote up to the epoch `since`.
    pub recovered: Recovered,
    /// Everything that the attachment ever wrote was written to this owner, in this epoch.
    pub known: bool,
    /// The DTL is in sync.
    pub in_sync: bool,
    /// The disk itself is read-only, however it is attached.
    pub disk_read_only: bool,
    /// Who answers is not the owner: it passes requests on.
    pub forwarded: bool,
    /// What may be under way.
    pub credit: Credit,
}

/// Who owns a volume, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    /// The router's name.
    pub owner: String,
    /// Its addresses, as [`crate::transport::Address`] reads them.
    pub addresses: Vec<String>,
    /// The owner's epoch.
    pub epoch: Epoch,
}

/// Why a client is not attached.
#[derive(Debug, Clone)]
pub enum Refusal {
    /// An error; `Conflict` names who holds the volume.
    Failed(Error),
    /// Somebody else owns it.
    Moved(Moved),
    /// The attachment is in this session, or was.
    Stale(u64),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Refusal::Failed(error)
    }
}

/// What is asked of a device. Offsets and lengths in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Bytes.
    Read {
        /// Where.
        offset: u64,
        /// How many.
        len: u32,
    },
    /// Bytes, to be kept.
    Write {
        /// Where.
        offset: u64,
        /// What.
        data: Bytes,
        /// Durable before the reply.
        fua: bool,
    },
    /// Zeroes.
    Zeroes {
        /// Where.
        offset: u64,
        /// How many.
        len: u64,
        /// Whether the range becomes a hole.
        hole: bool,
        /// Durable before the reply.
        fua: bool,
    },
    /// The range is not needed.
    Discard {
        /// Where.
        offset: u64,
        /// How many.
        len: u64,
        /// Durable before the reply.
        fua: bool,
    },
    /// What was answered before is durable when this is answered.
    Flush,
    /// What is allocated.
    Extents {
        /// Where.
        offset: u64,
        /// How many.
        len: u64,
    },
    /// The range will be read.
    Prefetch {
        /// Where.
        offset: u64,
        /// How many.
        len: u64,
    },
}

impl Op {
    /// What it takes of a credit.
    pub fn cost(&self) -> Credit {
        let bytes = match self {
            Op::Read { len, .. } => *len,
            Op::Write { data, .. } => u32::try_from(data.len()).unwrap_or(u32::MAX),
            _ => 0,
        };
        Credit { requests: 1, bytes }
    }

    /// Whether it changes the device.
    pub fn changes(&self) -> bool {
        matches!(self, Op::Write { .. } | Op::Zeroes { .. } | Op::Discard { .. })
    }

    /// Offset and length; nothing for a flush.
    pub fn range(&self) -> (u64, u64) {
        match self {
            Op::Read { offset, len } => (*offset, u64::from(*len)),
            Op::Write { offset, data, .. } => (*offset, data.len() as u64),
            Op::Zeroes { offset, len, .. }
            | Op::Discard { offset, len, .. }
            | Op::Extents { offset, len }
            | Op::Prefetch { offset, len } => (*offset, *len),
            Op::Flush => (0, 0),
        }
    }
}

/// A request of a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Never used twice in a session.
    pub sequence: u64,
    /// The epoch that the client is attached in.
    pub epoch: Epoch,
    /// What is asked.
    pub op: Op,
}

/// What came of a request.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// It is done.
    Done,
    /// What was read.
    Data(Bytes),
    /// What is allocated.
    Extents(Vec<Extent>),
    /// It failed.
    Failed(Error),
    /// Not here, and it was not done.
    Moved(Moved),
}

/// A reply of a channel.
#[derive(Debug, Clone)]
pub struct Reply {
    /// To which request.
    pub sequence: u64,
    /// The epoch in which it was answered.
    pub epoch: Epoch,
    /// Of a change: its place in the log, the last one if it has several. Of a flush: everything up to here is
    /// durable. Else 0.
    pub lsn: Lsn,
    /// The DTL is in sync.
    pub in_sync: bool,
    /// What the client may have under way in addition.
    pub grant: Credit,
    /// What came of it.
    pub outcome: Outcome,
}

/// What a client says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToServer {
    /// Opens a channel.
    Attach(Attach),
    /// Closes a channel and gives up the attachment.
    Detach,
    /// Closes a channel; the attachment stays.
    Leave,
    /// A request.
    Request(Request),
    /// Are you there?
    Ping,
}

/// What a server says.
#[derive(Debug, Clone)]
pub enum ToClient {
    /// The first frame: the router's name.
    Hello(String),
    /// A channel is open.
    Attached(Granted),
    /// A channel was not opened.
    Refused(Refusal),
    /// A reply.
    Reply(Reply),
    /// A channel is closed: `Fenced` is for good, after anything else the client may attach again.
    Closed(Error),
    /// A channel is closed, and the attachment given up, as the client wished.
    Detached,
    /// The size of the device, in bytes, is now this.
    Resized(u64),
    /// I am.
    Pong,
}

mod verb {
    pub const ATTACH: u8 = 1;
    pub const DETACH: u8 = 2;
    pub const LEAVE: u8 = 3;
    pub const PING: u8 = 4;
    pub const READ: u8 = 16;
    pub const WRITE: u8 = 17;
    pub const ZEROES: u8 = 18;
    pub const DISCARD: u8 = 19;
    pub const FLUSH: u8 = 20;
    pub const EXTENTS: u8 = 21;
    pub const PREFETCH: u8 = 22;
    pub const HELLO: u8 = 129;
    pub const ATTACHED: u8 = 130;
    pub const REFUSED: u8 = 131;
    pub const CLOSED: u8 = 132;
    pub const DETACHED: u8 = 133;
    pub const RESIZED: u8 = 134;
    pub const PONG: u8 = 135;
    pub const REPLY: u8 = 144;
}

/// What a reply's payload is.
mod outcome {
    pub const DONE: u8 = 0;
    pub const DATA: u8 = 1;
    pub const EXTENTS: u8 = 2;
    pub const FAILED: u8 = 3;
    pub const MOVED: u8 = 4;
}

const FUA: u8 = 1;
const HOLE: u8 = 2;

/// Appends a prologue that offers `lowest` to `highest`.
pub fn put_prologue(buf: &mut BytesMut, lowest: u16, highest: u16) {
    let start = buf.len();
    buf.put_slice(MAGIC);
    buf.put_u16_le(lowest);
    buf.put_u16_le(highest);
    let crc = crc32c(&buf[start..]);
    buf.put_u32_le(crc);
}

/// Reads a prologue: the versions that it offers.
///
/// # Errors
/// It is none.
pub fn prologue(bytes: &[u8; PROLOGUE]) -> Result<(u16, u16), &'static str> {
    let (body, crc) = bytes.split_at(12);
    if !body.starts_with(MAGIC) {
        return Err("this is not the edge protocol");
    }
    if crc32c(body).to_le_bytes() != *crc {
        return Err("the prologue's checksum is wrong");
    }
    Ok((u16::from_le_bytes([body[8], body[9]]), u16::from_le_bytes([body[10], body[11]])))
}

/// The version to speak with someone who offers `lowest` to `highest`.
pub fn choose_version(lowest: u16, highest: u16) -> Option<u16> {
    (lowest..=highest).contains(&VERSION).then_some(VERSION)
}

fn fill_head(head: &mut [u8], verb: u8, channel: u32, len: usize, crc: u32) {
    head[0..4].copy_from_slice(&(len as u32).to_le_bytes());
    head[4..8].copy_from_slice(&[verb, 0, 0, 0]);
    head[8..12].copy_from_slice(&channel.to_le_bytes());
    head[12..16].copy_from_slice(&crc.to_le_bytes());
    let sum = crc32c(&head[..16]);
    head[16..HEAD].copy_from_slice(&sum.to_le_bytes());
}

/// Appends a frame whose body is what `fill` makes, and then `payload`, which the caller appends.
fn put(buf: &mut BytesMut, verb: u8, channel: u32, payload: &[u8], fill: impl FnOnce(&mut BytesMut)) {
    let start = buf.len();
    buf.put_bytes(0, HEAD);
    fill(buf);
    let body = &buf[start + HEAD..];
    let crc = if payload.is_empty() { crc32c(body) } else { crc32c_parts(&[body, payload]) };
    let len = body.len() + payload.len();
    fill_head(&mut buf[start..start + HEAD], verb, channel, len, crc);
}

fn put_text(b: &mut BytesMut, text: &str) {
    let text = &text.as_bytes()[..text.floor_char_boundary(MAX_NAME)];
    b.put_u8(text.len() as u8);
    b.put_slice(text);
}

fn put_moved(b: &mut BytesMut, moved: &Moved) {
    b.put_u64_le(moved.epoch.0);
    put_text(b, &moved.owner);
    let addresses = &moved.addresses[..moved.addresses.len().min(MAX_ADDRESSES)];
    b.put_u8(addresses.len() as u8);
    addresses.iter().for_each(|address| put_text(b, address));
}

fn put_error(b: &mut BytesMut, error: &Error) {
    b.put_u8(error.kind.number());
    let message = error.message();
    b.put_slice(&message.as_bytes()[..message.floor_char_boundary(MAX_MESSAGE)]);
}

impl ToServer {
    /// Appends the frame, all but the payload that it returns.
    #[must_use]
    pub fn put(&self, buf: &mut BytesMut, channel: u32) -> Bytes {
        match self {
            ToServer::Request(request) => return request.put(buf, channel),
            ToServer::Attach(attach) => put(buf, verb::ATTACH, channel, &[], |b| {
                b.put_u128_le(attach.attachment);
                b.put_u64_le(attach.session);
                b.put_u64_le(attach.since.0);
                b.put_u8(match attach.mode {
                    Mode::Exclusive => 0,
                    Mode::ReadOnly => 1,
                    Mode::Shared => 2,
                });
                b.put_u8(u8::from(attach.resumed) | u8::from(attach.pass_on) << 1);
                b.put_u8(attach.hops);
                put_text(b, &attach.export);
                put_text(b, &attach.client);
                put_text(b, &attach.via);
            }),
            ToServer::Detach => put(buf, verb::DETACH, channel, &[], |_| {}),
            ToServer::Leave => put(buf, verb::LEAVE, channel, &[], |_| {}),
            ToServer::Ping => put(buf, verb::PING, channel, &[], |_| {}),
        }
        Bytes::new()
    }
}

impl Request {
    /// Appends the frame, all but the payload that it returns.
    #[must_use]
    pub fn put(&self, buf: &mut BytesMut, channel: u32) -> Bytes {
        let fua = |on: bool| if on { FUA } else { 0 };
        let (verb, flags) = match &self.op {
            Op::Read { .. } => (verb::READ, 0),
            Op::Write { fua: on, .. } => (verb::WRITE, fua(*on)),
            Op::Zeroes { hole, fua: on, .. } => (verb::ZEROES, fua(*on) | if *hole { HOLE } else { 0 }),
            Op::Discard { fua: on, .. } => (verb::DISCARD, fua(*on)),
            Op::Flush => (verb::FLUSH, 0),
            Op::Extents { .. } => (verb::EXTENTS, 0),
            Op::Prefetch { .. } => (verb::PREFETCH, 0),
        };
        let payload = if let Op::Write { data, .. } = &self.op { data.clone() } else { Bytes::new() };
        let (offset, len) = self.op.range();
        put(buf, verb, channel, &payload, |b| {
            b.put_u64_le(self.sequence);
            b.put_u64_le(self.epoch.0);
            b.put_u64_le(offset);
            b.put_u64_le(len);
            b.put_u64_le(u64::from(flags));
        });
        payload
    }
}

impl ToClient {
    /// Appends the frame, all but the payload that it returns.
    #[must_use]
    pub fn put(&self, buf: &mut BytesMut, channel: u32) -> Bytes {
        match self {
            ToClient::Reply(reply) => return reply.put(buf, channel),
            ToClient::Hello(name) => put(buf, verb::HELLO, channel, &[], |b| put_text(b, name)),
            ToClient::Attached(granted) => put(buf, verb::ATTACHED, channel, &[], |b| {
                let geometry = &granted.geometry;
                b.put_u64_le(geometry.size);
                b.put_u32_le(geometry.min_block);
                b.put_u32_le(geometry.preferred_block);
                b.put_u32_le(geometry.max_payload.min(MAX_PAYLOAD));
                b.put_u64_le(granted.epoch.0);
                let (kind, lsn) = match granted.recovered {
                    Recovered::All => (0, 0),
                    Recovered::UpTo(lsn) => (1, lsn.0),
                    Recovered::Flushed => (2, 0),
                };
                b.put_u8(kind);
                b.put_u64_le(lsn);
                let flags = [
                    geometry.read_only,
                    granted.known,
                    granted.in_sync,
                    granted.disk_read_only,
                    granted.forwarded,
                ];
                b.put_u8(flags.iter().rev().fold(0, |bits, on| bits << 1 | u8::from(*on)));
                b.put_u32_le(granted.credit.requests);
                b.put_u32_le(granted.credit.bytes);
            }),
            ToClient::Refused(refusal) => put(buf, verb::REFUSED, channel, &[], |b| match refusal {
                Refusal::Failed(error) => {
                    b.put_u8(0);
                    put_error(b, error);
                }
                Refusal::Moved(moved) => {
                    b.put_u8(1);
                    put_moved(b, moved);
                }
                Refusal::Stale(session) => {
                    b.put_u8(2);
                    b.put_u64_le(*session);
                }
            }),
            ToClient::Closed(error) => put(buf, verb::CLOSED, channel, &[], |b| put_error(b, error)),
            ToClient::Detached => put(buf, verb::DETACHED, channel, &[], |_| {}),
            ToClient::Resized(size) => put(buf, verb::RESIZED, channel, &[], |b| b.put_u64_le(*size)),
            ToClient::Pong => put(buf, verb::PONG, channel, &[], |_| {}),
        }
        Bytes::new()
    }
}

impl Reply {
    /// Appends the frame, all but the payload that it returns.
    #[must_use]
    pub fn put(&self, buf: &mut BytesMut, channel: u32) -> Bytes {
        let payload = if let Outcome::Data(data) = &self.outcome { data.clone() } else { Bytes::new() };
        put(buf, verb::REPLY, channel, &payload, |b| {
            b.put_u64_le(self.sequence);
            b.put_u64_le(self.epoch.0);
            b.put_u64_le(self.lsn.0);
            b.put_u32_le(self.grant.requests);
            b.put_u32_le(self.grant.bytes);
            b.put_u8(u8::from(self.in_sync));
            match &self.outcome {
                Outcome::Done => b.put_u8(outcome::DONE),
                Outcome::Data(_) => b.put_u8(outcome::DATA),
                Outcome::Extents(extents) => {
                    b.put_u8(outcome::EXTENTS);
                    for extent in extents.iter().take(MAX_EXTENTS) {
                        b.put_u64_le(extent.len);
                        b.put_u8(u8::from(extent.hole) | u8::from(extent.zero) << 1);
                    }
                }
                Outcome::Failed(error) => {
                    b.put_u8(outcome::FAILED);
                    put_error(b, error);
                }
                Outcome::Moved(moved) => {
                    b.put_u8(outcome::MOVED);
                    put_moved(b, moved);
                }
            }
        });
        payload
    }
}

#[cfg(test)]
mod tests;
