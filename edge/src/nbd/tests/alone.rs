//! A client that sends one request at a time gets a thread to itself, and loses nothing by it.

use super::client::Client;
use super::*;
use common::Clock;
use tokio::io::AsyncWriteExt;

const FLUSH: u16 = 3;
const READ: u16 = 0;
const ALONE: &str = "storagerouter_edge_alone_connections";

fn stopwatch() -> (common::clock::SystemClock, Duration) {
    let clock = common::clock::SystemClock::new();
    let begin = clock.now();
    (clock, begin)
}

type Tcp = Client<tokio::net::TcpStream>;

/// A client that has a thread to itself.
async fn alone(world: &World) -> Tcp {
    let mut c = Client::open(world.address, "p/a", false).await;
    for n in 0..100_000u64 {
        let data = [n as u8; 4096];
        assert_eq!(c.write(0, n % 1000 * 4096, &data).await, 0);
        assert_eq!(c.read(n % 1000 * 4096, 4096).await.unwrap(), data);
        if n > 100 && world.metric(ALONE) == 1.0 {
            return c;
        }
    }
    panic!("it never got one");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_sends_one_at_a_time_has_a_thread_until_nothing_comes() {
    let world = World::new().await;
    let mut c = alone(&world).await;
    eventually(|| world.metric(ALONE) == 0.0).await;
    assert_eq!(c.write(0, 0, &[7; 512]).await, 0, "and goes on as before");
    assert_eq!(c.read(0, 512).await.unwrap(), [7; 512]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_come_together_are_all_served() {
    let world = World::new().await;
    let mut c = alone(&world).await;
    for round in 0..20u64 {
        let mut all = Vec::new();
        for n in 0..100 {
            all.extend(c.header(0, READ, n, n * 4096, 4096));
        }
        // Also cut somewhere.
        let (first, second) = all.split_at(round as usize * 137);
        c.stream.write_all(first).await.unwrap();
        tokio::task::yield_now().await;
        c.stream.write_all(second).await.unwrap();
        let mut cookies = Vec::new();
        for _ in 0..100 {
            let reply = c.reply(4096).await;
            cookies.push(reply.cookie);
        }
        cookies.sort_unstable();
        assert_eq!(cookies, (0..100).collect::<Vec<_>>());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_waits_keeps_no_other_waiting() {
    let world = World::new().await;
    let mut c = alone(&world).await;
    let a = world.a.clone();
    let gate = a.gate.write().await;
    c.send(0, READ, 77, 0, 4096).await;
    eventually(|| world.a.waiting.lock().0 > 0).await;
    c.send(0, FLUSH, 78, 0, 0).await;
    assert_eq!(client::within(c.reply(0)).await.cookie, 78);
    drop(gate);
    assert_eq!(client::within(c.reply(4096)).await.cookie, 77);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_had_to_wait_is_answered_though_nothing_else_is_sent() {
    let world = World::new().await;
    let mut c = alone(&world).await;
    let a = world.a.clone();
    let gate = a.gate.write().await;
    c.send(0, READ, 77, 0, 4096).await;
    eventually(|| world.a.waiting.lock().0 > 0).await;
    drop(gate);
    assert_eq!(client::within(c.reply(4096)).await.cookie, 77);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stops_does_not_wait_for_it() {
    let world = World::new().await;
    let mut c = alone(&world).await;
    let (clock, begin) = stopwatch();
    world.stop.send(true).unwrap();
    let busy = tokio::spawn(async move {
        // It may end at any request.
        while c.stream.write_all(&c.header(0, READ, 1, 0, 512)).await.is_ok() {
            let mut reply = [0; 20 + 8 + 512];
            if tokio::io::AsyncReadExt::read_exact(&mut c.stream, &mut reply).await.is_err() {
                break;
            }
        }
    });
    world.served.await.unwrap();
    assert!(clock.now() - begin < Duration::from_secs(2));
    busy.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_falls_silent_as_the_server_stops_does_not_hold_it_up() {
    let world = World::new().await;
    let mut c = alone(&world).await;
    let (clock, begin) = stopwatch();
    world.stop.send(true).unwrap();
    // Just until the thread looks.
    for _ in 0..super::super::alone::LOOK {
        let mut reply = [0; 20 + 8 + 512];
        if c.stream.write_all(&c.header(0, READ, 1, 0, 512)).await.is_err()
            || tokio::io::AsyncReadExt::read_exact(&mut c.stream, &mut reply).await.is_err()
        {
            break;
        }
    }
    world.served.await.unwrap();
    assert!(clock.now() - begin < Duration::from_secs(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_has_a_thread_where_the_settings_give_none() {
    let world = World::with(Settings { alone_threads: 0, ..Settings::default() }).await;
    let mut c = Client::open(world.address, "p/a", false).await;
    for _ in 0..1000 {
        assert_eq!(c.write(0, 0, &[1; 512]).await, 0);
        assert_eq!(world.metric(ALONE), 0.0);
    }
}

#[tokio::test]
async fn in_a_runtime_of_one_thread_there_is_none_to_have() {
    let world = World::new().await;
    let mut c = Client::open(world.address, "p/a", false).await;
    for _ in 0..200 {
        assert_eq!(c.write(0, 0, &[1; 512]).await, 0);
    }
    assert_eq!(world.metric(ALONE), 0.0);
}
