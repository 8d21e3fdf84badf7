//! What scrub costs those who use the vDisk meanwhile: the latency of a fixed rate of requests with it and
//! without, in turn.

use super::figures::{Spread, all_cpu, at_most, cpus, metric};
use super::{Options, fill, start_on};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::path::Path;
use tests::router::Router;
use tests::time::Stopwatch;
use tests::tools::{command, run_within};

/// The setting that says whether volumes are scrubbed.
const SCRUB: &str = "volumedriver.scrub";
/// p99 with scrub, as a multiple of that without; and how busy the machine may be for the figure to count.
const SLOWER: f64 = 1.5;
const BUSY: f64 = 0.6;
/// Requests a second, half of them reads and half writes of 4 KiB, small enough that a small machine idles.
const RATE: u32 = 1000;
/// Seconds at that rate before it is measured: what the burst before left is not.
const RAMP: u64 = 10;
/// Objects put, as the router counts all of them.
const PUT: &str = super::figures::PUT;

/// How many requests took how many nanoseconds, as fio's bins say.
type Times = BTreeMap<u64, u64>;

/// One run: reads, writes, the share of the machine that was busy, MiB put.
struct Run {
    reads: Times,
    writes: Times,
    busy: f64,
    put: f64,
}

/// The microseconds that 99 % of them took at most.
fn p99<'a>(times: impl IntoIterator<Item = &'a Times>) -> f64 {
    let mut all = Times::new();
    for (time, number) in times.into_iter().flatten() {
        *all.entry(*time).or_default() += number;
    }
    let mut slower = all.values().sum::<u64>() / 100;
    let at = all.iter().rev().find(|(_, number)| {
        let reached = **number > slower;
        slower = slower.saturating_sub(**number);
        reached
    });
    at.map_or(f64::NAN, |(time, _)| *time as f64 / 1e3)
}

fn run(options: &Options, router: &Router, size: u64) -> Result<Run> {
    let seconds = options.seconds.max(20);
    let mut fio = command("fio");
    fio.args(["--name=s", "--ioengine=nbd", "--thread", "--time_based", "--norandommap", "--randrepeat=0"]);
    fio.args(["--rw=randrw", "--rwmixread=50", "--bs=4k", "--iodepth=8", "--output-format=json+"]);
    fio.arg(format!("--rate_iops={0},{0}", RATE / 2));
    fio.arg(format!("--runtime={seconds}")).arg(format!("--ramp_time={RAMP}")).arg(format!("--size={size}M"));
    fio.arg(format!("--uri={}", router.unix_uri("p/v")));
    let (watch, cpu, put) = (Stopwatch::start(), all_cpu()?, metric(router, PUT)?);
    let said = run_within(seconds + RAMP + 60, fio)?.ok()?.stdout;
    let busy = (all_cpu()? - cpu) / watch.seconds() / cpus();
    let json: serde_json::Value = serde_json::from_str(&said[said.find('{').context("no JSON from fio")?..])?;
    let job = &json["jobs"][0];
    ensure!(job["error"] == 0, "fio ended with error {}", job["error"]);
    let times = |side: &str| -> Result<Times> {
        let bins = job[side]["clat_ns"]["bins"].as_object().with_context(|| format!("no bins of {side}"))?;
        bins.iter().map(|(time, number)| Ok((time.parse()?, number.as_u64().context("a bin")?))).collect()
    };
    let put = (metric(router, PUT)? - put) / 1_048_576.0;
    Ok(Run { reads: times("read")?, writes: times("write")?, busy, put })
}

/// Two routers with the same data, one that scrubs and one that does not, are asked in turn.
pub fn latency(options: &Options, folder: &Path) -> Result<()> {
    let size = options.size_mib.unwrap_or(1024);
    let mut routers = Vec::new();
    for on in [false, true] {
        let folder = folder.join(if on { "on" } else { "off" });
        std::fs::create_dir_all(&folder)?;
        let scrub = format!("{SCRUB}={on}");
        let settings = [&[scrub.as_str()], &*options.settings()].concat();
        let router = start_on(&folder, &folder.join("pool"), &settings, &format!("{size}MiB"));
        let router = router.with_context(|| format!("a router with {scrub}"))?;
        let server = super::Server { name: "storagerouter", uri: router.unix_uri("p/v"), pid: router.pid() };
        fill(&server, size)?;
        // Garbage all over the SCOs, which scrub has to work off.
        overwrite(&router, size)?;
        routers.push(router);
    }
    let mut runs: [Vec<Run>; 2] = Default::default();
    for round in 0..options.runs {
        // Neither is always the one that comes after the other.
        for number in [round % 2, 1 - round % 2] {
            let (router, other) = (&routers[number], &routers[1 - number]);
            // Without clients it scrubs as fast as it can, and shares the disk.
            other.freeze()?;
            overwrite(router, size / 4)?;
            // Uploads of what was written at full speed are not what is measured.
            router.drain("p/v")?;
            runs[number].push(run(options, router, size)?);
            other.thaw()?;
        }
    }
    println!(
        "{RATE} requests/s of 4 KiB, half reads, on {size} MiB that is overwritten, scrub off and on in turn:"
    );
    for (name, runs) in ["off", "on"].iter().zip(&runs) {
        println!(
            "  scrub {name}: reads p99 {:.0} us, writes p99 {:.0} us, machine busy {:.0} %, {:.0} MiB put",
            Spread::of(runs.iter().map(|run| p99([&run.reads]))),
            Spread::of(runs.iter().map(|run| p99([&run.writes]))),
            Spread::of(runs.iter().map(|run| run.busy * 100.0)),
            Spread::of(runs.iter().map(|run| run.put))
        );
    }
    let [off, on] = &runs;
    for (what, pick) in [("reads", (|run| &run.reads) as fn(&Run) -> &Times), ("writes", |run| &run.writes)] {
        let ratios = Spread::of(off.iter().zip(on).map(|(off, on)| p99([pick(on)]) / p99([pick(off)])));
        let all = p99(on.iter().map(pick)) / p99(off.iter().map(pick));
        let held = at_most(ratios.median, SLOWER);
        println!("  {what}: p99 with scrub on is {ratios:.2} x ({held}), of all runs together {all:.2} x");
    }
    let busy = Spread::of(off.iter().chain(on).map(|run| run.busy));
    if busy.high > BUSY {
        println!("  the machine was busier than {:.0} %: the figures do not count", BUSY * 100.0);
    }
    Ok(())
}

/// Random 4 KiB writes over some MiB, as fast as they go.
fn overwrite(router: &Router, mib: u64) -> Result<()> {
    let mut fio = command("fio");
    fio.args(["--name=o", "--ioengine=nbd", "--thread", "--rw=randwrite", "--bs=4k", "--iodepth=32"]);
    fio.args(["--norandommap", "--randrepeat=0"]).arg(format!("--io_size={mib}M"));
    fio.arg(format!("--size={mib}M")).arg(format!("--uri={}", router.unix_uri("p/v")));
    run_within(300, fio)?.ok().map(drop)
}
