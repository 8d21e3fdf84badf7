use super::staging::Staging;
use super::*;
use common::ErrorKind;
use common::sim::SimTable;
use common::table::Table as _;

fn small() -> Limits {
    Limits { sessions: 3, history_revisions: 8, history_bytes: 4096 }
}

struct Bench {
    store: Arc<SimTable>,
    machine: Machine,
    session: u64,
    sequence: u64,
}

impl Bench {
    fn new() -> Self {
        let store = Arc::new(SimTable::new());
        Machine::create(store.clone(), 7, 1).unwrap();
        let machine = Machine::open(store.clone(), small()).unwrap().unwrap();
        let mut bench = Self { store, machine, session: 0, sequence: 0 };
        bench.open();
        bench
    }

    fn open(&mut self) -> u64 {
        let Answer::Session(id) = self.apply(Command::OpenSession) else { panic!("no session") };
        self.session = id;
        self.sequence = 0;
        id
    }

    fn apply(&mut self, command: Command) -> Answer {
        let index = self.machine.index() + 1;
        let answer = self.machine.apply(index, 1, command.encode()).unwrap();
        self.machine.commit().unwrap();
        answer
    }

    fn request(&mut self) -> RequestId {
        self.sequence += 1;
        RequestId { session: self.session, sequence: self.sequence, answered_below: self.sequence }
    }

    fn txn(&mut self, asserts: Vec<Assert>, ops: Vec<Op>) -> Answer {
        let request = self.request();
        self.apply(Command::Txn { request, asserts, ops })
    }

    fn grant(&mut self, ttl_ms: u64) -> LeaseId {
        let request = self.request();
        match self.apply(Command::Grant { request, ttl_ms }) {
            Answer::Granted { lease } => lease,
            other => panic!("{other:?}"),
        }
    }

    fn value(&self, key: &str) -> Option<Bytes> {
        self.machine.value(key)
    }

    fn reopen(&mut self) {
        self.machine = Machine::open(self.store.clone(), small()).unwrap().unwrap();
    }
}

fn put(key: &str, value: &'static str) -> Op {
    Op::Put { key: key.into(), value: Bytes::from_static(value.as_bytes()), lease: None }
}

fn leased(key: &str, lease: LeaseId) -> Op {
    Op::Put { key: key.into(), value: Bytes::from_static(b"x"), lease: Some(lease) }
}

fn delete(key: &str) -> Op {
    Op::Delete { key: key.into() }
}

fn revision(answer: &Answer) -> u64 {
    match answer {
        Answer::Done { revision } => *revision,
        other => panic!("{other:?}"),
    }
}

fn refused(answer: &Answer, kind: ErrorKind) -> String {
    match answer {
        Answer::Refused { kind: k, message, .. } if *k == kind => message.clone(),
        other => panic!("{other:?} is not refused as {kind:?}"),
    }
}

#[test]
fn a_transaction_is_all_or_nothing() {
    let mut b = Bench::new();
    let first = revision(&b.txn(vec![Assert::Absent("a".into())], vec![put("a", "1"), put("b", "1")]));
    let again = b.txn(vec![Assert::Absent("a".into())], vec![put("a", "2"), delete("b")]);
    assert!(refused(&again, ErrorKind::Conflict).contains("'a' exists"));
    assert_eq!((b.value("a").unwrap(), b.value("b").unwrap()), ("1".into(), "1".into()));
    let second =
        revision(&b.txn(vec![Assert::Revision("b".into(), first)], vec![delete("a"), put("b", "2")]));
    assert!(second > first);
    assert_eq!((b.value("a"), b.value("b").unwrap()), (None, "2".into()));
    refused(&b.txn(vec![Assert::Revision("a".into(), first)], vec![put("c", "1")]), ErrorKind::Conflict);
    assert_eq!(b.value("c"), None);
    // Later operations of one transaction see earlier ones.
    b.txn(vec![], vec![put("d", "1"), delete("d"), put("e", "1"), put("e", "2")]);
    assert_eq!((b.value("d"), b.value("e").unwrap()), (None, "2".into()));
}

#[test]
fn the_same_request_is_executed_once_also_after_a_restart() {
    let mut b = Bench::new();
    let request = b.request();
    let command =
        Command::Txn { request, asserts: vec![Assert::Absent("a".into())], ops: vec![put("a", "1")] };
    let first = b.apply(command.clone());
    assert_eq!(b.apply(command.clone()), first);
    b.reopen();
    assert_eq!(b.apply(command.clone()), first);
    let refusal = b.txn(vec![Assert::Absent("a".into())], vec![]);
    assert!(matches!(refusal, Answer::Refused { .. }));
    // The first one's answer is not needed any more, as the second one said.
    assert_eq!(b.apply(command), Answer::Stale);
}

