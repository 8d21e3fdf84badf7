//! Clients: one at a time for each vDisk, in one life after the other, and whoever looks at what routers answer.
//!
//! A client of the edge protocol sees latency and nothing else, whatever router dies. One at a router itself, as NBD's
//! is, keeps nothing: what it was told has to be there when it comes back. Whoever comes in reads everything first.

use super::gate::Gate;
use super::host::{Dialer, name};
use super::net::{Node, Place};
use super::truth::Vdisk;
use super::world::World;
use crate::sim::model::{Range, SECTOR};
use bytes::Bytes;
use common::{BlockDevice, Clock, Error, ErrorKind, Result};
use dtl::Mode;
use edge_client::{Device, Options};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How long a router may take to let a client in, before it asks another one.
const OPEN: Duration = Duration::from_secs(8);

/// The way of a client to its vDisk.
enum Access {
    /// Any router, by the edge protocol.
    Edge(Device, Gate),
    /// This router, in its process.
    Local(Local),
}

/// A handle in the process of a router.
#[derive(Clone)]
struct Local {
    router: usize,
    gate: Gate,
    device: Arc<dyn BlockDevice>,
}

/// Why a client has no answer.
enum Lost {
    /// The router said no, or died: what was asked for happened or did not.
    Away(Error),
    /// It may not be so.
    Wrong(String),
}

impl Local {
    /// What comes of a request; an answer is looked at in the moment in which it is given.
    async fn call<T>(
        &self,
        world: &World,
        vdisk: &Vdisk,
        request: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let died = || Error::unavailable("the router died");
        let answered = async {
            self.gate.pass().await;
            let answer = request.await;
            if answer.is_ok() && !self.gate.is_dead() {
                world.answered(vdisk, self.router);
            }
            self.gate.pass().await;
            answer
        };
        tokio::select! {
            biased;
            () = self.gate.death() => Err(died()),
            answer = answered => answer,
        }
    }
}

impl Access {
    async fn call<T>(
        &self,
        world: &World,
        vdisk: &Vdisk,
        request: impl Future<Output = Result<T>>,
    ) -> std::result::Result<T, Lost> {
        match self {
            Access::Edge(..) => request.await.map_err(|error| {
                Lost::Wrong(format!("a client of the edge protocol sees an error: {error}"))
            }),
            Access::Local(local) => local.call(world, vdisk, request).await.map_err(|error| {
                let passes =
                    matches!(error.kind, ErrorKind::NotOwner | ErrorKind::Fenced | ErrorKind::Unavailable);
                match passes && world.had_faults() {
                    true => Lost::Away(error),
                    false => Lost::Wrong(format!("an error without a cause: {error}")),
                }
            }),
        }
    }

    fn device(&self) -> &dyn BlockDevice {
        match self {
            Access::Edge(device, _) => device,
            Access::Local(local) => &*local.device,
        }
    }

    fn is_edge(&self) -> bool {
        matches!(self, Access::Edge(..))
    }
}

/// Everybody who uses a vDisk, one after the other, until the world is over.
pub async fn clients(world: Arc<World>, vdisk: Arc<Vdisk>, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut over = world.over.subscribe();
    let mut after_edge = false;
    while !*over.borrow() {
        let client = Client { world: &world, vdisk: &vdisk };
        // What an edge client had under way ends with its attachment: only another one can tell.
        let edge = after_edge || random.bool();
        let mut death = vdisk.death.subscribe();
        death.mark_unchanged();
        let life = client.live(edge, &mut random);
        let lived = tokio::select! {
            biased;
            lived = life => lived,
            _ = over.wait_for(|over| *over) => return,
        };
        after_edge = edge;
        match lived {
            Ok(()) => {}
            Err(Lost::Away(error)) => world.tell(&format!("{}: its client is out: {error}", vdisk.name)),
            Err(Lost::Wrong(what)) => return world.wrong(format!("{}: {what}", vdisk.name)),
        }
    }
}

struct Client<'a> {
    world: &'a Arc<World>,
    vdisk: &'a Vdisk,
}

