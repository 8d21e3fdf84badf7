//! With the simulated twins. Everything from `a_vdisk_lives_and_dies` on needs a volume driver
//! that works.

mod cluster;
mod qos;
mod snapshots;

use super::*;
use crate::registry::{Incarnation, VolumeRecord, WriteBuffer};
use bytes::Bytes;
use common::sim::{SimClock, SimDisk, SimKv, SimObjectStore, SimTable, StoreFaults};
use common::{BlockDevice, Exports, Kv};
use dtl::client::Client as DtlClient;
use dtl::metrics::ServiceMetrics;
use dtl::owner::Patience;
use dtl::service::Service;
use dtl::storage::{Limits, Store};
use dtl::transport::{Dial, Stream};
use parking_lot::Mutex;
use prometheus_client::encoding::text::encode;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::time::Duration;
use volumedriver::ImageInfo;

const GIB: u64 = 1 << 30;

/// What outlives a storage router.
struct World {
    kv: Arc<SimKv>,
    disk: Arc<SimDisk>,
    stores: Arc<HashMap<String, SimObjectStore>>,
    clock: Arc<SimClock>,
    /// The data directory's identity, and the router's name.
    device: VolumeId,
    name: String,
    wire: Arc<Wire>,
}

/// DTL services, by router, and what cuts all connections to them.
#[derive(Default)]
struct Wire {
    services: Mutex<HashMap<String, Service>>,
    cut: tokio::sync::watch::Sender<bool>,
}

struct Node {
    router: Arc<Router>,
    registry: Metrics,
}

/// Pipes to the DTL of a router.
struct Pipes {
    wire: Arc<Wire>,
    to: String,
}

#[async_trait::async_trait]
impl Dial for Pipes {
    async fn dial(&self) -> std::io::Result<Stream> {
        let service = self.wire.services.lock().get(&self.to).cloned();
        let mut cut = self.wire.cut.subscribe();
        let Some(service) = service.filter(|_| !*cut.borrow()) else {
            return Err(std::io::ErrorKind::ConnectionRefused.into());
        };
        let (near, far) = tokio::io::duplex(1 << 20);
        tokio::spawn(async move {
            tokio::select! {
                _ = cut.wait_for(|cut| *cut) => {}
                () = service.serve(Stream::any(far)) => {}
            }
        });
        Ok(Stream::any(near))
    }
}

impl World {
    fn new() -> Self {
        let stores = ["s1", "s2", "s3"].map(|name| (name.to_string(), SimObjectStore::new(1)));
        Self {
            kv: Arc::new(SimKv::new()),
            disk: Arc::new(SimDisk::new()),
            stores: Arc::new(HashMap::from(stores)),
            clock: Arc::new(SimClock::new(1)),
            device: VolumeId(1),
            name: "a".to_string(),
            wire: Arc::default(),
        }
    }

    fn membership(&self) -> Membership {
        let (wire, clock) = (self.wire.clone(), self.clock.clone());
        Membership {
            name: self.name.parse().unwrap(),
            write_buffer: WriteBuffer { device: self.device, boot: "boot".to_string() },
            founder: true,
            domains: Vec::new(),
            recovery_domains: Vec::new(),
            lease: Duration::from_secs(2),
            dial: Arc::new(move |to| {
                let to = to.dtl.clone().unwrap_or_default();
                let dial = Pipes { wire: wire.clone(), to };
                Ok(DtlClient::new(Arc::new(dial), dtl::client::Settings::default(), clock.clone()))
            }),
            patience: Patience::default(),
        }
    }

    fn store(&self, name: &str) -> &SimObjectStore {
        &self.stores[name]
    }

    fn away(&self, name: &str, away: bool) {
        self.store(name).set_faults(StoreFaults { away, ..StoreFaults::default() });
    }

