//! The protocol's codec: bounded, never panics on hostile bytes.
//!
//! Little endian. Both sides begin with a prologue of 16 bytes: magic `SRasd\r\n\0`, lowest and highest version u16 each,
//! CRC32C of the 12 bytes before it. The daemon answers with the version that it chose as both, or 0 and closes. Then
//! frames, either way:
//!
//! ```text
//! 0   length of the body u32    4  verb u8, priority u8 and reserved u16    8  id u32
//! 12  CRC32C of the body u32   16  CRC32C of the 16 bytes before it u32
//! 20  body
//! ```
//!
//! `id` names a request; many are under way, and replies come in any order. The first frame is a hello, which names the
//! disk that is meant and the backend that asks. The body of any other request begins with the milliseconds that the
//! answer may take.

mod decode;
mod encode;

pub use decode::{Decoder, Frame};
pub use encode::{encode_reply, encode_request};

use bytes::{BufMut, Bytes, BytesMut};
use common::ErrorKind;
use common::crc::crc32c;
use common::osd::{
    BackendId, Call, Changes, KeyPage, KeyRange, MAX_APPLY, MAX_CHANGES, MAX_KEY, MAX_KEYS, OsdId, OsdStatus,
    Value, Verified,
};
use std::ops::Range;

/// The version that is spoken.
pub const VERSION: u16 = 1;
/// Bytes of a prologue.
pub const PROLOGUE: usize = 16;
/// Bytes of a frame before its body.
pub const HEAD: usize = 20;
/// The largest body of a frame that carries values.
pub const MAX_BODY: usize = MAX_APPLY + MAX_CHANGES * 32;
/// The largest body of any other one: a page of keys, or a request for several.
pub const MAX_SMALL: usize = 8 << 20;
/// The largest body of a request without values.
pub const MAX_ASKED: usize = MAX_KEYS * (MAX_KEY + 8);
const MAGIC: &[u8; 8] = b"SRasd\r\n\0";
/// The longest message of an error.
const MAX_MESSAGE: usize = 2048;

/// What a client says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// The first: which disk is meant (none: whichever this is), and who asks.
    Hello(Option<OsdId>, Option<BackendId>),
    /// See [`common::Osd::apply`].
    Apply(Changes),
    /// See [`common::Osd::get`].
    Get(Bytes),
    /// See [`common::Osd::get_range`].
    GetRange(Bytes, Range<u64>),
    /// See [`common::Osd::multi_get`].
    MultiGet(Vec<Bytes>),
    /// See [`common::Osd::range`].
    Range(KeyRange, u32),
    /// See [`common::Osd::verify`].
    Verify(KeyRange, u32),
    /// See [`common::Osd::status`].
    Status,
    /// See [`common::Osd::claim`].
    Claim(Option<BackendId>, Option<BackendId>),
    /// Are you there?
    Ping,
}

/// What a daemon says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// To a hello: which disk this is.
    Welcome(OsdId),
    /// A change was made.
    Done,
    /// A value.
    Value(Option<Value>),
    /// A part of a value.
    Bytes(Option<Bytes>),
    /// Several values.
    Values(Vec<Option<Value>>),
    /// Keys.
    Page(KeyPage),
    /// What reading some values came to.
    Verified(Verified),
    /// What the disk says of itself.
    Status(Box<OsdStatus>),
    /// It was not done, or it is not known whether it was.
    Failed(ErrorKind, String),
    /// I am.
    Pong,
}

mod verb {
    pub const HELLO: u8 = 1;
    pub const APPLY: u8 = 2;
    pub const GET: u8 = 3;
    pub const GET_RANGE: u8 = 4;
    pub const MULTI_GET: u8 = 5;
    pub const RANGE: u8 = 6;
    pub const VERIFY: u8 = 7;
    pub const STATUS: u8 = 8;
    pub const CLAIM: u8 = 9;
    pub const PING: u8 = 10;
    pub const WELCOME: u8 = 129;
    pub const DONE: u8 = 130;
    pub const VALUE: u8 = 131;
    pub const BYTES: u8 = 132;
    pub const VALUES: u8 = 133;
    pub const PAGE: u8 = 134;
    pub const VERIFIED: u8 = 135;
    pub const TOLD: u8 = 136;
    pub const FAILED: u8 = 137;
    pub const PONG: u8 = 138;
}

/// The largest body that a frame of this verb may have.
fn most(verb: u8) -> usize {
    match verb {
        verb::APPLY | verb::VALUE | verb::BYTES | verb::VALUES => MAX_BODY,
        128.. => MAX_SMALL,
        _ => MAX_ASKED,
    }
}

/// A prologue that offers `lowest` to `highest`.
pub fn prologue(lowest: u16, highest: u16) -> [u8; PROLOGUE] {
    let mut bytes = [0; PROLOGUE];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..10].copy_from_slice(&lowest.to_le_bytes());
    bytes[10..12].copy_from_slice(&highest.to_le_bytes());
    let crc = crc32c(&bytes[..12]);
    bytes[12..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Reads a prologue: the versions that it offers.
///
/// # Errors
/// It is none.
pub fn read_prologue(bytes: &[u8; PROLOGUE]) -> Result<(u16, u16), &'static str> {
    let (body, crc) = bytes.split_at(12);
    if !body.starts_with(MAGIC) {
        return Err("this is not the protocol of storage daemons");
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

fn fill_head(head: &mut [u8], verb: u8, priority: u8, id: u32, len: usize, crc: u32) {
    head[0..4].copy_from_slice(&(len as u32).to_le_bytes());
    head[4..8].copy_from_slice(&[verb, priority, 0, 0]);
    head[8..12].copy_from_slice(&id.to_le_bytes());
    head[12..16].copy_from_slice(&crc.to_le_bytes());
    let sum = crc32c(&head[..16]);
    head[16..HEAD].copy_from_slice(&sum.to_le_bytes());
}

/// Decoders of what comes over the wire, for fuzzers and property tests: they must not panic, and what is read is
/// written the same.
pub fn fuzz(bytes: &[u8]) {
    if let Some(first) = bytes.first_chunk() {
        let _ = read_prologue(first);
    }
    let mut decoder = Decoder::default();
    decoder.buffer().extend_from_slice(bytes);
    let again = |parts: Vec<Bytes>| {
        let mut decoder = Decoder::default();
        parts.iter().for_each(|part| decoder.buffer().extend_from_slice(part));
        decoder.frame()
    };
    while let Ok(Some(frame)) = decoder.frame() {
        if let Ok((call, request)) = frame.request() {
            let same = again(encode_request(&request, frame.id, call)).map(|f| f.map(|f| f.request()));
            assert_eq!(same, Ok(Some(Ok((call, request)))));
        }
        if let Ok(reply) = frame.reply() {
            let same = again(encode_reply(&reply, frame.id)).map(|f| f.map(|f| f.reply()));
            // A message that is too long is cut, and what is no text is mended.
            let text = matches!(reply, Reply::Failed(..) | Reply::Verified(_) | Reply::Status(_));
            assert!(text || same == Ok(Some(Ok(reply))));
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
        let mut made_head = [0; HEAD];
        fill_head(&mut made_head, head[4], head[5] & 1, id, len, crc32c(&body[..len]));
        made.put_slice(&made_head);
        made.put_slice(&body[..len]);
        rest = &body[len..];
    }
    made.to_vec()
}

/// For requests that have no patience of their own.
pub(crate) fn no_call() -> Call {
    Call::client(std::time::Duration::ZERO)
}

#[cfg(test)]
mod tests;
