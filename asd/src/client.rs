//! The client of a daemon: one connection, many requests under way, made anew when it breaks.
//!
//! A request whose answer did not come is `Unavailable`: whether it was done is unknown, and asking again is safe. While
//! there is no connection and the last attempt failed, requests fail at once: who can ask another disk need not wait.

mod pump;

use crate::outbox::Outbox;
use crate::transport::Dial;
use crate::wire::{Reply, Request, encode_request};
use async_trait::async_trait;
use bytes::Bytes;
use common::osd::{BackendId, Call, Changes, KeyPage, KeyRange, OsdId, OsdStatus, Value, Verified};
use common::{Clock, Error, Osd, Result};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinHandle;

/// How patient a client is, and how much it has under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// A quiet connection is asked for a sign of life this often.
    pub heartbeat: Duration,
    /// A daemon that gives no sign for this long is away.
    pub timeout: Duration,
    /// Connecting may take this long, TLS and all.
    pub connect: Duration,
    /// Pause between attempts to connect.
    pub reconnect: Duration,
    /// Bytes that wait to be sent; who comes then is turned away.
    pub queue: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            heartbeat: Duration::from_millis(500),
            timeout: Duration::from_secs(5),
            connect: Duration::from_secs(2),
            reconnect: Duration::from_millis(200),
            queue: 256 << 20,
        }
    }
}

/// The connection.
#[derive(Debug, Clone)]
enum Link {
    /// It is being made for the first time since it was there.
    Connecting,
    Up(OsdId),
    /// It could not be made: why.
    Down(Error),
}

/// What waits to be sent.
#[derive(Default)]
struct Queue {
    out: Outbox<()>,
    bytes: usize,
    open: bool,
}

struct Shared {
    dial: Arc<dyn Dial>,
    osd: Option<OsdId>,
    backend: Option<BackendId>,
    settings: Settings,
    clock: Arc<dyn Clock>,
    queue: Mutex<Queue>,
    wake: Notify,
    calls: Mutex<HashMap<u32, oneshot::Sender<Reply>>>,
    next: AtomicU32,
    link: watch::Sender<Link>,
}

/// A daemon that is reached over the network.
pub struct AsdClient {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Drop for AsdClient {
    fn drop(&mut self) {
        self.task.abort();
        self.shared.disconnected();
    }
}

fn broken() -> Error {
    Error::unavailable("the connection to the storage daemon broke: what it did is unknown")
}

/// A place among those who wait, given back however the waiting ends.
struct Waiting<'s>(&'s Shared, u32);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.calls.lock().remove(&self.1);
    }
}

impl Shared {
    /// Everybody who waits hears that there will be no answer.
    fn disconnected(&self) {
        *self.queue.lock() = Queue::default();
        self.calls.lock().clear();
    }

    fn send(&self, frame: Vec<Bytes>) -> Result<()> {
        let bytes = frame.iter().map(Bytes::len).sum::<usize>();
        let mut queue = self.queue.lock();
        if !queue.open {
            return Err(broken());
        }
        if queue.bytes > 0 && queue.bytes + bytes > self.settings.queue {
            return Err(Error::unavailable("too much waits to be sent to this storage daemon"));
        }
        queue.bytes += bytes;
        queue.out.push(frame, None);
        drop(queue);
        self.wake.notify_one();
        Ok(())
    }

    /// Waits for a connection, unless there is none to be had.
    async fn connected(&self) -> Result<()> {
        let mut link = self.link.subscribe();
        let settled = link.wait_for(|link| !matches!(link, Link::Connecting)).await;
        match settled.as_deref() {
            Ok(Link::Up(_)) => Ok(()),
            Ok(Link::Down(error)) => Err(error.clone()),
            _ => Err(broken()),
        }
    }
}

impl AsdClient {
    /// A client of the disk `osd` (none: whichever answers, to look at it), for `backend`. It connects by itself, again
    /// and again.
    pub fn new(
        dial: Arc<dyn Dial>,
        osd: Option<OsdId>,
        backend: Option<BackendId>,
        settings: Settings,
        clock: Arc<dyn Clock>,
    ) -> AsdClient {
        let shared = Arc::new(Shared {
            dial,
            osd,
            backend,
            settings,
            clock,
            queue: Mutex::default(),
            wake: Notify::new(),
            calls: Mutex::default(),
            next: AtomicU32::new(1),
            link: watch::Sender::new(Link::Connecting),
        });
        let task = tokio::spawn(pump::run(shared.clone()));
        AsdClient { shared, task }
    }

