use super::*;
use crate::alba::layout::{Packing, Plan, encode};
use crate::alba::preset::{Compression, Policy, Preset};
use common::ErrorKind;
use common::osd::{BackendId, OsdId};
use common::sim::SimKv;
use proptest::prelude::*;

fn record(id: u128, len: usize, stored: usize) -> Record {
    let plan = Plan {
        policy: Policy::new(4, 2, 4, Some(2)).unwrap(),
        frame_size: 4096,
        value_len: 1 << 20,
        packing: Packing { zstd: true, key: None },
    };
    let data = Bytes::from(vec![7; len]);
    let made = encode(&[data], ObjectId(id), &plan, Compression::Zstd { level: 1 }, None).unwrap();
    let place = |n: usize| Place { osd: OsdId(n as u128 + 1), epoch: 1, version: 0 };
    let places = (0..6).map(|n| (n < stored).then(|| place(n))).collect();
    Record { shape: made.shape, put_at: 1, places, crcs: made.crcs }
}

async fn records() -> (Records, SimKv) {
    let kv = SimKv::new();
    let preset = Preset::new(vec![Policy::new(4, 2, 6, Some(2)).unwrap()], 2).unwrap();
    let namespace =
        namespace::create_namespace(&kv, &"v".parse().unwrap(), preset, |_| Ok(Vec::new())).await.unwrap();
    (Records::new(Arc::new(kv.clone()), namespace.id), kv)
}

proptest! {
    #[test]
    fn a_record_reads_as_it_was_written(len in 0usize..60_000, stored in 0usize..=6, id: u128) {
        let record = record(id, len, stored);
        let bytes = record.encode();
        prop_assert_eq!(Record::decode("test", &bytes).unwrap(), record);
        let mut wrong = bytes.to_vec();
        let at = (id % wrong.len() as u128) as usize;
        wrong[at] ^= 1;
        prop_assert!(Record::decode("test", &wrong).is_err());
        prop_assert!(Record::decode("test", &bytes[..at]).is_err());
    }

    #[test]
    fn hostile_bytes_are_no_record_and_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let mut whole = b"SRor\x01\0\0\0\0\0\0\0".to_vec();
        whole.extend(&bytes);
        let crc = common::crc::crc32c(&whole);
        whole[8..12].copy_from_slice(&crc.to_le_bytes());
        if let Ok(record) = Record::decode("test", &whole) {
            prop_assert_eq!(&record.encode()[..], &whole[..]);
        }
        let _ = Record::decode("test", &bytes);
    }
}

#[tokio::test]
async fn a_change_asserts_what_it_was_made_from() {
    let (records, _) = records().await;
    let epoch = records.epoch().await.unwrap();
    let first = records.put("a", &record(1, 10, 6), None, epoch).await.unwrap();
    assert_eq!(records.put("a", &record(2, 10, 6), None, epoch).await.unwrap_err().kind, ErrorKind::Conflict);
    let second = records.put("a", &record(2, 10, 6), Some(&first), epoch).await.unwrap();
    // A repair that read the first one can't bring it back, nor delete the second.
    assert_eq!(
        records.put("a", &record(1, 10, 5), Some(&first), epoch).await.unwrap_err().kind,
        ErrorKind::Conflict
    );
    assert_eq!(records.delete("a", &first).await.unwrap_err().kind, ErrorKind::Conflict);
    records.delete("a", &second).await.unwrap();
    assert_eq!(
        records.put("a", &record(2, 10, 5), Some(&second), epoch).await.unwrap_err().kind,
        ErrorKind::Conflict
    );
    assert!(records.get("a").await.unwrap().is_none());
    let gone: Vec<u128> = records.deleted(10).await.unwrap().iter().map(|r| r.id().0).collect();
    assert_eq!(gone, [1, 2]);
    records.forget(ObjectId(1)).await.unwrap();
    assert_eq!(records.deleted(10).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_record_that_names_a_closed_epoch_is_refused() {
    let (records, _) = records().await;
    let old = records.epoch().await.unwrap();
    assert_eq!(records.close_epoch(old.number).await.unwrap_err().kind, ErrorKind::Invalid);
    records.open_epoch(old).await.unwrap();
    assert_eq!(records.open_epoch(old).await.unwrap_err().kind, ErrorKind::Conflict);
    records.put("a", &record(1, 10, 6), None, old).await.unwrap();
    records.close_epoch(old.number).await.unwrap();
    assert_eq!(records.put("b", &record(2, 10, 6), None, old).await.unwrap_err().kind, ErrorKind::Conflict);
    let new = records.epoch().await.unwrap();
    assert_eq!(new.number, old.number + 1);
    records.put("b", &record(2, 10, 6), None, new).await.unwrap();
}

#[tokio::test]
async fn the_repair_index_has_those_with_too_few_fragments_the_worst_first() {
    let (records, _) = records().await;
    let epoch = records.epoch().await.unwrap();
    let five = records.put("a", &record(1, 10, 5), None, epoch).await.unwrap();
    records.put("b/c", &record(2, 10, 4), None, epoch).await.unwrap();
    records.put("c", &record(3, 10, 6), None, epoch).await.unwrap();
    let all = records.to_repair(None, 10).await.unwrap();
    assert_eq!(all, [(0, "b/c".to_string()), (1, "a".to_string())]);
    assert_eq!(records.to_repair(Some((0, "b/c")), 10).await.unwrap(), all[1..]);
    let whole = records.put("a", &record(1, 10, 6), Some(&five), epoch).await.unwrap();
    assert_eq!(records.to_repair(None, 10).await.unwrap().len(), 1);
    assert!(records.deleted(10).await.unwrap().is_empty(), "the same object was called garbage");
    records.delete("a", &whole).await.unwrap();
    let worst = records.get("b/c").await.unwrap().unwrap();
    records.delete("b/c", &worst).await.unwrap();
    assert!(records.to_repair(None, 10).await.unwrap().is_empty());
}

#[tokio::test]
async fn namespaces_have_numbers_of_their_own_and_disks_their_registrations() {
    let kv = SimKv::new();
    let preset = Preset::new(vec![Policy::new(1, 2, 3, None).unwrap()], 2).unwrap();
    let make = |name: &str| {
        let (kv, preset, name) = (kv.clone(), preset.clone(), name.parse().unwrap());
        async move { namespace::create_namespace(&kv, &name, preset, |_| Ok(Vec::new())).await }
    };
    let (a, b) = tokio::join!(make("a"), make("b"));
    assert_ne!(a.unwrap().id, b.as_ref().unwrap().id);
    assert_eq!(make("a").await.unwrap_err().kind, ErrorKind::Conflict);
    assert_eq!(namespace::namespace(&kv, &"b".parse().unwrap()).await.unwrap(), b.unwrap());
    assert_eq!(namespace::namespace(&kv, &"c".parse().unwrap()).await.unwrap_err().kind, ErrorKind::NotFound);
    let mut osd = OsdRegistration {
        id: OsdId(5),
        node: "one".into(),
        domain: "rack".into(),
        addresses: vec!["127.0.0.1:1".into()],
        claimed_by: BackendId(9),
        state: Use::Active,
    };
    let revision = namespace::register_osd(&kv, &osd, None).await.unwrap();
    assert_eq!(namespace::register_osd(&kv, &osd, None).await.unwrap_err().kind, ErrorKind::Conflict);
    osd.state = Use::Leaving;
    namespace::register_osd(&kv, &osd, Some(revision)).await.unwrap();
    let all = namespace::osds(&kv).await.unwrap();
    assert_eq!(all.iter().map(|(o, _)| o).collect::<Vec<_>>(), [&osd]);
}
