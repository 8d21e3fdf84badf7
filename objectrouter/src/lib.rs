//! Who owns a vDisk, and how to get to it.
//!
//! Today one storage router owns everything; the registry already has the shape for many: each
//! record names its owner and the newest epoch, and every change of it is one transaction that
//! asserts what it was based on.
//!
//! | room | what |
//! |---|---|
//! | [`config`] | settings |
//! | [`router`] | [`Router`]: vPools and vDisks from creation to deletion, and [`common::Exports`] |
//! | `registry` | the records and their transactions |
//! | `vpool`, `vdisk` | one of each in memory |
//! | `handle` | a client's handle: counted, revocable, limited |
//! | `qos` | limits of requests and bytes per second |
//! | [`sizes`] | which sizes are valid |
//! | [`stream`] | the stream of an exported vDisk |
//! | [`offline`] | what the registry of a stopped router says, for tools |
//! | `fuzzing` | every decoder as a function of bytes, for fuzzers |
//! | `tasks` | background work with names and an end |
//! | `metrics` | gauges, computed when they are asked for |
//!
//! Does not own: the log of a volume (volumedriver), the kinds of object stores (they come in
//! through [`OpenStore`]), protocols (edge, framework), the registry's storage ([`common::Kv`]).

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
mod vdisk;
mod vpool;

pub use config::Settings;
pub use qos::{Qos, Waited};
pub use registry::{DtlMode, ParentRecord, SnapshotId};
pub use router::{
    Adopted, CreateVdisk, CreateVpool, DescribeSnapshot, Export, HealthItem, HealthLevel, Imported,
    OpenStore, OpenedStore, Router, RouterExports, SnapshotShown, Stores, TakeSnapshot, check_cache_quota,
};
pub use vdisk::{VdiskInfo, VdiskState};
pub use volumedriver::{Effort, Scrubbed};
pub use vpool::{VpoolInfo, VpoolState};
