//! Bytes in, frames out.

use super::*;
use bytes::Buf;

/// Bytes as they came, cut into frames.
#[derive(Debug)]
pub struct Decoder {
    buffer: BytesMut,
    /// The largest body that is taken.
    limit: usize,
    /// The head of the frame whose body is not all there.
    head: Option<(u8, u32, usize, u32)>,
}

impl Default for Decoder {
    fn default() -> Self {
        Decoder { buffer: BytesMut::new(), limit: MAX_SMALL, head: None }
    }
}

/// A frame whose checksums are right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it says.
    pub verb: u8,
    /// About what.
    pub channel: u32,
    body: Bytes,
}

/// Bytes that are received at a time, as a rule.
const RECEIVE: usize = 64 << 10;
/// With less room than this, more is made.
const LITTLE: usize = 8 << 10;

impl Decoder {
    /// Takes payload of up to `bytes` from now on.
    pub fn allow(&mut self, bytes: u32) {
        self.limit = self.limit.max(REQUEST + bytes.min(MAX_PAYLOAD) as usize);
    }

    /// Where to put what is received. Its memory is bounded by one frame, and what is read in one go.
    pub fn buffer(&mut self) -> &mut BytesMut {
        let whole = self.head.map_or(HEAD, |(_, _, len, _)| len);
        let missing = whole.saturating_sub(self.buffer.len());
        if self.buffer.capacity() - self.buffer.len() < missing.max(LITTLE) {
            self.buffer.reserve(missing.max(RECEIVE));
        }
        &mut self.buffer
    }

    /// Channel and length of the body that is being received, once [`Decoder::frame`] has seen its head.
    pub fn coming(&self) -> Option<(u32, usize)> {
        self.head.map(|(_, channel, len, _)| (channel, len))
    }

    /// The next frame, if it is all there.
    ///
    /// # Errors
    /// The stream is not to be trusted any more.
    pub fn frame(&mut self) -> Result<Option<Frame>, &'static str> {
        let (verb, channel, len, crc) = match self.head {
            Some(head) => head,
            None => {
                let Some(mut head) = self.buffer.get(..HEAD) else { return Ok(None) };
                if crc32c(&head[..16]).to_le_bytes() != head[16..20] {
                    return Err("the checksum of a frame's head is wrong");
                }
                let len = head.get_u32_le() as usize;
                let verb = head.get_u8();
                if head.get_u8() != 0 || head.get_u16_le() != 0 {
                    return Err("reserved bytes of a frame are set");
                }
                let most = if matches!(verb, verb::WRITE | verb::REPLY) { self.limit } else { MAX_SMALL };
                if len > most {
                    return Err("a frame is too long");
                }
                let head = (verb, head.get_u32_le(), len, head.get_u32_le());
                self.buffer.advance(HEAD);
                *self.head.insert(head)
            }
        };
        if self.buffer.len() < len {
            return Ok(None);
        }
        self.head = None;
        let body = self.buffer.split_to(len).freeze();
        if crc32c(&body) != crc {
            return Err("the checksum of a frame is wrong");
        }
        Ok(Some(Frame { verb, channel, body }))
    }
}

/// Takes numbers off the front; never reads beyond the end.
struct Reader(Bytes);

type Parsed<T> = Result<T, &'static str>;

impl Reader {
    fn take(&mut self, n: usize) -> Parsed<Bytes> {
        if self.0.len() < n { Err("a frame is too short") } else { Ok(self.0.split_to(n)) }
    }

    fn array<const N: usize>(&mut self) -> Parsed<[u8; N]> {
        let bytes = *self.0.first_chunk::<N>().ok_or("a frame is too short")?;
        self.0.advance(N);
        Ok(bytes)
    }

    fn u8(&mut self) -> Parsed<u8> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    fn u32(&mut self) -> Parsed<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Parsed<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn u128(&mut self) -> Parsed<u128> {
        Ok(u128::from_le_bytes(self.array()?))
    }

