//! What happens in a world, made from its seed beforehand.

use super::host::Make;
use dtl::{Config, Mode, Needed, OnFailure};
use std::time::Duration;

/// A router, as something happens to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whom {
    /// Who owns a vDisk at that moment.
    Owner(usize),
    /// Who keeps its tail.
    Peer(usize),
    /// This one.
    Router(usize),
}

/// How a process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    /// SIGKILL; at its n-th effect from then on, if that comes soon.
    Kill(Option<u64>),
    /// The power fails.
    Power,
    /// The machine is gone with its disks.
    Lost,
}

/// One side of a link that fails; the other one is a router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Clients.
    Clients,
    /// The registry.
    Registry,
    /// The object store.
    Store,
    /// Another router.
    Router(usize),
    /// Everybody.
    All,
}

/// Which directions of a link fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ways {
    /// Nothing gets to the router.
    In,
    /// Nothing comes from it.
    Out,
    /// Both.
    Both,
}

/// Something that happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A router dies, and is started again.
    Die(Whom, Death, Duration),
    /// Two of them do, at one moment.
    DieTogether([Whom; 2], [Death; 2], Duration),
    /// Its processes stand still.
    Freeze(Whom, Duration),
    /// A link fails.
    Cut(Whom, Side, Ways, Duration),
    /// The DTL service of a router dies alone, and is started again.
    DtlDies(Whom, Duration),
    /// The registry has no leader.
    RegistryAway(Duration),
    /// It gives up its history.
    Compact,
    /// The object store fails so many of a thousand requests, and loses as many answers.
    StoreFails(u32, Duration),
    /// The object store is away.
    StoreAway(Duration),
    /// Puts that failed appear.
    LatePuts,
    /// A vDisk is sent to another router.
    Move(usize, usize),
    /// A router gives its vDisks away, and takes none for so long.
    Drain(usize, Duration),
    /// A router stops in order, and is started again.
    Stop(usize, Duration),
    /// A vDisk is replicated otherwise.
    SetDtl(usize, Mode, u8, Needed, OnFailure),
    /// The client of a vDisk dies.
    ClientDies(usize),
    /// Another vDisk is made, written to, and deleted.
    Churn,
}

/// A world, as it is to be.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where it came from.
    pub seed: u64,
    /// The machines.
    pub hosts: Vec<Make>,
    /// How each vDisk is replicated in the beginning.
    pub vdisks: Vec<Config>,
    /// Whether a router that does not own a vDisk sends its clients on.
    pub redirect: bool,
    /// Seconds after which what was written is sealed.
    pub seal_age: u64,
    /// What happens when.
    pub events: Vec<(Duration, Event)>,
    /// When nothing happens any more.
    pub end: Duration,
}

struct Draw(fastrand::Rng);

