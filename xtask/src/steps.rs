//! Running programs, and what they cost.

use crate::place;
use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

/// A program to run in the workspace's root.
pub struct Program {
    /// The command, to be changed at will.
    pub command: Command,
}

impl Program {
    /// Any program.
    pub fn new<S: AsRef<OsStr>>(program: impl AsRef<OsStr>, arguments: &[S]) -> Self {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(place::root());
        Self { command }
    }

    /// cargo.
    pub fn cargo(arguments: &[&str]) -> Self {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut program = Self::new(cargo, arguments);
        // What the running xtask was given says nothing about the crates that it builds.
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
                program.command.env_remove(&name);
            }
        }
        program
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Runs it and demands success.
    pub fn run(mut self) -> Result<()> {
        let status = self.command.status().with_context(|| format!("{:?}", self.command))?;
        if !status.success() {
            bail!("{:?}: {status}", self.command);
        }
        Ok(())
    }

    /// Runs it with both outputs going to a file, and demands success; the file's end is shown otherwise.
    pub fn run_quietly(mut self, log: &std::path::Path) -> Result<()> {
        if let Some(folder) = log.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let file = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
        self.command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let status = self.command.status().with_context(|| format!("{:?}", self.command))?;
        if !status.success() {
            let text = String::from_utf8_lossy(&std::fs::read(log)?).into_owned();
            let lines: Vec<_> = text.lines().collect();
            let tail = lines[lines.len().saturating_sub(15)..].join("\n");
            bail!("{:?}: {status}\n{tail}\n(all of it: {})", self.command, log.display());
        }
        Ok(())
    }

    /// Runs it, shows its standard error (or standard output) as it comes, and hands each line on.
    pub fn run_watched(mut self, stdout: bool, mut line_seen: impl FnMut(&str)) -> Result<bool> {
        let pipe =
            if stdout { self.command.stdout(Stdio::piped()) } else { self.command.stderr(Stdio::piped()) };
        let mut child = pipe.spawn().with_context(|| format!("{:?}", self.command))?;
        let reader: Box<dyn std::io::Read> = match (child.stdout.take(), child.stderr.take()) {
            (Some(out), _) => Box::new(out),
            (None, Some(err)) => Box::new(err),
            (None, None) => bail!("no output to watch"),
        };
        for line in BufReader::new(reader).split(b'\n') {
            let line = String::from_utf8_lossy(&line?).into_owned();
            if stdout {
                println!("{line}");
            } else {
                eprintln!("{line}");
            }
            line_seen(&line);
        }
        Ok(child.wait()?.success())
    }

    /// Its standard output, when it succeeds.
    pub fn text(mut self) -> Option<String> {
        let output = self.command.stdin(Stdio::null()).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// The steps of one long command with their cost.
#[derive(Default)]
pub struct Steps {
    rows: Vec<(String, f64, f64, bool)>,
}

impl Steps {
    /// Runs one step; an error is shown and remembered, and the next step runs.
    pub fn step<T>(&mut self, name: &str, work: impl FnOnce() -> Result<T>) -> Option<T> {
        println!("\n=== {name}");
        let (start, cpu) = (Instant::now(), cpu_seconds());
        let outcome = work();
        let (elapsed, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds() - cpu);
        self.rows.push((name.to_string(), elapsed, cpu, outcome.is_ok()));
        outcome.map_err(|error| eprintln!("xtask: {name}: {error:#}")).ok()
    }

    /// How many steps failed.
    pub fn failed(&self) -> usize {
        self.rows.iter().filter(|(_, _, _, ok)| !ok).count()
    }

    /// Prints the table.
    pub fn print(&self) {
        println!("\n{:<28} {:>9} {:>9}", "step", "seconds", "CPU-min");
        for (name, elapsed, cpu, ok) in &self.rows {
            let mark = if *ok { "" } else { "  FAILED" };
            println!("{name:<28} {elapsed:>9.1} {:>9.1}{mark}", cpu / 60.0);
        }
        let sum = |pick: fn(&(String, f64, f64, bool)) -> f64| self.rows.iter().map(pick).sum::<f64>();
        println!("{:<28} {:>9.1} {:>9.1}", "all", sum(|row| row.1), sum(|row| row.2) / 60.0);
    }
}

/// CPU seconds of all children that have ended, theirs included.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> =
        stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect()).unwrap_or_default();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    // cutime and cstime, in the kernel's fixed hundredths of a second.
    (ticks(13) + ticks(14)) as f64 / 100.0
}
