//! The NBD server: fixed newstyle, structured replies, extended headers, `base:allocation`, TLS.
//!
//! | room | what |
//! |---|---|
//! | `proto` | constants and pure decoders |
//! | `input` | the buffer a connection reads into |
//! | `meta` | metadata contexts: `base:allocation` |
//! | `handshake` | from the greeting to an opened export |
//! | `transmission` | requests in, replies out: one task per connection |
//! | `alone` | a thread for a client that sends one request at a time |
//! | `socket` | a client's stream, the runtime's or one thread's |
//! | `inflight` | the requests of one connection that are being worked on |
//! | `buffers` | memory for large payloads, used again and again |
//! | `stop` | how a connection hears that the server stops |
//! | `reply` | replies, queued and sent without copying their payload |
//! | `server` | listeners, connections, shutdown |
//! | `fuzz` | the decoders and a whole session, for fuzzers |
//!
//! Does not own: the order or durability of anything; a reply goes out when the device has
//! returned.

mod alone;
mod buffers;
#[doc(hidden)]
pub mod fuzz;
mod handshake;
mod inflight;
mod input;
mod meta;
pub(crate) mod proto;
mod reply;
mod server;
mod socket;
mod stop;
mod transmission;

pub use crate::config::{Settings, TlsMode};
pub use server::Server;

#[cfg(test)]
mod tests;
