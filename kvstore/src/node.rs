//! A member of a group: raft, its log and its state machine, held together without doing any I/O.
//!
//! | room | what |
//! |---|---|
//! | `core` | [`core::Member`]: inputs in, effects out |
//! | `progress` | one round of raft's `Ready`: persist, send, apply |
//! | `serve` | requests of clients: proposals, reads, watches, membership |
//! | `leases` | the leader's clock of the leases |
//! | `transfer` | snapshots in parts, to and from others |
//! | `storage` | what raft reads |
//! | [`instance`] | a member in the real world: [`Instance`] |
//! | `disk`, `server` | its thread for the disk, and who connects |
//! | `message`, `request` | what members and clients say, and the codecs |
//! | [`metrics`] | what it counts |
//! | `opening` | state and log, opened together |
//! | `guard` | what no honest member can have sent |
//!
//! The order of effects is the product: a message that promises something leaves only when what it promises is
//! durable, an answer only when what it answers is committed and applied.

#[cfg(test)]
mod bench;
pub(crate) mod core;
mod disk;
mod guard;
#[cfg(test)]
mod hostile;
pub mod instance;
mod leases;
mod logger;
pub(crate) mod message;
pub mod metrics;
pub(crate) mod opening;
mod progress;
pub(crate) mod request;
mod serve;
pub(crate) mod server;
mod storage;
#[cfg(test)]
mod tests;
mod transfer;

pub use instance::{Handle, Instance, InstanceConfig};
pub use metrics::Metrics;
pub use request::{Change, Status};

/// How a member behaves in time and size. The same on all members of a group, but for `seed`.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Milliseconds of a tick.
    pub tick_ms: u64,
    /// Ticks between heartbeats of the leader.
    pub heartbeat_ticks: usize,
    /// Ticks without a leader after which a member stands for election, at least; at most twice as many.
    pub election_ticks: usize,
    /// Bytes of entries in memory and on the disk beyond which the older half is given up.
    pub compact_bytes: usize,
    /// A part of a snapshot ends behind this many bytes.
    pub part_bytes: usize,
    /// Where chance comes from: different on each member.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            tick_ms: 50,
            heartbeat_ticks: 2,
            election_ticks: 10,
            compact_bytes: 16 << 20,
            part_bytes: crate::machine::staging::PART_BYTES,
            seed: 0,
        }
    }
}
