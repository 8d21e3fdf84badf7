//! What goes on for longer than the write buffer lasts: a stream to a disk, and a backend that is slower
//! than its clients.

use super::figures::{all_cpu, cpus};
use super::{start, start_on};
use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::process::Command;
use tests::faultfs::{Effect, FaultFs, Op};
use tests::router::Router;
use tests::time::Stopwatch;
use tests::tools::{command, cpu_seconds, run_within};

/// MiB of the write buffer: small, so that ten times as much is written in reasonable time.
const BUFFER: u64 = 1024;

/// fio with a log of each second.
fn fio(name: &str, folder: &Path) -> Command {
    let mut fio = command("fio");
    fio.args(["--group_reporting", "--output-format=json", "--log_avg_msec=1000"]);
    fio.args(["--percentile_list=50:99:99.9"]).arg(format!("--name={name}"));
    fio.arg(format!("--write_bw_log={}", folder.join(name).display()));
    fio
}

/// MB of each whole second of a run.
fn seconds(name: &str, folder: &Path) -> Result<Vec<f64>> {
    let log = std::fs::read_to_string(folder.join(format!("{name}_bw.1.log")))?;
    let rates = log.lines().filter_map(|line| line.split(',').nth(1)?.trim().parse::<f64>().ok());
    let mut rates: Vec<f64> = rates.map(|kib| kib * 1024.0 / 1e6).collect();
    rates.pop();
    ensure!(rates.len() > 3, "fio logged {} seconds only", rates.len());
    Ok(rates)
}

/// Mean MB/s, and how many seconds were below half of it.
fn steadiness(rates: &[f64]) -> (f64, usize) {
    let mean = rates.iter().sum::<f64>() / rates.len() as f64;
    (mean, rates.iter().filter(|rate| **rate < mean / 2.0).count())
}

fn job(said: &str, side: &str) -> Result<serde_json::Value> {
    let json: serde_json::Value = serde_json::from_str(&said[said.find('{').context("no JSON from fio")?..])?;
    Ok(json["jobs"][0][side].clone())
}

fn number(value: &serde_json::Value) -> f64 {
    value.as_f64().unwrap_or(f64::NAN)
}

/// 1 MiB sequential writes of ten times the write buffer to a directory store, after the same to a file of the
/// same disk, unbuffered and without us.
pub fn stream(folder: &Path) -> Result<()> {
    let bytes = format!("--io_size={}M", BUFFER * 10);
    let shape = ["--rw=write", "--bs=1M", "--iodepth=8", "--size=4G", &bytes];
    let mut raw = fio("raw", folder);
    raw.args(["--ioengine=libaio", "--direct=1"]).args(shape);
    raw.arg(format!("--filename={}", folder.join("raw.img").display()));
    run_within(300, raw)?.ok()?;
    std::fs::remove_file(folder.join("raw.img"))?;
    let (disk, raw_slow) = steadiness(&seconds("raw", folder)?);

    let router = start(folder, &[&format!("volumedriver.journal_mib={BUFFER}")], "4GiB")?;
    let mut ours = fio("ours", folder);
    ours.args(["--ioengine=nbd", "--thread"]).arg(format!("--uri={}", router.unix_uri("p/v"))).args(shape);
    let cpu = cpu_seconds(router.pid())?;
    run_within(300, ours)?.ok()?;
    let rates = seconds("ours", folder)?;
    let cpu = (cpu_seconds(router.pid())? - cpu) / (BUFFER * 10) as f64 * 1e6;
    let (mean, slow) = steadiness(&rates);
    let share = mean / (disk / 2.0);
    println!(
        "1 MiB sequential writes over unix, {} MiB through a write buffer of {BUFFER} MiB to a directory store:",
        BUFFER * 10
    );
    println!("  the disk alone {disk:.0} MB/s, {raw_slow} seconds below half of the mean");
    println!(
        "  ours {mean:.0} MB/s = {share:.2} of half the disk's rate, {slow} of {} seconds below half of the mean, \
         server CPU {cpu:.0} us per MiB",
        rates.len()
    );
    Ok(())
}

