//! The read cache with a real router: what does not fit its memory is on the SSD, also after SIGKILL.

use anyhow::{Context, Result, ensure};
use std::os::unix::fs::FileExt;
use tests::block::BLOCK;
use tests::nbd::Client;
use tests::setup::{DISK, Kind, Setup};
use tests::time::eventually;
use tokio::runtime::Runtime;

const BLOCKS: u64 = 4096;

fn metric(setup: &Setup, name: &str) -> Result<u64> {
    let (_, metrics) = setup.router.get("/metrics")?;
    let name = format!("storagerouter_volumedriver_{name} ");
    let line = metrics.lines().find_map(|line| line.strip_prefix(&name));
    Ok(line.with_context(|| format!("no {name}"))?.parse::<f64>()? as u64)
}

fn setup(name: &str) -> Result<(Setup, Runtime)> {
    let setup = Setup::with(name, Kind::Directory, "64MiB", |config| {
        config
            .set("volumedriver.journal_mib=256")
            .set("volumedriver.segment_mib=8")
            .set("volumedriver.seal_age_seconds=1")
            .set("volumedriver.read_cache_mib=2")
            .set("volumedriver.ssd_cache_mib=64")
    })?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let client = runtime.block_on(Client::connect(&setup.router.endpoint(), DISK))?;
    for n in 0..BLOCKS {
        runtime.block_on(client.write(n * BLOCK as u64, &content(n), 0))?;
    }
    runtime.block_on(client.disconnect())?;
    setup.router.drain(DISK)?;
    Ok((setup, runtime))
}

fn content(block: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(block);
    (0..BLOCK).map(|_| random.u8(..)).collect()
}

/// Reads all blocks, in an order by chance.
fn read_all(setup: &Setup, runtime: &Runtime, seed: u64) -> Result<()> {
    let client = runtime.block_on(Client::connect(&setup.router.endpoint(), DISK))?;
    let mut order: Vec<u64> = (0..BLOCKS).collect();
    fastrand::Rng::with_seed(seed).shuffle(&mut order);
    for n in order {
        let data = runtime.block_on(client.read(n * BLOCK as u64, BLOCK as u32))?;
        ensure!(data == content(n), "block {n} is not what was written");
    }
    runtime.block_on(client.disconnect())?;
    Ok(())
}

/// What a pass over all blocks read from the backend, in bytes.
fn pass(setup: &Setup, runtime: &Runtime, seed: u64) -> Result<u64> {
    let before = metric(setup, "backend_read_bytes_total")?;
    read_all(setup, runtime, seed)?;
    Ok(metric(setup, "backend_read_bytes_total")? - before)
}

#[test]
fn what_does_not_fit_the_memory_is_read_from_the_ssd_also_after_kill_9() -> Result<()> {
    let (mut setup, runtime) = setup("read-cache")?;
    let all = BLOCKS * BLOCK as u64;
    let first = pass(&setup, &runtime, 1)?;
    ensure!(first >= all * 8 / 10, "{first} of {all} bytes: the journal has the rest");
    // The writer drops what comes too fast; a few more passes offer it again.
    let mut order = 1;
    eventually("what is read again is on the SSD", 60, || {
        order += 1;
        let read = pass(&setup, &runtime, order)?;
        ensure!(read <= all / 10, "{read} of {all} bytes come from the backend");
        Ok(())
    })?;
    // The index of the last segment is written when it is quiet.
    tests::time::pause(2500);
    setup.router.kill9()?;
    // One segment is torn meanwhile.
    let torn = setup.router.config.data_dir.join("read-cache/segment-00000");
    std::fs::OpenOptions::new().write(true).open(&torn)?.write_all_at(&[0x5a; 64 << 10], 256 << 10)?;
    setup.router.start_again()?;
    eventually("the cache is found", 20, || {
        ensure!(metric(&setup, "read_cache_ssd_clusters")? > BLOCKS / 2, "not yet");
        Ok(())
    })?;
    let warm = pass(&setup, &runtime, 3)?;
    ensure!(warm <= all / 5, "{warm} of {all} bytes come from the backend after a restart");
    ensure!(metric(&setup, "read_cache_ssd_hits_total")? >= BLOCKS * 7 / 10, "hits on the SSD");
    ensure!(metric(&setup, "read_cache_ssd_wrong_total")? > 0, "what is torn is a miss");
    let shown = setup.router.show(DISK)?;
    ensure!(shown["cache"]["ssd_hits"].as_u64() >= Some(BLOCKS * 7 / 10), "{shown}");
    Ok(())
}

#[test]
fn a_quota_holds_and_survives_a_restart() -> Result<()> {
    let (mut setup, runtime) = setup("read-cache-quota")?;
    setup.router.cli(&["vdisk", "set", DISK, "--cache-quota", "2MiB"])?;
    let check = |setup: &Setup| -> Result<()> {
        for seed in 0..3 {
            pass(setup, &runtime, seed)?;
            let shown = setup.router.show(DISK)?;
            let part = |name: &str| shown["cache"][name].as_u64().context("no such part");
            let held = part("memory_bytes")? + part("ssd_bytes")?;
            ensure!(held <= 2 << 20, "{held} bytes are held: {shown}");
            ensure!(shown["cache_quota_bytes"] == 2 << 20, "{shown}");
        }
        Ok(())
    };
    check(&setup)?;
    setup.router.kill9()?;
    setup.router.start_again()?;
    check(&setup)?;
    setup.router.try_cli(&["vdisk", "set", DISK, "--cache-quota", "5"])?.refused(&["cache quota"])?;
    setup.router.cli(&["vdisk", "set", DISK, "--cache-quota", "none"])?;
    ensure!(setup.router.show(DISK)?.get("cache_quota_bytes").is_none(), "it is taken away");
    Ok(())
}
