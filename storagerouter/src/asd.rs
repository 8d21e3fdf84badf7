//! `asd`: the storage daemon of one disk, and the commands that look at one.
//!
//! Does not own: anything that is stored (`asd`, the crate). What is decided here is where its table lies and how the
//! process begins and ends.

mod serve;
mod show;

use crate::cli::asd::{Asd, AsdAction, Claim, Format, Reach, Status};
use crate::client::print;
use crate::cluster::settings::mutual_tls;
use crate::failure::{Exit, Failure};
use ::asd::AsdClient;
use ::asd::store::Store;
use ::asd::transport::Address;
use anyhow::Result;
use common::clock::SystemClock;
use common::disk::local::LocalDisk;
use common::osd::Call;
use common::{Error, ErrorKind, Osd};
use kvstore::{RocksSettings, RocksTable};
use rustls_pki_types::ServerName;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How long a command waits for a daemon.
const PATIENCE: Duration = Duration::from_secs(10);

/// `asd ...`.
pub fn run(args: &Asd) -> Result<()> {
    match &args.action {
        None => serve::run(&args.serve),
        Some(AsdAction::Format(args)) => crate::block_on(format(args)),
        Some(AsdAction::Status(args)) => crate::block_on(status(args)),
        Some(AsdAction::Claim(args)) => crate::block_on(claim(args)),
    }
}

/// Where the table of a disk lies.
fn table(dir: &Path) -> PathBuf {
    dir.join("table")
}

/// Opens the table. Another daemon that has it is named, and what to do.
fn open_table(dir: &Path, settings: RocksSettings) -> Result<RocksTable> {
    RocksTable::open(table(dir), settings).map_err(|e| match e.kind {
        ErrorKind::Unavailable => Failure::error(
            Exit::Conflict,
            format!(
                "{} is held by another process, probably its daemon: stop that one first ({e})",
                dir.display()
            ),
        ),
        _ => e.into(),
    })
}

async fn format(args: &Format) -> Result<()> {
    let dir = args.dir.display();
    let disk = LocalDisk::open(&args.dir)?;
    // Before anything is made in it: a directory with something else in it stays as it is.
    let others = std::fs::read_dir(&args.dir)
        .map_err(|e| Error::io(format!("reading {dir}"), &e))?
        .filter_map(|entry| entry.ok().map(|e| e.file_name()))
        .find(|name| name != "table" && name != "identity" && name != "lost+found");
    if let Some(other) = others {
        return Err(Failure::error(
            Exit::Conflict,
            format!(
                "{dir} is not empty ({} is in it): an OSD is made in an empty directory",
                other.display()
            ),
        ));
    }
    let small =
        RocksSettings { block_cache_bytes: 1 << 20, write_buffer_bytes: 1 << 20, ..RocksSettings::default() };
    let table = open_table(&args.dir, small)?;
    let id = Store::format(&disk, &table, &SystemClock::new(), args.segment_size)
        .await
        .map_err(|e| e.context(format!("formatting {dir}")))?;
    print(&id.to_string())
}

fn client(reach: &Reach) -> Result<AsdClient> {
    let address = match (&reach.tls_cert, &reach.tls_key, &reach.tls_ca) {
        (Some(cert), Some(key), Some(ca)) => {
            let tls = mutual_tls(["--tls-cert", "--tls-key", "--tls-ca"], cert, key, ca)?;
            let host = reach.at.rsplit_once(':').map_or(reach.at.as_str(), |(host, _)| host);
            let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())
                .map_err(|e| Failure::usage(format!("--at {}: {e}", reach.at)))?;
            Address::Tcp(reach.at.clone(), Some((tls.client, name)))
        }
        _ => reach.at.parse().map_err(|e: Error| Failure::usage(format!("--at: {e}")))?,
    };
    let clock = Arc::new(SystemClock::new());
    Ok(AsdClient::new(Arc::new(address), None, None, Default::default(), clock))
}

/// Nobody there has an exit code of its own.
fn told(error: Error) -> anyhow::Error {
    match error.kind {
        ErrorKind::Unavailable => Failure::error(Exit::Unreachable, error.to_string()),
        _ => error.into(),
    }
}

async fn status(args: &Status) -> Result<()> {
    let status = client(&args.reach)?.status(Call::client(PATIENCE)).await.map_err(told)?;
    print(&if args.json { show::json(&status)? } else { show::text(&status) })
}

async fn claim(args: &Claim) -> Result<()> {
    let to = if args.release { None } else { args.to };
    client(&args.reach)?.claim(Call::client(PATIENCE), args.from, to).await.map_err(told)
}
