//! What people are told about whole and damaged objects.

use super::*;
use crate::format::tests::{manifests, objects, scos, tlogs};
use crate::format::{PoolObject, sco};
use proptest::prelude::*;

/// (what must stand in the text, object) of every kind.
fn all() -> Vec<(&'static str, Bytes)> {
    let pool = PoolObject { id: 5, name: "gold".into(), cluster_log2: 12, created: 1_800_000_000 };
    vec![
        ("SCO 3/7 of volume 1234", scos::example().0),
        ("TLog 3/7 of volume 1234", tlogs::example().0),
        ("Manifest 5/12 of volume", manifests::example().encode().unwrap()),
        ("list page 3/7 of volume 1234", objects::example_page().0),
        ("vpool object (", pool.encode(1).unwrap()),
    ]
}

#[test]
fn what_is_whole_is_told_to_be_well() {
    for (words, bytes) in all() {
        let report = examine("file", &bytes).unwrap();
        assert_eq!(report.problems, Vec::<String>::new());
        assert!(report.text.starts_with(words), "{words}: {}", report.text);
        assert!(report.text.ends_with("verdict: all is well, every checksum is right\n"));
        assert_eq!(describe("file", &bytes).unwrap(), report.text);
    }
}

#[test]
fn the_lines_say_what_is_in_it() {
    let text = describe("x", &scos::example().0).unwrap();
    for line in [
        "  LSNs           1 to 1000\n",
        "  committed SCO  4\n",
        "  data     LSN 10 addresses 5 to 6 (2) slot 0\n",
        "  discard  LSN 11 addresses 108 to 8589934699 (8589934592)\n",
        "  resize   LSN 14 to 1099511627776 bytes\n",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    let text = describe("x", &manifests::example().encode().unwrap()).unwrap();
    for line in [
        "  state          cut\n",
        "  name           web-01\n",
        "  created        2027-01-15 08:00:00 UTC\n",
        "    epochs 2 to 3: up to LSN 70\n",
        "    LSN 60 and above\n",
        "    TLog 2/2: LSNs 10 to 80, addresses all, 9002 bytes",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    let text = describe("x", &tlogs::example().0).unwrap();
    for line in
        ["    2: relocation SCO 1/2147483651, 30000 bytes", "  block 0 at 4096: ", "    zero     LSN 999 "]
    {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

#[test]
fn damage_is_told_and_the_rest_is_shown() {
    let whole = scos::example().0;
    let read = sco::decode(&whole).unwrap();
    // One bit in: the writer in the first block, a cluster, an LSN in the index, the footer.
    let index_off = read.footer.index_off as usize;
    let places = [
        (72, "header checksum is"),
        (BLOCK + 4096, "the cluster in slot 1 (address 6): checksum is"),
        (index_off + 16 + 28, "index checksum is"),
        (whole.len() - 1, "footer checksum is"),
    ];
    for (at, words) in places {
        let mut bytes = whole.to_vec();
        bytes[at] ^= 1;
        let report = examine("x", &Bytes::from(bytes)).unwrap();
        assert!(report.problems.iter().any(|p| p.contains(words)), "{words}: {:?}", report.problems);
        assert!(report.text.contains("LSNs           1 to 1000"), "{}", report.text);
        assert!(report.text.contains("verdict: "), "{}", report.text);
        assert!(!report.text.contains("all is well"), "{}", report.text);
    }
    let mut bytes = manifests::example().encode().unwrap().to_vec();
    let name = bytes.windows(6).position(|w| w == b"web-01").unwrap();
    bytes[name] = b'W';
    let report = examine("x", &Bytes::from(bytes)).unwrap();
    assert!(
        report.problems.iter().any(|p| p.starts_with("section 2 (6 bytes): checksum is")),
        "{:?}",
        report.problems
    );
    assert!(report.text.contains("Web-01"), "{}", report.text);
}

#[test]
fn what_is_cut_off_is_shown_as_far_as_it_goes() {
    for (words, bytes) in all() {
        for len in [bytes.len() - 1, bytes.len() / 2, BLOCK, 4000, 100, 9] {
            if len >= bytes.len() {
                continue;
            }
            let report = examine("x", &bytes.slice(..len)).unwrap();
            assert!(!report.problems.is_empty(), "{words} cut at {len}:\n{}", report.text);
            assert!(len < BLOCK || report.text.starts_with(words), "{}", report.text);
        }
    }
}

#[test]
fn every_flipped_bit_is_told() {
    for (words, bytes) in all() {
        let step = (bytes.len() * 8 / 1500).max(1) | 1;
        // The magic itself excepted: without it, it is not recognised or told by its end.
        for bit in (64..bytes.len() * 8).step_by(step) {
            let mut copy = bytes.to_vec();
            copy[bit / 8] ^= 1 << (bit % 8);
            let report = examine("x", &Bytes::from(copy)).unwrap();
            assert!(!report.problems.is_empty(), "{words}: bit {} of byte {}", bit % 8, bit / 8);
        }
    }
}

#[test]
fn an_object_under_the_name_of_another_is_told() {
    let bytes = manifests::example().encode().unwrap();
    let volume = manifests::example().volume;
    let right = format!("/srv/store/{}", keys::manifest_key(volume, 12));
    assert_eq!(examine(&right, &bytes).unwrap().problems, Vec::<String>::new());
    let wrong = format!("/srv/store/{}", keys::manifest_key(volume, 13));
    assert!(examine(&wrong, &bytes).unwrap().problems[0].starts_with("the object is called "));
}

#[test]
fn what_is_not_ours_is_refused() {
    for bytes in [&b""[..], b"PNG", &[0; 9000]] {
        let error = describe("notes.txt", &Bytes::copy_from_slice(bytes)).unwrap_err();
        assert_eq!(error.kind, common::ErrorKind::Invalid);
        assert!(error.message().starts_with("notes.txt: "), "{error}");
    }
}

#[test]
fn dates_are_those_of_the_calendar() {
    for (seconds, date) in [
        (0, "1970-01-01 00:00:00 UTC"),
        (951_782_399, "2000-02-28 23:59:59 UTC"),
        (951_868_799, "2000-02-29 23:59:59 UTC"),
        (951_868_800, "2000-03-01 00:00:00 UTC"),
        (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        (1_800_000_000, "2027-01-15 08:00:00 UTC"),
    ] {
        assert_eq!(time(seconds), date);
    }
    assert_eq!(time(u64::MAX), format!("{} seconds after 1970", u64::MAX));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn damaged_objects_never_panic(
        which in 0usize..5,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..5),
        len in any::<prop::sample::Index>(),
        cut: bool,
    ) {
        let mut bytes = all()[which].1.to_vec();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if cut {
            bytes.truncate(len.index(bytes.len()));
        }
        fuzz(&bytes);
    }
}
