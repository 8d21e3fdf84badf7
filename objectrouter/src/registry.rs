//! What the registry holds, and its transactions: every change asserts what it was based on.
//!
//! | room | what |
//! |---|---|
//! | `records` | vPools and vDisks |
//! | `ownership` | storage routers, and who owns which volume |
//! | `upgrade` | what a registry of one node had before there were many |

pub(crate) mod ownership;
pub(crate) mod records;
#[cfg(test)]
mod tests;
mod upgrade;

pub use ownership::{
    Addresses, AttachedRecord, Incarnation, NodeRecord, RouterRecord, VolumeRecord, WriteBuffer,
};
pub use records::{DeletedRecord, ParentRecord, SnapshotId, VdiskLife, VdiskRecord, VpoolLife, VpoolRecord};
pub(crate) use records::{Stored, fuzz};
pub(crate) use upgrade::upgrade;

use common::kv::{KvAssert, KvOp, KvPair};
use common::{Error, Kv, Name, Result, VolumeId, mutant};
use records::{Record, encode};
use std::collections::HashMap;
use std::sync::Arc;

/// A vDisk as the registry has it.
pub(crate) struct Registered {
    pub(crate) vpool: Name,
    pub(crate) vdisk: Name,
    pub(crate) record: Stored<VdiskRecord>,
    pub(crate) volume: Stored<VolumeRecord>,
}

/// Everything that the registry says of vPools and vDisks.
pub(crate) struct Contents {
    pub(crate) vpools: Vec<(Name, Stored<VpoolRecord>)>,
    pub(crate) vdisks: Vec<Registered>,
}

/// A new vDisk: its name, and its two records.
pub(crate) type NewVdisk = (Name, VdiskRecord, VolumeRecord);

/// The registry, in the words of this crate.
pub(crate) struct Records<K: ?Sized> {
    kv: Arc<K>,
}

pub(crate) const VPOOLS: &str = "vpool/";
pub(crate) const VDISKS: &str = "vdisk/";
pub(crate) const VOLUMES: &str = "volume/";
pub(crate) const NODES: &str = "node/";
pub(crate) const ROUTERS: &str = "router/";

pub(crate) fn vpool_key(pool: &Name) -> String {
    format!("{VPOOLS}{pool}")
}

pub(crate) fn vdisk_key(pool: &Name, name: &Name) -> String {
    format!("{VDISKS}{pool}/{name}")
}

fn volume_key(id: VolumeId) -> String {
    format!("{VOLUMES}{id}")
}

fn deleted_key(pool: &Name, id: VolumeId) -> String {
    format!("deleted/{pool}/{id}")
}

pub(crate) fn node_key(name: &Name) -> String {
    format!("{NODES}{name}")
}

pub(crate) fn router_key(name: &Name) -> String {
    format!("{ROUTERS}{name}")
}

fn bad_key(key: &str) -> Error {
    Error::corrupt(format!("registry key '{}' is not one of ours", key.escape_debug()))
}

/// The name behind a prefix.
pub(crate) fn name_of(key: &str, prefix: &str) -> Result<Name> {
    key.strip_prefix(prefix).unwrap_or_default().parse().map_err(|_| bad_key(key))
}

/// The vPool and the vDisk that a key names.
pub(crate) fn vdisk_of(key: &str) -> Result<(Name, Name)> {
    let names = key.strip_prefix(VDISKS).and_then(|rest| rest.split_once('/'));
    let Some((pool, name)) = names else { return Err(bad_key(key)) };
    Ok((pool.parse().map_err(|_| bad_key(key))?, name.parse().map_err(|_| bad_key(key))?))
}

/// The volume that a key names.
pub(crate) fn volume_of(key: &str) -> Result<VolumeId> {
    key.strip_prefix(VOLUMES).unwrap_or_default().parse().map_err(|_| bad_key(key))
}

impl<K: Kv + ?Sized> Records<K> {
    pub(crate) fn new(kv: Arc<K>) -> Self {
        Self { kv }
    }

