//! Where clusters come from that are not in memory: the SSD, a read that is under way, the backend. And what is
//! brought nearer before anybody asks.

use super::Shared;
use super::read::{Fetch, Plan};
use crate::core::Source;
use crate::format::keys;
use crate::format::sco::cluster_offset;
use crate::log::cluster_crc;
use crate::read_cache::flights::{Own, Part};
use crate::read_cache::streams::Streams;
use crate::read_cache::{Key, Origin};
use crate::view::View;
use bytes::Bytes;
use common::{Result, mutant};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Reads from the backend of one fetch that run at a time.
const READS: usize = 8;
/// The first window of a sequential reader, in bytes.
const FIRST_WINDOW: u64 = 128 << 10;
/// Bytes of one read ahead: who catches up waits for no more than this.
const AHEAD_READ: u64 = 1 << 20;
/// Reads ahead of one reader that run at a time.
const AHEAD_READS: usize = 4;

/// What a volume notes about its reads from what is committed.
#[derive(Debug, Default)]
pub(crate) struct Reads {
    /// Sequential readers of the head.
    pub streams: Streams,
    /// Clusters by where they were found.
    pub memory: AtomicU64,
    pub ssd: AtomicU64,
    pub missed: AtomicU64,
}

/// Content, by the address of its first cluster.
type Parts = Vec<(u64, Bytes)>;

impl Shared {
    /// Gets consecutive clusters that were not in memory a moment ago.
    pub(super) async fn fetch(&self, fetch: Fetch) -> Result<Parts> {
        let mut parts = Parts::new();
        let mut missing = vec![fetch.slots()];
        let there = self.cache.read_ssd(fetch.volume, fetch.sco, fetch.slots(), self.cluster).await;
        if !there.is_empty() {
            missing = self.take_from_ssd(&fetch, there, &mut parts);
        }
        for slots in missing {
            self.fetch_missing(&fetch, slots, Origin::Used, &mut parts).await?;
        }
        Ok(parts)
    }

    /// Takes what the SSD has and the map's checksums confirm; the slots that are still missing.
    fn take_from_ssd(&self, fetch: &Fetch, there: Vec<(Key, Bytes)>, parts: &mut Parts) -> Vec<Range<u32>> {
        let (mut missing, mut next) = (Vec::new(), fetch.slot);
        for (key, data) in there {
            let at = (key.slot - fetch.slot) as usize;
            let addr = fetch.addr + at as u64;
            let right = fetch.crcs.get(at) == Some(&cluster_crc(fetch.volume, addr, &data));
            if !right && !mutant::is_on("ssd-is-believed") {
                // As if it were not there: the backend has it.
                self.cache.wrong(&key);
                continue;
            }
            self.metrics.cache.ssd_hits.inc();
            self.reads.ssd.fetch_add(1, Ordering::Relaxed);
            self.cache.insert(key, &data, true, Origin::Kept);
            parts.push((addr, data));
            if next < key.slot {
                missing.push(next..key.slot);
            }
            next = key.slot + 1;
        }
        if next < fetch.slots().end {
            missing.push(next..fetch.slots().end);
        }
        missing
    }

    /// Gets slots from the backend: reads what nobody reads, then waits for what somebody else does. In this order:
    /// whoever waits holds up nobody.
    async fn fetch_missing(
        &self,
        fetch: &Fetch,
        slots: Range<u32>,
        origin: Origin,
        parts: &mut Parts,
    ) -> Result<()> {
        let key = |slot| Key { volume: fetch.volume, sco: fetch.sco, slot };
        let here = |slot| self.cache.peek(&key(slot));
        let (mut own, mut joined) = (Vec::new(), Vec::new());
        for part in self.cache.flights.split(fetch.volume, fetch.sco, slots, here) {
            match part {
                Part::Here { slot, data } => parts.push((fetch.addr_of(slot), data)),
                Part::Own(part) => own.push(part),
                Part::Joined(part) => joined.push(part),
            }
        }
        let mut own = own.into_iter();
        let mut reads = FuturesUnordered::new();
        loop {
            while reads.len() < READS
                && let Some(own) = own.next()
            {
                reads.push(self.lead(fetch, own, origin));
            }
            match reads.next().await {
                Some(part) => parts.push(part?),
                None => break,
            }
        }
        if origin == Origin::Ahead {
            return Ok(());
        }
        for join in joined {
            let slots = join.slots.clone();
            let addr = fetch.addr_of(slots.start);
            let crcs = fetch.crcs_of(&slots);
            let right = |data: &Bytes| self.verify(fetch.volume, addr, data, crcs, String::new).is_ok();
            let part = match join.wait(self.cluster).await.filter(right) {
                Some(data) => {
                    self.metrics.cache.joined.inc_by(crcs.len() as u64);
                    (addr, data)
                }
                // Whoever read it failed, perhaps for reasons of its own: now by itself, and waiting for nobody.
                None => (addr, self.read_backend(fetch, &slots, origin).await?),
            };
            parts.push(part);
        }
        Ok(())
    }

