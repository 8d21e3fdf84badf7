//! A registry of one node, from before there were many: its vDisks said who owns them, and all were of that node.

use super::ownership::VolumeRecord;
use super::records::{Record, VdiskRecord, decode, encode};
use super::{VDISKS, WriteBuffer, vdisk_of, volume_key};
use common::kv::{KvAssert, KvOp};
use common::{Epoch, Error, Kv, Name, Result};
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

/// Gives every vDisk of version 1 to this router, which wrote them: what they accepted lies in `journal`. Can be done
/// again after a crash.
pub(crate) async fn upgrade(kv: &(impl Kv + ?Sized), me: &Name, journal: &WriteBuffer) -> Result<()> {
    let mut old = Vec::new();
    for pair in kv.scan(VDISKS).await? {
        let bad = |e| Error::corrupt(format!("registry record '{}': {e}", pair.key.escape_debug()));
        let Owned { v, epoch } = serde_json::from_slice(&pair.value).map_err(bad)?;
        if v < VdiskRecord::VERSION {
            old.push((pair, epoch));
        }
    }
    for some in old.chunks(TOGETHER) {
        let (mut asserts, mut ops) = (Vec::new(), Vec::new());
        for (pair, epoch) in some {
            let (vpool, vdisk) = vdisk_of(&pair.key)?;
            let record: VdiskRecord = decode(&pair.key, &pair.value)?;
            let config = Config::default();
            let volume = VolumeRecord::found((vpool, vdisk), *epoch, me.clone(), journal.clone(), config);
            asserts.push(KvAssert::Revision(pair.key.clone(), pair.revision));
            ops.push(KvOp::Put(volume_key(record.id), encode(&volume)?));
            ops.push(KvOp::Put(pair.key.clone(), encode(&record)?));
        }
        kv.txn(asserts, ops).await?;
        tracing::info!(vdisks = some.len(), "vDisks of a registry of one node were taken over into this one");
    }
    if kv.get(NODE_KEY).await?.is_some() {
        kv.txn(Vec::new(), vec![KvOp::Delete(NODE_KEY.into())]).await?;
    }
    Ok(())
}
