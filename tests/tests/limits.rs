//! Little memory and few open files: the router makes clients wait, or turns new ones away, says why,
//! and goes on by itself.

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tests::cgroup::MemoryLimit;
use tests::gate::{Gate, State};
use tests::model::Promise;
use tests::nbd::Client;
use tests::router::{Config, Router};
use tests::s3::{BUCKET, Moto};
use tests::setup::{DISK, Kind, Setup, credentials, s3_place};
use tests::time::{Stopwatch, eventually, pause};
use tests::tools::{peak_memory, scratch};
use tests::workload::Plan;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const DISKS: usize = 100;
const IDLE: usize = 1000;
const BUSY: usize = 8;
const DEPTH: usize = 32;
const REQUEST: u64 = 32 * MIB;

/// The store is away, and clients offer 8 GiB of writes at once, beside a thousand idle connections:
/// all within 1 GiB. They wait, health says for what, and when the store is back they are answered.
#[test]
fn a_gibibyte_is_enough_for_a_thousand_clients_and_a_store_that_is_away() -> Result<()> {
    // For a thousand connections of our own.
    let files = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: files.maximum, maximum: files.maximum })?;
    let clock = Stopwatch::start();
    let folder = scratch("memory")?;
    let limit = MemoryLimit::new(GIB);
    if let Err(why) = &limit {
        println!("{why:#}: its peak is looked at instead, without the kernel's own memory");
    }
    let moto = Moto::start(folder.path())?;
    let gate = Gate::before(moto.port)?;
    let mut config = credentials(Config::new(&folder.path().join("data"))?);
    config.starter = limit.as_ref().map(MemoryLimit::starter).unwrap_or_default();
    let mut router = Router::start(config)?;
    let place = s3_place(&format!("http://127.0.0.1:{}", gate.port()), BUCKET, "it/");
    let mut create = vec!["vpool", "create", "p"];
    create.extend(place.iter().map(String::as_str));
    router.cli(&create)?;
    for disk in 0..DISKS {
        router.cli(&["vdisk", "create", &format!("v{disk}"), "--vpool", "p", "--size", "64MiB"])?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut idle = Vec::new();
    for n in 0..IDLE {
        let export = format!("p/v{}", n % DISKS);
        idle.push(runtime.block_on(Client::connect(&router.endpoint(), &export))?);
    }
    let peak = |router: &Router| peak_memory(router.pid());
    println!("{:.1} s: {} MiB with {IDLE} idle connections", clock.seconds(), peak(&router)? / MIB);

    gate.set(State::Deaf);
    let answered = Arc::new(AtomicU64::new(0));
    let payload: Arc<Vec<u8>> = Arc::new((0..REQUEST).map(|n| (n / 4096) as u8 ^ n as u8).collect());
    let mut writers = Vec::new();
    for busy in 0..BUSY {
        let client = runtime.block_on(Client::connect(&router.endpoint(), &format!("p/v{busy}")))?;
        let client = Arc::new(client);
        for slot in 0..DEPTH {
            let (client, payload, answered) = (client.clone(), payload.clone(), answered.clone());
            writers.push(runtime.spawn(async move {
                client.write((slot as u64 % 2) * REQUEST, &payload, 0).await?;
                answered.fetch_add(1, Ordering::Relaxed);
                anyhow::Ok(())
            }));
        }
    }
    let watch = |router: &mut Router| -> Result<u64> {
        router.must_run()?;
        if let Ok(limit) = &limit {
            ensure!(limit.kills()? == 0, "killed for want of memory");
        }
        ensure!(peak(router)? < GIB, "it had {} MiB", peak(router)? / MIB);
        Ok(answered.load(Ordering::Relaxed))
    };
    // Nothing moves any more, and health says why.
    let (mut before, mut still) = (0, Stopwatch::start());
    eventually("writes wait, and health says for what", 120, || {
        let now = watch(&mut router)?;
        if now != before {
            (before, still) = (now, Stopwatch::start());
        }
        ensure!(still.seconds() > 2.0, "{now} writes answered");
        let (_, health) = router.get("/api/v1/health")?;
        ensure!(health.contains("/p") && !health.contains("\"level\":\"ok\""), "{health}");
        println!("{:.1} s: {now} writes answered; {health}", clock.seconds());
        Ok(())
    })?;
    ensure!(before < (BUSY * DEPTH) as u64, "no write waits: all were answered");
    gate.set(State::Open);
    eventually("writes resume", 120, || match watch(&mut router)? {
        now if now >= before + 4 => Ok(()),
        now => bail!("{now} writes answered, {before} while the store was away"),
    })?;
    for writer in &writers {
        writer.abort();
    }
    for writer in writers {
        if let Ok(outcome) = runtime.block_on(writer) {
            outcome.context("no write may fail")?;
        }
    }
    // The idle ones are served as before.
    for client in idle.iter().step_by(100) {
        let read = async { tokio::time::timeout(Duration::from_secs(60), client.read(0, 4096)).await };
        runtime.block_on(read).context("an idle connection was not answered")??;
    }
    watch(&mut router)?;
    println!("{:.1} s: at most {} MiB", clock.seconds(), peak(&router)? / MIB);
    Ok(())
}

