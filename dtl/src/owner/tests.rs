use super::*;
use crate::registration::{Incarnation, Needed, OnFailure};
use common::mutant;

const S: fn(u64) -> Duration = Duration::from_secs;

fn peer(node: &str, incarnation: u128) -> PeerLog {
    PeerLog { node: node.parse().unwrap(), incarnation: Incarnation(incarnation) }
}

fn owner(mode: Mode, wanted: u8, needed: Needed, on_failure: OnFailure) -> Owner {
    Owner::new(Epoch(5), Config::alone(mode, wanted, needed, on_failure), Lsn(100), Patience::default())
}

fn proposed(owner: &mut Owner) -> Option<Config> {
    let mut found = None;
    while let Some(action) = owner.take_action() {
        if let Action::Propose { expect, new } = action {
            assert_eq!(expect, (Epoch(5), owner.config().config));
            assert_eq!(new.config, owner.config().config + 1);
            found = Some(new);
        }
    }
    found
}

/// Applies all that is proposed.
fn settle(owner: &mut Owner, now: Duration) {
    while let Some(new) = proposed(owner) {
        owner.outcome(&new, Outcome::Applied, now);
    }
}

fn in_sync(mode: Mode, peers: &[PeerLog], needed: Needed, on_failure: OnFailure) -> Owner {
    let mut o = owner(mode, peers.len() as u8, needed, on_failure);
    for p in peers {
        o.joined(p.clone(), S(0));
    }
    for p in peers {
        o.progress(p, Lsn(100), Lsn(100), LinkState::Live, S(0));
    }
    settle(&mut o, S(0));
    assert_eq!((o.config().status, o.config().peers.len()), (Status::InSync, peers.len()));
    o
}

#[test]
fn an_epoch_begins_alone_and_recruits() {
    let mut o = owner(Mode::Sync, 1, Needed::All, OnFailure::Degrade);
    assert!(o.acknowledge(Lsn(101)) && o.acknowledge_flush(Lsn(101)) && !o.is_in_sync());
    o.tick(S(1));
    assert_eq!(o.take_action(), Some(Action::Recruit { want: 1, avoid: vec![] }));
    let p = peer("p", 1);
    o.joined(p.clone(), S(1));
    let new = proposed(&mut o).unwrap();
    assert_eq!((new.status, &new.peers[..]), (Status::CatchingUp, &[p][..]));
}

#[test]
fn who_is_not_replicated_any_more_names_nobody_and_lets_go_after_that() {
    let p = peer("p", 1);
    let mut o = in_sync(Mode::Sync, std::slice::from_ref(&p), Needed::All, OnFailure::Degrade);
    while o.take_action().is_some() {}
    let none = o.config().with_policy(Mode::None, 0, Needed::All, OnFailure::Degrade);
    o.observed(Epoch(5), none, S(1));
    assert!(o.acknowledge(Lsn(500)) && o.acknowledge_flush(Lsn(500)), "nobody is waited for");
    let actions: Vec<Action> = std::iter::from_fn(|| o.take_action()).collect();
    let [Action::Propose { new, .. }] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!((new.mode, new.status, new.peers.len()), (Mode::None, Status::Degraded, 0));
    o.tick(S(2));
    assert_eq!(o.take_action(), None, "it is not known whether the registry has it");
    o.outcome(new, Outcome::Applied, S(2));
    assert_eq!(o.take_action(), Some(Action::Release(p)));
    o.tick(S(100));
    assert_eq!(o.take_action(), None);
}

