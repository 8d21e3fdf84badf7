//! Frames out. Values are not copied: a frame is the parts that it is sent from.

use super::{HEAD, MAX_MESSAGE, Reply, Request, fill_head, verb};
use bytes::{BufMut, Bytes, BytesMut};
use common::crc::crc32c_parts;
use common::osd::{
    Assert, BackendId, Call, Changes, Damage, KeyRange, LatencyStatus, OsdState, OsdStatus, Priority, Value,
};

/// Values up to here are copied to what comes before them.
const COPIED: usize = 8 << 10;

/// A frame that grows: what is written, and whole parts before it.
struct Body {
    parts: Vec<Bytes>,
    tail: BytesMut,
}

impl Body {
    fn new() -> Body {
        let mut tail = BytesMut::with_capacity(256);
        tail.put_bytes(0, HEAD);
        Body { parts: Vec::new(), tail }
    }

    fn payload(&mut self, bytes: &Bytes) {
        if bytes.len() <= COPIED {
            self.tail.put_slice(bytes);
        } else {
            self.parts.push(self.tail.split().freeze());
            self.parts.push(bytes.clone());
        }
    }

    fn finish(mut self, verb: u8, priority: u8, id: u32) -> Vec<Bytes> {
        self.parts.push(self.tail.freeze());
        // The first part has the room for the head, and nobody else has it yet.
        let mut first = BytesMut::from(std::mem::take(&mut self.parts[0]));
        let slices: Vec<&[u8]> =
            std::iter::once(&first[HEAD..]).chain(self.parts[1..].iter().map(|p| &p[..])).collect();
        let (len, crc) = (slices.iter().map(|s| s.len()).sum(), crc32c_parts(&slices));
        fill_head(&mut first[..HEAD], verb, priority, id, len, crc);
        self.parts[0] = first.freeze();
        self.parts.retain(|part| !part.is_empty());
        self.parts
    }
}

fn put_bytes(b: &mut BytesMut, bytes: &[u8]) {
    b.put_u16_le(bytes.len() as u16);
    b.put_slice(bytes);
}

fn put_text(b: &mut BytesMut, text: &str) {
    put_bytes(b, &text.as_bytes()[..text.floor_char_boundary(MAX_MESSAGE)]);
}

fn put_option<T>(b: &mut BytesMut, option: Option<T>, put: impl FnOnce(&mut BytesMut, T)) {
    b.put_u8(u8::from(option.is_some()));
    if let Some(value) = option {
        put(b, value);
    }
}

fn put_backend(b: &mut BytesMut, backend: Option<BackendId>) {
    put_option(b, backend, |b, backend| b.put_u128_le(backend.0));
}

fn put_range(b: &mut BytesMut, range: &KeyRange) {
    put_bytes(b, &range.from);
    put_option(b, range.to.as_ref(), |b, to| put_bytes(b, to));
}

fn put_changes(body: &mut Body, changes: &Changes) {
    let b = &mut body.tail;
    b.put_u16_le(changes.asserts.len() as u16);
    b.put_u16_le(changes.sets.len() as u16);
    b.put_u16_le(changes.deletes.len() as u16);
    for assert in &changes.asserts {
        b.put_u8(match assert {
            Assert::Absent(_) => 1,
            Assert::Present(_) => 2,
            Assert::Value(..) => 3,
        });
        put_bytes(b, assert.key());
        if let Assert::Value(_, value) = assert {
            put_bytes(b, value);
        }
    }
    for (key, value) in &changes.sets {
        put_bytes(b, key);
        b.put_u32_le(value.bytes.len() as u32);
        b.put_u32_le(value.crc);
    }
    changes.deletes.iter().for_each(|key| put_bytes(b, key));
    changes.sets.iter().for_each(|(_, value)| body.payload(&value.bytes));
}

