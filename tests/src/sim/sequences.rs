//! Every short sequence of operations, with a crash at every effect on the disk and on the store.
//!
//! A crash before the last operation is a crash at the end of a shorter sequence, so only the
//! effects of the last one (and of the upload of everything after it) are points to crash at.

use super::model::SECTOR;
use super::plan::{Crash, Plan};
use super::reference::{Op, Reference, State};
use super::run::{differences, unchanged_is_the_same};
use super::world::{CLUSTER, World};
use common::{BlockDevice, Error, VolumeId};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use volumedriver::{Description, Effort, SnapshotChange};

/// Addresses that operations choose from, and clusters of the volume.
const CLUSTERS: usize = 3;

/// Which operations the sequences are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alphabet {
    /// What a client of a block device does.
    Log,
    /// Time and space: snapshots, what is done with them, and what cleans up behind them.
    Space,
}

impl Alphabet {
    /// Both.
    pub const ALL: [Alphabet; 2] = [Alphabet::Log, Alphabet::Space];

    /// All of its operations.
    pub fn operations(self) -> Vec<Op> {
        let each = |ops: fn(usize) -> Vec<Op>| (0..CLUSTERS).flat_map(ops);
        match self {
            Alphabet::Log => [Op::Flush, Op::Resize, Op::Restart, Op::Upload]
                .into_iter()
                .chain(each(|c| {
                    vec![Op::Write(c), Op::Unaligned(c), Op::Zero(c), Op::Discard(c), Op::Fua(c)]
                }))
                .collect(),
            Alphabet::Space => {
                let ops = [Op::Snapshot, Op::Clone, Op::Rollback, Op::DeleteSnapshot];
                ops.into_iter()
                    .chain([Op::Flush, Op::Resize, Op::Scrub, Op::Merge])
                    .chain(each(|c| vec![Op::Write(c), Op::Unaligned(c), Op::Discard(c)]))
                    .collect()
            }
        }
    }
}

/// Longer ones that some way to be wrong takes.
const HISTORIES: &[&[Op]] = &[
    // Of a SCO that only a snapshot reads.
    &[Op::Write(0), Op::Snapshot, Op::Write(0), Op::Upload],
    // Of a TLog that only a snapshot sees, between a snapshot and the head that went back behind it.
    &[Op::Write(0), Op::Snapshot, Op::Write(0), Op::Snapshot, Op::Write(1), Op::Rollback, Op::Write(2)],
    &[Op::Write(0), Op::Snapshot, Op::Write(0), Op::Snapshot, Op::Write(1), Op::Rollback, Op::Scrub],
    // Back, on, and back again; then what was in between goes.
    &[Op::Snapshot, Op::Write(0), Op::Snapshot, Op::Rollback, Op::Write(1), Op::Rollback, Op::DeleteSnapshot],
    // A clone of what is overwritten and rolled back.
    &[Op::Write(0), Op::Write(1), Op::Snapshot, Op::Clone, Op::Discard(1), Op::Rollback, Op::Restart],
    // A snapshot under another one, deleted while its data is shadowed and read.
    &[
        Op::Write(0),
        Op::Snapshot,
        Op::Unaligned(0),
        Op::Snapshot,
        Op::Discard(0),
        Op::DeleteSnapshot,
        Op::Upload,
    ],
    // A SCO that is half garbage: for the head, under a snapshot, under a clone, and twice.
    &[Op::Write(0), Op::Write(1), Op::Upload, Op::Write(0), Op::Scrub],
    &[Op::Write(0), Op::Write(1), Op::Write(2), Op::Upload, Op::Write(0), Op::Scrub, Op::Write(1), Op::Scrub],
    &[Op::Write(0), Op::Write(1), Op::Upload, Op::Write(0), Op::Scrub, Op::Restart],
    &[Op::Write(0), Op::Write(1), Op::Upload, Op::Write(0), Op::Snapshot, Op::Write(1), Op::Scrub],
    &[Op::Write(0), Op::Write(1), Op::Snapshot, Op::Write(0), Op::Snapshot, Op::DeleteSnapshot, Op::Scrub],
    &[
        Op::Write(0),
        Op::Write(1),
        Op::Upload,
        Op::Write(0),
        Op::Snapshot,
        Op::Clone,
        Op::Scrub,
        Op::Unaligned(1),
    ],
    &[Op::Write(0), Op::Write(1), Op::Snapshot, Op::Clone, Op::Write(0), Op::Scrub, Op::Rollback, Op::Scrub],
    // Garbage that a rollback left, and what was discarded.
    &[Op::Snapshot, Op::Write(0), Op::Write(1), Op::Rollback, Op::Write(1), Op::Scrub],
    &[Op::Write(0), Op::Write(1), Op::Upload, Op::Discard(0), Op::Merge, Op::Scrub, Op::Restart],
    &[Op::Write(0), Op::Upload, Op::Discard(0), Op::Snapshot, Op::Write(0), Op::Merge, Op::Rollback],
    // The same cluster live twice, for a snapshot and for the head, in one rewriting.
    &[
        Op::Write(0),
        Op::Write(1),
        Op::Upload,
        Op::Unaligned(1),
        Op::Snapshot,
        Op::Write(0),
        Op::Write(2),
        Op::Upload,
        Op::Write(2),
        Op::Scrub,
    ],
];

