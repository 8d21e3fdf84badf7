//! What overwriting costs: bytes written to the backend for each byte of the client, and bytes stored for
//! each byte that the head or a snapshot still needs.

use super::figures::{self, PUT, Spread, at_most, metric, told};
use super::{Options, start};
use anyhow::{Context, Result, bail, ensure};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use tests::block::{self, BLOCK, Found, Stamp};
use tests::census::{self, Seen};
use tests::nbd::Client;
use tests::router::Router;
use tests::scatter::{Scatter, Zipf};
use tests::time::{Stopwatch, eventually};

/// Requests in flight.
const DEPTH: usize = 32;
/// Clusters of the longest write: 16 KiB.
const LONGEST: u64 = 4;
/// Snapshots that are kept.
const KEPT: usize = 3;
/// What may be stored for each live byte.
const STORED: f64 = 1.43;
/// Share of the run whose samples do not count.
const WARM_UP: f64 = 0.2;

/// Which write comes next, and which contents may be where.
struct State {
    random: fastrand::Rng,
    zipf: Option<Zipf>,
    scatter: Scatter,
    clusters: u64,
    sequence: u64,
    /// For each cluster the oldest write that may be what is read: one that was answered before a later one
    /// to the same cluster was sent is not.
    floor: Vec<u64>,
    /// The write that each worker waits for.
    flying: [u64; DEPTH],
    left: u64,
}

/// Random overwrites of a volume.
struct Overwrites {
    state: Mutex<State>,
    written: AtomicU64,
    over: AtomicBool,
}

