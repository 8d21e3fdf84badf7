//! Requests and responses on one connection, any number at a time.

use crate::machine::Page;
use crate::node::request::{Request, Response};
use crate::node::server::split_number;
use crate::transport::frame::{Hello, MAX_FRAME, greet, greeted, read, write};
use crate::transport::{Stream, connect};
use common::{Error, Result};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::io::{AsyncWriteExt, BufReader, BufWriter, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

/// Requests that wait to be written; the next one waits for room.
const QUEUE: usize = 256;

type Reply = oneshot::Sender<Response>;

#[derive(Default)]
struct Pending {
    next: u64,
    replies: HashMap<u64, (Reply, Option<Page>)>,
    broken: bool,
}

/// A connection to a member. It breaks once, and is thrown away then.
pub(super) struct Connection {
    requests: mpsc::Sender<(u64, bytes::Bytes)>,
    pending: Arc<Mutex<Pending>>,
    group: u128,
    // Ends with the connection.
    _tasks: JoinSet<()>,
}

impl Connection {
    /// Connects to `address`, and checks that it is of the group.
    pub async fn open(address: &str, group: u128, tls: Option<&Arc<rustls::ClientConfig>>) -> Result<Self> {
        let mut stream = connect(address, tls).await?;
        greet(&mut stream, Hello::Client { group }).await?;
        let group = match greeted(&mut stream).await? {
            Hello::Welcome { group: theirs, .. } if group == 0 || group == theirs => theirs,
            other => {
                return Err(Error::invalid(format!(
                    "at {address} answers {other:?}, and group {group:032x} of the registry was looked for"
                )));
            }
        };
        let (reader, writer) = tokio::io::split(stream);
        let (requests, queue) = mpsc::channel(QUEUE);
        let pending = Arc::new(Mutex::new(Pending::default()));
        let mut tasks = JoinSet::new();
        tasks.spawn(send(writer, queue, pending.clone()));
        tasks.spawn(receive(reader, pending.clone()));
        Ok(Self { requests, pending, group, _tasks: tasks })
    }

    /// The group that answers.
    pub fn group(&self) -> u128 {
        self.group
    }

    pub fn is_broken(&self) -> bool {
        self.pending.lock().broken
    }

    /// Asks; an error means that no answer came, whatever became of the request.
    pub async fn call(&self, request: &Request) -> Result<Response> {
        let broke = || Error::unavailable("the connection broke");
        let (reply, response) = oneshot::channel();
        let number = {
            let mut pending = self.pending.lock();
            if pending.broken {
                return Err(broke());
            }
            pending.next += 1;
            let number = pending.next;
            pending.replies.insert(number, (reply, None));
            number
        };
        // Whoever stops waiting leaves nothing behind.
        let _forget = Forget { pending: &self.pending, number };
        self.requests.send((number, request.encode())).await.map_err(|_| broke())?;
        response.await.map_err(|_| broke())
    }
}

struct Forget<'a> {
    pending: &'a Mutex<Pending>,
    number: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.pending.lock().replies.remove(&self.number);
    }
}

fn fail(pending: &Mutex<Pending>) {
    let mut pending = pending.lock();
    pending.broken = true;
    pending.replies.clear();
}

async fn send(
    writer: WriteHalf<Box<dyn Stream>>,
    mut queue: mpsc::Receiver<(u64, bytes::Bytes)>,
    pending: Arc<Mutex<Pending>>,
) {
    let mut writer = BufWriter::with_capacity(64 << 10, writer);
    while let Some((number, request)) = queue.recv().await {
        let written = write(&mut writer, &[&number.to_le_bytes(), &request]).await;
        if written.is_err() || (queue.is_empty() && writer.flush().await.is_err()) {
            break;
        }
    }
    fail(&pending);
}

async fn receive(reader: ReadHalf<Box<dyn Stream>>, pending: Arc<Mutex<Pending>>) {
    let mut reader = BufReader::with_capacity(64 << 10, reader);
    while let Ok(Some(bytes)) = read(&mut reader, MAX_FRAME).await {
        let Some((number, body)) = split_number(&bytes) else { break };
        let Ok((response, goes_on)) = Response::decode(body) else { break };
        let mut pending = pending.lock();
        let Some((_, so_far)) = pending.replies.get_mut(&number) else { continue };
        let response = match (response, so_far.take()) {
            (Response::Page(page), Some(mut all)) => {
                all.pairs.extend(page.pairs);
                Response::Page(all)
            }
            (response, _) => response,
        };
        match response {
            Response::Page(page) if goes_on => *so_far = Some(page),
            response => {
                if let Some((reply, _)) = pending.replies.remove(&number) {
                    let _ = reply.send(response);
                }
            }
        }
    }
    fail(&pending);
}