#[test]
fn before_insync_is_proposed_acknowledgements_wait_and_the_peer_has_everything() {
    let mut o = owner(Mode::Sync, 1, Needed::All, OnFailure::Degrade);
    let p = peer("p", 1);
    o.joined(p.clone(), S(0));
    settle(&mut o, S(0));
    assert!(o.acknowledge(Lsn(150)));
    o.progress(&p, Lsn(140), Lsn(140), LinkState::Live, S(0));
    assert_eq!(proposed(&mut o), None, "140 of 150 are there");
    assert!(!o.acknowledge(Lsn(151)), "rule 5: it waits already");
    o.progress(&p, Lsn(150), Lsn(100), LinkState::Live, S(0));
    let new = proposed(&mut o).unwrap();
    assert_eq!(new.status, Status::InSync);
    assert!(!o.acknowledge(Lsn(151)), "the outcome is unknown");
    o.progress(&p, Lsn(152), Lsn(100), LinkState::Live, S(0));
    assert!(o.acknowledge(Lsn(151)), "both the old and the new configuration are satisfied");
    o.outcome(&new, Outcome::Applied, S(0));
    assert!(o.is_in_sync() && o.acknowledge(Lsn(152)) && !o.acknowledge(Lsn(153)));
    assert!(!o.acknowledge_flush(Lsn(141)), "a flush needs the peer's fdatasync");
    o.progress(&p, Lsn(152), Lsn(152), LinkState::Live, S(0));
    assert!(o.acknowledge_flush(Lsn(152)));
}

#[test]
fn flushes_promised_alone_are_asked_of_the_peer_before_it_is_named() {
    let mut o = owner(Mode::Async, 1, Needed::All, OnFailure::Degrade);
    let p = peer("p", 1);
    o.joined(p.clone(), S(0));
    assert!(o.acknowledge_flush(Lsn(120)));
    settle(&mut o, S(0));
    o.progress(&p, Lsn(130), Lsn(110), LinkState::Live, S(0));
    let actions: Vec<Action> = std::iter::from_fn(|| o.take_action()).collect();
    assert_eq!(actions, [Action::Flush(p.clone(), Lsn(120))]);
    assert!(o.acknowledge(Lsn(300)), "mode async: writes never wait");
    assert!(!o.acknowledge_flush(Lsn(121)));
    o.progress(&p, Lsn(130), Lsn(130), LinkState::Live, S(0));
    settle(&mut o, S(0));
    assert!(o.is_in_sync() && o.acknowledge_flush(Lsn(130)) && !o.acknowledge_flush(Lsn(131)));
}

#[test]
fn a_flush_that_nobody_was_asked_for_is_asked_of_a_peer_before_it_is_named() {
    let mut o = owner(Mode::Sync, 1, Needed::All, OnFailure::Degrade);
    let p = peer("p", 1);
    o.joined(p.clone(), S(0));
    settle(&mut o, S(0));
    assert_eq!(o.config().status, Status::CatchingUp);
    assert!(!o.flush_wanted(Lsn(120), S(0)) && o.acknowledge_flush(Lsn(120)), "nobody is waited for");
    o.progress(&p, Lsn(130), Lsn(110), LinkState::Live, S(60));
    let actions: Vec<Action> = std::iter::from_fn(|| o.take_action()).collect();
    assert_eq!(actions, [Action::Flush(p.clone(), Lsn(120))], "else it would never be named");
    o.progress(&p, Lsn(130), Lsn(120), LinkState::Live, S(60));
    settle(&mut o, S(60));
    assert!(o.is_in_sync());
}

#[test]
fn a_failed_peer_holds_acknowledgements_until_the_registry_says_degraded() {
    let p = peer("p", 1);
    let mut o = in_sync(Mode::Sync, std::slice::from_ref(&p), Needed::All, OnFailure::Degrade);
    o.accepted(Lsn(101), S(10));
    o.progress(&p, Lsn(100), Lsn(100), LinkState::Away, S(10));
    o.tick(S(11));
    assert_eq!(proposed(&mut o), None, "patience");
    assert!(!o.acknowledge(Lsn(101)));
    o.tick(S(12));
    let new = proposed(&mut o).unwrap();
    assert_eq!((new.status, new.replicated), (Status::Degraded, Lsn(100)));
    assert!(!o.acknowledge(Lsn(101)), "R3: first in public");
    o.outcome(&new, Outcome::Unknown, S(12));
    assert!(!o.acknowledge(Lsn(101)));
    o.tick(S(13));
    let again = proposed(&mut o).unwrap();
    assert_eq!(again, new);
    o.outcome(&new, Outcome::Refused(Some((Epoch(5), new.clone()))), S(13));
    assert!(o.acknowledge(Lsn(101)) && !o.is_in_sync(), "it had been applied");
}

