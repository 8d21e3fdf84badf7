//! Three routers on one store, each with a DTL, and a registry that everybody sees.
#![allow(dead_code)]

use crate::world::{CLUSTER, VOLUME, settings};
use async_trait::async_trait;
use common::kv::Registry as _;
use common::sim::{SimClock, SimDisk, SimKv, SimObjectStore, SimTable};
use common::{Clock, Epoch, Error, Lsn, Name, Result, VolumeId};
use dtl::client::Client;
use dtl::metrics::ServiceMetrics;
use dtl::owner::{Outcome, Patience};
use dtl::registration::Tail;
use dtl::service::Service;
use dtl::storage::{Limits, Store};
use dtl::transport::{Dial, Stream};
use dtl::{Config, Mode, Needed, OnFailure, PeerLog, Registration, Status};
use parking_lot::Mutex;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::sync::watch;
use volumedriver::{CreateVolume, Driver, Opening, Peers, Pool, PoolInfo, Recovered, Settings, Volume};

pub const ROUTERS: usize = 3;
const SIZE: u64 = 16 << 20;

pub fn name(n: usize) -> Name {
    format!("r{n}").parse().unwrap()
}

/// Everything that the registry says of the volume.
struct Record {
    owner: usize,
    served: Registration,
    /// Which journal the owner had, and which boot of its machine.
    journal: u64,
    boot: u64,
    /// Which life of each peer was named.
    lives: Vec<(PeerLog, usize, u64)>,
}

struct Registry {
    record: Mutex<Record>,
    away: watch::Sender<bool>,
    clock: Arc<SimClock>,
}

impl Registry {
    /// An answer takes a moment, or as long as the registry is away.
    async fn answers(&self) {
        self.clock.sleep(Duration::from_millis(2)).await;
        let mut away = self.away.subscribe();
        let _ = away.wait_for(|away| !away).await;
    }
}

/// A router: its disk, its process, its DTL.
struct Router {
    disk: SimDisk,
    table: Arc<SimTable>,
    journal: u64,
    boot: u64,
    /// Number of its process.
    life: u64,
    driver: Option<Arc<Driver>>,
    service: Option<Service>,
    /// Nothing comes out of it.
    frozen: watch::Sender<bool>,
}

/// A pipe that delivers nothing while its service is frozen, and breaks when its process dies.
struct Pipe {
    stream: DuplexStream,
    frozen: watch::Receiver<bool>,
    thaw: Option<Pin<Box<dyn Future<Output = bool> + Send>>>,
}

impl Pipe {
    /// Ready when it delivers; an error when its process is dead.
    fn poll_thawed(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        if self.thaw.is_none() && !*self.frozen.borrow() {
            return match self.frozen.has_changed() {
                Ok(_) => Poll::Ready(Ok(())),
                Err(_) => Poll::Ready(Err(std::io::ErrorKind::ConnectionReset.into())),
            };
        }
        let mut frozen = self.frozen.clone();
        let wait = async move { frozen.wait_for(|frozen| !frozen).await.is_ok() };
        let thaw = self.thaw.get_or_insert_with(|| Box::pin(wait));
        let thawed = std::task::ready!(thaw.as_mut().poll(cx));
        self.thaw = None;
        match thawed {
            true => Poll::Ready(Ok(())),
            false => Poll::Ready(Err(std::io::ErrorKind::ConnectionReset.into())),
        }
    }
}

impl AsyncRead for Pipe {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        std::task::ready!(self.poll_thawed(cx))?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        std::task::ready!(self.poll_thawed(cx))?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

struct Network {
    routers: Vec<Mutex<Router>>,
}

/// From a process to a router.
struct To {
    network: Arc<Network>,
    from: Process,
    to: usize,
}

/// A process, as far as others notice that it died.
#[derive(Clone)]
struct Process(watch::Receiver<bool>);

impl Process {
    fn is_dead(&self) -> bool {
        self.0.has_changed().is_err()
    }

