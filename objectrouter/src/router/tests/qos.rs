//! Limits of vDisks.

use super::*;
use crate::qos::Qos;
use futures::future::join_all;

const ONE_A_SECOND: Qos = Qos {
    read_iops: Some(1),
    write_iops: None,
    read_bytes_per_second: None,
    write_bytes_per_second: None,
    burst_ms: Qos::DEFAULT_BURST_MS,
};

/// Virtual seconds that so many reads take.
async fn seconds_of(world: &World, device: &Arc<dyn BlockDevice>, reads: usize) -> u64 {
    let begin = world.clock.now();
    for read in join_all((0..reads).map(|_| device.read(0, 512))).await {
        read.unwrap();
    }
    (world.clock.now() - begin).as_secs()
}

#[tokio::test(start_paused = true)]
async fn limits_hold_at_once_for_all_clients_and_over_a_restart() {
    let world = World::new();
    let node = world.start().await;
    node.vpool("p", "s1").await;
    assert_eq!(node.vdisk("p", "d").await.unwrap().qos, None);
    node.vdisk("p", "other").await.unwrap();
    let (device, other) = (node.open("p/d").await.unwrap(), node.open("p/other").await.unwrap());
    assert_eq!(seconds_of(&world, &device, 100).await, 0);

    let set = node.router.set_qos("p", "d", Some(ONE_A_SECOND)).await.unwrap();
    assert_eq!(set.qos, Some(ONE_A_SECOND));
    assert_eq!(seconds_of(&world, &device, 11).await, 10);
    assert_eq!(seconds_of(&world, &node.open("d").await.unwrap(), 10).await, 10, "shared");
    assert_eq!(seconds_of(&world, &other, 100).await, 0, "its own");
    drop((device, other));
    node.stop().await;

    let node = world.start().await;
    node.ready().await;
    assert_eq!(node.router.vdisk("p", "d").unwrap().qos, Some(ONE_A_SECOND));
    let device = node.open("p/d").await.unwrap();
    assert_eq!(seconds_of(&world, &device, 11).await, 10);
    node.router.set_qos("p", "d", None).await.unwrap();
    assert_eq!(seconds_of(&world, &device, 100).await, 0);
    drop(device);
    node.stop().await;
    let node = world.start().await;
    assert_eq!(node.router.vdisk("p", "d").unwrap().qos, None);
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_waited_is_counted_for_vdisks_with_limits() {
    let world = World::new();
    let node = world.start().await;
    node.vpool("p", "s1").await;
    node.vdisk("p", "d").await.unwrap();
    node.vdisk("p", "free").await.unwrap();
    let device = node.open("p/d").await.unwrap();
    node.router.set_qos("p", "d", Some(ONE_A_SECOND)).await.unwrap();
    assert_eq!(seconds_of(&world, &device, 4).await, 3);
    let mut text = String::new();
    encode(&mut text, &node.registry).unwrap();
    for line in [
        "storagerouter_objectrouter_qos_waited_requests_total{vpool=\"p\",vdisk=\"d\",direction=\"read\"} 3\n",
        "storagerouter_objectrouter_qos_waited_requests_total{vpool=\"p\",vdisk=\"d\",direction=\"write\"} 0\n",
        // One, two and three seconds, and what timers are late.
        "storagerouter_objectrouter_qos_waited_seconds_total{vpool=\"p\",vdisk=\"d\",direction=\"read\"} 6.0",
    ] {
        assert!(text.contains(line), "{line} is not in {text}");
    }
    assert!(
        !text.contains("direction=\"read\",vdisk=\"free\"") && !text.contains("vdisk=\"free\",direction")
    );
    drop(device);
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn limits_that_cannot_be_right_change_nothing() {
    let world = World::new();
    let node = world.start().await;
    node.vpool("p", "s1").await;
    node.vdisk("p", "d").await.unwrap();
    node.router.set_qos("p", "d", Some(ONE_A_SECOND)).await.unwrap();
    let wrong = Qos { read_iops: Some(0), ..ONE_A_SECOND };
    let error = node.router.set_qos("p", "d", Some(wrong)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Invalid);
    assert!(error.message().contains("read_iops = 0"), "{error}");
    assert_eq!(node.router.vdisk("p", "d").unwrap().qos, Some(ONE_A_SECOND));
    let error = node.router.set_qos("p", "none", None).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound);
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_lets_those_who_wait_pass_and_keeps_the_limits_for_the_next_start() {
    let world = World::new();
    let node = world.start().await;
    node.vpool("p", "s1").await;
    node.vdisk("p", "d").await.unwrap();
    let device = node.open("p/d").await.unwrap();
    node.router.set_qos("p", "d", Some(ONE_A_SECOND)).await.unwrap();
    let reads = seconds_of(&world, &device, 1000);
    let stop = async {
        world.clock.sleep(Duration::from_millis(1500)).await;
        node.router.lift_limits();
        // A change of something else does not bring them back.
        node.router.set_read_only("p", "d", true).await.unwrap();
    };
    let (seconds, ()) = futures::join!(reads, stop);
    assert_eq!(seconds, 1);
    drop(device);
    node.stop().await;
    let node = world.start().await;
    assert_eq!(node.router.vdisk("p", "d").unwrap().qos, Some(ONE_A_SECOND));
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_deletion_by_force_frees_those_who_wait() {
    let world = World::new();
    let node = world.start().await;
    node.vpool("p", "s1").await;
    node.vdisk("p", "d").await.unwrap();
    let device = node.open("p/d").await.unwrap();
    node.router.set_qos("p", "d", Some(ONE_A_SECOND)).await.unwrap();
    let begin = world.clock.now();
    let reads = async {
        let answers = join_all((0..1000).map(|_| device.read(0, 512))).await;
        (answers, world.clock.now() - begin)
    };
    let delete = async {
        world.clock.sleep(Duration::from_millis(1500)).await;
        node.router.delete_vdisk("p", "d", true).await.unwrap();
    };
    let ((answers, took), ()) = futures::join!(reads, delete);
    let fenced = answers.iter().filter(|a| a.as_ref().is_err_and(|e| e.kind == ErrorKind::Fenced)).count();
    assert_eq!(fenced, 998);
    assert!(took < Duration::from_secs(2), "{took:?}");
    node.stop().await;
}
