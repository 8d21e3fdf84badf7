//! Each disk runs full in turn: writes wait, everything else goes on, and after space is there
//! again they resume unaided. Small tmpfs mounts play the disks.

use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use tests::model::Promise;
use tests::router::{Config, Router};
use tests::setup::{DISK, Kind, Setup};
use tests::time::{eventually, pause};
use tests::tools::{command, run, run_within, scratch};
use tests::workload::{Plan, Subject};

/// A disk of a given size in memory.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn new(place: &Path, mebibytes: u32) -> Result<Self> {
        if !tests::tools::is_root() {
            bail!("this test mounts small disks: run it as root");
        }
        std::fs::create_dir_all(place)?;
        run(
            "mount",
            ["-t", "tmpfs", "-o", &format!("size={mebibytes}m"), "tmpfs", &place.display().to_string()],
        )?;
        Ok(Self(place.into()))
    }

    fn grow(&self, mebibytes: u32) -> Result<()> {
        run("mount", ["-o", &format!("remount,size={mebibytes}m"), &self.0.display().to_string()]).map(drop)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let mut unmount = command("umount");
        unmount.arg("-l").arg(&self.0);
        // Nothing is left to do when it fails.
        let _ = run_within(20, unmount);
    }
}

/// The store is full: the write buffer takes what it can, then writes wait; the other vPool and the
/// API go on, health names the vPool, and with space again all arrives.
#[test]
fn a_full_store_makes_writes_wait_and_harms_no_other_vpool() -> Result<()> {
    let folder = scratch("storefull")?;
    let place = folder.path().join("small");
    let disk = SmallDisk::new(&place, 40)?;
    let mut setup = Setup::small("full", Kind::Directory, "64MiB")?;
    let small = place.join("pool").display().to_string();
    setup.router.cli(&["vpool", "create", "q", "--backend", "directory", "--path", &small])?;
    setup.router.cli(&["vdisk", "create", "v", "--vpool", "q", "--size", "64MiB"])?;
    let stuck = Subject::new(setup.router.endpoint(), "q/v", 16384)?;
    let free = setup.subject(4096)?;
    let running = stuck.start(&Plan { longest: 64, hot: 0, ..Plan::default() })?;
    eventually("health names the vPool that is full", 60, || {
        let (_, health) = setup.router.get("/api/v1/health")?;
        ensure!(health.contains("q"), "{health}");
        ensure!(!health.contains("\"level\":\"ok\",\"items\":[]"), "{health}");
        Ok(())
    })?;
    // The other vPool does not notice.
    for seed in 1..=3 {
        free.run_for(&Plan { seed, longest: 8, ..Plan::default() }, 300).context("the other vPool")?;
    }
    setup.router.drain(DISK)?;
    pause(2000);
    disk.grow(2048)?;
    let before = running.done();
    eventually("writes resume", 60, || {
        ensure!(running.done() > before + 20, "{} answers, {before} before there was space", running.done());
        Ok(())
    })?;
    stuck.gather(running).context("no write may fail while the store is full")?;
    setup.router.drain("q/v")?;
    setup.router.kill9()?;
    setup.router.start_again()?;
    stuck.settle(Promise::Everything)?;
    free.settle(Promise::Everything)?;
    setup.router.cli(&["fsck", "q/v"])?;
    Ok(())
}

/// The disk of the data directory (write buffer, index, registry) is full.
#[test]
fn a_full_data_directory_makes_writes_wait_and_loses_nothing() -> Result<()> {
    let folder = scratch("datafull")?;
    let place = folder.path().join("small");
    let _disk = SmallDisk::new(&place, 400)?;
    let config = Config::new(&place.join("data"))?
        .set("volumedriver.journal_mib=1024")
        .set("volumedriver.segment_mib=8")
        .set("volumedriver.seal_age_seconds=1");
    let mut router = Router::start(config)?;
    let pool = folder.path().join("pool").display().to_string();
    router.cli(&["vpool", "create", "p", "--backend", "directory", "--path", &pool])?;
    router.cli(&["vdisk", "create", "v", "--vpool", "p", "--size", "64MiB"])?;
    let subject = Subject::new(router.endpoint(), DISK, 16384)?;
    subject.run_for(&Plan::default(), 300)?;
    // Something else takes all the space that is left.
    let ballast = place.join("ballast");
    let mut fill = command("dd");
    fill.args(["if=/dev/zero", &format!("of={}", ballast.display()), "bs=1M", "count=1000"]);
    ensure!(!run_within(60, fill)?.status.success(), "the disk did not run full");
    let running = subject.start(&Plan { longest: 64, seed: 2, ..Plan::default() })?;
    pause(5000);
    router.must_run().context("a full disk is no reason to die")?;
    std::fs::remove_file(&ballast)?;
    let before = running.done();
    eventually("writes resume", 60, || {
        ensure!(running.done() > before + 100, "{} answers, {before} before there was space", running.done());
        Ok(())
    })?;
    subject.gather(running).context("no write may fail while the disk is full")?;
    router.kill9()?;
    router.start_again()?;
    subject.settle(Promise::Everything)?;
    router.drain(DISK)?;
    router.cli(&["fsck", DISK])?;
    Ok(())
}
