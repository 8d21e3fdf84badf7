//! The whole stack in simulation: routers, registry, DTL, store and clients, with everything that may go wrong between
//! them. `cargo xtask sim --stack --seeds 1000` runs more of it.

use tests::stack::many::many;
use tests::stack::plan::Plan;
use tests::stack::run::run;
use tests::time::Stopwatch;

const SEEDS: u64 = 250;

#[test]
fn no_world_of_several_routers_breaks_a_rule() {
    let watch = Stopwatch::start();
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let sum = many(0..SEEDS, jobs, None).unwrap_or_else(|(plan, wrong)| {
        panic!("seed {}: {wrong}\nreplay: cargo xtask sim --stack --seed {}", plan.seed, plan.seed)
    });
    for (what, (times, worlds)) in &sum.coverage {
        println!("{what:<34} {times:>9} {worlds:>6}");
    }
    assert!(sum.missing().is_empty(), "no world had: {:?}", sum.missing());
    let (virtual_time, wall) = (sum.virtual_time.as_secs_f64(), watch.seconds());
    println!("{SEEDS} worlds, {virtual_time:.0} s of virtual time in {wall:.0} s");
}

#[test]
fn the_same_seed_is_the_same_world_of_routers() {
    for seed in [3, 11, 27] {
        let digests = [(); 2].map(|()| run(&Plan::new(seed), false).map(|outcome| outcome.digest));
        assert!(digests[0].is_ok() && digests[0] == digests[1], "seed {seed}: {digests:?}");
    }
}
