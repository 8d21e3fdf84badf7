//! Snapshots, clones and rollback with real clients and a real router that is killed: every snapshot reads
//! as the image that it was taken of, bit by bit, and what is deleted is given back.

use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::Path;
use tests::model::Promise;
use tests::setup::{DISK, Kind, Setup};
use tests::time::eventually;
use tests::tools::run;
use tests::workload::Plan;

const SIZE: u64 = 32 << 20;
const BLOCKS: usize = (SIZE / 4096) as usize;

fn copy_out(setup: &Setup, export: &str, to: &Path) -> Result<Vec<u8>> {
    let _ = fs::remove_file(to);
    run("nbdcopy", [setup.router.uri(export), to.display().to_string()])?;
    fs::read(to).context("the copied image")
}

/// Once the clients that left are gone.
fn when_free(setup: &Setup, arguments: &[&str]) -> Result<()> {
    eventually("the clients are gone", 10, || setup.router.cli(arguments).map(drop))
}

fn snapshots_survive(kind: Kind) -> Result<()> {
    let mut setup = Setup::small("snapshots", kind, "32MiB")?;
    let subject = setup.subject(BLOCKS)?;
    let (out, mut images) = (setup.path("out"), Vec::new());
    for n in 0..4u64 {
        subject.run_for(&Plan { seed: n + 1, ..Plan::default() }, 150)?;
        let name = format!("s{n}");
        let image = copy_out(&setup, DISK, &out)?;
        setup.router.cli(&["vdisk", "snapshot", DISK, &name, "--metadata", "a test"])?;
        images.push((name, image));
        // With a write buffer full of later writes, and without.
        let running = subject.start(&Plan { seed: n + 100, ..Plan::default() })?;
        tests::time::pause(100);
        setup.router.kill9()?;
        subject.gather(running)?;
        setup.router.start_again()?;
        subject.settle(Promise::Everything)?;
    }
    let check = |setup: &Setup| -> Result<()> {
        for (name, image) in &images {
            let export = format!("{DISK}@{name}");
            ensure!(copy_out(setup, &export, &out)? == *image, "'{export}' is not what it was");
        }
        Ok(())
    };
    check(&setup)?;
    setup.router.cli(&["vdisk", "clone", "p/v@s1", "c"])?;
    ensure!(copy_out(&setup, "p/c", &out)? == images[1].1, "the clone is not its snapshot");
    setup.router.try_cli(&["vdisk", "snapshot-delete", DISK, "s1"])?.refused(&["clone", "'c'"])?;
    when_free(&setup, &["vdisk", "rollback", DISK, "s2"])?;
    ensure!(copy_out(&setup, DISK, &out)? == images[2].1, "rolled back to something else");
    setup.router.drain(DISK)?;
    for disk in [DISK, "p/c"] {
        setup.router.cli(&["fsck", disk])?;
    }
    // All of it lies on the backend.
    setup.from_backend_alone()?;
    check(&setup)?;
    ensure!(copy_out(&setup, DISK, &out)? == images[2].1, "the rollback is lost");
    ensure!(copy_out(&setup, "p/c", &out)? == images[1].1, "the clone is lost");
    Ok(())
}

#[test]
fn snapshots_clones_and_rollbacks_survive_kill_9_and_the_loss_of_the_data_directory() -> Result<()> {
    snapshots_survive(Kind::Directory)
}

#[test]
fn snapshots_clones_and_rollbacks_survive_on_s3() -> Result<()> {
    snapshots_survive(Kind::Moto)
}

#[test]
fn what_only_deleted_snapshots_and_clones_held_is_given_back() -> Result<()> {
    let setup = Setup::small("given-back", Kind::Directory, "32MiB")?;
    let subject = setup.subject(BLOCKS)?;
    for n in 0..3u64 {
        // So much that it is worth the work to give it back by itself, also on a busy machine.
        let running = subject.start(&Plan { seed: n + 1, hot: 0, ..Plan::default() })?;
        running.wait_past(1500)?;
        println!("{} requests", subject.gather(running)?);
        setup.router.cli(&["vdisk", "snapshot", DISK, &format!("s{n}")])?;
    }
    setup.router.cli(&["vdisk", "clone", "p/v@s0", "c"])?;
    when_free(&setup, &["vdisk", "rollback", DISK, "s1"])?;
    when_free(&setup, &["vdisk", "delete", "p/c"])?;
    for n in 0..3 {
        setup.router.cli(&["vdisk", "snapshot-delete", DISK, &format!("s{n}")])?;
    }
    // Nothing is left to read, so nothing is left to store: the head's holes need a Manifest and a TLog.
    run("nbdsh", ["-u", &setup.uri(), "-c", &format!("h.trim({SIZE}, 0)")])?;
    setup.router.drain(DISK)?;
    let folder = setup.backend.directory()?.to_path_buf();
    eventually("the space is given back", 60, || {
        let found = run(
            "find",
            [folder.as_os_str(), "-path".as_ref(), "*/s/*".as_ref(), "-type".as_ref(), "f".as_ref()],
        )?;
        let scos = found.stdout.lines().count();
        ensure!(scos <= 1, "{scos} SCOs are left");
        Ok(())
    })?;
    setup.router.cli(&["fsck", DISK])?;
    let left = setup.router.cli(&["fsck", DISK])?.stdout;
    ensure!(!left.contains("orphan"), "{left}");
    Ok(())
}
