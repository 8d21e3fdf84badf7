use super::*;
use proptest::prelude::*;

fn text() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9/@:._é-]{0,40}"
}

fn attach() -> impl Strategy<Value = Attach> {
    let mode = prop_oneof![Just(Mode::Exclusive), Just(Mode::ReadOnly), Just(Mode::Shared)];
    let names = (text(), text(), text());
    (names, mode, any::<u128>(), any::<u64>(), any::<u64>(), any::<[bool; 2]>(), any::<u8>()).prop_map(
        |((export, client, via), mode, attachment, session, since, [resumed, pass_on], hops)| Attach {
            export,
            mode,
            attachment,
            session,
            since: Epoch(since),
            resumed,
            pass_on,
            hops,
            client,
            via,
        },
    )
}

fn payload() -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..40_000).prop_map(Bytes::from)
}

fn op() -> impl Strategy<Value = Op> {
    let (o, l) = (any::<u64>, any::<u64>);
    prop_oneof![
        (o(), 0..=MAX_PAYLOAD).prop_map(|(offset, len)| Op::Read { offset, len }),
        (o(), payload(), any::<bool>()).prop_map(|(offset, data, fua)| Op::Write { offset, data, fua }),
        (o(), l(), any::<bool>(), any::<bool>()).prop_map(|(offset, len, hole, fua)| Op::Zeroes {
            offset,
            len,
            hole,
            fua
        }),
        (o(), l(), any::<bool>()).prop_map(|(offset, len, fua)| Op::Discard { offset, len, fua }),
        Just(Op::Flush),
        (o(), l()).prop_map(|(offset, len)| Op::Extents { offset, len }),
        (o(), l()).prop_map(|(offset, len)| Op::Prefetch { offset, len }),
    ]
}

fn to_server() -> impl Strategy<Value = ToServer> {
    prop_oneof![
        attach().prop_map(ToServer::Attach),
        Just(ToServer::Detach),
        Just(ToServer::Leave),
        Just(ToServer::Ping),
        (any::<u64>(), any::<u64>(), op()).prop_map(|(sequence, epoch, op)| ToServer::Request(Request {
            sequence,
            epoch: Epoch(epoch),
            op
        })),
    ]
}

fn error() -> impl Strategy<Value = Error> {
    let kinds = (0u8..16).prop_filter_map("a kind", ErrorKind::from_number);
    (kinds, text()).prop_map(|(kind, message)| Error::new(kind, message))
}

fn moved() -> impl Strategy<Value = Moved> {
    (text(), prop::collection::vec(text(), 0..MAX_ADDRESSES), any::<u64>())
        .prop_map(|(owner, addresses, epoch)| Moved { owner, addresses, epoch: Epoch(epoch) })
}

fn granted() -> impl Strategy<Value = Granted> {
    let recovered = prop_oneof![
        Just(Recovered::All),
        Just(Recovered::Flushed),
        any::<u64>().prop_map(|lsn| Recovered::UpTo(Lsn(lsn)))
    ];
    (any::<u64>(), 0..16u32, any::<u32>(), any::<u64>(), recovered, any::<[bool; 5]>(), 1..u32::MAX).prop_map(
        |(size, block, preferred_block, epoch, recovered, flags, requests)| Granted {
            geometry: Geometry {
                size,
                min_block: 1 << block,
                preferred_block,
                max_payload: MAX_PAYLOAD >> (block % 4),
                read_only: flags[0],
            },
            epoch: Epoch(epoch),
            recovered,
            known: flags[1],
            in_sync: flags[2],
            disk_read_only: flags[3],
            forwarded: flags[4],
            credit: Credit { requests, bytes: MAX_PAYLOAD },
        },
    )
}

fn outcome() -> impl Strategy<Value = Outcome> {
    let extent =
        (1..u64::MAX, any::<bool>(), any::<bool>()).prop_map(|(len, hole, zero)| Extent { len, hole, zero });
    prop_oneof![
        Just(Outcome::Done),
        payload().prop_map(Outcome::Data),
        prop::collection::vec(extent, 0..100).prop_map(Outcome::Extents),
        error().prop_map(Outcome::Failed),
        moved().prop_map(Outcome::Moved),
    ]
}

