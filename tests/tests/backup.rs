//! Backups with real clients: copies of what changed, over NBD and as streams, are the image bit by bit.

use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::Path;
use tests::setup::{DISK, Kind, Setup};
use tests::time::eventually;
use tests::tools::{run, source};

const SIZE: u64 = 32 << 20;

/// Writes, zeroes and discards at random, by libnbd.
fn change(setup: &Setup, disk: &str, seed: u32) -> Result<()> {
    let script = format!(
        "import random; r = random.Random({seed}); n = {SIZE} // 4096\n\
         for i in range(60):\n\
         \x20   at, count = r.randrange(n - 16) * 4096, r.randrange(1, 16) * 4096\n\
         \x20   k = r.randrange(6)\n\
         \x20   if k == 0: h.trim(count, at)\n\
         \x20   elif k == 1: h.zero(count, at, nbd.CMD_FLAG_NO_HOLE)\n\
         \x20   else: h.pwrite(r.randbytes(count - 512 * r.randrange(8)), at)\n\
         h.flush()\n"
    );
    run("nbdsh", ["-u", &setup.router.uri(disk), "-c", &script]).map(drop)
}

fn image(setup: &Setup, export: &str) -> Result<Vec<u8>> {
    let to = setup.path("image");
    let _ = fs::remove_file(&to);
    run("nbdcopy", [setup.router.uri(export), to.display().to_string()])?;
    fs::read(&to).context("the copied image")
}

fn snapshot(setup: &Setup, disk: &str, name: &str) -> Result<Vec<u8>> {
    setup.router.cli(&["vdisk", "snapshot", disk, name])?;
    image(setup, &format!("{disk}@{name}"))
}

/// Brings `file` from the image of `since` to that of `export`, as a backup tool does; the bytes that it took.
fn bring_up(setup: &Setup, export: &str, since: &str, file: &Path) -> Result<u64> {
    let script = source("scripts").join("nbd_differences.py").display().to_string();
    let context = format!("x-storagerouter:diff:{since}");
    let ran = run("python3", [script, setup.router.uri(export), context, file.display().to_string()])?;
    Ok(ran.stdout.trim().parse()?)
}

fn check_diff(setup: &Setup, export: &str, since: (&str, &[u8]), now: &[u8]) -> Result<()> {
    let file = setup.path("copy");
    fs::write(&file, since.1)?;
    let copied = bring_up(setup, export, since.0, &file)?;
    ensure!(fs::read(&file)? == now, "'{export}' since '{}' is not what it should be", since.0);
    let differs = since.1.chunks(4096).zip(now.chunks(4096)).filter(|(a, b)| a != b).count() as u64 * 4096;
    ensure!(copied <= 2 * differs + (1 << 20), "{copied} bytes were copied where {differs} differ");
    Ok(())
}

fn dirty_bitmaps(kind: Kind) -> Result<()> {
    let mut setup = Setup::small("bitmaps", kind, "32MiB")?;
    change(&setup, DISK, 1)?;
    let first = snapshot(&setup, DISK, "s1")?;
    change(&setup, DISK, 2)?;
    let second = snapshot(&setup, DISK, "s2")?;
    change(&setup, DISK, 3)?;
    let all = |setup: &Setup, head: &[u8]| -> Result<()> {
        check_diff(setup, DISK, ("s1", &first), head)?;
        check_diff(setup, DISK, ("s2", &second), head)?;
        check_diff(setup, "p/v@s2", ("s1", &first), &second)?;
        check_diff(setup, "p/v@s1", ("s2", &second), &first)
    };
    all(&setup, &image(&setup, DISK)?)?;
    setup.router.kill9()?;
    setup.router.start_again()?;
    let head = image(&setup, DISK)?;
    all(&setup, &head)?;
    setup.router.drain(DISK)?;
    all(&setup, &head)?;
    setup.from_backend_alone()?;
    all(&setup, &head)?;
    // What a rollback leaves behind differs too.
    eventually("the clients are gone", 10, || {
        setup.router.cli(&["vdisk", "rollback", DISK, "s1"]).map(drop)
    })?;
    change(&setup, DISK, 4)?;
    let head = image(&setup, DISK)?;
    all(&setup, &head)?;
    // A clone is compared with its own snapshots.
    setup.router.cli(&["vdisk", "clone", "p/v@s2", "c"])?;
    let born = snapshot(&setup, "p/c", "born")?;
    ensure!(born == second);
    change(&setup, "p/c", 5)?;
    check_diff(&setup, "p/c", ("born", &born), &image(&setup, "p/c")?)
}

#[test]
fn dirty_bitmaps_tell_all_that_changed_after_kill_9_from_the_backend_alone_after_rollbacks_and_on_clones()
-> Result<()> {
    dirty_bitmaps(Kind::Directory)
}

#[test]
fn dirty_bitmaps_tell_all_that_changed_on_s3() -> Result<()> {
    dirty_bitmaps(Kind::Moto)
}

