//! The doors, which outlive the process, and the process.

use super::model::SECTOR;
use super::plan::{Crash, Plan, Weather};
use common::sim::{SimClock, SimDisk, SimDiskFaults, SimObjectStore, SimTable, StoreFaults};
use common::{Clock, Epoch, Error, Result, VolumeId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use volumedriver::{CreateVolume, Driver, Parent, Pool, PoolInfo, Settings, SnapshotInfo, Volume};

/// Bytes in a cluster.
pub const CLUSTER: u32 = 4096;

/// Tries to open a volume while the store is at its worst.
const TRIES: usize = 200;

/// How often each kind of fault took effect.
pub type Coverage = BTreeMap<&'static str, u64>;

/// See the module's head.
pub struct World {
    disk: SimDisk,
    /// Where the read cache has its second tier: it sees the same weather, and no fault of it may show.
    cache: SimDisk,
    table: Arc<SimTable>,
    /// One store for the even volumes, one for the odd ones.
    stores: Vec<SimObjectStore>,
    pools: Vec<Pool>,
    /// Virtual time.
    pub clock: Arc<SimClock>,
    settings: Settings,
    driver: Option<Arc<Driver>>,
    /// The data directory that the last owner left behind when another one took over.
    old: Option<(SimDisk, SimDisk, Arc<SimTable>)>,
    /// The open volumes.
    pub volumes: Vec<Arc<Volume>>,
    count: usize,
    disk_faults: SimDiskFaults,
    coverage: Coverage,
    random: fastrand::Rng,
    /// What a power cut leaves of the read cache.
    cache_random: fastrand::Rng,
}

fn id(volume: usize) -> VolumeId {
    VolumeId(0xfeed + volume as u128)
}

impl World {
    /// The world of a plan, with its volumes created and nothing running.
    pub async fn new(plan: &Plan) -> Result<World> {
        let seed = plan.seed;
        let stores: Vec<_> = (0..2).map(|n| SimObjectStore::new(seed ^ (n << 32))).collect();
        let mut pools = Vec::new();
        for (n, store) in stores.iter().enumerate() {
            let info = PoolInfo { id: 7 + n as u128, name: format!("p{n}"), cluster_size: CLUSTER };
            pools.push(Pool::create(Arc::new(store.clone()), info, Duration::ZERO).await?);
        }
        let mut world = World {
            disk: SimDisk::new(),
            cache: SimDisk::new(),
            table: Arc::new(SimTable::new()),
            stores,
            pools,
            clock: Arc::new(SimClock::new(seed)),
            settings: plan.settings.clone(),
            driver: None,
            old: None,
            volumes: Vec::new(),
            count: plan.volumes,
            disk_faults: SimDiskFaults::default(),
            coverage: Coverage::new(),
            random: fastrand::Rng::with_seed(seed ^ 0x7ea5),
            cache_random: fastrand::Rng::with_seed(seed ^ 0xcac4e),
        };
        world.disk.set_random(world.random.fork());
        let driver = world.start().await?;
        for volume in 0..plan.volumes {
            let spec = CreateVolume {
                id: id(volume),
                name: format!("v{volume}"),
                size: (plan.size * SECTOR) as u64,
                sco_size: 1 << 20,
                epoch: Epoch(1),
                parent: None,
            };
            driver.create(&world.pools[volume % 2], spec).await?;
        }
        Ok(world)
    }

    async fn start(&mut self) -> Result<Arc<Driver>> {
        let mut registry = Default::default();
        let disk = Arc::new(self.disk.process());
        let cache = Arc::new(self.cache.process());
        let (table, clock) = (self.table.clone(), self.clock.clone());
        let settings = self.settings.clone();
        let driver =
            Driver::start_with_ssd_cache(settings, disk, Some(cache), table, clock, &mut registry).await?;
        self.driver = Some(driver.clone());
        Ok(driver)
    }

    /// Starts a process and opens every volume.
    pub async fn boot(&mut self) -> Result<()> {
        let driver = self.start().await?;
        for volume in 0..self.count {
            let mut tries = 0;
            let open = loop {
                match driver.open(&self.pools[volume % 2], id(volume), Epoch(1)).await {
                    Err(e) if e.kind.is_transient() && tries < TRIES => tries += 1,
                    outcome => break outcome.map_err(|e| e.context(format!("opening volume {volume}")))?,
                }
                self.clock.sleep(Duration::from_millis(20)).await;
            };
            self.volumes.push(open);
        }
        Ok(())
    }

    /// Makes a clone of a snapshot of a volume of the first pool.
    pub async fn create_clone(&self, id: VolumeId, volume: VolumeId, of: &SnapshotInfo) -> Result<()> {
        let parent = Parent { volume, snapshot: of.about.id, lsn: of.lsn.unwrap_or_default() };
        let spec = CreateVolume {
            id,
            name: format!("clone {id}"),
            size: of.size,
            sco_size: 1 << 20,
            epoch: Epoch(1),
            parent: Some(parent),
        };
        self.driver()?.create(&self.pools[0], spec).await
    }

    /// Opens a clone.
    pub async fn open_clone(&self, id: VolumeId) -> Result<Arc<Volume>> {
        self.driver()?.open(&self.pools[0], id, Epoch(1)).await
    }

    /// Opens the first volume, which is closed, as a snapshot has it.
    pub async fn roll_back(&mut self, snapshot: u128) -> Result<()> {
        self.volumes[0] = self.driver()?.roll_back(&self.pools[0], id(0), Epoch(1), snapshot, None).await?;
        Ok(())
    }

    fn driver(&self) -> Result<&Arc<Driver>> {
        self.driver.as_ref().ok_or_else(|| Error::internal("the process is not running"))
    }

    /// Things go wrong, or well again.
    pub fn change(&mut self, weather: &Weather) {
        match weather {
            Weather::Store(faults) => {
                if faults.away {
                    self.note("store away");
                }
                // The second store stays well: it must not suffer from the first one.
                self.stores[0].set_faults(faults.clone());
            }
            Weather::LatePuts => self.late_puts(),
            Weather::DiskFull(full) => self.disk_faults(|f| f.full = *full),
            Weather::FlippedReads(n) => self.disk_faults(|f| f.flipped_reads = *n),
            Weather::FailingWrites(n) => self.disk_faults(|f| f.failing_writes = *n),
            Weather::FailingSyncs(n) => self.disk_faults(|f| f.failing_syncs = *n),
            Weather::SlowSyncs(most) => {
                self.note("slow syncs");
                self.disk_faults(|f| f.max_latency = *most);
            }
            Weather::FailingTable(n) => self.table.fail_writes(*n),
        }
    }

    fn disk_faults(&mut self, change: impl FnOnce(&mut SimDiskFaults)) {
        // Countdowns start anew: what is left of an earlier one is forgotten.
        self.disk_faults.failing_syncs = 0;
        self.disk_faults.failing_writes = 0;
        self.disk_faults.flipped_reads = 0;
        change(&mut self.disk_faults);
        self.disk.set_faults(self.disk_faults.clone());
        self.cache.set_faults(self.disk_faults.clone());
    }

    /// Nothing goes wrong any more.
    pub fn fair_weather(&mut self) {
        self.disk_faults = SimDiskFaults::default();
        self.disk.set_faults(SimDiskFaults::default());
        self.cache.set_faults(SimDiskFaults::default());
        self.stores.iter().for_each(|s| s.set_faults(StoreFaults::default()));
        self.table.fail_writes(0);
        self.die_at(None, None);
    }

    /// Puts that failed appear.
    pub fn late_puts(&self) {
        self.stores.iter().for_each(SimObjectStore::deliver_late_puts);
    }

    /// From so many effects from now on, the disk or the stores do nothing any more.
    pub fn die_at(&self, disk: Option<u64>, store: Option<u64>) {
        self.disk.die_at_effect(disk.map(|n| self.disk.effects() + n));
        for s in &self.stores {
            s.die_at_put(store.map(|n| s.counts().0 + n));
        }
    }

    /// The disk's effects and the stores' so far.
    pub fn effects(&self) -> (u64, u64) {
        (self.disk.effects(), self.stores.iter().map(|s| s.counts().0).sum())
    }

    /// Syncs of the write buffer that failed, and all its effects that did not take place.
    pub fn disk_failures(&self) -> (u64, u64) {
        let tally = self.disk.tally();
        (tally.failed_syncs, tally.failed_writes + tally.failed_syncs + tally.dead_effects)
    }

    /// Wrong bits that reads returned.
    pub fn flips(&self) -> u64 {
        self.disk.tally().flipped_reads + self.stores.iter().map(|s| s.tally().flipped).sum::<u64>()
    }

    /// The end of the process.
    pub fn crash(&mut self, crash: Crash) {
        self.volumes.clear();
        self.driver = None;
        match crash {
            Crash::Kill => self.note("kill"),
            Crash::Clean => self.note("clean stop"),
            Crash::Power(_) => self.note("power cut"),
            Crash::LostDataDir => self.note("lost data directory"),
            Crash::Takeover => self.note("takeover from a live owner"),
            Crash::OldDataDir => self.note("an old data directory comes back"),
        }
        match crash {
            Crash::Kill | Crash::Clean => {
                self.disk.kill();
                self.cache.kill();
                // What the dead process still does reaches the store at most, as a zombie's put does.
                self.table = Arc::new(self.table.successor());
            }
            Crash::Power(kept) => {
                let random = &mut self.random;
                self.disk.crash(|| random.u32(0..100) < kept);
                let cache_random = &mut self.cache_random;
                self.cache.crash(|| cache_random.u32(0..100) < kept);
                self.table = Arc::new(self.table.successor());
                self.table.crash(|n| random.usize(0..=n));
            }
            Crash::LostDataDir | Crash::Takeover => {
                self.tally();
                if crash == Crash::LostDataDir {
                    self.disk.kill();
                }
                let disk = std::mem::take(&mut self.disk);
                let cache = std::mem::take(&mut self.cache);
                let table = std::mem::replace(&mut self.table, Arc::new(SimTable::new()));
                self.disk.set_random(self.random.fork());
                self.old =
                    Some((disk, cache, table)).filter(|_| crash == Crash::Takeover).or(self.old.take());
            }
            Crash::OldDataDir => {
                self.tally();
                self.disk.kill();
                // Without one it is a new one.
                let (disk, cache, table) = self.old.take().unwrap_or_default();
                self.disk = disk;
                self.cache.kill();
                self.cache = cache;
                self.cache.kill();
                self.cache.forget_tally();
                if self.disk.tally().failed_syncs > 0 {
                    // What its failed syncs lost is lost: the machine's memory did not come along.
                    let random = &mut self.random;
                    self.disk.crash(|| random.bool());
                } else {
                    self.disk.kill();
                }
                self.disk.set_random(self.random.fork());
                self.disk.forget_tally();
                self.table = Arc::new(table.successor());
            }
        }
    }

    /// Something happened that no door counts.
    pub fn note(&mut self, what: &'static str) {
        *self.coverage.entry(what).or_default() += 1;
    }

    /// Takes what the local doors have counted.
    fn tally(&mut self) {
        let t = self.disk.tally();
        let c = self.cache.tally();
        for (what, n) in [
            ("read cache: write or sync error", c.failed_writes + c.failed_syncs),
            ("read cache: wrong bit", c.flipped_reads),
            ("read cache: unsynced sector lost", c.lost_sectors),
            ("disk full", t.full),
            ("disk write error", t.failed_writes),
            ("disk sync error", t.failed_syncs),
            ("wrong bit from disk", t.flipped_reads),
            ("crash at a disk effect", u64::from(t.dead_effects > 0)),
            ("unsynced sector kept", t.kept_sectors),
            ("unsynced sector lost", t.lost_sectors),
            ("table write error", self.table.failed_writes()),
        ] {
            *self.coverage.entry(what).or_default() += n;
        }
    }

    /// How often each fault took effect. Call it once, at the end.
    pub fn coverage(mut self) -> Coverage {
        self.tally();
        for s in &self.stores {
            let t = s.tally();
            for (what, n) in [
                ("store error", t.failed),
                ("store full", t.full),
                ("lost reply", t.lost_replies),
                ("late put", t.late),
                ("late put landed", t.late_landed),
                ("wrong bit from store", t.flipped),
                ("crash at a store effect", u64::from(t.dead_effects > 0)),
            ] {
                *self.coverage.entry(what).or_default() += n;
            }
        }
        self.coverage
    }

    /// The keys of all objects.
    pub fn keys(&self) -> Vec<String> {
        self.stores.iter().flat_map(SimObjectStore::keys).collect()
    }

    /// Checks every volume's image on its store, with nobody's help.
    pub async fn fsck(&self) -> std::result::Result<(), String> {
        for volume in 0..self.count {
            let pool = &self.pools[volume % 2];
            let report = volumedriver::fsck::check(pool, id(volume), &mut |_, _| {}).await;
            let problems = report.map_err(|e| format!("fsck of volume {volume}: {e}"))?.problems;
            if !problems.is_empty() {
                return Err(format!("fsck of volume {volume}: {problems:?}"));
            }
        }
        Ok(())
    }

    /// Reads all of a volume.
    pub async fn image(&self, volume: usize) -> Result<Vec<u8>> {
        use common::BlockDevice;
        let v = self.volumes.get(volume).ok_or_else(|| Error::internal("the volume is not open"))?;
        Ok(v.read(0, v.geometry().size as u32).await?.to_vec())
    }
}
