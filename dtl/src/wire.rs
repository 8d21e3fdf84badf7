//! The protocol's codec: bounded, never panics on hostile bytes.
//!
//! Little endian. Both sides begin with a prologue of 16 bytes: magic `SRdtl\r\n\0`, lowest and highest version
//! u16 each, CRC32C of the 12 bytes before it. The service answers with the version that it chose as both, or 0
//! and closes. Then frames, either way:
//!
//! ```text
//! 0   length of the body u32    4  verb u8, reserved u8 and u16    8  id u32
//! 12  CRC32C of the body u32   16  CRC32C of the 16 bytes before it u32
//! 20  body
//! ```
//!
//! `id` names a channel (one log, from `hello` on) or a request; the client gives both out, and never twice on
//! one connection. What comes for a channel that is not open (any more) is ignored.

mod decode;

pub use decode::{Decoder, Frame};

use crate::entry::{MAX_PACKED, Packed};
use crate::registration::{Incarnation, LogInfo};
use crate::storage::Key;
use bytes::{BufMut, BytesMut};
use common::crc::crc32c;
use common::{Epoch, ErrorKind, Lsn, VolumeId};

/// The versions that are spoken.
pub const VERSION: u16 = 1;
/// Bytes of a prologue.
pub const PROLOGUE: usize = 16;
/// Bytes of a frame before its body.
pub const HEAD: usize = 20;
/// The largest body of a frame without an entry.
pub const MAX_SMALL: usize = 64 << 10;
/// The largest body.
pub const MAX_BODY: usize = MAX_PACKED;
const MAGIC: &[u8; 8] = b"SRdtl\r\n\0";
/// The longest message of an error.
const MAX_MESSAGE: usize = 1024;

/// How a log is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Open {
    /// Make one that begins behind `base`. Repeated with the same `serial`, it finds the one that was made.
    Create {
        /// Raised by the owner's process with each log that it wants for this volume and epoch.
        serial: u64,
        /// The backend has everything up to here.
        base: Lsn,
    },
    /// Go on with this one.
    Resume(Incarnation),
}

/// What a client says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Opens a channel.
    Hello {
        /// Whose log.
        volume: VolumeId,
        /// The epoch of the owner.
        epoch: Epoch,
        /// Which log.
        open: Open,
    },
    /// The next entry of a channel's log.
    Append(Packed),
    /// Make what was appended survive a loss of power.
    Flush,
    /// The backend has everything up to here.
    Trim(Lsn),
    /// All that was ever confirmed, which is up to here, has been resent.
    Vouch(Lsn),
    /// Closes a channel; the log stays.
    Close,
    /// Refuse all epochs below.
    Seal(VolumeId, Epoch),
    /// Send entries from an LSN on, as far as the credit in bytes goes.
    Read(Key, Lsn, u32),
    /// More credit for a read.
    Credit(u32),
    /// What is there of a volume?
    Status(VolumeId),
    /// The backend has everything up to here of a sealed log.
    TrimLog(Key, Lsn),
    /// Drop the sealed logs of epochs below.
    Forget(VolumeId, Epoch),
    /// Are you there?
    Ping,
}

/// What a service says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// A channel is open: its log, and how many unconfirmed bytes may be under way.
    Opened(LogInfo, u32),
    /// Everything up to here is in the log.
    Confirmed(Lsn),
    /// Everything up to here survives a loss of power.
    Flushed(Lsn),
    /// The log is not suspect any more.
    Vouched,
    /// There is no room: what comes behind this LSN is dropped.
    Stall(Lsn),
    /// There is room: send again what comes behind this LSN.
    Resume(Lsn),
    /// A channel is closed, or a request failed: why.
    Failed(ErrorKind, String),
    /// The epoch below which all are refused, and the logs.
    Logs(Epoch, Vec<LogInfo>),
    /// An entry that is read.
    Data(Packed),
    /// A read has reached the end of the log, or a request is done.
    Done,
    /// I am.
    Pong,
}

