//! Export and import.

use super::Vdisk;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// Query of `GET /api/v1/vdisks/{vpool}/{name}/export`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ExportQuery {
    /// Name or id of the snapshot. Without it the head is exported, when no client is connected.
    pub snapshot: Option<String>,
    /// Name or id of an older snapshot: only what differs from it is exported.
    pub since: Option<String>,
}

/// Query of `POST /api/v1/vdisks/{vpool}/{name}/import`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ImportQuery {
    /// Into any vDisk, whatever it holds and whoever is connected.
    #[serde(default)]
    pub force: bool,
}

/// What an import did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Imported {
    /// The vDisk as it is now.
    pub vdisk: Vdisk,
    /// Whether it was made.
    pub created: bool,
    /// The snapshot that was taken at the end, with the name and the identity of the one that was exported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// Bytes of content in the stream.
    pub data_bytes: u64,
    /// Bytes of allocated zeroes.
    pub zero_bytes: u64,
    /// Bytes of holes.
    pub hole_bytes: u64,
}
