//! The registry, and a process's way to it: requests whose answers get lost, or that arrive when nobody waits for them
//! any more; leases that both sides measure, each on its own clock; a watch that lags, and loses its place.
//!
//! What it answers is linearizable: that the replicated registry is, its own simulation shows (`kvstore`).

use super::gate::{Gate, ProcessClock};
use super::net::{Net, Node};
use super::signal::Signal;
use async_trait::async_trait;
use common::kv::{Kv, KvAssert, KvChanges, KvOp, KvPair, Lease, Registry};
use common::sim::{SimClock, SimKv};
use common::{Clock, Error, ErrorKind, Result};
use futures::FutureExt;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// How long a process waits for an answer.
const DEADLINE: Duration = Duration::from_secs(5);
/// Of its time to live, the part that a holder does not believe in.
const MARGIN: u32 = 7;
/// Heartbeats within a time to live.
const BEATS: u32 = 4;

/// What went wrong on the way, counted.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    /// Transactions that happened, whose answer did not arrive.
    pub unknown: u64,
    /// Transactions that happened after their process had given up.
    pub late: u64,
    /// Watches that had to begin anew.
    pub forgotten: u64,
    /// Leases that nobody kept.
    pub expired: u64,
}

struct Held {
    ttl: Duration,
    until: Duration,
    /// When it ended.
    ended: Option<Duration>,
}

/// The registry itself.
pub struct Truth {
    /// What it holds.
    pub kv: SimKv,
    clock: Arc<SimClock>,
    leases: Mutex<BTreeMap<u64, Held>>,
    away: Signal<bool>,
    /// It may have changed.
    news: Signal<u64>,
    /// The history up to here is given up.
    forgotten: AtomicU64,
    tally: Mutex<Tally>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Truth {
    /// An empty registry.
    pub fn new(clock: Arc<SimClock>) -> Arc<Truth> {
        Arc::new(Truth {
            kv: SimKv::new(),
            clock,
            leases: Mutex::default(),
            away: Signal::new(false),
            news: Signal::new(0),
            forgotten: AtomicU64::new(0),
            tally: Mutex::default(),
        })
    }

    /// What went wrong so far.
    pub fn tally(&self) -> Tally {
        *lock(&self.tally)
    }

    /// Nobody gets an answer.
    pub fn go_away(&self) {
        self.away.change(|away| *away = true);
    }

    /// A leader is there again: it gives every lease its whole time anew.
    pub fn come_back(&self) {
        if self.away.change(|away| std::mem::replace(away, false)) {
            let now = self.clock.now();
            for held in lock(&self.leases).values_mut() {
                held.until = now + held.ttl;
            }
        }
    }

    /// Who follows from further back reads everything again.
    pub async fn compact(&self) {
        if let Ok((_, revision)) = self.kv.snapshot("").await {
            self.forgotten.store(revision, Ordering::Relaxed);
        }
    }

    /// Whether a lease had ended before this moment.
    pub fn had_ended(&self, lease: u64) -> bool {
        let now = self.clock.now();
        lock(&self.leases).get(&lease).is_none_or(|held| held.ended.is_some_and(|ended| ended < now))
    }

    /// Whether a lease has not ended.
    pub fn is_live(&self, lease: u64) -> bool {
        lock(&self.leases).get(&lease).is_some_and(|held| held.ended.is_none())
    }

    async fn here(&self) {
        self.away.wait(|away| !away).await;
    }

    async fn grant(self: &Arc<Self>, ttl: Duration) -> Result<u64> {
        let id = self.kv.hold(ttl).await?.id();
        lock(&self.leases).insert(id, Held { ttl, until: self.clock.now() + ttl, ended: None });
        let truth = self.clone();
        tokio::spawn(async move { truth.expire(id).await });
        Ok(id)
    }

    async fn expire(self: Arc<Self>, id: u64) {
        loop {
            let left = match lock(&self.leases).get(&id) {
                Some(held) if held.ended.is_none() => held.until.saturating_sub(self.clock.now()),
                _ => return,
            };
            if left.is_zero() && !self.away.see(|away| *away) {
                lock(&self.tally).expired += 1;
                self.end(id);
                return;
            }
            self.clock.sleep(left).await;
            self.here().await;
        }
    }

    fn end(&self, id: u64) {
        if let Some(held) = lock(&self.leases).get_mut(&id) {
            held.ended.get_or_insert(self.clock.now());
        }
        self.kv.expire(id);
        self.news.change(|news| *news += 1);
    }

    /// As [`Registry::changes`] of what it holds.
    ///
    /// # Errors
    /// None so far.
    pub async fn changes(&self, prefix: &str, from: u64) -> Result<KvChanges> {
        loop {
            let before = self.news.see(|news| *news);
            if let Some(changes) = self.kv.changes(prefix, from).now_or_never() {
                return changes;
            }
            self.news.wait(|news| *news > before).await;
        }
    }

    fn keep_alive(&self, id: u64) -> Result<Duration> {
        match lock(&self.leases).get_mut(&id) {
            Some(held) if held.ended.is_none() => {
                held.until = self.clock.now() + held.ttl;
                Ok(held.ttl)
            }
            _ => Err(Error::fenced(format!("lease {id} has ended"))),
        }
    }
}

/// A process's way to the registry.
#[derive(Clone)]
pub struct Way {
    truth: Arc<Truth>,
    net: Arc<Net>,
    base: Arc<SimClock>,
    clock: Arc<ProcessClock>,
    node: Node,
    gate: Gate,
}

fn nobody() -> Error {
    Error::unavailable("simulated network: the registry does not answer")
}

impl Way {
    /// The way of the process `gate` at `node`.
    pub fn new(
        truth: Arc<Truth>,
        net: Arc<Net>,
        base: Arc<SimClock>,
        clock: Arc<ProcessClock>,
        node: Node,
        gate: Gate,
    ) -> Way {
        Way { truth, net, base, clock, node, gate }
    }

