//! What was appended is found again, as it was.

use super::*;
use common::clock::SystemClock;
use common::disk::local::LocalDisk;
use std::sync::atomic::AtomicU64;

#[tokio::test(start_paused = true)]
async fn everything_appended_is_recovered_after_a_kill() {
    let disk = SimDisk::new();
    let p = Process::start(&disk, settings(16), 1).await;
    let mut sinks = Vec::new();
    for v in 0..5 {
        sinks.push(p.attach(volume(v)).await);
    }
    for lsn in 1..=20 {
        for v in 0..5 {
            let clusters = (lsn + v) as usize % 4;
            p.journal.submit(&sinks[v as usize].1, entry(volume(v), 3, lsn, clusters)).unwrap();
        }
        p.journal.commit();
    }
    p.until("all retired", || sinks.iter().all(|s| s.0.last() == Lsn(20))).await;
    for (recorder, _, found) in &sinks {
        assert!(found.entries.is_empty() && found.damage.is_empty());
        let lsns: Vec<u64> = recorder.0.lock().retired.iter().map(|r| r.lsn.0).collect();
        assert_eq!(lsns, (1..=20).collect::<Vec<_>>(), "retired in order");
    }
    disk.kill();
    p.die();

    let p = Process::start(&disk, settings(16), 2).await;
    assert_eq!(p.recovered.volumes.len(), 5);
    assert!(p.recovered.damage.is_empty());
    for v in 0..5 {
        let summary = &p.recovered.volumes[&volume(v)];
        assert_eq!(
            (summary.entries, summary.first, summary.last, summary.epoch),
            (20, Lsn(1), Lsn(20), Epoch(3))
        );
        let (_, _, found) = p.attach(volume(v)).await;
        assert_eq!(found.entries.iter().map(|e| e.lsn.0).collect::<Vec<_>>(), (1..=20).collect::<Vec<_>>());
        for e in &found.entries {
            check_entry(volume(v), e).await;
        }
        assert!(found.damage.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn entries_of_many_volumes_share_one_record_and_one_write() {
    let disk = SimDisk::new();
    let p = Process::start(&disk, settings(16), 1).await;
    p.settle().await;
    let sink: Vec<_> = attach_all(&p, 3).await;
    let before = disk.effects();
    for v in 0..3 {
        p.journal.submit(&sink[v as usize].1, entry(volume(v), 1, 1, 1)).unwrap();
    }
    p.journal.commit();
    assert_eq!(disk.effects() - before, 1, "one write, done before commit returns");
    assert_eq!(p.journal.metrics.records.get(), 1);
    for s in &sink {
        assert_eq!(s.0.last(), Lsn(1));
    }
    let syncs = (0..10).map(|_| {
        tokio::spawn({
            let j = p.journal.clone();
            async move { j.sync().await }
        })
    });
    for s in syncs.collect::<Vec<_>>() {
        s.await.unwrap().unwrap();
    }
    assert_eq!(p.journal.metrics.syncs.get(), 1, "one fdatasync for all");
    let mark = sink[0].0.0.lock().retired[0].mark;
    assert!(p.journal.is_durable(mark));
}

async fn attach_all(p: &Process, n: u64) -> Vec<(Arc<Recorder>, Arc<dyn Sink>, RecoveredVolume)> {
    let mut sinks = Vec::new();
    for v in 0..n {
        sinks.push(p.attach(volume(v)).await);
    }
    sinks
}

#[tokio::test(start_paused = true)]
async fn a_write_that_takes_time_goes_on_when_its_caller_is_gone() {
    let clock = Arc::new(SimClock::new(9));
    let sim = SimDisk::new();
    let disk = Arc::new(SlowDisk { disk: sim.clone(), clock });
    let p = Process::try_start(disk, settings(16), 1).await.unwrap();
    let (recorder, sink, _) = p.attach(volume(1)).await;
    for lsn in 1..=50 {
        p.journal.submit(&sink, entry(volume(1), 1, lsn, 1)).unwrap();
        // The call returns at once, whatever the disk does.
        p.journal.commit();
    }
    p.until("all retired", || recorder.last() == Lsn(50)).await;
    assert!(p.journal.metrics.records.get() < 50, "entries that waited share records");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_journaled_is_refused_and_nothing_else_suffers() {
    let disk = SimDisk::new();
    let p = Process::start(&disk, settings(8), 1).await;
    let (recorder, sink, _) = p.attach(volume(1)).await;
    let mut bad = entry(volume(1), 1, 1, 2);
    bad.crcs.pop();
    assert!(p.journal.submit(&sink, bad).is_err());
    let big = p.journal.max_payload() / CLUSTER + 1;
    assert!(p.journal.submit(&sink, entry(volume(1), 1, 1, big)).is_err());
    p.journal.submit(&sink, entry(volume(1), 1, 1, big - 1)).unwrap();
    p.journal.submit(&sink, entry(volume(1), 1, 2, big - 1)).unwrap();
    p.journal.commit();
    p.until("the largest entries retire", || recorder.last() == Lsn(2)).await;
    assert!(p.journal.attach(volume(1), sink).await.is_err(), "a volume is attached once");
}

#[tokio::test(start_paused = true)]
async fn close_leaves_everything_durable_and_accepts_nothing_more() {
    let disk = SimDisk::new();
    let p = Process::start(&disk, settings(8), 1).await;
    let (recorder, sink, _) = p.attach(volume(1)).await;
    p.settle().await;
    p.journal.submit(&sink, entry(volume(1), 1, 1, 1)).unwrap();
    p.journal.close().await;
    assert_eq!(recorder.last(), Lsn(1));
    assert!(recorder.0.lock().failed.is_empty());
    assert!(p.journal.submit(&sink, entry(volume(1), 1, 2, 1)).is_err());
    disk.crash(|| false);
    let p = Process::start(&disk, settings(8), 2).await;
    assert_eq!(p.recovered.volumes[&volume(1)].last, Lsn(1));
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_closes_and_opens_again_finds_its_entries() {
    let disk = SimDisk::new();
    let p = Process::start(&disk, settings(8), 1).await;
    let v = volume(1);
    let (recorder, sink, _) = p.attach(v).await;
    let (other, other_sink, _) = p.attach(volume(2)).await;
    for lsn in 1..=40 {
        p.journal.submit(&sink, entry(v, 1, lsn, 1)).unwrap();
        p.journal.submit(&other_sink, entry(volume(2), 1, lsn, 1)).unwrap();
        p.journal.commit();
    }
    p.until("all retired", || recorder.last() == Lsn(40) && other.last() == Lsn(40)).await;
    p.journal.release(v, Lsn(10));
    drop(recorder);
    p.journal.detach(v);
    drop(sink);
    // Nobody holds its entries, but they are needed: the journal goes round without them.
    for lsn in 41..=400 {
        p.journal.submit(&other_sink, entry(volume(2), 1, lsn, 1)).unwrap();
        p.journal.commit();
        p.until("the other goes on", || other.last() == Lsn(lsn)).await;
        p.journal.release(volume(2), Lsn(lsn));
        other.drop_up_to(Lsn(lsn - 1));
    }
    let (_, _, found) = p.attach(v).await;
    assert_eq!(found.entries.iter().map(|e| e.lsn.0).collect::<Vec<_>>(), (11..=40).collect::<Vec<_>>());
    for e in &found.entries {
        check_entry(v, e).await;
    }
}

/// The real disk, real threads: order within a volume, nothing lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_writers_on_a_real_disk() {
    let dir = tempfile::tempdir().unwrap();
    let open = || async {
        let disk = Arc::new(LocalDisk::open(dir.path()).unwrap());
        let settings = JournalSettings::new(1 << 20, 32 << 20);
        Journal::open(settings, disk, Arc::new(SystemClock::new()), &mut Registry::default()).await.unwrap()
    };
    let (journal, _) = open().await;
    let mut tasks = Vec::new();
    let total = Arc::new(AtomicU64::new(0));
    for v in 0..4 {
        let journal = journal.clone();
        let total = total.clone();
        tasks.push(tokio::spawn(async move {
            let recorder = Arc::new(Recorder::default());
            let sink: Arc<dyn Sink> = recorder.clone();
            journal.attach(volume(v), sink.clone()).await.unwrap();
            for lsn in 1..=500 {
                journal.submit(&sink, entry(volume(v), 1, lsn, 1 + (lsn % 2) as usize)).unwrap();
                journal.commit();
                if lsn % 50 == 0 {
                    journal.sync().await.unwrap();
                }
            }
            while recorder.last() < Lsn(500) {
                tokio::task::yield_now().await;
            }
            let lsns: Vec<u64> = recorder.0.lock().retired.iter().map(|r| r.lsn.0).collect();
            assert_eq!(lsns, (1..=500).collect::<Vec<_>>());
            total.fetch_add(500, Ordering::Relaxed);
        }));
    }
    for t in tasks {
        t.await.unwrap();
    }
    journal.close().await;
    drop(journal);
    let (journal, recovered) = open().await;
    assert!(recovered.damage.is_empty());
    for v in 0..4 {
        let found = journal.attach(volume(v), Arc::new(Recorder::default())).await.unwrap();
        assert_eq!(found.entries.len(), 500);
        for e in &found.entries {
            check_entry(volume(v), e).await;
        }
    }
}

#[tokio::test]
async fn records_of_an_earlier_life_are_neither_next_nor_found() {
    let disk = SimDisk::new();
    let file = disk.create("a", SEGMENT).await.unwrap();
    let mut at = record::Position { segno: 1, life: 1, offset: 4096 };
    for n in 1..4 {
        let mut bytes = bytes::BytesMut::new();
        let e = entry(volume(1), 1, n, 1);
        let place = record::Place { process: 7, at, durable: at, prev_crc: 0 };
        record::encode(&mut bytes, &place, false, std::iter::once(&e), false);
        file.write_at(at.offset, &[bytes.freeze(), e.data]).await.unwrap();
        at.offset += 4608;
    }
    let walk = |life, process| {
        let id = walk::Identity { process, segno: 1, life, align: 512 };
        walk::Walk::new(file.clone(), id, SEGMENT, None)
    };
    assert!(matches!(walk(1, 7).next().await, walk::Step::Record(_)));
    for (life, process) in [(2, 7), (1, 8)] {
        let mut walk = walk(life, process);
        assert!(matches!(walk.next().await, walk::Step::Invalid(_)));
        assert!(!walk.search().await);
    }
}

#[test]
fn no_bytes_make_the_codecs_panic_or_accept_what_they_would_not_write() {
    let rng = SimClock::new(77);
    let mut valid = bytes::BytesMut::new();
    let entries = [entry(volume(1), 1, 2, 2), entry(volume(2), 1, 3, 0), entry(volume(3), 9, 4, 1)];
    let at = record::Position { segno: 5, life: 6, offset: 4096 };
    let place = record::Place { process: 7, at, durable: at, prev_crc: 8 };
    record::encode(&mut valid, &place, false, entries.iter(), false);
    fuzz(&valid);
    let decoded = record::decode(&valid).unwrap();
    assert_eq!(decoded.place, place);
    assert_eq!(decoded.entries.len(), 3);
    let header = segment::SegmentHeader {
        device: 1,
        process: 2,
        segno: 3,
        life: 4,
        size: SEGMENT,
        align: 512,
        durable: at,
        cuts: vec![Cut { process: 9, life: 1, offset: 2 }; segment::MAX_CUTS],
    };
    let block = header.encode();
    assert_eq!(segment::SegmentHeader::decode(&block).unwrap(), header);
    assert!(block[512..].iter().all(|b| *b == 0), "a header is one sector");
    fuzz(&block);
    for _ in 0..20_000 {
        let source = if rng.random().is_multiple_of(2) { &valid[..] } else { &block[..600] };
        let mut bytes = source.to_vec();
        for _ in 0..1 + rng.random() % 4 {
            let i = rng.random() as usize % bytes.len();
            bytes[i] = rng.random() as u8;
        }
        // With a right checksum the mutations get past the first look.
        if rng.random().is_multiple_of(2) && bytes.len() > 92 {
            let n = bytes.len() - 4;
            bytes[8..12].copy_from_slice(&(n as u32 + 4).to_le_bytes());
            let crc = common::crc::crc32c(&bytes[..n]);
            bytes[n..].copy_from_slice(&crc.to_le_bytes());
        }
        bytes.truncate(bytes.len() - rng.random() as usize % 2);
        fuzz(&bytes);
        if bytes.len() >= 600 {
            bytes.resize(4096, 0);
            fuzz(&bytes);
        }
    }
    for _ in 0..2000 {
        let bytes: Vec<u8> = (0..rng.random() % 300).map(|_| rng.random() as u8).collect();
        fuzz(&bytes);
    }
}
