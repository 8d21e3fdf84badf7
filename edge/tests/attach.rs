//! An edge client at a router's exports, over a pipe.

use async_trait::async_trait;
use common::clock::SystemClock;
use common::sim::{SimClock, SimDevice, SimExports};
use common::{BlockDevice, Clock, ErrorKind, Geometry};
use edge::protocol::server::Metrics;
use edge::protocol::{PlainExports, Server, Settings};
use edge_client::transport::{Dial, Dialer, Stream, client_tls};
use edge_client::wire::{Mode, Op};
use edge_client::{Device, Options};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::DuplexStream;
use tokio::sync::watch;

const LEASE: Duration = Duration::from_secs(5);

/// One router, reached through pipes; at the address `wide` they hold a lot. At the address `frozen` there is one that is
/// stopped: it takes connections and says nothing.
struct Router {
    server: Arc<Server>,
    running: watch::Sender<bool>,
    clock: Arc<dyn Clock>,
    /// Nobody gets there.
    unreachable: AtomicBool,
    /// Set, the connections of before go nowhere from then on.
    cut: watch::Sender<u64>,
    frozen: Mutex<Vec<DuplexStream>>,
}

#[async_trait]
impl Dial for Router {
    async fn dial(&self, address: &str) -> std::io::Result<Stream> {
        if self.unreachable.load(Ordering::Relaxed) {
            return Err(std::io::ErrorKind::ConnectionRefused.into());
        }
        let room = if address == "wide" { 16 << 20 } else { 64 << 10 };
        let (mine, mut near) = tokio::io::duplex(room);
        if address == "frozen" {
            self.frozen.lock().push(near);
            return Ok(Stream::any(mine));
        }
        let (mut far, yours) = tokio::io::duplex(room);
        let (server, stop) = (self.server.clone(), self.running.subscribe());
        tokio::spawn(async move { server.serve_stream(Stream::any(yours), stop).await });
        let mut cut = self.cut.subscribe();
        tokio::spawn(async move {
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                _ = cut.changed() => {}
            }
        });
        Ok(Stream::any(mine))
    }
}

impl Router {
    fn cut(&self) {
        self.cut.send_modify(|n| *n += 1);
    }

    fn set_unreachable(&self, is: bool) {
        self.unreachable.store(is, Ordering::Relaxed);
        if is {
            self.cut();
        }
    }
}

fn geometry() -> Geometry {
    Geometry { size: 1 << 20, min_block: 512, preferred_block: 4096, max_payload: 64 << 10, read_only: false }
}

fn router() -> Arc<Router> {
    let mut exports = SimExports::default();
    exports.devices.insert("p/a".into(), Arc::new(SimDevice::new(geometry())));
    let clock: Arc<dyn Clock> = Arc::new(SimClock::new(1));
    let attachments = Arc::new(PlainExports::new(Arc::new(exports), LEASE, clock.clone()));
    let server = Server::new("r".into(), Settings::default(), attachments, clock.clone(), Metrics::default());
    Arc::new(Router {
        server,
        running: watch::Sender::new(false),
        clock,
        unreachable: AtomicBool::new(false),
        cut: watch::Sender::new(0),
        frozen: Mutex::default(),
    })
}

async fn open(router: &Arc<Router>, mode: Mode) -> common::Result<Device> {
    let options = Options { mode, ..Options::default() };
    Device::open(vec!["r".into()], "p/a", options, router.clone(), router.clock.clone()).await
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    runtime.unwrap().block_on(test);
}

#[test]
fn what_is_written_is_read_whatever_its_length() {
    run(async {
        let router = router();
        let device = open(&router, Mode::Exclusive).await.unwrap();
        assert_eq!(device.geometry(), geometry());
        assert!(device.in_sync());
        let data: Vec<u8> = (0..300_000u32).map(|i| (i / 512) as u8).collect();
        let data = bytes::Bytes::from(data).slice(..299_008);
        device.write(4096, data.clone(), false).await.unwrap();
        device.flush().await.unwrap();
        assert_eq!(device.read(4096, 299_008).await.unwrap(), data);
        device.write_zeroes(4096, 4096, false, true).await.unwrap();
        device.discard(8192, 4096, false).await.unwrap();
        assert_eq!(device.read(4096, 8192).await.unwrap(), vec![0; 8192]);
        let extents = device.extents(0, 16384).await.unwrap();
        assert_eq!(
            extents.iter().map(|e| (e.len, e.hole)).collect::<Vec<_>>(),
            [(4096, true), (4096, false), (4096, true), (4096, false)]
        );
        for (offset, len, kind) in
            [(1, 512, ErrorKind::Invalid), (0, 0, ErrorKind::Invalid), (1 << 20, 512, ErrorKind::Invalid)]
        {
            assert_eq!(device.read(offset, len).await.unwrap_err().kind, kind);
        }
        device.close().await;
    });
}

