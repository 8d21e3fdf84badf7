//! One seed is one world: services that die and come back, connections that break or swallow, a registry whose
//! answers get lost, owners that die or are only thought dead, and takeovers. Checked against what was acknowledged.
//!
//! `SR_DTL_SEEDS` sets how many worlds, `SR_DTL_SEED` runs one.

mod world;

use common::sim::SimDiskFaults;
use common::{Epoch, Lsn, Name, mutant};
use dtl::owner::Outcome;
use dtl::storage::{Key, Limits};
use dtl::takeover::{Answer, Origin, Replay, Takeover, Verdict};
use dtl::{Config, Entry, Mode, Needed, OnFailure, Registration, Status};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use world::owner::{Process, name};
use world::{Kind, Peer, V};

/// What becomes of an owner whose volume is taken over.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Dies,
    /// It is cut off, and comes back later.
    Isolated,
    /// Only its lease is over: it goes on as if nothing had happened.
    Connected,
}

struct World {
    random: fastrand::Rng,
    peers: BTreeMap<Name, Arc<Peer>>,
    down: BTreeMap<Name, u32>,
    clock: Arc<dyn common::Clock>,
    registration: Registration,
    under_way: Vec<(Epoch, Config)>,
    committed: u64,
    owner: Process,
    zombies: Vec<(Process, u64)>,
    seen: Seen,
}

#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    in_sync: u64,
    acked: u64,
    restarts: u64,
    drains: u64,
    orphans: u64,
    zombie_steps: u64,
    second_deaths: u64,
    failed_disks: u64,
}

fn faults(failing_syncs: u32) -> SimDiskFaults {
    SimDiskFaults { failing_syncs, max_latency: Duration::from_millis(3), ..SimDiskFaults::default() }
}

impl World {
    async fn new(seed: u64) -> World {
        let mut random = fastrand::Rng::with_seed(seed);
        let clock = world::sim_clock(seed);
        let mode = if random.u8(..3) == 0 { Mode::Async } else { Mode::Sync };
        let needed = if random.bool() { Needed::One } else { Needed::All };
        let failure = if random.u8(..5) == 0 { OnFailure::Block } else { OnFailure::Degrade };
        let kinds = random.u8(..3);
        let mut peers = BTreeMap::new();
        for n in ["p", "q", "r"] {
            let disk = kinds == 0 || (kinds == 1 && random.bool());
            let limits =
                Limits { capacity: 256 << 10, volume_bytes: 128 << 10, volumes: 8, logs_per_volume: 8 };
            let kind = if disk { Kind::Disk } else { Kind::Memory };
            // Small segments: they fill up, are freed, cleaned and used again.
            let segments = (64 << 10, random.usize(5..9));
            let peer = Peer::with_segments(kind, limits, segments, clock.clone());
            // Syncs take their time, so that something comes between.
            peer.disk.set_random(random.fork());
            *peer.faults.lock() = faults(0);
            peer.start().await;
            peers.insert(name(n), peer);
        }
        let config = Config::alone(mode, random.u8(1..3), needed, failure);
        let owner = Process::new((&peers, &clock), 1, config.clone(), 0);
        let registration = Registration {
            owner: name("owner"),
            epoch: Epoch(1),
            claimed: Epoch(1),
            config,
            tails: Vec::new(),
            clean: false,
            losses: Vec::new(),
        };
        World {
            random,
            peers,
            down: BTreeMap::new(),
            clock,
            registration,
            under_way: Vec::new(),
            committed: 0,
            owner,
            zombies: Vec::new(),
            seen: Seen::default(),
        }
    }

    fn apply(&mut self, epoch: Epoch, new: &Config) -> Outcome {
        match self.registration.propose(epoch, new) {
            Ok(changed) => {
                self.registration = changed;
                Outcome::Applied
            }
            Err(found) => Outcome::Refused(Some(found)),
        }
    }

    fn answer_proposal(&mut self) {
        let Some(asked) = self.owner.asked.take() else { return };
        let epoch = Epoch(self.owner.epoch);
        let outcome = match self.random.u8(..5) {
            0 => {
                self.under_way.push((epoch, asked.clone()));
                Outcome::Unknown
            }
            1 => {
                let _ = self.apply(epoch, &asked);
                Outcome::Unknown
            }
            _ => self.apply(epoch, &asked),
        };
        self.owner.owner.outcome(&asked, outcome, self.clock.now());
    }

