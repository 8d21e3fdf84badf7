//! Envelope, footer, names, the `vpool` object, list pages.

use super::*;
use crate::format::cursor::Writer;
use bytes::Bytes;
use common::crc::crc32c_parts;

/// The block with `change` made and its checksum right again.
fn resealed(block: &[u8], change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut block = block.to_vec();
    change(&mut block);
    let crc = crc32c_parts(&[&block[..12], &[0; 4], &block[16..]]);
    block[12..16].copy_from_slice(&crc.to_le_bytes());
    block
}

pub(super) fn tlog_ref(number: u64, lsns: (u64, u64), addrs: (u64, u64)) -> TLogRef {
    TLogRef {
        obj: ObjectRef { kind: ObjectKind::TLog, epoch: Epoch(2), number, len: 9000 + number, index_crc: 77 },
        lsn_lo: Lsn(lsns.0),
        lsn_hi: Lsn(lsns.1),
        addr_lo: addrs.0,
        addr_hi: addrs.1,
        sco_bytes: number << 20,
    }
}

/// A page of three TLogs.
pub(crate) fn example_page() -> (Bytes, PageRef) {
    let refs = [
        tlog_ref(1, (1, 50), (0, 1000)),
        tlog_ref(2, (1, 50), (1000, u64::MAX)),
        tlog_ref(3, (51, 51), (0, u64::MAX)),
    ];
    list::encode(&envelope(ObjectKind::ListPage), &refs).unwrap()
}

proptest! {
    #[test]
    fn an_envelope_comes_back(e in any_envelope(ObjectKind::TLog), body in proptest::collection::vec(any::<u8>(), 0..=3072)) {
        let block = e.encode(&body).unwrap();
        prop_assert_eq!(block.len(), BLOCK);
        prop_assert_eq!(Envelope::decode(&block).unwrap(), (e, &body[..]));
    }

    #[test]
    fn a_vpool_object_comes_back(id: u128, name in "\\PC{0,60}", log2 in 12u8..=16, created: u64, writer: u128) {
        let pool = PoolObject { id, name, cluster_log2: log2, created };
        prop_assert_eq!(PoolObject::decode(&pool.encode(writer).unwrap()).unwrap(), pool);
    }

    #[test]
    fn a_list_page_comes_back(e in any_envelope(ObjectKind::ListPage), lens in proptest::collection::vec(1u64..9, 1..=512)) {
        let mut lsn = 1;
        let refs: Vec<_> = lens.iter().zip(1..).map(|(len, n)| {
            lsn += len;
            tlog_ref(n, (lsn - len, lsn - 1), (n, u64::MAX))
        }).collect();
        let (bytes, page) = list::encode(&e, &refs).unwrap();
        prop_assert_eq!((page.count as usize, page.lsn_lo, page.lsn_hi), (refs.len(), Lsn(1), Lsn(lsn - 1)));
        prop_assert_eq!(page.obj.len, bytes.len() as u64);
        let (back, read) = list::decode(&bytes).unwrap();
        list::check_page(&page, &read).unwrap();
        let footer = Footer::decode(&bytes, bytes.len() as u64).unwrap();
        page.obj.check(e.volume, &back, &footer).unwrap();
        prop_assert_eq!((back, read), (e, refs));
    }

    #[test]
    fn names_come_back_and_sort_like_their_numbers(volume: u128, a: (u64, u64), b: (u64, u64)) {
        let volume = VolumeId(volume);
        let id = |(epoch, number): (u64, u64)| ScoId { epoch: Epoch(epoch), number };
        for key in [
            keys::Key::Pool,
            keys::Key::Manifest { volume, number: a.1 },
            keys::Key::Sco { volume, id: id(a) },
            keys::Key::Reloc { volume, id: id(a) },
            keys::Key::TLog { volume, id: id(a) },
            keys::Key::List { volume, id: id(a) },
        ] {
            let name = key.to_string();
            prop_assert_eq!(keys::parse(&name).unwrap(), key);
            if let Some(volume) = key.volume() {
                prop_assert!(name.starts_with(&keys::volume_prefix(volume)));
            }
        }
        let of_log = |(epoch, number): (u64, u64)| id((epoch, number % crate::format::sco::FIRST_RELOC));
        let (la, lb) = (of_log(a), of_log(b));
        prop_assert_eq!(keys::sco_key(volume, la).cmp(&keys::sco_key(volume, lb)), la.cmp(&lb));
        let (ka, kb) = (keys::manifest_key(volume, a.1), keys::manifest_key(volume, b.1));
        prop_assert_eq!(ka.cmp(&kb), b.1.cmp(&a.1), "the newest Manifest lists first");
        prop_assert_eq!(keys::parse_volume_prefix(&keys::volume_prefix(volume)).unwrap(), volume);
        prop_assert!(keys::sco_key(volume, la).starts_with(&keys::sco_prefix(volume, Epoch(a.0))));
    }
}

