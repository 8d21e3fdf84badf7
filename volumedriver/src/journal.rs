//! The write buffer: one append-only journal per write device, shared by all volumes.
//!
//! | room | what |
//! |---|---|
//! | [`record`] | the record's codec |
//! | [`segment`] | the segment's header, the hold on a segment, [`JournalLoc`] |
//! | [`walk`] | going through the records of one segment |
//! | [`append`] | the committer: many entries of many volumes in one write |
//! | [`sync`] | one fdatasync for all that wait |
//! | [`space`] | segments: made ahead of need, freed, reused |
//! | [`copy`] | copying forward; looking up what there is of a volume |
//! | [`recover`] | what earlier processes left |
//! | `fuzz` | recovery of any bytes |
//!
//! The life of an entry: [`Journal::submit`] queues it, [`Journal::commit`] appends it (its sink hears
//! [`Sink::retired`]: the death of the process can't lose it any more), [`Journal::sync`] makes it survive
//! a power cut, [`Journal::release`] says that the backend has it. A segment of which no entry is needed
//! and that nobody holds is used again, under a new *life* number that every record carries.
//!
//! Does not own: the order of a volume's log (LSNs are the caller's), what an entry means, admission
//! (the queue is bounded by the credits of those who submit).

mod append;
mod copy;
pub(crate) mod fuzz;
mod record;
mod recover;
mod segment;
pub(crate) mod show;
mod space;
mod sync;
mod walk;

#[cfg(test)]
mod tests;

pub use recover::{Damage, Recovered, RecoveredEntry, RecoveredSummary, RecoveredVolume};
pub use segment::JournalLoc;

use crate::log::LogEntry;
use append::{Appender, Queue};
use common::{Clock, Disk, Epoch, Error, Lsn, Result};
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use segment::{Cut, HEADER_BLOCK};
use space::Space;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use sync::{Frontier, Syncs};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// Pages are written whole, so that the kernel never reads one first.
const PAGE: u64 = 4096;

/// How the journal uses its disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalSettings {
    /// Bytes of a segment; a multiple of 4096, at least 32 KiB.
    pub segment_size: u64,
    /// Bytes of all segments together; at least four segments.
    pub capacity: u64,
    /// Records begin at multiples of this many bytes: a power of two, 512 to 4096, not less than a disk sector.
    pub align: u32,
    /// Bytes of payload in one record, unless one entry alone has more.
    pub max_batch_bytes: usize,
    /// Entries in one record; at most 1000.
    pub max_batch_entries: usize,
}

impl JournalSettings {
    /// The usual settings for segments of `segment_size` bytes, `capacity` bytes in all.
    pub fn new(segment_size: u64, capacity: u64) -> Self {
        Self { segment_size, capacity, align: 512, max_batch_bytes: 4 << 20, max_batch_entries: 512 }
    }

    fn check(&self) -> Result<()> {
        let bad = |what: String| Err(Error::invalid(format!("write buffer: {what}")));
        if !self.segment_size.is_multiple_of(PAGE) || !(32 << 10..=4 << 30).contains(&self.segment_size) {
            return bad(format!(
                "segment size {} is not a multiple of 4096 from 32 KiB to 4 GiB",
                self.segment_size
            ));
        }
        if self.capacity / self.segment_size < 4 {
            return bad(format!("capacity {} is less than four segments", self.capacity));
        }
        if !self.align.is_power_of_two() || !(512..=4096).contains(&self.align) {
            return bad(format!("alignment {} is not a power of two from 512 to 4096", self.align));
        }
        if !(1..=1000).contains(&self.max_batch_entries) || self.max_batch_bytes > 1 << 30 {
            return bad("the limits of a batch are impossible".into());
        }
        Ok(())
    }

    /// The largest payload of one entry: with its header it fits an empty segment with room to spare.
    fn max_payload(&self) -> usize {
        let room = (self.segment_size - HEADER_BLOCK - 2 * PAGE) / 16 * 15;
        (room & !(PAGE - 1)).min(256 << 20) as usize
    }
}

/// How far this process has appended. The default is what was there before: durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Mark(u64);

/// An entry that the kernel has.
#[derive(Debug, Clone)]
pub struct Retired {
    /// The epoch that accepted it.
    pub epoch: Epoch,
    /// Its position in its volume's log.
    pub lsn: Lsn,
    /// See [`Journal::is_durable`].
    pub mark: Mark,
    /// Where its payload lies.
    pub loc: JournalLoc,
}

