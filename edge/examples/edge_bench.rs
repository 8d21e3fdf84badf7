//! Latency and throughput of 4 KiB requests over the edge protocol to a device in memory, next to a bare ping-pong of
//! the same bytes over the same kind of socket: `cargo run --release -p edge --example edge_bench [-- SECONDS]`.
//!
//! Client and server have a runtime of one thread each, as two processes would. Rounds alternate, so that a noisy
//! machine hits all alike; medians of the rounds are printed.

use common::clock::SystemClock;
use common::sim::{SimDevice, SimExports};
use common::{Clock, Geometry};
use edge::protocol::server::Metrics;
use edge::protocol::{Attach, Attached, Attachments, Forwarder, PlainExports, Refusal, Server, Settings};
use edge_client::transport::Dialer;
use edge_client::wire::Op;
use edge_client::{Device, Options, Pending};
use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

const PAYLOAD: usize = 4096;
const DEPTH: usize = 32;
const ROUNDS: usize = 5;
const DISK: u64 = 64 << 20;
/// Bytes of a request and of a reply, without payload.
const SENT: usize = 60;
const BACK: usize = 54;

/// Bare bytes back and forth: for each `sent` bytes, `back` bytes.
async fn echo(mut stream: UnixStream, sent: usize, back: usize) {
    let mut bytes = vec![0u8; 256 << 10];
    let answer = vec![1u8; back * 64];
    let mut have = 0;
    while let Ok(n) = stream.read(&mut bytes).await {
        if n == 0 {
            return;
        }
        have += n;
        let answers = have / sent;
        have %= sent;
        if answers > 0 && stream.write_all(&answer[..answers * back]).await.is_err() {
            return;
        }
    }
}

struct Bare {
    stream: UnixStream,
    sent: usize,
    back: usize,
}

impl Bare {
    async fn latency(&mut self, clock: &dyn Clock, time: Duration) -> Vec<Duration> {
        let (mut times, end) = (Vec::new(), clock.now() + time);
        let (out, mut back) = (vec![2u8; self.sent], vec![0u8; self.back]);
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

    async fn throughput(&mut self, clock: &dyn Clock, time: Duration) -> f64 {
        let begin = clock.now();
        let (out, mut back) = (vec![2u8; self.sent * DEPTH], vec![0u8; self.back * DEPTH]);
        let (mut sent, mut received) = (0, 0);
        while clock.now() < begin + time {
            let free = DEPTH - (sent - received / self.back);
            self.stream.write_all(&out[..self.sent * free]).await.expect("the echo runs");
            sent += free;
            received += self.stream.read(&mut back).await.expect("the echo runs");
        }
        while received < sent * self.back {
            received += self.stream.read(&mut back).await.expect("the echo runs");
        }
        sent as f64 / (clock.now() - begin).as_secs_f64()
    }
}

struct Disk {
    device: Device,
    write: bool,
    data: bytes::Bytes,
    at: u64,
}

impl Disk {
    fn begin(&mut self) -> Pending {
        self.at = (self.at + PAYLOAD as u64) % DISK;
        let offset = self.at;
        self.device.submit(match self.write {
            true => Op::Write { offset, data: self.data.clone(), fua: false },
            false => Op::Read { offset, len: PAYLOAD as u32 },
        })
    }

    async fn latency(&mut self, clock: &dyn Clock, time: Duration) -> Vec<Duration> {
        let (mut times, end) = (Vec::new(), clock.now() + time);
        loop {
            let begin = clock.now();
            if begin >= end {
                return times;
            }
            self.begin().await.expect("the server runs");
            times.push(clock.now() - begin);
        }
    }

    async fn throughput(&mut self, clock: &dyn Clock, time: Duration) -> f64 {
        let begin = clock.now();
        let mut pending = VecDeque::new();
        let mut done = 0;
        while clock.now() < begin + time {
            while pending.len() < DEPTH {
                pending.push_back(self.begin());
            }
            // As they are answered, which is in order here: whatever has come is taken.
            while let Some(first) = pending.front_mut() {
                if pending_is_ready(first).await {
                    pending.pop_front();
                    done += 1;
                } else {
                    break;
                }
            }
            if pending.len() == DEPTH
                && let Some(first) = pending.pop_front()
            {
                first.await.expect("the server runs");
                done += 1;
            }
        }
        for one in pending {
            one.await.expect("the server runs");
            done += 1;
        }
        f64::from(done) / (clock.now() - begin).as_secs_f64()
    }
}

async fn pending_is_ready(pending: &mut Pending) -> bool {
    matches!(futures::poll!(pending), std::task::Poll::Ready(Ok(_)))
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of.get(of.len() / 2).copied().unwrap_or(f64::NAN)
}

fn percentile(times: &mut [Duration], p: usize) -> f64 {
    times.sort();
    times.get(times.len() * p / 100).map_or(f64::NAN, |d| d.as_secs_f64() * 1e6)
}

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
}

/// Everything is owned elsewhere.
struct Elsewhere(Forwarder, Vec<String>);

