//! A world: machines, network, registry, store, and what happens to them.

use super::host::{self, Host};
use super::net::{Net, Node};
use super::plan::{Death, Event, Plan, Side, Ways, Whom};
use super::registry::Truth;
use super::truth::{Vdisk, tail_is_in_memory};
use common::kv::Kv;
use common::sim::{SimClock, SimObjectStore, StoreFaults};
use common::{Clock, Error, Name, Result, VolumeId};
use futures::FutureExt;
use objectrouter::{CreateVdisk, DtlWish, Router, VolumeRecord};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use volumedriver::Settings;

/// How long an operator waits for an answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often each thing happened.
pub type Coverage = BTreeMap<&'static str, u64>;

/// See the module's head.
pub struct World {
    /// Virtual time.
    pub clock: Arc<SimClock>,
    /// The network.
    pub net: Arc<Net>,
    /// The registry.
    pub truth: Arc<Truth>,
    /// The object store.
    pub store: SimObjectStore,
    /// Of all volume drivers.
    pub settings: Settings,
    /// Whether clients are sent to the owner.
    pub redirect: bool,
    /// Of all edge servers.
    pub edge_metrics: edge::protocol::server::Metrics,
    hosts: Vec<Mutex<Host>>,
    /// The vDisks that clients use.
    pub vdisks: Vec<Arc<Vdisk>>,
    /// A router that stood still, or was cut off, is back.
    pub woken: Notify,
    /// The last one that was.
    pub suspect: Mutex<Option<usize>>,
    /// Clients are to come to an end.
    pub over: watch::Sender<bool>,
    random: Mutex<fastrand::Rng>,
    diary: Mutex<Diary>,
    loud: bool,
}

#[derive(Default)]
struct Diary {
    digest: u64,
    lines: Vec<String>,
    wrong: Option<String>,
    coverage: Coverage,
    faults: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    /// The world of a plan; nothing runs in it. A `loud` one tells what happens while it does.
    pub fn new(plan: &Plan, loud: bool) -> Arc<World> {
        let mut random = fastrand::Rng::with_seed(plan.seed ^ 0x57ac_c000);
        let clock = Arc::new(SimClock::new(random.u64(..)));
        let hosts = plan.hosts.iter().enumerate();
        let hosts = hosts.map(|(n, make)| Mutex::new(Host::new(n, *make, &mut random))).collect();
        Arc::new(World {
            net: Net::new(clock.clone(), random.u64(..)),
            truth: Truth::new(clock.clone()),
            store: SimObjectStore::new(random.u64(..)),
            settings: Settings {
                journal_mib: 8,
                segment_mib: 1,
                buffer_mib: 16,
                read_cache_mib: 1,
                index_cache_mib: 4,
                ssd_cache_mib: 0,
                seal_age_seconds: plan.seal_age,
                tlog_scos: 4,
                ..Settings::default()
            },
            redirect: plan.redirect,
            edge_metrics: Default::default(),
            hosts,
            vdisks: (0..plan.vdisks.len()).map(|n| Arc::new(Vdisk::new(n))).collect(),
            woken: Notify::new(),
            suspect: Mutex::default(),
            over: watch::Sender::new(false),
            random: Mutex::new(random),
            diary: Mutex::default(),
            clock,
            loud,
        })
    }

    /// Something with a machine.
    pub fn host<T>(&self, number: usize, f: impl FnOnce(&mut Host) -> T) -> T {
        f(&mut lock(&self.hosts[number]))
    }

    /// Numbers of all machines.
    pub fn numbers(&self) -> std::ops::Range<usize> {
        0..self.hosts.len()
    }

    /// A draw.
    pub fn draw(&self) -> u64 {
        lock(&self.random).u64(..)
    }

    /// A draw below `n`.
    pub fn below(&self, n: u64) -> u64 {
        lock(&self.random).u64(..n)
    }

    /// Something happened: for the digest and for whoever reads of it.
    pub fn tell(&self, what: &str) {
        let line = format!("{:9.3} {what}", self.clock.now().as_secs_f64());
        if self.loud {
            println!("{line}");
        }
        let mut diary = lock(&self.diary);
        let number = u64::from(common::crc::crc32c(line.as_bytes()));
        diary.digest = (diary.digest ^ number).wrapping_mul(0x0100_0000_01b3).rotate_left(23);
        if diary.lines.len() < 4000 {
            diary.lines.push(line);
        }
    }

