//! A volume's replication as the volume driver uses it, over real clients and services in memory.

mod world;

use common::{Epoch, Lsn, Name};
use dtl::client::Client;
use dtl::metrics::OwnerMetrics;
use dtl::owner::{Action, Outcome, Patience};
use dtl::placement::{self, Node};
use dtl::replication::{Begin, Replication};
use dtl::{Config, Mode, Needed, OnFailure, Registration, Status};
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use world::{Journal, Kind, Peer, V, client, entry, sim_clock};

struct Driver {
    replication: Arc<Replication>,
    journal: Arc<Journal>,
    registration: Arc<Mutex<Registration>>,
    last: u64,
}

/// The task of a volume: what the volume driver has to do, all of it.
async fn drive(
    replication: Arc<Replication>,
    registration: Arc<Mutex<Registration>>,
    clients: BTreeMap<Name, Client>,
) {
    loop {
        match replication.next().await {
            Action::Propose { expect, new } => {
                let outcome = {
                    let mut registration = registration.lock();
                    match registration.propose(expect.0, &new) {
                        Ok(changed) => {
                            *registration = changed;
                            Outcome::Applied
                        }
                        Err(found) => Outcome::Refused(Some(found)),
                    }
                };
                replication.outcome(&new, outcome);
            }
            Action::Recruit { want, avoid } => {
                let node = |name: &Name| Node {
                    name: name.clone(),
                    domains: vec![name.to_string()],
                    recovery_domains: Vec::new(),
                    alive: true,
                    logs: 0,
                };
                let nodes: Vec<Node> = clients.keys().map(node).collect();
                let owner = node(&"owner".parse().unwrap());
                for placed in placement::place(V, &owner, &nodes, &replication.present(), &avoid, want) {
                    replication.join(placed.node.clone(), &clients[&placed.node]);
                }
            }
            Action::Release(_) | Action::Flush(..) => {}
            Action::Fenced => return,
        }
    }
}

impl Driver {
    fn write(&mut self, n: u64) {
        for _ in 0..n {
            self.last += 1;
            let entry = entry(V, 1, self.last, 500);
            self.journal.push(entry.clone());
            self.replication.append(&entry);
        }
    }

    async fn acknowledged(&self) -> bool {
        let last = Lsn(self.last);
        let mut allowed = self.replication.allowed();
        allowed.wait_for(|a| a.writes >= last).await.unwrap();
        self.replication.acknowledge(last)
    }

    async fn status(&self, status: Status) {
        while self.replication.health().status != status {
            let mut allowed = self.replication.allowed();
            let changed = tokio::time::timeout(Duration::from_secs(60), allowed.changed()).await;
            assert!(changed.is_ok(), "{:?}", self.replication.health());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_volume_is_in_sync_degraded_and_healed_by_itself() {
    let clock = sim_clock(1);
    let mut peers = BTreeMap::new();
    let mut clients = BTreeMap::new();
    for name in ["p", "q"] {
        let peer = Peer::new(Kind::Memory, clock.clone());
        peer.start().await;
        clients.insert(name.parse::<Name>().unwrap(), client(&peer));
        peers.insert(name.parse::<Name>().unwrap(), peer);
    }
    let config = Config::alone(Mode::Sync, 1, Needed::All, OnFailure::Degrade);
    let registration = Arc::new(Mutex::new(Registration {
        owner: "owner".parse().unwrap(),
        epoch: Epoch(1),
        claimed: Epoch(1),
        config: config.clone(),
        tails: Vec::new(),
        clean: false,
        losses: Vec::new(),
    }));
    let mut registry = Registry::default();
    let metrics = OwnerMetrics::new(&mut registry);
    let journal = Arc::new(Journal::default());
    let begin = Begin {
        volume: V,
        epoch: Epoch(1),
        config,
        accepted: Lsn(0),
        committed: Lsn(0),
        patience: Patience::default(),
    };
    let replication = Replication::new(begin, journal.clone(), clock.clone(), &metrics);
    let mut d =
        Driver { replication: replication.clone(), journal, registration: registration.clone(), last: 0 };
    d.write(10);
    assert!(d.acknowledged().await, "alone, nobody is waited for");
    let task = tokio::spawn(drive(replication, registration, clients));
    d.status(Status::InSync).await;
    for _ in 0..50 {
        d.write(3);
        assert!(!d.replication.acknowledge(Lsn(d.last)), "nobody can have confirmed it yet");
        assert!(d.acknowledged().await);
    }
    d.replication.flush(Lsn(d.last));
    let last = Lsn(d.last);
    d.replication.allowed().wait_for(|a| a.flushes >= last && a.in_sync).await.unwrap();
    assert!(d.replication.acknowledge_flush(last));
    d.replication.committed(Lsn(100));
    let named = d.registration.lock().config.peers.clone();
    let health = d.replication.health();
    assert_eq!((health.live, health.lag, health.lag_bytes), (1, 0, health.lag_bytes));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    let line = format!("storagerouter_dtl_status{{volume=\"{V}\"}} 2");
    assert!(text.contains(&line) && text.contains("storagerouter_dtl_confirmation_seconds_count"), "{text}");

    // The peer dies: writes wait, then the registry says so, and the other one takes its place.
    peers[&named[0].node].kill();
    d.write(5);
    assert!(!d.replication.acknowledge(Lsn(d.last)));
    assert!(d.acknowledged().await);
    assert_ne!(d.registration.lock().config.status, Status::InSync, "in public");
    d.status(Status::InSync).await;
    assert_ne!(d.registration.lock().config.peers[0].node, named[0].node);
    d.write(5);
    assert!(d.acknowledged().await);

    // Somebody takes over: it ends.
    {
        let mut registration = d.registration.lock();
        *registration = registration.claim(Epoch(2)).unwrap();
    }
    let (epoch, config) = (Epoch(2), d.registration.lock().config.clone());
    d.replication.observed(epoch, config);
    task.await.unwrap();
    assert!(!d.replication.acknowledge(Lsn(1)));
    drop(d);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    assert!(!text.contains(&line), "a volume that is gone leaves no line behind");
}
