//! OSDs in memory that can be away, slow, full, lose what they have, lose replies, and lie.

use async_trait::async_trait;
use bytes::Bytes;
use common::osd::{
    Assert, BackendId, Call, Changes, KeyInfo, KeyPage, KeyRange, LatencyStatus, Osd, OsdId, OsdSpace,
    OsdState, OsdStatus, ScrubStatus, Value, Verified,
};
use common::{Error, ErrorKind, Result};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// What goes wrong, from now on.
#[derive(Debug, Clone, Default)]
pub struct OsdFaults {
    /// Nothing is answered.
    pub away: bool,
    /// Every answer takes so long, and up to as much again.
    pub latency: Duration,
    /// Per thousand requests: no answer, and no effect.
    pub fail_per_mille: u32,
    /// Per thousand changes: done, and no answer.
    pub lost_reply_per_mille: u32,
    /// Per thousand reads: a wrong bit.
    pub flip_per_mille: u32,
    /// Per thousand reads: the value of another key.
    pub wrong_object_per_mille: u32,
    /// It takes nothing.
    pub read_only: bool,
    /// Bytes of values beyond which a set finds no space.
    pub room: Option<u64>,
}

/// What was asked and what went wrong, counted.
#[derive(Debug, Clone, Copy, Default)]
pub struct OsdTally {
    pub reads: u64,
    pub bytes_read: u64,
    pub failed: u64,
    pub lost_replies: u64,
    pub lies: u64,
    pub full: u64,
}

struct Inner {
    values: BTreeMap<Bytes, Bytes>,
    faults: OsdFaults,
    random: fastrand::Rng,
    tally: OsdTally,
}

/// An OSD in memory; clones share it.
#[derive(Clone)]
pub struct SimOsd {
    pub id: OsdId,
    inner: Arc<Mutex<Inner>>,
}

impl SimOsd {
    pub fn new(id: u128, seed: u64) -> Self {
        let (values, faults) = (BTreeMap::new(), OsdFaults::default());
        let random = fastrand::Rng::with_seed(seed);
        let inner = Inner { values, faults, random, tally: OsdTally::default() };
        Self { id: OsdId(id), inner: Arc::new(Mutex::new(inner)) }
    }

    pub fn set_faults(&self, faults: OsdFaults) {
        self.inner.lock().faults = faults;
    }

    pub fn tally(&self) -> OsdTally {
        self.inner.lock().tally
    }

    /// The disk is replaced by an empty one of the same name.
    pub fn wipe(&self) {
        self.inner.lock().values.clear();
    }

    /// Everything that lies there.
    pub fn values(&self) -> BTreeMap<Bytes, Bytes> {
        self.inner.lock().values.clone()
    }

    /// Replaces or removes a value behind everyone's back.
    pub fn tamper(&self, key: &Bytes, value: Option<Bytes>) {
        let mut inner = self.inner.lock();
        match value {
            Some(value) => inner.values.insert(key.clone(), value),
            None => inner.values.remove(key),
        };
    }

    #[allow(clippy::disallowed_methods)]
    async fn request(&self, call: Call) -> Result<()> {
        let (latency, gone, failed) = {
            let mut inner = self.inner.lock();
            let base = inner.faults.latency.as_micros() as u64;
            let latency = base + if base == 0 { 0 } else { inner.random.u64(0..=base) };
            let failed = inner.random.u32(0..1000) < inner.faults.fail_per_mille;
            inner.tally.failed += u64::from(failed || inner.faults.away);
            (Duration::from_micros(latency), inner.faults.away, failed)
        };
        if gone {
            tokio::time::sleep(Duration::from_millis(1)).await;
            return Err(Error::unavailable("simulated OSD: away"));
        }
        if latency > call.timeout {
            tokio::time::sleep(call.timeout).await;
            return Err(Error::unavailable("simulated OSD: too late"));
        }
        tokio::time::sleep(latency).await;
        match failed {
            true => Err(Error::unavailable("simulated OSD: no answer")),
            false => Ok(()),
        }
    }

    fn lookup(&self, key: &[u8]) -> Option<Bytes> {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        let mut value = inner.values.get(key).cloned()?;
        inner.tally.reads += 1;
        if inner.random.u32(0..1000) < inner.faults.wrong_object_per_mille
            && let Some((_, other)) =
                inner.values.iter().find(|(k, v)| k[0] == key[0] && ***k != *key && v.len() == value.len())
        {
            inner.tally.lies += 1;
            value = other.clone();
        }
        if !value.is_empty() && inner.random.u32(0..1000) < inner.faults.flip_per_mille {
            inner.tally.lies += 1;
            let mut wrong = value.to_vec();
            // All of it: a lie that a ranged read may miss is no lie.
            wrong.iter_mut().for_each(|b| *b ^= 1);
            value = wrong.into();
        }
        Some(value)
    }
}