#[test]
fn a_live_peer_that_confirms_nothing_fails_and_an_idle_one_does_not() {
    let (p, q) = (peer("p", 1), peer("q", 2));
    let mut o = in_sync(Mode::Sync, &[p.clone(), q.clone()], Needed::All, OnFailure::Degrade);
    o.tick(S(100));
    assert_eq!(proposed(&mut o), None);
    o.accepted(Lsn(101), S(100));
    o.progress(&p, Lsn(101), Lsn(100), LinkState::Live, S(100));
    o.tick(S(101));
    assert_eq!(proposed(&mut o), None);
    o.tick(S(102));
    let new = proposed(&mut o).unwrap();
    assert_eq!((new.status, &new.peers[..]), (Status::InSync, &[p][..]), "the other one has everything");
}

#[test]
fn who_blocks_never_goes_on_alone() {
    let p = peer("p", 1);
    let mut o = in_sync(Mode::Sync, std::slice::from_ref(&p), Needed::All, OnFailure::Block);
    o.progress(&p, Lsn(100), Lsn(100), LinkState::Lost, S(1));
    for s in 1..50 {
        o.tick(S(s));
        assert_eq!(proposed(&mut o), None);
        assert!(!o.acknowledge(Lsn(101)));
    }
    let q = peer("q", 2);
    o.joined(q.clone(), S(50));
    o.progress(&q, Lsn(101), Lsn(101), LinkState::Live, S(50));
    settle(&mut o, S(50));
    assert_eq!(o.config().peers, [q]);
    assert!(o.acknowledge(Lsn(101)));
}

#[test]
fn a_second_peer_is_named_beside_the_first_and_a_lost_one_replaced() {
    let (p, q, r) = (peer("p", 1), peer("q", 2), peer("p", 3));
    let mut o = in_sync(Mode::Sync, &[p.clone(), q.clone()], Needed::One, OnFailure::Degrade);
    o.accepted(Lsn(105), S(1));
    o.progress(&p, Lsn(105), Lsn(100), LinkState::Live, S(1));
    assert!(o.acknowledge(Lsn(105)), "one of two");
    o.progress(&p, Lsn(105), Lsn(100), LinkState::Lost, S(2));
    assert_eq!(proposed(&mut o), None, "the other one lacks what was acknowledged");
    assert!(!o.acknowledge(Lsn(106)));
    o.progress(&q, Lsn(105), Lsn(100), LinkState::Live, S(2));
    settle(&mut o, S(2));
    assert_eq!(o.config().peers, std::slice::from_ref(&q));
    o.tick(S(3));
    o.joined(r.clone(), S(3));
    o.progress(&r, Lsn(105), Lsn(105), LinkState::Live, S(3));
    settle(&mut o, S(3));
    assert_eq!(o.config().peers, [q, r]);
}

#[test]
fn a_newer_epoch_is_the_end() {
    let p = peer("p", 1);
    let mut o = in_sync(Mode::Sync, std::slice::from_ref(&p), Needed::All, OnFailure::Degrade);
    o.progress(&p, Lsn(100), Lsn(100), LinkState::Lost, S(1));
    let new = proposed(&mut o).unwrap();
    o.outcome(&new, Outcome::Refused(Some((Epoch(6), new.clone()))), S(1));
    assert_eq!(o.take_action(), Some(Action::Fenced));
    assert!(!o.acknowledge(Lsn(1)) && !o.acknowledge_flush(Lsn(1)));
}

/// A registry whose answers get lost and whose requests arrive late, peers that fail, an owner in between.
struct World {
    random: fastrand::Rng,
    owner: Owner,
    now: Duration,
    /// The registry's truth.
    truth: Config,
    /// Requests under way: may be applied at any time, also after the owner was told "unknown".
    under_way: Vec<Config>,
    /// Not answered yet.
    asked: Option<Config>,
    /// What each log really has; gone when `None`.
    logs: Vec<(PeerLog, Option<(Lsn, Lsn)>)>,
    accepted: Lsn,
    acked: Lsn,
    flush_acked: Lsn,
    seen: [u32; 4],
}

