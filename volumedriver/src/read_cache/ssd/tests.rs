use super::*;
use crate::format::sco::ScoId;
use crate::read_cache::memory::Origin;
use common::sim::{SimClock, SimDisk, SimDiskFaults};
use common::{Epoch, VolumeId};
use prometheus_client::registry::Registry;
use std::collections::BTreeMap;

const CLUSTER: u32 = 4096;
const MIB: u64 = 1 << 20;

fn key(volume: u128, slot: u32) -> Key {
    Key { volume: VolumeId(volume), sco: ScoId { epoch: Epoch(3), number: 7 }, slot }
}

/// The only right content of a cluster.
fn content(key: &Key) -> Bytes {
    let mut random = fastrand::Rng::with_seed(u64::from(key.slot) << 8 | key.volume.0 as u64);
    (0..CLUSTER).map(|_| random.u8(..)).collect::<Vec<u8>>().into()
}

struct World {
    disk: SimDisk,
    clock: Arc<SimClock>,
    memory: Arc<Memory>,
    usages: Arc<Usages>,
    counters: Counters,
    bytes: u64,
}

impl World {
    fn new(bytes: u64) -> World {
        World {
            disk: SimDisk::new(),
            clock: Arc::new(SimClock::new(5)),
            memory: Arc::new(Memory::new(64 << 10)),
            usages: Arc::default(),
            counters: Counters::new(&mut Registry::default()),
            bytes,
        }
    }

    async fn start(&mut self) -> Arc<Ssd> {
        self.usages = Arc::default();
        self.counters = Counters::new(&mut Registry::default());
        let size = Size { bytes: self.bytes, reserve: 0 };
        let disk = Arc::new(self.disk.process());
        let (memory, usages) = (self.memory.clone(), self.usages.clone());
        let ssd = Ssd::start(size, disk, self.clock.clone(), memory, usages, self.counters.clone());
        self.pass(100).await;
        ssd
    }

    async fn pass(&self, millis: u64) {
        self.clock.sleep(Duration::from_millis(millis)).await;
    }

    /// Offers a cluster and lets it be written.
    async fn write(&self, ssd: &Ssd, key: Key) -> bool {
        let offered = ssd.offer(key, &content(&key));
        self.pass(50).await;
        offered
    }

    /// What the disk is asked for at most, in bytes.
    async fn on_disk(&self) -> u64 {
        let mut sum = 0;
        for name in self.disk.list().await.unwrap() {
            sum += self.disk.open(&name).await.unwrap().len();
        }
        sum
    }
}

/// Reads as a caller does: what has not the right content is wrong, and reported.
async fn read(ssd: &Ssd, key: Key) -> Option<bool> {
    let (found, data) = ssd.read(std::iter::once(key), CLUSTER).await.pop()?;
    assert_eq!(found, key);
    let right = data == content(&key);
    if !right {
        ssd.wrong(&key);
        assert!(!ssd.contains(&key), "what was wrong is forgotten");
    }
    Some(right)
}

#[tokio::test(start_paused = true)]
async fn a_restart_finds_what_was_there_and_a_kill_loses_what_was_just_written_at_most() {
    let mut world = World::new(MIB);
    let ssd = world.start().await;
    for slot in 0..100 {
        assert!(world.write(&ssd, key(1, slot)).await);
    }
    for slot in 0..100 {
        assert_eq!(read(&ssd, key(1, slot)).await, Some(true), "slot {slot}");
    }
    // Of what was written last the index is not on disk yet.
    ssd.abandon();
    world.disk.kill();
    let ssd = world.start().await;
    let mut lost = Vec::new();
    for slot in 0..100 {
        match read(&ssd, key(1, slot)).await {
            Some(right) => assert!(right, "slot {slot}"),
            None => lost.push(slot),
        }
    }
    assert!(lost.len() < 31 && lost.iter().all(|slot| *slot > 69), "more than a segment: {lost:?}");
    let used = world.usages.of(VolumeId(1)).ssd();
    assert_eq!(used, (100 - lost.len() as u64) * u64::from(64 + CLUSTER));
    // After a quiet second, or a stop, nothing is.
    world.write(&ssd, key(1, 200)).await;
    world.pass(1500).await;
    ssd.abandon();
    world.disk.kill();
    let ssd = world.start().await;
    assert_eq!(read(&ssd, key(1, 200)).await, Some(true));
    ssd.offer(key(1, 201), &content(&key(1, 201)));
    ssd.close().await;
    world.disk.kill();
    let ssd = world.start().await;
    assert_eq!(read(&ssd, key(1, 201)).await, Some(true));
    // Another size: what does not fit is removed.
    ssd.close().await;
    world.disk.kill();
    world.bytes = 4 * MIB;
    let ssd = world.start().await;
    assert_eq!(read(&ssd, key(1, 201)).await, None);
    assert_eq!(world.on_disk().await, 0);
    assert_eq!(ssd.problem(), None);
}

