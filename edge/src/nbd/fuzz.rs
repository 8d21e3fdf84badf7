//! Everything that decodes bytes of a client, as functions that a fuzzer and a test can call.

use super::proto;
use super::server;
use crate::config::{Settings, TlsMode};
use common::Geometry;
use common::sim::{SimClock, SimDevice, SimExports};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A function that a fuzzer calls, by name.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] = &[
    ("nbd_options", |bytes| {
        decode_option(bytes);
    }),
    ("nbd_requests", requests),
    ("nbd_session", session),
];

/// Feeds `bytes` to each decoder of the handshake: an option's header, then its payload as
/// each kind of option. Returns how many of them accepted it.
pub fn decode_option(bytes: &[u8]) -> usize {
    let Some((head, payload)) = bytes.split_first_chunk() else { return 0 };
    usize::from(proto::decode_option_header(head).is_ok())
        + usize::from(proto::decode_info(payload).is_ok())
        + usize::from(proto::decode_meta(payload).is_ok())
        + usize::from(proto::decode_name(payload).is_ok())
}

/// Feeds `bytes` to the decoder of requests. Returns the bytes of the header if it is one.
pub fn decode_request(bytes: &[u8], extended: bool) -> Option<usize> {
    proto::decode_request(bytes, extended).ok().flatten().map(|(_, size)| size)
}

/// A stream of requests: each header is the same however much follows it, and none before it is complete.
fn requests(bytes: &[u8]) {
    for extended in [false, true] {
        let mut rest = bytes;
        while let Ok(Some((request, size))) = proto::decode_request(rest, extended) {
            assert_eq!(proto::decode_request(&rest[..size], extended), Ok(Some((request, size))));
            assert_eq!(proto::decode_request(&rest[..size - 1], extended), Ok(None));
            let next = usize::try_from(request.payload()).ok().and_then(|payload| size.checked_add(payload));
            let Some(left) = next.and_then(|next| rest.get(next..)) else { break };
            rest = left;
        }
    }
}

/// Whole sessions of a client that says `bytes` and listens to the end: at once, in small pieces, and
/// where TLS is required. The server does to the device only what it may, and ends.
pub fn session(bytes: &[u8]) {
    for (tls, pipe) in [(TlsMode::Off, 64 << 10), (TlsMode::Off, 41), (TlsMode::Require, 64 << 10)] {
        converse(bytes, tls, pipe);
    }
}

/// A disk to write, one that takes whole blocks and little at a time, and one to read.
fn exports() -> SimExports {
    let geometry = Geometry {
        size: 256 << 10,
        min_block: 512,
        preferred_block: 4096,
        max_payload: 32 << 20,
        read_only: false,
    };
    let mut exports = SimExports::default();
    let mut add = |name: &str, geometry| {
        exports.devices.insert(name.to_owned(), Arc::new(SimDevice::new(geometry)));
    };
    add("p/a", geometry);
    add("p/blocks", Geometry { min_block: 4096, max_payload: 8192, size: 64 << 10, ..geometry });
    add("p/ro", Geometry { read_only: true, size: 64 << 10, ..geometry });
    exports
}

#[allow(clippy::expect_used)]
fn converse(bytes: &[u8], tls: TlsMode, pipe: usize) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime without I/O needs nothing").block_on(async {
        let settings = Settings { tls, max_inflight_bytes: 128 << 10, ..Settings::default() };
        let clock = Arc::new(SimClock::new(1));
        let (server, client) = tokio::io::duplex(pipe);
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
        let session = async {
            tokio::join!(server::session(server, settings, Arc::new(exports()), clock), client, replies)
        };
        // Time is virtual: it runs out when everyone waits for somebody else.
        tokio::time::timeout(Duration::from_secs(3600), session).await.expect("the session never ends");
    });
}
