//! Manifests.

use super::objects::tlog_ref;
use super::*;
use crate::format::cursor::Writer;
use common::crc::crc32c_parts;

fn history(epochs: &[(u64, u64, u64)]) -> Vec<HistoryEntry> {
    let entry = |&(lo, hi, lsn): &(u64, u64, u64)| HistoryEntry {
        epoch_lo: Epoch(lo),
        epoch_hi: Epoch(hi),
        last_lsn: Lsn(lsn),
    };
    epochs.iter().map(entry).collect()
}

/// A Manifest with something in every section.
pub(crate) fn example() -> Manifest {
    let page = ObjectRef { kind: ObjectKind::ListPage, epoch: Epoch(1), number: 4, len: 9999, index_crc: 5 };
    Manifest {
        kind: ManifestKind::Cut,
        volume: VolumeId(0xabcd << 90),
        epoch: Epoch(5),
        number: 12,
        writer: 42,
        prev_crc: 0x1234_5678,
        name: "web-01".into(),
        size: 1 << 40,
        cluster_log2: 12,
        sco_size: 8 << 20,
        created_at: 1_800_000_000,
        deleted_at: 0,
        parent: Some(Parent { volume: VolumeId(9), snapshot: 10, lsn: Lsn(11) }),
        tail: Tail { epoch: Epoch(4), first_sco: 19 },
        tlog_lsn: Lsn(100),
        history: history(&[(1, 1, 10), (2, 3, 70), (4, 4, 120)]),
        head: vec![(Lsn(1), Lsn(40)), (Lsn(60), Lsn(u64::MAX))],
        pages: vec![PageRef { obj: page, count: 2, lsn_lo: Lsn(1), lsn_hi: Lsn(9) }],
        tlogs: vec![tlog_ref(2, (10, 80), (0, u64::MAX)), tlog_ref(3, (81, 100), (0, u64::MAX))],
        snapshots: snapshot_pages(2),
        relocations: 3,
    }
}

fn snapshot_pages(n: u64) -> Vec<SnapshotPageRef> {
    let obj = |number| ObjectRef {
        kind: ObjectKind::SnapshotPage,
        epoch: Epoch(1),
        number,
        len: 5000,
        index_crc: 6,
    };
    (0..n).map(|i| SnapshotPageRef { obj: obj(i), count: 1 + i as u32 }).collect()
}

fn tlogs(n: u64) -> Vec<TLogRef> {
    (1..=n).map(|i| tlog_ref(i, (i * 10, i * 10 + 9), (0, u64::MAX))).collect()
}

