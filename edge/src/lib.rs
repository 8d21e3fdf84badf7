//! Block front ends: how a disk of the storage router reaches a client.
//!
//! | room | what |
//! |---|---|
//! | [`nbd`] | the NBD server: handshake, TLS, transmission |
//! | [`protocol`] | the edge protocol's server: attachments, sessions, forwarding |
//! | [`config`] | `[nbd]` of the configuration file |
//! | `listen`, `tls` | sockets and certificates of both |
//! | `memory` | payload memory of all connections together, for each of both |
//! | [`metrics`] | what is counted |
//!
//! Does not own: what serves a disk. It sees [`common::BlockDevice`] and [`common::Exports`] and
//! nothing behind them, and for the edge protocol [`protocol::Attachments`] and [`protocol::Volume`]: no log, no
//! owner, no store. The client of the edge protocol is a crate of its own, `edge-client`, and its C library another.

pub mod config;
pub mod listen;
mod memory;
pub mod metrics;
pub mod nbd;
pub mod protocol;
mod tls;
