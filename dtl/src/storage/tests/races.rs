//! What happens while a write or a sync is under way: a disk that waits at a gate.

use super::*;
use async_trait::async_trait;
use common::DiskFile;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::Notify;

/// Stops what comes to it while it is closed.
#[derive(Default)]
struct Gate {
    closed: AtomicBool,
    reached: Notify,
    opened: Notify,
}

impl Gate {
    fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    fn open(&self) {
        self.closed.store(false, Ordering::SeqCst);
        self.opened.notify_waiters();
    }

    async fn pass(&self) {
        while self.closed.load(Ordering::SeqCst) {
            let opened = self.opened.notified();
            self.reached.notify_one();
            opened.await;
        }
    }
}

#[derive(Default)]
struct Gates {
    writes: Gate,
    syncs: Gate,
    /// Called in the thread that writes, when the write is done.
    written: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

struct GatedDisk(SimDisk, Arc<Gates>);
struct GatedFile(Arc<dyn DiskFile>, Arc<Gates>);

#[async_trait]
impl Disk for GatedDisk {
    async fn create(&self, name: &str, size: u64) -> Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(GatedFile(self.0.create(name, size).await?, self.1.clone())))
    }
    async fn open(&self, name: &str) -> Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(GatedFile(self.0.open(name).await?, self.1.clone())))
    }
    async fn available(&self) -> Result<u64> {
        self.0.available().await
    }
    async fn list(&self) -> Result<Vec<String>> {
        self.0.list().await
    }
    async fn remove(&self, name: &str) -> Result<()> {
        self.0.remove(name).await
    }
}

#[async_trait]
impl DiskFile for GatedFile {
    fn len(&self) -> u64 {
        self.0.len()
    }
    async fn write_at(&self, offset: u64, parts: &[Bytes]) -> Result<()> {
        self.1.writes.pass().await;
        self.0.write_at(offset, parts).await?;
        let written = self.1.written.lock().take();
        if let Some(written) = written {
            written();
        }
        Ok(())
    }
    async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes> {
        self.0.read_at(offset, len).await
    }
    async fn sync(&self) -> Result<()> {
        self.1.syncs.pass().await;
        self.0.sync().await
    }
}

async fn gated(disk: &SimDisk) -> (Arc<Store>, Arc<Gates>) {
    let gates = Arc::new(Gates::default());
    let through = Arc::new(GatedDisk(disk.process(), gates.clone()));
    (Store::open(small(), through, clock()).await.unwrap().0, gates)
}

async fn in_time<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what).await.expect("it hangs")
}

/// An append is written, and not in the log yet; a seal says how long the log is; then the append is confirmed: a takeover
/// drains one entry less than was acknowledged. The same for an owner's second connection, which would take it twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_comes_between_a_write_and_its_place_in_the_log() {
    let disk = SimDisk::new();
    let (store, gates) = gated(&disk).await;
    let key = log(&store, V, 5, 0).await;
    let (tell, written) = std::sync::mpsc::channel();
    let (go, wait) = std::sync::mpsc::channel::<()>();
    *gates.written.lock() = Some(Box::new(move || {
        tell.send(()).unwrap();
        wait.recv().unwrap();
    }));
    let appending = store.clone();
    let append = tokio::spawn(async move { fill(&appending, key, 1..=1, 100).await });
    tokio::task::block_in_place(|| {
        written.recv().unwrap();
        // It can't be put into the log now.
        let _logs = store.logs.lock();
        go.send(()).unwrap();
        for _ in 0..100 {
            let taken = store.back.as_ref().unwrap().appender.try_lock().is_ok();
            assert!(!taken, "a seal would not see it");
            std::thread::park_timeout(Duration::from_millis(2));
        }
    });
    assert_eq!(append.await.unwrap()[0].clone().unwrap(), Admission::Take);
    assert_eq!(store.seal(V, Epoch(6)).await.unwrap()[0].last, Lsn(1));
}

