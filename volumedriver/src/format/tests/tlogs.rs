//! TLogs.

use super::*;
use crate::format::sco::FIRST_RELOC;
use crate::format::tlog::NO_DICT;
use crate::log::Kind;
use bytes::Bytes;

/// A TLog from (gap, count, kind, LSN, object, slot) of each entry.
fn build(entries: &[(u64, u64, Kind, u64, u32, u32)]) -> TLog {
    let dict = (1..=3).map(|n| DictEntry {
        kind: if n == 3 { ObjectKind::RelocSco } else { ObjectKind::LogSco },
        id: ScoId { epoch: Epoch(1), number: if n == 3 { FIRST_RELOC + n } else { n } },
        len: n * 10_000,
        live_upper_bound: 500 - n as u32,
    });
    let mut tlog = TLog {
        lsn_lo: Lsn(1),
        lsn_hi: Lsn(1000),
        addr_lo: 0,
        addr_hi: u64::MAX,
        dict: dict.collect(),
        entries: Vec::new(),
        crcs: Vec::new(),
    };
    let mut addr = 0;
    for &(gap, count, kind, lsn, dict, slot) in entries {
        addr += gap;
        let (dict, slot) = if kind == Kind::Data { (dict, slot) } else { (NO_DICT, 0) };
        if kind == Kind::Data {
            tlog.crcs.extend((0..count).map(|i| (addr + i) as u32 ^ 0x5555_0000));
        }
        tlog.entries.push(TLogEntry { addr, count, lsn: Lsn(lsn), kind, dict, slot });
        addr += count;
    }
    tlog
}

/// Several blocks, one entry longer than two blocks.
pub(crate) fn example() -> (Bytes, TLog) {
    let mut entries = vec![(7, 3, Kind::Data, 1, 0, 9), (0, 1 << 34, Kind::Discard, 2, 0, 0)];
    entries.push((1, 9000, Kind::Data, 3, 1, 0));
    entries.extend((0..900).map(|i| (i % 3, 1 + i % 2, Kind::Data, 4 + i, (i % 3) as u32, i as u32)));
    entries.push((5, 8, Kind::Zero, 999, 0, 0));
    let tlog = build(&entries);
    (tlog::encode(&envelope(ObjectKind::TLog), &tlog).unwrap().0, tlog)
}

fn entries() -> impl Strategy<Value = Vec<(u64, u64, Kind, u64, u32, u32)>> {
    let kind = prop_oneof![4 => Just(Kind::Data), 1 => Just(Kind::Zero), 1 => Just(Kind::Discard)];
    let count = prop_oneof![20 => 1u64..5, 3 => 1u64..1000, 1 => 4000u64..20_000];
    proptest::collection::vec((0u64..9, count, kind, 1u64..=1000, 0u32..3, 0u32..40_000), 0..300)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_tlog_comes_back_whole_and_by_block(e in any_envelope(ObjectKind::TLog), entries in entries()) {
        let tlog = build(&entries);
        let (bytes, obj) = tlog::encode(&e, &tlog).unwrap();
        prop_assert_eq!(tlog::decode(&bytes).unwrap(), (e, tlog.clone()));

        let (head, header) = tlog::decode_head(&bytes[..BLOCK]).unwrap();
        let footer = tlog::decode_footer(&bytes[bytes.len() - 100..], bytes.len() as u64).unwrap();
        obj.check(e.volume, &head, &footer).unwrap();
        let range = footer.index_off as usize..(footer.index_off + footer.index_len) as usize;
        let index = tlog::decode_index(&head, &header, &footer, &bytes[range]).unwrap();
        prop_assert_eq!(&index.dict, &tlog.dict);
        let block = |i: usize| {
            let b = index.blocks[i];
            let bytes = &bytes[b.off as usize..][..b.len as usize];
            assert!(bytes.len() <= tlog::BLOCK_MAX);
            tlog::decode_block(&head, &header, &index, i, bytes).unwrap()
        };
        // The first and last address of each entry, through the one block that may hold them.
        for e in &tlog.entries {
            for addr in [e.addr, e.addr + e.count - 1] {
                let (found, crcs) = block(index.find(addr).unwrap());
                let i = found.iter().position(|f| f.addr <= addr && addr < f.addr + f.count).unwrap();
                let f = found[i];
                prop_assert_eq!((f.lsn, f.kind, f.dict), (e.lsn, e.kind, e.dict));
                if e.kind == Kind::Data {
                    prop_assert_eq!(u64::from(f.slot) + addr - f.addr, u64::from(e.slot) + addr - e.addr);
                    let before: u64 = found[..i].iter().filter(|f| f.kind == Kind::Data).map(|f| f.count).sum();
                    prop_assert_eq!(crcs[(before + addr - f.addr) as usize], addr as u32 ^ 0x5555_0000);
                }
            }
        }
    }
}

#[test]
fn damage_to_a_tlog_is_noticed() {
    let (bytes, _) = example();
    every_flip_is_noticed(&bytes, 20_000, tlog::decode);
    every_cut_is_noticed(&bytes, tlog::decode);
    let small = build(&[(1, 2, Kind::Data, 1, 0, 0), (0, 5, Kind::Zero, 2, 0, 0)]);
    let (small, _) = tlog::encode(&envelope(ObjectKind::TLog), &small).unwrap();
    every_flip_is_noticed(&small, usize::MAX, tlog::decode);
}

