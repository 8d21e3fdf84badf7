//! `cargo xtask bench`: 4 KiB and 1 MiB reads and writes, and durable writes, against nbdkit and
//! qemu-nbd in one interleaved run (A/B/A/B). On a shared machine the steady figures are the
//! server's CPU time per operation and the bytes it wrote per byte of the client; compare
//! operations per second only inside one run.

#![allow(clippy::disallowed_methods)]

mod clones;
mod cost;
mod etcd;
mod failover;
mod figures;
mod grpc;
mod many;
mod reads;
mod scrub;
mod space;
mod special;
mod sustained;
mod tib;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use std::io::Write;
use std::path::{Path, PathBuf};
use tests::nbd::Endpoint;
use tests::reference::Reference;
use tests::router::{Config, Router};
use tests::time::Stopwatch;
use tests::tools::{command, cpu_seconds, free_port, need, run, run_within, scratch, source, written_bytes};

#[derive(Parser, Clone)]
#[command(about = "Benchmarks against nbdkit and qemu-nbd, interleaved in one run")]
struct Options {
    /// How often each workload is run on each server
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Seconds of each run
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Size of the disk, in MiB: 1024, or what the special one takes
    #[arg(long)]
    size_mib: Option<u64>,
    /// Only workloads whose name holds this
    #[arg(long)]
    only: Option<String>,
    /// How the clients connect: unix or tcp
    #[arg(long, default_value = "unix", value_parser = ["unix", "tcp"])]
    transport: String,
    /// Instead of the workloads, one of the measurements that are described in docs/testing.md
    #[arg(long, value_parser = special::NAMES)]
    special: Option<String>,
    /// With `--special space`: how many times the size of the disk is written over it
    #[arg(long, default_value_t = 20.0)]
    times: f64,
    /// With `--special space`: take snapshots meanwhile, and delete old ones
    #[arg(long)]
    snapshots: bool,
    /// With `--snapshots`: seconds from one to the next
    #[arg(long, default_value_t = 60)]
    snapshot_seconds: u64,
    /// With `--special clones`: how many there are
    #[arg(long, default_value_t = 200)]
    clones: usize,
    /// With `--special many`: how many vDisks there are
    #[arg(long, default_value_t = 1000)]
    vdisks: usize,
    /// Only our server, as for a profile
    #[arg(long)]
    alone: bool,
    /// Only the others, for a look at the machine
    #[arg(long, conflicts_with = "alone")]
    peers: bool,
    /// Be a member of a registry, for `--special etcd`: FOLDER|MEMBER|ADDRESS|GROUP
    #[arg(long, hide = true)]
    member: Option<String>,
    /// More settings of our server, as key=value
    #[arg(long = "set")]
    settings: Vec<String>,
}

impl Options {
    /// Settings of our server.
    fn settings(&self) -> Vec<&str> {
        self.settings.iter().map(String::as_str).collect()
    }

    /// MiB of the disk of the ordinary workloads.
    fn disk_mib(&self) -> u64 {
        self.size_mib.unwrap_or(1024)
    }
}

struct Workload {
    name: &'static str,
    pattern: &'static str,
    block: &'static str,
    depth: u32,
    jobs: u32,
    /// A flush after so many writes of each job; 0 for none.
    fsync: u32,
    /// MiB that requests go to, read once before; 0 for the whole disk.
    warm_mib: u64,
    /// Writes with FUA, by the harness's own client: fio's sends none.
    fua: bool,
}

impl Workload {
    fn is_durable(&self) -> bool {
        self.fsync > 0 || self.fua
    }
}

const fn workload(
    name: &'static str,
    pattern: &'static str,
    block: &'static str,
    depth: u32,
    jobs: u32,
) -> Workload {
    Workload { name, pattern, block, depth, jobs, fsync: 0, fua: false, warm_mib: 0 }
}