    /// Something goes wrong with a peer, or right again.
    async fn trouble(&mut self) {
        let names: Vec<Name> = self.peers.keys().cloned().collect();
        let node = names[self.random.usize(..names.len())].clone();
        let peer = self.peers[&node].clone();
        match self.random.u8(..8) {
            _ if !peer.is_up() => {
                peer.start().await;
            }
            0 | 1 => peer.cut(),
            2 => peer.swallow(),
            3 => {
                let random = &mut self.random;
                peer.power_cut(|| random.bool());
                self.seen.restarts += 1;
            }
            4 => {
                peer.kill();
                self.seen.restarts += 1;
            }
            5 => {
                // Restarts so fast that nobody notices but by what it has.
                let random = &mut self.random;
                peer.power_cut(|| random.u8(..4) == 0);
                peer.start().await;
                self.seen.restarts += 1;
            }
            6 if peer.kind == Kind::Disk && self.random.bool() => {
                // It says so and takes nothing any more; somebody starts it again later.
                peer.disk.set_faults(faults(1));
                self.down.entry(node.clone()).or_insert(self.random.u32(1..40));
            }
            _ => {}
        }
        if !peer.is_up() && !self.down.contains_key(&node) {
            self.down.insert(node, self.random.u32(1..40));
        }
    }

    async fn step(&mut self) {
        let now = self.clock.now();
        match self.random.u8(..20) {
            0..=8 => {
                let (n, len) = (self.random.u64(1..6), self.random.usize(10..900));
                // A client that waits for acknowledgements has only so many under way.
                if self.owner.last - self.owner.acked < 60 && self.owner.last - self.committed < 150 {
                    self.owner.write(n, len, now);
                }
            }
            9 | 10 => {
                let to = self.committed + self.random.u64(..=self.owner.last - self.committed);
                self.committed = to;
                self.owner.journal.commit(Lsn(to));
                for link in &self.owner.links {
                    link.replica.trim(Lsn(to));
                }
            }
            11 if self.random.u8(..3) == 0 => self.trouble().await,
            12..=14 => self.answer_proposal(),
            15 if !self.under_way.is_empty() => {
                let i = self.random.usize(..self.under_way.len());
                let (epoch, late) = self.under_way.swap_remove(i);
                let _ = self.apply(epoch, &late);
            }
            16 | 17 => {
                let ms = self.random.u64(..300);
                self.clock.sleep(Duration::from_millis(ms)).await;
                for node in self.down.keys().cloned().collect::<Vec<_>>() {
                    let left = self.down.get_mut(&node).unwrap();
                    *left -= 1;
                    if *left == 0 {
                        self.down.remove(&node);
                        let peer = self.peers[&node].clone();
                        if peer.is_up() && peer.kind == Kind::Disk {
                            let random = &mut self.random;
                            self.seen.failed_disks += u64::from(peer.store().tally().failed);
                            peer.power_cut(|| random.bool());
                        }
                        if !peer.is_up() {
                            peer.start().await;
                        }
                    }
                }
            }
            _ => {
                for _ in 0..self.random.u8(..30) {
                    tokio::task::yield_now().await;
                }
            }
        }
        let now = self.clock.now();
        let (random, committed) = (&mut self.random, self.committed);
        self.owner.turn(random, committed, now);
        self.seen.in_sync += u64::from(self.registration.config.status == Status::InSync);
        self.zombies();
    }

    /// Who was deposed by draining its logs gets nothing confirmed any more, whatever it tries.
    fn zombies(&mut self) {
        let now = self.clock.now();
        for (zombie, drained) in &mut self.zombies {
            if zombie.last - zombie.acked < 40 && self.random.u8(..4) == 0 {
                zombie.write(1, 50, now);
            }
            let before = zombie.acked;
            zombie.turn(&mut self.random, 0, now);
            if let Some(asked) = zombie.asked.take() {
                zombie.owner.outcome(&asked, Outcome::Unknown, now);
            }
            self.seen.zombie_steps += 1;
            if self.registration.config.mode == Mode::Sync && zombie.acked > before {
                assert!(
                    zombie.acked <= *drained,
                    "epoch {} acknowledged {} after {drained} was drained",
                    zombie.epoch,
                    zombie.acked
                );
            }
        }
    }

