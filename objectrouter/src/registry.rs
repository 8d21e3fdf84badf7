//! The records of vPools and vDisks in the registry, and their keys.
//!
//! JSON with a version in `v`. Every change is one transaction that asserts what it was based on.

#[cfg(test)]
mod tests;

use crate::qos::Qos;
use bytes::Bytes;
use common::error::Context;
use common::kv::{KvAssert, KvOp, KvPair};
use common::{Clock, Epoch, Error, ErrorKind, Kv, Lsn, Name, Result, VolumeId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::sync::Arc;
use volumedriver::Parent;

/// The version of the records that this code writes, and the newest that it reads.
const VERSION: u32 = 1;
const NODE_KEY: &str = "node";

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
    /// What the probe of the object store warned of when it was attached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
}

/// How the acknowledged tail of a vDisk is replicated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DtlMode {
    /// Not at all: it is in the owner's write buffer alone.
    None,
}

impl DtlMode {
    /// Its name in the registry and the API.
    pub fn as_str(self) -> &'static str {
        match self {
            DtlMode::None => "none",
        }
    }
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
    /// The newest epoch given out; each open takes a new one.
    pub epoch: Epoch,
    /// The node that owns it.
    pub owner: String,
    /// How its acknowledged tail is replicated.
    pub dtl: DtlMode,
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

trait Versioned: Serialize + DeserializeOwned {
    fn version(&self) -> u32;
}

impl Versioned for VpoolRecord {
    fn version(&self) -> u32 {
        self.v
    }
}
impl Versioned for VdiskRecord {
    fn version(&self) -> u32 {
        self.v
    }
}
impl Versioned for DeletedRecord {
    fn version(&self) -> u32 {
        self.v
    }
}

impl VpoolRecord {
    pub(crate) fn new(id: u128, backend: Value, cluster_size: u32, warning: Option<String>) -> Self {
        let id = VolumeId(id);
        Self { v: VERSION, id, backend, cluster_size, state: VpoolLife::Active, warning }
    }
}

impl VdiskRecord {
    pub(crate) fn new(id: VolumeId, size: u64, sco_size: u32, epoch: Epoch, owner: &str) -> Self {
        Self {
            v: VERSION,
            id,
            size,
            sco_size,
            epoch,
            owner: owner.to_string(),
            dtl: DtlMode::None,
            read_only: false,
            state: VdiskLife::Active,
            parent: None,
            leaving: Vec::new(),
            qos: None,
            cache_quota: None,
        }
    }
}

fn encode<T: Versioned>(record: &T) -> Result<Bytes> {
    let json = serde_json::to_vec(record).map_err(|e| Error::internal(format!("registry record: {e}")))?;
    Ok(json.into())
}

fn decode<T: Versioned>(pair: &KvPair) -> Result<T> {
    #[derive(Deserialize)]
    struct Head {
        v: u32,
    }
    let key = pair.key.escape_debug();
    let bad = |e: serde_json::Error| Error::corrupt(format!("registry record '{key}': {e}"));
    let head: Head = serde_json::from_slice(&pair.value).map_err(bad)?;
    if head.v != VERSION {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "registry record '{key}' has version {}, this storage router reads {VERSION}: \
                 use the version of storagerouter that wrote it, or a newer one",
                head.v
            ),
        ));
    }
    let record: T = serde_json::from_slice(&pair.value).map_err(bad)?;
    debug_assert_eq!(record.version(), VERSION);
    Ok(record)
}

/// A record with the revision that wrote it: what a change is based on.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Stored<T> {
    pub(crate) record: T,
    pub(crate) revision: u64,
}

/// Everything that the registry says.
pub(crate) struct Contents {
    pub(crate) vpools: Vec<(Name, Stored<VpoolRecord>)>,
    pub(crate) vdisks: Vec<(Name, Name, Stored<VdiskRecord>)>,
}

/// The registry, in the words of this crate.
pub(crate) struct Records {
    kv: Arc<dyn Kv>,
}

fn vpool_key(pool: &Name) -> String {
    format!("vpool/{pool}")
}

fn vdisk_key(pool: &Name, name: &Name) -> String {
    format!("vdisk/{pool}/{name}")
}

