//! A vDisk of real size, whose map is far larger than what the router may keep in memory: how long the first
//! read takes on an empty data directory, after a clone and after a rollback; what a snapshot does to writers.

use super::figures::{self, Spread, at_most, metric, percentile, resident};
use super::{Options, figures::GOT};
use anyhow::{Result, ensure};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use tests::image::{Image, Shape};
use tests::nbd::Client;
use tests::router::{Config, Router};
use tests::time::{Stopwatch, eventually};
use tests::tools::peak_memory;

/// Entries of each TLog.
const ENTRIES: u64 = 1 << 20;
/// What a first read may take, in seconds, and a snapshot more than none, in milliseconds.
const FIRST_READ: f64 = 1.0;
const PAUSE: f64 = 5.0;
/// Settings that hold the router far below the size of the map (1 GiB and more at 100 GiB mapped).
const SMALL: [&str; 6] = [
    "volumedriver.index_cache_mib=64",
    "volumedriver.read_cache_mib=64",
    "volumedriver.buffer_mib=64",
    "volumedriver.journal_mib=1024",
    "index.cache_mib=32",
    "index.write_buffer_mib=16",
];
/// MiB that these settings allow: caches and buffers, and 8 uploads of SCOs of 8 MiB.
const ALLOWED: u64 = 64 + 64 + 64 + 32 + 2 * 16 + 8 * 8;
/// Writers of 4 KiB beside a snapshot, and seconds that each run takes.
const WRITERS: u64 = 4;
const WRITE_SECONDS: f64 = 4.0;

pub fn tib(options: &Options, folder: &Path) -> Result<()> {
    let size = options.size_mib.unwrap_or(1 << 20) << 20;
    let clusters = size >> 12;
    // A tenth of it is mapped, as 100 GiB of 1 TiB; at least two TLogs.
    let tlogs = (clusters / 10 / ENTRIES).max(1) + 1;
    let entries = ENTRIES.min((clusters / 16) & !2047);
    ensure!(entries > 0, "a vDisk of {} MiB is too small for this", size >> 20);
    let (store, watch) = (folder.join("pool"), Stopwatch::start());
    let image = Image::generate(&store, "v", Shape { size, tlogs, entries })?;
    println!(
        "vDisk of {} GiB, {:.1} GiB mapped by 4 KiB in {tlogs} TLogs, made in {:.0} s",
        size >> 30,
        image.mappings() as f64 / f64::from(1 << 18),
        watch.seconds()
    );
    let runtime = figures::runtime()?;
    let (mut adopts, mut opens, mut got, mut router) = (Vec::new(), Vec::new(), Vec::new(), None);
    let mut idle = 0;
    for run in 0..options.runs {
        drop(router.take());
        figures::forget_pages(&store)?;
        let fresh = empty(options, &folder.join(format!("data{run}")))?;
        idle = resident(fresh.pid())?;
        let watch = Stopwatch::start();
        let path = store.display().to_string();
        fresh.cli(&["vpool", "create", "p", "--backend", "directory", "--path", &path, "--adopt"])?;
        adopts.push(watch.seconds());
        let watch = Stopwatch::start();
        runtime.block_on(read_one(&fresh, "p/v", &image, 3 + run as u64))?;
        opens.push(watch.seconds());
        got.push(metric(&fresh, GOT)? / 1_048_576.0);
        router = Some(fresh);
    }
    let Some(router) = router else { return Ok(()) };
    let open = Spread::of(opens);
    println!("  adopting the vPool on an empty data directory: {:.3} s", Spread::of(adopts));
    println!("  then open -> first read: {open:.3} s ({})", at_most(open.median, FIRST_READ));
    println!("  objects read until then: {:.1} MiB", Spread::of(got));
    memory(&router, idle, "after the first read")?;
    random_reads(&runtime, &router, &image)?;
    memory(&router, idle, "after random reads")?;
    pauses(&runtime, &router, options.runs)?;
    branches(&runtime, &router, &image, options.runs)?;
    memory(&router, idle, "at the end")
}

