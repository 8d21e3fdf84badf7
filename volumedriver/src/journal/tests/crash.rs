//! Kills and power cuts: what was retired survives the one, what was synced the other.

use super::*;

const VOLUMES: u64 = 3;

/// What the world knows of a volume beyond the journal.
#[derive(Default, Clone)]
struct Known {
    /// The next process goes on behind this.
    last: u64,
    retired: u64,
    synced: u64,
    released: u64,
    /// (first LSN, epoch), ascending: which epoch every LSN has.
    epochs: Vec<(u64, u64)>,
}

impl Known {
    fn epoch_of(&self, lsn: u64) -> u64 {
        self.epochs.iter().rev().find(|(first, _)| *first <= lsn).map_or(0, |(_, e)| *e)
    }
}

struct Load {
    sinks: Vec<(Arc<Recorder>, Arc<dyn Sink>)>,
}

/// Attaches all volumes and checks what was recovered: a dense prefix that holds at least `least`,
/// nothing else, nothing damaged.
async fn recover(p: &Process, known: &mut [Known], epoch: u64, least: impl Fn(&Known) -> u64) -> Load {
    let mut sinks = Vec::new();
    assert!(p.recovered.damage.is_empty(), "{:?}", p.recovered.damage);
    for (v, k) in known.iter_mut().enumerate() {
        let id = volume(v as u64);
        let (recorder, sink, found) = p.attach(id).await;
        assert!(found.damage.is_empty());
        let mut last = k.released;
        for e in found.entries.iter().filter(|e| e.lsn.0 > k.released) {
            assert_eq!(e.lsn.0, last + 1, "volume {v}: the log is a prefix, without a hole");
            assert_eq!(e.epoch.0, k.epoch_of(e.lsn.0), "volume {v}: LSN {} is of a dead tail", e.lsn);
            check_entry(id, e).await;
            last = e.lsn.0;
        }
        assert!(last >= least(k), "volume {v}: {last} is less than what was promised ({})", least(k));
        assert!(last <= k.last, "volume {v}: {last} was never submitted");
        // From here on this is what counts, and it is durable.
        *k = Known { last, retired: last, synced: last, released: k.released, epochs: k.epochs.clone() };
        k.epochs.push((last + 1, epoch));
        let mut heard = recorder.0.lock();
        for e in found.entries.iter().filter(|e| e.lsn.0 > k.released) {
            heard.locs.insert((e.epoch, e.lsn), e.loc.clone());
        }
        drop(heard);
        sinks.push((recorder, sink));
    }
    Load { sinks }
}

impl Load {
    fn note_retired(&self, known: &mut [Known]) {
        for ((recorder, _), k) in self.sinks.iter().zip(known) {
            k.retired = k.retired.max(recorder.last().0);
        }
    }

    /// One random act. Volume 0 never commits anything: its backend is stuck.
    async fn act(&self, p: &Process, known: &mut [Known], epoch: u64, rng: &SimClock, syncs: bool) {
        match rng.random() % 10 {
            0..=5 => {
                for _ in 0..1 + rng.random() % 4 {
                    let v =
                        if rng.random().is_multiple_of(12) { 0 } else { 1 + rng.random() % (VOLUMES - 1) };
                    let k = &mut known[v as usize];
                    let clusters = rng.random() as usize % 3;
                    // A volume stops when it runs out of its share, as credits make it.
                    let share = if v == 0 { 12 } else { 24 };
                    if k.last - k.released < share {
                        let e = entry(volume(v), epoch, k.last + 1, clusters);
                        if p.journal.submit(&self.sinks[v as usize].1, e).is_ok() {
                            k.last += 1;
                        }
                    }
                }
                p.journal.commit();
            }
            6 if syncs => {
                self.note_retired(known);
                let before: Vec<u64> = known.iter().map(|k| k.retired).collect();
                if p.journal.sync().await.is_ok() {
                    for (k, lsn) in known.iter_mut().zip(before) {
                        k.synced = k.synced.max(lsn);
                    }
                }
            }
            7 => {
                self.note_retired(known);
                for (v, k) in known.iter_mut().enumerate().skip(1) {
                    let committed = k.released + rng.random() % (k.retired - k.released + 1);
                    k.released = committed;
                    // What the backend has is durable there.
                    k.synced = k.synced.max(committed);
                    self.sinks[v].0.drop_up_to(Lsn(committed));
                    p.journal.release(volume(v as u64), Lsn(committed));
                }
            }
            8 => p.clock.sleep(Duration::from_millis(rng.random() % 20)).await,
            _ => tokio::task::yield_now().await,
        }
        self.note_retired(known);
    }
}

