//! The log end to end over the simulated doors: what is acknowledged comes back, from the
//! journal, from the backend, and from both.

mod world;

use common::sim::StoreFaults;
use common::{BlockDevice, ErrorKind, ObjectStore};
use std::sync::Arc;
use std::time::Duration;
use volumedriver::{Settings, VolumeState};
use world::*;

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test(start_paused = true)]
async fn a_write_reads_back_from_memory_from_the_backend_and_after_a_kill() {
    let mut world = World::new(1, settings(), 64 << 20).await;
    let v = world.open().await.unwrap();
    v.write(5 * CLUSTER, cluster(7), false).await.unwrap();
    assert_eq!(value(&v, 5).await, 7);
    assert_eq!(value(&v, 6).await, 0, "what was never written reads as zeroes");
    world.kill();
    world.boot().await.unwrap();
    let v = world.open().await.unwrap();
    assert_eq!(value(&v, 5).await, 7, "SIGKILL loses nothing acknowledged");
    v.drain(MINUTE).await.unwrap();
    assert_eq!(v.status().frontiers.committed, v.status().frontiers.accepted);
    assert_eq!(value(&v, 5).await, 7);
    drop(v);
    world.lose_data_dir();
    world.boot().await.unwrap();
    let v = world.open().await.unwrap();
    assert_eq!(value(&v, 5).await, 7, "what was committed comes back from the backend alone");
}

#[tokio::test(start_paused = true)]
async fn what_a_volume_finds_when_it_opens_again_in_the_same_process_is_flushed_with_the_rest() {
    let mut world = World::new(31, settings(), 64 << 20).await;
    let v = world.open().await.unwrap();
    v.write(5 * CLUSTER, cluster(7), false).await.unwrap();
    v.close().await;
    drop(v);
    let v = world.open().await.unwrap();
    assert_eq!(value(&v, 5).await, 7);
    v.flush().await.unwrap();
    // Nothing that was not synced survives.
    world.disk.crash(|| false);
    world.table = Arc::new(world.table.successor());
    drop(v);
    world.boot().await.unwrap();
    let v = world.open().await.unwrap();
    assert_eq!(value(&v, 5).await, 7, "it was flushed");
}

#[tokio::test(start_paused = true)]
async fn unaligned_writes_change_only_their_bytes() {
    let world = World::new(2, settings(), 64 << 20).await;
    let v = world.open().await.unwrap();
    v.write(0, vec![1u8; 3 * CLUSTER as usize].into(), false).await.unwrap();
    v.write(4000, vec![2u8; 200].into(), false).await.unwrap();
    v.write(CLUSTER + 512, vec![3u8; 512].into(), false).await.unwrap();
    v.write(2 * CLUSTER - 100, vec![4u8; CLUSTER as usize + 100].into(), true).await.unwrap();
    let mut model = vec![1u8; 3 * CLUSTER as usize];
    model[4000..4200].fill(2);
    model[CLUSTER as usize + 512..CLUSTER as usize + 1024].fill(3);
    model[2 * CLUSTER as usize - 100..].fill(4);
    assert_eq!(v.read(0, 3 * CLUSTER as u32).await.unwrap(), model);
    v.drain(MINUTE).await.unwrap();
    assert_eq!(v.read(0, 3 * CLUSTER as u32).await.unwrap(), model);
    assert_eq!(v.read(4001, 77).await.unwrap(), model[4001..4078]);
}

