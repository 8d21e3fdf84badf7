use super::*;
use crate::cluster::Membership;
use crate::qos::Qos;
use common::sim::SimKv;
use common::{Epoch, ErrorKind};
use serde_json::{Value, json};
use std::time::Duration;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn disk(id: u128) -> VdiskRecord {
    VdiskRecord::new(VolumeId(id), 4096, 8 << 20)
}

fn volume(id: u128) -> VolumeRecord {
    let by = Incarnation { node: name("a"), lease: 3 };
    VolumeRecord::created(name("p"), name(&format!("d{id}")), by, dtl::Config::default())
}

fn new(n: &str, record: VdiskRecord) -> NewVdisk {
    let volume = volume(record.id.0);
    (name(n), record, volume)
}

async fn one_pool() -> (Arc<SimKv>, Records<SimKv>, u64) {
    let kv = Arc::new(SimKv::new());
    let records = Records::new(kv.clone());
    let pool = VpoolRecord::new(7, json!({"kind": "directory"}), 4096, None);
    let revision = records.add_vpool(&name("p"), &pool, &[]).await.unwrap();
    (kv, records, revision)
}

#[tokio::test]
async fn what_was_written_is_read_and_has_a_version() {
    let (kv, records, pool_revision) = one_pool().await;
    let mut record = disk(1);
    record.state = VdiskLife::Creating;
    records.add_vdisk(&name("p"), pool_revision, &new("d", record.clone()), None).await.unwrap();
    let contents = records.load().await.unwrap();
    assert_eq!(contents.vpools.len(), 1);
    assert_eq!(contents.vpools[0].1.record.id.0, 7);
    assert_eq!(contents.vdisks[0].record.record, record);
    let raw: Value = serde_json::from_slice(&kv.get("vdisk/p/d").await.unwrap().unwrap().value).unwrap();
    assert_eq!(raw["v"], 2);
    assert_eq!(raw["state"], "creating");
    assert_eq!(raw["id"], format!("{:032x}", 1));
}

#[tokio::test]
async fn a_change_based_on_an_old_revision_is_refused() {
    let (_, records, pool_revision) = one_pool().await;
    let (p, d) = (name("p"), name("d"));
    let first = records.add_vdisk(&p, pool_revision, &new("d", disk(1)), None).await.unwrap();
    records.put_vdisk(&p, &d, &disk(1), first).await.unwrap();
    let stale = records.put_vdisk(&p, &d, &disk(1), first).await.unwrap_err();
    assert_eq!(stale.kind, ErrorKind::Conflict);
    // A new vDisk asserts its vPool, and that the name is free.
    let record = records.load().await.unwrap().vpools.remove(0).1.record;
    records.put_vpool(&p, &record, pool_revision).await.unwrap();
    let stale = records.add_vdisk(&p, pool_revision, &new("e", disk(2)), None).await.unwrap_err();
    assert_eq!(stale.kind, ErrorKind::Conflict);
}

#[tokio::test]
async fn many_volumes_change_together_or_not_at_all() {
    let (_, records, pool_revision) = one_pool().await;
    let at_a = records.add_vdisk(&name("p"), pool_revision, &new("a", disk(1)), None).await.unwrap();
    records.add_vdisk(&name("p"), pool_revision, &new("b", disk(2)), None).await.unwrap();
    let mut raised = volume(1);
    raised.registration.claimed = Epoch(9);
    let changes = [(VolumeId(1), raised, at_a), (VolumeId(2), volume(2), at_a)];
    assert!(records.put_volumes(&changes, Vec::new()).await.is_err());
    let now = records.volume(VolumeId(1)).await.unwrap().unwrap();
    assert_eq!(now.record.registration.claimed, Epoch(1));
}

#[tokio::test]
async fn a_record_of_a_newer_version_is_refused_by_its_key() {
    let (kv, records, _) = one_pool().await;
    let put = KvOp::Put("vdisk/p/d".into(), r#"{"v":3,"shape":"unknown"}"#.into());
    kv.txn(vec![], vec![put]).await.unwrap();
    let error = records.load().await.err().unwrap();
    assert_eq!(error.kind, ErrorKind::Unsupported);
    assert!(error.message().contains("vdisk/p/d") && error.message().contains('3'), "{error}");
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
    let revision = records.add_vdisk(&p, pool_revision, &new("d", disk(1)), None).await.unwrap();
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
    assert_eq!(read.record.qos, None);
    records.put_vdisk(&name("p"), &name("old"), &read.record, read.revision).await.unwrap();
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
    records.add_vdisk(&name("p"), pool_revision, &new("d", limited.clone()), None).await.unwrap();
    assert_eq!(records.vdisk(&name("p"), &name("d")).await.unwrap().unwrap().record.qos, Some(qos));
    let raw: Value = serde_json::from_slice(&kv.get("vdisk/p/d").await.unwrap().unwrap().value).unwrap();
    let want = json!({"read_iops": 200, "write_bytes_per_second": 1u64 << 40, "burst_ms": 100});
    assert_eq!(raw["qos"], want);
}

#[tokio::test]
async fn vdisks_of_a_registry_of_one_node_are_given_to_that_node() {
    let (kv, records, _) = one_pool().await;
    let old = r#"{"v":1,"id":"000102030405060708090a0b0c0d0e0f","size":4096,"sco_size":8388608,"epoch":7,
        "owner":"0000000000000000000000000000002a","dtl":"none","read_only":true,"state":"active"}"#;
    kv.txn(vec![], vec![KvOp::Put("vdisk/p/old".into(), old.into()), KvOp::Put("node".into(), "2a".into())])
        .await
        .unwrap();
    let journal = WriteBuffer { device: VolumeId(5), boot: "b".into() };
    let me = |name: Name, founder| Membership {
        name,
        write_buffer: journal.clone(),
        founder,
        domains: Vec::new(),
        recovery_domains: Vec::new(),
        lease: Duration::from_secs(2),
        dial: Arc::new(|_| Err(Error::unavailable("there is nobody"))),
        patience: Default::default(),
    };
    // Not to another one, which may be faster: it has nothing of theirs.
    let early = upgrade(&*kv, &me(name("other"), false)).await.unwrap_err();
    assert_eq!(early.kind, ErrorKind::Unavailable);
    for _ in 0..2 {
        // The second time there is nothing to do.
        upgrade(&*kv, &me(name("me"), true)).await.unwrap();
        let contents = records.load().await.unwrap();
        let Registered { vdisk, record, volume, .. } = &contents.vdisks[0];
        assert_eq!((vdisk.as_str(), record.record.read_only), ("old", true));
        let registration = &volume.record.registration;
        assert_eq!(
            (registration.owner.as_str(), registration.epoch, registration.clean),
            ("me", Epoch(7), false)
        );
        assert_eq!((volume.record.journal.as_ref(), &volume.record.holder), (Some(&journal), &None));
        assert!(kv.get("node").await.unwrap().is_none());
    }
}
