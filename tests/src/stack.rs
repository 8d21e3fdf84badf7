//! The simulation of the whole stack: one seed is one world of three or four storage routers, with their clients, the
//! registry, the DTL of each, and one object store, in virtual time on one thread. The same seed gives the same digest.
//!
//! The routers are the product's own: `objectrouter::Router` with its volume driver, the DTL's service and client, the
//! server and the client of the edge protocol. What is between them is simulated, and goes wrong.
//!
//! | room | what |
//! |---|---|
//! | [`plan`] | what happens, made from the seed beforehand |
//! | [`gate`] | a process that stands still, or is dead; its clock |
//! | [`signal`] | what many wait for, woken in order |
//! | [`net`] | who reaches whom, one way and the other |
//! | [`doors`] | the disk and the object store of a process |
//! | [`registry`] | the registry, its leases, and a process's way to it |
//! | [`host`] | a machine and the storage router on it |
//! | [`world`] | all of them, and what happens to them |
//! | [`truth`] | what must hold of a volume: the oracle, and the rules as the registry shows them |
//! | [`clients`] | who writes and reads |
//! | [`run`] | one world from its beginning to its end |
//! | [`many`] | many of them, and a shorter plan for one that is wrong |
//! | [`mutants`] | the seeded bugs that this must notice |

pub mod clients;
pub mod doors;
pub mod gate;
pub mod host;
pub mod many;
pub mod mutants;
pub mod net;
pub mod plan;
pub mod registry;
pub mod run;
pub mod signal;
pub mod truth;
pub mod world;