/// Runs the longer histories. An error names one that is wrong.
pub fn run_histories() -> Result<Count, String> {
    let mut count = Count::default();
    for history in HISTORIES {
        count.sequences += 1;
        count.runs += with_every_crash(history).map_err(|e| format!("{history:?}: {e}"))?;
    }
    Ok(count)
}

/// What was run.
#[derive(Debug, Default, Clone, Copy)]
pub struct Count {
    /// Sequences.
    pub sequences: u64,
    /// Runs: each sequence as it is, and with each crash.
    pub runs: u64,
}

/// The point from which on the dying process does nothing more.
#[derive(Debug, Clone, Copy)]
enum Point {
    Disk(u64),
    Store(u64),
}

impl Point {
    fn is_store(self) -> bool {
        matches!(self, Point::Store(_))
    }
}

/// Runs every sequence of exactly `length` operations on `jobs` threads. An error names one that is
/// wrong.
pub fn run_all(alphabet: Alphabet, length: usize, jobs: usize) -> Result<Count, String> {
    let all = alphabet.operations();
    let total = all.len().pow(length as u32);
    let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let runs = AtomicU64::new(0);
    let wrong: Mutex<Option<String>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let number = next.fetch_add(1, Ordering::Relaxed) as usize;
                    if number >= total {
                        return;
                    }
                    let digits = (0..length).rev().map(|d| number / all.len().pow(d as u32) % all.len());
                    let sequence: Vec<Op> = digits.map(|d| all[d]).collect();
                    match with_every_crash(&sequence) {
                        Ok(n) => drop(runs.fetch_add(n, Ordering::Relaxed)),
                        Err(e) => {
                            stop.store(true, Ordering::Relaxed);
                            let mut wrong = wrong.lock().unwrap_or_else(|e| e.into_inner());
                            wrong.get_or_insert(format!("{sequence:?}: {e}"));
                        }
                    }
                }
            });
        }
    });
    match wrong.into_inner().unwrap_or_else(|e| e.into_inner()) {
        Some(wrong) => Err(wrong),
        None => Ok(Count { sequences: total as u64, runs: runs.into_inner() }),
    }
}

/// One sequence: as it is, then with each crash. The number of runs.
pub fn with_every_crash(sequence: &[Op]) -> Result<u64, String> {
    let effects = one(sequence, None)?;
    let mut runs = 1;
    let disk = [Crash::Kill, Crash::Power(0), Crash::Power(50)];
    let store = [Crash::Kill, Crash::LostDataDir];
    let disk = (1..=effects.0 + 1).flat_map(|n| disk.map(|crash| (Point::Disk(n), crash)));
    let store = (1..=effects.1 + 1).flat_map(|n| store.map(|crash| (Point::Store(n), crash)));
    for (point, crash) in disk.chain(store) {
        one(sequence, Some((point, crash))).map_err(|e| format!("{crash:?} at {point:?}: {e}"))?;
        runs += 1;
    }
    Ok(runs)
}

/// Runs one sequence; the effects on disk and store since its last operation began.
fn one(sequence: &[Op], crash: Option<(Point, Crash)>) -> Result<(u64, u64), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.map_err(|e| e.to_string())?;
    let whole = std::panic::AssertUnwindSafe(|| runtime.block_on(Sequence::run(sequence, crash)));
    std::panic::catch_unwind(whole).unwrap_or_else(|_| Err("panicked".into()))
}

struct Sequence {
    world: World,
    reference: Reference,
}