    async fn death(&mut self) {
        while self.0.changed().await.is_ok() {}
    }
}

#[async_trait]
impl Dial for To {
    async fn dial(&self) -> std::io::Result<Stream> {
        if self.from.is_dead() {
            return Err(std::io::ErrorKind::NotConnected.into());
        }
        let router = self.network.routers[self.to].lock();
        let service = router.service.clone().ok_or(std::io::ErrorKind::ConnectionRefused)?;
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        let pipe = Pipe { stream: theirs, frozen: router.frozen.subscribe(), thaw: None };
        let (mut from, mut to) = (self.from.clone(), Process(router.frozen.subscribe()));
        tokio::spawn(async move {
            tokio::select! {
                () = service.serve(Stream::any(pipe)) => {}
                () = from.death() => {}
                () = to.death() => {}
            }
        });
        Ok(Stream::any(ours))
    }
}

/// What router `node` sees of the others.
struct View {
    node: usize,
    name: Name,
    registry: Arc<Registry>,
    clients: Vec<Arc<Client>>,
    journal: u64,
    boot: u64,
    process: Process,
    network: Arc<Network>,
}

impl View {
    /// A dead process asks nothing and hears nothing.
    async fn answers(&self) {
        self.registry.answers().await;
        if self.process.is_dead() {
            std::future::pending::<()>().await;
        }
    }
}

#[async_trait]
impl Peers for View {
    fn node(&self) -> &Name {
        &self.name
    }

    fn client(&self, node: &Name) -> Option<Arc<Client>> {
        (0..ROUTERS).find(|n| name(*n) == *node).map(|n| self.clients[n].clone())
    }

    async fn recruit(&self, _: VolumeId, want: usize, avoid: &[Name]) -> Vec<(Name, Arc<Client>)> {
        let fits = |n: &usize| *n != self.node && !avoid.contains(&name(*n));
        (0..ROUTERS).filter(fits).take(want).map(|n| (name(n), self.clients[n].clone())).collect()
    }

    async fn propose(&self, _: VolumeId, expect: (Epoch, u64), new: &Config) -> Outcome {
        self.answers().await;
        let mut record = self.registry.record.lock();
        if record.served.config.config != expect.1 {
            return Outcome::Refused(Some((record.served.claimed, record.served.config.clone())));
        }
        match record.served.propose(expect.0, new) {
            Ok(served) => record.served = served,
            Err(found) => return Outcome::Refused(Some(found)),
        }
        let known = std::mem::take(&mut record.lives);
        // Of a log that stays it is the life that its router had when it was named.
        for peer in &new.peers {
            let n = (0..ROUTERS).find(|n| name(*n) == peer.node).unwrap();
            let before = known.iter().find(|(log, ..)| log == peer).map(|known| known.2);
            let life = before.unwrap_or_else(|| self.network.routers[n].lock().life);
            record.lives.push((peer.clone(), n, life));
        }
        Outcome::Applied
    }

    async fn begin(&self, _: VolumeId, recovered: Recovered) -> Result<Registration> {
        self.answers().await;
        let mut record = self.registry.record.lock();
        let Recovered { epoch, committed, last, lost } = recovered;
        if record.owner != self.node {
            return Err(Error::fenced("somebody else owns it"));
        }
        let mut served = record.served.clone();
        if epoch > served.claimed {
            served = served.claim(epoch)?;
        }
        record.served = served.taken_over(self.name.clone(), epoch, committed, last, lost)?;
        (record.journal, record.boot) = (self.journal, self.boot);
        record.lives.clear();
        Ok(record.served.clone())
    }

    async fn drop_tails(&self, _: VolumeId, epoch: Epoch, committed: Lsn) -> Result<Vec<Tail>> {
        self.answers().await;
        let mut record = self.registry.record.lock();
        if record.served.epoch != epoch {
            return Err(Error::fenced("somebody else owns it"));
        }
        record.served = record.served.committed(committed);
        Ok(record.served.tails.clone())
    }
}

pub struct Routers {
    pub clock: Arc<SimClock>,
    pool: Pool,
    network: Arc<Network>,
    registry: Arc<Registry>,
    seal_age_seconds: u64,
}

impl Routers {
    pub async fn new(seed: u64, mode: Mode, on_failure: OnFailure) -> Routers {
        Self::with(seed, Config::alone(mode, 1, Needed::All, on_failure), 3600).await
    }

