//! A machine and the storage router on it.

use super::doors::{ProcessDisk, ProcessStore};
use super::gate::{Gate, ProcessClock};
use super::net::{Node, Place};
use super::registry::Way;
use super::world::World;
use async_trait::async_trait;
use common::sim::{SimDisk, SimDiskFaults, SimTable};
use common::{Clock, Error, ErrorKind, Name, Result, VolumeId};
use dtl::client::Client;
use dtl::metrics::ServiceMetrics;
use dtl::owner::Patience;
use dtl::service::Service;
use dtl::storage::{DiskSettings, Limits, Store};
use edge::protocol::{Attachments, Forwarder, Server};
use objectrouter::{
    Addresses, Membership, OpenStore, OpenedStore, Router, RouterAttachments, Stores, WriteBuffer,
};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::watch;
use volumedriver::Driver;

/// The registry's patience with a router.
pub const LEASE: Duration = Duration::from_secs(2);
/// How long an attachment is kept when its client is gone.
pub const ATTACHMENT: Duration = Duration::from_secs(4);

/// How a machine is made.
#[derive(Debug, Clone, Copy)]
pub struct Make {
    /// Milliseconds that its clock counts in a second.
    pub rate: u32,
    /// What its clock said in the beginning.
    pub ahead: Duration,
    /// Whether its DTL keeps logs on disk.
    pub dtl_on_disk: bool,
}

/// A DTL service; it may die without the router.
#[derive(Clone)]
pub struct Keeper {
    /// The service.
    pub service: Service,
    /// Its life.
    pub place: Place,
}

/// A storage router that serves.
pub struct Process {
    /// Its router.
    pub router: Arc<Router>,
    /// Its edge server.
    pub edge: Arc<Server>,
    /// Told to its edge server at a stop.
    pub stop: watch::Sender<bool>,
}

/// A machine.
pub struct Host {
    /// Its number.
    pub number: usize,
    make: Make,
    disk: SimDisk,
    dtl_disk: SimDisk,
    table: Arc<SimTable>,
    /// Identity of what is on its disk.
    pub device: VolumeId,
    /// Starts of the machine.
    pub boot: u64,
    /// Starts of the process.
    pub life: u64,
    /// The process, as it is on the network; dead when nothing runs.
    pub place: Place,
    /// When it has begun to serve.
    pub process: Option<Process>,
    /// Its DTL service.
    pub keeper: Option<Keeper>,
}

/// The name of a router.
pub fn name(number: usize) -> Name {
    match ["r0", "r1", "r2", "r3"].get(number).map(|name| name.parse()) {
        Some(Ok(name)) => name,
        _ => unreachable!("there are four routers at most"),
    }
}

/// The number of a router.
pub fn number(name: &str) -> Option<usize> {
    name.strip_prefix('r').and_then(|number| number.parse().ok())
}

fn disk(random: &mut fastrand::Rng) -> SimDisk {
    let disk = SimDisk::new();
    disk.set_random(random.fork());
    disk.set_faults(SimDiskFaults { max_latency: Duration::from_millis(2), ..SimDiskFaults::default() });
    disk
}

impl Host {
    /// A machine on which nothing runs.
    pub fn new(number: usize, make: Make, random: &mut fastrand::Rng) -> Host {
        let gate = Gate::default();
        gate.die();
        Host {
            number,
            make,
            disk: disk(random),
            dtl_disk: disk(random),
            table: Arc::new(SimTable::new()),
            device: VolumeId(1 + number as u128),
            boot: 1,
            life: 0,
            place: Place::new(Node::Router(number), gate),
            process: None,
            keeper: None,
        }
    }

    /// Whether the router serves, and goes on.
    pub fn serves(&self) -> bool {
        self.process.is_some() && self.place.gate.runs()
    }

    /// Whether a process runs, or stands still.
    pub fn is_up(&self) -> bool {
        !self.place.gate.is_dead()
    }

    fn end(&mut self, silent: bool) {
        for place in self.keeper.iter().map(|keeper| &keeper.place).chain([&self.place]) {
            place.silent.store(silent, std::sync::atomic::Ordering::Relaxed);
            place.gate.die();
        }
        (self.process, self.keeper) = (None, None);
        self.disk.kill();
        self.dtl_disk.kill();
        // What the dead process still does to it is for nothing.
        self.table = Arc::new(self.table.successor());
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.end(false);
    }

    /// The power fails: of what was not synced, each sector is there or not.
    pub fn cut_power(&mut self, random: &mut fastrand::Rng) {
        self.end(random.bool());
        self.boot += 1;
        let kept = random.u32(0..100);
        self.disk.crash(|| random.u32(0..100) < kept);
        self.dtl_disk.crash(|| random.u32(0..100) < kept);
        self.table.crash(|n| random.usize(0..=n));
    }

