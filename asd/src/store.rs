//! The values of one disk: large ones in segments that are only appended to, small ones and all records in a table.
//!
//! | room | what |
//! |---|---|
//! | `format` | the codec of what lies on the disk |
//! | `space` | where the bytes are, what may be taken; sans-I/O |
//! | `files` | open segments, a bounded number of them |
//! | `commit` | the one writer: all requests that came together in one sync of data, then one of the table |
//! | `read` | get, ranges, verify: nothing is returned that was not checked |
//! | `clean` | segments that hold little are emptied, empty ones removed |
//! | `scrub` | reads everything, slowly, all the time |
//! | `open` | formatting, and what an earlier process left |
//!
//! Data first, then the record that names it: what a crash leaves is garbage, known by what no record counts. A segment
//! is written from one end to the other and removed as a whole, never written over, so a reader needs no lock. What is
//! written in the table and not durable yet is seen by nobody: who asks for it waits for the sync.
//!
//! After a failed write or sync nothing is taken any more, and what is there can be read.
//!
//! Does not own: connections, who may come, what a key means.

mod clean;
mod commit;
mod files;
pub(crate) mod format;
mod open;
mod read;
mod scrub;
mod space;

#[cfg(test)]
mod tests;

use crate::latency::Latency;
use bytes::Bytes;
use commit::{Job, Queue};
use common::osd::{self, BackendId, Changes, Damage, OsdId, OsdState, OsdStatus, ScrubStatus};
use common::{Clock, Error, Result, Table};
use files::Files;
use format::Record;
use parking_lot::Mutex;
use space::Space;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinHandle;

/// Values that are known to be damaged by name; more are counted.
const NAMED: usize = 1024;
/// Of them, what a status names.
const SHOWN: usize = 100;

/// How a store uses its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Bytes that it may take; `None`: all that the disk has.
    pub capacity: Option<u64>,
    /// Of them, kept for the table's own work.
    pub table_reserve: u64,
    /// Bytes a second that are copied to give space back, unless there is little left.
    pub clean_rate: u64,
    /// Bytes a second that are read to see whether they are still right; 0: none.
    pub scrub_rate: u64,
    /// Segments that are kept open.
    pub open_files: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            capacity: None,
            table_reserve: 512 << 20,
            clean_rate: 64 << 20,
            scrub_rate: 8 << 20,
            open_files: 512,
        }
    }
}

/// What opening a store found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Segments that nothing was committed to: removed.
    pub leftovers: u64,
    /// Segments that are missing or too short, and how many values are lost with each.
    pub missing: Vec<(u64, u64)>,
}

/// What was counted since the start.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub applies: AtomicU64,
    pub sets: AtomicU64,
    pub deletes: AtomicU64,
    pub conflicts: AtomicU64,
    pub no_space: AtomicU64,
    pub late: AtomicU64,
    pub gets: AtomicU64,
    pub data_syncs: AtomicU64,
    pub table_syncs: AtomicU64,
    pub written: AtomicU64,
    pub read: AtomicU64,
    pub cleaned: AtomicU64,
    pub segments_removed: AtomicU64,
    pub damage_found: AtomicU64,
}

pub(crate) fn count(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

impl Counters {
    fn list(&self) -> Vec<(String, u64)> {
        [
            ("applies", &self.applies),
            ("sets", &self.sets),
            ("deletes", &self.deletes),
            ("conflicts", &self.conflicts),
            ("no_space", &self.no_space),
            ("late", &self.late),
            ("gets", &self.gets),
            ("data_syncs", &self.data_syncs),
            ("table_syncs", &self.table_syncs),
            ("written_bytes", &self.written),
            ("read_bytes", &self.read),
            ("cleaned_bytes", &self.cleaned),
            ("segments_removed", &self.segments_removed),
            ("damage_found", &self.damage_found),
        ]
        .map(|(name, counter)| (name.to_owned(), counter.load(Ordering::Relaxed)))
        .into()
    }
}

/// What is in the table and not durable yet.
#[derive(Default)]
struct InFlight {
    /// How many batches were written.
    written: u64,
    keys: HashSet<Bytes>,
}

/// What all parts share.
pub(crate) struct Core {
    id: OsdId,
    segment_size: u64,
    settings: Settings,
    table: Arc<dyn Table>,
    clock: Arc<dyn Clock>,
    files: Files,
    queue: Queue,
    space: Mutex<Space>,
    in_flight: Mutex<InFlight>,
    /// How many batches are durable; `u64::MAX` after the end.
    durable: watch::Sender<u64>,
    failure: Mutex<Option<Error>>,
    claim: Mutex<Option<BackendId>>,
    damage: Mutex<(BTreeMap<Bytes, String>, u64)>,
    scrub: Mutex<ScrubStatus>,
    /// There may be something to be given back.
    garbage: Notify,
    counters: Counters,
    apply_times: Latency,
    get_times: Latency,
}

/// The values of one disk.
pub struct Store {
    core: Arc<Core>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "OSD {}", self.core.id)
    }
}

impl Core {
    /// What it does.
    fn state(&self) -> OsdState {
        match &*self.failure.lock() {
            None => OsdState::Serving,
            Some(error) => OsdState::ReadOnly(error.to_string()),
        }
    }

    /// Whether it still takes something.
    fn check(&self) -> Result<()> {
        match &*self.failure.lock() {
            None => Ok(()),
            Some(error) => Err(read_only(self.id, error)),
        }
    }

