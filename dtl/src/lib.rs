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
//! | [`config`], [`metrics`], [`fuzzing`] | settings, what is counted, decoders as functions of bytes |
//!
//! Does not own: the registry (it proposes, somebody else compares and swaps), the owner's journal (it
//! reads it through [`client::Source`]), what an entry means, leases. It never decides by itself to
//! acknowledge without a peer.
//!
//! # How a volume uses it
//!
//! 1. **Taking over** (every open is one). Claim the epoch: compare and swap the registration that was read for
//!    [`Registration::claim`] of it, all of it asserted, so that no proposal of the old owner comes between. Put the Manifest
//!    that fences the backend. Give the claimed registration to [`takeover::Takeover`], seal at every node it names
//!    ([`client::Client::seal`]), tell it the answers, and do what the verdict says: read the pieces
//!    ([`client::Client::read`]) through a [`takeover::Replay`]. Put the Manifest with the cut. Compare and swap for
//!    [`Registration::taken_over`]: the logs that were drained are a tail from then on. Only then serve.
//! 2. **Serving.** One [`owner::Owner`] per volume and epoch, held with the state that gives out LSNs, and one
//!    [`client::Replica`] per log, from one [`client::Client`] per other router. A write gets its LSN
//!    ([`owner::Owner::accepted`]), is queued for each replica in that order, and goes to the journal. It is acknowledged
//!    when the journal has it and [`owner::Owner::acknowledge`] says so: that, and not a watermark, is the promise, since a
//!    peer may be about to be named that lacks it.
//! 3. **A task** does what [`owner::Owner::take_action`] asks for: proposals to the registry, new peers. No answer is
//!    [`owner::Outcome::Unknown`], never a guess.
//! 4. **Cleaning up.** When a Manifest has committed more: [`client::Replica::trim`], then [`Registration::committed`] into
//!    the registry, and when that is there [`client::Client::forget`] at the holders of the tails that it dropped.
//!
//! The volume driver does so in `core/replication.rs`, `volume/replicas.rs` and `volume/takeover.rs`.

pub mod client;
pub mod config;
pub mod entry;
pub mod fuzzing;
pub mod metrics;
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
    Config, Incarnation, LogInfo, Loss, Mode, Needed, OnFailure, PeerLog, Registration, Status, Tail,
};