    /// A fault that happened, counted.
    pub fn note(&self, what: &'static str) {
        *lock(&self.diary).coverage.entry(what).or_default() += 1;
    }

    /// Something is wrong; the first thing that is counts.
    pub fn wrong(&self, what: String) {
        let now = self.clock.now().as_secs_f64();
        let mut diary = lock(&self.diary);
        if diary.wrong.is_none() {
            if self.loud {
                println!("{now:9.3} WRONG: {what}");
            }
            diary.wrong = Some(format!("at {now:.3} s: {what}"));
        }
        drop(diary);
        self.over.send_replace(true);
    }

    /// What was wrong, if anything was.
    pub fn verdict(&self) -> Option<String> {
        lock(&self.diary).wrong.clone()
    }

    /// What happened, as a number and as counts.
    pub fn diary(&self) -> (u64, Coverage) {
        let diary = lock(&self.diary);
        (diary.digest, diary.coverage.clone())
    }

    /// Whether anything has gone wrong yet, so that an error has a cause.
    pub fn had_faults(&self) -> bool {
        lock(&self.diary).faults > 0
    }

    /// What the registry says of a vDisk's volume.
    pub fn record(&self, vdisk: &Vdisk) -> Option<VolumeRecord> {
        let id = self.id_of(&vdisk.name.parse().ok()?)?;
        let pair = self.truth.kv.get(&format!("volume/{id}")).now_or_never()?.ok()??;
        serde_json::from_slice(&pair.value).ok()
    }

    /// The identity of a vDisk's volume.
    pub fn id_of(&self, name: &Name) -> Option<VolumeId> {
        let pair = self.truth.kv.get(&format!("vdisk/p/{name}")).now_or_never()?.ok()??;
        let value: serde_json::Value = serde_json::from_slice(&pair.value).ok()?;
        value["id"].as_str()?.parse().ok()
    }

    /// Whether somebody gave up something of a vDisk by force.
    pub fn is_forced(&self, name: &Name) -> bool {
        self.vdisks.iter().any(|vdisk| vdisk.name == name.as_str() && vdisk.content().forced)
    }

    /// The router of a machine, when it serves.
    pub fn router(&self, number: usize) -> Option<Arc<Router>> {
        self.host(number, |host| {
            let serves = host.serves();
            host.process.as_ref().filter(|_| serves).map(|process| process.router.clone())
        })
    }

    /// Who owns a vDisk.
    pub fn owner(&self, vdisk: usize) -> Option<usize> {
        let record = self.record(&self.vdisks[vdisk])?;
        let name = record.holder.map_or(record.registration.owner, |holder| holder.node);
        host::number(name.as_str())
    }

    fn who(&self, whom: Whom) -> Option<usize> {
        match whom {
            Whom::Router(n) => Some(n),
            Whom::Owner(vdisk) => self.owner(vdisk),
            Whom::Peer(vdisk) => {
                let record = self.record(&self.vdisks[vdisk])?;
                let peer = record.registration.config.peers.first()?.node.clone();
                host::number(peer.as_str())
            }
        }
    }

    /// After `time`, unless the world is well by then.
    fn later(self: &Arc<Self>, time: Duration, then: impl FnOnce(&Arc<World>) + Send + 'static) {
        let world = self.clone();
        tokio::spawn(async move {
            world.clock.sleep(time).await;
            then(&world);
        });
    }

    /// An operator asks a router for something; what becomes of it is told.
    fn operate<T: Send>(
        self: &Arc<Self>,
        what: String,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) {
        let world = self.clone();
        tokio::spawn(async move {
            let outcome = tokio::select! {
                biased;
                outcome = work => outcome.map(drop),
                () = world.clock.sleep(PATIENCE) => Err(Error::unavailable("no answer")),
            };
            match outcome {
                Ok(()) => world.tell(&format!("{what}: done")),
                Err(error) => world.tell(&format!("{what}: {error}")),
            }
        });
    }