#[test]
fn large_answers_wait_for_nothing_but_the_socket() {
    run(async {
        let router = router();
        let (dial, clock) = (router.clone(), router.clock.clone());
        let device = Device::open(vec!["wide".into()], "p/a", Options::default(), dial, clock).await.unwrap();
        let begin = router.clock.now();
        // More than the server queues at a time.
        let pending: Vec<_> = (0..64).map(|_| device.submit(Op::Read { offset: 0, len: 64 << 10 })).collect();
        for one in pending {
            one.await.unwrap();
        }
        let took = router.clock.now() - begin;
        assert!(took < Duration::from_millis(100), "they took {took:?}: something had to come first");
    });
}

#[test]
fn a_second_client_hears_who_is_attached_and_is_let_in_when_that_one_is_gone() {
    run(async {
        let router = router();
        let first = open(&router, Mode::Exclusive).await.unwrap();
        let refused = open(&router, Mode::Exclusive).await.err().unwrap();
        assert_eq!(refused.kind, ErrorKind::Conflict);
        assert!(refused.message().contains(&format!("process {}", std::process::id())), "{refused}");
        first.close().await;
        let second = open(&router, Mode::Exclusive).await.unwrap();
        // It dies without a word: a lease later its disk is free.
        drop(second);
        router.clock.sleep(LEASE / 2).await;
        assert_eq!(open(&router, Mode::ReadOnly).await.err().unwrap().kind, ErrorKind::Conflict);
        router.clock.sleep(LEASE).await;
        let third = open(&router, Mode::ReadOnly).await.unwrap();
        let fourth = open(&router, Mode::ReadOnly).await.unwrap();
        assert_eq!(third.write(0, vec![1; 512].into(), false).await.unwrap_err().kind, ErrorKind::Denied);
        assert!(third.geometry().read_only && fourth.read(0, 512).await.is_ok());
    });
}

#[test]
fn who_was_revoked_is_told_so_and_replays_nothing() {
    run(async {
        let router = router();
        let first = open(&router, Mode::Exclusive).await.unwrap();
        first.write(0, vec![1; 512].into(), false).await.unwrap();
        router.set_unreachable(true);
        router.clock.sleep(LEASE * 2).await;
        // The first one is still away when the second one comes.
        let waiting = first.submit(edge_client::wire::Op::Flush);
        router.set_unreachable(false);
        let second = loop {
            match open(&router, Mode::Exclusive).await {
                Ok(second) => break Some(second),
                Err(error) => assert_eq!(error.kind, ErrorKind::Conflict),
            }
            if first.counters().reconnects > 0 {
                break None;
            }
        };
        if let Some(second) = second {
            second.write(0, vec![2; 512].into(), false).await.unwrap();
            second.close().await;
            assert_eq!(waiting.await.unwrap_err().kind, ErrorKind::Fenced);
            assert_eq!(first.read(0, 512).await.unwrap_err().kind, ErrorKind::Fenced);
        }
    });
}

#[test]
fn a_frozen_router_is_left_for_another_one() {
    run(async {
        let router = router();
        let dial: Arc<dyn Dial> = router.clone();
        let addresses = vec!["frozen".into(), "r".into()];
        let before = router.clock.now();
        let options = Options::default();
        let device =
            Device::open(addresses, "p/a", options.clone(), dial, router.clock.clone()).await.unwrap();
        let took = router.clock.now() - before;
        assert!(took >= options.timeout && took < options.timeout * 2, "{took:?}");
        device.flush().await.unwrap();
    });
}

