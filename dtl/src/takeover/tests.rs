use super::*;
use crate::Entry;
use crate::registration::{Config, Incarnation, Needed, OnFailure};

fn name(s: &str) -> Name {
    s.parse().unwrap()
}

fn peer(node: &str, incarnation: u128) -> PeerLog {
    PeerLog { node: name(node), incarnation: Incarnation(incarnation) }
}

fn registration(mode: Mode, status: Status, needed: Needed, peers: &[PeerLog]) -> Registration {
    let config = Config {
        status,
        peers: peers.to_vec(),
        config: 3,
        ..Config::alone(mode, peers.len() as u8, needed, OnFailure::Degrade)
    };
    Registration {
        owner: name("a"),
        epoch: Epoch(5),
        claimed: Epoch(6),
        config,
        tails: Vec::new(),
        clean: false,
        losses: Vec::new(),
    }
}

fn log(incarnation: u128, base: u64, last: u64) -> LogInfo {
    LogInfo {
        epoch: Epoch(5),
        incarnation: Incarnation(incarnation),
        base: Lsn(base),
        last: Lsn(last),
        flushed: Lsn(base),
        sealed: true,
        suspect: false,
        damaged: false,
    }
}

fn ask(r: &Registration, journal: Option<LocalJournal>, answers: &[(&str, Answer)]) -> Verdict {
    let mut t = Takeover::new(r.clone(), Lsn(100), journal);
    for (node, answer) in answers {
        t.answered(&name(node), answer.clone());
    }
    t.verdict()
}

fn drained(verdict: Verdict) -> Vec<Piece> {
    match verdict {
        Verdict::Drain(plan) => plan.pieces,
        other => panic!("{other:?}"),
    }
}

fn is_orphaned(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Orphaned(_))
}

fn sealed(log: LogInfo) -> Answer {
    Answer::Sealed(vec![log])
}

#[test]
fn one_peer_in_sync_is_drained_from_the_committed_lsn() {
    let r = registration(Mode::Sync, Status::InSync, Needed::All, &[peer("p", 1)]);
    assert_eq!(ask(&r, None, &[]), Verdict::Wait);
    let pieces = drained(ask(&r, None, &[("p", sealed(log(1, 90, 150)))]));
    assert_eq!(
        pieces,
        [Piece { from: Origin::Log(Epoch(5), vec![peer("p", 1)]), after: Lsn(100), to: Lsn(150) }]
    );
    assert!(drained(ask(&r, None, &[("p", sealed(log(1, 90, 100)))])).is_empty(), "all is committed");
}

#[test]
fn a_log_that_is_missing_suspect_damaged_or_another_one_is_no_log() {
    let r = registration(Mode::Sync, Status::InSync, Needed::All, &[peer("p", 1)]);
    for bad in [
        Answer::Unreachable,
        Answer::Sealed(vec![]),
        sealed(log(2, 90, 150)),
        sealed(LogInfo { suspect: true, ..log(1, 90, 150) }),
        sealed(LogInfo { damaged: true, ..log(1, 90, 150) }),
        sealed(LogInfo { sealed: false, ..log(1, 90, 150) }),
        sealed(LogInfo { epoch: Epoch(4), ..log(1, 90, 150) }),
    ] {
        let verdict = ask(&r, None, &[("p", bad.clone())]);
        assert!(is_orphaned(&verdict), "{bad:?}: {verdict:?}");
    }
    let Verdict::Orphaned(risk) =
        ask(&r, None, &[("p", sealed(LogInfo { suspect: true, ..log(1, 90, 150) }))])
    else {
        panic!()
    };
    assert_eq!(risk.after, Lsn(150), "forced, it would serve what there is");
    assert!(risk.why.contains("p: the log may lack its end"), "{}", risk.why);
}

#[test]
fn in_mode_async_a_suspect_log_has_every_flush() {
    let r = registration(Mode::Async, Status::InSync, Needed::All, &[peer("p", 1)]);
    let suspect = sealed(LogInfo { suspect: true, ..log(1, 90, 150) });
    let Verdict::Drain(plan) = ask(&r, None, &[("p", suspect)]) else { panic!() };
    assert!(plan.unflushed_may_be_lost);
    assert!(is_orphaned(&ask(&r, None, &[("p", sealed(LogInfo { damaged: true, ..log(1, 90, 150) }))])));
}

