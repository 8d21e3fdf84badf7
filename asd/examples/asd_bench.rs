//! What one disk does: small objects put per second with 64 under way, and verified reads of 4 KiB at random, over a unix
//! socket: `cargo run --release -p asd --example asd_bench [-- SECONDS [DIRECTORY]]`.
//!
//! Daemon and client have a runtime each, as two processes would. Three rounds; the medians are printed, with lowest and
//! highest.

#![allow(missing_docs, clippy::disallowed_methods)]

use asd::AsdClient;
use asd::metrics::Metrics;
use asd::service::Service;
use asd::store::{Settings, Store};
use asd::transport::{Address, Door};
use bytes::Bytes;
use common::clock::SystemClock;
use common::disk::local::LocalDisk;
use common::osd::{Call, Changes, Value};
use common::{Clock, Osd};
use kvstore::{RocksSettings, RocksTable};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::runtime::Builder;

const ROUNDS: usize = 3;
/// Objects that are read, of 1 MiB.
const OBJECTS: u64 = 256;

fn call() -> Call {
    Call::client(Duration::from_secs(60))
}

fn value(random: &mut fastrand::Rng, len: usize) -> Value {
    let mut bytes = vec![0; len];
    random.fill(&mut bytes);
    Value::new(bytes)
}

/// Requests per second and the median of their times in microseconds, with `depth` under way.
async fn rate<F: Future<Output = ()> + Send + 'static>(
    clock: &Arc<SystemClock>,
    time: Duration,
    depth: u64,
    request: impl Fn(u64) -> F + Send + Sync + Clone + 'static,
) -> (f64, f64) {
    let next = Arc::new(AtomicU64::new(0));
    let begin = clock.now();
    let tasks = (0..depth).map(|_| {
        let (next, clock, request) = (next.clone(), clock.clone(), request.clone());
        tokio::spawn(async move {
            let mut times = Vec::new();
            while clock.now() - begin < time {
                let start = clock.now();
                request(next.fetch_add(1, Ordering::Relaxed)).await;
                times.push((clock.now() - start).as_secs_f64() * 1e6);
            }
            times
        })
    });
    let mut times = Vec::new();
    for task in tasks.collect::<Vec<_>>() {
        times.extend(task.await.unwrap());
    }
    let took = (clock.now() - begin).as_secs_f64();
    times.sort_by(f64::total_cmp);
    (times.len() as f64 / took, times[times.len() / 2])
}

fn show(what: &str, rounds: &[(f64, f64)]) {
    let sorted = |pick: fn(&(f64, f64)) -> f64| {
        let mut all: Vec<f64> = rounds.iter().map(pick).collect();
        all.sort_by(f64::total_cmp);
        (all[all.len() / 2], all[0], all[all.len() - 1])
    };
    let ((rate, least, most), (time, ..)) = (sorted(|r| r.0), sorted(|r| r.1));
    println!("{what:<40} {rate:>10.0}/s ({least:.0} to {most:.0}), median {time:.0} us");
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let seconds = arguments.next().and_then(|s| s.parse().ok()).unwrap_or(2);
    let folder = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from).join("asd-bench");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    let daemon = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let socket = folder.join("asd.sock");
    let clock = Arc::new(SystemClock::new());
    let id = daemon.block_on(async {
        let disk = Arc::new(LocalDisk::open(folder.join("disk")).unwrap());
        let table = Arc::new(RocksTable::open(folder.join("table"), RocksSettings::default()).unwrap());
        let id = Store::format(&*disk, &*table, &*clock, 64 << 20).await.unwrap();
        let settings = Settings {
            capacity: Some(3 << 30),
            table_reserve: 128 << 20,
            scrub_rate: 0,
            ..Settings::default()
        };
        let (store, _) = Store::open(settings, disk, table, clock.clone()).await.unwrap();
        let door = Door::Unix(tokio::net::UnixListener::bind(&socket).unwrap());
        let service = Service::new(Arc::new(store), Default::default(), Metrics::default());
        tokio::spawn(async move {
            let (_run, stop) = tokio::sync::watch::channel(false);
            service.listen(door, stop).await;
        });
        id
    });
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let address = Arc::new(Address::Unix(socket.clone()));
        let client = Arc::new(AsdClient::new(address, Some(id), None, Default::default(), clock.clone()));
        let time = Duration::from_secs(seconds);
        let mut random = fastrand::Rng::with_seed(1);
        for (len, depth) in [(4096, 64), (16 << 10, 64), (64 << 10, 64), (4096, 1)] {
            let value = value(&mut random, len);
            let mut rounds = Vec::new();
            for round in 0..ROUNDS {
                let (client, value) = (client.clone(), value.clone());
                let put = move |n: u64| {
                    let (client, value) = (client.clone(), value.clone());
                    // The same keys come again, so that the disk does not fill up.
                    let changes = Changes::new().set(format!("{len}/{depth}/{round}/{}", n % 4000), value);
                    async move { client.apply(call(), changes).await.unwrap() }
                };
                rounds.push(rate(&clock, time, depth, put).await);
            }
            show(&format!("put of {} KiB, {depth} under way", len >> 10), &rounds);
        }
        for n in 0..OBJECTS {
            let changes = Changes::new().set(format!("object/{n}"), value(&mut random, 1 << 20));
            client.apply(call(), changes).await.unwrap();
        }
        for depth in [1, 32] {
            let mut rounds = Vec::new();
            for _ in 0..ROUNDS {
                let client = client.clone();
                let get = move |_| {
                    let client = client.clone();
                    async move {
                        let key = Bytes::from(format!("object/{}", fastrand::u64(..OBJECTS)));
                        let at = fastrand::u64(..256) * 4096;
                        client.get_range(call(), &key, at..at + 4096).await.unwrap().unwrap();
                    }
                };
                rounds.push(rate(&clock, time, depth, get).await);
            }
            show(&format!("verified read of 4 KiB, {depth} under way"), &rounds);
        }
        println!("{:?}", client.status(call()).await.unwrap().counters);
    });
    daemon.shutdown_background();
    let _ = std::fs::remove_dir_all(&folder);
}
