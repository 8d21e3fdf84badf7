//! The words of the REST API: what travels as JSON, in both directions.
//!
//! The server and the command line share these types. Sizes are integers in bytes; identities are
//! 32 hexadecimal digits; a request with an unknown key is refused.

mod backup;
mod cluster;
mod qos;
mod scrub;
mod snapshots;

pub use backup::{ExportQuery, ImportQuery, Imported};
pub use cluster::{BackedUp, Backup, ClusterLeave, ClusterMember, ClusterStatus};
pub use qos::Qos;
pub use scrub::{ScrubQuery, ScrubState, Scrubbed};
pub use snapshots::{
    CloneCreate, CloneOf, GroupSnapshotCreate, MakeTemplate, Rollback, Snapshot, SnapshotCreate,
    SnapshotList, SnapshotPatch,
};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

/// Body of `POST /api/v1/vpools`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VpoolCreate {
    /// Name of the vPool: 1 to 63 of `a-z A-Z 0-9 . _ -`, the first a letter or digit.
    pub name: String,
    /// Which object store, as `{"kind": "directory" | "s3", ...}`.
    #[schema(value_type = Object)]
    pub backend: Value,
    /// Bytes in a cluster: a power of two, 4096 to 65536. Default 4096; with `adopt` it is the image's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_size_bytes: Option<u32>,
    /// Open the vPool that already lies there, with its vDisks, in place of making a new one.
    #[serde(default)]
    pub adopt: bool,
}

/// A vPool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Vpool {
    /// Name.
    pub name: String,
    /// Identity: 32 hexadecimal digits.
    pub id: String,
    /// Which object store, without secrets.
    #[schema(value_type = Object)]
    pub backend: Value,
    /// Bytes in a cluster.
    pub cluster_size_bytes: u32,
    /// The object store, for people; empty until it was opened.
    pub description: String,
    /// Whether it serves.
    pub state: VpoolState,
    /// Why it does not serve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What the operator should know about this object store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
    /// Number of vDisks.
    pub vdisks: u64,
    /// The vDisks found by an adoption; only in the reply to the `POST` that adopted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adopted: Option<Vec<AdoptedVdisk>>,
}

/// Whether a vPool serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VpoolState {
    /// Its object store has not answered yet; it is tried again and again.
    Opening,
    /// Open.
    Serving,
    /// Its object store gave an answer that does not change by itself; see the reason.
    Failed,
    /// Being deleted.
    Deleting,
}

/// One vDisk found by an adoption.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AdoptedVdisk {
    /// The vDisk's name from now on.
    pub name: String,
    /// Identity.
    pub id: String,
    /// The name in the image, when another had to be taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renamed_from: Option<String>,
}

/// Reply to `GET /api/v1/vpools`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VpoolList {
    /// All vPools, in order of name.
    pub items: Vec<Vpool>,
}

/// Body of `POST /api/v1/vdisks`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VdiskCreate {
    /// Name of the vDisk: 1 to 63 of `a-z A-Z 0-9 . _ -`, the first a letter or digit.
    pub name: String,
    /// Name or id of the vPool.
    pub vpool: String,
    /// Size: a multiple of the vPool's cluster size, one cluster to 64 TiB.
    pub size_bytes: u64,
    /// Bytes of clusters in one SCO: 1 to 128 MiB. Default 8 MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sco_size_bytes: Option<u32>,
}

/// Body of `PATCH /api/v1/vdisks/{vpool}/{name}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VdiskPatch {
    /// The new size: a multiple of the vPool's cluster size, not smaller than the present one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// Whether clients that connect from now on may only read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_only: Option<bool>,
    /// Limits, in place of all that it has; an empty object takes them away. They hold at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qos: Option<Qos>,
    /// Bytes that the read cache may hold of its clusters, 1048576 to 1125899906842624; 0 takes the bound away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_quota_bytes: Option<u64>,
    /// How its acknowledged tail is to be replicated from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtl: Option<DtlPatch>,
    /// Whether it moves to the router through which most of what is asked of it comes: `on`, `off`, or `default`, as the configuration of
    /// its owner says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_migrate: Option<String>,
}

