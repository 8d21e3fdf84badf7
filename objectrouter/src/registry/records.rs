//! What the registry says of vPools, vDisks and deleted ones: JSON with a version in `v`.

use crate::qos::Qos;
use bytes::Bytes;
use common::kv::KvPair;
use common::{Error, ErrorKind, Lsn, Name, Result, VolumeId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use volumedriver::Parent;

/// Whether a vPool is here to stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VpoolLife {
    /// It is.
    Active,
    /// Its objects are being removed.
    Deleting,
}

/// `vpool/{name}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VpoolRecord {
    v: u32,
    /// Identity, as 32 hexadecimal digits: the same as in the `vpool` object.
    pub id: VolumeId,
    /// The backend specification, as it was given.
    pub backend: Value,
    /// Bytes in a cluster.
    pub cluster_size: u32,
    /// Whether it is here to stay.
    pub state: VpoolLife,
    /// The router that removes its objects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deleted_by: Option<Name>,
    /// What the probe of the object store warned of when it was attached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
}

/// Identity of a snapshot: 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "VolumeId", into = "VolumeId")]
pub struct SnapshotId(pub u128);

// The same digits as any other identity.
impl From<VolumeId> for SnapshotId {
    fn from(id: VolumeId) -> Self {
        Self(id.0)
    }
}

impl From<SnapshotId> for VolumeId {
    fn from(id: SnapshotId) -> Self {
        Self(id.0)
    }
}

/// The snapshot that a vDisk began as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParentRecord {
    /// The volume whose snapshot it is.
    pub volume: VolumeId,
    /// Which.
    pub snapshot: SnapshotId,
    /// Its place in the parent's log.
    pub lsn: Lsn,
}

impl From<Parent> for ParentRecord {
    fn from(parent: Parent) -> Self {
        Self { volume: parent.volume, snapshot: SnapshotId(parent.snapshot), lsn: parent.lsn }
    }
}

impl From<ParentRecord> for Parent {
    fn from(record: ParentRecord) -> Self {
        Self { volume: record.volume, snapshot: record.snapshot.0, lsn: record.lsn }
    }
}

/// Where a vDisk is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VdiskLife {
    /// Its first Manifest may be missing.
    Creating,
    /// It exists.
    Active,
    /// Its objects are being removed.
    Deleting,
}

/// `vdisk/{pool}/{name}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VdiskRecord {
    v: u32,
    /// Identity of its volume.
    pub id: VolumeId,
    /// Bytes, as far as this record was told; the open volume knows better.
    pub size: u64,
    /// Bytes of clusters in one SCO.
    pub sco_size: u32,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Where it is in its life.
    pub state: VdiskLife,
    /// What it is a clone of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<ParentRecord>,
    /// Snapshots that are being deleted: nobody clones them any more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub leaving: Vec<SnapshotId>,
    /// What its clients may do at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qos: Option<Qos>,
    /// Bytes that the read cache may hold of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_quota: Option<u64>,
    /// Whether it moves to where it is used; where nothing is said, as the router's configuration has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_migrate: Option<bool>,
}

/// `deleted/{pool}/{volume id}`: a vDisk whose last Manifests are kept for a grace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeletedRecord {
    v: u32,
    /// The name that it had.
    pub name: Name,
    /// When its objects were gone, in seconds since the Unix epoch.
    pub deleted_at: u64,
}

impl DeletedRecord {
    pub(crate) fn new(name: Name, deleted_at: u64) -> Self {
        Self { v: Self::VERSION, name, deleted_at }
    }
}

impl VpoolRecord {
    pub(crate) fn new(id: u128, backend: Value, cluster_size: u32, warning: Option<String>) -> Self {
        let id = VolumeId(id);
        Self {
            v: Self::VERSION,
            id,
            backend,
            cluster_size,
            state: VpoolLife::Active,
            deleted_by: None,
            warning,
        }
    }
}

impl VdiskRecord {
    pub(crate) fn new(id: VolumeId, size: u64, sco_size: u32) -> Self {
        Self {
            v: Self::VERSION,
            id,
            size,
            sco_size,
            read_only: false,
            state: VdiskLife::Active,
            parent: None,
            leaving: Vec::new(),
            qos: None,
            cache_quota: None,
            auto_migrate: None,
        }
    }
}

/// A record of the registry.
pub(crate) trait Record: Serialize + DeserializeOwned {
    /// The version that this code writes, and the newest that it reads.
    const VERSION: u32;

    /// Makes the record of version `v` one of [`Record::VERSION`]; `false` where that can't be read any more.
    fn upgrade(_v: u32, _old: &mut Map<String, Value>) -> bool {
        false
    }
}

impl Record for VpoolRecord {
    const VERSION: u32 = 1;
}

impl Record for VdiskRecord {
    const VERSION: u32 = 2;

    /// Version 1 said who owns it; now the record of its volume does.
    fn upgrade(v: u32, old: &mut Map<String, Value>) -> bool {
        for moved in ["epoch", "owner", "dtl"] {
            old.remove(moved);
        }
        v == 1
    }
}

impl Record for DeletedRecord {
    const VERSION: u32 = 1;
}

/// The record as the registry keeps it.
pub(crate) fn encode<T: Record>(record: &T) -> Result<Bytes> {
    let json = serde_json::to_vec(record).map_err(|e| Error::internal(format!("registry record: {e}")))?;
    Ok(json.into())
}

/// The record of a pair; an error names its key.
pub(crate) fn decode<T: Record>(key: &str, value: &[u8]) -> Result<T> {
    let key = key.escape_debug();
    let bad = |e: serde_json::Error| Error::corrupt(format!("registry record '{key}': {e}"));
    let mut record: Map<String, Value> = serde_json::from_slice(value).map_err(bad)?;
    let version = record.get("v").and_then(Value::as_u64).and_then(|v| u32::try_from(v).ok());
    match version {
        Some(v) if v == T::VERSION => {}
        Some(v) if T::upgrade(v, &mut record) => {
            record.insert("v".into(), T::VERSION.into());
        }
        Some(v) => {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "registry record '{key}' has version {v}, this storage router reads {}: \
                     use the version of storagerouter that wrote it, or a newer one",
                    T::VERSION
                ),
            ));
        }
        None => return Err(Error::corrupt(format!("registry record '{key}' has no version"))),
    }
    serde_json::from_value(Value::Object(record)).map_err(bad)
}

/// A record with the revision that wrote it: what a change is based on.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Stored<T> {
    pub(crate) record: T,
    pub(crate) revision: u64,
}

impl<T: Record> Stored<T> {
    pub(crate) fn read(pair: &KvPair) -> Result<Self> {
        Ok(Self { record: decode(&pair.key, &pair.value)?, revision: pair.revision })
    }
}

/// Input of a fuzzer: a record of each kind. What is read is written so that the same is read again.
pub(crate) fn fuzz(data: &[u8]) {
    fn check<T: Record + PartialEq + std::fmt::Debug>(value: &[u8]) {
        if let Ok(record) = decode::<T>("fuzz", value) {
            let again = encode(&record).and_then(|value| decode::<T>("fuzz", &value));
            assert_eq!(again.ok(), Some(record));
        }
    }
    check::<VpoolRecord>(data);
    check::<VdiskRecord>(data);
    check::<DeletedRecord>(data);
    check::<super::ownership::VolumeRecord>(data);
    check::<super::ownership::NodeRecord>(data);
    check::<super::ownership::RouterRecord>(data);
}
