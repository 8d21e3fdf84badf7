//! The ASD: the storage daemon of one disk or directory.
//!
//! | room | what |
//! |---|---|
//! | [`store`] | values in segments and a table: changes, reads, giving space back, scrub |
//! | [`local`] | [`LocalOsd`]: the store as a backend in the same process sees it, behind `common::Osd` |
//! | [`wire`] | the protocol's codec: bounded, never panics |
//! | [`service`] | the server's side: connections, memory, turns |
//! | [`client`] | [`AsdClient`]: one connection to a daemon, behind `common::Osd` |
//! | [`transport`] | streams: TCP, unix sockets, TLS |
//! | [`metrics`], [`fuzzing`] | what is counted, decoders as functions of bytes |
//! | `gate`, `outbox`, `latency` | whose turn it is, what waits to be sent, how long requests take |
//!
//! What is promised is said at the door (`common::Osd`), and why it is built so in ADR 23.
//!
//! Does not own: what a key means, where else a value is (`alba-proxy`), the table's implementation.

pub mod client;
pub mod fuzzing;
mod gate;
mod latency;
pub mod local;
pub mod metrics;
mod outbox;
pub mod service;
pub mod store;
pub mod transport;
pub mod wire;

pub use client::AsdClient;
pub use local::LocalOsd;