    /// The end: after a failed write or sync nothing unsynced counts, so nothing is taken any more.
    fn fail(&self, error: Error) -> Error {
        let error = self.failure.lock().get_or_insert(error).clone();
        tracing::error!(osd = %self.id, %error, "a write or a sync failed: nothing is taken until the next start");
        self.durable.send_replace(u64::MAX);
        read_only(self.id, &error)
    }

    /// Whether `backend` may use this disk.
    fn admit(&self, backend: Option<BackendId>) -> Result<()> {
        let claim = *self.claim.lock();
        if claim == backend {
            return Ok(());
        }
        let who = |b: Option<BackendId>| b.map_or("no backend".to_owned(), |b| format!("backend {b}"));
        Err(Error::new(
            common::ErrorKind::Denied,
            format!("OSD {} is claimed by {}, not by {}", self.id, who(claim), who(backend)),
        ))
    }

    /// A value that can't be read is told once, and noted for whoever repairs.
    fn note_damage(&self, key: &Bytes, error: Error) -> Error {
        let mut damage = self.damage.lock();
        if !damage.0.contains_key(key) {
            count(&self.counters.damage_found, 1);
            tracing::error!(osd = %self.id, key = osd::shown(key), %error, "a value is damaged");
            if damage.0.len() < NAMED {
                damage.0.insert(key.clone(), error.to_string());
            } else {
                damage.1 += 1;
            }
        }
        error
    }

    /// What was damaged is gone, or right again.
    fn forget_damage(&self, key: &[u8]) {
        let mut damage = self.damage.lock();
        if !damage.0.is_empty() {
            damage.0.remove(key);
        }
    }

    fn record(&self, key: &[u8]) -> Result<Option<Record>> {
        self.table.get(&format::keys::value(key))?.map(Record::decode).transpose()
    }
}

fn read_only(id: OsdId, error: &Error) -> Error {
    Error::unavailable(format!("OSD {id} takes nothing any more, since its disk failed: {error}"))
}

impl Store {
    /// Which disk.
    pub fn id(&self) -> OsdId {
        self.core.id
    }

    /// The clock that deadlines are on.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.core.clock
    }

    /// Whether `backend` may use this disk.
    ///
    /// # Errors
    /// `Denied`, with who has claimed it.
    pub fn admit(&self, backend: Option<BackendId>) -> Result<()> {
        self.core.admit(backend)
    }

    /// See [`common::Osd::apply`]. After `deadline` it is not begun any more; once begun it is finished, whoever still
    /// waits.
    ///
    /// # Errors
    /// As the door says.
    pub async fn apply(
        &self,
        priority: osd::Priority,
        deadline: Duration,
        backend: Option<BackendId>,
        changes: Changes,
    ) -> Result<()> {
        let core = &self.core;
        let begin = core.clock.now();
        core.check()?;
        let request = commit::Request::new(changes, backend, deadline)?;
        let (done, answer) = oneshot::channel();
        core.queue.push(priority, Job::Apply(request, done))?;
        let result = answered(answer).await;
        if result.is_ok() {
            core.apply_times.record(core.clock.now().saturating_sub(begin));
        }
        result
    }

    /// See [`common::Osd::claim`].
    ///
    /// # Errors
    /// As the door says.
    pub async fn claim(&self, from: Option<BackendId>, to: Option<BackendId>) -> Result<()> {
        self.core.check()?;
        let (done, answer) = oneshot::channel();
        self.core.queue.push(osd::Priority::Client, Job::Claim { from, to, done })?;
        answered(answer).await
    }

    /// What the disk says of itself.
    pub fn status(&self) -> OsdStatus {
        let core = &self.core;
        let (space, totals) = {
            let space = core.space.lock();
            (space.status(), space.totals)
        };
        let (damaged, damaged_keys) = {
            let damage = core.damage.lock();
            let named =
                damage.0.iter().take(SHOWN).map(|(k, why)| Damage { key: k.clone(), why: why.clone() });
            (named.collect(), damage.0.len() as u64 + damage.1)
        };
        let mut scrub = *core.scrub.lock();
        scrub.done_permille = (scrub.keys * 1000 / totals.keys.max(1)).min(1000) as u16;
        OsdStatus {
            id: core.id,
            claimed_by: *core.claim.lock(),
            state: core.state(),
            space,
            keys: totals.keys,
            bytes: totals.bytes,
            damaged,
            damaged_keys,
            scrub,
            apply: core.apply_times.status(),
            get: core.get_times.status(),
            counters: core.counters.list(),
        }
    }

    /// Finishes what was asked for, and nothing more. What was acknowledged is durable without it.
    pub async fn close(&self) {
        self.core.queue.close();
        let tasks = std::mem::take(&mut *self.tasks.lock());
        for (n, task) in tasks.into_iter().enumerate() {
            // The first one is the writer: it ends by itself when the queue is empty.
            if n > 0 {
                task.abort();
            }
            let _ = task.await;
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.core.queue.close();
        for task in self.tasks.lock().drain(..) {
            task.abort();
        }
    }
}

async fn answered(answer: oneshot::Receiver<Result<()>>) -> Result<()> {
    answer.await.unwrap_or_else(|_| Err(Error::unavailable("the storage daemon is stopping")))
}