/// What the read cache holds of a vDisk, and how well it serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CacheUse {
    /// Bytes in memory of clusters that this vDisk wrote; its clones read them too.
    pub memory_bytes: u64,
    /// Bytes of them on the SSD.
    pub ssd_bytes: u64,
    /// Clusters that its clients read and that were in memory, since it was opened.
    pub memory_hits: u64,
    /// Those that were on the SSD.
    pub ssd_hits: u64,
    /// Those that were read from the backend.
    pub misses: u64,
}

/// A vDisk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Vdisk {
    /// Name.
    pub name: String,
    /// Name of its vPool.
    pub vpool: String,
    /// Identity of its volume.
    pub id: String,
    /// Size.
    pub size_bytes: u64,
    /// Bytes of its SCOs and TLogs on the backend; absent while it is not open, as the next ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored_bytes: Option<u64>,
    /// Bytes of clusters that its committed head maps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live_bytes: Option<u64>,
    /// Bytes of clusters that only its snapshots read, as the last scrub found them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_bytes: Option<u64>,
    /// Stored bytes for one that its head or a snapshot reads; absent while there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub space_amplification: Option<f64>,
    /// Bytes acknowledged and not yet on the backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dirty_bytes: Option<u64>,
    /// The epoch that serves, or that served last.
    pub epoch: u64,
    /// Bytes of clusters in one SCO.
    pub sco_size_bytes: u32,
    /// The durability state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frontiers: Option<Frontiers>,
    /// Whether it serves.
    pub state: VdiskState,
    /// Why it does not serve, or not fully.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Number of open handles (NBD connections).
    pub in_use: u64,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether it is a template: read-only for ever, and cloned by its name.
    #[serde(default)]
    pub template: bool,
    /// The snapshot that it is a clone of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clone_of: Option<CloneOf>,
    /// Number of its snapshots; absent while it is not open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshots: Option<u64>,
    /// Limits of its clients; absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qos: Option<Qos>,
    /// The most that the read cache may hold of it; absent: no bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_quota_bytes: Option<u64>,
    /// The read cache; absent while it is not open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheUse>,
    /// Log cleaning; absent while it is not open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scrub: Option<ScrubState>,
    /// How its acknowledged tail is replicated.
    pub dtl: Dtl,
    /// Whether it moves to where it is used; absent: as the configuration of its owner says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_migrate: Option<bool>,
    /// The node that owns it; `local` is the one that answered.
    pub owner: String,
    /// Where an NBD client finds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbd_uri: Option<String>,
    /// Where an NBD client on the router's machine finds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbd_unix_uri: Option<String>,
    /// Addresses at which an edge client finds it: `HOST:PORT`, or `unix:PATH` on the router's machine.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub edge: Vec<String>,
}

/// Whether a vDisk serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VdiskState {
    /// Serves.
    Serving,
    /// Serves, but the backend does not take what is sealed.
    Degraded,
    /// Stopped for good in this process.
    Stopped,
    /// Not open yet, or waiting for its vPool; it opens by itself.
    Opening,
    /// Could not be opened.
    Failed,
    /// Being created.
    Creating,
    /// Being deleted.
    Deleting,
    /// Another storage router owns it.
    Elsewhere,
    /// Its owner is away, and nobody else is known to have what it acknowledged.
    Orphaned,
}

/// The integers that are the whole durability state of a vDisk: positions in its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Frontiers {
    /// Last position acknowledged, or that may be.
    pub accepted: u64,
    /// Last position that survives a power cut of the router's machine.
    pub synced: u64,
    /// Last position in a SCO, uploaded or not.
    pub sealed: u64,
    /// Last position that the backend alone gives back.
    pub committed: u64,
    /// Last position covered by a TLog that a Manifest names.
    pub trimmed: u64,
}

/// How a vDisk's acknowledged tail is replicated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Dtl {
    /// `none`: only in its owner's write buffer; `async`: what was flushed is at peers; `sync`: every acknowledged write is.
    pub mode: String,
    /// `in_sync`, `catching_up`, or `degraded`: nobody but the owner has it for sure.
    #[serde(default)]
    pub status: String,
    /// The storage routers that keep it.
    #[serde(default)]
    pub peers: Vec<String>,
    /// How many there should be.
    #[serde(default)]
    pub wanted_peers: u8,
    /// What was given up when it was opened by force.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub losses: Vec<DtlLoss>,
}