proptest! {
    #[test]
    fn a_manifest_comes_back(
        (volume, epoch, number, writer, prev_crc) in any::<(u128, u64, u64, u128, u32)>(),
        (kind, name, clusters) in (1u8..=4, "\\PC{0,50}", 0u64..1 << 34),
        (log2, slots, created_at, deleted_at) in (12u8..=16, 1u32..2048, any::<u64>(), any::<u64>()),
        parent in proptest::option::of(any::<(u128, u128, u64)>()),
        tail in any::<(u64, u64)>(),
        epochs in proptest::collection::vec((1u64..3, 0u64..3, 0u64..5), 0..40),
        ranges in proptest::collection::vec((1u64..9, 0u64..9), 0..5),
        (counts, pages) in ((0u64..4, 0u64..300), 0u64..9),
    ) {
        let (mut last, mut lsn) = (0, 0);
        let epochs: Vec<_> = epochs.into_iter().map(|(gap, len, more)| {
            let lo = last + gap;
            (last, lsn) = (lo + len, lsn + more);
            (lo, last, lsn)
        }).collect();
        let mut at = 0;
        let head = ranges.into_iter().map(|(gap, len)| {
            let lo = at + gap;
            at = lo + len;
            (Lsn(lo), Lsn(at))
        }).collect();
        let kind = ManifestKind::from_u8(kind).unwrap();
        let m = Manifest {
            kind, volume: VolumeId(volume), epoch: Epoch(epoch), number, writer, prev_crc, name,
            size: clusters << log2, cluster_log2: log2, sco_size: slots << log2, created_at,
            deleted_at: if kind == ManifestKind::Deleted { deleted_at } else { 0 },
            parent: parent.map(|(v, snapshot, lsn)| Parent { volume: VolumeId(v), snapshot, lsn: Lsn(lsn) }),
            tail: Tail { epoch: Epoch(tail.0), first_sco: tail.1 },
            tlog_lsn: Lsn(1_000_000),
            history: history(&epochs),
            head,
            pages: (0..counts.0).map(|i| PageRef {
                obj: ObjectRef { kind: ObjectKind::ListPage, epoch: Epoch(1), number: i, len: 1, index_crc: 1 },
                count: 1, lsn_lo: Lsn(i), lsn_hi: Lsn(i),
            }).collect(),
            tlogs: tlogs(counts.1),
            snapshots: snapshot_pages(pages),
            relocations: counts.0,
        };
        let bytes = m.encode().unwrap();
        prop_assert_eq!(bytes.len(), m.encoded_len());
        prop_assert_eq!(Manifest::decode(&bytes).unwrap(), m);
    }

    #[test]
    fn folding_changes_no_limit_above_the_tlogs(
        steps in proptest::collection::vec((1u64..3, 0u64..3), 0..700),
        covered in 0u64..900,
    ) {
        let (mut epoch, mut lsn) = (0, 0);
        let before: Vec<_> = steps.into_iter().map(|(gap, more)| {
            (epoch, lsn) = (epoch + gap, lsn + more);
            (epoch, epoch, lsn)
        }).collect();
        let original = Manifest { tlog_lsn: Lsn(covered), history: history(&before), ..example() };
        let mut folded = original.clone();
        folded.fold_history();
        let above = before.iter().filter(|(_, _, lsn)| *lsn > covered).count();
        prop_assert!(folded.history.len() <= manifest::FOLD_HISTORY.max(above + 1));
        for &(epoch, _, _) in &before {
            let (old, new) = (original.last_lsn(Epoch(epoch)).unwrap(), folded.last_lsn(Epoch(epoch)).unwrap());
            prop_assert!(old == new || (old.0 <= covered && new.0 <= covered), "epoch {}", epoch);
        }
        // Epochs that no one had stay unknown, unless the TLogs cover them.
        for unknown in (1..epoch).filter(|e| before.iter().all(|(known, _, _)| known != e)) {
            let limit = folded.last_lsn(Epoch(unknown));
            prop_assert!(limit.is_none_or(|lsn| lsn.0 <= covered), "epoch {}", unknown);
        }
        prop_assert_eq!(folded.last_lsn(Epoch(epoch + 1)), None);
        prop_assert!(folded.history.windows(2).all(|h| h[0].epoch_hi < h[1].epoch_lo && h[0].last_lsn <= h[1].last_lsn));
    }
}

#[test]
fn damage_to_a_manifest_is_noticed() {
    let bytes = example().encode().unwrap();
    every_flip_is_noticed(&bytes, usize::MAX, Manifest::decode);
    every_cut_is_noticed(&bytes, Manifest::decode);
}

#[test]
fn the_checksum_for_the_successor_sees_every_change() {
    let base = example();
    let crc = |m: &Manifest| manifest::manifest_crc(&m.encode().unwrap());
    let mut all = vec![crc(&base)];
    for bit in 0..32 {
        all.push(crc(&Manifest { writer: base.writer ^ 1 << bit, ..base.clone() }));
        all.push(crc(&Manifest { prev_crc: base.prev_crc ^ 1 << bit, ..base.clone() }));
        all.push(crc(&Manifest { created_at: base.created_at ^ 1 << bit, ..base.clone() }));
    }
    let n = all.len();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), n);
}

#[test]
fn a_manifest_that_is_too_long_tells_how_many_tlogs_to_move() {
    let short = Manifest { pages: Vec::new(), tlogs: tlogs(100), tlog_lsn: Lsn(1_000_000), ..example() };
    assert_eq!(short.excess_tlogs(), 0);
    for n in [700u64, 840, 850, 900, 2000, 5000] {
        let mut m = Manifest { tlogs: tlogs(n), ..short.clone() };
        let excess = m.excess_tlogs();
        match m.encode() {
            Ok(_) => assert_eq!(excess, 0, "{n} TLogs"),
            Err(e) => {
                assert_eq!(e.kind, ErrorKind::Invalid);
                assert!(e.message().contains(&format!("the oldest {excess} of its {n} TLogs")), "{e}");
            }
        }
        // Doing as told is enough, and one less is not.
        for (moved, fits) in [(excess, true), (excess.saturating_sub(1), excess == 0)] {
            let refs: Vec<_> = tlogs(n).drain(..moved).collect();
            m.tlogs = tlogs(n).split_off(moved);
            m.pages = refs
                .chunks(list::MAX_REFS)
                .map(|page| list::encode(&envelope(ObjectKind::ListPage), page).unwrap().1)
                .collect();
            assert_eq!(m.encode().is_ok(), fits, "{moved} of {n} moved");
        }
    }
    assert!(tlogs(5000).len() > 850, "some of the above were too long");
}