    async fn there(&self) {
        self.net.travel().await;
        self.net.opened(self.node, Node::Registry).await;
        self.truth.here().await;
    }

    async fn back(&self) {
        self.net.travel().await;
        self.net.opened(Node::Registry, self.node).await;
    }

    /// A question: what becomes of it when nobody waits does not matter.
    async fn ask<T>(&self, patience: Duration, question: impl Future<Output = Result<T>>) -> Result<T> {
        self.gate.effect().await;
        let asked = async {
            self.there().await;
            let answer = question.await;
            self.back().await;
            answer
        };
        let answer = tokio::select! {
            biased;
            answer = asked => answer,
            () = self.base.sleep(patience) => Err(nobody()),
        };
        self.gate.pass().await;
        answer
    }

    /// A change: it happens, also when its process is dead by then or has given up.
    async fn change<T: Send + 'static>(
        &self,
        change: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        self.gate.effect().await;
        let (way, began) = (self.clone(), self.base.now());
        let done = tokio::spawn(async move {
            way.there().await;
            let answer = change.await;
            way.truth.news.change(|news| *news += 1);
            if way.base.now() >= began + DEADLINE && answer.is_ok() {
                lock(&way.truth.tally).late += 1;
            }
            way.back().await;
            answer
        });
        let answer = tokio::select! {
            biased;
            answer = done => answer.unwrap_or_else(|_| Err(nobody())),
            () = self.base.sleep(DEADLINE) => {
                lock(&self.truth.tally).unknown += 1;
                Err(nobody())
            }
        };
        self.gate.pass().await;
        answer
    }
}

#[async_trait]
impl Kv for Way {
    async fn get(&self, key: &str) -> Result<Option<KvPair>> {
        self.ask(DEADLINE, self.truth.kv.get(key)).await
    }

