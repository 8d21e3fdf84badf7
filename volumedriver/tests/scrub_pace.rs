//! How fast a scrub goes: beside clients of any volume it rests, unless somebody waits for it.
#![allow(missing_docs)]

mod world;

use common::sim::StoreFaults;
use common::{BlockDevice, Clock, Epoch, VolumeId};
use std::sync::Arc;
use std::time::Duration;
use volumedriver::{CreateVolume, Effort, Settings, Volume};
use world::*;

const MINUTE: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);

/// Two idle volumes, of which the first has so much garbage that a scrub begins at once.
async fn due() -> (World, Arc<Volume>, Arc<Volume>) {
    let mut world = World::new(21, Settings { scrub: false, ..settings() }, 16 << 20).await;
    let other = CreateVolume {
        id: VolumeId(0xbeef),
        name: "w".into(),
        size: 16 << 20,
        sco_size: 1 << 20,
        epoch: Epoch(1),
        parent: None,
    };
    let id = other.id;
    world.driver().create(&world.pool, other).await.unwrap();
    let v = world.open().await.unwrap();
    // Every SCO of the first pass loses every other cluster.
    for addr in (0..4096).chain((0..4096).step_by(2)) {
        v.write(addr * CLUSTER, cluster(1), false).await.unwrap();
    }
    v.drain(MINUTE).await.unwrap();
    drop(v);
    world.kill();
    world.settings.scrub = true;
    world.boot().await.unwrap();
    // Steps of a scrub take time.
    world.store.set_faults(StoreFaults { max_latency: Duration::from_millis(20), ..StoreFaults::default() });
    let w = world.driver().open(&world.pool, id, Epoch(1)).await.unwrap();
    let v = world.open().await.unwrap();
    (world, v, w)
}

/// Time until the first SCOs are given back, while `client` is polled ten times a second.
async fn until_it_scrubbed(world: &World, v: &Volume, mut client: impl AsyncFnMut()) -> Duration {
    let begin = world.clock.now();
    while v.status().scrub.deleted_scos == 0 {
        assert!(world.clock.now() - begin < MINUTE * 10, "it does not end");
        client().await;
        world.clock.sleep(SECOND / 10).await;
    }
    world.clock.now() - begin
}

#[tokio::test(start_paused = true)]
async fn a_scrub_rests_beside_the_clients_of_another_volume_and_not_without_any() {
    let (world, v, _w) = due().await;
    let alone = until_it_scrubbed(&world, &v, async || {}).await;
    let (world, v, w) = due().await;
    let beside = until_it_scrubbed(&world, &v, async || drop(w.read(0, 4096).await.unwrap())).await;
    assert!(beside > alone * 20, "{beside:?} beside a client, {alone:?} alone");
}

#[tokio::test(start_paused = true)]
async fn asking_for_a_scrub_ends_the_rests_of_the_one_at_work() {
    let (world, v, w) = due().await;
    let client = async { until_it_scrubbed(&world, &v, async || drop(w.read(0, 4096).await.unwrap())).await };
    let asking = async {
        // It is at work by then, and rests.
        world.clock.sleep(SECOND * 3).await;
        assert!(v.status().scrub.running && v.status().scrub.deleted_scos == 0);
        v.scrub(Effort::Due, SECOND * 5).await.unwrap();
    };
    let (_, ()) = tokio::join!(client, asking);
}

#[tokio::test(start_paused = true)]
async fn a_scrub_does_not_rest_while_writes_wait_for_its_end() {
    let (world, v, w) = due().await;
    let mut round = 0u64;
    let beside = until_it_scrubbed(&world, &v, async || {
        drop(w.read(0, 4096).await.unwrap());
        // More than is ever held back, in the first second.
        for addr in (round * 256..(round + 1) * 256).filter(|addr| *addr < 4096) {
            v.write(addr * CLUSTER, cluster(3), false).await.unwrap();
        }
        round += 1;
    });
    let beside = beside.await;
    assert!(beside < SECOND * 10, "{beside:?}");
}
