//! The disk of the data directory breaks: errors, slowness, and power cuts that forget any part of what
//! was not synced. A file system of our own plays the disk (`tests/src/faultfs.rs`).
//! `SR_TORN_ROUNDS` sets how often the power is cut.

use anyhow::{Context, Result, ensure};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tests::block::BLOCK;
use tests::faultfs::{EIO, Effect, FaultFs, Op};
use tests::model::Promise;
use tests::nbd::{Client, FUA, NbdError};
use tests::router::{Config, Router};
use tests::time::{Stopwatch, eventually, pause, rounds};
use tests::tools::scratch;
use tests::workload::{Plan, Subject};

const BLOCKS: usize = 4096;

/// A router whose data directory lies on the disk that breaks. Fields end in this order.
struct World {
    router: Router,
    disk: FaultFs,
    folder: tempfile::TempDir,
}

impl World {
    fn new(name: &str) -> Result<(Self, Subject)> {
        let folder = scratch(name)?;
        let disk = FaultFs::mount(&folder.path().join("data"), &folder.path().join("backing"))?;
        let config = Config::new(disk.place())?
            .set("volumedriver.journal_mib=64")
            .set("volumedriver.segment_mib=8")
            .set("volumedriver.seal_age_seconds=1");
        let world = Self { router: Router::start(config)?, disk, folder };
        let pool = world.folder.path().join("pool").display().to_string();
        world.router.cli(&["vpool", "create", "p", "--backend", "directory", "--path", &pool])?;
        world.router.cli(&["vdisk", "create", "v", "--vpool", "p", "--size", "16MiB"])?;
        let subject = Subject::new(world.router.endpoint(), "p/v", BLOCKS)?;
        Ok((world, subject))
    }

    /// The write buffer has failed: every change is refused for good, although the disk is well again,
    /// the process lives, and says which file it was.
    fn must_have_given_up(&mut self, subject: &Subject) -> Result<()> {
        self.disk.heal();
        for _ in 0..3 {
            let refused = subject.ask(async |client| client.flush().await);
            ensure!(refused.is_err(), "a flush was answered with success after the write buffer had failed");
            let refused = subject.ask(async |client| client.write(0, &[1; BLOCK], 0).await);
            ensure!(refused.is_err(), "a write was answered with success after the write buffer had failed");
            pause(200);
        }
        self.router.must_run()?;
        eventually("health names the file", 20, || {
            let (_, health) = self.router.get("/api/v1/health")?;
            ensure!(health.contains("/journal/"), "{health}");
            Ok(())
        })?;
        ensure!(self.router.log().contains("/journal/"), "the log does not name the file");
        Ok(())
    }
}

#[test]
fn a_write_buffer_that_cannot_be_written_stops_for_good_and_loses_nothing() -> Result<()> {
    let (mut world, subject) = World::new("eiowrite")?;
    subject.run_for(&Plan::default(), 200)?;
    let running = subject.start(&Plan { seed: 2, ..Plan::default() })?;
    running.wait_past(100)?;
    world.disk.when(Op::Write, "journal/", Effect::Fail(EIO));
    subject.gather_failed(running, EIO as u32)?;
    world.must_have_given_up(&subject)?;
    world.router.kill9()?;
    world.router.start_again()?;
    subject.settle(Promise::Everything)?;
    subject.run_for(&Plan { seed: 3, ..Plan::default() }, 200)?;
    world.router.drain("p/v")?;
    world.router.cli(&["fsck", "p/v"])?;
    Ok(())
}

#[test]
fn a_failed_sync_is_final_and_what_was_flushed_before_survives_a_power_cut() -> Result<()> {
    let (mut world, subject) = World::new("eiosync")?;
    let mut random = fastrand::Rng::with_seed(9);
    for seed in 1..=2 {
        let running = subject.start(&Plan { seed, ..Plan::default() })?;
        running.wait_past(100)?;
        world.disk.when(Op::Sync, "journal/", Effect::Fail(EIO));
        subject.gather_failed(running, EIO as u32)?;
        world.must_have_given_up(&subject)?;
        let again = world.disk.syncs_after_failure();
        ensure!(again == 0, "files whose sync had failed were synced again {again} times");
        world.router.kill9()?;
        println!("{} sectors forgotten", world.disk.power_cut(&mut random)?);
        world.router.start_again()?;
        subject.settle(Promise::PrefixWith(subject.flushed())).with_context(|| format!("round {seed}"))?;
    }
    world.router.drain("p/v")?;
    world.router.cli(&["fsck", "p/v"])?;
    Ok(())
}

