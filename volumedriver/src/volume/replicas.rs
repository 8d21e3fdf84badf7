//! The logs at peers: what is sent to them, and the task that does what their state calls for.
//!
//! A write is queued for each peer under the volume's lock, which gives the order, and sent without it, just before
//! the kernel is handed the same entries. What a peer confirms goes to the core, which accepts what both have. The task
//! carries out what [`dtl::owner`] asks for: proposals to the registry, new peers, letting go of old ones.
//!
//! Does not own: what may be acknowledged (`core`), the connections ([`Peers`]).

use super::Shared;
use crate::core::{Content, Core, TailEntry};
use crate::log::LogEntry;
use crate::replication::Peers;
use async_trait::async_trait;
use bytes::Bytes;
use common::{Clock, Error, Lsn, Name, Result, mutant};
use dtl::client::{Chunk, Client, LinkState, Progress, Replica, Sink, Source, Start};
use dtl::owner::{Action, Outcome};
use dtl::registration::{Holder, Tail};
use dtl::{Config, Entry, Mode, PeerLog};
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use parking_lot::{Mutex, RwLock};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// How often the state of the peers is looked at when nothing is heard of them.
const TICK: Duration = Duration::from_millis(400);
/// How long a log that was asked for may take to be made.
const MAKING: Duration = Duration::from_secs(2);
/// How long a node that did not make one is not asked again.
const SHUNNED: Duration = Duration::from_secs(5);
/// Times that an entry is looked up again because it was moved.
const READS: usize = 4;

/// A log at a peer, from the moment on that it was asked for.
struct Slot {
    node: Name,
    asked_at: Duration,
    replica: OnceLock<Replica>,
    /// Its name, once it was made.
    peer: OnceLock<PeerLog>,
    lost: AtomicBool,
}