impl Overwrites {
    fn new(clusters: u64, bytes: u64, zipf: bool) -> Self {
        let state = State {
            random: fastrand::Rng::with_seed(1),
            zipf: zipf.then(|| Zipf::new(clusters, 0.99)),
            scatter: Scatter::new(clusters, 5),
            clusters,
            sequence: 1,
            floor: vec![1; clusters as usize],
            flying: [u64::MAX; DEPTH],
            left: bytes,
        };
        Self { state: Mutex::new(state), written: AtomicU64::new(0), over: AtomicBool::new(false) }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next write of a worker: address, clusters and sequence. None when all is written.
    fn next(&self, worker: usize) -> Option<(u64, u64, u64)> {
        let mut guard = self.state();
        let state = &mut *guard;
        state.flying[worker] = u64::MAX;
        if state.left == 0 {
            return None;
        }
        let rank = match &state.zipf {
            Some(zipf) => zipf.rank(state.random.f64()),
            None => state.random.u64(..state.clusters),
        };
        let count = state.random.u64(1..=LONGEST);
        let addr = state.scatter.at(rank).min(state.clusters - count);
        state.left = state.left.saturating_sub(count * BLOCK as u64);
        state.sequence += 1;
        state.flying[worker] = state.sequence;
        let oldest = state.flying.iter().copied().min().unwrap_or(state.sequence);
        state.floor[addr as usize..(addr + count) as usize].fill(oldest);
        Some((addr, count, state.sequence))
    }

    async fn work(&self, client: &Client, worker: usize) -> Result<()> {
        let mut data = vec![0; LONGEST as usize * BLOCK];
        while let Some((addr, count, sequence)) = self.next(worker) {
            let data = &mut data[..count as usize * BLOCK];
            fill(data, addr, sequence);
            client.write(addr * BLOCK as u64, data, 0).await?;
            self.written.fetch_add(data.len() as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    async fn run(&self, client: &Client) -> Result<()> {
        let workers = (0..DEPTH).map(|worker| self.work(client, worker));
        futures::future::try_join_all(workers).await.map(drop)
    }

    /// Reads everything back: each cluster must hold a write to it that nothing replaced.
    async fn verify(&self, client: &Client) -> Result<()> {
        let state = self.state().floor.clone();
        for (part, floors) in state.chunks(256).enumerate() {
            let first = part as u64 * 256;
            let data = client.read(first * BLOCK as u64, (floors.len() * BLOCK) as u32).await?;
            for ((bytes, floor), addr) in data.chunks(BLOCK).zip(floors).zip(first..) {
                match block::decode(bytes) {
                    Found::Written(stamp) if stamp.address == addr && stamp.sequence >= *floor => {}
                    found => bail!("cluster {addr} has {found}, should have write {floor} or a later one"),
                }
            }
        }
        Ok(())
    }
}

/// Blocks that say where they belong.
fn fill(data: &mut [u8], addr: u64, sequence: u64) {
    for (block, address) in data.chunks_mut(BLOCK).zip(addr..) {
        Stamp { volume: 0, address, writer: 0, sequence, previous: 0 }.encode(block);
    }
}

/// Writes every cluster once, in order.
pub async fn map_all(client: &Client) -> Result<()> {
    let mut data = vec![0; 1 << 20];
    for offset in (0..client.size()).step_by(1 << 20) {
        let length = (client.size() - offset).min(1 << 20) as usize;
        fill(&mut data[..length], offset / BLOCK as u64, 1);
        client.write(offset, &data[..length], 0).await?;
    }
    Ok(client.flush().await?)
}

/// One look at the store: bytes of the client until then, stored bytes, live bytes.
struct Look {
    written: u64,
    stored: u64,
    live: u64,
    /// Seconds since a snapshot was deleted.
    deleted: Option<f64>,
}

/// Overwrites a fully mapped vDisk at random, uniform and by zipf.
pub fn space(options: &Options, folder: &Path) -> Result<()> {
    for (name, zipf, most) in [("uniform", false, 2.3), ("zipf 0.99", true, 1.6)] {
        if options.only.as_ref().is_some_and(|only| !name.contains(only.as_str())) {
            continue;
        }
        let folder = folder.join(if zipf { "zipf" } else { "uniform" });
        std::fs::create_dir_all(&folder)?;
        overwrite(options, &folder, name, zipf, most).context(name)?;
        std::fs::remove_dir_all(&folder)?;
    }
    Ok(())
}

fn overwrite(options: &Options, folder: &Path, name: &str, zipf: bool, most: f64) -> Result<()> {
    let size = options.size_mib.unwrap_or(4096) << 20;
    let bytes = (options.times * size as f64) as u64;
    let store = folder.join("pool");
    let mut router = start(folder, &options.settings(), &format!("{}MiB", size >> 20))?;
    let runtime = figures::runtime()?;
    let client = runtime.block_on(figures::connect(&router, "p/v"))?;
    runtime.block_on(map_all(&client))?;
    router.drain("p/v")?;

    let (before, mut seen, watch) = (metric(&router, PUT)?, Seen::default(), Stopwatch::start());
    seen.look(&store)?;
    let seen_before = census::total(&seen.amounts());
    let overwrites = Overwrites::new(size / BLOCK as u64, bytes, zipf);
    let looks = std::thread::scope(|scope| -> Result<Vec<Look>> {
        let written = scope.spawn(|| {
            let outcome = runtime.block_on(overwrites.run(&client));
            overwrites.over.store(true, Ordering::Release);
            outcome
        });
        let looks = watch_store(options, &router, &store, &mut seen, &overwrites, size);
        written.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
        looks
    })?;
    let seconds = watch.seconds();
    router.drain("p/v")?;
    // A drain waits for no scrub; what it still costs to come back to what is held counts too.
    eventually("the garbage of the end is gone", 300, || {
        let shown = router.show("p/v")?;
        let now = shown["space_amplification"].as_f64().context("no space_amplification")?;
        ensure!(now <= STORED, "{now} stored for each live byte");
        Ok(())
    })?;
    seen.look(&store)?;
    let clients = overwrites.written.load(Ordering::Relaxed) as f64;
    let (put, found) = (metric(&router, PUT)? - before, census::total(&seen.amounts()) - seen_before);
    println!(
        "{name}{}: {} MiB mapped, {:.0} MiB written over it by 4 to 16 KiB at depth {DEPTH} in {seconds:.0} s",
        if options.snapshots { " with snapshots" } else { "" },
        size >> 20,
        clients / 1_048_576.0
    );
    let ratio = put / clients;
    println!(
        "  put on the backend: {:.0} MiB by the router's count, {:.0} MiB by the objects that were seen (a few \
         come and go between two looks)",
        put / 1_048_576.0,
        found as f64 / 1_048_576.0
    );
    println!("  written per client byte: {ratio:.3} ({})", at_most(ratio, most));
    println!("  seen since the vPool began: {}", told(&seen.amounts()));
    let counted = looks.iter().filter(|look| look.written as f64 > clients * WARM_UP && look.live > 0);
    let stored = Spread::of(counted.map(|look| look.stored as f64 / look.live as f64));
    println!("  stored per live byte, {} looks: {stored:.3} ({})", looks.len(), at_most(stored.high, STORED));
    after_deletions(&looks);
    runtime.block_on(overwrites.verify(&client)).context("reading everything back")?;
    runtime.block_on(client.disconnect())?;
    drop(client);
    at_rest(&mut router, &store, options.snapshots)?;
    println!("  every cluster read back is the last one written to it");
    delete_all(&router, &store)
}

/// What a deleted snapshot had to itself is garbage at once: how much, and until when.
fn after_deletions(looks: &[Look]) {
    let over = |look: &&Look| look.stored as f64 > look.live as f64 * STORED;
    let after = |look: &Look| look.deleted.map(|seconds| (seconds, look.stored as f64 / look.live as f64));
    let counted: Vec<(f64, f64)> = looks.iter().filter_map(after).collect();
    if counted.is_empty() {
        return;
    }
    let beyond = looks.iter().filter(over).filter_map(|look| look.deleted).fold(0.0, f64::max);
    let settled = counted.iter().filter(|(seconds, _)| *seconds > 30.0).map(|(_, ratio)| *ratio);
    println!(
        "  more than {STORED} was stored in {} of {} looks, until {beyond:.0} s after a snapshot was deleted at the \
         latest; later than 30 s after that it was {:.3}",
        looks.iter().filter(over).count(),
        looks.len(),
        Spread::of(settled)
    );
}

/// Looks at the store once a second, and takes and deletes snapshots, until the writer is done.
fn watch_store(
    options: &Options,
    router: &Router,
    store: &Path,
    seen: &mut Seen,
    overwrites: &Overwrites,
    size: u64,
) -> Result<Vec<Look>> {
    let (mut looks, mut taken) = (Vec::new(), 0u64);
    let (mut since, mut deleted) = (Stopwatch::start(), None);
    let shown = router.show("p/v")?;
    let id = shown["id"].as_str().context("no id")?.parse()?;
    while !overwrites.over.load(Ordering::Acquire) {
        tests::time::pause(1000);
        if options.snapshots && since.past(options.snapshot_seconds) {
            since = Stopwatch::start();
            taken += 1;
            router.cli(&["vdisk", "snapshot", "p/v", &format!("s{taken}")])?;
            if let Some(old) = taken.checked_sub(KEPT as u64).filter(|old| *old > 0) {
                router.cli(&["vdisk", "snapshot-delete", "p/v", &format!("s{old}")])?;
                deleted = Some(Stopwatch::start());
            }
        }
        let stored = seen.look(store)?;
        let live = match options.snapshots {
            false => size,
            // By a walk over the objects; one of them may go meanwhile, then this look does not count.
            true => match census::live(store, id) {
                Ok(found) => found.all,
                Err(_) => continue,
            },
        };
        let deleted = deleted.as_ref().map(Stopwatch::seconds);
        looks.push(Look { written: overwrites.written.load(Ordering::Relaxed), stored, live, deleted });
    }
    Ok(looks)
}

/// What the router says is live, and what a walk over the objects finds, once nothing moves.
fn at_rest(router: &mut Router, store: &Path, snapshots: bool) -> Result<()> {
    router.drain("p/v")?;
    let shown = router.show("p/v")?;
    let said = shown["live_bytes"].as_u64().context("no live_bytes")?
        + shown["snapshot_bytes"].as_u64().context("no snapshot_bytes")?;
    let id = shown["id"].as_str().context("no id")?.parse()?;
    router.terminate()?;
    let found = census::live(store, id)?;
    let stored = census::total(&census::amounts(&census::objects(store)?));
    println!(
        "  at rest: {:.1} MiB stored, live {:.1} MiB by a walk ({:.1} of the head, {} snapshots), {:.1} MiB by the router: \
         {:.3} stored per live byte",
        stored as f64 / 1_048_576.0,
        found.all as f64 / 1_048_576.0,
        found.head as f64 / 1_048_576.0,
        found.snapshots,
        said as f64 / 1_048_576.0,
        stored as f64 / found.all as f64
    );
    ensure!(snapshots || found.all == found.head, "no snapshot, and more live than the head");
    router.start_again()
}

/// Deletes snapshots and vDisk; what is left must be Manifests and the vPool's own object.
fn delete_all(router: &Router, store: &Path) -> Result<()> {
    let listed = router.cli_json(&["vdisk", "snapshots", "p/v"])?;
    let list = listed.as_array().or_else(|| listed["items"].as_array());
    for snapshot in list.context("no list of snapshots")? {
        let name = snapshot["name"].as_str().context("a snapshot without a name")?;
        router.cli(&["vdisk", "snapshot-delete", "p/v", name])?;
    }
    eventually("the client has left", 30, || router.cli(&["vdisk", "delete", "p/v"]).map(drop))?;
    let gone = eventually("the objects are gone", 120, || {
        let left = census::amounts(&census::objects(store)?);
        let more: Vec<_> = left.keys().filter(|kind| !matches!(**kind, "manifest" | "vpool")).collect();
        ensure!(more.is_empty(), "left: {more:?}");
        Ok(())
    });
    let left = census::amounts(&census::objects(store)?);
    println!("  after the deletion of everything the store holds {}", told(&left));
    gone
}
