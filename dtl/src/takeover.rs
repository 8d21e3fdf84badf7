//! Which logs a new owner must seal and drain before it serves, or why it may not; sans-I/O.
//!
//! Rules 1, 6, 7 and 13 of the design: of the peers that the registration names as InSync, `peers - needed + 1`
//! logs must be sealed, each the named incarnation and none suspect (in mode `async` a suspect one is enough: what was
//! flushed is there). Any acknowledged write is in one of them, and the longest has all of it. Where the registration
//! says anything else than InSync, only the journal of the old owner has everything. Whatever can't be had
//! makes the volume Orphaned, with the range that is at risk: nobody takes over silently.
//!
//! Does not own: the epoch's compare-and-swap and the fence on the backend, which come before; reading the logs;
//! the replay.

mod replay;

#[cfg(test)]
mod tests;

pub use replay::Replay;

use crate::registration::{Holder, LogInfo, Mode, PeerLog, Registration, Status, Tail};
use common::{Epoch, Lsn, Name, mutant};

/// The journal of the node that takes over, as far as it has something of this volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalJournal {
    /// This node.
    pub node: Name,
    /// This node was the last owner, and these are the devices that it had then.
    pub of_last_owner: bool,
    /// The machine has not been restarted since, and no write or sync of these devices has failed: all that was handed
    /// to the kernel is there.
    pub same_boot: bool,
    /// It begins behind this LSN.
    pub base: Lsn,
    /// The last entry of the contiguous run.
    pub last: Lsn,
}

/// What came of asking a node to seal the volume at the new epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It is sealed there; these are the logs that it has of the volume.
    Sealed(Vec<LogInfo>),
    /// No answer, for as long as one would wait.
    Unreachable,
}

/// A part of what is to be replayed, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Where to read.
    pub from: Origin,
    /// Everything above this LSN,
    pub after: Lsn,
    /// up to this one.
    pub to: Lsn,
}

/// Where a part of the tail is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Any one of these logs of an epoch; the next one where the first can't be read.
    Log(Epoch, Vec<PeerLog>),
    /// The journal of this node.
    Journal,
}

/// What is known to be enough.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// What to read and replay above the committed LSN, in order and without a gap.
    pub pieces: Vec<Piece>,
    /// The machine of the old owner restarted: writes that were never flushed may be missing, and it is to be reported.
    pub unflushed_may_be_lost: bool,
}

/// What is at risk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Risk {
    /// Everything above this LSN,
    pub after: Lsn,
    /// up to this one where it is known.
    pub up_to: Option<Lsn>,
    /// In words.
    pub why: String,
    /// What could be had all the same: an operator may force it.
    pub best: Plan,
}

/// Whether it may take over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// More answers are needed.
    Wait,
    /// It may: read this.
    Drain(Plan),
    /// It may not.
    Orphaned(Risk),
}

/// A takeover: who was asked to seal, and what they said.
#[derive(Debug)]
pub struct Takeover {
    registration: Registration,
    committed: Lsn,
    journal: Option<LocalJournal>,
    answers: Vec<(Name, Option<Answer>)>,
}

/// What is enough to recover the last epoch from.
struct Choice {
    from: Origin,
    base: Lsn,
    last: Lsn,
    unflushed_may_be_lost: bool,
}

impl Takeover {
    /// The takeover of a volume of which the backend has everything up to `committed`.
    pub fn new(registration: Registration, committed: Lsn, journal: Option<LocalJournal>) -> Self {
        let mut takeover = Takeover { registration, committed, journal, answers: Vec::new() };
        let r = &takeover.registration;
        let holders = r.tails.iter().filter(|t| t.last > committed).flat_map(|t| &t.holders);
        let holders = holders.filter_map(|h| match h {
            Holder::Log(log) => Some(log),
            Holder::Journal(_) => None,
        });
        let mut nodes: Vec<Name> = r.config.peers.iter().chain(holders).map(|p| p.node.clone()).collect();
        nodes.sort();
        nodes.dedup();
        takeover.answers = nodes.into_iter().map(|node| (node, None)).collect();
        takeover
    }

    /// The nodes to seal the volume at, at the new epoch, that have not answered. All of them are asked,
    /// whatever the verdict: a seal is what stops the old owner there.
    pub fn to_seal(&self) -> impl Iterator<Item = &Name> {
        self.answers.iter().filter(|(_, answer)| answer.is_none()).map(|(node, _)| node)
    }

    /// What a node said. A node that was unreachable may answer later.
    pub fn answered(&mut self, node: &Name, answer: Answer) {
        if let Some((_, slot)) = self.answers.iter_mut().find(|(n, _)| n == node) {
            *slot = Some(answer);
        }
    }