#[tokio::test(start_paused = true)]
async fn it_takes_no_more_room_than_it_may_and_keeps_what_is_read() {
    let mut world = World::new(MIB);
    let ssd = world.start().await;
    for slot in 0..3000 {
        world.write(&ssd, key(2, slot)).await;
        if slot >= 10 {
            for hot in 0..10 {
                assert_eq!(read(&ssd, key(2, hot)).await, Some(true), "{hot} of those in use, after {slot}");
            }
        }
        if slot % 500 == 0 {
            assert!(world.on_disk().await <= MIB);
            assert!(ssd.places.len() as u64 <= MIB / 4160);
            assert!(world.usages.of(VolumeId(2)).ssd() <= MIB);
        }
    }
    assert_eq!(read(&ssd, key(2, 100)).await, None, "what nobody reads goes");
    assert_eq!(world.counters.ssd_wrong.get(), 0);
    assert!(world.counters.ssd_evicted.get() > 2500);
}

#[tokio::test(start_paused = true)]
async fn a_volume_takes_no_more_than_its_quota() {
    let mut world = World::new(4 * MIB);
    let ssd = world.start().await;
    let usage = world.usages.of(VolumeId(1));
    usage.set_quota(Some(512 << 10));
    for slot in 0..500 {
        // Many in one write.
        ssd.offer(key(1, slot), &content(&key(1, slot)));
        if slot % 50 == 0 {
            world.pass(50).await;
            assert!(usage.ssd() <= 256 << 10, "{}", usage.ssd());
        }
        world.write(&ssd, key(2, slot)).await;
    }
    assert!(usage.ssd() > 200 << 10, "{}", usage.ssd());
    assert!(world.usages.of(VolumeId(2)).ssd() > 1 << 20);
    usage.set_quota(None);
    assert!(world.write(&ssd, key(1, 1000)).await);
    assert_eq!(read(&ssd, key(1, 1000)).await, Some(true));
}

