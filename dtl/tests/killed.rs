//! A service in a process of its own that is killed and stopped while an owner writes: what it has confirmed is there.

mod world;

use common::clock::SystemClock;
use common::disk::local::LocalDisk;
use common::{Clock, Epoch, Lsn};
use dtl::client::{Client, LinkState};
use dtl::metrics::ServiceMetrics;
use dtl::service::{Door, Service};
use dtl::storage::{DiskSettings, Key, Limits, Store};
use dtl::transport::Address;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use world::{V, Volume, entry};

const FOLDER: &str = "SR_DTL_TEST_FOLDER";

/// Not a test: the service that the other one starts.
#[test]
#[ignore = "the process that is killed"]
fn service() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let folder = Path::new(&folder);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let limits = Limits { capacity: 64 << 20, volume_bytes: 32 << 20, volumes: 64, logs_per_volume: 8 };
        let settings = DiskSettings { segment_size: 1 << 20, segments: 96, limits };
        let disk = LocalDisk::open(folder.join("disk")).unwrap();
        let (store, found) = Store::open(settings, Arc::new(disk), clock.clone()).await.unwrap();
        assert!(found.damage.is_empty(), "{found:?}");
        let socket = folder.join("dtl.sock");
        let _ = std::fs::remove_file(&socket);
        let door = Door::Unix(tokio::net::UnixListener::bind(&socket).unwrap());
        let (_run, stop) = tokio::sync::watch::channel(false);
        Service::new(store, Default::default(), clock, ServiceMetrics::default()).listen(door, stop).await;
    });
}

struct Running(Child);

impl Running {
    fn start(folder: &Path) -> Running {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "service", "--ignored"]).env(FOLDER, folder);
        Running(child.stdout(Stdio::null()).spawn().unwrap())
    }

    fn signal(&self, name: &str) {
        let done = Command::new("kill").args([name, &self.0.id().to_string()]).status().unwrap();
        assert!(done.success());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Writes for a while, some of it flushed and some of it trimmed.
async fn write(v: &mut Volume, clock: &dyn Clock, random: &mut fastrand::Rng, time: Duration) {
    let end = clock.now() + time;
    while clock.now() < end {
        v.len = random.usize(100..6000);
        if v.last - v.replica.confirmed().0 < 2000 {
            v.write(random.u64(1..20));
        }
        if random.u8(..3) == 0 {
            v.replica.flush(Lsn(v.last));
        }
        if random.u8(..20) == 0 {
            let committed = Lsn(v.replica.flushed().0.saturating_sub(500));
            v.journal.commit(committed);
            v.replica.trim(committed);
        }
        clock.sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_service_had_confirmed_is_there_when_it_is_back() {
    let folder = tempfile::tempdir().unwrap();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let mut random = fastrand::Rng::with_seed(7);
    let address =
        Address::Near(folder.path().join("dtl.sock"), Box::new(Address::Tcp("127.0.0.1:1".into(), None)));
    let mut running = Running::start(folder.path());
    let client = Client::new(Arc::new(address.clone()), Default::default(), clock.clone());
    let mut v = Volume::new(&client, V, 5);
    v.wait_live().await;
    for round in 0..6 {
        let time = Duration::from_millis(random.u64(100..500));
        write(&mut v, &*clock, &mut random, time).await;
        drop(running);
        let (confirmed, flushed) = (v.replica.confirmed(), v.replica.flushed());
        assert!(flushed > Lsn(0), "round {round}");
        running = Running::start(folder.path());
        // By somebody else, before the owner has sent anything again: as whoever takes over would find it.
        let other = Client::new(Arc::new(address.clone()), Default::default(), clock.clone());
        let begin = clock.now();
        let log = loop {
            match other.status(V).await {
                Ok((_, logs)) => break logs[0],
                Err(error) => assert!((clock.now() - begin) < Duration::from_secs(10), "{error}"),
            }
        };
        assert!(
            log.last >= confirmed && log.last >= flushed,
            "{log:?}, confirmed {confirmed}, flushed {flushed}"
        );
        let key = Key { volume: V, epoch: Epoch(5), incarnation: v.incarnation() };
        let mut reading = other.read(key, log.base.next()).await.unwrap();
        let mut lsn = log.base;
        while lsn < flushed {
            let found = reading.next().await.unwrap().unwrap();
            lsn = lsn.next();
            assert_eq!(found, entry(V, 5, lsn.0, found.payload.len()));
        }
        other.close().await;
        v.wait_live().await;
        v.wait_confirmed().await;
    }
    // Stopped, not dead: its connections stay open. The owner notices in time, and it goes on when the service does.
    let begin = clock.now();
    running.signal("-STOP");
    v.write(10);
    v.replica.flush(Lsn(v.last));
    v.wait(|p| p.state == LinkState::Away).await;
    assert!((clock.now() - begin) < Duration::from_secs(4), "{:?}", (clock.now() - begin));
    let other = Client::new(Arc::new(address.clone()), Default::default(), clock.clone());
    let begin = clock.now();
    assert!(other.seal(V, Epoch(6)).await.is_err(), "a frozen peer holds up no takeover");
    assert!((clock.now() - begin) < Duration::from_secs(8), "{:?}", (clock.now() - begin));
    other.close().await;
    running.signal("-CONT");
    v.wait_confirmed().await;
    v.replica.flush(Lsn(v.last));
    let last = v.last;
    v.wait(|p| p.flushed == Lsn(last)).await;
    drop(running);
}