    async fn start(&self) -> Node {
        let mut registry = Metrics::default();
        let settings = volumedriver::Settings { journal_mib: 32, segment_mib: 4, ..Default::default() };
        let driver = Driver::start(
            settings,
            self.disk.clone(),
            Arc::new(SimTable::new()),
            self.clock.clone(),
            &mut registry,
        )
        .await
        .unwrap();
        let stores = self.stores.clone();
        let open: OpenStore = Arc::new(move |spec: Value| {
            let stores = stores.clone();
            Box::pin(async move {
                let name = spec["name"].as_str().unwrap_or_default();
                let Some(store) = stores.get(name) else {
                    return Err(Error::invalid(format!("no simulated store '{name}'")));
                };
                store.head("vpool").await?;
                Ok(OpenedStore {
                    store: Arc::new(store.clone()),
                    description: format!("store {name}"),
                    warning: None,
                })
            })
        });
        let stores = Stores { open: open.clone(), attach: open };
        let router = Router::start(
            self.kv.clone(),
            self.membership(),
            driver,
            stores,
            self.clock.clone(),
            Settings::default(),
            &mut registry,
        )
        .await
        .unwrap();
        let dtl = self.wire.services.lock().contains_key(&self.name).then(|| self.name.clone());
        let edge = vec![format!("edge-{}:1", self.name)];
        router.reached_at(Addresses { edge, dtl, ..Addresses::default() }).await.unwrap();
        Node { router, registry }
    }
}

impl Node {
    async fn ready(&self) {
        for _ in 0..1000 {
            if self.router.ready().is_ok() {
                return;
            }
            self.router.clock.sleep(Duration::from_millis(100)).await;
        }
        panic!("never ready: {:?}", self.router.ready());
    }

    async fn vpool(&self, name: &str, store: &str) -> VpoolInfo {
        self.add(name, store, false).await.unwrap().0
    }

    async fn add(&self, name: &str, store: &str, adopt: bool) -> Result<(VpoolInfo, Vec<Adopted>)> {
        let (name, backend) = (name.parse().unwrap(), json!({"kind": "sim", "name": store}));
        self.router.create_vpool(CreateVpool { name, backend, cluster_size: None, adopt }).await
    }

    async fn vdisk(&self, vpool: &str, name: &str) -> Result<VdiskInfo> {
        let (vpool, name) = (vpool.to_string(), name.parse().unwrap());
        self.router.create_vdisk(CreateVdisk { vpool, name, size: GIB, sco_size: None }).await
    }

    async fn open(&self, name: &str) -> Result<Arc<dyn BlockDevice>> {
        RouterExports(self.router.clone()).open(name).await
    }

    async fn stop(self) {
        self.router.shutdown(Duration::from_secs(30)).await;
    }
}

#[test]
fn adopted_names_are_valid_different_and_reported() {
    let image = |n: u128, name: &str| ImageInfo {
        id: VolumeId(n),
        name: name.to_string(),
        size: 4096,
        sco_size: 8 << 20,
        epoch: common::Epoch(1),
        parent: None,
    };
    let long = "x".repeat(63);
    let images = [
        image(1, "disk"),
        image(2, "disk"),
        image(3, "disk-2"),
        image(4, "a/b"),
        image(5, ""),
        image(6, &long),
        image(7, &long),
        image(8, "disk"),
    ];
    let adopted = vpools::adopted_names(&images);
    assert_eq!(adopted.len(), images.len());
    let name = |n: u128| adopted.iter().find(|a| a.id == VolumeId(n)).unwrap();
    assert_eq!(name(1).name.as_str(), "disk");
    assert_eq!(name(1).renamed_from, None);
    assert_eq!(name(3).name.as_str(), "disk-2");
    assert_eq!(name(2).name.as_str(), "disk-3");
    assert_eq!(name(2).renamed_from.as_deref(), Some("disk"));
    assert_eq!(name(8).name.as_str(), "disk-4");
    assert_eq!(name(4).renamed_from.as_deref(), Some("a/b"));
    assert_eq!(name(6).name.as_str(), long);
    assert!(name(7).name.as_str().ends_with("-2"));
    let different: std::collections::BTreeSet<_> = adopted.iter().map(|a| a.name.clone()).collect();
    assert_eq!(different.len(), images.len());
}

#[tokio::test(start_paused = true)]
async fn pauses_between_tries_grow_to_the_bound_and_never_beyond() {
    let clock = SimClock::new(3);
    let mut backoff = open::Backoff::new(Duration::from_secs(5));
    let pauses: Vec<_> = (0..50).map(|_| backoff.pause(&clock)).collect();
    assert!(pauses[0] <= Duration::from_millis(200));
    assert!(pauses.iter().all(|p| *p <= Duration::from_secs(5)));
    assert!(pauses[20..].iter().all(|p| *p >= Duration::from_millis(2500)));
}

