//! Members, their disks and the network, in virtual time.

mod faults;

use super::clients::Clients;
use super::judge::Judge;
use super::plan::{Plan, Tally};
use crate::log::{Log, LogBatch, LogSettings, Position};
use crate::machine::layout::{Configuration, Meta};
use crate::machine::staging::Staging;
use crate::machine::{Limits, Machine};
use crate::node::core::{Effect, Member};
use crate::node::message::PeerMessage;
use crate::node::request::{Change, Request, Response};
use crate::node::{Settings, opening};
use crate::transport::memory::{Net, NetFaults};
use common::sim::{SimDisk, SimTable};
use common::table::Table as _;
use common::{Error, ErrorKind};
use futures::executor::block_on;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

const GROUP: u128 = 0xfeed;
const TICK: u64 = 50_000;
const MS: u64 = 1000;
const SECOND: u64 = 1_000_000;
/// Numbers from here on are clients.
pub(super) const CLIENTS: u64 = 1000;
const ADMIN: u64 = 900;

/// What travels.
#[derive(Debug, Clone)]
pub(super) enum Packet {
    Peer(bytes::Bytes),
    Request { token: u64, request: bytes::Bytes },
    Response { token: u64, response: bytes::Bytes },
}

enum Job {
    Persist { number: u64, batch: LogBatch },
    Compact { floor: Position },
}

struct Life {
    member: Member,
    log: Log,
    jobs: VecDeque<Job>,
    busy: bool,
}

struct Node {
    disk: SimDisk,
    table: Arc<SimTable>,
    life: Option<Life>,
    lives: u64,
    frozen_until: u64,
    /// Parts per thousand of its clock's speed.
    rate: u64,
    gone: bool,
    /// The last snapshot that it installed.
    installed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Tick { node: u64, life: u64 },
    DiskDone { node: u64, life: u64 },
    Restart { node: u64 },
    Client { client: u64 },
    Fault,
    Heal,
}

pub(super) struct World {
    pub plan: Plan,
    pub random: fastrand::Rng,
    pub now: u64,
    pub net: Net<Packet>,
    pub judge: Judge,
    pub tally: Tally,
    /// The last phase: no more faults, everything has to come to rest.
    pub quiet: bool,
    nodes: BTreeMap<u64, Node>,
    events: BTreeMap<(u64, u64), Event>,
    scheduled: u64,
    admin_token: u64,
    next_node: u64,
    told: bool,
}

impl World {
    pub fn run(seed: u64, plan: Plan) -> Result<Tally, String> {
        let mut world = World::new(seed, plan);
        let mut clients = Clients::new(&mut world);
        let outcome = world.play(&mut clients);
        outcome.map_err(|why| format!("at {:.6} s: {why}", world.now as f64 / 1e6))?;
        Ok(world.tally)
    }

