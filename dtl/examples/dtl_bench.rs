//! Latency and throughput of replicating 4 KiB entries, next to a bare ping-pong of the same bytes on the same
//! kind of socket: `cargo run --release -p dtl --example dtl_bench [-- SECONDS [DIRECTORY]]`.
//!
//! Client and service have a runtime each, as two processes would. Rounds alternate, so that a noisy machine
//! hits all alike; the median of the rounds' medians is printed.

use async_trait::async_trait;
use common::clock::SystemClock;
use common::disk::local::LocalDisk;
use common::{Clock, Epoch, Lsn, VolumeId};
use dtl::Entry;
use dtl::client::{Chunk, Client, LinkState, Progress, Replica, Settings, Sink, Source, Start};
use dtl::metrics::ServiceMetrics;
use dtl::service::{Service, Settings as ServiceSettings};
use dtl::storage::{DiskSettings, Limits, Store};
use dtl::transport::Address;
use futures::task::AtomicWaker;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

const PAYLOAD: usize = 4096;
/// An `append` frame: head, entry's head, one checksum, payload.
const SENT: usize = 20 + 64 + 4 + PAYLOAD;
/// A `confirmed` frame.
const BACK: usize = 28;
const ROUNDS: usize = 5;

#[derive(Default)]
struct Heard {
    confirmed: AtomicU64,
    waker: AtomicWaker,
}

impl Sink for Heard {
    fn progress(&self, progress: &Progress) {
        self.confirmed.store(progress.confirmed.0, Ordering::Release);
        self.waker.wake();
    }
}

