//! Snapshots, clones, rollback, templates.

use super::*;
use crate::{DescribeSnapshot, SnapshotShown, TakeSnapshot};

fn spec(name: &str) -> TakeSnapshot {
    TakeSnapshot { name: name.parse().unwrap(), consistent: false, sticky: false, metadata: Bytes::new() }
}

impl Node {
    async fn snap(&self, vdisk: &str, name: &str) -> Result<SnapshotShown> {
        self.router.take_snapshot("p", vdisk, spec(name)).await
    }

    async fn names(&self, vdisk: &str) -> Vec<String> {
        let all = self.router.snapshots("p", vdisk).await.unwrap();
        all.into_iter().map(|s| s.info.about.name).collect()
    }

    async fn clone_of(&self, vdisk: &str, snapshot: Option<&str>, name: &str) -> Result<VdiskInfo> {
        self.router.clone_vdisk("p", vdisk, snapshot, name.parse().unwrap()).await
    }

    async fn write(&self, export: &str, byte: u8) {
        let device = self.open(export).await.unwrap();
        device.write(0, Bytes::from(vec![byte; 4096]), true).await.unwrap();
    }

    async fn byte(&self, export: &str) -> u8 {
        self.open(export).await.unwrap().read(0, 1).await.unwrap()[0]
    }
}

