//! The simulation at each hand-over: 500 worlds, and every sequence of up to 3 operations with every
//! crash. `cargo xtask sim` runs more of both.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use tests::sim::plan::Plan;
use tests::sim::run::run;
use tests::sim::sequences::{self, Alphabet};
use tests::time::Stopwatch;

const SEEDS: u64 = 500;
const OPERATIONS: usize = 2000;

fn jobs() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[test]
fn no_world_breaks_the_contract() {
    let watch = Stopwatch::start();
    let next = AtomicU64::new(0);
    let sum = Mutex::new((0, 0, 0.0, BTreeMap::<&str, u64>::new()));
    std::thread::scope(|scope| {
        for _ in 0..jobs() {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= SEEDS {
                        break;
                    }
                    let outcome = match run(&Plan::new(seed, OPERATIONS)) {
                        Ok(outcome) => outcome,
                        Err(wrong) => panic!("seed {seed}: {wrong}\nreplay: cargo xtask sim --seed {seed}"),
                    };
                    assert!(
                        outcome.operations >= OPERATIONS as u64 && outcome.crashes >= 3,
                        "seed {seed} is too short"
                    );
                    let mut sum = sum.lock().unwrap();
                    sum.0 += outcome.operations;
                    sum.1 += outcome.crashes;
                    sum.2 += outcome.virtual_time.as_secs_f64();
                    for (what, n) in outcome.coverage {
                        *sum.3.entry(what).or_default() += n;
                    }
                }
            });
        }
    });
    let (operations, crashes, seconds, coverage) = sum.into_inner().unwrap();
    println!("{SEEDS} worlds, {operations} operations, {crashes} crashes, {seconds:.0} s of virtual time");
    for (what, n) in &coverage {
        println!("{what:<34} {n:>9}");
        assert!(*n > 0, "no world had: {what}");
    }
    println!("virtual time is {:.0} x wall time", seconds / watch.seconds());
}

#[test]
fn the_same_seed_is_the_same_world() {
    for seed in [1, 8, 13, 40] {
        let digests = [(); 2].map(|()| run(&Plan::new(seed, OPERATIONS)).map(|o| o.digest));
        assert!(digests[0].is_ok() && digests[0] == digests[1], "seed {seed}: {digests:?}");
    }
}

#[test]
fn the_longer_histories_survive_every_crash() {
    let count = sequences::run_histories().unwrap_or_else(|wrong| panic!("{wrong}"));
    println!("{} histories, {} runs", count.sequences, count.runs);
}

#[test]
fn every_sequence_of_up_to_three_operations_survives_every_crash() {
    for (alphabet, length) in (1..=3).flat_map(|length| Alphabet::ALL.map(|alphabet| (alphabet, length))) {
        let watch = Stopwatch::start();
        let count = sequences::run_all(alphabet, length, jobs()).unwrap_or_else(|wrong| panic!("{wrong}"));
        println!(
            "{alphabet:?}, length {length}: {} sequences, {} runs in {:.1} s",
            count.sequences,
            count.runs,
            watch.seconds()
        );
    }
}
