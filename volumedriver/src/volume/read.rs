//! The read path: resolve, plan by source, fetch, verify, fill the cache.
//!
//! Resolving never waits for writers: the volume's lock is held for a lookup, the index's is
//! shared, and the store is asked with no lock at all.

use super::Shared;
use crate::core::{Run, Source};
use crate::format::keys;
use crate::format::sco::{ScoId, cluster_offset};
use crate::index::{Location, Mapped};
use crate::journal::JournalLoc;
use crate::log::{Crcs, cluster_crc};
use bytes::Bytes;
use common::{Error, ErrorKind, Extent, Lsn, Result, mutant};
use futures::StreamExt;

/// Clusters of one fetch: bounds the size of a ranged get.
const MAX_FETCH: u64 = 1024;

/// Fetches of one request that run at a time.
const FETCHES: usize = 8;

/// Clusters that one answer about allocation looks at.
const MAX_EXTENT_CLUSTERS: u64 = 128 * 1024;

/// Consecutive clusters in consecutive slots of one SCO.
struct Fetch {
    addr: u64,
    sco: ScoId,
    slot: u32,
    crcs: Crcs,
}

/// Content at a byte offset of the answer.
type Part = (u64, Bytes);

impl Shared {
    fn check_read(&self, offset: u64, len: u64) -> Result<()> {
        let core = self.core.lock();
        core.check()?;
        match offset.checked_add(len) {
            Some(end) if end <= core.size() => Ok(()),
            _ => Err(Error::invalid(format!(
                "{len} bytes at {offset} are beyond the end of the device ({} bytes)",
                core.size()
            ))),
        }
    }

    /// Reads `len` bytes at `offset`.
    pub async fn read(&self, offset: u64, len: u32) -> Result<Bytes> {
        let len = u64::from(len);
        self.check_read(offset, len)?;
        if len == 0 {
            return Ok(Bytes::new());
        }
        let cluster = u64::from(self.cluster);
        let first = offset / cluster;
        let count = (offset + len).div_ceil(cluster) - first;
        let clusters = self.read_clusters(first, count).await?;
        let skip = (offset - first * cluster) as usize;
        Ok(clusters.slice(skip..skip + len as usize))
    }

    /// Reads whole clusters.
    pub async fn read_clusters(&self, addr: u64, count: u64) -> Result<Bytes> {
        match self.try_read(addr, count).await {
            // The place that was resolved may be gone meanwhile (an upload committed, an object
            // was collected): once more from the newest map before it is an error.
            Err(error) if matches!(error.kind, ErrorKind::NotFound | ErrorKind::Corrupt) => {
                tracing::warn!(volume = %self.id, addr, count, %error, "resolving again");
                self.try_read(addr, count).await.map_err(|e| match e.kind {
                    ErrorKind::NotFound => Error::corrupt(e.to_string()),
                    _ => e,
                })
            }
            outcome => outcome,
        }
    }

    async fn try_read(&self, addr: u64, count: u64) -> Result<Bytes> {
        let runs = self.core.lock().lookup(addr, count);
        if let [Run { source: Source::Memory(data), .. }] = runs.as_slice() {
            return Ok(data.clone());
        }
        let mut parts: Vec<Part> = Vec::with_capacity(runs.len());
        let mut fetches = Vec::new();
        let place = |at: u64| (at - addr) * u64::from(self.cluster);
        for run in runs {
            match run.source {
                Source::Memory(data) => parts.push((place(run.addr), data)),
                Source::Journal { lsn, loc, offset, crcs } => {
                    let data = self.read_journal(lsn, run.addr, &loc, offset, &crcs).await?;
                    parts.push((place(run.addr), data));
                }
                Source::Zero | Source::Hole => {}
                Source::Committed => self.resolve(run.addr, run.count, place, &mut parts, &mut fetches)?,
            }
        }
        let mut fetched =
            futures::stream::iter(fetches.into_iter().map(|f| self.fetch(f))).buffer_unordered(FETCHES);
        while let Some(part) = fetched.next().await {
            let (at, data) = part?;
            parts.push((place(at), data));
        }
        let len = (count * u64::from(self.cluster)) as usize;
        if let [(0, data)] = parts.as_slice()
            && data.len() == len
        {
            return Ok(data.clone());
        }
        let mut out = vec![0; len];
        for (at, data) in parts {
            out[at as usize..at as usize + data.len()].copy_from_slice(&data);
        }
        Ok(out.into())
    }

    /// Reads clusters of an entry from the write buffer.
    pub async fn read_journal(
        &self,
        lsn: Lsn,
        addr: u64,
        loc: &JournalLoc,
        offset: u64,
        crcs: &[u32],
    ) -> Result<Bytes> {
        let begin = self.clock.now();
        let data = loc.read(offset, crcs.len() * self.cluster as usize).await?;
        self.metrics.stages.read_journal.done(&*self.clock, begin);
        self.verify(addr, &data, crcs, || format!("the journal's entry {lsn} of volume {}", self.id))?;
        Ok(data)
    }

