//! The DTL (distributed transaction log): the tail of a volume's log, kept by other storage routers until
//! the backend has it.
//!
//! | room | what |
//! |---|---|
//! | [`registration`] | the words of the registry: [`Mode`], [`Config`], [`Registration`] |
//! | [`entry`] | one entry of the log as it travels and lies: [`Entry`], [`Packed`] |
//! | [`owner`] | what the owner may acknowledge, and what it proposes to the registry; sans-I/O |
//! | [`takeover`] | which logs a new owner must seal and drain, or why it may not; sans-I/O |
//! | [`placement`] | who is a good peer; a pure function |
//! | [`storage`] | the logs that a service keeps: `memory` and `disk` |
//! | [`wire`] | the protocol's codec: bounded, never panics |
//! | [`service`] | the server's side: connections, flow, group commit |
//! | [`client`] | the owner's side: [`client::Client`], [`client::Replica`] |
//! | [`transport`] | streams: TCP, unix sockets, TLS |
//!
//! Does not own: the registry (it proposes, somebody else compares and swaps), the owner's journal (it
//! reads it through [`client::Source`]), what an entry means, leases. It never decides by itself to
//! acknowledge without a peer.

pub mod client;
pub mod entry;
pub mod owner;
pub mod placement;
pub mod registration;
pub mod service;
pub mod storage;
pub mod takeover;
pub mod transport;
pub mod wire;

pub use entry::{Entry, Packed};
pub use registration::{
    Config, Incarnation, LogInfo, Mode, Needed, OnFailure, PeerLog, Registration, Status, Tail,
};