#[test]
fn a_power_cut_costs_only_what_was_not_flushed() -> Result<()> {
    let seed = fastrand::u32(..).into();
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut world, subject) = World::new("powercut")?;
    for round in 0..rounds("SR_TORN_ROUNDS", 10) {
        let plan = Plan {
            syncs: true,
            connections: random.usize(1..=4),
            depth: [1, 4, 16][random.usize(..3)],
            longest: [1, 8, 64][random.usize(..3)],
            hot: random.u32(..60),
            seed: random.u64(..),
        };
        let running = subject.start(&plan)?;
        pause(random.u64(30..400));
        world.router.kill9()?;
        subject.gather(running)?;
        let forgotten = world.disk.power_cut(&mut random)?;
        world.router.start_again()?;
        let after = subject.acknowledged_after(subject.flushed());
        println!("round {round}: {forgotten} sectors forgotten, {after} changes were not flushed");
        subject.settle(Promise::PrefixWith(subject.flushed())).with_context(|| format!("round {round}"))?;
    }
    world.router.drain("p/v")?;
    world.router.cli(&["fsck", "p/v"])?;
    world.router.kill9()?;
    world.router.start_again()?;
    subject.settle(Promise::Everything)
}

/// Flushes over and over, by a flush or a write that is one; notes how long the fastest took.
async fn flusher(
    client: Arc<Client>,
    block: u64,
    stop: Arc<AtomicBool>,
    fastest: Arc<AtomicU64>,
) -> Result<u64, NbdError> {
    let mut flushes = 0;
    while !stop.load(Ordering::Relaxed) {
        let data = [1 + (flushes % 2) as u8; BLOCK];
        let watch = Stopwatch::start();
        if flushes % 2 == 0 {
            client.write(block * BLOCK as u64, &data, FUA).await?;
        } else {
            client.write(block * BLOCK as u64, &data, 0).await?;
            client.flush().await?;
        }
        fastest.fetch_min((watch.seconds() * 1000.0) as u64, Ordering::Relaxed);
        flushes += 1;
    }
    Ok(flushes)
}

/// Each sync takes 50 ms: flushes are as slow as that, and one sync serves all that wait.
#[test]
fn on_a_slow_disk_one_sync_serves_many_flushes() -> Result<()> {
    let (mut world, subject) = World::new("slow")?;
    let slow = Duration::from_millis(50);
    world.disk.when(Op::Sync, "", Effect::Delay(slow));
    let syncs = world.disk.syncs();
    let fastest = Arc::new(AtomicU64::new(u64::MAX));
    let stop = Arc::new(AtomicBool::new(false));
    let watch = Stopwatch::start();
    let (flushes, read) = subject.ask(async |reader| {
        let mut workers = Vec::new();
        for _ in 0..8 {
            let client = Arc::new(Client::connect(&subject.endpoint, &subject.export).await?);
            for _ in 0..8 {
                let block = workers.len() as u64;
                workers.push(tokio::spawn(flusher(client.clone(), block, stop.clone(), fastest.clone())));
            }
        }
        let mut fastest_read = f64::MAX;
        while !watch.past(3) {
            let read = Stopwatch::start();
            reader.read(0, BLOCK as u32).await?;
            fastest_read = fastest_read.min(read.seconds());
        }
        stop.store(true, Ordering::Relaxed);
        let mut flushes = 0;
        for worker in workers {
            flushes += worker.await.map_err(|error| NbdError::Gone(error.to_string()))??;
        }
        Ok((flushes, fastest_read))
    })?;
    let syncs = world.disk.syncs() - syncs;
    let fastest = fastest.load(Ordering::Relaxed);
    println!("{flushes} flushes by {syncs} syncs; fastest flush {fastest} ms, fastest read {read:.5} s");
    ensure!(fastest >= 50, "a flush took {fastest} ms and a sync takes 50: it did not wait for one");
    ensure!(read < 0.04, "reads wait for syncs: the fastest took {read} s");
    ensure!(flushes > 4 * syncs, "{flushes} flushes took {syncs} syncs");
    world.disk.heal();
    world.router.drain("p/v")?;
    world.router.terminate()?;
    Ok(())
}
