//! Block front ends: how a disk of the storage router reaches a client.
//!
//! | room | what |
//! |---|---|
//! | [`nbd`] | the NBD server: handshake, TLS, transmission |
//! | [`config`] | `[nbd]` of the configuration file |
//! | [`metrics`] | what is counted |
//!
//! Does not own: what serves a disk. It sees [`common::BlockDevice`] and [`common::Exports`] and
//! nothing behind them: no log, no owner, no store.

pub mod config;
pub mod metrics;
pub mod nbd;
