//! A whole session of a client that says anything, for fuzzers and tests.

use super::server::{Metrics, Server};
use super::{PlainExports, Settings};
use common::sim::{SimClock, SimDevice, SimExports};
use common::{Clock, Geometry};
use edge_client::transport::Stream;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;

/// A function that a fuzzer calls, by name.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] = &[("edge_session", session)];

/// A client says `bytes`, at once and in small pieces, and listens to the end. The server does to the device only what
/// it may, and ends.
pub fn session(bytes: &[u8]) {
    for pipe in [64 << 10, 41] {
        converse(bytes, pipe);
    }
}

#[allow(clippy::expect_used)]
fn converse(bytes: &[u8], pipe: usize) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime without I/O needs nothing").block_on(async {
        let geometry = Geometry {
            size: 256 << 10,
            min_block: 512,
            preferred_block: 4096,
            max_payload: 32 << 10,
            read_only: false,
        };
        let mut exports = SimExports::default();
        exports.devices.insert("p/a".to_owned(), Arc::new(SimDevice::new(geometry)));
        let clock: Arc<dyn Clock> = Arc::new(SimClock::new(1));
        let attachments = PlainExports::new(Arc::new(exports), Duration::from_secs(5), clock.clone());
        let settings = Settings { window_requests: 4, max_channels: 3, ..Settings::default() };
        let server = Server::new("r".into(), settings, Arc::new(attachments), clock, Metrics::default());
        // The sender must live as long as the connection: without it the server stops.
        let (_running, stop) = watch::channel(false);
        let (theirs, client) = tokio::io::duplex(pipe);
        let (mut hears, mut says) = tokio::io::split(client);
        let client = async {
            // The server may close while this writes.
            let _ = says.write_all(bytes).await;
            let _ = says.shutdown().await;
        };
        let replies = async {
            let mut buffer = vec![0; 16 << 10];
            while hears.read(&mut buffer).await.is_ok_and(|n| n > 0) {}
        };
        let session = async { tokio::join!(server.serve_stream(Stream::any(theirs), stop), client, replies) };
        // Time is virtual: it runs out when everyone waits for somebody else.
        tokio::time::timeout(Duration::from_secs(3600), session).await.expect("the session never ends");
    });
}
