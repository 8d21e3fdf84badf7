//! One volume's replication, put together: [`Owner`], its [`Replica`]s, and who waits for them.
//!
//! | who calls | what |
//! |---|---|
//! | the write path | [`Replication::append`], [`Replication::acknowledge`]; both are short locks and never wait |
//! | who answers clients | [`Replication::allowed`] to wait, then `acknowledge` right before the reply |
//! | a flush | [`Replication::flush`], `allowed`, [`Replication::acknowledge_flush`] |
//! | the uploads | [`Replication::committed`] |
//! | the volume's task | [`Replication::next`], and what it asks for |
//!
//! Does not own: the journal, the registry, the clients, who is chosen as a peer.

mod lag;

use crate::client::{Client, LinkState, Progress, Replica, Sink, Source, Start};
use crate::entry::Entry;
use crate::metrics::OwnerMetrics;
use crate::owner::{Action, Outcome, Owner, Patience};
use crate::registration::{Config, PeerLog, Status};
use common::{Clock, Epoch, Lsn, Name, VolumeId};
use lag::Sizes;
use parking_lot::Mutex;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// What the peers allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowed {
    /// Writes up to here may be acknowledged.
    pub writes: Lsn,
    /// Flushes up to here may be acknowledged.
    pub flushes: Lsn,
    /// What every reply says: whether the loss of this machine loses nothing that was promised.
    pub in_sync: bool,
}

/// How a volume's replication is doing, for people and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Health {
    /// What the registry says.
    pub status: Status,
    /// Peers that are sent each entry as it comes.
    pub live: usize,
    /// Entries that the peer that is furthest behind has not confirmed.
    pub lag: u64,
    /// Their bytes, about.
    pub lag_bytes: u64,
}

struct Linked {
    id: u64,
    node: Name,
    log: Option<PeerLog>,
    progress: Progress,
    replica: Arc<Replica>,
}

struct State {
    owner: Owner,
    links: Vec<Linked>,
    /// Those of `links`, to be sent to without the lock.
    replicas: Arc<[Arc<Replica>]>,
    serial: u64,
    accepted: Lsn,
    committed: Lsn,
    sizes: Sizes,
    /// An entry whose confirmation is timed, one at a time.
    timed: Option<(Lsn, Duration)>,
}

/// The replication of one volume in one epoch. See the [crate's documentation](crate#how-a-volume-uses-it).
pub struct Replication {
    volume: VolumeId,
    epoch: Epoch,
    tick: Duration,
    clock: Arc<dyn Clock>,
    source: Arc<dyn Source>,
    metrics: OwnerMetrics,
    state: Mutex<State>,
    allowed: watch::Sender<Allowed>,
    work: Notify,
}

/// What an epoch begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Begin {
    /// Whose.
    pub volume: VolumeId,
    /// The epoch, in which the registry has [`Begin::config`].
    pub epoch: Epoch,
    /// The configuration that [`crate::Registration::taken_over`] made.
    pub config: Config,
    /// The last LSN that was recovered.
    pub accepted: Lsn,
    /// The backend has everything up to here.
    pub committed: Lsn,
    /// When to give up waiting.
    pub patience: Patience,
}

impl Replication {
    /// Begins an epoch. `source` is the volume's journal.
    pub fn new(
        begin: Begin,
        source: Arc<dyn Source>,
        clock: Arc<dyn Clock>,
        metrics: &OwnerMetrics,
    ) -> Arc<Replication> {
        let Begin { volume, epoch, config, accepted, committed, patience } = begin;
        let owner = Owner::new(epoch, config, accepted, patience);
        let replication = Arc::new(Replication {
            volume,
            epoch,
            tick: (patience.fail_after / 4).min(patience.retry_after).max(Duration::from_millis(10)),
            clock,
            source,
            metrics: metrics.clone(),
            allowed: watch::Sender::new(allowed(&owner)),
            state: Mutex::new(State {
                owner,
                links: Vec::new(),
                replicas: Arc::new([]),
                serial: 0,
                accepted,
                committed,
                sizes: Sizes::default(),
                timed: None,
            }),
            work: Notify::new(),
        });
        metrics.add(volume, &replication);
        replication
    }

