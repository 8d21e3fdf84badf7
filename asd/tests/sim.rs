//! Lives of a disk from a seed: clients change and read what is theirs, the process is killed at any effect, the power is
//! cut with torn sectors, the disk is full, fails and rots. What was acknowledged is there, what was not is there as a
//! whole or not at all, and no wrong bit is ever returned.
//!
//! `SR_ASD_SEEDS` and `SR_ASD_SEED` choose the worlds.

use asd::LocalOsd;
use asd::store::{Settings, Store};
use bytes::Bytes;
use common::osd::{Assert, Call, Changes, KeyRange, OsdState, Value};
use common::sim::{SimClock, SimDisk, SimDiskFaults, SimTable};
use common::table::{Batch, Table};
use common::{Clock, Disk, Error, ErrorKind, Osd, Result, mutant};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const SEGMENT: u64 = 64 << 10;
const CLIENTS: usize = 3;
const KEYS: u64 = 10;
const COUNTER: &[u8] = b"shared/counter";

fn call() -> Call {
    Call::client(Duration::from_secs(1 << 30))
}

/// A table whose process may die between any two of its effects.
struct Mortal {
    table: Arc<SimTable>,
    left: AtomicU64,
}

impl Mortal {
    fn effect(&self) -> Result<()> {
        let alive = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        alive.map(|_| ()).map_err(|_| Error::internal("this process is dying"))
    }
}

impl Table for Mortal {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        self.table.get(key)
    }

    fn scan(&self, prefix: &[u8], from: &[u8], limit: usize) -> Result<Vec<(Vec<u8>, Bytes)>> {
        self.table.scan(prefix, from, limit)
    }

    fn write(&self, batch: Batch) -> Result<()> {
        self.effect()?;
        self.table.write(batch)
    }

    fn delete_prefix(&self, prefix: &[u8]) -> Result<()> {
        self.effect()?;
        self.table.delete_prefix(prefix)
    }

    fn checkpoint(&self) -> Result<()> {
        self.effect()?;
        self.table.checkpoint()
    }
}

/// What was done and what went wrong, summed up over all worlds.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    acked: u64,
    unknown: u64,
    conflicts: u64,
    no_space: u64,
    kills: u64,
    power_cuts: u64,
    failed: u64,
    corrupt: u64,
    retries: u64,
    moved: u64,
    both_ways: [u64; 2],
}

/// Bytes that say which write they are of.
fn content(client: usize, number: u64, len: usize) -> Bytes {
    let mut random = fastrand::Rng::with_seed(number << 8 | client as u64);
    let mut bytes = vec![0; len];
    random.fill(&mut bytes);
    bytes.into()
}

/// A value by what it was made from.
type Made = Option<(u64, usize)>;

/// What a client knows of its keys.
#[derive(Debug, Clone, Default)]
struct Model {
    keys: BTreeMap<Bytes, (u64, usize)>,
    /// A change whose outcome is unknown: how its keys are if it was made.
    pending: Option<Vec<(Bytes, Made)>>,
    numbers: u64,
    /// Times that it raised the counter, and may have.
    raised: u64,
    maybe_raised: u64,
}

#[derive(Default)]
struct Shared {
    seen: Seen,
    /// A bit was flipped: some values may be damaged, and say so.
    rotten: bool,
    /// Something fails, or is to fail: requests may be refused.
    faulty: bool,
}

struct Client {
    id: usize,
    osd: LocalOsd,
    model: Arc<Mutex<Model>>,
    shared: Arc<Mutex<Shared>>,
    random: fastrand::Rng,
    clock: Arc<SimClock>,
}

impl Client {
    fn key(&mut self) -> Bytes {
        format!("{}/{}", self.id, self.random.u64(..KEYS)).into()
    }

    async fn live(mut self) {
        loop {
            match self.random.u32(..100) {
                0..50 => self.change().await,
                50..60 => self.count().await,
                60..85 => self.read().await,
                85..90 => self.list().await,
                _ => {
                    let pause = self.random.u64(..3000);
                    self.clock.sleep(Duration::from_micros(pause)).await;
                }
            }
        }
    }

    /// An outcome, checked against what may happen; `true`: it was done.
    fn judge(&self, what: &str, has_sets: bool, result: Result<()>) -> Option<bool> {
        let mut shared = self.shared.lock();
        match result {
            Ok(()) => {
                shared.seen.acked += 1;
                return Some(true);
            }
            Err(e) if e.kind == ErrorKind::NoSpace && (has_sets || shared.faulty) => {
                shared.seen.no_space += 1
            }
            Err(e) if e.kind == ErrorKind::Unavailable && shared.faulty => {
                shared.seen.unknown += 1;
                return None;
            }
            Err(e) => panic!("client {}: {what} failed without a reason: {e}", self.id),
        }
        Some(false)
    }

