//! Every decoder under a coverage-guided fuzzer, and the corpora it begins with.
//!
//! libFuzzer comes with the crate `libfuzzer-sys`; what it needs of the compiler are a few flags that the
//! stable one takes. All targets are one program, in a target folder of its own.

mod record;

use crate::steps::Program;
use crate::{check, packages, place};
use anyhow::{Context, Result, bail};
use clap::Args;
use std::collections::VecDeque;
use std::fs;
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::sync::Mutex;

/// `cargo xtask fuzz`.
#[derive(Args)]
pub struct Fuzz {
    /// Only these targets; all when none is named
    pub targets: Vec<String>,
    /// Seconds for each target; a hand-over of a format or a protocol asks for 600
    #[arg(long, default_value_t = 60)]
    pub seconds: u64,
    /// Targets that run at a time
    #[arg(long, default_value_t = 1)]
    pub jobs: usize,
    /// Make the corpora in tests/fuzz/corpus anew, from real runs and real clients, and fuzz nothing
    #[arg(long)]
    pub seed_corpus: bool,
}

/// The first two as in .cargo/config.toml, which these flags replace; the others as cargo-fuzz has them, less
/// what needs the nightly compiler: without `unsafe`, there is nothing for a sanitizer of addresses.
const FLAGS: &str = "-Ctarget-cpu=x86-64-v3 -Ctarget-feature=+pclmulqdq -Ccodegen-units=1 \
    -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";
/// Named, so that build scripts and macros are built without the instrumentation.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";
const MANIFEST: &str = "tests/fuzz/Cargo.toml";

/// How one target went.
struct Outcome {
    target: String,
    /// What libFuzzer counted, by its own words.
    executions: String,
    coverage: String,
    corpus: String,
    /// Inputs that are findings.
    findings: Vec<PathBuf>,
    ended_well: bool,
}

/// `cargo xtask fuzz`.
pub fn fuzz(fuzz: &Fuzz) -> Result<ExitCode> {
    if fuzz.seed_corpus {
        seed_corpus()?;
        return Ok(ExitCode::SUCCESS);
    }
    let targets = chosen(&fuzz.targets)?;
    packages::for_build()?;
    build()?;
    println!("{} targets, {} s each, {} at a time", targets.len(), fuzz.seconds, fuzz.jobs.max(1));
    let queue = Mutex::new(VecDeque::from(targets));
    let outcomes = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..fuzz.jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().ok().and_then(|mut queue| queue.pop_front());
                    let Some(target) = next else { break };
                    let outcome = run(&target, fuzz.seconds);
                    if let Ok(mut outcomes) = outcomes.lock() {
                        outcomes.push((target, outcome));
                    }
                }
            });
        }
    });
    report(outcomes.into_inner().unwrap_or_default())
}

/// Formats the one crate that is not of the workspace.
pub fn format(more: &[&str]) -> Result<()> {
    Program::cargo(&[&["fmt", "--manifest-path", MANIFEST], more].concat()).run()
}

/// Where seeds lie: a folder for each target.
fn seeds() -> PathBuf {
    place::root().join("tests/fuzz/corpus")
}

/// Where the fuzzer is built, and keeps what it learned and found.
fn work() -> PathBuf {
    place::target().join("fuzz")
}

fn program() -> PathBuf {
    work().join(TRIPLE).join("release/fuzz")
}

fn chosen(asked: &[String]) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(seeds()).context("tests/fuzz/corpus")? {
        all.push(entry?.file_name().to_string_lossy().into_owned());
    }
    all.sort();
    match asked.iter().find(|target| !all.contains(target)) {
        Some(unknown) => bail!("there is no fuzz target {unknown}; there are: {}", all.join(" ")),
        None if asked.is_empty() => Ok(all),
        None => Ok(asked.to_vec()),
    }
}

