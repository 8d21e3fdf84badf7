//! Log cleaning: by request and by itself, with clients at work, killed at any moment.

use anyhow::{Context, Result, ensure};
use std::thread;
use tests::model::Promise;
use tests::setup::{DISK, Kind, Setup};
use tests::time::eventually;
use tests::workload::Plan;

const BLOCKS: usize = 8192;

fn amplification(setup: &Setup) -> Result<f64> {
    let shown = setup.router.show(DISK)?;
    shown["space_amplification"].as_f64().with_context(|| format!("no space_amplification in {shown}"))
}

#[test]
fn a_scrub_gives_back_what_nobody_reads_and_leaves_the_rest_as_it_was() -> Result<()> {
    let setup = Setup::unscrubbed("scrub", Kind::Directory, "32MiB")?;
    let subject = setup.subject(BLOCKS)?;
    for seed in 1..=4 {
        subject.run_for(&Plan { seed, longest: 32, hot: 0, ..Plan::default() }, 400)?;
        setup.router.cli(&["vdisk", "snapshot", DISK, &format!("s{seed}")])?;
    }
    setup.router.drain(DISK)?;
    for seed in [1, 3, 4] {
        setup.router.cli(&["vdisk", "snapshot-delete", DISK, &format!("s{seed}")])?;
    }
    let before = setup.router.number(DISK, "stored_bytes")?;
    let merged = setup.router.cli_json(&["vdisk", "scrub", DISK, "--merge"])?;
    ensure!(merged["replaced_tlogs"].as_u64() > Some(0) && merged["copied_bytes"] == 0, "{merged}");
    let done = setup.router.cli_json(&["vdisk", "scrub", DISK])?;
    ensure!(done["deleted_scos"].as_u64() > Some(0), "nothing was given back: {done}");
    let (after, left) = (setup.router.number(DISK, "stored_bytes")?, amplification(&setup)?);
    ensure!(
        after < before && left < 1.2,
        "{before} bytes stored before, {after} after, {left} per live byte"
    );
    let shown = setup.router.show(DISK)?;
    ensure!(shown["snapshot_bytes"].as_u64() > Some(0), "a snapshot holds some: {shown}");
    let (_, metrics) = setup.router.get("/metrics")?;
    for name in ["objectrouter_live_bytes", "objectrouter_stored_bytes", "volumedriver_relocated_bytes"] {
        ensure!(metrics.contains(&format!("storagerouter_{name}")), "no metric {name}");
    }
    subject.settle(Promise::Everything)?;
    setup.router.cli(&["fsck", DISK])?;
    let asked = setup.router.cli(&["vdisk", "scrub", DISK, "--wait", "0"])?;
    ensure!(asked.stdout.contains("SCOs deleted"), "{}", asked.stdout);
    Ok(())
}

#[test]
fn a_scrub_that_is_killed_at_any_moment_loses_nothing_and_leaves_no_orphans() -> Result<()> {
    let mut setup = Setup::small("kill", Kind::Directory, "32MiB")?;
    let subject = setup.subject(BLOCKS)?;
    for seed in 1..=6u64 {
        let plan = Plan { seed, longest: 16, ..Plan::default() };
        subject.run_for(&plan, 200)?;
        if seed % 3 == 0 {
            setup.router.cli(&["vdisk", "snapshot", DISK, &format!("s{seed}")])?;
        }
        let running = subject.start(&plan)?;
        thread::scope(|scope| -> Result<()> {
            // Its answer does not come any more.
            scope.spawn(|| setup.router.try_cli(&["vdisk", "scrub", DISK]));
            tests::time::pause(20 + 60 * seed);
            nix_kill(setup.router.pid())
        })?;
        subject.gather(running)?;
        setup.router.kill9()?;
        setup.router.start_again()?;
        subject.settle(Promise::Everything).with_context(|| format!("round {seed}"))?;
    }
    setup.router.cli(&["vdisk", "scrub", DISK])?;
    setup.router.drain(DISK)?;
    subject.settle(Promise::Everything)?;
    eventually("no orphans are left", 30, || {
        let said = setup.router.cli(&["fsck", DISK])?.stdout;
        ensure!(!said.contains("orphan"), "{said}");
        Ok(())
    })
}

fn nix_kill(pid: u32) -> Result<()> {
    tests::tools::run("kill", ["-9", &pid.to_string()]).map(drop)
}

#[test]
fn what_is_overwritten_is_scrubbed_by_itself() -> Result<()> {
    let setup = Setup::with("self", Kind::Directory, "32MiB", |config| {
        config.set("volumedriver.seal_age_seconds=1")
    })?;
    let subject = setup.subject(BLOCKS)?;
    for seed in 1..=6 {
        subject.run_for(&Plan { seed, longest: 64, hot: 0, ..Plan::default() }, 500)?;
    }
    setup.router.drain(DISK)?;
    eventually("the garbage is gone", 60, || {
        let now = amplification(&setup)?;
        ensure!(now <= 1.43, "{now} stored per live byte");
        Ok(())
    })?;
    subject.settle(Promise::Everything)?;
    setup.router.cli(&["fsck", DISK]).map(drop)
}