    /// The machine is gone with its disks; another one gets its name.
    pub fn lose(&mut self, random: &mut fastrand::Rng) {
        self.end(random.bool());
        self.boot += 1;
        self.device.0 += 100;
        (self.disk, self.dtl_disk) = (disk(random), disk(random));
        self.table = Arc::new(SimTable::new());
    }

    /// The DTL service alone dies.
    pub fn kill_keeper(&mut self) {
        if let Some(keeper) = self.keeper.take() {
            keeper.place.gate.die();
            self.dtl_disk.kill();
        }
    }

    /// SIGSTOP and SIGCONT.
    pub fn stand_still(&self, stands: bool) {
        self.place.gate.stand_still(stands);
        if let Some(keeper) = &self.keeper {
            keeper.place.gate.stand_still(stands);
        }
    }
}

/// How a process reaches the edge server or the DTL of a router.
pub struct Dialer {
    world: Weak<World>,
    from: Place,
}

impl Dialer {
    /// For the process `from`.
    pub fn new(world: &Arc<World>, from: Place) -> Arc<Dialer> {
        Arc::new(Dialer { world: Arc::downgrade(world), from })
    }
}

fn refused() -> std::io::Error {
    std::io::ErrorKind::ConnectionRefused.into()
}

#[async_trait]
impl edge_client::transport::Dial for Dialer {
    async fn dial(&self, address: &str) -> std::io::Result<edge_client::transport::Stream> {
        self.from.gate.pass().await;
        let world = self.world.upgrade().ok_or_else(refused)?;
        let to = number(address).ok_or_else(refused)?;
        let place = world.host(to, |host| host.place.clone());
        let (mine, theirs) = world.net.connect(&self.from, &place).await?;
        let server =
            world.host(to, |host| host.process.as_ref().map(|p| (p.edge.clone(), p.stop.subscribe())));
        let (server, stop) = server.ok_or_else(refused)?;
        tokio::spawn(async move {
            server.serve_stream(edge_client::transport::Stream::any(theirs), stop).await;
        });
        self.from.gate.pass().await;
        Ok(edge_client::transport::Stream::any(mine))
    }
}

struct DtlDialer(Dialer, usize);

#[async_trait]
impl dtl::transport::Dial for DtlDialer {
    async fn dial(&self) -> std::io::Result<dtl::transport::Stream> {
        let DtlDialer(Dialer { world, from }, to) = self;
        from.gate.pass().await;
        let world = world.upgrade().ok_or_else(refused)?;
        let keeper = world.host(*to, |host| host.keeper.clone());
        // A machine without a service refuses; one that can't be reached does not even do that.
        let place =
            keeper.as_ref().map_or_else(|| world.host(*to, |host| host.place.clone()), |k| k.place.clone());
        let (mine, theirs) = world.net.connect(from, &place).await?;
        let service = keeper.ok_or_else(refused)?.service;
        tokio::spawn(async move { service.serve(dtl::transport::Stream::any(theirs)).await });
        from.gate.pass().await;
        Ok(dtl::transport::Stream::any(mine))
    }
}

/// Starts the router of a machine on which nothing runs. One that does not start ends, and is started again a second
/// later, as a supervisor does it.
pub fn start(world: &Arc<World>, number: usize) {
    let gate = Gate::default();
    let seed = world.draw();
    let life = world.host(number, |host| {
        host.life += 1;
        host.place = Place::new(Node::Router(number), gate.clone());
        host.life
    });
    let world = world.clone();
    tokio::spawn(async move {
        let Err(error) = begin(&world, number, &gate, seed).await else { return };
        world.tell(&format!("router {number} does not start: {error}"));
        if error.kind == ErrorKind::Conflict {
            // Another machine has its name: an operator says that the one of before is gone.
            world.forget_router(number).await;
        }
        // Whoever ended it meanwhile says when it starts.
        let here = world.host(number, |host| {
            let here = host.life == life && host.is_up();
            if here {
                host.kill();
            }
            here
        });
        if here {
            world.clock.sleep(Duration::from_secs(1)).await;
            if world.host(number, |host| host.life == life) {
                start(&world, number);
            }
        }
    });
}

