//! SCOs.

use super::*;
use crate::log::{Kind, cluster_crcs};
use bytes::Bytes;

const CLUSTER: usize = 4096;

fn entry(addr: u64, count: u64, lsn: u64, kind: Kind, slot: u32) -> MapEntry {
    MapEntry { addr, count, lsn: Lsn(lsn), kind, slot }
}

/// What a SCO is made of, given (gap before, count, kind, LSN, content byte) of each range.
fn build(
    e: &Envelope,
    ranges: &[(u64, u64, Kind, u64, u8)],
    markers: &[(Kind, u64, u64)],
) -> (ScoHeader, ScoIndex, Vec<Bytes>) {
    let (mut index, mut clusters, mut addr) = (ScoIndex::default(), Vec::new(), 0);
    for &(gap, count, kind, lsn, byte) in ranges {
        addr += gap;
        let slot = if kind == Kind::Data { index.crcs.len() as u32 } else { 0 };
        if kind == Kind::Data {
            let data: Vec<u8> = (0..count as usize * CLUSTER).map(|i| byte ^ (i / 7) as u8).collect();
            index.crcs.extend(cluster_crcs(e.volume, addr, &data, CLUSTER));
            clusters.push(Bytes::from(data));
        }
        index.entries.push(entry(addr, count, lsn, kind, slot));
        addr += count;
    }
    for &(kind, addr, lsn) in markers {
        let (mut count, mut slot) = (0, 0);
        if kind == Kind::Snapshot {
            let about = Description { id: 77, name: "monday".into(), ..Description::default() };
            let data = about.encode_marker(CLUSTER).unwrap();
            (count, slot) = (1, index.crcs.len() as u32);
            index.crcs.extend(cluster_crcs(e.volume, 0, &data, CLUSTER));
            clusters.push(data);
        }
        index.entries.push(entry(addr, count, lsn, kind, slot));
    }
    let header =
        ScoHeader { lsn_lo: Lsn(1), lsn_hi: Lsn(1000), committed_sco: 4, cluster_log2: 12, codec: 0 };
    (header, index, clusters)
}

/// A SCO with every kind of entry.
pub(crate) fn example() -> (Bytes, Envelope) {
    let e = envelope(ObjectKind::LogSco);
    let ranges = [
        (5, 2, Kind::Data, 10, 1),
        (0, 1, Kind::Data, 9, 2),
        (100, 1 << 33, Kind::Discard, 11, 0),
        (0, 3, Kind::Zero, 12, 0),
        (1, 1, Kind::Data, 13, 3),
    ];
    let markers = [(Kind::Resize, 1 << 40, 14), (Kind::Snapshot, 0, 15), (Kind::Rollback, 3, 16)];
    let (header, index, clusters) = build(&e, &ranges, &markers);
    (Bytes::from(sco::encode(&e, &header, &index, clusters).unwrap().concat()), e)
}

/// Decodes and verifies everything.
fn verified(bytes: &[u8]) -> common::Result<Sco> {
    let sco = sco::decode(&Bytes::copy_from_slice(bytes))?;
    sco.verify_clusters()?;
    Ok(sco)
}

