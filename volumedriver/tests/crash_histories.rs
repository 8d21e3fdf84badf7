//! Random histories with kills, power cuts, lost data directories and an unreliable store: what
//! comes back is a prefix of the log that holds what it must.
//!
//! `SEEDS=n` runs that many seeds, `SEED=n` one of them.

mod world;

use common::sim::StoreFaults;
use common::{BlockDevice, Clock};
use std::time::Duration;
use volumedriver::{Settings, Volume};
use world::*;

const CLUSTERS: u64 = 48;
const SECTORS: usize = 8;

/// The number of the operation that wrote each 512-byte sector.
type Image = Vec<[u32; SECTORS]>;

#[derive(Debug, Clone)]
enum Op {
    Write { addr: u64, count: u64 },
    Sectors { addr: u64, first: usize, count: usize },
    Zero { addr: u64, count: u64, hole: bool },
}

impl Op {
    fn random(rng: &mut fastrand::Rng) -> Op {
        let addr = rng.u64(0..CLUSTERS);
        let count = rng.u64(1..=(CLUSTERS - addr).min(9));
        match rng.u32(0..10) {
            0..6 => Op::Write { addr, count: if rng.bool() { 1 } else { count } },
            6..8 => {
                let first = rng.usize(0..SECTORS - 1);
                Op::Sectors { addr, first, count: rng.usize(1..SECTORS - first) }
            }
            8 => Op::Zero { addr, count, hole: false },
            _ => Op::Zero { addr: 0, count: rng.u64(1..=CLUSTERS), hole: true },
        }
    }

    fn apply(&self, image: &mut Image, number: u32) {
        match *self {
            Op::Write { addr, count } => {
                image[addr as usize..(addr + count) as usize].fill([number; SECTORS])
            }
            Op::Sectors { addr, first, count } => image[addr as usize][first..first + count].fill(number),
            Op::Zero { addr, count, .. } => image[addr as usize..(addr + count) as usize].fill([0; SECTORS]),
        }
    }

    async fn run(&self, v: &Volume, number: u32, fua: bool) -> common::Result<()> {
        let fill = |bytes: usize| number.to_le_bytes().repeat(bytes / 4);
        match *self {
            Op::Write { addr, count } => {
                v.write(addr * CLUSTER, fill((count * CLUSTER) as usize).into(), fua).await
            }
            Op::Sectors { addr, first, count } => {
                v.write(addr * CLUSTER + 512 * first as u64, fill(512 * count).into(), fua).await
            }
            Op::Zero { addr, count, hole: true } => v.discard(addr * CLUSTER, count * CLUSTER, fua).await,
            Op::Zero { addr, count, hole } => {
                v.write_zeroes(addr * CLUSTER, count * CLUSTER, hole, fua).await
            }
        }
    }
}

