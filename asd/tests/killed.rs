//! A daemon in a process of its own, on a real disk and a real table, that is killed while clients write: what it has
//! acknowledged is there, and what it has not is there as a whole or not at all.

use asd::AsdClient;
use asd::metrics::Metrics;
use asd::service::Service;
use asd::store::{Settings, Store};
use asd::transport::{Address, Door};
use bytes::Bytes;
use common::clock::SystemClock;
use common::disk::local::LocalDisk;
use common::osd::{Call, Changes, KeyRange, Value};
use common::{Clock, ErrorKind, Osd};
use kvstore::{RocksSettings, RocksTable};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

const FOLDER: &str = "SR_ASD_TEST_FOLDER";
const WRITERS: usize = 4;

fn table(folder: &Path) -> RocksTable {
    let small =
        RocksSettings { block_cache_bytes: 1 << 20, write_buffer_bytes: 1 << 20, ..RocksSettings::default() };
    RocksTable::open(folder.join("table"), small).unwrap()
}

/// Not a test: the daemon that the other one starts.
#[test]
#[ignore = "the process that is killed"]
fn daemon() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let folder = Path::new(&folder);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let settings = Settings {
            capacity: Some(96 << 20),
            table_reserve: 8 << 20,
            scrub_rate: 4 << 20,
            ..Settings::default()
        };
        let disk = Arc::new(LocalDisk::open(folder.join("disk")).unwrap());
        let (store, found) = Store::open(settings, disk, Arc::new(table(folder)), clock).await.unwrap();
        assert!(found.missing.is_empty(), "{found:?}");
        store.audit().unwrap();
        let socket = folder.join("asd.sock");
        let _ = std::fs::remove_file(&socket);
        let door = Door::Unix(tokio::net::UnixListener::bind(&socket).unwrap());
        let (_run, stop) = tokio::sync::watch::channel(false);
        Service::new(Arc::new(store), Default::default(), Metrics::default()).listen(door, stop).await;
    });
}

struct Running(Child);

impl Running {
    fn start(folder: &Path) -> Running {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "daemon", "--ignored"]).env(FOLDER, folder);
        Running(child.stdout(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn content(writer: usize, number: u64) -> Bytes {
    let mut random = fastrand::Rng::with_seed(number << 8 | writer as u64);
    let mut bytes = vec![0; random.usize(..60_000)];
    random.fill(&mut bytes);
    bytes.into()
}

type Keys = BTreeMap<Bytes, u64>;

/// What a writer knows.
#[derive(Default)]
struct Known {
    keys: Keys,
    pending: Option<Keys>,
    number: u64,
}

/// Two keys at a time, until the daemon is gone.
async fn write(writer: usize, client: Arc<AsdClient>, known: Arc<Mutex<Known>>) {
    let mut random = fastrand::Rng::with_seed(writer as u64);
    loop {
        let (mut changes, mut after) = (Changes::new(), known.lock().keys.clone());
        for half in 0..2 {
            let key = Bytes::from(format!("{writer}/{half}/{}", random.u8(..20)));
            if random.u8(..4) == 0 {
                changes = changes.delete(key.clone());
                after.remove(&key);
            } else {
                let number = {
                    let mut known = known.lock();
                    known.number += 1;
                    known.number
                };
                changes = changes.set(key.clone(), Value::new(content(writer, number)));
                after.insert(key, number);
            }
        }
        known.lock().pending = Some(after);
        match client.apply(Call::client(Duration::from_secs(60)), changes).await {
            Ok(()) => {
                let mut known = known.lock();
                known.keys = known.pending.take().unwrap();
            }
            Err(e) if e.kind == ErrorKind::NoSpace => known.lock().pending = None,
            Err(e) if e.kind == ErrorKind::Unavailable => return,
            Err(e) => panic!("writer {writer}: {e}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_daemon_had_acknowledged_is_there_when_it_is_back() {
    let folder = tempfile::tempdir().unwrap();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let disk = LocalDisk::open(folder.path().join("disk")).unwrap();
    let id = {
        let table = table(folder.path());
        Store::format(&disk, &table, &*clock, 4 << 20).await.unwrap()
    };
    let address = Address::Unix(folder.path().join("asd.sock"));
    let known: Vec<Arc<Mutex<Known>>> = (0..WRITERS).map(|_| Arc::default()).collect();
    let mut random = fastrand::Rng::with_seed(11);
    let call = Call::client(Duration::from_secs(60));
    let mut acknowledged = 0;
    for round in 0..8 {
        let running = Running::start(folder.path());
        let client = Arc::new(AsdClient::new(
            Arc::new(address.clone()),
            Some(id),
            None,
            Default::default(),
            clock.clone(),
        ));
        let begin = clock.now();
        while let Err(error) = client.status(call).await {
            assert!(clock.now() - begin < Duration::from_secs(60), "round {round}: {error}");
            clock.sleep(Duration::from_millis(20)).await;
        }
        for (writer, known) in known.iter().enumerate() {
            let prefix = format!("{writer}/");
            let page = client.range(call, KeyRange::prefix(prefix.as_bytes()), 1000).await.unwrap();
            let mut there = BTreeMap::new();
            for info in page.keys {
                let value = client.get(call, &info.key).await.unwrap().unwrap();
                assert_eq!(value.bytes.len() as u64, info.len);
                there.insert(info.key, value.bytes);
            }
            let mut known = known.lock();
            let is = |keys: &Keys| {
                keys.len() == there.len()
                    && keys.iter().all(|(key, number)| there.get(key) == Some(&content(writer, *number)))
            };
            match known.pending.take() {
                Some(after) if is(&after) => known.keys = after,
                _ => {
                    assert!(is(&known.keys), "round {round}, writer {writer}: something acknowledged is lost")
                }
            }
        }
        let before: u64 = known.iter().map(|k| k.lock().number).sum();
        let writers: Vec<_> = known
            .iter()
            .enumerate()
            .map(|(writer, known)| tokio::spawn(write(writer, client.clone(), known.clone())))
            .collect();
        clock.sleep(Duration::from_millis(random.u64(200..900))).await;
        drop(running);
        for writer in writers {
            writer.await.unwrap();
        }
        acknowledged += known.iter().map(|k| k.lock().number).sum::<u64>() - before;
    }
    assert!(acknowledged > 100, "only {acknowledged} writes");
}
