//! `storagerouter`: the binary. It reads the command line and the configuration, and is the only
//! place that names implementations of the doors.
//!
//! | room | what |
//! |---|---|
//! | `cli` | the words of the command line |
//! | `config` | one TOML file from every crate's settings; `--set`; the generated documentation |
//! | `datadir` | who holds the data directory, and its format |
//! | `cluster` | this router as a member of a cluster: the registry in its process |
//! | `serve` | start, run, stop: the wiring |
//! | `logging` | logs and the panic hook |
//! | `doctor` | looks at the machine |
//! | `client` | the commands that talk to the API |
//! | `asd` | the storage daemon of one disk, and the commands that look at one |
//! | `edge` | the commands that are clients of the edge protocol |
//! | `inspect` | prints what a file or an object says, and checks a vDisk's image |
//! | `failure` | exit codes |
//! | `progress` | how far something long has come, on a terminal |
//! | `size` | sizes as people write them |
//!
//! Does not own: any rule about data. What it decides is which implementation stands behind which
//! door, in which order things start, and how the process ends.

mod asd;
mod cli;
mod client;
mod cluster;
mod config;
mod datadir;
mod doctor;
mod edge;
mod failure;
mod inspect;
mod logging;
mod progress;
mod serve;
mod size;
mod stores;

use anyhow::Result;
use clap::Parser;
use cli::{Cli, Command, ConfigAction, ConfigArgs};
use common::clock::SystemClock;
use std::future::Future;
use std::process::ExitCode;

/// Payloads are taken by one thread and given back by another, thousands of times a second.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // clap ends the process itself: 0 for help and version, 2 for what it can't read.
    let cli = Cli::parse();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Not eprintln: that panics when nobody reads any more.
            let _ = std::io::Write::write_all(
                &mut std::io::stderr(),
                format!("storagerouter: {error:#}\n").as_bytes(),
            );
            failure::exit_of(&error).into()
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Serve(args) => serve::run(&args),
        Command::Config(config) => match config.action {
            ConfigAction::Check(args) => config_check(&args),
            ConfigAction::Example => client::print(&config::document::example()?),
            ConfigAction::Show(args) => client::print(&args.sources().load()?.to_toml()?),
        },
        Command::Doctor(args) => block_on(async {
            let settings = args.config.sources().load()?;
            doctor::run(&settings, args.config.insecure, &SystemClock::new()).await
        }),
        Command::Vpool(args) => block_on(client::commands::vpool(&args)),
        Command::Vdisk(args) => block_on(client::commands::vdisk(&args)),
        Command::Cluster(args) => block_on(cluster::commands::cluster(&args)),
        Command::Registry(args) => block_on(cluster::commands::registry(&args)),
        Command::Router(args) => block_on(client::routers::run(&args)),
        Command::Edge(args) => edge::run(&args),
        Command::Asd(args) => asd::run(&args),
        Command::Health(args) => block_on(client::commands::health(&args)),
        Command::LogLevel(args) => block_on(client::commands::log_level(&args)),
        Command::Version(args) => block_on(client::commands::version(&args)),
        Command::Inspect(args) => block_on(inspect::inspect(&args)),
        Command::Fsck(args) => block_on(inspect::fsck(&args)),
    }
}

fn config_check(args: &ConfigArgs) -> Result<()> {
    let settings = args.sources().load()?;
    settings.check(args.insecure)?;
    client::print("the configuration can be right")
}

/// Runs a short command on a runtime of its own.
fn block_on(work: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

/// Seeded bugs are for the mutation table only (docs/mutations.md).
const _: () = assert!(!common::mutant::BUILT_IN, "a storagerouter with seeded bugs in it is never built");
