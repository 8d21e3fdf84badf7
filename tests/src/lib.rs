//! The harness: real `storagerouter` processes, real clients, and an oracle that knows what must be
//! on a vDisk after any crash.
//!
//! Rooms:
//! - [`block`]: the self-describing 4 KiB block;
//! - [`model`]: the oracle, which blocks a vDisk may hold now;
//! - [`nbd`]: a small pipelined NBD client that never reconnects and never hides an error;
//! - [`workload`]: random writes, trims, flushes and reads over several connections, recorded in the model;
//! - [`faultfs`]: a disk that breaks on command, and forgets what was not synced;
//! - [`cgroup`]: a bound on the memory of a process;
//! - [`netns`]: a network whose links are cut one by one;
//! - [`cluster`]: three routers, on one machine or each in a network of its own;
//! - [`router`], [`reference`], [`s3`], [`gate`]: processes and servers under test, and beside them;
//! - [`setup`]: a router with one vPool and one vDisk on a chosen backend;
//! - [`pauses`]: how long fio waits when a vDisk goes to another router;
//! - [`mount`]: an ext4 file system on an export, without a kernel NBD driver;
//! - [`census`]: what lies in a `directory` store, and which of it is needed;
//! - [`scatter`], [`image`]: which addresses a benchmark asks for; a large vDisk that no router had to write;
//! - [`database`]: SQLite and PostgreSQL as clients that remember what was committed;
//! - [`sim`]: the simulation of the volume driver over the simulated doors;
//! - [`process`], [`tools`], [`time`], [`tls`]: what the others stand on.
//!
//! It does not own the promises of single crates: their tests lie beside their code.

// The processes under test live in real time, so their harness does.
#![allow(clippy::disallowed_methods)]

pub mod block;
pub mod census;
pub mod cgroup;
pub mod cluster;
pub mod database;
pub mod edge;
pub mod faultfs;
pub mod gate;
pub mod image;
pub mod model;
pub mod mount;
pub mod nbd;
pub mod netns;
pub mod pauses;
pub mod process;
pub mod reference;
pub mod router;
pub mod s3;
pub mod scatter;
pub mod setup;
pub mod sim;
pub mod stack;
pub mod time;
pub mod tls;
pub mod tools;
pub mod workload;
