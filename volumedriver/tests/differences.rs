//! Where a volume differs from its snapshots: nothing that changed is left out, and little else is told.

mod world;

use bytes::Bytes;
use common::{BlockDevice, Difference, ErrorKind};
use std::time::Duration;
use volumedriver::{Description, SnapshotChange, Volume};
use world::*;

const MINUTE: Duration = Duration::from_secs(60);
const SIZE: u64 = 64 << 20;

async fn snapshot(v: &Volume, id: u128) {
    let about = Description { id, name: format!("s{id}"), ..Description::default() };
    v.snapshot(about).await.unwrap();
}

/// The clusters that are told to differ.
async fn changed(device: &dyn BlockDevice, since: u128) -> Vec<u64> {
    let (mut at, mut clusters) = (0, Vec::new());
    let size = device.geometry().size;
    while at < size {
        for Difference { len, changed } in device.differences(since, at, size - at).await.unwrap() {
            assert!(len > 0 && len.is_multiple_of(CLUSTER));
            if changed {
                clusters.extend(at / CLUSTER..(at + len) / CLUSTER);
            }
            at += len;
        }
    }
    clusters
}

async fn write(v: &Volume, addr: u64) {
    v.write(addr * CLUSTER, cluster(addr as u8 | 1), false).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn changes_are_told_wherever_they_are_on_their_way() {
    let mut world = World::new(1, settings(), SIZE).await;
    let v = world.open().await.unwrap();
    write(&v, 1).await;
    snapshot(&v, 1).await;
    assert_eq!(changed(&*v, 1).await, [0; 0], "what came before does not count");
    // In memory.
    write(&v, 3).await;
    v.write(5 * CLUSTER + 512, Bytes::from_static(&[7; 512]), false).await.unwrap();
    assert_eq!(changed(&*v, 1).await, [3, 5]);
    // Committed, and in no TLog.
    v.drain(MINUTE).await.unwrap();
    let frontiers = v.status().frontiers;
    assert!(frontiers.trimmed < frontiers.committed, "there is a tail");
    assert_eq!(changed(&*v, 1).await, [3, 5]);
    v.discard(8 * CLUSTER, 2 * CLUSTER, false).await.unwrap();
    v.write_zeroes(5 * CLUSTER, 2 * CLUSTER, false, false).await.unwrap();
    assert_eq!(changed(&*v, 1).await, [3, 5, 6, 8, 9], "in both");
    // In TLogs.
    snapshot(&v, 2).await;
    assert_eq!(changed(&*v, 2).await, [0; 0]);
    assert_eq!(changed(&*v, 1).await, [3, 5, 6, 8, 9]);
    write(&v, 11).await;
    let second = v.open_snapshot("s2", MINUTE).await.unwrap();
    assert_eq!(changed(&second, 1).await, [3, 5, 6, 8, 9], "what came behind it does not count");
    let first = v.open_snapshot("s1", MINUTE).await.unwrap();
    assert_eq!(changed(&first, 2).await, [3, 5, 6, 8, 9], "and the other way round");
    drop((first, second));
    for _ in 0..2 {
        world.kill();
        world.boot().await.unwrap();
        let v = world.open().await.unwrap();
        assert_eq!(changed(&*v, 1).await, [3, 5, 6, 8, 9, 11], "found by another process");
        v.drain(MINUTE).await.unwrap();
        world.lose_data_dir();
        world.boot().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_rollback_differs_from_what_it_left() {
    let world = World::new(2, settings(), SIZE).await;
    let v = world.open().await.unwrap();
    snapshot(&v, 1).await;
    write(&v, 1).await;
    snapshot(&v, 2).await;
    write(&v, 2).await;
    v.drain(MINUTE).await.unwrap();
    v.close().await;
    let epoch = v.status().epoch.next();
    let v = world.driver().roll_back(&world.pool, VOLUME, epoch, 1, None).await.unwrap();
    assert_eq!(changed(&*v, 1).await, [0; 0], "what it dropped does not count");
    assert_eq!(changed(&*v, 2).await, [1]);
    write(&v, 4).await;
    assert_eq!(changed(&*v, 1).await, [4]);
    assert_eq!(changed(&*v, 2).await, [1, 4]);
    snapshot(&v, 3).await;
    let third = v.open_snapshot("s3", MINUTE).await.unwrap();
    assert_eq!(changed(&third, 2).await, [1, 4]);
    assert_eq!(changed(&third, 1).await, [4]);
    let second = v.open_snapshot("s2", MINUTE).await.unwrap();
    assert_eq!(changed(&second, 3).await, [1, 4]);
}

#[tokio::test(start_paused = true)]
async fn growth_differs_and_a_snapshot_that_is_gone_is_an_error() {
    let world = World::new(3, settings(), SIZE).await;
    let v = world.open().await.unwrap();
    snapshot(&v, 1).await;
    v.resize(SIZE + 2 * CLUSTER).await.unwrap();
    let last = SIZE / CLUSTER;
    assert_eq!(changed(&*v, 1).await, [last, last + 1]);
    let part = v.differences(1, SIZE - 512, 1024).await.unwrap();
    assert_eq!(part, [Difference { len: 512, changed: false }, Difference { len: 512, changed: true }]);
    assert_eq!(v.differences(1, SIZE, 4 * CLUSTER).await.unwrap_err().kind, ErrorKind::Invalid);
    v.change_snapshot(1, SnapshotChange::Delete, MINUTE).await.unwrap();
    assert_eq!(v.differences(1, 0, 4096).await.unwrap_err().kind, ErrorKind::NotFound);
    assert_eq!(v.differences(77, 0, 4096).await.unwrap_err().kind, ErrorKind::NotFound);
}

#[tokio::test(start_paused = true)]
async fn random_histories_of_writes_and_snapshots_are_told_to_the_cluster() {
    for seed in 0..20 {
        let settings = volumedriver::Settings { tlog_scos: 2 + seed as usize % 3, ..settings() };
        let world = World::new(seed, settings, SIZE).await;
        let v = world.open().await.unwrap();
        let mut chance = fastrand::Rng::with_seed(seed);
        // By snapshot, what was written since.
        let mut since: Vec<(u128, std::collections::BTreeSet<u64>)> = Vec::new();
        for step in 0..60 {
            match chance.u32(0..10) {
                0 => {
                    snapshot(&v, step).await;
                    since.push((step, Default::default()));
                }
                1 => v.drain(MINUTE).await.unwrap(),
                2 => sleep(&world, 15).await,
                kind => {
                    let (addr, n) = (chance.u64(0..300), chance.u64(1..20));
                    match kind {
                        3 => v.discard(addr * CLUSTER, n * CLUSTER, false).await.unwrap(),
                        _ => {
                            let data = Bytes::from(vec![kind as u8; (n * CLUSTER) as usize]);
                            v.write(addr * CLUSTER, data, false).await.unwrap();
                        }
                    }
                    since.iter_mut().for_each(|(_, all)| all.extend(addr..addr + n));
                }
            }
            let Some((id, all)) = since.get(chance.usize(0..since.len().max(1))) else { continue };
            let expected: Vec<u64> = all.iter().copied().collect();
            assert_eq!(changed(&*v, *id).await, expected, "seed {seed}, step {step}, since {id}");
        }
        if since.len() > 3 {
            v.change_snapshot(since[1].0, SnapshotChange::Delete, MINUTE).await.unwrap();
            sleep(&world, 60).await;
            assert_eq!(changed(&*v, since[0].0).await, since[0].1.iter().copied().collect::<Vec<_>>());
        }
    }
}