    /// Something happens.
    pub fn happen(self: &Arc<Self>, event: &Event) {
        lock(&self.diary).faults += 1;
        self.tell(&format!("{event:?}"));
        match *event {
            Event::Die(whom, death, time) => {
                if let Some(n) = self.who(whom) {
                    self.die(&[(n, death)], time);
                }
            }
            Event::DieTogether(whom, deaths, time) => {
                let all =
                    whom.into_iter().zip(deaths).filter_map(|(whom, death)| Some((self.who(whom)?, death)));
                let mut all: Vec<_> = all.collect();
                all.dedup_by_key(|(n, _)| *n);
                if all.len() == 2 {
                    self.note("two die together");
                }
                self.die(&all, time);
            }
            Event::Freeze(whom, time) => {
                let Some(n) = self.who(whom).filter(|n| self.host(*n, |host| host.serves())) else { return };
                self.note("stands still (SIGSTOP)");
                self.host(n, |host| host.stand_still(true));
                self.later(time, move |world| world.thaw(n));
            }
            Event::Cut(whom, side, ways, time) => {
                if let Some(n) = self.who(whom) {
                    self.cut(n, side, ways, time);
                }
            }
            Event::DtlDies(whom, time) => self.dtl_dies(whom, time),
            Event::RegistryAway(time) => {
                self.note("registry without a leader");
                self.truth.go_away();
                self.later(time, |world| world.truth.come_back());
            }
            Event::Compact => {
                let truth = self.truth.clone();
                tokio::spawn(async move { truth.compact().await });
            }
            Event::StoreFails(per_mille, time) => {
                self.store.set_faults(StoreFaults {
                    fail_per_mille: per_mille,
                    lost_reply_per_mille: per_mille / 2,
                    late_put_per_mille: per_mille / 4,
                    ..StoreFaults::default()
                });
                self.later(time, |world| world.store.set_faults(StoreFaults::default()));
            }
            Event::StoreAway(time) => {
                self.note("store away");
                self.store.set_faults(StoreFaults { away: true, ..StoreFaults::default() });
                self.later(time, |world| world.store.set_faults(StoreFaults::default()));
            }
            Event::LatePuts => self.store.deliver_late_puts(),
            Event::Move(vdisk, to) => self.move_vdisk(vdisk, to),
            Event::Drain(n, time) => self.drain(n, time),
            Event::Stop(n, time) => self.stop(n, time),
            Event::SetDtl(vdisk, mode, peers, needed, on_failure) => {
                let wish = DtlWish {
                    mode: Some(mode),
                    peers: Some(peers),
                    needed: Some(needed),
                    on_failure: Some(on_failure),
                };
                self.set_dtl(vdisk, wish);
            }
            Event::ClientDies(vdisk) => {
                self.note("client dies");
                self.vdisks[vdisk].death.send_modify(|n| *n += 1);
            }
            Event::Churn => self.churn(),
        }
    }

    fn die(self: &Arc<Self>, all: &[(usize, Death)], time: Duration) {
        let all: Vec<_> =
            all.iter().copied().filter(|(n, _)| self.host(*n, |host| host.process.is_some())).collect();
        // Mostly no more fails than the rules allow; what happens else is that nobody gets in unforced.
        let records = self.vdisks.iter().filter_map(|vdisk| self.record(vdisk));
        if records.into_iter().any(|record| !self.has_copy(&record, &all)) {
            if self.below(5) > 0 {
                return self.tell("spared: it would be one loss too many");
            }
            self.note("more is lost than the rules allow");
        }
        for (n, death) in all {
            self.one_dies(n, death, time);
        }
    }

    fn one_dies(self: &Arc<Self>, n: usize, death: Death, time: Duration) {
        self.tell(&format!("router {n}: {death:?}"));
        let life = self.host(n, |host| host.life);
        match death {
            Death::Kill(None) => {
                self.note("killed");
                self.host(n, Host::kill);
            }
            Death::Kill(Some(effects)) => {
                self.note("killed at an effect");
                let gate = self.host(n, |host| host.place.gate.clone());
                gate.die_at(effects);
                let world = self.clone();
                tokio::spawn(async move {
                    tokio::select! {
                        biased;
                        () = gate.death() => {}
                        () = world.clock.sleep(Duration::from_secs(2)) => {}
                    }
                    world.host(n, |host| {
                        if host.life == life {
                            host.kill();
                        }
                    });
                });
            }
            Death::Power | Death::Lost => {
                self.memory_goes(n);
                let mut random = fastrand::Rng::with_seed(self.draw());
                if death == Death::Power {
                    self.note("power cut");
                    self.host(n, |host| host.cut_power(&mut random));
                } else {
                    self.note("disk lost");
                    self.host(n, |host| host.lose(&mut random));
                }
            }
        }
        self.later(time.max(Duration::from_millis(2100)), move |world| {
            if world.host(n, |host| host.life == life && !host.is_up()) {
                host::start(world, n);
            }
        });
    }

