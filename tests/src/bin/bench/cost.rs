//! What it costs that another router has each write as well (DTL), and that a client comes in at a router that does not
//! own the vDisk: three routers on this machine, all variants of a workload in turn.

use super::figures::{Spread, at_least, at_most, metric};
use super::{Options, Sample, Server, Workload, fill, measure, workload};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use tests::cluster::Cluster;
use tests::router::Router;
use tests::time::eventually;
use tests::tools::cpu_seconds;

const MIB: u64 = 256;
/// Registry requests per request of a client, beyond what is asked without any.
const REGISTRY: f64 = 0.001;
/// vDisks that are made until one is replicated over each kind of socket.
const TRIES: usize = 16;

const WRITE_1: Workload = workload("4 KiB write, depth 1", "randwrite", "4k", 1, 1);
const WRITE_32: Workload = workload("4 KiB write, depth 32", "randwrite", "4k", 32, 1);
const WRITE_32X4: Workload = workload("4 KiB write, 32 x 4", "randwrite", "4k", 32, 4);
const READ_1: Workload =
    Workload { warm_mib: MIB, ..workload("4 KiB read, depth 1", "randread", "4k", 1, 1) };
const READ_32: Workload =
    Workload { warm_mib: MIB, ..workload("4 KiB read, depth 32", "randread", "4k", 32, 1) };

/// A variant of a workload, how it is judged, and against what.
struct Row {
    workload: &'static Workload,
    variant: &'static str,
    wanted: Wanted,
}

enum Wanted {
    /// It is what others are measured by.
    Base,
    /// Latency, of that of the base.
    Latency(f64),
    /// Requests per second, of those of the base.
    Rate(f64),
}

const fn row(workload: &'static Workload, variant: &'static str, wanted: Wanted) -> Row {
    Row { workload, variant, wanted }
}

const LOCAL: &str = "no DTL";
const TCP: &str = "DTL sync, TCP";
const UNIX: &str = "DTL sync, unix";
const FORWARDED: &str = "forwarded";

const ROWS: [Row; 13] = [
    row(&WRITE_1, LOCAL, Wanted::Base),
    row(&WRITE_1, TCP, Wanted::Latency(2.2)),
    row(&WRITE_1, UNIX, Wanted::Latency(1.8)),
    row(&WRITE_1, FORWARDED, Wanted::Latency(2.0)),
    row(&WRITE_32X4, LOCAL, Wanted::Base),
    row(&WRITE_32X4, TCP, Wanted::Rate(0.7)),
    row(&WRITE_32X4, UNIX, Wanted::Rate(0.7)),
    row(&WRITE_32, LOCAL, Wanted::Base),
    row(&WRITE_32, FORWARDED, Wanted::Rate(0.7)),
    row(&READ_1, LOCAL, Wanted::Base),
    row(&READ_1, FORWARDED, Wanted::Latency(2.0)),
    row(&READ_32, LOCAL, Wanted::Base),
    row(&READ_32, FORWARDED, Wanted::Rate(0.7)),
];

pub fn cost(options: &Options) -> Result<()> {
    let size = options.size_mib.unwrap_or(MIB);
    ensure!(size >= MIB, "a disk of at least {MIB} MiB");
    let roomy = [
        "volumedriver.journal_mib=2048",
        "volumedriver.segment_mib=32",
        "volumedriver.buffer_mib=512",
        "dtl.size_mib=1024",
        "dtl.volume_mib=512",
        "dtl.segment_mib=32",
    ];
    let extra = options.settings();
    let cluster = Cluster::start_each("cost", &format!("{size}MiB"), |name| {
        // Its peers reach this one over TCP alone.
        let far = (name == "c").then_some("dtl.unix=");
        roomy.into_iter().chain(far).chain(extra.iter().copied()).collect()
    })?;
    let owner = &cluster.routers[0];
    let disks = disks(owner, size)?;
    let at = |router: &Router, disk: &str| Server {
        name: "storagerouter",
        uri: router.unix_uri(&format!("p/{disk}")),
        pid: router.pid(),
    };
    let mut servers = BTreeMap::new();
    for (variant, disk) in &disks {
        let router = if *variant == FORWARDED { &cluster.routers[1] } else { owner };
        servers.insert(*variant, at(router, disk));
    }
    for server in servers.values() {
        fill(server, size)?;
    }
    let sized = Options { size_mib: Some(size), ..options.clone() };
    let chosen = |row: &&Row| {
        options
            .only
            .as_ref()
            .is_none_or(|only| format!("{} {}", row.workload.name, row.variant).contains(only))
    };
    let rows: Vec<&Row> = ROWS.iter().filter(chosen).collect();
    let mut samples: Vec<Vec<(Sample, f64)>> = rows.iter().map(|_| Vec::new()).collect();
    for _ in 0..options.runs {
        for (row, column) in rows.iter().zip(&mut samples) {
            let server = servers.get(row.variant).context("no such variant")?;
            let before = all_cpu(&cluster)?;
            let sample = measure(row.workload, server, &sized)
                .with_context(|| format!("{}, {}", row.workload.name, row.variant))?;
            let count = sample.ops * options.seconds as f64;
            column.push((sample, (all_cpu(&cluster)? - before) * 1e6 / count));
        }
    }
    print(&rows, &samples);
    let none = servers.get(LOCAL).context("no local vDisk")?;
    registry(&cluster, none, &sized)
}

