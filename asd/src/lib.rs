//! The ASD: the storage daemon of one disk or directory.
//!
//! | room | what |
//! |---|---|
//! | [`store`] | values in segments and a table: changes, reads, giving space back, scrub |
//! | `latency` | how long requests take |
//!
//! Does not own: what a key means, where else a value is (`alba-proxy`), the table's implementation.

pub mod fuzzing;
mod latency;
pub mod store;
pub mod wire;