    /// What was acknowledged and not flushed, of volumes whose owner this is, may go with its memory.
    fn memory_goes(&self, n: usize) {
        let name = host::name(n);
        for vdisk in &self.vdisks {
            let Some(record) = self.record(vdisk) else { continue };
            let at_it = record.registration.owner == name
                || record.holder.as_ref().is_some_and(|holder| holder.node == name);
            if at_it && tail_is_in_memory(&record) {
                vdisk.content().lenient = true;
            }
        }
    }

    fn thaw(&self, n: usize) {
        self.host(n, |host| host.stand_still(false));
        self.tell(&format!("router {n} goes on"));
        self.wake(n);
    }

    fn wake(&self, n: usize) {
        *lock(&self.suspect) = Some(n);
        self.woken.notify_waiters();
    }

    fn cut(self: &Arc<Self>, n: usize, side: Side, ways: Ways, time: Duration) {
        let others: Vec<Node> = match side {
            Side::Clients => vec![Node::Client],
            Side::Registry => vec![Node::Registry],
            Side::Store => vec![Node::Store],
            Side::Router(other) if other == n => return,
            Side::Router(other) => vec![Node::Router(other)],
            Side::All => {
                let routers = self.numbers().filter(|other| *other != n).map(Node::Router);
                routers.chain([Node::Client, Node::Registry, Node::Store]).collect()
            }
        };
        self.note(match side {
            Side::Clients => "cut from clients",
            Side::Registry => "cut from the registry",
            Side::Store => "cut from the store",
            Side::Router(_) => "cut from a router",
            Side::All => "cut from everybody",
        });
        if ways != Ways::Both {
            self.note("cut one way");
        }
        let me = Node::Router(n);
        let mut cuts = Vec::new();
        for other in others {
            if ways != Ways::Out {
                cuts.push((other, me));
            }
            if ways != Ways::In {
                cuts.push((me, other));
            }
        }
        cuts.iter().for_each(|(from, to)| self.net.cut(*from, *to));
        self.later(time, move |world| {
            cuts.iter().for_each(|(from, to)| world.net.heal(*from, *to));
            world.wake(n);
        });
    }

    fn dtl_dies(self: &Arc<Self>, whom: Whom, time: Duration) {
        let Some(n) = self.who(whom).filter(|n| self.host(*n, |host| host.keeper.is_some())) else { return };
        self.note("DTL dies alone");
        let life = self.host(n, |host| {
            host.kill_keeper();
            host.life
        });
        let (world, seed) = (self.clone(), self.draw());
        tokio::spawn(async move {
            world.clock.sleep(time).await;
            if world.host(n, |host| host.life == life && host.keeper.is_none() && host.is_up())
                && let Err(error) = host::start_keeper(&world, n, seed).await
            {
                world.wrong(format!("the DTL of router {n} does not start: {error}"));
            }
        });
    }

    fn at_owner(self: &Arc<Self>, vdisk: usize) -> Option<Arc<Router>> {
        self.owner(vdisk).and_then(|n| self.router(n))
    }

    fn move_vdisk(self: &Arc<Self>, vdisk: usize, to: usize) {
        let Some(router) = self.at_owner(vdisk) else { return };
        self.note("move");
        let (name, world) = (self.vdisks[vdisk].name.clone(), self.clone());
        self.operate(format!("move {name} to {to}"), async move {
            router.move_vdisk("p", &name, &host::name(to)).await?;
            world.note("move arrived");
            Ok(())
        });
    }

    fn drain(self: &Arc<Self>, n: usize, time: Duration) {
        let Some(router) = self.router(n) else { return };
        self.note("drain");
        self.operate(format!("drain {n}"), async move { router.drain_router(true).await });
        self.later(time, move |world| world.undrain(n));
    }

