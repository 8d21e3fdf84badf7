//! `cargo xtask bench`: 4 KiB and 1 MiB reads and writes, and durable writes, against nbdkit and
//! qemu-nbd in one interleaved run (A/B/A/B). On a shared machine the steady figures are the
//! server's CPU time per operation and the bytes it wrote per byte of the client; compare
//! operations per second only inside one run.

#![allow(clippy::disallowed_methods)]

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use std::io::Write;
use std::path::{Path, PathBuf};
use tests::reference::Reference;
use tests::router::{Config, Router};
use tests::time::Stopwatch;
use tests::tools::{command, cpu_seconds, need, run, run_within, scratch, written_bytes};

#[derive(Parser)]
#[command(about = "Benchmarks against nbdkit and qemu-nbd, interleaved in one run")]
struct Options {
    /// How often each workload is run on each server
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Seconds of each run
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Size of the disk, in MiB
    #[arg(long, default_value_t = 1024)]
    size_mib: u64,
    /// Only workloads whose name holds this
    #[arg(long)]
    only: Option<String>,
    /// Only our server, as for a profile
    #[arg(long)]
    alone: bool,
    /// Only the others, for a look at the machine
    #[arg(long, conflicts_with = "alone")]
    peers: bool,
    /// More settings of our server, as key=value
    #[arg(long = "set")]
    settings: Vec<String>,
}

struct Workload {
    name: &'static str,
    pattern: &'static str,
    block: &'static str,
    depth: u32,
    jobs: u32,
    durable: bool,
}

const fn workload(
    name: &'static str,
    pattern: &'static str,
    block: &'static str,
    depth: u32,
    jobs: u32,
) -> Workload {
    Workload { name, pattern, block, depth, jobs, durable: false }
}

const WORKLOADS: &[Workload] = &[
    workload("4k write QD1", "randwrite", "4k", 1, 1),
    workload("4k read QD1", "randread", "4k", 1, 1),
    workload("4k write QD32 x 4", "randwrite", "4k", 32, 4),
    workload("4k read QD32 x 4", "randread", "4k", 32, 4),
    workload("1M write QD8", "write", "1M", 8, 1),
    workload("1M read QD8", "read", "1M", 8, 1),
    Workload { durable: true, ..workload("4k durable QD1", "randwrite", "4k", 1, 1) },
    Workload { durable: true, ..workload("4k durable x 8", "randwrite", "4k", 1, 8) },
];

struct Server {
    name: &'static str,
    uri: String,
    pid: u32,
}

/// One run of one workload on one server.
#[derive(Clone, Copy)]
struct Sample {
    ops: f64,
    megabytes: f64,
    p50: f64,
    p99: f64,
    p999: f64,
    cpu_per_op: f64,
    written_per_byte: f64,
}