/// The owner's old connection appends 101 on a slow disk; it reconnects, learns that the backend has everything up to 180,
/// and trims. Then the append is done.
#[tokio::test(start_paused = true)]
async fn an_append_that_a_trim_overtakes_is_not_put_where_it_does_not_belong() {
    let disk = SimDisk::new();
    let (store, gates) = gated(&disk).await;
    let key = log(&store, V, 5, 100).await;
    gates.writes.close();
    let appending = store.clone();
    let append = tokio::spawn(async move { fill(&appending, key, 101..=102, 100).await });
    gates.writes.reached.notified().await;
    store.trim(&key, Lsn(180)).unwrap();
    gates.writes.open();
    for verdict in append.await.unwrap() {
        assert_eq!(verdict.unwrap(), Admission::Have);
    }
    takes(&store, key, 181..=182, 100).await;
    check(&store, &key, 181..=182, 100).await;
}

/// A connection has a seal or a flush under way and waits for a client that does not read.
#[tokio::test(start_paused = true)]
async fn what_nobody_polls_holds_up_nobody() {
    let disk = SimDisk::new();
    let (store, gates) = gated(&disk).await;
    let (key, other) = (log(&store, V, 5, 0).await, log(&store, VolumeId(8), 5, 0).await);
    takes(&store, key, 1..=1, 100).await;
    takes(&store, other, 1..=1, 100).await;
    gates.syncs.close();
    let mut flush = Box::pin(store.flush(&key));
    assert!(futures::poll!(&mut flush).is_pending());
    gates.syncs.reached.notified().await;
    gates.syncs.open();
    assert_eq!(in_time(store.flush(&other)).await.unwrap(), Lsn(1));
    gates.writes.close();
    let mut seal = Box::pin(store.seal(V, Epoch(6)));
    assert!(futures::poll!(&mut seal).is_pending());
    gates.writes.reached.notified().await;
    gates.writes.open();
    in_time(takes(&store, other, 2..=2, 100)).await;
    assert_eq!(in_time(flush).await.unwrap(), Lsn(1));
    in_time(seal).await.unwrap();
}

/// N asks for a seal, and its connection breaks while the seal is written; N asks again, and is answered; P loses power.
#[tokio::test(start_paused = true)]
async fn a_seal_that_is_asked_again_is_as_durable_as_the_first() {
    let disk = SimDisk::new();
    let (store, gates) = gated(&disk).await;
    let key = log(&store, V, 5, 0).await;
    takes(&store, key, 1..=3, 100).await;
    store.flush(&key).await.unwrap();
    gates.writes.close();
    {
        let mut seal = Box::pin(store.seal(V, Epoch(6)));
        assert!(futures::poll!(&mut seal).is_pending());
        gates.writes.reached.notified().await;
    }
    gates.writes.open();
    in_time(store.seal(V, Epoch(6))).await.unwrap();
    disk.crash(|| false);
    let (store, _) = disk_store(&disk).await;
    assert_eq!(store.status(V).0, Epoch(6));
    assert_eq!(kind(store.resume(&key)), ErrorKind::Fenced);
}

/// While the trim to 10 is made durable, so that one segment can go, there is a trim to 30; segments that only that one
/// frees went too, and a loss of power left a log that ends at 10.
#[tokio::test(start_paused = true)]
async fn a_trim_that_comes_while_a_segment_is_freed_waits_for_the_next_time() {
    let disk = SimDisk::new();
    let (store, _) = disk_store(&disk).await;
    let key = log(&store, V, 5, 0).await;
    takes(&store, key, 1..=40, 8000).await;
    store.flush(&key).await.unwrap();
    disk.kill();
    let (store, gates) = gated(&disk).await;
    takes(&store, key, 41..=42, 8000).await;
    store.flush(&key).await.unwrap();
    gates.syncs.close();
    store.trim(&key, Lsn(10)).unwrap();
    gates.syncs.reached.notified().await;
    store.trim(&key, Lsn(30)).unwrap();
    gates.syncs.open();
    tokio::task::yield_now().await;
    tokio::task::yield_now().await;
    disk.crash(|| false);
    let (store, found) = disk_store(&disk).await;
    assert!(found.damage.is_empty(), "{found:?}");
    assert_eq!(info(&store, &key).last, Lsn(42));
    check(&store, &key, 31..=42, 8000).await;
}

