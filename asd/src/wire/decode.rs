//! Bytes in, frames out.

use super::{HEAD, MAX_MESSAGE, Reply, Request, most, no_call, verb};
use bytes::{Buf, Bytes, BytesMut};
use common::ErrorKind;
use common::crc::crc32c;
use common::osd::{
    Assert, BackendId, Call, Changes, Damage, KeyInfo, KeyPage, KeyRange, LatencyStatus, MAX_ASSERTED,
    MAX_CHANGES, MAX_KEY, MAX_KEYS, MAX_PAGE, OsdId, OsdSpace, OsdState, OsdStatus, Priority, ScrubStatus,
    Value, Verified,
};
use std::time::Duration;

/// Counters of a status, at most.
const MAX_COUNTERS: usize = 256;

/// Bytes as they came, cut into frames.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: BytesMut,
    /// The head of the frame whose body is not all there.
    head: Option<Head>,
}

#[derive(Debug, Clone, Copy)]
struct Head {
    verb: u8,
    priority: u8,
    id: u32,
    len: usize,
    crc: u32,
}

/// A frame whose checksums are right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it says.
    pub verb: u8,
    /// For whom.
    pub priority: u8,
    /// Which request it is, or answers.
    pub id: u32,
    body: Bytes,
}

impl Decoder {
    /// Where to put what is received. Its memory is bounded by one frame, and what is read in one go.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// How many more bytes the next frame needs, at least.
    pub fn missing(&self) -> usize {
        let whole = self.head.map_or(HEAD, |head| head.len);
        whole.saturating_sub(self.buffer.len())
    }

    /// Bytes of the body whose head is there.
    pub fn announced(&self) -> Option<usize> {
        self.head.map(|head| head.len)
    }

    /// The next frame, if it is all there.
    ///
    /// # Errors
    /// The stream is not to be trusted any more.
    pub fn frame(&mut self) -> Result<Option<Frame>, &'static str> {
        let head = match self.head {
            Some(head) => head,
            None => {
                let Some(mut head) = self.buffer.get(..HEAD) else { return Ok(None) };
                if crc32c(&head[..16]).to_le_bytes() != head[16..20] {
                    return Err("the checksum of a frame's head is wrong");
                }
                let len = head.get_u32_le() as usize;
                let (verb, priority) = (head.get_u8(), head.get_u8());
                if priority > 1 || head.get_u16_le() != 0 {
                    return Err("reserved bits of a frame are set");
                }
                if len > most(verb) {
                    return Err("a frame is too long");
                }
                let head = Head { verb, priority, len, id: head.get_u32_le(), crc: head.get_u32_le() };
                self.buffer.advance(HEAD);
                *self.head.insert(head)
            }
        };
        if self.buffer.len() < head.len {
            return Ok(None);
        }
        self.head = None;
        let body = self.buffer.split_to(head.len).freeze();
        if crc32c(&body) != head.crc {
            return Err("the checksum of a frame is wrong");
        }
        Ok(Some(Frame { verb: head.verb, priority: head.priority, id: head.id, body }))
    }
}

/// Takes what it is asked for off the front; never reads beyond the end.
struct Reader(Bytes);

type Parsed<T> = Result<T, &'static str>;

macro_rules! number {
    ($name:ident, $type:ty, $get:ident) => {
        fn $name(&mut self) -> Parsed<$type> {
            self.need(size_of::<$type>())?;
            Ok(self.0.$get())
        }
    };
}

impl Reader {
    fn need(&self, n: usize) -> Parsed<()> {
        if self.0.len() < n { Err("a frame is too short") } else { Ok(()) }
    }

    number!(u8, u8, get_u8);
    number!(u16, u16, get_u16_le);
    number!(u32, u32, get_u32_le);
    number!(u64, u64, get_u64_le);
    number!(u128, u128, get_u128_le);

    fn take(&mut self, n: usize) -> Parsed<Bytes> {
        self.need(n)?;
        Ok(self.0.split_to(n))
    }

    fn bytes(&mut self, most: usize) -> Parsed<Bytes> {
        let n = usize::from(self.u16()?);
        if n > most { Err("a key or a text is too long") } else { self.take(n) }
    }

