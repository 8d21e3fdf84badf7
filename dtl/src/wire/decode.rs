//! Bytes in, frames out.

use super::{HEAD, MAX_BODY, MAX_SMALL, Open, Reply, Request, verb};
use crate::entry::{self, Head, Packed};
use crate::registration::{Incarnation, LogInfo};
use crate::storage::Key;
use bytes::{Buf, Bytes, BytesMut};
use common::crc::crc32c;
use common::{Epoch, ErrorKind, Lsn, VolumeId};

/// The most logs that a reply lists.
const MAX_LOGS: usize = 1024;

/// Bytes as they came, cut into frames.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: BytesMut,
    /// The head of the frame whose body is not all there.
    head: Option<(u8, u32, usize, u32)>,
}

/// A frame whose checksums are right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it says.
    pub verb: u8,
    /// About what.
    pub id: u32,
    crc: u32,
    body: Bytes,
}

/// With less room than this, more is made.
const LITTLE: usize = 32 << 10;

impl Decoder {
    /// Where to put what is received. Its memory is bounded by one frame, and what is read in one go.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// How many more bytes the next frame needs, at least.
    pub fn missing(&self) -> usize {
        let whole = self.head.map_or(HEAD, |(_, _, len, _)| len);
        whole.saturating_sub(self.buffer.len())
    }

    /// Makes room for the next frame, and for `more` bytes where there is little left.
    pub fn make_room(&mut self, more: usize) {
        let missing = self.missing();
        if self.buffer.capacity() - self.buffer.len() < missing.max(LITTLE) {
            self.buffer.reserve(missing.max(more));
        }
    }

    /// The next frame, if it is all there.
    ///
    /// # Errors
    /// The stream is not to be trusted any more.
    pub fn frame(&mut self) -> Result<Option<Frame>, &'static str> {
        let (verb, id, len, crc) = match self.head {
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
                let most = if matches!(verb, verb::APPEND | verb::DATA) { MAX_BODY } else { MAX_SMALL };
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
        Ok(Some(Frame { verb, id, crc, body }))
    }
}

/// Takes numbers off the front; never reads beyond the end.
struct Reader(Bytes);

type Parsed<T> = Result<T, &'static str>;

impl Reader {
    fn need(&self, n: usize) -> Parsed<()> {
        if self.0.len() < n { Err("a frame is too short") } else { Ok(()) }
    }

    fn u8(&mut self) -> Parsed<u8> {
        self.need(1)?;
        Ok(self.0.get_u8())
    }

    fn u16(&mut self) -> Parsed<u16> {
        self.need(2)?;
        Ok(self.0.get_u16_le())
    }

    fn u32(&mut self) -> Parsed<u32> {
        self.need(4)?;
        Ok(self.0.get_u32_le())
    }

    fn u64(&mut self) -> Parsed<u64> {
        self.need(8)?;
        Ok(self.0.get_u64_le())
    }

    fn u128(&mut self) -> Parsed<u128> {
        self.need(16)?;
        Ok(self.0.get_u128_le())
    }

    fn lsn(&mut self) -> Parsed<Lsn> {
        let lsn = self.u64()?;
        if lsn == u64::MAX { Err("an LSN is impossible") } else { Ok(Lsn(lsn)) }
    }

    fn volume(&mut self) -> Parsed<VolumeId> {
        Ok(VolumeId(self.u128()?))
    }

    fn epoch(&mut self) -> Parsed<Epoch> {
        Ok(Epoch(self.u64()?))
    }

    fn key(&mut self) -> Parsed<Key> {
        Ok(Key { volume: self.volume()?, epoch: self.epoch()?, incarnation: Incarnation(self.u128()?) })
    }

