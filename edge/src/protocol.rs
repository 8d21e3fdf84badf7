//! The edge protocol's server: attachments of edge clients, and of routers that forward for them.
//!
//! | room | what |
//! |---|---|
//! | [`door`] | what a router provides: [`Attachments`], [`Attached`], [`Volume`] |
//! | [`sessions`] | who is attached to a volume, and in which session (rule 3, R9); without I/O |
//! | `gate` | what lets the requests of a session pass, and waits for the last of them |
//! | [`owned`] | a volume that is served here: [`Owned`] |
//! | [`plain`] | the exports of a router that knows no epochs: [`PlainExports`] |
//! | [`forward`] | volumes that are served elsewhere: [`Forwarder`] |
//! | [`settings`] | `[edge]` of the configuration file |
//! | [`server`] | listeners, shutdown |
//! | `connection` | frames in, replies out: one task per connection |
//! | `fuzz` | a whole session, for fuzzers |
//! | `check` | what is refused before a device hears of it |
//!
//! Does not own: who owns a volume, its log, its lease. It never sends a request a second time.

mod check;
mod connection;
pub mod door;
pub mod forward;
#[doc(hidden)]
pub mod fuzz;
mod gate;
pub mod owned;
pub mod plain;
pub mod server;
pub mod sessions;
pub mod settings;

pub use door::{Attached, Attachments, Done, Refused, Volume};
pub use edge_client::wire::{
    Attach, Credit, Granted, Mode, Moved, Op, Outcome, Recovered, Refusal, Reply, Request,
};
pub use forward::Forwarder;
pub use owned::Owned;
pub use plain::{Plain, PlainExports};
pub use server::Server;
pub use sessions::{Holder, Sessions};
pub use settings::Settings;
