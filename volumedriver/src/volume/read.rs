//! The read path: resolve, plan by source, fetch, verify, fill the cache.
//!
//! Resolving never waits for writers: the volume's lock is held for a lookup, the index's is
//! shared, and the store is asked with no lock at all.

use super::Shared;
use super::chain::Chain;
use crate::core::{Run, Source};
use crate::format::sco::ScoId;
use crate::index::{Location, Mapped};
use crate::journal::JournalLoc;
use crate::log::{Crcs, cluster_crc};
use crate::read_cache::Key;
use crate::view::{Place, View};
use bytes::Bytes;
use common::{Error, ErrorKind, Extent, Lsn, Result, VolumeId, mutant};
use futures::StreamExt;
use std::future::Future;
use std::ops::Range;
use std::sync::atomic::Ordering;

/// Clusters of one fetch: bounds the size of a ranged get.
const MAX_FETCH: u64 = 1024;

/// Fetches of one request that run at a time.
const FETCHES: usize = 8;

/// Times that something is looked up while a scrub replaces what the map names.
const LOOKS: usize = 8;

/// Clusters that one answer about allocation looks at.
const MAX_EXTENT_CLUSTERS: u64 = 128 * 1024;

/// Consecutive clusters in consecutive slots of one SCO.
pub(super) struct Fetch {
    /// Whose SCO it is.
    pub volume: VolumeId,
    pub addr: u64,
    pub sco: ScoId,
    pub slot: u32,
    pub crcs: Crcs,
}

/// What the answer to a read is made of.
pub(super) struct Plan {
    addr: u64,
    count: u64,
    /// Content that is at hand, and the address of its first cluster.
    parts: Vec<(u64, Bytes)>,
    fetches: Vec<Fetch>,
    /// Ranges that this volume's own map does not know.
    absent: Vec<(u64, u64)>,
    /// Clusters of one fetch at most.
    longest: u64,
    /// Nobody waits for it: what is in the cache already is left there.
    ahead: bool,
}

impl Plan {
    fn new(addr: u64, count: u64, parts: usize) -> Plan {
        let (parts, fetches, absent) = (Vec::with_capacity(parts), Vec::new(), Vec::new());
        Plan { addr, count, parts, fetches, absent, longest: MAX_FETCH, ahead: false }
    }

    /// For reading ahead, by fetches of at most `longest` clusters.
    pub fn ahead(addr: u64, count: u64, longest: u64) -> Plan {
        Plan { longest, ahead: true, ..Plan::new(addr, count, 0) }
    }

    pub fn take_absent(&mut self) -> Vec<(u64, u64)> {
        std::mem::take(&mut self.absent)
    }

    pub fn into_fetches(self) -> Vec<Fetch> {
        self.fetches
    }
}

impl Shared {
    pub(super) fn check_read(&self, offset: u64, len: u64) -> Result<()> {
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
        self.demand.arrived();
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
        self.newest(None, || self.try_read(addr, count)).await
    }

    /// Reads whole clusters of a snapshot.
    pub async fn read_view(&self, view: &View, addr: u64, count: u64) -> Result<Bytes> {
        self.newest(Some(view), || self.try_read_view(view, addr, count)).await
    }

    /// Looks something up, again from the newest map where the place that was resolved is gone meanwhile: an
    /// upload was committed, a TLog or SCO replaced by a scrub. Only then is it an error.
    async fn newest<T, F>(&self, view: Option<&View>, look: impl Fn() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        for look_again in (0..LOOKS).rev() {
            let error = match look().await {
                Err(e) if matches!(e.kind, ErrorKind::NotFound | ErrorKind::Corrupt) => e,
                outcome => return outcome,
            };
            // What is damaged stays so; once more, for a bit that flipped on the way.
            let told = error.kind == ErrorKind::Corrupt && look_again < LOOKS - 1;
            if look_again == 0 || told {
                return Err(not_found_is_lost(error));
            }
            tracing::warn!(volume = %self.id, %error, "resolving again");
            match (view, self.below()) {
                (Some(view), _) => self.refresh(view).await?,
                (None, below) => {
                    self.still_ours().await?;
                    if let Some(below) = below {
                        self.refresh(&below).await?;
                    }
                }
            }
        }
        Err(Error::internal("nothing was looked up"))
    }

    /// `Fenced`, and the end of the volume here, when another epoch took over: what the map names is its to delete.
    async fn still_ours(&self) -> Result<()> {
        let newest = self
            .persist("looking for a newer Manifest", || async { Chain::newest(&self.store, self.id).await })
            .await?;
        let epoch = newest.current().epoch;
        if epoch <= self.epoch {
            return Ok(());
        }
        let error =
            Error::fenced(format!("volume {}: epoch {epoch} took over from epoch {}", self.id, self.epoch));
        self.stop(error.clone());
        Err(error)
    }

    async fn refresh(&self, view: &View) -> Result<()> {
        self.persist("looking for the newest map of a snapshot", || view.refresh()).await
    }

