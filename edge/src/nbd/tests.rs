//! The server as its clients meet it, over real sockets, with a disk in memory behind it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod alone;
mod client;
mod garbage;
mod handshake;
mod memory;
mod tls;
mod transmission;

use super::{Server, Settings};
use memory::{Memory, Shelf};
use prometheus_client::registry::Registry;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

const MIB: u64 = 1 << 20;

/// A server with two writable disks of 64 MiB, `p/a` and `p/b`, and a read-only one, `p/ro`.
struct World {
    address: SocketAddr,
    a: Arc<Memory>,
    stop: watch::Sender<bool>,
    served: JoinHandle<()>,
    registry: Registry,
}

impl World {
    async fn new() -> Self {
        Self::with(Settings::default()).await
    }

    async fn with(mut settings: Settings) -> Self {
        if settings.listen == Settings::default().listen {
            settings.listen = "127.0.0.1:0".into();
        }
        let mut shelf = Shelf::default();
        for (name, read_only) in [("p/a", false), ("p/b", false), ("p/ro", true)] {
            shelf.0.insert(name.into(), Arc::new(Memory::new(64 * MIB, read_only)));
        }
        let a = shelf.0["p/a"].clone();
        let mut registry = Registry::default();
        let clock = Arc::new(common::clock::SystemClock::new());
        let server = Server::bind(settings, Arc::new(shelf), clock, &mut registry).await.unwrap();
        let address = server.local_addr().unwrap_or(SocketAddr::from(([127, 0, 0, 1], 0)));
        let (stop, stopped) = watch::channel(false);
        let served = tokio::spawn(server.serve(stopped));
        Self { address, a, stop, served, registry }
    }

    fn metric(&self, line: &str) -> f64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        let found = text.lines().find_map(|l| l.strip_prefix(line)?.trim().parse().ok());
        found.unwrap_or_else(|| panic!("no {line} in\n{text}"))
    }
}

/// Waits until `what` holds; fails after a while.
async fn eventually(mut what: impl FnMut() -> bool) {
    let patient = async {
        while !what() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), patient).await.expect("it never happened");
}
