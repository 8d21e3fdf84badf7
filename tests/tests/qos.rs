//! Limits of a vDisk, as its clients meet them.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tests::nbd::Client;
use tests::setup::{DISK, Kind, Setup};
use tests::time::{Stopwatch, eventually};
use tokio::runtime::Runtime;

const SECONDS: f64 = 3.0;
const CONNECTIONS: usize = 2;
const DEPTH: usize = 16;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Load {
    Reads,
    Writes,
}

fn runtime() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

fn connect(runtime: &Runtime, setup: &Setup, count: usize) -> Result<Vec<Arc<Client>>> {
    let one = || Ok(Arc::new(runtime.block_on(Client::connect(&setup.router.endpoint(), DISK))?));
    (0..count).map(|_| one()).collect()
}

/// Requests that all connections together do in some seconds, and how long it was from before the first
/// until after the last.
fn requests(runtime: &Runtime, clients: &[Arc<Client>], load: Load, size: usize) -> Result<(u64, f64)> {
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let watch = Stopwatch::start();
    let mut workers = Vec::new();
    for (number, client) in clients.iter().flat_map(|client| [client; DEPTH]).enumerate() {
        let (client, stop, done) = (client.clone(), stop.clone(), done.clone());
        workers.push(runtime.spawn(async move {
            let (at, data) = ((number * size) as u64, vec![number as u8; size]);
            while !stop.load(Ordering::Relaxed) {
                match load {
                    Load::Reads => drop(client.read(at, size as u32).await?),
                    Load::Writes => client.write(at, &data, 0).await?,
                }
                done.fetch_add(1, Ordering::Relaxed);
            }
            anyhow::Ok(())
        }));
    }
    while watch.seconds() < SECONDS {
        tests::time::pause(10);
    }
    stop.store(true, Ordering::Relaxed);
    for worker in workers {
        runtime.block_on(worker)??;
    }
    Ok((done.load(Ordering::Relaxed), watch.seconds()))
}

/// What a limit with a burst of one second allows.
fn most(limit: u64, seconds: f64) -> u64 {
    (limit as f64 * (1.0 + seconds)) as u64
}

fn limited_requests(load: Load, flag: &str) -> Result<()> {
    let setup = Setup::small("qos", Kind::Directory, "64MiB")?;
    let runtime = runtime()?;
    let clients = connect(&runtime, &setup, CONNECTIONS)?;
    let measure = |what: &str| -> Result<(u64, f64)> {
        let (count, seconds) = requests(&runtime, &clients, load, 4096)?;
        println!("{load:?}, {what}: {count} in {seconds:.2} s");
        Ok((count, seconds))
    };

    setup.router.cli(&["vdisk", "qos", DISK, flag, "200"])?;
    let (count, seconds) = measure("200 IOPS")?;
    ensure!(count <= most(200, seconds), "{count} in {seconds} s at 200 IOPS");
    ensure!(count >= 400, "only {count} in {seconds} s at 200 IOPS");
    let (_, metrics) = setup.router.get("/metrics")?;
    let direction = if load == Load::Reads { "read" } else { "write" };
    let name = "storagerouter_objectrouter_qos_waited_requests_total";
    let line = format!("{name}{{vpool=\"p\",vdisk=\"v\",direction=\"{direction}\"}} ");
    let waited = metrics.lines().find_map(|l| l.strip_prefix(&line)).with_context(|| metrics.clone())?;
    ensure!(waited.parse::<u64>()? >= 200, "{waited} waited");

    // The same connections go on.
    setup.router.cli(&["vdisk", "qos", DISK, flag, "500"])?;
    let (count, seconds) = measure("500 IOPS")?;
    ensure!(count <= most(500, seconds), "{count} in {seconds} s at 500 IOPS");
    ensure!(count > most(200, seconds), "only {count} in {seconds} s at 500 IOPS");

    setup.router.cli(&["vdisk", "qos", DISK, flag, "100"])?;
    let (count, seconds) = measure("100 IOPS")?;
    ensure!(count <= most(100, seconds), "{count} in {seconds} s at 100 IOPS");

    setup.router.cli(&["vdisk", "qos", DISK, "--clear"])?;
    let (count, seconds) = measure("no limit")?;
    ensure!(count > most(500, seconds), "only {count} in {seconds} s without a limit");
    Ok(())
}

