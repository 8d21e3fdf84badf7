use super::*;
use crate::store::format::{IDENTITY, segment_name};
use bytes::Bytes;
use common::ErrorKind;
use common::osd::{Assert, KeyRange, Priority, Value};
use common::sim::{SimClock, SimDisk, SimDiskFaults, SimTable};

const SEGMENT: u64 = 64 << 10;
const LATE: Duration = Duration::MAX;

struct World {
    disk: SimDisk,
    table: Arc<SimTable>,
    clock: Arc<SimClock>,
    settings: Settings,
}

impl World {
    async fn new(segments: u64) -> (World, Store) {
        let settings = Settings {
            capacity: Some(segments * SEGMENT + (128 << 10)),
            table_reserve: 64 << 10,
            clean_rate: 1 << 30,
            scrub_rate: 0,
            open_files: 4,
        };
        let world = World {
            disk: SimDisk::new(),
            table: Arc::new(SimTable::new()),
            clock: Arc::new(SimClock::new(1)),
            settings,
        };
        Store::format(&world.disk, &*world.table, &*world.clock, SEGMENT).await.unwrap();
        let store = world.open().await.0;
        (world, store)
    }

    async fn open(&self) -> (Store, Found) {
        Store::open(self.settings, Arc::new(self.disk.process()), self.table.clone(), self.clock.clone())
            .await
            .unwrap()
    }

    /// The process dies; with `power`, what was not synced goes too.
    async fn again(&mut self, store: Store, power: bool) -> (Store, Found) {
        drop(store);
        if power {
            self.disk.crash(|| false);
        } else {
            self.disk.kill();
        }
        self.table = Arc::new(self.table.successor());
        if power {
            self.table.crash(|_| 0);
        }
        self.open().await
    }
}

fn bytes(seed: usize, len: usize) -> Bytes {
    (0..len)
        .map(|i| (i.wrapping_mul(31) ^ (i >> 8) ^ seed.wrapping_mul(131)) as u8)
        .collect::<Vec<_>>()
        .into()
}

async fn apply(store: &Store, changes: Changes) -> Result<()> {
    store.apply(Priority::Client, LATE, None, changes).await
}

async fn put(store: &Store, key: &str, value: Bytes) {
    apply(store, Changes::new().set(key.to_owned(), Value::new(value))).await.unwrap();
}

async fn has(store: &Store, key: &str, value: Option<Bytes>) {
    let found = store.get(key.as_bytes()).await.unwrap();
    assert_eq!(found.map(|v| v.bytes), value, "{key}");
}

async fn wait(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..10_000 {
        if holds().await {
            return;
        }
        SimClock::new(0).sleep(Duration::from_millis(1)).await;
    }
    panic!("{what} did not come about");
}

fn run(test: impl Future<Output = ()>) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    // In place: a thread of its own would make the order of things a matter of luck.
    common::blocking::allow(|| runtime.block_on(test));
}

#[test]
fn what_was_acknowledged_is_there_after_a_loss_of_power() {
    run(async {
        let (mut world, mut store) = World::new(20).await;
        let sizes = [0, 1, 4096, 4097, 8192, 30_000, 60 << 10];
        for (n, len) in sizes.iter().enumerate() {
            put(&store, &format!("k{n}"), bytes(n, *len)).await;
        }
        apply(&store, Changes::new().delete("k1")).await.unwrap();
        for power in [false, true] {
            let found;
            (store, found) = world.again(store, power).await;
            assert_eq!(found, Found::default());
            for (n, len) in sizes.iter().enumerate() {
                has(&store, &format!("k{n}"), (n != 1).then(|| bytes(n, *len))).await;
            }
            store.audit().unwrap();
        }
        assert_eq!(store.status().keys, 6);
    });
}