fn to_client() -> impl Strategy<Value = ToClient> {
    let reply = (any::<[u64; 3]>(), any::<bool>(), any::<[u32; 2]>(), outcome()).prop_map(
        |([sequence, epoch, lsn], in_sync, [requests, bytes], outcome)| Reply {
            sequence,
            epoch: Epoch(epoch),
            lsn: Lsn(lsn),
            in_sync,
            grant: Credit { requests, bytes },
            outcome,
        },
    );
    prop_oneof![
        text().prop_map(ToClient::Hello),
        granted().prop_map(ToClient::Attached),
        error().prop_map(|e| ToClient::Refused(Refusal::Failed(e))),
        moved().prop_map(|m| ToClient::Refused(Refusal::Moved(m))),
        any::<u64>().prop_map(|s| ToClient::Refused(Refusal::Stale(s))),
        reply.prop_map(ToClient::Reply),
        error().prop_map(ToClient::Closed),
        Just(ToClient::Detached),
        any::<u64>().prop_map(ToClient::Resized),
        Just(ToClient::Pong),
    ]
}

/// The frames of `bytes`, given to a decoder in pieces of these sizes.
fn frames(bytes: &[u8], piece: usize) -> Vec<Frame> {
    let mut decoder = Decoder::default();
    decoder.allow(MAX_PAYLOAD);
    let mut found = Vec::new();
    for piece in bytes.chunks(piece) {
        decoder.buffer().extend_from_slice(piece);
        while let Some(frame) = decoder.frame().unwrap() {
            found.push(frame);
        }
    }
    found
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_a_client_says_is_what_a_server_hears(said in prop::collection::vec(to_server(), 1..6), piece in 1..9000usize) {
        let mut bytes = BytesMut::new();
        for (channel, said) in said.iter().enumerate() {
            let payload = said.put(&mut bytes, channel as u32);
            bytes.put_slice(&payload);
        }
        let heard = frames(&bytes, piece);
        prop_assert_eq!(heard.len(), said.len());
        for (n, (frame, said)) in heard.into_iter().zip(said).enumerate() {
            prop_assert_eq!(frame.channel, n as u32);
            prop_assert_eq!(frame.to_server(), Ok(said));
        }
    }

    #[test]
    fn what_a_server_says_is_what_a_client_hears(said in to_client(), piece in 1..9000usize) {
        let mut bytes = BytesMut::new();
        let payload = said.put(&mut bytes, 7);
        bytes.put_slice(&payload);
        let heard = frames(&bytes, piece).pop().unwrap().to_client().unwrap();
        prop_assert_eq!(format!("{heard:?}"), format!("{said:?}"));
    }

    #[test]
    fn a_changed_byte_is_noticed(said in to_server(), at in any::<prop::sample::Index>(), bit in 0..8u32) {
        let mut bytes = BytesMut::new();
        let payload = said.put(&mut bytes, 7);
        bytes.put_slice(&payload);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let mut decoder = Decoder::default();
        decoder.allow(MAX_PAYLOAD);
        decoder.buffer().extend_from_slice(&bytes);
        prop_assert!(decoder.frame().is_err());
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        crate::fuzz::TARGETS.iter().for_each(|(_, target)| target(&bytes));
    }
}

#[test]
fn a_prologue_offers_versions() {
    let mut bytes = BytesMut::new();
    put_prologue(&mut bytes, 1, 3);
    let bytes: [u8; PROLOGUE] = bytes[..].try_into().unwrap();
    assert_eq!(prologue(&bytes), Ok((1, 3)));
    assert_eq!((choose_version(1, 3), choose_version(2, 3)), (Some(1), None));
    for at in 0..PROLOGUE {
        let mut wrong = bytes;
        wrong[at] ^= 1;
        assert!(prologue(&wrong).is_err(), "{at}");
    }
}

#[test]
fn a_frame_beyond_the_limit_is_refused_before_it_is_there() {
    let mut bytes = BytesMut::new();
    let op = Op::Write { offset: 0, data: vec![0; MAX_SMALL + 1].into(), fua: false };
    let request = Request { sequence: 1, epoch: Epoch(1), op };
    let _ = request.put(&mut bytes, 1);
    let mut decoder = Decoder::default();
    decoder.buffer().extend_from_slice(&bytes[..HEAD]);
    assert!(decoder.frame().is_err());
    let mut decoder = Decoder::default();
    decoder.allow(1 << 20);
    decoder.buffer().extend_from_slice(&bytes[..HEAD]);
    assert_eq!(decoder.frame(), Ok(None));
}