fn all_cpu(cluster: &Cluster) -> Result<f64> {
    cluster.routers.iter().map(|router| cpu_seconds(router.pid())).sum()
}

/// A vDisk for each variant, all owned by the first router.
fn disks(owner: &Router, size: u64) -> Result<BTreeMap<&'static str, String>> {
    let mut disks = BTreeMap::new();
    let size = format!("{size}MiB");
    for (variant, name) in [(LOCAL, "local"), (FORWARDED, "forwarded")] {
        owner.cli(&["vdisk", "create", name, "--vpool", "p", "--size", &size])?;
        owner.cli(&["vdisk", "set", &format!("p/{name}"), "dtl.mode=none"])?;
        disks.insert(variant, name.to_string());
    }
    for i in 0..TRIES {
        if disks.contains_key(TCP) && disks.contains_key(UNIX) {
            return Ok(disks);
        }
        let name = format!("d{i}");
        let full = format!("p/{name}");
        owner.cli(&["vdisk", "create", &name, "--vpool", "p", "--size", &size])?;
        let peer = eventually("the vDisk is in sync", 30, || {
            let said = owner.show(&full)?;
            ensure!(said["dtl"]["status"] == "in_sync", "{said}");
            said["dtl"]["peers"][0].as_str().map(str::to_string).context("no peer")
        })?;
        disks.entry(if peer == "c" { TCP } else { UNIX }).or_insert(name);
    }
    anyhow::bail!("of {TRIES} vDisks none was replicated to one of the routers")
}

fn print(rows: &[&Row], samples: &[Vec<(Sample, f64)>]) {
    let mut base: Option<&Vec<(Sample, f64)>> = None;
    for (row, runs) in rows.iter().zip(samples) {
        let p50 = Spread::of(runs.iter().map(|(sample, _)| sample.p50));
        let p99 = Spread::of(runs.iter().map(|(sample, _)| sample.p99));
        let rate = Spread::of(runs.iter().map(|(sample, _)| sample.ops));
        let cpu = Spread::of(runs.iter().map(|(_, cpu)| *cpu));
        let ratio = |pick: fn(&Sample) -> f64| {
            let base = base.map(|base| base.iter()).unwrap_or_default();
            Spread::of(runs.iter().zip(base).map(|((ours, _), (base, _))| pick(ours) / pick(base)))
        };
        let verdict = match row.wanted {
            Wanted::Base => String::new(),
            Wanted::Latency(limit) => {
                let ratio = ratio(|sample| sample.p50);
                format!(": {ratio:.2} x its latency ({})", at_most(ratio.median, limit))
            }
            Wanted::Rate(limit) => {
                let ratio = ratio(|sample| sample.ops);
                format!(": {ratio:.2} x its rate ({})", at_least(ratio.median, limit))
            }
        };
        println!(
            "{}, {}: p50 {p50:.1} us, p99 {p99:.0}, {rate:.0}/s, CPU of all routers {cpu:.1} us/op{verdict}",
            row.workload.name, row.variant
        );
        if matches!(row.wanted, Wanted::Base) {
            base = Some(runs);
        }
    }
}

/// What the registry is asked while a client writes, beside what it is asked at any time.
fn registry(cluster: &Cluster, server: &Server, options: &Options) -> Result<()> {
    let asked = || -> Result<f64> {
        let name = "storagerouter_kvstore_requests_total";
        cluster.routers.iter().map(|router| metric(router, name)).sum()
    };
    let before = asked()?;
    let watch = tests::time::Stopwatch::start();
    tests::time::pause(options.seconds * 1000);
    let idle = (asked()? - before) / watch.seconds();
    let (before, watch) = (asked()?, tests::time::Stopwatch::start());
    let sample = measure(&WRITE_1, server, options)?;
    let busy = (asked()? - before) / watch.seconds();
    let each = (busy - idle).max(0.0) / sample.ops;
    println!(
        "requests to the registry: {idle:.1}/s without I/O, {busy:.1}/s with {:.0} writes/s, {each:.5} more for each write ({})",
        sample.ops,
        at_most(each, REGISTRY)
    );
    Ok(())
}