#[test]
fn asserts_hold_for_all_or_nothing_happens() {
    run(async {
        let (_world, store) = World::new(20).await;
        put(&store, "there", bytes(1, 10)).await;
        let value = || Value::new(bytes(2, 9000));
        let set = |assert| Changes::new().assert(assert).set("new", value()).delete("there");
        for assert in [
            Assert::Absent("there".into()),
            Assert::Present("new2".into()),
            Assert::Value("there".into(), bytes(2, 10)),
        ] {
            let error = apply(&store, set(assert)).await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::Conflict);
            has(&store, "new", None).await;
            has(&store, "there", Some(bytes(1, 10))).await;
        }
        let changes = set(Assert::Value("there".into(), bytes(1, 10))).assert(Assert::Absent("new".into()));
        apply(&store, changes.clone()).await.unwrap();
        // Asked again, it is done; by somebody who wants something else, it is not.
        apply(&store, changes.clone()).await.unwrap();
        let other = Changes { sets: vec![("new".into(), Value::new(bytes(3, 9000)))], ..changes.clone() };
        assert_eq!(apply(&store, other).await.unwrap_err().kind, ErrorKind::Conflict);
        // What is about another key holds for the repetition, too.
        let guarded = changes.assert(Assert::Present("guard".into()));
        assert!(apply(&store, guarded).await.unwrap_err().message().contains("'guard'"));
        store.audit().unwrap();
    });
}

#[test]
fn requests_that_come_together_share_their_syncs_and_see_each_other() {
    run(async {
        let (_world, store) = World::new(40).await;
        let before = store.status();
        let puts = (0..64).map(|n| {
            let changes = Changes::new().assert(Assert::Absent("one".into()));
            let changes = changes.set("one", Value::new(bytes(n, 10)));
            apply(&store, changes.set(format!("k{n}"), Value::new(bytes(n, 5000))))
        });
        let done = futures::future::join_all(puts).await;
        assert_eq!(done.iter().filter(|d| d.is_ok()).count(), 1, "one of them was the first");
        let counter = |s: &OsdStatus, name: &str| s.counters.iter().find(|(n, _)| n == name).unwrap().1;
        let after = store.status();
        assert!(counter(&after, "table_syncs") - counter(&before, "table_syncs") <= 2);
        assert!(counter(&after, "data_syncs") - counter(&before, "data_syncs") <= 2);
        assert_eq!(after.keys, 2);
    });
}

#[test]
fn a_part_is_read_by_the_blocks_that_it_touches_and_wrong_ones_are_named() {
    run(async {
        let (world, store) = World::new(20).await;
        let value = bytes(5, 30_000);
        put(&store, "k", value.clone()).await;
        put(&store, "small", bytes(1, 100)).await;
        for range in [0..30_000, 0..1, 4095..4097, 29_999..30_000, 8192..12_288, 100..100] {
            let part = store.get_range(b"k", range.clone()).await.unwrap().unwrap();
            assert_eq!(part, value.slice(range.start as usize..range.end as usize), "{range:?}");
        }
        assert_eq!(store.get_range(b"small", 10..20).await.unwrap().unwrap(), bytes(1, 100).slice(10..20));
        assert_eq!(store.get_range(b"none", 0..1).await.unwrap(), None);
        assert_eq!(store.get_range(b"k", 0..30_001).await.unwrap_err().kind, ErrorKind::Invalid);
        let (file, offset) = open::place_of(&store, b"k").unwrap();
        world.disk.flip_bit(&file, offset as usize + 5000, 3);
        store.get_range(b"k", 0..4096).await.unwrap();
        store.get_range(b"k", 8192..30_000).await.unwrap();
        for range in [0..30_000, 8191..8192, 4096..4097] {
            let error = store.get_range(b"k", range).await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::Corrupt);
            assert!(error.message().contains("'k'") && error.message().contains("4096 to 8192"), "{error}");
        }
        assert_eq!(store.status().damaged_keys, 1);
        let verified = store.verify(&KeyRange::all(), 100, LATE).await.unwrap();
        assert_eq!((verified.keys, verified.damaged.len(), verified.next), (2, 1, None));
        // Written anew, it is right again.
        put(&store, "k", value.clone()).await;
        has(&store, "k", Some(value)).await;
        assert_eq!(store.status().damaged_keys, 0);
    });
}