    async fn change(&mut self) {
        let mut changes = Changes::new();
        let mut after = Vec::new();
        let mut keys: Vec<Bytes> = (0..self.random.usize(1..5)).map(|_| self.key()).collect();
        keys.sort();
        keys.dedup();
        let deletes = self.random.u8(..4) == 0;
        for key in keys {
            let now = self.model.lock().keys.get(&key).copied();
            if self.random.bool() {
                changes = changes.assert(match now {
                    None => Assert::Absent(key.clone()),
                    Some((number, len)) if len <= 4096 && self.random.bool() => {
                        Assert::Value(key.clone(), content(self.id, number, len))
                    }
                    Some(_) => Assert::Present(key.clone()),
                });
            }
            if deletes || self.random.u8(..5) == 0 {
                changes = changes.delete(key.clone());
                after.push((key, None));
            } else {
                let len = match self.random.u8(..3) {
                    0 => self.random.usize(..300),
                    1 => self.random.usize(..8200),
                    _ => self.random.usize(..40_000),
                };
                let number = {
                    let mut model = self.model.lock();
                    model.numbers += 1;
                    model.numbers
                };
                changes = changes.set(key.clone(), Value::new(content(self.id, number, len)));
                after.push((key, Some((number, len))));
            }
        }
        if self.random.u8(..6) == 0 {
            return self.refused(changes).await;
        }
        self.model.lock().pending = Some(after.clone());
        let result = self.osd.apply(call(), changes.clone()).await;
        match self.judge("a change", !changes.sets.is_empty(), result) {
            Some(done) => {
                self.settle(done);
                if done && !changes.asserts.is_empty() && self.random.u8(..4) == 0 {
                    // Asked again, it was done.
                    let again = self.osd.apply(call(), changes).await;
                    if self.judge("a change that was made", true, again) == Some(true) {
                        self.shared.lock().seen.retries += 1;
                    }
                }
            }
            // The daemon takes nothing any more.
            None => futures::future::pending().await,
        }
    }

    /// With an assert that does not hold, nothing may happen.
    async fn refused(&mut self, changes: Changes) {
        let assert = if self.random.bool() {
            Assert::Present("nobody/has".into())
        } else {
            Assert::Value(COUNTER.into(), "no number".into())
        };
        match self.osd.apply(call(), changes.assert(assert)).await {
            Err(e) if e.kind == ErrorKind::Conflict => self.shared.lock().seen.conflicts += 1,
            Err(e) if e.kind == ErrorKind::Unavailable && self.shared.lock().faulty => {
                futures::future::pending().await
            }
            Err(e) if e.kind == ErrorKind::NoSpace && self.shared.lock().faulty => {}
            other => panic!("client {}: an assert that does not hold was ignored: {other:?}", self.id),
        }
    }

    fn settle(&self, done: bool) {
        let mut model = self.model.lock();
        for (key, made) in model.pending.take().filter(|_| done).into_iter().flatten() {
            match made {
                Some(made) => model.keys.insert(key, made),
                None => model.keys.remove(&key),
            };
        }
    }

    /// All clients raise one number, by compare and swap.
    async fn count(&mut self) {
        let Ok(found) = self.osd.get(call(), COUNTER).await else { return };
        let now = found.as_ref().map_or(0, |v| number(&v.bytes));
        let assert = match found {
            None => Assert::Absent(COUNTER.into()),
            Some(value) => Assert::Value(COUNTER.into(), value.bytes),
        };
        // Who raised it to what is in the value: it can't be mistaken for somebody else's.
        let (id, raised) = (self.id, {
            let model = self.model.lock();
            model.raised + model.maybe_raised
        });
        let next = format!("{}|{id}|{raised}", now + 1);
        self.model.lock().maybe_raised += 1;
        let changes = Changes::new().assert(assert).set(COUNTER, Value::new(next));
        match self.osd.apply(call(), changes).await {
            Ok(()) => {
                let mut model = self.model.lock();
                model.raised += 1;
                model.maybe_raised -= 1;
            }
            Err(e) if matches!(e.kind, ErrorKind::Conflict | ErrorKind::NoSpace) => {
                self.model.lock().maybe_raised -= 1;
            }
            Err(e) => {
                assert!(self.shared.lock().faulty, "client {}: the counter: {e}", self.id);
                futures::future::pending().await
            }
        }
    }

