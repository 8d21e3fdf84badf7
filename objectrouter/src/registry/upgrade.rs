//! A registry of one node, from before there were many: its vDisks said who owns them, and all were of that node.

use super::ownership::VolumeRecord;
use super::records::{Record, VdiskRecord, decode, encode};
use super::{VDISKS, vdisk_of, volume_key};
use crate::cluster::Membership;
use common::kv::{KvAssert, KvOp};
use common::{Epoch, Error, Kv, Result};
use dtl::registration::Config;
use serde::Deserialize;

/// Where the node's identity was.
const NODE_KEY: &str = "node";
/// vDisks in one transaction.
const TOGETHER: usize = 500;

#[derive(Deserialize)]
struct Owned {
    v: u32,
    #[serde(default)]
    epoch: Epoch,
}

/// Gives every vDisk of version 1 to this router, if it began the cluster: it wrote them, and what they accepted lies in
/// its write buffer. Can be done again after a crash.
///
/// # Errors
/// `Unavailable` at any other router, until that one has done it.
pub(crate) async fn upgrade(kv: &(impl Kv + ?Sized), me: &Membership) -> Result<()> {
    let mut old = Vec::new();
    for pair in kv.scan(VDISKS).await? {
        let bad = |e| Error::corrupt(format!("registry record '{}': {e}", pair.key.escape_debug()));
        let Owned { v, epoch } = serde_json::from_slice(&pair.value).map_err(bad)?;
        if v < VdiskRecord::VERSION {
            old.push((pair, epoch));
        }
    }
    let node = kv.get(NODE_KEY).await?;
    if old.is_empty() && node.is_none() {
        return Ok(());
    }
    if !me.founder {
        return Err(Error::unavailable(
            "the vDisks of the router that began this cluster are not known to be its own yet: start that one first, with \
             this version",
        ));
    }
    for some in old.chunks(TOGETHER) {
        let (mut asserts, mut ops) = (Vec::new(), Vec::new());
        for (pair, epoch) in some {
            let (vpool, vdisk) = vdisk_of(&pair.key)?;
            let record: VdiskRecord = decode(&pair.key, &pair.value)?;
            let (owner, journal) = (me.name.clone(), me.write_buffer.clone());
            let volume = VolumeRecord::found((vpool, vdisk), *epoch, owner, journal, Config::default());
            asserts.push(KvAssert::Revision(pair.key.clone(), pair.revision));
            ops.push(KvOp::Put(volume_key(record.id), encode(&volume)?));
            ops.push(KvOp::Put(pair.key.clone(), encode(&record)?));
        }
        kv.txn(asserts, ops).await?;
        tracing::info!(vdisks = some.len(), "vDisks of a registry of one node have an owner now");
    }
    if node.is_some() {
        kv.txn(Vec::new(), vec![KvOp::Delete(NODE_KEY.into())]).await?;
    }
    Ok(())
}
