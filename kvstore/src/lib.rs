//! Ordered maps on RocksDB: the registry of one node and the local table of the index.
//!
//! | room | what |
//! |---|---|
//! | [`local`] | [`LocalKv`], a durable linearizable map on one node, behind `common::Kv` |
//! | [`table`] | [`RocksTable`], the local table behind `common::Table`: fast, loses a suffix in a power cut |
//! | `error` | RocksDB's errors, told as ours: held by another process, corrupt, disk full |
//!
//! Both survive the death of the process without losing anything that returned. They differ in
//! what a power cut may take: nothing from [`LocalKv`], a suffix since the last checkpoint from
//! [`RocksTable`].
//!
//! Does not own: what the keys mean, replication (a registry replicated by Raft gets its room
//! beside `local` when there is more than one node), and when a broken table is thrown away and
//! rebuilt ([`RocksTable::destroy`] is only the means).

mod error;
pub mod local;
pub mod table;

pub use local::LocalKv;
pub use table::{RocksSettings, RocksTable};
