//! Simulated worlds: one seed is one history of clients, two proxies, collections, and disks that fail in every way. A model of
//! what each key may hold judges every answer.
//!
//! `SR_ALBA_SEEDS` says how many worlds, `SR_ALBA_SEED` which one alone.

use super::*;
use async_trait::async_trait;
use common::Kv;
use common::kv::{KvAssert, KvOp, KvPair};
use std::collections::HashSet;

/// A registry whose answers get lost.
struct FlakyKv {
    kv: SimKv,
    random: Mutex<fastrand::Rng>,
    per_mille: Mutex<u32>,
}

#[async_trait]
impl Kv for FlakyKv {
    async fn get(&self, key: &str) -> Result<Option<KvPair>> {
        self.kv.get(key).await
    }

    async fn scan(&self, prefix: &str) -> Result<Vec<KvPair>> {
        self.kv.scan(prefix).await
    }

    async fn txn(&self, asserts: Vec<KvAssert>, ops: Vec<KvOp>) -> Result<u64> {
        let chance = self.random.lock().u32(0..1000);
        let per_mille = *self.per_mille.lock();
        if chance < per_mille / 2 {
            return Err(Error::unavailable("simulated registry: no answer"));
        }
        let outcome = self.kv.txn(asserts, ops).await;
        match chance < per_mille {
            true => Err(Error::unavailable("simulated registry: the answer was lost")),
            false => outcome,
        }
    }
}

/// What a key may hold.
type Possible = HashSet<Option<u64>>;

/// What is known of a key.
struct Known {
    may: Possible,
    /// What was ever put: a part may be read of what another proxy replaced a moment ago.
    ever: HashSet<u64>,
}

impl Default for Known {
    fn default() -> Self {
        Self { may: HashSet::from([None]), ever: HashSet::new() }
    }
}

#[derive(Default, Debug)]
struct Seen {
    puts: u64,
    gets: u64,
    unavailable: u64,
    conflicts: u64,
    collections: u64,
    lies: u64,
    lost_replies: u64,
    full: u64,
}

struct World {
    backend: Backend,
    stores: [AlbaStore; 2],
    /// Disks that may lose what they have, or lie: no more than the preset promises.
    victims: Vec<usize>,
    seen: Mutex<Seen>,
    over: Mutex<bool>,
}

const LENGTHS: [usize; 6] = [0, 100, 4096, 20_000, 70_000, 300_000];

fn value(n: u64) -> Bytes {
    let mut data = content(LENGTHS[(n % 6) as usize], n).to_vec();
    if n.is_multiple_of(2) {
        // Half of it can be compressed.
        let half = data.len() / 2;
        data[..half].fill(n as u8);
    }
    data.into()
}

