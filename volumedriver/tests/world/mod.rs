//! A router's volume driver over the simulated doors, that can be killed and powered off.
#![allow(dead_code, missing_docs)]

use bytes::Bytes;
use common::sim::{SimClock, SimDisk, SimObjectStore, SimTable};
use common::{BlockDevice, Clock, Epoch, Result, VolumeId};
use std::sync::Arc;
use std::time::Duration;
use volumedriver::{CreateVolume, Driver, Pool, PoolInfo, Settings, Volume};

pub const VOLUME: VolumeId = VolumeId(0xfeed);
pub const CLUSTER: u64 = 4096;

/// The doors, which outlive the process, and the process.
pub struct World {
    pub disk: SimDisk,
    pub table: Arc<SimTable>,
    pub store: SimObjectStore,
    pub clock: Arc<SimClock>,
    pub settings: Settings,
    pub driver: Option<Arc<Driver>>,
    pub pool: Pool,
}

pub fn settings() -> Settings {
    Settings {
        journal_mib: 48,
        segment_mib: 4,
        buffer_mib: 16,
        read_cache_mib: 1,
        index_cache_mib: 4,
        ..Settings::default()
    }
}

impl World {
    pub async fn new(seed: u64, settings: Settings, size: u64) -> World {
        let store = SimObjectStore::new(seed);
        let info = PoolInfo { id: 7, name: "p".into(), cluster_size: CLUSTER as u32 };
        let pool = Pool::create(Arc::new(store.clone()), info, Duration::ZERO).await.unwrap();
        let mut world = World {
            disk: SimDisk::new(),
            table: Arc::new(SimTable::new()),
            store,
            clock: Arc::new(SimClock::new(seed)),
            settings,
            driver: None,
            pool,
        };
        world.boot().await.unwrap();
        let spec = CreateVolume {
            id: VOLUME,
            name: "v".into(),
            size,
            sco_size: 1 << 20,
            epoch: Epoch(1),
            parent: None,
        };
        world.driver().create(&world.pool, spec).await.unwrap();
        world
    }

    pub fn driver(&self) -> &Arc<Driver> {
        self.driver.as_ref().expect("the process runs")
    }

    /// Starts a process on the doors.
    pub async fn boot(&mut self) -> Result<()> {
        let mut registry = Default::default();
        let driver = Driver::start(
            self.settings.clone(),
            Arc::new(self.disk.process()),
            self.table.clone(),
            self.clock.clone(),
            &mut registry,
        )
        .await?;
        self.driver = Some(driver);
        Ok(())
    }

    pub async fn open(&self) -> Result<Arc<Volume>> {
        self.driver().open(&self.pool, VOLUME, Epoch(1)).await
    }

    /// SIGKILL: every handle is void, what was handed to the kernel stays.
    pub fn kill(&mut self) {
        self.disk.kill();
        // What the dead process still does reaches the store at most, as a zombie's late put does.
        self.table = Arc::new(self.table.successor());
        self.driver = None;
    }

    /// A power cut: unsynced sectors and table batches are lost by chance.
    pub fn cut_power(&mut self, chance: &mut fastrand::Rng) {
        self.disk.crash(|| chance.bool());
        self.table = Arc::new(self.table.successor());
        self.table.crash(|n| chance.usize(0..=n));
        self.driver = None;
    }

    /// The data directory is gone.
    pub fn lose_data_dir(&mut self) {
        self.driver = None;
        self.disk.kill();
        self.disk = SimDisk::new();
        self.table = Arc::new(SimTable::new());
    }
}

/// A cluster full of `n`.
pub fn cluster(n: u8) -> Bytes {
    Bytes::from(vec![n; CLUSTER as usize])
}

/// Sleeps virtual time.
pub async fn sleep(world: &World, seconds: u64) {
    world.clock.sleep(Duration::from_secs(seconds)).await;
}

/// What a cluster is full of; panics when it is torn.
pub async fn value(volume: &Volume, addr: u64) -> u8 {
    let data = volume.read(addr * CLUSTER, CLUSTER as u32).await.unwrap();
    assert!(data.iter().all(|b| *b == data[0]), "cluster {addr} is torn");
    data[0]
}
