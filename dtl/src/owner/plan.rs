//! What the registry should say, and how to get there.

use super::{Action, Link, LinkState, Owner};
use crate::registration::{Config, Mode, OnFailure, PeerLog, Status};
use common::{Lsn, Name, mutant};
use std::time::Duration;

impl Owner {
    /// Does what there is to do now.
    pub(super) fn step(&mut self, now: Duration) {
        if self.fenced {
            return;
        }
        self.shunned.retain(|(_, until)| *until > now);
        self.drop_dead_links(now);
        let target = self.target(now);
        self.pursue(target, now);
        self.ask_for_flushes(now);
        self.recruit(now);
    }

    /// Moves towards `target`: arms it, proposes it, or, when all is well, does nothing.
    fn pursue(&mut self, target: Option<Config>, now: Duration) {
        let Some(target) = target else {
            // All is well; what was intended and not sent is not intended any more.
            if self.armed.take().is_some() {
                self.refresh();
            }
            self.resend_unknown(now);
            return;
        };
        if self.in_flight {
            // One at a time: each has an answer, even if that is "unknown".
            return;
        }
        // Acknowledgements wait from here on, so that what has been acknowledged stands still.
        self.armed = Some(target);
        self.refresh();
        let Some(target) = &self.armed else { return };
        let ready = target.status != Status::InSync
            || self.covers_promises(target)
            || mutant::is_on("insync-named-too-early");
        if !ready {
            return;
        }
        if now < self.retry_at && !self.proposals.is_empty() {
            return;
        }
        if let Some(target) = self.armed.take() {
            self.propose(target);
        }
    }

    /// What was flushed, or asked to be, before a peer was intended must be flushed there too: no client asks again.
    fn ask_for_flushes(&mut self, now: Duration) {
        let lsn = self.flush_acked.max(self.flush_wanted);
        for i in 0..self.links.len() {
            let link = &self.links[i];
            let owes = link.flushed < lsn && link.flush_asked < lsn && link.state != LinkState::Lost;
            let matters = |c: &Config| c.status == Status::InSync && c.peers.contains(&link.peer);
            if owes && self.possible().any(matters) {
                let peer = link.peer.clone();
                self.links[i].ask_for_flush(lsn, now);
                self.actions.push_back(Action::Flush(peer, lsn));
            }
        }
    }

    /// Where the truth is unknown and the last known one would do, it has to be found out all the same.
    fn resend_unknown(&mut self, now: Duration) {
        if !self.in_flight
            && now >= self.retry_at
            && let Some(last) = self.proposals.last().cloned()
        {
            self.propose(last);
        }
    }

    fn propose(&mut self, new: Config) {
        if !self.proposals.contains(&new) {
            self.proposals.push(new.clone());
        }
        self.in_flight = true;
        self.refresh();
        self.actions.push_back(Action::Propose { expect: (self.epoch, self.base.config), new });
    }

    /// What the registry should say instead of what it says; `None` when that is right.
    fn target(&self, now: Duration) -> Option<Config> {
        let base = &self.base;
        if !self.replicates() {
            // Mode none, or changed to it: nobody is waited for, and nobody is said to keep anything.
            let idle = base.peers.is_empty() && (base.status == Status::Degraded || base.mode == Mode::None);
            return (!idle).then(|| self.changed(Status::Degraded, Vec::new()));
        }
        let ready: Vec<PeerLog> = self.candidates(now);
        match base.status {
            // Nobody could be drained: it was never true.
            Status::InSync if base.peers.is_empty() => Some(self.changed(Status::Degraded, Vec::new())),
            Status::InSync => {
                let holding: Vec<PeerLog> = base
                    .peers
                    .iter()
                    .filter(|p| self.link(p).is_some_and(|l| !self.failed(l, now)))
                    .cloned()
                    .collect();
                let mut next = holding.clone();
                next.extend(ready.into_iter().filter(|p| !holding.contains(p)));
                next.truncate(usize::from(base.wanted).max(holding.len()));
                if same(&next, &base.peers) {
                    return None;
                }
                if holding.len() == base.peers.len() {
                    // One more, or the one that took its place.
                    return Some(self.changed(Status::InSync, next));
                }
                match base.on_failure {
                    // Who blocks never goes on with fewer than it had.
                    OnFailure::Block if next.len() < base.peers.len() => None,
                    _ if !next.is_empty() => Some(self.changed(Status::InSync, next)),
                    OnFailure::Block => None,
                    OnFailure::Degrade => Some(self.changed(Status::Degraded, base.peers.clone())),
                }
            }
            Status::CatchingUp | Status::Degraded if !ready.is_empty() => {
                Some(self.changed(Status::InSync, ready))
            }
            Status::Degraded => {
                let coming = self.present();
                (!coming.is_empty()).then(|| self.changed(Status::CatchingUp, coming))
            }
            Status::CatchingUp => {
                let coming = self.present();
                if coming.is_empty() {
                    return Some(self.changed(Status::Degraded, base.peers.clone()));
                }
                None
            }
        }
    }

