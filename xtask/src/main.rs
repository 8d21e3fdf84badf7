//! The one door for developer commands: `cargo xtask help`.
//!
//! Rooms: [`demo`] (a storage router to play with), [`cluster`] (three of them), [`router`] (one as a process), [`check`] (all that must pass at a hand-over,
//! and the soaks), [`sim`] (simulation, mutation table), [`fuzz`] (the decoders under libFuzzer),
//! [`arch`] (crate arrows, file lengths, banned crates), [`install`] (the edge client for C), [`packages`] (what apt and
//! pip bring), [`tester`] (the NBD reference tester, built from source), [`steps`] (running
//! programs with their cost), [`place`] (where things are).

// Real programs run in real time.
#![allow(clippy::disallowed_methods)]

mod arch;
mod check;
mod cluster;
mod demo;
mod fuzz;
mod install;
mod packages;
mod place;
mod router;
mod sim;
mod steps;
mod tester;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Developer commands of storagerouter")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what is missing, build, start a storage router with a vDisk to try, stay in the foreground
    Demo(demo::Demo),
    /// The same with three storage routers in one cluster, to be killed and watched
    Cluster(cluster::Cluster),
    /// Everything that must pass at a hand-over
    Test(check::Test),
    /// The long counts: hundreds of kill -9, long outages
    Soak(check::Soak),
    /// Every decoder under a coverage-guided fuzzer
    Fuzz(fuzz::Fuzz),
    /// Benchmarks against nbdkit and qemu-nbd, interleaved in one run; options go to the bench program
    Bench {
        /// See `cargo xtask bench -- --help`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Simulated worlds: --seed N, --seeds N, --soak 1h, --sequences N; options go to the sim program
    Sim {
        /// See `cargo xtask sim -- --help`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Seeded bugs, and which ring notices each: [NAME] [--write docs/mutations.md]
    Mutants {
        /// See `cargo xtask mutants -- --help`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Install the edge client for C: header, libraries, pkg-config file
    EdgeC(install::EdgeC),
    /// Check crate arrows, file lengths, banned crates
    Arch,
    /// Format all code
    Fmt,
    /// Clippy over everything, warnings are errors
    Lint,
    /// Install what the tests need, without running them
    Packages,
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::from(error.downcast_ref::<packages::Missing>().map_or(1, |_| 2))
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Command::Demo(demo) => return demo::run(&demo),
        Command::Cluster(cluster) => return cluster::run(&cluster),
        Command::Test(test) => return check::test(&test),
        Command::Soak(soak) => return check::soak(&soak),
        Command::Fuzz(fuzz) => return fuzz::fuzz(&fuzz),
        Command::Bench { arguments } => check::bench(&arguments)?,
        Command::Sim { arguments } => sim::sim(&arguments)?,
        Command::Mutants { arguments } => sim::mutants(&arguments)?,
        Command::EdgeC(args) => install::edge_c(&args)?,
        Command::Arch => arch::check(true)?,
        Command::Fmt => {
            steps::Program::cargo(&["fmt", "--all"]).run()?;
            fuzz::format(&[])?;
        }
        Command::Lint => check::lint().run()?,
        Command::Packages => check::prepare()?,
    }
    Ok(ExitCode::SUCCESS)
}