fn main() -> Result<()> {
    let options = Options::parse();
    need(&["fio", "nbdkit", "qemu-nbd"])?;
    let folder = scratch("bench")?;
    let size = format!("{}MiB", options.size_mib);
    let router = if options.peers { None } else { Some(start(&options, folder.path(), &size)?) };
    let image = |name: &str| -> Result<PathBuf> {
        let path = folder.path().join(name);
        std::fs::File::create(&path)?.set_len(options.size_mib << 20)?;
        Ok(path)
    };
    let (first, second) = (image("nbdkit.img")?, image("qemu.img")?);
    let memory = Reference::nbdkit(folder.path(), &["memory", &format!("{}M", options.size_mib)])?;
    let file = Reference::nbdkit(folder.path(), &["file", &first.display().to_string()])?;
    let qemu = Reference::qemu_nbd(folder.path(), &second)?;
    let ours = |router: &Router| Server { name: "storagerouter", uri: router.uri("p/v"), pid: router.pid() };
    let mut servers: Vec<Server> = router.iter().map(ours).collect();
    if !options.alone {
        for (name, server) in [("nbdkit memory", &memory), ("nbdkit file", &file), ("qemu-nbd raw", &qemu)] {
            servers.push(Server { name, uri: server.uri(), pid: server.pid() });
        }
    }
    let chosen =
        |workload: &&Workload| options.only.as_ref().is_none_or(|only| workload.name.contains(only.as_str()));
    let workloads: Vec<&Workload> = WORKLOADS.iter().filter(chosen).collect();
    let total = (workloads.len() * servers.len() * options.runs) as u64 * (options.seconds + 1);
    println!(
        "{} runs of {} s, disk of {size}: about {} minutes",
        options.runs,
        options.seconds,
        total / 60 + 1
    );
    for server in &servers {
        fill(server, options.size_mib).with_context(|| format!("filling {}", server.name))?;
    }
    let mut samples = vec![vec![Vec::new(); servers.len()]; workloads.len()];
    let mut baseline = Vec::new();
    for _ in 0..options.runs {
        for (row, workload) in workloads.iter().enumerate() {
            for (column, server) in servers.iter().enumerate() {
                if workload.durable && column == 0 {
                    baseline.push(flushes_per_second(folder.path())?);
                }
                let sample = measure(workload, server, &options);
                let sample = sample.with_context(|| format!("{} on {}", workload.name, server.name))?;
                samples[row][column].push(sample);
                print!(".");
                std::io::stdout().flush()?;
            }
        }
    }
    println!("\n");
    print(&workloads, &servers, &samples);
    if !baseline.is_empty() {
        println!(
            "\nflush baseline: 4 KiB write + fdatasync on this disk, no server: {:.0}/s",
            median(&mut baseline)
        );
    }
    drop(router);
    Ok(())
}

/// Our server with one vDisk on a directory.
fn start(options: &Options, folder: &Path, size: &str) -> Result<Router> {
    let mut config = Config::new(&folder.join("data"))?;
    for setting in &options.settings {
        config = config.set(setting);
    }
    let router = Router::start(config)?;
    let pool = folder.join("pool").display().to_string();
    router.cli(&["vpool", "create", "p", "--backend", "directory", "--path", &pool])?;
    router.cli(&["vdisk", "create", "v", "--vpool", "p", "--size", size])?;
    Ok(router)
}

/// Writes every byte once, so that reads find data.
fn fill(server: &Server, size_mib: u64) -> Result<()> {
    let uri = format!("--uri={}", server.uri);
    let size = format!("--size={size_mib}M");
    let arguments = [
        "--name=fill",
        "--ioengine=nbd",
        &uri,
        "--rw=write",
        "--bs=1M",
        "--iodepth=8",
        "--thread",
        "--end_fsync=1",
        &size,
    ];
    run("fio", arguments).map(drop)
}

fn measure(workload: &Workload, server: &Server, options: &Options) -> Result<Sample> {
    let mut fio = command("fio");
    fio.args([
        "--name=j",
        "--ioengine=nbd",
        "--thread",
        "--group_reporting",
        "--time_based",
        "--norandommap",
    ]);
    fio.args(["--randrepeat=0", "--output-format=json", "--percentile_list=50:99:99.9"]);
    fio.arg(format!("--uri={}", server.uri)).arg(format!("--rw={}", workload.pattern));
    fio.arg(format!("--bs={}", workload.block)).arg(format!("--iodepth={}", workload.depth));
    fio.arg(format!("--numjobs={}", workload.jobs)).arg(format!("--runtime={}", options.seconds));
    fio.arg(format!("--size={}M", options.size_mib));
    if workload.durable {
        // fio's nbd engine fails after one request with --fdatasync; --fsync works.
        fio.arg("--fsync=1");
    }
    let (cpu, written) = (cpu_seconds(server.pid)?, written_bytes(server.pid)?);
    let said = run_within(options.seconds + 60, fio)?.ok()?.stdout;
    let (cpu, written) = (cpu_seconds(server.pid)? - cpu, written_bytes(server.pid)? - written);
    let json: serde_json::Value = serde_json::from_str(&said[said.find('{').context("no JSON from fio")?..])?;
    let job = &json["jobs"][0];
    let side = &job[if workload.pattern.contains("read") { "read" } else { "write" }];
    let number = |value: &serde_json::Value| value.as_f64().unwrap_or(0.0);
    let count = number(&side["total_ios"]);
    // It may fail after one request and still print plausible numbers.
    ensure!(job["error"] == 0, "fio ended with error {}", job["error"]);
    ensure!(count > 50.0 * options.seconds as f64 / 3.0, "only {count} requests in {} s", options.seconds);
    let percentile = |name: &str| number(&side["clat_ns"]["percentile"][name]) / 1e3;
    let bytes = number(&side["io_bytes"]);
    if bytes == 0.0 {
        bail!("fio moved no bytes: {side}");
    }
    Ok(Sample {
        ops: number(&side["iops"]),
        megabytes: number(&side["bw_bytes"]) / 1e6,
        p50: percentile("50.000000"),
        p99: percentile("99.000000"),
        p999: percentile("99.900000"),
        cpu_per_op: cpu * 1e6 / count,
        written_per_byte: written as f64 / bytes,
    })
}

