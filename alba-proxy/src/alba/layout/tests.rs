use super::*;
use crate::alba::keys::{Master, NamespaceKey, Unlock};
use crate::alba::preset::{Compression, Policy};
use crate::alba::wire::{Reader, Writer};
use proptest::prelude::*;
use std::ops::Range;

const ID: ObjectId = ObjectId(0x0123_4567_89ab_cdef_0011_2233_4455_6677);

fn policy(k: u8, m: u8) -> Policy {
    Policy::new(k, m, k + m, None).unwrap()
}

fn plan(policy: Policy, frame_size: u32, zstd: bool, sealed: bool) -> Plan {
    let packing = Packing { zstd, key: sealed.then_some(1) };
    Plan { policy, frame_size, value_len: 64 << 10, packing }
}

fn compression(plan: &Plan) -> Compression {
    if plan.packing.zstd { Compression::Zstd { level: 1 } } else { Compression::None }
}

fn key() -> NamespaceKey {
    let unlock = Unlock::KeyFile(zeroize::Zeroizing::new([7; 32]));
    Master::create(&unlock).unwrap().0.new_key(1, 1).unwrap().0
}

/// Half of it can be compressed.
fn content(len: usize, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut data = Vec::with_capacity(len);
    while data.len() < len {
        if random.bool() {
            data.extend(std::iter::repeat_with(|| random.u8(..)).take(3000));
        } else {
            data.extend(std::iter::repeat_n(random.u8(..), 5000));
        }
    }
    data.truncate(len);
    data
}

/// In pieces that have nothing to do with frames or fragments.
fn pieces(data: &[u8], seed: u64) -> Vec<Bytes> {
    let mut random = fastrand::Rng::with_seed(seed);
    let whole = Bytes::copy_from_slice(data);
    if seed.is_multiple_of(3) {
        return vec![whole];
    }
    let (mut parts, mut at) = (Vec::new(), 0);
    while at < data.len() {
        let n = random.usize(0..=70_000).min(data.len() - at);
        parts.push(whole.slice(at..at + n));
        at += n;
    }
    parts
}

/// A read as the store does it, from fragments of which some are lost: slices of them only.
fn read(encoded: &Encoded, lost: &[usize], key: Option<&NamespaceKey>, want: Range<u64>) -> (Bytes, u64) {
    let shape = &encoded.shape;
    let frames = shape.frames_of(&want);
    let mut moved = 0;
    let pieces: Vec<Bytes> = shape
        .extents(&shape.stream_range(&frames))
        .into_iter()
        .map(|extent| {
            let range = extent.range.start as usize..extent.range.end as usize;
            let slice = |f: usize| encoded.fragments[f].slice(range.clone());
            if !lost.contains(&extent.fragment) {
                moved += range.len() as u64;
                return slice(extent.fragment);
            }
            let left = (0..shape.policy.fragments()).filter(|f| !lost.contains(f));
            let have: Vec<(usize, Bytes)> = left.take(shape.policy.data()).map(|f| (f, slice(f))).collect();
            moved += (have.len() * range.len()) as u64;
            reconstruct(shape, &have, extent.fragment).unwrap()
        })
        .collect();
    let key = key.map(|key| key.object(shape.id).unwrap());
    (decode(shape, key.as_ref(), &frames, &pieces, &want).unwrap(), moved)
}

/// Every choice of at most `most` out of `of`.
fn losses(of: usize, most: usize) -> Vec<Vec<usize>> {
    (0u32..1 << of)
        .filter(|bits| bits.count_ones() as usize <= most)
        .map(|bits| (0..of).filter(|i| bits >> i & 1 == 1).collect())
        .collect()
}

