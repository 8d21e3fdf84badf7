//! Room: it is found again as soon as it can be, and one volume's backlog never takes it all.

use super::*;
use common::sim::SimDiskFaults;

#[tokio::test(start_paused = true)]
async fn a_full_disk_makes_writers_wait_and_they_go_on_by_themselves() {
    let disk = SimDisk::new();
    disk.set_faults(SimDiskFaults { full: true, ..Default::default() });
    let p = Process::start(&disk, settings(8), 1).await;
    let (recorder, sink, _) = p.attach(volume(1)).await;
    p.journal.submit(&sink, entry(volume(1), 1, 1, 1)).unwrap();
    p.journal.commit();
    p.clock.sleep(Duration::from_secs(60)).await;
    assert_eq!(recorder.last(), Lsn(0));
    let problem = p.journal.problem().unwrap();
    assert!(problem.contains("full") && problem.contains("space"), "{problem}");
    assert!(recorder.0.lock().failed.is_empty(), "a shortage is no failure");
    disk.set_faults(SimDiskFaults::default());
    p.clock.sleep(Duration::from_millis(1500)).await;
    assert_eq!(recorder.last(), Lsn(1));
    assert_eq!(p.journal.problem(), None);
    p.journal.sync().await.unwrap();
}

/// Writes one cluster at a time until nothing is retired any more.
async fn fill(p: &Process, v: VolumeId, recorder: &Recorder, sink: &Arc<dyn Sink>, from: u64) -> u64 {
    let mut lsn = from;
    loop {
        lsn += 1;
        p.journal.submit(sink, entry(v, 1, lsn, 1)).unwrap();
        p.journal.commit();
        p.settle().await;
        if recorder.last().0 < lsn {
            return lsn;
        }
        assert!(lsn < from + 10_000, "the journal has a capacity");
    }
}

#[tokio::test(start_paused = true)]
async fn released_segments_are_used_again_and_a_full_buffer_goes_on() {
    let disk = SimDisk::new();
    let p = Process::start(&disk, settings(6), 1).await;
    let v = volume(1);
    let (recorder, sink, _) = p.attach(v).await;
    let waiting = fill(&p, v, &recorder, &sink, 0).await;
    assert!(waiting * 4096 <= 6 * SEGMENT && waiting * 4608 >= 4 * SEGMENT, "{waiting}");
    assert!(p.journal.problem().unwrap().contains("full"), "{:?}", p.journal.problem());
    let files = disk.list().await.unwrap().len();
    assert_eq!(files, 6);
    p.journal.release(v, Lsn(waiting - 1));
    p.settle().await;
    assert_eq!(recorder.last().0, waiting - 1, "a segment that is held is not used again");
    recorder.drop_up_to(Lsn(waiting - 1));
    p.until("it goes on", || recorder.last().0 == waiting).await;
    assert_eq!(p.journal.problem(), None);
    // Round and round, in the same files.
    let mut lsn = waiting;
    for _ in 0..300 {
        lsn += 1;
        p.journal.submit(&sink, entry(v, 1, lsn, 1)).unwrap();
        p.journal.commit();
        p.until("retired", || recorder.last().0 == lsn).await;
        p.journal.release(v, Lsn(lsn));
        recorder.drop_up_to(Lsn(lsn - 1));
    }
    assert_eq!(disk.list().await.unwrap().len(), 6);
}