    /// What follows from the answers so far.
    pub fn verdict(&self) -> Verdict {
        let r = &self.registration;
        // It says that the backend has everything, so that it can't have less than a tail.
        if r.clean && r.tails.iter().all(|t| t.last <= self.committed) {
            return Verdict::Drain(Plan { pieces: Vec::new(), unflushed_may_be_lost: false });
        }
        let waiting = self.answers.iter().any(|(_, answer)| answer.is_none());
        let Some(choice) = self.choose() else {
            return if waiting { Verdict::Wait } else { Verdict::Orphaned(self.risk()) };
        };
        match self.connect(choice.base) {
            Ok(mut pieces) => {
                push(&mut pieces, self.committed, choice.from, choice.base, choice.last);
                Verdict::Drain(Plan { pieces, unflushed_may_be_lost: choice.unflushed_may_be_lost })
            }
            Err(_) if waiting => Verdict::Wait,
            Err((best, after)) => Verdict::Orphaned(Risk {
                after,
                up_to: Some(choice.last),
                why: format!("nobody who answered has what lies between LSN {after} and LSN {}", choice.base),
                best: Plan { pieces: best, unflushed_may_be_lost: true },
            }),
        }
    }

    /// What has everything that was acknowledged in the last epoch, if anything has.
    fn choose(&self) -> Option<Choice> {
        let config = &self.registration.config;
        let named = config.status == Status::InSync && config.mode != Mode::None && !config.peers.is_empty();
        let journal = self.journal.as_ref().filter(|j| j.of_last_owner);
        let from_journal = |j: &LocalJournal, lost| Choice {
            from: Origin::Journal,
            base: j.base,
            last: j.last,
            unflushed_may_be_lost: lost,
        };
        let whole = self.named_logs(|log| {
            let trusted = mutant::is_on("suspect-log-trusted") || !log.suspect || config.mode == Mode::Async;
            log.sealed && !log.damaged && trusted
        });
        // The kernel had every acknowledged write, and it is the same kernel. Where a log has more all the same, the
        // longer one is the better one (rule 1).
        let longer = |j: &LocalJournal| named && whole.first().is_some_and(|(_, log)| log.last > j.last);
        let same_boot = |j: &LocalJournal| j.same_boot || mutant::is_on("journal-of-another-boot-believed");
        if let Some(j) = journal.filter(|j| same_boot(j) && !longer(j)) {
            return Some(from_journal(j, false));
        }
        if named {
            let needed = match mutant::is_on("dtl-drains-any-one-log") {
                true => 1,
                false => config.sealed_needed(),
            };
            if whole.len() >= needed {
                let longest = whole.first()?;
                // In mode async the journal may have more, all of it unflushed; a prefix either way.
                let from = Origin::Log(
                    self.registration.epoch,
                    whole
                        .iter()
                        .take_while(|(_, log)| log.last == longest.1.last)
                        .map(|(p, _)| p.clone())
                        .collect(),
                );
                return Some(Choice {
                    from,
                    base: longest.1.base,
                    last: longest.1.last,
                    unflushed_may_be_lost: config.mode == Mode::Async,
                });
            }
        }
        if let Some(j) = journal.filter(|j| same_boot(j)) {
            return Some(from_journal(j, false));
        }
        // What was flushed is there; in mode sync with peers that may have more, that is not enough.
        journal.filter(|_| !named || config.mode == Mode::Async).map(|j| from_journal(j, true))
    }

    /// The named logs that `fits`, the longest first.
    fn named_logs(&self, fits: impl Fn(&LogInfo) -> bool) -> Vec<(PeerLog, LogInfo)> {
        let named = |p: &PeerLog| {
            self.log(p, self.registration.epoch).filter(|l| fits(l)).map(|log| (p.clone(), *log))
        };
        let mut logs: Vec<_> = self.registration.config.peers.iter().filter_map(named).collect();
        logs.sort_by_key(|(_, log)| std::cmp::Reverse(log.last));
        logs
    }

    fn log(&self, peer: &PeerLog, epoch: Epoch) -> Option<&LogInfo> {
        let (_, answer) = self.answers.iter().find(|(node, _)| *node == peer.node)?;
        match answer {
            Some(Answer::Sealed(logs)) => {
                logs.iter().find(|l| l.epoch == epoch && l.incarnation == peer.incarnation)
            }
            _ => None,
        }
    }

