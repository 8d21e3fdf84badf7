//! Three routers, one volume whose owner changes and loses what no flush covered, and links that delay, stall and
//! break; all of it on virtual time and a seed.

mod links;
mod volume;

pub use links::Links;
pub use volume::{BLOCK, BLOCKS, ModelVolume, State};

use async_trait::async_trait;
use common::sim::SimClock;
use common::{Clock, Epoch, Error, Geometry, Lsn, Result};
use edge::protocol::server::Metrics;
use edge::protocol::{
    Attach, Attached, Attachments, Forwarder, Granted, Moved, Outcome, Owned, Recovered, Refusal, Reply,
    Request, Server, Settings,
};
use edge_client::transport::{Dial, Stream};
use edge_client::trunk::Patience;
use edge_client::wire::{Credit, Op};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

pub const ROUTERS: usize = 3;
pub const LEASE: Duration = Duration::from_secs(5);

pub struct World {
    pub clock: Arc<dyn Clock>,
    pub state: Arc<Mutex<State>>,
    rng: Mutex<fastrand::Rng>,
    pub links: Links,
    servers: Mutex<Vec<Arc<Server>>>,
    pub metrics: Metrics,
    /// The present owner and its volume; nobody's while it moves.
    owned: Mutex<Option<(usize, Arc<Owned>)>>,
    /// Who was deposed and does not know it.
    zombie: Mutex<Option<(usize, Epoch)>>,
    down: Mutex<[bool; ROUTERS]>,
    _running: watch::Sender<bool>,
    stop: watch::Receiver<bool>,
}

pub fn name(router: usize) -> String {
    format!("r{router}")
}

impl World {
    pub fn new(seed: u64) -> Arc<World> {
        let clock: Arc<dyn Clock> = Arc::new(SimClock::new(seed));
        let (running, stop) = watch::channel(false);
        let world = Arc::new(World {
            links: Links::new(clock.clone(), seed),
            state: Arc::new(Mutex::new(State::new())),
            rng: Mutex::new(fastrand::Rng::with_seed(seed)),
            servers: Mutex::default(),
            metrics: Metrics::default(),
            owned: Mutex::default(),
            zombie: Mutex::default(),
            down: Mutex::new([false; ROUTERS]),
            _running: running,
            stop,
            clock: clock.clone(),
        });
        let settings =
            Settings { window_requests: 8, window_bytes: 4096, lease_seconds: 5, ..Settings::default() };
        for router in 0..ROUTERS {
            let dial = Arc::new(Way(Arc::downgrade(&world)));
            let forwarder = Forwarder::new(dial, Patience::default(), clock.clone());
            let attachments = Arc::new(Router { index: router, world: Arc::downgrade(&world), forwarder });
            let metrics = world.metrics.clone();
            let server = Server::new(name(router), settings.clone(), attachments, clock.clone(), metrics);
            world.servers.lock().push(server);
        }
        world.open(0);
        world
    }

    pub fn below(&self, n: u64) -> u64 {
        self.rng.lock().u64(..n)
    }

    pub fn chance(&self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub async fn sleep(&self, most_ms: u64) {
        let time = Duration::from_micros(self.below(most_ms * 1000 + 1));
        self.clock.sleep(time).await;
    }

    /// A router opens the volume: what it finds is a prefix with all that a flush covered.
    pub fn open(&self, router: usize) {
        let (durable, last) = {
            let state = self.state.lock();
            (state.durable, state.log.len() as u64)
        };
        let kept = if self.chance(30) { last } else { durable + self.below(last - durable + 1) };
        self.open_with(router, kept);
    }

    /// The same; everything behind `kept` is lost.
    pub fn open_with(&self, router: usize, kept: u64) {
        let epoch = self.state.lock().take_over(kept);
        let before = self.owned.lock().take();
        let holders = before.as_ref().map(|(_, owned)| owned.holders()).unwrap_or_default();
        // Who owns it again knows about it.
        self.zombie.lock().take_if(|(zombie, _)| *zombie == router);
        if let Some((old, _)) = before
            && old != router
            && self.chance(50)
        {
            *self.zombie.lock() = Some((old, Epoch(epoch.0 - 1)));
        }
        let volume = ModelVolume { state: self.state.clone(), epoch, clock: self.clock.clone() };
        let owned = Owned::new(Arc::new(volume), LEASE, holders, self.clock.clone());
        *self.owned.lock() = Some((router, owned));
    }

    pub fn set_down(&self, router: usize, down: bool) {
        self.down.lock()[router] = down;
        if down {
            self.links.cut_all(&name(router));
        }
    }

    pub fn owner(&self) -> usize {
        self.owned.lock().as_ref().map_or(0, |(router, _)| *router)
    }

    fn moved(&self) -> Moved {
        let owner = name(self.owner());
        Moved { addresses: vec![owner.clone()], owner, epoch: self.state.lock().epoch }
    }
}

/// How clients and routers reach a router.
pub struct Way(pub std::sync::Weak<World>);

#[async_trait]
impl Dial for Way {
    async fn dial(&self, address: &str) -> std::io::Result<Stream> {
        let refused = || std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let world = self.0.upgrade().ok_or_else(refused)?;
        let router = (0..ROUTERS).find(|r| name(*r) == address).ok_or_else(refused)?;
        if world.down.lock()[router] {
            return Err(refused());
        }
        let (mine, theirs) = world.links.pair(address);
        let (server, stop) = (world.servers.lock()[router].clone(), world.stop.clone());
        tokio::spawn(async move { server.serve_stream(theirs, stop).await });
        Ok(mine)
    }
}

struct Router {
    index: usize,
    world: std::sync::Weak<World>,
    forwarder: Forwarder,
}

#[async_trait]
impl Attachments for Router {
    async fn attach(&self, attach: Attach) -> Result<Arc<dyn Attached>, Refusal> {
        let Some(world) = self.world.upgrade() else { return Err(Error::unavailable("over").into()) };
        let zombie = *world.zombie.lock();
        if let Some((router, epoch)) = zombie
            && router == self.index
            && attach.since > epoch
        {
            // A client that has seen a newer owner must not believe this one.
            return Ok(Arc::new(Zombie { epoch }));
        }
        let owned = world.owned.lock().clone();
        match owned {
            Some((router, owned)) if router == self.index => owned.attach(&attach).await,
            _ if attach.hops > 0 || world.chance(50) => Err(Refusal::Moved(world.moved())),
            _ => self.forwarder.attach(&world.moved().addresses, attach).await,
        }
    }
}

/// Says yes to everything, in an epoch that is over.
struct Zombie {
    epoch: Epoch,
}

#[async_trait]
impl Attached for Zombie {
    fn granted(&self) -> Granted {
        Granted {
            geometry: self.geometry(),
            epoch: self.epoch,
            recovered: Recovered::All,
            known: true,
            in_sync: true,
            disk_read_only: false,
            forwarded: false,
            credit: Credit::default(),
        }
    }

    fn geometry(&self) -> Geometry {
        volume::geometry()
    }

    fn heard(&self) {}

    async fn call(&self, request: Request) -> Reply {
        let outcome = match request.op {
            Op::Read { len, .. } => Outcome::Data(vec![0xee; len as usize].into()),
            _ => Outcome::Done,
        };
        let (sequence, grant) = (request.sequence, Credit::default());
        Reply { sequence, epoch: self.epoch, lsn: Lsn(1 << 40), in_sync: true, grant, outcome }
    }

    async fn detach(&self) {}
}