#[test]
fn reads_keep_to_their_limit_which_changes_while_clients_are_connected() -> Result<()> {
    limited_requests(Load::Reads, "--read-iops")
}

#[test]
fn writes_keep_to_their_limit_which_changes_while_clients_are_connected() -> Result<()> {
    limited_requests(Load::Writes, "--write-iops")
}

#[test]
fn bandwidth_keeps_to_its_limit_and_the_other_direction_to_none() -> Result<()> {
    const MIB: u64 = 1 << 20;
    let setup = Setup::small("qos-bytes", Kind::Directory, "64MiB")?;
    let runtime = runtime()?;
    let clients = connect(&runtime, &setup, CONNECTIONS)?;
    setup.router.cli(&["vdisk", "qos", DISK, "--write-bandwidth", "4MiB"])?;
    let (count, seconds) = requests(&runtime, &clients, Load::Writes, 64 << 10)?;
    let written = count * (64 << 10);
    ensure!(written <= most(4 * MIB, seconds), "{written} bytes written in {seconds} s");
    ensure!(written >= 6 * MIB, "only {written} bytes written in {seconds} s");
    let (count, seconds) = requests(&runtime, &clients, Load::Reads, 64 << 10)?;
    let read = count * (64 << 10);
    ensure!(read > most(4 * MIB, seconds), "only {read} bytes read in {seconds} s");
    // Larger than the burst: it passes all the same.
    let large = async {
        tokio::time::timeout(Duration::from_secs(60), clients[0].write(0, &vec![7; 16 << 20], 0)).await
    };
    runtime.block_on(large).context("a write of more than the burst waits for ever")??;
    Ok(())
}

/// A queue that would take minutes is answered at the stop, with nothing lost, and the limits are there
/// again at the next start.
#[test]
fn a_stop_answers_who_waits_and_limits_survive_stop_and_kill() -> Result<()> {
    const WRITES: usize = 200;
    let mut setup = Setup::small("qos-stop", Kind::Directory, "64MiB")?;
    let runtime = runtime()?;
    let set = ["vdisk", "qos", DISK, "--write-iops", "1", "--read-bandwidth", "10MiB", "--burst", "2.5"];
    setup.router.cli(&set)?;
    let limits = json!({"write_iops": 1, "read_bytes_per_second": 10 << 20, "burst_ms": 2500});
    let clients = connect(&runtime, &setup, 1)?;
    let writes: Vec<_> = (0..WRITES)
        .map(|number| {
            let client = clients[0].clone();
            runtime.spawn(async move { client.write(number as u64 * 4096, &[number as u8; 4096], 0).await })
        })
        .collect();
    let line =
        "storagerouter_objectrouter_qos_waited_requests_total{vpool=\"p\",vdisk=\"v\",direction=\"write\"} ";
    eventually("they wait", 30, || {
        let (_, metrics) = setup.router.get("/metrics")?;
        let waited = metrics.lines().find_map(|l| l.strip_prefix(line)).context("no such metric")?;
        ensure!(waited.parse::<usize>()? + 20 >= WRITES, "{waited} wait");
        Ok(())
    })?;
    setup.router.terminate()?;
    for write in writes {
        runtime.block_on(write)?.context("a write that waited for the limit")?;
    }
    setup.router.start_again()?;
    ensure!(setup.router.cli_json(&["vdisk", "qos", DISK])? == limits, "after the stop");
    let clients = connect(&runtime, &setup, 1)?;
    for number in 0..WRITES {
        let read = runtime.block_on(clients[0].read(number as u64 * 4096, 4096))?;
        ensure!(read == [number as u8; 4096], "block {number}");
    }
    setup.router.kill9()?;
    setup.router.start_again()?;
    ensure!(setup.router.show(DISK)?["qos"] == limits, "after the kill");
    Ok(())
}
