//! Who connects: members with messages, clients with requests.

use super::instance::Handle;
use super::message::PeerMessage;
use super::request::{Request, Response};
use crate::machine::MAX_TXN_BYTES;
use crate::transport::frame::{Hello, MAX_FRAME, greet, greeted, read, write};
use crate::transport::{Stream, Tls, accept};
use common::{Clock, Error, Result};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncWriteExt, BufReader, BufWriter};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{JoinHandle, JoinSet};

/// Who connects says who he is within this time.
const PATIENCE: Duration = Duration::from_secs(10);
/// When no connection could be accepted.
const PAUSE: Duration = Duration::from_millis(100);
/// Connections at a time; the next one waits.
const CONNECTIONS: usize = 4096;
/// Requests of one connection that are answered at a time; the next one is not read.
const REQUESTS: usize = 512;
/// Bytes of all requests that wait for their answer; the next one waits in its connection.
const WAITING_BYTES: usize = 256 << 20;
/// The longest request: a transaction and its frame.
const MAX_REQUEST: usize = MAX_TXN_BYTES + (2 << 20);
/// A part of a response ends behind this many bytes.
const PART_BYTES: usize = 4 << 20;

/// Accepts connections until it is dropped.
pub(super) struct Server {
    task: JoinHandle<()>,
}

#[derive(Clone)]
struct Host {
    group: u128,
    member: u64,
    tls: Option<Tls>,
    handle: Handle,
    clock: Arc<dyn Clock>,
    /// Room for requests that wait for their answer, of all connections.
    bytes: Arc<Semaphore>,
}

impl Server {
    pub fn start(
        listener: TcpListener,
        tls: Option<Tls>,
        identity: (u128, u64),
        handle: Handle,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let (group, member) = identity;
        let bytes = Arc::new(Semaphore::new(WAITING_BYTES));
        let host = Host { group, member, tls, handle, clock, bytes };
        Self { task: tokio::spawn(listen(listener, host)) }
    }

    /// Ends, with all connections.
    pub async fn end(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn listen(listener: TcpListener, host: Host) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let mut tasks = JoinSet::new();
    loop {
        let next = async {
            let permit = room.clone().acquire_owned().await.ok()?;
            Some((permit, listener.accept().await))
        };
        // Whose member has stopped is not to be talked to: its clients look for another one when their connections end.
        let next = tokio::select! {
            next = next => next,
            () = host.handle.stopped() => return,
        };
        let Some((permit, accepted)) = next else { return };
        while tasks.try_join_next().is_some() {}
        match accepted {
            Ok((stream, from)) => {
                let host = host.clone();
                tasks.spawn(async move {
                    if let Err(error) = host.serve(stream).await {
                        tracing::debug!(%from, %error, "a connection to the registry ended");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                // Out of files, or one that broke at once: others have to close before it gets better.
                tracing::warn!(%error, "a connection to the registry was not accepted");
                host.clock.sleep(PAUSE).await;
            }
        }
    }
}

impl Host {
    async fn serve(&self, stream: TcpStream) -> Result<()> {
        let introduce = async {
            let mut stream = accept(stream, self.tls.as_ref()).await?;
            let hello = greeted(&mut stream).await?;
            Ok::<_, Error>((stream, hello))
        };
        let (mut stream, hello) = tokio::select! {
            introduced = introduce => introduced?,
            () = self.clock.sleep(PATIENCE) => return Err(Error::unavailable("nobody introduced himself")),
        };
        let (group, peer) = match hello {
            Hello::Peer { group, from, to, address } if to == self.member => (group, Some((from, address))),
            Hello::Client { group } => (if group == 0 { self.group } else { group }, None),
            other => return Err(Error::invalid(format!("{other:?} is not for member {}", self.member))),
        };
        // Who came to the wrong one learns it from the answer.
        greet(&mut stream, Hello::Welcome { group: self.group, member: self.member }).await?;
        if group != self.group {
            return Err(Error::invalid(format!(
                "somebody of group {group:032x} came to group {:032x}",
                self.group
            )));
        }
        match peer {
            Some((from, address)) => {
                self.handle.heard_of(from, address).await?;
                self.hear(from, stream).await
            }
            None => self.answer(stream).await,
        }
    }

    async fn hear(&self, from: u64, stream: Box<dyn Stream>) -> Result<()> {
        let mut stream = BufReader::with_capacity(64 << 10, stream);
        while let Some(bytes) = read(&mut stream, MAX_FRAME).await? {
            self.handle.peer(from, PeerMessage::decode(bytes)?).await?;
        }
        Ok(())
    }

    async fn answer(&self, stream: Box<dyn Stream>) -> Result<()> {
        let (reader, writer) = tokio::io::split(stream);
        let mut reader = BufReader::with_capacity(64 << 10, reader);
        let (responses, queue) = mpsc::channel::<(u64, Response)>(REQUESTS);
        let mut tasks = JoinSet::new();
        tasks.spawn(write_responses(writer, queue));
        let room = Arc::new(Semaphore::new(REQUESTS));
        while let Some(bytes) = read(&mut reader, MAX_REQUEST).await? {
            let Some((number, body)) = split_number(&bytes) else {
                return Err(Error::corrupt("a request without its number came"));
            };
            let request = match Request::decode(body) {
                Ok(request) => request,
                Err(error) => {
                    let _ = responses.send((number, Response::failed(&error))).await;
                    continue;
                }
            };
            let Ok(permit) = room.clone().acquire_owned().await else { return Ok(()) };
            let size = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            let Ok(held) = self.bytes.clone().acquire_many_owned(size).await else { return Ok(()) };
            let (handle, responses) = (self.handle.clone(), responses.clone());
            while tasks.try_join_next().is_some() {}
            tasks.spawn(async move {
                let response = handle.call(request).await.unwrap_or_else(|e| Response::failed(&e));
                drop(held);
                let _ = responses.send((number, response)).await;
                drop(permit);
            });
        }
        Ok(())
    }
}

/// The number in front of a request or response, and the rest.
pub(crate) fn split_number(bytes: &bytes::Bytes) -> Option<(u64, bytes::Bytes)> {
    let number = bytes.first_chunk::<8>()?;
    Some((u64::from_le_bytes(*number), bytes.slice(8..)))
}

async fn write_responses(
    writer: tokio::io::WriteHalf<Box<dyn Stream>>,
    mut queue: mpsc::Receiver<(u64, Response)>,
) {
    let mut writer = BufWriter::with_capacity(64 << 10, writer);
    while let Some((number, response)) = queue.recv().await {
        for part in response.encode(PART_BYTES) {
            if write(&mut writer, &[&number.to_le_bytes(), &part]).await.is_err() {
                return;
            }
        }
        if queue.is_empty() && writer.flush().await.is_err() {
            return;
        }
    }
}