impl Draw {
    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.0.usize(..of.len())]
    }

    fn millis(&mut self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.0.u64(range))
    }

    /// Mostly short, at times longer than anybody's patience.
    fn outage(&mut self) -> Duration {
        match self.0.u32(..4) {
            0 => self.millis(50..800),
            1 | 2 => self.millis(800..5_000),
            _ => self.millis(5_000..14_000),
        }
    }

    fn whom(&mut self, routers: usize, vdisks: usize) -> Whom {
        let vdisk = self.0.usize(..vdisks);
        match self.0.u32(..10) {
            0..6 => Whom::Owner(vdisk),
            6..8 => Whom::Peer(vdisk),
            _ => Whom::Router(self.0.usize(..routers)),
        }
    }

    fn death(&mut self) -> Death {
        match self.0.u32(..10) {
            0..3 => Death::Kill(None),
            3..6 => Death::Kill(Some(self.0.u64(1..40))),
            6..8 => Death::Power,
            _ => Death::Lost,
        }
    }

    fn mode(&mut self) -> Mode {
        self.one(&[Mode::Sync, Mode::Sync, Mode::Sync, Mode::Sync, Mode::Async, Mode::None])
    }

    fn policy(&mut self, routers: usize) -> (Mode, u8, Needed, OnFailure) {
        let mode = self.mode();
        let most = if routers > 2 { 3 } else { 2 };
        let peers = if mode == Mode::None { 0 } else { self.0.u8(1..most) };
        let needed = self.one(&[Needed::All, Needed::All, Needed::One]);
        (
            mode,
            peers,
            needed,
            self.one(&[OnFailure::Degrade, OnFailure::Degrade, OnFailure::Degrade, OnFailure::Block]),
        )
    }

    fn event(&mut self, routers: usize, vdisks: usize) -> Event {
        let vdisk = self.0.usize(..vdisks);
        match self.0.u32(..100) {
            0..18 => Event::Die(self.whom(routers, vdisks), self.death(), self.outage()),
            18..24 => {
                let whom = [Whom::Owner(vdisk), self.one(&[Whom::Peer(vdisk), Whom::Router(routers - 1)])];
                Event::DieTogether(whom, [self.death(), self.death()], self.outage())
            }
            24..36 => Event::Freeze(self.whom(routers, vdisks), self.outage()),
            36..58 => {
                let other = self.0.usize(..routers);
                let side = self.one(&[
                    Side::Clients,
                    Side::Registry,
                    Side::Registry,
                    Side::Store,
                    Side::Router(other),
                    Side::Router(other),
                    Side::All,
                ]);
                let ways = self.one(&[Ways::In, Ways::Out, Ways::Both, Ways::Both]);
                Event::Cut(self.whom(routers, vdisks), side, ways, self.outage())
            }
            58..63 => Event::DtlDies(self.whom(routers, vdisks), self.outage()),
            63..66 => Event::RegistryAway(self.outage()),
            66..68 => Event::Compact,
            68..71 => Event::StoreFails(self.0.u32(50..500), self.outage()),
            71..73 => Event::StoreAway(self.outage()),
            73..75 => Event::LatePuts,
            75..81 => Event::Move(vdisk, self.0.usize(..routers)),
            81..83 => Event::Drain(self.0.usize(..routers), self.outage()),
            83..86 => Event::Stop(self.0.usize(..routers), self.outage()),
            86..90 => {
                let (mode, peers, needed, on_failure) = self.policy(routers);
                Event::SetDtl(vdisk, mode, peers, needed, on_failure)
            }
            90..97 => Event::ClientDies(vdisk),
            _ => Event::Churn,
        }
    }
}

impl Plan {
    /// The plan of a seed.
    pub fn new(seed: u64) -> Plan {
        let mut draw = Draw(fastrand::Rng::with_seed(seed));
        let routers = draw.one(&[3, 3, 3, 4]);
        let vdisks = draw.one(&[1, 2, 2]);
        let hosts = (0..routers)
            .map(|_| Make {
                // Half of what the margin of a lease allows, on both sides together.
                rate: draw.0.u32(970..=1030),
                ahead: draw.millis(0..100_000_000),
                dtl_on_disk: draw.0.u32(..3) == 0,
            })
            .collect();
        let configs = (0..vdisks).map(|_| {
            let (mode, peers, needed, on_failure) = draw.policy(routers);
            Config::alone(mode, peers, needed, on_failure)
        });
        let configs = configs.collect();
        let mut events = Vec::new();
        let mut at = draw.millis(500..4_000);
        for _ in 0..draw.0.usize(8..22) {
            events.push((at, draw.event(routers, vdisks)));
            // A burst now and then: what happens together is what nobody thought of.
            at += if draw.0.u32(..3) == 0 { draw.millis(0..300) } else { draw.millis(300..6_000) };
        }
        Plan {
            seed,
            hosts,
            vdisks: configs,
            redirect: draw.0.bool(),
            seal_age: draw.one(&[1, 2, 5, 60]),
            events,
            end: at + draw.millis(0..3_000),
        }
    }
}