#[test]
fn of_two_peers_as_many_as_rule_13_says() {
    let (p, q) = (peer("p", 1), peer("q", 2));
    let both = registration(Mode::Sync, Status::InSync, Needed::All, &[p.clone(), q.clone()]);
    let pieces = drained(ask(&both, None, &[("q", sealed(log(2, 90, 140)))]));
    assert_eq!(pieces[0].to, Lsn(140), "each has everything acknowledged");
    let one = registration(Mode::Sync, Status::InSync, Needed::One, &[p.clone(), q.clone()]);
    assert_eq!(ask(&one, None, &[("q", sealed(log(2, 90, 140)))]), Verdict::Wait);
    assert!(is_orphaned(&ask(&one, None, &[("q", sealed(log(2, 90, 140))), ("p", Answer::Unreachable)])));
    let pieces = drained(ask(&one, None, &[("q", sealed(log(2, 90, 140))), ("p", sealed(log(1, 95, 150)))]));
    assert_eq!(
        pieces,
        [Piece { from: Origin::Log(Epoch(5), vec![p]), after: Lsn(100), to: Lsn(150) }],
        "the longest"
    );
}

#[test]
fn not_in_sync_only_the_owners_own_journal_will_do() {
    let journal =
        LocalJournal { node: name("a"), of_last_owner: true, same_boot: true, base: Lsn(90), last: Lsn(170) };
    for (mode, status) in
        [(Mode::None, Status::Degraded), (Mode::Sync, Status::CatchingUp), (Mode::Sync, Status::Degraded)]
    {
        let r = registration(mode, status, Needed::All, &[peer("p", 1)]);
        let log = ("p", sealed(log(1, 90, 150)));
        assert!(is_orphaned(&ask(&r, None, std::slice::from_ref(&log))));
        let foreign = LocalJournal { of_last_owner: false, ..journal.clone() };
        assert!(is_orphaned(&ask(&r, Some(foreign), std::slice::from_ref(&log))));
        let pieces = drained(ask(&r, Some(journal.clone()), std::slice::from_ref(&log)));
        assert_eq!(pieces, [Piece { from: Origin::Journal, after: Lsn(100), to: Lsn(170) }]);
        let restarted = LocalJournal { same_boot: false, ..journal.clone() };
        let Verdict::Drain(plan) = ask(&r, Some(restarted), &[log]) else { panic!() };
        assert!(plan.unflushed_may_be_lost, "reported");
        let clean = Registration { clean: true, ..r };
        assert!(drained(ask(&clean, None, &[])).is_empty());
    }
}

#[test]
fn after_a_power_cut_of_a_sync_owner_its_journal_alone_is_not_enough() {
    // Rule 1: the journal recovered to 150, the peer confirmed 200.
    let r = registration(Mode::Sync, Status::InSync, Needed::All, &[peer("p", 1)]);
    let journal = LocalJournal {
        node: name("a"),
        of_last_owner: true,
        same_boot: false,
        base: Lsn(90),
        last: Lsn(150),
    };
    assert!(is_orphaned(&ask(&r, Some(journal.clone()), &[("p", Answer::Unreachable)])));
    assert_eq!(drained(ask(&r, Some(journal.clone()), &[("p", sealed(log(1, 90, 200)))]))[0].to, Lsn(200));
    let same = LocalJournal { same_boot: true, ..journal.clone() };
    assert_eq!(drained(ask(&r, Some(same), &[("p", Answer::Unreachable)]))[0].from, Origin::Journal);
}

#[test]
fn the_second_crash_finds_the_first_tail() {
    // Rule 7: N drained 100..150 and died before they were on the backend.
    let tail = |holders| Tail { epoch: Epoch(4), last: Lsn(150), holders };
    let mut r = registration(Mode::Sync, Status::InSync, Needed::All, &[peer("p", 1)]);
    let old = LogInfo { epoch: Epoch(4), ..log(9, 80, 155) };
    let new = log(1, 150, 180);
    r.tails = vec![tail(vec![Holder::Log(peer("q", 9)), Holder::Journal(name("a"))])];
    let verdict = ask(&r, None, &[("p", sealed(new)), ("q", sealed(old))]);
    let expected = [
        Piece { from: Origin::Log(Epoch(4), vec![peer("q", 9)]), after: Lsn(100), to: Lsn(150) },
        Piece { from: Origin::Log(Epoch(5), vec![peer("p", 1)]), after: Lsn(150), to: Lsn(180) },
    ];
    assert_eq!(drained(verdict), expected);
    let verdict = ask(&r, None, &[("p", sealed(new)), ("q", Answer::Unreachable)]);
    let Verdict::Orphaned(risk) = verdict else { panic!("{verdict:?}") };
    assert_eq!((risk.after, risk.up_to), (Lsn(100), Some(Lsn(180))));
    let whole = log(1, 100, 180);
    assert_eq!(
        drained(ask(&r, None, &[("p", sealed(whole)), ("q", Answer::Unreachable)])).len(),
        1,
        "it covers the tail"
    );
    let suspect = LogInfo { suspect: true, ..old };
    let verdict = ask(&r, None, &[("p", sealed(new)), ("q", sealed(suspect))]);
    assert_eq!(drained(verdict).len(), 2, "its end is known, and there");
}