    /// Finds committed clusters: in the cache, or as fetches of consecutive slots.
    fn resolve(
        &self,
        addr: u64,
        count: u64,
        place: impl Fn(u64) -> u64,
        parts: &mut Vec<Part>,
        fetches: &mut Vec<Fetch>,
    ) -> Result<()> {
        let mut mapped = Vec::with_capacity(count as usize);
        self.index.lookup(addr, count, &mut mapped)?;
        for (at, mapped) in (addr..).zip(mapped) {
            let Mapped::At(location) = mapped else { continue };
            let (sco, slot) = (location.sco(), location.slot());
            if let Some(data) = self.cache.get(self.id, sco, slot) {
                self.metrics.cache_hits.inc();
                parts.push((place(at), data));
                continue;
            }
            match fetches.last_mut() {
                Some(f) if f.continues(at, location) => f.crcs.push(location.crc()),
                _ => fetches.push(Fetch {
                    addr: at,
                    sco,
                    slot,
                    crcs: std::iter::once(location.crc()).collect(),
                }),
            }
        }
        Ok(())
    }

    async fn fetch(&self, fetch: Fetch) -> Result<(u64, Bytes)> {
        let key = keys::sco_key(self.id, fetch.sco);
        let from = cluster_offset(fetch.slot, self.cluster);
        let len = fetch.crcs.len() as u64 * u64::from(self.cluster);
        let range = from..from + len;
        // A store that is away is waited for: the client sees latency, not an error.
        let what = format!("reading '{key}'");
        let begin = self.clock.now();
        let data = self.persist(&what, || self.store.get_range(&key, range.clone())).await?;
        self.metrics.stages.read_backend.done(&*self.clock, begin);
        self.metrics.backend_reads.inc();
        self.metrics.backend_read_bytes.inc_by(len);
        self.verify(fetch.addr, &data, &fetch.crcs, || format!("object '{key}' at byte {from}"))?;
        let single = data.len() == self.cluster as usize;
        for (i, slot) in (fetch.slot..).take(fetch.crcs.len()).enumerate() {
            let at = i * self.cluster as usize;
            self.cache.insert(self.id, fetch.sco, slot, &data.slice(at..at + self.cluster as usize), !single);
        }
        Ok((fetch.addr, data))
    }

    /// Checks each cluster against its checksum; the error names the first that fails.
    pub fn verify(&self, addr: u64, data: &[u8], crcs: &[u32], whence: impl Fn() -> String) -> Result<()> {
        if data.len() != crcs.len() * self.cluster as usize {
            return Err(Error::corrupt(format!("{} has {} bytes too few or too many", whence(), data.len())));
        }
        for ((cluster, &crc), at) in data.chunks(self.cluster as usize).zip(crcs).zip(addr..) {
            let found = cluster_crc(self.id, at, cluster);
            if found != crc && !mutant::is_on("crc-ignored") {
                self.metrics.checksum_errors.inc();
                return Err(Error::corrupt(format!(
                    "{}: cluster {at} has checksum {found:08x} and should have {crc:08x}",
                    whence()
                )));
            }
        }
        Ok(())
    }

    /// The allocation state of a range, or of its beginning.
    pub fn extents(&self, offset: u64, len: u64) -> Result<Vec<Extent>> {
        self.check_read(offset, len)?;
        let cluster = u64::from(self.cluster);
        let first = offset / cluster;
        let count = ((offset + len).div_ceil(cluster) - first).min(MAX_EXTENT_CLUSTERS);
        let mut states: Vec<(u64, bool, bool)> = Vec::new();
        let mut push = |count: u64, hole: bool, zero: bool| match states.last_mut() {
            Some(last) if (last.1, last.2) == (hole, zero) => last.0 += count,
            _ => states.push((count, hole, zero)),
        };
        let runs = self.core.lock().lookup(first, count);
        for run in runs {
            match run.source {
                Source::Memory(_) | Source::Journal { .. } => push(run.count, false, false),
                Source::Zero => push(run.count, false, true),
                Source::Hole => push(run.count, true, true),
                Source::Committed => {
                    let mut mapped = Vec::with_capacity(run.count as usize);
                    self.index.lookup(run.addr, run.count, &mut mapped)?;
                    for m in mapped {
                        match m {
                            Mapped::Hole => push(1, true, true),
                            Mapped::Zero => push(1, false, true),
                            Mapped::At(_) => push(1, false, false),
                        }
                    }
                }
            }
        }
        let (mut at, end) = (first * cluster, offset + len);
        let mut extents = Vec::with_capacity(states.len());
        for (count, hole, zero) in states {
            let (from, to) = (at.max(offset), (at + count * cluster).min(end));
            at += count * cluster;
            if to > from {
                extents.push(Extent { len: to - from, hole, zero });
            }
        }
        Ok(extents)
    }
}

impl Fetch {
    fn continues(&self, addr: u64, location: Location) -> bool {
        let n = self.crcs.len() as u64;
        n < MAX_FETCH
            && self.addr + n == addr
            && self.sco == location.sco()
            && u64::from(self.slot) + n == u64::from(location.slot())
    }
}