    /// A byte below 2 to the power of `bits`.
    fn flags(&mut self, bits: u32) -> Parsed<u8> {
        let flags = self.u8()?;
        if flags >> bits != 0 { Err("a flag is not known") } else { Ok(flags) }
    }

    fn text(&mut self) -> Parsed<String> {
        let len = usize::from(self.u8()?);
        String::from_utf8(self.take(len)?.into()).map_err(|_| "a name is not text")
    }

    fn error(&mut self) -> Parsed<Error> {
        let kind = ErrorKind::from_number(self.u8()?).ok_or("a kind of error is not known")?;
        if self.0.len() > MAX_MESSAGE {
            return Err("a message is too long");
        }
        Ok(Error::new(kind, String::from_utf8_lossy(&std::mem::take(&mut self.0))))
    }

    fn moved(&mut self) -> Parsed<Moved> {
        let (epoch, owner) = (Epoch(self.u64()?), self.text()?);
        let count = usize::from(self.u8()?);
        if count > MAX_ADDRESSES {
            return Err("a router has too many addresses");
        }
        let addresses = (0..count).map(|_| self.text()).collect::<Parsed<_>>()?;
        Ok(Moved { owner, addresses, epoch })
    }

    fn extents(&mut self) -> Parsed<Vec<Extent>> {
        if self.0.len() > MAX_EXTENTS * 9 {
            return Err("there are too many runs");
        }
        let mut extents = Vec::with_capacity(self.0.len() / 9);
        while !self.0.is_empty() {
            let (len, flags) = (self.u64()?, self.flags(2)?);
            if len == 0 {
                return Err("a run is empty");
            }
            extents.push(Extent { len, hole: flags & 1 != 0, zero: flags & 2 != 0 });
        }
        Ok(extents)
    }

    fn end<T>(&self, value: T) -> Parsed<T> {
        if self.0.is_empty() { Ok(value) } else { Err("a frame is too long") }
    }
}

impl Frame {
    /// A frame by itself.
    pub fn new(verb: u8, channel: u32, body: Bytes) -> Frame {
        Frame { verb, channel, body }
    }

    /// What a client says.
    ///
    /// # Errors
    /// It makes no sense.
    pub fn to_server(self) -> Result<ToServer, &'static str> {
        let mut r = Reader(self.body);
        let said = match self.verb {
            verb::ATTACH => ToServer::Attach(attach(&mut r)?),
            verb::DETACH => ToServer::Detach,
            verb::LEAVE => ToServer::Leave,
            verb::PING => ToServer::Ping,
            verb::READ..=verb::PREFETCH => ToServer::Request(request(self.verb, &mut r)?),
            _ => return Err("a verb is not known"),
        };
        r.end(said)
    }

    /// What a server says.
    ///
    /// # Errors
    /// It makes no sense.
    pub fn to_client(self) -> Result<ToClient, &'static str> {
        let mut r = Reader(self.body);
        let said = match self.verb {
            verb::REPLY => ToClient::Reply(reply(&mut r)?),
            verb::HELLO => ToClient::Hello(r.text()?),
            verb::ATTACHED => ToClient::Attached(granted(&mut r)?),
            verb::REFUSED => ToClient::Refused(match r.u8()? {
                0 => Refusal::Failed(r.error()?),
                1 => Refusal::Moved(r.moved()?),
                2 => Refusal::Stale(r.u64()?),
                _ => return Err("a refusal is not known"),
            }),
            verb::CLOSED => ToClient::Closed(r.error()?),
            verb::DETACHED => ToClient::Detached,
            verb::RESIZED => ToClient::Resized(r.u64()?),
            verb::PONG => ToClient::Pong,
            _ => return Err("a verb is not known"),
        };
        r.end(said)
    }
}