fn export(setup: &Setup, what: &str, since: Option<&str>, file: &Path) -> Result<()> {
    let to = file.display().to_string();
    let mut arguments = vec!["vdisk", "export", what, "--to", &to];
    arguments.extend(since.iter().flat_map(|since| ["--since", since]));
    setup.router.cli(&arguments).map(drop)
}

fn import(setup: &Setup, disk: &str, file: &Path, more: &[&str]) -> Result<tests::tools::Ran> {
    let from = file.display().to_string();
    let mut arguments = vec!["vdisk", "import", disk, "--from", &from];
    arguments.extend(more);
    setup.router.try_cli(&arguments)
}

#[test]
fn a_full_and_an_incremental_stream_make_the_same_vdisk_and_what_does_not_fit_is_refused() -> Result<()> {
    let mut setup = Setup::small("streams", Kind::Directory, "32MiB")?;
    change(&setup, DISK, 1)?;
    let first = snapshot(&setup, DISK, "s1")?;
    change(&setup, DISK, 2)?;
    setup.router.cli(&["vdisk", "resize", DISK, "--size", "40MiB"])?;
    let second = snapshot(&setup, DISK, "s2")?;
    eventually("the clients are gone", 10, || {
        setup.router.cli(&["vdisk", "rollback", DISK, "s1"]).map(drop)
    })?;
    change(&setup, DISK, 3)?;
    let third = snapshot(&setup, DISK, "s3")?;
    let [full, to_s2, to_s3] = ["full", "to_s2", "to_s3"].map(|name| setup.path(name));
    export(&setup, "p/v@s1", None, &full)?;
    export(&setup, "p/v@s2", Some("s1"), &to_s2)?;
    export(&setup, "p/v@s3", Some("s2"), &to_s3)?;
    ensure!(fs::metadata(&to_s2)?.len() < fs::metadata(&full)?.len() * 2);
    setup
        .router
        .try_cli(&["vdisk", "export", "p/v@s1", "--to", &full.display().to_string()])?
        .refused(&["there already"])?;
    setup.router.try_cli(&["vdisk", "export", DISK, "--since", "s1"])?.refused(&["snapshot"])?;

    import(&setup, "p/w", &to_s2, &[])?.refused(&["full export"])?;
    import(&setup, "p/w", &full, &[])?.ok()?;
    ensure!(image(&setup, "p/w")? == first, "the full copy");
    ensure!(image(&setup, "p/w@s1")? == first, "its snapshot");
    eventually("the clients are gone", 10, || {
        import(&setup, "p/w", &to_s3, &[])?.refused(&["which is not the newest"]).map(drop)
    })?;
    eventually("the clients are gone", 10, || import(&setup, "p/w", &to_s2, &[])?.ok().map(drop))?;
    ensure!(image(&setup, "p/w")? == second, "the incremental copy");
    eventually("the clients are gone", 10, || {
        import(&setup, "p/w", &to_s2, &[])?.refused(&["was the stream imported before"]).map(drop)
    })?;
    // What somebody wrote to the copy is not taken for the base.
    change(&setup, "p/w", 9)?;
    eventually("the clients are gone", 10, || {
        import(&setup, "p/w", &to_s3, &[])?.refused(&["was written since snapshot 's2'"]).map(drop)
    })?;
    eventually("the clients are gone", 10, || {
        setup.router.cli(&["vdisk", "rollback", "p/w", "s2"]).map(drop)
    })?;
    // A stream that is cut off is refused, and can be imported when it is whole.
    let cut = setup.path("cut");
    let bytes = fs::read(&to_s3)?;
    fs::write(&cut, &bytes[..bytes.len() / 2])?;
    import(&setup, "p/w", &cut, &[])?.refused(&["import the same stream again"])?;
    import(&setup, "p/w", &to_s3, &[])?.ok()?;
    ensure!(image(&setup, "p/w")? == third, "the copy after a rollback of the source");
    let mut wrong = fs::read(&full)?;
    let middle = wrong.len() / 2;
    wrong[middle] ^= 1;
    fs::write(&cut, &wrong)?;
    import(&setup, "p/x", &cut, &[])?.refused(&["checksum"])?;
    setup.router.try_cli(&["vdisk", "show", "p/x"])?.refused(&["no vdisk"])?;
    import(&setup, DISK, &full, &[])?.refused(&["do not shrink"])?;

    setup.router.drain("p/w")?;
    setup.from_backend_alone()?;
    ensure!(image(&setup, "p/w")? == third, "the copy from the backend alone");
    ensure!(image(&setup, "p/w@s2")? == second);
    for disk in [DISK, "p/w"] {
        setup.router.cli(&["fsck", disk])?;
    }
    // Back from the copy: what the streams carry is the same whoever made them.
    let back = setup.path("back");
    export(&setup, "p/w@s3", Some("s2"), &back)?;
    import(&setup, "p/y", &full, &[])?.ok()?;
    eventually("the clients are gone", 10, || import(&setup, "p/y", &to_s2, &[])?.ok().map(drop))?;
    eventually("the clients are gone", 10, || import(&setup, "p/y", &back, &[])?.ok().map(drop))?;
    ensure!(image(&setup, "p/y")? == third);
    Ok(())
}