#[test]
fn every_combination_of_losses_gives_everything_back() {
    for (k, m) in [(4, 2), (8, 3), (2, 2), (1, 2)] {
        for (zstd, sealed) in [(false, false), (true, true)] {
            let plan = plan(policy(k, m), 4096, zstd, sealed);
            let data = content(150_001, 5);
            let (key, object) = (key(), key().object(ID).unwrap());
            let object = if sealed { key.object(ID).unwrap() } else { object };
            let key = sealed.then_some(&key);
            let encoded =
                encode(&pieces(&data, 7), ID, &plan, compression(&plan), key.map(|_| &object)).unwrap();
            for lost in losses(usize::from(k + m), usize::from(m)) {
                let (got, _) = read(&encoded, &lost, key, 0..data.len() as u64);
                assert!(got == data, "({k},{m}) without {lost:?}, zstd {zstd}");
                // The fragment itself, as a repair makes it anew, without a key.
                let left = (0..usize::from(k + m)).filter(|f| !lost.contains(f)).rev();
                let have: Vec<_> =
                    left.take(usize::from(k)).map(|f| (f, encoded.fragments[f].clone())).collect();
                for f in &lost {
                    assert!(reconstruct(&encoded.shape, &have, *f).unwrap() == encoded.fragments[*f]);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]
    #[test]
    fn any_range_of_any_object_comes_back(
        len in prop_oneof![0usize..10_000, 0usize..600_000],
        at in any::<u64>(), n in any::<u64>(), seed in any::<u64>(),
        code in prop_oneof![Just((4u8, 2u8)), Just((8, 3)), Just((2, 2)), Just((1, 2)), Just((3, 0))],
        frame_log2 in 12u32..18, zstd: bool, sealed: bool,
    ) {
        let policy = policy(code.0, code.1);
        let plan = plan(policy, 1 << frame_log2, zstd, sealed);
        let data = content(len, seed);
        let key = sealed.then(key);
        let object = key.as_ref().map(|key| key.object(ID).unwrap());
        let encoded = encode(&pieces(&data, seed), ID, &plan, compression(&plan), object.as_ref()).unwrap();
        prop_assert_eq!(encoded.fragments.len(), policy.fragments());
        prop_assert!(encoded.fragments.iter().all(|f| f.len() as u64 == encoded.shape.fragment_len));
        let mut random = fastrand::Rng::with_seed(seed);
        let lost: Vec<usize> = (0..code.1).map(|_| random.usize(0..policy.fragments())).collect();
        let from = at % (len as u64 + 1);
        let want = from..from + n % (len as u64 - from + 1);
        let right = &data[want.start as usize..want.end as usize];
        prop_assert!(read(&encoded, &lost, key.as_ref(), want.clone()).0 == right);
        // The shape is all that is needed, and it reads as it was written.
        let mut w = Writer::default();
        encoded.shape.write(&mut w);
        let mut r = Reader::new("test", &w.buf);
        prop_assert_eq!(Shape::read(&mut r).unwrap(), encoded.shape.clone());
        r.end().unwrap();
        // The values of fragments cover them, each once.
        let shape = &encoded.shape;
        let values: u64 = (0..shape.values()).map(|v| shape.value_range(v)).map(|r| r.end - r.start).sum();
        prop_assert_eq!(values, shape.fragment_len);
        let of: u64 = shape.values_of(&(0..shape.fragment_len)).iter().map(|(_, r)| r.end - r.start).sum();
        prop_assert_eq!(of, shape.fragment_len);
    }

    #[test]
    fn hostile_bytes_are_no_shape_and_no_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Shape::read(&mut Reader::new("test", &bytes));
        let _ = FragmentHeader::decode(&bytes);
        let _ = FragmentKey::of_header(&bytes);
        // With a checksum that is right, so that what is behind it is read.
        let mut whole = b"SRfragmt\x01\0\0\0".to_vec();
        whole.append(&mut bytes);
        if whole.len() >= 16 {
            whole[12..16].fill(0);
            let crc = common::crc::crc32c(&whole);
            whole[12..16].copy_from_slice(&crc.to_le_bytes());
            let _ = FragmentHeader::decode(&whole);
        }
    }
}

fn whole_stream(encoded: &Encoded) -> Vec<u8> {
    let k = encoded.shape.policy.data();
    let mut stream: Vec<u8> = encoded.fragments[..k].concat();
    stream.truncate(encoded.shape.stream_len() as usize);
    stream
}

fn opened(
    encoded: &Encoded,
    key: Option<&NamespaceKey>,
    stream: Vec<u8>,
) -> std::result::Result<Bytes, BadFrame> {
    let shape = &encoded.shape;
    let key = key.map(|key| key.object(shape.id).unwrap());
    decode(shape, key.as_ref(), &(0..shape.frames()), &[stream.into()], &(0..shape.len))
}

#[test]
fn a_wrong_bit_is_found_and_its_frame_named() {
    for (zstd, sealed) in [(false, false), (true, false), (false, true), (true, true)] {
        let plan = plan(policy(4, 2), 4096, zstd, sealed);
        let data = content(40_000, 3);
        let key = sealed.then(key);
        let object = key.as_ref().map(|key| key.object(ID).unwrap());
        let encoded = encode(&[data.into()], ID, &plan, compression(&plan), object.as_ref()).unwrap();
        let stream = whole_stream(&encoded);
        opened(&encoded, key.as_ref(), stream.clone()).unwrap();
        for frame in 0..encoded.shape.frames() {
            let range = encoded.shape.stream_range(&(frame..frame + 1));
            for at in [range.start, (range.start + range.end) / 2, range.end - 1] {
                let mut wrong = stream.clone();
                wrong[at as usize] ^= 4;
                assert_eq!(opened(&encoded, key.as_ref(), wrong).err().map(|bad| bad.frame), Some(frame));
            }
        }
    }
}

#[test]
fn frames_of_another_place_or_object_are_not_taken() {
    for sealed in [false, true] {
        let plan = plan(policy(2, 1), 4096, false, sealed);
        // Sealed frames hold the same; still, none stands for another one.
        let data = if sealed { content(4096, 1).repeat(8) } else { content(8 * 4096, 1) };
        let data = Bytes::from(data);
        let key = sealed.then(key);
        let make = |id| {
            let object = key.as_ref().map(|key| key.object(id).unwrap());
            encode(std::slice::from_ref(&data), id, &plan, Compression::None, object.as_ref()).unwrap()
        };
        let (mine, other) = (make(ID), make(ObjectId(9)));
        let stream = whole_stream(&mine);
        let size = stream.len() / 8;
        let mut swapped = stream.clone();
        swapped.copy_within(size..2 * size, 0);
        assert_eq!(opened(&mine, key.as_ref(), swapped).err().map(|bad| bad.frame), Some(0));
        if sealed {
            let taken = opened(&mine, key.as_ref(), whole_stream(&other));
            assert_eq!(taken.err().map(|bad| bad.frame), Some(0));
            assert_ne!(stream[..4096], stream[size..size + 4096], "two frames under one nonce");
            assert_ne!(stream, whole_stream(&other), "two objects under one key");
        }
    }
}

#[test]
fn what_is_sealed_shows_nothing_of_what_it_holds() {
    let plan = plan(policy(4, 2), 4096, false, true);
    let pattern = b"a pattern that nobody makes by chance";
    let object = key().object(ID).unwrap();
    let encoded =
        encode(&[pattern.repeat(2000).into()], ID, &plan, Compression::None, Some(&object)).unwrap();
    for fragment in &encoded.fragments {
        assert!(!fragment.windows(8).any(|w| w == &pattern[..8]));
    }
}

#[test]
fn a_small_read_moves_one_frame_and_a_degraded_one_k_slices_of_it() {
    for (zstd, sealed, tag) in [(false, false, 0), (false, true, 16)] {
        let plan = plan(policy(4, 2), 65536, zstd, sealed);
        let key = sealed.then(key);
        let object = key.as_ref().map(|key| key.object(ID).unwrap());
        let data = content(8 << 20, 2);
        let encoded = encode(&[data.into()], ID, &plan, compression(&plan), object.as_ref()).unwrap();
        let frame = 65536 + tag;
        assert_eq!(read(&encoded, &[], key.as_ref(), 1_000_000..1_004_096).1, frame);
        assert_eq!(read(&encoded, &[0], key.as_ref(), 1_000_000..1_004_096).1, 4 * frame);
    }
}

#[test]
fn what_is_aligned_in_an_object_is_so_in_its_fragments_and_small_ones_take_little() {
    let aligned = encode(
        &[content(1 << 20, 1).into()],
        ID,
        &plan(policy(4, 2), 65536, false, false),
        Compression::None,
        None,
    );
    assert_eq!(aligned.unwrap().shape.fragment_len, 256 << 10);
    let small = encode(
        &[content(4096, 1).into()],
        ID,
        &plan(policy(4, 2), 65536, false, false),
        Compression::None,
        None,
    );
    assert_eq!(small.unwrap().shape.fragment_len, 1024);
    let empty = encode(&[], ID, &plan(policy(4, 2), 65536, true, true), Compression::None, None).unwrap();
    assert_eq!((empty.shape.fragment_len, empty.shape.values()), (0, 1));
}

#[test]
fn a_whole_object_in_one_piece_is_not_copied() {
    let data = Bytes::from(content(1 << 20, 1));
    let plan = plan(policy(4, 2), 65536, false, false);
    let encoded = encode(std::slice::from_ref(&data), ID, &plan, Compression::None, None).unwrap();
    for (n, fragment) in encoded.fragments[..4].iter().enumerate() {
        assert_eq!(fragment.as_ptr(), data[n * (256 << 10)..].as_ptr());
    }
    let (part, _) = read(&encoded, &[], None, 70_000..80_000);
    assert_eq!(part.as_ptr(), data[70_000..].as_ptr());
}

#[test]
fn a_header_reads_as_it_was_written_and_a_flipped_bit_is_seen() {
    let plan = plan(policy(4, 2), 4096, true, false);
    let encoded = encode(&[content(100_000, 1).into()], ID, &plan, compression(&plan), None).unwrap();
    let key = FragmentKey { namespace: 7, epoch: 1 << 40, id: ID, fragment: 5, version: 300 };
    let header = FragmentHeader {
        key,
        name: "a/b/c".into(),
        put_at: 12,
        crcs: encoded.crcs.clone(),
        shape: encoded.shape.clone(),
    };
    let bytes = header.encode();
    assert_eq!(FragmentHeader::decode(&bytes).unwrap(), header);
    for at in 0..bytes.len() {
        let mut wrong = bytes.to_vec();
        wrong[at] ^= 16;
        FragmentHeader::decode(&wrong).unwrap_err();
    }
    assert_eq!(FragmentKey::of_header(&key.header()).unwrap(), key);
    assert!(key.header().starts_with(&FragmentKey::headers(7, Some(1 << 40))));
    assert!(FragmentKey::of_header(&key.value(0)).is_err());
}

#[test]
fn too_long_an_object_is_refused() {
    let plan = plan(policy(1, 0), 4096, false, false);
    let parts = vec![Bytes::from(vec![0u8; 1 << 20]); 257];
    let error = encode(&parts, ID, &plan, Compression::None, None).unwrap_err();
    assert!(error.kind == common::ErrorKind::Invalid && error.message().contains("too long"), "{error}");
}
