use super::*;
use crate::entry::Entry;
use proptest::prelude::*;

fn info() -> impl Strategy<Value = LogInfo> {
    (any::<u64>(), any::<u128>(), 0..1u64 << 40, 0..1u64 << 40, any::<[bool; 3]>()).prop_map(
        |(epoch, incarnation, base, n, [sealed, suspect, damaged])| LogInfo {
            epoch: Epoch(epoch),
            incarnation: Incarnation(incarnation),
            base: Lsn(base),
            last: Lsn(base + n),
            flushed: Lsn(base + n / 2),
            sealed,
            suspect,
            damaged,
        },
    )
}

fn packed() -> impl Strategy<Value = Packed> {
    (any::<u128>(), any::<u64>(), 1..u64::MAX, prop::collection::vec(any::<u8>(), 0..5000)).prop_map(
        |(volume, epoch, lsn, payload)| {
            Entry {
                volume: VolumeId(volume),
                epoch: Epoch(epoch),
                lsn: Lsn(lsn),
                kind: 1,
                flags: 0,
                addr: 3,
                count: 1,
                crcs: smallvec::smallvec![1, 2],
                payload: payload.into(),
            }
            .pack()
        },
    )
}

fn key() -> impl Strategy<Value = Key> {
    (any::<u128>(), any::<u64>(), any::<u128>()).prop_map(|(v, e, i)| Key {
        volume: VolumeId(v),
        epoch: Epoch(e),
        incarnation: Incarnation(i),
    })
}

fn lsn() -> impl Strategy<Value = Lsn> {
    (0..u64::MAX).prop_map(Lsn)
}

fn request() -> impl Strategy<Value = Request> {
    let open = prop_oneof![
        (any::<u64>(), lsn()).prop_map(|(serial, base)| Open::Create { serial, base }),
        any::<u128>().prop_map(|i| Open::Resume(Incarnation(i))),
    ];
    prop_oneof![
        (any::<u128>(), any::<u64>(), open).prop_map(|(v, e, open)| Request::Hello {
            volume: VolumeId(v),
            epoch: Epoch(e),
            open
        }),
        packed().prop_map(Request::Append),
        Just(Request::Flush),
        lsn().prop_map(Request::Trim),
        lsn().prop_map(Request::Vouch),
        Just(Request::Close),
        (any::<u128>(), any::<u64>()).prop_map(|(v, e)| Request::Seal(VolumeId(v), Epoch(e))),
        (key(), lsn(), any::<u32>()).prop_map(|(k, l, c)| Request::Read(k, l, c)),
        any::<u32>().prop_map(Request::Credit),
        any::<u128>().prop_map(|v| Request::Status(VolumeId(v))),
        (key(), lsn()).prop_map(|(k, l)| Request::TrimLog(k, l)),
        (any::<u128>(), any::<u64>()).prop_map(|(v, e)| Request::Forget(VolumeId(v), Epoch(e))),
        Just(Request::Ping),
    ]
}

fn reply() -> impl Strategy<Value = Reply> {
    prop_oneof![
        (info(), any::<u32>()).prop_map(|(i, w)| Reply::Opened(i, w)),
        lsn().prop_map(Reply::Confirmed),
        lsn().prop_map(Reply::Flushed),
        Just(Reply::Vouched),
        lsn().prop_map(Reply::Stall),
        lsn().prop_map(Reply::Resume),
        (0..11u8, "[a-z ä]{0,40}").prop_map(|(k, m)| Reply::Failed(ErrorKind::from_number(k).unwrap(), m)),
        (any::<u64>(), prop::collection::vec(info(), 0..5)).prop_map(|(e, l)| Reply::Logs(Epoch(e), l)),
        packed().prop_map(Reply::Data),
        Just(Reply::Done),
        Just(Reply::Pong),
    ]
}

proptest! {
    #[test]
    fn what_is_said_is_understood_however_it_is_cut(
        requests in prop::collection::vec((request(), any::<u32>()), 1..6),
        replies in prop::collection::vec((reply(), any::<u32>()), 1..6),
        cut in 1usize..2000,
    ) {
        let mut bytes = BytesMut::new();
        requests.iter().for_each(|(r, id)| r.put(&mut bytes, *id));
        replies.iter().for_each(|(r, id)| r.put(&mut bytes, *id));
        let mut decoder = Decoder::default();
        let mut frames = Vec::new();
        for chunk in bytes.chunks(cut) {
            decoder.buffer().extend_from_slice(chunk);
            while let Some(frame) = decoder.frame().unwrap() {
                frames.push(frame);
            }
            prop_assert!(decoder.missing() > 0);
        }
        let mut frames = frames.into_iter();
        for (request, id) in requests {
            let frame = frames.next().unwrap();
            prop_assert_eq!((frame.request().unwrap(), frame.id), (request, id));
        }
        for (reply, id) in replies {
            let frame = frames.next().unwrap();
            prop_assert_eq!((frame.reply().unwrap(), frame.id), (reply, id));
        }
        prop_assert!(frames.next().is_none());
    }

    #[test]
    fn hostile_bytes_are_refused_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        fuzz(&bytes);
    }

    #[test]
    fn hostile_bodies_with_right_checksums_too(verb: u8, id: u32, body in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut bytes = BytesMut::new();
        put(&mut bytes, verb, id, |b| b.put_slice(&body));
        fuzz(&bytes);
    }

    #[test]
    fn a_flipped_bit_ends_the_stream(request in request(), at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let mut bytes = BytesMut::new();
        request.put(&mut bytes, 7);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let mut decoder = Decoder::default();
        decoder.buffer().extend_from_slice(&bytes);
        prop_assert!(decoder.frame().is_err());
    }
}

#[test]
fn a_frame_that_claims_too_much_is_refused_before_it_is_waited_for() {
    for (verb, len) in [(verb::APPEND, MAX_BODY + 1), (verb::FLUSH, MAX_SMALL + 1), (0, u32::MAX as usize)] {
        let mut decoder = Decoder::default();
        put_head(decoder.buffer(), verb, 1, len, 0);
        assert!(decoder.frame().is_err());
    }
}

#[test]
fn versions_are_negotiated() {
    let mut bytes = BytesMut::new();
    put_prologue(&mut bytes, 1, 9);
    let offered = prologue(bytes.first_chunk().unwrap()).unwrap();
    assert_eq!((offered, choose_version(offered.0, offered.1)), ((1, 9), Some(VERSION)));
    assert_eq!(choose_version(2, 9), None);
    bytes[9] ^= 1;
    assert!(prologue(bytes.first_chunk().unwrap()).is_err());
}
