mod races;

use super::*;
use crate::entry::Entry;
use common::ErrorKind;
use common::sim::{SimClock, SimDisk, SimDiskFaults};

pub(super) const V: VolumeId = VolumeId(7);

pub(super) fn entry(volume: VolumeId, epoch: u64, lsn: u64, len: usize) -> Entry {
    Entry {
        volume,
        epoch: Epoch(epoch),
        lsn: Lsn(lsn),
        kind: 1,
        flags: 0,
        addr: lsn,
        count: 1,
        crcs: smallvec::smallvec![lsn as u32],
        payload: vec![(lsn % 251) as u8; len].into(),
    }
}

fn incoming(key: Key, lsn: u64, len: usize) -> Incoming {
    let packed = entry(key.volume, key.epoch.0, lsn, len).pack();
    Incoming { key, head: crate::entry::head(&packed.bytes).unwrap(), packed }
}

fn clock() -> Arc<dyn Clock> {
    static SEED: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    Arc::new(SimClock::new(SEED.fetch_add(1, std::sync::atomic::Ordering::Relaxed)))
}

fn small() -> DiskSettings {
    let limits = Limits { capacity: 4 << 20, volume_bytes: 1 << 20, volumes: 64, logs_per_volume: 4 };
    DiskSettings { segment_size: 64 << 10, segments: 8, limits }
}

async fn disk_store(disk: &SimDisk) -> (Arc<Store>, Recovered) {
    Store::open(small(), Arc::new(disk.process()), clock()).await.unwrap()
}

async fn log(store: &Arc<Store>, volume: VolumeId, epoch: u64, base: u64) -> Key {
    let info = store.create(volume, Epoch(epoch), 1, Lsn(base)).await.unwrap();
    Key { volume, epoch: Epoch(epoch), incarnation: info.incarnation }
}

async fn fill(
    store: &Arc<Store>,
    key: Key,
    lsns: std::ops::RangeInclusive<u64>,
    len: usize,
) -> Vec<Result<Admission>> {
    let batch: Vec<Incoming> = lsns.map(|l| incoming(key, l, len)).collect();
    store.append(&batch).await
}

async fn takes(store: &Arc<Store>, key: Key, lsns: std::ops::RangeInclusive<u64>, len: usize) {
    for lsn in lsns {
        let mut verdict = fill(store, key, lsn..=lsn, len).await.remove(0).unwrap();
        if verdict == Admission::Full {
            store.tidy().await.unwrap();
            verdict = fill(store, key, lsn..=lsn, len).await.remove(0).unwrap();
        }
        assert_eq!(verdict, Admission::Take);
    }
}

async fn check(store: &Store, key: &Key, lsns: std::ops::RangeInclusive<u64>, len: usize) {
    let mut at = *lsns.start();
    while at <= *lsns.end() {
        let read = store.read(key, Lsn(at), 16 << 10).await.unwrap();
        assert!(!read.is_empty(), "it ends before {at}");
        for packed in read.into_iter().take((lsns.end() + 1 - at) as usize) {
            assert_eq!(packed.unpack().unwrap(), entry(key.volume, key.epoch.0, at, len));
            at += 1;
        }
    }
}

fn kind<T: std::fmt::Debug>(result: Result<T>) -> ErrorKind {
    result.unwrap_err().kind
}

fn info(store: &Store, key: &Key) -> LogInfo {
    store.resume(key).unwrap()
}

async fn both(test: impl AsyncFn(Arc<Store>)) {
    let limits = small().limits;
    test(Store::memory(limits, clock())).await;
    test(disk_store(&SimDisk::new()).await.0).await;
}

