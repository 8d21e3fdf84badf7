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
//! | [`replication`] | all of that for one volume: what the volume driver uses |
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
//! 2. **Serving.** One [`replication::Replication`] per volume and epoch, one [`client::Client`] per other router. A write
//!    goes to the journal, then to [`append`](replication::Replication::append), in the order of LSNs. What waits
//!    for its acknowledgement waits for [`allowed`](replication::Replication::allowed) and asks
//!    [`acknowledge`](replication::Replication::acknowledge) right before its reply: that, and not the watermark, is the
//!    promise, since a peer may be about to be named that lacks it.
//! 3. **A task** does what [`next`](replication::Replication::next) asks for: proposals to the registry, new peers.
//! 4. **Cleaning up.** When a Manifest has committed more: [`committed`](replication::Replication::committed), then
//!    [`Registration::committed`] into the registry, and when that is there [`client::Client::forget`] at the
//!    holders of the tails that it dropped.
//!
//! ```no_run
//! # use common::{Clock, Epoch, Lsn, Name, Result, VolumeId};
//! # use dtl::client::{Chunk, Client, Source};
//! # use dtl::owner::{Action, Outcome, Patience};
//! # use dtl::replication::{Begin, Replication};
//! # use dtl::{Config, Entry, PeerLog};
//! # use std::{collections::HashMap, sync::Arc};
//! struct Journal;
//!
//! #[async_trait::async_trait]
//! impl Source for Journal {
//!     /// What was appended and is not committed, read again for a peer that lags.
//!     async fn read(&self, from: Lsn, max: usize) -> Result<Chunk> {
//! #       let (committed, entries) = (Lsn(0), Vec::new());
//!         Ok(Chunk { committed, entries })
//!     }
//! }
//!
//! # async fn compare_and_swap(epoch: Epoch, new: &Config) -> Outcome { Outcome::Unknown }
//! # fn good_peers(want: usize, avoid: &[Name]) -> Vec<Name> { Vec::new() }
//! /// The volume's task.
//! async fn drive(replication: Arc<Replication>, clients: HashMap<Name, Client>) {
//!     loop {
//!         match replication.next().await {
//!             Action::Propose { expect: (epoch, _), new } => {
//!                 // No answer is `Outcome::Unknown`, never a guess.
//!                 let outcome = compare_and_swap(epoch, &new).await;
//!                 replication.outcome(&new, outcome);
//!             }
//!             Action::Recruit { want, avoid } => {
//!                 for node in good_peers(want, &[avoid, replication.present()].concat()) {
//!                     replication.join(node.clone(), &clients[&node]);
//!                 }
//!             }
//!             Action::Release(log) => drop(log),
//!             Action::Flush(..) => {} // Done already.
//!             Action::Fenced => return, // The volume stops.
//!         }
//!     }
//! }
//!
//! /// A client's write, when its journal write has returned; FUA and flushes do the same with `flush`.
//! async fn acknowledge(replication: &Replication, entry: &Entry) -> Result<(), ()> {
//!     replication.append(entry);
//!     let mut allowed = replication.allowed();
//!     loop {
//!         if replication.acknowledge(entry.lsn) {
//!             return Ok(()); // The reply says `allowed.borrow().in_sync`, too.
//!         }
//!         allowed.changed().await.map_err(|_| ())?;
//!     }
//! }
//!
//! # fn begin(config: Config, clock: Arc<dyn Clock>, metrics: &dtl::metrics::OwnerMetrics) {
//! let begin = Begin {
//!     volume: VolumeId(7),
//!     epoch: Epoch(6),
//!     config, // As `Registration::taken_over` left it.
//!     accepted: Lsn(150),
//!     committed: Lsn(100),
//!     patience: Patience::default(),
//! };
//! let replication = Replication::new(begin, Arc::new(Journal), clock, metrics);
//! # }
//! ```

pub mod client;
pub mod config;
pub mod entry;
pub mod fuzzing;
pub mod metrics;
pub mod owner;
pub mod placement;
pub mod registration;
pub mod replication;
pub mod service;
pub mod storage;
pub mod takeover;
pub mod transport;
pub mod wire;

pub use entry::{Entry, Packed};
pub use registration::{
    Config, Incarnation, LogInfo, Loss, Mode, Needed, OnFailure, PeerLog, Registration, Status, Tail,
};
