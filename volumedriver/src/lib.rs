//! The volume driver: turns block writes into a log, the log into immutable SCOs on an object
//! store, and both back into a block device after any crash.
//!
//! | room | what |
//! |---|---|
//! | [`driver`] | all volumes of a router and what they share |
//! | [`pool`] | a vPool on its object store |
//! | [`volume`] | an open volume: write, read, seal, upload, commit, open |
//! | `core` | the sans-I/O state that decides order: LSNs, frontiers, overlay |
//! | [`journal`] | the write buffer: one journal per device, shared by all volumes |
//! | `index` | the committed head map, a derived store |
//! | `read_cache` | clusters from the backend, in memory and on the SSD |
//! | `view` | the maps of snapshots, read from TLogs page by page |
//! | `lsns` | which LSNs a head or a snapshot is made of |
//! | [`mod@format`] | what lies on the backend: SCO, TLog, Manifest, lists |
//! | [`fsck`] | checks a backend image end to end |
//! | [`inspect`] | prints any object or journal segment for people |
//! | [`log`] | the words of the log that all of them share |
//! | `fuzzing` | every decoder as a function of bytes, for fuzzers |
//! | `background` | threads for what computes while nobody waits for it |
//! | [`replication`] | the doors to the registry and to the peers that keep the tail of the log |
//! | `credit` | back-pressure: dirty bytes are credits |
//!
//! Does not own: who may open a volume (objectrouter), how objects are stored (alba-proxy), how
//! clients arrive (edge). It sees `ObjectStore`, `Disk`, `Table` and `Clock`.

mod background;
mod core;
mod credit;
mod demand;
mod extent_map;
mod index;
mod lsns;
mod metrics;
mod read_cache;
mod view;

pub mod config;
pub mod driver;
pub mod format;
pub mod fsck;
#[doc(hidden)]
pub mod fuzzing;
pub mod inspect;
pub mod journal;
pub mod log;
pub mod pool;
pub mod replication;
pub mod volume;

pub use config::Settings;
pub use driver::{CreateVolume, Driver, ImageInfo};
pub use format::{Description, Parent};
pub use pool::{Pool, PoolInfo};
pub use read_cache::CacheUse;
pub use replication::{Opening, Peers, Recovered};
pub use volume::replicas::ReplicationStatus;
pub use volume::snapshot_device::SnapshotDevice;
pub use volume::{
    CacheHits, Effort, Frontiers, ScrubStatus, Scrubbed, SnapshotChange, SnapshotInfo, Volume, VolumeState,
    VolumeStatus,
};