    /// The volume gave out `entry`, the next one, and its journal has it. To be called in the order of LSNs.
    pub fn append(&self, entry: &Entry) {
        let replicas = {
            let mut state = self.state.lock();
            let now = self.clock.now();
            state.accepted = state.accepted.max(entry.lsn);
            state.owner.accepted(entry.lsn, now);
            state.sizes.add(entry.lsn, entry.packed_len());
            if state.timed.is_none() && !state.replicas.is_empty() {
                state.timed = Some((entry.lsn, now));
            }
            state.replicas.clone()
        };
        for replica in replicas.iter() {
            replica.append(entry);
        }
    }

    /// Whether a write at `lsn` may be acknowledged, as far as the peers go. A `true` is a promise: it is asked right
    /// before the reply is sent, not earlier.
    #[must_use]
    pub fn acknowledge(&self, lsn: Lsn) -> bool {
        self.state.lock().owner.acknowledge(lsn)
    }

    /// Whether a flush up to `lsn` may be acknowledged, as far as the peers go. The journal's own sync comes with it.
    #[must_use]
    pub fn acknowledge_flush(&self, lsn: Lsn) -> bool {
        self.state.lock().owner.acknowledge_flush(lsn)
    }

    /// What the peers allow; changes wake who waits.
    pub fn allowed(&self) -> watch::Receiver<Allowed> {
        self.allowed.subscribe()
    }

    /// Somebody waits for a flush up to `lsn`.
    pub fn flush(&self, lsn: Lsn) {
        let asked: Vec<Arc<Replica>> = {
            let mut state = self.state.lock();
            let now = self.clock.now();
            state.owner.flush_wanted(lsn, now);
            let peers: Vec<&PeerLog> = state.owner.peers_of_acknowledgements().collect();
            let asked = state.links.iter().filter(|l| l.log.as_ref().is_some_and(|log| peers.contains(&log)));
            asked.map(|l| l.replica.clone()).collect()
        };
        asked.iter().for_each(|replica| replica.flush(lsn));
    }

    /// The backend has everything up to `lsn`.
    pub fn committed(&self, lsn: Lsn) {
        let replicas = {
            let mut state = self.state.lock();
            state.committed = state.committed.max(lsn);
            state.sizes.forget(lsn);
            state.replicas.clone()
        };
        replicas.iter().for_each(|replica| replica.trim(lsn));
    }

    /// Makes a log at `node` and replicates to it, as [`Action::Recruit`] asks.
    pub fn join(self: &Arc<Self>, node: Name, client: &Client) {
        let mut state = self.state.lock();
        state.serial += 1;
        let id = state.serial;
        let start = Start {
            volume: self.volume,
            epoch: self.epoch,
            serial: id,
            committed: state.committed,
            accepted: state.accepted,
        };
        let ear = Arc::new(Ear { replication: Arc::downgrade(self), id });
        let replica = Arc::new(client.replica(start, self.source.clone(), ear));
        state.links.push(Linked { id, node, log: None, progress: Progress::default(), replica });
        state.list();
    }

    /// Nodes that a log is made at, or is: not to be chosen again.
    pub fn present(&self) -> Vec<Name> {
        self.state.lock().links.iter().map(|l| l.node.clone()).collect()
    }

    /// What became of a proposal.
    pub fn outcome(&self, proposal: &Config, outcome: Outcome) {
        let mut state = self.state.lock();
        state.owner.outcome(proposal, outcome, self.clock.now());
        self.publish(&mut state);
        drop(state);
        self.work.notify_one();
    }

    /// The registry was seen to have `config`.
    pub fn observed(&self, epoch: Epoch, config: Config) {
        let mut state = self.state.lock();
        state.owner.observed(epoch, config, self.clock.now());
        self.publish(&mut state);
        drop(state);
        self.work.notify_one();
    }