    /// The registry itself.
    pub(crate) fn kv(&self) -> &Arc<K> {
        &self.kv
    }

    /// Reads all records of vPools and vDisks, as they are at one moment; one that can't be read is an error with its key.
    pub(crate) async fn load(&self) -> Result<Contents> {
        let mut contents = Contents { vpools: Vec::new(), vdisks: Vec::new() };
        let all = self.kv.scan("").await?;
        let of = |prefix: &'static str| all.iter().filter(move |pair| pair.key.starts_with(prefix));
        for pair in of(VPOOLS) {
            contents.vpools.push((name_of(&pair.key, VPOOLS)?, Stored::read(pair)?));
        }
        let mut volumes: HashMap<VolumeId, Stored<VolumeRecord>> = HashMap::new();
        for pair in of(VOLUMES) {
            volumes.insert(volume_of(&pair.key)?, Stored::read(pair)?);
        }
        for pair in of(VDISKS) {
            let (vpool, vdisk) = vdisk_of(&pair.key)?;
            if !contents.vpools.iter().any(|(have, _)| *have == vpool) {
                return Err(Error::corrupt(format!("registry key '{}': there is no such vPool", pair.key)));
            }
            let record: Stored<VdiskRecord> = Stored::read(pair)?;
            let Some(volume) = volumes.remove(&record.record.id) else {
                let key = volume_key(record.record.id);
                let why = format!("registry key '{key}' is missing: who owns '{}'?", pair.key);
                return Err(Error::corrupt(why));
            };
            contents.vdisks.push(Registered { vpool, vdisk, record, volume });
        }
        Ok(contents)
    }

    async fn read<T: Record>(&self, key: &str) -> Result<Option<Stored<T>>> {
        self.kv.get(key).await?.as_ref().map(Stored::read).transpose()
    }

    /// The record of a vPool as it is now.
    pub(crate) async fn vpool(&self, pool: &Name) -> Result<Option<Stored<VpoolRecord>>> {
        self.read(&vpool_key(pool)).await
    }

    /// The record of a vDisk as it is now.
    pub(crate) async fn vdisk(&self, pool: &Name, name: &Name) -> Result<Option<Stored<VdiskRecord>>> {
        self.read(&vdisk_key(pool, name)).await
    }

    /// The record of a volume as it is now.
    pub(crate) async fn volume(&self, id: VolumeId) -> Result<Option<Stored<VolumeRecord>>> {
        self.read(&volume_key(id)).await
    }

    /// The record of a storage router as it is now.
    pub(crate) async fn router(&self, name: &Name) -> Result<Option<Stored<RouterRecord>>> {
        self.read(&router_key(name)).await
    }

    /// All storage routers that belong here.
    pub(crate) async fn routers(&self) -> Result<Vec<(Name, RouterRecord)>> {
        let pairs = self.kv.scan(ROUTERS).await?;
        let read = |pair: &KvPair| Ok((name_of(&pair.key, ROUTERS)?, Stored::read(pair)?.record));
        pairs.iter().map(read).collect()
    }

