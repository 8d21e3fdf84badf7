//! Members over TCP on this machine, with real folders: killed, opened again, upgraded.

// Real members live in real time.
#![allow(clippy::disallowed_methods)]

use super::watch::Watched;
use super::*;
use crate::local::LocalKv;
use crate::node::{Instance, InstanceConfig, Metrics, Settings};
use crate::table::RocksSettings;
use crate::transport::Tls;
use crate::upgrade::Origin;
use bytes::Bytes;
use common::ErrorKind;
use common::clock::SystemClock;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;
use tokio::net::TcpListener;

/// Members of a group, each in a folder.
struct Group {
    dir: tempfile::TempDir,
    clock: Arc<dyn Clock>,
    members: BTreeMap<u64, Instance>,
    addresses: BTreeMap<u64, String>,
    group: u128,
    tls: Option<Tls>,
    rocks: RocksSettings,
    metrics: prometheus_client::registry::Registry,
}

impl Group {
    async fn of(count: u64, tls: Option<Tls>) -> Self {
        let mut group = Self {
            dir: tempfile::tempdir().unwrap(),
            clock: Arc::new(SystemClock::new()),
            members: BTreeMap::new(),
            addresses: BTreeMap::new(),
            group: 0,
            tls,
            rocks: RocksSettings {
                block_cache_bytes: 4 << 20,
                write_buffer_bytes: 4 << 20,
                ..RocksSettings::default()
            },
            metrics: Default::default(),
        };
        group.start(1).await;
        group.group = group.members[&1].group();
        for id in 2..=count {
            group.join(id).await;
        }
        group
    }

    fn folder(&self, id: u64) -> PathBuf {
        self.dir.path().join(id.to_string())
    }

    async fn start(&mut self, id: u64) {
        let local = Some(self.dir.path().join("registry"));
        let known = self.addresses.get(&id).cloned();
        let listener = TcpListener::bind(known.as_deref().unwrap_or("127.0.0.1:0")).await.unwrap();
        // The certificates are for this name.
        let address = format!("localhost:{}", listener.local_addr().unwrap().port());
        self.addresses.insert(id, address.clone());
        let origin = match id {
            1 => Origin::Found { address, local },
            _ => Origin::Join { group: self.group },
        };
        let config = InstanceConfig {
            dir: self.folder(id),
            member: id,
            origin,
            listener,
            tls: self.tls.clone(),
            clock: self.clock.clone(),
            settings: Settings { tick_ms: 20, ..Settings::default() },
            rocks: self.rocks,
            metrics: Metrics::new(&mut self.metrics),
        };
        self.members.insert(id, Instance::start(config).await.unwrap());
    }

    async fn join(&mut self, id: u64) {
        self.start(id).await;
        let client = self.client();
        let add = Change::AddLearner { member: id, address: self.addresses[&id].clone() };
        client.change(vec![add]).await.unwrap();
        self.promote(&client, id).await;
    }

    async fn promote(&self, client: &Client, id: u64) {
        for _ in 0..200 {
            match client.change(vec![Change::Promote { member: id }]).await {
                Ok(()) => return,
                Err(e) if e.kind == ErrorKind::Unavailable => pause(20).await,
                Err(e) => panic!("{e}"),
            }
        }
        panic!("member {id} does not catch up");
    }

    fn client(&self) -> Client {
        let mut config = ClientConfig::new(self.addresses.values().cloned().collect());
        config.tls = self.tls.as_ref().map(|tls| tls.client.clone());
        config.deadline = Duration::from_secs(20);
        Client::new(config, self.clock.clone())
    }

    async fn leader(&self) -> u64 {
        for _ in 0..500 {
            for (id, member) in &self.members {
                if member.handle().status().await.is_ok_and(|s| s.leader == Some(*id)) {
                    return *id;
                }
            }
            pause(20).await;
        }
        panic!("nobody leads");
    }

    async fn kill(&mut self, id: u64) {
        self.members.remove(&id).unwrap().kill().await;
    }
}

async fn pause(ms: u64) {
    tokio::time::sleep(Duration::from_millis(ms)).await;
}