    fn key(&mut self) -> Parsed<Bytes> {
        self.bytes(MAX_KEY)
    }

    fn text(&mut self) -> Parsed<String> {
        Ok(String::from_utf8_lossy(&self.bytes(MAX_MESSAGE)?).into_owned())
    }

    fn count(&mut self, most: usize) -> Parsed<usize> {
        let n = usize::from(self.u16()?);
        if n > most { Err("a frame has too much in it") } else { Ok(n) }
    }

    fn flag(&mut self) -> Parsed<bool> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err("a flag is neither 0 nor 1"),
        }
    }

    fn option<T>(&mut self, read: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<Option<T>> {
        if self.flag()? { read(self).map(Some) } else { Ok(None) }
    }

    fn backend(&mut self) -> Parsed<Option<BackendId>> {
        self.option(|r| Ok(BackendId(r.u128()?)))
    }

    fn range(&mut self) -> Parsed<KeyRange> {
        Ok(KeyRange { from: self.key()?, to: self.option(Reader::key)? })
    }

    fn list<T>(&mut self, most: usize, mut read: impl FnMut(&mut Self) -> Parsed<T>) -> Parsed<Vec<T>> {
        let n = self.count(most)?;
        (0..n).map(|_| read(self)).collect()
    }

    fn damage(&mut self) -> Parsed<Vec<Damage>> {
        self.list(MAX_PAGE, |r| Ok(Damage { key: r.key()?, why: r.text()? }))
    }

    fn changes(&mut self) -> Parsed<Changes> {
        let counts = [self.count(MAX_CHANGES)?, self.count(MAX_CHANGES)?, self.count(MAX_CHANGES)?];
        let mut assert = || {
            Ok(match self.u8()? {
                1 => Assert::Absent(self.key()?),
                2 => Assert::Present(self.key()?),
                3 => Assert::Value(self.key()?, self.bytes(MAX_ASSERTED)?),
                _ => return Err("an assert of an unknown kind"),
            })
        };
        let asserts = (0..counts[0]).map(|_| assert()).collect::<Parsed<_>>()?;
        let mut head = || Ok((self.key()?, self.u32()?, self.u32()?));
        let heads = (0..counts[1]).map(|_| head()).collect::<Parsed<Vec<_>>>()?;
        let deletes = (0..counts[2]).map(|_| self.key()).collect::<Parsed<_>>()?;
        let set = |(key, len, crc)| Ok((key, Value { bytes: self.take(len as usize)?, crc }));
        let sets = heads.into_iter().map(set).collect::<Parsed<_>>()?;
        Ok(Changes { asserts, sets, deletes })
    }

    fn value_head(&mut self) -> Parsed<Option<(u32, u32)>> {
        self.option(|r| Ok((r.u32()?, r.u32()?)))
    }

    fn value(&mut self, head: Option<(u32, u32)>) -> Parsed<Option<Value>> {
        head.map(|(len, crc)| Ok(Value { bytes: self.take(len as usize)?, crc })).transpose()
    }

    fn latency(&mut self) -> Parsed<LatencyStatus> {
        Ok(LatencyStatus { count: self.u64()?, p50: self.u64()?, p99: self.u64()?, max: self.u64()? })
    }

    fn status(&mut self) -> Parsed<OsdStatus> {
        let id = OsdId(self.u128()?);
        let claimed_by = self.backend()?;
        let state = self.option(Reader::text)?.map_or(OsdState::Serving, OsdState::ReadOnly);
        let mut space = OsdSpace {
            capacity: self.u64()?,
            segments: self.u64()?,
            live: self.u64()?,
            dead: self.u64()?,
            open: self.u64()?,
            table: self.u64()?,
            reserved: self.u64()?,
            free: self.u64()?,
            full: false,
        };
        let (keys, bytes, damaged_keys) = (self.u64()?, self.u64()?, self.u64()?);
        let (rounds, scrubbed, scrubbed_bytes, began) = (self.u64()?, self.u64()?, self.u64()?, self.u64()?);
        space.full = self.flag()?;
        let done_permille = self.u16()?;
        let scrub = ScrubStatus { rounds, keys: scrubbed, bytes: scrubbed_bytes, done_permille, began };
        let (apply, get) = (self.latency()?, self.latency()?);
        let damaged = self.damage()?;
        let counters = self.list(MAX_COUNTERS, |r| Ok((r.text()?, r.u64()?)))?;
        Ok(OsdStatus {
            id,
            claimed_by,
            state,
            space,
            keys,
            bytes,
            damaged,
            damaged_keys,
            scrub,
            apply,
            get,
            counters,
        })
    }

    fn end<T>(self, value: T) -> Parsed<T> {
        if self.0.is_empty() { Ok(value) } else { Err("a frame is too long for what it says") }
    }
}