    async fn try_read_view(&self, view: &View, addr: u64, count: u64) -> Result<Bytes> {
        let mut plan = Plan::new(addr, count, 0);
        self.resolve_view(view, addr, count, &mut plan).await?;
        self.carry_out(plan).await
    }

    /// Where clusters of a snapshot lie.
    async fn places(&self, view: &View, addr: u64, count: u64) -> Result<Vec<Place>> {
        // A clone may be larger than what it began as.
        let end = view.size() / u64::from(self.cluster);
        let inside = end.saturating_sub(addr).min(count);
        let mut places = self.persist("reading the map of a snapshot", || view.resolve(addr, inside)).await?;
        places.resize(count as usize, Place::Hole);
        Ok(places)
    }

    pub(super) async fn resolve_view(
        &self,
        view: &View,
        addr: u64,
        count: u64,
        plan: &mut Plan,
    ) -> Result<()> {
        for (at, place) in (addr..).zip(self.places(view, addr, count).await?) {
            if let Place::At(volume, location) = place {
                self.plan(plan, at, volume, location);
            }
        }
        Ok(())
    }

    async fn try_read(&self, addr: u64, count: u64) -> Result<Bytes> {
        let below = self.below();
        let runs = self.core.lock().lookup(addr, count);
        if let [Run { source: Source::Memory(data), .. }] = runs.as_slice() {
            return Ok(data.clone());
        }
        let mut plan = Plan::new(addr, count, runs.len());
        for run in runs {
            match run.source {
                Source::Memory(data) => plan.parts.push((run.addr, data)),
                Source::Journal { lsn, loc, offset, crcs } => {
                    let data = self.read_journal(lsn, run.addr, &loc, offset, &crcs).await?;
                    plan.parts.push((run.addr, data));
                }
                Source::Zero | Source::Hole => {}
                Source::Committed => self.resolve(run.addr, run.count, &mut plan)?,
            }
        }
        if let Some(below) = &below {
            for (addr, count) in plan.take_absent() {
                self.resolve_view(below, addr, count, &mut plan).await?;
            }
        }
        self.carry_out(plan).await
    }

