//! What happens in one world: made from the seed before it begins, so that it can be cut shorter.

use common::sim::StoreFaults;
use std::time::Duration;
use volumedriver::{Effort, Settings};

use super::model::{PER_CLUSTER, Range};

/// One request of a client.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub enum Step {
    /// Writes sectors. Here and below: which volume, which sectors, whether with FUA.
    Write { volume: usize, range: Range, fua: bool },
    /// Makes sectors read as zeroes, as a hole or not.
    Zero { volume: usize, range: Range, hole: bool, fua: bool },
    /// Flushes.
    Flush { volume: usize },
    /// Reads.
    Read { volume: usize, range: Range },
    /// Asks what is allocated.
    Extents { volume: usize, range: Range },
    /// Grows the volume by so many sectors.
    Grow { volume: usize, by: usize },
    /// Uploads everything.
    Drain { volume: usize },
    /// Takes a snapshot.
    Snapshot { volume: usize },
    /// Reads one of the snapshots.
    ReadSnapshot { volume: usize, nth: usize },
    /// Asks where the volume differs from one of the snapshots.
    Differences { volume: usize, nth: usize },
    /// Deletes one of the snapshots.
    DeleteSnapshot { volume: usize, nth: usize },
    /// Cleans the log.
    Scrub { volume: usize, effort: Effort },
}

/// A client: its requests one after the other, each followed by a pause.
pub type Client = Vec<(Step, Duration)>;

/// Something goes wrong, or well again.
#[derive(Debug, Clone)]
pub enum Weather {
    /// The store behaves like this from now on.
    Store(StoreFaults),
    /// Puts that failed appear.
    LatePuts,
    /// The write buffer's disk has no room for new segments, or has it again.
    DiskFull(bool),
    /// So many reads of the write buffer return a wrong bit.
    FlippedReads(u32),
    /// So many writes to the write buffer fail.
    FailingWrites(u32),
    /// So many syncs of the write buffer fail.
    FailingSyncs(u32),
    /// Syncs take up to this long.
    SlowSyncs(Duration),
    /// So many writes to the index find no space.
    FailingTable(u32),
}

/// How a life ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// SIGKILL; its tasks go on as a zombie without a disk.
    Kill,
    /// A power cut that keeps each unsynced sector with this chance in a hundred.
    Power(u32),
    /// The data directory is gone.
    LostDataDir,
    /// The data directory of the owner before a takeover is used again.
    OldDataDir,
    /// Another machine takes over while this one is alive, with its clients and its disk, and does
    /// not know it.
    Takeover,
    /// Everything is uploaded and closed.
    Clean,
}

/// When a life ends, if its clients are not done before.
#[derive(Debug, Clone, Copy)]
pub enum When {
    /// When they are.
    Done,
    /// At this time.
    After(Duration),
    /// From this effect on the disk on, nothing is done any more.
    DiskEffect(u64),
    /// From this put or delete on, nothing is done any more.
    StoreEffect(u64),
}

/// From one start of the process to its end.
#[derive(Debug, Clone)]
pub struct Life {
    /// Requests run side by side.
    pub clients: Vec<Client>,
    /// What goes wrong when, counted from the start, in order.
    pub weather: Vec<(Duration, Weather)>,
    /// When it ends.
    pub when: When,
    /// How.
    pub crash: Crash,
    /// Starts that die at this effect of the disk or, if so, of the store, before one succeeds.
    pub stumbles: Vec<(u64, bool)>,
    /// It is killed and started once more, without a request between.
    pub twice: bool,
}

/// All of it.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The seed, also of what is not planned: latencies, which sectors are torn.
    pub seed: u64,
    /// Of the volume driver.
    pub settings: Settings,
    /// Volumes; each second one lies on a store of its own.
    pub volumes: usize,
    /// Sectors of each at the start.
    pub size: usize,
    /// Sectors to which they may grow.
    pub most: usize,
    /// The lives: enough of them, and some to spare for those whose clients die early.
    pub lives: Vec<Life>,
    /// After so many requests, and 3 lives, no further life begins.
    pub enough: usize,
}

impl Plan {
    /// The plan of a seed: at least `operations` requests and 3 crashes.
    pub fn new(seed: u64, operations: usize) -> Plan {
        let rng = fastrand::Rng::with_seed(seed);
        let mut maker =
            Maker { rng, volumes: 1, size: 0, most: 0, largest: 0, heavy: false, taken_over: false };
        maker.plan(seed, operations)
    }