    async fn read(&mut self) {
        let key = self.key();
        let now = self.model.lock().keys.get(&key).copied();
        let found = if self.random.bool() {
            self.osd.get(call(), &key).await.map(|v| v.map(|v| (v.bytes, 0..usize::MAX)))
        } else {
            let len = now.map_or(0, |(_, len)| len);
            let start = self.random.usize(..=len);
            let end = self.random.usize(start..=len);
            let part = self.osd.get_range(call(), &key, start as u64..end as u64).await;
            part.map(|part| part.map(|bytes| (bytes, start..end)))
        };
        check(&self.shared, self.id, &key, now, found);
    }

    async fn list(&mut self) {
        let prefix = format!("{}/", self.id);
        let mut next = Some(KeyRange::prefix(prefix.as_bytes()));
        let mut keys = Vec::new();
        while let Some(range) = next {
            match self.osd.range(call(), range.clone(), self.random.usize(1..6)).await {
                Ok(page) => {
                    keys.extend(page.keys.into_iter().map(|info| (info.key, info.len as usize)));
                    next = page.next.map(|from| range.onward(from));
                }
                Err(e) => {
                    assert!(self.shared.lock().faulty, "client {}: listing: {e}", self.id);
                    return;
                }
            }
        }
        let model = self.model.lock();
        let expected: Vec<_> = model.keys.iter().map(|(key, (_, len))| (key.clone(), *len)).collect();
        assert_eq!(keys, expected, "client {}: the keys that are listed", self.id);
    }
}

fn number(value: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(value);
    text.split('|').next().and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("the counter is {text}"))
}

type Part = Result<Option<(Bytes, std::ops::Range<usize>)>>;

/// Whether what was read is what is there.
fn check(shared: &Mutex<Shared>, id: usize, key: &Bytes, now: Made, found: Part) {
    let mut shared = shared.lock();
    match found {
        Ok(found) => {
            let value = now.map(|(number, len)| content(id, number, len));
            let same = match (&value, &found) {
                (None, None) => true,
                (Some(value), Some((bytes, part))) => {
                    value[part.start..part.end.min(value.len())] == bytes[..]
                }
                _ => false,
            };
            let (has, is) = (found.map(|f| f.0.len()), value.map(|v| v.len()));
            assert!(
                same,
                "client {id}: {key:?} was read wrong or is lost: it is {now:?} ({is:?} bytes), read {has:?} bytes"
            );
        }
        Err(e) if e.kind == ErrorKind::Corrupt && shared.rotten => shared.seen.corrupt += 1,
        Err(e) => {
            assert!(shared.faulty && e.kind == ErrorKind::Unavailable, "client {id}: reading {key:?}: {e}")
        }
    }
}

struct World {
    disk: SimDisk,
    table: Arc<SimTable>,
    clock: Arc<SimClock>,
    random: fastrand::Rng,
    models: Vec<Arc<Mutex<Model>>>,
    shared: Arc<Mutex<Shared>>,
    settings: Settings,
}

impl World {
    async fn new(seed: u64) -> World {
        let mut random = fastrand::Rng::with_seed(seed);
        let settings = Settings {
            capacity: Some(random.u64(10..24) * SEGMENT + (64 << 10)),
            table_reserve: 16 << 10,
            clean_rate: 1 << random.u32(20..28),
            scrub_rate: if random.bool() { 1 << 20 } else { 0 },
            open_files: 4,
        };
        let disk = SimDisk::new();
        disk.set_random(random.fork());
        let (table, clock) = (Arc::new(SimTable::new()), Arc::new(SimClock::new(seed)));
        Store::format(&disk, &*table, &*clock, SEGMENT).await.unwrap();
        let models = (0..CLIENTS).map(|_| Arc::default()).collect();
        World { disk, table, clock, random, models, shared: Arc::default(), settings }
    }

