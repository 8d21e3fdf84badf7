//! A small NBD client for the oracle: pipelined, one connection, no reconnect, no retry. Every
//! outcome is what the server said, or that the connection is gone.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::oneshot;

/// Where a server listens.
#[derive(Debug, Clone)]
pub enum Endpoint {
    /// `host:port`.
    Tcp(String),
    /// A socket file.
    Unix(PathBuf),
}

/// What went wrong with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NbdError {
    /// The server's answer was this error number.
    Errno(u32),
    /// No answer came: the connection ended. The request may have been done.
    Gone(String),
}

impl std::fmt::Display for NbdError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            NbdError::Errno(number) => write!(f, "the NBD server answered with error {number}"),
            NbdError::Gone(why) => write!(f, "the NBD connection is gone: {why}"),
        }
    }
}

impl std::error::Error for NbdError {}

impl From<std::io::Error> for NbdError {
    fn from(error: std::io::Error) -> Self {
        NbdError::Gone(error.to_string())
    }
}

/// Force unit access: durable before the answer.
pub const FUA: u16 = 1;
/// Write zeroes that must stay allocated.
pub const NO_HOLE: u16 = 2;

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const WRITE_ZEROES: u16 = 6;

const OPTION_GO: u32 = 7;
const OPTION_STRUCTURED_REPLY: u32 = 8;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_MAGIC: u32 = 0x668e_33ef;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const LONGEST_REPLY: u32 = 64 << 20;
/// A payload longer than this is sent apart from its header.
const LARGE: usize = 64 << 10;

type Reader = Box<dyn AsyncRead + Send + Unpin>;
type Writer = Box<dyn AsyncWrite + Send + Unpin>;
type Outcome = Result<Vec<u8>, NbdError>;

struct Pending {
    reply: oneshot::Sender<Outcome>,
    offset: u64,
    data: Vec<u8>,
    missing: usize,
    error: Option<u32>,
}

#[derive(Default)]
struct Waiting {
    requests: HashMap<u64, Pending>,
    next: u64,
    gone: Option<NbdError>,
}

/// One connection to one export.
pub struct Client {
    writer: tokio::sync::Mutex<Writer>,
    waiting: Arc<Mutex<Waiting>>,
    size: u64,
    flags: u16,
}

fn lock(waiting: &Mutex<Waiting>) -> std::sync::MutexGuard<'_, Waiting> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

fn broken(what: impl Into<String>) -> NbdError {
    NbdError::Gone(format!("protocol violated by the server: {}", what.into()))
}