    async fn ask(&self, call: Call, request: Request) -> Result<Reply> {
        let shared = &self.shared;
        let begin = shared.clock.now();
        let answered = async {
            shared.connected().await?;
            let (sender, answer) = oneshot::channel();
            let id = shared.next.fetch_add(1, Ordering::Relaxed);
            shared.calls.lock().insert(id, sender);
            let _waiting = Waiting(shared, id);
            let left = call.timeout.saturating_sub(shared.clock.now().saturating_sub(begin));
            shared.send(encode_request(&request, id, Call { timeout: left, ..call }))?;
            drop(request);
            match answer.await {
                Ok(Reply::Failed(kind, message)) => Err(Error::new(kind, message)),
                Ok(reply) => Ok(reply),
                Err(_) => Err(broken()),
            }
        };
        tokio::select! {
            biased;
            answer = answered => answer,
            () = shared.clock.sleep(call.timeout) => {
                Err(Error::unavailable("the storage daemon gave no answer in time: what it did is unknown"))
            }
        }
        .map_err(|e| e.context(self.describe()))
    }
}

fn unexpected<T>(_: Reply) -> Result<T> {
    Err(Error::internal("the storage daemon answered something else than it was asked"))
}

/// A value that came, if it is the one that was stored.
fn arrived(value: Option<Value>) -> Result<Option<Value>> {
    match value {
        Some(value) if !value.is_whole() => Err(Error::corrupt("a value is not the one that was stored")),
        other => Ok(other),
    }
}

#[async_trait]
impl Osd for AsdClient {
    async fn apply(&self, call: Call, changes: Changes) -> Result<()> {
        changes.check()?;
        match self.ask(call, Request::Apply(changes)).await? {
            Reply::Done => Ok(()),
            other => unexpected(other),
        }
    }

    async fn get(&self, call: Call, key: &[u8]) -> Result<Option<Value>> {
        common::osd::check_key(key)?;
        match self.ask(call, Request::Get(Bytes::copy_from_slice(key))).await? {
            Reply::Value(value) => arrived(value),
            other => unexpected(other),
        }
    }

    async fn get_range(&self, call: Call, key: &[u8], range: Range<u64>) -> Result<Option<Bytes>> {
        common::osd::check_key(key)?;
        let len = range.end.saturating_sub(range.start);
        match self.ask(call, Request::GetRange(Bytes::copy_from_slice(key), range)).await? {
            Reply::Bytes(Some(bytes)) if bytes.len() as u64 != len => unexpected(Reply::Done),
            Reply::Bytes(bytes) => Ok(bytes),
            other => unexpected(other),
        }
    }

    async fn multi_get(&self, call: Call, keys: &[Bytes]) -> Result<Vec<Option<Value>>> {
        if keys.len() > common::osd::MAX_KEYS {
            return Err(Error::invalid(format!(
                "{} keys in one request: at most {}",
                keys.len(),
                common::osd::MAX_KEYS
            )));
        }
        keys.iter().try_for_each(|key| common::osd::check_key(key))?;
        match self.ask(call, Request::MultiGet(keys.to_vec())).await? {
            Reply::Values(values) if values.len() == keys.len() => values.into_iter().map(arrived).collect(),
            other => unexpected(other),
        }
    }

    async fn range(&self, call: Call, range: KeyRange, limit: usize) -> Result<KeyPage> {
        let limit = u32::try_from(limit).unwrap_or(u32::MAX);
        match self.ask(call, Request::Range(range, limit)).await? {
            Reply::Page(page) => Ok(page),
            other => unexpected(other),
        }
    }

    async fn verify(&self, call: Call, range: KeyRange, limit: usize) -> Result<Verified> {
        let limit = u32::try_from(limit).unwrap_or(u32::MAX);
        match self.ask(call, Request::Verify(range, limit)).await? {
            Reply::Verified(verified) => Ok(verified),
            other => unexpected(other),
        }
    }

    async fn status(&self, call: Call) -> Result<OsdStatus> {
        match self.ask(call, Request::Status).await? {
            Reply::Status(status) => Ok(*status),
            other => unexpected(other),
        }
    }

    async fn claim(&self, call: Call, from: Option<BackendId>, to: Option<BackendId>) -> Result<()> {
        match self.ask(call, Request::Claim(from, to)).await? {
            Reply::Done => Ok(()),
            other => unexpected(other),
        }
    }

    fn describe(&self) -> String {
        let at = self.shared.dial.describe();
        let connected = match &*self.shared.link.borrow() {
            Link::Up(osd) => Some(*osd),
            _ => None,
        };
        match self.shared.osd.or(connected) {
            Some(osd) => format!("OSD {osd} at {at}"),
            None => format!("the OSD at {at}"),
        }
    }
}