#[tokio::test(start_paused = true)]
async fn a_vdisk_lives_and_dies() {
    let world = World::new();
    let node = world.start().await;
    node.vpool("p", "s1").await;
    let made = node.vdisk("p", "d").await.unwrap();
    assert_eq!((made.state, made.size), (crate::VdiskState::Serving, GIB));
    assert_eq!(node.vdisk("p", "d").await.unwrap_err().kind, ErrorKind::Conflict);
    assert_eq!(node.vdisk("q", "d").await.unwrap_err().kind, ErrorKind::NotFound);

    let device = node.open("p/d").await.unwrap();
    device.write(4096, Bytes::from_static(b"hello"), true).await.unwrap();
    assert_eq!(&node.open("d").await.unwrap().read(4096, 5).await.unwrap()[..], b"hello");

    let grown = node.router.resize_vdisk("p", "d", 2 * GIB).await.unwrap();
    assert_eq!(grown.size, 2 * GIB);
    assert_eq!(node.open("d").await.unwrap().geometry().size, 2 * GIB);
    assert_eq!(node.router.resize_vdisk("p", "d", GIB).await.unwrap_err().kind, ErrorKind::Unsupported);

    drop(device);
    node.router.delete_vdisk("p", "d", false).await.unwrap();
    assert_eq!(node.open("p/d").await.err().unwrap().kind, ErrorKind::NotFound);
    assert!(node.router.vdisks().is_empty());
    node.vdisk("p", "d").await.unwrap();
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_vdisk_in_use_is_deleted_only_by_force_and_its_clients_are_fenced() {
    let world = World::new();
    let node = world.start().await;
    node.vpool("p", "s1").await;
    node.vdisk("p", "d").await.unwrap();
    let one = node.open("d").await.unwrap();
    let _two = node.open("d").await.unwrap();
    let refused = node.router.delete_vdisk("p", "d", false).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Denied);
    assert!(refused.message().contains("2 clients"), "{refused}");
    one.write(0, Bytes::from_static(b"x"), false).await.unwrap();

    node.router.delete_vdisk("p", "d", true).await.unwrap();
    assert_eq!(one.write(0, Bytes::from_static(b"x"), false).await.unwrap_err().kind, ErrorKind::Fenced);
    assert!(node.router.vdisk("p", "d").is_err());
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_plain_name_opens_only_when_it_is_unique() {
    let world = World::new();
    let node = world.start().await;
    node.vpool("p", "s1").await;
    node.vpool("q", "s2").await;
    node.vdisk("p", "d").await.unwrap();
    node.vdisk("q", "d").await.unwrap();
    let error = node.open("d").await.err().unwrap();
    assert_eq!(error.kind, ErrorKind::Invalid);
    assert!(error.message().contains("'p/d'") && error.message().contains("'q/d'"), "{error}");
    node.open("q/d").await.unwrap();
    let listed = RouterExports(node.router.clone()).list().await.unwrap();
    assert_eq!(listed.iter().map(|e| e.name.as_str()).collect::<Vec<_>>(), ["p/d", "q/d"]);
    for bad in ["", "/", "p/", "/d", "p/d/e", "nope", "p/nope", "\u{0}"] {
        assert_eq!(node.open(bad).await.err().unwrap().kind, ErrorKind::NotFound, "{bad:?}");
    }
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_restart_opens_everything_under_higher_epochs() {
    let world = World::new();
    let node = world.start().await;
    node.vpool("p", "s1").await;
    let mut before = HashMap::new();
    for n in 0..130 {
        let made = node.vdisk("p", &format!("d{n}")).await.unwrap();
        before.insert(made.name.clone(), made.epoch);
    }
    node.stop().await;

    let transactions = world.revision().await;
    let node = world.start().await;
    node.ready().await;
    let used = world.revision().await - transactions;
    assert_eq!(
        used, 136,
        "its lease, its seat, its address, two for the claims, one for each begin, and the one of this question"
    );
    for vdisk in node.router.vdisks() {
        assert_eq!(vdisk.state, crate::VdiskState::Serving, "{:?}", vdisk.reason);
        assert!(vdisk.epoch > before[&vdisk.name], "{}", vdisk.name);
    }
    assert!(node.router.health().is_empty(), "{:?}", node.router.health());
    let mut text = String::new();
    encode(&mut text, &node.registry).unwrap();
    assert!(text.contains("storagerouter_objectrouter_open_volumes 130"), "{text}");
    assert!(
        text.contains(
            "storagerouter_objectrouter_frontier_lsn{vpool=\"p\",vdisk=\"d7\",frontier=\"committed\"}"
        ),
        "{text}"
    );
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_at_start_is_named_and_comes_back_by_itself() {
    let world = World::new();
    let node = world.start().await;
    node.vpool("p", "s1").await;
    node.vpool("q", "s2").await;
    node.vdisk("p", "d").await.unwrap();
    node.vdisk("q", "e").await.unwrap();
    node.stop().await;

    world.away("s1", true);
    let node = world.start().await;
    node.ready().await;
    assert_eq!(node.router.vdisk("q", "e").unwrap().state, crate::VdiskState::Serving);
    let waits = node.router.vdisk("p", "d").unwrap();
    assert_eq!(waits.state, crate::VdiskState::Opening);
    assert!(waits.reason.unwrap().contains("'p'"));
    let health = node.router.health();
    assert!(health.iter().any(|i| i.subject == "vpool/p" && i.level == HealthLevel::Error), "{health:?}");
    assert_eq!(node.open("p/d").await.err().unwrap().kind, ErrorKind::Unavailable);
    assert_eq!(node.vdisk("p", "f").await.unwrap_err().kind, ErrorKind::Unavailable);

    world.clock.sleep(Duration::from_secs(600)).await;
    world.away("s1", false);
    world.clock.sleep(Duration::from_secs(40)).await;
    node.ready().await;
    node.open("p/d").await.unwrap();
    assert!(node.router.health().is_empty());
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_client_right_after_the_start_waits_for_its_vdisk() {
    let world = World::new();
    let node = world.start().await;
    node.vpool("p", "s1").await;
    node.vdisk("p", "d").await.unwrap();
    node.stop().await;
    let node = world.start().await;
    let opens = (0..20).map(|_| node.open("p/d"));
    for opened in futures::future::join_all(opens).await {
        opened.unwrap();
    }
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_a_crash_cut_short_is_completed_or_resumed() {
    let world = World::new();
    let node = world.start().await;
    node.vpool("p", "s1").await;
    node.vdisk("p", "dying").await.unwrap();
    // From the next put on nothing reaches the store, as if the process died there.
    let puts = world.store("s1").counts().0;
    world.store("s1").die_at_put(Some(puts + 1));
    assert!(node.router.delete_vdisk("p", "dying", false).await.is_err());
    assert_eq!(node.router.vdisk("p", "dying").unwrap().state, crate::VdiskState::Deleting);
    assert!(node.vdisk("p", "unborn").await.is_err());
    node.stop().await;

    world.store("s1").die_at_put(None);
    let records = Records::new(world.kv.clone());
    let pool = records.load().await.unwrap().vpools.remove(0);
    let mut half = crate::registry::VdiskRecord::new(VolumeId(5), GIB, 8 << 20);
    half.state = crate::registry::VdiskLife::Creating;
    let name: Name = "half".parse().unwrap();
    let by = Incarnation { node: world.name.parse().unwrap(), lease: 0 };
    let mut volume = VolumeRecord::created(pool.0.clone(), name.clone(), by, dtl::Config::default());
    volume.holder = None;
    records.add_vdisk(&pool.0, pool.1.revision, &(name, half, volume), None).await.unwrap();

    let node = world.start().await;
    node.ready().await;
    world.clock.sleep(Duration::from_secs(60)).await;
    let names: Vec<_> = node.router.vdisks().iter().map(|v| v.name.to_string()).collect();
    assert_eq!(names, ["half"]);
    node.open("p/half").await.unwrap();
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_taken_place_is_refused_and_adoption_brings_its_vdisks_back() {
    let world = World::new();
    let node = world.start().await;
    node.vpool("p", "s1").await;
    let made = node.vdisk("p", "d").await.unwrap();
    let refused = node.add("q", "s1", false).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Conflict);
    assert!(refused.message().contains("--adopt"), "{refused}");
    assert_eq!(node.add("q", "s1", true).await.unwrap_err().kind, ErrorKind::Conflict);
    assert_eq!(node.add("q", "s2", true).await.unwrap_err().kind, ErrorKind::NotFound);
    assert_eq!(node.add("q", "nowhere", false).await.unwrap_err().kind, ErrorKind::Invalid);
    node.stop().await;

    let (kv, disk, device) = (Arc::new(SimKv::new()), Arc::new(SimDisk::new()), VolumeId(9));
    let elsewhere = World { kv, disk, device, ..world };
    let node = elsewhere.start().await;
    let (pool, adopted) = node.add("other", "s1", true).await.unwrap();
    assert_eq!(pool.vdisks, 1);
    assert_eq!((adopted[0].name.as_str(), adopted[0].id), ("d", made.id));
    node.open("other/d").await.unwrap();
    assert!(node.router.vdisk("other", "d").unwrap().epoch > made.epoch);
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn deleting_a_vpool_needs_it_empty_and_leaves_the_place_empty() {
    let world = World::new();
    let node = world.start().await;
    node.vpool("p", "s1").await;
    node.vdisk("p", "d").await.unwrap();
    let refused = node.router.delete_vpool("p").await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Conflict);
    assert!(refused.message().contains("'d'") && refused.message().contains("--detach"), "{refused}");
    node.router.delete_vdisk("p", "d", false).await.unwrap();
    node.router.delete_vpool("p").await.unwrap();
    assert!(world.store("s1").keys().is_empty(), "{:?}", world.store("s1").keys());
    assert!(world.kv_keys().await.is_empty());
    node.vpool("p", "s1").await;
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn detaching_forgets_here_and_leaves_the_data() {
    let world = World::new();
    let node = world.start().await;
    node.vpool("p", "s1").await;
    let made = node.vdisk("p", "d").await.unwrap();
    let client = node.open("p/d").await.unwrap();
    client.write(0, Bytes::from_static(b"kept"), true).await.unwrap();
    assert_eq!(node.router.detach_vpool("p", false).await.unwrap_err().kind, ErrorKind::Denied);
    client.flush().await.unwrap();
    drop(client);
    node.router.detach_vpool("p", false).await.unwrap();
    assert!(node.router.vpools().is_empty() && node.router.vdisks().is_empty());
    assert!(world.kv_keys().await.is_empty());
    let (_, adopted) = node.add("p", "s1", true).await.unwrap();
    assert_eq!(adopted[0].id, made.id);
    node.open("p/d").await.unwrap();
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_last_traces_of_a_deleted_vdisk_go_after_the_grace() {
    let world = World::new();
    let node = world.start().await;
    node.vpool("p", "s1").await;
    node.vdisk("p", "d").await.unwrap();
    node.router.delete_vdisk("p", "d", false).await.unwrap();
    assert_eq!(world.kv.scan("deleted/").await.unwrap().len(), 1);
    world.clock.sleep(Duration::from_secs(3600 + 1200)).await;
    assert!(world.kv.scan("deleted/").await.unwrap().is_empty());
    assert_eq!(world.store("s1").keys(), ["vpool"]);
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn after_shutdown_nothing_runs_and_nothing_begins() {
    let world = World::new();
    let node = world.start().await;
    node.vpool("p", "s1").await;
    let router = node.router.clone();
    node.stop().await;
    tokio::task::yield_now().await;
    assert!(router.tasks().is_empty(), "{:?}", router.tasks());
    assert_eq!(router.delete_vpool("p").await.unwrap_err().kind, ErrorKind::Unavailable);
}

impl World {
    /// The number of registry transactions so far, this one included.
    async fn revision(&self) -> u64 {
        self.kv.txn(vec![], vec![]).await.unwrap()
    }

    async fn kv_keys(&self) -> Vec<String> {
        let pairs = self.kv.scan("").await.unwrap();
        pairs
            .into_iter()
            .map(|p| p.key)
            .filter(|key| !key.starts_with("node/") && !key.starts_with("router/"))
            .collect()
    }
}
