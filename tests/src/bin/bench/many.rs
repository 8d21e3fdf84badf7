//! A router with many small vDisks: how soon it serves again after a restart, and two others in its place when it is gone.

use super::Options;
use super::figures::at_most;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::cluster::Cluster;
use tests::router::Router;
use tests::time::{Stopwatch, eventually, pause};
use tests::tools::{command, run_within};

/// Seconds from the start to the first read, and from the death to all of them.
const RESTART: f64 = 5.0;
const TAKEOVER: f64 = 15.0;
/// How many are made, and written to, at a time.
const TOGETHER: usize = 8;
/// Of so many vDisks one is written before, and read after.
const EACH: usize = 20;

/// What every vDisk that was written holds.
const PATTERN: &str = "7";

fn name(n: usize) -> String {
    format!("d{n}")
}

/// Runs one job for each number, some at a time.
fn each(count: usize, job: impl Fn(usize) -> Result<()> + Sync) -> Result<()> {
    std::thread::scope(|scope| {
        let job = &job;
        let threads: Vec<_> = (0..TOGETHER)
            .map(|first| scope.spawn(move || (first..count).step_by(TOGETHER).try_for_each(job)))
            .collect();
        threads.into_iter().try_for_each(|thread| {
            thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a thread of the benchmark panicked")))
        })
    })
}

/// One request by qemu-io, whose pattern it checks.
fn io(router: &Router, n: usize, what: &str) -> Result<()> {
    let mut qemu = command("qemu-io");
    qemu.args(["-f", "raw", "-c", &format!("{what} -P {PATTERN} 0 4k")]);
    qemu.arg(router.unix_uri(&format!("p/{}", name(n))));
    let ran = run_within(60, qemu)?.ok()?;
    ensure!(!ran.stdout.contains("verification failed"), "vDisk {n} has lost what was acknowledged");
    Ok(())
}

fn vdisks(router: &Router) -> Result<Vec<Value>> {
    let (status, body) = router.get("/api/v1/vdisks")?;
    ensure!(status == 200, "status {status}: {body}");
    let said: Value = serde_json::from_str(&body)?;
    Ok(said["items"].as_array().context("no list of vDisks")?.clone())
}

fn in_sync(router: &Router, count: usize) -> Result<()> {
    eventually("all vDisks are in sync", 240, || {
        let all = vdisks(router)?;
        let there = all.iter().filter(|vdisk| vdisk["dtl"]["status"] == "in_sync").count();
        ensure!(there >= count, "{there} of {count} are in sync");
        Ok(())
    })
}

pub fn many(options: &Options) -> Result<()> {
    let settings =
        ["volumedriver.journal_mib=1024", "dtl.size_mib=1024", "dtl.segment_mib=16", "dtl.volumes=4096"];
    let extra = options.settings();
    let all: Vec<&str> = settings.into_iter().chain(extra.iter().copied()).collect();
    let mut cluster = Cluster::start("many", "64MiB", &all)?;
    let count = options.vdisks;
    let watch = Stopwatch::start();
    let first = &cluster.routers[0];
    each(count, |n| first.cli(&["vdisk", "create", &name(n), "--vpool", "p", "--size", "64MiB"]).map(drop))?;
    in_sync(first, count)?;
    println!("{count} vDisks made and in sync in {:.1} s", watch.seconds());
    let written = count.div_ceil(EACH);
    each(written, |n| io(first, n * EACH, "write"))?;

    let first = &mut cluster.routers[0];
    first.kill9()?;
    let watch = Stopwatch::start();
    first.launch_again()?;
    while io(first, EACH.min(count - 1) / EACH * EACH, "read").is_err() {
        ensure!(!watch.past(60), "no vDisk was served again in a minute");
        pause(10);
    }
    let seconds = watch.seconds();
    println!("killed and started again: first read after {seconds:.2} s ({})", at_most(seconds, RESTART));
    first.wait_ready(120)?;
    // Those that somebody else took in between are counted there.
    eventually("every vDisk is served", 120, || {
        let served = served(&cluster)?;
        ensure!(served >= count, "{served} of {count} are served");
        Ok(())
    })?;
    in_sync(&cluster.routers[1], count)?;

    cluster.routers[0].kill9()?;
    let watch = Stopwatch::start();
    while served(&cluster)? < count {
        ensure!(!watch.past(120), "{} of {count} are served after two minutes", served(&cluster)?);
        pause(50);
    }
    let seconds = watch.seconds();
    println!("killed: all served by two others after {seconds:.2} s ({})", at_most(seconds, TAKEOVER));
    each(written, |n| io(&cluster.routers[1], n * EACH, "read"))?;
    println!("what was written is there in all {written} vDisks that were");
    Ok(())
}

/// vDisks that some living router says it serves.
fn served(cluster: &Cluster) -> Result<usize> {
    let mut served = 0;
    for router in &cluster.routers {
        let Ok(all) = vdisks(router) else { continue };
        served += all.iter().filter(|vdisk| vdisk["state"] == "serving").count();
    }
    Ok(served)
}