mod verb {
    pub const HELLO: u8 = 1;
    pub const APPEND: u8 = 2;
    pub const FLUSH: u8 = 3;
    pub const TRIM: u8 = 4;
    pub const VOUCH: u8 = 5;
    pub const CLOSE: u8 = 6;
    pub const SEAL: u8 = 7;
    pub const READ: u8 = 8;
    pub const CREDIT: u8 = 9;
    pub const STATUS: u8 = 10;
    pub const TRIM_LOG: u8 = 11;
    pub const FORGET: u8 = 12;
    pub const PING: u8 = 13;
    pub const OPENED: u8 = 129;
    pub const CONFIRMED: u8 = 130;
    pub const FLUSHED: u8 = 131;
    pub const VOUCHED: u8 = 132;
    pub const STALL: u8 = 133;
    pub const RESUME: u8 = 134;
    pub const FAILED: u8 = 135;
    pub const LOGS: u8 = 136;
    pub const DATA: u8 = 137;
    pub const DONE: u8 = 138;
    pub const PONG: u8 = 139;
}

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
        return Err("this is not the DTL's protocol");
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

/// Appends the head of a frame whose body of `len` bytes has the checksum `crc`.
pub fn put_head(buf: &mut BytesMut, verb: u8, id: u32, len: usize, crc: u32) {
    let start = buf.len();
    buf.put_bytes(0, HEAD);
    fill_head(&mut buf[start..], verb, id, len, crc);
}

fn fill_head(head: &mut [u8], verb: u8, id: u32, len: usize, crc: u32) {
    head[0..4].copy_from_slice(&(len as u32).to_le_bytes());
    head[4..8].copy_from_slice(&[verb, 0, 0, 0]);
    head[8..12].copy_from_slice(&id.to_le_bytes());
    head[12..16].copy_from_slice(&crc.to_le_bytes());
    let sum = crc32c(&head[..16]);
    head[16..HEAD].copy_from_slice(&sum.to_le_bytes());
}

/// Fills in the head of an `append` frame, [`HEAD`] bytes, for an entry of `len` bytes that follows.
pub fn fill_append_head(head: &mut [u8], channel: u32, len: usize, crc: u32) {
    fill_head(head, verb::APPEND, channel, len, crc);
}

/// Appends the head of a `data` frame.
pub fn put_data_head(buf: &mut BytesMut, request: u32, packed: &Packed) {
    put_head(buf, verb::DATA, request, packed.bytes.len(), packed.crc);
}

/// Appends a frame with the body that `fill` makes.
fn put(buf: &mut BytesMut, verb: u8, id: u32, fill: impl FnOnce(&mut BytesMut)) {
    let start = buf.len();
    buf.put_bytes(0, HEAD);
    fill(buf);
    let body = &buf[start + HEAD..];
    let (len, crc) = (body.len(), crc32c(body));
    fill_head(&mut buf[start..start + HEAD], verb, id, len, crc);
}

fn put_key(b: &mut BytesMut, key: &Key) {
    b.put_u128_le(key.volume.0);
    b.put_u64_le(key.epoch.0);
    b.put_u128_le(key.incarnation.0);
}

fn put_info(b: &mut BytesMut, l: &LogInfo) {
    b.put_u64_le(l.epoch.0);
    b.put_u128_le(l.incarnation.0);
    b.put_u64_le(l.base.0);
    b.put_u64_le(l.last.0);
    b.put_u64_le(l.flushed.0);
    b.put_u8(u8::from(l.sealed) | u8::from(l.suspect) << 1 | u8::from(l.damaged) << 2);
}

impl Request {
    /// Appends the frame.
    pub fn put(&self, buf: &mut BytesMut, id: u32) {
        match self {
            Request::Hello { volume, epoch, open } => put(buf, verb::HELLO, id, |b| {
                b.put_u128_le(volume.0);
                b.put_u64_le(epoch.0);
                match open {
                    Open::Create { serial, base } => {
                        b.put_u8(1);
                        b.put_u64_le(*serial);
                        b.put_u64_le(base.0);
                    }
                    Open::Resume(incarnation) => {
                        b.put_u8(2);
                        b.put_u128_le(incarnation.0);
                    }
                }
            }),
            Request::Append(packed) => {
                put_head(buf, verb::APPEND, id, packed.bytes.len(), packed.crc);
                buf.put_slice(&packed.bytes);
            }
            Request::Flush => put(buf, verb::FLUSH, id, |_| {}),
            Request::Trim(lsn) => put(buf, verb::TRIM, id, |b| b.put_u64_le(lsn.0)),
            Request::Vouch(lsn) => put(buf, verb::VOUCH, id, |b| b.put_u64_le(lsn.0)),
            Request::Close => put(buf, verb::CLOSE, id, |_| {}),
            Request::Seal(volume, epoch) => put(buf, verb::SEAL, id, |b| {
                b.put_u128_le(volume.0);
                b.put_u64_le(epoch.0);
            }),
            Request::Read(key, from, credit) => put(buf, verb::READ, id, |b| {
                put_key(b, key);
                b.put_u64_le(from.0);
                b.put_u32_le(*credit);
            }),
            Request::Credit(credit) => put(buf, verb::CREDIT, id, |b| b.put_u32_le(*credit)),
            Request::Status(volume) => put(buf, verb::STATUS, id, |b| b.put_u128_le(volume.0)),
            Request::TrimLog(key, lsn) => put(buf, verb::TRIM_LOG, id, |b| {
                put_key(b, key);
                b.put_u64_le(lsn.0);
            }),
            Request::Forget(volume, below) => put(buf, verb::FORGET, id, |b| {
                b.put_u128_le(volume.0);
                b.put_u64_le(below.0);
            }),
            Request::Ping => put(buf, verb::PING, id, |_| {}),
        }
    }
}

