//! Rules 2 and 3: whatever becomes of routers and links, an edge client's disk is a disk.
//!
//! `EDGE_SEEDS=A..B` chooses the seeds.

mod world;

use bytes::Bytes;
use common::{BlockDevice, Result};
use edge_client::wire::Mode;
use edge_client::{Device, Options};
use parking_lot::Mutex;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use world::{BLOCK, BLOCKS, LEASE, ROUTERS, Way, World, name};

fn seeds() -> Range<u64> {
    let given = std::env::var("EDGE_SEEDS").ok();
    let parsed =
        given.as_deref().and_then(|s| s.split_once("..")).map(|(a, b)| a.parse().ok()..b.parse().ok());
    match parsed {
        Some(Range { start: Some(a), end: Some(b) }) => a..b,
        _ => 0..300,
    }
}

/// Runs `test` in a world of its own for each seed, on virtual time.
fn for_each_seed<F: Future<Output = ()>>(test: impl Fn(Arc<World>, u64) -> F) {
    for seed in seeds() {
        let builder =
            || tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        builder().unwrap().block_on(async {
            let world = World::new(seed);
            let all = test(world.clone(), seed);
            let done = tokio::time::timeout(Duration::from_secs(3600), all).await;
            assert!(done.is_ok(), "rules, seed {seed}: it hangs");
            let errors = world.metrics.protocol_errors();
            assert_eq!(errors, 0, "rules, seed {seed}: connections were cut for what they said");
        });
    }
}

async fn open(world: &Arc<World>, options: Options) -> Result<Device> {
    let addresses = (0..ROUTERS).map(name).collect();
    let dial = Arc::new(Way(Arc::downgrade(world)));
    Device::open(addresses, "p/v", options, dial, world.clock.clone()).await
}

/// What the disk must read as, by block, and who is at work where.
struct Model {
    blocks: Vec<u64>,
    busy: Vec<bool>,
    /// Changes that were begun.
    begun: Vec<u64>,
    stamp: u64,
}

fn fill(stamps: &[u64]) -> Bytes {
    stamps.iter().flat_map(|stamp| stamp.to_le_bytes().repeat(BLOCK as usize / 8)).collect::<Vec<u8>>().into()
}

async fn worker(world: Arc<World>, device: Arc<Device>, model: Arc<Mutex<Model>>, seed: u64, ops: usize) {
    for _ in 0..ops {
        let (from, len) = (world.below(BLOCKS), 1 + world.below(4));
        let blocks = from as usize..(from + len).min(BLOCKS) as usize;
        let (offset, bytes) = (blocks.start as u64 * BLOCK, blocks.len() as u64 * BLOCK);
        let what = world.below(100);
        if what < 6 {
            flush(&world, &device, &model, seed).await;
            continue;
        }
        let change = what < 75;
        let stamp = {
            let mut model = model.lock();
            if model.busy[blocks.clone()].iter().any(|b| *b) {
                None
            } else {
                model.busy[blocks.clone()].fill(true);
                model.stamp += 1;
                if change {
                    model.begun[blocks.clone()].iter_mut().for_each(|n| *n += 1);
                }
                Some(model.stamp)
            }
        };
        let Some(stamp) = stamp else {
            world.sleep(3).await;
            continue;
        };
        let (done, after) = match what {
            0..60 => {
                let after = vec![stamp; blocks.len()];
                (device.write(offset, fill(&after), what < 10).await, after)
            }
            60..68 => (device.write_zeroes(offset, bytes, false, false).await, vec![0; blocks.len()]),
            68..75 => (device.discard(offset, bytes, false).await, vec![0; blocks.len()]),
            _ => {
                let read = device.read(offset, bytes as u32).await;
                let expected = model.lock().blocks[blocks.clone()].to_vec();
                let read = read.unwrap_or_else(|e| panic!("rules, seed {seed}: a read failed: {e}"));
                assert_eq!(
                    read,
                    fill(&expected),
                    "rules, seed {seed}: blocks {blocks:?} are not what was written"
                );
                (Ok(()), expected)
            }
        };
        done.unwrap_or_else(|e| panic!("rules, seed {seed}: a request failed: {e}"));
        let mut model = model.lock();
        model.blocks[blocks.clone()].copy_from_slice(&after);
        model.busy[blocks].fill(false);
    }
}

