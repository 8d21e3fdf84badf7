//! vDisks that follow their clients.

use super::*;
use edge::protocol::{Attach, Attached, Attachments, Forwarder, Mode, Op, Outcome, Request};
use edge_client::transport::Stream as EdgeStream;
use edge_client::trunk;

/// No router is reached by the edge protocol here: clients attach at the owner, by way of whom they say.
struct NoWire;

#[async_trait::async_trait]
impl edge_client::transport::Dial for NoWire {
    async fn dial(&self, _address: &str) -> std::io::Result<EdgeStream> {
        Err(std::io::ErrorKind::ConnectionRefused.into())
    }
}

impl Node {
    async fn attach(&self, id: u128, via: &str) -> Arc<dyn Attached> {
        let clock = self.router.clock.clone();
        let forwarder = Forwarder::new(Arc::new(NoWire), trunk::Patience::default(), clock);
        let door = RouterAttachments::new(self.router.clone(), forwarder, Duration::from_secs(10), true);
        let attach = Attach {
            export: "p/d".into(),
            mode: Mode::Shared,
            attachment: id,
            session: 1,
            since: common::Epoch(0),
            resumed: false,
            pass_on: false,
            hops: 1,
            client: format!("client {id}"),
            via: via.into(),
        };
        door.attach(attach).await.unwrap()
    }

    fn moves(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).unwrap();
        let lines = text.lines().filter(|line| line.contains("auto_migrations_total{"));
        lines.collect::<Vec<_>>().join("\n")
    }
}

/// `n` reads, or as many as are answered.
async fn read(client: &dyn Attached, n: u64) {
    let epoch = client.granted().epoch;
    for sequence in 0..n {
        let op = Op::Read { offset: 0, len: 4096 };
        let reply = client.call(Request { sequence, epoch, op }).await;
        if !matches!(reply.outcome, Outcome::Data(_)) {
            return;
        }
    }
}

/// Enough for the default thresholds, many times over.
const BUSY: u64 = 6000;

/// Lets each of them read so much in each of many windows, as long as `node` has the vDisk; whether it still has it.
async fn windows(node: &Node, clients: &[(&Arc<dyn Attached>, u64)], windows: usize) -> bool {
    for _ in 0..windows {
        for (client, n) in clients {
            read(&***client, *n).await;
        }
        node.router.clock.sleep(Duration::from_secs(node.router.settings.auto_migrate_seconds)).await;
        if node.router.vdisk("p", "d").unwrap().state == VdiskState::Elsewhere {
            return false;
        }
    }
    true
}

#[tokio::test(start_paused = true)]
async fn a_vdisk_moves_to_the_router_through_which_it_is_used_if_it_may() {
    let (worlds, nodes) = three().await;
    let id = nodes[0].router.vdisk("p", "d").unwrap().id;
    // To a router that does not have its tail, which is the harder way.
    let (_, other) = roles(&worlds, id).await;
    let via = worlds[other].name.clone();
    nodes[0].open("p/d").await.unwrap().write(0, block(7), false).await.unwrap();
    let through = nodes[0].attach(1, &via).await;
    assert!(windows(&nodes[0], &[(&through, BUSY)], 20).await, "it is off unless somebody wants it");

    let set = nodes[0].router.set_auto_migrate("p", "d", Some(true)).await.unwrap();
    assert_eq!(set.auto_migrate, Some(true));
    // Half of it is asked for here, by clients of the edge protocol.
    let direct = nodes[0].attach(2, "").await;
    let own = nodes[0].attach(3, "a").await;
    let stranger = nodes[0].attach(4, "nobody").await;
    for here in [&direct, &own, &stranger] {
        assert!(windows(&nodes[0], &[(&through, BUSY), (here, BUSY)], 20).await);
    }
    // Clients of this router would be cut off.
    let handle = nodes[0].open("p/d").await.unwrap();
    assert!(windows(&nodes[0], &[(&through, BUSY)], 20).await);
    drop(handle);
    // A draining router takes nothing.
    nodes[other].router.drain_router(true).await.unwrap();
    assert!(windows(&nodes[0], &[(&through, BUSY)], 20).await);
    nodes[other].router.drain_router(false).await.unwrap();

    assert!(!windows(&nodes[0], &[(&through, BUSY)], 20).await, "it never moved");
    nodes[other].serving().await;
    assert_eq!(nodes[other].first().await, 7);
    for _ in 0..1000 {
        if nodes[0].moves().contains(r#"{outcome="moved"} 1"#) {
            break;
        }
        worlds[0].clock.sleep(Duration::from_millis(10)).await;
    }
    assert!(nodes[0].moves().contains(r#"{outcome="moved"} 1"#), "{}", nodes[0].moves());
    let uses = nodes[0].router.vdisk("p", "d").unwrap().uses;
    assert!(uses.by_way_of[&via.parse().unwrap()].reads > BUSY);
    assert!(!uses.by_way_of.keys().any(|name| name.as_str() == "nobody"), "{uses:?}");
}

#[tokio::test(start_paused = true)]
async fn a_vdisk_that_two_routers_use_alike_does_not_go_back_and_forth() {
    let (worlds, nodes) = three().await;
    let id = nodes[0].router.vdisk("p", "d").unwrap().id;
    let (peer, _) = roles(&worlds, id).await;
    let name = worlds[peer].name.clone();
    nodes[0].router.set_auto_migrate("p", "d", Some(true)).await.unwrap();
    let through = nodes[0].attach(1, &name).await;
    assert!(!windows(&nodes[0], &[(&through, BUSY)], 20).await, "it never moved");
    let owner = &nodes[peer];
    owner.serving().await;
    // Now the clients of both ask for as much.
    let (back, here) = (owner.attach(2, "a").await, owner.attach(3, &name).await);
    assert!(windows(owner, &[(&back, BUSY), (&here, BUSY)], 30).await);
    assert!(windows(owner, &[(&back, BUSY), (&here, BUSY / 2 + 1)], 30).await);
    // Those of one alone draw it over, but not at once.
    let clock = &owner.router.clock;
    let begin = clock.now();
    assert!(!windows(owner, &[(&back, BUSY)], 20).await, "it never went back");
    let window = Duration::from_secs(owner.router.settings.auto_migrate_seconds);
    assert!(clock.now() - begin >= window * 2);
}
