//! A lease that is kept, and until when its holder may believe in it.
//!
//! The holder counts from the sending of a heartbeat that was answered, on a clock that goes on while the machine is
//! suspended, and stops a margin earlier than the registry could. A virtual machine that is paused with its clocks is outside of what
//! this can know.

use super::Client;
use crate::machine::LeaseId;
use common::{Error, ErrorKind, Result};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

/// The margin, in parts of the time to live.
const MARGIN: u32 = 7;
/// Heartbeats within a time to live.
const BEATS: u32 = 4;

/// Time since the machine started, also while it was suspended.
pub fn boottime() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or(0))
}

struct State {
    /// On the clock of [`boottime`]; none when it has ended.
    live_until: Option<Duration>,
}

/// A held lease. Dropping it stops its heartbeats, so that it ends by itself.
pub struct Lease {
    id: LeaseId,
    state: Arc<Mutex<State>>,
    heart: JoinHandle<()>,
    client: Client,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.heart.abort();
    }
}

impl Lease {
    /// Which one: its incarnation.
    pub fn id(&self) -> LeaseId {
        self.id
    }

    /// Whether the holder may act on it: ask right before what depends on it becomes visible.
    pub fn is_live(&self) -> bool {
        self.left() > Duration::ZERO
    }

    /// How long it is certain to live, without another heartbeat.
    pub fn left(&self) -> Duration {
        let until = self.state.lock().live_until;
        until.map_or(Duration::ZERO, |until| until.saturating_sub(boottime()))
    }

    /// Ends it at once, with the keys that are bound to it.
    pub async fn release(self) -> Result<()> {
        self.heart.abort();
        self.state.lock().live_until = None;
        match self.client.revoke(self.id).await {
            Err(e) if e.kind == ErrorKind::NotFound => Ok(()),
            done => done.map(|_| ()),
        }
    }
}

impl Client {
    /// A lease of `ttl`, kept by heartbeats until it is dropped or the registry says that it has ended. An ended one never comes back: ask for
    /// another.
    pub async fn hold(&self, ttl: Duration) -> Result<Lease> {
        let sent = boottime();
        let id = self.grant(ttl).await?;
        let state = Arc::new(Mutex::new(State { live_until: Some(sent + believed(ttl)) }));
        let heart = tokio::spawn(beat(self.clone(), id, ttl, state.clone()));
        Ok(Lease { id, state, heart, client: self.clone() })
    }
}

fn believed(ttl: Duration) -> Duration {
    ttl - ttl / MARGIN
}

async fn beat(client: Client, id: LeaseId, ttl: Duration, state: Arc<Mutex<State>>) {
    let mut patient = client.clone();
    // One that is not answered within a life of the lease tells nothing.
    patient.deadline = ttl;
    loop {
        client.clock.sleep(ttl / BEATS).await;
        let sent = boottime();
        match patient.keep_alive(id).await {
            Ok(ttl) => {
                let mut state = state.lock();
                let until = sent + believed(ttl);
                state.live_until = state.live_until.map(|known| known.max(until));
            }
            Err(error) if error.kind == ErrorKind::Fenced => {
                state.lock().live_until = None;
                tracing::warn!(lease = id.0, %error, "a lease of the registry has ended");
                return;
            }
            Err(error) => tracing::debug!(lease = id.0, %error, "a heartbeat was not answered"),
        }
    }
}

/// The error of somebody who would act on a lease that has ended.
pub fn ended(lease: LeaseId) -> Error {
    Error::fenced(format!("lease {} of this process has ended", lease.0))
}