fn put(key: &str, value: impl Into<Bytes>) -> KvOp {
    KvOp::Put(key.to_string(), value.into())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_go_on_when_the_leader_is_killed_and_lose_nothing() {
    let mut group = Group::of(3, None).await;
    let client = group.client();
    let mut last = 0;
    for n in 0..200u32 {
        if n % 50 == 25 {
            let leader = group.leader().await;
            group.kill(leader).await;
            let begun = Instant::now();
            last = client.txn(vec![], vec![put("during", n.to_string())]).await.unwrap();
            let took = begun.elapsed();
            assert!(took < Duration::from_secs(5), "it took {took:?} until there was another leader");
            group.start(leader).await;
        }
        let key = format!("k/{n:03}");
        let revision =
            client.txn(vec![KvAssert::Absent(key.clone())], vec![put(&key, n.to_string())]).await.unwrap();
        assert!(revision > last);
        last = revision;
    }
    let pairs = client.scan("k/").await.unwrap();
    assert_eq!(pairs.len(), 200);
    assert!(pairs.iter().enumerate().all(|(n, p)| p.value == n.to_string()));
    assert_eq!(
        client.txn(vec![KvAssert::Absent("k/000".into())], vec![]).await.unwrap_err().kind,
        ErrorKind::Conflict
    );
    pause(100).await;
    let mut told = String::new();
    prometheus_client::encoding::text::encode(&mut told, &group.metrics).unwrap();
    for what in [
        "kvstore_leads 1",
        "kvstore_member_lag_entries{member=\"",
        "kvstore_log_write_seconds_bucket",
        "kvstore_proposals_total",
    ] {
        assert!(told.contains(what), "{what} is not in {told}");
    }
    // The whole room goes dark, and comes back.
    for id in 1..=3 {
        group.kill(id).await;
    }
    for id in 1..=3 {
        group.start(id).await;
    }
    assert_eq!(client.scan("k/").await.unwrap(), pairs);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopping_leader_hands_over_and_members_come_and_go() {
    let mut group = Group::of(3, None).await;
    let client = group.client();
    // More than the log keeps, so that a new member gets a snapshot.
    for n in 0..12u32 {
        let ops = (0..4).map(|i| put(&format!("big/{n}/{i}"), vec![7u8; 1 << 20])).collect();
        client.txn(vec![], ops).await.unwrap();
    }
    group.join(4).await;
    let leader = group.leader().await;
    assert_eq!(
        client.change(vec![Change::Remove { member: leader }]).await.unwrap_err().kind,
        ErrorKind::Conflict
    );
    let begun = Instant::now();
    group.members.remove(&leader).unwrap().stop().await;
    client.txn(vec![], vec![put("after", "stop")]).await.unwrap();
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(3), "it took {took:?} to hand over");
    client.change(vec![Change::Remove { member: leader }]).await.unwrap();
    let status = client.status().await.unwrap();
    let mut voters: Vec<u64> = (1..=4).collect();
    voters.retain(|v| *v != leader);
    assert_eq!(status.configuration.voters, voters);
    assert_eq!(client.scan("big/").await.unwrap().len(), 48);
    let page = client.range(Range::prefix("big/").limit(10)).await.unwrap();
    assert!(page.pairs.len() == 10 && page.more);
    // Page by page through the door, which begins in front of the prefix.
    let (mut after, mut keys) = (Some("a".to_string()), Vec::new());
    loop {
        let page = client.page("big/", after.as_deref(), 10).await.unwrap();
        keys.extend(page.iter().map(|pair| pair.key.clone()));
        match page.last() {
            Some(last) => after = Some(last.key.clone()),
            None => break,
        }
    }
    let all = client.scan("big/").await.unwrap();
    assert_eq!(keys, all.into_iter().map(|pair| pair.key).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_clients_at_a_time_count_right() {
    let group = Group::of(3, None).await;
    let client = group.client();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..64 {
        let client = client.clone();
        tasks.spawn(async move {
            for _ in 0..5 {
                loop {
                    let have = client.get("count").await.unwrap();
                    let (assert, n) = match &have {
                        Some(pair) => {
                            let n: u64 = std::str::from_utf8(&pair.value).unwrap().parse().unwrap();
                            (KvAssert::Revision("count".into(), pair.revision), n)
                        }
                        None => (KvAssert::Absent("count".into()), 0),
                    };
                    match client.txn(vec![assert], vec![put("count", (n + 1).to_string())]).await {
                        Ok(_) => break,
                        Err(e) if e.kind == ErrorKind::Conflict => {}
                        Err(e) => panic!("{e}"),
                    }
                }
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    assert_eq!(client.get("count").await.unwrap().unwrap().value, "320");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_goes_on_across_leaders_and_says_when_it_is_too_late() {
    let mut group = Group::of(3, None).await;
    let client = group.client();
    let first = client.txn(vec![], vec![put("w/first", "1"), put("other", "1")]).await.unwrap();
    let mut watch = client.watch("w/", first);
    let writer = client.clone();
    let (go, mut went) = tokio::sync::mpsc::channel::<()>(1);
    let task = tokio::spawn(async move {
        for n in 0..40u32 {
            if n == 20 {
                went.recv().await;
            }
            writer
                .txn(vec![], vec![put(&format!("w/{n:02}"), n.to_string()), put("not", "this")])
                .await
                .unwrap();
        }
    });
    let mut seen = Vec::new();
    while seen.len() < 41 {
        let Watched::Events(events) = watch.next().await.unwrap() else { panic!("compacted") };
        seen.extend(events.into_iter().map(|e| e.key));
        if seen.len() == 21 {
            let leader = group.leader().await;
            group.kill(leader).await;
            go.send(()).await.unwrap();
        }
    }
    task.await.unwrap();
    let should: Vec<String> =
        std::iter::once("w/first".into()).chain((0..40).map(|n| format!("w/{n:02}"))).collect();
    assert_eq!(seen, should);
    for n in 0..20u32 {
        let ops = (0..8).map(|i| put(&format!("big/{i}"), vec![n as u8; 128 << 10])).collect();
        client.txn(vec![], ops).await.unwrap();
    }
    let mut late = client.watch("", first);
    let Watched::Compacted { oldest } = late.next().await.unwrap() else { panic!("nothing was compacted") };
    assert!(oldest > first);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_lease_lives_and_a_dropped_one_ends_for_ever() {
    let mut group = Group::of(3, None).await;
    let client = group.client();
    let ttl = Duration::from_millis(800);
    let lease = client.hold(ttl).await.unwrap();
    let bound = Op::Put { key: "alive".into(), value: "yes".into(), lease: Some(lease.id()) };
    client.transact(vec![Assert::LeaseLive(lease.id())], vec![bound]).await.unwrap();
    // A new leader counts anew, and the holder never stops believing.
    let leader = group.leader().await;
    group.kill(leader).await;
    client.txn(vec![], vec![put("x", "y")]).await.unwrap();
    for _ in 0..20 {
        pause(100).await;
        let expired = client.transact(vec![Assert::LeaseExpired(lease.id())], vec![]).await;
        assert_eq!(expired.unwrap_err().kind, ErrorKind::Conflict);
    }
    assert!(lease.is_live());
    let id = lease.id();
    drop(lease);
    let begun = Instant::now();
    while client.get("alive").await.unwrap().is_some() {
        assert!(begun.elapsed() < Duration::from_secs(5), "the lease does not end");
        pause(20).await;
    }
    client.transact(vec![Assert::LeaseExpired(id)], vec![]).await.unwrap();
    assert_eq!(client.keep_alive(id).await.unwrap_err().kind, ErrorKind::Fenced);
    let next = client.hold(ttl).await.unwrap();
    assert!(next.id() > id);
    let id = next.id();
    next.release().await.unwrap();
    client.transact(vec![Assert::LeaseExpired(id)], vec![]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_moved_is_found_again() {
    let mut group = Group::of(3, None).await;
    let client = group.client();
    let before = client.status().await.unwrap().configuration;
    let stranger = Change::Relocate { member: 9, address: "x:1".into() };
    assert_eq!(client.change(vec![stranger]).await.unwrap_err().kind, ErrorKind::NotFound);
    for id in 1..=3 {
        group.kill(id).await;
        // Another port from now on.
        group.addresses.remove(&id);
        group.start(id).await;
        let address = group.addresses[&id].clone();
        client.change(vec![Change::Relocate { member: id, address: address.clone() }]).await.unwrap();
        let status = client.status().await.unwrap();
        assert_eq!((&status.members[&id], &status.configuration), (&address, &before));
    }
    // Each is needed where it is now.
    group.kill(1).await;
    group.client().txn(vec![], vec![put("a", "b")]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minority_says_that_it_did_not_do_it() {
    let mut group = Group::of(3, None).await;
    let leader = group.leader().await;
    let others: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    for id in others {
        group.kill(id).await;
    }
    let mut config = ClientConfig::new(group.addresses.values().cloned().collect());
    config.deadline = Duration::from_secs(3);
    let client = Client::new(config, group.clock.clone());
    let error = client.txn(vec![], vec![put("a", "b")]).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
    let error = client.get("a").await.unwrap_err();
    assert!(error.kind == ErrorKind::Unavailable && error.message().contains("nothing was read"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_of_one_node_becomes_a_group() {
    let mut group = Group::of(1, None).await;
    let dir = group.dir.path().join("registry");
    // A folder from before: begin again with it.
    group.kill(1).await;
    std::fs::remove_dir_all(group.folder(1)).unwrap();
    let kv = LocalKv::open(&dir).unwrap();
    for n in 0..50u32 {
        kv.txn(vec![], vec![put(&format!("k/{n:02}"), n.to_string())]).await.unwrap();
    }
    let (before, revision) = (kv.scan("").await.unwrap(), kv.txn(vec![], vec![]).await.unwrap());
    drop(kv);
    group.start(1).await;
    group.group = group.members[&1].group();
    let client = group.client();
    assert_eq!(client.scan("").await.unwrap(), before);
    assert!(client.txn(vec![], vec![put("new", "1")]).await.unwrap() > revision);
    assert_eq!(LocalKv::open(&dir).err().map(|e| e.kind), Some(ErrorKind::Unsupported));
    for id in 2..=3 {
        group.join(id).await;
    }
    // The client knew one address; the others it learns.
    assert_eq!(client.status().await.unwrap().members.len(), 3);
    let leader = group.leader().await;
    group.kill(leader).await;
    let after = client.scan("k/").await.unwrap();
    assert_eq!(after, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_whose_session_was_forgotten_gets_another_one() {
    let group = Group::of(1, None).await;
    let client = group.client();
    client.txn(vec![], vec![put("a", "1")]).await.unwrap();
    let flood = group.client();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..64 {
        let flood = flood.clone();
        tasks.spawn(async move {
            for _ in 0..=crate::machine::MAX_SESSIONS / 64 {
                flood.ask(Request::Command(Command::OpenSession)).await.unwrap();
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    client.txn(vec![KvAssert::Absent("b".into())], vec![put("b", "1")]).await.unwrap();
    assert_eq!(client.scan("").await.unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_comes_back_from_a_backup_as_another_one() {
    use crate::backup::{RestoreConfig, restore, verify};
    let mut group = Group::of(2, None).await;
    let client = group.client();
    client
        .txn(vec![], (0..50).map(|n| put(&format!("k/{n:02}"), vec![n as u8; 9000])).collect())
        .await
        .unwrap();
    let held = client.hold(Duration::from_millis(900)).await.unwrap();
    let leader = group.leader().await;
    let backup = group.dir.path().join("backup");
    let info = group.members[&leader].backup(&backup).await.unwrap();
    assert_eq!((info.group, info.bytes > 50 * 9000), (group.group, true));
    assert_eq!(group.members[&leader].backup(&backup).await.unwrap_err().kind, ErrorKind::Conflict);
    assert_eq!(verify(backup.clone()).await.unwrap(), info);
    client.txn(vec![], vec![put("k/later", "lost")]).await.unwrap();
    let pairs = client.scan("k/0").await.unwrap();
    for id in [1, 2] {
        group.kill(id).await;
        std::fs::remove_dir_all(group.folder(id)).unwrap();
    }
    let config = RestoreConfig {
        backup,
        dir: group.folder(1),
        member: 1,
        address: group.addresses[&1].clone(),
        quiet: Duration::from_secs(1),
        rocks: group.rocks,
    };
    let restored = restore(config, group.clock.clone()).await.unwrap();
    group.start(1).await;
    group.group = group.members[&1].group();
    assert_eq!((restored.incarnation, restored.from), (group.group, info.group));
    // Who worked with the lost one is not answered by another one: its sessions and leases mean nothing there.
    let mut short = client.clone();
    short.deadline = Duration::from_millis(300);
    assert_eq!(short.get("k/00").await.unwrap_err().kind, ErrorKind::Unavailable);
    let after = group.client();
    assert_eq!(after.restored().await.unwrap(), Some(restored));
    assert_eq!(after.scan("k/0").await.unwrap(), pairs);
    assert!(after.get("k/later").await.unwrap().is_none());
    let begun = Instant::now();
    let takeover = || after.transact(vec![Assert::LeaseExpired(held.id())], vec![]);
    assert_eq!(after.grant(Duration::from_secs(1)).await.unwrap_err().kind, ErrorKind::Unavailable);
    assert_eq!(takeover().await.unwrap_err().kind, ErrorKind::Conflict);
    while takeover().await.is_err() {
        assert!(begun.elapsed() < Duration::from_secs(10), "the quiet time does not end");
        pause(20).await;
    }
    assert!(!held.is_live());
    assert!(after.grant(Duration::from_secs(1)).await.unwrap().0 > restored.revision);
    group.join(3).await;
    assert_eq!(after.scan("k/0").await.unwrap(), pairs);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_leave_a_member_that_has_stopped() {
    let group = Group::of(3, None).await;
    let leader = group.leader().await;
    let out = (1..=3).find(|id| *id != leader).unwrap();
    let mut config = ClientConfig::new(vec![group.addresses[&out].clone()]);
    config.deadline = Duration::from_secs(5);
    let client = Client::new(config, group.clock.clone());
    client.status().await.unwrap();
    group.members[&out].fail();
    while !group.members[&out].has_stopped() {
        pause(5).await;
    }
    // Its process lives, and nothing in it decides anything any more.
    assert!(group.members[&out].has_stopped());
    client.txn(vec![], vec![put("a", "b")]).await.unwrap();
    let error = tokio::net::TcpStream::connect(group.addresses[&out].as_str()).await.err();
    assert!(error.is_some(), "it still accepts connections");
}

async fn rate(kv: Arc<dyn Kv>, tasks: u64, each: u64) -> (f64, Duration) {
    let begun = Instant::now();
    let mut set = tokio::task::JoinSet::new();
    for task in 0..tasks {
        let kv = kv.clone();
        set.spawn(async move {
            let mut times = Vec::new();
            for n in 0..each {
                let begun = Instant::now();
                kv.txn(vec![], vec![put(&format!("k/{task}/{}", n % 100), vec![1u8; 200])]).await.unwrap();
                times.push(begun.elapsed());
            }
            times
        });
    }
    let mut times = Vec::new();
    while let Some(done) = set.join_next().await {
        times.extend(done.unwrap());
    }
    times.sort_unstable();
    ((tasks * each) as f64 / begun.elapsed().as_secs_f64(), times[times.len() / 2])
}

/// Not a test: what transactions cost here, in turn with the registry of one node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "prints figures"]
async fn figures() {
    let dir = tempfile::tempdir().unwrap();
    let local: Arc<dyn Kv> = Arc::new(LocalKv::open(dir.path()).unwrap());
    let (one, three) = (Group::of(1, None).await, Group::of(3, None).await);
    let within = |group: &Group, id: u64| -> Arc<dyn Kv> {
        let mut config = ClientConfig::new(vec![]);
        config.local = Some(group.members[&id].handle());
        Arc::new(Client::new(config, group.clock.clone()))
    };
    let leader = three.leader().await;
    let all: [(&str, Arc<dyn Kv>); 5] = [
        ("LocalKv", local),
        ("one member, in process", within(&one, 1)),
        ("one member, TCP", Arc::new(one.client())),
        ("three members, in process", within(&three, leader)),
        ("three members, TCP", Arc::new(three.client())),
    ];
    for _ in 0..3 {
        for (tasks, each) in [(1, 500), (64, 100)] {
            for (name, kv) in &all {
                let (rate, median) = rate(kv.clone(), tasks, each).await;
                println!("{name:<26} {tasks:>3} clients: {rate:>8.0} txn/s, median {median:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_tls_only_who_shows_a_certificate_is_heard() {
    let group = Group::of(3, Some(papers())).await;
    let client = group.client();
    client.txn(vec![], vec![put("a", "b")]).await.unwrap();
    let mut config = ClientConfig::new(group.addresses.values().cloned().collect());
    config.deadline = Duration::from_secs(1);
    let plain = Client::new(config.clone(), group.clock.clone());
    assert_eq!(plain.get("a").await.unwrap_err().kind, ErrorKind::Unavailable);
    config.tls = Some(papers().client);
    let stranger = Client::new(config, group.clock.clone());
    assert_eq!(stranger.get("a").await.unwrap_err().kind, ErrorKind::Unavailable);
}

/// An authority of its own, and a certificate for both sides.
fn papers() -> Tls {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["localhost".into()]).unwrap().signed_by(&key, &ca).unwrap();
    let chain = vec![certificate.der().clone()];
    let private = || PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.der().clone()).unwrap();
    let roots = Arc::new(roots);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .unwrap();
    let server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain.clone(), private())
        .unwrap();
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, private())
        .unwrap();
    Tls { server: Arc::new(server), client: Arc::new(client) }
}
