//! A client and a service over streams in memory, and over real sockets: what is promised to an owner.

mod world;

use bytes::BytesMut;
use common::{Epoch, ErrorKind, Lsn, VolumeId};
use dtl::client::LinkState;
use dtl::service::Door;
use dtl::storage::Key;
use dtl::wire;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use world::*;

async fn drained(client: &dtl::client::Client, volume: &Volume, from: u64) -> u64 {
    let key = Key { volume: volume.id, epoch: Epoch(volume.epoch), incarnation: volume.incarnation() };
    let mut reading = client.read(key, Lsn(from)).await.unwrap();
    let mut lsn = from;
    while let Some(found) = reading.next().await.unwrap() {
        assert_eq!(found, entry(volume.id, volume.epoch, lsn, volume.len));
        lsn += 1;
    }
    lsn - 1
}

async fn each_kind(test: impl AsyncFn(std::sync::Arc<Peer>)) {
    for kind in [Kind::Memory, Kind::Disk] {
        let peer = Peer::new(kind, sim_clock(1));
        peer.start().await;
        test(peer).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_appended_is_confirmed_flushed_and_read_back() {
    each_kind(async |peer| {
        let client = client(&peer);
        let mut v = Volume::new(&client, V, 5);
        v.wait_live().await;
        v.write(300);
        v.wait_confirmed().await;
        v.replica.flush(Lsn(300));
        v.wait(|p| p.flushed == Lsn(300)).await;
        assert!(v.journal.reads.load(Ordering::Relaxed) <= 1, "it was sent as it came");
        assert_eq!(drained(&client, &v, 1).await, 300);
        v.replica.trim(Lsn(120));
        v.write(1);
        v.wait_confirmed().await;
        let (_, logs) = client.status(V).await.unwrap();
        assert_eq!((logs[0].base, logs[0].last), (Lsn(120), Lsn(301)));
        assert_eq!(drained(&client, &v, 121).await, 301);
        client.close().await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_broken_connection_is_made_again_and_what_is_missing_sent_again() {
    each_kind(async |peer| {
        let client = client(&peer);
        let mut v = Volume::new(&client, V, 5);
        v.wait_live().await;
        for _ in 0..20 {
            v.write(50);
            tokio::task::yield_now().await;
            peer.cut();
            v.write(10);
            v.wait(|p| p.state == LinkState::Away).await;
            v.write(10);
            v.wait_confirmed().await;
        }
        v.wait_live().await;
        assert_eq!(drained(&client, &v, 1).await, v.last);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_memory_log_that_restarts_is_lost_and_another_one_catches_up() {
    let peer = Peer::new(Kind::Memory, sim_clock(1));
    peer.start().await;
    let client = client(&peer);
    let mut v = Volume::new(&client, V, 5);
    v.write(100);
    v.wait_confirmed().await;
    let first = v.incarnation();
    peer.kill();
    peer.start().await;
    v.wait(|p| p.state == LinkState::Lost).await;
    assert_eq!(v.replica.confirmed(), Lsn(100), "of the first one");
    v.journal.commit(Lsn(40));
    v.again(&client, 2);
    v.write(1);
    v.wait_confirmed().await;
    assert_ne!(v.incarnation(), first);
    assert_eq!(drained(&client, &v, 41).await, 101);
}

#[tokio::test(start_paused = true)]
async fn a_disk_log_that_restarts_is_suspect_until_it_has_again_what_it_confirmed() {
    for seed in 0..30 {
        let mut random = fastrand::Rng::with_seed(seed);
        let peer = Peer::new(Kind::Disk, sim_clock(seed));
        peer.start().await;
        let client = client(&peer);
        let mut v = Volume::new(&client, V, 5);
        v.write(100);
        v.wait_confirmed().await;
        v.replica.flush(Lsn(100));
        v.wait(|p| p.flushed == Lsn(100)).await;
        v.write(50);
        v.wait_confirmed().await;
        let incarnation = v.incarnation();
        *peer.reachable.lock() = false;
        peer.power_cut(|| random.bool());
        peer.start().await;
        let log = peer.store().status(V).1[0];
        assert!(log.suspect && log.last >= Lsn(100) && log.last <= Lsn(150));
        v.wait(|p| p.state == LinkState::Away).await;
        assert_eq!(v.replica.confirmed(), Lsn(150));
        *peer.reachable.lock() = true;
        v.wait_live().await;
        let log = peer.store().status(V).1[0];
        assert!(!log.suspect && log.last == Lsn(150) && log.incarnation == incarnation);
        assert_eq!(drained(&client, &v, 1).await, 150);
    }
}

#[tokio::test(start_paused = true)]
async fn a_seal_stops_the_old_owner() {
    each_kind(async |peer| {
        let (old, new) = (client(&peer), client(&peer));
        let mut v = Volume::new(&old, V, 5);
        v.write(100);
        v.wait_confirmed().await;
        let (floor, logs) = new.seal(V, Epoch(6)).await.unwrap();
        assert_eq!((floor, logs.len(), logs[0].sealed, logs[0].last), (Epoch(6), 1, true, Lsn(100)));
        v.write(1);
        v.wait(|p| p.state == LinkState::Lost).await;
        assert_eq!(v.replica.confirmed(), Lsn(100));
        assert_eq!(drained(&new, &v, 1).await, 100);
        let mut w = Volume::new(&new, V, 6);
        w.write(3);
        w.wait_confirmed().await;
        let mut late = Volume::new(&old, V, 5);
        late.wait(|p| p.state == LinkState::Lost).await;
        new.forget(V, Epoch(6)).await.unwrap();
        assert_eq!(new.status(V).await.unwrap().1.len(), 1);
        assert_eq!(new.forget(V, Epoch(7)).await.unwrap_err().kind, ErrorKind::Conflict);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_service_that_says_nothing_is_dead_in_time() {
    let peer = Peer::new(Kind::Memory, sim_clock(1));
    peer.start().await;
    let client = client(&peer);
    let mut v = Volume::new(&client, V, 5);
    v.wait_live().await;
    peer.clock.sleep(Duration::from_secs(60)).await;
    assert_eq!(v.replica.progress().state, LinkState::Live, "quiet is not dead");
    let begin = peer.clock.now();
    peer.swallow();
    v.write(1);
    v.wait(|p| p.state == LinkState::Away).await;
    let took = peer.clock.now() - begin;
    assert!(took <= Duration::from_secs(2), "{took:?}");
    v.wait_confirmed().await;
}

#[tokio::test(start_paused = true)]
async fn a_volume_without_room_waits_alone_and_memory_stays_bounded() {
    each_kind(async |peer| {
        let client = client(&peer);
        let (mut slow, mut quick) =
            (Volume::new(&client, VolumeId(1), 5), Volume::new(&client, VolumeId(2), 5));
        slow.len = 20_000;
        slow.wait_live().await;
        quick.wait_live().await;
        slow.write(400);
        slow.wait(|p| p.state == LinkState::CatchingUp).await;
        for _ in 0..300 {
            quick.write(10);
            slow.write(1);
            quick.wait_confirmed().await;
            quick.journal.commit(Lsn(quick.last));
            quick.replica.trim(Lsn(quick.last));
            assert!(peer.store().bytes() <= peer.limits.volume_bytes + 64 * 1200);
        }
        let held = slow.replica.confirmed();
        assert!(held < Lsn(200), "{held}");
        // The backend comes back, and so does the volume, by itself.
        while slow.replica.confirmed() < Lsn(slow.last) {
            let confirmed = slow.replica.confirmed();
            slow.journal.commit(confirmed);
            slow.replica.trim(confirmed);
            slow.wait(|p| p.confirmed > confirmed).await;
        }
        slow.wait_live().await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn entries_that_the_backend_has_are_not_sent_again() {
    each_kind(async |peer| {
        let client = client(&peer);
        let mut v = Volume::new(&client, V, 5);
        v.write(100);
        v.wait_confirmed().await;
        *peer.reachable.lock() = false;
        peer.cut();
        v.wait(|p| p.state == LinkState::Away).await;
        v.write(100);
        v.journal.commit(Lsn(180));
        v.replica.trim(Lsn(180));
        *peer.reachable.lock() = true;
        v.wait_confirmed().await;
        let log = peer.store().status(V).1[0];
        assert_eq!((log.base, log.last), (Lsn(180), Lsn(200)));
        assert_eq!(drained(&client, &v, 181).await, 200);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_thousand_volumes_share_a_connection() {
    each_kind(async |peer| {
        let client = client(&peer);
        let mut volumes: Vec<Volume> = (0..1000).map(|i| Volume::new(&client, VolumeId(i), 5)).collect();
        for v in &mut volumes {
            v.len = 64;
            v.write(2);
        }
        for v in &mut volumes {
            v.wait_confirmed().await;
            v.write(1);
            v.replica.flush(Lsn(3));
        }
        for v in &mut volumes {
            v.wait(|p| p.flushed == Lsn(3)).await;
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn large_entries_pass() {
    each_kind(async |peer| {
        let client = client(&peer);
        let mut v = Volume::new(&client, V, 5);
        v.len = 100_000;
        v.wait_live().await;
        v.write(12);
        v.wait_confirmed().await;
        assert_eq!(drained(&client, &v, 1).await, 12);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn hostile_bytes_end_their_own_connection_and_nothing_else() {
    each_kind(async |peer| {
        let client = client(&peer);
        let mut v = Volume::new(&client, V, 5);
        v.write(10);
        v.wait_confirmed().await;
        let mut random = fastrand::Rng::with_seed(9);
        for round in 0..300 {
            let mut raw = peer.raw().unwrap();
            let mut bytes = BytesMut::new();
            if round % 3 > 0 {
                wire::put_prologue(&mut bytes, 1, 1);
            }
            if round % 3 > 1 {
                let body: Vec<u8> = (0..random.usize(..200)).map(|_| random.u8(..)).collect();
                let id = random.u32(..5);
                wire::put_head(&mut bytes, random.u8(..20), id, body.len(), common::crc::crc32c(&body));
                bytes.extend_from_slice(&body);
            }
            bytes.extend((0..random.usize(..100)).map(|_| random.u8(..)));
            let _ = raw.write_all(&bytes).await;
            let _ = raw.shutdown().await;
            let mut answer = Vec::new();
            let _ = raw.read_to_end(&mut answer).await;
        }
        v.write(10);
        v.wait_confirmed().await;
        assert_eq!(drained(&client, &v, 1).await, 20);
    })
    .await;
}

fn tls() -> (std::sync::Arc<rustls::ServerConfig>, std::sync::Arc<rustls::ClientConfig>) {
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let made = rcgen::generate_simple_self_signed(vec!["dtl.test".into()]).unwrap();
    let certificate = made.cert.der().clone();
    let key = rustls_pki_types::PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    (server.into(), client.into())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_runs_over_unix_sockets_tcp_and_tls() {
    use dtl::transport::Address;
    let clock: std::sync::Arc<dyn common::Clock> = std::sync::Arc::new(common::clock::SystemClock::new());
    let dir = tempfile::tempdir().unwrap();
    let store = dtl::storage::Store::memory(Default::default(), clock.clone());
    let service = dtl::service::Service::new(
        store,
        Default::default(),
        clock.clone(),
        dtl::metrics::ServiceMetrics::default(),
    );
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let (server, with) = tls();
    let path = dir.path().join("dtl.sock");
    let unix = tokio::net::UnixListener::bind(&path).unwrap();
    let plain = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let secure = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let name = rustls_pki_types::ServerName::try_from("dtl.test").unwrap();
    let nowhere = Address::Tcp("127.0.0.1:1".into(), None);
    let addresses = [
        // Where there is no socket file, the other way is taken.
        Address::Near(path, Box::new(Address::Near(dir.path().join("none"), Box::new(nowhere.clone())))),
        Address::Near(
            dir.path().join("none"),
            Box::new(Address::Tcp(plain.local_addr().unwrap().to_string(), None)),
        ),
        Address::Tcp(plain.local_addr().unwrap().to_string(), None),
        Address::Tcp(secure.local_addr().unwrap().to_string(), Some((with, name))),
    ];
    let (s, r) = (service.clone(), stopped.clone());
    let mut serving = tokio::task::JoinSet::new();
    serving.spawn(async move { s.listen(Door::Unix(unix), r).await });
    let (s, r) = (service.clone(), stopped.clone());
    serving.spawn(async move { s.listen(Door::Tcp(plain, None), r).await });
    serving.spawn(async move { service.listen(Door::Tcp(secure, Some(server.into())), stopped).await });
    for (i, address) in addresses.into_iter().enumerate() {
        let client =
            dtl::client::Client::new(std::sync::Arc::new(address), Default::default(), clock.clone());
        let mut v = Volume::new(&client, VolumeId(i as u128), 5);
        v.len = 50_000;
        for _ in 0..20 {
            v.write(10);
            v.wait_confirmed().await;
        }
        v.replica.flush(Lsn(200));
        v.wait(|p| p.flushed == Lsn(200)).await;
        assert_eq!(drained(&client, &v, 1).await, 200);
        client.close().await;
    }
    stop.send_replace(true);
    while serving.join_next().await.is_some() {}
}

/// A service that is alive and does nothing: its disk is frozen.
fn frozen() -> std::sync::Arc<dyn dtl::transport::Dial> {
    struct Frozen;
    #[async_trait::async_trait]
    impl dtl::transport::Dial for Frozen {
        async fn dial(&self) -> std::io::Result<dtl::transport::Stream> {
            let (ours, mut theirs) = tokio::io::duplex(64 << 10);
            tokio::spawn(async move {
                let mut out = BytesMut::new();
                wire::put_prologue(&mut out, 1, 1);
                let mut first = [0; wire::PROLOGUE];
                let _ = theirs.read_exact(&mut first).await;
                let mut decoder = wire::Decoder::default();
                loop {
                    let _ = theirs.write_all_buf(&mut out).await;
                    if theirs.read_buf(decoder.buffer()).await.unwrap_or(0) == 0 {
                        return;
                    }
                    while let Ok(Some(frame)) = decoder.frame() {
                        if frame.request() == Ok(wire::Request::Ping) {
                            wire::Reply::Pong.put(&mut out, frame.id);
                        }
                    }
                }
            });
            Ok(dtl::transport::Stream::any(ours))
        }
    }
    std::sync::Arc::new(Frozen)
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_alive_and_does_nothing_holds_up_nobody_for_ever() {
    let clock = sim_clock(1);
    let client = dtl::client::Client::new(frozen(), Default::default(), clock.clone());
    let key = Key { volume: V, epoch: Epoch(5), incarnation: dtl::Incarnation(1) };
    let within = async |what: std::pin::Pin<Box<dyn Future<Output = common::Result<()>> + '_>>| {
        let begin = clock.now();
        let answer = tokio::time::timeout(Duration::from_secs(60), what).await.expect("for ever");
        assert_eq!(answer.unwrap_err().kind, ErrorKind::Unavailable);
        assert!(clock.now() - begin < Duration::from_secs(8));
    };
    within(Box::pin(async { client.seal(V, Epoch(6)).await.map(|_| ()) })).await;
    within(Box::pin(async { client.status(V).await.map(|_| ()) })).await;
    within(Box::pin(async { client.trim_log(key, Lsn(3)).await })).await;
    within(Box::pin(async { client.forget(V, Epoch(6)).await })).await;
    within(Box::pin(async { client.read(key, Lsn(1)).await?.next().await.map(|_| ()) })).await;
    assert!(*client.connected().borrow(), "it is alive");
}

#[tokio::test(start_paused = true)]
async fn a_read_that_is_given_up_takes_no_place() {
    let limits =
        dtl::storage::Limits { capacity: 64 << 20, volume_bytes: 32 << 20, volumes: 8, logs_per_volume: 8 };
    let peer = Peer::with(Kind::Memory, limits, sim_clock(1));
    peer.start().await;
    let client = client(&peer);
    let mut v = Volume::new(&client, V, 5);
    v.len = 50_000;
    v.wait_live().await;
    v.write(80);
    v.wait_confirmed().await;
    let key = Key { volume: V, epoch: Epoch(5), incarnation: v.incarnation() };
    for _ in 0..200 {
        let mut reading = client.read(key, Lsn(1)).await.unwrap();
        assert_eq!(reading.next().await.unwrap().unwrap().lsn, Lsn(1));
    }
    assert_eq!(drained(&client, &v, 1).await, 80);
}
