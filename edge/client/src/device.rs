//! The handle of an attached disk.

use crate::inbox::Inbox;
pub use crate::ledger::Counters;
use crate::ledger::Ledger;
use crate::link::Link;
use crate::pump;
use crate::transport::Dial;
use crate::wire::{Granted, Mode, Op, Outcome, ToServer};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use common::blocking::{self, Lookout};
use common::{BlockDevice, Clock, Epoch, Error, Extent, Geometry, Result};
use parking_lot::Mutex;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How a disk is attached, and how patient its client is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Who asks, as people call it: told to others that are refused.
    pub client: String,
    /// The name of the router on behalf of whose clients this asks; empty: none.
    pub via: String,
    /// Who else may be attached.
    pub mode: Mode,
    /// The attachment of a process before this one, to be taken over without waiting for its lease; `None`: one
    /// is drawn. What that process had not flushed may be gone: flushes fail if it could be.
    pub resume: Option<u128>,
    /// How long a request may take, all attempts together, before it fails; zero: for ever.
    pub deadline: Duration,
    /// How long opening may take.
    pub open: Duration,
    /// A quiet connection is asked for a sign of life this often.
    pub heartbeat: Duration,
    /// A router that gives no sign for this long is left.
    pub timeout: Duration,
    /// Pause after all routers were tried in vain; it doubles up to ten times as much.
    pub pause: Duration,
    /// Bytes of answered writes that are kept until a flush covers them.
    pub keep: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            client: format!("process {}", std::process::id()),
            via: String::new(),
            mode: Mode::Exclusive,
            resume: None,
            deadline: Duration::from_secs(120),
            open: Duration::from_secs(30),
            heartbeat: Duration::from_millis(500),
            timeout: Duration::from_secs(2),
            pause: Duration::from_millis(50),
            keep: 64 << 20,
        }
    }
}

/// Where a device is attached, or was last.
#[derive(Debug, Clone)]
pub struct Home {
    /// The name of the router that answers.
    pub router: String,
    /// Its address.
    pub address: String,
    /// What it said.
    pub granted: Granted,
}

/// What a device and its task share.
pub(crate) struct Core {
    pub options: Options,
    pub export: String,
    pub attachment: u128,
    pub clock: Arc<dyn Clock>,
    pub link: Link,
    pub inbox: Inbox,
    pub ledger: Mutex<Ledger>,
    pub home: Mutex<Option<Home>>,
    pub closing: AtomicBool,
}

impl Lookout for Core {
    fn look(&self) {
        if self.inbox.look(self) {
            self.link.wake();
        }
    }

    fn leave(&self) {
        if self.inbox.loan.recall() {
            self.link.wake();
        }
    }
}

impl Core {
    /// The caller waits for what the router will say.
    fn awaited(self: &Arc<Self>) {
        if blocking::is_allowed() {
            self.inbox.loan.expected();
            blocking::expect(self.clone());
        } else {
            self.leave();
        }
    }

    /// Sends all that may be sent now.
    pub fn dispatch(&self, ledger: &mut Ledger) {
        ledger.dispatch(|request| self.link.frame(|buffer| request.put(buffer, pump::CHANNEL)));
    }
}

/// A disk of a storage router. Requests are sent in the order in which they are asked for, and answered in any.
///
/// Callers see latency, not errors, while routers die and volumes move: until [`Options::deadline`].
pub struct Device {
    core: Arc<Core>,
    task: Mutex<Option<JoinHandle<()>>>,
}

/// A request that was sent, or waits to be; a future of what comes of it. Dropped, the request is done or is not.
pub struct Pending {
    core: Arc<Core>,
    sequence: u64,
    done: bool,
}

impl Future for Pending {
    type Output = Result<Outcome>;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = self.core.ledger.lock().poll(self.sequence, cx.waker());
        match answer {
            Some(answer) => {
                self.done = true;
                Poll::Ready(answer)
            }
            None => Poll::Pending,
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.done {
            self.core.ledger.lock().abandon(self.sequence);
        }
    }
}

impl Device {
    /// Attaches `export` (`vpool/vdisk` or `vpool/vdisk@snapshot`) by way of any of the routers at `addresses`, in
    /// a tokio runtime, which must live as long as the device.
    ///
    /// # Errors
    /// `Conflict` names who holds the disk; `NotFound`, `Denied` and the like as a router says them; `Unavailable`
    /// when no router answered in time.
    pub async fn open(
        addresses: Vec<String>,
        export: &str,
        options: Options,
        dial: Arc<dyn Dial>,
        clock: Arc<dyn Clock>,
    ) -> Result<Device> {
        if addresses.is_empty() {
            return Err(Error::invalid("there is no address of a router"));
        }
        let attachment = options.resume.unwrap_or_else(|| clock.random_u128());
        let ledger = Ledger::new(options.mode, options.keep, options.resume.is_some());
        let core = Arc::new(Core {
            attachment,
            export: export.to_owned(),
            clock,
            link: Link::new(),
            inbox: Inbox::default(),
            ledger: Mutex::new(ledger),
            home: Mutex::default(),
            closing: AtomicBool::new(false),
            options,
        });
        let (opened, mut open) = watch::channel(None);
        let task = tokio::spawn(pump::run(core.clone(), dial, addresses, opened));
        let device = Device { core, task: Mutex::new(Some(task)) };
        let answer = open.wait_for(Option::is_some).await.map(|answer| answer.clone());
        match answer {
            Ok(Some(Err(error))) => Err(error),
            Ok(_) => Ok(device),
            Err(_) => Err(Error::internal("the client's task ended")),
        }
    }

