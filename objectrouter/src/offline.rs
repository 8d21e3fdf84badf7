//! What the registry of a stopped router says, for tools that look at its object stores. Reads only.

use crate::registry::Records;
use common::{Error, Kv, Name, Result, VolumeId};
use serde_json::Value;
use std::sync::Arc;

/// The backend specification of a vPool.
///
/// # Errors
/// `NotFound` when the registry has no such vPool, and those of reading it.
pub async fn vpool_backend(kv: Arc<dyn Kv>, vpool: &Name) -> Result<Value> {
    let contents = Records::new(kv).load().await?;
    let found = contents.vpools.into_iter().find(|(name, _)| name == vpool);
    found
        .map(|(_, stored)| stored.record.backend)
        .ok_or_else(|| Error::not_found(format!("there is no vPool '{vpool}' in the registry")))
}

/// The names of all vPools.
///
/// # Errors
/// Those of reading the registry.
pub async fn vpools(kv: Arc<dyn Kv>) -> Result<Vec<Name>> {
    Ok(Records::new(kv).load().await?.vpools.into_iter().map(|(name, _)| name).collect())
}

/// The volume of a vDisk.
///
/// # Errors
/// `NotFound` when the registry has no such vDisk, and those of reading it.
pub async fn vdisk_volume(kv: Arc<dyn Kv>, vpool: &Name, vdisk: &Name) -> Result<VolumeId> {
    let found = Records::new(kv).vdisk(vpool, vdisk).await?;
    found
        .map(|stored| stored.record.id)
        .ok_or_else(|| Error::not_found(format!("there is no vDisk '{vpool}/{vdisk}' in the registry")))
}