/// What was given up when a vDisk was opened by force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DtlLoss {
    /// The epoch that had accepted it.
    pub epoch: u64,
    /// Everything above this position of the log,
    pub after_lsn: u64,
    /// up to this one, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub up_to_lsn: Option<u64>,
}

/// Body of `POST /api/v1/vdisks/{vpool}/{name}/move`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VdiskMove {
    /// Name of the storage router that is to have it.
    pub to: String,
}

/// How a vDisk's tail is to be replicated.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DtlPatch {
    /// `none`, `async` or `sync`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// How many routers keep it: 1 or 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peers: Option<u8>,
    /// Of how many of them an acknowledgement needs the confirmation: `all` or `one`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub needed: Option<String>,
    /// What is done when none is left: `degrade` goes on and says so, `block` lets clients wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_failure: Option<String>,
}

/// A storage router of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Router {
    /// Its name.
    pub name: String,
    /// It is the one that answered.
    pub this: bool,
    /// It has a lease of the registry.
    pub there: bool,
    /// It gives its vDisks away and takes none.
    pub draining: bool,
    /// vDisks that it owns.
    pub vdisks: u64,
    /// Where it is reached by the edge protocol.
    #[serde(default)]
    pub edge: Vec<String>,
    /// Where its DTL service is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtl: Option<String>,
    /// The URL of its API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api: Option<String>,
    /// What it may fail with.
    #[serde(default)]
    pub domains: Vec<String>,
}

/// Reply to `GET /api/v1/routers`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RouterList {
    /// In order of name.
    pub items: Vec<Router>,
}

/// Reply to `GET /api/v1/vdisks`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VdiskList {
    /// The vDisks, in order of vPool and name.
    pub items: Vec<Vdisk>,
}

/// Reply to `GET /api/v1/health`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// The worst level of all items.
    pub level: HealthLevel,
    /// What is not well, and notices; empty when all is well.
    pub items: Vec<HealthItem>,
}

/// One thing that is not well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HealthItem {
    /// What: `vpool/NAME`, `vdisk/VPOOL/NAME`, `journal`.
    pub subject: String,
    /// How bad.
    pub level: HealthLevel,
    /// Why, for people.
    pub reason: String,
}

/// How bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum HealthLevel {
    /// All is well.
    Ok,
    /// Serves; somebody should look.
    Warning,
    /// Something does not serve.
    Error,
}

/// Reply to `/readyz`, also when the status is 503.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Ready {
    /// Whether everything that can open has opened.
    pub ready: bool,
    /// What is still awaited.
    pub reasons: Vec<String>,
}

/// Body and reply of `/api/v1/log-level`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LogLevel {
    /// Directives, as in `info,volumedriver=debug`.
    pub filter: String,
}

/// Reply to `GET /api/v1/version`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Version {
    /// `storagerouter`.
    pub product: String,
    /// Version of the product.
    pub version: String,
    /// Revision of the source, when known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Newest version of the on-disk formats that it writes.
    pub format: u32,
    /// Identity of this storage router.
    pub node: String,
}

/// An error, as RFC 9457 has it (`application/problem+json`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// A URI of the kind of problem: `urn:storagerouter:error:CODE`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind of problem, for people.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// The stable name of the kind: `not_found`, `conflict`, `invalid`, ...
    pub code: String,
    /// What went wrong this time, with the culprit's name.
    pub detail: String,
    /// What to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// Query of `GET /api/v1/vdisks`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct VdiskFilter {
    /// Only the vDisks of this vPool (name or id).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vpool: Option<String>,
}

/// Query of `DELETE /api/v1/vpools/{name}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct VpoolDelete {
    /// Forget the vPool and its vDisks here, and leave the data on the object store.
    #[serde(default)]
    pub detach: bool,
    /// With `detach`: also while clients are connected.
    #[serde(default)]
    pub force: bool,
}

/// Query of `DELETE /api/v1/vdisks/{vpool}/{name}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct VdiskDelete {
    /// Also while clients are connected: their requests fail from then on.
    #[serde(default)]
    pub force: bool,
}

/// Query of `POST /api/v1/vdisks/{vpool}/{name}/drain`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Drain {
    /// Seconds to wait for the end; default 60, 0 starts it and does not wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait: Option<u64>,
}