#[test]
fn names_are_those_of_the_documentation() {
    let volume = VolumeId(0xabc);
    let v = "00000000000000000000000000000abc";
    let id = ScoId { epoch: Epoch(3), number: 0x1f };
    assert_eq!(keys::manifest_key(volume, 1), format!("{v}/m/fffffffffffffffe"));
    assert_eq!(keys::sco_key(volume, id), format!("{v}/s/0000000000000003/000000000000001f"));
    assert_eq!(
        keys::sco_key(volume, ScoId { number: crate::format::sco::FIRST_RELOC + 31, ..id }),
        format!("{v}/r/0000000000000003/000000008000001f")
    );
    assert_eq!(
        keys::tlog_key(volume, id.epoch, id.number),
        format!("{v}/t/0000000000000003/000000000000001f")
    );
    assert_eq!(
        keys::list_key(volume, id.epoch, id.number),
        format!("{v}/l/0000000000000003/000000000000001f")
    );
    assert_eq!(keys::manifest_prefix(volume), format!("{v}/m/"));
    assert_eq!(keys::sco_volume_prefix(volume), format!("{v}/s/"));
    let obj = ObjectRef { kind: ObjectKind::TLog, epoch: id.epoch, number: id.number, len: 0, index_crc: 0 };
    assert_eq!(keys::object_key(volume, &obj), keys::tlog_key(volume, id.epoch, id.number));
}

#[test]
fn foreign_names_are_refused() {
    let v = "00000000000000000000000000000abc";
    for name in [
        String::new(),
        "vpool/".into(),
        "VPOOL".into(),
        v.into(),
        format!("{v}/"),
        format!("{v}/m"),
        format!("{v}/m/1"),
        format!("{v}/m/ffffffffffffffff/0000000000000001"),
        format!("{v}/m/FFFFFFFFFFFFFFFE"),
        format!("{v}/m/+ffffffffffffffe"),
        format!("{v}/s/0000000000000001"),
        format!("{v}/s/0000000000000001/1"),
        format!("{v}/s/0000000000000001/0000000000000001/"),
        format!("{v}/x/0000000000000001/0000000000000001"),
        format!("/{v}/s/0000000000000001/0000000000000001"),
        format!("{}/s/0000000000000001/0000000000000001", v.to_uppercase()),
    ] {
        let error = keys::parse(&name).expect_err(&name);
        assert_eq!(error.kind, ErrorKind::Corrupt);
    }
    for prefix in ["", "/", "abc/", v, &format!("{v}//"), &format!("{}/", v.to_uppercase())] {
        assert!(keys::parse_volume_prefix(prefix).is_err(), "{prefix}");
    }
}

#[test]
fn damage_to_a_vpool_object_is_noticed() {
    let pool = PoolObject { id: 5, name: "gold".into(), cluster_log2: 12, created: 1_800_000_000 };
    let bytes = pool.encode(1).unwrap();
    every_flip_is_noticed(&bytes, usize::MAX, PoolObject::decode);
    every_cut_is_noticed(&bytes, PoolObject::decode);
}

#[test]
fn damage_to_a_list_page_is_noticed() {
    let (bytes, _) = example_page();
    every_flip_is_noticed(&bytes, usize::MAX, list::decode);
    every_cut_is_noticed(&bytes, list::decode);
}