#[test]
fn requests_of_a_forgotten_session_are_refused_and_never_executed() {
    let mut b = Bench::new();
    let request = b.request();
    let old = Command::Txn { request, asserts: vec![], ops: vec![put("a", "1")] };
    b.apply(old.clone());
    let sessions: Vec<u64> = (0..3).map(|_| b.open()).collect();
    b.txn(vec![], vec![put("a", "2")]);
    assert_eq!(b.apply(old), Answer::NoSession);
    assert_eq!(b.value("a").unwrap(), "2");
    // The least recently used goes first.
    b.session = sessions[0];
    b.sequence = 0;
    b.txn(vec![], vec![]);
    b.open();
    let of = |session| Command::Txn {
        request: RequestId { session, sequence: 9, answered_below: 9 },
        asserts: vec![],
        ops: vec![],
    };
    assert!(matches!(b.apply(of(sessions[0])), Answer::Done { .. }));
    assert_eq!(b.apply(of(sessions[1])), Answer::NoSession);
}

#[test]
fn a_window_bounds_what_a_session_keeps() {
    let mut b = Bench::new();
    for sequence in 1..=WINDOW {
        let request = RequestId { session: b.session, sequence, answered_below: 1 };
        revision(&b.apply(Command::Txn { request, asserts: vec![], ops: vec![] }));
    }
    let request = RequestId { session: b.session, sequence: WINDOW + 1, answered_below: 1 };
    refused(&b.apply(Command::Txn { request, asserts: vec![], ops: vec![] }), ErrorKind::Invalid);
}

#[test]
fn a_lease_ends_once_takes_its_keys_and_never_comes_back() {
    let mut b = Bench::new();
    let lease = b.grant(1000);
    assert_eq!(b.machine.lease(lease), Some(1000));
    b.txn(vec![Assert::LeaseLive(lease)], vec![leased("a", lease), leased("b", lease), put("c", "1")]);
    refused(&b.txn(vec![Assert::LeaseExpired(lease)], vec![]), ErrorKind::Conflict);
    // A key that is written without the lease is no longer bound to it.
    b.txn(vec![], vec![put("b", "2")]);
    b.reopen();
    revision(&b.apply(Command::Expire { lease }));
    assert_eq!((b.value("a"), b.value("b").unwrap(), b.value("c").unwrap()), (None, "2".into(), "1".into()));
    assert_eq!(b.machine.lease(lease), None);
    refused(&b.txn(vec![Assert::LeaseLive(lease)], vec![]), ErrorKind::Conflict);
    refused(&b.txn(vec![], vec![leased("d", lease)]), ErrorKind::Conflict);
    revision(&b.txn(vec![Assert::LeaseExpired(lease)], vec![]));
    assert_eq!(b.apply(Command::Expire { lease }), Answer::Stale);
    let request = b.request();
    refused(&b.apply(Command::Revoke { request, lease }), ErrorKind::NotFound);
    let next = b.grant(1000);
    assert!(next > lease);
    let future = LeaseId(next.0 + 1000);
    refused(&b.txn(vec![Assert::LeaseExpired(future)], vec![]), ErrorKind::Conflict);
}

#[test]
fn the_history_is_bounded_and_says_where_it_begins() {
    let mut b = Bench::new();
    let keys = ["x/a", "y/b"];
    let revisions: Vec<u64> =
        (0..20).map(|n| revision(&b.txn(vec![], vec![put(keys[n % 2], "v"), put("z", "w")]))).collect();
    let from = b.machine.history_from();
    assert_eq!(from, revisions[12]);
    let (events, next) = b.machine.events("x/", from).unwrap();
    assert_eq!(
        events.iter().map(|e| e.revision).collect::<Vec<_>>(),
        [revisions[12], revisions[14], revisions[16], revisions[18]]
    );
    assert_eq!(next, revisions[19] + 1);
    b.txn(vec![], vec![delete("x/a"), delete("nothing")]);
    let (events, _) = b.machine.events("", next).unwrap();
    assert_eq!(events, [Event { revision: revisions[19] + 1, key: "x/a".into(), value: None }]);
    b.reopen();
    assert_eq!(b.machine.events("", next).unwrap().0, events);
}

#[test]
fn ranges_go_on_where_they_ended() {
    let mut b = Bench::new();
    let keys: Vec<String> = (0..600).map(|n| format!("k/{n:03}")).collect();
    let ops = keys.iter().map(|key| put(key, "v")).chain([put("j", "1"), put("l", "1")]).collect();
    b.txn(vec![], ops);
    let all = b.machine.range(&Range::prefix("k/")).unwrap();
    assert_eq!(all.pairs.iter().map(|p| p.key.clone()).collect::<Vec<_>>(), keys);
    assert!(!all.more);
    let mut range = Range::prefix("k/").limit(250);
    let mut seen = Vec::new();
    loop {
        let page = b.machine.range(&range).unwrap();
        seen.extend(page.pairs.iter().map(|p| p.key.clone()));
        if !page.more {
            break;
        }
        range = range.after(seen.last().unwrap());
    }
    assert_eq!(seen, keys);
}

