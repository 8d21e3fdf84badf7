//! The read cache, through the driver's public face: what is read from the object store, and how often.

mod world;

use bytes::Bytes;
use common::sim::{SimDisk, SimDiskFaults, StoreFaults};
use common::{BlockDevice, Epoch, VolumeId};
use std::sync::Arc;
use std::time::Duration;
use volumedriver::{CreateVolume, Description, Driver, Parent, Settings, Volume};
use world::*;

const MINUTE: Duration = Duration::from_secs(60);
const CLUSTERS: u64 = 1024;

/// A world whose process has a second tier on a disk of its own.
struct Cached {
    world: World,
    cache: SimDisk,
    registry: prometheus_client::registry::Registry,
}

impl Cached {
    async fn new(settings: Settings) -> Cached {
        let world = World::new(7, settings, CLUSTERS * CLUSTER).await;
        let mut cached = Cached { world, cache: SimDisk::new(), registry: Default::default() };
        cached.kill_and_boot().await;
        cached
    }

    async fn kill_and_boot(&mut self) {
        self.world.kill();
        self.cache.kill();
        self.registry = Default::default();
        let driver = Driver::start_with_ssd_cache(
            self.world.settings.clone(),
            Arc::new(self.world.disk.process()),
            Some(Arc::new(self.cache.process())),
            self.world.table.clone(),
            self.world.clock.clone(),
            &mut self.registry,
        );
        self.world.driver = Some(driver.await.unwrap());
        sleep(&self.world, 1).await;
    }

    fn metric(&self, name: &str) -> u64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        let name = format!("storagerouter_volumedriver_{name} ");
        let line = text.lines().find(|line| line.starts_with(&name));
        line.and_then(|line| line.split(' ').nth(1)?.parse().ok())
            .unwrap_or_else(|| panic!("no {name}: {text}"))
    }

    fn slow_store(&self) {
        let max_latency = Duration::from_millis(20);
        self.world.store.set_faults(StoreFaults { max_latency, ..StoreFaults::default() });
    }
}

fn value_of(addr: u64) -> u8 {
    (addr * 7 + 3) as u8
}

async fn fill(volume: &Volume) {
    for addr in 0..CLUSTERS {
        volume.write(addr * CLUSTER, cluster(value_of(addr)), false).await.unwrap();
    }
    volume.drain(MINUTE).await.unwrap();
}

async fn check(device: &dyn BlockDevice, addr: u64, count: u64) {
    let data = device.read(addr * CLUSTER, (count * CLUSTER) as u32).await.unwrap();
    for (at, found) in (addr..).zip(data.chunks(CLUSTER as usize)) {
        assert!(found.iter().all(|b| *b == value_of(at)), "cluster {at}");
    }
}

fn small() -> Settings {
    Settings { read_cache_mib: 1, ssd_cache_mib: 16, ..settings() }
}

#[tokio::test(start_paused = true)]
async fn many_who_ask_for_the_same_at_once_cost_the_backend_one_read() {
    let cached = Cached::new(Settings { read_cache_mib: 64, ..small() }).await;
    let volume = cached.world.open().await.unwrap();
    fill(&volume).await;
    volume.snapshot(Description { id: 5, name: "s".into(), ..Description::default() }).await.unwrap();
    volume.drain(MINUTE).await.unwrap();
    let of = volume.find_snapshot("s").unwrap();
    let mut clones = Vec::new();
    for n in 0..20u128 {
        let id = VolumeId(0xc1_0000 + n);
        let parent = Parent { volume: VOLUME, snapshot: of.about.id, lsn: of.lsn.unwrap() };
        let spec = CreateVolume {
            id,
            name: format!("c{n}"),
            size: CLUSTERS * CLUSTER,
            sco_size: 1 << 20,
            epoch: Epoch(1),
            parent: Some(parent),
        };
        cached.world.driver().create(&cached.world.pool, spec).await.unwrap();
        clones.push(cached.world.driver().open(&cached.world.pool, id, Epoch(1)).await.unwrap());
    }
    cached.slow_store();
    let before = cached.metric("backend_read_bytes_total");
    let boots = clones.iter().enumerate().map(|(n, clone)| async move {
        let mut random = fastrand::Rng::with_seed(n as u64 / 4);
        // Some read it from the beginning to the end, some here and there; all read all of it.
        let mut reads: Vec<u64> = (0..CLUSTERS / 8).collect();
        if n % 2 == 0 {
            random.shuffle(&mut reads);
        }
        for at in reads {
            check(&**clone, at * 8, 8).await;
        }
    });
    futures::future::join_all(boots).await;
    let read = cached.metric("backend_read_bytes_total") - before;
    assert!(read <= CLUSTERS * CLUSTER * 105 / 100, "{read} bytes for {}", CLUSTERS * CLUSTER);
    assert!(cached.metric("read_cache_joined_total") > 0);
}

#[tokio::test(start_paused = true)]
async fn who_leaves_while_others_wait_for_its_read_takes_nothing_from_them() {
    let cached = Cached::new(small()).await;
    let volume = cached.world.open().await.unwrap();
    fill(&volume).await;
    cached.slow_store();
    for addr in (0..64).map(|n| n * 5) {
        let first = tokio::time::timeout(Duration::from_micros(50), volume.read(addr * CLUSTER, 4096));
        let second = async {
            tokio::task::yield_now().await;
            check(&*volume, addr, 2).await;
        };
        let (left, ()) = futures::join!(first, second);
        drop(left);
    }
    // One that fails for its own reasons either: the store is away for a while.
    cached.world.store.set_faults(StoreFaults { away: true, ..StoreFaults::default() });
    let waits = async {
        let both = futures::future::join_all([check(&*volume, 1001, 1), check(&*volume, 1001, 1)]);
        both.await;
    };
    let comes_back = async {
        sleep(&cached.world, 20).await;
        cached.world.store.set_faults(StoreFaults::default());
    };
    futures::join!(waits, comes_back);
}

