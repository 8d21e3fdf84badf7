//! Runs simulated worlds: `cargo xtask sim --help`.

// It reports how long it took.
#![allow(clippy::disallowed_methods)]

use clap::Parser;
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tests::sim::plan::Plan;
use tests::sim::run::{Outcome, run};
use tests::sim::sequences::{Alphabet, run_all, run_histories};
use tests::sim::shrink::shrink;
use tests::stack;

/// Simulated worlds, in virtual time: the volume driver over simulated disks and stores, or routers with all that
/// belongs to them.
///
/// Examples:
///   sim --seeds 500            seeds 0 to 499
///   sim --stack --seeds 1000   the whole stack: three or four routers, registry, DTL, store, clients
///   sim --seed 17              one seed, with what happened in it
///   sim --soak 1h              random seeds for an hour
#[derive(Parser)]
#[command(verbatim_doc_comment)]
struct Cli {
    /// Run this seed only, and say more of it
    #[arg(long, conflicts_with_all = ["seeds", "soak"])]
    seed: Option<u64>,
    /// The whole stack instead of the volume driver alone
    #[arg(long, conflicts_with = "sequences")]
    stack: bool,
    /// Run this many seeds
    #[arg(long, default_value_t = 500)]
    seeds: u64,
    /// The first of them
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Run seeds for this long: 90s, 10m, 1h
    #[arg(long, value_parser = duration)]
    soak: Option<Duration>,
    /// Client operations in one world, at least
    #[arg(long, default_value_t = 2000)]
    operations: usize,
    /// Worlds that run at a time; all processors when not given
    #[arg(long)]
    jobs: Option<usize>,
    /// Instead: every sequence of up to this many operations, with every crash
    #[arg(long)]
    sequences: Option<usize>,
    /// Seconds spent on making a failing history shorter
    #[arg(long, default_value_t = 60)]
    shrink: u64,
}

fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.len().saturating_sub(1));
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err("say it like 90s, 10m or 1h".into()),
    };
    number.parse::<u64>().map(|n| Duration::from_secs(n * unit)).map_err(|e| e.to_string())
}

/// What all worlds together were.
#[derive(Default)]
struct Sum {
    worlds: u64,
    operations: u64,
    crashes: u64,
    virtual_time: Duration,
    coverage: BTreeMap<&'static str, (u64, u64)>,
}

impl Sum {
    fn add(&mut self, outcome: &Outcome) {
        self.worlds += 1;
        self.operations += outcome.operations;
        self.crashes += outcome.crashes;
        self.virtual_time += outcome.virtual_time;
        for (what, n) in &outcome.coverage {
            let entry = self.coverage.entry(what).or_default();
            entry.0 += n;
            entry.1 += u64::from(*n > 0);
        }
    }

    fn print(&self, wall: Duration) {
        print_coverage(&self.coverage);
        println!(
            "\n{} worlds, {} operations, {} crashes; {:.0} s of virtual time in {:.1} s: {:.0} x",
            self.worlds,
            self.operations,
            self.crashes,
            self.virtual_time.as_secs_f64(),
            wall.as_secs_f64(),
            self.virtual_time.as_secs_f64() / wall.as_secs_f64()
        );
    }
}

fn print_coverage(coverage: &BTreeMap<&'static str, (u64, u64)>) {
    println!("\n{:<34} {:>12} {:>10}", "fault", "times", "worlds");
    for (what, (times, worlds)) in coverage {
        println!("{what:<34} {times:>12} {worlds:>10}");
    }
}

