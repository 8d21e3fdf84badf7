//! What a new owner recovers behind what the backend has: the sealed logs of peers, or the journal.
//!
//! Which of them is enough is decided by [`dtl::takeover`]. What comes from elsewhere is written into this router's
//! journal, under the epoch that accepted it, before it counts: it is read from there like anything else, and the
//! holders keep it until the backend has it.

use super::Shared;
use crate::journal::{JournalLoc, RecoveredEntry, Retired, Sink};
use crate::log::{Kind, LogEntry};
use crate::replication::Opening;
use common::{Epoch, Error, ErrorKind, Lsn, Name, Result, mutant};
use dtl::storage::Key;
use dtl::takeover::{Answer, LocalJournal, Origin, Piece, Plan, Replay, Takeover, Verdict};
use dtl::{Entry, Loss, PeerLog};
use futures::stream::{FuturesUnordered, StreamExt};
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::sync::Notify;

/// Bytes of drained entries that are handed to the journal at a time.
const BATCH: usize = 4 << 20;

/// What counts behind `covered`, and what was lost where it was forced.
pub(super) struct Tail {
    pub run: Vec<RecoveredEntry>,
    pub lost: Option<Loss>,
}

/// Seals the peers that the registry names and takes what was acknowledged from wherever it is. `local` is what counts
/// of this router's journal; `cut` tells how far an earlier epoch goes.
///
/// # Errors
/// `Denied` when something that was acknowledged may be out of reach: it names what and where.
pub(super) async fn recover(
    shared: &Arc<Shared>,
    opening: &Opening,
    covered: Lsn,
    cut: &(dyn Fn(Epoch) -> Option<Lsn> + Sync),
    local: Vec<RecoveredEntry>,
) -> Result<Tail> {
    let journal = LocalJournal {
        node: opening.peers.node().clone(),
        of_last_owner: opening.same_journal,
        same_boot: opening.same_boot,
        base: covered,
        last: Lsn(covered.0 + local.len() as u64),
    };
    let mut registration = opening.registration.clone();
    if mutant::is_on("earlier-tails-ignored") {
        registration.tails.clear();
    }
    let mut takeover = Takeover::new(registration, covered, Some(journal));
    let (plan, lost) = seal(shared, opening, &mut takeover).await?;
    if plan.unflushed_may_be_lost {
        let epoch = opening.registration.epoch;
        tracing::warn!(volume = %shared.id, %epoch, "writes that nobody had flushed may be lost");
    }
    let mut run: Vec<RecoveredEntry> = Vec::new();
    let mut replay = Replay::new(covered, Vec::new());
    for Piece { from, after, to } in plan.pieces {
        match from {
            Origin::Journal => {
                let wanted = local.iter().filter(|e| e.lsn > after && e.lsn <= to && e.lsn > replay.last());
                for entry in wanted.cloned().collect::<Vec<_>>() {
                    if replay.takes(&header(shared, &entry))? {
                        run.push(entry);
                    }
                }
            }
            Origin::Log(epoch, logs) => {
                let what = Wanted { epoch, to, cut };
                // What an opening read that failed behind it takes room here: again and again it would fill the write
                // buffer, and then nothing could be opened. Epoch and LSN name one entry, wherever it is.
                let had = local.iter().filter(|e| e.lsn > replay.last() && e.lsn <= to);
                for entry in had.cloned().collect::<Vec<_>>() {
                    let header = header(shared, &entry);
                    if what.counts(&header) && replay.takes(&header)? {
                        run.push(entry);
                    }
                }
                drain(shared, opening, &what, &logs, &mut replay, &mut run).await?;
            }
        }
        if replay.last() < to {
            return Err(Error::unavailable(format!(
                "volume {}: LSN {} to {to} could not be read from where they were a moment ago",
                shared.id,
                replay.last().next()
            )));
        }
    }
    Ok(Tail { run, lost })
}