    /// The owner dies, or is thought to; somebody takes over. `false`: nobody may.
    async fn takeover(&mut self) -> bool {
        let fate = [Fate::Dies, Fate::Isolated, Fate::Connected][self.random.usize(..3)];
        if fate != Fate::Connected {
            self.owner.gate.store(false, Ordering::Relaxed);
            self.peers.values().for_each(|p| p.cut());
        }
        if self.random.u8(..4) == 0 {
            // The power of a peer fails too, and it is back before it is asked.
            let names: Vec<Name> = self.peers.keys().cloned().collect();
            let peer = self.peers[&names[self.random.usize(..names.len())]].clone();
            let random = &mut self.random;
            peer.power_cut(|| random.u8(..4) == 0);
            peer.start().await;
        }
        let mut restarts = false;
        let (epoch, mut next, takeover) = loop {
            let (epoch, next, takeover) = self.seal(&mut restarts).await;
            if self.random.u8(..6) > 0 {
                break (epoch, next, takeover);
            }
            // Who takes over dies, too, before it has drained anything.
            self.seen.second_deaths += 1;
        };
        let old = self.registration.clone();
        let plan = match takeover.verdict() {
            Verdict::Drain(plan) => plan,
            Verdict::Orphaned(risk) => {
                assert!(!risk.why.is_empty());
                self.seen.orphans += 1;
                return false;
            }
            Verdict::Wait => panic!("everyone answered"),
        };
        assert!(old.config.status == Status::InSync);
        let Some(drained) = self.drain(&next, plan.pieces).await else {
            // A peer died between its seal and the reading. That is told, too.
            assert!(restarts || !self.down.is_empty());
            self.seen.orphans += 1;
            return false;
        };
        let last = drained.last().map_or(self.committed, |e| e.lsn.0);
        let process = &self.owner;
        for entry in &drained {
            assert_eq!(Some(entry), process.log.get(&entry.lsn.0), "not what was written");
        }
        if old.config.mode == Mode::Sync {
            assert!(last >= process.acked, "{} was acknowledged, {last} drained: {old:?}", process.acked);
        }
        assert!(
            last >= process.flush_acked,
            "flush {} acknowledged, {last} drained: {old:?}",
            process.flush_acked
        );
        self.seen.drains += 1;
        self.seen.acked += process.acked;

        // Rule 7: the new epoch begins alone, the old logs are kept until the backend has their end.
        let committed = Lsn(self.committed);
        self.registration = old.taken_over(name("owner"), epoch, committed, Lsn(last), None).unwrap();
        let config = self.registration.config.clone();
        let keep: BTreeMap<u64, Entry> =
            process.log.iter().filter(|(l, _)| **l <= last).map(|(l, e)| (*l, e.clone())).collect();
        let clients = std::mem::take(&mut next.clients);
        next = Process::new((&BTreeMap::new(), &self.clock), epoch.0, config, last);
        next.clients = clients;
        next.journal.commit(Lsn(self.committed));
        drained.into_iter().for_each(|e| next.journal.push(e));
        next.log = keep;
        let mut zombie = std::mem::replace(&mut self.owner, next);
        if fate != Fate::Dies {
            zombie.gate.store(true, Ordering::Relaxed);
            if let Some(asked) = zombie.asked.take() {
                self.under_way.push((old.epoch, asked.clone()));
                zombie.owner.outcome(&asked, Outcome::Unknown, self.clock.now());
            }
            self.zombies.push((zombie, last));
        }
        true
    }

    /// R5: first the epoch, then seal.
    async fn seal(&mut self, restarts: &mut bool) -> (Epoch, Process, Takeover) {
        let epoch = self.registration.claimed.next();
        self.registration = self.registration.claim(epoch).unwrap();
        let mut takeover = Takeover::new(self.registration.clone(), Lsn(self.committed), None);
        let next = Process::new((&self.peers, &self.clock), epoch.0, Config::default(), 0);
        let nodes: Vec<Name> = takeover.to_seal().cloned().collect();
        for node in nodes {
            if self.random.u8(..3) == 0 {
                self.trouble().await;
            }
            let mut answer = Answer::Unreachable;
            for _ in 0..3 {
                if let Ok((floor, logs)) = next.clients[&node].seal(V, epoch).await {
                    assert_eq!(floor, epoch);
                    answer = Answer::Sealed(logs);
                    break;
                }
            }
            takeover.answered(&node, answer);
            if self.random.u8(..4) == 0 {
                // A sealed log survives, and stays sealed; a memory one is another one.
                let peer = self.peers[&node].clone();
                let random = &mut self.random;
                peer.power_cut(|| random.bool());
                peer.start().await;
                *restarts = true;
            }
        }
        (epoch, next, takeover)
    }