#[tokio::test(start_paused = true)]
async fn a_held_payload_reads_the_same_however_often_the_journal_goes_round() {
    let disk = SimDisk::new();
    let p = Process::start(&disk, settings(6), 1).await;
    let (recorder, sink, _) = p.attach(volume(1)).await;
    let mut held = None;
    for lsn in 1..=400 {
        p.journal.submit(&sink, entry(volume(1), 1, lsn, 1)).unwrap();
        p.journal.commit();
        p.until("retired", || recorder.last().0 == lsn).await;
        if lsn == 3 {
            held = recorder.0.lock().retired.last().map(|r| r.loc.clone());
        }
        p.journal.release(volume(1), Lsn(lsn));
        recorder.drop_up_to(Lsn(lsn - 1));
    }
    let held = held.unwrap();
    assert_eq!(held.read(0, CLUSTER).await.unwrap(), content(volume(1), Epoch(1), Lsn(3), 1));
    assert_eq!(held.read(100, 50).await.unwrap(), content(volume(1), Epoch(1), Lsn(3), 1).slice(100..150));
    assert!(held.read(4000, 97).await.is_err());
    assert!(held.read(u64::MAX, 1).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_volume_whose_backend_is_stuck_does_not_stop_the_others() {
    for attached in [true, false] {
        let disk = SimDisk::new();
        let mut p = Process::start(&disk, settings(6), 1).await;
        let stuck = volume(9);
        let (mut recorder9, sink9, _) = p.attach(stuck).await;
        let (mut recorder, mut sink, _) = p.attach(volume(1)).await;
        // The stuck volume's entries lie in every segment.
        let mut lsn = 0;
        for n in 1..=12 {
            p.journal.submit(&sink9, entry(stuck, 1, n, 1)).unwrap();
            for _ in 0..3 {
                lsn += 1;
                p.journal.submit(&sink, entry(volume(1), 1, lsn, 1)).unwrap();
            }
            p.journal.commit();
        }
        p.until("retired", || recorder.last().0 == lsn && recorder9.last().0 == 12).await;
        p.journal.release(volume(1), Lsn(lsn));
        recorder.drop_up_to(Lsn(lsn));
        if !attached {
            // The same for entries of a volume that is not even open.
            disk.kill();
            p.die();
            p = Process::start(&disk, settings(6), 2).await;
            (recorder, sink, _) = p.attach(volume(1)).await;
            p.journal.release(volume(1), Lsn(lsn));
        }
        for _ in 0..600 {
            lsn += 1;
            p.journal.submit(&sink, entry(volume(1), 2, lsn, 1)).unwrap();
            p.journal.commit();
            p.until("the other volume goes on", || recorder.last().0 == lsn).await;
            p.journal.release(volume(1), Lsn(lsn));
            recorder.drop_up_to(Lsn(lsn - 1));
        }
        assert!(p.journal.metrics.copied.get() >= 12 * 4096);
        assert_eq!(p.journal.problem(), None);
        assert!(disk.list().await.unwrap().len() <= 6, "never more than its capacity");
        let locs: Vec<((Epoch, Lsn), JournalLoc)> = if attached {
            assert!(recorder9.0.lock().relocated >= 12);
            recorder9.0.lock().locs.iter().map(|(k, l)| (*k, l.clone())).collect()
        } else {
            let (r, _, found) = p.attach(stuck).await;
            recorder9 = r;
            found.entries.iter().map(|e| ((e.epoch, e.lsn), e.loc.clone())).collect()
        };
        assert_eq!(locs.len(), 12);
        for ((epoch, lsn), loc) in locs {
            assert_eq!(loc.read(0, CLUSTER).await.unwrap(), content(stuck, epoch, lsn, 1));
        }
        // And copies are found again, each once.
        disk.crash(|| false);
        p.die();
        drop(recorder9);
        let p = Process::start(&disk, settings(6), 3).await;
        let (_, _, found) = p.attach(stuck).await;
        assert_eq!(found.entries.iter().map(|e| e.lsn.0).collect::<Vec<_>>(), (1..=12).collect::<Vec<_>>());
        for e in &found.entries {
            check_entry(stuck, e).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_buffer_goes_on_when_only_some_of_each_segment_is_released() {
    let disk = SimDisk::new();
    let p = Process::start(&disk, settings(6), 1).await;
    let (stuck, stuck_sink, _) = p.attach(volume(9)).await;
    let (recorder, sink, _) = p.attach(volume(1)).await;
    let mut lsn = 0;
    loop {
        lsn += 1;
        p.journal.submit(&stuck_sink, entry(volume(9), 1, lsn, 1)).unwrap();
        p.journal.submit(&sink, entry(volume(1), 1, lsn, 2)).unwrap();
        p.journal.commit();
        p.settle().await;
        if recorder.last().0 < lsn {
            break;
        }
    }
    assert!(p.journal.problem().is_some());
    let done = recorder.last();
    p.journal.release(volume(1), done);
    recorder.drop_up_to(done);
    p.until("it goes on", || recorder.last().0 == lsn && stuck.last().0 == lsn).await;
    assert!(p.journal.metrics.copied.get() > 0);
    assert_eq!(p.journal.problem(), None);
}

#[tokio::test(start_paused = true)]
async fn a_router_whose_journal_is_full_of_found_segments_can_start() {
    let disk = SimDisk::new();
    let p = Process::start(&disk, settings(6), 1).await;
    let v = volume(1);
    let (recorder, sink, _) = p.attach(v).await;
    let last = fill(&p, v, &recorder, &sink, 0).await - 1;
    disk.kill();
    p.die();
    let p = Process::start(&disk, settings(6), 2).await;
    let (recorder, sink, found) = p.attach(v).await;
    assert_eq!(found.entries.len() as u64, last);
    p.journal.submit(&sink, entry(v, 2, last + 1, 1)).unwrap();
    p.journal.commit();
    p.until("a new entry is taken", || recorder.last().0 == last + 1).await;
    assert!(disk.list().await.unwrap().len() <= 8);
    // Found segments go when they are needed no more, and are not written to.
    let segnos: Vec<u64> = found.entries.iter().map(|e| e.loc.segment.segno).collect();
    drop(found);
    p.journal.release(v, Lsn(last));
    p.settle().await;
    let left = disk.list().await.unwrap();
    assert!(segnos.iter().all(|s| !left.contains(&segment::file_name(*s))), "{left:?}");
}

#[tokio::test(start_paused = true)]
async fn a_deleted_volume_holds_nothing() {
    let disk = SimDisk::new();
    let p = Process::start(&disk, settings(6), 1).await;
    let (recorder, sink, _) = p.attach(volume(1)).await;
    let waiting = fill(&p, volume(1), &recorder, &sink, 0).await;
    disk.kill();
    p.die();
    let p = Process::start(&disk, settings(6), 2).await;
    assert_eq!(p.recovered.volumes[&volume(1)].last.0, waiting - 1);
    // Never attached, so the journal itself holds its entries.
    p.journal.forget(volume(1));
    p.settle().await;
    let (other, sink, _) = p.attach(volume(2)).await;
    for lsn in 1..=40 {
        p.journal.submit(&sink, entry(volume(2), 1, lsn, 1)).unwrap();
        p.journal.commit();
    }
    p.until("retired", || other.last() == Lsn(40)).await;
    assert!(disk.list().await.unwrap().len() <= 6);
}