#[async_trait]
impl Osd for SimOsd {
    async fn apply(&self, call: Call, changes: Changes) -> Result<()> {
        self.request(call).await?;
        changes.check()?;
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        let holds = |assert: &Assert| match assert {
            Assert::Absent(key) => !inner.values.contains_key(key),
            Assert::Present(key) => inner.values.contains_key(key),
            Assert::Value(key, value) => inner.values.get(key) == Some(value),
        };
        if let Some(wrong) = changes.asserts.iter().find(|assert| !holds(assert)) {
            return Err(Error::conflict(format!("simulated OSD: {wrong:?} does not hold")));
        }
        if !changes.sets.is_empty() {
            let stored: u64 = inner.values.values().map(|v| v.len() as u64).sum();
            if inner.faults.read_only
                || inner.faults.room.is_some_and(|room| stored + changes.bytes() as u64 > room)
            {
                inner.tally.full += 1;
                return Err(Error::new(ErrorKind::NoSpace, "simulated OSD: no space"));
            }
        }
        for (key, value) in changes.sets {
            inner.values.insert(key, value.bytes);
        }
        for key in changes.deletes {
            inner.values.remove(&key);
        }
        if inner.random.u32(0..1000) < inner.faults.lost_reply_per_mille {
            inner.tally.lost_replies += 1;
            return Err(Error::unavailable("simulated OSD: the reply was lost"));
        }
        Ok(())
    }

    async fn get(&self, call: Call, key: &[u8]) -> Result<Option<Value>> {
        self.request(call).await?;
        let value = self.lookup(key);
        self.inner.lock().tally.bytes_read += value.as_ref().map_or(0, |v| v.len() as u64);
        Ok(value.map(Value::new))
    }

    async fn get_range(&self, call: Call, key: &[u8], range: Range<u64>) -> Result<Option<Bytes>> {
        self.request(call).await?;
        let Some(value) = self.lookup(key) else { return Ok(None) };
        if range.end > value.len() as u64 {
            return Err(Error::invalid("simulated OSD: beyond the end"));
        }
        self.inner.lock().tally.bytes_read += range.end - range.start;
        Ok(Some(value.slice(range.start as usize..range.end as usize)))
    }

    async fn multi_get(&self, call: Call, keys: &[Bytes]) -> Result<Vec<Option<Value>>> {
        self.request(call).await?;
        Ok(keys.iter().map(|key| self.lookup(key).map(Value::new)).collect())
    }

    async fn range(&self, call: Call, range: KeyRange, limit: usize) -> Result<KeyPage> {
        self.request(call).await?;
        let inner = self.inner.lock();
        let mut keys = inner.values.range(range.from.clone()..).filter(|(k, _)| range.contains(k));
        let info = |(key, value): (&Bytes, &Bytes)| KeyInfo {
            key: key.clone(),
            len: value.len() as u64,
            crc: common::crc::crc32c(value),
        };
        let page = keys.by_ref().take(limit).map(info).collect();
        Ok(KeyPage { keys: page, next: keys.next().map(|(key, _)| key.clone()) })
    }

    async fn verify(&self, call: Call, _: KeyRange, _: usize) -> Result<Verified> {
        self.request(call).await?;
        Ok(Verified::default())
    }

    async fn status(&self, call: Call) -> Result<OsdStatus> {
        self.request(call).await?;
        let inner = self.inner.lock();
        let used: u64 = inner.values.values().map(|v| v.len() as u64).sum();
        let capacity = inner.faults.room.unwrap_or(1 << 40);
        let free = capacity.saturating_sub(used);
        let space =
            OsdSpace { capacity, live: used, segments: used, free, full: free == 0, ..OsdSpace::default() };
        let state = match inner.faults.read_only {
            true => OsdState::ReadOnly("simulated".into()),
            false => OsdState::Serving,
        };
        Ok(OsdStatus {
            id: self.id,
            claimed_by: None,
            state,
            space,
            keys: inner.values.len() as u64,
            bytes: used,
            damaged: Vec::new(),
            damaged_keys: 0,
            scrub: ScrubStatus::default(),
            apply: LatencyStatus::default(),
            get: LatencyStatus::default(),
            counters: Vec::new(),
        })
    }

    async fn claim(&self, call: Call, _: Option<BackendId>, _: Option<BackendId>) -> Result<()> {
        self.request(call).await
    }

    fn describe(&self) -> String {
        format!("simulated OSD {}", self.id)
    }
}