impl Client<'_> {
    /// From coming in to its end: told, or because nobody answers any more.
    async fn live(&self, edge: bool, random: &mut fastrand::Rng) -> std::result::Result<(), Lost> {
        let access = match edge {
            true => self.open_edge(random).await?,
            false => self.open_local(random).await,
        };
        self.settle(&access).await?;
        let mut death = self.vdisk.death.subscribe();
        death.mark_unchanged();
        let stop = AtomicBool::new(false);
        let many = random.usize(1..4);
        let mut workers: FuturesUnordered<_> =
            (0..many).map(|_| self.work(&access, &stop, random.fork())).collect();
        let ended = tokio::select! {
            biased;
            ended = workers.next() => ended,
            _ = death.changed() => None,
        };
        stop.store(true, Ordering::Relaxed);
        match (&access, ended) {
            // It dies with whatever was under way.
            (Access::Edge(_, gate), None) => {
                gate.die();
                Ok(())
            }
            (_, Some(Err(Lost::Wrong(what)))) => Err(Lost::Wrong(what)),
            (_, first) => {
                // What a router has begun comes to an end, or the router does.
                let mut outcome = first.unwrap_or(Ok(()));
                while let Some(ended) = workers.next().await {
                    match ended {
                        Err(Lost::Wrong(what)) => return Err(Lost::Wrong(what)),
                        ended => outcome = outcome.and(ended),
                    }
                }
                outcome
            }
        }
    }

    async fn open_edge(&self, random: &mut fastrand::Rng) -> std::result::Result<Access, Lost> {
        let (world, vdisk) = (self.world, self.vdisk);
        loop {
            let gate = Gate::default();
            let place = Place::new(Node::Client, gate.clone());
            let mut addresses: Vec<String> = world.numbers().map(|n| name(n).to_string()).collect();
            random.shuffle(&mut addresses);
            let options = Options {
                client: format!("the client of {}", vdisk.name),
                deadline: Duration::ZERO,
                open: Duration::from_secs(20),
                keep: [64 << 10, 1 << 20, 8 << 20][random.usize(..3)],
                ..Options::default()
            };
            let clock: Arc<dyn Clock> = world.clock.clone();
            let dialer = Dialer::new(world, place);
            let error = match Device::open(addresses, &vdisk.export(), options, dialer, clock).await {
                Ok(device) => return Ok(Access::Edge(device, gate)),
                Err(error) => error,
            };
            gate.die();
            world.tell(&format!("{}: no attachment: {error}", vdisk.name));
            let passes = matches!(
                error.kind,
                // Somebody else's attachment is not over; a router has not heard of the vDisk.
                ErrorKind::Conflict | ErrorKind::NotFound | ErrorKind::Unavailable | ErrorKind::NotOwner
            );
            if !passes {
                return Err(Lost::Wrong(format!("a client can't attach: {error}")));
            }
            world.clock.sleep(Duration::from_millis(500)).await;
        }
    }

    async fn open_local(&self, random: &mut fastrand::Rng) -> Access {
        let (world, vdisk) = (self.world, self.vdisk);
        loop {
            let first = random.usize(world.numbers());
            for n in world.numbers().map(|n| (n + first) % world.numbers().len()) {
                if let Some(local) = open_at(world, vdisk, n).await {
                    return Access::Local(local);
                }
            }
            world.clock.sleep(Duration::from_millis(random.u64(50..400))).await;
        }
    }

    /// Reads everything, which must be as clients before were told.
    async fn settle(&self, access: &Access) -> std::result::Result<(), Lost> {
        let (world, vdisk) = (self.world, self.vdisk);
        let size = access.device().geometry().size as u32;
        let image = access.call(world, vdisk, access.device().read(0, size)).await?;
        let by_log_alone =
            world.record(vdisk).is_some_and(|record| record.registration.config.mode == Mode::Async);
        world.tell(&format!(
            "{}: a client is in ({})",
            vdisk.name,
            if access.is_edge() { "edge" } else { "local" }
        ));
        vdisk
            .settle(&image, by_log_alone)
            .map_err(|wrong| Lost::Wrong(format!("whoever comes in finds: {wrong}")))
    }

    async fn work(
        &self,
        access: &Access,
        stop: &AtomicBool,
        mut random: fastrand::Rng,
    ) -> std::result::Result<(), Lost> {
        while !stop.load(Ordering::Relaxed) {
            self.request(access, &mut random).await?;
            let pause = match random.u32(..8) {
                0 => random.u64(50..600),
                1..4 => random.u64(2..60),
                _ => 0,
            };
            self.world.clock.sleep(Duration::from_millis(pause)).await;
        }
        Ok(())
    }

    async fn request(&self, access: &Access, random: &mut fastrand::Rng) -> std::result::Result<(), Lost> {
        let (world, vdisk, device) = (self.world, self.vdisk, access.device());
        let range = self.range(random);
        let (offset, len) = ((range.first * SECTOR) as u64, range.count * SECTOR);
        let fua = random.u32(..10) == 0;
        match random.u32(..100) {
            0..55 => {
                let (ticket, data) = vdisk.content().model.begin_write(range);
                access.call(world, vdisk, device.write(offset, Bytes::from(data), fua)).await?;
                vdisk.content().model.ack(ticket, fua);
            }
            55..62 => {
                let ticket = vdisk.content().model.begin_zero(range);
                access.call(world, vdisk, device.write_zeroes(offset, len as u64, true, fua)).await?;
                vdisk.content().model.ack(ticket, fua);
            }
            62..90 => {
                let issued = vdisk.content().model.now();
                let data = access.call(world, vdisk, device.read(offset, len as u32)).await?;
                let checked = vdisk.content().model.check_read(range, issued, &data);
                checked.map_err(|wrong| Lost::Wrong(format!("a client reads: {wrong}")))?;
            }
            _ => {
                let begun = vdisk.content().model.now();
                access.call(world, vdisk, device.flush()).await?;
                let mut content = vdisk.content();
                content.flushed = content.flushed.max(begun);
            }
        }
        Ok(())
    }

    fn range(&self, random: &mut fastrand::Rng) -> Range {
        let most = self.vdisk.content().model.size();
        let (first, count) = match random.u32(..4) {
            // A part of a cluster, or across two.
            0 => (random.usize(..most), random.usize(1..12)),
            _ => (random.usize(..most / 8) * 8, random.usize(1..3) * 8),
        };
        Range { first, count: count.min(most - first) }
    }
}

