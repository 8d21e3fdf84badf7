//! The owner's side: one connection to a service, shared by the logs of all volumes that are replicated there.
//!
//! | room | what |
//! |---|---|
//! | `link` | what waits to be sent, and sending it from wherever something was queued |
//! | `track` | what a log was sent and has confirmed; sans-I/O |
//! | `replica` | the handle of one log |
//! | `inbox` | what comes, and who receives it |
//! | `pump` | the task: connects, resends, notices death |
//! | `calls` | requests with an answer: seal, status, read, forget |
//!
//! A write costs its encoding and, when nobody is sending, one system call: no task is woken, nothing allocated as a
//! rule. Where an entry can't be sent at once (no connection, a full window, one of before is missing), nothing is
//! queued: the task reads it again from [`Source`].
//!
//! Does not own: what may be acknowledged ([`crate::owner`]), the journal.

mod calls;
mod inbox;
mod link;
mod pump;
mod replica;
mod track;

pub use calls::Reading;
pub use replica::Replica;

use crate::entry::Entry;
pub use crate::owner::LinkState;
use crate::registration::Incarnation;
use crate::transport::Dial;
use async_trait::async_trait;
use calls::Calls;
use common::blocking::{self, Lookout};
use common::{Clock, Epoch, Lsn, Result, VolumeId};
use inbox::Inbox;
use link::Link;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use track::Track;

/// How patient a client is, and how much it has under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// A quiet connection is asked for a sign of life this often.
    pub heartbeat: Duration,
    /// A service that gives no sign for this long is dead.
    pub timeout: Duration,
    /// A request of a takeover, and the next entry of a read, may take this long. A service that is alive is waited for
    /// longer than one that gives no sign.
    pub answer: Duration,
    /// Pause between attempts to connect.
    pub reconnect: Duration,
    /// Bytes that wait to be sent over the connection; what is more is read again later.
    pub queue: usize,
    /// Bytes that are read from a [`Source`] at a time.
    pub chunk: usize,
    /// Bytes of a read that may be under way.
    pub read_ahead: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            heartbeat: Duration::from_millis(500),
            timeout: Duration::from_millis(1500),
            answer: Duration::from_secs(5),
            reconnect: Duration::from_millis(200),
            queue: 8 << 20,
            chunk: 512 << 10,
            read_ahead: 2 << 20,
        }
    }
}

/// What a [`Source`] has.
#[derive(Debug, Clone, Default)]
pub struct Chunk {
    /// The backend has everything up to here; what is not above it need not be sent.
    pub committed: Lsn,
    /// Entries from the first one asked for, or from behind `committed`, on; without a gap.
    pub entries: Vec<Entry>,
}

/// Reads the owner's log again, for what could not be sent at once.
#[async_trait]
pub trait Source: Send + Sync {
    /// Entries from `from` on, about `max` bytes of them. Everything that was given to [`Replica::append`] and is not
    /// committed can be read.
    async fn read(&self, from: Lsn, max: usize) -> Result<Chunk>;
}

/// How a log is doing. LSNs are cumulative, and of this incarnation only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The log; `None` until one was made.
    pub incarnation: Option<Incarnation>,
    /// Everything up to here is in the log.
    pub confirmed: Lsn,
    /// Everything up to here survives a loss of power there.
    pub flushed: Lsn,
    /// `Live` is in sync, `CatchingUp` is being sent what it misses, `Away` is degraded, `Lost` is for ever.
    pub state: LinkState,
}

impl Default for Progress {
    fn default() -> Self {
        Progress { incarnation: None, confirmed: Lsn(0), flushed: Lsn(0), state: LinkState::CatchingUp }
    }
}

/// Who hears how a log is doing, from the client's task. Must not block.
pub trait Sink: Send + Sync {
    /// Called after each change; only the last call counts.
    fn progress(&self, progress: &Progress);
}

/// A sink that can be waited on.
impl Sink for watch::Sender<Progress> {
    fn progress(&self, progress: &Progress) {
        self.send_replace(*progress);
    }
}

/// What an owner's log at a service begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    /// Whose log.
    pub volume: VolumeId,
    /// The owner's epoch.
    pub epoch: Epoch,
    /// Raised by the owner with each log that it wants for this volume and epoch at this service.
    pub serial: u64,
    /// The backend has everything up to here.
    pub committed: Lsn,
    /// What the volume has given out so far: everything above `committed` is to be sent.
    pub accepted: Lsn,
}

impl Shared {
    /// The caller waits for what the service will say.
    fn awaited(self: &Arc<Self>) {
        if blocking::is_allowed() {
            self.inbox.loan.expected();
            blocking::expect(self.clone());
        } else {
            self.leave();
        }
    }
}

impl Lookout for Shared {
    fn look(&self) {
        if self.inbox.look(self) {
            self.link.wake();
        }
        // What was said may have to be answered.
        self.link.drive_waiting();
    }

    fn leave(&self) {
        if self.inbox.loan.recall() {
            self.link.wake();
        }
    }
}

/// A connection to one service, made and kept by a task of its own.
pub struct Client {
    shared: Arc<Shared>,
    task: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    settings: Settings,
    clock: Arc<dyn Clock>,
    link: Link,
    inbox: Inbox,
    calls: Calls,
    /// Replicas that the task has not taken over yet.
    new: Mutex<Vec<Arc<replica::Inner>>>,
    closed: AtomicBool,
    connected: watch::Sender<bool>,
}

impl Client {
    /// A client of the service that `dial` reaches. It connects by itself, again and again.
    pub fn new(dial: Arc<dyn Dial>, settings: Settings, clock: Arc<dyn Clock>) -> Client {
        let shared = Arc::new(Shared {
            settings,
            clock,
            link: Link::new(settings.queue),
            inbox: Inbox::default(),
            calls: Calls::default(),
            new: Mutex::default(),
            closed: AtomicBool::new(false),
            connected: watch::Sender::new(false),
        });
        let task = tokio::spawn(pump::run(shared.clone(), dial));
        Client { shared, task: Mutex::new(Some(task)) }
    }

    /// A log at this service. It is made when there is a connection; `sink` hears what becomes of it.
    pub fn replica(&self, start: Start, source: Arc<dyn Source>, sink: Arc<dyn Sink>) -> Replica {
        let inner = Arc::new(replica::Inner::new(start, source, sink));
        self.shared.new.lock().push(inner.clone());
        self.shared.link.wake();
        Replica::new(inner, self.shared.clone())
    }

    /// Whether there is a connection.
    pub fn connected(&self) -> watch::Receiver<bool> {
        self.shared.connected.subscribe()
    }

    /// Ends the task. Replicas hear nothing any more.
    pub async fn close(&self) {
        self.shared.closed.store(true, Ordering::Release);
        self.shared.link.wake();
        let task = self.task.lock().take();
        if let Some(task) = task {
            let _ = task.await;
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Release);
        if let Some(task) = self.task.lock().take() {
            task.abort();
        }
        self.shared.link.disconnect();
        self.shared.calls.fail_all();
    }
}
