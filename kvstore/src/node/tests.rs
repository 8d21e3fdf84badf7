use super::core::fits;
use super::message::{Part, PeerMessage};
use super::request::{Change, Request, Response, Status};
use crate::log::{Position, Recovered};
use crate::machine::{Answer, Assert, Command, Event, LeaseId, Op, Page, Range, RequestId};
use common::ErrorKind;
use common::kv::KvPair;
use proptest::prelude::*;
use raft::eraftpb::{Entry, Message, MessageType};

fn pair(n: u64) -> KvPair {
    KvPair { key: format!("k{n}"), value: vec![n as u8; 100].into(), revision: n }
}

fn requests() -> Vec<Request> {
    let request = RequestId { session: 1, sequence: 2, answered_below: 1 };
    let asserts = vec![
        Assert::Absent("a".into()),
        Assert::Revision("b".into(), 7),
        Assert::LeaseLive(LeaseId(3)),
        Assert::LeaseExpired(LeaseId(4)),
    ];
    let put = |lease| Op::Put { key: "c".into(), value: "v".into(), lease };
    let ops = vec![put(None), put(Some(LeaseId(5))), Op::Delete { key: "d".into() }];
    vec![
        Request::Command(Command::OpenSession),
        Request::Command(Command::Txn { request, asserts, ops }),
        Request::Command(Command::Grant { request, ttl_ms: 5 }),
        Request::Command(Command::Revoke { request, lease: LeaseId(5) }),
        Request::Command(Command::Expire { lease: LeaseId(5) }),
        Request::Get { key: "k".into() },
        Request::Range(Range::prefix("p").limit(3).after("pq")),
        Request::Range(Range::default()),
        Request::KeepAlive { lease: LeaseId(9) },
        Request::Watch { prefix: "".into(), from: 4, wait_ms: 100 },
        Request::Status,
        Request::Change(vec![
            Change::AddLearner { member: 4, address: "a:1".into() },
            Change::Promote { member: 3 },
            Change::Demote { member: 2 },
            Change::Remove { member: 1 },
        ]),
        Request::Transfer { to: 2 },
    ]
}

fn responses() -> Vec<Response> {
    let refused = Answer::Refused { revision: 3, kind: ErrorKind::Conflict, message: "it changed".into() };
    let answers = [
        Answer::Session(4),
        Answer::Done { revision: 5 },
        Answer::Granted { lease: LeaseId(6) },
        refused,
        Answer::NoSession,
        Answer::Stale,
    ];
    let mut all: Vec<Response> = answers.into_iter().map(Response::Answer).collect();
    let event = Event { revision: 1, key: "k".into(), value: Some("v".into()) };
    let status =
        Status { member: 1, leader: Some(2), members: [(1, "a:1".into())].into(), ..Status::default() };
    all.extend([
        Response::Pair { pair: Some(pair(1)), revision: 3 },
        Response::Pair { pair: None, revision: 3 },
        Response::Page(Page { pairs: vec![pair(1), pair(2)], more: true, revision: 9 }),
        Response::Alive { ttl_ms: 3 },
        Response::Events { events: vec![event.clone(), Event { value: None, ..event }], next: 4 },
        Response::Compacted { oldest: 3 },
        Response::Status(status),
        Response::Done,
        Response::Failed { kind: ErrorKind::NoSpace, message: "full".into() },
        Response::NotLeader { leader: Some((2, "b:2".into())) },
        Response::NotLeader { leader: None },
        Response::Lost,
    ]);
    all
}

fn messages() -> Vec<PeerMessage> {
    let mut message = Message { from: 1, to: 2, term: 3, index: 4, ..Message::default() };
    message.set_msg_type(MessageType::MsgAppend);
    message.set_entries(vec![Entry { index: 5, term: 3, data: "data".into(), ..Entry::default() }].into());
    let part = Part { term: 1, id: 2, sequence: 3, records: "records".into(), message: None };
    vec![
        PeerMessage::Raft(message.clone()),
        PeerMessage::Part(part.clone()),
        PeerMessage::Part(Part { message: Some(message), ..part }),
        PeerMessage::PartAck { term: 1, id: 2, next: 3 },
    ]
}

#[test]
fn what_is_said_is_understood_and_half_of_it_is_refused() {
    for request in requests() {
        let bytes = request.encode();
        assert_eq!(Request::decode(bytes.clone()).unwrap(), request);
        for cut in 0..bytes.len() {
            assert!(Request::decode(bytes.slice(..cut)).is_err(), "{request:?} cut at {cut}");
        }
    }
    for response in responses() {
        let parts = response.clone().encode(usize::MAX);
        assert_eq!(Response::decode(parts[0].clone()).unwrap(), (response.clone(), false));
        for cut in 0..parts[0].len() {
            assert!(Response::decode(parts[0].slice(..cut)).is_err(), "{response:?} cut at {cut}");
        }
    }
    for message in messages() {
        assert_eq!(PeerMessage::decode(message.encode().unwrap()).unwrap(), message);
    }
}

#[test]
fn a_large_page_comes_in_parts() {
    let page = Page { pairs: (0..100).map(pair).collect(), more: false, revision: 7 };
    let parts = Response::Page(page.clone()).encode(1000);
    assert!(parts.len() > 10);
    let mut all = Page::default();
    for (n, part) in parts.iter().enumerate() {
        let (Response::Page(page), goes_on) = Response::decode(part.clone()).unwrap() else {
            panic!("no page")
        };
        assert_eq!(goes_on, n + 1 < parts.len());
        all.pairs.extend(page.pairs);
        (all.more, all.revision) = (page.more, page.revision);
    }
    assert_eq!(all, page);
}

proptest! {
    #[test]
    fn any_bytes_are_understood_or_refused(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..300),
        kind in 0u8..16,
        flips in proptest::collection::vec((any::<usize>(), 0u8..8), 0..4),
        which in any::<usize>(),
    ) {
        // Said, and then damaged.
        let said: Vec<bytes::Bytes> = requests()
            .iter()
            .map(Request::encode)
            .chain(responses().into_iter().flat_map(|r| r.encode(100)))
            .chain(messages().iter().map(|m| m.encode().unwrap()))
            .collect();
        let mut damaged = said[which % said.len()].to_vec();
        for (at, bit) in flips {
            let at = at % damaged.len();
            damaged[at] ^= 1 << bit;
        }
        if let Some(first) = bytes.first_mut() {
            *first = kind;
        }
        for bytes in [bytes, damaged] {
            let _ = Request::decode(bytes.clone().into());
            let _ = Response::decode(bytes.clone().into());
            let _ = PeerMessage::decode(bytes.into());
        }
    }
}

#[test]
fn state_and_log_that_do_not_go_together_are_refused() {
    let at = |index, term| Position { index, term };
    let entry = |index, term| Entry { index, term, ..Entry::default() };
    let log = Recovered { floor: at(5, 1), entries: vec![entry(6, 1), entry(7, 2)], ..Recovered::default() };
    for fine in [at(5, 1), at(6, 1), at(7, 2)] {
        assert!(!fits(fine, 0, &log).unwrap());
    }
    for lost in [at(4, 1), at(8, 2), at(7, 1), at(0, 0)] {
        assert_eq!(fits(lost, 0, &log).unwrap_err().kind, ErrorKind::Corrupt, "{lost:?}");
    }
    // A snapshot was installed, and the log did not hear of it.
    assert!(fits(at(90, 4), 90, &log).unwrap());
    assert!(fits(at(90, 4), 80, &log).is_err());
}
