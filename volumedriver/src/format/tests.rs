//! What every codec promises: it gives back what was put in, notices every flipped bit and every
//! missing byte, and survives any input.

pub(crate) mod manifests;
pub(crate) mod objects;
pub(crate) mod scos;
pub(crate) mod tlogs;

use super::*;
use common::{Epoch, ErrorKind, Lsn, VolumeId};
use proptest::prelude::*;

/// An envelope of `kind` like any other.
pub(super) fn envelope(kind: ObjectKind) -> Envelope {
    Envelope {
        kind,
        volume: VolumeId(0x1234_5678_9abc_def0_0fed_cba9_8765_4321),
        epoch: Epoch(3),
        number: 7,
        writer: 0xdead_beef,
        compat: 0,
    }
}

pub(super) fn any_envelope(kind: ObjectKind) -> impl Strategy<Value = Envelope> {
    any::<(u128, u64, u64, u128, u64)>().prop_map(move |(volume, epoch, number, writer, compat)| Envelope {
        kind,
        volume: VolumeId(volume),
        epoch: Epoch(epoch),
        number,
        writer,
        compat,
    })
}

/// Every bit of `bytes` flipped, one at a time (or `sample` of them, spread): `decode` must refuse.
pub(super) fn every_flip_is_noticed<T>(
    bytes: &[u8],
    sample: usize,
    decode: impl Fn(&[u8]) -> common::Result<T>,
) {
    let bits = bytes.len() * 8;
    let step = (bits / sample).max(1) | 1;
    let mut copy = bytes.to_vec();
    for bit in (0..bits).step_by(step) {
        copy[bit / 8] ^= 1 << (bit % 8);
        let result = decode(&copy);
        assert!(result.is_err(), "a flip of bit {} of byte {} went unnoticed", bit % 8, bit / 8);
        let error = result.err().map(|e| e.kind);
        assert_eq!(error, Some(ErrorKind::Corrupt), "bit {} of byte {}", bit % 8, bit / 8);
        copy[bit / 8] ^= 1 << (bit % 8);
    }
    assert!(decode(&copy).is_ok());
}

/// Every shorter and a longer version of `bytes` must be refused.
pub(super) fn every_cut_is_noticed<T>(bytes: &[u8], decode: impl Fn(&[u8]) -> common::Result<T>) {
    let step = (bytes.len() / 700).max(1);
    let edges = (0..bytes.len().min(200)).chain(bytes.len().saturating_sub(200)..bytes.len());
    for len in (0..bytes.len()).step_by(step).chain(edges) {
        assert!(
            decode(&bytes[..len]).is_err(),
            "only {len} of {} bytes, and that went unnoticed",
            bytes.len()
        );
    }
    let mut longer = bytes.to_vec();
    longer.push(0);
    assert!(decode(&longer).is_err(), "one byte more went unnoticed");
}

/// Arbitrary bytes, and arbitrary changes to a valid object, for the fuzz functions.
fn all_fuzzers(data: &[u8]) {
    envelope::fuzz(data);
    keys::fuzz(data);
    pool::fuzz(data);
    sco::fuzz(data);
    tlog::fuzz(data);
    list::fuzz(data);
    manifest::fuzz(data);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn random_bytes_never_panic(data in proptest::collection::vec(any::<u8>(), 0..9000)) {
        all_fuzzers(&data);
    }

    #[test]
    fn small_numbers_never_panic(data in proptest::collection::vec(0u8..4, 0..600)) {
        all_fuzzers(&data);
    }

    /// Headers, indexes and sections of valid objects with some bytes changed and right
    /// checksums: what stands behind the checksums must hold by itself.
    #[test]
    fn changed_objects_with_right_checksums_never_panic(
        which in 0usize..4,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let whole = match which {
            0 => scos::example().0,
            1 => tlogs::example().0,
            2 => manifests::example().encode().map_err(|e| TestCaseError::fail(e.to_string()))?,
            _ => objects::example_page().0,
        };
        let footer = Footer::decode(&whole, whole.len() as u64).map_err(|e| TestCaseError::fail(e.to_string()))?;
        let (_, body) = Envelope::decode(&whole).map_err(|e| TestCaseError::fail(e.to_string()))?;
        // As the fuzz functions of SCO and TLog take it: body, then index (or block).
        let mut data = body.to_vec();
        let index_off = footer.index_off as usize;
        if which == 1 {
            data.extend_from_slice(&whole[BLOCK..index_off]);
        }
        data.extend_from_slice(&whole[index_off..index_off + footer.index_len as usize]);
        for (at, value) in changes {
            let at = at.index(data.len());
            data[at] = value;
        }
        all_fuzzers(&data);
    }
}

#[test]
fn a_count_that_the_input_could_not_hold_is_refused_before_anything_is_allocated() {
    let count = |n: u32, rest: usize, max: usize| {
        let bytes = [&n.to_le_bytes()[..], &vec![0; rest]].concat();
        cursor::Reader::new(&"x", &bytes).count("things", 32, max)
    };
    assert_eq!(count(3, 96, 3).unwrap(), 3);
    assert!(count(3, 95, 3).unwrap_err().message().contains("do not fit the 95 bytes"));
    assert!(count(u32::MAX, 96, usize::MAX).unwrap_err().message().contains("do not fit"));
    assert!(count(4, 1000, 3).unwrap_err().message().contains("more than the limit of 3"));
}

#[test]
fn lsn_zero_is_no_part_of_a_log() {
    assert!(sco::check_lsns(&"x", Lsn(0), Lsn(1)).is_err());
    assert!(sco::check_lsns(&"x", Lsn(2), Lsn(1)).is_err());
    assert!(sco::check_lsns(&"x", Lsn(1), Lsn(1)).is_ok());
}
