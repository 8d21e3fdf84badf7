//! The client commands: one request to the API, one answer on stdout.

mod backup;
pub mod cluster;
pub mod commands;
pub mod http;
mod qos;
pub mod routers;
mod scrub;
mod snapshots;
pub mod tables;

use crate::cli::Output;
use anyhow::Result;
use serde::Serialize;
use std::io::Write;

/// Writes to stdout. A reader that went away (`| head`) is no error.
pub fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let end = if text.ends_with('\n') { "" } else { "\n" };
    match write!(out, "{text}{end}").and_then(|()| out.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

/// Prints an answer as asked.
pub fn show<T: Serialize>(output: Output, answer: &T, table: impl FnOnce(&T) -> String) -> Result<()> {
    match output {
        Output::Json => print(&serde_json::to_string_pretty(answer)?),
        Output::Table => print(&table(answer)),
    }
}
