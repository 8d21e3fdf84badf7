//! SIGTERM and SIGINT: stop, and at the second one exit at once. SIGHUP: the log filter again.

use crate::config::Sources;
use crate::logging::LogControl;
use anyhow::{Context, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that this process listens to from now on.
pub struct Signals {
    term: Signal,
    int: Signal,
    hup: Signal,
}

impl Signals {
    /// From now on no signal ends the process by itself.
    pub fn listen() -> Result<Self> {
        let on = |kind| signal(kind).context("listening to signals");
        Ok(Self {
            term: on(SignalKind::terminate())?,
            int: on(SignalKind::interrupt())?,
            hup: on(SignalKind::hangup())?,
        })
    }

    /// Waits for the first request to stop, and serves SIGHUP meanwhile. Returns the signal's name.
    pub async fn stop(&mut self, sources: &Sources, log: &LogControl) -> &'static str {
        loop {
            tokio::select! {
                _ = self.term.recv() => return "SIGTERM",
                _ = self.int.recv() => return "SIGINT",
                _ = self.hup.recv() => reload(sources, log),
            }
        }
    }

    /// Waits for a request to stop, and does nothing else. Returns the signal's number.
    pub async fn stop_at_once(&mut self) -> i32 {
        loop {
            tokio::select! {
                _ = self.term.recv() => return SignalKind::terminate().as_raw_value(),
                _ = self.int.recv() => return SignalKind::interrupt().as_raw_value(),
                _ = self.hup.recv() => {}
            }
        }
    }
}

fn reload(sources: &Sources, log: &LogControl) {
    let changed = sources
        .load()
        .map_err(|e| format!("{e:#}"))
        .and_then(|settings| log.set_filter(&settings.log.filter).map(|()| settings.log.filter));
    match changed {
        Ok(filter) => tracing::info!(filter, "SIGHUP: the log filter was read again; nothing else is"),
        Err(e) => tracing::error!("SIGHUP: the configuration was not taken: {e}"),
    }
}