async fn image(v: &Volume) -> Image {
    let data = v.read(0, (CLUSTERS * CLUSTER) as u32).await.expect("the whole image reads");
    let sector = |s: &[u8]| {
        let number = u32::from_le_bytes(s[..4].try_into().unwrap());
        assert!(s.chunks(4).all(|n| n == number.to_le_bytes()), "a sector is torn");
        number
    };
    data.chunks(CLUSTER as usize)
        .map(|cluster| {
            let mut sectors = [0; SECTORS];
            for (s, bytes) in sectors.iter_mut().zip(cluster.chunks(512)) {
                *s = sector(bytes);
            }
            sectors
        })
        .collect()
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Crash {
    Kill,
    Power,
    LostDataDir,
    Clean,
}

/// The log as the client saw it, and what of it must come back.
struct History {
    ops: Vec<Op>,
    acked: usize,
    flushed: usize,
    committed: usize,
}

impl History {
    /// The number of operations that `found` is the image of: at least `least`.
    fn prefix_of(&self, base: &Image, found: &Image, least: usize) -> Option<usize> {
        let mut model = base.clone();
        for (i, op) in self.ops.iter().enumerate() {
            if i >= least && model == *found {
                return Some(i);
            }
            op.apply(&mut model, i as u32 + 1);
        }
        (model == *found).then_some(self.ops.len())
    }
}

async fn one_world(seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let settings = Settings { tlog_scos: rng.usize(1..6), seal_age_seconds: rng.u64(1..4), ..settings() };
    let mut world = World::new(seed, settings, CLUSTERS * CLUSTER).await;
    let mut h = History { ops: Vec::new(), acked: 0, flushed: 0, committed: 0 };
    let empty: Image = vec![[0; SECTORS]; CLUSTERS as usize];
    for life in 0..8 {
        let v = open(&mut world).await;
        let faults = StoreFaults {
            fail_per_mille: rng.u32(0..80),
            lost_reply_per_mille: rng.u32(0..80),
            late_put_per_mille: if life % 3 == 0 { rng.u32(0..80) } else { 0 },
            max_latency: Duration::from_millis(rng.u64(0..300)),
            ..StoreFaults::default()
        };
        world.store.set_faults(faults);
        if rng.u32(0..3) == 0 {
            world.disk.die_at_effect(Some(world.disk.effects() + rng.u64(1..120)));
        }
        for _ in 0..rng.usize(1..120) {
            let op = Op::random(&mut rng);
            let number = h.ops.len() as u32 + 1;
            h.ops.push(op.clone());
            let fua = rng.u32(0..12) == 0;
            if op.run(&v, number, fua).await.is_err() {
                break;
            }
            h.acked = h.ops.len();
            if fua || (rng.u32(0..12) == 0 && v.flush().await.is_ok()) {
                h.flushed = h.acked;
            }
            match rng.u32(0..60) {
                0 => world.clock.sleep(Duration::from_millis(rng.u64(0..5000))).await,
                1 if v.drain(Duration::from_secs(60)).await.is_ok() => {
                    h.committed = h.acked;
                    h.flushed = h.acked;
                }
                2 => {
                    let found = image(&v).await;
                    let exact = h.prefix_of(&empty, &found, h.acked);
                    assert_eq!(exact, Some(h.acked), "seed {seed}: reads see every acknowledged write");
                }
                _ => {}
            }
        }
        let crash = match rng.u32(0..10) {
            0..4 => Crash::Kill,
            4..7 => Crash::Power,
            7..9 => Crash::LostDataDir,
            _ => Crash::Clean,
        };
        if crash == Crash::Clean && v.drain(Duration::from_secs(60)).await.is_ok() {
            h.committed = h.acked;
            v.close().await;
        }
        drop(v);
        match crash {
            Crash::Kill | Crash::Clean => world.kill(),
            Crash::Power => world.cut_power(&mut rng),
            Crash::LostDataDir => world.lose_data_dir(),
        }
        world.store.set_faults(StoreFaults::default());
        let least = match crash {
            Crash::Kill | Crash::Clean => h.acked,
            Crash::Power => h.flushed,
            Crash::LostDataDir => h.committed,
        };
        world.boot().await.expect("the next process starts");
        let v = open(&mut world).await;
        let found = image(&v).await;
        let Some(n) = h.prefix_of(&empty, &found, least) else {
            panic!(
                "seed {seed}, life {life}: after {crash:?} the image is no prefix of at least {least} of {} operations",
                h.ops.len()
            );
        };
        // What comes late from the dead changes nothing.
        world.store.deliver_late_puts();
        h.ops.truncate(n);
        (h.acked, h.flushed, h.committed) = (n, n.min(h.flushed), n.min(h.committed));
        world.kill();
        world.boot().await.expect("and the one after it");
        let v2 = open(&mut world).await;
        assert_eq!(image(&v2).await, found, "seed {seed}, life {life}: a second crash forgets nothing");
        drop((v, v2));
        world.kill();
        world.boot().await.expect("the next life starts");
    }
}

async fn open(world: &mut World) -> std::sync::Arc<Volume> {
    loop {
        match world.open().await {
            Ok(v) => return v,
            Err(e) if e.kind.is_transient() => {}
            Err(e) => panic!("the volume does not open: {e}"),
        }
    }
}

#[test]
fn every_crash_leaves_a_prefix_that_holds_what_was_promised() {
    let number = |name: &str| std::env::var(name).ok().and_then(|s| s.parse::<u64>().ok());
    let seeds = match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SEEDS").unwrap_or(40),
    };
    for seed in seeds {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(one_world(seed));
    }
}