    /// How many requests there are.
    pub fn operations(&self) -> usize {
        self.lives.iter().flat_map(|l| &l.clients).map(Vec::len).sum()
    }
}

struct Maker {
    rng: fastrand::Rng,
    volumes: usize,
    size: usize,
    most: usize,
    /// Clusters of the largest write.
    largest: usize,
    /// The write buffer fills.
    heavy: bool,
    /// The life before ended in a takeover.
    taken_over: bool,
}

impl Maker {
    fn chance(&mut self, one_in: u32) -> bool {
        self.rng.u32(0..one_in) == 0
    }

    fn millis(&mut self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_micros(self.rng.u64(range.start * 1000..range.end * 1000))
    }

    fn plan(&mut self, seed: u64, operations: usize) -> Plan {
        self.volumes = self.rng.usize(1..=3);
        // Some worlds are larger, so that the write buffer fills and segments are used again.
        let heavy = self.chance(8);
        self.heavy = heavy;
        let clusters = if heavy { 256 } else { self.rng.usize(4..64) };
        self.largest = if heavy { 128 } else { clusters.min(16) };
        self.size = clusters * PER_CLUSTER;
        self.most = self.size + 16 * PER_CLUSTER;
        let settings = Settings {
            // Small, so that it fills, wraps and copies forward.
            journal_mib: if heavy { 32 } else { 8 },
            segment_mib: if heavy { 4 } else { 1 },
            buffer_mib: 16,
            read_cache_mib: 1,
            ssd_cache_mib: self.rng.clone().u64(0..4).min(2),
            index_cache_mib: 4,
            seal_age_seconds: self.rng.u64(1..4),
            uploads_per_volume: self.rng.usize(1..5),
            uploads: self.rng.usize(1..6),
            tlog_scos: self.rng.usize(1..6),
            // Whether scrubs merge small TLogs, or rewrite each by itself.
            tlog_entries: if self.rng.clone().bool() { 1024 } else { 1 << 20 },
            scrub: !self.chance(4),
            scrub_percent: self.rng.u64(105..160),
        };
        let mut lives = Vec::new();
        let mut planned = 0;
        while planned < 4 * operations || lives.len() < 12 {
            let life = self.life();
            planned += life.clients.iter().map(Vec::len).sum::<usize>();
            lives.push(life);
        }
        let (volumes, size, most) = (self.volumes, self.size, self.most);
        Plan { seed, settings, volumes, size, most, lives, enough: operations }
    }

    fn life(&mut self) -> Life {
        let clients = self.rng.usize(1..=6);
        // Requests per client: short lives crash young states, long ones reach TLogs and deletions.
        let length = [10, 60, 250][self.rng.usize(0..3)];
        let pause = [0, 1, 20][self.rng.usize(0..3)];
        let clients = (0..clients).map(|_| self.client(length, pause)).collect();
        let crash = match self.rng.u32(0..10) {
            // Who was taken over from comes back with its old journal, or so it goes to and fro: where write
            // buffers fill, what was cut off there is copied forward beside what took its place.
            0..4 if self.taken_over && self.chance(2) => Crash::OldDataDir,
            0..4 if self.heavy && self.chance(3) => Crash::Takeover,
            0..4 => Crash::Kill,
            4..7 => Crash::Power([0, 50, 50, 90, 100][self.rng.usize(0..5)]),
            7..9 if self.chance(3) => Crash::Takeover,
            7..9 if self.chance(3) => Crash::OldDataDir,
            7..9 => Crash::LostDataDir,
            _ => Crash::Clean,
        };
        self.taken_over = crash == Crash::Takeover;
        let when = match self.rng.u32(0..6) {
            _ if crash == Crash::Clean => When::Done,
            0..2 => When::Done,
            2..4 => When::After(self.millis(1..2000)),
            4 => When::DiskEffect(self.rng.u64(1..300)),
            _ => When::StoreEffect(self.rng.u64(1..40)),
        };
        let stumbles = if self.chance(3) { self.rng.usize(1..3) } else { 0 };
        let stumbles = (0..stumbles).map(|_| (self.rng.u64(1..12), self.rng.bool())).collect();
        Life { clients, weather: self.weather(), when, crash, stumbles, twice: self.chance(3) }
    }

