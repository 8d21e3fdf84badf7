//! The router's ordinary life: stop and start, many vDisks, deletion that leaves nothing, what it
//! says about itself.

use anyhow::{Context, Result, ensure};
use std::fs;
use tests::model::Promise;
use tests::setup::{Backend, DISK, Kind, Setup};
use tests::time::{Stopwatch, eventually};
use tests::tools::run;
use tests::workload::Plan;

#[test]
fn sigterm_under_load_stops_within_its_bound_and_loses_nothing() -> Result<()> {
    let mut setup = Setup::small("term", Kind::Directory, "64MiB")?;
    let subject = setup.subject(16384)?;
    for seed in 1..=3 {
        let running = subject.start(&Plan { seed, ..Plan::default() })?;
        tests::time::pause(200);
        let watch = Stopwatch::start();
        setup.router.terminate()?;
        println!("stopped in {:.2} s", watch.seconds());
        subject.gather(running)?;
        setup.router.start_again()?;
        subject.settle(Promise::Everything)?;
    }
    Ok(())
}

#[test]
fn what_show_says_follows_what_was_done() -> Result<()> {
    let setup = Setup::small("show", Kind::Directory, "64MiB")?;
    let subject = setup.subject(4096)?;
    subject.run_for(&Plan { hot: 0, ..Plan::default() }, 200)?;
    setup.router.drain(DISK)?;
    let shown = setup.router.show(DISK)?;
    ensure!(shown["size_bytes"] == 64 << 20, "{shown}");
    ensure!(shown["stored_bytes"].as_u64() > Some(0), "{shown}");
    let frontier =
        |name: &str| shown["frontiers"][name].as_u64().with_context(|| format!("frontier {name} in {shown}"));
    let (accepted, sealed, committed) = (frontier("accepted")?, frontier("sealed")?, frontier("committed")?);
    ensure!(committed == accepted && sealed == accepted && accepted > 0, "all is drained: {shown}");
    ensure!(frontier("trimmed")? <= committed && frontier("synced")? <= accepted, "{shown}");
    ensure!(shown["nbd_uri"] == setup.uri(), "{shown}");
    for field in ["nbd_uri", "nbd_unix_uri"] {
        let uri = shown[field].as_str().with_context(|| format!("{field} in {shown}"))?;
        run("nbdinfo", ["--size", uri]).with_context(|| field.to_string())?;
    }
    let (status, metrics) = setup.router.get("/metrics")?;
    ensure!(status == 200 && metrics.contains("storagerouter_volumedriver_"), "metrics: {status} {metrics}");
    Ok(())
}

fn deletion_leaves_nothing(kind: Kind) -> Result<()> {
    let setup = Setup::small("delete", kind, "64MiB")?;
    setup.router.cli(&["vdisk", "create", "other", "--vpool", "p", "--size", "64MiB"])?;
    let id = setup.router.show(DISK)?["id"].as_str().context("id")?.to_string();
    let data_objects = || -> Result<Vec<String>> {
        let keys = match &setup.backend {
            Backend::Directory(path) => {
                let found = run(
                    "find",
                    [path.as_os_str(), "-type".as_ref(), "f".as_ref(), "-printf".as_ref(), "%P\n".as_ref()],
                )?;
                found.stdout.lines().map(str::to_string).collect()
            }
            Backend::Moto(moto) => moto.keys("it/")?,
            Backend::S3sFs(_) | Backend::External(_) => vec![],
        };
        // Manifests stay for a grace: they are the fence against a late writer.
        Ok(keys.into_iter().filter(|key| key.contains(&id) && !key.contains("/m/")).collect())
    };
    let subject = setup.subject(16384)?;
    let running = subject.start(&Plan { hot: 0, longest: 64, ..Plan::default() })?;
    tests::time::pause(500);
    setup.router.try_cli(&["vdisk", "delete", DISK])?.refused(&["in use", "force", "connected"])?;
    subject.gather(running)?;
    setup.router.drain(DISK)?;
    ensure!(!data_objects()?.is_empty(), "nothing was stored");
    eventually("the clients are gone", 10, || setup.router.cli(&["vdisk", "delete", DISK]).map(drop))?;
    eventually("its objects are gone", 30, || {
        let left = data_objects()?;
        ensure!(left.is_empty(), "{} objects left, such as {}", left.len(), left[0]);
        Ok(())
    })?;
    setup.router.try_cli(&["vdisk", "show", DISK])?.refused(&["p/v", "no "])?;
    // The name is free again, and the new vDisk has none of the old one's data.
    setup.router.cli(&["vdisk", "create", "v", "--vpool", "p", "--size", "64MiB"])?;
    setup.subject(16384)?.settle(Promise::Everything)?;
    setup.router.cli(&["fsck", "p/other"])?;
    Ok(())
}