/// Allocators are told to keep little of what is given back (ADR 7), but for what the environment says itself.
#[test]
fn allocators_are_frugal_unless_the_environment_says_otherwise() -> Result<()> {
    let folder = scratch("allocators")?;
    let router = Router::start(Config::new(folder.path())?.env("MIMALLOC_PURGE_DELAY", "77"))?;
    let environ = std::fs::read(format!("/proc/{}/environ", router.pid()))?;
    let environ = String::from_utf8_lossy(&environ);
    for wanted in ["MALLOC_ARENA_MAX=1", "MIMALLOC_PURGE_DELAY=77", "MIMALLOC_ALLOW_THP=0"] {
        ensure!(
            environ.split('\0').any(|set| set == wanted),
            "{wanted} is not in its environment: {environ:?}"
        );
    }
    Ok(())
}

/// More clients come than there may be open files: they are turned away or wait, the log says why, the
/// ones that are there are served, and afterwards everybody is.
#[test]
fn too_few_open_files_cost_new_connections_only() -> Result<()> {
    let mut setup = Setup::with("files", Kind::Directory, "64MiB", |config| {
        config
            .set("volumedriver.journal_mib=256")
            .set("volumedriver.segment_mib=8")
            .set("volumedriver.seal_age_seconds=1")
            .under(&["prlimit", "--nofile=128:128"])
    })?;
    let subject = setup.subject(8192)?;
    let running = subject.start(&Plan::default())?;
    let port = setup.router.config.nbd_port;
    let mut flooding = (0..300).map(|_| idle_client(port)).collect::<std::io::Result<Vec<_>>>()?;
    let files =
        || -> Result<usize> { Ok(std::fs::read_dir(format!("/proc/{}/fd", setup.router.pid()))?.count()) };
    eventually("the log says what is short", 30, || {
        let log = setup.router.log();
        ensure!(
            log.contains("turned away") || log.contains("could not be accepted"),
            "{} files open",
            files()?
        );
        Ok(())
    })?;
    // The connections that were there are served, and what the router itself needs files for goes on.
    let before = running.done();
    setup.router.try_cli_within(30, &["vdisk", "drain", DISK]).context("uploads")?.ok()?;
    running.wait_past(before + 100)?;
    subject.gather(running)?;
    // An idle router that is short of files does not spin.
    let (cpu, watch) = (setup.router.cpu_seconds()?, Stopwatch::start());
    pause(2000);
    let used = (setup.router.cpu_seconds()? - cpu) / watch.seconds();
    println!("{} files open, {used:.2} of a core", files()?);
    ensure!(used < 0.5, "it takes {used:.2} of a core for nothing");
    let warnings = setup.router.log().lines().filter(|line| line.contains("WARN")).count();
    ensure!(warnings < 1000, "{warnings} warnings");
    // A connection that was taken is one: it greets.
    for stream in flooding.iter_mut().take(3) {
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.read_exact(&mut [0; 18]).context("the first of them are served")?;
    }
    drop(flooding);
    eventually("new clients are served again", 60, || subject.ask(async |client| client.flush().await))?;
    subject.run_for(&Plan { seed: 2, ..Plan::default() }, 300)?;
    setup.router.must_run()?;
    setup.router.kill9()?;
    setup.router.start_again()?;
    subject.settle(Promise::Everything)?;
    setup.router.cli(&["fsck", DISK])?;
    Ok(())
}

/// A client that chooses its export and then does nothing; it reads no answer.
fn idle_client(port: u16) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    let mut words = 3u32.to_be_bytes().to_vec();
    words.extend(b"IHAVEOPT");
    // NBD_OPT_GO, the length of its payload, the length of the name, the name, no information asked for.
    words.extend(7u32.to_be_bytes());
    words.extend((4 + DISK.len() as u32 + 2).to_be_bytes());
    words.extend((DISK.len() as u32).to_be_bytes());
    words.extend(DISK.as_bytes());
    words.extend(0u16.to_be_bytes());
    // One that was turned away by now is no client.
    let _ = stream.write_all(&words);
    Ok(stream)
}