/// The state of a volume is taken to be written, its segment is full, the next one begins with what the state is by then:
/// and the older one comes behind it.
#[tokio::test(start_paused = true)]
async fn a_trim_that_comes_while_a_segment_is_begun_is_not_forgotten() {
    let disk = SimDisk::new();
    let (store, gates) = gated(&disk).await;
    let key = log(&store, V, 5, 0).await;
    // A sector each; header, checkpoint and the state of the new log are there already.
    let n = ((64 << 10) - 4096) / 512 - 2;
    takes(&store, key, 1..=n, 300).await;
    store.trim(&key, Lsn(5)).unwrap();
    tokio::task::yield_now().await;
    gates.writes.close();
    let appending = store.clone();
    let append = tokio::spawn(async move { fill(&appending, key, n + 1..=n + 1, 300).await });
    gates.writes.reached.notified().await;
    store.trim(&key, Lsn(n)).unwrap();
    gates.writes.open();
    assert_eq!(append.await.unwrap().remove(0).unwrap(), Admission::Take);
    store.tidy().await.unwrap();
    store.flush(&key).await.unwrap();
    disk.crash(|| false);
    let (store, found) = disk_store(&disk).await;
    assert!(found.damage.is_empty(), "{found:?}");
    assert_eq!((info(&store, &key).base, info(&store, &key).last), (Lsn(n), Lsn(n + 1)));
}

/// A segment is used again; the power cut keeps some sectors of its new life and loses its new header. All of it was
/// unsynced, so nothing is lost that counts, and no log may be given up.
#[tokio::test(start_paused = true)]
async fn a_power_cut_in_a_segment_that_is_used_again_is_no_damage() {
    for seed in 0..40 {
        let mut random = fastrand::Rng::with_seed(seed);
        let disk = SimDisk::new();
        let (store, _) = disk_store(&disk).await;
        let key = log(&store, V, 5, 0).await;
        let other = log(&store, VolumeId(8), 5, 0).await;
        takes(&store, other, 1..=1, 100).await;
        let last = random.u64(60..120);
        for lsn in 1..=last {
            takes(&store, key, lsn..=lsn, 3000).await;
            if lsn % 9 == 0 {
                store.flush(&key).await.unwrap();
                store.trim(&key, Lsn(lsn - 4)).unwrap();
            }
        }
        disk.crash(|| random.bool());
        let (store, found) = disk_store(&disk).await;
        assert!(found.damage.is_empty(), "seed {seed}: {found:?}");
        assert!(info(&store, &key).last >= Lsn(last / 9 * 9), "seed {seed}");
        check(&store, &other, 1..=1, 100).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_segment_without_header_and_first_record_is_damage_not_an_empty_one() {
    let disk = SimDisk::new();
    let (store, _) = disk_store(&disk).await;
    let key = log(&store, V, 5, 0).await;
    takes(&store, key, 1..=6, 3000).await;
    store.flush(&key).await.unwrap();
    takes(&store, key, 7..=7, 3000).await;
    disk.kill();
    let file = disk.list().await.unwrap()[0].clone();
    disk.flip_bit(&file, 20, 1);
    disk.flip_bit(&file, 4096 + 20, 1);
    let (store, found) = disk_store(&disk).await;
    assert!(!found.damage.is_empty(), "{found:?}");
    assert!(store.status(V).1.iter().all(|l| l.damaged));
}

#[tokio::test(start_paused = true)]
async fn what_comes_twice_in_one_batch_is_confirmed_only_if_it_is_there() {
    let disk = SimDisk::new();
    let (store, _) = disk_store(&disk).await;
    let key = log(&store, V, 5, 0).await;
    disk.set_faults(SimDiskFaults { full: true, ..Default::default() });
    let mut last = 0;
    loop {
        let twice = [incoming(key, last + 1, 20_000), incoming(key, last + 1, 20_000)];
        let verdicts: Vec<Admission> = store.append(&twice).await.into_iter().map(Result::unwrap).collect();
        if verdicts[0] == Admission::Full {
            assert_eq!(verdicts[1], Admission::Full);
            break;
        }
        assert_eq!(verdicts, [Admission::Take, Admission::Have]);
        last += 1;
        assert!(last < 1000);
    }
}

#[tokio::test(start_paused = true)]
async fn the_epoch_that_means_forgotten_is_nobodys() {
    both(async |store| {
        assert_eq!(kind(store.seal(V, Epoch(u64::MAX)).await), ErrorKind::Invalid);
        assert_eq!(kind(store.create(V, Epoch(u64::MAX), 1, Lsn(0)).await), ErrorKind::Invalid);
        assert_eq!(store.status(V), (Epoch(0), Vec::new()));
    })
    .await;
}