#[test]
fn deletion_leaves_no_object_in_a_directory() -> Result<()> {
    deletion_leaves_nothing(Kind::Directory)
}

#[test]
fn deletion_leaves_no_object_on_s3() -> Result<()> {
    deletion_leaves_nothing(Kind::Moto)
}

#[test]
fn many_vdisks_are_there_again_after_a_kill() -> Result<()> {
    let mut setup = Setup::small("many", Kind::Directory, "64MiB")?;
    for number in 0..60 {
        setup.router.cli(&["vdisk", "create", &format!("d{number}"), "--vpool", "p", "--size", "1GiB"])?;
    }
    for number in (0..60).step_by(7) {
        let uri = setup.router.uri(&format!("p/d{number}"));
        run("qemu-io", ["-f", "raw", "-c", &format!("write -P {} 1M 64k", number + 1), &uri])?;
    }
    setup.router.kill9()?;
    let watch = Stopwatch::start();
    setup.router.start_again()?;
    println!("ready after {:.2} s", watch.seconds());
    for number in (0..60).step_by(7) {
        let uri = setup.router.uri(&format!("p/d{number}"));
        let said = run(
            "qemu-io",
            ["-f", "raw", "-c", &format!("read -P {} 1M 64k", number + 1), "-c", "read -P 0 0 1M", &uri],
        )?;
        ensure!(!said.stdout.contains("failed"), "d{number}: {}", said.stdout);
    }
    let list = setup.router.cli_json(&["vdisk", "list"])?;
    ensure!(list["items"].as_array().context("items")?.len() == 61, "{list}");
    Ok(())
}

#[test]
fn inspect_prints_each_kind_of_file() -> Result<()> {
    let setup = Setup::unscrubbed("inspect", Kind::Directory, "64MiB")?;
    let subject = setup.subject(4096)?;
    subject.run_for(&Plan::default(), 300)?;
    setup.router.drain(DISK)?;
    setup.router.cli(&["vdisk", "resize", DISK, "--size", "128MiB"])?;
    let mut kinds = std::collections::BTreeMap::new();
    let found = run("find", [setup.backend.directory()?.as_os_str(), "-type".as_ref(), "f".as_ref()])?.stdout;
    for line in found.lines() {
        for kind in ["/m/", "/s/", "/t/"] {
            if line.contains(kind) {
                kinds.insert(kind, line.to_string());
            }
        }
    }
    let journal =
        fs::read_dir(setup.router.config.data_dir.join("journal"))?.next().context("a segment")??;
    kinds.insert("journal", journal.path().display().to_string());
    ensure!(kinds.contains_key("/m/") && kinds.contains_key("/s/"), "a Manifest and a SCO: {kinds:?}");
    for (kind, file) in kinds {
        let program = tests::tools::own_program("storagerouter")?;
        let said =
            run(&program.display().to_string(), ["inspect", &file]).with_context(|| kind.to_string())?.stdout;
        ensure!(said.len() > 40, "inspect of {file} says only {said}");
    }
    Ok(())
}