    fn client(&mut self, length: usize, pause: u64) -> Client {
        let steps = self.rng.usize(length / 2..=length);
        let mut client = Vec::with_capacity(steps);
        for _ in 0..steps {
            let step = self.step();
            let rest = if self.chance(100) { self.millis(500..4000) } else { self.millis(0..pause + 1) };
            client.push((step, rest));
        }
        client
    }

    fn range(&mut self) -> Range {
        // Rarely where the volume may reach later: who runs the plan knows whether it does.
        let size = if self.chance(10) { self.most } else { self.size };
        let clusters = size / PER_CLUSTER;
        if self.chance(4) {
            // Some sectors, whole clusters in the middle or none.
            let first = self.rng.usize(0..size);
            let count = self.rng.usize(1..=(size - first).min(24));
            return Range { first, count };
        }
        let first = self.rng.usize(0..clusters);
        let longest = (clusters - first).min(self.largest);
        let count = if self.rng.bool() { 1 } else { self.rng.usize(1..=longest) };
        Range { first: first * PER_CLUSTER, count: count * PER_CLUSTER }
    }

    fn step(&mut self) -> Step {
        let volume = self.rng.usize(0..self.volumes);
        let range = self.range();
        let fua = self.chance(12);
        let nth = self.rng.usize(0..1000);
        match self.rng.u32(0..214) {
            0..100 => Step::Write { volume, range, fua },
            100..115 => Step::Zero { volume, range, hole: false, fua },
            115..130 => Step::Zero { volume, range, hole: true, fua },
            130..132 => Step::Zero { volume, range: Range { first: 0, count: self.size }, hole: true, fua },
            132..145 => Step::Flush { volume },
            145..190 => Step::Read { volume, range },
            190..196 => Step::Extents { volume, range },
            196..198 => Step::Grow { volume, by: PER_CLUSTER },
            198..201 => Step::Snapshot { volume },
            201..203 => Step::ReadSnapshot { volume, nth },
            203..205 => Step::DeleteSnapshot { volume, nth },
            205..208 => Step::Scrub { volume, effort: [Effort::Full, Effort::Due, Effort::Merge][nth % 3] },
            208..212 => Step::Differences { volume, nth },
            _ => Step::Drain { volume },
        }
    }

    fn weather(&mut self) -> Vec<(Duration, Weather)> {
        let mut weather = Vec::new();
        if !self.chance(4) {
            let faults = self.store_faults();
            weather.push((Duration::ZERO, Weather::Store(faults)));
        }
        for _ in 0..self.rng.usize(0..4) {
            let at = self.millis(0..3000);
            let what = match self.rng.u32(0..16) {
                0..4 => {
                    // An outage ends: no promise is about one that does not.
                    let away = StoreFaults { away: true, ..StoreFaults::default() };
                    let full = StoreFaults { room: Some(0), ..StoreFaults::default() };
                    let bad = if self.rng.bool() { away } else { full };
                    let until = at + self.millis(10..20_000);
                    let after = self.store_faults();
                    weather.push((until, Weather::Store(after)));
                    Weather::Store(bad)
                }
                4..7 => Weather::LatePuts,
                7..9 => {
                    weather.push((at + self.millis(10..5000), Weather::DiskFull(false)));
                    Weather::DiskFull(true)
                }
                9..11 => Weather::FlippedReads(1),
                11 => Weather::FailingWrites(1),
                12 => Weather::FailingSyncs(1),
                13 => Weather::SlowSyncs(self.millis(0..50)),
                _ => Weather::FailingTable(self.rng.u32(1..5)),
            };
            weather.push((at, what));
        }
        weather.sort_by_key(|(at, _)| *at);
        weather
    }

    fn store_faults(&mut self) -> StoreFaults {
        StoreFaults {
            fail_per_mille: self.rng.u32(0..80),
            lost_reply_per_mille: self.rng.u32(0..80),
            late_put_per_mille: if self.chance(3) { self.rng.u32(0..80) } else { 0 },
            flip_per_mille: if self.chance(6) { self.rng.u32(0..30) } else { 0 },
            max_latency: self.millis(0..300),
            ..StoreFaults::default()
        }
    }
}