impl World {
    async fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let presets: [(&[&str], u8); 4] = [
            (&["4,2,6,2", "2,2,4,2"], 2),
            (&["4,2,5,2"], 1),
            (&["1,2,3,1"], 2),
            (&["3,2,5,2", "1,2,3,*"], 2),
        ];
        let (policies, losses) = presets[random.usize(0..4)];
        let mut preset = preset(policies, losses);
        if random.bool() {
            preset.compression = Compression::Zstd { level: 1 };
        }
        if random.bool() {
            preset.encryption = Encryption::ChaCha20Poly1305;
        }
        let mut backend = Backend::new(4, 3, preset.clone(), seed).await;
        let kv = Arc::new(FlakyKv {
            kv: SimKv::new(),
            random: Mutex::new(random.fork()),
            per_mille: Mutex::new(0),
        });
        let (master, _) = Master::create(&Unlock::KeyFile(zeroize::Zeroizing::new([3; 32]))).unwrap();
        let keys = |id| Ok(vec![master.new_key(id, 1)?.1]);
        let name = "ns".parse().unwrap();
        let namespace = crate::alba::records::namespace::create_namespace(&*kv, &name, preset.clone(), keys)
            .await
            .unwrap();
        *kv.per_mille.lock() = if random.bool() { 20 } else { 0 };
        backend.records = Records::new(kv.clone(), namespace.id);
        let store = |n: u64| {
            AlbaStore::new(Parts {
                records: backend.records.clone(),
                preset: preset.clone(),
                keys: namespace.keys.iter().map(|key| master.key(namespace.id, key).unwrap()).collect(),
                osds: backend.view.clone(),
                clock: backend.clock.clone(),
                draw: draw(seed * 2 + n),
                name: format!("proxy {n}"),
            })
            .unwrap()
        };
        let stores = [store(0), store(1)];
        let mut all: Vec<usize> = (0..12).collect();
        random.shuffle(&mut all);
        let victims = all[..usize::from(losses)].to_vec();
        Self { backend, stores, victims, seen: Mutex::default(), over: Mutex::new(false) }
    }

    async fn client(&self, n: usize, seed: u64) -> BTreeMap<String, Known> {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut model: BTreeMap<String, Known> = BTreeMap::new();
        for step in 0..40u64 {
            self.backend.clock.sleep(Duration::from_millis(random.u64(0..200))).await;
            let key = format!("{n}/{}", random.u32(0..4));
            let store = &self.stores[random.usize(0..2)];
            let known = model.entry(key.clone()).or_default();
            match random.u32(0..10) {
                0..4 => self.put(store, &key, (n as u64) << 32 | step, random.bool(), known).await,
                4..8 => self.get(store, &key, known, &mut random).await,
                8 => match store.delete(&key).await {
                    Ok(()) => known.may = HashSet::from([None]),
                    Err(e) => {
                        assert_eq!(e.kind, ErrorKind::Unavailable, "delete {key}: {e}");
                        known.may.insert(None);
                    }
                },
                _ => self.backend.clock.sleep(Duration::from_millis(random.u64(0..2000))).await,
            }
        }
        model
    }

    async fn put(&self, store: &AlbaStore, key: &str, n: u64, if_absent: bool, known: &mut Known) {
        let Known { may, ever } = known;
        ever.insert(n);
        let precondition = if if_absent { Precondition::IfAbsent } else { Precondition::None };
        match store.put(key, value(n), precondition).await {
            Ok(()) => {
                assert!(!if_absent || may.contains(&None), "put-if-absent of {key} where there is one");
                *may = HashSet::from([Some(n)]);
                self.seen.lock().puts += 1;
            }
            Err(e) if e.kind == ErrorKind::Conflict => {
                assert!(if_absent, "put of {key}: {e}");
                may.remove(&None);
                assert!(!may.is_empty(), "put-if-absent of {key} refused where there is none");
                self.seen.lock().conflicts += 1;
            }
            Err(e) => {
                assert_eq!(e.kind, ErrorKind::Unavailable, "put {key}: {e}");
                may.insert(Some(n));
                self.seen.lock().unavailable += 1;
            }
        }
    }

    async fn get(&self, store: &AlbaStore, key: &str, known: &mut Known, random: &mut fastrand::Rng) {
        let Known { may, ever } = known;
        self.seen.lock().gets += 1;
        let whole = store.get(key).await;
        match whole {
            Ok(bytes) => {
                let is = may.iter().flatten().copied().find(|n| value(*n) == bytes);
                let n = is.unwrap_or_else(|| {
                    panic!("{key} holds {} bytes that it never could: {may:?}", bytes.len())
                });
                *may = HashSet::from([Some(n)]);
                let from = random.u64(0..=bytes.len() as u64);
                let range = from..random.u64(from..=bytes.len() as u64);
                match store.get_range(key, range.clone()).await {
                    Ok(part) => {
                        let (from, to) = (range.start as usize, range.end as usize);
                        let is = |n: &u64| value(*n).get(from..to).is_some_and(|of| of == part);
                        assert!(ever.iter().any(is), "{key} {range:?} is of nothing that was put");
                    }
                    Err(e) => self.excused(key, &e),
                }
            }
            Err(e) if e.kind == ErrorKind::NotFound => {
                assert!(may.contains(&None), "{key} is lost: {may:?}");
                *may = HashSet::from([None]);
            }
            Err(e) => self.excused(key, &e),
        }
    }

    fn excused(&self, key: &str, error: &Error) {
        assert!(error.kind == ErrorKind::Unavailable && !*self.over.lock(), "read of {key}: {error}");
        self.seen.lock().unavailable += 1;
    }

    /// The weather: every little while, something goes wrong with some disk, or a collection runs.
    async fn weather(&self, seed: u64) {
        let mut random = fastrand::Rng::with_seed(seed);
        while !*self.over.lock() {
            let disk = random.usize(0..12);
            let mut faults = OsdFaults { latency: Duration::from_micros(200), ..OsdFaults::default() };
            match random.u32(0..12) {
                0 | 1 => faults.away = true,
                2 => faults.fail_per_mille = 300,
                3 => faults.lost_reply_per_mille = 300,
                4 => faults.latency = Duration::from_millis(random.u64(1..1500)),
                5 => faults.room = Some(random.u64(0..100_000)),
                6 => faults.read_only = true,
                7 => faults.latency = Duration::from_secs(30),
                _ => {}
            }
            self.backend.osds[disk].set_faults(faults.clone());
            if let Some(victim) = self.victims.get(random.usize(0..6)) {
                match random.u32(0..3) {
                    0 => self.backend.osds[*victim].wipe(),
                    1 => self.backend.osds[*victim].set_faults(OsdFaults { flip_per_mille: 500, ..faults }),
                    _ => self.backend.osds[*victim]
                        .set_faults(OsdFaults { wrong_object_per_mille: 500, ..faults }),
                }
            }
            if random.u32(0..12) == 0 {
                let store = &self.stores[random.usize(0..2)];
                for outcome in [store.begin_epoch().await, store.collect().await.map(|_| ())] {
                    if let Err(e) = outcome {
                        assert!(
                            matches!(e.kind, ErrorKind::Unavailable | ErrorKind::Invalid),
                            "collection: {e}"
                        );
                    }
                }
                self.seen.lock().collections += 1;
            }
            if random.u32(0..4) == 0 {
                self.backend.view.refresh().await;
            }
            self.backend.clock.sleep(Duration::from_millis(random.u64(1..400))).await;
        }
    }

    /// The sky clears: everything that was acknowledged is there, and nothing else.
    async fn end(&self, model: BTreeMap<String, Known>) {
        *self.over.lock() = true;
        self.backend.osds.iter().for_each(|osd| osd.set_faults(OsdFaults::default()));
        self.backend.settle().await;
        for _ in 0..3 {
            self.backend.clock.sleep(Duration::from_secs(600)).await;
            self.backend.view.refresh().await;
        }
        let mut random = fastrand::Rng::with_seed(1);
        let mut there = Vec::new();
        for (key, mut known) in model {
            for store in &self.stores {
                self.get(store, &key, &mut known, &mut random).await;
            }
            if let Some(n) = known.may.iter().flatten().next() {
                there.push((key.clone(), value(*n).len() as u64));
            }
        }
        let listed = self.stores[0].list("", None, false, 1000).await.unwrap();
        assert_eq!(listed.objects.into_iter().map(|o| (o.key, o.len)).collect::<Vec<_>>(), there);
        // The registry may lose answers: again, until it is done.
        for _ in 0..50 {
            let _ = self.stores[0].remove_deleted(1000).await;
            let _ = self.stores[0].begin_epoch().await;
            let _ = self.stores[0].collect().await;
        }
        assert!(self.backend.records.deleted(10).await.unwrap().is_empty());
        let mut named = HashSet::new();
        let namespace = self.backend.records.namespace();
        for (key, _) in there {
            let record = self.backend.record(&key).await;
            assert!(record.stored() >= record.shape.policy.data());
            let most = record.shape.policy.x.map_or(usize::MAX, usize::from);
            for node in 0..4 {
                let there = record.places.iter().flatten().filter(|p| (p.osd.0 - 1) / 3 == node).count();
                assert!(there <= most, "{key} has {there} fragments on a node");
            }
            for n in 0..record.places.len() {
                let Some((osd, fragment)) = record.key(namespace, n) else { continue };
                named.insert((osd, fragment.header()));
                named.extend((0..record.shape.values()).map(|v| (osd, fragment.value(v))));
            }
            let indexed = self
                .backend
                .records
                .to_repair(None, 1000)
                .await
                .unwrap()
                .contains(&(record.stored().saturating_sub(record.shape.policy.data()), key.clone()));
            assert_eq!(indexed, record.spare_if_incomplete().is_some(), "{key} and the repair index");
        }
        for (n, osd) in self.backend.osds.iter().enumerate() {
            let lies: HashSet<_> =
                osd.values().into_keys().filter(|k| k[0] != b'x').map(|k| (osd.id, k)).collect();
            // A header that a wipe took, or data without one, is what a verification finds.
            let extra: Vec<_> = lies.difference(&named).filter(|(_, k)| k[0] == b'h').collect();
            assert!(extra.is_empty(), "disk {n} has {} fragments that nothing names", extra.len());
            let missing =
                named.iter().filter(|(id, k)| *id == osd.id && !lies.contains(&(*id, k.clone()))).count();
            assert!(
                missing == 0 || self.victims.contains(&n),
                "disk {n} lost {missing} values that it never could"
            );
        }
        let tallies: Vec<_> = self.backend.osds.iter().map(SimOsd::tally).collect();
        let mut seen = self.seen.lock();
        seen.lies = tallies.iter().map(|t| t.lies).sum();
        seen.lost_replies = tallies.iter().map(|t| t.lost_replies).sum();
        seen.full = tallies.iter().map(|t| t.full).sum();
    }
}

