use super::*;
use common::osd::{Assert, Damage, KeyInfo, LatencyStatus, OsdSpace, OsdState, Priority, ScrubStatus};
use std::time::Duration;

fn key(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

pub fn requests() -> Vec<Request> {
    let changes = Changes::new()
        .assert(Assert::Absent(key("a")))
        .assert(Assert::Present(key("b")))
        .assert(Assert::Value(key("c"), key("value")))
        .set(key("a"), Value::new("small"))
        .set(key("large"), Value::new(vec![7u8; 20_000]))
        .delete(key("b"));
    let range = KeyRange { from: key("a"), to: Some(key("z")) };
    vec![
        Request::Hello(Some(OsdId(5)), Some(BackendId(6))),
        Request::Hello(None, None),
        Request::Apply(changes),
        Request::Get(key("a")),
        Request::GetRange(key("a"), 5..100),
        Request::MultiGet(vec![key("a"), key("b")]),
        Request::Range(KeyRange::all(), 100),
        Request::Verify(range, 1),
        Request::Status,
        Request::Claim(None, Some(BackendId(1))),
        Request::Ping,
    ]
}

pub fn replies() -> Vec<Reply> {
    let value = |n| Some(Value::new(vec![n; 10_000]));
    let info = KeyInfo { key: key("k"), len: 5, crc: 6 };
    let damaged = vec![Damage { key: key("k"), why: "rot".into() }];
    let latency = LatencyStatus { count: 1, p50: 2, p99: 3, max: 4 };
    let status = OsdStatus {
        id: OsdId(9),
        claimed_by: Some(BackendId(8)),
        state: OsdState::ReadOnly("a sync failed".into()),
        space: OsdSpace {
            capacity: 1,
            segments: 2,
            live: 3,
            dead: 4,
            open: 5,
            table: 6,
            reserved: 7,
            free: 8,
            full: true,
        },
        keys: 10,
        bytes: 11,
        damaged: damaged.clone(),
        damaged_keys: 12,
        scrub: ScrubStatus { rounds: 13, keys: 14, bytes: 15, done_permille: 16, began: 17 },
        apply: latency,
        get: latency,
        counters: vec![("applies".into(), 18)],
    };
    vec![
        Reply::Welcome(OsdId(9)),
        Reply::Done,
        Reply::Value(None),
        Reply::Value(value(1)),
        Reply::Bytes(Some(key("part"))),
        Reply::Bytes(None),
        Reply::Values(vec![value(1), None, Some(Value::new("x"))]),
        Reply::Page(KeyPage { keys: vec![info], next: Some(key("l")) }),
        Reply::Verified(Verified { keys: 1, bytes: 2, damaged, next: None }),
        Reply::Status(Box::new(status)),
        Reply::Failed(ErrorKind::NoSpace, "full".into()),
        Reply::Pong,
    ]
}

fn frames(parts: &[Bytes], step: usize) -> Vec<Frame> {
    let mut decoder = Decoder::default();
    let mut found = Vec::new();
    for piece in parts.concat().chunks(step) {
        decoder.buffer().extend_from_slice(piece);
        found.extend(decoder.frame().unwrap());
    }
    found
}

#[test]
fn what_is_said_is_understood_in_whatever_pieces_it_comes() {
    let call = Call { priority: Priority::Maintenance, timeout: Duration::from_millis(70) };
    for (n, request) in requests().into_iter().enumerate() {
        for step in [1, 19, 1 << 20] {
            let frames = frames(&encode_request(&request, n as u32, call), step);
            let (said, back) = frames[0].request().unwrap();
            assert_eq!((frames.len(), frames[0].id, &back), (1, n as u32, &request));
            assert!(said == call || said == no_call());
        }
    }
    for (n, reply) in replies().into_iter().enumerate() {
        let frames = frames(&encode_reply(&reply, n as u32), 1000);
        assert_eq!((frames.len(), frames[0].id, frames[0].reply().unwrap()), (1, n as u32, reply));
    }
}

#[test]
fn large_values_are_not_copied() {
    let value = Value::new(vec![7u8; 20_000]);
    let parts = encode_reply(&Reply::Value(Some(value.clone())), 1);
    assert!(parts.iter().any(|part| part.as_ptr() == value.bytes.as_ptr()));
}

#[test]
fn a_flipped_bit_is_noticed_wherever_it_is() {
    let whole = encode_request(&requests()[2], 3, no_call()).concat();
    for at in (0..whole.len()).step_by(97).chain(0..64) {
        let mut bent = whole.clone();
        bent[at] ^= 4;
        let mut decoder = Decoder::default();
        decoder.buffer().extend_from_slice(&bent);
        assert!(decoder.frame().is_err(), "byte {at}");
    }
    assert_eq!(read_prologue(&prologue(1, 3)), Ok((1, 3)));
    assert_eq!((choose_version(1, 3), choose_version(2, 3)), (Some(1), None));
    let mut bent = prologue(1, 1);
    bent[9] ^= 1;
    assert!(read_prologue(&bent).is_err());
}
