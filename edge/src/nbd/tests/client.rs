//! A client that says exactly what a test tells it to.

use crate::nbd::proto::{self, chunk, flag, opt, rep};
use std::net::SocketAddr;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

pub struct Client<S> {
    pub stream: S,
    pub extended: bool,
    pub structured: bool,
}

/// One reply to an option.
#[derive(Debug, PartialEq)]
pub struct OptionReply {
    pub kind: u32,
    pub body: Vec<u8>,
}

impl OptionReply {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// One reply, or chunk of one.
#[derive(Debug, PartialEq, Clone)]
pub struct Reply {
    pub cookie: u64,
    pub error: u32,
    pub kind: u16,
    pub done: bool,
    pub body: Vec<u8>,
}

pub async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(std::time::Duration::from_secs(20), what).await.expect("the server hangs")
}

impl Client<TcpStream> {
    /// Connected, greeted, no option sent.
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut client = Client { stream, extended: false, structured: false };
        client.greet(3).await;
        client
    }

    /// In transmission, with structured replies (and extended headers) and base:allocation.
    pub async fn open(address: SocketAddr, name: &str, extended: bool) -> Self {
        let mut client = Self::connect(address).await;
        client.structured().await;
        if extended {
            client.extended().await;
        }
        client.option(opt::SET_META_CONTEXT, &meta(name, &["base:allocation"])).await;
        let end = client.option(opt::GO, &info(name, &[])).await;
        assert_eq!(end.last().unwrap().kind, rep::ACK, "{end:?}");
        client
    }

    /// In transmission, with simple replies.
    pub async fn open_simple(address: SocketAddr, name: &str) -> Self {
        let mut client = Self::connect(address).await;
        let end = client.option(opt::GO, &info(name, &[])).await;
        assert_eq!(end.last().unwrap().kind, rep::ACK, "{end:?}");
        client
    }
}

impl<S: Stream> Client<S> {
    pub async fn greet(&mut self, flags: u32) {
        let hello: [u8; 18] = self.bytes().await;
        assert_eq!(&hello[..8], b"NBDMAGIC");
        assert_eq!(&hello[8..16], b"IHAVEOPT");
        assert_eq!(&hello[16..], [0, 3], "fixed newstyle, no zeroes");
        self.stream.write_all(&flags.to_be_bytes()).await.unwrap();
    }

    pub async fn structured(&mut self) {
        assert_eq!(self.option(opt::STRUCTURED_REPLY, &[]).await[0].kind, rep::ACK);
        self.structured = true;
    }

    pub async fn extended(&mut self) {
        assert_eq!(self.option(opt::EXTENDED_HEADERS, &[]).await[0].kind, rep::ACK);
        self.structured = true;
        self.extended = true;
    }