async fn live(seed: u64) -> (Seen, Duration) {
    let world = World::new(seed).await;
    let clients = async {
        let clients = (0..4).map(|n| world.client(n, seed * 10 + n as u64));
        let models = futures::future::join_all(clients).await;
        *world.over.lock() = true;
        models.into_iter().flatten().collect::<BTreeMap<_, _>>()
    };
    let (model, ()) = tokio::join!(clients, world.weather(seed * 10 + 9));
    world.end(model).await;
    let now = world.backend.clock.now();
    (world.seen.into_inner(), now)
}

fn run(seed: u64) -> (Seen, Duration) {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build().unwrap();
    // What is laid out elsewhere would come back at any time: here it is done in place.
    common::blocking::allow(|| runtime.block_on(live(seed)))
}

#[test]
fn simulated_worlds_lose_nothing_and_keep_no_garbage() {
    let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse::<u64>().ok());
    let seeds = match number("SR_ALBA_SEED") {
        Some(seed) => seed..seed + 1,
        None => 1..1 + number("SR_ALBA_SEEDS").unwrap_or(40),
    };
    let (many, mut sum) = (seeds.clone().count() >= 40, Seen::default());
    for seed in seeds {
        let lived = std::panic::catch_unwind(|| run(seed));
        let (seen, _) = lived.unwrap_or_else(|_| panic!("seed {seed}: SR_ALBA_SEED={seed} shows it again"));
        sum.puts += seen.puts;
        sum.gets += seen.gets;
        sum.unavailable += seen.unavailable;
        sum.conflicts += seen.conflicts;
        sum.collections += seen.collections;
        sum.lies += seen.lies;
        sum.lost_replies += seen.lost_replies;
        sum.full += seen.full;
    }
    println!("{sum:?}");
    if many {
        let each = [
            sum.puts,
            sum.gets,
            sum.unavailable,
            sum.conflicts,
            sum.collections,
            sum.lies,
            sum.lost_replies,
            sum.full,
        ];
        assert!(each.iter().all(|n| *n > 0), "something never happened: {sum:?}");
    }
}

#[test]
fn the_same_seed_is_the_same_world() {
    let digest = |(seen, now): (Seen, Duration)| format!("{seen:?} {now:?}");
    assert_eq!(digest(run(3)), digest(run(3)));
}