    async fn scan(&self, prefix: &str) -> Result<Vec<KvPair>> {
        self.ask(DEADLINE, self.truth.kv.scan(prefix)).await
    }

    async fn txn(&self, asserts: Vec<KvAssert>, ops: Vec<KvOp>) -> Result<u64> {
        let kv = self.truth.kv.clone();
        self.change(async move { kv.txn(asserts, ops).await }).await
    }
}

#[async_trait]
impl Registry for Way {
    async fn snapshot(&self, prefix: &str) -> Result<(Vec<KvPair>, u64)> {
        self.ask(DEADLINE, self.truth.kv.snapshot(prefix)).await
    }

    async fn changes(&self, prefix: &str, from: u64) -> Result<KvChanges> {
        self.gate.pass().await;
        self.there().await;
        if from <= self.truth.forgotten.load(Ordering::Relaxed) {
            lock(&self.truth.tally).forgotten += 1;
            return Ok(KvChanges::Forgotten);
        }
        let changes = self.truth.changes(prefix, from).await;
        self.back().await;
        self.gate.pass().await;
        changes
    }

    async fn hold(&self, ttl: Duration) -> Result<Arc<dyn Lease>> {
        let sent = self.clock.now();
        let truth = self.truth.clone();
        let id = self.change(async move { truth.grant(ttl).await }).await?;
        let state = Arc::new(LeaseState { until: AtomicU64::new(0), over: Notify::new() });
        state.until.store(nanos(sent + believed(ttl)), Ordering::Relaxed);
        let heart = tokio::spawn(beat(self.clone(), id, ttl, state.clone()));
        Ok(Arc::new(HeldLease { id, state, heart, way: self.clone() }))
    }

    async fn end_lease(&self, lease: u64) -> Result<()> {
        let truth = self.truth.clone();
        let end = async move {
            truth.end(lease);
            Ok(())
        };
        self.change(end).await
    }
}

fn believed(ttl: Duration) -> Duration {
    ttl - ttl / MARGIN
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// As `kvstore`'s: until when its holder believes in it, 0 when it has ended.
struct LeaseState {
    until: AtomicU64,
    over: Notify,
}

struct HeldLease {
    id: u64,
    state: Arc<LeaseState>,
    heart: JoinHandle<()>,
    way: Way,
}

impl Drop for HeldLease {
    fn drop(&mut self) {
        self.heart.abort();
    }
}

async fn beat(way: Way, id: u64, ttl: Duration, state: Arc<LeaseState>) {
    loop {
        way.clock.sleep(ttl / BEATS).await;
        let sent = way.clock.now();
        let truth = way.truth.clone();
        match way.ask(ttl, async move { truth.keep_alive(id) }).await {
            Ok(ttl) => {
                let until = nanos(sent + believed(ttl));
                let later = |known| (known != 0 && known < until).then_some(until);
                let _ = state.until.fetch_update(Ordering::Relaxed, Ordering::Relaxed, later);
            }
            Err(error) if error.kind == ErrorKind::Fenced => {
                state.until.store(0, Ordering::Relaxed);
                state.over.notify_waiters();
                return;
            }
            Err(_) => {}
        }
    }
}

#[async_trait]
impl Lease for HeldLease {
    fn id(&self) -> u64 {
        self.id
    }

    fn is_live(&self) -> bool {
        nanos(self.way.clock.now()) < self.state.until.load(Ordering::Relaxed)
    }

    async fn ended(&self) {
        loop {
            let over = self.state.over.notified();
            tokio::pin!(over);
            over.as_mut().enable();
            if self.state.until.load(Ordering::Relaxed) == 0 {
                return;
            }
            over.await;
        }
    }

    async fn release(&self) -> Result<()> {
        self.heart.abort();
        self.state.until.store(0, Ordering::Relaxed);
        self.state.over.notify_waiters();
        self.way.end_lease(self.id).await
    }
}