fn deleted_key(pool: &Name, id: VolumeId) -> String {
    format!("deleted/{pool}/{id}")
}

fn bad_key(key: &str) -> Error {
    Error::corrupt(format!("registry key '{}' is not one of ours", key.escape_debug()))
}

impl Records {
    pub(crate) fn new(kv: Arc<dyn Kv>) -> Self {
        Self { kv }
    }

    /// The identity of this node, drawn once.
    pub(crate) async fn node(&self, clock: &dyn Clock) -> Result<String> {
        if let Some(pair) = self.kv.get(NODE_KEY).await? {
            let text = std::str::from_utf8(&pair.value).map_err(|_| bad_key(NODE_KEY))?;
            return Ok(text.parse::<VolumeId>().context("registry key 'node'")?.to_string());
        }
        let node = VolumeId(clock.random_u128()).to_string();
        let put = KvOp::Put(NODE_KEY.into(), node.clone().into());
        self.kv.txn(vec![KvAssert::Absent(NODE_KEY.into())], vec![put]).await?;
        Ok(node)
    }

    /// Reads all records; one that can't be read is an error with its key.
    pub(crate) async fn load(&self) -> Result<Contents> {
        let mut contents = Contents { vpools: Vec::new(), vdisks: Vec::new() };
        for pair in self.kv.scan("vpool/").await? {
            let name = pair.key.strip_prefix("vpool/").unwrap_or_default();
            let name: Name = name.parse().map_err(|_| bad_key(&pair.key))?;
            contents.vpools.push((name, Stored { record: decode(&pair)?, revision: pair.revision }));
        }
        for pair in self.kv.scan("vdisk/").await? {
            let names = pair.key.strip_prefix("vdisk/").and_then(|rest| rest.split_once('/'));
            let Some((pool, name)) = names else { return Err(bad_key(&pair.key)) };
            let pool: Name = pool.parse().map_err(|_| bad_key(&pair.key))?;
            let name: Name = name.parse().map_err(|_| bad_key(&pair.key))?;
            if !contents.vpools.iter().any(|(have, _)| *have == pool) {
                return Err(Error::corrupt(format!("registry key '{}': there is no such vPool", pair.key)));
            }
            contents.vdisks.push((pool, name, Stored { record: decode(&pair)?, revision: pair.revision }));
        }
        Ok(contents)
    }

    /// The record of a vDisk as it is now.
    pub(crate) async fn vdisk(&self, pool: &Name, name: &Name) -> Result<Option<Stored<VdiskRecord>>> {
        let Some(pair) = self.kv.get(&vdisk_key(pool, name)).await? else { return Ok(None) };
        Ok(Some(Stored { record: decode(&pair)?, revision: pair.revision }))
    }

    /// Adds a vPool and the vDisks that lie on it.
    pub(crate) async fn add_vpool(
        &self,
        pool: &Name,
        record: &VpoolRecord,
        vdisks: &[(Name, VdiskRecord)],
    ) -> Result<u64> {
        let mut asserts = vec![KvAssert::Absent(vpool_key(pool))];
        let mut ops = vec![KvOp::Put(vpool_key(pool), encode(record)?)];
        for (name, record) in vdisks {
            asserts.push(KvAssert::Absent(vdisk_key(pool, name)));
            ops.push(KvOp::Put(vdisk_key(pool, name), encode(record)?));
        }
        self.kv.txn(asserts, ops).await
    }

    /// Changes a vPool.
    pub(crate) async fn put_vpool(&self, pool: &Name, record: &VpoolRecord, based_on: u64) -> Result<u64> {
        let asserts = vec![KvAssert::Revision(vpool_key(pool), based_on)];
        self.kv.txn(asserts, vec![KvOp::Put(vpool_key(pool), encode(record)?)]).await
    }

    /// Forgets a vPool, its vDisks and its deleted vDisks.
    pub(crate) async fn remove_vpool(
        &self,
        pool: &Name,
        based_on: u64,
        vdisks: &[(Name, u64)],
    ) -> Result<()> {
        let mut asserts = vec![KvAssert::Revision(vpool_key(pool), based_on)];
        let mut ops = vec![KvOp::Delete(vpool_key(pool))];
        for (name, revision) in vdisks {
            asserts.push(KvAssert::Revision(vdisk_key(pool, name), *revision));
            ops.push(KvOp::Delete(vdisk_key(pool, name)));
        }
        for pair in self.kv.scan(&format!("deleted/{pool}/")).await? {
            ops.push(KvOp::Delete(pair.key));
        }
        self.kv.txn(asserts, ops).await?;
        Ok(())
    }