    fn undrain(self: &Arc<Self>, n: usize) {
        if let Some(router) = self.router(n) {
            self.operate(format!("resume {n}"), async move { router.drain_router(false).await });
        }
    }

    /// Stops a router in order.
    fn stop(self: &Arc<Self>, n: usize, time: Duration) {
        let Some(router) = self.router(n) else { return };
        self.note("stopped in order");
        let (world, life) = (self.clone(), self.host(n, |host| host.life));
        self.host(n, |host| {
            if let Some(process) = &host.process {
                process.stop.send_replace(true);
            }
        });
        // What it awaits can't be sent between threads as far as the compiler sees; there is only one.
        tokio::task::spawn_local(async move {
            tokio::select! {
                biased;
                () = router.shutdown(Duration::from_secs(5)) => {}
                () = world.clock.sleep(Duration::from_secs(60)) => {}
            }
            let ours = world.host(n, |host| {
                let ours = host.life == life && host.is_up();
                if ours {
                    host.kill();
                }
                ours
            });
            world.clock.sleep(time).await;
            if ours && world.host(n, |host| host.life == life && !host.is_up()) {
                host::start(&world, n);
            }
        });
    }

    /// Changes how a vDisk is replicated.
    pub fn set_dtl(self: &Arc<Self>, number: usize, wish: DtlWish) {
        let Some(router) = self.at_owner(number) else { return };
        self.note("DTL changed");
        let vdisk = self.vdisks[number].clone();
        if wish.mode == Some(dtl::Mode::Async) {
            vdisk.content().lenient = true;
        }
        self.operate(format!("{} {wish:?}", vdisk.name), async move {
            router.set_dtl("p", &vdisk.name, wish).await
        });
    }

    fn churn(self: &Arc<Self>) {
        let number = self.below(self.hosts.len() as u64) as usize;
        let Some(router) = self.router(number) else { return };
        self.note("vDisk made");
        let name = format!("x{}", self.below(1 << 30));
        let world = self.clone();
        self.operate(format!("a life of {name} at {number}"), async move {
            let spec = CreateVdisk {
                vpool: "p".into(),
                name: name.parse().map_err(|_| Error::invalid("a name"))?,
                size: 1 << 20,
                sco_size: None,
            };
            router.create_vdisk(spec).await?;
            let device = router.open_export(&format!("p/{name}")).await?;
            device.write(0, vec![1; 8192].into(), true).await?;
            drop(device);
            router.delete_vdisk("p", &name, true).await?;
            world.note("vDisk deleted");
            Ok(())
        });
    }

    /// An operator says that the machine with a router's name is gone for ever.
    pub async fn forget_router(self: &Arc<Self>, n: usize) {
        for other in self.numbers().filter(|other| *other != n) {
            if let Some(router) = self.router(other) {
                match router.remove_router(&host::name(n)).await {
                    Ok(()) => return self.tell(&format!("router {n} was forgotten")),
                    Err(error) => self.tell(&format!("router {n} is not forgotten: {error}")),
                }
            }
        }
    }

    /// Everything is well from now on.
    pub fn heal(self: &Arc<Self>) {
        self.tell("all is well again");
        self.net.heal_all();
        self.truth.come_back();
        self.store.set_faults(StoreFaults::default());
        self.store.deliver_late_puts();
        for n in self.numbers() {
            self.host(n, |host| host.stand_still(false));
            if !self.host(n, |host| host.is_up()) {
                host::start(self, n);
            }
            self.undrain(n);
        }
    }

    /// How often each fault took effect.
    pub fn coverage(&self) -> Coverage {
        let (_, mut coverage) = self.diary();
        let (registry, store) = (self.truth.tally(), self.store.tally());
        for (what, n) in [
            ("registry: outcome unknown", registry.unknown),
            ("registry: change came late", registry.late),
            ("registry: watch began anew", registry.forgotten),
            ("registry: lease expired", registry.expired),
            ("store: request failed", store.failed),
            ("store: reply lost", store.lost_replies),
            ("store: put came late", store.late_landed),
        ] {
            *coverage.entry(what).or_default() += n;
        }
        coverage
    }
}
