//! A network in memory, services that restart, and an owner's journal.
#![allow(dead_code)]

pub mod owner;

use async_trait::async_trait;
use common::sim::{SimClock, SimDisk, SimDiskFaults};
use common::{Clock, Epoch, Lsn, Result, VolumeId};
use dtl::client::{Chunk, Client, LinkState, Progress, Replica, Settings, Source, Start};
use dtl::metrics::ServiceMetrics;
use dtl::service::{Service, Settings as ServiceSettings};
use dtl::storage::{DiskSettings, Limits, Recovered, Store};
use dtl::transport::{Dial, Stream};
use dtl::{Entry, Incarnation};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::sync::watch;
use tokio::task::AbortHandle;

pub const V: VolumeId = VolumeId(7);

pub fn entry(volume: VolumeId, epoch: u64, lsn: u64, len: usize) -> Entry {
    let payload: Vec<u8> = (0..len).map(|i| (lsn as u8) ^ (i as u8) ^ (epoch as u8)).collect();
    Entry {
        volume,
        epoch: Epoch(epoch),
        lsn: Lsn(lsn),
        kind: 1,
        flags: 0,
        addr: lsn * 3,
        count: 1,
        crcs: [lsn as u32].into_iter().collect(),
        payload: payload.into(),
    }
}

/// What an owner's journal has.
#[derive(Default)]
pub struct Journal {
    state: Mutex<(BTreeMap<u64, Entry>, Lsn)>,
    pub reads: AtomicU64,
}

impl Journal {
    pub fn push(&self, entry: Entry) {
        self.state.lock().0.insert(entry.lsn.0, entry);
    }

    pub fn commit(&self, lsn: Lsn) {
        let mut state = self.state.lock();
        state.1 = state.1.max(lsn);
        let kept = state.0.split_off(&(lsn.0 + 1));
        state.0 = kept;
    }
}

#[async_trait]
impl Source for Journal {
    async fn read(&self, from: Lsn, max: usize) -> Result<Chunk> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        tokio::task::yield_now().await;
        let state = self.state.lock();
        let mut bytes = 0;
        let from = from.max(state.1.next());
        let entries = state
            .0
            .range(from.0..)
            .map(|(_, e)| e.clone())
            .take_while(|e| {
                let first = bytes == 0;
                bytes += e.packed_len();
                first || bytes <= max
            })
            .collect();
        Ok(Chunk { committed: state.1, entries })
    }
}

/// A pipe that can be made to deliver nothing, without an end.
struct Pipe {
    stream: DuplexStream,
    dead: watch::Receiver<bool>,
}

impl AsyncRead for Pipe {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if *self.dead.borrow() {
            return Poll::Pending;
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        if *self.dead.borrow() {
            return Poll::Pending;
        }
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Memory,
    Disk,
}

/// A node with a DTL service, that can die in many ways.
pub struct Peer {
    pub kind: Kind,
    pub disk: SimDisk,
    pub limits: Limits,
    pub segments: (u64, usize),
    /// What is wrong with its disk whenever it starts.
    pub faults: Mutex<SimDiskFaults>,
    pub clock: Arc<dyn Clock>,
    service: Mutex<Option<Service>>,
    connections: Mutex<Vec<AbortHandle>>,
    dead: Mutex<watch::Sender<bool>>,
    pub reachable: Mutex<bool>,
    /// Bytes that fit a pipe.
    pub pipe: usize,
}

impl Peer {
    pub fn new(kind: Kind, clock: Arc<dyn Clock>) -> Arc<Peer> {
        let limits = Limits { capacity: 8 << 20, volume_bytes: 2 << 20, volumes: 1100, logs_per_volume: 4 };
        Self::with(kind, limits, clock)
    }

    pub fn with(kind: Kind, limits: Limits, clock: Arc<dyn Clock>) -> Arc<Peer> {
        Self::with_segments(kind, limits, (1 << 20, 16), clock)
    }

    pub fn with_segments(
        kind: Kind,
        limits: Limits,
        segments: (u64, usize),
        clock: Arc<dyn Clock>,
    ) -> Arc<Peer> {
        Arc::new(Peer {
            kind,
            disk: SimDisk::new(),
            limits,
            segments,
            faults: Mutex::default(),
            clock,
            service: Mutex::new(None),
            connections: Mutex::default(),
            dead: Mutex::new(watch::Sender::new(false)),
            reachable: Mutex::new(true),
            pipe: 64 << 10,
        })
    }

