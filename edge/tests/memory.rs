//! Payload of all connections together is bounded: clients wait for memory, and notice nothing else.

use async_trait::async_trait;
use bytes::Bytes;
use common::sim::SimClock;
use common::{BlockDevice, Clock, ExportInfo, Exports, Extent, Geometry, Result};
use edge::protocol::server::Metrics;
use edge::protocol::{PlainExports, Server, Settings};
use edge_client::transport::{Dial, Stream};
use edge_client::wire::Op;
use edge_client::{Device, Options};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;

const MIB: u64 = 1 << 20;
const BLOCK: u32 = 4 << 20;

/// A disk whose requests go nowhere until it is released, and how many bytes of payload they hold.
struct Slow {
    released: watch::Sender<bool>,
    inside: AtomicU64,
    most: AtomicU64,
}

impl Slow {
    async fn hold(&self, len: usize) {
        let inside = self.inside.fetch_add(len as u64, Ordering::Relaxed) + len as u64;
        self.most.fetch_max(inside, Ordering::Relaxed);
        let _ = self.released.subscribe().wait_for(|released| *released).await;
        self.inside.fetch_sub(len as u64, Ordering::Relaxed);
    }
}

#[async_trait]
impl BlockDevice for Slow {
    fn geometry(&self) -> Geometry {
        Geometry {
            size: 1 << 40,
            min_block: 512,
            preferred_block: 4096,
            max_payload: BLOCK,
            read_only: false,
        }
    }

    async fn read(&self, _offset: u64, len: u32) -> Result<Bytes> {
        self.hold(len as usize).await;
        Ok(Bytes::from(vec![7; len as usize]))
    }

    async fn write(&self, _offset: u64, data: Bytes, _fua: bool) -> Result<()> {
        self.hold(data.len()).await;
        Ok(())
    }

    async fn write_zeroes(&self, _offset: u64, _len: u64, _hole: bool, _fua: bool) -> Result<()> {
        Ok(())
    }

    async fn discard(&self, _offset: u64, _len: u64, _fua: bool) -> Result<()> {
        Ok(())
    }

    async fn flush(&self) -> Result<()> {
        Ok(())
    }

    async fn extents(&self, _offset: u64, len: u64) -> Result<Vec<Extent>> {
        Ok(vec![Extent { len, hole: false, zero: false }])
    }

    async fn prefetch(&self, _offset: u64, _len: u64) -> Result<()> {
        Ok(())
    }
}

fn slow(released: bool) -> Arc<Slow> {
    Arc::new(Slow {
        released: watch::Sender::new(released),
        inside: AtomicU64::new(0),
        most: AtomicU64::new(0),
    })
}

/// One router with 128 MiB for payload, reached through pipes. The disks of vPool `p` stand still, others do not.
struct Router {
    slow: Arc<Slow>,
    metrics: Metrics,
    clock: Arc<dyn Clock>,
    server: Arc<Server>,
    running: watch::Sender<bool>,
}

struct Disks(Arc<Slow>, Arc<Slow>);

#[async_trait]
impl Exports for Disks {
    async fn list(&self) -> Result<Vec<ExportInfo>> {
        Ok(Vec::new())
    }

    async fn open(&self, name: &str) -> Result<Arc<dyn BlockDevice>> {
        Ok(if name.starts_with("p/") { self.0.clone() } else { self.1.clone() })
    }
}

#[async_trait]
impl Dial for Router {
    async fn dial(&self, _address: &str) -> std::io::Result<Stream> {
        let (mine, yours) = tokio::io::duplex(256 << 10);
        let (server, stop) = (self.server.clone(), self.running.subscribe());
        tokio::spawn(async move { server.serve_stream(Stream::any(yours), stop).await });
        Ok(Stream::any(mine))
    }
}

impl Router {
    fn new() -> Arc<Router> {
        let (slow, metrics) = (slow(false), Metrics::default());
        let clock: Arc<dyn Clock> = Arc::new(SimClock::new(1));
        let disks = Arc::new(Disks(slow.clone(), self::slow(true)));
        let attachments = Arc::new(PlainExports::new(disks, Duration::from_secs(5), clock.clone()));
        let settings = Settings { memory_mib: 128, ..Settings::default() };
        settings.check(false).unwrap();
        let server = Server::new("r".into(), settings, attachments, clock.clone(), metrics.clone());
        Arc::new(Router { slow, metrics, clock, server, running: watch::Sender::new(false) })
    }

    async fn open(self: &Arc<Self>, export: &str) -> Device {
        let options = Options::default();
        Device::open(vec!["r".into()], export, options, self.clone(), self.clock.clone()).await.unwrap()
    }
}

/// Clients ask for much more than there is memory for, from disks of one vPool that stand still for longer than any
/// patience. Just `most` bytes are taken, all of it is answered in the end, and nobody lost a connection.
fn ask(clients: u64, requests: u64, op: impl Fn(u64) -> Op, most: u64) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    runtime.unwrap().block_on(async {
        let router = Router::new();
        let (mut devices, mut pending) = (Vec::new(), Vec::new());
        for client in 0..clients {
            let device = router.open(&format!("p/{client}")).await;
            pending.extend((0..requests).map(|n| device.submit(op(n))));
            devices.push(device);
        }
        router.clock.sleep(Duration::from_secs(30)).await;
        assert_eq!(router.slow.inside.load(Ordering::Relaxed), most, "all that there is, is used");
        assert!(router.metrics.memory_waits() > 0);
        // Those of another vPool are not held up.
        router.open("q/v").await.submit(op(0)).await.unwrap();
        router.slow.released.send_replace(true);
        for one in pending {
            one.await.unwrap();
        }
        assert_eq!(router.slow.most.load(Ordering::Relaxed), most);
        for device in devices {
            assert_eq!(device.counters().reconnects, 0, "who waits hears that the router lives");
            device.read(0, 512).await.unwrap();
        }
    });
}

fn write(n: u64, data: &Bytes) -> Op {
    Op::Write { offset: n * data.len() as u64, data: data.clone(), fua: false }
}

#[test]
fn large_writes_of_many_clients_take_half_of_the_memory_for_one_vpool() {
    let data = Bytes::from(vec![1; BLOCK as usize]);
    // A few bytes around each count as well, so that one less fits.
    ask(8, 4, |n| write(n, &data), 60 * MIB);
}

#[test]
fn small_writes_of_many_clients_wait_as_large_ones_do() {
    let data = Bytes::from(vec![1; 32 << 10]);
    ask(16, 200, |n| write(n, &data), 64 * MIB);
}

#[test]
fn reads_of_many_clients_take_a_quarter() {
    ask(8, 4, |n| Op::Read { offset: n * u64::from(BLOCK), len: BLOCK }, 32 * MIB);
}
