//! Where the head, or a snapshot, may differ from another snapshot of the volume.
//!
//! A TLog lies wholly inside or outside of each view, so two views of one volume differ at most where a TLog
//! speaks that is in one of them and not in the other; that holds after a rollback too, when neither
//! is the beginning of the other. Of an entry only the address counts: scrub moves data, and a merge drops
//! what is shadowed in every view that has it. The head has more than its TLogs: what is committed and in
//! no TLog yet, and what is not committed.

use super::Shared;
use super::pump::Command;
use super::tlogs::{TLogSet, TailSco};
use crate::format::manifest::{Manifest, TLogRef};
use crate::format::snapshot::Snapshot;
use crate::lsns::Lsns;
use crate::view::{Clusters, mark};
use common::{Difference, Error, ErrorKind, Lsn, Result, mutant};
use parking_lot::{Mutex, RwLock};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Clusters that are looked at in one piece, so many pieces at most for one answer, and the number of runs
/// from which on no further piece is looked at.
const WINDOW: u64 = 128 * 1024;
const WINDOWS: u64 = 64;
const RUNS: usize = 4096;

/// How long a snapshot has to get to the backend when somebody compares with it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Manifests that may be put while TLogs of one are being read, before that is given up.
const LOOKS: usize = 16;

/// What the newest Manifest names, all of it of one moment.
#[derive(Debug, Default)]
pub(crate) struct Named {
    head: Option<Lsns>,
    tlogs: Vec<TLogRef>,
    snapshots: Vec<Arc<Snapshot>>,
}

impl Named {
    fn snapshot(&self, id: u128) -> Result<&Snapshot> {
        let found = self.snapshots.iter().find(|s| s.about.id == id);
        found.map(|s| &**s).ok_or_else(|| Error::not_found(format!("there is no snapshot {id:032x}")))
    }

    /// The TLogs in one of the views alone. Without `of`, the view is the head.
    fn between(&self, of: Option<u128>, since: &Lsns) -> Result<Vec<TLogRef>> {
        let lsns = match of {
            Some(id) => Lsns::of(self.snapshot(id)?),
            None => self.head.clone().ok_or_else(|| Error::internal("the volume has no Manifest yet"))?,
        };
        let differs = |t: &&TLogRef| {
            let (in_one, in_other) = (lsns.hold(t.lsn_lo, t.lsn_hi), since.hold(t.lsn_lo, t.lsn_hi));
            in_one != in_other && (in_one || !mutant::is_on("diff-without-rollback"))
        };
        Ok(self.tlogs.iter().filter(differs).copied().collect())
    }
}

/// The addresses of a committed SCO.
#[derive(Debug)]
struct Committed {
    lsn_hi: Lsn,
    /// Address and count, ascending and disjoint.
    ranges: Vec<(u64, u64)>,
}

/// What is known of a volume's changes besides its overlay.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// What is committed and in no TLog that `named` has.
    tail: Mutex<Vec<Arc<Committed>>>,
    named: RwLock<Arc<Named>>,
}

impl Changes {
    /// A SCO is being committed. Before its addresses leave the overlay.
    pub fn committed(&self, sco: &TailSco) {
        let ranges = sco.index.entries.iter().filter(|e| e.kind.is_range()).map(|e| (e.addr, e.count));
        self.tail.lock().push(Arc::new(Committed { lsn_hi: sco.lsn_hi, ranges: ranges.collect() }));
    }

    /// A Manifest names these. Before anything is deleted that the one before named.
    pub fn named(&self, manifest: &Manifest, tlogs: &TLogSet, snapshots: Vec<Arc<Snapshot>>) {
        let tlogs = tlogs.iter().copied().collect();
        *self.named.write() = Arc::new(Named { head: Some(Lsns::head(manifest)), tlogs, snapshots });
    }

    /// A TLog that was named covers all that was committed.
    pub fn rolled(&self) {
        *self.tail.lock() = Vec::new();
    }
}

impl Shared {
    /// As [`Shared::differences`], of a snapshot that may have to be brought to the backend first.
    pub async fn differences_from(
        &self,
        commands: Option<&mpsc::Sender<Command>>,
        of: Option<u128>,
        since: u128,
        (offset, len): (u64, u64),
    ) -> Result<Vec<Difference>> {
        if self.snapshots.is_pending(since) {
            let commands = commands.ok_or_else(|| Error::unavailable("the volume is closing"))?;
            super::drain(self, commands, PATIENCE).await?;
        }
        self.differences(of, since, offset, len).await
    }