/// A router with an empty data directory.
fn empty(options: &Options, data: &Path) -> Result<Router> {
    let mut config = Config::new(data)?;
    for setting in SMALL.into_iter().chain(options.settings()) {
        config = config.set(setting);
    }
    Router::start(config)
}

fn memory(router: &Router, idle: u64, when: &str) -> Result<()> {
    let most = peak_memory(router.pid())?.saturating_sub(idle) >> 20;
    println!(
        "  resident {when}: {} MiB; until now at most {most} MiB more than the {} MiB of a router without vDisks ({} MiB)",
        resident(router.pid())? >> 20,
        idle >> 20,
        at_most(most as f64, ALLOWED as f64)
    );
    Ok(())
}

/// Connects, reads one mapped cluster and says goodbye.
async fn read_one(router: &Router, export: &str, image: &Image, i: u64) -> Result<()> {
    let client = figures::connect(router, export).await?;
    check(&client, image, i).await?;
    Ok(client.disconnect().await?)
}

/// Reads one address and checks what is there.
async fn check(client: &Client, image: &Image, i: u64) -> Result<()> {
    let (addr, content) = image.expected(i);
    let read = client.read(addr << 12, 4096).await?;
    let right = content.map_or_else(|| read.iter().all(|byte| *byte == 0), |content| content == read);
    ensure!(right, "mapping {i}, cluster {addr}, reads as something else");
    Ok(())
}

/// Random reads, verified: of a map that is not in memory, then by many at a time.
fn random_reads(runtime: &tokio::runtime::Runtime, router: &Router, image: &Image) -> Result<()> {
    let client = runtime.block_on(figures::connect(router, "p/v"))?;
    for (workers, reads) in [(1u64, 3000u64), (32, 400)] {
        let watch = Stopwatch::start();
        let one = |worker: u64| {
            let client = &client;
            async move {
                let (mut random, mut times) = (fastrand::Rng::with_seed(worker), Vec::new());
                for _ in 0..reads {
                    let watch = Stopwatch::start();
                    // Some of them are holes.
                    check(client, image, random.u64(..image.mappings() + image.mappings() / 16)).await?;
                    times.push(watch.seconds() * 1e6);
                }
                anyhow::Ok(times)
            }
        };
        let all = runtime.block_on(futures::future::try_join_all((0..workers).map(one)))?;
        let mut times: Vec<f64> = all.concat();
        println!(
            "  random verified reads at depth {workers}: {:.0}/s, p50 {:.0} us, p99 {:.0} us",
            times.len() as f64 / watch.seconds(),
            percentile(&mut times, 0.5),
            percentile(&mut times, 0.99)
        );
    }
    Ok(runtime.block_on(client.disconnect())?)
}

/// A write, in seconds since the beginning.
#[derive(Clone, Copy)]
struct Write {
    begin: f64,
    end: f64,
}

/// The writes of one of a few writers, until they are stopped.
async fn writes(
    client: &Client,
    clock: &Stopwatch,
    stop: &AtomicBool,
    worker: u64,
    seed: u64,
) -> Result<Vec<Write>> {
    let (mut random, mut times) = (fastrand::Rng::with_seed(seed * 64 + worker), Vec::new());
    let data = vec![7; 4096];
    // Only the end of the vDisk is written: the rest stays as it was generated, for the other checks.
    let clusters = client.size() >> 12;
    let area = scratch_clusters(clusters);
    while !stop.load(Ordering::Relaxed) {
        let addr = clusters - 1 - random.u64(..area);
        let begin = clock.seconds();
        client.write(addr << 12, &data, 0).await?;
        times.push(Write { begin, end: clock.seconds() });
    }
    Ok(times)
}

/// Milliseconds of the longest write that was under way between two moments.
fn longest(writes: &[Write], from: f64, to: f64) -> f64 {
    let under_way = writes.iter().filter(|write| write.begin <= to && write.end >= from);
    under_way.map(|write| (write.end - write.begin) * 1e3).fold(0.0, f64::max)
}

/// How many clusters at the end are written over.
fn scratch_clusters(clusters: u64) -> u64 {
    (clusters / 1024).max(1)
}

