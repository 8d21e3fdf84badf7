//! Every decoder of this crate as a function of bytes, for fuzzers. A function returns, or it found a fault.

use crate::transport::Address;
use crate::wire::{self, Decoder, ToClient};
use bytes::{Bytes, BytesMut};

/// A function that a fuzzer calls, by name.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] =
    &[("edge_frames", frames), ("edge_bodies", bodies), ("edge_addresses", addresses)];

/// A stream of frames, as a server and as a client reads them.
fn frames(bytes: &[u8]) {
    if let Some(first) = bytes.first_chunk() {
        let _ = wire::prologue(first);
    }
    let mut decoder = Decoder::default();
    decoder.allow(1 << 20);
    decoder.buffer().extend_from_slice(bytes);
    while let Ok(Some(frame)) = decoder.frame() {
        let _ = frame.clone().to_client();
        let _ = frame.to_server();
    }
}

/// The first byte is a verb, the rest a body whose checksums are right; what is read is written the same.
fn bodies(bytes: &[u8]) {
    let Some((verb, body)) = bytes.split_first() else { return };
    let frame = wire::Frame::new(*verb, 7, Bytes::copy_from_slice(body));
    let again = |put: &dyn Fn(&mut BytesMut) -> Bytes| {
        let mut decoder = Decoder::default();
        decoder.allow(wire::MAX_PAYLOAD);
        let payload = put(decoder.buffer());
        decoder.buffer().extend_from_slice(&payload);
        decoder.frame()
    };
    if let Ok(said) = frame.clone().to_server() {
        let read = again(&|buffer| said.put(buffer, 7));
        assert_eq!(read, Ok(Some(frame.clone())), "{said:?}");
    }
    if let Ok(said) = frame.to_client() {
        let read = again(&|buffer| said.put(buffer, 7));
        // Text that is no text is replaced, so it is compared after a reading.
        let read = read.ok().flatten().and_then(|frame| frame.to_client().ok());
        assert_eq!(read.map(|r| format!("{r:?}")), Some(format!("{said:?}")));
        let _: ToClient = said;
    }
}

/// Addresses as a configuration or a router brings them.
fn addresses(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = text.parse::<Address>();
    }
}