#[test]
fn limits_are_errors() {
    let mut b = Bench::new();
    let long = "k".repeat(MAX_KEY_BYTES + 1);
    let big = |n: usize| Op::Put { key: "v".into(), value: vec![0; n].into(), lease: None };
    for (asserts, ops) in [
        (vec![], vec![put(&long, "")]),
        (vec![], vec![put("", "")]),
        (vec![Assert::Absent(long.clone())], vec![]),
        (vec![], vec![big(MAX_VALUE_BYTES + 1)]),
        (vec![], (0..=MAX_TXN_OPS).map(|_| delete("a")).collect()),
        (vec![], (0..17).map(|_| big(MAX_VALUE_BYTES)).collect()),
    ] {
        assert!(command::check_txn(&asserts, &ops).is_err());
    }
    revision(&b.txn(vec![], vec![big(MAX_VALUE_BYTES)]));
    for ttl_ms in [0, MAX_TTL_MS + 1] {
        let request = b.request();
        refused(&b.apply(Command::Grant { request, ttl_ms }), ErrorKind::Invalid);
    }
}

#[test]
fn a_snapshot_in_parts_is_the_same_state_and_half_of_one_is_nothing() {
    let mut a = Bench::new();
    let lease = a.grant(500);
    for n in 0..30 {
        a.txn(vec![], vec![put(&format!("k/{n}"), "value"), leased(&format!("l/{n}"), lease)]);
    }
    let frozen = a.machine.freeze().unwrap();
    a.txn(vec![], vec![put("later", "1")]);
    let mut b = Bench::new();
    b.txn(vec![], vec![put("old", "1")]);
    let before = b.machine.digest().unwrap();
    let mut cursor = Some(Vec::new());
    let staging = b.machine.stage().unwrap();
    let (part, next) = frozen.part(&[], 300).unwrap();
    staging.add(part).unwrap();
    assert!(next.is_some());
    // Half a snapshot and a power cut.
    b.store.crash(|n| n);
    b.reopen();
    assert_eq!(b.machine.digest().unwrap(), before);
    let staging = b.machine.stage().unwrap();
    while let Some(at) = cursor {
        let (part, next) = frozen.part(&at, 300).unwrap();
        staging.add(part).unwrap();
        cursor = next;
    }
    let meta = frozen.meta().clone();
    b.machine.install(staging, meta.index, meta.term).unwrap();
    b.store.crash(|_| 0);
    b.reopen();
    assert_eq!(b.value("old"), None);
    assert_eq!(b.value("later"), None);
    assert_eq!(b.machine.range(&Range::prefix("")).unwrap().pairs.len(), 60);
    assert_eq!(b.machine.meta().installed, meta.index);
    // From here on the same entries give the same state.
    let entry = a.machine.index();
    let request = RequestId { session: a.session, sequence: a.sequence, answered_below: a.sequence };
    let later = Command::Txn { request, asserts: vec![], ops: vec![put("later", "1")] };
    b.machine.apply(entry, 1, later.encode()).unwrap();
    b.machine.commit().unwrap();
    assert_eq!(a.machine.digest().unwrap(), b.machine.digest().unwrap());
    assert_eq!(b.machine.leases().count(), 1);
}

#[test]
fn a_power_cut_takes_whole_entries_from_the_end() {
    let mut b = Bench::new();
    b.store.checkpoint().unwrap();
    let kept = b.machine.index();
    for n in 0..10 {
        b.txn(vec![], vec![put("a", "1"), put(&format!("k{n}"), "2")]);
    }
    b.store.crash(|n| n / 2);
    b.reopen();
    assert_eq!(b.machine.index(), kept + 5);
    assert_eq!(b.machine.range(&Range::prefix("k")).unwrap().pairs.len(), 5);
}

#[test]
fn staging_without_a_head_is_refused() {
    let mut b = Bench::new();
    let staging = Staging::begin(b.store.clone(), 2).unwrap();
    assert_eq!(b.machine.install(staging, 5, 1).unwrap_err().kind, ErrorKind::Corrupt);
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_a_command_or_an_error(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
        let mut with_version = vec![1, bytes.first().copied().unwrap_or(0) % 6];
        with_version.extend_from_slice(&bytes);
        for bytes in [bytes, with_version] {
            if let Ok(command) = Command::decode(bytes.clone().into()) {
                proptest::prop_assert_eq!(&command.encode()[..], &bytes[..]);
            }
            let _ = layout::Session::decode(bytes.clone().into());
            let _ = layout::Meta::decode(bytes.clone().into());
            let _ = layout::decode_events(&mut crate::wire::Reader::new(bytes.into(), "events"));
        }
    }
}