/// Asks every node that may hold something, until what came is enough.
async fn seal(
    shared: &Arc<Shared>,
    opening: &Opening,
    takeover: &mut Takeover,
) -> Result<(Plan, Option<Loss>)> {
    let nodes: Vec<Name> = takeover.to_seal().cloned().collect();
    let mut asked: FuturesUnordered<_> = nodes
        .into_iter()
        .map(|node| async move {
            let client = opening.peers.client(&node);
            let answer = match client {
                Some(client) => client.seal(shared.id, shared.epoch).await,
                None => Err(Error::unavailable("the registry does not know where it is")),
            };
            (node, answer)
        })
        .collect();
    loop {
        match takeover.verdict() {
            Verdict::Drain(plan) => return Ok((plan, None)),
            Verdict::Orphaned(risk) if asked.is_empty() => {
                let up_to =
                    risk.up_to.map_or("an LSN that nobody knows".to_owned(), |lsn| format!("LSN {lsn}"));
                let what = format!("writes above LSN {} up to {up_to} are at risk: {}", risk.after, risk.why);
                if opening.forced {
                    tracing::error!(volume = %shared.id, epoch = %shared.epoch, %what, "opened by force");
                    let loss =
                        Loss { epoch: opening.registration.epoch, after: risk.after, up_to: risk.up_to };
                    return Ok((risk.best, Some(loss)));
                }
                return Err(Error::new(
                    ErrorKind::Denied,
                    format!(
                        "volume {} is orphaned: {what}; bring them back, or force it and lose them",
                        shared.id
                    ),
                ));
            }
            Verdict::Wait | Verdict::Orphaned(_) => {}
        }
        let Some((node, answer)) = asked.next().await else {
            return Err(Error::internal("a takeover waits for nobody"));
        };
        let answer = match answer {
            Ok((_, logs)) => Answer::Sealed(logs),
            Err(error) => {
                tracing::warn!(volume = %shared.id, %node, %error, "can't seal the log at a peer");
                Answer::Unreachable
            }
        };
        takeover.answered(&node, answer);
    }
}

/// Which entries of a log are wanted.
struct Wanted<'a> {
    epoch: Epoch,
    to: Lsn,
    cut: &'a (dyn Fn(Epoch) -> Option<Lsn> + Sync),
}

impl Wanted<'_> {
    fn counts(&self, entry: &Entry) -> bool {
        entry.lsn <= self.to && (self.cut)(entry.epoch).is_none_or(|end| entry.lsn <= end)
    }
}

/// Reads a log into the journal, from any of its holders.
async fn drain(
    shared: &Arc<Shared>,
    opening: &Opening,
    wanted: &Wanted<'_>,
    logs: &[PeerLog],
    replay: &mut Replay,
    run: &mut Vec<RecoveredEntry>,
) -> Result<()> {
    for log in logs {
        if replay.last() >= wanted.to {
            break;
        }
        let outcome = drain_one(shared, opening, wanted, log, replay, run).await;
        if let Err(error) = outcome {
            tracing::warn!(volume = %shared.id, node = %log.node, %error, "can't read a log to its end");
            if error.kind == ErrorKind::Corrupt && logs.len() == 1 {
                return Err(error);
            }
        }
    }
    Ok(())
}

async fn drain_one(
    shared: &Arc<Shared>,
    opening: &Opening,
    wanted: &Wanted<'_>,
    log: &PeerLog,
    replay: &mut Replay,
    run: &mut Vec<RecoveredEntry>,
) -> Result<()> {
    let Some(client) = opening.peers.client(&log.node) else {
        return Err(Error::unavailable("the registry does not know where it is"));
    };
    let key = Key { volume: shared.id, epoch: wanted.epoch, incarnation: log.incarnation };
    let mut reading = client.read(key, replay.last().next()).await?;
    let mut batch: Vec<LogEntry> = Vec::new();
    let mut bytes = 0;
    loop {
        let next = reading.next().await;
        let ended = !matches!(next, Ok(Some(_)));
        if let Ok(Some(entry)) = &next
            && wanted.counts(entry)
            && replay.takes(entry)?
        {
            bytes += entry.payload.len();
            batch.push(log_entry(shared, entry)?);
        }
        if (ended || bytes >= BATCH || replay.last() >= wanted.to) && !batch.is_empty() {
            bytes = 0;
            run.extend(journal(shared, std::mem::take(&mut batch)).await?);
        }
        if ended || replay.last() >= wanted.to {
            return next.map(drop);
        }
    }
}