async fn open_at(world: &Arc<World>, vdisk: &Vdisk, n: usize) -> Option<Local> {
    let router = world.router(n)?;
    let gate = world.host(n, |host| host.place.gate.clone());
    let export = vdisk.export();
    let opened = tokio::select! {
        biased;
        () = gate.death() => return None,
        opened = router.open_export(&export) => opened,
        () = world.clock.sleep(OPEN) => return None,
    };
    Some(Local { router: n, gate, device: opened.ok()? })
}

/// Asks routers what they have, whoever owns it: what any of them says must be true (R1). Handles are kept, so that a
/// router that was deposed while it stood still is asked again by who knew it before.
pub async fn look(world: Arc<World>, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut handles: BTreeMap<(usize, u64, usize), Local> = BTreeMap::new();
    loop {
        let suspect = tokio::select! {
            biased;
            () = world.woken.notified() => world.suspect.lock().ok().and_then(|suspect| *suspect),
            () = world.clock.sleep(Duration::from_millis(random.u64(20..500))) => None,
        };
        if *world.over.borrow() {
            return;
        }
        let many = if suspect.is_some() { 3 * world.vdisks.len() } else { 1 };
        for turn in 0..many {
            let n = suspect.unwrap_or_else(|| random.usize(world.numbers()));
            let vdisk = world.vdisks[turn % world.vdisks.len()].clone();
            let life = world.host(n, |host| host.life);
            let key = (n, life, vdisk.number);
            let kept = handles.get(&key).filter(|local| local.gate.runs()).cloned();
            let local = match kept {
                Some(local) => local,
                None => match open_at(&world, &vdisk, n).await {
                    Some(local) => local,
                    None => continue,
                },
            };
            let read = look_once(&world, &vdisk, &local, &mut random).await;
            if read {
                handles.insert(key, local);
            } else {
                handles.remove(&key);
            }
        }
    }
}

/// Whether there was an answer.
async fn look_once(world: &World, vdisk: &Vdisk, local: &Local, random: &mut fastrand::Rng) -> bool {
    let first = random.usize(..super::truth::CLUSTERS) * 8;
    let range = Range { first, count: 8 };
    let (issued, settled) = {
        let mut content = vdisk.content();
        (content.model.now(), content.settled)
    };
    let read = local.device.read((first * SECTOR) as u64, (8 * SECTOR) as u32);
    let Ok(data) = local.call(world, vdisk, read).await else { return false };
    let mut content = vdisk.content();
    // What may be lost is settled by who comes in next.
    if content.lenient || content.forced || content.settled != settled {
        return true;
    }
    if let Err(wrong) = content.model.check_read(range, issued, &data) {
        drop(content);
        world.wrong(format!("{}: somebody who looks at router {} reads: {wrong}", vdisk.name, local.router));
    }
    true
}