impl Frame {
    /// Bytes that it takes.
    pub fn len(&self) -> usize {
        self.body.len()
    }

    /// Whether there is nothing but its head.
    pub fn is_empty(&self) -> bool {
        self.body.is_empty()
    }

    /// What a client says.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn request(&self) -> Parsed<(Call, Request)> {
        let mut r = Reader(self.body.clone());
        let plain = matches!(self.verb, verb::HELLO | verb::PING);
        let call = if plain {
            if self.priority != 0 {
                return Err("a hello or a ping has no priority");
            }
            no_call()
        } else {
            let priority = if self.priority == 0 { Priority::Client } else { Priority::Maintenance };
            Call { priority, timeout: Duration::from_millis(r.u32()?.into()) }
        };
        let request = match self.verb {
            verb::HELLO => Request::Hello(r.option(|r| Ok(OsdId(r.u128()?)))?, r.backend()?),
            verb::APPLY => Request::Apply(r.changes()?),
            verb::GET => Request::Get(r.key()?),
            verb::GET_RANGE => Request::GetRange(r.key()?, r.u64()?..r.u64()?),
            verb::MULTI_GET => Request::MultiGet(r.list(MAX_KEYS, Reader::key)?),
            verb::RANGE => Request::Range(r.range()?, r.u32()?),
            verb::VERIFY => Request::Verify(r.range()?, r.u32()?),
            verb::STATUS => Request::Status,
            verb::CLAIM => Request::Claim(r.backend()?, r.backend()?),
            verb::PING => Request::Ping,
            _ => return Err("an unknown verb"),
        };
        r.end((call, request))
    }

    /// What a daemon says.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn reply(&self) -> Parsed<Reply> {
        let mut r = Reader(self.body.clone());
        let reply = match self.verb {
            verb::WELCOME => Reply::Welcome(OsdId(r.u128()?)),
            verb::DONE => Reply::Done,
            verb::VALUE => {
                let head = r.value_head()?;
                Reply::Value(r.value(head)?)
            }
            verb::BYTES => {
                let there = r.flag()?;
                if there { Reply::Bytes(Some(std::mem::take(&mut r.0))) } else { Reply::Bytes(None) }
            }
            verb::VALUES => {
                let heads = r.list(MAX_KEYS, Reader::value_head)?;
                Reply::Values(heads.into_iter().map(|head| r.value(head)).collect::<Parsed<_>>()?)
            }
            verb::PAGE => {
                let info = |r: &mut Reader| Ok(KeyInfo { key: r.key()?, len: r.u64()?, crc: r.u32()? });
                Reply::Page(KeyPage { keys: r.list(MAX_PAGE, info)?, next: r.option(Reader::key)? })
            }
            verb::VERIFIED => {
                let (keys, bytes) = (r.u64()?, r.u64()?);
                let next = r.option(Reader::key)?;
                Reply::Verified(Verified { keys, bytes, damaged: r.damage()?, next })
            }
            verb::TOLD => Reply::Status(Box::new(r.status()?)),
            verb::FAILED => {
                let kind = ErrorKind::from_number(r.u8()?).unwrap_or(ErrorKind::Internal);
                Reply::Failed(kind, r.text()?)
            }
            verb::PONG => Reply::Pong,
            _ => return Err("an unknown verb"),
        };
        r.end(reply)
    }
}
