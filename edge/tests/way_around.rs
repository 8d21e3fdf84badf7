//! A client that can't reach the owner is served through a router that can, also where clients are sent on as a rule.

use async_trait::async_trait;
use common::sim::{SimClock, SimDevice, SimExports};
use common::{BlockDevice, Clock, Epoch, Geometry, Result};
use edge::protocol::server::Metrics;
use edge::protocol::{
    Attach, Attached, Attachments, Forwarder, Moved, PlainExports, Refusal, Server, Settings,
};
use edge_client::transport::{Dial, Stream};
use edge_client::trunk::Patience;
use edge_client::{Device, Options};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::watch;

/// Sends clients to the owner, as long as they do not say that they come from there in vain.
struct Redirects(Forwarder);

#[async_trait]
impl Attachments for Redirects {
    async fn attach(&self, attach: Attach) -> Result<Arc<dyn Attached>, Refusal> {
        let addresses = vec!["owner".to_string()];
        match attach.pass_on {
            true => self.0.attach(&addresses, attach).await,
            false => Err(Refusal::Moved(Moved { owner: "owner".into(), addresses, epoch: Epoch(1) })),
        }
    }
}

/// The ways of one host to routers.
struct Ways {
    servers: Vec<(&'static str, Arc<Server>)>,
    /// The owner can't be reached from here.
    cut: AtomicBool,
    running: watch::Sender<bool>,
}

#[async_trait]
impl Dial for Ways {
    async fn dial(&self, address: &str) -> std::io::Result<Stream> {
        let refused = || std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        if address == "owner" && self.cut.load(Ordering::Relaxed) {
            return Err(refused());
        }
        let (_, server) = self.servers.iter().find(|(name, _)| *name == address).ok_or_else(refused)?;
        let (mine, theirs) = tokio::io::duplex(64 << 10);
        let (server, stop) = (server.clone(), self.running.subscribe());
        tokio::spawn(async move { server.serve_stream(Stream::any(theirs), stop).await });
        Ok(Stream::any(mine))
    }
}

fn ways(servers: Vec<(&'static str, Arc<Server>)>) -> Arc<Ways> {
    Arc::new(Ways { servers, cut: AtomicBool::new(false), running: watch::Sender::new(false) })
}

#[test]
fn a_client_is_served_through_others_while_it_can_not_reach_the_owner() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    runtime.unwrap().block_on(async {
        let geometry = Geometry {
            size: 1 << 20,
            min_block: 512,
            preferred_block: 4096,
            max_payload: 64 << 10,
            read_only: false,
        };
        let mut exports = SimExports::default();
        exports.devices.insert("p/a".into(), Arc::new(SimDevice::new(geometry)));
        let clock: Arc<dyn Clock> = Arc::new(SimClock::new(1));
        let serve = |name: &str, attachments: Arc<dyn Attachments>| {
            Server::new(name.into(), Settings::default(), attachments, clock.clone(), Metrics::default())
        };
        let plain = PlainExports::new(Arc::new(exports), Duration::from_secs(5), clock.clone());
        let owner = serve("owner", Arc::new(plain));
        let between = ways(vec![("owner", owner.clone())]);
        let forwarder = Forwarder::new(between, Patience::default(), clock.clone());
        let other = serve("other", Arc::new(Redirects(forwarder)));
        let mine = ways(vec![("owner", owner), ("other", other)]);
        let open = || {
            let addresses = vec!["other".to_string()];
            Device::open(addresses, "p/a", Options::default(), mine.clone(), clock.clone())
        };

        // As a rule it is at the owner.
        let device = open().await.unwrap();
        assert!(!device.home().unwrap().granted.forwarded);
        device.write(0, vec![1; 512].into(), false).await.unwrap();
        device.close().await;

        mine.cut.store(true, Ordering::Relaxed);
        let before = clock.now();
        let device = open().await.unwrap();
        assert!(device.home().unwrap().granted.forwarded);
        assert_eq!(device.read(0, 512).await.unwrap(), vec![1; 512]);
        device.write(512, vec![2; 512].into(), true).await.unwrap();
        let took = clock.now() - before;
        assert!(took < Duration::from_secs(3), "the way around took {took:?}");
        device.close().await;

        mine.cut.store(false, Ordering::Relaxed);
        let device = open().await.unwrap();
        assert!(!device.home().unwrap().granted.forwarded);
        assert_eq!(device.read(512, 512).await.unwrap(), vec![2; 512]);
    });
}