    /// Asks for something: it is sent before this returns, if it may be. No task need poll it for that.
    ///
    /// # Errors
    /// Come with the answer.
    pub fn submit(&self, op: Op) -> Pending {
        let core = &self.core;
        let deadline = core.options.deadline;
        let deadline = (!deadline.is_zero()).then(|| core.clock.now() + deadline);
        let sequence = {
            let mut ledger = core.ledger.lock();
            let sequence = ledger.submit(op, deadline);
            core.dispatch(&mut ledger);
            sequence
        };
        core.link.drive();
        core.awaited();
        Pending { core: core.clone(), sequence, done: false }
    }

    /// Gives up the attachment, after what was asked for before. A flush is the caller's business.
    pub async fn close(&self) {
        self.core.closing.store(true, Ordering::Release);
        self.core.inbox.loan.recall();
        self.core.link.wake();
        let task = self.task.lock().take();
        if let Some(task) = task {
            let _ = task.await;
        }
    }

    /// Whether the DTL of the volume was in sync in the newest reply.
    pub fn in_sync(&self) -> bool {
        self.core.ledger.lock().in_sync()
    }

    /// The epoch of the owner that answers.
    pub fn epoch(&self) -> Epoch {
        self.core.ledger.lock().epoch()
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        self.core.ledger.lock().counters()
    }

    /// Where it is attached.
    pub fn home(&self) -> Option<Home> {
        self.core.home.lock().clone()
    }

    /// Why it is of no use any more: its attachment was revoked, or it was closed.
    pub fn ended(&self) -> Option<Error> {
        self.core.ledger.lock().dead().cloned()
    }

    /// The attachment's number, for [`Options::resume`] of a process to come.
    pub fn attachment(&self) -> u128 {
        self.core.attachment
    }

    async fn done(&self, op: Op) -> Result<()> {
        self.submit(op).await.map(|_| ())
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if let Some(task) = self.task.lock().take() {
            task.abort();
        }
        self.core.ledger.lock().die(Error::unavailable("the device was closed"));
        self.core.link.disconnect();
    }
}

/// Requests of any length: what is larger than the largest payload goes in parts, all at a time.
#[async_trait]
impl BlockDevice for Device {
    fn geometry(&self) -> Geometry {
        let nothing =
            Geometry { size: 0, min_block: 1, preferred_block: 4096, max_payload: 1 << 20, read_only: true };
        self.core.ledger.lock().geometry().unwrap_or(nothing)
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Bytes> {
        let most = self.geometry().max_payload;
        if len <= most {
            return data(self.submit(Op::Read { offset, len }).await?, len);
        }
        let parts: Vec<(u32, Pending)> = (0..len)
            .step_by(most as usize)
            .map(|from| {
                let len = most.min(len - from);
                (len, self.submit(Op::Read { offset: offset.saturating_add(u64::from(from)), len }))
            })
            .collect();
        let mut all = BytesMut::with_capacity(len as usize);
        for (len, part) in parts {
            all.extend_from_slice(&data(part.await?, len)?);
        }
        Ok(all.freeze())
    }

    async fn write(&self, offset: u64, bytes: Bytes, fua: bool) -> Result<()> {
        let most = self.geometry().max_payload as usize;
        if bytes.len() <= most {
            return self.done(Op::Write { offset, data: bytes, fua }).await;
        }
        let parts: Vec<Pending> = (0..bytes.len())
            .step_by(most)
            .map(|from| {
                let data = bytes.slice(from..bytes.len().min(from + most));
                self.submit(Op::Write { offset: offset.saturating_add(from as u64), data, fua })
            })
            .collect();
        for part in parts {
            part.await?;
        }
        Ok(())
    }

    async fn write_zeroes(&self, offset: u64, len: u64, hole: bool, fua: bool) -> Result<()> {
        self.done(Op::Zeroes { offset, len, hole, fua }).await
    }

    async fn discard(&self, offset: u64, len: u64, fua: bool) -> Result<()> {
        self.done(Op::Discard { offset, len, fua }).await
    }

    async fn flush(&self) -> Result<()> {
        self.done(Op::Flush).await
    }

    async fn extents(&self, offset: u64, len: u64) -> Result<Vec<Extent>> {
        match self.submit(Op::Extents { offset, len }).await? {
            Outcome::Extents(extents) if !extents.is_empty() => Ok(extents),
            _ => Err(Error::internal("the router answered something else")),
        }
    }

    async fn prefetch(&self, offset: u64, len: u64) -> Result<()> {
        self.done(Op::Prefetch { offset, len }).await
    }
}

fn data(outcome: Outcome, len: u32) -> Result<Bytes> {
    match outcome {
        Outcome::Data(data) if data.len() == len as usize => Ok(data),
        _ => Err(Error::internal("the router answered something else")),
    }
}

/// What the task says before it ends.
pub(crate) fn goodbye(core: &Core) {
    core.link.frame(|buffer| ToServer::Detach.put(buffer, pump::CHANNEL));
    core.link.drive();
}
