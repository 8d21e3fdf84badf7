//! Vocabulary and doors: the types that every crate shares and the traits through which the
//! world enters.
//!
//! | room | what |
//! |---|---|
//! | [`error`] | [`Error`], [`ErrorKind`] and the one table to NBD errno and HTTP status |
//! | [`ids`] | [`Epoch`], [`Lsn`], [`VolumeId`], [`Name`] |
//! | [`block`] | [`BlockDevice`] and [`Exports`]: the block front end's door |
//! | [`object`] | [`ObjectStore`]: immutable blobs by key |
//! | [`osd`] | [`Osd`]: one disk of a backend that keeps values by key |
//! | [`kv`] | [`Kv`]: the linearizable ordered map |
//! | [`disk`] | [`Disk`]: named local files, preallocated; [`disk::local`] is the real one |
//! | [`table`] | [`Table`]: the ordered local table |
//! | [`clock`] | [`Clock`]: time and chance |
//! | [`blocking`] | where a thread may wait for a disk, and look for an answer itself |
//! | [`alone`], [`loan`] | connections on a thread of their own, and answers that threads look for themselves |
//! | [`socket`] | the halves of a stream, watched by the runtime or used by a thread |
//! | [`crc`] | CRC32C, the only checksum of our formats |
//! | [`mutant`] | seeded bugs for the mutation table; in no release |
//! | [`sim`] | the simulated twins: they can lose, tear, fail and crash |
//!
//! Does not own: any protocol, any format, any policy. Nothing here knows a volume's log.

pub mod alone;
pub mod block;
pub mod blocking;
pub mod clock;
pub mod crc;
pub mod disk;
pub mod error;
pub mod ids;
pub mod kv;
pub mod loan;
pub mod mutant;
pub mod object;
pub mod osd;
pub mod sim;
pub mod socket;
pub mod table;

pub use block::{Baseline, BlockDevice, Difference, ExportInfo, Exports, Extent, Geometry};
pub use clock::Clock;
pub use disk::{Disk, DiskFile};
pub use error::{Error, ErrorKind, Result};
pub use ids::{Epoch, Lsn, Name, VolumeId};
pub use kv::Kv;
pub use object::ObjectStore;
pub use osd::Osd;
pub use table::Table;
