use super::*;

const LEASE: Duration = Duration::from_secs(10);
const EPOCH: Epoch = Epoch(5);

fn at(seconds: u64) -> Duration {
    Duration::from_secs(100 + seconds)
}

fn sessions(before: &[u128]) -> Sessions {
    let holder = |id: &u128| Holder { attachment: *id, mode: Mode::Exclusive, client: format!("host {id}") };
    Sessions::new(EPOCH, LEASE, before.iter().map(holder).collect(), at(0))
}

fn ask(id: u128, session: u64, mode: Mode, since: u64) -> Attach {
    Attach {
        export: "p/a".into(),
        mode,
        attachment: id,
        session,
        since: Epoch(since),
        resumed: false,
        pass_on: false,
        hops: 0,
        client: format!("host {id}"),
        via: String::new(),
    }
}

fn fresh(id: u128) -> Attach {
    ask(id, 1, Mode::Exclusive, 0)
}

fn kind(refused: Result<Admission, Refusal>) -> common::ErrorKind {
    match refused {
        Err(Refusal::Failed(error)) => error.kind,
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("it was admitted"),
    }
}

#[test]
fn an_exclusive_attachment_refuses_others_and_names_its_holder() {
    let mut sessions = sessions(&[]);
    sessions.attach(&fresh(1), at(0)).unwrap();
    for mode in [Mode::Exclusive, Mode::ReadOnly, Mode::Shared] {
        let Err(Refusal::Failed(error)) = sessions.attach(&ask(2, 1, mode, 0), at(1)) else { panic!() };
        assert_eq!(error.kind, common::ErrorKind::Conflict);
        assert!(error.message().contains("host 1"), "{error}");
    }
}

#[test]
fn readers_and_those_who_share_are_attached_together() {
    let mut sessions = sessions(&[]);
    sessions.attach(&ask(1, 1, Mode::Shared, 0), at(0)).unwrap();
    sessions.attach(&ask(2, 1, Mode::ReadOnly, 0), at(0)).unwrap();
    sessions.attach(&ask(3, 1, Mode::Shared, 0), at(0)).unwrap();
    assert_eq!(kind(sessions.attach(&fresh(4), at(0))), common::ErrorKind::Conflict);
    assert_eq!(sessions.holders().len(), 3);
}

#[test]
fn a_higher_session_shuts_the_one_before_and_waits_for_it() {
    let mut sessions = sessions(&[]);
    let first = sessions.attach(&fresh(1), at(0)).unwrap();
    let inside = first.gate.enter().unwrap();
    assert!(!first.known);
    let second = sessions.attach(&ask(1, 2, Mode::Exclusive, 5), at(1)).unwrap();
    assert!(second.known && first.gate.enter().is_err() && second.gate.enter().is_ok());
    assert_eq!(second.draining.len(), 1);
    // The third waits for what is left of the first as well.
    let third = sessions.attach(&ask(1, 3, Mode::Exclusive, 5), at(1)).unwrap();
    assert_eq!(third.draining.len(), 2);
    inside.end();
    for gate in &third.draining[..1] {
        futures::executor::block_on(gate.drained());
    }
    for late in [1, 2, 3] {
        let late = sessions.attach(&ask(1, late, Mode::Exclusive, 5), at(1));
        assert!(matches!(late, Err(Refusal::Stale(3))));
    }
}

#[test]
fn a_client_that_is_gone_keeps_its_attachment_for_a_lease() {
    let mut sessions = sessions(&[]);
    let first = sessions.attach(&fresh(1), at(0)).unwrap();
    assert_eq!(kind(sessions.attach(&fresh(2), at(100))), common::ErrorKind::Conflict, "it is here");
    first.gate.leave(at(100));
    assert_eq!(kind(sessions.attach(&fresh(2), at(109))), common::ErrorKind::Conflict);
    sessions.attach(&ask(1, 2, Mode::Exclusive, 5), at(109)).unwrap().gate.leave(at(110));
    let second = sessions.attach(&fresh(2), at(120)).unwrap();
    // What is left of the first is waited for, and it does not come back.
    assert_eq!(second.draining.len(), 2);
    assert!(first.gate.enter().is_err());
    sessions.detach(2, &second.gate);
    assert_eq!(kind(sessions.attach(&ask(1, 3, Mode::Exclusive, 5), at(121))), common::ErrorKind::Fenced);
    sessions.attach(&fresh(3), at(121)).unwrap();
}