#[test]
fn a_replay_takes_the_contiguous_run_within_the_cuts() {
    let entry = |epoch, lsn| Entry {
        volume: common::VolumeId(1),
        epoch: Epoch(epoch),
        lsn: Lsn(lsn),
        kind: 1,
        flags: 0,
        addr: 0,
        count: 0,
        crcs: Default::default(),
        payload: Default::default(),
    };
    let mut replay = Replay::new(Lsn(10), vec![(Epoch(4), Lsn(12))]);
    assert!(!replay.takes(&entry(4, 10)).unwrap());
    assert!(replay.takes(&entry(4, 11)).unwrap());
    assert!(replay.takes(&entry(4, 12)).unwrap());
    assert!(!replay.takes(&entry(4, 13)).unwrap(), "beyond the cut");
    assert!(replay.takes(&entry(5, 13)).unwrap());
    assert!(!replay.takes(&entry(5, 13)).unwrap(), "once");
    assert!(replay.takes(&entry(5, 15)).is_err(), "a gap");
    assert!(replay.takes(&entry(4, 14)).is_ok_and(|t| !t));
    assert_eq!(replay.last(), Lsn(13));
}

#[test]
fn an_epoch_that_added_nothing_need_not_be_found() {
    let mut r = registration(Mode::Sync, Status::InSync, Needed::All, &[peer("p", 1)]);
    let tail = |epoch, node: &str| Tail {
        epoch: Epoch(epoch),
        last: Lsn(150),
        holders: vec![Holder::Log(peer(node, 9))],
    };
    r.tails = vec![tail(3, "q"), tail(4, "r")];
    let first = LogInfo { epoch: Epoch(3), ..log(9, 80, 150) };
    let answers = [("p", sealed(log(1, 160, 180))), ("q", sealed(first)), ("r", Answer::Unreachable)];
    // The last log begins too far up: what leads to it is looked at to the end.
    let Verdict::Orphaned(risk) = ask(&r, None, &answers) else { panic!() };
    assert_eq!(risk.after, Lsn(150));
    let answers = [("p", sealed(log(1, 150, 180))), answers[1].clone(), answers[2].clone()];
    assert_eq!(drained(ask(&r, None, &answers)).len(), 2);
    // And in between.
    r.tails.push(Tail { epoch: Epoch(5), last: Lsn(160), holders: vec![Holder::Log(peer("q", 10))] });
    let second = LogInfo { epoch: Epoch(5), ..log(10, 150, 160) };
    let answers = [
        ("p", sealed(log(1, 160, 180))),
        ("q", Answer::Sealed(vec![first, second])),
        ("r", Answer::Unreachable),
    ];
    assert_eq!(drained(ask(&r, None, &answers)).len(), 3);
}

/// Rule 8: M owned the volume in epoch 3, and its journal goes on to 170 with what was never replicated.
#[test]
fn a_journal_of_an_older_owner_is_no_holder_of_a_tail() {
    let mut r = registration(Mode::Sync, Status::InSync, Needed::All, &[peer("p", 1)]);
    let holders = vec![Holder::Log(peer("q", 9)), Holder::Journal(name("b"))];
    r.tails = vec![Tail { epoch: Epoch(4), last: Lsn(150), holders }];
    let journal = |node: &str| {
        let (node, base, last) = (name(node), Lsn(90), Lsn(170));
        Some(LocalJournal { node, of_last_owner: false, same_boot: true, base, last })
    };
    let answers = [("p", sealed(log(1, 150, 180))), ("q", Answer::Unreachable)];
    assert!(is_orphaned(&ask(&r, journal("m"), &answers)));
    assert_eq!(drained(ask(&r, journal("b"), &answers))[0].from, Origin::Journal, "named by the registry");
}

/// The journal's device failed, and its end is lost although the machine never stopped.
#[test]
fn of_a_journal_and_a_whole_log_the_longer_one_counts() {
    let r = registration(Mode::Sync, Status::InSync, Needed::All, &[peer("p", 1)]);
    let journal =
        LocalJournal { node: name("a"), of_last_owner: true, same_boot: true, base: Lsn(90), last: Lsn(150) };
    let ask = |last| drained(ask(&r, Some(journal.clone()), &[("p", sealed(log(1, 90, last)))]));
    assert_eq!(ask(200)[0].to, Lsn(200));
    assert_eq!(ask(150)[0].from, Origin::Journal);
}

#[test]
fn a_clean_close_that_the_backend_contradicts_is_not_believed() {
    let mut r = registration(Mode::None, Status::Degraded, Needed::All, &[]);
    r.clean = true;
    assert!(drained(ask(&r, None, &[])).is_empty());
    r.tails = vec![Tail { epoch: Epoch(4), last: Lsn(150), holders: vec![] }];
    assert!(is_orphaned(&ask(&r, None, &[])));
}