async fn one_vdisk() -> (World, Node) {
    let world = World::new();
    let node = world.start().await;
    node.vpool("p", "s1").await;
    node.vdisk("p", "d").await.unwrap();
    (world, node)
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_is_read_by_name_and_never_written() {
    let (_world, node) = one_vdisk().await;
    node.write("p/d", 1).await;
    node.snap("d", "monday").await.unwrap();
    node.write("p/d", 2).await;
    node.snap("d", "tuesday").await.unwrap();
    assert_eq!(node.names("d").await, ["monday", "tuesday"]);
    assert_eq!(
        (node.byte("p/d@monday").await, node.byte("d@tuesday").await, node.byte("d").await),
        (1, 2, 2)
    );
    let monday = node.open("p/d@monday").await.unwrap();
    assert!(monday.geometry().read_only);
    assert_eq!(monday.write(0, Bytes::from(vec![9; 4096]), false).await.unwrap_err().kind, ErrorKind::Denied);
    // Who reads a snapshot uses the vDisk.
    assert_eq!(node.router.delete_vdisk("p", "d", false).await.unwrap_err().kind, ErrorKind::Denied);

    assert_eq!(node.snap("d", "monday").await.unwrap_err().kind, ErrorKind::Conflict);
    let missing = node.open("p/d@sunday").await.err().unwrap();
    assert_eq!(missing.kind, ErrorKind::NotFound);
    assert!(missing.message().contains("'sunday'") && missing.message().contains("'monday'"), "{missing}");
    let too_much = TakeSnapshot { metadata: Bytes::from(vec![0; 4097]), ..spec("big") };
    assert_eq!(node.router.take_snapshot("p", "d", too_much).await.unwrap_err().kind, ErrorKind::Invalid);
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn snapshots_are_taken_while_the_backend_is_away_and_survive_a_restart() {
    let (world, node) = one_vdisk().await;
    node.write("p/d", 1).await;
    world.away("s1", true);
    for n in 0..5 {
        let taken = node.snap("d", &format!("s{n}")).await.unwrap();
        assert_eq!(taken.info.lsn, None);
        node.write("p/d", 10 + n).await;
    }
    node.stop().await;
    world.away("s1", false);
    let node = world.start().await;
    node.ready().await;
    assert_eq!(node.names("d").await, ["s0", "s1", "s2", "s3", "s4"]);
    for (n, byte) in [1, 10, 11, 12, 13].into_iter().enumerate() {
        assert_eq!(node.byte(&format!("p/d@s{n}")).await, byte, "s{n}");
    }
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn words_about_a_snapshot_change_and_are_kept() {
    let (world, node) = one_vdisk().await;
    node.snap("d", "monday").await.unwrap();
    let words =
        DescribeSnapshot { sticky: Some(true), metadata: Some("ticket 17".into()), ..Default::default() };
    node.router.describe_snapshot("p", "d", "monday", words).await.unwrap();
    node.stop().await;
    let node = world.start().await;
    node.ready().await;
    let about = node.router.snapshot("p", "d", "monday").await.unwrap().info.about;
    assert!(about.sticky && !about.consistent && &about.metadata[..] == b"ticket 17", "{about:?}");
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_clone_begins_as_its_snapshot_and_goes_its_own_way() {
    let (world, node) = one_vdisk().await;
    node.write("p/d", 1).await;
    node.snap("d", "monday").await.unwrap();
    node.write("p/d", 2).await;
    let clone = node.clone_of("d", Some("monday"), "c").await.unwrap();
    assert_eq!((clone.size, clone.parent.unwrap().volume), (GIB, node.router.vdisk("p", "d").unwrap().id));
    assert_eq!(node.byte("p/c").await, 1);
    node.write("p/c", 3).await;
    node.snap("c", "own").await.unwrap();
    node.clone_of("c", Some("own"), "grandchild").await.unwrap();
    node.stop().await;
    let node = world.start().await;
    node.ready().await;
    let seen = ["p/d", "p/d@monday", "p/c", "p/grandchild"];
    for (export, byte) in seen.into_iter().zip([2, 1, 3, 3]) {
        assert_eq!(node.byte(export).await, byte, "{export}");
    }
    // Found again from the objects alone.
    node.router.detach_vpool("p", true).await.unwrap();
    let (_, adopted) = node.add("p", "s1", true).await.unwrap();
    assert_eq!(adopted.len(), 3);
    node.ready().await;
    assert_eq!(node.byte("p/grandchild").await, 3);
    assert_eq!(node.router.delete_vdisk("p", "d", false).await.unwrap_err().kind, ErrorKind::Denied);
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn nothing_goes_that_others_depend_on_and_they_are_named() {
    let (_world, node) = one_vdisk().await;
    node.snap("d", "monday").await.unwrap();
    for name in ["a", "b"] {
        node.clone_of("d", Some("monday"), name).await.unwrap();
    }
    let shown = node.router.snapshot("p", "d", "monday").await.unwrap();
    assert_eq!(shown.clones.iter().map(Name::as_str).collect::<Vec<_>>(), ["a", "b"]);
    for refused in [
        node.router.delete_snapshot("p", "d", "monday").await.unwrap_err(),
        node.router.delete_vdisk("p", "d", true).await.unwrap_err(),
    ] {
        assert_eq!(refused.kind, ErrorKind::Denied);
        assert!(refused.message().contains("'a', 'b'"), "{refused}");
    }
    for name in ["a", "b"] {
        node.router.delete_vdisk("p", name, false).await.unwrap();
    }
    node.router.delete_snapshot("p", "d", "monday").await.unwrap();
    assert!(node.names("d").await.is_empty());
    assert_eq!(node.clone_of("d", Some("monday"), "c").await.unwrap_err().kind, ErrorKind::NotFound);
    node.router.delete_vdisk("p", "d", false).await.unwrap();
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_that_was_being_deleted_at_a_crash_goes_and_is_not_cloned() {
    let (world, node) = one_vdisk().await;
    node.snap("d", "monday").await.unwrap();
    let info = node.router.snapshot("p", "d", "monday").await.unwrap().info;
    let vdisk = node.router.find_vdisk("p", "d").unwrap();
    let id = crate::SnapshotId(info.about.id);
    node.router.change_record(&vdisk, |record| record.leaving.push(id)).await.unwrap();
    assert_eq!(node.clone_of("d", Some("monday"), "c").await.unwrap_err().kind, ErrorKind::Conflict);
    node.stop().await;
    let node = world.start().await;
    node.ready().await;
    node.router.clock.sleep(Duration::from_secs(5)).await;
    assert!(node.names("d").await.is_empty());
    assert!(node.router.find_vdisk("p", "d").unwrap().stored().record.leaving.is_empty());
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_rollback_brings_the_snapshot_back_and_keeps_the_later_ones() {
    let (world, node) = one_vdisk().await;
    for (byte, name) in [(1, "one"), (2, "two"), (3, "three")] {
        node.write("p/d", byte).await;
        node.snap("d", name).await.unwrap();
    }
    node.router.resize_vdisk("p", "d", 2 * GIB).await.unwrap();
    let client = node.open("p/d").await.unwrap();
    assert_eq!(node.router.roll_back("p", "d", "one", false).await.unwrap_err().kind, ErrorKind::Denied);
    let rolled = node.router.roll_back("p", "d", "one", true).await.unwrap();
    assert_eq!(client.read(0, 1).await.unwrap_err().kind, ErrorKind::Fenced);
    drop(client);
    assert_eq!((rolled.size, rolled.state), (2 * GIB, crate::VdiskState::Serving));
    let check = async |node: &Node| {
        for (export, byte) in [("p/d", 1), ("p/d@one", 1), ("p/d@two", 2), ("p/d@three", 3)] {
            assert_eq!(node.byte(export).await, byte, "{export}");
        }
    };
    check(&node).await;
    node.stop().await;
    let node = world.start().await;
    node.ready().await;
    check(&node).await;
    // And forward again, to what the head no longer has.
    node.write("p/d", 4).await;
    node.router.roll_back("p", "d", "three", false).await.unwrap();
    assert_eq!(node.byte("p/d").await, 3);
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_rollback_without_its_backend_changes_nothing() {
    let (world, node) = one_vdisk().await;
    node.write("p/d", 1).await;
    node.snap("d", "one").await.unwrap();
    node.router.drain_vdisk("p", "d", Some(Duration::from_secs(60))).await.unwrap();
    node.write("p/d", 2).await;
    world.away("s1", true);
    let refused = node.router.roll_back("p", "d", "one", false).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Unavailable);
    assert_eq!(node.byte("p/d").await, 2);
    world.away("s1", false);
    node.router.roll_back("p", "d", "one", false).await.unwrap();
    assert_eq!(node.byte("p/d").await, 1);
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_template_is_cloned_by_its_name_and_never_changes() {
    let (world, node) = one_vdisk().await;
    node.write("p/d", 7).await;
    assert_eq!(node.clone_of("d", None, "c").await.unwrap_err().kind, ErrorKind::Invalid);
    let client = node.open("p/d").await.unwrap();
    assert_eq!(node.router.make_template("p", "d", false).await.unwrap_err().kind, ErrorKind::Denied);
    drop(client);
    assert!(node.router.make_template("p", "d", false).await.unwrap().template);
    node.stop().await;
    let node = world.start().await;
    node.ready().await;
    assert!(node.router.vdisk("p", "d").unwrap().template);
    node.clone_of("d", None, "c").await.unwrap();
    assert_eq!(node.byte("p/c").await, 7);
    assert!(node.open("p/d").await.unwrap().geometry().read_only);
    for refused in [
        node.router.set_read_only("p", "d", false).await.map(drop),
        node.router.resize_vdisk("p", "d", 2 * GIB).await.map(drop),
        node.router.roll_back("p", "d", "template", true).await.map(drop),
        node.router.delete_snapshot("p", "d", "template").await,
        node.snap("d", "more").await.map(drop),
    ] {
        assert_eq!(refused.unwrap_err().kind, ErrorKind::Denied);
    }
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_group_is_one_instant_or_nothing() {
    let (_world, node) = one_vdisk().await;
    node.vdisk("p", "e").await.unwrap();
    let pair = ["d", "e"].map(|name| ("p".to_string(), name.to_string()));
    // A writer that writes to the one and, once that is acknowledged, to the other.
    let (d, e) = (node.open("p/d").await.unwrap(), node.open("p/e").await.unwrap());
    let clock = node.router.clock.clone();
    let writer = tokio::spawn(async move {
        for n in 1..=200u8 {
            for device in [&d, &e] {
                device.write(0, Bytes::from(vec![n; 4096]), false).await.unwrap();
            }
            clock.sleep(Duration::from_millis(1)).await;
        }
    });
    for n in 0..20 {
        node.router.take_snapshots(&pair, spec(&format!("g{n}"))).await.unwrap();
        node.router.clock.sleep(Duration::from_millis(7)).await;
    }
    writer.await.unwrap();
    for n in 0..20 {
        let (d, e) = (node.byte(&format!("p/d@g{n}")).await, node.byte(&format!("p/e@g{n}")).await);
        assert!(d == e || d == e + 1, "g{n}: {d} and {e}");
    }
    node.snap("e", "taken").await.unwrap();
    let refused = node.router.take_snapshots(&pair, spec("taken")).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Conflict);
    assert!(!node.names("d").await.contains(&"taken".to_string()), "one of the group was taken");
    node.write("p/d", 9).await;
    node.stop().await;
}
