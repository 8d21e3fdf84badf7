use super::flights::Part;
use super::*;
use common::Epoch;
use common::sim::{SimClock, SimDisk};
use std::time::Duration;

const CLUSTER: u32 = 4096;
const SCO: ScoId = ScoId { epoch: Epoch(1), number: 1 };

fn key(volume: u128, slot: u32) -> Key {
    Key { volume: VolumeId(volume), sco: SCO, slot }
}

fn content(slot: u32) -> Bytes {
    vec![slot as u8; CLUSTER as usize].into()
}

fn insert(cache: &ReadCache, key: Key, origin: Origin) {
    cache.insert(key, &content(key.slot), true, origin);
}

async fn hybrid(clock: &Arc<SimClock>, disk: &SimDisk) -> ReadCache {
    let mut cache = ReadCache::new(1 << 20, Counters::default());
    cache.add_ssd(4 << 20, 0, Arc::new(disk.process()), clock.clone()).await;
    cache
}

async fn ssd_has(cache: &ReadCache, clock: &SimClock, key: Key) -> bool {
    clock.sleep(Duration::from_millis(100)).await;
    !cache.read_ssd(key.volume, key.sco, key.slot..key.slot + 1, CLUSTER).await.is_empty()
}

#[tokio::test(start_paused = true)]
async fn what_is_used_a_second_time_goes_to_the_ssd_and_a_scan_leaves_nothing_there() {
    let (clock, disk) = (Arc::new(SimClock::new(1)), SimDisk::new());
    let cache = hybrid(&clock, &disk).await;
    insert(&cache, key(1, 0), Origin::Used);
    assert!(!ssd_has(&cache, &clock, key(1, 0)).await, "used once");
    assert_eq!(cache.get(&key(1, 0)), Some(content(0)));
    assert!(ssd_has(&cache, &clock, key(1, 0)).await, "used in memory again");
    insert(&cache, key(1, 1), Origin::Ahead);
    cache.get(&key(1, 1));
    assert!(!ssd_has(&cache, &clock, key(1, 1)).await, "read ahead, and used once");
    cache.get(&key(1, 1));
    assert!(ssd_has(&cache, &clock, key(1, 1)).await);
    insert(&cache, key(1, 2), Origin::Used);
    insert(&cache, key(1, 2), Origin::Used);
    assert!(ssd_has(&cache, &clock, key(1, 2)).await, "fetched a second time");
    for slot in 1000..3000 {
        insert(&cache, key(1, slot), Origin::Ahead);
        cache.get(&key(1, slot));
    }
    clock.sleep(Duration::from_secs(2)).await;
    assert_eq!(cache.counters.ssd_clusters.get(), 3, "a scan");
    assert!(cache.memory_bytes() <= 1 << 20);
}

#[tokio::test(start_paused = true)]
async fn in_memory_a_quota_holds_at_once_and_at_any_time() {
    let (clock, disk) = (Arc::new(SimClock::new(1)), SimDisk::new());
    for with_ssd in [false, true] {
        let memory = || ReadCache::new(1 << 20, Counters::default());
        let cache = if with_ssd { hybrid(&clock, &disk).await } else { memory() };
        let limit = if with_ssd { 64 << 10 } else { 128 << 10 };
        for slot in 0..100 {
            insert(&cache, key(1, slot), Origin::Used);
            insert(&cache, key(2, slot), Origin::Used);
        }
        let other = cache.usage(VolumeId(2)).memory_bytes;
        assert!(cache.usage(VolumeId(1)).memory_bytes > 300 << 10);
        cache.set_quota(VolumeId(1), Some(128 << 10));
        assert!(cache.usage(VolumeId(1)).memory_bytes <= limit);
        assert_eq!(cache.usage(VolumeId(2)).memory_bytes, other, "another's stay");
        for slot in 200..1000 {
            insert(&cache, key(1, slot), Origin::Used);
            assert!(cache.usage(VolumeId(1)).memory_bytes <= limit, "slot {slot}");
            assert_eq!(cache.peek(&key(1, slot)), Some(content(slot)), "what is new is there");
        }
        assert_eq!(cache.usage(VolumeId(1)).quota, Some(128 << 10));
        cache.set_quota(VolumeId(1), None);
        for slot in 0..100 {
            insert(&cache, key(1, slot), Origin::Used);
        }
        assert!(cache.usage(VolumeId(1)).memory_bytes > limit);
        // What is forgotten is not counted any more.
        drop(cache);
    }
}

fn own(part: Part<'_>) -> flights::Own<'_> {
    match part {
        Part::Own(own) => own,
        _ => panic!("somebody else has it"),
    }
}

#[tokio::test]
async fn who_wants_what_is_being_read_waits_for_it() {
    let flights = Flights::default();
    let none = |_: u32| None;
    let mut first = flights.split(VolumeId(1), SCO, 10..20, none);
    let first = own(first.pop().unwrap());
    assert_eq!(first.slots, 10..20);
    // Before, within and behind it; the cluster in slot 22 is in memory.
    let here = |slot| (slot == 22).then(|| content(22));
    let mut second = flights.split(VolumeId(1), SCO, 5..25, here);
    assert!(matches!(&second[3], Part::Here { slot: 22, .. }));
    let slots: Vec<_> = second
        .iter()
        .map(|part| match part {
            Part::Own(own) => (true, own.slots.clone()),
            Part::Joined(join) => (false, join.slots.clone()),
            Part::Here { slot, .. } => (false, *slot..slot + 1),
        })
        .collect();
    assert_eq!(slots, [(true, 5..10), (false, 10..20), (true, 20..22), (false, 22..23), (true, 23..25)]);
    assert_eq!(flights.len(), 4);
    // Another SCO is another thing.
    let other = ScoId { number: 2, ..SCO };
    drop(own(flights.split(VolumeId(1), other, 10..20, none).pop().unwrap()));
    let data: Bytes = (10..20).flat_map(|slot| content(slot).to_vec()).collect::<Vec<u8>>().into();
    first.land(data.clone());
    let Part::Joined(join) = second.remove(1) else { panic!("it was being read") };
    assert_eq!(join.wait(CLUSTER).await, Some(data));
    drop(second);
    assert_eq!(flights.len(), 0, "nothing is left of them");
}

#[tokio::test]
async fn who_waits_for_a_read_that_is_called_off_learns_it() {
    let flights = Flights::default();
    let first = flights.split(VolumeId(1), SCO, 0..4, |_| None);
    let Some(Part::Joined(join)) = flights.split(VolumeId(1), SCO, 2..3, |_| None).pop() else {
        panic!("it is being read")
    };
    drop(first);
    assert_eq!(join.wait(CLUSTER).await, None);
    assert_eq!(flights.len(), 0);
}
