//! The commands that are clients of the edge protocol: a vDisk of any router, without a router on this machine.
//!
//! | room | what |
//! |---|---|
//! | `connect` | addresses, TLS and patience; attaching, and waiting for who is attached |
//! | `attached` | vDisks that are attached while clients use them |
//! | `info` | shows a vDisk |
//! | `copy` | between vDisks, files, block devices and pipes |
//! | `bench` | measures requests |
//! | `serve` | vDisks by NBD on this machine |
//!
//! Does not own: what keeps a vDisk alive while routers die, which is `edge-client`.

pub mod attached;
mod bench;
pub mod connect;
mod copy;
mod info;
mod serve;

use crate::cli::edge::{Edge, EdgeAction};
use anyhow::{Context, Result};
use std::future::Future;
use tokio::runtime::Builder;

/// `edge ...`.
pub fn run(edge: &Edge) -> Result<()> {
    match &edge.action {
        EdgeAction::Info(args) => block_on(info::run(args)),
        EdgeAction::Copy(args) => block_on(copy::run(args)),
        EdgeAction::Bench(args) => block_on(bench::run(args)),
        EdgeAction::Serve(args) => serve::run(args),
    }
}

/// On one thread: an answer wakes nobody on another one.
fn block_on(work: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    let result = runtime.block_on(work);
    // Who reads from a pipe that says nothing any more would hold the end for ever.
    runtime.shutdown_background();
    result
}

/// Tells the user something while a command runs.
fn say(text: &str) {
    // Not eprintln: that panics when nobody reads any more.
    let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("storagerouter: {text}\n").as_bytes());
}