/// `m` with a section appended.
fn with_section(m: &Manifest, tag: u16, flags: u16, content: &[u8]) -> Vec<u8> {
    let bytes = m.encode().unwrap();
    let mut index = bytes[BLOCK..bytes.len() - FOOTER_LEN].to_vec();
    let mut w = Writer::default();
    w.u16(tag).u16(flags).u32(content.len() as u32).u64(0);
    let crc = crc32c_parts(&[&w.buf, content]);
    w.buf[8..12].copy_from_slice(&crc.to_le_bytes());
    w.bytes(content);
    index.extend_from_slice(&w.buf);
    envelope::assemble(&m.envelope(), &[], 0, |_| {}, &index).unwrap().0.to_vec()
}

#[test]
fn a_section_of_a_later_version_is_skipped_or_refused_as_it_says() {
    let m = example();
    assert_eq!(Manifest::decode(&with_section(&m, 40, 0, b"news")).unwrap(), m);
    let error = Manifest::decode(&with_section(&m, 40, 1, b"news")).unwrap_err();
    assert_eq!(
        (error.kind, error.message().contains("section 40")),
        (ErrorKind::Unsupported, true),
        "{error}"
    );
    // A section of ours again is neither.
    let error = Manifest::decode(&with_section(&m, 2, 1, b"name")).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Corrupt, "{error}");
}

#[test]
fn each_section_is_checked_by_itself() {
    let mut bytes = example().encode().unwrap().to_vec();
    let name = bytes.windows(6).position(|w| w == b"web-01").unwrap();
    bytes[name] = b'W';
    let error = Manifest::decode(&envelope::with_checksums(&bytes)).unwrap_err();
    assert!(error.message().starts_with("Manifest 5/12: section 2 checksum is "), "{error}");
}

#[test]
fn a_manifest_that_contradicts_itself_is_neither_written_nor_read() {
    type Change = fn(&mut Manifest);
    let changes: [(&str, Change); 16] = [
        ("cluster", |m| m.cluster_log2 = 17),
        ("size", |m| m.size += 512),
        ("no SCO size", |m| m.sco_size = 0),
        ("odd SCO size", |m| m.sco_size = 4097),
        ("long name", |m| m.name = "x".repeat(256)),
        ("deleted and not", |m| m.deleted_at = 1),
        ("history order", |m| m.history.swap(0, 1)),
        ("history LSN falls", |m| m.history[2].last_lsn = Lsn(69)),
        ("history range", |m| m.history[0].epoch_hi = Epoch(0)),
        ("head order", |m| m.head.swap(0, 1)),
        ("head range", |m| m.head[0].0 = Lsn(41)),
        ("TLog beyond the end", |m| m.tlog_lsn = Lsn(99)),
        ("TLogs overlap", |m| m.tlogs[1].lsn_lo = Lsn(80)),
        ("not a TLog", |m| m.tlogs[1].obj.kind = ObjectKind::LogSco),
        ("not a page", |m| m.pages[0].obj.kind = ObjectKind::TLog),
        ("page behind a TLog", |m| m.pages[0] = PageRef { lsn_lo: Lsn(11), lsn_hi: Lsn(12), ..m.pages[0] }),
    ];
    for (what, change) in changes {
        let mut bad = example();
        change(&mut bad);
        let error = bad.encode().expect_err(what);
        assert_eq!(error.kind, ErrorKind::Internal, "{what}: {error}");
        let written = bad.encode_unchecked().unwrap();
        let error = Manifest::decode(&written).expect_err(what);
        assert_eq!(error.kind, ErrorKind::Corrupt, "{what}: {error}");
    }
}

#[test]
fn the_history_answers_by_epoch() {
    let m = example();
    let limits: Vec<_> = (0..6).map(|e| m.last_lsn(Epoch(e)).map(|l| l.0)).collect();
    assert_eq!(limits, [None, Some(10), Some(70), Some(70), Some(120), None]);
}
