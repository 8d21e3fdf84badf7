//! The volume core: the state that decides order. Sans-I/O: it is told what happened and says
//! what is true now; it never waits and never touches a door.
//!
//! One deque holds every log entry above `committed`, dense by LSN; the overlay maps each
//! address to the LSN that wrote it last. What an entry's content is, and where it lies (memory,
//! journal), is known by the deque alone, so an entry can move without touching the map.
//!
//! Does not own: credit (see `credit`), the committed map (see `index`), any object.

mod replication;
mod seal;

pub(crate) use replication::{Content, TailEntry};
pub(crate) use seal::SealPlan;

use crate::extent_map::{ExtentMap, Piece};
use crate::journal::{JournalLoc, Mark, RecoveredEntry};
use crate::log::{Crcs, Kind, LogEntry};
use crate::volume::Frontiers;
use bytes::Bytes;
use common::{Epoch, Error, Lsn, Result, VolumeId, mutant};
use dtl::owner::Owner;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::sync::oneshot;

/// Tells a writer that its entry was accepted: the kernel has it, and so have the peers, as far as they have a say.
pub(crate) type Retired = oneshot::Receiver<Result<()>>;

/// What a caller wants to append.
#[derive(Debug)]
pub(crate) struct Append {
    pub kind: Kind,
    pub addr: u64,
    pub count: u64,
    pub data: Bytes,
    pub crcs: Crcs,
    /// Credit units that come back when the entry is committed.
    pub units: u64,
    /// The claimed cluster that this append gives free when it retires.
    pub claim: Option<u64>,
}

/// A log entry above `committed`.
#[derive(Debug)]
struct Rec {
    /// The epoch that accepted it: an older one for what recovery found.
    epoch: Epoch,
    kind: Kind,
    addr: u64,
    count: u64,
    crcs: Crcs,
    units: u64,
    /// The content, while the memory budget lasts.
    data: Option<Bytes>,
    /// Where the content lies in the journal; `None` until the kernel has it.
    loc: Option<JournalLoc>,
    /// When it retired: its age until it is sealed counts from here.
    retired_at: Duration,
    waiter: Option<oneshot::Sender<Result<()>>>,
    claim: Option<u64>,
}

/// Where a range above or below `committed` is to be read.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    /// In memory: exactly the clusters of the piece.
    Memory(Bytes),
    /// In the journal, from this byte of the entry's payload on.
    Journal { lsn: Lsn, loc: JournalLoc, offset: u64, crcs: Crcs },
    /// Zeroes that count as allocated.
    Zero,
    /// A hole.
    Hole,
    /// Not written since `committed`: ask the index.
    Committed,
}

/// A run of clusters with one source.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    pub addr: u64,
    pub count: u64,
    pub source: Source,
}

/// See the module's head.
pub(crate) struct Core {
    volume: VolumeId,
    epoch: Epoch,
    cluster_size: u64,
    size: u64,
    /// The size at `committed`: a Manifest must not know a growth whose predecessors may get lost.
    committed_size: u64,
    /// Entries `committed + 1 ..= assigned`.
    recs: VecDeque<Rec>,
    overlay: ExtentMap<Lsn>,
    frontiers: Frontiers,
    /// Clusters under read-modify-write: no other write may touch them meanwhile.
    claims: Vec<u64>,
    /// How many hold new writes back.
    frozen: u32,
    stopped: Option<Error>,
    dirty_bytes: u64,
    unsealed_bytes: u64,
    unsealed_since: Option<Duration>,
    /// Entries up to this LSN have given their memory back.
    evicted: Lsn,
    /// How far the journal must be durable for `accepted` to be.
    mark: Mark,
    /// A retirement gave a claimed cluster free.
    unclaimed: bool,
    retire_waiters: Vec<(Lsn, oneshot::Sender<()>)>,
    /// The last LSN that the kernel has.
    journaled: Lsn,
    /// What the peers allow; `None` where nobody is asked.
    owner: Option<Box<Owner>>,
    flush_waiters: Vec<(Lsn, oneshot::Sender<()>)>,
}