impl Heard {
    async fn reaches(&self, lsn: u64) {
        poll_fn(|cx| {
            let there = || self.confirmed.load(Ordering::Acquire) >= lsn;
            if there() {
                return Poll::Ready(());
            }
            self.waker.register(cx.waker());
            if there() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

/// What a journal would have: for when the service has no room for a moment.
struct Journal(VolumeId, Arc<AtomicU64>, bytes::Bytes);

#[async_trait]
impl Source for Journal {
    async fn read(&self, from: Lsn, max: usize) -> common::Result<Chunk> {
        let last = self.1.load(Ordering::Acquire).min(from.0 + (max / PAYLOAD) as u64);
        let entries = (from.0..=last).map(|lsn| entry(self.0, lsn, &self.2)).collect();
        Ok(Chunk { committed: Lsn(from.0 - 1), entries })
    }
}

fn entry(volume: VolumeId, lsn: u64, payload: &bytes::Bytes) -> Entry {
    Entry {
        volume,
        epoch: Epoch(1),
        lsn: Lsn(lsn),
        kind: 1,
        flags: 0,
        addr: lsn,
        count: 1,
        crcs: [7].into_iter().collect(),
        payload: payload.clone(),
    }
}

struct Log {
    client: Client,
    replica: Replica,
    heard: Arc<Heard>,
    volume: VolumeId,
    last: u64,
    given: Arc<AtomicU64>,
    payload: bytes::Bytes,
}

impl Log {
    async fn open_at(address: Address, clock: Arc<dyn Clock>, volume: u128) -> Log {
        let client = Client::new(Arc::new(address), Settings::default(), clock.clone());
        let heard = Arc::new(Heard::default());
        let start = Start {
            volume: VolumeId(volume),
            epoch: Epoch(1),
            serial: 1,
            committed: Lsn(0),
            accepted: Lsn(0),
        };
        let payload = bytes::Bytes::from(vec![0x5a; PAYLOAD]);
        let given = Arc::new(AtomicU64::new(0));
        let journal = Journal(VolumeId(volume), given.clone(), payload.clone());
        let replica = client.replica(start, Arc::new(journal), heard.clone());
        while replica.progress().state != LinkState::Live {
            clock.sleep(Duration::from_millis(5)).await;
        }
        Log { client, replica, heard, volume: VolumeId(volume), last: 0, given, payload }
    }

    fn send(&mut self) {
        self.last += 1;
        self.given.store(self.last, Ordering::Release);
        self.replica.append(&entry(self.volume, self.last, &self.payload));
        if self.last.is_multiple_of(1024) {
            self.replica.trim(self.replica.confirmed());
        }
    }

    async fn latency(&mut self, clock: &dyn Clock, time: Duration) -> Vec<Duration> {
        let (mut times, end) = (Vec::new(), clock.now() + time);
        loop {
            let begin = clock.now();
            if begin >= end {
                return times;
            }
            self.send();
            self.heard.reaches(self.last).await;
            times.push(clock.now() - begin);
        }
    }

    async fn throughput(&mut self, clock: &dyn Clock, time: Duration, depth: u64) -> f64 {
        let (begin, first) = (clock.now(), self.last);
        while clock.now() < begin + time {
            while self.last < self.heard.confirmed.load(Ordering::Acquire) + depth {
                self.send();
            }
            self.heard.reaches(self.last + 1 - depth).await;
        }
        self.heard.reaches(self.last).await;
        (self.last - first) as f64 / (clock.now() - begin).as_secs_f64()
    }
}

/// Bare bytes back and forth.
struct Bare<S> {
    stream: S,
}

async fn echo<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) {
    let mut bytes = vec![0u8; 64 << 10];
    let mut have = 0;
    while let Ok(n) = stream.read(&mut bytes).await {
        if n == 0 {
            return;
        }
        have += n;
        let answers = have / SENT;
        have %= SENT;
        if answers > 0 && stream.write_all(&vec![1u8; answers * BACK]).await.is_err() {
            return;
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Bare<S> {
    async fn latency(&mut self, clock: &dyn Clock, time: Duration) -> Vec<Duration> {
        let (mut times, end) = (Vec::new(), clock.now() + time);
        let (out, mut back) = (vec![2u8; SENT], [0u8; BACK]);
        loop {
            let begin = clock.now();
            if begin >= end {
                return times;
            }
            self.stream.write_all(&out).await.expect("the echo runs");
            self.stream.read_exact(&mut back).await.expect("the echo runs");
            times.push(clock.now() - begin);
        }
    }

    async fn throughput(&mut self, clock: &dyn Clock, time: Duration, depth: usize) -> f64 {
        let begin = clock.now();
        let (out, mut back) = (vec![2u8; SENT * depth], vec![0u8; BACK * depth]);
        let (mut sent, mut received) = (0, 0);
        while clock.now() < begin + time {
            let free = depth - (sent - received / BACK);
            self.stream.write_all(&out[..SENT * free]).await.expect("the echo runs");
            sent += free;
            received += self.stream.read(&mut back).await.expect("the echo runs");
        }
        while received < sent * BACK {
            received += self.stream.read(&mut back).await.expect("the echo runs");
        }
        sent as f64 / (clock.now() - begin).as_secs_f64()
    }
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of.get(of.len() / 2).copied().unwrap_or(f64::NAN)
}

/// (p50, p99) in microseconds.
fn percentiles(mut times: Vec<Duration>) -> (f64, f64) {
    times.sort();
    let at = |p: usize| times.get(times.len() * p / 100).map_or(f64::NAN, |d| d.as_secs_f64() * 1e6);
    (at(50), at(99))
}

struct Row {
    name: &'static str,
    p50: Vec<f64>,
    p99: Vec<f64>,
    rate: Vec<f64>,
}

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let seconds: f64 = arguments.next().and_then(|s| s.parse().ok()).unwrap_or(1.0);
    let folder = arguments.next().map_or_else(std::env::temp_dir, Into::into);
    let dir =
        tempfile::Builder::new().prefix("dtl-bench-").tempdir_in(folder).expect("a temporary directory");
    let time = Duration::from_secs_f64(seconds);
    let (server, client) = (runtime(), runtime());
    let clock: Arc<dyn Clock> = server.block_on(async { Arc::new(SystemClock::new()) });
    let (_stop, stopped) = watch::channel(false);

    let limits = Limits { capacity: 512 << 20, volume_bytes: 256 << 20, ..Limits::default() };
    let mut addresses = Vec::new();
    server.block_on(async {
        for kind in ["memory", "disk"] {
            let store = if kind == "memory" {
                Store::memory(limits, clock.clone())
            } else {
                let settings = DiskSettings { segment_size: 32 << 20, segments: 24, limits };
                let disk = LocalDisk::open(dir.path().join("disk")).expect("the directory is ours");
                Store::open(settings, Arc::new(disk), clock.clone()).await.expect("the store opens").0
            };
            let service =
                Service::new(store, ServiceSettings::default(), clock.clone(), ServiceMetrics::default());
            let path = dir.path().join(format!("{kind}.sock"));
            let unix = UnixListener::bind(&path).expect("the socket is ours");
            let tcp = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let far = Address::Tcp("127.0.0.1:1".into(), None);
            addresses.push(Address::Near(path, Box::new(far)));
            addresses.push(Address::Tcp(tcp.local_addr().expect("bound").to_string(), None));
            let (s, stop) = (service.clone(), stopped.clone());
            tokio::spawn(async move { s.listen(dtl::service::Door::Unix(unix), stop).await });
            let stop = stopped.clone();
            tokio::spawn(async move { service.listen(dtl::service::Door::Tcp(tcp, None), stop).await });
        }
    });
    let bare = dir.path().join("bare");
    let bare_tcp = server.block_on(async {
        let unix = UnixListener::bind(&bare).expect("the socket is ours");
        let tcp = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = tcp.local_addr().expect("bound");
        tokio::spawn(async move {
            while let Ok((stream, _)) = unix.accept().await {
                tokio::spawn(echo(stream));
            }
        });
        tokio::spawn(async move {
            while let Ok((stream, _)) = tcp.accept().await {
                let _ = stream.set_nodelay(true);
                tokio::spawn(echo(stream));
            }
        });
        address
    });

    let rows = client.block_on(client.spawn(async move {
        let mut unix = Bare { stream: UnixStream::connect(&bare).await.expect("the echo runs") };
        let mut tcp = Bare { stream: TcpStream::connect(bare_tcp).await.expect("the echo runs") };
        let _ = tcp.stream.set_nodelay(true);
        // One volume at each service: another client of the same volume and epoch would be the same owner.
        let names = ["bare, unix", "bare, TCP", "memory, unix", "memory, TCP", "disk, unix", "disk, TCP"];
        let mut rows: Vec<Row> =
            names.iter().map(|name| Row { name, p50: vec![], p99: vec![], rate: vec![] }).collect();
        for round in 0..ROUNDS {
            for (i, row) in rows.iter_mut().enumerate() {
                let (times, rate) = match i {
                    0 => (unix.latency(&*clock, time).await, unix.throughput(&*clock, time, 32).await),
                    1 => (tcp.latency(&*clock, time).await, tcp.throughput(&*clock, time, 32).await),
                    _ => {
                        let address = addresses[i - 2].clone();
                        let mut log = Log::open_at(address, clock.clone(), (round * 8 + i) as u128).await;
                        let times = log.latency(&*clock, time).await;
                        let rate = log.throughput(&*clock, time, 32).await;
                        log.replica.trim(Lsn(log.last));
                        log.client.close().await;
                        (times, rate)
                    }
                };
                let (p50, p99) = percentiles(times);
                row.p50.push(p50);
                row.p99.push(p99);
                row.rate.push(rate);
            }
        }
        rows
    }));
    let rows = rows.expect("the benchmark ran");
    println!("4 KiB, append to confirmation; medians of {ROUNDS} rounds of {seconds} s");
    println!("{:<14} {:>12} {:>12} {:>16} {:>8}", "", "depth 1 p50", "p99", "depth 32", "of bare");
    let bare: Vec<f64> = rows[..2].iter().map(|r| median(r.p50.clone())).collect();
    for (i, row) in rows.into_iter().enumerate() {
        let p50 = median(row.p50);
        println!(
            "{:<14} {p50:>9.1} us {:>9.1} us {:>14.0}/s {:>8.2}",
            row.name,
            median(row.p99),
            median(row.rate),
            p50 / bare[i % 2]
        );
    }
}