    fn new(seed: u64, plan: Plan) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut world = World {
            net: Net::new(random.u64(..)),
            now: 0,
            judge: Judge::default(),
            tally: Tally::default(),
            quiet: false,
            nodes: BTreeMap::new(),
            events: BTreeMap::new(),
            scheduled: 0,
            admin_token: 0,
            next_node: plan.members + 1,
            told: std::env::var("KVSTORE_SEED").is_ok(),
            plan,
            random,
        };
        let configuration =
            Configuration { voters: (1..=world.plan.members).collect(), ..Configuration::default() };
        for id in 1..=world.plan.members {
            world.add_node(id, Some(&configuration));
        }
        world
    }

    fn add_node(&mut self, id: u64, configuration: Option<&Configuration>) {
        let table = Arc::new(SimTable::new());
        match configuration {
            Some(configuration) => {
                let staging = Staging::begin(table.clone(), 1).expect("a simulated table");
                let meta = Meta {
                    index: 1,
                    term: 1,
                    history_from: 1,
                    installed: 1,
                    configuration: configuration.clone(),
                    ..Meta::default()
                };
                staging.set_meta(&meta).expect("a simulated table");
                staging.activate(GROUP, id).expect("a simulated table");
            }
            None => Machine::create(table.clone(), GROUP, id).expect("a simulated table"),
        }
        let rate = self.random.u64(960..=1040);
        let node = Node {
            disk: SimDisk::new(),
            table,
            life: None,
            lives: 0,
            frozen_until: 0,
            rate,
            gone: false,
            installed: 0,
        };
        self.nodes.insert(id, node);
        self.at(self.now, Event::Restart { node: id });
    }

    fn at(&mut self, time: u64, event: Event) {
        self.scheduled += 1;
        self.events.insert((time, self.scheduled), event);
    }

    pub fn wake_client(&mut self, client: u64, time: u64) {
        self.at(time.max(self.now), Event::Client { client });
    }

    pub fn tell(&self, what: impl FnOnce() -> String) {
        if self.told {
            println!("{:>10.6} {}", self.now as f64 / 1e6, what());
        }
    }

    pub fn node_ids(&self) -> Vec<u64> {
        self.nodes.iter().filter(|(_, n)| !n.gone).map(|(id, _)| *id).collect()
    }

    fn play(&mut self, clients: &mut Clients) -> Result<(), String> {
        self.at(SECOND, Event::Fault);
        let faults_end = self.plan.seconds * SECOND;
        let mut healed = false;
        loop {
            if self.now >= faults_end && !healed {
                healed = true;
                self.heal();
            }
            if healed && clients.are_done() && self.has_converged()? {
                break;
            }
            if self.now > faults_end + 60 * SECOND {
                let states = self.told_states();
                return Err(format!(
                    "nothing is wrong any more, and it does not come to rest: {}\n{states}",
                    clients.told()
                ));
            }
            self.step(clients)?;
        }
        self.tally.lost = self.net.lost;
        self.tally.leaders = self.judge.leaders();
        self.tally.applied = self.judge.applied();
        let contents = self.contents()?;
        self.judge.verdict(&contents, &mut self.tally)
    }

    fn step(&mut self, clients: &mut Clients) -> Result<(), String> {
        self.tally.events += 1;
        let event = self.events.keys().next().map(|(at, _)| *at);
        let packet = self.net.next();
        if let (Some(at), true) = (packet, event.is_none_or(|e| packet.is_some_and(|p| p <= e))) {
            self.now = self.now.max(at);
            if let Some((from, to, packet)) = self.net.receive(self.now) {
                return self.arrive(clients, from, to, packet);
            }
            return Ok(());
        }
        let Some(((at, _), event)) = self.events.pop_first() else {
            return Err("nothing happens any more".into());
        };
        self.now = self.now.max(at);
        match event {
            Event::Tick { node, life } => self.tick(node, life),
            Event::DiskDone { node, life } => self.disk_done(node, life),
            Event::Restart { node } => self.restart(node),
            Event::Client { client } => {
                clients.wake(self, client);
                Ok(())
            }
            Event::Fault => {
                self.fault();
                Ok(())
            }
            Event::Heal => {
                self.net.heal();
                self.net.faults = NetFaults::default();
                Ok(())
            }
        }
    }

    fn arrive(&mut self, clients: &mut Clients, from: u64, to: u64, packet: Packet) -> Result<(), String> {
        match packet {
            Packet::Response { token, response } => {
                let (response, _) = Response::decode(response).map_err(|e| e.to_string())?;
                if to == ADMIN {
                    self.tell(|| format!("admin: {response:?}"));
                    self.tally.changes += u64::from(response == Response::Done);
                    return Ok(());
                }
                clients.answer(self, to, token, response)
            }
            Packet::Peer(_) | Packet::Request { .. } => {
                let Some(node) = self.nodes.get_mut(&to) else { return Ok(()) };
                if node.frozen_until > self.now {
                    // It lies in the buffer of a socket.
                    let until = node.frozen_until;
                    let faults = std::mem::take(&mut self.net.faults);
                    self.net.faults.delay = (until - self.now, until - self.now + 1);
                    self.net.send(self.now, from, to, packet);
                    self.net.faults = faults;
                    return Ok(());
                }
                let Some(life) = &mut node.life else { return Ok(()) };
                let done = match packet {
                    Packet::Peer(bytes) => {
                        let message = PeerMessage::decode(bytes).map_err(|e| e.to_string())?;
                        life.member.peer(from, message)
                    }
                    Packet::Request { token, request } => {
                        let request = Request::decode(request).map_err(|e| e.to_string())?;
                        life.member.request(token, request)
                    }
                    Packet::Response { .. } => Ok(()),
                };
                if let Err(error) = done {
                    return Err(format!("member {to}: {error}"));
                }
                self.flush(to)
            }
        }
    }

    fn tick(&mut self, id: u64, life: u64) -> Result<(), String> {
        let Some(node) = self.nodes.get_mut(&id).filter(|n| n.lives == life) else { return Ok(()) };
        if node.frozen_until > self.now {
            let until = node.frozen_until;
            self.at(until, Event::Tick { node: id, life });
            return Ok(());
        }
        let Some(alive) = &mut node.life else { return Ok(()) };
        alive.member.tick();
        let rate = node.rate;
        // Timers are late, never early.
        let late = if self.random.u8(..10) == 0 { self.random.u64(..20 * MS) } else { self.random.u64(..MS) };
        self.at(self.now + TICK * 1000 / rate + late, Event::Tick { node: id, life });
        self.flush(id)
    }

    fn flush(&mut self, id: u64) -> Result<(), String> {
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        let (life_number, Some(life)) = (node.lives, &mut node.life) else { return Ok(()) };
        let effects = life.member.flush().map_err(|e| format!("member {id} can't go on: {e}"))?;
        let applied = std::mem::take(&mut life.member.applied);
        let installed = life.member.machine().meta().installed;
        self.tally.snapshots += u64::from(installed > 1 && node.installed != installed);
        node.installed = installed;
        self.judge.applied_by(id, self.now, applied)?;
        if life.member.leads() {
            self.judge.leads(id, life.member.term())?;
        }
        if self.random.u8(..16) == 0 {
            let machine = life.member.machine();
            self.judge.state(id, machine.index(), machine.digest().map_err(|e| e.to_string())?)?;
        }
        let removed = life.member.is_removed();
        let (mut start, mut voted) = (false, false);
        for effect in effects {
            match effect {
                Effect::Persist { number, batch } => life.jobs.push_back(Job::Persist { number, batch }),
                Effect::Compact { floor } => life.jobs.push_back(Job::Compact { floor }),
                Effect::Send { to, message } => {
                    voted |= matches!(&message, PeerMessage::Raft(m)
                        if m.get_msg_type() == raft::eraftpb::MessageType::MsgRequestVoteResponse && !m.reject);
                    let bytes = message.encode().map_err(|e| e.to_string())?;
                    self.net.send(self.now, id, to, Packet::Peer(bytes));
                }
                Effect::Reply { token, response } => {
                    let to = token >> 32;
                    let parts = response.encode(usize::MAX);
                    for response in parts {
                        self.net.send(self.now, id, to, Packet::Response { token, response });
                    }
                }
            }
        }
        if !life.busy && !life.jobs.is_empty() {
            life.busy = true;
            start = true;
        }
        if start {
            let takes = if self.random.u8(..30) == 0 {
                self.random.u64(..200 * MS)
            } else {
                self.random.u64(50..2 * MS)
            };
            self.at(self.now + takes, Event::DiskDone { node: id, life: life_number });
        }
        if removed {
            self.tell(|| format!("member {id} is out"));
            if let Some(node) = self.nodes.get_mut(&id) {
                node.life = None;
                node.lives += 1;
                node.gone = true;
            }
        } else if self.plan.elections && voted && !self.quiet && self.random.u8(..6) == 0 {
            // Who has just voted must not forget it.
            let power = self.random.bool();
            self.kill(id, power);
        }
        Ok(())
    }

    /// The disk does everything that waits for it, as the disk thread would.
    fn work(life: &mut Life, table: &SimTable) -> Result<u64, Error> {
        let mut done = 0;
        let mut batches = Vec::new();
        while let Some(job) = life.jobs.pop_front() {
            match job {
                Job::Persist { number, batch } => {
                    batches.push(batch);
                    done = number;
                }
                Job::Compact { floor } => {
                    if !batches.is_empty() {
                        block_on(life.log.append(&std::mem::take(&mut batches)))?;
                    }
                    table.checkpoint()?;
                    block_on(life.log.compact(floor))?;
                }
            }
        }
        if !batches.is_empty() {
            block_on(life.log.append(&batches))?;
        }
        Ok(done)
    }

    fn disk_done(&mut self, id: u64, life: u64) -> Result<(), String> {
        let Some(node) = self.nodes.get_mut(&id).filter(|n| n.lives == life) else { return Ok(()) };
        if node.frozen_until > self.now {
            let until = node.frozen_until;
            self.at(until, Event::DiskDone { node: id, life });
            return Ok(());
        }
        let Some(alive) = &mut node.life else { return Ok(()) };
        alive.busy = false;
        let done = Self::work(alive, &node.table).map_err(|e| format!("the disk of member {id}: {e}"))?;
        if done > 0 {
            alive.member.persisted(done);
        }
        self.flush(id)
    }

    fn restart(&mut self, id: u64) -> Result<(), String> {
        let Some(node) = self.nodes.get_mut(&id).filter(|n| n.life.is_none() && !n.gone) else {
            return Ok(());
        };
        node.lives += 1;
        node.table = Arc::new(node.table.successor());
        let life = node.lives;
        let seed = self.random.u64(..);
        let opened = open(node, id, seed);
        match opened {
            Ok(opened) => node.life = Some(opened),
            Err(error) => return Err(format!("member {id} does not open: {error}")),
        }
        self.tell(|| format!("member {id} is up"));
        let first = self.now + self.random.u64(..TICK);
        self.at(first, Event::Tick { node: id, life });
        self.flush(id)
    }

    /// The members of the newest configuration.
    fn current(&self) -> Vec<u64> {
        let newest =
            self.nodes.values().filter_map(|n| n.life.as_ref()).max_by_key(|l| l.member.machine().index());
        let Some(newest) = newest else { return Vec::new() };
        let configuration = &newest.member.machine().meta().configuration;
        configuration.voters.iter().chain(&configuration.learners).copied().collect()
    }

    /// Whether all members have the same.
    fn has_converged(&mut self) -> Result<bool, String> {
        let mut states = Vec::new();
        for id in self.current() {
            let Some(life) = self.nodes.get(&id).and_then(|n| n.life.as_ref()) else { return Ok(false) };
            states.push((id, life.member.machine().index()));
        }
        if states.is_empty() || states.iter().any(|(_, index)| *index != states[0].1) {
            return Ok(false);
        }
        for (id, index) in states {
            let digest = self.nodes[&id].life.as_ref().map(|l| l.member.machine().digest());
            if let Some(digest) = digest {
                self.judge.state(id, index, digest.map_err(|e| e.to_string())?)?;
            }
        }
        Ok(true)
    }

    fn contents(&self) -> Result<Vec<common::kv::KvPair>, String> {
        let newest =
            self.nodes.values().filter_map(|n| n.life.as_ref()).max_by_key(|l| l.member.machine().index());
        let newest = newest.ok_or("nobody is left")?;
        let all = newest.member.machine().range(&crate::machine::Range::prefix(""));
        Ok(all.map_err(|e| e.to_string())?.pairs)
    }

    fn told_states(&self) -> String {
        let told = self.nodes.iter().map(|(id, node)| match &node.life {
            Some(l) => format!(
                "member {id}: leads {}, {:?}, jobs {}, busy {}",
                l.member.leads(),
                l.member.status(),
                l.jobs.len(),
                l.busy
            ),
            None => format!("member {id}: down, gone {}", node.gone),
        });
        told.collect::<Vec<_>>().join("\n")
    }
}

fn open(node: &Node, id: u64, seed: u64) -> common::Result<Life> {
    let limits = Limits { sessions: 4096, history_revisions: 256, history_bytes: 1 << 20 };
    let disk = Arc::new(node.disk.process());
    let settings = LogSettings { segment_bytes: 64 << 10, record_bytes: 1 << 10 };
    let (machine, log, recovered) = block_on(opening::open(node.table.clone(), limits, disk, settings))?;
    let settings = Settings {
        tick_ms: TICK / MS,
        compact_bytes: 12 << 10,
        part_bytes: 700,
        seed,
        ..Settings::default()
    };
    let member = Member::new(settings, machine, recovered).map_err(|e| match e.kind {
        ErrorKind::Internal => e.context(format!("member {id}")),
        _ => e,
    })?;
    Ok(Life { member, log, jobs: VecDeque::new(), busy: false })
}