async fn start(disk: &SimDisk, slow: bool, seed: u64) -> Result<Process> {
    let world: Arc<dyn Disk> = if slow {
        Arc::new(SlowDisk { disk: disk.clone(), clock: Arc::new(SimClock::new(seed + 1)) })
    } else {
        Arc::new(disk.clone())
    };
    Process::try_start(world, settings(6), seed).await
}

#[tokio::test(start_paused = true)]
async fn a_kill_at_any_effect_loses_nothing_retired() {
    let mut copied = 0;
    for n in 1..400 {
        let disk = SimDisk::new();
        let mut known = vec![Known::default(); VOLUMES as usize];
        let rng = SimClock::new(n);
        for round in 0..3 {
            let epoch = round + 1;
            // The second process dies while it recovers or soon after.
            let slow = n.is_multiple_of(2);
            disk.die_at_effect(Some(disk.effects() + if round == 1 { n % 50 } else { n }));
            if let Ok(p) = start(&disk, slow, n * 10 + round).await {
                let load = recover(&p, &mut known, epoch, |k| k.retired).await;
                for _ in 0..n * 2 {
                    load.act(&p, &mut known, epoch, &rng, true).await;
                    if p.journal.failed.load(Ordering::Acquire) {
                        break;
                    }
                }
                load.note_retired(&mut known);
                copied += p.journal.metrics.copied.get();
                disk.kill();
                p.die();
            } else {
                disk.kill();
            }
        }
        let p = start(&disk, false, n * 10 + 9).await.unwrap();
        recover(&p, &mut known, 9, |k| k.retired).await;
        p.die();
    }
    assert!(copied > 0, "the load makes the journal copy forward");
}

#[tokio::test(start_paused = true)]
async fn a_power_cut_keeps_everything_synced_and_leaves_a_prefix() {
    let mut copied = 0;
    let mut lost = 0;
    for seed in 0..300 {
        let disk = SimDisk::new();
        let mut known = vec![Known::default(); VOLUMES as usize];
        let rng = SimClock::new(seed);
        for round in 0..4 {
            let epoch = round + 1;
            let p = start(&disk, seed % 2 == 1, seed * 10 + round).await.unwrap();
            let before: Vec<u64> = known.iter().map(|k| k.retired).collect();
            let load = recover(&p, &mut known, epoch, |k| k.synced).await;
            lost += before.iter().zip(&known).filter(|(b, k)| **b > k.retired).count();
            let acts = rng.random() % 300;
            for _ in 0..acts {
                load.act(&p, &mut known, epoch, &rng, !seed.is_multiple_of(3)).await;
            }
            assert!(p.journal.failure.lock().is_none());
            copied += p.journal.metrics.copied.get();
            let odds = 1 + rng.random() % 4;
            disk.crash(|| rng.random() % 4 < odds);
            p.die();
        }
        let p = start(&disk, false, seed * 10 + 9).await.unwrap();
        recover(&p, &mut known, 9, |k| k.synced).await;
        p.die();
    }
    assert!(copied > 0, "the load makes the journal copy forward");
    assert!(lost > 0, "power cuts do lose unsynced tails here, or this test tests nothing");
}