fn build() -> Result<()> {
    let build = Program::cargo(&["build", "--release", "--manifest-path", MANIFEST, "--target", TRIPLE]);
    build.env("RUSTFLAGS", FLAGS).env("CARGO_TARGET_DIR", work()).run()
}

/// Runs one target.
fn run(target: &str, seconds: u64) -> Result<Outcome> {
    let (corpus, found) = (work().join("corpus").join(target), work().join("findings").join(target));
    fs::create_dir_all(&corpus)?;
    fs::create_dir_all(&found)?;
    let log = work().join("logs").join(format!("{target}.log"));
    fs::create_dir_all(work().join("logs"))?;
    let options = [
        format!("-max_total_time={seconds}"),
        "-max_len=65536".to_owned(),
        // An input that takes this long, or so much memory, is a finding too.
        "-timeout=20".to_owned(),
        "-rss_limit_mb=1024".to_owned(),
        "-print_final_stats=1".to_owned(),
        format!("-artifact_prefix={}/", found.display()),
        corpus.display().to_string(),
        seeds().join(target).display().to_string(),
    ];
    let before = files(&found)?;
    let mut fuzzer = Program::new(program(), &options).env("SR_FUZZ_TARGET", target);
    let file = fs::File::create(&log)?;
    fuzzer.command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    println!("  {target}: {}", log.display());
    let status = fuzzer.command.status().with_context(|| format!("{:?}", fuzzer.command))?;
    let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    let last = |word: &str| {
        let mut found = text.lines().rev().filter_map(|line| line.split_once(word).map(|(_, rest)| rest));
        found.next().and_then(|rest| rest.split_whitespace().next()).unwrap_or("?").to_owned()
    };
    Ok(Outcome {
        target: target.to_owned(),
        executions: last("stat::number_of_executed_units:"),
        coverage: last(" cov: "),
        corpus: last(" corp: "),
        findings: files(&found)?.into_iter().filter(|file| !before.contains(file)).collect(),
        ended_well: status.success(),
    })
}

fn files(folder: &std::path::Path) -> Result<Vec<PathBuf>> {
    Ok(fs::read_dir(folder)?.collect::<Result<Vec<_>, _>>()?.into_iter().map(|entry| entry.path()).collect())
}

fn report(mut outcomes: Vec<(String, Result<Outcome>)>) -> Result<ExitCode> {
    outcomes.sort_by(|a, b| a.0.cmp(&b.0));
    println!("\n{:<18} {:>12} {:>9} {:>14} {:>9}", "target", "executions", "coverage", "corpus", "findings");
    let mut clean = true;
    for (target, outcome) in &outcomes {
        let o = match outcome {
            Ok(outcome) => outcome,
            Err(error) => {
                clean = false;
                println!("{target:<18} {error:#}");
                continue;
            }
        };
        let count = o.findings.len();
        println!("{target:<18} {:>12} {:>9} {:>14} {count:>9}", o.executions, o.coverage, o.corpus);
        if !o.ended_well && count == 0 {
            println!(
                "  the fuzzer itself failed: {}",
                work().join("logs").join(format!("{target}.log")).display()
            );
        }
        clean &= o.ended_well && count == 0;
    }
    for o in outcomes.iter().filter_map(|(_, outcome)| outcome.as_ref().ok()) {
        for finding in &o.findings {
            println!("\n{} failed on {}; to see it again:", o.target, finding.display());
            println!("  SR_FUZZ_TARGET={} {} {}", o.target, program().display(), finding.display());
            println!("mended, it stays: cp {} {}/", finding.display(), seeds().join(&o.target).display());
        }
    }
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Makes the corpora anew; what a finding left in them stays.
fn seed_corpus() -> Result<()> {
    check::prepare()?;
    check::build().run()?;
    // With the whole workspace, as everywhere: with a part of it RocksDB would be built once more.
    let all =
        ["test", "--release", "--workspace", "--test", "hostile_bytes", "--", "--ignored", "seed_corpus"];
    Program::cargo(&all).run()?;
    record::sessions(&seeds())
}
