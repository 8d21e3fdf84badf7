//! Who is attached to a volume, and in which session (rule 3, R9). Time and requests to attach in, verdicts out.
//!
//! - An attachment is **held** while its client speaks, for a lease after that, and until somebody else comes. An
//!   exclusive one admits nobody beside it.
//! - A request to attach again, with a higher session number, shuts the gate of the session before. It is answered
//!   when whatever went through that gate has ended; so nothing of a lower session follows the first replay.
//! - Who was attached exclusively in this epoch and is not any more (somebody else came after its lease, it detached)
//!   does not come back: others may have written, and it would replay over that.
//!
//! Lives in the process that owns the volume, from its opening on. What another epoch should know is handed to
//! [`Sessions::new`].

use super::gate::Gate;
use common::{Epoch, Error, mutant};
use edge_client::wire::{Attach, Mode, Refusal};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// An attachment that is to be remembered over a change of owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its number.
    pub attachment: u128,
    /// Who else may be attached.
    pub mode: Mode,
    /// Whose it is, as people call it.
    pub client: String,
}

/// The attachments of one volume in one epoch.
pub struct Sessions {
    epoch: Epoch,
    lease: Duration,
    held: HashMap<u128, Held>,
    /// The attachment that wrote last, or may have; others were before it.
    writer: Option<u128>,
    /// More than one attachment may have written in this epoch.
    several: bool,
}

struct Held {
    holder: Holder,
    session: u64,
    /// It began in this epoch, with nothing written before: no change of owner can have lost anything of it.
    whole: bool,
    gate: Arc<Gate>,
    /// Of lower sessions, and not known to be empty.
    draining: Vec<Arc<Gate>>,
}

/// A session that may begin when `draining` have drained.
pub struct Admission {
    /// Of the session.
    pub gate: Arc<Gate>,
    /// All of them are shut.
    pub draining: Vec<Arc<Gate>>,
    /// Everything of the attachment was written in this epoch, to this owner.
    pub known: bool,
}

impl Sessions {
    /// Of a volume that was opened at `now` in `epoch`. `before` were attached to the owner before this one: for a
    /// lease they have the right to come back.
    pub fn new(epoch: Epoch, lease: Duration, before: Vec<Holder>, now: Duration) -> Self {
        let held = before.into_iter().map(|holder| {
            let gate = Gate::new(now);
            gate.shut();
            gate.leave(now);
            (holder.attachment, Held { holder, session: 0, whole: false, gate, draining: Vec::new() })
        });
        Sessions { epoch, lease, held: held.collect(), writer: None, several: false }
    }

    /// Somebody wants to attach.
    ///
    /// # Errors
    /// `Conflict` names who holds the volume; `Fenced` is for good; `Stale` names the session that is newer.
    pub fn attach(&mut self, attach: &Attach, now: Duration) -> Result<Admission, Refusal> {
        let id = attach.attachment;
        if attach.since > self.epoch {
            return Err(Error::new(common::ErrorKind::NotOwner, "the client knows a newer owner").into());
        }
        self.expire(now);
        if let Some(held) = self.held.get(&id) {
            if attach.session <= held.session {
                return Err(Refusal::Stale(held.session));
            }
            if attach.mode != held.holder.mode {
                return Err(Error::invalid("the attachment has another mode").into());
            }
        } else {
            self.may_come(attach)?;
        }
        let draining = self.make_room(attach, now)?;
        let writes = attach.mode != Mode::ReadOnly;
        if writes {
            self.several |= self.writer.is_some_and(|writer| writer != id);
            self.writer = Some(id);
        }
        let gate = Gate::new(now);
        let known;
        match self.held.get_mut(&id) {
            Some(held) => {
                // A session before this one says nothing: it may be an attempt whose answer was lost.
                let before = held.session > 0 && mutant::is_on("lost-attempt-counts-as-known");
                known = held.whole || before;
                held.session = attach.session;
                let before = std::mem::replace(&mut held.gate, gate.clone());
                if !mutant::is_on("lower-session-accepted") {
                    before.shut();
                    held.draining.push(before);
                }
                held.draining.extend(draining);
            }
            None => {
                known = false;
                let whole = attach.since == Epoch(0) && !attach.resumed;
                let holder = Holder { attachment: id, mode: attach.mode, client: attach.client.clone() };
                let held = Held { holder, session: attach.session, whole, gate: gate.clone(), draining };
                self.held.insert(id, held);
            }
        }
        let draining = self.held.get(&id).map(|held| held.draining.clone()).unwrap_or_default();
        Ok(Admission { gate, draining, known })
    }

