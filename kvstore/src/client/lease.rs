//! A lease that is kept, and until when its holder may believe in it.
//!
//! The holder counts from the sending of a heartbeat that was answered, on a clock that goes on while the machine is
//! suspended, and stops a margin earlier than the registry could. A virtual machine that is paused with its clocks is outside of what
//! this can know.

use super::Client;
use crate::machine::LeaseId;
use async_trait::async_trait;
use common::{Error, ErrorKind, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
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

/// Until when it lives, in nanoseconds of [`boottime`]; 0 when it has ended, and then for ever.
#[derive(Default)]
struct State {
    live_until: AtomicU64,
    over: Notify,
}

impl State {
    /// It lives at least until then, unless it has ended.
    fn extend(&self, until: Duration) {
        let until = nanos(until);
        let later = |known| (known != 0 && known < until).then_some(until);
        // An error is an ended lease, or one that is known to live longer.
        let _ = self.live_until.fetch_update(Ordering::AcqRel, Ordering::Acquire, later);
    }

    fn end(&self) {
        self.live_until.store(0, Ordering::Release);
        self.over.notify_waiters();
    }

    fn has_ended(&self) -> bool {
        self.live_until.load(Ordering::Acquire) == 0
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// A held lease. Dropping it stops its heartbeats, so that it ends by itself.
pub struct Lease {
    id: LeaseId,
    state: Arc<State>,
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
        nanos(boottime()) < self.state.live_until.load(Ordering::Acquire)
    }

    /// How long it is certain to live, without another heartbeat.
    pub fn left(&self) -> Duration {
        let until = self.state.live_until.load(Ordering::Acquire);
        Duration::from_nanos(until.saturating_sub(nanos(boottime())))
    }

    /// Ends it at once, with the keys that are bound to it.
    pub async fn release(&self) -> Result<()> {
        self.heart.abort();
        self.state.end();
        match self.client.revoke(self.id).await {
            Err(e) if e.kind == ErrorKind::NotFound => Ok(()),
            done => done.map(|_| ()),
        }
    }
}

#[async_trait]
impl common::kv::Lease for Lease {
    fn id(&self) -> u64 {
        self.id.0
    }

    fn is_live(&self) -> bool {
        Lease::is_live(self)
    }

    async fn ended(&self) {
        loop {
            let over = self.state.over.notified();
            tokio::pin!(over);
            over.as_mut().enable();
            if self.state.has_ended() {
                return;
            }
            over.await;
        }
    }

    async fn release(&self) -> Result<()> {
        Lease::release(self).await
    }
}

impl Client {
    /// A lease of `ttl`, kept by heartbeats until it is dropped or the registry says that it has ended. An ended one never comes back: ask for
    /// another.
    pub async fn hold(&self, ttl: Duration) -> Result<Lease> {
        let sent = boottime();
        let id = self.grant(ttl).await?;
        let state = Arc::new(State::default());
        state.live_until.store(nanos(sent + believed(ttl)), Ordering::Release);
        let heart = match self.route.hearts() {
            Some((route, runtime)) => {
                let own = Client { route: Arc::new(route), ..self.clone() };
                runtime.spawn(beat(own, id, ttl, state.clone()))
            }
            None => tokio::spawn(beat(self.clone(), id, ttl, state.clone())),
        };
        Ok(Lease { id, state, heart, client: self.clone() })
    }
}

fn believed(ttl: Duration) -> Duration {
    ttl - ttl / MARGIN
}

async fn beat(client: Client, id: LeaseId, ttl: Duration, state: Arc<State>) {
    let mut patient = client.clone();
    // One that is not answered within a life of the lease tells nothing.
    patient.deadline = ttl;
    loop {
        client.clock.sleep(ttl / BEATS).await;
        let sent = boottime();
        match patient.keep_alive(id).await {
            Ok(ttl) => state.extend(sent + believed(ttl)),
            Err(error) if error.kind == ErrorKind::Fenced => {
                state.end();
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