    /// One life of the process, with clients and a fault, and its end.
    async fn life(&mut self) {
        let left = if self.random.u8(..3) == 0 { self.random.u64(2..400) } else { u64::MAX };
        let mortal = Arc::new(Mortal { table: self.table.clone(), left: AtomicU64::new(u64::MAX) });
        let disk = Arc::new(self.disk.process());
        let opened = Store::open(self.settings, disk, mortal.clone(), self.clock.clone()).await;
        let (store, found) = opened.unwrap_or_else(|e| panic!("it does not open: {e}"));
        assert!(found.missing.is_empty(), "{found:?}");
        let osd = LocalOsd::new(Arc::new(store), None);
        self.verify(&osd).await;
        let latency = Duration::from_micros(self.random.u64(1..2000));
        let calm = SimDiskFaults { max_latency: latency, ..SimDiskFaults::default() };
        self.disk.set_faults(calm.clone());
        mortal.left.store(left, Ordering::Relaxed);
        let mut tasks = tokio::task::JoinSet::new();
        self.shared.lock().faulty = left < u64::MAX;
        for (id, model) in self.models.iter().enumerate() {
            let client = Client {
                id,
                osd: osd.clone(),
                model: model.clone(),
                shared: self.shared.clone(),
                random: self.random.fork(),
                clock: self.clock.clone(),
            };
            tasks.spawn(client.live());
        }
        for _ in 0..self.random.u32(1..6) {
            let time = Duration::from_micros(self.random.u64(1000..200_000));
            tokio::select! {
                () = self.clock.sleep(time) => {}
                // A client only ends by a panic.
                Some(ended) = tasks.join_next() => std::panic::resume_unwind(ended.unwrap_err().into_panic()),
            }
            self.fault(&calm).await;
        }
        if matches!(osd.store().status().state, OsdState::ReadOnly(_)) {
            assert!(self.shared.lock().faulty, "it failed without a fault: {:?}", osd.store().status().state);
            self.shared.lock().seen.failed += 1;
        }
        let counters = osd.store().status().counters;
        let moved = counters.iter().find(|(name, _)| name == "cleaned_bytes").map_or(0, |(_, n)| *n);
        self.shared.lock().seen.moved += moved;
        tasks.abort_all();
        while let Some(ended) = tasks.join_next().await {
            if let Err(e) = ended
                && e.is_panic()
            {
                std::panic::resume_unwind(e.into_panic());
            }
        }
        drop(osd);
        self.disk.set_faults(SimDiskFaults::default());
        self.table.fail_writes(0);
        let table = self.table.successor();
        if self.random.bool() {
            self.shared.lock().seen.kills += 1;
            self.disk.kill();
        } else {
            self.shared.lock().seen.power_cuts += 1;
            let random = &mut self.random;
            self.disk.crash(|| random.bool());
            table.crash(|n| random.usize(..=n));
        }
        self.table = Arc::new(table);
    }

    async fn fault(&mut self, calm: &SimDiskFaults) {
        let kind = self.random.u8(..12);
        if kind < 5 {
            self.shared.lock().faulty = true;
        }
        match kind {
            0 => {
                let soon = self.disk.effects() + self.random.u64(1..60);
                self.disk.die_at_effect(Some(soon));
            }
            1 => self.disk.set_faults(SimDiskFaults { failing_syncs: 1, ..calm.clone() }),
            2 => self.disk.set_faults(SimDiskFaults { failing_writes: 1, ..calm.clone() }),
            3 => self.table.fail_writes(1),
            4 => self.disk.set_faults(SimDiskFaults { full: true, ..calm.clone() }),
            5 => self.disk.set_faults(calm.clone()),
            6 => {
                self.shared.lock().rotten = true;
                let names = self.disk.list().await.unwrap();
                let segments: Vec<_> = names.iter().filter(|name| name.ends_with(".seg")).collect();
                if !segments.is_empty() {
                    let name = segments[self.random.usize(..segments.len())];
                    let at = self.random.usize(4096..SEGMENT as usize);
                    self.disk.flip_bit(name, at, self.random.u8(..8));
                }
            }
            _ => {}
        }
    }