    /// Whether one that is not held here, and says that it was attached before, may come back.
    fn may_come(&self, attach: &Attach) -> Result<(), Refusal> {
        if attach.since == Epoch(0) || attach.mode != Mode::Exclusive {
            return Ok(());
        }
        let others = self.several || self.writer.is_some_and(|writer| writer != attach.attachment);
        if attach.since == self.epoch || others {
            return Err(Error::fenced(
                "the attachment was given up or revoked; what its client has not flushed may be gone",
            )
            .into());
        }
        Ok(())
    }

    /// Revokes what has no lease any more and is in the way.
    fn make_room(&mut self, attach: &Attach, now: Duration) -> Result<Vec<Arc<Gate>>, Refusal> {
        let alone = |mode| mode == Mode::Exclusive;
        let in_the_way = |held: &Held| {
            held.holder.attachment != attach.attachment && (alone(attach.mode) || alone(held.holder.mode))
        };
        let lease = self.lease;
        if let Some(held) = self.held.values().find(|h| in_the_way(h) && h.gate.is_live(now, lease)) {
            let mode = match held.holder.mode {
                Mode::Exclusive => "exclusive",
                Mode::ReadOnly => "read-only",
                Mode::Shared => "shared",
            };
            return Err(Error::conflict(format!(
                "{} is attached by {} ({mode}, attachment {:032x})",
                attach.export, held.holder.client, held.holder.attachment
            ))
            .into());
        }
        let gone: Vec<u128> =
            self.held.values().filter(|h| in_the_way(h)).map(|h| h.holder.attachment).collect();
        Ok(gone.into_iter().flat_map(|id| self.end(id)).collect())
    }

    /// Ends an attachment; returns the gates that are to drain.
    fn end(&mut self, id: u128) -> Vec<Arc<Gate>> {
        let Some(held) = self.held.remove(&id) else { return Vec::new() };
        held.gate.shut();
        held.draining.into_iter().chain([held.gate]).collect()
    }

    /// The client of `gate` gives up the attachment, unless it is in a newer session; returns the gates that are to
    /// drain.
    pub fn detach(&mut self, id: u128, gate: &Arc<Gate>) -> Vec<Arc<Gate>> {
        if self.held.get(&id).is_some_and(|held| Arc::ptr_eq(&held.gate, gate)) {
            self.end(id)
        } else {
            Vec::new()
        }
    }

    /// Takes an attachment away, by an operator's wish; its I/O is refused from now on. Returns the gates that are
    /// to drain.
    pub fn revoke(&mut self, id: u128) -> Vec<Arc<Gate>> {
        self.end(id)
    }

    /// Lower sessions have drained.
    pub fn drained(&mut self, id: u128, gates: &[Arc<Gate>]) {
        if let Some(held) = self.held.get_mut(&id) {
            held.draining.retain(|gate| !gates.iter().any(|drained| Arc::ptr_eq(drained, gate)));
        }
    }

    /// Forgets those who share or read and whose lease ran out: they may come back as if they were new. An exclusive
    /// one stays until somebody else comes: for its client a long silence is latency.
    fn expire(&mut self, now: Duration) {
        let lease = self.lease;
        let late = |held: &Held| held.holder.mode != Mode::Exclusive && !held.gate.is_live(now, lease);
        let late: Vec<u128> = self.held.iter().filter(|(_, h)| late(h)).map(|(id, _)| *id).collect();
        for id in late {
            self.end(id);
        }
    }

    /// Whether no client is here, or was less than a lease ago.
    pub fn is_idle(&self, now: Duration) -> bool {
        self.held.values().all(|held| !held.gate.is_live(now, self.lease))
    }

    /// Who is attached, or may come back.
    pub fn holders(&self) -> Vec<Holder> {
        self.held.values().map(|held| held.holder.clone()).collect()
    }
}

#[cfg(test)]
mod tests;
