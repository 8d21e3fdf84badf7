//! What lies on the object store, byte for byte: pure codecs, without any I/O.
//!
//! | room | what |
//! |---|---|
//! | [`envelope`] | the first block and the footer that every object has, and the reference to an object |
//! | [`keys`] | names of objects, both ways |
//! | [`pool`] | the `vpool` object |
//! | [`sco`] | storage container objects: clusters of an LSN range and their index |
//! | [`tlog`] | the map entries of an LSN range, sorted by address, readable block by block |
//! | [`manifest`] | the root of a volume |
//! | [`snapshot`] | markers in the log, and the pages that list the snapshots of a volume |
//! | [`list`] | pages of TLog references that no longer fit the Manifest |
//!
//! Every decoder is bounded by its input, never panics, and answers `Corrupt` (what is wrong,
//! and where) or `Unsupported` (a newer version or an unknown mandatory feature, by number).
//! Every encoder refuses with `Internal` what its decoder would refuse. `docs/formats.md` has
//! the tables.
//!
//! Does not own: which objects exist, in which order they are put, or when one may be deleted;
//! nor the journal's records.

pub(crate) mod cursor;
pub mod envelope;
pub mod keys;
pub mod list;
pub mod manifest;
pub mod pool;
pub mod sco;
pub mod snapshot;
pub mod tlog;

pub use envelope::{BLOCK, Envelope, FOOTER_LEN, Footer, ObjectKind, ObjectRef};
pub use manifest::{HistoryEntry, Manifest, ManifestKind, PageRef, Parent, TLogRef, Tail};
pub use pool::PoolObject;
pub use sco::{MapEntry, Sco, ScoHeader, ScoId, ScoIndex};
pub use snapshot::{Description, Snapshot, SnapshotPageRef};
pub use tlog::{DictEntry, TLog, TLogEntry};

#[cfg(test)]
pub(crate) mod tests;
