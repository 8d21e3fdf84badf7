//! Snapshots, clones, rollback.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The snapshot that a vDisk is a clone of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CloneOf {
    /// Name of the vDisk whose snapshot it is, in the same vPool.
    pub vdisk: String,
    /// Identity of the snapshot.
    pub snapshot_id: String,
}

/// Body of `POST /api/v1/vdisks/{vpool}/{name}/snapshots`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SnapshotCreate {
    /// Name of the snapshot: 1 to 63 of `a-z A-Z 0-9 . _ -`, the first a letter or digit.
    pub name: String,
    /// Whether the guest has nothing in flight: a file system that is frozen, a database that is quiet.
    #[serde(default)]
    pub consistent: bool,
    /// Whether schedules leave it alone.
    #[serde(default)]
    pub sticky: bool,
    /// Anything, at most 4,096 bytes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub metadata: String,
}

/// Body of `POST /api/v1/snapshots`: one snapshot of each vDisk, all at one instant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GroupSnapshotCreate {
    /// The vDisks, as `VPOOL/NAME`: 1 to 64.
    pub vdisks: Vec<String>,
    /// What each snapshot is.
    pub snapshot: SnapshotCreate,
}

/// Body of `PATCH /api/v1/vdisks/{vpool}/{name}/snapshots/{snapshot}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SnapshotPatch {
    /// Whether the guest had nothing in flight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consistent: Option<bool>,
    /// Whether schedules leave it alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sticky: Option<bool>,
    /// Anything, at most 4,096 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<String>,
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Snapshot {
    /// Name.
    pub name: String,
    /// Its vDisk, as `VPOOL/NAME`.
    pub vdisk: String,
    /// Identity.
    pub id: String,
    /// Size of the vDisk then.
    pub size_bytes: u64,
    /// When it was taken, in seconds since 1970 UTC.
    pub created_at: u64,
    /// Whether the guest had nothing in flight.
    pub consistent: bool,
    /// Whether schedules leave it alone.
    pub sticky: bool,
    /// Whatever was attached to it.
    pub metadata: String,
    /// Whether the backend alone gives it back; until then it is in the write buffer.
    pub on_backend: bool,
    /// Its place in the log of the vDisk; absent until it is on the backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lsn: Option<u64>,
    /// vDisks that are clones of it.
    pub clones: Vec<String>,
}

/// Some snapshots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotList {
    /// The oldest first.
    pub items: Vec<Snapshot>,
}

/// Body of `POST /api/v1/vdisks/{vpool}/{name}/clone`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CloneCreate {
    /// Name of the new vDisk, in the same vPool.
    pub name: String,
    /// Name or id of the snapshot; not needed when the vDisk is a template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
}

/// Body of `POST /api/v1/vdisks/{vpool}/{name}/rollback`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Rollback {
    /// Name or id of the snapshot.
    pub snapshot: String,
    /// Also while clients are connected: their requests fail from then on.
    #[serde(default)]
    pub force: bool,
}

/// Body of `POST /api/v1/vdisks/{vpool}/{name}/template`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MakeTemplate {
    /// Also while clients are connected: their requests fail from then on.
    #[serde(default)]
    pub force: bool,
}
