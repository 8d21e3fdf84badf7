use super::*;
use crate::takeover::{Answer, Takeover, Verdict};

fn name(s: &str) -> Name {
    s.parse().unwrap()
}

fn peer(node: &str, incarnation: u128) -> PeerLog {
    PeerLog { node: name(node), incarnation: Incarnation(incarnation) }
}

fn in_sync() -> Registration {
    let config = Config {
        status: Status::InSync,
        peers: vec![peer("p", 1)],
        config: 7,
        ..Config::alone(Mode::Sync, 1, Needed::All, OnFailure::Degrade)
    };
    Registration {
        owner: name("a"),
        epoch: Epoch(5),
        claimed: Epoch(5),
        config,
        tails: Vec::new(),
        clean: false,
        losses: Vec::new(),
    }
}

#[test]
fn whoever_takes_over_may_die_before_it_knows_what_there_is() {
    let r = in_sync();
    let first = r.claim(Epoch(6)).unwrap();
    assert!(first.claim(Epoch(6)).is_err() && first.claim(Epoch(5)).is_err(), "one each");
    let late = Config { config: 8, status: Status::Degraded, ..r.config.clone() };
    assert_eq!(first.propose(Epoch(5), &late), Err((Epoch(6), r.config.clone())), "the old owner is over");
    let second = first.claim(Epoch(7)).unwrap();
    assert!(first.taken_over(name("n"), Epoch(6), Lsn(100), Lsn(150), None).is_ok());
    assert_eq!(
        second.taken_over(name("n"), Epoch(6), Lsn(100), Lsn(150), None).unwrap_err().kind,
        common::ErrorKind::Fenced
    );
    // The second one finds the logs of epoch 5, sealed at 7.
    let mut t = Takeover::new(second.clone(), Lsn(100), None);
    let log = LogInfo {
        epoch: Epoch(5),
        incarnation: Incarnation(1),
        base: Lsn(90),
        last: Lsn(150),
        flushed: Lsn(90),
        sealed: true,
        suspect: false,
        damaged: false,
    };
    t.answered(&name("p"), Answer::Sealed(vec![log]));
    assert!(matches!(t.verdict(), Verdict::Drain(_)));
    let new = second.taken_over(name("m"), Epoch(7), Lsn(100), Lsn(150), None).unwrap();
    assert_eq!((new.epoch, new.config.status, new.config.peers.len()), (Epoch(7), Status::Degraded, 0));
    let holders = vec![Holder::Log(peer("p", 1)), Holder::Journal(name("a"))];
    assert_eq!(new.tails, [Tail { epoch: Epoch(5), last: Lsn(150), holders }]);
    assert_eq!(new.committed(Lsn(149)).tails.len(), 1);
    assert!(new.committed(Lsn(150)).tails.is_empty());
}

#[test]
fn a_forced_takeover_records_the_loss_and_cuts_every_tail() {
    let mut r = in_sync().claim(Epoch(6)).unwrap();
    r.tails = vec![Tail { epoch: Epoch(4), last: Lsn(150), holders: vec![] }];
    let loss = Loss { epoch: Epoch(5), after: Lsn(140), up_to: None };
    let new = r.taken_over(name("m"), Epoch(6), Lsn(100), Lsn(140), Some(loss.clone())).unwrap();
    assert!(new.tails.iter().all(|t| t.last == Lsn(140)) && new.tails.len() == 2);
    assert_eq!(new.losses, std::slice::from_ref(&loss));
    let later =
        new.claim(Epoch(7)).unwrap().taken_over(name("a"), Epoch(7), Lsn(140), Lsn(140), None).unwrap();
    assert!(later.tails.is_empty());
    assert_eq!(later.losses, [loss], "it is not forgotten");
    let text = serde_json::to_string(&later).unwrap();
    assert_eq!(serde_json::from_str::<Registration>(&text).unwrap(), later);
}

/// One of two confirmed; then an operator wants both, and the registry says InSync of both: a takeover that reads it is
/// content with the one that lacks the write.
#[test]
fn another_policy_claims_nothing_of_what_was_acknowledged_under_the_old_one() {
    let mut config = in_sync().config;
    config.peers.push(peer("q", 2));
    config.needed = Needed::One;
    let all = config.with_policy(Mode::Sync, 2, Needed::All, OnFailure::Degrade);
    assert_eq!((all.status, all.config), (Status::Degraded, 8));
    let weaker = config.with_policy(Mode::Async, 2, Needed::One, OnFailure::Block);
    assert_eq!(weaker.status, Status::InSync);
    assert_eq!(weaker.with_policy(Mode::Sync, 2, Needed::One, OnFailure::Block).status, Status::Degraded);
}
