use super::*;
use crate::alba::keys::{Master, Unlock};
use crate::alba::layout::FragmentKey;
use crate::alba::preset::{Encryption, Policy};
use crate::alba::sim::{OsdFaults, SimOsd};
use common::sim::{SimClock, SimKv};

mod faults;
mod world;

/// A backend: nodes with OSDs, a registry, a store.
struct Backend {
    osds: Vec<SimOsd>,
    view: Arc<Osds>,
    records: Records,
    clock: Arc<dyn Clock>,
    store: AlbaStore,
}

fn policy(text: &str) -> Policy {
    text.parse().unwrap()
}

fn preset(policies: &[&str], losses: u8) -> Preset {
    let mut preset = Preset::new(policies.iter().map(|p| policy(p)).collect(), losses).unwrap();
    preset.frame_size = 4096;
    preset.fragment_size = 64 << 10;
    preset
}

fn draw(seed: u64) -> DrawId {
    let random = Mutex::new(fastrand::Rng::with_seed(seed));
    Arc::new(move || Ok(ObjectId(random.lock().u128(..))))
}

impl Backend {
    async fn new(nodes: usize, per_node: usize, preset: Preset, seed: u64) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(SimClock::new(seed));
        let kv = Arc::new(SimKv::new());
        let (master, _) = Master::create(&Unlock::KeyFile(zeroize::Zeroizing::new([3; 32]))).unwrap();
        let (keys, name) = (|id| Ok(vec![master.new_key(id, 1)?.1]), "ns".parse().unwrap());
        let namespace = crate::alba::records::namespace::create_namespace(&*kv, &name, preset.clone(), keys)
            .await
            .unwrap();
        let records = Records::new(kv, namespace.id);
        let osds: Vec<SimOsd> =
            (0..nodes * per_node).map(|n| SimOsd::new(n as u128 + 1, seed + n as u64)).collect();
        let view = Arc::new(Osds::new(clock.clone()));
        for (n, osd) in osds.iter().enumerate() {
            view.set(osd.id, Arc::new(osd.clone()), &format!("node{}", n / per_node), "", true);
        }
        view.refresh().await;
        let keys = namespace.keys.iter().map(|key| master.key(namespace.id, key).unwrap()).collect();
        let parts = Parts {
            records: records.clone(),
            preset,
            keys,
            osds: view.clone(),
            clock: clock.clone(),
            draw: draw(seed),
            name: "alba store".into(),
        };
        let store = AlbaStore::new(parts).unwrap();
        Self { osds, view, records, clock, store }
    }

    async fn record(&self, key: &str) -> Record {
        (*self.records.get(key).await.unwrap().unwrap().record).clone()
    }

    fn osd(&self, id: common::osd::OsdId) -> &SimOsd {
        self.osds.iter().find(|osd| osd.id == id).unwrap()
    }

    fn values(&self) -> usize {
        self.osds.iter().map(|osd| osd.values().len()).sum()
    }

    /// Waits until what goes on in the background has had its time.
    async fn settle(&self) {
        self.clock.sleep(Duration::from_secs(30)).await;
    }

    fn read(&self) -> u64 {
        self.osds.iter().map(|osd| osd.tally().bytes_read).sum()
    }
}

fn content(len: usize, seed: u64) -> Bytes {
    let mut random = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(|| random.u8(..)).take(len).collect::<Vec<u8>>().into()
}

#[tokio::test(start_paused = true)]
async fn what_is_put_is_there_in_whole_and_in_part() {
    for (compression, encryption) in [
        (Compression::None, Encryption::None),
        (Compression::Zstd { level: 1 }, Encryption::ChaCha20Poly1305),
    ] {
        let mut preset = preset(&["4,2,6,2"], 2);
        (preset.compression, preset.encryption) = (compression, encryption);
        let backend = Backend::new(3, 4, preset, 1).await;
        for len in [0, 1, 5000, 100_000, 600_000] {
            let (key, data) = (format!("a/{len}"), content(len, 7));
            backend.store.put(&key, data.clone(), Precondition::IfAbsent).await.unwrap();
            assert_eq!(backend.store.get(&key).await.unwrap(), data);
            assert_eq!(backend.store.head(&key).await.unwrap(), Some(len as u64));
            let range = len as u64 / 3..len as u64 / 2;
            let part = backend.store.get_range(&key, range.clone()).await.unwrap();
            assert_eq!(part, data.slice(range.start as usize..range.end as usize));
            let error = backend.store.get_range(&key, 0..len as u64 + 1).await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::Corrupt);
            let error = backend.store.put(&key, data, Precondition::IfAbsent).await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::Conflict);
            let record = backend.record(&key).await;
            assert_eq!(record.stored(), 6);
        }
        assert_eq!(backend.store.get("nothing").await.unwrap_err().kind, ErrorKind::NotFound);
        assert_eq!(backend.store.head("nothing").await.unwrap(), None);
    }
}