    /// Reads slots for all who wait for them.
    async fn lead(&self, fetch: &Fetch, own: Own<'_>, origin: Origin) -> Result<(u64, Bytes)> {
        let data = self.read_backend(fetch, &own.slots, origin).await?;
        let addr = fetch.addr_of(own.slots.start);
        own.land(data.clone());
        Ok((addr, data))
    }

    /// Reads slots from the backend, verifies them, and keeps them in memory.
    async fn read_backend(&self, fetch: &Fetch, slots: &Range<u32>, origin: Origin) -> Result<Bytes> {
        let key = keys::sco_key(fetch.volume, fetch.sco);
        let from = cluster_offset(slots.start, self.cluster);
        let crcs = fetch.crcs_of(slots);
        let len = crcs.len() as u64 * u64::from(self.cluster);
        let range = from..from + len;
        let begin = self.clock.now();
        let data = if origin == Origin::Ahead {
            // Nobody waits for it yet, so nothing is worth a second try.
            self.store.get_range(&key, range).await?
        } else {
            // A store that is away is waited for: the client sees latency, not an error.
            let what = format!("reading '{key}'");
            self.persist(&what, || self.store.get_range(&key, range.clone())).await?
        };
        self.metrics.stages.read_backend.done(&*self.clock, begin);
        self.metrics.backend_reads.inc();
        self.metrics.backend_read_bytes.inc_by(len);
        if origin == Origin::Ahead {
            self.metrics.cache.ahead_bytes.inc_by(len);
        } else {
            self.metrics.cache.misses.inc_by(crcs.len() as u64);
            self.reads.missed.fetch_add(crcs.len() as u64, Ordering::Relaxed);
        }
        self.verify(fetch.volume, fetch.addr_of(slots.start), &data, crcs, || {
            format!("object '{key}' at byte {from}")
        })?;
        let single = data.len() == self.cluster as usize;
        for (i, slot) in slots.clone().enumerate() {
            let at = i * self.cluster as usize;
            let cluster = data.slice(at..at + self.cluster as usize);
            self.cache.insert(Key { volume: fetch.volume, sco: fetch.sco, slot }, &cluster, !single, origin);
        }
        Ok(data)
    }

    /// Notes that a client reads here, and reads ahead of one that goes on and on: of the head, or of a snapshot.
    pub(super) fn look_ahead(
        self: &Arc<Self>,
        streams: &Streams,
        view: Option<&Arc<View>>,
        offset: u64,
        len: u32,
    ) {
        let cluster = u64::from(self.cluster);
        let most = self.cache.most_ahead().min(u64::from(self.sco_size)) / cluster;
        let Some(end) = offset.checked_add(u64::from(len)).filter(|_| len > 0) else { return };
        let (first, end) = (offset / cluster, end.div_ceil(cluster));
        let least = (FIRST_WINDOW / cluster).min(most);
        let Some(range) = streams.note(first, end - first, least, most) else { return };
        let size = view.map_or_else(|| self.core.lock().size(), |view| view.size());
        let clipped = range.start..range.end.min(size / cluster);
        if clipped.is_empty() {
            return;
        }
        let runtime = tokio::runtime::Handle::try_current();
        let (Ok(permit), Ok(runtime)) = (self.cache.ahead.clone().try_acquire_owned(), runtime) else {
            // Too many at once: this reader waits for the backend by itself for a while.
            streams.not_ahead(&range);
            return;
        };
        let (shared, view) = (self.clone(), view.cloned());
        runtime.spawn(async move {
            let outcome = shared.read_ahead(view.as_deref(), clipped).await;
            if let Err(error) = outcome {
                tracing::debug!(volume = %shared.id, %error, "reading ahead ends early");
            }
            drop(permit);
        });
    }

    async fn read_ahead(&self, view: Option<&View>, range: Range<u64>) -> Result<()> {
        let count = range.end - range.start;
        let mut plan = Plan::ahead(range.start, count, AHEAD_READ / u64::from(self.cluster));
        match view {
            Some(view) => self.resolve_view(view, range.start, count, &mut plan).await?,
            None => {
                let lies_below = self.below();
                let runs = self.core.lock().lookup(range.start, count);
                for run in runs.into_iter().filter(|run| matches!(run.source, Source::Committed)) {
                    self.resolve(run.addr, run.count, &mut plan)?;
                }
                if let Some(below) = &lies_below {
                    for (addr, count) in plan.take_absent() {
                        self.resolve_view(below, addr, count, &mut plan).await?;
                    }
                }
            }
        }
        let read = |fetch: Fetch| async move {
            let mut parts = Parts::new();
            self.fetch_missing(&fetch, fetch.slots(), Origin::Ahead, &mut parts).await
        };
        let mut reads = futures::stream::iter(plan.into_fetches()).map(read).buffered(AHEAD_READS);
        while let Some(outcome) = reads.next().await {
            outcome?;
        }
        Ok(())
    }
}
