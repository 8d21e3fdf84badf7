//! What the journal promises, over the simulated disk.

mod crash;
mod damage;
mod roundtrip;
mod space;

use super::*;
use crate::log::{Crcs, Kind, cluster_crcs};
use async_trait::async_trait;
use bytes::Bytes;
use common::sim::{SimClock, SimDisk};
use common::{DiskFile, VolumeId};
use std::collections::HashMap;
use std::time::Duration;

const CLUSTER: usize = 4096;
const SEGMENT: u64 = 64 << 10;

fn volume(n: u64) -> VolumeId {
    VolumeId(0xabcd_0000 + u128::from(n))
}

fn settings(segments: u64) -> JournalSettings {
    JournalSettings { max_batch_bytes: 16 << 10, ..JournalSettings::new(SEGMENT, segments * SEGMENT) }
}

/// Content that only this entry can have.
fn content(v: VolumeId, epoch: Epoch, lsn: Lsn, clusters: usize) -> Bytes {
    let seed = (v.0 as u64) ^ (epoch.0 << 48) ^ (lsn.0 << 20);
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(clusters * CLUSTER);
    while bytes.len() < clusters * CLUSTER {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        bytes.extend_from_slice(&x.to_le_bytes());
    }
    bytes.into()
}

fn entry(v: VolumeId, epoch: u64, lsn: u64, clusters: usize) -> LogEntry {
    let (epoch, lsn) = (Epoch(epoch), Lsn(lsn));
    if clusters == 0 {
        return LogEntry {
            volume: v,
            epoch,
            lsn,
            kind: Kind::Discard,
            addr: lsn.0,
            count: 1 << 40,
            data: Bytes::new(),
            crcs: Crcs::new(),
        };
    }
    let data = content(v, epoch, lsn, clusters);
    let addr = lsn.0 * 7;
    let crcs = cluster_crcs(v, addr, &data, CLUSTER);
    LogEntry { volume: v, epoch, lsn, kind: Kind::Data, addr, count: clusters as u64, data, crcs }
}

#[derive(Default)]
struct Heard {
    retired: Vec<Retired>,
    /// Where each entry lies, by its newest word.
    locs: HashMap<(Epoch, Lsn), JournalLoc>,
    relocated: usize,
    failed: Vec<Error>,
}

/// A sink that remembers what it hears.
#[derive(Default)]
struct Recorder(Mutex<Heard>);

impl Sink for Recorder {
    fn retired(&self, entries: &mut dyn Iterator<Item = Retired>) {
        let mut heard = self.0.lock();
        for r in entries {
            heard.locs.insert((r.epoch, r.lsn), r.loc.clone());
            heard.retired.push(r);
        }
    }

    fn relocated(&self, epoch: Epoch, lsn: Lsn, loc: JournalLoc) {
        let mut heard = self.0.lock();
        heard.relocated += 1;
        // The old place is given up, as a volume does.
        heard.retired.retain(|r| (r.epoch, r.lsn) != (epoch, lsn));
        if let Some(known) = heard.locs.get_mut(&(epoch, lsn)) {
            *known = loc;
        }
    }

    fn failed(&self, error: &Error) {
        self.0.lock().failed.push(error.clone());
    }
}

impl Recorder {
    fn last(&self) -> Lsn {
        self.0.lock().retired.last().map_or(Lsn(0), |r| r.lsn)
    }

    /// Gives up what is committed, as a volume does.
    fn drop_up_to(&self, lsn: Lsn) {
        let mut heard = self.0.lock();
        heard.retired.retain(|r| r.lsn > lsn);
        heard.locs.retain(|(_, l), _| *l > lsn);
    }
}

/// One process over a simulated disk.
struct Process {
    journal: Arc<Journal>,
    recovered: Recovered,
    clock: Arc<SimClock>,
}

impl Process {
    async fn start(disk: &SimDisk, settings: JournalSettings, seed: u64) -> Process {
        Self::try_start(Arc::new(disk.clone()), settings, seed).await.unwrap()
    }

