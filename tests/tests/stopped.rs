//! A router that stands still (SIGSTOP) or whose wall clock jumps: it goes on as if nothing had been;
//! and one that was replaced meanwhile does no harm when it wakes up.

use anyhow::{Context, Result, ensure};
use std::path::Path;
use tests::block::BLOCK;
use tests::model::Promise;
use tests::router::{Config, Router};
use tests::setup::{DISK, Kind, POOL, Setup};
use tests::time::{eventually, pause};
use tests::workload::{Plan, Subject};

#[test]
fn a_router_that_stood_still_goes_on_and_keeps_its_data_directory_meanwhile() -> Result<()> {
    let mut setup = Setup::small("frozen", Kind::Directory, "64MiB")?;
    let subject = setup.subject(8192)?;
    for seed in 1..=2 {
        let running = subject.start(&Plan { seed, ..Plan::default() })?;
        running.wait_past(100)?;
        setup.router.freeze()?;
        // What was answered before it stood still may still arrive.
        pause(300);
        let before = running.done();
        let message = Config::new(&setup.router.config.data_dir)?.must_refuse(&["held", "lock", "in use"])?;
        let place = setup.router.config.data_dir.display().to_string();
        ensure!(message.contains(&place), "it names the directory: {message}");
        pause(2000);
        ensure!(running.done() == before, "somebody answers for a router that stands still");
        setup.router.thaw()?;
        running.wait_past(before + 200)?;
        subject.gather(running)?;
    }
    setup.router.drain(DISK)?;
    setup.router.kill9()?;
    setup.router.start_again()?;
    subject.settle(Promise::Everything)?;
    setup.router.cli(&["fsck", DISK])?;
    Ok(())
}

/// A second router, on a data directory of its own, that has adopted the vPool.
fn successor(setup: &Setup) -> Result<Router> {
    let config = Config::new(&setup.path("successor"))?.set("volumedriver.seal_age_seconds=1");
    let router = Router::start(config)?;
    let place = setup.backend.directory()?.display().to_string();
    router.cli(&["vpool", "create", POOL, "--backend", "directory", "--path", &place, "--adopt"])?;
    Ok(router)
}

/// A router stands still with data that the store does not have yet; another one takes its vPool over.
/// When the first one wakes up, nothing that it does counts: its clients get errors, and the image of
/// the second one is what it served, on its machine and on the store.
#[test]
fn a_replaced_router_that_wakes_up_changes_nothing() -> Result<()> {
    let setup = Setup::small("zombie", Kind::Directory, "64MiB")?;
    let mut subject = setup.subject(8192)?;
    subject.run_for(&Plan { longest: 64, ..Plan::default() }, 300)?;
    setup.router.drain(DISK)?;
    let drained = subject.now();
    // A client of the first one that knows nothing of the second.
    let zombie = Subject::new(setup.router.endpoint(), DISK, 8192)?;
    subject.run_for(&Plan { seed: 2, longest: 64, ..Plan::default() }, 300)?;
    setup.router.freeze()?;
    let mut router = successor(&setup)?;
    subject.endpoint = router.endpoint();
    subject.settle(Promise::PrefixWith(drained)).context("what the successor found")?;
    let running = subject.start(&Plan { seed: 3, ..Plan::default() })?;
    running.wait_past(100)?;
    setup.router.thaw()?;
    // It learns of its end when it next sends something to the store.
    eventually("the first router knows that it was replaced", 60, || {
        let refused = zombie.ask(async |client| {
            client.write(0, &[1; BLOCK], 0).await?;
            client.flush().await
        });
        ensure!(refused.is_err(), "it acknowledges a write");
        Ok(())
    })?;
    for _ in 0..3 {
        let refused = zombie.ask(async |client| client.flush().await);
        ensure!(refused.is_err(), "a flush was acknowledged after all");
    }
    let shown = setup.router.show(DISK)?;
    let reason = shown["reason"].as_str().unwrap_or_default();
    ensure!(shown["state"] == "stopped" && reason.contains("took over"), "it does not say why: {shown}");
    ensure!(subject.gather(running)? > 100);
    subject.run_for(&Plan { seed: 4, ..Plan::default() }, 300)?;
    router.drain(DISK)?;
    router.cli(&["fsck", DISK])?;
    router.kill9()?;
    router.start_again()?;
    subject.settle(Promise::Everything).context("after the first router woke up")?;
    router.cli(&["fsck", DISK])?;
    Ok(())
}

/// Lets the wall clock of processes be what a file says; CLOCK_MONOTONIC stays as it is.
fn with_wall_clock(config: Config, file: &Path) -> Result<Config> {
    let library = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib"]
        .map(|folder| format!("{folder}/faketime/libfaketime.so.1"));
    let library = library.iter().find(|path| Path::new(path).is_file());
    let library = library.context("libfaketime is not installed (Debian package libfaketime)")?;
    Ok(config
        .env("LD_PRELOAD", library)
        .env("FAKETIME_TIMESTAMP_FILE", &file.display().to_string())
        .env("FAKETIME_NO_CACHE", "1")
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .env("DONT_FAKE_MONOTONIC", "1"))
}

#[test]
fn a_wall_clock_that_jumps_harms_nothing() -> Result<()> {
    let folder = tests::tools::scratch("clock")?;
    let clock = folder.path().join("clock");
    let set = |offset: &str| {
        // In one step: a reader sees the old text or the new one.
        std::fs::write(folder.path().join("clock.new"), offset)?;
        std::fs::rename(folder.path().join("clock.new"), &clock)
    };
    set("+0")?;
    let mut setup = Setup::with("clock", Kind::Directory, "64MiB", |config| {
        let config = config.set("volumedriver.seal_age_seconds=1").set("log.format=json");
        with_wall_clock(config, &clock).unwrap_or_else(|error| panic!("{error:#}"))
    })?;
    let subject = setup.subject(8192)?;
    for (seed, offset) in ["+500d", "-900d", "+0", "-3600", "+7200", "-1"].iter().enumerate() {
        let running = subject.start(&Plan { seed: seed as u64, ..Plan::default() })?;
        running.wait_past(50)?;
        set(offset)?;
        let before = running.done();
        running.wait_past(before + 50)?;
        // What was written before the jump is still sealed by age.
        let accepted = setup.router.show(DISK)?["frontiers"]["accepted"].as_u64().context("accepted")?;
        eventually("writes are sealed and uploaded", 30, || {
            let committed = setup.router.show(DISK)?["frontiers"]["committed"].as_u64();
            ensure!(committed >= Some(accepted), "{committed:?} of {accepted}");
            Ok(())
        })?;
        subject.gather(running).with_context(|| format!("under a jump to {offset}"))?;
        let name = format!("w{seed}");
        setup.router.cli(&["vdisk", "create", &name, "--vpool", POOL, "--size", "16MiB"])?;
        setup.router.cli(&["vdisk", "delete", &format!("{POOL}/{name}"), "--force"])?;
        if seed % 2 == 0 {
            setup.router.kill9()?;
            setup.router.start_again()?;
            subject.settle(Promise::Everything).with_context(|| format!("after a jump to {offset}"))?;
        }
    }
    let years: std::collections::BTreeSet<String> = setup.router.log().lines().filter_map(year).collect();
    ensure!(years.len() >= 2, "the clock never jumped: the log is from {years:?}");
    setup.router.drain(DISK)?;
    setup.router.cli(&["fsck", DISK])?;
    subject.settle(Promise::Everything)
}

/// The year of a line of the log.
fn year(line: &str) -> Option<String> {
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    line["timestamp"].as_str()?.get(..4).map(str::to_string)
}