#[test]
fn a_newer_version_and_an_unknown_feature_are_refused_by_number() {
    let block = envelope(ObjectKind::TLog).encode(b"body").unwrap();
    let error = Envelope::decode(&resealed(&block, |b| b[8] = 2)).unwrap_err();
    assert_eq!(
        (error.kind, error.message().contains("version 2")),
        (ErrorKind::Unsupported, true),
        "{error}"
    );
    let error = Envelope::decode(&resealed(&block, |b| b[10] = 99)).unwrap_err();
    assert_eq!((error.kind, error.message().contains("kind 99")), (ErrorKind::Unsupported, true), "{error}");
    let error = Envelope::decode(&resealed(&block, |b| b[16 + 2] = 2)).unwrap_err();
    assert_eq!(
        (error.kind, error.message().contains("feature 17")),
        (ErrorKind::Unsupported, true),
        "{error}"
    );
    let (e, _) = Envelope::decode(&block).map(|(e, b)| (e, b.to_vec())).unwrap();
    let compat = resealed(&block, |b| b[24] = 1);
    assert_eq!(Envelope::decode(&compat).unwrap().0, Envelope { compat: 1, ..e }, "may be ignored");
    let mut w = Writer::default();
    w.u16(9).u8(12).zeroes(29);
    let pool = Envelope { kind: ObjectKind::Pool, ..e }.encode(&w.buf).unwrap();
    let error = PoolObject::decode(&pool).unwrap_err();
    assert_eq!((error.kind, error.message().contains("layout 9")), (ErrorKind::Unsupported, true), "{error}");
}

#[test]
fn an_object_in_the_place_of_another_is_noticed() {
    let (bytes, page) = example_page();
    let (e, _) = list::decode(&bytes).unwrap();
    let footer = Footer::decode(&bytes, bytes.len() as u64).unwrap();
    page.obj.check(e.volume, &e, &footer).unwrap();
    assert!(page.obj.check(VolumeId(1), &e, &footer).is_err(), "another volume");
    for other in [
        ObjectRef { number: 8, ..page.obj },
        ObjectRef { epoch: Epoch(4), ..page.obj },
        ObjectRef { kind: ObjectKind::TLog, ..page.obj },
        ObjectRef { len: 1, ..page.obj },
        ObjectRef { index_crc: 1, ..page.obj },
    ] {
        let error = other.check(e.volume, &e, &footer).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Corrupt, "{error}");
    }
    assert!(
        manifest::Manifest::decode(&bytes)
            .unwrap_err()
            .message()
            .contains("list page 3/7 stands where a Manifest")
    );
}

#[test]
fn a_footer_that_tells_another_length_is_noticed() {
    let (bytes, _) = example_page();
    for field in [16, 24, 40] {
        let mut bad = bytes.to_vec();
        bad[bytes.len() - FOOTER_LEN + field] ^= 1;
        assert!(list::decode(&envelope::with_checksums(&bad)).is_err(), "the number at {field}");
    }
}

#[test]
fn a_footer_of_another_object_is_noticed() {
    let (bytes, _) = example_page();
    let refs = list::decode(&bytes).unwrap().1;
    let other = Envelope { writer: 2, ..envelope(ObjectKind::ListPage) };
    let (other, _) = list::encode(&other, &refs).unwrap();
    let mixed = [&bytes[..bytes.len() - FOOTER_LEN], &other[other.len() - FOOTER_LEN..]].concat();
    assert!(list::decode(&mixed).unwrap_err().message().contains("belongs to another object"));
}

#[test]
fn references_that_contradict_each_other_are_not_written() {
    let e = envelope(ObjectKind::ListPage);
    let all = (0, u64::MAX);
    for bad in [
        vec![],
        vec![tlog_ref(1, (5, 9), all), tlog_ref(2, (1, 4), all)],
        vec![tlog_ref(1, (1, 9), all), tlog_ref(2, (9, 12), all)],
        vec![tlog_ref(1, (1, 9), (0, 10)), tlog_ref(2, (1, 9), (9, 20))],
        vec![tlog_ref(1, (0, 9), all)],
        vec![tlog_ref(1, (2, 1), all)],
        vec![tlog_ref(1, (1, 1), (5, 5))],
    ] {
        assert_eq!(list::encode(&e, &bad).unwrap_err().kind, ErrorKind::Internal);
    }
    // Merged to different depths per address: allowed.
    let parts = [tlog_ref(1, (1, 9), (0, 10)), tlog_ref(2, (1, 4), (10, 20)), tlog_ref(3, (5, 9), (10, 20))];
    list::encode(&e, &parts).unwrap();
    assert!(list::encode(&envelope(ObjectKind::TLog), &parts).is_err(), "the envelope of another kind");
}
