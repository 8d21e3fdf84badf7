//! Who owns a vDisk, and how to get to it.
//!
//! Each volume has one owner, in one epoch: the storage router that claimed it in the registry in the name of its seat
//! there, a lease. A router that loses its seat answers no client any more, and nobody claims a volume before the lease
//! of whoever may have it has ended. Every change in the registry is one transaction that asserts what it was based on.
//!
//! | room | what |
//! |---|---|
//! | [`config`] | settings |
//! | [`router`] | [`Router`]: vPools and vDisks from creation to deletion, and [`common::Exports`] |
//! | `registry` | the records and their transactions |
//! | [`cluster`] | this router among the others: its seat, who is there, who is to have what |
//! | `vpool`, `vdisk` | one of each in memory |
//! | `handle` | a client's handle: counted, revocable, limited |
//! | `qos` | limits of requests and bytes per second |
//! | [`sizes`] | which sizes are valid |
//! | [`stream`] | the stream of an exported vDisk |
//! | [`offline`] | what the registry of a stopped router says, for tools |
//! | `fuzzing` | every decoder as a function of bytes, for fuzzers |
//! | `traffic` | where what is asked of a vDisk comes from |
//! | `tasks` | background work with names and an end |
//! | `metrics` | gauges, computed when they are asked for |
//!
//! Does not own: the log of a volume (volumedriver), the kinds of object stores (they come in
//! through [`OpenStore`]), protocols (edge, framework), the registry's storage ([`common::Kv`]).

pub mod cluster;
pub mod config;
#[doc(hidden)]
pub mod fuzzing;
mod handle;
mod metrics;
pub mod offline;
mod qos;
mod registry;
pub mod router;
pub mod sizes;
pub mod stream;
mod tasks;
mod traffic;
mod vdisk;
mod vpool;

pub use cluster::{DialDtl, Membership};
pub use config::Settings;
pub use dtl::registration::{
    Config as DtlConfig, Loss, Mode as DtlMode, Needed as DtlNeeded, OnFailure as DtlOnFailure,
    Status as DtlStatus,
};
pub use qos::{Qos, Waited};
pub use registry::{Addresses, NodeRecord, ParentRecord, SnapshotId, VolumeRecord, WriteBuffer};
pub use router::{
    Adopted, CreateVdisk, CreateVpool, DescribeSnapshot, DtlWish, Export, HealthItem, HealthLevel, Imported,
    OpenStore, OpenedStore, Router, RouterAttachments, RouterExports, RouterInfo, SnapshotShown, Stores,
    TakeSnapshot, check_cache_quota,
};
pub use traffic::{Asked, Uses};
pub use vdisk::{VdiskInfo, VdiskState};
pub use volumedriver::{Effort, Scrubbed};
pub use vpool::{VpoolInfo, VpoolState};