#[test]
fn keys_come_in_order_page_by_page() {
    run(async {
        let (_world, store) = World::new(20).await;
        for n in 0..30 {
            put(&store, &format!("a{n:02}"), bytes(n, 10 + n)).await;
        }
        put(&store, "b", bytes(0, 1)).await;
        let range = KeyRange::prefix(b"a");
        let (mut next, mut keys) = (Some(range.from.clone()), Vec::new());
        while let Some(from) = next {
            let page = store.range(&range.onward(from), 7).await.unwrap();
            assert!(page.keys.len() <= 7);
            keys.extend(page.keys);
            next = page.next;
        }
        assert_eq!(keys.len(), 30);
        for (n, info) in keys.iter().enumerate() {
            let value = Value::new(bytes(n, 10 + n));
            assert_eq!(
                (&info.key[..], info.len, info.crc),
                (format!("a{n:02}").as_bytes(), 10 + n as u64, value.crc)
            );
        }
    });
}

#[test]
fn a_full_disk_refuses_sets_takes_deletes_and_gives_their_space_back() {
    run(async {
        let (_world, store) = World::new(10).await;
        let mut n = 0;
        let full = loop {
            let changes = Changes::new().set(format!("k{n}"), Value::new(bytes(n, 20_000)));
            match apply(&store, changes).await {
                Ok(()) => n += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(full.kind, ErrorKind::NoSpace);
        assert!(store.status().space.full && n >= 20, "{n}: {:?}", store.status().space);
        // Small values fill the rest; a request that finds no room changes nothing.
        let both =
            Changes::new().set("small", Value::new(bytes(0, 10))).set("large", Value::new(bytes(0, 50_000)));
        assert_eq!(apply(&store, both).await.unwrap_err().kind, ErrorKind::NoSpace);
        has(&store, "small", None).await;
        store.audit().unwrap();
        for k in (0..n).step_by(2) {
            apply(&store, Changes::new().delete(format!("k{k}"))).await.unwrap();
        }
        wait("space", async || {
            let value = Value::new(bytes(77, 50_000));
            apply(&store, Changes::new().set("large", value)).await.is_ok()
        })
        .await;
        for k in 0..n {
            has(&store, &format!("k{k}"), (k % 2 == 1).then(|| bytes(k, 20_000))).await;
        }
        store.audit().unwrap();
        let space = store.status().space;
        assert_eq!(space.segments + space.table + space.reserved + space.free, space.capacity, "{space:?}");
        assert_eq!(space.live + space.dead + space.open + space.segments / SEGMENT * 4096, space.segments);
    });
}

#[test]
fn small_values_fill_the_table_and_no_further() {
    run(async {
        let (_world, store) = World::new(8).await;
        let mut n = 0;
        while apply(&store, Changes::new().set(format!("k{n}"), Value::new(bytes(n, 4096)))).await.is_ok() {
            n += 1;
            assert!(n < 1000);
        }
        assert!(n > 20, "{n}");
        apply(&store, Changes::new().delete("k3").delete("k4")).await.unwrap();
        put(&store, "again", bytes(1, 4096)).await;
        store.audit().unwrap();
    });
}

#[test]
fn what_was_deleted_is_given_back_and_what_lives_is_moved() {
    run(async {
        let (mut world, mut store) = World::new(40).await;
        for n in 0..60 {
            put(&store, &format!("k{n}"), bytes(n, 12_000)).await;
        }
        let files = || async { common::Disk::list(&world.disk).await.unwrap().len() };
        let before = files().await;
        for n in (0..60).filter(|n| n % 5 > 0) {
            apply(&store, Changes::new().delete(format!("k{n}"))).await.unwrap();
        }
        wait("fewer segments", async || files().await <= before / 2).await;
        let check = async |store: &Store| {
            for n in 0..60 {
                has(store, &format!("k{n}"), (n % 5 == 0).then(|| bytes(n, 12_000))).await;
            }
            store.audit().unwrap();
        };
        check(&store).await;
        (store, _) = world.again(store, true).await;
        check(&store).await;
    });
}

#[test]
fn after_a_failed_sync_it_reads_and_takes_nothing() {
    run(async {
        let (mut world, store) = World::new(20).await;
        put(&store, "old", bytes(1, 9000)).await;
        world.disk.set_faults(SimDiskFaults { failing_syncs: 1, ..SimDiskFaults::default() });
        let large = Changes::new().set("new", Value::new(bytes(2, 9000)));
        assert_eq!(apply(&store, large).await.unwrap_err().kind, ErrorKind::Unavailable);
        for _ in 0..2 {
            let small = Changes::new().set("small", Value::new(bytes(2, 10)));
            let error = apply(&store, small).await.unwrap_err();
            assert!(error.message().contains("simulated I/O error"), "{error}");
        }
        has(&store, "old", Some(bytes(1, 9000))).await;
        assert!(matches!(store.status().state, OsdState::ReadOnly(_)));
        let (store, found) = world.again(store, true).await;
        has(&store, "old", Some(bytes(1, 9000))).await;
        has(&store, "new", None).await;
        assert_eq!(found.missing, vec![]);
    });
}

#[test]
fn a_table_without_room_refuses_and_goes_on() {
    run(async {
        let (world, store) = World::new(20).await;
        world.table.fail_writes(1);
        let changes = || Changes::new().set("k", Value::new(bytes(2, 9000)));
        assert_eq!(apply(&store, changes()).await.unwrap_err().kind, ErrorKind::NoSpace);
        has(&store, "k", None).await;
        apply(&store, changes()).await.unwrap();
        has(&store, "k", Some(bytes(2, 9000))).await;
        store.audit().unwrap();
    });
}

#[test]
fn one_backend_has_the_disk() {
    run(async {
        let (mut world, store) = World::new(20).await;
        let (a, b) = (Some(BackendId(1)), Some(BackendId(2)));
        store.claim(None, a).await.unwrap();
        store.claim(None, a).await.unwrap();
        let error = store.claim(None, b).await.unwrap_err();
        assert!(
            error.kind == ErrorKind::Conflict && error.message().contains(&BackendId(1).to_string()),
            "{error}"
        );
        let put =
            |backend| store.apply(Priority::Client, LATE, backend, Changes::new().set("k", Value::new("v")));
        assert_eq!(put(b).await.unwrap_err().kind, ErrorKind::Denied);
        assert_eq!(put(None).await.unwrap_err().kind, ErrorKind::Denied);
        put(a).await.unwrap();
        let (store, _) = world.again(store, true).await;
        assert_eq!(store.status().claimed_by, a);
        store.claim(a, None).await.unwrap();
        store.claim(None, b).await.unwrap();
    });
}

#[test]
fn a_request_that_comes_too_late_is_not_done() {
    run(async {
        let (world, store) = World::new(20).await;
        world.clock.sleep(Duration::from_secs(5)).await;
        let changes = Changes::new().set("k", Value::new("v"));
        let late = store.apply(Priority::Client, Duration::from_secs(1), None, changes).await.unwrap_err();
        assert_eq!(late.kind, ErrorKind::Unavailable);
        has(&store, "k", None).await;
    });
}

#[test]
fn disk_and_table_belong_together_and_leftovers_go() {
    run(async {
        let (mut world, store) = World::new(20).await;
        put(&store, "k", bytes(1, 9000)).await;
        common::Disk::create(&world.disk, &segment_name(77), SEGMENT).await.unwrap();
        let (store, found) = world.again(store, false).await;
        assert_eq!(found.leftovers, 1);
        has(&store, "k", Some(bytes(1, 9000))).await;
        let busy = Store::format(&world.disk, &SimTable::new(), &*world.clock, SEGMENT).await.unwrap_err();
        assert_eq!(busy.kind, ErrorKind::Conflict);
        // A lost segment is told, its values are damaged by name, and can be deleted.
        let (file, _) = open::place_of(&store, b"k").unwrap();
        drop(store);
        common::Disk::remove(&world.disk, &file).await.unwrap();
        let (store, found) = world.open().await;
        assert_eq!(found.missing.len(), 1);
        let error = store.get(b"k").await.unwrap_err();
        assert!(error.kind == ErrorKind::Corrupt && error.message().contains("is missing"), "{error}");
        apply(&store, Changes::new().delete("k")).await.unwrap();
        has(&store, "k", None).await;
        drop(store);
        // The table of another disk.
        let other = SimDisk::new();
        Store::format(&other, &*world.table, &*world.clock, SEGMENT).await.unwrap();
        let disk = Arc::new(world.disk.process());
        let error =
            Store::open(world.settings, disk, world.table.clone(), world.clock.clone()).await.unwrap_err();
        assert!(
            error.kind == ErrorKind::Conflict && error.message().contains("the table that of"),
            "{error}"
        );
        let nothing = Arc::new(SimDisk::new());
        let error =
            Store::open(world.settings, nothing, world.table.clone(), world.clock.clone()).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::NotFound);
        let cut_off = SimDisk::new();
        common::Disk::create(&cut_off, IDENTITY, 4096).await.unwrap();
        Store::format(&cut_off, &SimTable::new(), &*world.clock, SEGMENT).await.unwrap();
    });
}

#[test]
fn the_scrub_finds_what_rots() {
    run(async {
        let (mut world, store) = World::new(40).await;
        for n in 0..40 {
            put(&store, &format!("k{n}"), bytes(n, 9000)).await;
        }
        world.settings.scrub_rate = 1 << 20;
        let (file, offset) = open::place_of(&store, b"k7").unwrap();
        world.disk.flip_bit(&file, offset as usize + 8191, 0);
        let (store, _) = world.again(store, false).await;
        while store.status().scrub.rounds == 0 {
            world.clock.sleep(Duration::from_millis(100)).await;
        }
        let status = store.status();
        assert_eq!((status.scrub.keys, status.damaged_keys), (40, 1));
        assert_eq!(&status.damaged[0].key[..], b"k7");
    });
}

/// A table whose syncs wait until they are let go.
struct Held {
    table: SimTable,
    armed: std::sync::atomic::AtomicBool,
    waiting: std::sync::atomic::AtomicBool,
    go: Mutex<std::sync::mpsc::Receiver<()>>,
}

impl Table for Held {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        self.table.get(key)
    }

    fn scan(&self, prefix: &[u8], from: &[u8], limit: usize) -> Result<Vec<(Vec<u8>, Bytes)>> {
        self.table.scan(prefix, from, limit)
    }

    fn write(&self, batch: common::table::Batch) -> Result<()> {
        self.table.write(batch)
    }

    fn delete_prefix(&self, prefix: &[u8]) -> Result<()> {
        self.table.delete_prefix(prefix)
    }

    fn checkpoint(&self) -> Result<()> {
        if self.armed.load(Ordering::SeqCst) {
            self.waiting.store(true, Ordering::SeqCst);
            let _ = self.go.lock().recv();
        }
        self.table.checkpoint()
    }
}