    /// Adds a vPool and the vDisks that lie on it.
    pub(crate) async fn add_vpool(
        &self,
        pool: &Name,
        record: &VpoolRecord,
        vdisks: &[NewVdisk],
    ) -> Result<u64> {
        let mut asserts = vec![KvAssert::Absent(vpool_key(pool))];
        let mut ops = vec![KvOp::Put(vpool_key(pool), encode(record)?)];
        for (name, record, volume) in vdisks {
            asserts.push(KvAssert::Absent(vdisk_key(pool, name)));
            ops.push(KvOp::Put(volume_key(record.id), encode(volume)?));
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
        vdisks: &[(Name, VolumeId, u64)],
    ) -> Result<()> {
        let mut asserts = vec![KvAssert::Revision(vpool_key(pool), based_on)];
        // Who hears of it closes the vDisks first.
        let mut ops = Vec::new();
        for (name, id, revision) in vdisks {
            asserts.push(KvAssert::Revision(vdisk_key(pool, name), *revision));
            ops.push(KvOp::Delete(vdisk_key(pool, name)));
            ops.push(KvOp::Delete(volume_key(*id)));
        }
        for pair in self.kv.scan(&format!("deleted/{pool}/")).await? {
            ops.push(KvOp::Delete(pair.key));
        }
        ops.push(KvOp::Delete(vpool_key(pool)));
        self.kv.txn(asserts, ops).await?;
        Ok(())
    }

    /// Adds a vDisk to the vPool as it was at `vpool_revision`, if another vDisk (its parent) still has this
    /// revision.
    pub(crate) async fn add_vdisk(
        &self,
        pool: &Name,
        vpool_revision: u64,
        (name, record, volume): &NewVdisk,
        unchanged: Option<(&Name, u64)>,
    ) -> Result<u64> {
        let key = vdisk_key(pool, name);
        let mut asserts =
            vec![KvAssert::Revision(vpool_key(pool), vpool_revision), KvAssert::Absent(key.clone())];
        asserts
            .extend(unchanged.map(|(other, revision)| KvAssert::Revision(vdisk_key(pool, other), revision)));
        // Who hears of the vDisk finds its volume.
        let ops = vec![KvOp::Put(volume_key(record.id), encode(volume)?), KvOp::Put(key, encode(record)?)];
        self.kv.txn(asserts, ops).await
    }

    /// Changes a vDisk.
    pub(crate) async fn put_vdisk(
        &self,
        pool: &Name,
        name: &Name,
        record: &VdiskRecord,
        based_on: u64,
    ) -> Result<u64> {
        let key = vdisk_key(pool, name);
        let asserts = vec![KvAssert::Revision(key.clone(), based_on)];
        self.kv.txn(asserts, vec![KvOp::Put(key, encode(record)?)]).await
    }

    /// Changes volumes, all or none, each based on its revision, if everything else that is asserted holds.
    pub(crate) async fn put_volumes(
        &self,
        changes: &[(VolumeId, VolumeRecord, u64)],
        mut asserts: Vec<KvAssert>,
    ) -> Result<u64> {
        let mut ops = Vec::with_capacity(changes.len());
        for (id, record, based_on) in changes {
            if !mutant::is_on("record-changed-blindly") {
                asserts.push(KvAssert::Revision(volume_key(*id), *based_on));
            }
            ops.push(KvOp::Put(volume_key(*id), encode(record)?));
        }
        self.kv.txn(asserts, ops).await
    }

    /// Turns the records of a vDisk into that of a deleted one.
    pub(crate) async fn bury_vdisk(
        &self,
        pool: &Name,
        name: &Name,
        stored: &Stored<VdiskRecord>,
        deleted_at: u64,
    ) -> Result<()> {
        let (key, id) = (vdisk_key(pool, name), stored.record.id);
        let deleted = DeletedRecord::new(name.clone(), deleted_at);
        let asserts = vec![KvAssert::Revision(key.clone(), stored.revision)];
        let bury = KvOp::Put(deleted_key(pool, id), encode(&deleted)?);
        self.kv.txn(asserts, vec![KvOp::Delete(key), KvOp::Delete(volume_key(id)), bury]).await?;
        Ok(())
    }

    /// The deleted vDisks of a vPool, with their revisions.
    pub(crate) async fn deleted(&self, pool: &Name) -> Result<Vec<(VolumeId, DeletedRecord, u64)>> {
        let prefix = format!("deleted/{pool}/");
        let mut deleted = Vec::new();
        for pair in self.kv.scan(&prefix).await? {
            let id = pair.key.strip_prefix(&prefix).unwrap_or_default();
            let id: VolumeId = id.parse().map_err(|_| bad_key(&pair.key))?;
            let Stored { record, revision } = Stored::read(&pair)?;
            deleted.push((id, record, revision));
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

/// A change that was heard of, as a pair.
pub(crate) fn pair(key: String, value: bytes::Bytes, revision: u64) -> KvPair {
    KvPair { key, value, revision }
}