const WORKLOADS: &[Workload] = &[
    workload("4k write QD1", "randwrite", "4k", 1, 1),
    workload("4k read QD1", "randread", "4k", 1, 1),
    workload("4k write QD32 x 4", "randwrite", "4k", 32, 4),
    workload("4k read QD32 x 4", "randread", "4k", 32, 4),
    Workload { warm_mib: 256, ..workload("4k cached read QD1", "randread", "4k", 1, 1) },
    Workload { warm_mib: 256, ..workload("4k cached QD32 x 4", "randread", "4k", 32, 4) },
    workload("1M write QD8", "write", "1M", 8, 1),
    workload("1M read QD8", "read", "1M", 8, 1),
    Workload { fsync: 1, ..workload("4k write+flush QD1", "randwrite", "4k", 1, 1) },
    Workload { fua: true, ..workload("4k FUA QD1", "randwrite", "4k", 1, 1) },
    Workload { fsync: 1, ..workload("4k write+flush x 8", "randwrite", "4k", 1, 8) },
    Workload { fsync: 32, ..workload("4k QD32 x 4, flush/32", "randwrite", "4k", 32, 4) },
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
    if let Some(member) = &options.member {
        return etcd::member(member);
    }
    need(&["fio", "nbdkit", "qemu-nbd"])?;
    let folder = scratch("bench")?;
    if let Some(name) = &options.special {
        return special::run(name, &options, folder.path());
    }
    let size = format!("{}MiB", options.disk_mib());
    let router = if options.peers { None } else { Some(start(folder.path(), &options.settings(), &size)?) };
    let image = |name: &str| -> Result<PathBuf> {
        let path = folder.path().join(name);
        std::fs::File::create(&path)?.set_len(options.disk_mib() << 20)?;
        Ok(path)
    };
    let (first, second) = (image("nbdkit.img")?, image("qemu.img")?);
    let tcp = options.transport == "tcp";
    let place = |name: &str| -> Result<Endpoint> {
        Ok(match tcp {
            true => Endpoint::Tcp(format!("127.0.0.1:{}", free_port()?)),
            false => Endpoint::Unix(folder.path().join(name)),
        })
    };
    let nbdkit =
        |name: &str, arguments: &[&str]| Reference::nbdkit_at(folder.path(), place(name)?, arguments);
    let memory = nbdkit("memory.sock", &["memory", &format!("{}M", options.disk_mib())])?;
    let file = nbdkit("file.sock", &["file", &first.display().to_string()])?;
    let null = nbdkit("null.sock", &["null", &format!("{}M", options.disk_mib())])?;
    let qemu = Reference::qemu_nbd_at(folder.path(), place("qemu.sock")?, &second)?;
    let ours = |router: &Router| Server {
        name: "storagerouter",
        uri: if tcp { router.uri("p/v") } else { router.unix_uri("p/v") },
        pid: router.pid(),
    };
    let theirs = |name, server: &Reference| Server { name, uri: server.uri(), pid: server.pid() };
    let mut servers: Vec<Server> = router.iter().map(ours).collect();
    if !options.alone {
        for (name, server) in [("nbdkit memory", &memory), ("nbdkit file", &file), ("qemu-nbd raw", &qemu)] {
            servers.push(theirs(name, server));
        }
    }
    let null = theirs("nbdkit null", &null);
    let chosen =
        |workload: &&Workload| options.only.as_ref().is_none_or(|only| workload.name.contains(only.as_str()));
    let workloads: Vec<&Workload> = WORKLOADS.iter().filter(chosen).collect();
    let total = (workloads.len() * servers.len() * options.runs) as u64 * (options.seconds + 1);
    println!(
        "{} runs of {} s over {}, disk of {size}, write buffer as by default: about {} minutes",
        options.runs,
        options.seconds,
        options.transport,
        total / 60 + 1
    );
    for server in &servers {
        fill(server, options.disk_mib()).with_context(|| format!("filling {}", server.name))?;
    }
    let mut samples = vec![vec![Vec::new(); servers.len()]; workloads.len()];
    let mut limits = Limits::default();
    for _ in 0..options.runs {
        for (row, workload) in workloads.iter().enumerate() {
            if workload.is_durable() {
                limits.measure(workload, &null, &options, folder.path())?;
            }
            for (column, server) in servers.iter().enumerate() {
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
    if router.is_some() {
        limits.print(&workloads, &samples);
    }
    drop(router);
    Ok(())
}

/// Our server with one vDisk on a directory.
fn start(folder: &Path, settings: &[&str], size: &str) -> Result<Router> {
    start_on(folder, &folder.join("pool"), settings, size)
}

/// The same, with the directory named.
fn start_on(folder: &Path, pool: &Path, settings: &[&str], size: &str) -> Result<Router> {
    let mut config = Config::new(&folder.join("data"))?;
    for setting in settings {
        config = config.set(setting);
    }
    let router = Router::start(config)?;
    let pool = pool.display().to_string();
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

/// What no server can beat: a flush of this disk, and the round trip of a server that does nothing.
#[derive(Default)]
struct Limits {
    /// Microseconds of pwrite and fdatasync on a preallocated, zero-filled file, p50.
    flush: Vec<f64>,
    /// Microseconds of a write to nbdkit null by fio, p50.
    trip: Vec<f64>,
    /// The same by the harness's own client.
    own_trip: Vec<f64>,
}

impl Limits {
    fn measure(
        &mut self,
        workload: &Workload,
        null: &Server,
        options: &Options,
        folder: &Path,
    ) -> Result<()> {
        self.flush.push(flush_time(folder)?);
        let plain = Workload { fsync: 0, ..*workload };
        match workload.fua {
            true => self.own_trip.push(measure_fua(null, options, false)?.p50),
            false if workload.jobs == 1 => self.trip.push(measure(&plain, null, options)?.p50),
            false => {}
        }
        Ok(())
    }

    fn print(mut self, workloads: &[&Workload], samples: &[Vec<Vec<Sample>>]) {
        if self.flush.is_empty() {
            return;
        }
        let flush = median(&mut self.flush);
        println!("\nF, 4 KiB pwrite + fdatasync on this disk without a server, p50: {flush:.0} us");
        for (workload, row) in workloads.iter().zip(samples).filter(|(w, _)| w.is_durable() && w.jobs == 1) {
            let Some(ours) = row.first() else { continue };
            let trip = if workload.fua { median(&mut self.own_trip) } else { median(&mut self.trip) };
            let trips = if workload.fua { 1.0 } else { 2.0 };
            let bound = 1e6 / (flush + trips * trip);
            let ours = middle(ours, |sample| sample.ops);
            println!(
                "{}: 1/(F + {trips}R) with R = {trip:.1} us is {bound:.0}/s; ours is {ours:.0}/s = {:.2} of it",
                workload.name,
                ours / bound
            );
        }
    }
}

/// Writes one at a time, with the flag FUA or without, by libnbd.
fn measure_fua(server: &Server, options: &Options, fua: bool) -> Result<Sample> {
    let mut client = command("/usr/bin/python3");
    client.arg(source("scripts").join("fua_client.py")).arg(&server.uri);
    client.arg(options.seconds.to_string()).arg(u8::from(fua).to_string());
    let (cpu, written) = (cpu_seconds(server.pid)?, written_bytes(server.pid)?);
    let said = run_within(options.seconds + 60, client)?.ok()?.stdout;
    let (cpu, written) = (cpu_seconds(server.pid)? - cpu, written_bytes(server.pid)? - written);
    let mut times = said.lines().map(str::parse).collect::<Result<Vec<f64>, _>>().context("times")?;
    let seconds = times.pop().context("no times")?;
    let count = times.len() as f64;
    times.sort_by(f64::total_cmp);
    let percentile = |p: f64| times.get((count * p) as usize).copied().unwrap_or(f64::NAN);
    Ok(Sample {
        ops: count / seconds,
        megabytes: count * 4096.0 / seconds / 1e6,
        p50: percentile(0.5),
        p99: percentile(0.99),
        p999: percentile(0.999),
        cpu_per_op: cpu * 1e6 / count,
        written_per_byte: written as f64 / (count * 4096.0),
    })
}

/// Reads the beginning of the disk once.
fn warm(server: &Server, size_mib: u64) -> Result<()> {
    let (uri, size) = (format!("--uri={}", server.uri), format!("--size={size_mib}M"));
    let fixed = ["--name=warm", "--ioengine=nbd", "--rw=read", "--bs=1M", "--iodepth=4", "--thread"];
    run("fio", fixed.into_iter().chain([uri.as_str(), size.as_str()])).map(drop)
}

fn measure(workload: &Workload, server: &Server, options: &Options) -> Result<Sample> {
    if workload.fua {
        return measure_fua(server, options, true);
    }
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
    let size = if workload.warm_mib > 0 { workload.warm_mib } else { options.disk_mib() };
    fio.arg(format!("--size={size}M"));
    if workload.warm_mib > 0 {
        warm(server, size)?;
    }
    if workload.fsync > 0 {
        // fio's nbd engine fails after one request with --fdatasync; --fsync works.
        fio.arg(format!("--fsync={}", workload.fsync));
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

/// Microseconds of a 4 KiB write and fdatasync on this disk, p50, without any server.
fn flush_time(folder: &Path) -> Result<f64> {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::create(folder.join("baseline"))?;
    file.write_all_at(&vec![0; 16 << 20], 0)?;
    file.sync_all()?;
    let (watch, mut times) = (Stopwatch::start(), Vec::new());
    while watch.seconds() < 0.5 {
        let one = Stopwatch::start();
        file.write_all_at(&[1; 4096], (times.len() as u64 * 4096) % (16 << 20))?;
        file.sync_data()?;
        times.push(one.seconds() * 1e6);
    }
    Ok(median(&mut times))
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
        "{:<22} {:<14} {:>9} {:>17} {:>8} {:>8} {:>8} {:>8} {:>9} {:>9} {:>7}",
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
                "{:<22} {:<14} {:>9.0} {:>17} {:>8.1} {:>8.0} {:>8.0} {:>8.0} {:>9.1} {:>9.2} {:>7.2}",
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
