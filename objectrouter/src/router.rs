//! The router: all vPools and vDisks of this node.
//!
//! | room | what |
//! |---|---|
//! | `open` | the keeper of each vPool: opens its store and volumes, resumes what a crash cut short |
//! | `vpools` | create, adopt, delete, detach |
//! | `vdisks` | create, resize, drain, scrub, delete |
//! | `qos` | limits of vDisks |
//! | `snapshots` | snapshots, clones, rollback, templates |
//! | `backup` | vDisks leave as streams and come back |
//! | `exports` | clients come in by name |
//! | `health` | what is not well, and whether everything that can open has opened |

mod backup;
mod exports;
mod health;
mod open;
mod qos;
mod snapshots;
#[cfg(test)]
mod tests;
mod vdisks;
mod vpools;

pub use backup::{Export, Imported};
pub use exports::RouterExports;
pub use health::{HealthItem, HealthLevel};
pub use qos::check_cache_quota;
pub use snapshots::{DescribeSnapshot, SnapshotShown, TakeSnapshot};
pub use vdisks::CreateVdisk;
pub use vpools::{Adopted, CreateVpool};

use crate::config::Settings;
use crate::metrics::RouterMetrics;
use crate::registry::Records;
use crate::tasks::Tasks;
use crate::vdisk::{Vdisk, VdiskInfo};
use crate::vpool::{PoolPhase, Vpool, VpoolInfo};
use common::{Clock, Error, Kv, Name, ObjectStore, Result, VolumeId};
use futures::future::BoxFuture;
use parking_lot::RwLock;
use prometheus_client::registry::Registry;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use volumedriver::Driver;

/// An object store, opened from the backend specification of a vPool.
pub struct OpenedStore {
    /// The store.
    pub store: Arc<dyn ObjectStore>,
    /// A text that tells a person which store this is; no secrets.
    pub description: String,
    /// What the operator should know about it.
    pub warning: Option<String>,
}

/// Opens an object store from a backend specification.
pub type OpenStore = Arc<dyn Fn(serde_json::Value) -> BoxFuture<'static, Result<OpenedStore>> + Send + Sync>;

/// The ways to get an object store.
#[derive(Clone)]
pub struct Stores {
    /// Opens it: at each start.
    pub open: OpenStore,
    /// Opens it and proves that it keeps its promises: when a vPool is attached.
    pub attach: OpenStore,
}

#[derive(Default)]
struct Catalog {
    vpools: BTreeMap<Name, Arc<Vpool>>,
    /// By vPool and name.
    vdisks: BTreeMap<(Name, Name), Arc<Vdisk>>,
}

/// All vPools and vDisks of this node.
pub struct Router {
    records: Records,
    driver: Arc<Driver>,
    stores: Stores,
    clock: Arc<dyn Clock>,
    settings: Settings,
    node: String,
    catalog: RwLock<Catalog>,
    tasks: Arc<Tasks>,
    /// Opens in the background.
    opens: Arc<Semaphore>,
    /// Held while vPools come and go.
    admin: tokio::sync::Mutex<()>,
}

impl Router {
    /// Reads the registry and begins to open what it names; returns before anything is open.
    pub async fn start(
        kv: Arc<dyn Kv>,
        driver: Arc<Driver>,
        stores: Stores,
        clock: Arc<dyn Clock>,
        settings: Settings,
        registry: &mut Registry,
    ) -> Result<Arc<Router>> {
        settings.check().map_err(Error::invalid)?;
        let records = Records::new(kv);
        let node = records.node(&*clock).await?;
        let contents = records.load().await?;
        let mut catalog = Catalog::default();
        for (name, stored) in contents.vpools {
            let pool = Vpool::new(name.clone(), stored, PoolPhase::Opening(None));
            catalog.vpools.insert(name, Arc::new(pool));
        }
        for (pool, name, stored) in contents.vdisks {
            if let Some(vpool) = catalog.vpools.get(&pool) {
                let vdisk = Vdisk::new(vpool.clone(), name.clone(), stored, clock.clone());
                catalog.vdisks.insert((pool, name), vdisk);
            }
        }
        let router = Arc::new(Router {
            records,
            driver,
            stores,
            clock,
            opens: Arc::new(Semaphore::new(settings.parallel_opens)),
            settings,
            node,
            catalog: RwLock::new(catalog),
            tasks: Tasks::new(),
            admin: tokio::sync::Mutex::new(()),
        });
        registry.register_collector(Box::new(RouterMetrics(Arc::downgrade(&router))));
        for pool in router.pools() {
            router.clone().keep(pool)?;
        }
        let purger = router.clone();
        router.tasks.spawn("purge deleted vDisks", async move { purger.purge().await })?;
        Ok(router)
    }