#[tokio::test(start_paused = true)]
async fn a_device_that_fails_is_left_alone() {
    let mut world = World::new(MIB);
    let ssd = world.start().await;
    for slot in 0..40 {
        world.write(&ssd, key(1, slot)).await;
    }
    world.disk.set_faults(SimDiskFaults { failing_writes: 1, ..SimDiskFaults::default() });
    world.write(&ssd, key(1, 100)).await;
    assert!(ssd.problem().unwrap().contains("I/O error"));
    assert_eq!(read(&ssd, key(1, 0)).await, None);
    assert!(ssd.offer(key(1, 101), &content(&key(1, 101))), "nothing is to be offered again");
    assert_eq!((world.usages.of(VolumeId(1)).ssd(), world.counters.ssd_errors.get()), (0, 1));
    world.disk.set_faults(SimDiskFaults::default());
    world.disk.kill();
    let ssd = world.start().await;
    assert_eq!(read(&ssd, key(1, 0)).await, Some(true), "until the next start");
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_is_left_to_others() {
    let mut world = World::new(MIB);
    let ssd = world.start().await;
    for slot in 0..40 {
        world.write(&ssd, key(1, slot)).await;
    }
    let before = world.on_disk().await;
    world.disk.set_faults(SimDiskFaults { full: true, ..SimDiskFaults::default() });
    for slot in 40..200 {
        world.write(&ssd, key(1, slot)).await;
    }
    assert!(world.on_disk().await <= before);
    assert_eq!(ssd.problem(), None);
    assert_eq!(read(&ssd, key(1, 199)).await, Some(true), "in the files that it has");
    world.bytes = 64 * MIB;
    let size = Size { bytes: 64 * MIB, reserve: 1 << 41 };
    let (disk, memory, usages) = (SimDisk::new(), world.memory.clone(), world.usages.clone());
    let counters = world.counters.clone();
    let none = Ssd::start(size, Arc::new(disk.process()), world.clock.clone(), memory, usages, counters);
    world.write(&none, key(9, 1)).await;
    assert!(disk.list().await.unwrap().is_empty(), "others may need all that there is");
    assert_eq!((read(&none, key(9, 1)).await, none.problem()), (None, None));
}

#[tokio::test(start_paused = true)]
async fn clusters_that_were_written_together_are_read_together() {
    let mut world = World::new(8 * MIB);
    let ssd = world.start().await;
    for slot in 0..64 {
        ssd.offer(key(1, slot), &content(&key(1, slot)));
    }
    world.pass(100).await;
    let all = ssd.read((0..70).map(|slot| key(1, slot)), CLUSTER).await;
    assert_eq!(all.len(), 64);
    assert!(all.iter().all(|(key, data)| *data == content(key)));
    assert!(ssd.read((0..70).map(|slot| key(1, slot)), 8192).await.is_empty(), "of another length");
}

#[tokio::test(start_paused = true)]
async fn whatever_happens_to_the_disk_wrong_content_is_never_taken_for_right() {
    for seed in 0..60 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut world = World::new(MIB + random.u64(0..2 * MIB));
        let mut ssd = world.start().await;
        let mut flipped = false;
        let mut offered: BTreeMap<Key, ()> = BTreeMap::new();
        for _ in 0..400 {
            let k = key(u128::from(random.u8(1..4)), random.u32(0..300));
            match random.u32(0..100) {
                0..50 => {
                    ssd.offer(k, &content(&k));
                    offered.insert(k, ());
                    if random.bool() {
                        world.pass(random.u64(0..60)).await;
                    }
                }
                50..90 => {
                    if let Some(right) = read(&ssd, k).await {
                        assert!(offered.contains_key(&k) && (right || flipped), "seed {seed}: {k:?}");
                    }
                }
                90..94 => {
                    if let Some(name) = random.choice(world.disk.list().await.unwrap()) {
                        let len = world.disk.open(&name).await.unwrap().len() as usize;
                        world.disk.flip_bit(&name, random.usize(0..len), random.u8(0..8));
                        flipped = true;
                    }
                }
                94..97 => world.pass(2000).await,
                97 => {
                    ssd.close().await;
                    world.disk.kill();
                    ssd = world.start().await;
                }
                98 => {
                    ssd.abandon();
                    world.disk.kill();
                    ssd = world.start().await;
                }
                _ => {
                    ssd.abandon();
                    world.disk.crash(|| random.bool());
                    // Half of a sector's neighbours are of another time.
                    flipped = true;
                    ssd = world.start().await;
                }
            }
            assert!(world.on_disk().await <= world.bytes, "seed {seed}");
            assert_eq!(ssd.problem(), None, "seed {seed}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_in_memory_counts_as_in_use() {
    let mut world = World::new(MIB);
    let ssd = world.start().await;
    let hot = key(1, 0);
    world.memory.insert(hot, &content(&hot), true, Origin::Kept, world.usages.of(hot.volume), None);
    for slot in 0..2000 {
        world.write(&ssd, key(1, slot)).await;
        world.memory.get(&hot);
    }
    assert!(ssd.contains(&hot));
    assert!(!ssd.contains(&key(1, 1)));
}

#[test]
fn an_entry_of_the_index_in_memory_is_small() {
    assert_eq!(size_of::<([u32; 2], Place)>(), 12);
    assert_eq!(MAX_MIB, 256 << 10);
    let place = Place::new(8191, (1 << 19) - 1);
    assert_eq!((place.segment(), place.unit()), (8191, (1 << 19) - 1));
}
