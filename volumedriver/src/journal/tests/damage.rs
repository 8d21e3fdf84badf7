//! Corruption of what was durable is told, and told from a torn tail.

use super::*;
use common::sim::SimDiskFaults;

struct Written {
    disk: SimDisk,
    /// File and offset of each entry's payload.
    places: Vec<(String, usize)>,
}

/// Nine entries, alternating between two volumes, each its own record; the first six are synced, and the later ones say so.
async fn written() -> Written {
    let disk = SimDisk::new();
    let p = Process::start(&disk, settings(8), 1).await;
    let mut places = Vec::new();
    let a = p.attach(volume(0)).await;
    let b = p.attach(volume(1)).await;
    p.settle().await;
    for n in 0..9u64 {
        let (recorder, sink, _) = if n % 2 == 0 { &a } else { &b };
        p.journal.submit(sink, entry(volume(n % 2), 1, n / 2 + 1, 1)).unwrap();
        p.journal.commit();
        let loc = recorder.0.lock().retired.last().unwrap().loc.clone();
        places.push((segment::file_name(loc.segment.segno), loc.offset as usize));
        if n == 5 {
            p.journal.sync().await.unwrap();
        }
    }
    disk.kill();
    p.die();
    Written { disk, places }
}

async fn found(p: &Process, v: u64) -> (Vec<u64>, Vec<Damage>) {
    let (_, _, found) = p.attach(volume(v)).await;
    for e in &found.entries {
        check_entry(volume(v), e).await;
    }
    (found.entries.iter().map(|e| e.lsn.0).collect(), found.damage)
}

#[tokio::test(start_paused = true)]
async fn a_flipped_bit_in_synced_content_is_damage_of_that_entry_alone() {
    let w = written().await;
    let (file, offset) = &w.places[2];
    w.disk.flip_bit(file, offset + 1000, 0);
    let p = Process::start(&w.disk, settings(8), 2).await;
    let (lsns, damage) = found(&p, 0).await;
    assert_eq!(lsns, [1, 3, 4, 5]);
    assert!(
        matches!(&damage[..], [Damage::Payload { volume: v, lsn: Lsn(2), addr: 14, segment, .. }]
            if *v == volume(0) && segment == file),
        "{damage:?}"
    );
    let (lsns, damage) = found(&p, 1).await;
    assert_eq!((lsns, damage.len()), (vec![1, 2, 3, 4], 0));
    assert!(p.recovered.damage[0].to_string().contains("LSN 2"));
}

#[tokio::test(start_paused = true)]
async fn a_flipped_bit_in_a_synced_header_is_a_gap_and_reading_goes_on_behind_it() {
    let w = written().await;
    let (file, offset) = &w.places[2];
    w.disk.flip_bit(file, offset - 60, 0);
    let p = Process::start(&w.disk, settings(8), 2).await;
    assert!(matches!(&p.recovered.damage[..], [Damage::Gap { .. }]), "{:?}", p.recovered.damage);
    // The hole tells; the other volume is proven whole by what follows.
    assert_eq!(found(&p, 0).await, (vec![1, 3, 4, 5], vec![]));
    assert_eq!(found(&p, 1).await, (vec![1, 2, 3, 4], vec![]));
    // Of a volume without anything behind the gap, nobody knows.
    assert_eq!(found(&p, 7).await.1.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_flipped_bit_in_what_was_not_synced_is_a_torn_tail() {
    for (record, back) in [(6, 60), (6, 0)] {
        let w = written().await;
        let (file, offset) = &w.places[record];
        w.disk.flip_bit(file, offset - back, 0);
        let p = Process::start(&w.disk, settings(8), 2).await;
        assert!(p.recovered.damage.is_empty(), "{:?}", p.recovered.damage);
        assert_eq!(found(&p, 0).await.0, [1, 2, 3]);
        assert_eq!(found(&p, 1).await.0, [1, 2, 3]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_flipped_bit_in_a_segment_header_costs_nothing() {
    let w = written().await;
    w.disk.flip_bit(&w.places[0].0, 40, 0);
    let p = Process::start(&w.disk, settings(8), 2).await;
    assert_eq!(found(&p, 0).await, (vec![1, 2, 3, 4, 5], vec![]));
    assert_eq!(found(&p, 1).await, (vec![1, 2, 3, 4], vec![]));
}

#[tokio::test(start_paused = true)]
async fn a_failed_sync_is_the_end() {
    let disk = SimDisk::new();
    let p = Process::start(&disk, settings(8), 1).await;
    let (recorder, sink, _) = p.attach(volume(1)).await;
    p.settle().await;
    p.journal.submit(&sink, entry(volume(1), 1, 1, 1)).unwrap();
    p.journal.commit();
    // Not the housekeeper's sync is to fail, but that of the commit.
    p.settle().await;
    let mark = recorder.0.lock().retired[0].mark;
    disk.set_faults(SimDiskFaults { failing_syncs: 1, ..Default::default() });
    assert!(p.journal.sync().await.is_err());
    assert_eq!(recorder.0.lock().failed.len(), 1);
    assert!(p.journal.submit(&sink, entry(volume(1), 1, 2, 1)).is_err());
    assert!(p.journal.sync().await.is_err(), "an error is never retried into a success");
    assert!(!p.journal.is_durable(mark));
    assert!(p.journal.problem().unwrap().contains("failed"));
    p.journal.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_write_fails_everyone_who_waits() {
    let disk = SimDisk::new();
    let p = Process::start(&disk, settings(8), 1).await;
    let (recorder, sink, _) = p.attach(volume(1)).await;
    let (other, _, _) = p.attach(volume(2)).await;
    p.settle().await;
    disk.set_faults(SimDiskFaults { failing_writes: 1, ..Default::default() });
    p.journal.submit(&sink, entry(volume(1), 1, 1, 1)).unwrap();
    p.journal.commit();
    assert_eq!((recorder.last(), recorder.0.lock().failed.len()), (Lsn(0), 1));
    assert_eq!(other.0.lock().failed.len(), 1);
    assert!(p.journal.sync().await.is_err());
    p.journal.commit();
}

#[tokio::test(start_paused = true)]
async fn segments_of_another_device_or_a_newer_release_are_refused_by_name() {
    let w = written().await;
    let other = written().await;
    let name = "00000000000000aa";
    let file = w.disk.create(name, SEGMENT).await.unwrap();
    let from = other.disk.open(&other.places[0].0).await.unwrap();
    let mut h = segment::SegmentHeader::decode(&from.read_at(0, 4096).await.unwrap()).unwrap();
    (h.segno, h.device) = (0xaa, 1);
    file.write_at(0, &[h.encode()]).await.unwrap();
    let error = Process::try_start(Arc::new(w.disk.clone()), settings(8), 3).await.err().unwrap();
    assert!(error.message().contains(name), "{error}");
}