#[tokio::test(start_paused = true)]
async fn concurrent_changes_of_one_cluster_all_count() {
    let world = World::new(3, settings(), 64 << 20).await;
    let v = world.open().await.unwrap();
    let writes = (0..64u64).map(|i| {
        let v = v.clone();
        async move { v.write(i * 64, vec![i as u8 + 1; 64].into(), false).await }
    });
    for outcome in futures::future::join_all(writes).await {
        outcome.unwrap();
    }
    let data = v.read(0, 4096).await.unwrap();
    for i in 0..64usize {
        assert!(data[i * 64..(i + 1) * 64].iter().all(|b| *b == i as u8 + 1), "part {i}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_discard_does_not_come_back() {
    let mut world = World::new(4, settings(), 1 << 40).await;
    let v = world.open().await.unwrap();
    v.write(3 * CLUSTER, cluster(9), false).await.unwrap();
    v.write(1000 * CLUSTER, cluster(8), false).await.unwrap();
    v.drain(MINUTE).await.unwrap();
    v.discard(0, 1 << 40, false).await.unwrap();
    v.write(4 * CLUSTER, cluster(1), false).await.unwrap();
    assert_eq!(value(&v, 3).await, 0);
    world.kill();
    world.boot().await.unwrap();
    let v = world.open().await.unwrap();
    assert_eq!((value(&v, 3).await, value(&v, 4).await, value(&v, 1000).await), (0, 1, 0));
    v.drain(MINUTE).await.unwrap();
    drop(v);
    world.lose_data_dir();
    world.boot().await.unwrap();
    let v = world.open().await.unwrap();
    assert_eq!((value(&v, 3).await, value(&v, 4).await, value(&v, 1000).await), (0, 1, 0));
    let extents = v.extents(0, 8 * CLUSTER).await.unwrap();
    let shape: Vec<(u64, bool)> = extents.iter().map(|e| (e.len / CLUSTER, e.hole)).collect();
    assert_eq!(shape, [(4, true), (1, false), (3, true)]);
}

#[tokio::test(start_paused = true)]
async fn many_generations_of_kills_keep_everything_and_leave_no_garbage() {
    let settings = volumedriver::Settings { tlog_scos: 3, ..settings() };
    let mut world = World::new(5, settings, 16 << 20).await;
    let mut model = vec![0u8; 4096];
    let mut rng = fastrand_lite(5);
    for round in 0..12u8 {
        let v = world.open().await.unwrap();
        for (addr, expected) in model.iter().enumerate() {
            assert_eq!(value(&v, addr as u64).await, *expected, "round {round}, cluster {addr}");
        }
        for i in 0..1500u64 {
            let addr = rng() % 4096;
            let n = (round as u64 * 17 + i) as u8 | 1;
            if i % 97 == 0 {
                let count = (rng() % 300).min(4096 - addr);
                v.discard(addr * CLUSTER, count * CLUSTER, false).await.unwrap();
                model[addr as usize..(addr + count) as usize].fill(0);
            } else {
                v.write(addr * CLUSTER, cluster(n), false).await.unwrap();
                model[addr as usize] = n;
            }
        }
        match round % 4 {
            0 => {
                v.drain(MINUTE).await.unwrap();
                let report = check(&world).await;
                assert_eq!(report.problems, [""; 0], "round {round}");
                assert!(report.clusters > 0 && report.mapped > 0);
            }
            1 => sleep(&world, 3).await,
            _ => {}
        }
        if round % 5 == 4 {
            v.drain(MINUTE).await.unwrap();
            drop(v);
            world.lose_data_dir();
        } else {
            drop(v);
            world.kill();
        }
        world.boot().await.unwrap();
    }
    let v = world.open().await.unwrap();
    v.discard(0, 16 << 20, false).await.unwrap();
    v.drain(MINUTE).await.unwrap();
    sleep(&world, 60).await;
    let scos = world.store.keys().iter().filter(|k| k.contains("/s/")).count();
    assert!(scos <= 2, "{scos} SCOs are left of a volume without data");
    v.close().await;
    world.driver().delete(&world.pool, VOLUME, common::Epoch(1)).await.unwrap();
    let left: Vec<String> = world.store.keys().into_iter().filter(|k| !k.contains("/m/")).collect();
    assert_eq!(left, ["vpool"], "a deleted vDisk leaves no object but its Manifests");
    world.driver().purge(&world.pool, VOLUME).await.unwrap();
    assert_eq!(world.store.keys(), ["vpool"]);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_is_absorbed_then_waited_for() {
    let world = World::new(6, settings(), 256 << 20).await;
    let v = world.open().await.unwrap();
    v.write(0, cluster(3), false).await.unwrap();
    v.drain(MINUTE).await.unwrap();
    world.store.set_faults(StoreFaults { away: true, ..Default::default() });
    let writer = tokio::spawn({
        let v = v.clone();
        async move {
            for i in 0..60u64 {
                v.write((1 + i) << 20, vec![i as u8 + 1; 1 << 20].into(), false).await.unwrap();
            }
        }
    });
    sleep(&world, 600).await;
    assert!(!writer.is_finished(), "the buffer is smaller than what is written");
    assert!(matches!(v.status().state, VolumeState::Degraded(_)), "the reason is shown");
    assert_eq!(value(&v, 256).await, 1, "buffered data is read meanwhile");
    assert_eq!(v.flush().await.map_err(|e| e.kind), Ok(()));
    world.store.set_faults(StoreFaults::default());
    writer.await.unwrap();
    v.drain(MINUTE).await.unwrap();
    assert_eq!(v.status().state, VolumeState::Serving, "it recovers by itself");
    for i in 0..60u64 {
        assert_eq!(value(&v, (1 + i) << 8).await, i as u8 + 1);
    }
}

#[tokio::test(start_paused = true)]
async fn puts_with_unknown_outcome_are_settled() {
    let mut world = World::new(7, volumedriver::Settings { tlog_scos: 4, ..settings() }, 64 << 20).await;
    world.store.set_faults(StoreFaults {
        lost_reply_per_mille: 200,
        late_put_per_mille: 0,
        fail_per_mille: 100,
        max_latency: Duration::from_millis(30),
        ..Default::default()
    });
    let mut v = None;
    for _ in 0..50 {
        match world.open().await {
            Ok(open) => {
                v = Some(open);
                break;
            }
            Err(e) => assert!(e.kind.is_transient(), "{e}"),
        }
    }
    let v = v.expect("opens in the end");
    for i in 0..8000u64 {
        v.write((i % 4000) * CLUSTER, cluster((i % 251) as u8), false).await.unwrap();
    }
    v.drain(MINUTE * 10).await.unwrap();
    world.store.set_faults(StoreFaults::default());
    drop(v);
    world.lose_data_dir();
    world.boot().await.unwrap();
    let v = world.open().await.unwrap();
    for i in 4000..8000u64 {
        assert_eq!(value(&v, i % 4000).await, (i % 251) as u8);
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_owner_fences_the_first() {
    let world = World::new(8, settings(), 64 << 20).await;
    let v = world.open().await.unwrap();
    v.write(0, cluster(1), false).await.unwrap();
    v.drain(MINUTE).await.unwrap();
    // Another router, with its own disk, opens the same volume.
    let mut other = World::new(9, settings(), 64 << 20).await;
    other.store = world.store.clone();
    other.pool = world.pool.clone();
    let w = other.open().await.unwrap();
    assert_eq!(value(&w, 0).await, 1);
    w.write(0, cluster(2), false).await.unwrap();
    w.drain(MINUTE).await.unwrap();
    // The first one notices at its next commit; nothing of it is ever visible.
    v.write(0, cluster(3), false).await.unwrap();
    let error = v.drain(MINUTE).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Fenced, "{error}");
    assert!(matches!(v.status().state, VolumeState::Stopped(_)));
    assert_eq!(v.write(0, cluster(4), false).await.unwrap_err().kind, ErrorKind::Fenced);
    assert_eq!(value(&w, 0).await, 2);
}

#[tokio::test(start_paused = true)]
async fn a_flipped_bit_in_a_sco_is_an_error_that_names_the_object() {
    let world = World::new(10, settings(), 64 << 20).await;
    let v = world.open().await.unwrap();
    v.write(0, cluster(1), false).await.unwrap();
    v.write(CLUSTER, cluster(2), false).await.unwrap();
    v.drain(MINUTE).await.unwrap();
    let key = world.store.keys().into_iter().find(|k| k.contains("/s/")).unwrap();
    let mut bytes = common::ObjectStore::get(&world.store, &key).await.unwrap().to_vec();
    bytes[4096 + 17] ^= 4;
    world.store.tamper(&key, Some(bytes.into()));
    let error = v.read(0, 4096).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Corrupt);
    assert!(error.to_string().contains(&key), "{error}");
    assert_eq!(value(&v, 1).await, 2, "its neighbour is served");
}

#[tokio::test(start_paused = true)]
async fn a_missing_sco_is_told_from_the_end_of_the_log() {
    let mut world = World::new(11, settings(), 64 << 20).await;
    let v = world.open().await.unwrap();
    for n in 1..=4u8 {
        v.write(0, cluster(n), false).await.unwrap();
        v.drain(MINUTE).await.unwrap();
    }
    drop(v);
    let scos: Vec<String> = world.store.keys().into_iter().filter(|k| k.contains("/s/")).collect();
    assert_eq!(scos.len(), 4);
    world.store.tamper(&scos[1], None);
    world.lose_data_dir();
    world.boot().await.unwrap();
    let error = world.open().await.err().expect("does not open with a hole");
    assert_eq!(error.kind, ErrorKind::Corrupt);
    assert!(error.to_string().contains(&scos[1]), "{error}");
}

#[tokio::test(start_paused = true)]
async fn fsck_names_what_is_wrong() {
    let settings = volumedriver::Settings { tlog_scos: 2, ..settings() };
    let world = World::new(14, settings, 64 << 20).await;
    let v = world.open().await.unwrap();
    for n in 1..=5u64 {
        v.write(n * CLUSTER, cluster(n as u8), false).await.unwrap();
        v.drain(MINUTE).await.unwrap();
    }
    assert_eq!(check(&world).await.problems, [""; 0]);
    let keys = world.store.keys();
    for (kind, harm) in [("/s/", 4096 + 5), ("/t/", 4096 + 5), ("/m/", 50)] {
        // The last SCO of a tail is missed by nobody but its writer: take the first.
        let key = keys.iter().find(|k| k.contains(kind)).unwrap();
        let whole = common::ObjectStore::get(&world.store, key).await.unwrap();
        let mut bytes = whole.to_vec();
        bytes[harm] ^= 1;
        world.store.tamper(key, Some(bytes.into()));
        let found = volumedriver::fsck::check(&world.pool, VOLUME, &mut |_, _| {}).await;
        let told = found.map_or_else(|e| e.to_string(), |r| r.problems.join("; "));
        let named = volumedriver::format::keys::parse(key).is_ok() && told.contains(key.as_str());
        assert!(named, "a flipped bit in '{key}' is told as: {told}");
        world.store.tamper(key, Some(whole.clone()));
        if kind != "/m/" {
            world.store.tamper(key, None);
            let told = check(&world).await.problems.join("; ");
            assert!(told.contains(key.as_str()), "the missing '{key}' is told as: {told}");
            world.store.tamper(key, Some(whole));
        }
    }
}

async fn check(world: &World) -> volumedriver::fsck::Report {
    volumedriver::fsck::check(&world.pool, VOLUME, &mut |_, _| {}).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn growing_is_durable_and_beyond_the_end_is_refused() {
    let mut world = World::new(12, settings(), 1 << 20).await;
    let v = world.open().await.unwrap();
    assert_eq!(v.write(1 << 20, cluster(1), false).await.unwrap_err().kind, ErrorKind::NoSpace);
    v.resize(2 << 20).await.unwrap();
    assert_eq!(v.resize(1 << 20).await.unwrap_err().kind, ErrorKind::Unsupported);
    v.write(1 << 20, cluster(1), false).await.unwrap();
    world.kill();
    world.boot().await.unwrap();
    let v = world.open().await.unwrap();
    assert_eq!(v.geometry().size, 2 << 20);
    assert_eq!(value(&v, 256).await, 1);
    v.drain(MINUTE).await.unwrap();
    let images = world.driver().images(&world.pool).await.unwrap();
    assert_eq!(images[0].size, 2 << 20, "the Manifest knows the size");
}

#[tokio::test(start_paused = true)]
async fn an_old_data_directory_that_comes_back_adds_nothing() {
    let mut world = World::new(13, settings(), 64 << 20).await;
    let v = world.open().await.unwrap();
    v.write(0, cluster(1), false).await.unwrap();
    v.drain(MINUTE).await.unwrap();
    v.write(0, cluster(2), false).await.unwrap();
    drop(v);
    // The journal holds LSN 2, which the backend does not. Another data directory takes over.
    let old = world.disk.clone();
    world.lose_data_dir();
    world.boot().await.unwrap();
    let v = world.open().await.unwrap();
    assert_eq!(value(&v, 0).await, 1, "a prefix");
    v.write(CLUSTER, cluster(5), false).await.unwrap();
    v.drain(MINUTE).await.unwrap();
    drop(v);
    // The old one comes back.
    world.kill();
    old.kill();
    world.disk = old;
    world.boot().await.unwrap();
    let v = world.open().await.unwrap();
    assert_eq!((value(&v, 0).await, value(&v, 1).await), (1, 5), "what was cut off stays cut off");
}

fn fastrand_lite(seed: u64) -> impl FnMut() -> u64 {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x >> 11
    }
}

#[tokio::test(start_paused = true)]
async fn credit_of_a_closed_volume_is_given_back_once_it_is_open_again_or_deleted() {
    let world = World::new(14, settings(), 64 << 20).await;
    let away = StoreFaults { away: true, ..StoreFaults::default() };
    for round in 0..8u64 {
        let v = world.open().await.unwrap();
        world.store.set_faults(away.clone());
        for n in 0..256 {
            let write = v.write((round * 256 + n) * CLUSTER, cluster(round as u8 + 1), false);
            tokio::time::timeout(MINUTE, write).await.expect("there is credit").unwrap();
        }
        v.close().await;
        world.store.set_faults(StoreFaults::default());
    }
    let v = world.open().await.unwrap();
    v.drain(MINUTE).await.unwrap();
    assert_eq!(world.driver().buffer_fill(), 0.0, "everything is on the backend");
    world.store.set_faults(away);
    v.write(0, cluster(1), false).await.unwrap();
    v.close().await;
    assert!(world.driver().buffer_fill() > 0.0, "what is left in the journal takes its room");
    world.store.set_faults(StoreFaults::default());
    world.driver().delete(&world.pool, VOLUME, common::Epoch(99)).await.unwrap();
    assert_eq!(world.driver().buffer_fill(), 0.0, "nobody will ask for it any more");
}

#[tokio::test(start_paused = true)]
async fn what_a_fenced_owner_puts_late_is_swept_within_the_hour_and_nothing_else() {
    let mut world = World::new(15, settings(), 64 << 20).await;
    let v = world.open().await.unwrap();
    v.write(0, cluster(1), false).await.unwrap();
    v.drain(MINUTE).await.unwrap();
    let epoch = v.status().epoch;
    drop(v);
    world.kill();
    world.boot().await.unwrap();
    let v = world.open().await.unwrap();
    sleep(&world, 60).await;
    let late = |kind: &str| format!("{:032x}/{kind}/{:016x}/{:016x}", VOLUME.0, epoch.0, 77);
    let (sco, tlog) = (late("s"), late("t"));
    for key in [&sco, &tlog] {
        world.store.put(key, cluster(9), common::object::Precondition::IfAbsent).await.unwrap();
    }
    sleep(&world, 3600).await;
    for key in [&sco, &tlog] {
        assert!(world.store.head(key).await.unwrap().is_none(), "{key} is an orphan");
    }
    drop(v);
    world.lose_data_dir();
    world.boot().await.unwrap();
    let v = world.open().await.unwrap();
    assert_eq!(value(&v, 0).await, 1, "what is named stays");
}

/// Nothing can be copied there: what is all garbage goes first.
#[tokio::test(start_paused = true)]
async fn a_full_store_has_room_again_when_garbage_was_deleted() {
    const SCO: u64 = 256;
    let mut world = World::new(14, Settings { scrub: false, ..settings() }, 16 << 20).await;
    let v = world.open().await.unwrap();
    for addr in 0..16 * SCO {
        v.write(addr * CLUSTER, cluster(1), false).await.unwrap();
    }
    v.drain(MINUTE).await.unwrap();
    let mut stored = 0;
    for key in &world.store.keys() {
        stored += world.store.head(key).await.unwrap().unwrap();
    }
    world.store.set_faults(StoreFaults { room: Some(stored + (8 << 20)), ..StoreFaults::default() });
    // One SCO becomes garbage, and of each other one half.
    for addr in (0..SCO).chain((SCO..16 * SCO).step_by(2)) {
        v.write(addr * CLUSTER, cluster(2), false).await.unwrap();
    }
    assert!(v.drain(MINUTE).await.is_err(), "there was room enough");
    drop(v);
    world.kill();
    world.settings.scrub = true;
    world.boot().await.unwrap();
    let v = world.open().await.unwrap();
    v.drain(MINUTE * 10).await.unwrap();
    for addr in 0..16 * SCO {
        let new = addr < SCO || addr % 2 == 0;
        assert_eq!(value(&v, addr).await, if new { 2 } else { 1 }, "cluster {addr}");
    }
}
