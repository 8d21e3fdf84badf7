//! The NBD server: fixed newstyle, structured replies, extended headers, `base:allocation`, TLS.
//!
//! | room | what |
//! |---|---|
//! | `proto` | constants and pure decoders |
//! | `input` | the buffer a connection reads into |
//! | `meta` | metadata contexts: `base:allocation` |
//! | `handshake` | from the greeting to an opened export |
//! | `tls` | certificates, and the upgrade |
//! | `transmission` | requests in, replies out: one task per connection |
//! | `inflight` | the requests of one connection that are being worked on |
//! | `memory` | payload memory of all connections together |
//! | `stop` | how a connection hears that the server stops |
//! | `reply` | replies, queued and sent without copying their payload |
//! | `server` | listeners, connections, shutdown |
//! | [`fuzz`] | the decoders, for fuzzers |
//!
//! Does not own: the order or durability of anything; a reply goes out when the device has
//! returned.

mod handshake;
mod inflight;
mod input;
mod memory;
mod meta;
pub(crate) mod proto;
mod reply;
mod server;
mod stop;
mod tls;
mod transmission;

pub use crate::config::{Settings, TlsMode};
pub(crate) use memory::LEAST as MEMORY_LEAST;
pub use server::Server;

/// Everything that decodes bytes of a client, as functions that a fuzzer can call.
pub mod fuzz {
    use super::proto;

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
}

#[cfg(test)]
mod tests;