    fn changed(&self, status: Status, peers: Vec<PeerLog>) -> Config {
        let replicated = match (self.base.status, status) {
            // The last moment at which it is known what they have for sure.
            (Status::InSync, Status::Degraded) => self.quorum(&self.base, |l| l.confirmed),
            (_, Status::InSync) => Lsn(0),
            _ => self.base.replicated,
        };
        Config { status, peers, config: self.base.config + 1, replicated, ..self.base.clone() }
    }

    /// Logs that acknowledgements could wait for.
    fn candidates(&self, now: Duration) -> Vec<PeerLog> {
        let close = |l: &&Link| {
            l.state == LinkState::Live
                && !self.failed(l, now)
                && l.confirmed.0.saturating_add(self.patience.close_enough) >= self.accepted.0
        };
        let peers = self.links.iter().filter(close).map(|l| l.peer.clone());
        peers.take(usize::from(self.base.wanted)).collect()
    }

    fn present(&self) -> Vec<PeerLog> {
        let there = |l: &&Link| matches!(l.state, LinkState::Live | LinkState::CatchingUp);
        let peers = self.links.iter().filter(there).map(|l| l.peer.clone());
        peers.take(usize::from(self.base.wanted)).collect()
    }

    /// Whether nobody should wait for this log any longer.
    fn failed(&self, link: &Link, now: Duration) -> bool {
        let late = |since: Duration| now.saturating_sub(since) >= self.patience.fail_after;
        match link.state {
            LinkState::Lost => true,
            // One that was named and is behind again counts as long as it gets on.
            LinkState::Away => late(link.since),
            LinkState::CatchingUp => late(link.write_since),
            LinkState::Live => {
                let owes_write = self.base.mode == Mode::Sync && link.confirmed < self.accepted;
                (owes_write && late(link.write_since))
                    || (link.flushed < link.flush_asked && late(link.flush_since))
            }
        }
    }

    /// Forgets links that can't help any more and that no possible configuration names.
    fn drop_dead_links(&mut self, now: Duration) {
        let mut dropped = Vec::new();
        for link in &self.links {
            let gone = match link.state {
                LinkState::Lost => true,
                LinkState::Away => now.saturating_sub(link.since) >= self.patience.replace_after,
                _ => {
                    now.saturating_sub(link.write_since) >= self.patience.replace_after
                        && self.failed(link, now)
                }
            };
            // Not before the registry names them no more: until then somebody may ask them for what they have.
            let surplus = !self.replicates() && self.base.peers.is_empty();
            let named = self.possible().any(|c| c.status == Status::InSync && c.peers.contains(&link.peer));
            if (gone || surplus) && !named {
                dropped.push((link.peer.clone(), gone && link.state != LinkState::Lost));
            }
        }
        for (peer, failed) in dropped {
            self.links.retain(|l| l.peer != peer);
            if failed {
                self.shunned.push((peer.node.clone(), now + self.patience.replace_after));
            }
            self.actions.push_back(Action::Release(peer));
        }
    }

    /// Asks for peers when there are too few that work.
    fn recruit(&mut self, now: Duration) {
        if !self.replicates() || now < self.recruit_at {
            return;
        }
        let replace = |l: &&Link| {
            l.state != LinkState::Lost
                && !(l.state == LinkState::Away && now.saturating_sub(l.since) >= self.patience.replace_after)
        };
        let working = self.links.iter().filter(replace).count();
        let want = usize::from(self.base.wanted).saturating_sub(working);
        if want == 0 {
            return;
        }
        self.recruit_at = now + self.patience.retry_after;
        let lost_here = |l: &&Link| l.state == LinkState::Lost;
        // A node whose log is lost (it restarted) may make another one at once.
        let mut avoid: Vec<Name> =
            self.links.iter().filter(|l| !lost_here(l)).map(|l| l.peer.node.clone()).collect();
        avoid.extend(self.shunned.iter().map(|(node, _)| node.clone()));
        self.actions.push_back(Action::Recruit { want, avoid });
    }
}

fn same(a: &[PeerLog], b: &[PeerLog]) -> bool {
    a.len() == b.len() && a.iter().all(|p| b.contains(p))
}