/// What the disk can do without any server.
fn flushes_per_second(folder: &Path) -> Result<f64> {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::create(folder.join("baseline"))?;
    file.write_all_at(&vec![0; 16 << 20], 0)?;
    file.sync_all()?;
    let (watch, mut count) = (Stopwatch::start(), 0u64);
    while watch.seconds() < 0.5 {
        file.write_all_at(&[1; 4096], (count * 4096) % (16 << 20))?;
        file.sync_data()?;
        count += 1;
    }
    Ok(count as f64 / watch.seconds())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => values[length / 2],
        length => (values[length / 2 - 1] + values[length / 2]) / 2.0,
    }
}

fn middle(samples: &[Sample], pick: fn(&Sample) -> f64) -> f64 {
    median(&mut samples.iter().map(pick).collect::<Vec<_>>())
}

fn print(workloads: &[&Workload], servers: &[Server], samples: &[Vec<Vec<Sample>>]) {
    println!(
        "{:<18} {:<14} {:>9} {:>17} {:>8} {:>8} {:>8} {:>8} {:>9} {:>9} {:>7}",
        "workload",
        "server",
        "ops/s",
        "lowest..highest",
        "MB/s",
        "p50 us",
        "p99 us",
        "p99.9",
        "CPU us/op",
        "written/B",
        "ratio"
    );
    for (workload, row) in workloads.iter().zip(samples) {
        let ours = row.first().map_or(f64::NAN, |first| middle(first, |sample| sample.ops));
        for (server, runs) in servers.iter().zip(row) {
            let mut ops: Vec<f64> = runs.iter().map(|sample| sample.ops).collect();
            let centre = median(&mut ops);
            println!(
                "{:<18} {:<14} {:>9.0} {:>17} {:>8.1} {:>8.0} {:>8.0} {:>8.0} {:>9.1} {:>9.2} {:>7.2}",
                workload.name,
                server.name,
                centre,
                format!("{:.0}..{:.0}", ops[0], ops[ops.len() - 1]),
                middle(runs, |sample| sample.megabytes),
                middle(runs, |sample| sample.p50),
                middle(runs, |sample| sample.p99),
                middle(runs, |sample| sample.p999),
                middle(runs, |sample| sample.cpu_per_op),
                middle(runs, |sample| sample.written_per_byte),
                ours / centre,
            );
        }
    }
    println!(
        "\nMedian of all runs. ratio: our ops/s over this server's. CPU: the server's own, user and system."
    );
    println!(
        "written/B: bytes that the kernel charges to the server per byte of the client. For files in the"
    );
    println!(
        "page cache it may charge a whole large folio for 4 KiB. nbdkit memory keeps nothing, durable or not."
    );
}
