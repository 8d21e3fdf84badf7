//! An object store in memory that can be slow, away, full, and lie about the outcome of a put.

use crate::error::{Error, ErrorKind, Result};
use crate::object::{Listing, ObjectMeta, ObjectStore, Precondition};
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// What goes wrong in a [`SimObjectStore`], from now on.
#[derive(Debug, Clone, Default)]
pub struct StoreFaults {
    /// Every request fails as unavailable.
    pub away: bool,
    /// Bytes of objects beyond which a put finds no space.
    pub room: Option<u64>,
    /// Per thousand requests: fail without effect.
    pub fail_per_mille: u32,
    /// Per thousand puts: take effect, and fail.
    pub lost_reply_per_mille: u32,
    /// Per thousand puts: fail, and take effect later if the key is still free then.
    pub late_put_per_mille: u32,
    /// Per thousand reads: return one wrong bit.
    pub flip_per_mille: u32,
    /// Each request takes up to this long.
    pub max_latency: Duration,
}

/// What did go wrong in a [`SimObjectStore`], counted.
#[derive(Debug, Clone, Copy, Default)]
pub struct StoreTally {
    /// Requests without an answer or with an error.
    pub failed: u64,
    /// Puts that found no space.
    pub full: u64,
    /// Puts that took effect and failed.
    pub lost_replies: u64,
    /// Puts that failed and came later.
    pub late: u64,
    /// Late puts that found their key still free.
    pub late_landed: u64,
    /// Reads with a wrong bit.
    pub flipped: u64,
    /// Effects that a dying process did not get done.
    pub dead_effects: u64,
}

#[derive(Default)]
struct Counters {
    puts: u64,
    gets: u64,
}

struct Inner {
    objects: BTreeMap<String, Bytes>,
    faults: StoreFaults,
    random: fastrand::Rng,
    late: Vec<(String, Bytes)>,
    counters: Counters,
    tally: StoreTally,
    die_at_put: Option<u64>,
}

/// An object store in memory; clones share it.
#[derive(Clone)]
pub struct SimObjectStore {
    inner: Arc<Mutex<Inner>>,
}

impl SimObjectStore {
    /// An empty store with the chance of `seed`.
    pub fn new(seed: u64) -> Self {
        Self {
            inner: Arc::new(Mutex::new(Inner {
                objects: BTreeMap::new(),
                faults: StoreFaults::default(),
                random: fastrand::Rng::with_seed(seed),
                late: Vec::new(),
                counters: Counters::default(),
                tally: StoreTally::default(),
                die_at_put: None,
            })),
        }
    }

    /// Sets what goes wrong from now on.
    pub fn set_faults(&self, faults: StoreFaults) {
        self.inner.lock().faults = faults;
    }

    /// From put or delete number `n` on, nothing takes effect, as for a process that was killed.
    pub fn die_at_put(&self, n: Option<u64>) {
        self.inner.lock().die_at_put = n;
    }

    /// Puts that were "lost" arrive now, where the key is still free.
    pub fn deliver_late_puts(&self) {
        let mut inner = self.inner.lock();
        for (key, data) in std::mem::take(&mut inner.late) {
            if !inner.objects.contains_key(&key) {
                inner.tally.late_landed += 1;
                inner.objects.insert(key, data);
            }
        }
    }

    /// What went wrong so far.
    pub fn tally(&self) -> StoreTally {
        self.inner.lock().tally
    }

    /// Number of puts and deletes, and of reads, so far.
    pub fn counts(&self) -> (u64, u64) {
        let inner = self.inner.lock();
        (inner.counters.puts, inner.counters.gets)
    }

    /// All keys, in order.
    pub fn keys(&self) -> Vec<String> {
        self.inner.lock().objects.keys().cloned().collect()
    }

    /// Replaces or removes an object behind everyone's back.
    pub fn tamper(&self, key: &str, data: Option<Bytes>) {
        let mut inner = self.inner.lock();
        match data {
            Some(data) => inner.objects.insert(key.to_string(), data),
            None => inner.objects.remove(key),
        };
    }

    async fn request(&self) -> Result<()> {
        let (latency, outcome) = {
            let mut inner = self.inner.lock();
            let max = inner.faults.max_latency.as_micros() as u64;
            let latency = if max == 0 { 0 } else { inner.random.u64(0..=max) };
            let fail = inner.faults.away || inner.random.u32(0..1000) < inner.faults.fail_per_mille;
            inner.tally.failed += u64::from(fail);
            (latency, if fail { Err(Error::unavailable("simulated store: no answer")) } else { Ok(()) })
        };
        if latency > 0 {
            #[allow(clippy::disallowed_methods)]
            tokio::time::sleep(Duration::from_micros(latency)).await;
        }
        outcome
    }

