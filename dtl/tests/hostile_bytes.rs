//! A peer, an owner and a disk may say anything: the fuzz targets, run over their corpus (`tests/fuzz/corpus`), and over
//! random changes of it.

#[path = "../../tests/fuzz/mutate.rs"]
mod mutate;

#[test]
fn entries_frames_and_segments_of_any_bytes_are_read_or_refused() {
    for (name, target) in dtl::fuzzing::TARGETS {
        mutate::run(name, *target, 20_000);
    }
}

/// The corpora, from what a client and a service say to each other and from what lies on a disk then.
#[tokio::test(start_paused = true)]
#[ignore = "makes tests/fuzz/corpus/dtl_* anew"]
async fn seed_corpus() {
    use bytes::BytesMut;
    use common::{Epoch, ErrorKind, Lsn, VolumeId};
    use dtl::registration::{Incarnation, LogInfo};
    use dtl::storage::{DiskSettings, Incoming, Key, Limits, Store};
    use dtl::wire::{Open, Reply, Request, put_prologue};
    use std::sync::Arc;

    let save = |target: &str, name: &str, bytes: &[u8]| {
        let folder = mutate::folder().join(target);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(name), bytes).unwrap();
    };
    let entry = |lsn: u64, len: usize| dtl::Entry {
        volume: VolumeId(7),
        epoch: Epoch(5),
        lsn: Lsn(lsn),
        kind: 1,
        flags: 0,
        addr: lsn * 8,
        count: 1,
        crcs: [lsn as u32].into_iter().collect(),
        payload: vec![lsn as u8; len].into(),
    };
    for len in [0, 100, 4096] {
        save("dtl_entry", &format!("entry-{len}"), &entry(3, len).pack().bytes);
    }
    let key = Key { volume: VolumeId(7), epoch: Epoch(5), incarnation: Incarnation(9) };
    let info = LogInfo {
        epoch: Epoch(5),
        incarnation: Incarnation(9),
        base: Lsn(2),
        last: Lsn(8),
        flushed: Lsn(4),
        sealed: true,
        suspect: false,
        damaged: false,
    };
    let requests = [
        Request::Hello {
            volume: key.volume,
            epoch: key.epoch,
            open: Open::Create { serial: 1, base: Lsn(0) },
        },
        Request::Hello { volume: key.volume, epoch: key.epoch, open: Open::Resume(key.incarnation) },
        Request::Append(entry(1, 300).pack()),
        Request::Flush,
        Request::Trim(Lsn(1)),
        Request::Vouch(Lsn(1)),
        Request::Seal(key.volume, Epoch(6)),
        Request::Status(key.volume),
        Request::Read(key, Lsn(1), 1 << 20),
        Request::Credit(1 << 10),
        Request::TrimLog(key, Lsn(3)),
        Request::Forget(key.volume, Epoch(6)),
        Request::Close,
        Request::Ping,
    ];
    let replies = [
        Reply::Opened(info, 4 << 20),
        Reply::Confirmed(Lsn(3)),
        Reply::Flushed(Lsn(3)),
        Reply::Vouched,
        Reply::Stall(Lsn(3)),
        Reply::Resume(Lsn(3)),
        Reply::Failed(ErrorKind::NoSpace, "there is no room".into()),
        Reply::Logs(Epoch(6), vec![info, info]),
        Reply::Data(entry(1, 300).pack()),
        Reply::Done,
        Reply::Pong,
    ];
    let mut prologue = BytesMut::new();
    put_prologue(&mut prologue, 1, 1);
    save("dtl_wire", "prologue", &prologue);
    let (mut all, mut said) = (BytesMut::new(), BytesMut::new());
    requests.iter().enumerate().for_each(|(id, r)| r.put(&mut all, id as u32));
    replies.iter().enumerate().for_each(|(id, r)| r.put(&mut said, id as u32));
    save("dtl_wire", "requests", &all);
    save("dtl_wire", "replies", &said);

    let disk = common::sim::SimDisk::new();
    let limits = Limits { capacity: 4 << 20, volume_bytes: 1 << 20, volumes: 8, logs_per_volume: 4 };
    let settings = DiskSettings { segment_size: 64 << 10, segments: 4, limits };
    let clock = Arc::new(common::sim::SimClock::new(1));
    let (store, _) = Store::open(settings, Arc::new(disk.process()), clock).await.unwrap();
    let log = store.create(VolumeId(7), Epoch(5), 1, Lsn(0)).await.unwrap();
    let key = Key { incarnation: log.incarnation, ..key };
    let packed = |lsn| entry(lsn, 200).pack();
    let incoming =
        |lsn| Incoming { key, head: dtl::entry::head(&packed(lsn).bytes).unwrap(), packed: packed(lsn) };
    store.append(&[incoming(1), incoming(2)]).await;
    store.seal(VolumeId(7), Epoch(6)).await.unwrap();
    let name = common::Disk::list(&disk).await.unwrap()[0].clone();
    let file = common::Disk::open(&disk, &name).await.unwrap();
    save("dtl_storage", "header", &file.read_at(0, 512).await.unwrap());
    for (i, at) in (4096..8192).step_by(512).enumerate() {
        let record = file.read_at(at, 2048).await.unwrap();
        if record.iter().any(|b| *b != 0) {
            save("dtl_storage", &format!("record-{i}"), &record);
        }
    }
    let mut state = BytesMut::new();
    bytes::BufMut::put_u64_le(&mut state, 6);
    bytes::BufMut::put_u16_le(&mut state, 1);
    bytes::BufMut::put_bytes(&mut state, 0, 49);
    save("dtl_storage", "state", &state);
}
