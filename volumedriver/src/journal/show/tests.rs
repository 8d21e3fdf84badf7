//! What people are told about a segment.

use super::record::Place;
use super::*;
use crate::inspect::examine;
use crate::log::{LogEntry, cluster_crcs};
use bytes::BytesMut;
use common::{Epoch, Lsn, VolumeId};

const ALIGN: u64 = 512;

fn entry(lsn: u64, kind: Kind) -> LogEntry {
    let volume = VolumeId(9);
    let data = if kind == Kind::Data { Bytes::from(vec![lsn as u8; 8192]) } else { Bytes::new() };
    let crcs = cluster_crcs(volume, lsn * 10, &data, 4096);
    LogEntry { volume, epoch: Epoch(4), lsn: Lsn(lsn), kind, addr: lsn * 10, count: 2, data, crcs }
}

/// A segment with `n` records of two entries each, and where each begins. Each record says that all
/// before it were durable.
fn segment(n: u64) -> (Vec<u8>, Vec<usize>) {
    let mut header = SegmentHeader {
        device: 1,
        process: 2,
        segno: 3,
        life: 5,
        size: 0,
        align: ALIGN as u32,
        durable: Position { segno: 2, life: 4, offset: 9000 },
        cuts: vec![],
    };
    let size = 1 << 20;
    header.size = size;
    let mut bytes = header.encode().to_vec();
    let (mut prev_crc, mut begins) = (0, Vec::new());
    for i in 0..n {
        let at = Position { segno: 3, life: 5, offset: bytes.len() as u64 };
        let entries = [entry(2 * i + 1, Kind::Data), entry(2 * i + 2, Kind::Discard)];
        let mut buf = BytesMut::new();
        let place = Place { process: 2, at, durable: at, prev_crc };
        prev_crc = record::encode(&mut buf, &place, false, entries.iter(), false);
        begins.push(bytes.len());
        bytes.extend_from_slice(&buf);
        entries.iter().for_each(|e| bytes.extend_from_slice(&e.data));
        bytes.resize(bytes.len().next_multiple_of(ALIGN as usize), 0);
    }
    bytes.resize(size as usize, 0);
    (bytes, begins)
}

const NAME: &str = "/var/journal/0000000000000003";

fn problems(bytes: &[u8]) -> Vec<String> {
    examine(NAME, &Bytes::copy_from_slice(bytes)).unwrap().problems
}

#[test]
fn a_whole_segment_is_told_entry_by_entry() {
    let (bytes, begins) = segment(3);
    let report = examine(NAME, &Bytes::from(bytes)).unwrap();
    assert_eq!(report.problems, Vec::<String>::new());
    for line in [
        "  segment        0000000000000003\n",
        &format!("  record at {}: 2 entries", begins[2]),
        "    data     volume 00000000000000000000000000000009 epoch 4 LSN 5 addresses 50 to 51 (2)\n",
        "    discard  volume 00000000000000000000000000000009 epoch 4 LSN 6 addresses 60 to 61 (2)\n",
        "  entries        6\n",
        "verdict: all is well",
    ] {
        assert!(report.text.contains(line), "{line} is not in\n{}", report.text);
    }
}

#[test]
fn a_torn_end_is_no_problem_but_damage_before_valid_records_is() {
    let (mut bytes, begins) = segment(3);
    bytes[begins[2] + 90] ^= 1;
    assert_eq!(problems(&bytes), Vec::<String>::new(), "nobody said that the last record was durable");
    bytes[begins[1] + 90] ^= 1;
    assert_eq!(problems(&bytes), Vec::<String>::new(), "nor that the one before was");
    let (mut bytes, begins) = segment(3);
    bytes[begins[1] + 90] ^= 1;
    let told = problems(&bytes);
    let words =
        format!("at {}: the header's checksum is wrong; valid records go on at {}", begins[1], begins[2]);
    assert!(told.len() == 1 && told[0].starts_with(&words), "{told:?}");
}

#[test]
fn a_flipped_bit_in_a_payload_is_told_with_its_address() {
    let (mut bytes, begins) = segment(2);
    let header = record::decode(&bytes[begins[1]..]).unwrap().header_len;
    bytes[begins[1] + header + 5000] ^= 8;
    let told = problems(&bytes);
    assert!(
        told.len() == 1 && told[0].contains("LSN 3 of volume") && told[0].contains("address 31"),
        "{told:?}"
    );
}

#[test]
fn a_damaged_header_or_another_name_is_told_and_records_are_still_shown() {
    let (mut bytes, _) = segment(2);
    let report = examine("/var/journal/0000000000000004", &Bytes::from(bytes.clone())).unwrap();
    assert!(report.problems[0].contains("it is segment 0000000000000003"), "{:?}", report.problems);
    bytes[50] ^= 1;
    let report = examine(NAME, &Bytes::from(bytes)).unwrap();
    assert_eq!(report.problems.len(), 1, "{:?}", report.problems);
    assert!(report.text.contains("  entries        4\n"), "{}", report.text);
}

#[test]
fn a_segment_cut_off_anywhere_is_told_as_such() {
    let (bytes, begins) = segment(3);
    for len in [5, 4095, 4096, begins[1] + 20, begins[2] + 3000, bytes.len() - 1] {
        let told = problems(&bytes[..len]);
        assert!(!told.is_empty(), "cut at {len}");
    }
}

#[test]
fn what_an_earlier_life_left_behind_is_not_shown() {
    let (mut bytes, _) = segment(4);
    // All records are of life 5, the header begins life 6.
    let mut header = SegmentHeader::decode(&bytes[..4096]).unwrap();
    header.life = 6;
    bytes[..4096].copy_from_slice(&header.encode());
    let report = examine(NAME, &Bytes::from(bytes)).unwrap();
    assert!(report.text.contains("  entries        0\n"), "{}", report.text);
    assert!(report.text.contains("the record is of another life"), "{}", report.text);
}