/// Worlds of the whole stack.
fn whole_stack(cli: &Cli, seeds: std::ops::Range<u64>, jobs: usize) -> ExitCode {
    let begin = Instant::now();
    if let Some(seed) = cli.seed {
        // What the routers say, too, as far as `RUST_LOG` asks for it; their time is not ours.
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        tracing_subscriber::fmt().with_env_filter(filter).without_time().with_ansi(false).init();
        return match stack::run::run(&stack::plan::Plan::new(seed), true) {
            Ok(outcome) => {
                println!("seed {seed}: digest {:016x}", outcome.digest);
                ExitCode::SUCCESS
            }
            Err(wrong) => {
                println!("seed {seed} is wrong: {wrong}");
                ExitCode::FAILURE
            }
        };
    }
    match stack::many::many(seeds, jobs, cli.soak) {
        Ok(sum) => {
            print_coverage(&sum.coverage);
            let (wall, virtual_time) = (begin.elapsed().as_secs_f64(), sum.virtual_time.as_secs_f64());
            println!(
                "\n{} worlds; {virtual_time:.0} s of virtual time in {wall:.1} s: {:.0} x",
                sum.worlds,
                virtual_time / wall
            );
            ExitCode::SUCCESS
        }
        Err((plan, wrong)) => {
            let (seed, events) = (plan.seed, plan.events.len());
            println!("\nseed {seed} is wrong: {wrong}\nreplay: cargo xtask sim --stack --seed {seed}");
            let (short, wrong) = stack::many::shorter(*plan, wrong, Duration::from_secs(cli.shrink));
            println!("{} of {events} events are left: {wrong}\n{:#?}", short.events.len(), short.events);
            ExitCode::FAILURE
        }
    }
}

fn sequences(most: usize, jobs: usize) -> ExitCode {
    match run_histories() {
        Ok(n) => println!("{} histories, {} runs, none wrong", n.sequences, n.runs),
        Err(wrong) => {
            println!("{wrong}");
            return ExitCode::FAILURE;
        }
    }
    let each = (1..=most).flat_map(|length| Alphabet::ALL.map(|alphabet| (alphabet, length)));
    for (alphabet, length) in each {
        let begin = Instant::now();
        match run_all(alphabet, length, jobs) {
            Ok(n) => {
                let took = begin.elapsed().as_secs_f64();
                println!(
                    "{alphabet:?}, length {length}: {} sequences, {} runs in {took:.1} s, none wrong",
                    n.sequences, n.runs
                );
            }
            Err(wrong) => {
                println!("{alphabet:?}, length {length}: {wrong}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // A panic is an outcome here, and told as one.
    std::panic::set_hook(Box::new(|_| {}));
    let begin = Instant::now();
    let jobs = cli.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    if let Some(most) = cli.sequences {
        return sequences(most, jobs);
    }
    let seeds = match (cli.seed, cli.soak) {
        (Some(seed), _) => seed..seed + 1,
        (None, Some(_)) => {
            let from = fastrand::u64(..1 << 40);
            from..u64::MAX
        }
        (None, None) => cli.from..cli.from + cli.seeds,
    };
    if cli.stack {
        return whole_stack(&cli, seeds, jobs);
    }
    let (next, stop) = (AtomicU64::new(seeds.start), AtomicBool::new(false));
    let sum = Mutex::new(Sum::default());
    let failed: Mutex<Option<(Plan, String)>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) && cli.soak.is_none_or(|most| begin.elapsed() < most) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        break;
                    }
                    let plan = Plan::new(seed, cli.operations);
                    match run(&plan) {
                        Ok(outcome) => {
                            if cli.seed.is_some() {
                                println!("seed {seed}: digest {:016x}", outcome.digest);
                            }
                            sum.lock().unwrap().add(&outcome);
                        }
                        Err(wrong) => {
                            stop.store(true, Ordering::Relaxed);
                            failed.lock().unwrap().get_or_insert((plan, wrong));
                        }
                    }
                }
            });
        }
    });
    sum.into_inner().unwrap().print(begin.elapsed());
    let Some((plan, wrong)) = failed.into_inner().unwrap() else { return ExitCode::SUCCESS };
    let seed = plan.seed;
    println!("\nseed {seed} is wrong: {wrong}\nreplay: cargo xtask sim --seed {seed}\nmaking it shorter ...");
    let operations = plan.operations();
    let (short, wrong) = shrink(plan, wrong, Duration::from_secs(cli.shrink));
    println!("{} of {operations} operations are left: {wrong}", short.operations());
    println!("{:#?}", short.lives);
    ExitCode::FAILURE
}
