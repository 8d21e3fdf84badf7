use super::*;
use common::sim::{SimClock, SimKv};
use serde_json::json;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn disk(id: u128) -> VdiskRecord {
    VdiskRecord::new(VolumeId(id), 4096, 8 << 20, Epoch(1), "node")
}

async fn one_pool() -> (Arc<SimKv>, Records, u64) {
    let kv = Arc::new(SimKv::new());
    let records = Records::new(kv.clone());
    let pool = VpoolRecord::new(7, json!({"kind": "directory"}), 4096, None);
    let revision = records.add_vpool(&name("p"), &pool, &[]).await.unwrap();
    (kv, records, revision)
}

#[tokio::test(start_paused = true)]
async fn the_node_id_is_drawn_once() {
    let kv = Arc::new(SimKv::new());
    let first = Records::new(kv.clone()).node(&SimClock::new(1)).await.unwrap();
    let second = Records::new(kv).node(&SimClock::new(2)).await.unwrap();
    assert_eq!(first, second);
    assert_eq!(first.len(), 32);
}

#[tokio::test]
async fn what_was_written_is_read_and_has_a_version() {
    let (kv, records, pool_revision) = one_pool().await;
    let mut record = disk(1);
    record.state = VdiskLife::Creating;
    records.add_vdisk(&name("p"), pool_revision, &name("d"), &record, None).await.unwrap();
    let contents = records.load().await.unwrap();
    assert_eq!(contents.vpools.len(), 1);
    assert_eq!(contents.vpools[0].1.record.id.0, 7);
    assert_eq!(contents.vdisks[0].2.record, record);
    let raw: Value = serde_json::from_slice(&kv.get("vdisk/p/d").await.unwrap().unwrap().value).unwrap();
    assert_eq!(raw["v"], 1);
    assert_eq!(raw["state"], "creating");
    assert_eq!(raw["id"], format!("{:032x}", 1));
}

#[tokio::test]
async fn a_change_based_on_an_old_revision_is_refused() {
    let (_, records, pool_revision) = one_pool().await;
    let (p, d) = (name("p"), name("d"));
    let first = records.add_vdisk(&p, pool_revision, &d, &disk(1), None).await.unwrap();
    records.put_vdisks(&p, &[(d.clone(), disk(1), first)]).await.unwrap();
    let stale = records.put_vdisks(&p, &[(d.clone(), disk(1), first)]).await.unwrap_err();
    assert_eq!(stale.kind, ErrorKind::Conflict);
    // A new vDisk asserts its vPool, and that the name is free.
    let record = records.load().await.unwrap().vpools.remove(0).1.record;
    records.put_vpool(&p, &record, pool_revision).await.unwrap();
    let stale = records.add_vdisk(&p, pool_revision, &name("e"), &disk(2), None).await.unwrap_err();
    assert_eq!(stale.kind, ErrorKind::Conflict);
}

#[tokio::test]
async fn many_vdisks_change_together_or_not_at_all() {
    let (_, records, pool_revision) = one_pool().await;
    let (p, a, b) = (name("p"), name("a"), name("b"));
    let at_a = records.add_vdisk(&p, pool_revision, &a, &disk(1), None).await.unwrap();
    records.add_vdisk(&p, pool_revision, &b, &disk(2), None).await.unwrap();
    let mut raised = disk(1);
    raised.epoch = Epoch(9);
    let changes = [(a.clone(), raised, at_a), (b, disk(2), at_a)];
    assert!(records.put_vdisks(&p, &changes).await.is_err());
    assert_eq!(records.vdisk(&p, &a).await.unwrap().unwrap().record.epoch, Epoch(1));
}