    /// The tails that lead from the committed LSN to `base`, behind which the last epoch's log begins; or how
    /// far they lead.
    fn connect(&self, base: Lsn) -> Result<Vec<Piece>, (Vec<Piece>, Lsn)> {
        let mut pieces = Vec::new();
        let mut at = self.committed;
        let mut tails: Vec<&Tail> =
            self.registration.tails.iter().filter(|t| t.last > self.committed).collect();
        tails.sort_by_key(|t| t.epoch);
        for tail in tails {
            if at >= base {
                break;
            }
            if tail.last <= at {
                // Nothing was added in that epoch, so nobody need have it.
                continue;
            }
            let Some(from) = self.holder(tail, at) else { return Err((pieces, at)) };
            push(&mut pieces, at, from, at, tail.last);
            at = tail.last;
        }
        if at >= base { Ok(pieces) } else { Err((pieces, at)) }
    }

    /// Who has `tail` from `at` on: its last LSN is known, so a log that reaches it is whole, whatever its marks.
    fn holder(&self, tail: &Tail, at: Lsn) -> Option<Origin> {
        let logs = tail.holders.iter().filter_map(|h| match h {
            Holder::Log(peer) => Some(peer),
            Holder::Journal(_) => None,
        });
        let whole =
            |p: &&PeerLog| self.log(p, tail.epoch).is_some_and(|l| l.last >= tail.last && l.base <= at);
        let logs: Vec<PeerLog> = logs.filter(whole).cloned().collect();
        if !logs.is_empty() {
            return Some(Origin::Log(tail.epoch, logs));
        }
        // Any other journal that has these LSNs may have them from an epoch of which they were cut off.
        let holds =
            |j: &&LocalJournal| j.of_last_owner || tail.holders.contains(&Holder::Journal(j.node.clone()));
        let journal = self.journal.as_ref().filter(holds);
        journal.filter(|j| j.last >= tail.last && j.base <= at).map(|_| Origin::Journal)
    }

    fn risk(&self) -> Risk {
        let r = &self.registration;
        // For an operator who forces it: whatever is sealed and longest, marks or not.
        let best = self.named_logs(|_| true).into_iter().next();
        let journal = self.journal.as_ref().filter(|j| j.of_last_owner);
        let journal = journal.map(|j| (Origin::Journal, j.base, j.last));
        let best = best.map(|(p, l)| (Origin::Log(r.epoch, vec![p]), l.base, l.last));
        let best = best.into_iter().chain(journal).max_by_key(|(_, _, last)| *last);
        // The tails of earlier epochs lead as far as they do, also where nothing of the last epoch can be had.
        let base = best.as_ref().map_or(Lsn(u64::MAX), |(_, base, _)| *base);
        let pieces = match (self.connect(base), best) {
            (Ok(mut leading), Some((from, base, last))) => {
                push(&mut leading, self.committed, from, base, last);
                leading
            }
            (Ok(leading) | Err((leading, _)), _) => leading,
        };
        let after = pieces.last().map_or(self.committed, |p| p.to);
        let missing: Vec<String> = r
            .config
            .peers
            .iter()
            .filter_map(|p| self.trouble(p).map(|t| format!("{}: {t}", p.node)))
            .collect();
        let why = match r.config.status {
            Status::InSync if r.config.mode != Mode::None => format!(
                "{} of {} logs must be sealed and whole ({})",
                r.config.sealed_needed(),
                r.config.peers.len(),
                missing.join("; ")
            ),
            _ => format!(
                "its replication was not in sync, so only {} has everything that it acknowledged in epoch {}",
                r.owner, r.epoch
            ),
        };
        Risk { after, up_to: None, why, best: Plan { pieces, unflushed_may_be_lost: true } }
    }

    /// Why a named log does not count.
    fn trouble(&self, peer: &PeerLog) -> Option<&'static str> {
        let (_, answer) = self.answers.iter().find(|(node, _)| *node == peer.node)?;
        Some(match (answer, self.log(peer, self.registration.epoch)) {
            (None | Some(Answer::Unreachable), _) => "unreachable",
            (Some(Answer::Sealed(_)), None) => "the log that it had is gone",
            (_, Some(log)) if log.damaged => "the log is damaged",
            (_, Some(log)) if log.suspect => "the log may lack its end: its router restarted",
            (_, Some(log)) if !log.sealed => "the log is not sealed",
            _ => return None,
        })
    }
}

/// Adds what lies above `committed` of (`base`, `last`], behind what `pieces` have.
fn push(pieces: &mut Vec<Piece>, committed: Lsn, from: Origin, base: Lsn, last: Lsn) {
    let after = pieces.last().map_or(committed, |p: &Piece| p.to).max(base).max(committed);
    if last > after {
        pieces.push(Piece { from, after, to: last });
    }
}