    pub async fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        within(self.stream.read_exact(&mut bytes)).await.expect("the server closed the connection");
        bytes
    }

    pub async fn vec(&mut self, n: usize) -> Vec<u8> {
        let mut bytes = vec![0; n];
        within(self.stream.read_exact(&mut bytes)).await.expect("the server closed the connection");
        bytes
    }

    /// The rest until the server closes.
    pub async fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        // A reset counts as closed too.
        let _ = within(self.stream.read_to_end(&mut rest)).await;
        rest
    }

    pub async fn send_option(&mut self, option: u32, payload: &[u8]) {
        let mut bytes = proto::OPTION_MAGIC.to_be_bytes().to_vec();
        bytes.extend(option.to_be_bytes());
        bytes.extend((payload.len() as u32).to_be_bytes());
        bytes.extend(payload);
        self.stream.write_all(&bytes).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// Sends an option; all replies to it, up to the one that ends it.
    pub async fn option(&mut self, option: u32, payload: &[u8]) -> Vec<OptionReply> {
        self.send_option(option, payload).await;
        let mut replies = Vec::new();
        loop {
            assert_eq!(u64::from_be_bytes(self.bytes().await), proto::OPTION_REPLY_MAGIC);
            assert_eq!(u32::from_be_bytes(self.bytes().await), option);
            let kind = u32::from_be_bytes(self.bytes().await);
            let length = u32::from_be_bytes(self.bytes().await);
            replies.push(OptionReply { kind, body: self.vec(length as usize).await });
            if kind == rep::ACK || kind >> 31 == 1 {
                return replies;
            }
        }
    }

    pub fn header(&self, flags: u16, command: u16, cookie: u64, offset: u64, length: u64) -> Vec<u8> {
        let magic = if self.extended { proto::EXTENDED_REQUEST_MAGIC } else { proto::REQUEST_MAGIC };
        let mut bytes = magic.to_be_bytes().to_vec();
        bytes.extend(flags.to_be_bytes());
        bytes.extend(command.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        if self.extended {
            bytes.extend(length.to_be_bytes());
        } else {
            bytes.extend(u32::try_from(length).unwrap().to_be_bytes());
        }
        bytes
    }

    pub async fn send(&mut self, flags: u16, command: u16, cookie: u64, offset: u64, length: u64) {
        let bytes = self.header(flags, command, cookie, offset, length);
        self.stream.write_all(&bytes).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    pub async fn send_write(&mut self, flags: u16, cookie: u64, offset: u64, data: &[u8]) {
        let flags = if self.extended { flags | flag::PAYLOAD_LEN } else { flags };
        let mut bytes = self.header(flags, 1, cookie, offset, data.len() as u64);
        bytes.extend(data);
        self.stream.write_all(&bytes).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// The next reply; `data` bytes follow a successful simple one.
    pub async fn reply(&mut self, data: usize) -> Reply {
        let magic = u32::from_be_bytes(self.bytes().await);
        if magic == proto::SIMPLE_REPLY_MAGIC {
            assert!(!self.extended, "a simple reply with extended headers");
            let error = u32::from_be_bytes(self.bytes().await);
            let cookie = u64::from_be_bytes(self.bytes().await);
            let body = if error == 0 { self.vec(data).await } else { Vec::new() };
            return Reply { cookie, error, kind: 0, done: true, body };
        }
        assert!(self.structured);
        let expected =
            if self.extended { proto::EXTENDED_REPLY_MAGIC } else { proto::STRUCTURED_REPLY_MAGIC };
        assert_eq!(magic, expected);
        let flags = u16::from_be_bytes(self.bytes().await);
        let kind = u16::from_be_bytes(self.bytes().await);
        let cookie = u64::from_be_bytes(self.bytes().await);
        let length = if self.extended {
            let _offset: [u8; 8] = self.bytes().await;
            u64::from_be_bytes(self.bytes().await)
        } else {
            u64::from(u32::from_be_bytes(self.bytes().await))
        };
        let mut body = self.vec(length as usize).await;
        let mut error = 0;
        if kind == chunk::ERROR {
            error = u32::from_be_bytes(body[..4].try_into().unwrap());
            assert_eq!(usize::from(u16::from_be_bytes([body[4], body[5]])), body.len() - 6);
            body.drain(..6);
        }
        Reply { cookie, error, kind, done: flags & chunk::FLAG_DONE != 0, body }
    }

    /// Reads and checks where the bytes belong; holes become zeroes.
    pub async fn read(&mut self, offset: u64, length: usize) -> Result<Vec<u8>, u32> {
        self.send(0, 0, 77, offset, length as u64).await;
        let reply = self.reply(length).await;
        assert_eq!(reply.cookie, 77);
        assert!(reply.done);
        if reply.error != 0 {
            return Err(reply.error);
        }
        if !self.structured {
            return Ok(reply.body);
        }
        assert_eq!(u64::from_be_bytes(reply.body[..8].try_into().unwrap()), offset);
        if reply.kind == chunk::OFFSET_HOLE {
            assert_eq!(u32::from_be_bytes(reply.body[8..].try_into().unwrap()) as usize, length);
            return Ok(vec![0; length]);
        }
        assert_eq!(reply.kind, chunk::OFFSET_DATA);
        Ok(reply.body[8..].to_vec())
    }

    pub async fn write(&mut self, flags: u16, offset: u64, data: &[u8]) -> u32 {
        self.send_write(flags, 78, offset, data).await;
        let reply = self.reply(0).await;
        assert_eq!(reply.cookie, 78);
        reply.error
    }

    /// A request without payload either way.
    pub async fn call(&mut self, flags: u16, command: u16, offset: u64, length: u64) -> u32 {
        self.send(flags, command, 79, offset, length).await;
        let reply = self.reply(0).await;
        assert_eq!(reply.cookie, 79);
        reply.error
    }

    /// Block status in the one context that is selected: runs as (length, state).
    pub async fn status(&mut self, flags: u16, offset: u64, length: u64) -> Vec<(u64, u64)> {
        let mut all = self.statuses(flags, offset, length).await;
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].0, 1, "the id that SET_META_CONTEXT gave");
        all.remove(0).1
    }

    /// Block status in each context, by its id.
    pub async fn statuses(&mut self, flags: u16, offset: u64, length: u64) -> Vec<(u64, Vec<(u64, u64)>)> {
        self.send(flags, 7, 80, offset, length).await;
        let mut all = Vec::new();
        loop {
            let reply = self.reply(0).await;
            assert_eq!((reply.cookie, reply.error), (80, 0));
            let id = be(&reply.body[..4]);
            if self.extended {
                assert_eq!(reply.kind, chunk::BLOCK_STATUS_EXT);
                let count = u32::from_be_bytes(reply.body[4..8].try_into().unwrap()) as usize;
                let runs: Vec<_> = reply.body[8..].chunks(16).map(|c| (be(&c[..8]), be(&c[8..]))).collect();
                assert_eq!(runs.len(), count);
                all.push((id, runs));
            } else {
                assert_eq!(reply.kind, chunk::BLOCK_STATUS);
                all.push((id, reply.body[4..].chunks(8).map(|c| (be(&c[..4]), be(&c[4..]))).collect()));
            }
            if reply.done {
                return all;
            }
        }
    }
}

fn be(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |n, b| n << 8 | u64::from(*b))
}

pub fn info(name: &str, wanted: &[u16]) -> Vec<u8> {
    let mut payload = (name.len() as u32).to_be_bytes().to_vec();
    payload.extend(name.as_bytes());
    payload.extend((wanted.len() as u16).to_be_bytes());
    payload.extend(wanted.iter().flat_map(|w| w.to_be_bytes()));
    payload
}

pub fn meta(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut payload = (name.len() as u32).to_be_bytes().to_vec();
    payload.extend(name.as_bytes());
    payload.extend((queries.len() as u32).to_be_bytes());
    for query in queries {
        payload.extend((query.len() as u32).to_be_bytes());
        payload.extend(query.as_bytes());
    }
    payload
}