/// The parts of a request's frame, in order.
pub fn encode_request(request: &Request, id: u32, call: Call) -> Vec<Bytes> {
    let mut body = Body::new();
    if !matches!(request, Request::Hello(..) | Request::Ping) {
        body.tail.put_u32_le(u32::try_from(call.timeout.as_millis()).unwrap_or(u32::MAX));
    }
    let b = &mut body.tail;
    let verb = match request {
        Request::Hello(osd, backend) => {
            put_option(b, osd.as_ref(), |b, osd| b.put_u128_le(osd.0));
            put_backend(b, *backend);
            verb::HELLO
        }
        Request::Apply(changes) => {
            put_changes(&mut body, changes);
            verb::APPLY
        }
        Request::Get(key) => {
            put_bytes(b, key);
            verb::GET
        }
        Request::GetRange(key, range) => {
            put_bytes(b, key);
            b.put_u64_le(range.start);
            b.put_u64_le(range.end);
            verb::GET_RANGE
        }
        Request::MultiGet(keys) => {
            b.put_u16_le(keys.len() as u16);
            keys.iter().for_each(|key| put_bytes(b, key));
            verb::MULTI_GET
        }
        Request::Range(range, limit) | Request::Verify(range, limit) => {
            put_range(b, range);
            b.put_u32_le(*limit);
            if matches!(request, Request::Range(..)) { verb::RANGE } else { verb::VERIFY }
        }
        Request::Status => verb::STATUS,
        Request::Claim(from, to) => {
            put_backend(b, *from);
            put_backend(b, *to);
            verb::CLAIM
        }
        Request::Ping => verb::PING,
    };
    let priority = match (request, call.priority) {
        (Request::Hello(..) | Request::Ping, _) | (_, Priority::Client) => 0,
        (_, Priority::Maintenance) => 1,
    };
    body.finish(verb, priority, id)
}

fn put_value_head(b: &mut BytesMut, value: Option<&Value>) {
    put_option(b, value, |b, value| {
        b.put_u32_le(value.bytes.len() as u32);
        b.put_u32_le(value.crc);
    });
}

fn put_damage(b: &mut BytesMut, damaged: &[Damage]) {
    b.put_u16_le(damaged.len() as u16);
    for damage in damaged {
        put_bytes(b, &damage.key);
        put_text(b, &damage.why);
    }
}

fn put_latency(b: &mut BytesMut, l: &LatencyStatus) {
    [l.count, l.p50, l.p99, l.max].iter().for_each(|n| b.put_u64_le(*n));
}

fn put_status(b: &mut BytesMut, s: &OsdStatus) {
    b.put_u128_le(s.id.0);
    put_backend(b, s.claimed_by);
    put_option(b, if let OsdState::ReadOnly(why) = &s.state { Some(why) } else { None }, |b, why| {
        put_text(b, why)
    });
    let space = &s.space;
    let numbers = [
        space.capacity,
        space.segments,
        space.live,
        space.dead,
        space.open,
        space.table,
        space.reserved,
        space.free,
        s.keys,
        s.bytes,
        s.damaged_keys,
        s.scrub.rounds,
        s.scrub.keys,
        s.scrub.bytes,
        s.scrub.began,
    ];
    numbers.iter().for_each(|n| b.put_u64_le(*n));
    b.put_u8(u8::from(space.full));
    b.put_u16_le(s.scrub.done_permille);
    put_latency(b, &s.apply);
    put_latency(b, &s.get);
    put_damage(b, &s.damaged);
    b.put_u16_le(s.counters.len() as u16);
    for (name, n) in &s.counters {
        put_text(b, name);
        b.put_u64_le(*n);
    }
}

/// The parts of a reply's frame, in order.
pub fn encode_reply(reply: &Reply, id: u32) -> Vec<Bytes> {
    let mut body = Body::new();
    let b = &mut body.tail;
    let verb = match reply {
        Reply::Welcome(osd) => {
            b.put_u128_le(osd.0);
            verb::WELCOME
        }
        Reply::Done => verb::DONE,
        Reply::Value(value) => {
            put_value_head(b, value.as_ref());
            value.iter().for_each(|value| body.payload(&value.bytes));
            verb::VALUE
        }
        Reply::Bytes(bytes) => {
            b.put_u8(u8::from(bytes.is_some()));
            bytes.iter().for_each(|bytes| body.payload(bytes));
            verb::BYTES
        }
        Reply::Values(values) => {
            b.put_u16_le(values.len() as u16);
            values.iter().for_each(|value| put_value_head(b, value.as_ref()));
            values.iter().flatten().for_each(|value| body.payload(&value.bytes));
            verb::VALUES
        }
        Reply::Page(page) => {
            b.put_u16_le(page.keys.len() as u16);
            for info in &page.keys {
                put_bytes(b, &info.key);
                b.put_u64_le(info.len);
                b.put_u32_le(info.crc);
            }
            put_option(b, page.next.as_ref(), |b, next| put_bytes(b, next));
            verb::PAGE
        }
        Reply::Verified(verified) => {
            b.put_u64_le(verified.keys);
            b.put_u64_le(verified.bytes);
            put_option(b, verified.next.as_ref(), |b, next| put_bytes(b, next));
            put_damage(b, &verified.damaged);
            verb::VERIFIED
        }
        Reply::Status(status) => {
            put_status(b, status);
            verb::TOLD
        }
        Reply::Failed(kind, message) => {
            b.put_u8(kind.number());
            put_text(b, message);
            verb::FAILED
        }
        Reply::Pong => verb::PONG,
    };
    body.finish(verb, 0, id)
}
