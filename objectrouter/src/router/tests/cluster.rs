//! Two and three routers on one registry and one store.

mod pulls;

use super::*;
use crate::VdiskState;
use crate::registry::Incarnation;
use common::kv::KvChanges;

/// Further routers beside `world`, each with a disk and a DTL of its own.
fn beside(world: &World, name: &str, device: u128) -> World {
    World {
        kv: world.kv.clone(),
        disk: Arc::new(SimDisk::new()),
        stores: world.stores.clone(),
        clock: world.clock.clone(),
        device: VolumeId(device),
        name: name.to_string(),
        wire: world.wire.clone(),
    }
}

impl World {
    fn with_dtl(&self) {
        let store = Store::memory(Limits::default(), self.clock.clone());
        let settings = dtl::service::Settings::default();
        let service = Service::new(store, settings, self.clock.clone(), ServiceMetrics::default());
        self.wire.services.lock().insert(self.name.clone(), service);
    }

    /// What the registry said of a volume, one after the other, after revision `since`.
    async fn versions(&self, id: VolumeId, since: u64) -> Vec<VolumeRecord> {
        let (key, mut from) = (format!("volume/{id}"), since + 1);
        let (until, mut found) = (self.revision().await, Vec::new());
        while from < until {
            let Ok(KvChanges::Changed(changes, next)) = self.kv.changes("", from).await else {
                panic!("the history is gone")
            };
            let of_it = changes.into_iter().filter(|change| change.key == key);
            found.extend(
                of_it.filter_map(|change| crate::registry::records::decode(&key, &change.value?).ok()),
            );
            from = next;
        }
        found
    }

    async fn volume(&self, id: VolumeId) -> VolumeRecord {
        Records::new(self.kv.clone()).volume(id).await.unwrap().unwrap().record
    }
}

impl Node {
    async fn until(&self, what: &str, holds: impl Fn(&VdiskInfo) -> bool) -> VdiskInfo {
        for _ in 0..2000 {
            if let Ok(info) = self.router.vdisk("p", "d")
                && holds(&info)
            {
                return info;
            }
            self.router.clock.sleep(Duration::from_millis(10)).await;
        }
        panic!("never {what}: {:?}", self.router.vdisk("p", "d"));
    }

    async fn serving(&self) -> VdiskInfo {
        self.until("serving", |info| info.state == VdiskState::Serving).await
    }

    async fn in_sync(&self) -> VdiskInfo {
        let in_sync =
            |info: &VdiskInfo| info.dtl.status == dtl::Status::InSync && info.state == VdiskState::Serving;
        self.until("in sync", in_sync).await
    }

    /// The registry has not heard of it for long, and it does nothing about that: a zombie.
    async fn expire(&self, world: &World) {
        let lease = self.router.cluster.incarnation().unwrap().lease;
        self.router.tasks.stop(&*world.clock, Duration::ZERO).await;
        world.kv.expire(lease);
    }

    async fn first(&self) -> u8 {
        self.open("p/d").await.unwrap().read(0, 1).await.unwrap()[0]
    }
}

fn block(byte: u8) -> Bytes {
    Bytes::from(vec![byte; 4096])
}

/// Routers a, b and c with a vDisk `p/d` of a's, replicated to one of the others.
async fn three() -> ([World; 3], [Node; 3]) {
    let a = World::new();
    let worlds = [beside(&a, "b", 2), beside(&a, "c", 3)];
    let [b, c] = worlds;
    let worlds = [a, b, c];
    for world in &worlds {
        world.with_dtl();
    }
    let [a, b, c] = &worlds;
    let nodes = [a.start().await, b.start().await, c.start().await];
    for _ in 0..100 {
        if nodes.iter().all(|node| node.router.nodes().len() == 3) {
            break;
        }
        a.clock.sleep(Duration::from_millis(10)).await;
    }
    nodes[0].vpool("p", "s1").await;
    nodes[0].vdisk("p", "d").await.unwrap();
    nodes[0].in_sync().await;
    for node in &nodes[1..] {
        node.until("known", |info| info.state == VdiskState::Elsewhere).await;
    }
    (worlds, nodes)
}

/// Who else has the tail, and who has nothing.
async fn roles(worlds: &[World; 3], id: VolumeId) -> (usize, usize) {
    let record = worlds[0].volume(id).await;
    let peer = record.registration.config.peers[0].node.to_string();
    if peer == "b" { (1, 2) } else { (2, 1) }
}