#[test]
fn what_is_not_durable_is_shown_to_nobody() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let (let_go, go) = std::sync::mpsc::channel();
        let (armed, waiting) = Default::default();
        let table = Arc::new(Held { table: SimTable::new(), armed, waiting, go: Mutex::new(go) });
        let clock: Arc<dyn Clock> = Arc::new(common::clock::SystemClock::new());
        let disk = Arc::new(SimDisk::new());
        Store::format(&*disk, &*table, &*clock, SEGMENT).await.unwrap();
        let settings = Settings {
            capacity: Some(20 * SEGMENT),
            table_reserve: 64 << 10,
            scrub_rate: 0,
            ..Settings::default()
        };
        let store = Arc::new(Store::open(settings, disk, table.clone(), clock.clone()).await.unwrap().0);
        put(&store, "other", bytes(0, 10)).await;
        table.armed.store(true, Ordering::SeqCst);
        let writer = store.clone();
        let written = tokio::spawn(async move { put(&writer, "k", bytes(1, 10)).await });
        while !table.waiting.load(Ordering::SeqCst) {
            clock.sleep(Duration::from_millis(1)).await;
        }
        // It is in the table, and nobody may know.
        has(&store, "other", Some(bytes(0, 10))).await;
        let everything = KeyRange::all();
        let reads = async { tokio::join!(store.get(b"k"), store.range(&everything, 10)) };
        tokio::pin!(reads);
        tokio::select! {
            biased;
            _ = &mut reads => panic!("what a loss of power would take was shown"),
            () = clock.sleep(Duration::from_millis(100)) => {}
        }
        table.armed.store(false, Ordering::SeqCst);
        let_go.send(()).unwrap();
        let (value, page) = reads.await;
        assert_eq!((value.unwrap().unwrap().bytes, page.unwrap().keys.len()), (bytes(1, 10), 2));
        written.await.unwrap();
    });
}