/// The entry as the log has it, checked: its checksums are those of its content.
fn log_entry(shared: &Shared, entry: &Entry) -> Result<LogEntry> {
    let damaged =
        |why: &str| Error::corrupt(format!("volume {}: LSN {} from a peer {why}", shared.id, entry.lsn));
    let kind = Kind::from_u8(entry.kind).ok_or_else(|| damaged("is of an unknown kind"))?;
    if entry.volume != shared.id || !kind.fits(entry.addr, entry.count) {
        return Err(damaged("is not an entry of this volume"));
    }
    let cluster = shared.cluster as usize;
    let clusters = if kind.has_content() { entry.count as usize } else { 0 };
    if entry.payload.len() != clusters * cluster || entry.crcs.len() != clusters {
        return Err(damaged("has another length than it says"));
    }
    shared.verify(shared.id, entry.addr, &entry.payload, &entry.crcs, || {
        format!("LSN {} from a peer", entry.lsn)
    })?;
    Ok(LogEntry {
        volume: entry.volume,
        epoch: entry.epoch,
        lsn: entry.lsn,
        kind,
        addr: entry.addr,
        count: entry.count,
        data: entry.payload.clone(),
        crcs: entry.crcs.clone(),
    })
}

/// What [`Replay`] looks at.
fn header(shared: &Shared, entry: &RecoveredEntry) -> Entry {
    Entry {
        volume: shared.id,
        epoch: entry.epoch,
        lsn: entry.lsn,
        kind: entry.kind as u8,
        flags: 0,
        addr: entry.addr,
        count: entry.count,
        crcs: Default::default(),
        payload: Default::default(),
    }
}

/// Where drained entries lie, as the journal tells it.
#[derive(Default)]
struct Landed {
    state: Mutex<(Vec<JournalLoc>, Option<Error>)>,
    more: Notify,
}

impl Sink for Landed {
    fn retired(&self, entries: &mut dyn Iterator<Item = Retired>) {
        self.state.lock().0.extend(entries.map(|entry| entry.loc));
        self.more.notify_one();
    }

    fn relocated(&self, _: Epoch, _: Lsn, _: JournalLoc) {}

    fn failed(&self, error: &Error) {
        self.state.lock().1 = Some(error.clone());
        self.more.notify_one();
    }
}

/// Writes entries into the journal; they survive a power cut when this returns.
async fn journal(shared: &Arc<Shared>, entries: Vec<LogEntry>) -> Result<Vec<RecoveredEntry>> {
    let landed = Arc::new(Landed::default());
    let sink: Arc<dyn Sink> = landed.clone();
    for entry in &entries {
        shared.journal.submit(&sink, entry.clone())?;
    }
    shared.journal.commit();
    loop {
        {
            let state = landed.state.lock();
            if let Some(error) = &state.1 {
                return Err(error.clone());
            }
            if state.0.len() >= entries.len() {
                break;
            }
        }
        landed.more.notified().await;
    }
    shared.journal.sync().await?;
    let locs = std::mem::take(&mut landed.state.lock().0);
    let located = entries.into_iter().zip(locs).map(|(e, loc)| RecoveredEntry {
        epoch: e.epoch,
        lsn: e.lsn,
        kind: e.kind,
        addr: e.addr,
        count: e.count,
        crcs: e.crcs,
        loc,
    });
    Ok(located.collect())
}