fn attach(r: &mut Reader) -> Parsed<Attach> {
    let (attachment, session, since) = (r.u128()?, r.u64()?, Epoch(r.u64()?));
    let mode = match r.u8()? {
        0 => Mode::Exclusive,
        1 => Mode::ReadOnly,
        2 => Mode::Shared,
        _ => return Err("a mode is not known"),
    };
    let flags = r.flags(2)?;
    Ok(Attach {
        attachment,
        session,
        since,
        mode,
        resumed: flags & 1 != 0,
        pass_on: flags & 2 != 0,
        hops: r.u8()?,
        export: r.text()?,
        client: r.text()?,
        via: r.text()?,
    })
}

fn request(verb: u8, r: &mut Reader) -> Parsed<Request> {
    let (sequence, epoch) = (r.u64()?, Epoch(r.u64()?));
    let (offset, len, flags) = (r.u64()?, r.u64()?, r.u64()?);
    let known = match verb {
        verb::ZEROES => FUA | HOLE,
        verb::WRITE | verb::DISCARD => FUA,
        _ => 0,
    };
    if flags & !u64::from(known) != 0 {
        return Err("a flag is not known");
    }
    let (fua, hole) = (flags & u64::from(FUA) != 0, flags & u64::from(HOLE) != 0);
    let op = match verb {
        verb::READ => {
            let len = u32::try_from(len).ok().filter(|len| *len <= MAX_PAYLOAD);
            Op::Read { offset, len: len.ok_or("a read is too long")? }
        }
        verb::WRITE => {
            let data = std::mem::take(&mut r.0);
            if data.len() as u64 != len {
                return Err("the length of a write is not that of its payload");
            }
            Op::Write { offset, data, fua }
        }
        verb::ZEROES => Op::Zeroes { offset, len, hole, fua },
        verb::DISCARD => Op::Discard { offset, len, fua },
        verb::EXTENTS => Op::Extents { offset, len },
        verb::PREFETCH => Op::Prefetch { offset, len },
        _ if offset == 0 && len == 0 => Op::Flush,
        _ => return Err("a flush has no range"),
    };
    Ok(Request { sequence, epoch, op })
}

fn granted(r: &mut Reader) -> Parsed<Granted> {
    let geometry = Geometry {
        size: r.u64()?,
        min_block: r.u32()?,
        preferred_block: r.u32()?,
        max_payload: r.u32()?,
        read_only: false,
    };
    let epoch = Epoch(r.u64()?);
    let recovered = match (r.u8()?, Lsn(r.u64()?)) {
        (0, Lsn(0)) => Recovered::All,
        (1, lsn) => Recovered::UpTo(lsn),
        (2, Lsn(0)) => Recovered::Flushed,
        _ => return Err("what was recovered is not known"),
    };
    let flags = r.flags(5)?;
    let credit = Credit { requests: r.u32()?, bytes: r.u32()? };
    let fits = geometry.min_block.is_power_of_two()
        && geometry.max_payload >= geometry.min_block
        && geometry.max_payload <= MAX_PAYLOAD;
    if !fits || credit.requests == 0 || credit.bytes < geometry.max_payload {
        return Err("nothing could be asked of such a device");
    }
    Ok(Granted {
        geometry: Geometry { read_only: flags & 1 != 0, ..geometry },
        epoch,
        recovered,
        known: flags & 2 != 0,
        in_sync: flags & 4 != 0,
        disk_read_only: flags & 8 != 0,
        forwarded: flags & 16 != 0,
        credit,
    })
}

fn reply(r: &mut Reader) -> Parsed<Reply> {
    let (sequence, epoch, lsn) = (r.u64()?, Epoch(r.u64()?), Lsn(r.u64()?));
    let grant = Credit { requests: r.u32()?, bytes: r.u32()? };
    let in_sync = r.flags(1)? == 1;
    let outcome = match r.u8()? {
        outcome::DONE => Outcome::Done,
        outcome::DATA => Outcome::Data(std::mem::take(&mut r.0)),
        outcome::EXTENTS => Outcome::Extents(r.extents()?),
        outcome::FAILED => Outcome::Failed(r.error()?),
        outcome::MOVED => Outcome::Moved(r.moved()?),
        _ => return Err("an outcome is not known"),
    };
    Ok(Reply { sequence, epoch, lsn, in_sync, grant, outcome })
}