#[tokio::test(start_paused = true)]
async fn a_sequential_reader_finds_what_it_needs_and_nothing_is_read_twice() {
    let cached = Cached::new(Settings { read_cache_mib: 64, ..small() }).await;
    let volume = cached.world.open().await.unwrap();
    fill(&volume).await;
    cached.slow_store();
    let before = cached.metric("backend_read_bytes_total");
    for addr in 0..CLUSTERS {
        check(&*volume, addr, 1).await;
    }
    let read = cached.metric("backend_read_bytes_total") - before;
    assert_eq!(read, CLUSTERS * CLUSTER, "each cluster once");
    let waited = cached.metric("read_cache_misses_total");
    assert!(waited < 16, "{waited} of {CLUSTERS} clusters were not there");
    assert!(cached.metric("read_cache_ahead_bytes_total") > CLUSTERS * CLUSTER * 9 / 10);
    assert_eq!(cached.metric("read_cache_ssd_written_bytes_total"), 0, "a scan leaves nothing on the SSD");
}

#[tokio::test(start_paused = true)]
async fn random_reads_read_no_more_than_was_asked_for() {
    let cached = Cached::new(small()).await;
    let volume = cached.world.open().await.unwrap();
    fill(&volume).await;
    let mut random = fastrand::Rng::with_seed(11);
    let mut addrs: Vec<u64> = (0..CLUSTERS).collect();
    random.shuffle(&mut addrs);
    let before = cached.metric("backend_read_bytes_total");
    for addr in &addrs[..200] {
        check(&*volume, *addr, 1).await;
    }
    assert_eq!(cached.metric("backend_read_bytes_total") - before, 200 * CLUSTER);
    assert_eq!(cached.metric("read_cache_ahead_bytes_total"), 0);
}

#[tokio::test(start_paused = true)]
async fn what_does_not_fit_the_memory_is_on_the_ssd_also_after_a_kill() {
    let mut cached = Cached::new(small()).await;
    let volume = cached.world.open().await.unwrap();
    fill(&volume).await;
    let mut random = fastrand::Rng::with_seed(3);
    let mut addrs: Vec<u64> = (0..CLUSTERS).collect();
    for _ in 0..3 {
        random.shuffle(&mut addrs);
        for addr in &addrs {
            check(&*volume, *addr, 1).await;
        }
        sleep(&cached.world, 2).await;
    }
    let status = volume.status();
    assert!(status.cache.memory_bytes <= 1 << 20, "{:?}", status.cache);
    assert!(status.cache.ssd_bytes > 3 << 20, "{:?}", status.cache);
    assert!(status.cache_hits.ssd > CLUSTERS / 2, "{:?}", status.cache_hits);
    drop(volume);
    cached.kill_and_boot().await;
    let volume = cached.world.open().await.unwrap();
    for addr in 0..CLUSTERS {
        check(&*volume, addr ^ 1, 1).await;
    }
    let hits = volume.status().cache_hits;
    assert!(hits.ssd > CLUSTERS * 8 / 10 && hits.missed < CLUSTERS / 5, "{hits:?}");
    // One that is deleted or not, the others are found: and wrong bits are read from the backend instead.
    let faults = SimDiskFaults { flipped_reads: 200, ..SimDiskFaults::default() };
    cached.kill_and_boot().await;
    let volume = cached.world.open().await.unwrap();
    cached.cache.set_faults(faults);
    for addr in 0..CLUSTERS {
        check(&*volume, addr ^ 1, 1).await;
    }
    assert!(cached.metric("read_cache_ssd_wrong_total") > 100);
    assert_eq!(cached.world.driver().read_cache_problem(), None);
}

#[tokio::test(start_paused = true)]
async fn reads_go_on_without_the_ssd() {
    let cached = Cached::new(small()).await;
    let volume = cached.world.open().await.unwrap();
    fill(&volume).await;
    cached.cache.set_faults(SimDiskFaults { failing_writes: 1, ..SimDiskFaults::default() });
    for _ in 0..3 {
        for addr in 0..CLUSTERS {
            check(&*volume, addr ^ 3, 1).await;
        }
        sleep(&cached.world, 1).await;
    }
    assert!(cached.world.driver().read_cache_problem().is_some());
    assert_eq!(cached.metric("read_cache_ssd_errors_total"), 1);
    // And nothing of it touches the write buffer.
    volume.write(0, Bytes::from(vec![1; 4096]), true).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_quota_bounds_what_the_cache_holds_of_a_volume() {
    let cached = Cached::new(Settings { read_cache_mib: 16, ..small() }).await;
    let driver = cached.world.driver().clone();
    driver.set_cache_quota(VOLUME, Some(1 << 20));
    let volume = cached.world.open().await.unwrap();
    fill(&volume).await;
    for _ in 0..3 {
        for addr in 0..CLUSTERS {
            check(&*volume, addr ^ 1, 1).await;
        }
        sleep(&cached.world, 1).await;
        let held = volume.status().cache;
        assert!(held.memory_bytes + held.ssd_bytes <= 1 << 20, "{held:?}");
        assert!(held.memory_bytes > 400 << 10, "{held:?}");
    }
    driver.set_cache_quota(VOLUME, None);
    for addr in 0..CLUSTERS {
        check(&*volume, addr ^ 1, 1).await;
    }
    assert!(volume.status().cache.memory_bytes > 2 << 20);
}