impl World {
    fn new(seed: u64) -> World {
        let mut random = fastrand::Rng::with_seed(seed);
        let mode = if random.u8(..3) == 0 { Mode::Async } else { Mode::Sync };
        let needed = if random.bool() { Needed::One } else { Needed::All };
        let failure = if random.u8(..4) == 0 { OnFailure::Block } else { OnFailure::Degrade };
        let truth = Config::alone(mode, random.u8(1..3), needed, failure);
        let patience = Patience { close_enough: 4, ..Patience::default() };
        let owner = Owner::new(Epoch(5), truth.clone(), Lsn(100), patience);
        World {
            random,
            owner,
            now: S(0),
            truth,
            under_way: Vec::new(),
            asked: None,
            logs: Vec::new(),
            accepted: Lsn(100),
            acked: Lsn(100),
            flush_acked: Lsn(100),
            seen: [0; 4],
        }
    }

    fn apply(&mut self, new: &Config) -> Outcome {
        if self.truth.config + 1 == new.config {
            self.truth = new.clone();
            return Outcome::Applied;
        }
        Outcome::Refused(Some((Epoch(5), self.truth.clone())))
    }

    fn step(&mut self) {
        match self.random.u8(..16) {
            0..=4 => {
                self.accepted = Lsn(self.accepted.0 + self.random.u64(1..4));
                self.owner.accepted(self.accepted, self.now);
            }
            5..=8 if !self.logs.is_empty() => {
                let i = self.random.usize(..self.logs.len());
                let (peer, has) = &mut self.logs[i];
                let peer = peer.clone();
                let live = match has {
                    Some((confirmed, flushed)) => {
                        confirmed.0 += self.random.u64(..=self.accepted.0 - confirmed.0);
                        if self.random.u8(..3) == 0 {
                            *flushed = *confirmed;
                        }
                        let state = match self.random.u8(..12) {
                            0 => LinkState::Away,
                            1 => LinkState::CatchingUp,
                            _ => LinkState::Live,
                        };
                        (*confirmed, *flushed, state)
                    }
                    None => (Lsn(0), Lsn(0), LinkState::Lost),
                };
                // Also without a report: the log has it, the owner does not know.
                if self.random.u8(..4) > 0 {
                    self.owner.progress(&peer, live.0, live.1, live.2, self.now);
                }
            }
            9 if !self.logs.is_empty() && self.random.u8(..8) == 0 => {
                let i = self.random.usize(..self.logs.len());
                self.logs[i].1 = None;
            }
            10 if !self.under_way.is_empty() => {
                let late = self.under_way.swap_remove(self.random.usize(..self.under_way.len()));
                let _ = self.apply(&late);
            }
            11 | 12 => {
                if let Some(asked) = self.asked.take() {
                    let outcome = match self.random.u8(..4) {
                        0 => {
                            self.under_way.push(asked.clone());
                            self.seen[0] += 1;
                            Outcome::Unknown
                        }
                        1 => {
                            let _ = self.apply(&asked);
                            Outcome::Unknown
                        }
                        _ => self.apply(&asked),
                    };
                    self.owner.outcome(&asked, outcome, self.now);
                }
            }
            13 => self.now += Duration::from_millis(self.random.u64(..1000)),
            14 => self.owner.tick(self.now),
            _ => {}
        }
        // Clients are answered as soon as they may be, and a bit at a time.
        let to = Lsn(self.acked.0 + self.random.u64(..=(self.accepted.0 - self.acked.0)));
        if self.owner.acknowledge(to) {
            self.acked = to;
        }
        if self.random.u8(..4) == 0 {
            let _ = self.owner.flush_wanted(self.acked, self.now);
            if self.owner.acknowledge_flush(self.acked) {
                self.flush_acked = self.acked;
            }
        }
        while let Some(action) = self.owner.take_action() {
            match action {
                Action::Propose { new, .. } => {
                    assert!(self.asked.is_none(), "one at a time");
                    self.asked = Some(new);
                }
                Action::Recruit { want, .. } => {
                    for _ in 0..self.random.usize(..=want) {
                        let p = peer(["p", "q", "r"][self.random.usize(..3)], self.logs.len() as u128 + 1);
                        self.logs.push((p.clone(), Some((Lsn(90), Lsn(90)))));
                        self.owner.joined(p, self.now);
                    }
                }
                Action::Flush(p, lsn) => {
                    if let Some((_, Some(log))) = self.logs.iter_mut().find(|(l, _)| *l == p) {
                        log.1 = log.1.max(lsn.min(log.0));
                    }
                }
                Action::Release(_) => {}
                Action::Fenced => panic!("nobody took over"),
            }
        }
    }

