//! An edge client at a router's exports, over a pipe.

use async_trait::async_trait;
use common::sim::{SimClock, SimDevice, SimExports};
use common::{BlockDevice, Clock, ErrorKind, Geometry};
use edge::protocol::server::Metrics;
use edge::protocol::{PlainExports, Server, Settings};
use edge_client::transport::{Dial, Stream};
use edge_client::wire::Mode;
use edge_client::{Device, Options};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

const LEASE: Duration = Duration::from_secs(5);

/// One router, reached through pipes.
struct Router {
    server: Arc<Server>,
    _running: watch::Sender<bool>,
    stop: watch::Receiver<bool>,
    clock: Arc<dyn Clock>,
}

#[async_trait]
impl Dial for Router {
    async fn dial(&self, _address: &str) -> std::io::Result<Stream> {
        let (mine, yours) = tokio::io::duplex(64 << 10);
        let (server, stop) = (self.server.clone(), self.stop.clone());
        tokio::spawn(async move { server.serve_stream(Stream::any(yours), stop).await });
        Ok(Stream::any(mine))
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
    let (running, stop) = watch::channel(false);
    Arc::new(Router { server, _running: running, stop, clock })
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
        assert_eq!(extents.iter().map(|e| (e.len, e.hole)).collect::<Vec<_>>(), [
            (4096, true),
            (4096, false),
            (4096, true),
            (4096, false)
        ]);
        for (offset, len, kind) in
            [(1, 512, ErrorKind::Invalid), (0, 0, ErrorKind::Invalid), (1 << 20, 512, ErrorKind::Invalid)]
        {
            assert_eq!(device.read(offset, len).await.unwrap_err().kind, kind);
        }
        device.close().await;
    });
}
