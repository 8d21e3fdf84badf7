//! The special benchmarks by name, and the small ones of them: the time of a restart, bytes in the write
//! buffer, memory for the map.

use super::figures::{metric, resident};
use super::{Options, clones, cost, etcd, failover, many, reads, scrub, space, start, sustained, tib};
use anyhow::{Result, bail};
use std::path::Path;
use tests::router::Router;
use tests::time::Stopwatch;
use tests::tools::{command, run_within};

/// Their names.
pub const NAMES: [&str; 14] = [
    "restart",
    "journal",
    "map",
    "stream",
    "full",
    "space",
    "tib",
    "reads",
    "clones",
    "scrub-latency",
    "failover",
    "cost",
    "etcd",
    "many",
];

/// Runs the one with this name.
pub fn run(name: &str, options: &Options, folder: &Path) -> Result<()> {
    match name {
        "restart" => restart(folder),
        "journal" => journal_bytes(folder),
        "map" => map_memory(folder),
        "stream" => sustained::stream(folder),
        "full" => sustained::full(folder),
        "space" => space::space(options, folder),
        "tib" => tib::tib(options, folder),
        "reads" => reads::reads(options, folder),
        "clones" => clones::clones(options, folder),
        "failover" => failover::failover(options),
        "scrub-latency" => scrub::latency(options, folder),
        "cost" => cost::cost(options),
        "etcd" => etcd::etcd(options, folder),
        "many" => many::many(options),
        _ => bail!("no special benchmark '{name}'"),
    }
}

/// Writes with fio; the arguments say what.
fn write(router: &Router, arguments: &[&str]) -> Result<()> {
    let mut fio = command("fio");
    fio.args(["--name=w", "--ioengine=nbd", "--thread", "--group_reporting"]);
    fio.arg(format!("--uri={}", router.unix_uri("p/v"))).args(arguments);
    run_within(300, fio)?.ok().map(drop)
}

/// Kills the router with 1 GiB in the write buffer that the backend never took, and measures from its
/// start to its first answered read.
fn restart(folder: &Path) -> Result<()> {
    let mut router = start(folder, &["volumedriver.buffer_mib=512"], "4GiB")?;
    // A directory store that is not there takes nothing, and says so.
    let (pool, aside) = (folder.join("pool"), folder.join("aside"));
    std::fs::rename(&pool, &aside)?;
    write(
        &router,
        &["--rw=randwrite", "--bs=4k", "--iodepth=32", "--size=4G", "--io_size=1G", "--norandommap"],
    )?;
    router.kill9()?;
    std::fs::rename(&aside, &pool)?;
    let watch = Stopwatch::start();
    router.start_again()?;
    let up = watch.seconds();
    let mut fio = command("qemu-io");
    fio.args(["-f", "raw", "-r", "-c", "read 0 4k"]).arg(router.unix_uri("p/v"));
    run_within(120, fio)?.ok()?;
    println!(
        "restart with 1 GiB of 4 KiB writes unsealed: ready after {up:.2} s, first read after {:.2} s",
        watch.seconds()
    );
    Ok(())
}

/// Bytes appended to the write buffer per byte of the client.
fn journal_bytes(folder: &Path) -> Result<()> {
    let router = start(folder, &[], "1GiB")?;
    let written = "storagerouter_volumedriver_journal_written_bytes_total";
    for (depth, jobs) in [("1", "1"), ("32", "1"), ("32", "4")] {
        let before = metric(&router, written)?;
        let client = "storagerouter_edge_payload_bytes_total{direction=\"write\"}";
        let client_before = metric(&router, client)?;
        write(
            &router,
            &[
                "--rw=randwrite",
                "--bs=4k",
                "--size=1G",
                "--time_based",
                "--runtime=3",
                "--norandommap",
                &format!("--iodepth={depth}"),
                &format!("--numjobs={jobs}"),
            ],
        )?;
        let bytes = (metric(&router, written)? - before) / (metric(&router, client)? - client_before);
        println!("write buffer bytes per client byte, 4 KiB QD{depth} x {jobs}: {bytes:.3}");
    }
    Ok(())
}

/// Memory that the map of randomly written 4 KiB clusters takes, beyond what the router takes for itself once
/// it is at work (buffers, the local table's, up to a TLog's worth of entries).
fn map_memory(folder: &Path) -> Result<()> {
    // The map's own pages, and the cache and the buffers of the table that they lie in.
    for (pages, table, gib) in [(256, 96, 4), (32, 16, 15)] {
        let cap = pages + 2 * table;
        let folder = folder.join(format!("cap{cap}"));
        std::fs::create_dir_all(&folder)?;
        let index = format!("volumedriver.index_cache_mib={pages}");
        let (cache, buffers) =
            (format!("index.cache_mib={table}"), format!("index.write_buffer_mib={table}"));
        let small = [
            "volumedriver.buffer_mib=16",
            "volumedriver.read_cache_mib=1",
            "volumedriver.journal_mib=1024",
            &index,
            &cache,
            &buffers,
        ];
        let router = start(&folder, &small, "20GiB")?;
        let write_all = |offset: &str, size: &str| {
            write(
                &router,
                &[
                    "--rw=randwrite",
                    "--bs=4k",
                    "--iodepth=32",
                    &format!("--size={size}"),
                    &format!("--offset={offset}"),
                ],
            )?;
            router.cli(&["vdisk", "drain", "p/v"])?;
            settled(router.pid())
        };
        let before = write_all("15G", "5G")?;
        let after = write_all("0", &format!("{gib}G"))?;
        let grown = (after as f64 - before as f64) / f64::from(1 << 20);
        println!(
            "map capped at {cap} MiB: {gib} GiB of randomly mapped 4 KiB, after 5 GiB before, take {grown:.0} MiB more, \
             {:.1} per GiB (resident {} MiB)",
            grown / f64::from(gib),
            after >> 20
        );
        drop(router);
        std::fs::remove_dir_all(&folder)?;
    }
    Ok(())
}

/// Resident bytes of a process once it has given back what its allocator keeps for a while.
fn settled(pid: u32) -> Result<u64> {
    let mut least = u64::MAX;
    for _ in 0..20 {
        tests::time::pause(1000);
        least = least.min(resident(pid)?);
    }
    Ok(least)
}
