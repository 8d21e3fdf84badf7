//! Where people meet the system: the REST API, its OpenAPI document, metrics and health.
//!
//! | room | what |
//! |---|---|
//! | [`types`] | the JSON that travels, shared with the command line |
//! | [`api`] | [`api::app`]: the routes |
//! | [`config`] | settings, and what may listen where |
//! | [`serve`] | the listener: HTTP with or without TLS, bounded, with a graceful end |
//!
//! Does not own: what a vPool or vDisk is (objectrouter), logging (the binary hands in how to
//! change its level), the command line.

pub mod api;
pub mod config;
pub mod serve;
pub mod types;

pub use api::{ClusterControl, LogFilter, State, app};
pub use config::{Settings, Token};
pub use serve::serve;