#[test]
fn a_long_silence_is_no_loss_while_nobody_else_comes() {
    let mut sessions = sessions(&[]);
    sessions.attach(&fresh(1), at(0)).unwrap().gate.leave(at(0));
    assert!(!sessions.is_idle(at(9)) && sessions.is_idle(at(60)));
    assert!(sessions.attach(&ask(1, 2, Mode::Exclusive, 5), at(60)).unwrap().known);
    let mut sessions = self::sessions(&[]);
    for id in 1..100 {
        let wait = at(LEASE.as_secs() * id as u64 * 2);
        sessions.attach(&ask(id, 1, Mode::ReadOnly, 0), wait).unwrap().gate.leave(wait);
    }
    assert_eq!(sessions.holders().len(), 1, "readers that are gone take no memory");
}

#[test]
fn who_was_attached_to_the_owner_before_has_a_lease_to_come_back() {
    let mut sessions = sessions(&[1]);
    assert_eq!(kind(sessions.attach(&fresh(2), at(5))), common::ErrorKind::Conflict);
    let back = sessions.attach(&ask(1, 7, Mode::Exclusive, 4), at(9)).unwrap();
    assert!(!back.known, "of this epoch nothing is known");
    let mut sessions = self::sessions(&[1]);
    sessions.attach(&fresh(2), at(11)).unwrap();
}

#[test]
fn only_what_began_here_is_known_whole() {
    let mut sessions = sessions(&[]);
    let resumed = |session| Attach { resumed: true, ..ask(1, session, Mode::Exclusive, 0) };
    // The answer to the first attempt is lost: the second is answered the same.
    assert!(!sessions.attach(&resumed(1), at(0)).unwrap().known);
    assert!(!sessions.attach(&resumed(2), at(0)).unwrap().known);
    let mut sessions = self::sessions(&[]);
    sessions.attach(&fresh(1), at(0)).unwrap();
    assert!(sessions.attach(&resumed(2), at(0)).unwrap().known);
}

#[test]
fn nobody_replays_over_what_others_wrote() {
    // The owner knows of nobody; the first one comes late.
    let mut sessions = sessions(&[]);
    let other = sessions.attach(&fresh(2), at(0)).unwrap();
    sessions.detach(2, &other.gate);
    assert_eq!(kind(sessions.attach(&ask(1, 9, Mode::Exclusive, 4), at(1))), common::ErrorKind::Fenced);
    let mut sessions = self::sessions(&[]);
    let reader = sessions.attach(&ask(2, 1, Mode::ReadOnly, 0), at(0)).unwrap();
    sessions.detach(2, &reader.gate);
    sessions.attach(&ask(1, 9, Mode::Exclusive, 4), at(1)).unwrap();
}

#[test]
fn a_client_that_knows_a_newer_owner_is_not_served() {
    let refused = sessions(&[]).attach(&ask(1, 2, Mode::Exclusive, 6), at(0));
    assert_eq!(kind(refused), common::ErrorKind::NotOwner);
}

#[test]
fn a_detach_of_an_older_session_changes_nothing() {
    let mut sessions = sessions(&[]);
    let first = sessions.attach(&fresh(1), at(0)).unwrap();
    let second = sessions.attach(&ask(1, 2, Mode::Exclusive, 5), at(0)).unwrap();
    assert!(sessions.detach(1, &first.gate).is_empty());
    assert!(second.gate.enter().is_ok());
    assert_eq!(sessions.detach(1, &second.gate).len(), 2);
    assert!(second.gate.enter().is_err() && sessions.holders().is_empty());
}

#[test]
fn a_request_that_was_dropped_half_way_is_never_taken_for_ended() {
    let gate = Gate::new(at(0));
    drop(gate.enter().unwrap());
    gate.shut();
    let drained = futures::FutureExt::now_or_never(gate.drained());
    assert!(drained.is_none());
}