#[tokio::test(start_paused = true)]
async fn a_log_is_contiguous_and_takes_nothing_twice() {
    both(async |store| {
        let key = log(&store, V, 5, 100).await;
        takes(&store, key, 101..=105, 500).await;
        let again = fill(&store, key, 104..=107, 500).await;
        let kinds: Vec<Admission> = again.into_iter().map(Result::unwrap).collect();
        assert_eq!(kinds, [Admission::Have, Admission::Have, Admission::Take, Admission::Take]);
        assert_eq!(fill(&store, key, 109..=109, 500).await[0].clone().unwrap(), Admission::Gap);
        assert_eq!(kind(fill(&store, key, 104..=104, 501).await.remove(0)), ErrorKind::Corrupt);
        check(&store, &key, 101..=107, 500).await;
        store.trim(&key, Lsn(103)).unwrap();
        assert_eq!(kind(store.read(&key, Lsn(103), 1).await), ErrorKind::NotFound);
        check(&store, &key, 104..=107, 500).await;
        // What the backend has need not come.
        store.trim(&key, Lsn(200)).unwrap();
        takes(&store, key, 201..=202, 500).await;
        assert_eq!((info(&store, &key).base, info(&store, &key).last), (Lsn(200), Lsn(202)));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_sealed_epoch_is_refused_for_ever_and_stays_readable() {
    both(async |store| {
        let key = log(&store, V, 5, 0).await;
        takes(&store, key, 1..=3, 100).await;
        let logs = store.seal(V, Epoch(6)).await.unwrap();
        assert!(logs[0].sealed && logs[0].last == Lsn(3) && !logs[0].suspect);
        assert_eq!(kind(fill(&store, key, 4..=4, 100).await.remove(0)), ErrorKind::Fenced);
        assert_eq!(kind(store.resume(&key)), ErrorKind::Fenced);
        assert_eq!(kind(store.create(V, Epoch(5), 9, Lsn(0)).await), ErrorKind::Fenced);
        assert_eq!(kind(store.vouch(&key, Lsn(3))), ErrorKind::Fenced);
        check(&store, &key, 1..=3, 100).await;
        let next = log(&store, V, 7, 3).await;
        takes(&store, next, 4..=4, 100).await;
        assert_eq!(kind(store.create(V, Epoch(6), 9, Lsn(0)).await), ErrorKind::Fenced, "a newer one came");
        assert_eq!(kind(store.forget(V, Epoch(8))), ErrorKind::Conflict, "the open log is in use");
        store.forget(V, Epoch(7)).unwrap();
        assert_eq!(store.status(V).1.len(), 1);
        assert_eq!(kind(store.create(V, Epoch(5), 9, Lsn(0)).await), ErrorKind::Fenced);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_delayed_request_never_replaces_a_log_in_use() {
    both(async |store| {
        let first = store.create(V, Epoch(5), 1, Lsn(0)).await.unwrap();
        assert_eq!(store.create(V, Epoch(5), 1, Lsn(0)).await.unwrap().incarnation, first.incarnation);
        let second = store.create(V, Epoch(5), 2, Lsn(0)).await.unwrap();
        assert_ne!(second.incarnation, first.incarnation);
        assert_eq!(kind(store.create(V, Epoch(5), 1, Lsn(0)).await), ErrorKind::Conflict);
        let old = Key { volume: V, epoch: Epoch(5), incarnation: first.incarnation };
        assert_eq!(kind(store.resume(&old)), ErrorKind::NotFound);
        assert_eq!(kind(fill(&store, old, 1..=1, 10).await.remove(0)), ErrorKind::NotFound);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_volume_at_its_bound_is_told_and_others_go_on() {
    both(async |store| {
        let (a, b) = (log(&store, V, 5, 0).await, log(&store, VolumeId(8), 5, 0).await);
        let mut last = 0;
        loop {
            let verdict = fill(&store, a, last + 1..=last + 1, 20_000).await.remove(0).unwrap();
            if verdict == Admission::Full {
                break;
            }
            last += 1;
            assert!(last < 1000);
        }
        assert!(!store.has_room(V) || store.bytes() < 1 << 20, "{}", store.bytes());
        assert!(store.bytes() <= small().limits.capacity);
        takes(&store, b, 1..=3, 100).await;
        store.trim(&a, Lsn(last)).unwrap();
        tokio::task::yield_now().await;
        store.tidy().await.unwrap();
        assert!(store.has_room(V));
        takes(&store, a, last + 1..=last + 1, 20_000).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn disk_logs_survive_a_restart_and_are_suspect_until_vouched_for() {
    let disk = SimDisk::new();
    let (store, _) = disk_store(&disk).await;
    let key = log(&store, V, 5, 0).await;
    let sealed = log(&store, VolumeId(8), 5, 10).await;
    takes(&store, key, 1..=40, 3000).await;
    takes(&store, sealed, 11..=12, 100).await;
    store.seal(VolumeId(8), Epoch(6)).await.unwrap();
    disk.kill();
    let (store, found) = disk_store(&disk).await;
    assert_eq!((found.volumes, found.logs, found.entries, found.damage.len()), (2, 2, 42, 0));
    assert!(info(&store, &key).suspect && info(&store, &key).last == Lsn(40));
    assert!(!store.status(VolumeId(8)).1[0].suspect, "sealed whole, found whole");
    assert_eq!(kind(store.create(VolumeId(8), Epoch(5), 9, Lsn(0)).await), ErrorKind::Fenced);
    assert_eq!(kind(store.vouch(&key, Lsn(41))), ErrorKind::Invalid);
    takes(&store, key, 41..=41, 3000).await;
    store.vouch(&key, Lsn(41)).unwrap();
    assert!(!info(&store, &key).suspect);
    check(&store, &key, 1..=41, 3000).await;
    check(&store, &sealed, 11..=12, 100).await;
}

#[tokio::test(start_paused = true)]
async fn after_a_power_cut_what_was_flushed_is_there_and_a_prefix() {
    for seed in 0..200 {
        let mut random = fastrand::Rng::with_seed(seed);
        let disk = SimDisk::new();
        let (store, _) = disk_store(&disk).await;
        let key = log(&store, V, 5, 0).await;
        let n = random.u64(1..30);
        takes(&store, key, 1..=n, 700).await;
        assert_eq!(store.flush(&key).await.unwrap(), Lsn(n));
        for i in 1..random.u64(2..20) {
            takes(&store, key, n + i..=n + i, 900).await;
        }
        disk.crash(|| random.bool());
        let (store, found) = disk_store(&disk).await;
        assert!(found.damage.is_empty(), "seed {seed}: {found:?}");
        let after = info(&store, &key);
        assert!(after.last >= Lsn(n) && after.suspect, "seed {seed}: {after:?} of {n}");
        check(&store, &key, 1..=n, 700).await;
        if after.last > Lsn(n) {
            check(&store, &key, n + 1..=after.last.0, 900).await;
        }
        // The owner sends the rest again.
        takes(&store, key, after.last.0 + 1..=after.last.0 + 3, 900).await;
        check(&store, &key, n + 1..=after.last.0 + 3, 900).await;
    }
}

#[tokio::test(start_paused = true)]
async fn damage_below_what_was_durable_is_named_and_never_written_on() {
    let disk = SimDisk::new();
    let (store, _) = disk_store(&disk).await;
    let key = log(&store, V, 5, 0).await;
    takes(&store, key, 1..=3, 5000).await;
    store.flush(&key).await.unwrap();
    takes(&store, key, 4..=6, 5000).await;
    store.flush(&key).await.unwrap();
    takes(&store, key, 7..=7, 100).await;
    disk.kill();
    let files = disk.list().await.unwrap();
    // Somewhere in the second entry's payload, wherever that lies.
    disk.flip_bit(&files[1], 4096 + 512 * 3 + 7000, 3);
    disk.flip_bit(&files[0], 4096 + 512 * 3 + 7000, 3);
    let (store, found) = disk_store(&disk).await;
    assert_eq!(found.damage.len(), 1, "{found:?}");
    let log = store.status(V).1[0];
    assert!(log.damaged && log.last < Lsn(6), "{log:?}");
    assert_eq!(kind(store.resume(&key)), ErrorKind::NotFound);
    assert_eq!(kind(fill(&store, key, 8..=8, 100).await.remove(0)), ErrorKind::NotFound);
    let again = store.create(V, Epoch(5), 2, Lsn(0)).await.unwrap();
    assert!(again.incarnation != key.incarnation && !again.damaged);
}

#[tokio::test(start_paused = true)]
async fn a_slow_volume_keeps_no_segment_for_itself() {
    let disk = SimDisk::new();
    let (store, _) = disk_store(&disk).await;
    let (slow, fast) = (log(&store, V, 5, 0).await, log(&store, VolumeId(8), 5, 0).await);
    let mut sent = 0;
    for round in 1..200u64 {
        if round <= 40 {
            takes(&store, slow, round..=round, 300).await;
        }
        for _ in 0..8 {
            sent += 1;
            let mut tries = 0;
            while fill(&store, fast, sent..=sent, 4096).await[0].clone().unwrap() == Admission::Full {
                store.tidy().await.unwrap();
                tries += 1;
                assert!(tries < 5, "it goes on by itself, round {round}");
            }
        }
        store.trim(&fast, Lsn(sent - 2)).unwrap();
    }
    assert!(disk.list().await.unwrap().len() <= 8);
    check(&store, &slow, 1..=40, 300).await;
    disk.crash(|| false);
    let (store, found) = disk_store(&disk).await;
    assert!(found.damage.is_empty(), "{found:?}");
    check(&store, &slow, 1..=40, 300).await;
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_can_be_opened_sealed_trimmed_and_used_again() {
    let disk = SimDisk::new();
    let limits = Limits { capacity: 64 << 20, volume_bytes: 64 << 20, ..small().limits };
    let settings = DiskSettings { limits, ..small() };
    let open = async || Store::open(settings, Arc::new(disk.process()), clock()).await.unwrap().0;
    let store = open().await;
    let mut key = log(&store, V, 5, 0).await;
    let mut last = 0;
    while fill(&store, key, last + 1..=last + 1, 9000).await[0].clone().unwrap() == Admission::Take
        || last < 30
    {
        store.tidy().await.unwrap();
        last = info(&store, &key).last.0;
    }
    for epoch in 6..9 {
        disk.crash(|| true);
        let store = open().await;
        store.seal(V, Epoch(epoch)).await.unwrap();
        check(&store, &key, 1..=last, 9000).await;
    }
    disk.kill();
    let store = open().await;
    store.trim(&key, Lsn(last)).unwrap();
    store.tidy().await.unwrap();
    assert!(disk.list().await.unwrap().len() <= settings.segments);
    key = log(&store, V, 9, last).await;
    takes(&store, key, last + 1..=last + 20, 9000).await;
}

#[tokio::test(start_paused = true)]
async fn a_segment_is_freed_only_when_its_trim_is_durable() {
    let disk = SimDisk::new();
    let (store, _) = disk_store(&disk).await;
    let key = log(&store, V, 5, 0).await;
    takes(&store, key, 1..=30, 8000).await;
    store.flush(&key).await.unwrap();
    disk.kill();
    let (store, _) = disk_store(&disk).await;
    let before = disk.list().await.unwrap().len();
    store.trim(&key, Lsn(20)).unwrap();
    store.tidy().await.unwrap();
    assert!(disk.list().await.unwrap().len() < before, "something was freed");
    disk.crash(|| false);
    let (store, found) = disk_store(&disk).await;
    assert!(found.damage.is_empty(), "{found:?}");
    assert_eq!(info(&store, &key).last, Lsn(30));
    check(&store, &key, 21..=30, 8000).await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_sync_is_the_end_until_the_next_start() {
    let disk = SimDisk::new();
    let (store, _) = disk_store(&disk).await;
    let key = log(&store, V, 5, 0).await;
    takes(&store, key, 1..=3, 100).await;
    disk.set_faults(SimDiskFaults { failing_syncs: 1, ..Default::default() });
    assert!(store.flush(&key).await.is_err());
    assert!(store.flush(&key).await.is_err(), "a second try proves nothing");
    assert!(fill(&store, key, 4..=4, 100).await[0].is_err());
    assert!(store.seal(V, Epoch(9)).await.is_err());
    assert!(store.resume(&key).is_err());
}

#[tokio::test(start_paused = true)]
async fn a_store_of_which_nobody_wants_anything_takes_no_room() {
    let disk = SimDisk::new();
    let files = async || disk.list().await.unwrap().len();
    for _ in 0..3 {
        let (store, _) = disk_store(&disk).await;
        store.tidy().await.unwrap();
        assert_eq!(files().await, 0, "before anybody came");
        disk.kill();
    }
    let (store, _) = disk_store(&disk).await;
    let key = log(&store, V, 5, 0).await;
    assert!(files().await > 0);
    takes(&store, key, 1..=3, 500).await;
    disk.kill();
    drop(store);
    // What is kept has a place to be sealed in.
    let (store, found) = disk_store(&disk).await;
    assert_eq!((found.logs, found.entries), (1, 3));
    store.seal(V, Epoch(9)).await.unwrap();
    store.forget(V, Epoch(u64::MAX)).unwrap();
    // It is written down with what comes next.
    let other = log(&store, VolumeId(8), 1, 0).await;
    store.seal(other.volume, Epoch(2)).await.unwrap();
    store.forget(other.volume, Epoch(u64::MAX)).unwrap();
    log(&store, VolumeId(9), 1, 0).await;
    assert!(files().await > 0);
    disk.kill();
    drop(store);
    let (store, found) = disk_store(&disk).await;
    assert_eq!(found.volumes, 1, "what was forgotten stays so");
    // A seal of what it never had is kept, too.
    drop(store);
    let disk = SimDisk::new();
    let (store, _) = disk_store(&disk).await;
    store.seal(V, Epoch(9)).await.unwrap();
    disk.crash(|| false);
    drop(store);
    let (store, found) = disk_store(&disk).await;
    assert_eq!((found.volumes, store.status(V).0), (1, Epoch(9)));
    assert_eq!(kind(store.create(V, Epoch(8), 1, Lsn(0)).await), ErrorKind::Fenced);
}

#[tokio::test(start_paused = true)]
async fn a_disk_without_room_refuses_who_comes_and_takes_them_when_there_is_some() {
    let disk = SimDisk::new();
    disk.set_faults(SimDiskFaults { full: true, ..Default::default() });
    let (store, _) = disk_store(&disk).await;
    assert_eq!(kind(store.create(V, Epoch(5), 1, Lsn(0)).await), ErrorKind::NoSpace);
    disk.set_faults(SimDiskFaults::default());
    let key = log(&store, V, 5, 0).await;
    takes(&store, key, 1..=3, 500).await;
}

#[tokio::test(start_paused = true)]
async fn a_thousand_quiet_volumes_are_a_few_files() {
    let disk = SimDisk::new();
    let limits = Limits { volumes: 2000, ..Limits::default() };
    let settings = DiskSettings { segment_size: 4 << 20, segments: 8, limits };
    let (store, _) = Store::open(settings, Arc::new(disk.process()), clock()).await.unwrap();
    let mut keys = Vec::new();
    for v in 0..1000 {
        let key = log(&store, VolumeId(v), 5, 0).await;
        takes(&store, key, 1..=1, 512).await;
        keys.push(key);
    }
    for key in &keys {
        store.flush(key).await.unwrap();
    }
    disk.crash(|| false);
    let (store, found) = Store::open(settings, Arc::new(disk.process()), clock()).await.unwrap();
    assert_eq!((found.logs, found.entries), (1000, 1000));
    assert!(disk.list().await.unwrap().len() <= 8);
    check(&store, &keys[999], 1..=1, 512).await;
}

proptest::proptest! {
    #[test]
    fn hostile_bytes_on_disk_are_no_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..800)) {
        fuzz(&bytes);
    }
}

#[tokio::test(start_paused = true)]
async fn recovery_of_flipped_bits_never_panics_nor_invents() {
    let disk = SimDisk::new();
    let (store, _) = disk_store(&disk).await;
    let key = log(&store, V, 5, 0).await;
    for i in 0..20 {
        takes(&store, key, i * 3 + 1..=i * 3 + 3, 200).await;
    }
    store.seal(VolumeId(9), Epoch(3)).await.unwrap();
    disk.kill();
    drop(store);
    let mut random = fastrand::Rng::with_seed(3);
    for _ in 0..60 {
        let files = disk.list().await.unwrap();
        let file = &files[random.usize(..files.len())];
        disk.flip_bit(file, random.usize(..40 << 10), random.u8(..8));
        let Ok((store, _)) = Store::open(small(), Arc::new(disk.process()), clock()).await else { continue };
        for log in store.status(V).1 {
            let key = Key { volume: V, epoch: log.epoch, incarnation: log.incarnation };
            if log.last > log.base {
                check(&store, &key, log.base.0 + 1..=log.last.0, 200).await;
            }
        }
        disk.kill();
    }
}