    /// What is to be done now, if anything: [`Action::Propose`], [`Action::Recruit`], [`Action::Release`] (it is let go
    /// of already; the log's bytes can be given back with [`Client::trim_log`]), or [`Action::Fenced`].
    pub fn turn(&self) -> Option<Action> {
        let mut state = self.state.lock();
        let now = self.clock.now();
        state.owner.tick(now);
        self.publish(&mut state);
        while let Some(action) = state.owner.take_action() {
            match action {
                Action::Flush(log, lsn) => {
                    let link = state.links.iter().find(|l| l.log.as_ref() == Some(&log));
                    if let Some(link) = link {
                        link.replica.flush(lsn);
                    }
                }
                Action::Release(log) => {
                    state.links.retain(|l| l.log.as_ref() != Some(&log));
                    state.list();
                    return Some(Action::Release(log));
                }
                Action::Recruit { want, avoid } => {
                    // Of a log that is being made the owner knows nothing.
                    let made = state.links.iter().filter(|l| l.log.is_none()).count();
                    if want > made {
                        return Some(Action::Recruit { want: want - made, avoid });
                    }
                }
                other => return Some(other),
            }
        }
        None
    }

    /// Waits for what is to be done next. Dropping the future loses nothing.
    pub async fn next(&self) -> Action {
        loop {
            if let Some(action) = self.turn() {
                return action;
            }
            tokio::select! {
                () = self.work.notified() => {}
                () = self.clock.sleep(self.tick) => {}
            }
        }
    }

    /// How it is doing.
    pub fn health(&self) -> Health {
        let state = self.state.lock();
        let config = state.owner.config();
        let named = |l: &&Linked| l.log.as_ref().is_some_and(|log| config.peers.contains(log));
        let behind =
            state.links.iter().filter(named).map(|l| l.progress.confirmed.max(state.committed)).min();
        let behind = behind.unwrap_or(state.committed);
        Health {
            status: config.status,
            live: state.links.iter().filter(|l| l.progress.state == LinkState::Live).count(),
            lag: if config.mode == crate::Mode::None { 0 } else { state.accepted.0.saturating_sub(behind.0) },
            lag_bytes: if config.mode == crate::Mode::None { 0 } else { state.sizes.above(behind) },
        }
    }

    fn publish(&self, state: &mut State) {
        let now_allowed = allowed(&state.owner);
        if let Some((lsn, since)) = state.timed
            && state.links.iter().any(|l| l.progress.confirmed >= lsn)
            && now_allowed.writes >= lsn
        {
            self.metrics.confirmed(self.clock.now().saturating_sub(since));
            state.timed = None;
        }
        self.allowed.send_if_modified(|a| std::mem::replace(a, now_allowed) != now_allowed);
    }

    fn hear(&self, id: u64, progress: &Progress) {
        let mut state = self.state.lock();
        let now = self.clock.now();
        let state = &mut *state;
        let Some(link) = state.links.iter_mut().find(|l| l.id == id) else { return };
        let changed = link.progress.state != progress.state || link.log.is_none();
        link.progress = *progress;
        if link.log.is_none()
            && let Some(incarnation) = progress.incarnation
        {
            let log = PeerLog { node: link.node.clone(), incarnation };
            state.owner.joined(log.clone(), now);
            link.log = Some(log);
        }
        match &link.log {
            Some(log) => {
                state.owner.progress(log, progress.confirmed, progress.flushed, progress.state, now);
            }
            // It was refused before it was made: it is no link of the owner's.
            None if progress.state == LinkState::Lost => {
                state.links.retain(|l| l.id != id);
                state.list();
            }
            None => {}
        }
        self.publish(state);
        if changed || state.owner.has_actions() {
            self.work.notify_one();
        }
    }
}

impl State {
    fn list(&mut self) {
        self.replicas = self.links.iter().map(|l| l.replica.clone()).collect();
    }
}

fn allowed(owner: &Owner) -> Allowed {
    Allowed {
        writes: owner.may_acknowledge(),
        flushes: owner.may_acknowledge_flush(),
        in_sync: owner.is_in_sync(),
    }
}

/// Hears a replica from the client's task.
struct Ear {
    replication: Weak<Replication>,
    id: u64,
}

impl Sink for Ear {
    fn progress(&self, progress: &Progress) {
        if let Some(replication) = self.replication.upgrade() {
            replication.hear(self.id, progress);
        }
    }
}