impl Sequence {
    async fn run(sequence: &[Op], crash: Option<(Point, Crash)>) -> Result<(u64, u64), String> {
        let told = |e: Error| e.to_string();
        let world = World::new(&plan()).await.map_err(told)?;
        let mut s = Sequence { world, reference: Reference::default() };
        s.world.crash(Crash::Kill);
        s.world.boot().await.map_err(told)?;
        let mut start = s.world.effects();
        for (number, &op) in sequence.iter().enumerate() {
            if number + 1 == sequence.len() {
                start = s.world.effects();
                match crash {
                    Some((Point::Disk(n), _)) => s.world.die_at(Some(n), None),
                    Some((Point::Store(n), _)) => s.world.die_at(None, Some(n)),
                    None => {}
                }
            }
            s.reference.log.push(op);
            match s.step(op, number).await {
                Ok(()) => s.reference.ack(),
                Err(_) if crash.is_some() => break,
                Err(e) => return Err(format!("operation {number} fails: {e}")),
            }
        }
        // Then everything goes to the backend, or as much as the point allows.
        let all = s.reference.acked;
        let drained = match s.world.volumes.first() {
            Some(v) => v.drain(Duration::from_secs(5)).await,
            None => Err(Error::unavailable("it died while it was restarted")),
        };
        match drained {
            Ok(()) => s.reference.committed = all,
            Err(_) if crash.is_some() => {}
            Err(e) => return Err(format!("draining fails: {e}")),
        }
        let end = s.world.effects();
        if let Some((point, crash)) = crash {
            let least = match crash {
                Crash::Kill | Crash::Clean => s.reference.acked,
                Crash::Power(_) => s.reference.flushed.max(s.reference.committed),
                Crash::LostDataDir | Crash::OldDataDir | Crash::Takeover => s.reference.committed,
            };
            s.world.fair_weather();
            if point.is_store() {
                s.world.fsck().await?;
            }
            s.again(crash).await?;
            let found = s.check(least).await?;
            s.again(Crash::Kill).await?;
            if s.look().await.map_err(told)? != found {
                return Err("a second crash changes the image".into());
            }
        } else {
            s.check(s.reference.acked).await?;
        }
        Ok((end.0 - start.0, end.1 - start.1))
    }

    async fn again(&mut self, crash: Crash) -> Result<(), String> {
        self.world.crash(crash);
        self.world.boot().await.map_err(|e| format!("the process does not start: {e}"))
    }

    /// What there is: the volume and all of its snapshots.
    async fn look(&self) -> common::Result<State> {
        let volume = &self.world.volumes[0];
        let mut snapshots = Vec::new();
        for s in volume.snapshots() {
            let device = volume.open_snapshot(&s.about.name, Duration::from_secs(5)).await?;
            let image = device.read(0, device.geometry().size as u32).await?;
            snapshots.push((s.about.id as usize, image.to_vec()));
        }
        Ok(State { image: self.world.image(0).await?, snapshots })
    }

    async fn check(&self, least: usize) -> Result<State, String> {
        let told = |e: Error| e.to_string();
        let found = self.look().await.map_err(told)?;
        if !self.reference.explains(CLUSTERS, least, &found) {
            let sectors = |image: &[u8]| image.chunks(SECTOR).map(|s| s[0]).collect::<Vec<u8>>();
            let snapshots: Vec<_> = found.snapshots.iter().map(|s| (s.0, sectors(&s.1))).collect();
            let image = sectors(&found.image);
            return Err(format!(
                "no prefix of at least {least} operations explains {image:?} with {snapshots:?}"
            ));
        }
        self.check_differences(&found).await?;
        for &(by, of) in &self.reference.clones {
            let (volume, snapshot) = (&self.world.volumes[0], snapshot_name(of));
            let snapshot = volume.open_snapshot(&snapshot, Duration::from_secs(5)).await.map_err(told)?;
            let then = snapshot.read(0, snapshot.geometry().size as u32).await.map_err(told)?;
            let clone = self.world.open_clone(clone_id(by)).await.map_err(told)?;
            let image = clone.read(0, clone.geometry().size as u32).await.map_err(told)?;
            clone.close().await;
            if image != self.reference.clone_of(&then, by) {
                return Err(format!("the clone of operation {by} shows something else"));
            }
        }
        Ok(found)
    }

    /// What is said to be unchanged between any two of the volume and its snapshots is the same.
    async fn check_differences(&self, found: &State) -> Result<(), String> {
        let told = |e: Error| e.to_string();
        let volume = &self.world.volumes[0];
        for (since, then) in &found.snapshots {
            let since = *since as u128;
            let changed = differences(&**volume, since, found.image.len()).await.map_err(told)?;
            let wrong = |e| format!("since snapshot {since}: {e}");
            unchanged_is_the_same(&found.image, then, &changed).map_err(wrong)?;
            for (of, image) in &found.snapshots {
                let device = volume.open_snapshot(&snapshot_name(*of), Duration::from_secs(5)).await;
                let changed = differences(&device.map_err(told)?, since, image.len()).await.map_err(told)?;
                let wrong = |e| format!("snapshot {of} since snapshot {since}: {e}");
                unchanged_is_the_same(image, then, &changed).map_err(wrong)?;
            }
        }
        Ok(())
    }

