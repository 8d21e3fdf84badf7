//! The simulation: one seed is one world, with its clients, its faults and its crashes, in virtual
//! time on one thread. The same seed gives the same digest.
//!
//! Rooms: [`plan`] (what happens, made from the seed beforehand), [`world`] (the doors and the
//! process), [`run`] (one world), [`model`] (the oracle), [`shrink`] (a shorter plan that still
//! fails), [`sequences`] (all short
//! sequences, against the [`reference`] model), [`mutants`] (the
//! seeded bugs that all of this must notice).

pub mod model;
pub mod mutants;
pub mod plan;
pub mod reference;
pub mod run;
pub mod sequences;
pub mod shrink;
pub mod snapshots;
pub mod world;