#[async_trait::async_trait]
impl Attachments for Elsewhere {
    async fn attach(&self, attach: Attach) -> Result<Arc<dyn Attached>, Refusal> {
        self.0.attach(&self.1, attach).await
    }
}

async fn serve(
    path: &Path,
    attachments: Arc<dyn Attachments>,
    clock: Arc<dyn Clock>,
    stop: watch::Receiver<bool>,
) {
    let settings = Settings { listen: String::new(), unix: Some(path.to_owned()), ..Settings::default() };
    let server = Server::new("bench".into(), settings, attachments, clock, Metrics::default());
    let listeners = server.bind().await.expect("the socket is ours");
    tokio::spawn(server.serve(listeners, stop));
}

fn main() {
    let seconds: f64 = std::env::args().nth(1).and_then(|s| s.parse().ok()).unwrap_or(1.0);
    let time = Duration::from_secs_f64(seconds);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (server, middle, client) = (runtime(), runtime(), runtime());
    let clock: Arc<dyn Clock> = server.block_on(async { Arc::new(SystemClock::new()) });
    let (_running, stop) = watch::channel(false);
    let geometry = Geometry {
        size: DISK,
        min_block: 512,
        preferred_block: 4096,
        max_payload: 1 << 20,
        read_only: false,
    };
    let mut exports = SimExports::default();
    for name in ["p/w", "p/r", "p/fw", "p/fr"] {
        exports.devices.insert(name.into(), Arc::new(SimDevice::new(geometry)));
    }
    let (direct, forwarding) = (dir.path().join("edge"), dir.path().join("forward"));
    let exports = PlainExports::new(Arc::new(exports), Duration::from_secs(5), clock.clone());
    server.block_on(serve(&direct, Arc::new(exports), clock.clone(), stop.clone()));
    let forwarder = Forwarder::new(Arc::new(Dialer::default()), Default::default(), clock.clone());
    let elsewhere = Elsewhere(forwarder, vec![format!("unix:{}", direct.display())]);
    middle.block_on(serve(&forwarding, Arc::new(elsewhere), clock.clone(), stop));
    let sizes = [(SENT + PAYLOAD, BACK), (SENT, BACK + PAYLOAD)];
    let echoes: Vec<_> = (0..2).map(|i| dir.path().join(format!("bare{i}"))).collect();
    server.block_on(async {
        for (path, (sent, back)) in echoes.iter().zip(sizes) {
            let listener = UnixListener::bind(path).expect("the socket is ours");
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(echo(stream, sent, back));
                }
            });
        }
    });

    let rows = client.block_on(client.spawn(async move {
        let mut bare = Vec::new();
        for (path, (sent, back)) in echoes.iter().zip(sizes) {
            bare.push(Bare { stream: UnixStream::connect(path).await.expect("the echo runs"), sent, back });
        }
        let mut disks = Vec::new();
        let through = [("p/w", &direct), ("p/r", &direct), ("p/fw", &forwarding), ("p/fr", &forwarding)];
        for (i, (name, path)) in through.into_iter().enumerate() {
            let addresses = vec![format!("unix:{}", path.display())];
            let dial = Arc::new(Dialer::default());
            let device = Device::open(addresses, name, Options::default(), dial, clock.clone()).await;
            let device = device.expect("the server runs");
            disks.push(Disk { device, write: i % 2 == 0, data: vec![7; PAYLOAD].into(), at: 0 });
        }
        let mut rows = vec![(Vec::new(), Vec::new(), Vec::new()); 6];
        for _ in 0..ROUNDS {
            for (i, (p50, p99, rate)) in rows.iter_mut().enumerate() {
                let (mut times, throughput) = match i {
                    0 | 1 => (bare[i].latency(&*clock, time).await, bare[i].throughput(&*clock, time).await),
                    _ => {
                        let disk = &mut disks[i - 2];
                        (disk.latency(&*clock, time).await, disk.throughput(&*clock, time).await)
                    }
                };
                p50.push(percentile(&mut times, 50));
                p99.push(percentile(&mut times, 99));
                rate.push(throughput);
            }
        }
        for disk in disks {
            disk.device.close().await;
        }
        rows
    }));
    let names =
        ["bare, write", "bare, read", "edge, write", "edge, read", "forwarded, write", "forwarded, read"];
    println!("4 KiB over unix sockets to a device in memory; medians of {ROUNDS} rounds of {seconds} s");
    println!("{:<18} {:>12} {:>12} {:>16} {:>8}", "", "depth 1 p50", "p99", "depth 32", "of bare");
    let rows = rows.expect("the benchmark ran");
    let bare: Vec<f64> = rows[..2].iter().map(|row| median(row.0.clone())).collect();
    for (i, (name, (p50, p99, rate))) in names.iter().zip(rows).enumerate() {
        let p50 = median(p50);
        let of_bare = p50 / bare[i % 2];
        println!("{name:<18} {p50:>9.1} us {:>9.1} us {:>14.0}/s {of_bare:>8.2}", median(p99), median(rate));
    }
}