    /// Identity of this node.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Names of the background tasks that run.
    pub fn tasks(&self) -> Vec<String> {
        self.tasks.names()
    }

    /// All vPools, in order of name.
    pub fn vpools(&self) -> Vec<VpoolInfo> {
        self.pools().iter().map(|pool| pool.info(self.vdisks_of(&pool.name).len())).collect()
    }

    /// The vPool with this name or id.
    pub fn vpool(&self, name_or_id: &str) -> Result<VpoolInfo> {
        let pool = self.find_pool(name_or_id)?;
        Ok(pool.info(self.vdisks_of(&pool.name).len()))
    }

    /// All vDisks, in order of vPool and name.
    pub fn vdisks(&self) -> Vec<VdiskInfo> {
        self.all_vdisks().iter().map(|vdisk| vdisk.info()).collect()
    }

    /// The vDisk with this name or id.
    pub fn vdisk(&self, vpool: &str, name_or_id: &str) -> Result<VdiskInfo> {
        Ok(self.find_vdisk(vpool, name_or_id)?.info())
    }

    /// Ends the background work and then the volume driver: what clients were told is durable
    /// stays so, and what can be uploaded before `deadline` has passed is uploaded.
    pub async fn shutdown(&self, deadline: Duration) {
        let begin = self.clock.now();
        for name in self.tasks.stop(&*self.clock, deadline / 2).await {
            tracing::warn!(task = name, "cut short at shutdown; the next start resumes it");
        }
        let left = deadline.saturating_sub(self.clock.now().saturating_sub(begin));
        self.driver.shutdown(left).await;
    }

    fn pools(&self) -> Vec<Arc<Vpool>> {
        self.catalog.read().vpools.values().cloned().collect()
    }

    fn all_vdisks(&self) -> Vec<Arc<Vdisk>> {
        self.catalog.read().vdisks.values().cloned().collect()
    }

    fn vdisks_of(&self, pool: &Name) -> Vec<Arc<Vdisk>> {
        let catalog = self.catalog.read();
        catalog.vdisks.iter().filter(|((p, _), _)| p == pool).map(|(_, v)| v.clone()).collect()
    }

    fn find_pool(&self, name_or_id: &str) -> Result<Arc<Vpool>> {
        let catalog = self.catalog.read();
        if let Ok(name) = name_or_id.parse::<Name>()
            && let Some(pool) = catalog.vpools.get(&name)
        {
            return Ok(pool.clone());
        }
        if let Ok(VolumeId(id)) = name_or_id.parse::<VolumeId>()
            && let Some(pool) = catalog.vpools.values().find(|p| p.stored().record.id.0 == id)
        {
            return Ok(pool.clone());
        }
        Err(Error::not_found(format!("there is no vPool '{}'", name_or_id.escape_debug())))
    }

    fn find_vdisk(&self, vpool: &str, name_or_id: &str) -> Result<Arc<Vdisk>> {
        let pool = self.find_pool(vpool)?;
        let catalog = self.catalog.read();
        if let Ok(name) = name_or_id.parse::<Name>()
            && let Some(vdisk) = catalog.vdisks.get(&(pool.name.clone(), name))
        {
            return Ok(vdisk.clone());
        }
        if let Ok(id) = name_or_id.parse::<VolumeId>()
            && let Some(vdisk) = catalog.vdisks.values().find(|v| v.id == id && v.pool.name == pool.name)
        {
            return Ok(vdisk.clone());
        }
        let name = name_or_id.escape_debug();
        Err(Error::not_found(format!("there is no vDisk '{name}' in vPool '{}'", pool.name)))
    }
}