/// One client at a fixed rate, to its end; its figures of `side`.
fn client(
    router: &Router,
    folder: &Path,
    name: &str,
    side: &str,
    shape: &[&str],
) -> Result<serde_json::Value> {
    let mut client = fio(name, folder);
    client.args(["--ioengine=nbd", "--thread", "--time_based", "--norandommap", "--randrepeat=0"]);
    client.arg(format!("--uri={}", router.unix_uri("p/v"))).args(shape);
    job(&run_within(120, client)?.ok()?.stdout, side)
}

/// Reads at a fixed rate beside writes at a fixed rate that the backend, at 100 MB/s, can't follow: the
/// write buffer is full all the time.
pub fn full(folder: &Path) -> Result<()> {
    const READS: [&str; 6] =
        ["--rw=randread", "--bs=4k", "--iodepth=1", "--rate_iops=500", "--size=64M", "--runtime=15"];
    const WRITES: [&str; 6] =
        ["--rw=randwrite", "--bs=64k", "--iodepth=4", "--rate=150m", "--offset=1G", "--size=1G"];
    let disk = FaultFs::mount(&folder.join("slow"), &folder.join("slow.back"))?;
    let pool = disk.place().join("pool");
    let router = start_on(folder, &pool, &["volumedriver.journal_mib=512"], "4GiB")?;
    let mut fill = command("fio");
    fill.args(["--name=f", "--ioengine=nbd", "--thread", "--rw=write", "--bs=1M", "--size=64M"]);
    fill.arg(format!("--uri={}", router.unix_uri("p/v")));
    run_within(60, fill)?.ok()?;
    router.cli(&["vdisk", "drain", "p/v"])?;
    let p99 = |reads: &serde_json::Value| number(&reads["clat_ns"]["percentile"]["99.000000"]) / 1e3;
    // What is read lies in the read cache: the reads are to meet the writes, not the slow store.
    let mut warm = command("fio");
    warm.args(["--name=w", "--ioengine=nbd", "--thread", "--rw=read", "--bs=1M", "--size=64M"]);
    warm.arg(format!("--uri={}", router.unix_uri("p/v")));
    run_within(60, warm)?.ok()?;
    let idle = p99(&client(&router, folder, "idle", "read", &READS)?);

    // The same writes to a file of the disk below, unbuffered and without us.
    let mut control = fio("control", folder);
    control.args(["--ioengine=libaio", "--direct=1", "--time_based", "--runtime=10"]).args(WRITES);
    control.arg(format!("--filename={}", folder.join("control.img").display()));
    let control = job(&run_within(60, control)?.ok()?.stdout, "write")?;
    let control = number(&control["clat_ns"]["max"]) / 1e6;

    disk.when(Op::Write, "pool", Effect::Rate(100_000_000));
    let fill = [&WRITES[..2], &["--iodepth=16", "--offset=1G", "--size=1G", "--runtime=8"]].concat();
    client(&router, folder, "fill", "write", &fill)?;
    let (watch, cpu) = (Stopwatch::start(), all_cpu()?);
    let (reads, writes) = std::thread::scope(|scope| {
        let writes = scope
            .spawn(|| client(&router, folder, "writes", "write", &[&WRITES[..], &["--runtime=17"]].concat()));
        let reads = client(&router, folder, "reads", "read", &READS);
        (reads, writes.join())
    });
    let busy = (all_cpu()? - cpu) / watch.seconds() / cpus();
    let writes = writes.map_err(|_| anyhow::anyhow!("the writer panicked"))??;
    let under = p99(&reads?);
    let worst = number(&writes["clat_ns"]["max"]) / 1e6;
    let rate = number(&writes["bw_bytes"]) / 1e6;
    disk.heal();
    println!(
        "write buffer of 512 MiB full, backend 100 MB/s, 64 KiB writes asked at 157 MB/s, 500 reads/s of 4 KiB:"
    );
    println!(
        "  writes {rate:.0} MB/s, worst {worst:.0} ms (the disk alone, same writes: worst {control:.1} ms)"
    );
    println!(
        "  reads p99 {under:.0} us, idle {idle:.0} us: {:.1} x; machine busy {:.0} %",
        under / idle,
        busy * 100.0
    );
    Ok(())
}