    pub async fn start(&self) -> Recovered {
        let (store, found) = match self.kind {
            Kind::Memory => (Store::memory(self.limits, self.clock.clone()), Recovered::default()),
            Kind::Disk => {
                self.disk.set_faults(self.faults.lock().clone());
                let settings = DiskSettings {
                    segment_size: self.segments.0,
                    segments: self.segments.1,
                    limits: self.limits,
                };
                Store::open(settings, Arc::new(self.disk.process()), self.clock.clone()).await.unwrap()
            }
        };
        let service =
            Service::new(store, ServiceSettings::default(), self.clock.clone(), ServiceMetrics::default());
        *self.service.lock() = Some(service);
        found
    }

    pub fn is_up(&self) -> bool {
        self.service.lock().is_some()
    }

    pub fn store(&self) -> Arc<Store> {
        self.service.lock().as_ref().unwrap().store().clone()
    }

    /// Ends all connections: what is in them is lost.
    pub fn cut(&self) {
        for connection in self.connections.lock().drain(..) {
            connection.abort();
        }
    }

    /// All present connections deliver nothing any more, and don't end.
    pub fn swallow(&self) {
        let mut dead = self.dead.lock();
        dead.send_replace(true);
        *dead = watch::Sender::new(false);
    }

    /// The process dies.
    pub fn kill(&self) {
        self.cut();
        *self.service.lock() = None;
        self.disk.kill();
    }

    /// The power fails: of what was not synced, each sector is lost or not.
    pub fn power_cut(&self, keep: impl FnMut() -> bool) {
        self.cut();
        *self.service.lock() = None;
        self.disk.crash(keep);
    }

    /// A raw connection.
    pub fn raw(&self) -> Option<DuplexStream> {
        let service = self.service.lock().clone().filter(|_| *self.reachable.lock())?;
        let (ours, theirs) = tokio::io::duplex(self.pipe);
        let dead = self.dead.lock().subscribe();
        let task = tokio::spawn(async move {
            let pipe = Pipe { stream: theirs, dead };
            service.serve(Stream::any(pipe)).await;
        });
        let mut connections = self.connections.lock();
        connections.retain(|c| !c.is_finished());
        connections.push(task.abort_handle());
        Some(ours)
    }
}

pub struct To(pub Arc<Peer>);

#[async_trait]
impl Dial for To {
    async fn dial(&self) -> std::io::Result<Stream> {
        self.0.raw().map(Stream::any).ok_or_else(|| std::io::ErrorKind::ConnectionRefused.into())
    }
}

pub fn client(peer: &Arc<Peer>) -> Client {
    Client::new(Arc::new(To(peer.clone())), Settings::default(), peer.clock.clone())
}

pub fn sim_clock(seed: u64) -> Arc<dyn Clock> {
    Arc::new(SimClock::new(seed))
}

/// One volume's log at a peer, with its journal.
pub struct Volume {
    pub id: VolumeId,
    pub epoch: u64,
    pub journal: Arc<Journal>,
    pub replica: Replica,
    pub progress: watch::Receiver<Progress>,
    pub last: u64,
    pub len: usize,
}

impl Volume {
    pub fn new(client: &Client, id: VolumeId, epoch: u64) -> Volume {
        let journal = Arc::new(Journal::default());
        let (sender, progress) = watch::channel(Progress::default());
        let start = Start { volume: id, epoch: Epoch(epoch), serial: 1, committed: Lsn(0), accepted: Lsn(0) };
        let replica = client.replica(start, journal.clone(), Arc::new(sender));
        Volume { id, epoch, journal, replica, progress, last: 0, len: 1000 }
    }

    /// Another log for the same volume, as after the loss of the first.
    pub fn again(&mut self, client: &Client, serial: u64) {
        let (sender, progress) = watch::channel(Progress::default());
        let committed = self.journal.state.lock().1;
        let start =
            Start { volume: self.id, epoch: Epoch(self.epoch), serial, committed, accepted: Lsn(self.last) };
        self.replica = client.replica(start, self.journal.clone(), Arc::new(sender));
        self.progress = progress;
    }

    pub fn write(&mut self, n: u64) {
        for _ in 0..n {
            self.last += 1;
            let entry = entry(self.id, self.epoch, self.last, self.len);
            self.journal.push(entry.clone());
            self.replica.append(&entry);
        }
    }

    pub async fn wait(&mut self, what: impl FnMut(&Progress) -> bool) -> Progress {
        let waited =
            tokio::time::timeout(std::time::Duration::from_secs(20), self.progress.wait_for(what)).await;
        match waited {
            Ok(progress) => *progress.unwrap(),
            Err(_) => panic!("still {:?}", self.replica.progress()),
        }
    }

    pub async fn wait_confirmed(&mut self) {
        let last = self.last;
        self.wait(|p| p.confirmed == Lsn(last)).await;
    }

    pub async fn wait_live(&mut self) -> Progress {
        self.wait(|p| p.state == LinkState::Live).await
    }

    pub fn incarnation(&self) -> Incarnation {
        self.replica.incarnation().unwrap()
    }
}
