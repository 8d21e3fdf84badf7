//! Routers that do not own a vDisk: whoever asks them gets to the owner, by the API, NBD and the edge protocol, and who
//! is attached is so for every one of them.

use anyhow::{Context, Result, ensure};
use tests::cluster::{Cluster, DISK};
use tests::edge::{EdgeServe, address, edge_command};
use tests::time::eventually;
use tests::tools::{need, run, run_within};
use tests::workload::{Plan, Subject};

/// Attachments last that long when nothing is heard of their client.
const LEASE: &str = "edge.lease_seconds=3";

#[test]
fn any_router_is_asked_for_any_vdisk() -> Result<()> {
    need(&["qemu-io", "qemu-img"])?;
    let cluster = Cluster::start("elsewhere", "64MiB", &[LEASE])?;
    let (owner, peer) = cluster.in_sync()?;
    let third = 3 - owner - peer;
    let (owning, other) = (&cluster.routers[owner], &cluster.routers[third]);

    // The API names the owner's, for all that is asked about a vDisk; nothing is answered in its place.
    for path in ["/api/v1/vdisks/p/v", "/api/v1/vdisks/p/v/snapshots?limit=1"] {
        let reply = other.reply(path)?;
        let expected = format!("location: {}{path}", owning.api());
        ensure!(reply.status == 307 && reply.head.lines().any(|line| line == expected), "{path}: {reply:?}");
    }
    ensure!(owning.reply("/api/v1/vdisks/p/v")?.status == 200, "the owner answers itself");

    // The command line follows it.
    run("qemu-io", ["-f", "raw", "-c", "write -P 5 0 8M", &other.uri(DISK)])?;
    ensure!(other.show(DISK)?["state"] == "serving", "{}", other.show(DISK)?);
    other.cli(&["vdisk", "snapshot", DISK, "monday"])?;
    let stream = cluster.folder.path().join("monday.sr").display().to_string();
    other.cli(&["vdisk", "export", "p/v@monday", "--to", &stream])?;
    // The copy is made by who is asked, and belongs to it; then it is brought up to date through another one.
    other.cli(&["vdisk", "import", "p/copy", "--from", &stream])?;
    run("qemu-io", ["-f", "raw", "-c", "write -P 6 4M 1M", &other.uri(DISK)])?;
    cluster.routers[peer].cli(&["vdisk", "snapshot", DISK, "tuesday"])?;
    let stream = cluster.folder.path().join("tuesday.sr").display().to_string();
    cluster.routers[peer].cli(&["vdisk", "export", "p/v@tuesday", "--since", "monday", "--to", &stream])?;
    let elsewhere = [owner, peer].into_iter().find(|router| {
        cluster.routers[*router].reply("/api/v1/vdisks/p/copy").is_ok_and(|reply| reply.status == 307)
    });
    let elsewhere = elsewhere.context("both own the copy that the third one made")?;
    cluster.routers[elsewhere].cli(&["vdisk", "import", "p/copy", "--from", &stream])?;
    for router in &cluster.routers {
        let (disk, copy) = (router.uri(DISK), router.uri("p/copy"));
        run("qemu-img", ["compare", "-f", "raw", "-F", "raw", &disk, &copy])?;
    }
    Ok(())
}

#[test]
fn what_is_written_through_one_router_is_read_through_another() -> Result<()> {
    need(&["qemu-io"])?;
    let cluster = Cluster::start("through", "64MiB", &[LEASE])?;
    let (owner, peer) = cluster.in_sync()?;
    let others = [peer, 3 - owner - peer];
    for (round, (through, read)) in
        [(others[0], others[1]), (others[1], owner), (owner, others[0])].iter().enumerate()
    {
        let write = format!("write -P {} 0 4M", round + 1);
        run("qemu-io", ["-f", "raw", "-c", &write, &cluster.routers[*through].uri(DISK)])?;
        let verify = format!("read -P {} 0 4M", round + 1);
        let said = run("qemu-io", ["-r", "-f", "raw", "-c", &verify, &cluster.routers[*read].uri(DISK)])?;
        ensure!(!said.stdout.contains("Pattern verification failed"), "round {round}: {}", said.stdout);
    }
    Ok(())
}

#[test]
fn an_attachment_outlives_its_owner_and_not_its_lease() -> Result<()> {
    need(&["qemu-io"])?;
    // Long enough that a slow machine does not let it pass between two lines here.
    let mut cluster = Cluster::start("attached", "64MiB", &["edge.lease_seconds=8"])?;
    let mut serve = cluster.serve()?;
    let (owner, peer) = cluster.in_sync()?;
    // It is attached as long as it has a client.
    let subject = Subject::new(serve.endpoint(), DISK, 64)?;
    let running = subject.start(&Plan { connections: 1, depth: 1, ..Plan::default() })?;
    running.wait_past(10)?;
    let second = |router: &str, wait: &str| {
        let words =
            ["bench", DISK, "--seconds", "1", "--read-percent", "0", "--destroy-data", "--wait", wait];
        run_within(60, edge_command(router, &words)?)
    };
    let addresses: Vec<_> = cluster.routers.iter().map(address).collect();
    for router in &addresses {
        second(router, "1")?.refused(&["attached by storagerouter edge serve"])?;
    }
    // A new owner lets nobody in before who was there, also when that one says nothing for a moment.
    serve.freeze()?;
    cluster.routers[owner].kill9()?;
    ensure!(cluster.owner()? == peer, "somebody else than the peer took over");
    second(&addresses[peer], "0")?.refused(&["attached by storagerouter edge serve"])?;
    // Its lease has ended: somebody else may. It hears so when it wakes up, and writes nothing over that.
    second(&addresses[peer], "30")?.ok()?;
    serve.thaw()?;
    eventually("who was attached hears that it is not", 20, || {
        ensure!(serve.log().contains("request failed"), "{}", serve.log());
        Ok(())
    })?;
    subject.gather(running)?;
    serve.kill9()?;
    cluster.routers[owner].start_again()?;
    // And it may again, as anybody.
    let folder = cluster.folder.path().join("again");
    std::fs::create_dir_all(&folder)?;
    let again = EdgeServe::start(&address(&cluster.routers[owner]), &folder, &[DISK])?;
    run("qemu-io", ["-f", "raw", "-c", "write -P 7 0 4M", "-c", "read -P 7 0 4M", &again.uri(DISK)])?;
    Ok(())
}
