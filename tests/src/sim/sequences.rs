//! Every short sequence of operations, with a crash at every effect on the disk and on the store.
//!
//! A crash before the last operation is a crash at the end of a shorter sequence, so only the
//! effects of the last one (and of the upload of everything after it) are points to crash at.

use super::model::SECTOR;
use super::plan::{Crash, Plan};
use super::reference::{Op, Reference};
use super::world::{CLUSTER, World};
use common::{BlockDevice, Error};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Addresses that operations choose from, and clusters of the volume.
const CLUSTERS: usize = 3;

/// All operations.
pub fn operations() -> Vec<Op> {
    let mut all = vec![Op::Flush, Op::Resize, Op::Restart, Op::Upload];
    for c in 0..CLUSTERS {
        all.extend([Op::Write(c), Op::Unaligned(c), Op::Zero(c), Op::Discard(c), Op::Fua(c)]);
    }
    all
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
pub fn run_all(length: usize, jobs: usize) -> Result<Count, String> {
    let all = operations();
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
            if s.world.image(0).await.map_err(told)? != found {
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

    async fn check(&self, least: usize) -> Result<Vec<u8>, String> {
        let found = self.world.image(0).await.map_err(|e| e.to_string())?;
        if self.reference.explains(CLUSTERS, least, &found) {
            return Ok(found);
        }
        let sectors: Vec<u8> = found.chunks(SECTOR).map(|s| s[0]).collect();
        Err(format!("no prefix of at least {least} operations explains {sectors:?}"))
    }

    async fn step(&mut self, op: Op, number: usize) -> common::Result<()> {
        let cluster = u64::from(CLUSTER);
        let fill = |len: u64| bytes::Bytes::from(vec![number as u8 + 1; len as usize]);
        if op == Op::Restart {
            self.world.crash(Crash::Kill);
            return self.world.boot().await;
        }
        let v = self.world.volumes[0].clone();
        match op {
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
            Op::Restart => Ok(()),
        }
    }
}

/// One small volume, nothing wrong but the crash.
fn plan() -> Plan {
    let mut plan = Plan::new(0, 0);
    plan.lives.clear();
    plan.volumes = 1;
    plan.size = CLUSTERS * CLUSTER as usize / SECTOR;
    plan.settings.tlog_scos = 1;
    plan.settings.seal_age_seconds = 1;
    plan
}
