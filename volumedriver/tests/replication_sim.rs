//! Random lives of a volume among three routers: whatever dies, what was acknowledged as the mode promises is there
//! for whoever takes it over.
//!
//! Each cluster holds the number of its write. What a client was told about these numbers decides which of them the
//! next owner may show. Who is refused the volume tries again when somebody is back; nobody forces anything.
#![allow(missing_docs)]

mod routers;
mod world;

use bytes::Bytes;
use common::{BlockDevice, Clock, ErrorKind};
use dtl::{Config, Mode, Needed, OnFailure};
use routers::*;
use std::sync::Arc;
use std::time::Duration;
use volumedriver::Volume;
use world::CLUSTER;

const CLUSTERS: u64 = 12;
const ROUNDS: usize = 24;
const SEEDS: u64 = 60;

/// What may be in one cluster: the writes to it, in order.
#[derive(Debug, Clone)]
struct History {
    writes: Vec<u64>,
    /// At least this one was acknowledged, at least this one flushed: indices of `writes`.
    acked: usize,
    flushed: usize,
}

impl History {
    fn new() -> Self {
        Self { writes: vec![0], acked: 0, flushed: 0 }
    }

    /// A new owner shows `seen`: what came after it is gone. Nobody has flushed it yet.
    fn settle(&mut self, seen: u64) {
        let at = self.writes.iter().rposition(|w| *w == seen).unwrap_or(0);
        self.writes.truncate(at + 1);
        self.acked = at;
    }
}

struct Life {
    routers: Routers,
    chance: fastrand::Rng,
    mode: Mode,
    clusters: Vec<History>,
    next: u64,
    owner: usize,
    /// Of the present owner, unflushed writes may be gone.
    lenient: bool,
    takeovers: u32,
}

fn content(number: u64) -> Bytes {
    number.to_le_bytes().repeat(CLUSTER as usize / 8).into()
}

async fn number(v: &Volume, addr: u64) -> u64 {
    let data = v.read(addr * CLUSTER, CLUSTER as u32).await.unwrap();
    let number = u64::from_le_bytes(data[..8].try_into().unwrap());
    assert_eq!(data, content(number), "cluster {addr} is torn");
    number
}

impl Life {
    fn millis(&mut self, most: u64) -> Duration {
        Duration::from_millis(self.chance.u64(0..most))
    }

    /// Some writes side by side, each to a cluster of its own; `false` when one was not answered well.
    async fn writes(&mut self, v: &Volume) -> bool {
        let first = self.chance.u64(0..CLUSTERS);
        let side_by_side = self.chance.u64(1..5);
        let fua = self.chance.u32(0..8) == 0;
        let patience = self.millis(4000) + Duration::from_millis(50);
        let mut writes = Vec::new();
        for addr in (first..first + side_by_side).map(|addr| addr % CLUSTERS) {
            self.next += 1;
            let number = self.next;
            let history = &mut self.clusters[addr as usize];
            history.writes.push(number);
            let write = v.write(addr * CLUSTER, content(number), fua);
            writes.push(async move { (addr, tokio::time::timeout(patience, write).await) });
        }
        let mut well = true;
        for (addr, answer) in futures::future::join_all(writes).await {
            if !matches!(answer, Ok(Ok(()))) {
                well = false;
                continue;
            }
            let history = &mut self.clusters[addr as usize];
            history.acked = history.writes.len() - 1;
            if fua {
                history.flushed = history.acked;
            }
        }
        well
    }

    /// Requests of a client, until something goes wrong.
    async fn client(&mut self, v: &Volume) {
        for _ in 0..self.chance.usize(1..40) {
            let addr = self.chance.u64(0..CLUSTERS);
            let slot = addr as usize;
            match self.chance.u32(0..10) {
                0..6 => {
                    if !self.writes(v).await {
                        return;
                    }
                }
                6..8 => {
                    let seen = number(v, addr).await;
                    let history = &self.clusters[slot];
                    let allowed = &history.writes[history.acked..];
                    assert!(allowed.contains(&seen), "cluster {addr} reads {seen} of {history:?}");
                }
                8 => {
                    let before: Vec<usize> = self.clusters.iter().map(|h| h.acked).collect();
                    if !matches!(tokio::time::timeout(Duration::from_secs(4), v.flush()).await, Ok(Ok(()))) {
                        return;
                    }
                    for (history, acked) in self.clusters.iter_mut().zip(before) {
                        history.flushed = history.flushed.max(acked);
                    }
                }
                _ => {
                    let rest = self.millis(300);
                    self.routers.clock.sleep(rest).await;
                }
            }
        }
    }

    /// Whether the loss of more than what the mode promises to survive would be at stake: the registry names a peer
    /// that died a moment ago.
    fn is_one_loss_too_many(&self) -> bool {
        self.routers.is_named_in_sync() && !self.routers.peers_hold()
    }

