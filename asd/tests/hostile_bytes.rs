//! A client, a daemon and a disk may say anything: the fuzz targets, run over their corpus (`tests/fuzz/corpus`), and over
//! random changes of it.

#[path = "../../tests/fuzz/mutate.rs"]
mod mutate;

#[test]
fn frames_and_records_of_any_bytes_are_read_or_refused() {
    for (name, target) in asd::fuzzing::TARGETS {
        mutate::run(name, *target, 20_000);
    }
}

/// The corpora, from what a client and a daemon say to each other and from what lies on a disk then.
#[tokio::test(start_paused = true)]
#[ignore = "makes tests/fuzz/corpus/asd_* anew"]
async fn seed_corpus() {
    use asd::store::{Settings, Store};
    use asd::wire::{Reply, Request, encode_reply, encode_request, prologue};
    use bytes::Bytes;
    use common::osd::{
        Assert, BackendId, Call, Changes, KeyInfo, KeyPage, KeyRange, OsdId, Priority, Value, Verified,
    };
    use common::{Disk, ErrorKind, Table};
    use std::sync::Arc;
    use std::time::Duration;

    let save = |target: &str, name: &str, bytes: &[u8]| {
        let folder = mutate::folder().join(target);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(name), bytes).unwrap();
    };
    let disk = common::sim::SimDisk::new();
    let (table, clock) = (Arc::new(common::sim::SimTable::new()), Arc::new(common::sim::SimClock::new(1)));
    Store::format(&disk, &*table, &*clock, 64 << 10).await.unwrap();
    let settings =
        Settings { capacity: Some(1 << 20), table_reserve: 64 << 10, scrub_rate: 0, ..Settings::default() };
    let (store, _) = Store::open(settings, Arc::new(disk.clone()), table.clone(), clock).await.unwrap();
    let changes = Changes::new()
        .assert(Assert::Absent("a".into()))
        .assert(Assert::Value("c".into(), "value".into()))
        .set("a", Value::new("small"))
        .set("large", Value::new(vec![7u8; 9000]));
    let plain = Changes::new().set("a", Value::new("small")).set("large", Value::new(vec![7u8; 9000]));
    store.apply(Priority::Client, Duration::MAX, None, plain).await.unwrap();

    let call = Call::maintenance(Duration::from_secs(1));
    let requests = [
        Request::Hello(Some(OsdId(1)), Some(BackendId(2))),
        Request::Apply(changes.delete("b")),
        Request::Get("a".into()),
        Request::GetRange("large".into(), 5..100),
        Request::MultiGet(vec!["a".into(), "b".into()]),
        Request::Range(KeyRange::prefix(b"a"), 10),
        Request::Verify(KeyRange::all(), 10),
        Request::Status,
        Request::Claim(None, Some(BackendId(2))),
        Request::Ping,
    ];
    let info = KeyInfo { key: "a".into(), len: 5, crc: 1 };
    let replies = [
        Reply::Welcome(store.id()),
        Reply::Done,
        Reply::Value(Some(Value::new("small"))),
        Reply::Bytes(Some(Bytes::from_static(b"part"))),
        Reply::Values(vec![Some(Value::new("small")), None]),
        Reply::Page(KeyPage { keys: vec![info], next: Some("b".into()) }),
        Reply::Verified(Verified { keys: 1, bytes: 5, ..Verified::default() }),
        Reply::Status(Box::new(store.status())),
        Reply::Failed(ErrorKind::NoSpace, "full".into()),
        Reply::Pong,
    ];
    save("asd_wire", "prologue", &prologue(1, 1));
    let all = requests.iter().enumerate().flat_map(|(id, r)| encode_request(r, id as u32, call));
    save("asd_wire", "requests", &all.collect::<Vec<_>>().concat());
    let all = replies.iter().enumerate().flat_map(|(id, r)| encode_reply(r, id as u32));
    save("asd_wire", "replies", &all.collect::<Vec<_>>().concat());
    for name in disk.list().await.unwrap() {
        let head = disk.open(&name).await.unwrap().read_at(0, 4096).await.unwrap();
        save("asd_storage", if name == "identity" { "identity" } else { "segment" }, &head);
    }
    for (key, value) in table.scan(b"", b"", 100).unwrap() {
        save("asd_storage", &format!("row-{}", char::from(key[0])), &value);
    }
}
