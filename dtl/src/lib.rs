//! The DTL: the tail of a volume's log, replicated to peers.
//!
//! A storage router that stands alone has no peer, so all that is needed today is the mode that
//! says so; it is part of every vDisk's record.

use serde::{Deserialize, Serialize};

/// How many failures the acknowledged tail of a volume survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Mode {
    /// The tail is in this router's journal alone.
    #[default]
    None,
}