impl Core {
    /// A volume whose log is committed, and covered by TLogs, up to `committed`.
    pub fn new(volume: VolumeId, epoch: Epoch, cluster_size: u32, size: u64, committed: Lsn) -> Self {
        Self {
            volume,
            epoch,
            cluster_size: u64::from(cluster_size),
            size,
            committed_size: size,
            recs: VecDeque::new(),
            overlay: ExtentMap::default(),
            frontiers: Frontiers {
                accepted: committed,
                synced: committed,
                sealed: committed,
                committed,
                trimmed: committed,
            },
            claims: Vec::new(),
            frozen: 0,
            stopped: None,
            dirty_bytes: 0,
            unsealed_bytes: 0,
            unsealed_since: None,
            evicted: committed,
            mark: Mark::default(),
            unclaimed: false,
            retire_waiters: Vec::new(),
            journaled: committed,
            owner: None,
            flush_waiters: Vec::new(),
        }
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn committed_size(&self) -> u64 {
        self.committed_size
    }

    pub fn frontiers(&self) -> Frontiers {
        self.frontiers
    }

    /// The last LSN that was given out.
    pub fn assigned(&self) -> Lsn {
        Lsn(self.frontiers.committed.0 + self.recs.len() as u64)
    }

    pub fn stopped(&self) -> Option<&Error> {
        self.stopped.as_ref()
    }

    fn content_bytes(&self, kind: Kind, count: u64) -> u64 {
        if kind.has_content() { count * self.cluster_size } else { 0 }
    }

    fn rec(&self, lsn: Lsn) -> Option<&Rec> {
        let at = lsn.0.checked_sub(self.frontiers.committed.0 + 1)?;
        self.recs.get(at as usize)
    }

    fn rec_mut(&mut self, lsn: Lsn) -> Option<&mut Rec> {
        let at = lsn.0.checked_sub(self.frontiers.committed.0 + 1)?;
        self.recs.get_mut(at as usize)
    }

    /// Fails when the volume takes no more requests.
    pub fn check(&self) -> Result<()> {
        match &self.stopped {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    /// New writes get no place in the log until as many calls of [`Core::thaw`].
    pub fn freeze(&mut self) {
        self.frozen += 1;
    }

    /// See [`Core::freeze`].
    pub fn thaw(&mut self) {
        self.frozen -= 1;
    }

    /// Whether new writes have to wait.
    pub fn is_frozen(&self) -> bool {
        self.frozen > 0
    }

    /// Whether a write to the range has to wait for somebody's read-modify-write.
    pub fn is_claimed(&self, addr: u64, count: u64) -> bool {
        !mutant::is_on("no-claim") && self.claims.iter().any(|&c| c >= addr && c - addr < count)
    }

    /// Claims a cluster for a read-modify-write, unless somebody has it.
    pub fn claim(&mut self, addr: u64) -> bool {
        let free = !self.is_frozen() && !self.is_claimed(addr, 1);
        if free {
            self.claims.push(addr);
        }
        free
    }

    /// Gives a claimed cluster free.
    pub fn unclaim(&mut self, addr: u64) {
        self.claims.retain(|&c| c != addr);
    }

    /// Whether a retirement gave a claimed cluster free since the last call.
    pub fn take_unclaimed(&mut self) -> bool {
        std::mem::take(&mut self.unclaimed)
    }

    /// Event: a write was accepted. Assigns the next LSN; the entry goes to the journal.
    pub fn append(&mut self, append: Append) -> Result<(LogEntry, Retired)> {
        self.check()?;
        let (waiter, retired) = oneshot::channel();
        let lsn = self.assigned().next();
        let Append { kind, addr, count, data, crcs, units, claim } = append;
        let entry = LogEntry {
            volume: self.volume,
            epoch: self.epoch,
            lsn,
            kind,
            addr,
            count,
            data: data.clone(),
            crcs: crcs.clone(),
        };
        let data = kind.has_content().then_some(data);
        self.dirty_bytes += self.content_bytes(kind, count);
        self.recs.push_back(Rec {
            epoch: self.epoch,
            kind,
            addr,
            count,
            crcs,
            units,
            data,
            loc: None,
            retired_at: Duration::ZERO,
            waiter: Some(waiter),
            claim,
        });
        Ok((entry, retired))
    }

    /// Event: recovery found this entry of an earlier epoch; it counts, and lies in the journal.
    pub fn replay(&mut self, entry: RecoveredEntry, units: u64, now: Duration) {
        let RecoveredEntry { epoch, kind, addr, count, crcs, loc, .. } = entry;
        let lsn = self.assigned().next();
        self.dirty_bytes += self.content_bytes(kind, count);
        self.recs.push_back(Rec {
            epoch,
            kind,
            addr,
            count,
            crcs,
            units,
            data: None,
            loc: None,
            retired_at: Duration::ZERO,
            waiter: None,
            claim: None,
        });
        self.journaled(lsn, loc, Mark::default());
        self.retire(now);
        self.evicted = lsn;
    }

    /// Event: the kernel has the entry. In LSN order; [`Core::advance`] follows.
    pub fn journaled(&mut self, lsn: Lsn, loc: JournalLoc, mark: Mark) {
        let expected = self.journaled.next();
        // A volume that closed has forgotten its entries; the journal may still be at work on some.
        let Some(rec) = self.rec_mut(lsn) else { return };
        assert_eq!(lsn, expected, "the journal takes entries in LSN order");
        rec.loc = Some(loc);
        self.journaled = lsn;
        self.mark = self.mark.max(mark);
    }

    /// Retires, in LSN order, what the kernel and the peers have. Gives back how many bytes of memory that holds.
    pub fn advance(&mut self, now: Duration) -> u64 {
        let before = self.frontiers.accepted;
        let to = self.may_retire();
        let mut held = 0;
        while self.frontiers.accepted < to {
            let Some(more) = self.retire(now) else { break };
            held += more;
        }
        if self.frontiers.accepted == before {
            return 0;
        }
        if !self.retire_waiters.is_empty() {
            let lsn = self.frontiers.accepted;
            let due = self.retire_waiters.extract_if(.., |(at, _)| *at <= lsn);
            for (_, waiter) in due {
                let _ = waiter.send(());
            }
        }
        self.assert_order();
        held
    }

    /// The next entry is accepted: it counts, and reads see it. `None` when the volume has forgotten it.
    fn retire(&mut self, now: Duration) -> Option<u64> {
        let lsn = self.frontiers.accepted.next();
        let rec = self.rec_mut(lsn)?;
        rec.retired_at = now;
        let (kind, addr, count, claim) = (rec.kind, rec.addr, rec.count, rec.claim.take());
        let held = rec.data.as_ref().map_or(0, |d| d.len() as u64);
        if let Some(waiter) = rec.waiter.take() {
            // The writer may have gone; its write counts all the same.
            let _ = waiter.send(Ok(()));
        }
        match kind {
            Kind::Discard if mutant::is_on("discard-forgotten") => {}
            Kind::Data | Kind::Zero | Kind::Discard => self.overlay.insert(addr, count, lsn),
            Kind::Resize => self.size = self.size.max(addr),
            Kind::Snapshot | Kind::Rollback => {}
        }
        if let Some(addr) = claim {
            self.unclaim(addr);
            self.unclaimed = true;
        }
        self.frontiers.accepted = lsn;
        self.unsealed_bytes += self.content_bytes(kind, count);
        self.unsealed_since.get_or_insert(now);
        Some(held)
    }

    /// A signal for when everything assigned so far has retired; `None` when it has.
    pub fn wait_retired(&mut self) -> Option<oneshot::Receiver<()>> {
        let assigned = self.assigned();
        if self.frontiers.accepted >= assigned {
            return None;
        }
        let (tx, rx) = oneshot::channel();
        self.retire_waiters.push((assigned, tx));
        Some(rx)
    }

    /// Event: the entry's content lies elsewhere in the journal now. The journal may still have, and move,
    /// an entry with this LSN of an older epoch, which was cut off.
    pub fn relocate(&mut self, epoch: Epoch, lsn: Lsn, loc: JournalLoc) {
        if let Some(rec) = self.rec_mut(lsn)
            && rec.loc.is_some()
            && (rec.epoch == epoch || mutant::is_on("moved-entry-of-another-epoch"))
        {
            rec.loc = Some(loc);
        }
    }

    /// The last accepted LSN, and how far the journal must be durable for it.
    pub fn accepted(&self) -> (Lsn, Mark) {
        (self.frontiers.accepted, self.mark)
    }

    /// Event: everything up to `lsn` survives a power cut.
    pub fn synced(&mut self, lsn: Lsn) {
        self.frontiers.synced = self.frontiers.synced.max(lsn);
        self.assert_order();
    }

    /// Event: a TLog that covers the log up to `lsn` is named by a Manifest.
    pub fn trimmed(&mut self, lsn: Lsn) {
        self.frontiers.trimmed = lsn;
        self.assert_order();
    }

    /// Event: the backend alone gives back everything up to `lsn`. The result is the credit that
    /// comes back and the memory that was held.
    pub fn commit(&mut self, lsn: Lsn) -> Freed {
        assert!(lsn <= self.frontiers.sealed, "only what is sealed is committed");
        let mut freed = Freed::default();
        while self.frontiers.committed < lsn {
            let Some(rec) = self.recs.pop_front() else { break };
            let at = self.frontiers.committed.next();
            self.frontiers.committed = at;
            self.dirty_bytes -= self.content_bytes(rec.kind, rec.count);
            freed.units += rec.units;
            freed.content(rec.data);
            if rec.kind.is_range() {
                self.overlay.remove_value(rec.addr, rec.count, at);
            } else if rec.kind == Kind::Resize {
                self.committed_size = self.committed_size.max(rec.addr);
            }
        }
        self.frontiers.synced = self.frontiers.synced.max(lsn);
        self.evicted = self.evicted.max(lsn);
        self.assert_order();
        freed
    }

    /// Gives memory of the oldest entries back, at least `want` bytes if there are as many.
    pub fn evict(&mut self, want: u64) -> Freed {
        let mut freed = Freed::default();
        while freed.memory < want && self.evicted < self.frontiers.accepted {
            self.evicted = self.evicted.next();
            if let Some(rec) = self.rec_mut(self.evicted) {
                freed.content(rec.data.take());
            }
        }
        freed
    }

    /// Event: the volume stops for good; everybody who waits learns why.
    pub fn stop(&mut self, error: Error) {
        if self.stopped.is_none() {
            self.stopped = Some(error);
        }
        let error = self.stopped.clone();
        for rec in &mut self.recs {
            if let (Some(waiter), Some(error)) = (rec.waiter.take(), &error) {
                let _ = waiter.send(Err(error.clone()));
            }
        }
        self.retire_waiters.clear();
        self.flush_waiters.clear();
        self.claims.clear();
    }

    /// The volume closes: drops every entry, and tells their credit and how much memory the retired ones held.
    pub fn forget_entries(&mut self) -> Freed {
        let mut left = Freed::default();
        let retired = self.frontiers.accepted.0 - self.frontiers.committed.0;
        for (rec, nth) in self.recs.drain(..).zip(0..) {
            left.units += rec.units;
            if nth < retired {
                left.content(rec.data);
            }
        }
        self.dirty_bytes = 0;
        self.overlay = ExtentMap::default();
        left
    }

    /// Bytes acknowledged and not committed.
    pub fn dirty_bytes(&self) -> u64 {
        self.dirty_bytes
    }

    /// The only writer of a whole cluster range, read at once: the fast path of a read.
    pub fn lookup(&self, addr: u64, count: u64) -> Vec<Run> {
        let mut runs = Vec::with_capacity(1);
        let mut next = addr;
        for piece in self.overlay.overlapping(addr, count) {
            if piece.addr > next {
                runs.push(Run { addr: next, count: piece.addr - next, source: Source::Committed });
            }
            next = piece.addr + piece.count;
            let source = self.source(piece.value, piece.addr, piece.count);
            runs.push(Run { addr: piece.addr, count: piece.count, source });
        }
        if next < addr + count {
            runs.push(Run { addr: next, count: addr + count - next, source: Source::Committed });
        }
        runs
    }

    /// What was written in the range and is not committed, with the LSN.
    pub fn unfinished(&self, addr: u64, count: u64) -> impl Iterator<Item = Piece<Lsn>> + '_ {
        self.overlay.overlapping(addr, count)
    }

    fn source(&self, lsn: Lsn, addr: u64, count: u64) -> Source {
        let Some(rec) = self.rec(lsn) else { return Source::Committed };
        match rec.kind {
            Kind::Data | Kind::Snapshot => {
                let skip = addr - rec.addr;
                let offset = skip * self.cluster_size;
                match (&rec.data, &rec.loc) {
                    (Some(data), _) => Source::Memory(
                        data.slice(offset as usize..(offset + count * self.cluster_size) as usize),
                    ),
                    (None, Some(loc)) => {
                        let crcs = rec.crcs[skip as usize..(skip + count) as usize].into();
                        Source::Journal { lsn, loc: loc.clone(), offset, crcs }
                    }
                    (None, None) => Source::Committed,
                }
            }
            Kind::Zero => Source::Zero,
            _ => Source::Hole,
        }
    }

    fn assert_order(&self) {
        let f = &self.frontiers;
        assert!(
            f.trimmed <= f.committed
                && f.committed <= f.sealed
                && f.sealed <= f.accepted
                && f.synced <= f.accepted,
            "the frontiers are out of order: {f:?}"
        );
    }
}

/// What entries that left the log's memory held.
#[derive(Debug, Default)]
pub(crate) struct Freed {
    pub units: u64,
    /// Bytes of `content`.
    pub memory: u64,
    /// To be dropped without the lock: giving much memory back takes milliseconds.
    content: Vec<Bytes>,
}

impl Freed {
    fn content(&mut self, data: Option<Bytes>) {
        if let Some(data) = data {
            self.memory += data.len() as u64;
            self.content.push(data);
        }
    }
}
