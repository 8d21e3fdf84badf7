//! A vPool as it lies on its object store: the `vpool` object and the volumes beside it.

use crate::format::keys;
use crate::format::pool::PoolObject;
use common::object::Precondition;
use common::{Error, ErrorKind, ObjectStore, Result};
use std::sync::Arc;
use std::time::Duration;

/// What the `vpool` object says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolInfo {
    /// Random identity.
    pub id: u128,
    /// Name at creation; adoption may use another one.
    pub name: String,
    /// Bytes in a cluster: 4096 to 65536, a power of two.
    pub cluster_size: u32,
}

/// An attached vPool.
#[derive(Clone)]
pub struct Pool {
    /// What the `vpool` object says.
    pub info: PoolInfo,
    /// Where it lies.
    pub store: Arc<dyn ObjectStore>,
}

impl Pool {
    /// Puts the `vpool` object on an empty place. `now` is the time since the Unix epoch.
    ///
    /// `Conflict` says what lies there already: a vPool (its name and number of vDisks), or
    /// objects of somebody else.
    pub async fn create(store: Arc<dyn ObjectStore>, info: PoolInfo, now: Duration) -> Result<Pool> {
        if !info.cluster_size.is_power_of_two() || !(4096..=65536).contains(&info.cluster_size) {
            return Err(Error::invalid(format!(
                "a cluster size of {} bytes is not possible: a power of two from 4096 to 65536",
                info.cluster_size
            )));
        }
        let found = store.list("", None, true, 1000).await?;
        if found.objects.iter().any(|o| o.key == keys::POOL) {
            return Err(Self::occupied(&store, found.prefixes.len(), found.next.is_some()).await);
        }
        if let Some(key) = found.objects.first().map(|o| &o.key).or(found.prefixes.first()) {
            return Err(Error::conflict(format!(
                "{} is not empty and holds no vPool: '{key}' lies there. Choose an empty place or another prefix",
                store.describe()
            )));
        }
        let object = PoolObject {
            id: info.id,
            name: info.name.clone(),
            cluster_log2: info.cluster_size.trailing_zeros() as u8,
            created: now.as_secs(),
        };
        let bytes = object.encode(info.id)?;
        match store.put(keys::POOL, bytes.clone(), Precondition::IfAbsent).await {
            Err(e) if e.kind == ErrorKind::Conflict && store.get(keys::POOL).await? != bytes => {
                return Err(Self::occupied(&store, 0, false).await);
            }
            Err(e) if e.kind != ErrorKind::Conflict => return Err(e),
            _ => {}
        }
        Ok(Pool { info, store })
    }

    async fn occupied(store: &Arc<dyn ObjectStore>, volumes: usize, more: bool) -> Error {
        let what = match Self::open(store.clone()).await {
            Ok(pool) => format!("the vPool '{}' (id {:032x})", pool.info.name, pool.info.id),
            Err(e) => format!("a vPool that can't be read ({e})"),
        };
        let more = if more { " or more" } else { "" };
        Error::conflict(format!("{} already holds {what} with {volumes}{more} vDisks", store.describe()))
    }

    /// Reads the `vpool` object; `NotFound` when no vPool lies there.
    pub async fn open(store: Arc<dyn ObjectStore>) -> Result<Pool> {
        let bytes = store.get(keys::POOL).await.map_err(|e| match e.kind {
            ErrorKind::NotFound => Error::not_found(format!("no vPool lies on {}", store.describe())),
            _ => e,
        })?;
        let object = PoolObject::decode(&bytes).map_err(|e| e.context(store.describe()))?;
        let info = PoolInfo { id: object.id, name: object.name, cluster_size: 1 << object.cluster_log2 };
        Ok(Pool { info, store })
    }
}