/// What was answered before a flush is durable after it.
async fn flush(world: &World, device: &Device, model: &Mutex<Model>, seed: u64) {
    let (blocks, begun, busy) = {
        let model = model.lock();
        (model.blocks.clone(), model.begun.clone(), model.busy.clone())
    };
    device.flush().await.unwrap_or_else(|e| panic!("rules, seed {seed}: a flush failed: {e}"));
    let image = {
        let state = world.state.lock();
        state.image(state.durable)
    };
    let now = model.lock().begun.clone();
    for block in (0..BLOCKS as usize).filter(|b| !busy[*b] && begun[*b] == now[*b]) {
        let bytes = &image[block * BLOCK as usize..(block + 1) * BLOCK as usize];
        assert_eq!(
            bytes,
            &fill(&[blocks[block]]),
            "rules, seed {seed}: block {block} was flushed and is not durable"
        );
    }
}

async fn trouble(world: Arc<World>, workers: Arc<AtomicUsize>) {
    for _ in 0..60 {
        world.sleep(200).await;
        if workers.load(Ordering::Relaxed) == 0 {
            return;
        }
        let router = world.below(ROUTERS as u64) as usize;
        match world.below(100) {
            0..45 => world.links.cut_one(),
            45..70 => world.open(router),
            70..85 => {
                let time = Duration::from_millis(world.below(4000));
                world.links.stall(&name(router), time);
            }
            _ => {
                world.set_down(router, true);
                world.sleep(1500).await;
                if world.owner() == router {
                    world.open((router + 1) % ROUTERS);
                }
                world.sleep(1500).await;
                world.set_down(router, false);
            }
        }
    }
}

#[test]
fn a_disk_is_a_disk_whatever_becomes_of_routers_and_links() {
    let (reconnects, replayed, moved) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    for_each_seed(|world, seed| {
        let sums = (&reconnects, &replayed, &moved);
        async move {
            let keep = [3 << 10, 16 << 10, 1 << 20][world.below(3) as usize];
            let options = Options { deadline: Duration::ZERO, keep, ..Options::default() };
            let device = Arc::new(open(&world, options.clone()).await.unwrap());
            let n = BLOCKS as usize;
            let model = Model { blocks: vec![0; n], busy: vec![false; n], begun: vec![0; n], stamp: 0 };
            let model = Arc::new(Mutex::new(model));
            let workers = Arc::new(AtomicUsize::new(1));
            let trouble = tokio::spawn(trouble(world.clone(), workers.clone()));
            let work =
                (0..6).map(|_| tokio::spawn(worker(world.clone(), device.clone(), model.clone(), seed, 60)));
            for work in futures::future::join_all(work).await {
                work.unwrap();
            }
            workers.store(0, Ordering::Relaxed);
            trouble.await.unwrap();
            flush(&world, &device, &model, seed).await;
            let counters = device.counters();
            sums.0.fetch_add(counters.reconnects as usize, Ordering::Relaxed);
            sums.1.fetch_add(counters.replayed as usize, Ordering::Relaxed);
            sums.2.fetch_add(counters.moved as usize, Ordering::Relaxed);
            device.close().await;
            // Whatever a flush covered is there for another client, though all else is lost.
            let durable = world.state.lock().durable;
            world.open_with(1, durable);
            world.clock.sleep(LEASE * 2).await;
            let other = open(&world, options).await.unwrap_or_else(|e| panic!("rules, seed {seed}: {e}"));
            let expected = fill(&model.lock().blocks);
            assert_eq!(other.read(0, (BLOCKS * BLOCK) as u32).await.unwrap(), expected, "rules, seed {seed}");
            other.close().await;
        }
    });
    println!("reconnects, replayed requests, moved: {reconnects:?} {replayed:?} {moved:?}");
}

/// Eight blocks, answered and not flushed.
async fn write_some(device: &Device) {
    for block in 0..8 {
        device.write(block * BLOCK, fill(&[block + 1]), false).await.unwrap();
    }
}