    async fn drain(&mut self, next: &Process, pieces: Vec<dtl::takeover::Piece>) -> Option<Vec<Entry>> {
        let cuts = self.registration.tails.iter().map(|t| (t.epoch, t.last)).collect();
        let mut replay = Replay::new(Lsn(self.committed), cuts);
        let mut entries = Vec::new();
        for piece in pieces {
            let Origin::Log(epoch, logs) = &piece.from else { panic!("there is no journal here") };
            'logs: for log in logs {
                for _ in 0..3 {
                    let key = Key { volume: V, epoch: *epoch, incarnation: log.incarnation };
                    let Ok(mut reading) =
                        next.clients[&log.node].read(key, replay.last().max(piece.after).next()).await
                    else {
                        continue;
                    };
                    while let Ok(Some(entry)) = reading.next().await {
                        if entry.lsn <= piece.to && replay.takes(&entry).unwrap() {
                            entries.push(entry);
                        }
                    }
                    if replay.last() >= piece.to {
                        break 'logs;
                    }
                }
            }
            if replay.last() < piece.to {
                return None;
            }
        }
        Some(entries)
    }
}

async fn run(seed: u64) -> Seen {
    let mut world = World::new(seed).await;
    for _ in 0..4 {
        for _ in 0..world.random.u32(50..500) {
            let before = world.registration.config.status;
            world.step().await;
            let named = before != Status::InSync && world.registration.config.status == Status::InSync;
            if named && world.random.u8(..3) == 0 {
                // The very moment in which somebody would believe it.
                break;
            }
        }
        if !world.takeover().await {
            break;
        }
    }
    world.seen
}

#[test]
fn nothing_acknowledged_is_missing_from_what_a_takeover_drains() {
    let number = |n: &str| std::env::var(n).ok().and_then(|v| v.parse::<u64>().ok());
    let seeds = match number("SR_DTL_SEED") {
        Some(one) => one..one + 1,
        None => 0..number("SR_DTL_SEEDS").unwrap_or(400),
    };
    let many = seeds.end - seeds.start >= 400 && !mutant::BUILT_IN;
    let mut sum = Seen::default();
    for seed in seeds {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let seen = std::panic::catch_unwind(|| runtime.block_on(run(seed)));
        let Ok(seen) = seen else { panic!("seed {seed}") };
        sum.in_sync += seen.in_sync;
        sum.acked += seen.acked;
        sum.restarts += seen.restarts;
        sum.drains += seen.drains;
        sum.orphans += seen.orphans;
        sum.zombie_steps += seen.zombie_steps;
        sum.second_deaths += seen.second_deaths;
        sum.failed_disks += seen.failed_disks;
    }
    println!("{sum:?}");
    if many {
        assert!(
            sum.failed_disks > 20
                && sum.second_deaths > 50
                && sum.drains > 300
                && sum.restarts > 500
                && sum.zombie_steps > 5000,
            "the worlds do too little: {sum:?}"
        );
    }
}

/// Every seeded bug is noticed, here or by the test that is named for it. With the feature `mutants` only.
#[cfg(feature = "mutants")]
#[test]
fn each_seeded_bug_is_caught() {
    const BUGS: &[&str] = &[
        "confirm-before-durable",
        "seal-forgotten-at-restart",
        "suspect-log-trusted",
        "insync-named-too-early",
        "old-epoch-accepted",
        "acks-by-the-new-config-only",
        "not-suspect-after-a-restart",
        "dtl-drains-any-one-log",
        "dtl-seal-overtakes-an-append",
    ];
    let me = std::env::current_exe().unwrap();
    for bug in BUGS {
        let output = std::process::Command::new(&me)
            .args(["--exact", "nothing_acknowledged_is_missing_from_what_a_takeover_drains"])
            .env("SR_MUTANT", bug)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{bug} was not noticed: {said}");
        // Not the test's own name.
        let promise = ["was acknowledged,", " acknowledged, ", " acknowledged "];
        let why = said.lines().skip_while(|line| !line.contains("panicked at")).nth(1).unwrap_or_default();
        assert!(promise.iter().any(|p| why.contains(p)), "{bug} broke something else: {said}");
    }
}