    /// Clones a snapshot and changes the clone.
    async fn clone(&mut self, number: usize, of: usize) -> common::Result<()> {
        let volume = self.world.volumes[0].clone();
        volume.drain(Duration::from_secs(5)).await?;
        let snapshot = volume.find_snapshot(&snapshot_name(of))?;
        self.world.create_clone(clone_id(number), volume.id(), &snapshot).await?;
        let clone = self.world.open_clone(clone_id(number)).await?;
        let (sector, cluster) = (SECTOR as u64, u64::from(CLUSTER));
        let content = bytes::Bytes::from(vec![number as u8 + 101; 3 * SECTOR]);
        clone.write(3 * sector, content, false).await?;
        clone.discard(cluster, cluster, false).await?;
        clone.drain(Duration::from_secs(5)).await?;
        clone.close().await;
        self.reference.clones.push((number, of));
        Ok(())
    }

    /// The oldest snapshot, the newest, and the newest without a clone.
    fn snapshots(&self) -> (Option<usize>, Option<usize>, Option<usize>) {
        let all = self.reference.state(CLUSTERS, self.reference.log.len() - 1).snapshots;
        let free = |s: &&(usize, Vec<u8>)| self.reference.clones.iter().all(|c| c.1 != s.0);
        (all.first().map(|s| s.0), all.last().map(|s| s.0), all.iter().rev().find(free).map(|s| s.0))
    }

    async fn step(&mut self, op: Op, number: usize) -> common::Result<()> {
        let cluster = u64::from(CLUSTER);
        let fill = |len: u64| bytes::Bytes::from(vec![number as u8 + 1; len as usize]);
        if op == Op::Restart {
            self.world.crash(Crash::Kill);
            return self.world.boot().await;
        }
        let v = self.world.volumes[0].clone();
        let (oldest, newest, free) = self.snapshots();
        match op {
            Op::Snapshot => {
                let about = Description {
                    id: number as u128,
                    name: snapshot_name(number),
                    metadata: bytes::Bytes::from(vec![number as u8; 100]),
                    ..Description::default()
                };
                v.snapshot(about).await
            }
            Op::Clone => match newest {
                Some(of) => self.clone(number, of).await,
                None => v.drain(Duration::from_secs(5)).await,
            },
            Op::Rollback => {
                v.drain(Duration::from_secs(5)).await?;
                if let Some(to) = oldest {
                    v.close().await;
                    self.world.roll_back(to as u128).await?;
                }
                Ok(())
            }
            Op::DeleteSnapshot => {
                if let Some(gone) = free {
                    self.reference.deleted.push((number, gone, false));
                    v.change_snapshot(gone as u128, SnapshotChange::Delete, Duration::from_secs(5)).await?;
                    if let Some(last) = self.reference.deleted.last_mut() {
                        last.2 = true;
                    }
                }
                Ok(())
            }
            Op::Write(c) => v.write(c as u64 * cluster, fill(cluster), false).await,
            Op::Fua(c) => v.write(c as u64 * cluster, fill(cluster), true).await,
            Op::Unaligned(c) => {
                let sector = SECTOR as u64;
                v.write(c as u64 * cluster + 3 * sector, fill(3 * sector), false).await
            }
            Op::Zero(c) => v.write_zeroes(c as u64 * cluster, cluster, false, false).await,
            Op::Discard(c) => v.discard(c as u64 * cluster, cluster, false).await,
            Op::Flush => v.flush().await,
            Op::Resize => v.resize(v.geometry().size + cluster).await,
            Op::Upload => v.drain(Duration::from_secs(5)).await,
            Op::Scrub => v.scrub(Effort::Full, Duration::from_secs(5)).await.map(drop),
            Op::Merge => v.scrub(Effort::Merge, Duration::from_secs(5)).await.map(drop),
            Op::Restart => Ok(()),
        }
    }
}

fn snapshot_name(number: usize) -> String {
    format!("s{number}")
}

fn clone_id(number: usize) -> VolumeId {
    VolumeId(0xc10e_0000 + number as u128)
}

/// One small volume, nothing wrong but the crash.
fn plan() -> Plan {
    let mut plan = Plan::new(0, 0);
    plan.lives.clear();
    plan.volumes = 1;
    plan.size = CLUSTERS * CLUSTER as usize / SECTOR;
    plan.settings.tlog_scos = 1;
    // A scrub rewrites each TLog by itself; there is an operation that merges them.
    plan.settings.tlog_entries = 1024;
    plan.settings.seal_age_seconds = 1;
    plan
}
