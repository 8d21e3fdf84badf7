//! The router: all vPools and vDisks of this node.
//!
//! | room | what |
//! |---|---|
//! | `open` | the keeper of each vPool: opens its store and volumes, resumes what a crash cut short |
//! | `claims` | the right to open volumes, taken and given back in the registry |
//! | `follow` | what others change in the registry, who comes and goes, and a seat that is lost |
//! | `moves` | volumes that go to another router: planned, at a stop, and by force |
//! | `pulls` | vDisks that move to where they are used |
//! | `attach` | clients of the edge protocol, and volumes that are served elsewhere |
//! | `vpools` | create, adopt, delete, detach |
//! | `vdisks` | create, resize, drain, scrub, delete |
//! | `qos` | limits of vDisks |
//! | `snapshots` | snapshots, clones, rollback, templates |
//! | `backup` | vDisks leave as streams and come back |
//! | `exports` | clients come in by name |
//! | `health` | what is not well, and whether everything that can open has opened |

mod attach;
mod backup;
mod claims;
mod exports;
mod follow;
mod health;
mod moves;
mod open;
mod pulls;
mod qos;
mod snapshots;
#[cfg(test)]
mod tests;
mod vdisks;
mod vpools;

pub use attach::RouterAttachments;
pub use backup::{Export, Imported};
pub use exports::RouterExports;
pub use health::{HealthItem, HealthLevel};
pub use moves::{DtlWish, RouterInfo};
pub use qos::check_cache_quota;
pub use snapshots::{DescribeSnapshot, SnapshotShown, TakeSnapshot};
pub use vdisks::CreateVdisk;
pub use vpools::{Adopted, CreateVpool};

use crate::cluster::succession::successor;
use crate::cluster::{Cluster, Membership};
use crate::config::Settings;
use crate::metrics::RouterMetrics;
use crate::registry::{Addresses, NodeRecord, Records, Registered, upgrade};
use crate::tasks::Tasks;
use crate::vdisk::{Vdisk, VdiskInfo};
use crate::vpool::{PoolPhase, Vpool, VpoolInfo};
use common::kv::Registry;
use common::{Clock, Error, ErrorKind, Name, ObjectStore, Result, VolumeId};
use futures::future::BoxFuture;
use parking_lot::RwLock;
use prometheus_client::registry::Registry as Metrics;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::Semaphore;
use volumedriver::Driver;

/// Between two tries to take a seat at the start: a registry that was restored gives none for a while.
const SEAT_PAUSE: std::time::Duration = std::time::Duration::from_millis(500);

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

/// All vPools and vDisks of a cluster, as this storage router sees them, and those that it owns.
pub struct Router {
    cluster: Arc<Cluster>,
    driver: Arc<Driver>,
    stores: Stores,
    clock: Arc<dyn Clock>,
    settings: Settings,
    pub(crate) followed: pulls::Followed,
    catalog: RwLock<Catalog>,
    tasks: Arc<Tasks>,
    /// Opens in the background.
    opens: Arc<Semaphore>,
    /// Held while vPools come and go.
    admin: tokio::sync::Mutex<()>,
}

