//! ALBA: the backend of our own, spread over the disks of many routers.
//!
//! | room | what |
//! |---|---|
//! | [`preset`] | policies and presets: how objects are protected and packed |
//! | [`layout`] | from an object to its fragments and back, purely |
//! | [`keys`] | what wraps what, down to the key of one object |
//! | [`placement`] | which disks the fragments of an object go to |
//! | [`osds`] | the disks as this process sees them: fast, failing, full |
//! | [`records`] | what the registry knows: objects, namespaces, disks |
//! | [`store`] | [`AlbaStore`]: puts and gets |
//!
//! Does not own: the disks (behind `common::Osd`), the registry (behind `common::Kv`), maintenance.

pub mod keys;
pub mod layout;
pub mod osds;
pub mod placement;
pub mod preset;
pub mod records;
#[cfg(test)]
mod sim;
pub mod store;
mod wire;

pub use store::AlbaStore;