#[tokio::test(start_paused = true)]
async fn a_record_of_an_earlier_life_is_never_revived() {
    let disk = SimDisk::new();
    let p = Process::start(&disk, settings(4), 1).await;
    let v = volume(1);
    let (recorder, sink, _) = p.attach(v).await;
    let mut lsn = 0;
    let mut write = |n: u64| {
        for _ in 0..n {
            lsn += 1;
            p.journal.submit(&sink, entry(v, 1, lsn, 1)).unwrap();
            p.journal.commit();
        }
        lsn
    };
    // Twice around, everything released at once: every segment lives again.
    for _ in 0..20 {
        let last = write(10);
        p.until("retired", || recorder.last().0 == last).await;
        p.journal.release(v, Lsn(last));
        recorder.drop_up_to(Lsn(last));
        p.settle().await;
    }
    let last = write(1);
    p.until("retired", || recorder.last().0 == last).await;
    let (segno, life) = {
        let heard = recorder.0.lock();
        let loc = &heard.retired.last().unwrap().loc;
        (loc.segment.segno, loc.segment.life)
    };
    assert!(life > 8, "segments were used again");
    disk.kill();
    p.die();
    let p = Process::start(&disk, settings(4), 2).await;
    let (_, _, found) = p.attach(v).await;
    assert_eq!(found.entries.last().unwrap().lsn, Lsn(last));
    assert!(p.recovered.damage.is_empty());
    let here: Vec<u64> =
        found.entries.iter().filter(|e| e.loc.segment.segno == segno).map(|e| e.lsn.0).collect();
    assert!(here.len() < 13 && here.windows(2).all(|w| w[1] == w[0] + 1), "only this life's: {here:?}");
}

#[tokio::test(start_paused = true)]
async fn a_later_process_holds_to_the_cut_that_an_earlier_one_made() {
    for restore in [false, true] {
        let disk = SimDisk::new();
        let v = volume(1);
        let mut places = Vec::new();
        let p = Process::start(&disk, settings(8), 1).await;
        let (recorder, sink, _) = p.attach(v).await;
        p.settle().await;
        for lsn in 1..=9 {
            p.journal.submit(&sink, entry(v, 1, lsn, 1)).unwrap();
            p.journal.commit();
        }
        p.until("retired", || recorder.last() == Lsn(9)).await;
        for r in &recorder.0.lock().retired {
            places.push((segment::file_name(r.loc.segment.segno), r.loc.offset as usize));
        }
        disk.kill();
        p.die();
        // The fifth record is torn; those behind it are whole.
        let (file, offset) = places[4].clone();
        disk.flip_bit(&file, offset + 100, 3);

        let p = Process::start(&disk, settings(8), 2).await;
        let (recorder, sink, found) = p.attach(v).await;
        assert!(found.damage.is_empty(), "nothing was synced: it is a torn tail");
        assert_eq!(found.entries.iter().map(|e| e.lsn.0).collect::<Vec<_>>(), [1, 2, 3, 4]);
        if restore {
            // The disk changes its mind.
            disk.flip_bit(&file, offset + 100, 3);
        }
        for lsn in 5..=7 {
            p.journal.submit(&sink, entry(v, 2, lsn, 1)).unwrap();
            p.journal.commit();
        }
        p.until("retired", || recorder.last() == Lsn(7)).await;
        p.journal.sync().await.unwrap();
        disk.kill();
        p.die();

        let expected = [(1, 1), (2, 1), (3, 1), (4, 1), (5, 2), (6, 2), (7, 2)];
        for seed in 3..6 {
            let p = Process::start(&disk, settings(8), seed).await;
            let (_, _, found) = p.attach(v).await;
            let got: Vec<(u64, u64)> = found.entries.iter().map(|e| (e.lsn.0, e.epoch.0)).collect();
            assert_eq!(got, expected, "restored: {restore}, process {seed}");
            assert!(p.recovered.damage.is_empty(), "what lies beyond a cut is not damage");
            p.settle().await;
            disk.crash(|| false);
            p.die();
        }
        // Below the cut a torn record is damage, though its own process never synced it.
        let (file, offset) = places[1].clone();
        disk.flip_bit(&file, offset + 100, 3);
        let p = Process::start(&disk, settings(8), 9).await;
        assert_eq!(p.recovered.damage.len(), 1);
        assert_eq!(p.recovered.volumes[&v].entries, 6);
    }
}
