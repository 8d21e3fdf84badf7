//! Reads from the read cache beside a server that has everything in memory, and reads that miss it beside the
//! disk below and a server that does nothing.

use super::figures::{Spread, at_least, at_most, forget_pages, percentile};
use super::{Options, Server, Workload, fill, measure, start, workload};
use anyhow::{Context, Result, ensure};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use tests::nbd::Endpoint;
use tests::reference::Reference;
use tests::time::Stopwatch;

/// A cached read against nbdkit memory, and a miss against a read of the disk and a round trip.
const CACHED: f64 = 0.9;
const MISSED: f64 = 1.5;
/// MiB that the cached reads go to.
const HOT: u64 = 256;

const CACHED_READS: [Workload; 2] = [
    Workload { warm_mib: HOT, ..workload("4 KiB cached read, depth 1", "randread", "4k", 1, 1) },
    Workload { warm_mib: HOT, ..workload("4 KiB cached read, 32 x 4", "randread", "4k", 32, 4) },
];
const MISS: Workload = workload("4 KiB missed read, depth 1", "randread", "4k", 1, 1);

pub fn reads(options: &Options, folder: &Path) -> Result<()> {
    let size = options.size_mib.unwrap_or(4096);
    ensure!(size >= HOT, "a disk of at least {HOT} MiB");
    // The disk of the misses is read through a cache of 1 MiB.
    let (warm, cold) = (folder.join("warm"), folder.join("cold"));
    std::fs::create_dir_all(&warm)?;
    std::fs::create_dir_all(&cold)?;
    let cached = start(&warm, &options.settings(), &format!("{HOT}MiB"))?;
    let small =
        [&["volumedriver.read_cache_mib=1", "volumedriver.buffer_mib=64"], &*options.settings()].concat();
    let missed = start(&cold, &small, &format!("{size}MiB"))?;
    let nbdkit = |name: &str, arguments: &[&str]| {
        Reference::nbdkit_at(folder, Endpoint::Unix(folder.join(name)), arguments)
    };
    let memory = nbdkit("memory.sock", &["memory", &format!("{HOT}M")])?;
    let null = nbdkit("null.sock", &["null", &format!("{size}M")])?;
    let ours = |router: &tests::router::Router| Server {
        name: "storagerouter",
        uri: router.unix_uri("p/v"),
        pid: router.pid(),
    };
    let theirs = |name, server: &Reference| Server { name, uri: server.uri(), pid: server.pid() };
    let (cached_server, missed_server) = (ours(&cached), ours(&missed));
    let (memory_server, null_server) = (theirs("nbdkit memory", &memory), theirs("nbdkit null", &null));
    fill(&cached_server, HOT)?;
    fill(&memory_server, HOT)?;
    fill(&missed_server, size)?;
    missed.drain("p/v")?;
    cached.drain("p/v")?;

    let mut rows: Vec<[Vec<f64>; 2]> = vec![Default::default(); CACHED_READS.len()];
    let (mut misses, mut trips, mut disks) = (Vec::new(), Vec::new(), Vec::new());
    let store = cold.join("pool");
    for _ in 0..options.runs {
        for (workload, row) in CACHED_READS.iter().zip(&mut rows) {
            for (server, column) in [&cached_server, &memory_server].into_iter().zip(row.iter_mut()) {
                column.push(measure(workload, server, options)?.ops);
            }
        }
        forget_pages(&store)?;
        misses.push(measure(&MISS, &missed_server, &sized(options, size))?.p50);
        trips.push(measure(&MISS, &null_server, &sized(options, size))?.p50);
        forget_pages(&store)?;
        disks.push(disk_read(&store, options.seconds)?);
    }
    for (workload, [ours, memory]) in CACHED_READS.iter().zip(rows) {
        let ratios = Spread::of(ours.iter().zip(&memory).map(|(ours, memory)| ours / memory));
        let (ours, memory) = (Spread::of(ours), Spread::of(memory));
        println!(
            "{}: {ours:.0}/s, nbdkit memory {memory:.0}/s, ratio {ratios:.2} ({})",
            workload.name,
            at_least(ratios.median, CACHED)
        );
    }
    let bounds = disks.iter().zip(&trips).map(|(disk, trip)| disk + trip);
    let ratios = Spread::of(misses.iter().zip(bounds).map(|(miss, bound)| miss / bound));
    let (misses, disks, trips) = (Spread::of(misses), Spread::of(disks), Spread::of(trips));
    println!(
        "{}, p50: {misses:.1} us; of the same files with O_DIRECT {disks:.1} us, round trip to nbdkit null {trips:.1} us: \
         {ratios:.2} x their sum ({})",
        MISS.name,
        at_most(ratios.median, MISSED)
    );
    Ok(())
}

/// The options, with another size of the disk.
fn sized(options: &Options, size_mib: u64) -> Options {
    Options { size_mib: Some(size_mib), ..options.clone() }
}

/// Microseconds of a 4 KiB read past the page cache from the SCOs of a store, p50.
fn disk_read(store: &Path, seconds: u64) -> Result<f64> {
    use rustix::fs::OFlags;
    let objects = tests::census::objects(store)?;
    let large = objects.into_iter().filter(|(_, len)| *len > 1 << 20);
    let files: Vec<(PathBuf, u64)> = large.map(|(key, len)| (store.join(key), len)).collect();
    ensure!(!files.is_empty(), "no SCO in {}", store.display());
    // Few enough to hold them open, as the router does.
    let mut open = Vec::new();
    for (path, len) in files.into_iter().take(512) {
        let mut options = std::fs::OpenOptions::new();
        let direct = options.read(true).custom_flags(OFlags::DIRECT.bits() as i32).open(&path);
        open.push((direct.with_context(|| path.display().to_string())?, len));
    }
    let mut memory = vec![0u8; 8192];
    let aligned = memory.as_ptr().align_offset(4096);
    let buffer = memory.get_mut(aligned..aligned + 4096).context("no aligned memory")?;
    let (mut random, mut times, watch) = (fastrand::Rng::new(), Vec::new(), Stopwatch::start());
    while !watch.past(seconds) {
        let (file, len) = &open[random.usize(..open.len())];
        let offset = 4096 * random.u64(1..len / 4096);
        let one = Stopwatch::start();
        let read = file.read_at(buffer, offset)?;
        times.push(one.seconds() * 1e6);
        ensure!(read == 4096, "a read of {read} bytes");
    }
    Ok(percentile(&mut times, 0.5))
}