    async fn try_start(disk: Arc<dyn Disk>, settings: JournalSettings, seed: u64) -> Result<Process> {
        let clock = Arc::new(SimClock::new(seed));
        let (journal, recovered) =
            Journal::open(settings, disk, clock.clone(), &mut Registry::default()).await?;
        Ok(Process { journal, recovered, clock })
    }

    async fn attach(&self, v: VolumeId) -> (Arc<Recorder>, Arc<dyn Sink>, RecoveredVolume) {
        let recorder = Arc::new(Recorder::default());
        let sink: Arc<dyn Sink> = recorder.clone();
        let found = self.journal.attach(v, sink.clone()).await.unwrap();
        (recorder, sink, found)
    }

    /// Ends the tasks of a process whose disk is gone.
    fn die(self) {
        self.journal.fail(Error::internal("killed by the test"));
        if let Some(task) = self.journal.housekeeper.lock().take() {
            task.abort();
        }
    }

    /// Lets everything that can happen by itself happen.
    async fn settle(&self) {
        self.clock.sleep(Duration::from_millis(200)).await;
    }

    async fn until(&self, what: &str, mut done: impl FnMut() -> bool) {
        for _ in 0..2000 {
            if done() {
                return;
            }
            self.clock.sleep(Duration::from_millis(10)).await;
        }
        panic!("never: {what} ({:?})", self.journal.problem());
    }
}

/// Whether what was recovered is what was submitted.
async fn check_entry(v: VolumeId, e: &RecoveredEntry) {
    match e.kind {
        Kind::Data => {
            let expected = content(v, e.epoch, e.lsn, e.count as usize);
            assert_eq!(e.loc.read(0, e.loc.len()).await.unwrap(), expected, "{v} {} {}", e.epoch, e.lsn);
            assert_eq!(e.addr, e.lsn.0 * 7);
            assert_eq!(e.crcs, cluster_crcs(v, e.addr, &expected, CLUSTER));
        }
        kind => {
            assert_eq!((kind, e.addr, e.count, e.loc.len()), (Kind::Discard, e.lsn.0, 1 << 40, 0));
        }
    }
}

/// A disk whose writes and syncs take time, so that others come in between.
struct SlowDisk {
    disk: SimDisk,
    clock: Arc<SimClock>,
}

struct SlowFile {
    file: Arc<dyn DiskFile>,
    clock: Arc<SimClock>,
}

impl SlowDisk {
    fn slow(&self, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(SlowFile { file, clock: self.clock.clone() })
    }
}

#[async_trait]
impl Disk for SlowDisk {
    async fn create(&self, name: &str, size: u64) -> Result<Arc<dyn DiskFile>> {
        Ok(self.slow(self.disk.create(name, size).await?))
    }

    async fn open(&self, name: &str) -> Result<Arc<dyn DiskFile>> {
        Ok(self.slow(self.disk.open(name).await?))
    }

    async fn available(&self) -> Result<u64> {
        self.disk.available().await
    }

    async fn list(&self) -> Result<Vec<String>> {
        self.disk.list().await
    }

    async fn remove(&self, name: &str) -> Result<()> {
        self.disk.remove(name).await
    }
}

#[async_trait]
impl DiskFile for SlowFile {
    fn len(&self) -> u64 {
        self.file.len()
    }

    async fn write_at(&self, offset: u64, parts: &[Bytes]) -> Result<()> {
        if self.clock.random().is_multiple_of(3) {
            self.clock.sleep(Duration::from_millis(1 + self.clock.random() % 3)).await;
        }
        self.file.write_at(offset, parts).await
    }

    async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes> {
        self.file.read_at(offset, len).await
    }

    async fn sync(&self) -> Result<()> {
        self.clock.sleep(Duration::from_millis(1 + self.clock.random() % 5)).await;
        self.file.sync().await
    }
}
