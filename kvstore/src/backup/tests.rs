use super::*;
use crate::machine::{Answer, Assert, Command, Limits, Machine, Op, Range, RequestId};
use common::ErrorKind;
use common::sim::SimTable;

/// A registry with a few pairs, one of them bound to a lease, as bytes of a backup.
fn backed_up() -> (Machine, Vec<u8>) {
    let store = Arc::new(SimTable::new());
    Machine::create(store.clone(), 7, 1).unwrap();
    let mut machine = Machine::open(store, Limits::default()).unwrap().unwrap();
    let mut sequence = 0;
    let mut next = || {
        sequence += 1;
        RequestId { session: 1, sequence, answered_below: sequence }
    };
    let put = |key: &str, lease| Op::Put { key: key.into(), value: format!("of {key}").into(), lease };
    apply(&mut machine, Command::OpenSession);
    for n in 0..20 {
        let ops = vec![put(&format!("k{n:02}"), None)];
        apply(&mut machine, Command::Txn { request: next(), asserts: vec![], ops });
    }
    let granted = apply(&mut machine, Command::Grant { request: next(), ttl_ms: 1000 });
    let Answer::Granted { lease } = granted else { panic!("{granted:?}") };
    let ops = vec![put("alive", Some(lease))];
    apply(&mut machine, Command::Txn { request: next(), asserts: vec![], ops });
    let frozen = machine.freeze().unwrap();
    let head = Head { group: 7, index: machine.index(), revision: machine.revision(), made_ms: 99 };
    let mut bytes = Vec::new();
    file::write(&mut bytes, &head, &frozen).unwrap();
    (machine, bytes)
}

fn apply(machine: &mut Machine, command: Command) -> Answer {
    let answer = machine.apply(machine.index() + 1, 1, command.encode()).unwrap();
    machine.commit().unwrap();
    answer
}

fn config() -> RestoreConfig {
    RestoreConfig {
        backup: "backup".into(),
        dir: "dir".into(),
        member: 3,
        address: "here:3".into(),
        quiet: Duration::from_secs(2),
        rocks: RocksSettings::default(),
    }
}

fn restore(store: Arc<SimTable>, bytes: &[u8]) -> Result<Restored> {
    into(store, Source::open(bytes)?, &config(), 0xabc, Duration::from_millis(123))
}

#[test]
fn a_restored_registry_has_the_pairs_and_nothing_that_ended_with_the_lost_one() {
    let (old, bytes) = backed_up();
    let store = Arc::new(SimTable::new());
    let restored = restore(store.clone(), &bytes).unwrap();
    store.crash(|_| 0);
    let mut machine = Machine::open(store, Limits::default()).unwrap().unwrap();
    assert_eq!((machine.head().group, machine.head().member), (0xabc, 3));
    assert_eq!(machine.meta().configuration.voters, [3]);
    assert_eq!(machine.members()[&3], "here:3");
    assert_eq!((restored.incarnation, restored.from, restored.from_ms, restored.at_ms), (0xabc, 7, 99, 123));
    let pairs = |m: &Machine| m.range(&Range::prefix("k")).unwrap().pairs;
    let mut should = pairs(&old);
    let told = machine.get(RESTORED_KEY).unwrap().unwrap();
    assert_eq!(Restored::parse(std::str::from_utf8(&told.value).unwrap()), Some(restored));
    should.push(told);
    should.sort_by(|a, b| a.key.cmp(&b.key));
    assert_eq!(pairs(&machine), should);
    assert!(machine.get("alive").unwrap().is_none(), "its lease is void, and so is what was bound to it");
    // Whatever the lost registry gave out after the backup is not given out again.
    assert!(machine.revision() >= old.revision() + (1 << 32));
    assert_eq!(machine.history_from(), machine.revision() + 1);
    // The old session is not known, and while the guard lives there is no lease, and none has ended.
    let request = RequestId { session: 1, sequence: 90, answered_below: 90 };
    let grant = |request| Command::Grant { request, ttl_ms: 5 };
    assert_eq!(apply(&mut machine, grant(request)), Answer::NoSession);
    let Answer::Session(session) = apply(&mut machine, Command::OpenSession) else { panic!("no session") };
    let mut sequence = 0;
    let mut next = || {
        sequence += 1;
        RequestId { session, sequence, answered_below: sequence }
    };
    let refused = |answer, kind| matches!(answer, Answer::Refused { kind: k, .. } if k == kind);
    assert!(refused(apply(&mut machine, grant(next())), ErrorKind::Unavailable));
    let asserts = vec![Assert::LeaseExpired(LeaseId(old.revision()))];
    let takeover = |request| Command::Txn { request, asserts: asserts.clone(), ops: vec![] };
    assert!(refused(apply(&mut machine, takeover(next())), ErrorKind::Conflict));
    assert_eq!(machine.guard(), Some(restored.guard));
    assert_eq!(machine.leases().collect::<Vec<_>>(), [(restored.guard, 2000)]);
    apply(&mut machine, Command::Expire { lease: restored.guard });
    assert_eq!(machine.guard(), None);
    assert!(matches!(apply(&mut machine, takeover(next())), Answer::Done { .. }));
    assert!(matches!(apply(&mut machine, grant(next())), Answer::Granted { .. }));
}

#[test]
fn a_backup_that_is_not_what_was_written_is_refused() {
    let (_, bytes) = backed_up();
    assert_eq!(read_all(&bytes).unwrap(), 20);
    for cut in 0..bytes.len() {
        assert!(read_all(&bytes[..cut]).is_err(), "cut at {cut}");
    }
    for bit in 0..bytes.len() * 8 {
        let mut bad = bytes.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        let error = read_all(&bad).unwrap_err();
        assert!(matches!(error.kind, ErrorKind::Corrupt | ErrorKind::Unsupported), "bit {bit}: {error}");
    }
    let more = [&bytes[..], b"x"].concat();
    assert!(read_all(&more).is_err());
}

#[test]
fn half_a_restore_is_no_registry_and_can_be_done_again() {
    let (_, bytes) = backed_up();
    let store = Arc::new(SimTable::new());
    let mut bad = bytes.clone();
    let last = bad.len() - 1;
    bad[last] ^= 1;
    assert_eq!(restore(store.clone(), &bad).unwrap_err().kind, ErrorKind::Corrupt);
    store.crash(|n| n);
    let store = Arc::new(store.successor());
    let origin = crate::Origin::Found { address: "here:3".into(), local: None };
    let error = crate::upgrade::prepare(store.clone(), 3, &origin, 5).unwrap_err();
    assert!(error.kind == ErrorKind::Conflict && error.message().contains("restore"), "{error}");
    restore(store.clone(), &bytes).unwrap();
    assert_eq!(crate::upgrade::prepare(store.clone(), 3, &origin, 5).unwrap().group, 0xabc);
    assert_eq!(restore(store, &bytes).unwrap_err().kind, ErrorKind::Conflict);
}

#[test]
fn what_is_said_of_a_restore_is_understood() {
    let (_, bytes) = backed_up();
    let restored = restore(Arc::new(SimTable::new()), &bytes).unwrap();
    assert_eq!(Restored::decode(restored.encode()).unwrap(), restored);
    let text = restored.to_string();
    assert_eq!(Restored::parse(&text), Some(restored));
    for cut in 0..text.len() - 2 {
        assert!(Restored::parse(&text[..cut]).is_none_or(|r| r != restored), "{cut}");
    }
}