    /// What a takeover at this moment would find, by rule 13.
    fn check(&mut self) {
        self.seen[1] += u32::from(self.truth.status == Status::InSync);
        if self.truth.status != Status::InSync {
            return;
        }
        assert!(!self.truth.peers.is_empty());
        let has = |p: &PeerLog| self.logs.iter().find(|(l, _)| l == p).and_then(|(_, has)| *has);
        let mut found: Vec<(Lsn, Lsn)> = self.truth.peers.iter().filter_map(has).collect();
        if found.len() < self.truth.sealed_needed() {
            return;
        }
        self.seen[2] += 1;
        // The least lucky choice of logs.
        found.sort_unstable();
        let drained = found[self.truth.sealed_needed() - 1].0;
        found.sort_unstable_by_key(|f| f.1);
        let durable = found[self.truth.sealed_needed() - 1].1;
        if self.truth.mode == Mode::Sync {
            assert!(
                drained >= self.acked,
                "{} was acknowledged, {drained} found: {:?}",
                self.acked,
                self.truth
            );
        }
        assert!(durable >= self.flush_acked, "flush {} was acknowledged, {durable} found", self.flush_acked);
    }
}

#[test]
fn whatever_the_registry_says_a_takeover_finds_what_was_acknowledged() {
    let mut seen = [0u32; 4];
    for seed in 0..3000 {
        let mut world = World::new(seed);
        for _ in 0..300 {
            world.step();
            world.check();
        }
        for (sum, n) in seen.iter_mut().zip(world.seen) {
            *sum += n;
        }
        seen[3] += u32::from(world.acked > Lsn(100));
    }
    assert!(mutant::BUILT_IN || seen.iter().all(|n| *n > 1000), "the worlds do what they are for: {seen:?}");
}

/// A flush was asked of p, p went away, and q takes its place: nobody but the owner knows that q was never asked.
#[test]
fn a_flush_that_waits_is_asked_of_whoever_takes_the_place_of_a_peer() {
    let (p, q) = (peer("p", 1), peer("q", 2));
    let mut o = in_sync(Mode::Sync, std::slice::from_ref(&p), Needed::All, OnFailure::Degrade);
    o.accepted(Lsn(150), S(1));
    assert!(o.flush_wanted(Lsn(150), S(1)));
    o.progress(&p, Lsn(150), Lsn(100), LinkState::Live, S(1));
    o.joined(q.clone(), S(1));
    o.progress(&q, Lsn(150), Lsn(100), LinkState::Live, S(1));
    o.progress(&p, Lsn(150), Lsn(100), LinkState::Lost, S(1));
    let actions: Vec<Action> = std::iter::from_fn(|| o.take_action()).collect();
    assert!(actions.contains(&Action::Flush(q.clone(), Lsn(150))), "{actions:?}");
    assert_eq!(actions.iter().filter(|a| matches!(a, Action::Flush(..))).count(), 1, "once");
}

#[test]
fn a_refusal_by_something_older_is_not_asked_again_at_once() {
    let p = peer("p", 1);
    let mut o = in_sync(Mode::Sync, std::slice::from_ref(&p), Needed::All, OnFailure::Degrade);
    let base = o.config().clone();
    o.progress(&p, Lsn(100), Lsn(100), LinkState::Lost, S(1));
    let new = proposed(&mut o).unwrap();
    o.outcome(&new, Outcome::Refused(Some((Epoch(5), base))), S(1));
    assert_eq!(proposed(&mut o), None);
    o.tick(S(2));
    assert_eq!(proposed(&mut o), Some(new));
}