/// Who hears what becomes of a volume's entries. Called without any lock of the journal; must not block.
pub trait Sink: Send + Sync {
    /// The entries of one volume, in the order they were submitted, have been handed to the kernel.
    /// Never called concurrently for one journal.
    fn retired(&self, entries: &mut dyn Iterator<Item = Retired>);

    /// An entry lies elsewhere now. It may be one that is needed no more: ignore it then.
    fn relocated(&self, epoch: Epoch, lsn: Lsn, loc: JournalLoc);

    /// The journal failed, once and for good: what was not retired is lost, nothing will be synced.
    fn failed(&self, error: &Error);
}

struct Metrics {
    written: Counter,
    records: Counter,
    batch: Histogram,
    write_seconds: Histogram,
    syncs: Counter,
    sync_seconds: Histogram,
    free: Gauge,
    copied: Counter,
}

impl Metrics {
    fn new(registry: &mut Registry) -> Self {
        let m = Metrics {
            written: Counter::default(),
            records: Counter::default(),
            batch: Histogram::new(exponential_buckets(1.0, 2.0, 10)),
            write_seconds: Histogram::new(exponential_buckets(1e-6, 4.0, 12)),
            syncs: Counter::default(),
            sync_seconds: Histogram::new(exponential_buckets(16e-6, 2.0, 18)),
            free: Gauge::default(),
            copied: Counter::default(),
        };
        let name = |n: &str| format!("storagerouter_volumedriver_journal_{n}");
        registry.register(name("written_bytes"), "Bytes appended to the write buffer", m.written.clone());
        registry.register(name("records"), "Records appended to the write buffer", m.records.clone());
        registry.register(name("record_entries"), "Entries in one record", m.batch.clone());
        registry.register(
            name("write_seconds"),
            "Time that appending a record took",
            m.write_seconds.clone(),
        );
        registry.register(name("syncs"), "fdatasync calls of group commits", m.syncs.clone());
        registry.register(name("sync_seconds"), "Time that a group commit took", m.sync_seconds.clone());
        registry.register(name("free_segments"), "Segments ready to be written", m.free.clone());
        registry.register(name("copied_bytes"), "Payload copied forward to free segments", m.copied.clone());
        m
    }
}

/// The journal of one write device.
pub struct Journal {
    settings: JournalSettings,
    disk: Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
    runtime: tokio::runtime::Handle,
    metrics: Metrics,
    /// Identity of the device, the same in all its segments.
    device: u128,
    /// Identity of this opening.
    process: u128,
    /// What was accepted of earlier processes.
    cuts: Vec<Cut>,
    queue: Mutex<Queue>,
    frontier: Mutex<Frontier>,
    written: AtomicU64,
    durable: AtomicU64,
    /// Bytes that a copy in progress still needs: when no segment is left they are kept free for it.
    reserved: AtomicU64,
    syncs: Mutex<Syncs>,
    space: Mutex<Space>,
    /// A failure is set once; the flag is the cheap look at it.
    failed: AtomicBool,
    failure: Mutex<Option<Error>>,
    /// Tells a committer that waits for a segment to look again.
    room: Notify,
    /// Tells the housekeeper to look again.
    wake: Arc<Notify>,
    /// Tells [`Journal::close`] that the committer has nothing more to do.
    idle: Notify,
    housekeeper: Mutex<Option<JoinHandle<()>>>,
}

impl Journal {
    /// Opens the journal on `disk`: makes what earlier processes left durable, reads it, and begins
    /// segments of its own (in the background: a full disk is a [`Journal::problem`], not an error).
    pub async fn open(
        settings: JournalSettings,
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        registry: &mut Registry,
    ) -> Result<(Arc<Journal>, Recovered)> {
        settings.check()?;
        let wake = Arc::new(Notify::new());
        let recovery = recover::recover(&disk, &settings, &wake).await?;
        let recovered = recovery.summary();
        let device = recovery.device.unwrap_or_else(|| clock.random_u128());
        let cuts = recovery.cuts.clone();
        let journal = Arc::new(Journal {
            disk,
            runtime: tokio::runtime::Handle::current(),
            metrics: Metrics::new(registry),
            device,
            process: clock.random_u128(),
            cuts,
            clock,
            queue: Mutex::new(Queue::new(Appender::new())),
            frontier: Mutex::default(),
            written: AtomicU64::new(0),
            durable: AtomicU64::new(0),
            reserved: AtomicU64::new(0),
            syncs: Mutex::default(),
            space: Mutex::new(Space::new(recovery, &settings)),
            failed: AtomicBool::new(false),
            failure: Mutex::default(),
            room: Notify::new(),
            wake: wake.clone(),
            idle: Notify::new(),
            housekeeper: Mutex::default(),
            settings,
        });
        let task = tokio::spawn(space::keep_house(Arc::downgrade(&journal), wake, journal.clock.clone()));
        *journal.housekeeper.lock() = Some(task);
        Ok((journal, recovered))
    }