#[test]
fn a_block_in_the_place_of_another_is_noticed() {
    let (bytes, _) = example();
    let (e, header) = tlog::decode_head(&bytes).unwrap();
    let footer = tlog::decode_footer(&bytes, bytes.len() as u64).unwrap();
    let range = footer.index_off as usize..(footer.index_off + footer.index_len) as usize;
    let index = tlog::decode_index(&e, &header, &footer, &bytes[range]).unwrap();
    assert!(index.blocks.len() > 3, "{} blocks", index.blocks.len());
    let of = |i: usize| &bytes[index.blocks[i].off as usize..][..index.blocks[i].len as usize];
    tlog::decode_block(&e, &header, &index, 1, of(1)).unwrap();
    assert!(tlog::decode_block(&e, &header, &index, 1, of(2)).is_err());
    assert!(tlog::decode_block(&e, &header, &index, 99, of(2)).is_err());
    let mut flipped = of(1).to_vec();
    flipped[3] ^= 1;
    let error = tlog::decode_block(&e, &header, &index, 1, &flipped).unwrap_err();
    assert!(error.message().starts_with("TLog 3/7: block 1 checksum is "), "{error}");
}

#[test]
fn a_piece_that_does_not_go_on_where_the_one_before_ended_is_noticed() {
    let e = envelope(ObjectKind::TLog);
    let (bytes, _) = tlog::encode(&e, &build(&[(9, 5000, Kind::Data, 3, 1, 0)])).unwrap();
    let (head, header) = tlog::decode_head(&bytes).unwrap();
    let footer = tlog::decode_footer(&bytes, bytes.len() as u64).unwrap();
    let at = footer.index_off as usize;
    let index = tlog::decode_index(&head, &header, &footer, &bytes[at..bytes.len() - FOOTER_LEN]).unwrap();
    let piece = index.blocks[1];
    // LSN, object, slot of the second piece; and the flag itself.
    for (field, what) in [(16, "LSN"), (28, "object"), (26, "slot"), (25, "flag")] {
        let mut bad = bytes.to_vec();
        let off = piece.off as usize;
        bad[off + field] ^= 1;
        let crc = common::crc::crc32c(&bad[off..off + piece.len as usize]);
        bad[at + 16 + 32 + 20..][..4].copy_from_slice(&crc.to_le_bytes());
        let error = tlog::decode(&envelope::with_checksums(&bad)).expect_err(what);
        assert_eq!(error.kind, ErrorKind::Corrupt, "{what}: {error}");
        assert!(!error.message().contains("checksum"), "{what}: {error}");
    }
}

#[test]
fn the_reference_changes_with_the_content() {
    let (_, tlog) = example();
    let e = envelope(ObjectKind::TLog);
    let (_, before) = tlog::encode(&e, &tlog).unwrap();
    let mut other = tlog;
    other.crcs[5000] ^= 1;
    let (_, after) = tlog::encode(&e, &other).unwrap();
    assert_ne!(before.index_crc, after.index_crc);
}

#[test]
fn a_map_that_contradicts_itself_is_neither_written_nor_read() {
    let good = build(&[(5, 2, Kind::Data, 10, 0, 1), (3, 2, Kind::Zero, 11, 0, 0)]);
    let e = envelope(ObjectKind::TLog);
    tlog::encode(&e, &good).unwrap();
    type Change = fn(&mut TLog);
    let changes: [(&str, Change); 15] = [
        ("overlap", |t| t.entries[1].addr = 6),
        ("empty range", |t| t.entries[1].count = 0),
        ("beyond the last address", |t| t.entries[1].count = u64::MAX),
        ("LSN outside", |t| t.lsn_hi = Lsn(10)),
        ("LSN range", |t| t.lsn_lo = Lsn(0)),
        ("address below", |t| t.addr_lo = 6),
        ("address above", |t| t.addr_hi = 11),
        ("no such object", |t| t.entries[0].dict = 3),
        ("object without data", |t| t.entries[1].dict = 0),
        ("slot without data", |t| t.entries[1].slot = 1),
        ("slot beyond 16 bits", |t| t.entries[0].slot = 65_535),
        ("checksum missing", |t| {
            t.crcs.pop();
        }),
        ("not part of a map", |t| t.entries[1].kind = Kind::Resize),
        ("an object twice", |t| t.dict[1] = t.dict[0]),
        ("not a SCO", |t| t.dict[1].kind = ObjectKind::TLog),
    ];
    for (what, change) in changes {
        let mut bad = good.clone();
        change(&mut bad);
        let error = tlog::encode(&e, &bad).expect_err(what);
        assert_eq!(error.kind, ErrorKind::Internal, "{what}: {error}");
        let (written, _) = tlog::encode_unchecked(&e, &bad).unwrap();
        tlog::decode(&written).expect_err(what);
    }
    assert!(tlog::encode(&envelope(ObjectKind::LogSco), &good).is_err());
}

#[test]
fn an_empty_part_is_a_tlog() {
    let part = TLog { addr_lo: 5, addr_hi: 6, dict: Vec::new(), ..build(&[]) };
    let (bytes, _) = tlog::encode(&envelope(ObjectKind::TLog), &part).unwrap();
    assert_eq!(tlog::decode(&bytes).unwrap().1, part);
}
