//! What the registry knows of a backend beside objects: its disks, and its namespaces.

use crate::alba::keys::WrappedKey;
use crate::alba::preset::Preset;
use common::kv::{KvAssert, KvOp};
use common::osd::{BackendId, OsdId};
use common::{Error, ErrorKind, Kv, Name, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The most namespaces of a manager group.
const MAX_NAMESPACES: u32 = 1 << 20;

/// A namespace: its objects have one preset, and keys of their own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Namespace {
    /// Its number within its manager group, never given out twice.
    pub id: u32,
    /// How its objects are protected and packed.
    pub preset: Preset,
    /// Its keys, wrapped; the last one seals what is put.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<WrappedKey>,
}

/// What is to be done with a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Use {
    /// Everything.
    Active,
    /// It is being emptied: it is read, and gets nothing.
    Leaving,
    /// It is lost: what was on it is made anew elsewhere.
    Lost,
}

/// A disk that belongs to the backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OsdRegistration {
    /// Which.
    pub id: OsdId,
    /// The machine that it is in.
    pub node: String,
    /// What the machine is in.
    #[serde(default)]
    pub domain: String,
    /// Where its daemon listens.
    pub addresses: Vec<String>,
    /// The backend that claimed it.
    pub claimed_by: BackendId,
    /// What is to be done with it.
    pub state: Use,
}

fn json<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T> {
    serde_json::from_slice(value).map_err(|e| Error::corrupt(format!("registry key '{key}': {e}")))
}

fn bytes<T: Serialize>(value: &T) -> Result<bytes::Bytes> {
    let written =
        serde_json::to_vec(value).map_err(|e| Error::internal(format!("can't write a record: {e}")))?;
    Ok(written.into())
}

const OSDS: &str = "alba/osd/";
const NAMESPACES: &str = "alba/namespace/";
const NUMBER: &str = "alba/last-namespace";

/// Writes the registration of a disk: a new one, or the next state of the one of that revision.
///
/// # Errors
/// `Conflict` when it was changed meanwhile.
pub async fn register_osd(kv: &dyn Kv, osd: &OsdRegistration, revision: Option<u64>) -> Result<u64> {
    let key = format!("{OSDS}{}", osd.id);
    let assert = match revision {
        Some(revision) => KvAssert::Revision(key.clone(), revision),
        None => KvAssert::Absent(key.clone()),
    };
    kv.txn(vec![assert], vec![KvOp::Put(key, bytes(osd)?)]).await
}

/// All disks of the backend, each with the revision of its registration.
///
/// # Errors
/// Those of the registry; `Corrupt`.
pub async fn osds(kv: &dyn Kv) -> Result<Vec<(OsdRegistration, u64)>> {
    let pairs = kv.scan(OSDS).await?;
    pairs.iter().map(|pair| Ok((json(&pair.key, &pair.value)?, pair.revision))).collect()
}

/// Makes a namespace. `keys` gets its number and makes what it is encrypted with.
///
/// # Errors
/// `Conflict` when there is one of that name; `Invalid` for a preset that can't be.
pub async fn create_namespace(
    kv: &dyn Kv,
    name: &Name,
    preset: Preset,
    keys: impl Fn(u32) -> Result<Vec<WrappedKey>>,
) -> Result<Namespace> {
    preset.check()?;
    let key = format!("{NAMESPACES}{name}");
    loop {
        if kv.get(&key).await?.is_some() {
            return Err(Error::conflict(format!("there is a namespace '{name}'")));
        }
        let last = kv.get(NUMBER).await?;
        let id = last.as_ref().map_or(Ok(0), |pair| json::<u32>(&pair.key, &pair.value))? + 1;
        if id > MAX_NAMESPACES {
            return Err(Error::invalid(format!("this manager group gave out {MAX_NAMESPACES} namespaces")));
        }
        let namespace = Namespace { id, preset: preset.clone(), keys: keys(id)? };
        let number = match &last {
            Some(pair) => KvAssert::Revision(NUMBER.into(), pair.revision),
            None => KvAssert::Absent(NUMBER.into()),
        };
        let ops = vec![
            KvOp::Put(key.clone(), bytes(&namespace)?),
            KvOp::Put(NUMBER.into(), bytes(&id)?),
            KvOp::Put(super::epoch_key(id, 1), bytes::Bytes::new()),
        ];
        match kv.txn(vec![KvAssert::Absent(key.clone()), number], ops).await {
            Ok(_) => return Ok(namespace),
            // Somebody took the number, or the name: look again.
            Err(e) if e.kind == ErrorKind::Conflict => {}
            Err(e) => return Err(e),
        }
    }
}

/// The namespace of that name.
///
/// # Errors
/// `NotFound`, `Corrupt`, and those of the registry.
pub async fn namespace(kv: &dyn Kv, name: &Name) -> Result<Namespace> {
    let key = format!("{NAMESPACES}{name}");
    let pair =
        kv.get(&key).await?.ok_or_else(|| Error::not_found(format!("there is no namespace '{name}'")))?;
    let namespace: Namespace = json(&key, &pair.value)?;
    namespace.preset.check().map_err(|e| Error::corrupt(format!("registry key '{key}': {e}")))?;
    Ok(namespace)
}