    fn changes(inner: &mut Inner) -> Result<()> {
        inner.counters.puts += 1;
        if inner.die_at_put.is_some_and(|n| inner.counters.puts >= n) {
            inner.tally.dead_effects += 1;
            return Err(Error::unavailable("simulated store: this process is dying"));
        }
        Ok(())
    }
}

#[async_trait]
impl ObjectStore for SimObjectStore {
    async fn put(&self, key: &str, data: Bytes, precondition: Precondition) -> Result<()> {
        self.request().await?;
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        Self::changes(inner)?;
        let stored = || inner.objects.values().map(|object| object.len() as u64).sum::<u64>();
        if inner.faults.room.is_some_and(|room| stored() + data.len() as u64 > room) {
            inner.tally.full += 1;
            return Err(Error::new(ErrorKind::NoSpace, "simulated store: no space"));
        }
        if precondition == Precondition::IfAbsent && inner.objects.contains_key(key) {
            return Err(Error::conflict(format!("object '{key}' exists")));
        }
        if inner.random.u32(0..1000) < inner.faults.late_put_per_mille {
            inner.tally.late += 1;
            inner.late.push((key.to_string(), data));
            return Err(Error::unavailable("simulated store: the put will come late"));
        }
        inner.objects.insert(key.to_string(), data);
        if inner.random.u32(0..1000) < inner.faults.lost_reply_per_mille {
            inner.tally.lost_replies += 1;
            return Err(Error::unavailable("simulated store: the reply was lost"));
        }
        Ok(())
    }

    async fn get(&self, key: &str) -> Result<Bytes> {
        self.request().await?;
        let mut inner = self.inner.lock();
        inner.counters.gets += 1;
        inner.objects.get(key).cloned().ok_or_else(|| Error::not_found(format!("no object '{key}'")))
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        let whole = self.get(key).await?;
        if range.start > range.end || range.end > whole.len() as u64 {
            return Err(Error::corrupt(format!("object '{key}' is shorter than {} bytes", range.end)));
        }
        let part = whole.slice(range.start as usize..range.end as usize);
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        if !part.is_empty()
            && inner.faults.flip_per_mille > 0
            && inner.random.u32(0..1000) < inner.faults.flip_per_mille
        {
            inner.tally.flipped += 1;
            let mut part = part.to_vec();
            let at = inner.random.usize(0..part.len());
            part[at] ^= 1 << inner.random.u32(0..8);
            return Ok(part.into());
        }
        Ok(part)
    }

    async fn head(&self, key: &str) -> Result<Option<u64>> {
        self.request().await?;
        Ok(self.inner.lock().objects.get(key).map(|data| data.len() as u64))
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        delimiter: bool,
        limit: usize,
    ) -> Result<Listing> {
        self.request().await?;
        let inner = self.inner.lock();
        let mut listing = Listing::default();
        let limit = limit.clamp(1, 1000);
        for (key, data) in inner.objects.range(prefix.to_string()..) {
            if !key.starts_with(prefix) {
                break;
            }
            let folded = match key[prefix.len()..].find('/') {
                Some(at) if delimiter => Some(key[..prefix.len() + at + 1].to_string()),
                _ => None,
            };
            let seen = folded.as_ref().unwrap_or(key);
            if after.is_some_and(|after| seen.as_str() <= after)
                || listing.prefixes.last() == folded.as_ref() && folded.is_some()
            {
                continue;
            }
            if listing.objects.len() + listing.prefixes.len() == limit {
                listing.next = listing
                    .objects
                    .last()
                    .map(|o| o.key.clone())
                    .into_iter()
                    .chain(listing.prefixes.last().cloned())
                    .max();
                break;
            }
            match folded {
                Some(folded) => listing.prefixes.push(folded),
                None => listing.objects.push(ObjectMeta { key: key.clone(), len: data.len() as u64 }),
            }
        }
        Ok(listing)
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.request().await?;
        let mut inner = self.inner.lock();
        Self::changes(&mut inner)?;
        inner.objects.remove(key);
        Ok(())
    }

    fn describe(&self) -> String {
        "simulated store".into()
    }
}