impl Client {
    /// Connects and negotiates structured replies when offered.
    pub async fn connect(endpoint: &Endpoint, export: &str) -> Result<Client, NbdError> {
        let (mut reader, mut writer): (Reader, Writer) = match endpoint {
            Endpoint::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                let (reader, writer) = stream.into_split();
                (Box::new(reader), Box::new(writer))
            }
            Endpoint::Unix(path) => {
                let (reader, writer) = UnixStream::connect(path).await?.into_split();
                (Box::new(reader), Box::new(writer))
            }
        };
        let mut greeting = [0; 18];
        reader.read_exact(&mut greeting).await?;
        if &greeting[..16] != b"NBDMAGICIHAVEOPT" {
            return Err(broken("greeting"));
        }
        // Fixed newstyle, no zeroes.
        writer.write_all(&3u32.to_be_bytes()).await?;
        let structured = option(&mut reader, &mut writer, OPTION_STRUCTURED_REPLY, &[]).await.is_ok();
        let mut go = (export.len() as u32).to_be_bytes().to_vec();
        go.extend_from_slice(export.as_bytes());
        go.extend_from_slice(&0u16.to_be_bytes());
        let infos = option(&mut reader, &mut writer, OPTION_GO, &go).await?;
        let export_info = infos.iter().find(|info| info.len() == 12 && info[..2] == [0, 0]);
        let info = export_info.ok_or_else(|| broken("NBD_OPT_GO without NBD_INFO_EXPORT"))?;
        let size = u64::from_be_bytes(info[2..10].try_into().map_err(|_| broken("info"))?);
        let flags = u16::from_be_bytes([info[10], info[11]]);
        let waiting = Arc::new(Mutex::new(Waiting::default()));
        let receiver = waiting.clone();
        tokio::spawn(async move {
            let why = match receive(reader, &receiver, structured).await {
                Err(error) => error,
                Ok(()) => NbdError::Gone("closed".into()),
            };
            let mut waiting = lock(&receiver);
            waiting.gone = Some(why.clone());
            for (_, pending) in waiting.requests.drain() {
                let _ = pending.reply.send(Err(why.clone()));
            }
        });
        Ok(Client { writer: tokio::sync::Mutex::new(writer), waiting, size, flags })
    }

    /// Bytes of the export.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Transmission flags of the export.
    pub fn flags(&self) -> u16 {
        self.flags
    }

    /// Reads `length` bytes.
    pub async fn read(&self, offset: u64, length: u32) -> Outcome {
        self.request(READ, 0, offset, length, &[]).await
    }

    /// Writes.
    pub async fn write(&self, offset: u64, data: &[u8], flags: u16) -> Result<(), NbdError> {
        self.request(WRITE, flags, offset, data.len() as u32, data).await.map(drop)
    }

    /// Writes zeroes.
    pub async fn write_zeroes(&self, offset: u64, length: u32, flags: u16) -> Result<(), NbdError> {
        self.request(WRITE_ZEROES, flags, offset, length, &[]).await.map(drop)
    }

    /// Trims.
    pub async fn trim(&self, offset: u64, length: u32, flags: u16) -> Result<(), NbdError> {
        self.request(TRIM, flags, offset, length, &[]).await.map(drop)
    }

    /// Flushes.
    pub async fn flush(&self) -> Result<(), NbdError> {
        self.request(FLUSH, 0, 0, 0, &[]).await.map(drop)
    }

    /// Says goodbye; there is no answer to it.
    pub async fn disconnect(&self) -> Result<(), NbdError> {
        self.send(DISCONNECT, 0, u64::MAX, 0, 0, &[]).await
    }

    async fn send(
        &self,
        command: u16,
        flags: u16,
        cookie: u64,
        offset: u64,
        length: u32,
        data: &[u8],
    ) -> Result<(), NbdError> {
        // A large payload is not copied: tests hold gigabytes of them in flight.
        let (joined, apart) = if data.len() > LARGE { (&[][..], data) } else { (data, &[][..]) };
        let mut frame = Vec::with_capacity(28 + joined.len());
        frame.extend_from_slice(&REQUEST_MAGIC.to_be_bytes());
        frame.extend_from_slice(&flags.to_be_bytes());
        frame.extend_from_slice(&command.to_be_bytes());
        frame.extend_from_slice(&cookie.to_be_bytes());
        frame.extend_from_slice(&offset.to_be_bytes());
        frame.extend_from_slice(&length.to_be_bytes());
        frame.extend_from_slice(joined);
        let mut writer = self.writer.lock().await;
        writer.write_all(&frame).await?;
        Ok(writer.write_all(apart).await?)
    }

    async fn request(&self, command: u16, flags: u16, offset: u64, length: u32, data: &[u8]) -> Outcome {
        let (reply, outcome) = oneshot::channel();
        let missing = if command == READ { length as usize } else { 0 };
        let cookie = {
            let mut waiting = lock(&self.waiting);
            if let Some(why) = &waiting.gone {
                return Err(why.clone());
            }
            waiting.next += 1;
            let cookie = waiting.next;
            let pending = Pending { reply, offset, data: vec![0; missing], missing, error: None };
            waiting.requests.insert(cookie, pending);
            cookie
        };
        if let Err(error) = self.send(command, flags, cookie, offset, length, data).await {
            lock(&self.waiting).requests.remove(&cookie);
            return Err(error);
        }
        outcome.await.map_err(|_| NbdError::Gone("receiver ended".into()))?
    }
}

