//! Many clones of one template that boot against one router: the backend is read for the first of them.

use super::figures::{self, GOT, READ, at_most, metric};
use super::{Options, space, start};
use anyhow::{Context, Result, bail, ensure};
use futures::stream::{StreamExt, TryStreamExt};
use std::path::Path;
use tests::block::{self, BLOCK, Found};
use tests::router::Router;
use tests::time::{Stopwatch, eventually};

/// Clones that boot at a time.
const AT_A_TIME: usize = 16;
/// Bytes read from the backend by all of them, as a multiple of one.
const MOST: f64 = 1.05;
/// MiB that a boot reads.
const BOOT_MIB: u64 = 150;

/// One request of a boot, in blocks.
#[derive(Debug, Clone, Copy)]
enum Request {
    Read { first: u64, count: u64 },
    Write { first: u64, count: u64 },
}

/// What a guest asks for while it boots: programs and libraries in runs, directories and small files at random,
/// a few logs written. The same for the same size.
fn trace(blocks: u64) -> Vec<Request> {
    let mut random = fastrand::Rng::with_seed(2026);
    let (mut trace, mut read) = (Vec::new(), 0);
    let wanted = (BOOT_MIB << 8).min(blocks / 4);
    // What is written lies at the end, so that what is read is the template's.
    let (readable, logs) = (blocks - blocks / 16, blocks / 16);
    while read < wanted {
        match random.u32(..100) {
            0..10 => {
                let (mut first, pieces) = (random.u64(..readable - 1024), random.u64(4..=32));
                for _ in 0..pieces {
                    trace.push(Request::Read { first, count: 32 });
                    (first, read) = (first + 32, read + 32);
                }
            }
            10..95 => {
                let count = random.u64(1..=8);
                trace.push(Request::Read { first: random.u64(..readable - count), count });
                read += count;
            }
            _ => trace.push(Request::Write { first: readable + random.u64(..logs - 4), count: 4 }),
        }
    }
    trace
}

/// Boots one clone: the trace, with the content of each block that is read checked.
async fn boot(router: &Router, export: &str, trace: &[Request]) -> Result<()> {
    let client = figures::connect(router, export).await?;
    for request in trace {
        match *request {
            Request::Read { first, count } => {
                let data = client.read(first * BLOCK as u64, (count as usize * BLOCK) as u32).await?;
                for (block, address) in data.chunks(BLOCK).zip(first..) {
                    match block::decode(block) {
                        Found::Written(stamp) if stamp.address == address => {}
                        found => bail!("'{export}', block {address}: {found}"),
                    }
                }
            }
            Request::Write { first, count } => {
                client.write(first * BLOCK as u64, &vec![1; count as usize * BLOCK], 0).await?;
            }
        }
    }
    Ok(client.disconnect().await?)
}

/// Bytes that a router that was just started read, clusters and all objects, once these clones have booted.
fn boots(router: &mut Router, names: &[String], trace: &[Request]) -> Result<(f64, f64, f64)> {
    // Nothing is cached in a process that has just begun.
    router.terminate()?;
    router.start_again()?;
    let (runtime, watch) = (figures::runtime()?, Stopwatch::start());
    let router = &*router;
    let all = futures::stream::iter(names).map(|name| boot(router, name, trace));
    runtime.block_on(all.buffer_unordered(AT_A_TIME).try_collect::<Vec<()>>())?;
    Ok((metric(router, READ)?, metric(router, GOT)?, watch.seconds()))
}

pub fn clones(options: &Options, folder: &Path) -> Result<()> {
    let size = options.size_mib.unwrap_or(2048);
    ensure!(size >= 64 && options.clones > 0, "a template of at least 64 MiB, and a clone");
    let mut router = start(folder, &options.settings(), &format!("{size}MiB"))?;
    let runtime = figures::runtime()?;
    let client = runtime.block_on(figures::connect(&router, "p/v"))?;
    runtime.block_on(space::map_all(&client))?;
    runtime.block_on(client.disconnect())?;
    drop(client);
    router.drain("p/v")?;
    eventually("the client has left", 30, || router.cli(&["vdisk", "template", "p/v"]).map(drop))?;
    let trace = trace(size << 8);
    let asked: u64 = trace.iter().map(|r| if let Request::Read { count, .. } = r { *count } else { 0 }).sum();

    let name = |n: usize| format!("p/c{n}");
    let make = |router: &Router, n: usize| router.cli(&["vdisk", "clone", "p/v", &format!("c{n}")]).map(drop);
    make(&router, 0)?;
    let one = boots(&mut router, &[name(0)], &trace).context("one clone")?;
    let names: Vec<String> = (1..=options.clones).map(name).collect();
    for n in 1..=options.clones {
        make(&router, n)?;
    }
    let all = boots(&mut router, &names, &trace).with_context(|| format!("{} clones", names.len()))?;
    let mib = |bytes: f64| bytes / 1_048_576.0;
    println!(
        "boot of {} MiB read in {} requests out of a template of {size} MiB, every block checked",
        asked >> 8,
        trace.len()
    );
    for (what, (clusters, objects, seconds)) in [("1 clone", one), ("all clones", all)] {
        println!(
            "  {what}: {:.1} MiB read from SCOs, {:.1} MiB of objects in all, {seconds:.1} s",
            mib(clusters),
            mib(objects)
        );
    }
    println!(
        "  {} clones, {AT_A_TIME} at a time, against one: SCOs {:.3} x ({}), all objects {:.3} x",
        names.len(),
        all.0 / one.0,
        at_most(all.0 / one.0, MOST),
        all.1 / one.1
    );
    Ok(())
}
