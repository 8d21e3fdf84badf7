//! Runs each seeded bug against the rings: `cargo xtask mutants` builds and starts this.

// It reports how long it took.
#![allow(clippy::disallowed_methods)]

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};
use tests::sim::mutants::{self, Mutant};
use tests::stack;

/// Switches on one seeded bug after the other and tells which ring notices it, and how fast.
#[derive(Parser)]
struct Cli {
    /// Only the bugs whose name holds this
    filter: Option<String>,
    /// Seconds that a ring has
    #[arg(long, default_value_t = 60)]
    limit: u64,
    /// Write the table to this file
    #[arg(long)]
    write: Option<PathBuf>,
}

/// A ring: its name in the table, and what `sim` is told.
type Ring = (&'static str, &'static [&'static str]);

/// What notices bugs of the volume driver alone.
const RINGS: &[Ring] =
    &[("small sequences", &["--sequences", "2"]), ("simulation", &["--seeds", "1000000", "--shrink", "0"])];

/// What notices those that take several routers.
const STACK: &[Ring] = &[("whole stack", &["--stack", "--seeds", "1000000", "--shrink", "0"])];

/// What a ring said of a bug.
enum Verdict {
    Caught(Duration, String),
    Missed,
}

fn main() -> Result<ExitCode> {
    let cli = Cli::parse();
    ensure!(common::mutant::BUILT_IN, "this build has no seeded bugs: use `cargo xtask mutants`");
    let sim = std::env::current_exe()?.with_file_name("sim");
    let mut told = Told { table: String::from(HEAD), ..Told::default() };
    try_all(&cli, &sim, mutants::ALL, RINGS, &mut told)?;
    told.table += STACK_HEAD;
    try_all(&cli, &sim, stack::mutants::ALL, STACK, &mut told)?;
    let Told { table, caught, missed } = told;
    if let Some(path) = &cli.write {
        std::fs::write(path, &table).with_context(|| path.display().to_string())?;
    }
    println!("{caught} seeded bugs noticed, {} not: {missed:?}", missed.len());
    Ok(if missed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What came of all of them.
#[derive(Default)]
struct Told {
    table: String,
    caught: usize,
    missed: Vec<&'static str>,
}

fn try_all(cli: &Cli, sim: &Path, mutants: &[Mutant], rings: &[Ring], told: &mut Told) -> Result<()> {
    for mutant in mutants.iter().filter(|m| cli.filter.as_ref().is_none_or(|f| m.name.contains(f.as_str()))) {
        let mut verdicts = Vec::new();
        for (ring, arguments) in rings {
            let verdict = try_ring(sim, mutant, arguments, Duration::from_secs(cli.limit))?;
            let said = match &verdict {
                Verdict::Caught(took, why) => format!("{:.1} s: {why}", took.as_secs_f64()),
                Verdict::Missed => "not noticed".into(),
            };
            println!("{:<34} {ring:<16} {said}", mutant.name);
            verdicts.push(verdict);
        }
        let cell = |v: &Verdict| match v {
            Verdict::Caught(took, _) => format!("{:.1} s", took.as_secs_f64()),
            Verdict::Missed => "-".into(),
        };
        let cells: Vec<String> = verdicts.iter().map(cell).collect();
        told.table += &format!("| `{}` | {} | {} |\n", mutant.name, mutant.what, cells.join(" | "));
        if verdicts.iter().any(|v| matches!(v, Verdict::Caught(..))) {
            told.caught += 1;
        } else {
            told.missed.push(mutant.name);
        }
    }
    Ok(())
}

const STACK_HEAD: &str = "
## Several routers

Bugs of ownership, of the DTL, of how the registry is used and of the edge protocol, and how long the simulation of the whole
stack takes to notice them.

| seeded bug | what it does | whole stack |
|---|---|---|
";

const HEAD: &str = "\
# The mutation table

Known ways to be wrong, seeded in the code behind a build feature that no release can carry
(`common/src/mutant.rs`), and how long each ring takes to notice them. Made by
`cargo xtask mutants --write docs/mutations.md`. A `-` means that the ring did not notice it in a minute: one ring must.

| seeded bug | what it does | small sequences | simulation |
|---|---|---|---|
";

fn try_ring(sim: &Path, mutant: &Mutant, arguments: &[&str], limit: Duration) -> Result<Verdict> {
    let begin = Instant::now();
    let output = tempfile::tempfile()?;
    let mut child = Command::new(sim)
        .args(arguments)
        .env("SR_MUTANT", mutant.name)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| sim.display().to_string())?;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if begin.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            return Ok(Verdict::Missed);
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let took = begin.elapsed();
    let mut text = String::new();
    {
        use std::io::{Read, Seek};
        let mut output = output;
        output.rewind()?;
        output.read_to_string(&mut text)?;
    }
    match status.code() {
        Some(0) => Ok(Verdict::Missed),
        Some(1) => {
            let wrong = text.lines().find(|l| l.contains("is wrong") || l.starts_with("length"));
            let mut why =
                text.lines().rfind(|l| l.starts_with("length")).or(wrong).unwrap_or_default().to_owned();
            why.truncate(why.char_indices().nth(140).map_or(why.len(), |(at, _)| at));
            Ok(Verdict::Caught(took, why))
        }
        _ => bail!("{}: the ring did not run: {status}", mutant.name),
    }
}