#[tokio::test(start_paused = true)]
async fn it_keeps_the_promises_that_every_store_must_keep() {
    let backend = Backend::new(3, 4, preset(&["4,2,6,2"], 2), 2).await;
    let report = crate::probe::probe(&backend.store, &*backend.clock).await.unwrap();
    assert!(report.passed(), "{report:?}");
    backend.settle().await;
    assert_eq!(backend.values(), 0, "what was deleted lies around");
    assert_eq!(backend.records.deleted(10).await.unwrap().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_overwrite_leaves_nothing_of_what_it_replaced() {
    let backend = Backend::new(3, 4, preset(&["4,2,6,2"], 2), 3).await;
    for n in 0..5 {
        backend.store.put("key", content(10_000, n), Precondition::None).await.unwrap();
        assert_eq!(backend.store.get("key").await.unwrap(), content(10_000, n));
    }
    backend.settle().await;
    assert_eq!(backend.values(), 12, "six fragments and their headers");
    backend.store.delete("key").await.unwrap();
    backend.store.delete("key").await.unwrap();
    backend.settle().await;
    assert_eq!(backend.values(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_small_read_moves_one_frame_and_a_degraded_one_k_of_them() {
    for (encryption, frame) in [(Encryption::None, 65536), (Encryption::ChaCha20Poly1305, 65552)] {
        let mut preset = preset(&["4,2,6,2"], 2);
        (preset.frame_size, preset.fragment_size, preset.encryption) = (65536, 1 << 20, encryption);
        let backend = Backend::new(3, 4, preset, 4).await;
        let data = content(4 << 20, 1);
        backend.store.put("key", data.clone(), Precondition::IfAbsent).await.unwrap();
        let read = async |at: u64| {
            let before = backend.read();
            let got = backend.store.get_range("key", at..at + 4096).await.unwrap();
            assert_eq!(got, data.slice(at as usize..at as usize + 4096));
            backend.read() - before
        };
        assert_eq!(read(70_000).await, frame);
        let lost = backend.record("key").await.places[0].unwrap().osd;
        backend.osd(lost).set_faults(OsdFaults { away: true, ..OsdFaults::default() });
        assert_eq!(read(70_000).await, 4 * frame);
        assert_eq!(read(80_000).await, 4 * frame, "the one that is away is not asked again at once");
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_that_was_put_can_be_read_on_a_disk() {
    let mut preset = preset(&["4,2,6,2"], 2);
    (preset.compression, preset.encryption) = (Compression::Zstd { level: 1 }, Encryption::ChaCha20Poly1305);
    let backend = Backend::new(3, 4, preset, 5).await;
    let pattern = b"a pattern that nobody makes by chance";
    backend.store.put("key", pattern.repeat(3000).into(), Precondition::IfAbsent).await.unwrap();
    for osd in &backend.osds {
        for value in osd.values().values() {
            assert!(!value.windows(8).any(|w| pattern.windows(8).any(|p| p == w)));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_listing_is_that_of_every_other_store() {
    let backend = Backend::new(3, 4, preset(&["4,2,6,2"], 2), 6).await;
    let other = common::sim::SimObjectStore::new(1);
    let mut random = fastrand::Rng::with_seed(9);
    let part = |random: &mut fastrand::Rng| ["a", "b", "B", "0", "a.b", "c-"][random.usize(0..6)].to_string();
    for _ in 0..120 {
        let parts: Vec<String> = (0..random.usize(1..4)).map(|_| part(&mut random)).collect();
        let key = parts.join("/");
        for store in [&backend.store as &dyn ObjectStore, &other] {
            store.put(&key, Bytes::from_static(b"x"), Precondition::None).await.unwrap();
        }
    }
    for _ in 0..400 {
        let prefix = ["", "a", "a/", "b/a/", "c-", "zz"][random.usize(0..6)];
        let after = ["", "a", "a/", "a/b", "b/a", "B/0", "c-"][random.usize(0..7)];
        let after = Some(after).filter(|a| !a.is_empty());
        let (delimiter, limit) = (random.bool(), random.usize(1..9));
        let ours = backend.store.list(prefix, after, delimiter, limit).await.unwrap();
        let theirs = other.list(prefix, after, delimiter, limit).await.unwrap();
        assert_eq!(ours, theirs, "prefix {prefix} after {after:?} delimiter {delimiter} limit {limit}");
    }
}

#[tokio::test(start_paused = true)]
async fn of_sixteen_that_put_one_key_one_wins_and_the_others_leave_nothing() {
    let backend = Backend::new(3, 4, preset(&["4,2,6,2"], 2), 8).await;
    let puts = (0..16).map(|n| backend.store.put("key", content(5000, n), Precondition::IfAbsent));
    let won: Vec<u64> = futures::future::join_all(puts)
        .await
        .into_iter()
        .enumerate()
        .filter_map(|(n, put)| match put {
            Ok(()) => Some(n as u64),
            Err(e) => {
                assert_eq!(e.kind, ErrorKind::Conflict);
                None
            }
        })
        .collect();
    assert_eq!(won.len(), 1);
    assert_eq!(backend.store.get("key").await.unwrap(), content(5000, won[0]));
    backend.settle().await;
    assert_eq!(backend.values(), 12);
}
