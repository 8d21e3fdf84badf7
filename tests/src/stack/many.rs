//! Many worlds, several at a time, and a shorter plan for one that is wrong.

use super::plan::Plan;
use super::run::{Outcome, run};
use super::world::Coverage;
use crate::time::Stopwatch;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// What has to have happened in a few hundred worlds.
pub const FAULTS: &[&str] = &[
    "all killed at once",
    "client dies",
    "cut from a router",
    "cut from clients",
    "cut from everybody",
    "cut from the registry",
    "cut from the store",
    "cut one way",
    "disk lost",
    "drain",
    "DTL changed",
    "DTL dies alone",
    "killed",
    "killed at an effect",
    "more is lost than the rules allow",
    "move",
    "move arrived",
    "orphaned, and forced",
    "power cut",
    "registry without a leader",
    "registry: change came late",
    "registry: lease expired",
    "registry: outcome unknown",
    "registry: watch began anew",
    "stands still (SIGSTOP)",
    "stopped in order",
    "store away",
    "store: put came late",
    "store: reply lost",
    "store: request failed",
    "two die together",
    "vDisk deleted",
    "vDisk made",
];

/// What all worlds together were.
#[derive(Default)]
pub struct Sum {
    /// How many.
    pub worlds: u64,
    /// Time that passed in them.
    pub virtual_time: Duration,
    /// How often each thing happened, and in how many worlds.
    pub coverage: std::collections::BTreeMap<&'static str, (u64, u64)>,
}

impl Sum {
    fn add(&mut self, outcome: &Outcome) {
        self.worlds += 1;
        self.virtual_time += outcome.virtual_time;
        let coverage: &Coverage = &outcome.coverage;
        for (what, n) in coverage {
            let entry = self.coverage.entry(what).or_default();
            entry.0 += n;
            entry.1 += u64::from(*n > 0);
        }
    }

    /// What should have happened and did not.
    pub fn missing(&self) -> Vec<&'static str> {
        let has = |what: &&&str| self.coverage.get(**what).is_none_or(|(times, _)| *times == 0);
        FAULTS.iter().filter(has).copied().collect()
    }
}

/// Runs the worlds of these seeds, `jobs` at a time, for at most `most`; the first that is wrong ends it.
///
/// # Errors
/// The plan of a world that is wrong, and what is wrong with it.
pub fn many(seeds: Range<u64>, jobs: usize, most: Option<Duration>) -> Result<Sum, (Box<Plan>, String)> {
    let watch = Stopwatch::start();
    let (next, stop) = (AtomicU64::new(seeds.start), AtomicBool::new(false));
    let sum = Mutex::new(Sum::default());
    let failed: Mutex<Option<(Box<Plan>, String)>> = Mutex::default();
    let in_time = || most.is_none_or(|most| watch.seconds() < most.as_secs_f64());
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) && in_time() {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        break;
                    }
                    let plan = Plan::new(seed);
                    match run(&plan, false) {
                        Ok(outcome) => sum.lock().unwrap_or_else(PoisonError::into_inner).add(&outcome),
                        Err(wrong) => {
                            stop.store(true, Ordering::Relaxed);
                            let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                            failed.get_or_insert((Box::new(plan), wrong));
                        }
                    }
                }
            });
        }
    });
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(failed) => Err(failed),
        None => Ok(sum.into_inner().unwrap_or_else(PoisonError::into_inner)),
    }
}

/// A plan with fewer events that is wrong too; looked for in `budget`.
pub fn shorter(plan: Plan, wrong: String, budget: Duration) -> (Plan, String) {
    let watch = Stopwatch::start();
    let (mut best, mut why) = (plan, wrong);
    let mut chunk = best.events.len().div_ceil(2);
    while chunk > 0 {
        let mut at = 0;
        while at < best.events.len() {
            if watch.seconds() > budget.as_secs_f64() {
                return (best, why);
            }
            let mut plan = best.clone();
            plan.events.drain(at..(at + chunk).min(best.events.len()));
            match run(&plan, false) {
                Ok(_) => at += chunk,
                Err(wrong) => (best, why) = (plan, wrong),
            }
        }
        chunk /= 2;
    }
    (best, why)
}
