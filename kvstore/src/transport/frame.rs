//! Frames: length u32, CRC32C u32 of length and content, content. And the greeting that comes first on a connection.

use crate::machine::layout::MAX_ADDRESS;
use crate::wire::{Reader, Writer};
use bytes::{Bytes, BytesMut};
use common::crc::crc32c_parts;
use common::{Error, ErrorKind, Result};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The longest content of a frame.
pub(crate) const MAX_FRAME: usize = 32 << 20;
/// The longest greeting: nobody is known yet.
const MAX_HELLO: usize = 512;
const MAGIC: &[u8; 4] = b"SRkv";
const VERSION: u16 = 1;

/// The first frame on a connection, both ways.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Hello {
    /// Messages of member `from` for member `to` follow. A new member knows nobody: `from` listens at `address`.
    Peer { group: u128, from: u64, to: u64, address: String },
    /// Requests follow; group 0 is any.
    Client { group: u128 },
    /// The answer: who listens.
    Welcome { group: u128, member: u64 },
}

impl Hello {
    pub fn encode(&self) -> Bytes {
        let mut w = Writer::new();
        w.raw(MAGIC).u16(VERSION);
        match self {
            Hello::Peer { group, from, to, address } => {
                w.u8(0).u128(*group).u64(*from).u64(*to).bytes(address.as_bytes())
            }
            Hello::Client { group } => w.u8(1).u128(*group),
            Hello::Welcome { group, member } => w.u8(2).u128(*group).u64(*member),
        };
        w.finish()
    }

    pub fn decode(bytes: Bytes) -> Result<Self> {
        let mut r = Reader::new(bytes, "greeting of a connection to the registry");
        if r.take(4)? != MAGIC[..] {
            return Err(r.bad("it is none"));
        }
        let version = r.u16()?;
        if version != VERSION {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "a connection to the registry speaks version {version}, and this storagerouter {VERSION}"
                ),
            ));
        }
        let hello = match r.u8()? {
            0 => {
                let (group, from, to) = (r.u128()?, r.u64()?, r.u64()?);
                Hello::Peer { group, from, to, address: r.string(MAX_ADDRESS)? }
            }
            1 => Hello::Client { group: r.u128()? },
            2 => Hello::Welcome { group: r.u128()?, member: r.u64()? },
            _ => return Err(r.bad("it is of an unknown kind")),
        };
        r.end()?;
        Ok(hello)
    }
}

fn broken(e: &std::io::Error) -> Error {
    Error::unavailable(format!("a connection to the registry broke: {e}"))
}

/// Writes a frame; the caller flushes.
pub(crate) async fn write(stream: &mut (impl AsyncWrite + Unpin), parts: &[&[u8]]) -> Result<()> {
    let len: usize = parts.iter().map(|p| p.len()).sum();
    if len > MAX_FRAME {
        return Err(Error::internal(format!("a frame of {len} bytes was to be sent")));
    }
    let length = (len as u32).to_le_bytes();
    let mut all = vec![&length[..]];
    all.extend(parts);
    let crc = crc32c_parts(&all).to_le_bytes();
    stream.write_all(&[length, crc].concat()).await.map_err(|e| broken(&e))?;
    for part in parts {
        stream.write_all(part).await.map_err(|e| broken(&e))?;
    }
    Ok(())
}

/// The next frame; `None` at a clean end.
pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin), max: usize) -> Result<Option<Bytes>> {
    let mut head = [0u8; 8];
    let first = stream.read(&mut head).await.map_err(|e| broken(&e))?;
    if first == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut head[first..]).await.map_err(|e| broken(&e))?;
    let (length, crc) = (&head[..4], u32::from_le_bytes([head[4], head[5], head[6], head[7]]));
    let len = u32::from_le_bytes([length[0], length[1], length[2], length[3]]) as usize;
    if len > max {
        return Err(Error::corrupt(format!("a frame of {len} bytes came, and {max} are the most")));
    }
    // Room grows with what arrives: a length costs nothing to claim.
    let mut content = BytesMut::with_capacity(len.min(64 << 10));
    while content.len() < len {
        let rest = (len - content.len()) as u64;
        let n = (&mut *stream).take(rest).read_buf(&mut content).await.map_err(|e| broken(&e))?;
        if n == 0 {
            return Err(Error::unavailable("a connection to the registry ended within a frame"));
        }
    }
    if crc32c_parts(&[length, &content]) != crc {
        return Err(Error::corrupt("a frame with a wrong checksum came"));
    }
    Ok(Some(content.freeze()))
}

/// Sends a greeting.
pub(crate) async fn greet(stream: &mut (impl AsyncWrite + Unpin), hello: Hello) -> Result<()> {
    write(stream, &[&hello.encode()]).await?;
    stream.flush().await.map_err(|e| broken(&e))
}

/// Waits for a greeting.
pub(crate) async fn greeted(stream: &mut (impl AsyncRead + Unpin)) -> Result<Hello> {
    match read(stream, MAX_HELLO).await? {
        Some(bytes) => Hello::decode(bytes),
        None => Err(Error::unavailable("a connection to the registry ended without a greeting")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn sent(parts: &[&[u8]]) -> Vec<u8> {
        let mut bytes = Vec::new();
        write(&mut bytes, parts).await.unwrap();
        bytes
    }

    #[tokio::test]
    async fn what_was_sent_arrives_and_what_is_not_whole_is_refused() {
        let bytes = sent(&[b"one ", b"frame"]).await;
        assert_eq!(read(&mut &bytes[..], 9).await.unwrap().unwrap(), "one frame");
        assert!(read(&mut &bytes[..0], 9).await.unwrap().is_none());
        assert_eq!(read(&mut &bytes[..], 8).await.unwrap_err().kind, ErrorKind::Corrupt);
        for cut in 1..bytes.len() {
            assert!(read(&mut &bytes[..cut], 9).await.is_err(), "{cut}");
        }
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&mut &bad[..], MAX_FRAME).await.is_err(), "bit {bit}");
        }
    }

    #[test]
    fn greetings_are_what_they_were_or_an_error() {
        for hello in [
            Hello::Peer { group: 7, from: 1, to: 2, address: "here:1".into() },
            Hello::Client { group: 0 },
            Hello::Welcome { group: u128::MAX, member: 3 },
        ] {
            let bytes = hello.encode();
            assert_eq!(Hello::decode(bytes.clone()).unwrap(), hello);
            for cut in 0..bytes.len() {
                assert!(Hello::decode(bytes.slice(..cut)).is_err());
            }
        }
    }
}
