//! Threads that look for their confirmations themselves, on a real socket: everybody gets his.

mod world;

use common::blocking;
use common::clock::SystemClock;
use common::{Clock, Lsn, VolumeId};
use dtl::client::{Client, Settings};
use dtl::metrics::ServiceMetrics;
use dtl::service::{Door, Service};
use dtl::storage::Store;
use dtl::transport::Address;
use std::sync::{Arc, mpsc};
use std::time::Duration;
use world::Volume;

const LIMIT: Duration = Duration::from_secs(60);

/// Writes one at a time, and looks until it is confirmed.
fn singles(volume: &mut Volume, count: u64) {
    for _ in 0..count {
        volume.write(1);
        let all = Lsn(volume.last);
        while volume.replica.confirmed() < all {
            if !blocking::look(|| volume.replica.confirmed() >= all) {
                std::thread::yield_now();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thread_that_looks_keeps_no_answer_from_who_does_not() {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("dtl.sock");
    let door = Door::Unix(tokio::net::UnixListener::bind(&path).unwrap());
    let store = Store::memory(Default::default(), clock.clone());
    let service = Service::new(store, Default::default(), clock.clone(), ServiceMetrics::default());
    let (_run, stop) = tokio::sync::watch::channel(false);
    tokio::spawn(async move { service.listen(door, stop).await });
    // No beat comes to anybody's rescue.
    let settings = Settings {
        heartbeat: Duration::from_secs(3600),
        timeout: Duration::from_secs(7200),
        ..Settings::default()
    };
    let address = Address::Near(path, Box::new(Address::Tcp("127.0.0.1:1".into(), None)));
    let client = Client::new(Arc::new(address), settings, clock);
    let mut lone = Volume::new(&client, VolumeId(1), 5);
    let mut other = Volume::new(&client, VolumeId(2), 5);
    for volume in [&mut lone, &mut other] {
        volume.write(1);
        volume.wait_confirmed().await;
        volume.wait_live().await;
    }
    for _ in 0..10 {
        let (told, lent) = mpsc::channel();
        let (go_on, answered) = mpsc::channel();
        let thread = tokio::task::spawn_blocking(move || {
            blocking::allow(|| {
                singles(&mut lone, 100);
                told.send(()).unwrap();
                // It has the connection, and does not look any more.
                answered.recv_timeout(LIMIT).expect("the other one was never answered");
                singles(&mut lone, 100);
            });
            lone
        });
        tokio::task::spawn_blocking(move || lent.recv_timeout(LIMIT).unwrap()).await.unwrap();
        other.write(3);
        tokio::time::timeout(LIMIT, other.wait_confirmed()).await.unwrap();
        // What is asked of the service itself, too.
        tokio::time::timeout(LIMIT, client.status(VolumeId(1))).await.unwrap().unwrap();
        go_on.send(()).unwrap();
        lone = thread.await.unwrap();
        // Whoever had it has let it go.
        lone.write(50);
        lone.wait_confirmed().await;
        other.replica.flush(Lsn(other.last));
        let last = Lsn(other.last);
        other.wait(|p| p.flushed == last).await;
    }
    client.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thread_that_looks_learns_that_the_connection_ended() {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("dtl.sock");
    let serve = |run: tokio::sync::watch::Receiver<bool>| {
        let _ = std::fs::remove_file(&path);
        let door = Door::Unix(tokio::net::UnixListener::bind(&path).unwrap());
        let store = Store::memory(Default::default(), clock.clone());
        let service = Service::new(store, Default::default(), clock.clone(), ServiceMetrics::default());
        tokio::spawn(async move { service.listen(door, run).await })
    };
    let (run, stop) = tokio::sync::watch::channel(false);
    let serving = serve(stop);
    let settings = Settings {
        heartbeat: Duration::from_secs(3600),
        timeout: Duration::from_secs(7200),
        ..Settings::default()
    };
    let address = Address::Near(path.clone(), Box::new(Address::Tcp("127.0.0.1:1".into(), None)));
    let client = Client::new(Arc::new(address), settings, clock.clone());
    let mut lone = Volume::new(&client, VolumeId(1), 5);
    lone.write(1);
    lone.wait_confirmed().await;
    lone.wait_live().await;
    let thread = tokio::task::spawn_blocking(move || {
        blocking::allow(|| singles(&mut lone, 100));
        lone
    });
    let mut lone = thread.await.unwrap();
    run.send_replace(true);
    serving.await.unwrap();
    let thread = tokio::task::spawn_blocking(move || {
        blocking::allow(|| {
            lone.write(1);
            let all = Lsn(lone.last);
            blocking::look(|| lone.replica.confirmed() >= all)
        });
        lone
    });
    let mut lone = thread.await.unwrap();
    lone.wait(|p| p.state != dtl::client::LinkState::Live).await;
    client.close().await;
}
