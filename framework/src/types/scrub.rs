//! Log cleaning.

use super::Vdisk;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// Query of `POST /api/v1/vdisks/{vpool}/{name}/scrub`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ScrubQuery {
    /// Seconds to wait for its end; 0 only begins. Default 60, at most 3600.
    pub wait: Option<u64>,
    /// Only merge TLogs; no SCO is rewritten.
    #[serde(default)]
    pub merge: bool,
}

/// What a scrub did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Scrubbed {
    /// The vDisk as it is now.
    pub vdisk: Vdisk,
    /// SCOs that were deleted.
    pub deleted_scos: u64,
    /// Bytes of clusters that were copied out of them before.
    pub copied_bytes: u64,
    /// TLogs that were replaced or deleted.
    pub replaced_tlogs: u64,
}

/// The scrubs of a vDisk since it was opened, by the schedule or by request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ScrubState {
    /// One is at work.
    pub running: bool,
    /// Bytes of clusters that the one at work copies, or that the last one did.
    pub to_copy_bytes: u64,
    /// Bytes that it has copied so far.
    pub copied_bytes: u64,
    /// SCOs that all of them deleted.
    pub deleted_scos: u64,
    /// Bytes of clusters that all that have ended copied.
    pub relocated_bytes: u64,
}