/// See the module's head.
pub(crate) struct Replicas {
    peers: Arc<dyn Peers>,
    slots: RwLock<Vec<Arc<Slot>>>,
    /// Number of the next log that is asked for.
    serial: AtomicU64,
    /// Nodes that made no log when they were asked to, and until when they are left alone.
    shunned: Mutex<Vec<(Name, Duration)>>,
    /// Logs of earlier epochs that are needed until the backend has what they end with.
    tails: Mutex<Vec<Tail>>,
    wake: Notify,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Replicas {
    pub fn new(peers: Arc<dyn Peers>) -> Self {
        Self {
            peers,
            slots: RwLock::default(),
            serial: AtomicU64::new(1),
            shunned: Mutex::default(),
            tails: Mutex::default(),
            wake: Notify::new(),
            task: Mutex::default(),
        }
    }

    /// Queues an entry that was just given out; the caller holds the volume's lock.
    pub fn append(&self, core: &mut Core, entry: &LogEntry, clock: &dyn Clock) {
        let slots = self.slots.read();
        if slots.is_empty() {
            return;
        }
        core.sent(entry.lsn, clock.now());
        let entry = packable(entry);
        for replica in slots.iter().filter_map(|slot| slot.replica.get()) {
            replica.queue(&entry);
        }
    }

    /// Sends what is queued.
    pub fn drive(&self) {
        for replica in self.slots.read().iter().filter_map(|slot| slot.replica.get()) {
            replica.drive();
        }
    }

    /// Asks for everything up to `lsn` to survive at the peers.
    pub fn flush(&self, lsn: Lsn) {
        for replica in self.slots.read().iter().filter_map(|slot| slot.replica.get()) {
            replica.flush(lsn);
        }
    }

    /// The backend has everything up to `lsn`.
    pub fn committed(&self, mut lsn: Lsn) {
        if mutant::is_on("trimmed-before-the-backend-has-it") {
            lsn.0 += 8;
        }
        for replica in self.slots.read().iter().filter_map(|slot| slot.replica.get()) {
            replica.trim(lsn);
        }
        if self.tails.lock().iter().any(|tail| tail.last <= lsn) {
            self.wake.notify_one();
        }
    }

    /// Starts the task.
    pub fn start(&self, shared: &Arc<Shared>, tails: Vec<Tail>) {
        *self.tails.lock() = tails;
        *self.task.lock() = Some(tokio::spawn(run(Arc::downgrade(shared))));
    }

    /// The task looks at once.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    /// Ends the task, and sends nothing any more.
    pub fn stop(&self) {
        if let Some(task) = self.task.lock().take() {
            task.abort();
        }
        let slots = std::mem::take(&mut *self.slots.write());
        drop(slots);
    }

    /// Logs that are being made.
    fn in_the_making(&self, now: Duration) -> Vec<Name> {
        let fresh = |slot: &&Arc<Slot>| {
            slot.peer.get().is_none() && !slot.lost.load(Ordering::Acquire) && now < slot.asked_at + MAKING
        };
        self.slots.read().iter().filter(fresh).map(|slot| slot.node.clone()).collect()
    }

    /// Lets go of logs that were lost, or never made, before they had a name; their nodes are not asked again soon.
    fn drop_stillborn(&self, now: Duration) {
        let mut gone = Vec::new();
        let mut shunned = self.shunned.lock();
        shunned.retain(|(_, until)| *until > now);
        self.slots.write().retain(|slot| {
            let keep = slot.peer.get().is_some()
                || (!slot.lost.load(Ordering::Acquire) && now < slot.asked_at + MAKING);
            if !keep {
                shunned.push((slot.node.clone(), now + SHUNNED));
                gone.push(slot.clone());
            }
            keep
        });
    }

    /// Nodes that have just not made a log.
    fn shunned(&self) -> Vec<Name> {
        self.shunned.lock().iter().map(|(node, _)| node.clone()).collect()
    }

    /// Sends a log nothing any more. Of what it has, everything up to `unneeded` may go.
    fn release(&self, peer: &PeerLog, unneeded: Option<Lsn>) {
        let mut slots = self.slots.write();
        if let Some(at) = slots.iter().position(|slot| slot.peer.get() == Some(peer)) {
            let slot = slots.swap_remove(at);
            drop(slots);
            if let (Some(replica), Some(lsn)) = (slot.replica.get(), unneeded) {
                replica.trim(lsn);
            }
        }
    }

    fn flush_one(&self, peer: &PeerLog, lsn: Lsn) {
        let slots = self.slots.read();
        let slot = slots.iter().find(|slot| slot.peer.get() == Some(peer));
        if let Some(replica) = slot.and_then(|slot| slot.replica.get()) {
            replica.flush(lsn);
        }
    }
}

fn packable(entry: &LogEntry) -> Entry {
    Entry {
        volume: entry.volume,
        epoch: entry.epoch,
        lsn: entry.lsn,
        kind: entry.kind as u8,
        flags: 0,
        addr: entry.addr,
        count: entry.count,
        crcs: entry.crcs.clone(),
        payload: entry.data.clone(),
    }
}

/// The log of a volume, read again.
struct Log(Weak<Shared>);

#[async_trait]
impl Source for Log {
    async fn read(&self, from: Lsn, max: usize) -> Result<Chunk> {
        let shared = self.0.upgrade().ok_or_else(|| Error::unavailable("the volume is closed"))?;
        let mut tries = READS;
        loop {
            let (committed, tail) = shared.core.lock().tail(from, max);
            match contents(&shared, tail).await {
                Ok(entries) => return Ok(Chunk { committed, entries }),
                // What was moved meanwhile is found where it lies now; what was committed is not asked for again.
                Err(_) if tries > 1 => tries -= 1,
                Err(error) => return Err(error),
            }
        }
    }
}

async fn contents(shared: &Shared, tail: Vec<TailEntry>) -> Result<Vec<Entry>> {
    let mut entries = Vec::with_capacity(tail.len());
    for e in tail {
        let payload = match &e.content {
            Content::Memory(data) => data.clone(),
            Content::Journal(loc) => shared.read_journal(e.lsn, e.addr, loc, 0, &e.crcs).await?,
            Content::Nothing => Bytes::new(),
        };
        let TailEntry { volume, epoch, lsn, kind, addr, count, crcs, .. } = e;
        entries.push(Entry { volume, epoch, lsn, kind: kind as u8, flags: 0, addr, count, crcs, payload });
    }
    Ok(entries)
}

/// Hears how a log is doing.
struct Ear {
    shared: Weak<Shared>,
    slot: Weak<Slot>,
}

impl Sink for Ear {
    fn progress(&self, progress: &Progress) {
        let (Some(shared), Some(slot)) = (self.shared.upgrade(), self.slot.upgrade()) else { return };
        let Some(replicas) = &shared.replicas else { return };
        let Some(incarnation) = progress.incarnation else {
            if progress.state == LinkState::Lost {
                slot.lost.store(true, Ordering::Release);
                replicas.wake.notify_one();
            }
            return;
        };
        let now = shared.clock.now();
        let mut core = shared.core.lock();
        let before = core.replication().map(|config| config.config);
        let fresh = slot.peer.get().is_none();
        let peer = slot.peer.get_or_init(|| PeerLog { node: slot.node.clone(), incarnation });
        if fresh {
            core.joined(peer.clone(), now);
        }
        core.progress(peer, progress, now);
        let due = fresh || core.has_actions() || before != core.replication().map(|config| config.config);
        shared.advance(core);
        if due {
            replicas.wake.notify_one();
        }
    }
}

/// What the task waits for.
enum Done {
    Proposed(Config, Outcome),
    Recruited(Vec<(Name, Arc<Client>)>),
    Tails(Result<Vec<Tail>>),
}

/// Carries out what the state of the peers calls for, until the volume closes.
async fn run(shared: Weak<Shared>) {
    let mut jobs: FuturesUnordered<BoxFuture<'static, Done>> = FuturesUnordered::new();
    let (mut recruiting, mut dropping) = (false, false);
    let mut drop_tails_at = Duration::ZERO;
    loop {
        let Some(volume) = shared.upgrade() else { return };
        let Some(replicas) = &volume.replicas else { return };
        let now = volume.clock.now();
        replicas.drop_stillborn(now);
        let actions = {
            let mut core = volume.core.lock();
            if core.stopped().is_some() {
                return;
            }
            let actions = core.tick(now);
            volume.advance(core);
            actions
        };
        for action in actions {
            match action {
                Action::Propose { expect, new } => {
                    let (peers, id) = (replicas.peers.clone(), volume.id);
                    tracing::info!(volume = %id, status = ?new.status, peers = ?names(&new), config = new.config, "replication changes");
                    jobs.push(Box::pin(async move {
                        let outcome = peers.propose(id, expect, &new).await;
                        Done::Proposed(new, outcome)
                    }));
                }
                Action::Recruit { want, mut avoid } => {
                    let making = replicas.in_the_making(now);
                    let want = want.saturating_sub(making.len());
                    avoid.extend(making);
                    avoid.extend(replicas.shunned());
                    if want == 0 || std::mem::replace(&mut recruiting, true) {
                        continue;
                    }
                    let (peers, id) = (replicas.peers.clone(), volume.id);
                    jobs.push(Box::pin(
                        async move { Done::Recruited(peers.recruit(id, want, &avoid).await) },
                    ));
                }
                Action::Release(peer) => {
                    let unneeded = {
                        let core = volume.core.lock();
                        let names_none = |c: &Config| c.mode == Mode::None && c.peers.is_empty();
                        core.replication().is_some_and(names_none).then(|| core.assigned())
                    };
                    replicas.release(&peer, unneeded);
                }
                Action::Flush(peer, lsn) => replicas.flush_one(&peer, lsn),
                Action::Fenced => {
                    let why = format!("another router owns the volume; epoch {} is over", volume.epoch);
                    volume.stop(Error::fenced(why));
                    return;
                }
            }
        }
        let committed = volume.core.lock().frontiers().committed;
        if !dropping
            && now >= drop_tails_at
            && replicas.tails.lock().iter().any(|tail| tail.last <= committed)
        {
            dropping = true;
            jobs.push(Box::pin(drop_tails(volume.clone(), committed)));
        }
        let done = tokio::select! {
            biased;
            Some(done) = jobs.next() => Some(done),
            () = replicas.wake.notified() => None,
            () = volume.clock.sleep(TICK) => None,
        };
        match done {
            None => {}
            Some(Done::Proposed(config, outcome)) => {
                let mut core = volume.core.lock();
                core.proposed(&config, outcome, volume.clock.now());
                volume.advance(core);
            }
            Some(Done::Recruited(found)) => {
                recruiting = false;
                for (node, client) in found {
                    join(&volume, node, &client);
                }
            }
            Some(Done::Tails(left)) => {
                dropping = false;
                match left {
                    Ok(left) => *replicas.tails.lock() = left,
                    // A registry that refuses at once is not asked again at once.
                    Err(_) => drop_tails_at = volume.clock.now() + TICK,
                }
            }
        }
    }
}

fn names(config: &Config) -> Vec<&str> {
    config.peers.iter().map(|peer| peer.node.as_str()).collect()
}

/// A log at `node`: everything above `committed`, and from now on each entry as it is given out.
fn join(shared: &Arc<Shared>, node: Name, client: &Client) {
    let Some(replicas) = &shared.replicas else { return };
    let slot = Arc::new(Slot {
        node,
        asked_at: shared.clock.now(),
        replica: OnceLock::new(),
        peer: OnceLock::new(),
        lost: AtomicBool::new(false),
    });
    let ear = Ear { shared: Arc::downgrade(shared), slot: Arc::downgrade(&slot) };
    // Under the lock: what is given out after `accepted` was read is appended, and nothing twice.
    let core = shared.core.lock();
    let start = Start {
        volume: shared.id,
        epoch: shared.epoch,
        serial: replicas.serial.fetch_add(1, Ordering::Relaxed),
        committed: core.frontiers().committed,
        accepted: core.assigned(),
    };
    let replica = client.replica(start, Arc::new(Log(Arc::downgrade(shared))), Arc::new(ear));
    let _ = slot.replica.set(replica);
    replicas.slots.write().push(slot);
    drop(core);
}

/// Says that the tails of earlier epochs are on the backend, and lets their holders forget them.
async fn drop_tails(shared: Arc<Shared>, committed: Lsn) -> Done {
    let Some(replicas) = &shared.replicas else { return Done::Tails(Ok(Vec::new())) };
    let before = replicas.tails.lock().clone();
    let left = replicas.peers.drop_tails(shared.id, shared.epoch, committed).await;
    match &left {
        Ok(left) => {
            let gone = before.iter().filter(|tail| !left.contains(tail));
            let logs = gone.flat_map(|tail| &tail.holders).filter_map(|holder| match holder {
                Holder::Log(log) => Some(&log.node),
                Holder::Journal(_) => None,
            });
            let kept = left.iter().map(|tail| tail.epoch).min().unwrap_or(shared.epoch);
            for node in logs {
                if let Some(client) = replicas.peers.client(node)
                    && let Err(error) = client.forget(shared.id, kept).await
                {
                    tracing::debug!(volume = %shared.id, %node, %error, "a log that is needed no more stays");
                }
            }
        }
        Err(error) => {
            tracing::warn!(volume = %shared.id, %error, "can't say yet that earlier tails are on the backend");
        }
    }
    Done::Tails(left)
}

/// What is told about the replication of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicationStatus {
    /// As the registry is known to have it.
    pub config: Config,
    /// Whether the loss of this machine loses nothing that was promised.
    pub in_sync: bool,
}

impl ReplicationStatus {
    /// Whether peers were asked for.
    pub fn is_wanted(&self) -> bool {
        self.config.mode != Mode::None && self.config.wanted > 0
    }
}