#[tokio::test]
async fn a_record_of_a_newer_version_is_refused_by_its_key() {
    let (kv, records, _) = one_pool().await;
    let put = KvOp::Put("vdisk/p/d".into(), r#"{"v":2,"shape":"unknown"}"#.into());
    kv.txn(vec![], vec![put]).await.unwrap();
    let error = records.load().await.err().unwrap();
    assert_eq!(error.kind, ErrorKind::Unsupported);
    assert!(error.message().contains("vdisk/p/d") && error.message().contains('2'), "{error}");
}

#[tokio::test]
async fn what_is_not_ours_is_refused_and_nothing_panics() {
    for (key, value) in [
        ("vpool/", "{}"),
        ("vpool/a b", "{}"),
        ("vpool/x", "not json"),
        ("vpool/x", "{\"v\":1}"),
        ("vdisk/p", "{}"),
        ("vdisk/p/q/r", "{}"),
        ("vdisk/nopool/d", "{\"v\":1}"),
        ("vdisk/p/d", "{\"v\":1}"),
        ("vdisk/p/d", "\u{0}"),
    ] {
        let (kv, records, _) = one_pool().await;
        kv.txn(vec![], vec![KvOp::Put(key.into(), value.into())]).await.unwrap();
        let error = records.load().await.err().unwrap();
        assert_eq!(error.kind, ErrorKind::Corrupt, "{key}: {error}");
        assert!(error.message().contains(key), "{key}: {error}");
    }
}

#[tokio::test]
async fn a_deleted_vdisk_leaves_a_trace_until_it_is_forgotten() {
    let (_, records, pool_revision) = one_pool().await;
    let (p, d) = (name("p"), name("d"));
    let revision = records.add_vdisk(&p, pool_revision, &d, &disk(1), None).await.unwrap();
    records.bury_vdisk(&p, &d, &Stored { record: disk(1), revision }, 77).await.unwrap();
    assert!(records.vdisk(&p, &d).await.unwrap().is_none());
    let deleted = records.deleted(&p).await.unwrap();
    assert_eq!((deleted[0].0, deleted[0].1.deleted_at), (VolumeId(1), 77));
    records.forget_deleted(&p, VolumeId(1), deleted[0].2).await.unwrap();
    assert!(records.deleted(&p).await.unwrap().is_empty());
}

#[tokio::test]
async fn limits_are_kept_and_a_record_from_before_there_were_any_has_none() {
    let (kv, records, pool_revision) = one_pool().await;
    let old = r#"{"v":1,"id":"000102030405060708090a0b0c0d0e0f","size":4096,"sco_size":8388608,"epoch":7,
        "owner":"node","dtl":"none","read_only":false,"state":"active"}"#;
    kv.txn(vec![], vec![KvOp::Put("vdisk/p/old".into(), old.into())]).await.unwrap();
    let read = records.vdisk(&name("p"), &name("old")).await.unwrap().unwrap();
    assert_eq!((read.record.qos, read.record.epoch), (None, Epoch(7)));
    // One without limits is written as before, so that an older version reads it.
    records.put_vdisks(&name("p"), &[(name("old"), read.record.clone(), read.revision)]).await.unwrap();
    let raw: Value = serde_json::from_slice(&kv.get("vdisk/p/old").await.unwrap().unwrap().value).unwrap();
    assert!(raw.get("qos").is_none(), "{raw}");

    let mut limited = disk(2);
    let qos = Qos {
        read_iops: Some(200),
        write_iops: None,
        read_bytes_per_second: None,
        write_bytes_per_second: Some(1 << 40),
        burst_ms: 100,
    };
    limited.qos = Some(qos);
    records.add_vdisk(&name("p"), pool_revision, &name("d"), &limited, None).await.unwrap();
    assert_eq!(records.vdisk(&name("p"), &name("d")).await.unwrap().unwrap().record.qos, Some(qos));
    let raw: Value = serde_json::from_slice(&kv.get("vdisk/p/d").await.unwrap().unwrap().value).unwrap();
    let want = json!({"read_iops": 200, "write_bytes_per_second": 1u64 << 40, "burst_ms": 100});
    assert_eq!(raw["qos"], want);
}