    pub async fn with(seed: u64, config: Config, seal_age_seconds: u64) -> Routers {
        let store = SimObjectStore::new(seed);
        let info = PoolInfo { id: 7, name: "p".into(), cluster_size: CLUSTER as u32 };
        let pool = Pool::create(Arc::new(store.clone()), info, Duration::ZERO).await.unwrap();
        let clock = Arc::new(SimClock::new(seed));
        let router = |n| {
            Mutex::new(Router {
                disk: SimDisk::new(),
                table: Arc::new(SimTable::new()),
                journal: n as u64,
                boot: 0,
                life: 0,
                driver: None,
                service: None,
                frozen: watch::Sender::new(false),
            })
        };
        let record = Record {
            owner: 0,
            // It was made in the first epoch.
            served: Registration { claimed: Epoch(1), ..Registration::fresh(name(0), config) },
            journal: u64::MAX,
            boot: 0,
            lives: Vec::new(),
        };
        let registry =
            Registry { record: Mutex::new(record), away: watch::Sender::new(false), clock: clock.clone() };
        let routers = Routers {
            clock,
            pool,
            network: Arc::new(Network { routers: (0..ROUTERS).map(router).collect() }),
            registry: Arc::new(registry),
            seal_age_seconds,
        };
        for n in 0..ROUTERS {
            routers.boot(n).await;
        }
        let spec = CreateVolume {
            id: VOLUME,
            name: "v".into(),
            size: SIZE,
            sco_size: 1 << 20,
            epoch: Epoch(1),
            parent: None,
        };
        routers.driver(0).create(&routers.pool, spec).await.unwrap();
        routers
    }

    fn driver(&self, n: usize) -> Arc<Driver> {
        self.network.routers[n].lock().driver.clone().expect("the process runs")
    }

    /// Starts a process on the disk of router `n`.
    pub async fn boot(&self, n: usize) {
        let (disk, table) = {
            let router = self.network.routers[n].lock();
            (router.disk.process(), router.table.clone())
        };
        let settings = Settings { seal_age_seconds: self.seal_age_seconds, ..settings() };
        let mut metrics = Default::default();
        let clock: Arc<dyn Clock> = self.clock.clone();
        let driver =
            Driver::start(settings, Arc::new(disk), table, clock.clone(), &mut metrics).await.unwrap();
        let limits = Limits { capacity: 8 << 20, volume_bytes: 2 << 20, volumes: 16, logs_per_volume: 4 };
        let service = Service::new(
            Store::memory(limits, clock.clone()),
            dtl::service::Settings::default(),
            clock,
            ServiceMetrics::default(),
        );
        let mut router = self.network.routers[n].lock();
        (router.driver, router.service) = (Some(driver), Some(service));
        router.life += 1;
    }

    /// SIGKILL.
    pub fn kill(&self, n: usize) {
        let mut router = self.network.routers[n].lock();
        (router.driver, router.service) = (None, None);
        router.disk.kill();
        router.table = Arc::new(router.table.successor());
        // Its connections end with it.
        router.frozen.send_replace(true);
        router.frozen = watch::Sender::new(false);
    }

    /// The machine is gone with its disk.
    pub fn lose(&self, n: usize) {
        self.kill(n);
        let mut router = self.network.routers[n].lock();
        router.disk = SimDisk::new();
        router.table = Arc::new(SimTable::new());
        router.journal += 100;
    }

    /// The power fails: of what was not synced, each sector is lost or not.
    pub fn cut_power(&self, n: usize, chance: &mut fastrand::Rng) {
        self.kill(n);
        let mut router = self.network.routers[n].lock();
        router.disk.crash(|| chance.bool());
        router.table.crash(|n| chance.usize(0..=n));
        router.boot += 1;
    }