    /// Something happens to a router; `true` when the volume needs a new owner.
    async fn event(&mut self) -> bool {
        let n = self.chance.usize(0..ROUTERS);
        let owner = n == self.owner;
        let what = self.chance.u32(0..12);
        if std::env::var_os("SR_SEED").is_some() {
            let (now, registered) = (self.routers.clock.now(), self.routers.registered());
            eprintln!("{now:?}: event {what} at {n}, owner {}: {registered:?}", self.owner);
        }
        match what {
            0..3 if self.routers.is_up(n) => {
                self.routers.kill(n);
                owner
            }
            3..5 if self.routers.is_up(n) && !(owner && self.is_one_loss_too_many()) => {
                // What it had not flushed may be gone, and only peers that were in sync have it.
                self.lenient |= owner && !(self.mode == Mode::Sync && self.routers.is_named_in_sync());
                let mut chance = self.chance.fork();
                self.routers.cut_power(n, &mut chance);
                owner
            }
            // The disk of an owner whose peers lack something is not lost: that would be one loss too many.
            5 if self.routers.is_up(n) && (!owner || self.routers.peers_hold()) => {
                self.lenient |= owner && self.mode == Mode::Async;
                self.routers.lose(n);
                owner
            }
            6..8 if !owner => {
                self.routers.freeze(n);
                false
            }
            8 => {
                self.routers.registry_is_away();
                let long = self.millis(3000);
                self.routers.clock.sleep(long).await;
                self.routers.registry_is_back();
                false
            }
            9 => {
                self.routers.thaw();
                false
            }
            // Somebody takes it from an owner that lives.
            10 => true,
            _ => {
                if !self.routers.is_up(n) {
                    self.routers.boot(n).await;
                }
                false
            }
        }
    }

    /// Somebody opens it: whoever can, and where nobody can, whoever can when everybody is back.
    async fn take_over(&mut self, before: &Volume) -> Arc<Volume> {
        let first = self.chance.usize(0..ROUTERS);
        let mut last = String::new();
        for round in 0..100 {
            for n in (first..first + ROUTERS).map(|n| n % ROUTERS) {
                if !self.routers.is_up(n) {
                    continue;
                }
                if n == self.owner {
                    // In the process that has it open, it is closed first.
                    before.close().await;
                }
                match self.routers.open(n).await {
                    Ok(v) => {
                        let by_journal = n == self.owner;
                        self.owner = n;
                        self.takeovers += 1;
                        self.check(&v, by_journal).await;
                        return v;
                    }
                    Err(error) => {
                        let passes = matches!(
                            error.kind,
                            ErrorKind::Denied
                                | ErrorKind::Unavailable
                                | ErrorKind::Conflict
                                | ErrorKind::Fenced
                        );
                        assert!(passes, "router {n} can't open it: {error}");
                        last = format!("{n}: {error}; {last}");
                        last.truncate(900);
                    }
                }
            }
            self.routers.thaw();
            for n in 0..ROUTERS {
                if !self.routers.is_up(n) {
                    self.routers.boot(n).await;
                }
            }
            self.routers.clock.sleep(Duration::from_millis(500)).await;
            assert!(round < 99, "nobody can open it: {last}: {:?}", self.routers.registered());
        }
        unreachable!("it is opened or the test failed")
    }

    async fn check(&mut self, v: &Volume, by_journal: bool) {
        // In mode async the peers have what was flushed; the owner itself has everything, unless its power failed.
        let lenient = self.lenient || (self.mode == Mode::Async && !by_journal);
        for addr in 0..CLUSTERS {
            let seen = number(v, addr).await;
            let history = &mut self.clusters[addr as usize];
            let from = if lenient { history.flushed } else { history.acked };
            assert!(history.writes[from..].contains(&seen), "cluster {addr} reads {seen} of {history:?}");
            history.settle(seen);
        }
        self.lenient = false;
    }
}

async fn live(seed: u64) -> u32 {
    let mut chance = fastrand::Rng::with_seed(seed);
    let mode = [Mode::Sync, Mode::Sync, Mode::Async][chance.usize(0..3)];
    let needed = [Needed::All, Needed::One][chance.usize(0..2)];
    let on_failure = [OnFailure::Degrade, OnFailure::Degrade, OnFailure::Block][chance.usize(0..3)];
    let config = Config::alone(mode, chance.u8(1..3), needed, on_failure);
    let seal_age = [1, 5, 3600][chance.usize(0..3)];
    let routers = Routers::with(seed, config, seal_age).await;
    let clusters = vec![History::new(); CLUSTERS as usize];
    let mut life = Life { routers, chance, mode, clusters, next: 0, owner: 0, lenient: false, takeovers: 0 };
    let mut v = life.routers.open(0).await.unwrap();
    for _ in 0..ROUNDS {
        life.client(&v).await;
        if life.event().await {
            v = life.take_over(&v).await;
        }
        let flush = tokio::time::timeout(Duration::from_secs(4), v.flush()).await;
        if flush.is_ok_and(|flushed| flushed.is_err()) {
            // It was taken from, or its process is dead.
            v = life.take_over(&v).await;
        }
    }
    life.takeovers
}

#[test]
fn what_was_acknowledged_is_there_whoever_dies() {
    let number = |name| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let first = number("SR_SEED");
    let seeds = first.map_or(0..number("SR_SEEDS").unwrap_or(SEEDS), |seed| seed..seed + 1);
    let mut takeovers = 0;
    for seed in seeds {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            runtime.block_on(async { tokio::time::timeout(Duration::from_secs(100_000), live(seed)).await })
        }));
        match outcome {
            Ok(Ok(more)) => takeovers += more,
            Ok(Err(_)) => panic!("seed {seed} never ends"),
            Err(why) => {
                eprintln!("seed {seed} is wrong: SR_SEED={seed} runs it alone, SR_SEEDS=1000 more of them");
                std::panic::resume_unwind(why);
            }
        }
    }
    println!("{takeovers} takeovers");
    assert!(first.is_some() || takeovers > 100, "{takeovers} takeovers in all: that shows little");
}