    /// After a start: everything acknowledged is there, and what was under way is there as a whole or not at all.
    async fn verify(&mut self, osd: &LocalOsd) {
        let (mut raised, mut maybe) = (0, 0);
        for (id, model) in self.models.clone().into_iter().enumerate() {
            let prefix = format!("{id}/");
            let page = osd.range(call(), KeyRange::prefix(prefix.as_bytes()), 1000).await.unwrap();
            let there: BTreeMap<Bytes, (u64, u32)> =
                page.keys.into_iter().map(|i| (i.key, (i.len, i.crc))).collect();
            let is = |key: &Bytes, made: Made| match (made, there.get(key)) {
                (None, None) => true,
                (Some((number, len)), Some((is, crc))) => {
                    *is == len as u64 && Value::new(content(id, number, len)).crc == *crc
                }
                _ => false,
            };
            let pending = model.lock().pending.take();
            if let Some(changes) = pending {
                let done = changes.iter().all(|(key, made)| is(key, *made));
                let not = changes.iter().all(|(key, _)| is(key, model.lock().keys.get(key).copied()));
                assert!(
                    done || not,
                    "client {id}: a change was made by halves: {changes:?}, there is {there:?}"
                );
                self.shared.lock().seen.both_ways[usize::from(done)] += 1;
                if done {
                    let mut model = model.lock();
                    for (key, made) in changes {
                        match made {
                            Some(made) => model.keys.insert(key, made),
                            None => model.keys.remove(&key),
                        };
                    }
                }
            }
            let keys = model.lock().keys.clone();
            for (key, made) in &keys {
                assert!(
                    is(key, Some(*made)),
                    "client {id}: what was acknowledged is lost: {key:?}, {made:?}"
                );
                let found = osd.get(call(), key).await;
                check(&self.shared, id, key, Some(*made), found.map(|v| v.map(|v| (v.bytes, 0..usize::MAX))));
            }
            assert_eq!(there.len(), keys.len(), "client {id}: there is what was deleted: {there:?}");
            raised += model.lock().raised;
            maybe += model.lock().maybe_raised;
        }
        let counter = osd.get(call(), COUNTER).await.unwrap().map_or(0, |v| number(&v.bytes));
        assert!(
            (raised..=raised + maybe).contains(&counter),
            "the counter is {counter}, and was raised {raised} times, maybe {maybe} more: a change was lost"
        );
        osd.store().audit().unwrap_or_else(|e| panic!("what is counted is wrong: {e}"));
        let space = osd.status(call()).await.unwrap().space;
        assert_eq!(space.segments + space.table + space.reserved + space.free, space.capacity, "{space:?}");
        assert_eq!(
            space.live + space.dead + space.open + space.segments / SEGMENT * 4096,
            space.segments,
            "{space:?}"
        );
    }
}

async fn run(seed: u64) -> Seen {
    let mut world = World::new(seed).await;
    for _ in 0..world.random.u32(2..7) {
        world.life().await;
    }
    world.shared.lock().seen
}

#[test]
fn nothing_acknowledged_is_lost_and_no_wrong_bit_returned() {
    let setting = |n: &str| std::env::var(n).ok().and_then(|v| v.parse::<u64>().ok());
    let seeds = match setting("SR_ASD_SEED") {
        Some(one) => one..one + 1,
        None => 0..setting("SR_ASD_SEEDS").unwrap_or(200),
    };
    let many = seeds.end - seeds.start >= 200 && !mutant::BUILT_IN;
    let mut sum = Seen::default();
    for seed in seeds {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        // In place: a thread of its own would make the order of things a matter of luck.
        let seen = std::panic::catch_unwind(|| common::blocking::allow(|| runtime.block_on(run(seed))));
        let Ok(seen) = seen else { panic!("seed {seed}") };
        let [undone, done] = &mut sum.both_ways;
        for (all, one) in [
            (&mut sum.acked, seen.acked),
            (&mut sum.unknown, seen.unknown),
            (&mut sum.conflicts, seen.conflicts),
            (&mut sum.no_space, seen.no_space),
            (&mut sum.kills, seen.kills),
            (&mut sum.power_cuts, seen.power_cuts),
            (&mut sum.failed, seen.failed),
            (&mut sum.corrupt, seen.corrupt),
            (&mut sum.retries, seen.retries),
            (&mut sum.moved, seen.moved),
            (undone, seen.both_ways[0]),
            (done, seen.both_ways[1]),
        ] {
            *all += one;
        }
    }
    println!("{sum:?}");
    if many {
        let little = [sum.kills, sum.power_cuts, sum.failed, sum.corrupt, sum.both_ways[0], sum.both_ways[1]];
        assert!(little.iter().all(|n| *n > 20), "the worlds do too little: {sum:?}");
        let much = [sum.acked, sum.no_space, sum.retries, sum.conflicts, sum.moved];
        assert!(much.iter().all(|n| *n > 100), "the worlds do too little: {sum:?}");
    }
}

/// Every seeded bug is noticed. With the feature `mutants` only.
#[cfg(feature = "mutants")]
#[test]
fn each_seeded_bug_is_caught() {
    const BUGS: &[&str] = &[
        "asd-answer-before-sync",
        "asd-data-unsynced",
        "asd-asserts-ignored",
        "asd-move-overwrites",
        "asd-read-unverified",
    ];
    let me = std::env::current_exe().unwrap();
    for bug in BUGS {
        let output = std::process::Command::new(&me)
            .args(["--exact", "nothing_acknowledged_is_lost_and_no_wrong_bit_returned"])
            .env("SR_MUTANT", bug)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{bug} was not noticed: {said}");
        let why = said.lines().skip_while(|line| !line.contains("panicked at")).nth(1).unwrap_or_default();
        println!("{bug}: {why}");
    }
}