    /// Whether its process runs.
    pub fn is_up(&self, n: usize) -> bool {
        self.network.routers[n].lock().driver.is_some()
    }

    pub fn freeze(&self, n: usize) {
        self.network.routers[n].lock().frozen.send_replace(true);
    }

    /// Whether the registry says that the peers have everything.
    pub fn is_named_in_sync(&self) -> bool {
        let served = self.registered();
        served.config.status == Status::InSync && served.config.mode != Mode::None
    }

    /// Whether what the registry says is true: no peer has died since, and the owner has not noticed yet.
    pub fn peers_hold(&self) -> bool {
        let named = self.registry.record.lock().lives.clone();
        self.is_named_in_sync()
            && named
                .iter()
                .all(|(_, n, life)| self.is_up(*n) && self.network.routers[*n].lock().life == *life)
    }

    pub fn freeze_all_but(&self, n: usize) {
        for (_, router) in self.network.routers.iter().enumerate().filter(|(at, _)| *at != n) {
            router.lock().frozen.send_replace(true);
        }
    }

    pub fn thaw(&self) {
        for router in &self.network.routers {
            router.lock().frozen.send_replace(false);
        }
    }

    pub fn registry_is_away(&self) {
        self.registry.away.send_replace(true);
    }

    pub fn registry_is_back(&self) {
        self.registry.away.send_replace(false);
    }

    /// Router `n` takes the volume over, whoever owns it.
    pub async fn open(&self, n: usize) -> Result<Arc<Volume>> {
        self.take(n, false).await
    }

    pub async fn force(&self, n: usize) -> Result<Arc<Volume>> {
        self.take(n, true).await
    }

    async fn take(&self, n: usize, forced: bool) -> Result<Arc<Volume>> {
        let (journal, process, boot) = {
            let router = self.network.routers[n].lock();
            (router.journal, Process(router.frozen.subscribe()), router.boot)
        };
        let (epoch, registration, same_journal, same_boot) = {
            let mut record = self.registry.record.lock();
            let epoch = record.served.claimed.next();
            record.served = record.served.claim(epoch).unwrap();
            record.owner = n;
            let same = record.served.owner == name(n) && record.journal == journal;
            let same_boot = record.boot == boot;
            (epoch, record.served.clone(), same, same_boot)
        };
        let clock: Arc<dyn Clock> = self.clock.clone();
        let clients = (0..ROUTERS).map(|to| {
            let dial = Arc::new(To { network: self.network.clone(), from: process.clone(), to });
            Arc::new(Client::new(dial, dtl::client::Settings::default(), clock.clone()))
        });
        let view = View {
            node: n,
            name: name(n),
            registry: self.registry.clone(),
            clients: clients.collect(),
            journal,
            boot,
            process,
            network: self.network.clone(),
        };
        let opening = Opening {
            registration,
            same_journal,
            same_boot,
            forced,
            peers: Arc::new(view),
            patience: Patience::default(),
            // What a lease stops is shown by the object router's tests.
            authority: SimKv::new().hold(Duration::from_secs(2)).await?,
        };
        self.driver(n).take_over(&self.pool, VOLUME, epoch, &opening).await
    }

    pub fn registered(&self) -> Registration {
        self.registry.record.lock().served.clone()
    }

    pub fn lost(&self) -> bool {
        !self.registered().losses.is_empty()
    }

    /// The router that keeps the log.
    pub fn peer(&self) -> usize {
        let registered = self.registered();
        let peer = &registered.config.peers[0].node;
        (0..ROUTERS).find(|n| name(*n) == *peer).unwrap()
    }

    /// Waits until the registry names a peer, and the volume knows it.
    pub async fn in_sync(&self, v: &Volume) {
        for _ in 0..600 {
            if v.status().replication.is_some_and(|r| r.in_sync) {
                return;
            }
            self.clock.sleep(Duration::from_millis(100)).await;
        }
        panic!("no peer in a minute: {:?}", self.registered());
    }
}