#[test]
fn a_broken_link_is_latency_until_the_deadline() {
    run(async {
        let router = router();
        let device = open(&router, Mode::Exclusive).await.unwrap();
        device.write(0, vec![1; 512].into(), false).await.unwrap();
        router.set_unreachable(true);
        let waiting = device.submit(edge_client::wire::Op::Read { offset: 0, len: 512 });
        assert!(!device.in_sync() || device.counters().reconnects == 0);
        router.clock.sleep(Duration::from_secs(3)).await;
        assert!(!device.in_sync());
        router.set_unreachable(false);
        let edge_client::wire::Outcome::Data(data) = waiting.await.unwrap() else { panic!() };
        assert_eq!(data, vec![1; 512]);
        assert!(device.in_sync() && device.counters().reconnects == 1);
        router.set_unreachable(true);
        let before = router.clock.now();
        assert_eq!(device.flush().await.unwrap_err().kind, ErrorKind::Unavailable);
        let took = router.clock.now() - before;
        assert!(took >= Duration::from_secs(120) && took < Duration::from_secs(122), "{took:?}");
    });
}

#[test]
fn a_router_that_stops_finishes_what_it_began() {
    run(async {
        let router = router();
        let device = open(&router, Mode::Exclusive).await.unwrap();
        let written =
            device.submit(edge_client::wire::Op::Write { offset: 0, data: vec![1; 512].into(), fua: false });
        router.running.send_replace(true);
        written.await.unwrap();
        router.clock.sleep(Duration::from_secs(1)).await;
        router.running.send_replace(false);
        assert_eq!(device.read(0, 512).await.unwrap(), vec![1; 512]);
    });
}

/// Over real sockets, with certificates.
#[tokio::test]
async fn tls_and_unix_sockets_reach_the_same_disk() {
    let folder = tempfile::tempdir().unwrap();
    let issued = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let (cert, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    std::fs::write(&cert, issued.cert.pem()).unwrap();
    std::fs::write(&key, issued.signing_key.serialize_pem()).unwrap();
    let mut exports = SimExports::default();
    exports.devices.insert("p/a".into(), Arc::new(SimDevice::new(geometry())));
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let settings = Settings {
        listen: "127.0.0.1:0".into(),
        unix: Some(folder.path().join("edge.sock")),
        tls: edge::config::TlsMode::Require,
        tls_cert: Some(cert.clone()),
        tls_key: Some(key.clone()),
        tls_client_ca: Some(cert.clone()),
        ..Settings::default()
    };
    settings.check(false).unwrap();
    let attachments = Arc::new(PlainExports::new(Arc::new(exports), LEASE, clock.clone()));
    let server = Server::new("r".into(), settings, attachments, clock.clone(), Metrics::default());
    let listeners = server.bind().await.unwrap();
    let port = listeners.local_addr().unwrap().port();
    let unix = format!("unix:{}", listeners.unix_path().unwrap().display());
    let running = watch::Sender::new(false);
    let serving = tokio::spawn(server.serve(listeners, running.subscribe()));
    let own = Some((cert.as_path(), key.as_path()));
    let secure = Dialer { tls: Some(client_tls(&cert, own).unwrap()) };
    let open = async |address: String, dialer: Dialer| {
        let options = Options { mode: Mode::Shared, open: Duration::from_secs(5), ..Options::default() };
        Device::open(vec![address], "p/a", options, Arc::new(dialer), clock.clone()).await
    };
    let first = open(format!("localhost:{port}"), secure).await.unwrap();
    let data: Vec<u8> = (0..200_000u32).map(|n| (n % 251) as u8).collect();
    let data = bytes::Bytes::from(data).slice(..199_680);
    first.write(0, data.clone(), true).await.unwrap();
    let second = open(unix, Dialer::default()).await.unwrap();
    assert_eq!(second.read(0, 199_680).await.unwrap(), data);
    let unknown = Dialer { tls: Some(client_tls(&cert, None).unwrap()) };
    let options = Options { open: Duration::from_millis(300), ..Options::default() };
    let address = vec![format!("localhost:{port}")];
    let refused =
        Device::open(address, "p/a", options, Arc::new(unknown), clock.clone()).await.err().unwrap();
    assert_eq!(refused.kind, ErrorKind::Unavailable);
    first.close().await;
    second.close().await;
    running.send(true).unwrap();
    serving.await.unwrap();
}