    /// Adds a vDisk to the vPool as it was at `vpool_revision`, if another vDisk (its parent) still has this
    /// revision.
    pub(crate) async fn add_vdisk(
        &self,
        pool: &Name,
        vpool_revision: u64,
        name: &Name,
        record: &VdiskRecord,
        unchanged: Option<(&Name, u64)>,
    ) -> Result<u64> {
        let key = vdisk_key(pool, name);
        let mut asserts =
            vec![KvAssert::Revision(vpool_key(pool), vpool_revision), KvAssert::Absent(key.clone())];
        asserts
            .extend(unchanged.map(|(other, revision)| KvAssert::Revision(vdisk_key(pool, other), revision)));
        self.kv.txn(asserts, vec![KvOp::Put(key, encode(record)?)]).await
    }

    /// Changes vDisks of one vPool, all or none, each based on its revision.
    pub(crate) async fn put_vdisks(&self, pool: &Name, changes: &[(Name, VdiskRecord, u64)]) -> Result<u64> {
        let mut asserts = Vec::with_capacity(changes.len());
        let mut ops = Vec::with_capacity(changes.len());
        for (name, record, based_on) in changes {
            let key = vdisk_key(pool, name);
            asserts.push(KvAssert::Revision(key.clone(), *based_on));
            ops.push(KvOp::Put(key, encode(record)?));
        }
        self.kv.txn(asserts, ops).await
    }

    /// Turns the record of a vDisk into that of a deleted one.
    pub(crate) async fn bury_vdisk(
        &self,
        pool: &Name,
        name: &Name,
        stored: &Stored<VdiskRecord>,
        deleted_at: u64,
    ) -> Result<()> {
        let key = vdisk_key(pool, name);
        let deleted = DeletedRecord { v: VERSION, name: name.clone(), deleted_at };
        let asserts = vec![KvAssert::Revision(key.clone(), stored.revision)];
        let bury = KvOp::Put(deleted_key(pool, stored.record.id), encode(&deleted)?);
        self.kv.txn(asserts, vec![KvOp::Delete(key), bury]).await?;
        Ok(())
    }

    /// The deleted vDisks of a vPool, with their revisions.
    pub(crate) async fn deleted(&self, pool: &Name) -> Result<Vec<(VolumeId, DeletedRecord, u64)>> {
        let prefix = format!("deleted/{pool}/");
        let mut deleted = Vec::new();
        for pair in self.kv.scan(&prefix).await? {
            let id = pair.key.strip_prefix(&prefix).unwrap_or_default();
            let id: VolumeId = id.parse().map_err(|_| bad_key(&pair.key))?;
            deleted.push((id, decode(&pair)?, pair.revision));
        }
        Ok(deleted)
    }

    /// Forgets a deleted vDisk.
    pub(crate) async fn forget_deleted(&self, pool: &Name, id: VolumeId, based_on: u64) -> Result<()> {
        let key = deleted_key(pool, id);
        self.kv.txn(vec![KvAssert::Revision(key.clone(), based_on)], vec![KvOp::Delete(key)]).await?;
        Ok(())
    }
}

/// Input of a fuzzer: a record of each kind. What is read is written so that the same is read again.
pub(crate) fn fuzz(data: &[u8]) {
    fn check<T: Versioned + PartialEq + std::fmt::Debug>(value: &[u8]) {
        let pair = |value| KvPair { key: "fuzz".into(), value, revision: 1 };
        if let Ok(record) = decode::<T>(&pair(Bytes::copy_from_slice(value))) {
            let again = encode(&record).and_then(|value| decode::<T>(&pair(value)));
            assert_eq!(again.ok(), Some(record));
        }
    }
    check::<VpoolRecord>(data);
    check::<VdiskRecord>(data);
    check::<DeletedRecord>(data);
}
