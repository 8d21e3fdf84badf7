//! Volumes that are served elsewhere.

/// Forwards.
pub struct Forwarder;