    fn info(&mut self) -> Parsed<LogInfo> {
        let (epoch, incarnation) = (self.epoch()?, Incarnation(self.u128()?));
        let (base, last, flushed) = (self.lsn()?, self.lsn()?, self.lsn()?);
        let flags = self.u8()?;
        if flags > 7 || last < base || flushed > last {
            return Err("what is said of a log contradicts itself");
        }
        let (sealed, suspect, damaged) = (flags & 1 != 0, flags & 2 != 0, flags & 4 != 0);
        Ok(LogInfo { epoch, incarnation, base, last, flushed, sealed, suspect, damaged })
    }

    fn end<T>(self, value: T) -> Parsed<T> {
        if self.0.is_empty() { Ok(value) } else { Err("a frame is too long for what it says") }
    }
}

impl Frame {
    /// The entry of an `append` or `data`: its checksum was that of the frame.
    fn packed(&self) -> Parsed<(Head, Packed)> {
        let head = entry::head(&self.body)?;
        Ok((head, Packed { crc: self.crc, bytes: self.body.clone() }))
    }

    /// The head and bytes of an `append`; `None` for any other verb.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn append(&self) -> Parsed<Option<(Head, Packed)>> {
        if self.verb == verb::APPEND { self.packed().map(Some) } else { Ok(None) }
    }

    /// What a client says.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn request(&self) -> Parsed<Request> {
        let mut r = Reader(self.body.clone());
        let request = match self.verb {
            verb::HELLO => {
                let (volume, epoch) = (r.volume()?, r.epoch()?);
                let open = match r.u8()? {
                    1 => Open::Create { serial: r.u64()?, base: r.lsn()? },
                    2 => Open::Resume(Incarnation(r.u128()?)),
                    _ => return Err("a hello of an unknown kind"),
                };
                Request::Hello { volume, epoch, open }
            }
            verb::APPEND => return self.packed().map(|(_, packed)| Request::Append(packed)),
            verb::FLUSH => Request::Flush,
            verb::TRIM => Request::Trim(r.lsn()?),
            verb::VOUCH => Request::Vouch(r.lsn()?),
            verb::CLOSE => Request::Close,
            verb::SEAL => Request::Seal(r.volume()?, r.epoch()?),
            verb::READ => Request::Read(r.key()?, r.lsn()?, r.u32()?),
            verb::CREDIT => Request::Credit(r.u32()?),
            verb::STATUS => Request::Status(r.volume()?),
            verb::TRIM_LOG => Request::TrimLog(r.key()?, r.lsn()?),
            verb::FORGET => Request::Forget(r.volume()?, r.epoch()?),
            verb::PING => Request::Ping,
            _ => return Err("an unknown verb"),
        };
        r.end(request)
    }

    /// What a service says.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn reply(&self) -> Parsed<Reply> {
        let mut r = Reader(self.body.clone());
        let reply = match self.verb {
            verb::OPENED => Reply::Opened(r.info()?, r.u32()?),
            verb::CONFIRMED => Reply::Confirmed(r.lsn()?),
            verb::FLUSHED => Reply::Flushed(r.lsn()?),
            verb::VOUCHED => Reply::Vouched,
            verb::STALL => Reply::Stall(r.lsn()?),
            verb::RESUME => Reply::Resume(r.lsn()?),
            verb::FAILED => {
                let kind = ErrorKind::from_number(r.u8()?).unwrap_or(ErrorKind::Internal);
                return Ok(Reply::Failed(kind, String::from_utf8_lossy(&r.0).into_owned()));
            }
            verb::LOGS => {
                let (floor, n) = (r.epoch()?, usize::from(r.u16()?));
                if n > MAX_LOGS {
                    return Err("too many logs");
                }
                Reply::Logs(floor, (0..n).map(|_| r.info()).collect::<Parsed<_>>()?)
            }
            verb::DATA => return self.packed().map(|(_, packed)| Reply::Data(packed)),
            verb::DONE => Reply::Done,
            verb::PONG => Reply::Pong,
            _ => return Err("an unknown verb"),
        };
        r.end(reply)
    }
}