fn kinds() -> impl Strategy<Value = Kind> {
    prop_oneof![3 => Just(Kind::Data), 1 => Just(Kind::Zero), 1 => Just(Kind::Discard)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_sco_comes_back(
        e in any_envelope(ObjectKind::RelocSco),
        ranges in proptest::collection::vec((0u64..1000, 1u64..4, kinds(), 1u64..=1000, any::<u8>()), 0..40),
        resizes in proptest::collection::btree_map(1u64..=1000, any::<u64>(), 0..4),
    ) {
        let markers: Vec<_> = resizes.into_iter().map(|(lsn, size)| (Kind::Resize, size, lsn)).collect();
        let (header, index, clusters) = build(&e, &ranges, &markers);
        let bytes = Bytes::from(sco::encode(&e, &header, &index, clusters.clone()).unwrap().concat());
        let sco = verified(&bytes).unwrap();
        let content: Vec<u8> = clusters.concat();
        for slot in 0..index.crcs.len() {
            let at = sco::cluster_offset(slot as u32, CLUSTER as u32) as usize;
            prop_assert_eq!(&sco.cluster(slot as u32).unwrap()[..], &content[slot * CLUSTER..][..CLUSTER]);
            prop_assert_eq!(&bytes[at..at + CLUSTER], &content[slot * CLUSTER..][..CLUSTER]);
        }
        prop_assert_eq!(sco.cluster(index.crcs.len() as u32), None);
        prop_assert_eq!((sco.envelope, sco.header, &sco.index), (e, header, &index));

        // Piece by piece, as it is read over the network.
        let (e2, h2) = sco::decode_head(&bytes[..BLOCK]).unwrap();
        let footer = sco::decode_footer(&bytes[bytes.len() - FOOTER_LEN..], bytes.len() as u64).unwrap();
        let range = footer.index_off as usize..(footer.index_off + footer.index_len) as usize;
        prop_assert_eq!(sco::decode_index(&e2, &h2, &footer, &bytes[range]).unwrap(), index);
        sco.object_ref().check(e.volume, &e2, &footer).unwrap();
    }
}

#[test]
fn damage_to_a_sco_is_noticed() {
    let (bytes, _) = example();
    every_flip_is_noticed(&bytes, 6000, verified);
    every_cut_is_noticed(&bytes, verified);
}

#[test]
fn every_flip_in_head_and_tail_is_noticed() {
    let (bytes, _) = example();
    let tail = bytes.len() - FOOTER_LEN;
    every_flip_is_noticed(&bytes[..BLOCK], usize::MAX, sco::decode_head);
    every_flip_is_noticed(&bytes[tail..], usize::MAX, |b| sco::decode_footer(b, bytes.len() as u64));
    assert!(sco::decode_footer(&bytes[tail..], bytes.len() as u64 - 1).is_err());
}

#[test]
fn a_flipped_bit_in_a_cluster_is_told_with_slot_and_address() {
    let (bytes, _) = example();
    let mut copy = bytes.to_vec();
    copy[BLOCK + 2 * CLUSTER + 17] ^= 4;
    let sco = sco::decode(&Bytes::from(copy)).unwrap();
    let error = sco.verify_clusters().unwrap_err();
    assert!(
        error.message().starts_with("SCO 3/7: the cluster in slot 2 (address 7): checksum is"),
        "{error}"
    );
    sco.verify_cluster(5, 0).unwrap();
    assert!(sco.verify_cluster(6, 0).is_err(), "right bytes for the wrong address");
}

#[test]
fn a_wrong_index_checksum_is_told_by_name() {
    let (bytes, _) = example();
    let footer = Footer::decode(&bytes, bytes.len() as u64).unwrap();
    let mut copy = bytes.to_vec();
    copy[footer.index_off as usize + 20] ^= 1;
    let error = sco::decode(&Bytes::from(copy)).unwrap_err();
    let text = error.message();
    assert!(text.starts_with("SCO 3/7: index checksum is ") && text.contains(", should be "), "{text}");
}

#[test]
fn an_index_that_contradicts_itself_is_neither_written_nor_read() {
    let e = envelope(ObjectKind::LogSco);
    let ranges = [(5, 2, Kind::Data, 10, 1), (3, 2, Kind::Zero, 11, 0), (0, 1, Kind::Data, 12, 3)];
    let (header, good, clusters) = build(&e, &ranges, &[(Kind::Resize, 8192, 14), (Kind::Resize, 4096, 15)]);
    sco::encode(&e, &header, &good, clusters.clone()).unwrap();
    type Change = fn(&mut ScoIndex);
    let changes: [(&str, Change); 13] = [
        ("overlap", |x| x.entries[1].addr = 6),
        ("order", |x| x.entries.swap(0, 1)),
        ("empty range", |x| x.entries[1].count = 0),
        ("beyond the last address", |x| x.entries[1].count = u64::MAX),
        ("LSN above the range", |x| x.entries[0].lsn = Lsn(1001)),
        ("LSN below the range", |x| x.entries[0].lsn = Lsn(0)),
        ("slot not dense", |x| x.entries[2].slot = 3),
        ("slots beyond the clusters", |x| x.entries[2].count = 2),
        ("slot without data", |x| x.entries[1].slot = 1),
        ("cluster without entry", |x| {
            x.entries.remove(2);
        }),
        ("checksum missing", |x| {
            x.crcs.pop();
        }),
        ("count without range", |x| x.entries[3].count = 1),
        ("marker before its predecessor", |x| x.entries.swap(3, 4)),
    ];
    for (what, change) in changes {
        let mut bad = good.clone();
        change(&mut bad);
        let error = sco::encode(&e, &header, &bad, clusters.clone()).expect_err(what);
        assert_eq!(error.kind, ErrorKind::Internal, "{what}: {error}");
        let written =
            Bytes::from(sco::encode_unchecked(&e, &header, &bad, clusters.clone()).unwrap().concat());
        let error = sco::decode(&written).expect_err(what);
        assert_eq!(error.kind, ErrorKind::Corrupt, "{what}: {error}");
    }
    let marker_first =
        ScoIndex { entries: [&good.entries[3..4], &good.entries[..3]].concat(), ..good.clone() };
    assert!(sco::encode(&e, &header, &marker_first, clusters.clone()).is_err());
    for bad in [
        ScoHeader { lsn_lo: Lsn(0), ..header },
        ScoHeader { lsn_hi: Lsn(0), ..header },
        ScoHeader { cluster_log2: 13, ..header },
        ScoHeader { cluster_log2: 40, ..header },
        ScoHeader { codec: 1, ..header },
    ] {
        assert!(sco::encode(&e, &bad, &good, clusters.clone()).is_err(), "{bad:?}");
        let written = Bytes::from(sco::encode_unchecked(&e, &bad, &good, clusters.clone()).unwrap().concat());
        assert!(sco::decode(&written).is_err(), "{bad:?}");
    }
    assert!(sco::encode(&envelope(ObjectKind::TLog), &header, &good, clusters.clone()).is_err());
    assert!(sco::encode(&e, &header, &good, vec![clusters[0].clone()]).is_err(), "a cluster is missing");
    let odd = clusters[0].slice(1..);
    assert!(sco::encode(&e, &header, &good, vec![odd, clusters[1].clone()]).is_err(), "not whole clusters");
}