#[test]
fn who_shares_a_disk_hears_of_a_lost_tail_by_a_flush() {
    for_each_seed(|world, seed| async move {
        let options = Options { mode: Mode::Shared, deadline: Duration::ZERO, ..Options::default() };
        let device = open(&world, options.clone()).await.unwrap();
        write_some(&device).await;
        let lost = seed % 2 == 0;
        let last = world.state.lock().log.len() as u64;
        world.open_with(1, if lost { last - 1 - world.below(7) } else { last });
        for _ in 0..2 {
            assert_eq!(
                device.flush().await.is_err(),
                lost,
                "rules, seed {seed}: a flush of a tail, lost: {lost}"
            );
        }
        device.close().await;
        let again = open(&world, options).await.unwrap();
        again.flush().await.unwrap();
        again.close().await;
    });
}

#[test]
fn a_process_that_takes_an_attachment_over_hears_of_a_lost_tail_by_a_flush() {
    for_each_seed(|world, seed| async move {
        let options = Options { deadline: Duration::ZERO, ..Options::default() };
        let device = open(&world, options.clone()).await.unwrap();
        write_some(&device).await;
        let resume = Some(device.attachment());
        drop(device);
        let another = seed % 3 == 0;
        if another {
            let durable = world.state.lock().durable;
            world.open_with(1, durable);
        }
        let resumed = open(&world, Options { resume, ..options.clone() }).await.unwrap();
        if seed % 3 == 1 {
            let last = world.state.lock().log.len() as u64;
            world.open_with(2, last - 1);
        }
        let lost = seed % 3 != 2;
        assert_eq!(
            resumed.flush().await.is_err(),
            lost,
            "rules, seed {seed}: a flush of a tail, lost: {lost}"
        );
        resumed.close().await;
        // On a slow link the goodbye may not have got through.
        world.clock.sleep(LEASE * 2).await;
        let again = open(&world, options).await.unwrap();
        again.flush().await.unwrap();
    });
}

/// The bugs, and the tests that find each.
#[cfg(feature = "mutants")]
const MUTANTS: [(&str, &str); 9] = [
    ("no-replay-of-completed", "a_disk_is_a_disk_whatever_becomes_of_routers_and_links"),
    ("replay-out-of-order", "a_disk_is_a_disk_whatever_becomes_of_routers_and_links"),
    ("lower-session-accepted", "a_disk_is_a_disk_whatever_becomes_of_routers_and_links"),
    ("lower-session-not-drained", "a_disk_is_a_disk_whatever_becomes_of_routers_and_links"),
    ("stale-epoch-reply-believed", "a_disk_is_a_disk_whatever_becomes_of_routers_and_links"),
    ("credits-ignored", "a_disk_is_a_disk_whatever_becomes_of_routers_and_links"),
    ("flush-lies-after-lost-tail", "who_shares_a_disk_hears_of_a_lost_tail_by_a_flush"),
    (
        "lost-attempt-counts-as-known",
        "a_process_that_takes_an_attachment_over_hears_of_a_lost_tail_by_a_flush",
    ),
    ("kept-until-any-flush", "a_disk_is_a_disk_whatever_becomes_of_routers_and_links"),
];

/// What a run of one test in a process of its own says.
#[cfg(feature = "mutants")]
fn run_alone(test: &str, mutant: Option<&str>, seeds: &str) -> (bool, String) {
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", test, "--nocapture"]).env("EDGE_SEEDS", seeds);
    match mutant {
        Some(mutant) => child.env("SR_MUTANT", mutant),
        None => child.env_remove("SR_MUTANT"),
    };
    let output = child.output().unwrap();
    let told = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&told).into_owned())
}

#[cfg(feature = "mutants")]
#[test]
fn the_worlds_notice_each_seeded_bug_and_nothing_else() {
    for (mutant, test) in MUTANTS {
        let (fine, told) = run_alone(test, None, "0..5");
        assert!(fine && told.contains("1 passed"), "without a bug: {told}");
        let (fine, told) = run_alone(test, Some(mutant), "0..2000");
        let why = told.lines().find(|line| line.contains(", seed "));
        println!("{mutant:<28} {}", why.unwrap_or("was not noticed").chars().take(160).collect::<String>());
        assert!(!fine, "{mutant} was not noticed");
    }
}
