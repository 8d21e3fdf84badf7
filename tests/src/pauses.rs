//! How long a client of three real routers waits when its vDisk goes to another one: fio writes and verifies through
//! `edge serve`, and its longest request is the pause. Every byte that it reads back is checked, and it meets no error.

use crate::cluster::{Cluster, DISK};
use crate::edge::EdgeServe;
use crate::process::Process;
use crate::time::eventually;
use crate::tools::command;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// fio at work: random writes at a bounded rate, all of them read back at the end.
pub struct Fio {
    process: Process,
    report: PathBuf,
}

impl Fio {
    /// Starts it on the first `mib` of an export, `rate` writes of 4 KiB a second, 16 at a time.
    pub fn start(uri: &str, folder: &Path, mib: u32, rate: u32) -> Result<Self> {
        let report = folder.join("fio.json");
        let mut fio = command("fio");
        fio.args(["--name=verified", "--ioengine=nbd", "--rw=randwrite", "--bs=4k", "--iodepth=16"]);
        fio.args([
            "--verify=crc32c",
            "--do_verify=1",
            "--verify_fatal=1",
            "--output-format=json",
            "--thread",
        ]);
        fio.arg(format!("--uri={uri}")).arg(format!("--size={mib}M"));
        fio.arg(format!("--rate_iops=,{rate}")).arg(format!("--output={}", report.display()));
        // What it writes differs each time: what an earlier one wrote is no answer.
        fio.arg(format!("--randseed={}", fastrand::u32(1..)));
        // Beside its report it keeps a state of what it verified, where it stands.
        fio.current_dir(folder);
        let process = Process::spawn("fio", fio, &folder.join("fio.log"))?;
        Ok(Self { process, report })
    }

    /// Whether it is still at work.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.process.ended()?.is_none())
    }

    /// Waits for its end. The longest that one of its requests took, in seconds; an error of any is one here.
    pub fn end(mut self) -> Result<f64> {
        let status = self.process.wait(240)?;
        let said = self.process.output();
        ensure!(status.success(), "fio ended with {status}: {said}");
        let report = std::fs::read_to_string(&self.report)?;
        let from = report.find('{').context("a report of fio")?;
        let report: Value = serde_json::from_str(&report[from..])?;
        let job = &report["jobs"][0];
        ensure!(job["error"] == 0, "fio met error {}: {said}", job["error"]);
        let read = job["read"]["total_ios"].as_u64();
        ensure!(read > Some(0) && read == job["write"]["total_ios"].as_u64(), "fio verified {read:?}");
        let longest = |kind: &str| job[kind]["clat_ns"]["max"].as_f64().unwrap_or(0.0);
        Ok(longest("write").max(longest("read")) / 1e9)
    }
}

/// Waits until the vDisk's owner has acknowledged more than a position of the log.
fn accepted_past(cluster: &Cluster, owner: usize, position: u64) -> Result<()> {
    eventually("the vDisk is written to", 60, || {
        let now = accepted(cluster, owner)?;
        ensure!(now > position, "{now}, not past {position}");
        Ok(())
    })
}

fn accepted(cluster: &Cluster, owner: usize) -> Result<u64> {
    let said = cluster.routers[owner].show(DISK)?;
    said["frontiers"]["accepted"].as_u64().with_context(|| format!("no position in {said}"))
}

/// SIGKILL of the owner in the midst of fio's writes; how long the client waited.
pub fn of_a_kill(cluster: &mut Cluster, serve: &EdgeServe) -> Result<f64> {
    let (owner, _) = cluster.in_sync()?;
    let before = accepted(cluster, owner)?;
    let fio = Fio::start(&serve.uri(DISK), cluster.folder.path(), 32, 2000)?;
    accepted_past(cluster, owner, before + 1500)?;
    cluster.routers[owner].kill9()?;
    let longest = fio.end()?;
    cluster.routers[owner].start_again()?;
    Ok(longest)
}

/// Settings with which a vDisk of [`move_cluster`] keeps what it acknowledged unsealed.
const UNSEALED: [&str; 5] = [
    "volumedriver.seal_age_seconds=3600",
    "volumedriver.journal_mib=1024",
    "volumedriver.buffer_mib=512",
    "dtl.size_mib=1024",
    "dtl.volume_mib=256",
];

/// Three routers whose vDisk seals nothing before it has 128 MiB.
pub fn move_cluster(name: &str) -> Result<Cluster> {
    let cluster = Cluster::start(name, "256MiB", &UNSEALED)?;
    cluster.routers[0].cli(&["vdisk", "delete", DISK])?;
    let create = ["vdisk", "create", "v", "--vpool", "p", "--size", "256MiB", "--sco-size", "128MiB"];
    cluster.routers[0].cli(&create)?;
    cluster.in_sync()?;
    Ok(cluster)
}

/// A planned move to who has the tail, 100 MiB of which are in no object yet, in the midst of fio's writes; how long
/// the client waited, and how long the move took.
pub fn of_a_move(cluster: &Cluster, serve: &EdgeServe) -> Result<(f64, f64)> {
    let (owner, peer) = cluster.in_sync()?;
    cluster.routers[owner].drain(DISK)?;
    let mut fill = command("fio");
    fill.args(["--name=fill", "--ioengine=nbd", "--thread", "--rw=write", "--bs=1M", "--iodepth=4"]);
    fill.args(["--offset=100M", "--size=100M"]).arg(format!("--uri={}", serve.uri(DISK)));
    crate::tools::run_within(60, fill)?.ok()?;
    let before = accepted(cluster, owner)?;
    let fio = Fio::start(&serve.uri(DISK), cluster.folder.path(), 16, 1000)?;
    accepted_past(cluster, owner, before + 500)?;
    let dirty = cluster.routers[owner].number(DISK, "dirty_bytes")?;
    ensure!(dirty >= 100 << 20, "only {dirty} bytes are unsealed");
    let watch = crate::time::Stopwatch::start();
    cluster.routers[owner].cli(&["vdisk", "move", DISK, "--to", cluster.name(peer)])?;
    let took = watch.seconds();
    let longest = fio.end()?;
    ensure!(cluster.owner()? == peer, "it is not where it was sent");
    Ok((longest, took))
}

/// All routers stop and start, one after the other, in the midst of fio's writes; how long the client waited at most.
pub fn of_a_rolling_restart(cluster: &mut Cluster, serve: &EdgeServe) -> Result<f64> {
    cluster.in_sync()?;
    let mut fio = Fio::start(&serve.uri(DISK), cluster.folder.path(), 48, 500)?;
    for router in 0..3 {
        let (owner, _) = cluster.in_sync()?;
        accepted_past(cluster, owner, accepted(cluster, owner)? + 100)?;
        cluster.routers[router].terminate()?;
        cluster.routers[router].start_again()?;
    }
    ensure!(fio.is_running()?, "fio had ended before all routers were restarted");
    fio.end()
}
