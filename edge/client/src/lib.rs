//! The client of the edge protocol: a disk of any storage router, as a [`common::BlockDevice`].
//!
//! | room | what |
//! |---|---|
//! | [`wire`] | the protocol's codec: bounded, never panics |
//! | [`transport`] | streams: TCP, unix sockets, TLS |
//! | [`outgoing`] | frames that wait to be sent, payload uncopied |
//! | `incoming` | the greeting, and what is received |
//! | `inbox` | who receives: the task, or a thread that waits |
//! | `link` | sending from wherever something was asked |
//! | [`ledger`] | what is under way, what is kept for a replay, credit; sans-I/O |
//! | [`device`] | the handle: [`Device`], [`Options`] |
//! | `pump` | the task of a device: connects, attaches, receives, notices death |
//! | [`trunk`] | one connection for the attachments of many clients, for who forwards |
//! | [`fuzz`] | the decoders, for fuzzers |
//!
//! Does not own: who owns a volume (a router says so), order and durability (a reply says so). It never tells a
//! caller that a write is safe which a new owner may not have.

pub mod device;
pub mod fuzz;
mod inbox;
mod incoming;
pub mod ledger;
mod link;
pub mod outgoing;
mod pump;
pub mod transport;
pub mod trunk;
pub mod wire;

pub use device::{Counters, Device, Home, Options, Pending};