/// Sends one option and collects the information replies until its acknowledgement.
async fn option(
    reader: &mut Reader,
    writer: &mut Writer,
    number: u32,
    data: &[u8],
) -> Result<Vec<Vec<u8>>, NbdError> {
    let mut frame = OPTION_MAGIC.to_be_bytes().to_vec();
    frame.extend_from_slice(&number.to_be_bytes());
    frame.extend_from_slice(&(data.len() as u32).to_be_bytes());
    frame.extend_from_slice(data);
    writer.write_all(&frame).await?;
    let mut infos = Vec::new();
    loop {
        if reader.read_u64().await? != OPTION_REPLY_MAGIC || reader.read_u32().await? != number {
            return Err(broken("option reply"));
        }
        let kind = reader.read_u32().await?;
        let length = reader.read_u32().await?;
        if length > 1 << 16 {
            return Err(broken("option reply of more than 64 KiB"));
        }
        let mut body = vec![0; length as usize];
        reader.read_exact(&mut body).await?;
        match kind {
            1 => return Ok(infos),
            kind if kind & (1 << 31) != 0 => {
                let text = String::from_utf8_lossy(&body).into_owned();
                return Err(NbdError::Gone(format!("option {number} refused ({kind:#x}): {text}")));
            }
            _ => infos.push(body),
        }
    }
}

async fn receive(mut reader: Reader, waiting: &Mutex<Waiting>, structured: bool) -> Result<(), NbdError> {
    let mut reader = tokio::io::BufReader::with_capacity(256 << 10, &mut reader);
    loop {
        match reader.read_u32().await? {
            SIMPLE_MAGIC => {
                let error = reader.read_u32().await?;
                let cookie = reader.read_u64().await?;
                let found = lock(waiting).requests.remove(&cookie);
                let mut pending = found.ok_or_else(|| broken("reply to no request"))?;
                if error == 0 && pending.missing > 0 {
                    if structured {
                        return Err(broken("simple reply to a read"));
                    }
                    reader.read_exact(&mut pending.data).await?;
                    pending.missing = 0;
                }
                pending.error = (error != 0).then_some(error);
                finish(pending);
            }
            STRUCTURED_MAGIC if structured => {
                let flags = reader.read_u16().await?;
                let kind = reader.read_u16().await?;
                let cookie = reader.read_u64().await?;
                let length = reader.read_u32().await?;
                if length > LONGEST_REPLY {
                    return Err(broken("chunk too long"));
                }
                let mut body = vec![0; length as usize];
                reader.read_exact(&mut body).await?;
                let mut waiting = lock(waiting);
                let entry = waiting.requests.get_mut(&cookie);
                chunk(entry.ok_or_else(|| broken("chunk of no request"))?, kind, &body)?;
                if flags & 1 != 0
                    && let Some(pending) = waiting.requests.remove(&cookie)
                {
                    finish(pending);
                }
            }
            magic => return Err(broken(format!("reply magic {magic:#x}"))),
        }
    }
}

fn finish(pending: Pending) {
    let outcome = match pending.error {
        Some(number) => Err(NbdError::Errno(number)),
        None if pending.missing != 0 => Err(broken("a read was not answered in full")),
        None => Ok(pending.data),
    };
    // The requester may have given up; that is its business.
    let _ = pending.reply.send(outcome);
}

fn chunk(pending: &mut Pending, kind: u16, body: &[u8]) -> Result<(), NbdError> {
    let place = |offset: u64, length: usize| -> Result<std::ops::Range<usize>, NbdError> {
        let start =
            offset.checked_sub(pending.offset).ok_or_else(|| broken("chunk before the read"))? as usize;
        let end = start.checked_add(length).filter(|end| *end <= pending.data.len());
        end.map(|end| start..end).ok_or_else(|| broken("chunk beyond the read"))
    };
    let number = |bytes: &[u8]| bytes.iter().fold(0u64, |sum, byte| (sum << 8) | u64::from(*byte));
    match kind {
        0 if body.is_empty() => {}
        1 if body.len() > 8 => {
            let range = place(number(&body[..8]), body.len() - 8)?;
            pending.missing = pending.missing.checked_sub(range.len()).ok_or_else(|| broken("read twice"))?;
            pending.data[range].copy_from_slice(&body[8..]);
        }
        2 if body.len() == 12 => {
            let range = place(number(&body[..8]), number(&body[8..]) as usize)?;
            pending.missing = pending.missing.checked_sub(range.len()).ok_or_else(|| broken("read twice"))?;
            pending.data[range].fill(0);
        }
        kind if kind & (1 << 15) != 0 && body.len() >= 6 => pending.error = Some(number(&body[..4]) as u32),
        kind => return Err(broken(format!("chunk of type {kind} with {} bytes", body.len()))),
    }
    Ok(())
}