/// How much longer the longest write beside a snapshot is than that of any other time of the same length.
fn pauses(runtime: &tokio::runtime::Runtime, router: &Router, runs: usize) -> Result<()> {
    let client = runtime.block_on(figures::connect(router, "p/v"))?;
    let (mut plain, mut beside, mut more, mut took) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for run in 0..runs {
        let (clock, stop) = (Stopwatch::start(), AtomicBool::new(false));
        let (writes, from, to) = std::thread::scope(|scope| -> Result<(Vec<Write>, f64, f64)> {
            let writers = (0..WRITERS).map(|worker| writes(&client, &clock, &stop, worker, run as u64));
            let written = scope.spawn(|| runtime.block_on(futures::future::try_join_all(writers)));
            tests::time::pause((WRITE_SECONDS * 500.0) as u64);
            let from = clock.seconds();
            let taken = router.cli(&["vdisk", "snapshot", "p/v", &format!("pause{run}")]);
            let to = clock.seconds();
            tests::time::pause((WRITE_SECONDS * 500.0) as u64);
            stop.store(true, Ordering::Relaxed);
            let writes = written.join().map_err(|_| anyhow::anyhow!("a writer panicked"))??;
            taken.map(|_| (writes.concat(), from, to))
        })?;
        let length = to - from;
        let others = (0..(WRITE_SECONDS / length) as usize).map(|n| n as f64 * length);
        let others = others.filter(|begin| begin + length < from || *begin > to);
        let usual = Spread::of(others.map(|begin| longest(&writes, begin, begin + length))).median;
        plain.push(usual);
        beside.push(longest(&writes, from, to));
        more.push(longest(&writes, from, to) - usual);
        took.push(length * 1e3);
    }
    runtime.block_on(client.disconnect())?;
    let (plain, beside, more, took) =
        (Spread::of(plain), Spread::of(beside), Spread::of(more), Spread::of(took));
    println!(
        "  longest 4 KiB write of {WRITERS} writers while a snapshot is taken ({took:.1} ms): {beside:.2} ms, usually in \
         such a time {plain:.2} ms: {more:.2} ms more ({})",
        at_most(more.median, PAUSE)
    );
    Ok(())
}

/// Clone -> first read and rollback -> first read.
fn branches(runtime: &tokio::runtime::Runtime, router: &Router, image: &Image, runs: usize) -> Result<()> {
    router.cli(&["vdisk", "snapshot", "p/v", "base"])?;
    router.drain("p/v")?;
    let (mut clones, mut rollbacks) = (Vec::new(), Vec::new());
    for run in 0..runs {
        let name = format!("clone{run}");
        let watch = Stopwatch::start();
        router.cli(&["vdisk", "clone", "p/v@base", &name])?;
        runtime.block_on(read_one(router, &format!("p/{name}"), image, 18 + run as u64))?;
        clones.push(watch.seconds());
    }
    for run in 0..runs {
        // Something to go back from, and nobody connected.
        let client = runtime.block_on(figures::connect(router, "p/v"))?;
        let at = client.size() - 4096;
        let fresh = vec![run as u8 + 100; 4096];
        runtime.block_on(async {
            client.write(at, &fresh, 0).await?;
            client.flush().await?;
            client.disconnect().await
        })?;
        drop(client);
        router.drain("p/v")?;
        let took = eventually("the client has left", 30, || {
            let watch = Stopwatch::start();
            router.cli(&["vdisk", "rollback", "p/v", "base"])?;
            Ok(watch)
        })?;
        runtime.block_on(read_one(router, "p/v", image, 35 + run as u64))?;
        rollbacks.push(took.seconds());
        let client = runtime.block_on(figures::connect(router, "p/v"))?;
        let read = runtime.block_on(client.read(at, 4096))?;
        ensure!(read != fresh, "what was written after the snapshot is still there");
        runtime.block_on(client.disconnect())?;
    }
    let (clones, rollbacks) = (Spread::of(clones), Spread::of(rollbacks));
    println!("  clone -> first read: {clones:.3} s ({})", at_most(clones.median, FIRST_READ));
    println!("  rollback -> first read: {rollbacks:.3} s ({})", at_most(rollbacks.median, FIRST_READ));
    Ok(())
}