    /// Where `len` bytes at `offset` of a snapshot, or of the head, may differ from the snapshot `since`,
    /// which is on the backend. A part of a cluster differs when its cluster does.
    pub async fn differences(
        &self,
        of: Option<u128>,
        since: u128,
        offset: u64,
        len: u64,
    ) -> Result<Vec<Difference>> {
        let cluster = u64::from(self.cluster);
        let end = (offset + len).div_ceil(cluster);
        let mut first = offset / cluster;
        let mut runs: Vec<(u64, bool)> = Vec::new();
        for _ in 0..WINDOWS {
            let count = (end - first).min(WINDOW);
            for (n, changed) in self.window(of, since, first, count).await?.runs() {
                match runs.last_mut() {
                    Some(last) if last.1 == changed => last.0 += n,
                    _ => runs.push((n, changed)),
                }
            }
            first += count;
            if first >= end || runs.len() >= RUNS {
                break;
            }
        }
        let mut at = offset / cluster * cluster;
        let mut differences = Vec::with_capacity(runs.len());
        for (count, changed) in runs {
            let (from, to) = (at.max(offset), (at + count * cluster).min(offset + len));
            at += count * cluster;
            if to > from {
                differences.push(Difference { len: to - from, changed });
            }
        }
        Ok(differences)
    }

    async fn window(&self, of: Option<u128>, since: u128, first: u64, count: u64) -> Result<Clusters> {
        for _ in 0..LOOKS {
            match self.try_window(of, since, first, count).await {
                // A TLog was replaced meanwhile: the Manifest that did it names others in its place.
                Err(Gone::TLog(error)) => {
                    tracing::debug!(volume = %self.id, %error, "looking at the newest TLogs");
                    tokio::task::yield_now().await;
                }
                Err(Gone::Other(error)) => return Err(error),
                Ok(clusters) => return Ok(clusters),
            }
        }
        let what = "the TLogs of the volume change faster than they can be read";
        Err(Error::unavailable(format!("volume {}: {what}", self.id)))
    }

    async fn try_window(
        &self,
        of: Option<u128>,
        since: u128,
        first: u64,
        count: u64,
    ) -> Result<Clusters, Gone> {
        let mut clusters = Clusters::none(first, count);
        // What a write leaves moves from the overlay to the tail, and from there to TLogs: in the same
        // order nothing is missed.
        let (mut overlay, mut tail) = (Vec::new(), Vec::new());
        if of.is_none() {
            overlay.extend(self.core.lock().unfinished(first, count));
            if !mutant::is_on("diff-without-tail") {
                tail.clone_from(&self.changes.tail.lock());
            }
        }
        let named = self.changes.named.read().clone();
        let snapshot = named.snapshot(since)?;
        let between = named.between(of, &Lsns::of(snapshot))?;
        // What has a higher LSN is not in the snapshot. What has a lower one, and is in no TLog yet, is: no
        // rollback leaves a tail, and SCOs end at every snapshot.
        for piece in overlay.iter().filter(|p| p.value > snapshot.lsn) {
            clusters.add(piece.addr, piece.count);
        }
        for sco in tail.iter().filter(|s| s.lsn_hi > snapshot.lsn) {
            let from = sco.ranges.partition_point(|(addr, n)| addr + n <= first);
            let inside = sco.ranges[from..].iter().take_while(|(addr, _)| *addr < first + count);
            inside.for_each(|(addr, n)| clusters.add(*addr, *n));
        }
        // What the snapshot does not reach was not there.
        let then = snapshot.size / u64::from(self.cluster);
        clusters.add(then, u64::MAX - then);
        let marked = self
            .persist("reading how snapshots differ", || {
                let mut clusters = clusters.clone();
                let between = &between;
                async move {
                    mark(&*self.store, &self.maps, self.id, between, &mut clusters).await.map(|()| clusters)
                }
            })
            .await;
        marked.map_err(|error| match error.kind {
            ErrorKind::NotFound => Gone::TLog(error),
            _ => Gone::Other(error),
        })
    }
}

/// Why a window can't be looked at.
enum Gone {
    /// A TLog is not there any more.
    TLog(Error),
    /// Anything else, a snapshot that is gone among it.
    Other(Error),
}

impl From<Error> for Gone {
    fn from(error: Error) -> Self {
        Gone::Other(error)
    }
}
