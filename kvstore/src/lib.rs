//! Ordered maps on RocksDB: the registry, of one node or replicated, and the local table of the index.
//!
//! | room | what |
//! |---|---|
//! | [`local`] | [`LocalKv`], a durable linearizable map on one node, behind `common::Kv` |
//! | [`table`] | [`RocksTable`], the local table behind `common::Table`: fast, loses a suffix in a power cut |
//! | [`machine`] | the state machine of the replicated registry: the same log gives the same state |
//! | `log` | its log on the disk: entries and hard state, one fsync for all that wait |
//! | [`node`] | a member: raft, log and state held together; [`Instance`] is one in the real world |
//! | [`transport`] | frames over TCP and TLS between members, and from clients |
//! | [`client`] | [`Client`] finds the leader and retries exactly once, behind `common::Kv` |
//! | [`backup`] | the state as a file, and a new group made from it |
//! | [`upgrade`] | how a registry of one node becomes the first member of a group |
//! | [`stopped`] | [`Stopped`], the registry of a member that does not run, to be read |
//! | [`fuzzing`] | decoders as functions of bytes |
//! | `error`, `wire` | RocksDB's errors, told as ours; bounded encoding |
//! | `simulation` | worlds from a seed, and the judge of what clients saw; in tests alone |
//!
//! [`LocalKv`] and the replicated registry lose nothing that returned, also in a power cut;
//! [`RocksTable`] may lose a suffix since the last checkpoint. What holds the replicated registry
//! together is in ADR 14.
//!
//! Does not own: what the keys mean, who may connect (certificates are given to it), and when a
//! broken table is thrown away and rebuilt ([`RocksTable::destroy`] is only the means).

pub mod backup;
pub mod client;
mod error;
pub mod fuzzing;
pub mod local;
pub(crate) mod log;
pub mod machine;
pub mod node;
#[cfg(test)]
mod simulation;
pub mod stopped;
pub mod table;
pub mod transport;
pub mod upgrade;
mod wire;

pub use client::{Client, ClientConfig};
pub use local::LocalKv;
pub use machine::{Assert, Event, LeaseId, Op, Page, Range};
pub use node::{Instance, InstanceConfig};
pub use stopped::Stopped;
pub use table::{RocksSettings, RocksTable};
pub use upgrade::Origin;