    async fn carry_out(&self, plan: Plan) -> Result<Bytes> {
        let Plan { addr, count, mut parts, fetches, .. } = plan;
        let mut fetched =
            futures::stream::iter(fetches.into_iter().map(|f| self.fetch(f))).buffer_unordered(FETCHES);
        while let Some(part) = fetched.next().await {
            parts.extend(part?);
        }
        let len = (count * u64::from(self.cluster)) as usize;
        if let [(_, data)] = parts.as_slice()
            && data.len() == len
        {
            return Ok(data.clone());
        }
        let mut out = vec![0; len];
        for (at, data) in parts {
            let at = ((at - addr) * u64::from(self.cluster)) as usize;
            out[at..at + data.len()].copy_from_slice(&data);
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
        self.verify(self.id, addr, &data, crcs, || {
            format!("the journal's entry {lsn} of volume {}", self.id)
        })?;
        Ok(data)
    }

    /// Finds committed clusters: in the cache, or as fetches of consecutive slots.
    pub(super) fn resolve(&self, addr: u64, count: u64, plan: &mut Plan) -> Result<()> {
        let mut mapped = Vec::with_capacity(count as usize);
        self.index.lookup(addr, count, &mut mapped)?;
        for (at, mapped) in (addr..).zip(mapped) {
            match mapped {
                Mapped::At(location) => self.plan(plan, at, self.id, location),
                Mapped::Absent => match plan.absent.last_mut() {
                    Some((from, count)) if *from + *count == at => *count += 1,
                    _ => plan.absent.push((at, 1)),
                },
                Mapped::Hole | Mapped::Zero => {}
            }
        }
        Ok(())
    }

    /// Adds the cluster at `at`, which lies in a SCO of `volume`: from the cache, or to a fetch.
    fn plan(&self, plan: &mut Plan, at: u64, volume: VolumeId, location: Location) {
        let (sco, slot) = (location.sco(), location.slot());
        let key = Key { volume, sco, slot };
        if plan.ahead {
            if self.cache.contains(&key) {
                return;
            }
        } else if let Some(data) = self.cache.get(&key) {
            self.metrics.cache.memory_hits.inc();
            self.reads.memory.fetch_add(1, Ordering::Relaxed);
            plan.parts.push((at, data));
            return;
        }
        match plan.fetches.last_mut() {
            Some(f) if f.continues(at, volume, location, plan.longest) => f.crcs.push(location.crc()),
            _ => plan.fetches.push(Fetch {
                volume,
                addr: at,
                sco,
                slot,
                crcs: std::iter::once(location.crc()).collect(),
            }),
        }
    }

    /// Checks each cluster, written by `volume`, against its checksum; the error names the first that fails.
    pub fn verify(
        &self,
        volume: VolumeId,
        addr: u64,
        data: &[u8],
        crcs: &[u32],
        whence: impl Fn() -> String,
    ) -> Result<()> {
        if data.len() != crcs.len() * self.cluster as usize {
            return Err(Error::corrupt(format!("{} has {} bytes too few or too many", whence(), data.len())));
        }
        for ((cluster, &crc), at) in data.chunks(self.cluster as usize).zip(crcs).zip(addr..) {
            let found = cluster_crc(volume, at, cluster);
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
    pub async fn extents(&self, offset: u64, len: u64) -> Result<Vec<Extent>> {
        self.newest(None, || self.try_extents(offset, len)).await
    }

    async fn try_extents(&self, offset: u64, len: u64) -> Result<Vec<Extent>> {
        self.check_read(offset, len)?;
        let cluster = u64::from(self.cluster);
        let first = offset / cluster;
        let count = ((offset + len).div_ceil(cluster) - first).min(MAX_EXTENT_CLUSTERS);
        let mut states = States::default();
        let lies_below = self.below();
        let runs = self.core.lock().lookup(first, count);
        for run in runs {
            match run.source {
                Source::Memory(_) | Source::Journal { .. } => states.push(run.count, false, false),
                Source::Zero => states.push(run.count, false, true),
                Source::Hole => states.push(run.count, true, true),
                Source::Committed => {
                    let mut mapped = Vec::with_capacity(run.count as usize);
                    self.index.lookup(run.addr, run.count, &mut mapped)?;
                    let mut below = Vec::new();
                    if let Some(view) = &lies_below
                        && mapped.contains(&Mapped::Absent)
                    {
                        below = self.places(view, run.addr, run.count).await?;
                    }
                    for (i, m) in mapped.into_iter().enumerate() {
                        match m {
                            Mapped::Absent => states.place(below.get(i).copied().unwrap_or(Place::Hole)),
                            Mapped::Hole => states.place(Place::Hole),
                            Mapped::Zero => states.place(Place::Zero),
                            Mapped::At(_) => states.push(1, false, false),
                        }
                    }
                }
            }
        }
        Ok(states.extents(cluster, first, offset, offset + len))
    }

    /// The allocation state of a range of a snapshot, or of its beginning.
    pub async fn view_extents(&self, view: &View, offset: u64, len: u64) -> Result<Vec<Extent>> {
        self.newest(Some(view), || self.try_view_extents(view, offset, len)).await
    }

    async fn try_view_extents(&self, view: &View, offset: u64, len: u64) -> Result<Vec<Extent>> {
        let cluster = u64::from(self.cluster);
        let first = offset / cluster;
        let count = ((offset + len).div_ceil(cluster) - first).min(MAX_EXTENT_CLUSTERS);
        let mut states = States::default();
        self.places(view, first, count).await?.into_iter().for_each(|place| states.place(place));
        Ok(states.extents(cluster, first, offset, offset + len))
    }
}

/// Runs of clusters with the same state: their number, whether they are holes, whether they read as zeroes.
#[derive(Default)]
struct States(Vec<(u64, bool, bool)>);

impl States {
    fn push(&mut self, count: u64, hole: bool, zero: bool) {
        match self.0.last_mut() {
            Some(last) if (last.1, last.2) == (hole, zero) => last.0 += count,
            _ => self.0.push((count, hole, zero)),
        }
    }

    fn place(&mut self, place: Place) {
        match place {
            Place::Hole => self.push(1, true, true),
            Place::Zero => self.push(1, false, true),
            Place::At(..) => self.push(1, false, false),
        }
    }

    /// The part between the bytes `offset` and `end`, when the runs begin with cluster `first`.
    fn extents(self, cluster: u64, first: u64, offset: u64, end: u64) -> Vec<Extent> {
        let mut at = first * cluster;
        let mut extents = Vec::with_capacity(self.0.len());
        for (count, hole, zero) in self.0 {
            let (from, to) = (at.max(offset), (at + count * cluster).min(end));
            at += count * cluster;
            if to > from {
                extents.push(Extent { len: to - from, hole, zero });
            }
        }
        extents
    }
}

/// A place that the newest map names and that is not there is lost data.
fn not_found_is_lost(error: Error) -> Error {
    match error.kind {
        ErrorKind::NotFound => Error::corrupt(error.to_string()),
        _ => error,
    }
}

impl Fetch {
    /// Its slots.
    pub fn slots(&self) -> Range<u32> {
        self.slot..self.slot + self.crcs.len() as u32
    }

    /// The address of one of its slots.
    pub fn addr_of(&self, slot: u32) -> u64 {
        self.addr + u64::from(slot - self.slot)
    }

    /// The checksums of some of its slots.
    pub fn crcs_of(&self, slots: &Range<u32>) -> &[u32] {
        &self.crcs[(slots.start - self.slot) as usize..(slots.end - self.slot) as usize]
    }

    fn continues(&self, addr: u64, volume: VolumeId, location: Location, longest: u64) -> bool {
        let n = self.crcs.len() as u64;
        n < longest
            && self.volume == volume
            && self.addr + n == addr
            && self.sco == location.sco()
            && u64::from(self.slot) + n == u64::from(location.slot())
    }
}