impl Router {
    /// Takes a seat in the registry, reads it and begins to open what is this router's; returns before anything is open.
    ///
    /// # Errors
    /// `Conflict` when another router has this one's name; those of reading the registry.
    pub async fn start(
        kv: Arc<dyn Registry>,
        membership: Membership,
        driver: Arc<Driver>,
        stores: Stores,
        clock: Arc<dyn Clock>,
        settings: Settings,
        metrics: &mut Metrics,
    ) -> Result<Arc<Router>> {
        settings.check().map_err(Error::invalid)?;
        upgrade(&*kv, &membership).await?;
        let cluster = Arc::new(Cluster::new(kv, membership));
        while let Err(error) = cluster.take_seat().await {
            if !error.kind.is_transient() {
                return Err(error);
            }
            tracing::warn!(%error, "can't take a seat in the registry yet; trying again");
            clock.sleep(SEAT_PAUSE).await;
        }
        // What is read below is newer: it is told again, and does not count twice.
        let revision = cluster.meet().await?;
        let contents = cluster.records().load().await?;
        let mut catalog = Catalog::default();
        for (name, stored) in contents.vpools {
            let pool = Vpool::new(name.clone(), stored, PoolPhase::Opening(None));
            catalog.vpools.insert(name, Arc::new(pool));
        }
        for Registered { vpool: pool, vdisk: name, record, volume } in contents.vdisks {
            if let Some(vpool) = catalog.vpools.get(&pool) {
                let vdisk = Vdisk::new(vpool.clone(), name.clone(), (record, volume), clock.clone());
                catalog.vdisks.insert((pool, name), vdisk);
            }
        }
        let router = Arc::new(Router {
            cluster,
            driver,
            stores,
            clock,
            opens: Arc::new(Semaphore::new(settings.parallel_opens)),
            settings,
            followed: pulls::Followed::default(),
            catalog: RwLock::new(catalog),
            tasks: Tasks::new(),
            admin: tokio::sync::Mutex::new(()),
        });
        metrics.register_collector(Box::new(RouterMetrics(Arc::downgrade(&router))));
        for pool in router.pools() {
            router.clone().keep(pool)?;
        }
        let purger = router.clone();
        router.tasks.spawn("purge deleted vDisks", async move { purger.purge().await })?;
        let follower = router.clone();
        router.tasks.spawn("follow the registry", async move { follower.follow(revision + 1).await })?;
        let sitter = router.clone();
        router.tasks.spawn("keep a seat in the registry", async move { sitter.keep_seat().await })?;
        let usher = router.clone();
        router
            .tasks
            .spawn("move vDisks to where they are used", async move { usher.follow_clients().await })?;
        router.give_away_if_draining()?;
        Ok(router)
    }

    /// Tells the other routers where they reach this one: from now on they send clients here.
    pub async fn reached_at(&self, addresses: Addresses) -> Result<()> {
        self.cluster.reached_at(addresses).await
    }

    /// Name of this storage router.
    pub fn node(&self) -> &Name {
        self.cluster.me()
    }

    /// The storage routers that are there, this one among them.
    pub fn nodes(&self) -> BTreeMap<Name, NodeRecord> {
        self.cluster.nodes()
    }

    fn records(&self) -> &Records<dyn Registry> {
        self.cluster.records()
    }

    /// The router that should have a vDisk's volume; `None` where nobody may.
    fn successor(&self, vdisk: &Vdisk) -> Option<Name> {
        successor(vdisk.id, &vdisk.owned().record, &self.cluster.nodes())
    }

    /// Whether this router should have it.
    fn is_mine(&self, vdisk: &Vdisk) -> bool {
        self.successor(vdisk).as_ref() == Some(self.cluster.me())
    }

    /// What is told about a vDisk.
    fn info(&self, vdisk: &Vdisk) -> VdiskInfo {
        vdisk.info(self.cluster.me(), self.successor(vdisk).as_ref())
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
        self.all_vdisks().iter().map(|vdisk| self.info(vdisk)).collect()
    }

    /// The vDisk with this name or id.
    pub fn vdisk(&self, vpool: &str, name_or_id: &str) -> Result<VdiskInfo> {
        Ok(self.info(&*self.find_vdisk(vpool, name_or_id)?))
    }

    /// Where a vDisk is that another router owns, as an error.
    fn elsewhere(&self, vdisk: &Vdisk) -> Error {
        let owner =
            self.successor(vdisk).map_or("nobody".to_owned(), |name| format!("storage router '{name}'"));
        Error::new(ErrorKind::NotOwner, format!("vDisk '{vdisk}' is owned by {owner}, not by this one"))
    }

    /// Fails where another router has the vDisk, or should.
    fn not_elsewhere(&self, vdisk: &Vdisk) -> Result<()> {
        match self.successor(vdisk) {
            Some(owner) if owner != *self.cluster.me() => Err(self.elsewhere(vdisk)),
            _ => Ok(()),
        }
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