    /// Queues an entry; the caller holds its volume's lock, so that the order is that of the LSNs.
    /// Then, without that lock, it calls [`Journal::commit`]. Never blocks. An error means that the
    /// entry is not and will not be in the journal.
    pub fn submit(&self, sink: &Arc<dyn Sink>, entry: LogEntry) -> Result<()> {
        let fits = match entry.kind.has_content() {
            true => {
                entry.crcs.len() as u64 == entry.count
                    && !entry.data.is_empty()
                    && (entry.data.len() as u64).is_multiple_of(entry.count)
                    && entry.data.len() <= self.max_payload()
                    && entry.crcs.len() <= entry.data.len() / 512
            }
            false => entry.data.is_empty() && entry.crcs.is_empty(),
        };
        if !fits || !entry.kind.fits(entry.addr, entry.count) {
            return Err(Error::internal(format!(
                "volume {}: entry {} ({} clusters, {} bytes) can't be journaled",
                entry.volume,
                entry.lsn,
                entry.count,
                entry.data.len()
            )));
        }
        self.queue.lock().submit(sink, entry).ok_or_else(|| self.error())
    }

    /// Bytes that records may occupy; one segment is kept for copying forward.
    pub fn capacity(&self) -> u64 {
        let segments = self.settings.capacity / self.settings.segment_size - 1;
        segments * (self.settings.segment_size - HEADER_BLOCK - PAGE)
    }

    /// The largest content of one entry, in bytes.
    pub fn max_payload(&self) -> usize {
        self.settings.max_payload()
    }

    /// Why writers wait, or the journal has failed; `None` when all is well.
    pub fn problem(&self) -> Option<String> {
        if let Some(error) = &*self.failure.lock() {
            return Some(format!("write buffer failed: {error}; check the disk and restart the router"));
        }
        self.space.lock().problem()
    }

    /// Appends and syncs what there is room for, then stops. What finds no room fails.
    pub async fn close(self: &Arc<Self>) {
        self.queue.lock().close();
        self.commit();
        self.room.notify_one();
        loop {
            let idle = self.idle.notified();
            if self.failed.load(Ordering::Acquire) || self.queue.lock().is_idle() {
                break;
            }
            idle.await;
        }
        if let Err(error) = self.sync().await {
            tracing::warn!(%error, "the write buffer was closed without its last sync");
        }
        let task = self.housekeeper.lock().take();
        if let Some(task) = task {
            task.abort();
            let _ = task.await;
        }
    }

    fn check(&self) -> Result<()> {
        if self.failed.load(Ordering::Acquire) { Err(self.error()) } else { Ok(()) }
    }

    /// Why nothing is accepted any more.
    fn error(&self) -> Error {
        match &*self.failure.lock() {
            Some(error) => error.clone().context("the write buffer failed"),
            None => Error::unavailable("the write buffer is closed"),
        }
    }

    /// The end: nothing is appended or synced from here on.
    fn fail(&self, error: Error) {
        {
            let mut failure = self.failure.lock();
            if failure.is_some() {
                return;
            }
            *failure = Some(error.clone());
        }
        self.failed.store(true, Ordering::Release);
        tracing::error!(%error, "the write buffer failed");
        drop(self.queue.lock().abandon());
        self.syncs.lock().fail(&error);
        let sinks = self.space.lock().sinks();
        for sink in sinks {
            sink.failed(&error);
        }
        self.room.notify_one();
        self.wake.notify_one();
        self.idle.notify_waiters();
    }

    /// Whether everything up to `mark` survives a power cut. Never true again after a failure.
    pub fn is_durable(&self, mark: Mark) -> bool {
        self.durable.load(Ordering::Acquire) >= mark.0 && !self.failed.load(Ordering::Acquire)
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.wake.notify_one();
    }
}

/// Fuzzes the journal's codecs: raw, and with right checksums.
pub fn fuzz(bytes: &[u8]) {
    record::fuzz(bytes);
    record::fuzz(&record::with_checksum(bytes));
    segment::fuzz_header(bytes);
    segment::fuzz_header(&segment::with_checksum(bytes));
}