impl Reply {
    /// Appends the frame.
    pub fn put(&self, buf: &mut BytesMut, id: u32) {
        match self {
            Reply::Opened(info, window) => put(buf, verb::OPENED, id, |b| {
                put_info(b, info);
                b.put_u32_le(*window);
            }),
            Reply::Confirmed(lsn) => put(buf, verb::CONFIRMED, id, |b| b.put_u64_le(lsn.0)),
            Reply::Flushed(lsn) => put(buf, verb::FLUSHED, id, |b| b.put_u64_le(lsn.0)),
            Reply::Vouched => put(buf, verb::VOUCHED, id, |_| {}),
            Reply::Stall(lsn) => put(buf, verb::STALL, id, |b| b.put_u64_le(lsn.0)),
            Reply::Resume(lsn) => put(buf, verb::RESUME, id, |b| b.put_u64_le(lsn.0)),
            Reply::Failed(kind, message) => put(buf, verb::FAILED, id, |b| {
                b.put_u8(kind.number());
                let cut = message.floor_char_boundary(MAX_MESSAGE);
                b.put_slice(&message.as_bytes()[..cut]);
            }),
            Reply::Logs(floor, logs) => put(buf, verb::LOGS, id, |b| {
                b.put_u64_le(floor.0);
                b.put_u16_le(logs.len() as u16);
                logs.iter().for_each(|l| put_info(b, l));
            }),
            Reply::Data(packed) => {
                put_data_head(buf, id, packed);
                buf.put_slice(&packed.bytes);
            }
            Reply::Done => put(buf, verb::DONE, id, |_| {}),
            Reply::Pong => put(buf, verb::PONG, id, |_| {}),
        }
    }
}

/// Decoders of what comes over the wire, for fuzzers and property tests: they must not panic, and what is read is
/// written the same.
pub fn fuzz(bytes: &[u8]) {
    if let Some(first) = bytes.first_chunk() {
        let _ = prologue(first);
    }
    let mut decoder = Decoder::default();
    decoder.buffer().extend_from_slice(bytes);
    while let Ok(Some(frame)) = decoder.frame() {
        let mut again = Decoder::default();
        if let Ok(request) = frame.request() {
            request.put(again.buffer(), frame.id);
            assert_eq!(again.frame().map(|f| f.map(|f| f.request())), Ok(Some(Ok(request))));
        }
        let mut again = Decoder::default();
        if let Ok(reply) = frame.reply() {
            reply.put(again.buffer(), frame.id);
            let said = again.frame().map(|f| f.map(|f| f.reply()));
            // A message that is too long is cut, and what is no text is mended.
            assert!(matches!(reply, Reply::Failed(..)) || said == Ok(Some(Ok(reply))));
        }
    }
}

/// The same frames with lengths and checksums made right, for fuzzers.
pub fn with_checksums(bytes: &[u8]) -> Vec<u8> {
    let mut made = BytesMut::new();
    let mut rest = bytes;
    while let Some((head, body)) = rest.split_at_checked(HEAD) {
        let len = usize::from(u16::from_le_bytes([head[0], head[1]])).min(body.len());
        let id = u32::from_le_bytes([head[8], head[9], head[10], head[11]]);
        put_head(&mut made, head[4], id, len, crc32c(&body[..len]));
        made.put_slice(&body[..len]);
        rest = &body[len..];
    }
    made.to_vec()
}

#[cfg(test)]
mod tests;