#[tokio::test(start_paused = true)]
async fn one_router_serves_and_the_others_know_whose_it_is() {
    let (_worlds, nodes) = three().await;
    let info = nodes[1].router.vdisk("p", "d").unwrap();
    assert_eq!((info.owner.as_str(), info.state), ("a", VdiskState::Elsewhere));
    assert_eq!(nodes[1].open("p/d").await.err().unwrap().kind, ErrorKind::NotOwner);
    assert_eq!(nodes[0].router.vdisk("p", "d").unwrap().dtl.mode, dtl::Mode::Sync);
    // What one deletes is gone everywhere.
    nodes[0].router.delete_vdisk("p", "d", false).await.unwrap();
    for node in &nodes {
        for _ in 0..100 {
            if node.router.vdisk("p", "d").is_err() {
                break;
            }
            node.router.clock.sleep(Duration::from_millis(10)).await;
        }
        assert!(node.router.vdisk("p", "d").is_err());
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_takes_over_what_was_acknowledged_and_the_old_owner_says_nothing_more() {
    let (worlds, nodes) = three().await;
    let id = nodes[0].router.vdisk("p", "d").unwrap().id;
    let (peer, other) = roles(&worlds, id).await;
    let client = nodes[0].open("p/d").await.unwrap();
    client.write(0, block(7), false).await.unwrap();
    nodes[0].expire(&worlds[0]).await;
    assert_eq!(client.write(4096, block(8), false).await.unwrap_err().kind, ErrorKind::NotOwner);
    assert_eq!(client.read(0, 1).await.unwrap_err().kind, ErrorKind::NotOwner);
    let info = nodes[peer].serving().await;
    assert_eq!(nodes[peer].first().await, 7);
    assert_eq!(info.owner.as_str(), worlds[peer].name);
    assert!(nodes[other].open("p/d").await.is_err());
    assert!(client.read(0, 1).await.is_err());
    // Replicated again, to whoever is left.
    nodes[peer].in_sync().await;
}

#[tokio::test(start_paused = true)]
async fn a_router_that_lost_its_seat_takes_another_one_and_opens_what_is_still_its_own() {
    let (worlds, nodes) = three().await;
    let before = nodes[0].router.vdisk("p", "d").unwrap();
    let client = nodes[0].open("p/d").await.unwrap();
    client.write(0, block(7), false).await.unwrap();
    worlds[0].kv.expire(nodes[0].router.cluster.incarnation().unwrap().lease);
    // It is back before anybody else moves.
    let again = nodes[0].until("open anew", |info| info.epoch > before.epoch && info.status.is_some()).await;
    assert_eq!(again.owner.as_str(), "a");
    assert!(client.read(0, 1).await.is_err(), "a handle of the old epoch is for nothing");
    assert_eq!(nodes[0].first().await, 7);
}

#[tokio::test(start_paused = true)]
async fn what_nobody_else_has_is_left_alone_until_its_owner_is_back_or_an_operator_forces_it() {
    let (worlds, nodes) = three().await;
    let id = nodes[0].router.vdisk("p", "d").unwrap().id;
    nodes[0].router.drain_vdisk("p", "d", Some(Duration::from_secs(60))).await.unwrap();
    let client = nodes[0].open("p/d").await.unwrap();
    // Nobody replicates: the registry says so before the write is answered.
    worlds[0].wire.cut.send_replace(true);
    client.write(0, block(5), false).await.unwrap();
    assert_eq!(worlds[0].volume(id).await.registration.config.status, dtl::Status::Degraded);
    drop(client);
    let [a, b, c] = nodes;
    // Killed: what it had in its disk stays there.
    a.expire(&worlds[0]).await;
    a.router.find_vdisk("p", "d").unwrap().volume().unwrap().close().await;
    let orphan = b.until("orphaned", |info| info.state == VdiskState::Orphaned).await;
    assert!(orphan.reason.unwrap().contains("'a'"));
    worlds[0].clock.sleep(Duration::from_secs(30)).await;
    assert_eq!(c.router.vdisk("p", "d").unwrap().state, VdiskState::Orphaned);
    let forced = b.router.force_vdisk("p", "d").await.unwrap();
    assert_eq!(forced.losses.len(), 1, "{forced:?}");
    assert_eq!(b.first().await, 0, "what was lost is not there, and it is recorded");
    assert_eq!(worlds[0].volume(id).await.registration.losses.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_move_loses_nothing_wherever_it_goes() {
    let (worlds, nodes) = three().await;
    let id = nodes[0].router.vdisk("p", "d").unwrap().id;
    let (peer, other) = roles(&worlds, id).await;
    let name = |n: usize| worlds[n].name.parse::<Name>().unwrap();
    nodes[0].open("p/d").await.unwrap().write(0, block(1), false).await.unwrap();
    // To who has the tail, and on to who has not.
    nodes[0].router.move_vdisk("p", "d", &name(peer)).await.unwrap();
    nodes[peer].serving().await;
    assert_eq!(nodes[peer].first().await, 1);
    nodes[peer].open("p/d").await.unwrap().write(0, block(2), false).await.unwrap();
    nodes[peer].router.move_vdisk("p", "d", &name(other)).await.unwrap();
    nodes[other].serving().await;
    assert_eq!(nodes[other].first().await, 2);
    let refused = nodes[0].router.move_vdisk("p", "d", &name(peer)).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::NotOwner);
    let refused = nodes[other].router.move_vdisk("p", "d", &"nobody".parse().unwrap()).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::NotFound);
}

#[tokio::test(start_paused = true)]
async fn what_was_acknowledged_while_a_vdisk_moved_is_there() {
    let (worlds, nodes) = three().await;
    let id = nodes[0].router.vdisk("p", "d").unwrap().id;
    for round in 0..6u64 {
        let (owner, _) = {
            let info = nodes[0].router.vdisk("p", "d").unwrap();
            let at = worlds.iter().position(|world| world.name == info.owner.as_str()).unwrap();
            nodes[at].in_sync().await;
            (at, ())
        };
        let (peer, other) = {
            let peer = worlds[0].volume(id).await.registration.config.peers[0].node.to_string();
            let peer = worlds.iter().position(|world| world.name == peer).unwrap();
            (peer, 3 - owner - peer)
        };
        let to = if round % 2 == 0 { other } else { peer };
        let begin = worlds[0].revision().await;
        // Many at a time, all over the time of the move.
        let writers = (0..32u64).map(|slot| {
            let node = &nodes[owner];
            async move {
                let client = node.open("p/d").await.unwrap();
                let mut acknowledged = 0;
                for n in 1..=200u8 {
                    if client.write(slot * 4096, block(n), false).await.is_err() {
                        break;
                    }
                    acknowledged = n;
                    node.router.clock.sleep(Duration::from_micros(500)).await;
                }
                acknowledged
            }
        });
        let name: Name = worlds[to].name.parse().unwrap();
        let moved = async {
            nodes[owner].router.clock.sleep(Duration::from_millis(20)).await;
            // A write may come at the last moment: then it stays, and is asked again.
            while nodes[owner].router.move_vdisk("p", "d", &name).await.is_err() {
                nodes[owner].router.clock.sleep(Duration::from_millis(100)).await;
                if nodes[to].router.vdisk("p", "d").unwrap().state == VdiskState::Serving {
                    break;
                }
            }
        };
        let (acknowledged, ()) = futures::join!(futures::future::join_all(writers), moved);
        nodes[to].serving().await;
        if to == peer {
            // What was written last is at the peer and not on the backend: nobody may believe that it is.
            let given = worlds[0].versions(id, begin).await;
            let given: Vec<_> = given.iter().filter(|record| record.moving_to.is_some()).collect();
            assert!(!given.is_empty(), "it was not given away");
            assert!(given.iter().all(|record| !record.registration.clean), "round {round}: {given:?}");
        }
        let device = nodes[to].open("p/d").await.unwrap();
        for (slot, acknowledged) in acknowledged.into_iter().enumerate() {
            let found = device.read(slot as u64 * 4096, 1).await.unwrap()[0];
            // One more may have come that was not acknowledged.
            assert!(
                found == acknowledged || found == acknowledged + 1,
                "round {round}: {found}, not {acknowledged}"
            );
        }
        drop(device);
        // The next round writes from 1 again.
        nodes[to].in_sync().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_proposal_that_comes_after_the_lease_has_ended_changes_nothing() {
    let (worlds, nodes) = three().await;
    let id = nodes[0].router.vdisk("p", "d").unwrap().id;
    let before = worlds[0].volume(id).await;
    let peers = crate::cluster::RegistryPeers::new(
        nodes[0].router.cluster.clone(),
        nodes[0].router.cluster.incarnation().unwrap(),
    );
    nodes[0].expire(&worlds[0]).await;
    let config = &before.registration.config;
    let alone = dtl::Config { config: config.config + 1, status: dtl::Status::Degraded, ..config.clone() };
    let expect = (before.registration.epoch, config.config);
    let outcome = volumedriver::Peers::propose(&peers, id, expect, &alone).await;
    assert_ne!(outcome, dtl::owner::Outcome::Applied);
    assert_eq!(worlds[0].volume(id).await.registration.config.status, dtl::Status::InSync);
}

#[tokio::test(start_paused = true)]
async fn a_router_that_stops_gives_its_vdisks_away_and_one_that_drains_takes_none_back() {
    let (worlds, nodes) = three().await;
    let id = nodes[0].router.vdisk("p", "d").unwrap().id;
    let (peer, _) = roles(&worlds, id).await;
    nodes[0].open("p/d").await.unwrap().write(0, block(3), false).await.unwrap();
    let mut nodes = nodes.map(Some);
    nodes[0].take().unwrap().stop().await;
    let now = nodes[peer].as_ref().unwrap();
    now.serving().await;
    assert_eq!(now.first().await, 3);
    // The first one is back, and the second one drains.
    let back = worlds[0].start().await;
    back.until("elsewhere", |info| info.state == VdiskState::Elsewhere).await;
    now.in_sync().await;
    now.router.drain_router(true).await.unwrap();
    now.until("given away", |info| info.state == VdiskState::Elsewhere).await;
    let routers = now.router.routers().await.unwrap();
    let drained = routers.iter().find(|r| r.name.as_str() == worlds[peer].name).unwrap();
    assert_eq!((drained.draining, drained.vdisks), (true, 0));
}

#[tokio::test(start_paused = true)]
async fn a_router_that_leaves_gives_everything_away_first_or_says_what_nobody_takes() {
    let (worlds, nodes) = three().await;
    nodes[0].vpool("q", "s2").await;
    nodes[0].vdisk("q", "e").await.unwrap();
    nodes[0].open("p/d").await.unwrap().write(0, block(6), false).await.unwrap();
    // Of this one nobody else has anything, and its store does not answer.
    let none = DtlWish { mode: Some(dtl::Mode::None), ..DtlWish::default() };
    nodes[0].router.set_dtl("q", "e", none).await.unwrap();
    worlds[0].away("s2", true);
    nodes[0].open("q/e").await.unwrap().write(0, block(5), false).await.unwrap();
    let refused = nodes[0].router.give_all_away(Duration::from_secs(60)).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Conflict, "{refused}");
    assert!(refused.message().contains("1 vDisk(s), 'q/e'"), "{refused}");
    // It stays, and takes vDisks as before.
    assert!(!nodes[0].router.nodes()[&"a".parse().unwrap()].draining);
    worlds[0].away("s2", false);
    assert_eq!(nodes[0].open("q/e").await.unwrap().read(0, 1).await.unwrap()[0], 5);
    nodes[0].router.give_all_away(Duration::from_secs(60)).await.unwrap();
    assert!(nodes[0].router.vdisks().iter().all(|info| info.owner.as_str() != "a"));
    // Not for good: another seat of this name takes them again.
    let record = nodes[0].router.records().router(nodes[0].router.node()).await.unwrap().unwrap().record;
    assert!(!record.draining);
    // Who is alone is told so at once.
    nodes[0].router.take_vdisks_again().await.unwrap();
    for node in &nodes[1..] {
        node.router.drain_router(true).await.unwrap();
    }
    nodes[0].until("back", |info| info.state == VdiskState::Serving).await;
    let refused = nodes[0].router.give_all_away(Duration::from_secs(3600)).await.unwrap_err();
    assert!(refused.message().contains("no other storage router"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn a_registry_of_before_is_not_believed() {
    let (worlds, nodes) = three().await;
    let id = nodes[0].router.vdisk("p", "d").unwrap().id;
    let (peer, _) = roles(&worlds, id).await;
    // As the registry is when it was just made: clean, and of the first epoch.
    let kv = &worlds[0].kv;
    let key = format!("volume/{id}");
    let old = worlds[0].volume(id).await;
    nodes[0].router.move_vdisk("p", "d", &worlds[peer].name.parse().unwrap()).await.unwrap();
    nodes[peer].open("p/d").await.unwrap().write(0, block(9), false).await.unwrap();
    nodes[peer].in_sync().await;
    for node in &nodes {
        node.expire(&worlds[0]).await;
        if let Some(volume) = node.router.find_vdisk("p", "d").unwrap().volume() {
            volume.close().await;
        }
    }
    let mut back = old;
    back.registration.clean = true;
    back.registration.tails.clear();
    let value = crate::registry::records::encode(&back).unwrap();
    kv.txn(vec![], vec![common::kv::KvOp::Put(key, value)]).await.unwrap();
    // Its owner of then has nothing of what came later.
    let again = worlds[0].start().await;
    let refused = |info: &VdiskInfo| info.reason.as_ref().is_some_and(|why| why.contains("at risk"));
    again.until("refused", refused).await;
    assert!(again.open("p/d").await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_vpool_that_is_detached_elsewhere_is_closed_here() {
    let (worlds, nodes) = three().await;
    let client = nodes[0].open("p/d").await.unwrap();
    // Only who has the vDisks may let go of them.
    let refused = nodes[1].router.detach_vpool("p", true).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::NotOwner, "{refused}");
    // As an older release, or a hand, might have done it.
    let id = nodes[0].router.vdisk("p", "d").unwrap().id;
    let keys = ["vpool/p".to_string(), "vdisk/p/d".to_string(), format!("volume/{id}")];
    let ops = keys.into_iter().map(common::kv::KvOp::Delete).collect();
    worlds[0].kv.txn(vec![], ops).await.unwrap();
    worlds[0].clock.sleep(Duration::from_secs(1)).await;
    assert!(client.read(0, 1).await.is_err());
    assert!(client.write(0, block(1), false).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_router_that_can_not_open_what_it_claimed_gives_it_back() {
    let (worlds, nodes) = three().await;
    let id = nodes[0].router.vdisk("p", "d").unwrap().id;
    let (peer, _) = roles(&worlds, id).await;
    nodes[0].open("p/d").await.unwrap().write(0, block(4), false).await.unwrap();
    let [a, b, c] = nodes;
    worlds[0].away("s1", true);
    a.expire(&worlds[0]).await;
    a.router.find_vdisk("p", "d").unwrap().volume().unwrap().close().await;
    drop(a);
    worlds[0].clock.sleep(Duration::from_secs(5)).await;
    // Its owner is back, with the store: whoever tried meanwhile does not keep it from that.
    let back = worlds[0].start().await;
    worlds[0].away("s1", false);
    let others = [&b, &c];
    let mut served = None;
    for _ in 0..600 {
        served = std::iter::once(&back)
            .chain(others)
            .find(|n| n.router.vdisk("p", "d").is_ok_and(|info| info.state == VdiskState::Serving));
        if served.is_some() {
            break;
        }
        worlds[0].clock.sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(served.expect("nobody serves it").first().await, 4);
    let _ = peer;
}

#[tokio::test(start_paused = true)]
async fn a_group_of_several_owners_is_refused_with_their_names_and_no_snapshot_is_taken() {
    let (worlds, nodes) = three().await;
    nodes[0].vdisk("p", "e").await.unwrap();
    nodes[1].vdisk("p", "f").await.unwrap();
    let spec =
        TakeSnapshot { name: "s".parse().unwrap(), consistent: false, sticky: false, metadata: Bytes::new() };
    let group =
        |names: &[&str]| names.iter().map(|name| ("p".to_string(), name.to_string())).collect::<Vec<_>>();
    for _ in 0..1000 {
        if nodes.iter().all(|node| node.router.vdisks().len() == 3) {
            break;
        }
        worlds[0].clock.sleep(Duration::from_millis(10)).await;
    }
    for node in &nodes {
        let refused = node.router.take_snapshots(&group(&["d", "e", "f"]), spec.clone()).await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Conflict, "{refused}");
        for part in ["'a' has p/d, p/e", "'b' has p/f", "move 'p/f' to 'a' first"] {
            assert!(refused.message().contains(part), "{part}: {refused}");
        }
    }
    assert!(nodes[0].router.snapshots("p", "d").await.unwrap().is_empty());
    // Of those that one has, that one takes it.
    let elsewhere = nodes[2].router.take_snapshots(&group(&["d", "e"]), spec.clone()).await.unwrap_err();
    assert_eq!(elsewhere.kind, ErrorKind::NotOwner, "{elsewhere}");
    nodes[1].router.move_vdisk("p", "f", &"a".parse().unwrap()).await.unwrap();
    let taken = nodes[0].router.take_snapshots(&group(&["d", "e", "f"]), spec).await.unwrap();
    assert_eq!(taken.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_vdisk_that_is_not_replicated_any_more_names_no_peer() {
    let (worlds, nodes) = three().await;
    let id = nodes[0].router.vdisk("p", "d").unwrap().id;
    let (peer, _) = roles(&worlds, id).await;
    let service = worlds[0].wire.services.lock()[&worlds[peer].name].clone();
    worlds[0].away("s1", true);
    nodes[0].open("p/d").await.unwrap().write(0, block(1), false).await.unwrap();
    let kept = || service.store().bytes();
    assert!(kept() > 4096, "{}", kept());
    let none = DtlWish { mode: Some(dtl::Mode::None), ..DtlWish::default() };
    nodes[0].router.set_dtl("p", "d", none).await.unwrap();
    nodes[0].until("without peers", |info| info.dtl.peers.is_empty()).await;
    let record = worlds[0].volume(id).await;
    assert_eq!(
        (record.registration.config.mode, record.registration.config.peers.len()),
        (dtl::Mode::None, 0)
    );
    for _ in 0..1000 {
        if kept() < 4096 {
            break;
        }
        worlds[0].clock.sleep(Duration::from_millis(10)).await;
    }
    assert!(kept() < 4096, "what it kept is of no use any more: {}", kept());
    worlds[0].away("s1", false);
    let sync = DtlWish { mode: Some(dtl::Mode::Sync), ..DtlWish::default() };
    nodes[0].router.set_dtl("p", "d", sync).await.unwrap();
    nodes[0].in_sync().await;
    assert_eq!(nodes[0].first().await, 1);
}

#[tokio::test(start_paused = true)]
async fn a_name_belongs_to_one_data_directory() {
    let a = World::new();
    let _node = a.start().await;
    let twin = beside(&a, "a", 77);
    let mut registry = Metrics::default();
    let driver = Driver::start(
        volumedriver::Settings { journal_mib: 32, segment_mib: 4, ..Default::default() },
        twin.disk.clone(),
        Arc::new(SimTable::new()),
        twin.clock.clone(),
        &mut registry,
    )
    .await
    .unwrap();
    let open: OpenStore = Arc::new(|_| Box::pin(async { Err(Error::unavailable("none")) }));
    let stores = Stores { open: open.clone(), attach: open };
    let refused = Router::start(
        twin.kv.clone(),
        twin.membership(),
        driver,
        stores,
        twin.clock.clone(),
        Settings::default(),
        &mut registry,
    );
    let refused = refused.await.err().unwrap();
    assert_eq!(refused.kind, ErrorKind::Conflict);
    assert!(refused.message().contains("router remove a"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn nobody_claims_what_somebody_alive_holds() {
    let (worlds, nodes) = three().await;
    let id = nodes[0].router.vdisk("p", "d").unwrap().id;
    let before = worlds[0].volume(id).await;
    let refused = nodes[1].router.force_vdisk("p", "d").await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::NotOwner, "{refused}");
    // Nor does the registry let anybody who asked it all the same.
    let router = &nodes[1].router;
    let (vdisk, seat) = (router.find_vdisk("p", "d").unwrap(), router.cluster.seat().unwrap());
    let refused = router.claim_anyway(&vdisk, seat, true).await.err().unwrap();
    assert_eq!(refused.kind, ErrorKind::NotOwner, "{refused}");
    let lease = nodes[0].router.cluster.incarnation().unwrap().lease;
    let holder = Some(Incarnation { node: "a".parse().unwrap(), lease });
    assert_eq!((worlds[0].volume(id).await, before.holder.clone()), (before, holder));
}
