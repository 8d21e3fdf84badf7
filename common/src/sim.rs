//! The simulated twins of the doors: deterministic under a seed, able to lose, tear, fail and
//! crash. For tests and fuzzers; the product never names them.

mod block;
mod clock;
mod disk;
mod kv;
mod object;
mod table;

pub use block::{SimDevice, SimExports};
pub use clock::SimClock;
pub use disk::{SimDisk, SimDiskFaults, SimDiskTally};
pub use kv::SimKv;
pub use object::{SimObjectStore, StoreFaults, StoreTally};
pub use table::SimTable;