/// Starts the DTL service of a machine.
pub async fn start_keeper(world: &Arc<World>, number: usize, seed: u64) -> Result<()> {
    let (make, disk, life) = world.host(number, |host| (host.make, host.dtl_disk.clone(), host.life));
    let gate = Gate::default();
    let clock: Arc<dyn Clock> =
        Arc::new(ProcessClock::new(world.clock.clone(), gate.clone(), make.rate, make.ahead, seed));
    let limits = Limits { capacity: 8 << 20, volume_bytes: 4 << 20, volumes: 16, logs_per_volume: 12 };
    let store = match make.dtl_on_disk {
        false => Store::memory(limits, clock.clone()),
        true => {
            let settings = DiskSettings { segment_size: 1 << 20, segments: 16, limits };
            Store::open(settings, Arc::new(ProcessDisk::new(&disk, gate.clone())), clock.clone()).await?.0
        }
    };
    let service = Service::new(store, dtl::service::Settings::default(), clock, ServiceMetrics::default());
    let place = Place::new(Node::Router(number), gate);
    world.host(number, |host| {
        // Of a process that was killed meanwhile nothing comes to life.
        if host.life == life && host.is_up() {
            if !host.place.gate.runs() {
                place.gate.stand_still(true);
            }
            host.keeper = Some(Keeper { service, place });
        }
    });
    Ok(())
}

async fn begin(world: &Arc<World>, number: usize, gate: &Gate, seed: u64) -> Result<()> {
    let node = Node::Router(number);
    let (make, disk, table, device, boot) =
        world.host(number, |host| (host.make, host.disk.clone(), host.table.clone(), host.device, host.boot));
    let clock = Arc::new(ProcessClock::new(world.clock.clone(), gate.clone(), make.rate, make.ahead, seed));
    let door: Arc<dyn Clock> = clock.clone();
    let place = world.host(number, |host| host.place.clone());
    let mut metrics = Default::default();
    let disk = Arc::new(ProcessDisk::new(&disk, gate.clone()));
    let driver = Driver::start(world.settings.clone(), disk, table, door.clone(), &mut metrics).await?;
    let registry =
        Way::new(world.truth.clone(), world.net.clone(), world.clock.clone(), clock, node, gate.clone());
    let dial = {
        let (world, place, clock) = (Arc::downgrade(world), place.clone(), door.clone());
        move |addresses: &Addresses| {
            let to = addresses.dtl.as_deref().and_then(self::number);
            let to = to.ok_or_else(|| Error::invalid("no such router"))?;
            let dialer = Dialer { world: world.clone(), from: place.clone() };
            let settings = dtl::client::Settings::default();
            Ok(Client::new(Arc::new(DtlDialer(dialer, to)), settings, clock.clone()))
        }
    };
    let membership = Membership {
        name: name(number),
        write_buffer: WriteBuffer { device, boot: format!("boot {boot} of {number}") },
        founder: number == 0,
        domains: Vec::new(),
        recovery_domains: Vec::new(),
        lease: LEASE,
        dial: Arc::new(dial),
        patience: Patience::default(),
    };
    let store: Arc<dyn common::ObjectStore> = Arc::new(ProcessStore::new(
        world.store.clone(),
        world.net.clone(),
        world.clock.clone(),
        node,
        gate.clone(),
    ));
    let open: OpenStore = Arc::new(move |_| {
        let store = store.clone();
        Box::pin(async move {
            store.head("vpool").await?;
            Ok(OpenedStore { store, description: "the simulated store".into(), warning: None })
        })
    });
    let stores = Stores { open: open.clone(), attach: open };
    let settings =
        objectrouter::Settings { retry_seconds: 5, redirect: world.redirect, ..Default::default() };
    let router =
        Router::start(Arc::new(registry), membership, driver, stores, door.clone(), settings, &mut metrics)
            .await?;
    start_keeper(world, number, seed ^ 1).await?;
    let address = name(number).to_string();
    let addresses =
        Addresses { edge: vec![address.clone()], dtl: Some(address.clone()), ..Addresses::default() };
    router.reached_at(addresses).await?;
    let dialer = Arc::new(Dialer { world: Arc::downgrade(world), from: place });
    let forwarder = Forwarder::new(dialer, edge_client::trunk::Patience::default(), door.clone());
    let attachments: Arc<dyn Attachments> =
        Arc::new(RouterAttachments::new(router.clone(), forwarder, ATTACHMENT, world.redirect));
    let settings = edge::protocol::Settings {
        lease_seconds: ATTACHMENT.as_secs(),
        ..edge::protocol::Settings::default()
    };
    let edge = Server::new(address, settings, attachments.clone(), door.clone(), world.edge_metrics.clone());
    tokio::spawn(async move {
        loop {
            door.sleep(Duration::from_secs(1)).await;
            attachments.tidy().await;
        }
    });
    gate.pass().await;
    world.host(number, |host| host.process = Some(Process { router, edge, stop: watch::Sender::new(false) }));
    world.tell(&format!("router {number} serves"));
    Ok(())
}
