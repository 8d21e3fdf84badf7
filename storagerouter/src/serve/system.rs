//! What the operating system and the service manager are told and asked.

use common::Clock;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sd_notify::NotifyState;
use std::sync::Arc;
use tokio::task::JoinHandle;

/// Tells the service manager, if there is one.
pub fn notify(states: &[NotifyState<'_>]) {
    // Not running under one is no error; one that does not listen is only worth a debug line.
    if std::env::var_os("NOTIFY_SOCKET").is_some()
        && let Err(e) = sd_notify::notify(states)
    {
        tracing::debug!(error = %e, "the service manager could not be told");
    }
}

/// Tells the service manager that the process is alive, twice per period that it asks for.
pub fn watchdog(clock: Arc<dyn Clock>) -> Option<JoinHandle<()>> {
    let period = sd_notify::watchdog_enabled()? / 2;
    tracing::info!(?period, "watchdog");
    Some(tokio::spawn(async move {
        loop {
            notify(&[NotifyState::Watchdog]);
            clock.sleep(period).await;
        }
    }))
}

/// Raises the limit on open files as far as this process may.
pub fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => tracing::debug!(from = limit.current, to = limit.maximum, "limit on open files raised"),
        Err(e) => {
            tracing::warn!(error = %e, limit = limit.current, "the limit on open files could not be raised")
        }
    }
}

/// How many clients of a front end may be connected: `most`, or one of `parts` of the open files that this process
/// may have, so that clients never take those which the write buffer, the index and uploads need.
pub fn connections_within_open_files(front_end: &str, most: usize, parts: u64) -> usize {
    let Some(limit) = getrlimit(Resource::Nofile).current else { return most };
    let share = usize::try_from(limit / parts).unwrap_or(usize::MAX).max(1);
    if share < most {
        tracing::warn!(
            limit,
            wanted = most,
            connections = share,
            "the limit on open files is low: fewer connections than {front_end}.max_connections are taken; raise it \
             with LimitNOFILE= or ulimit -Hn"
        );
    }
    most.min(share)
}
