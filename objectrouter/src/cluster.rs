//! This storage router among the others: its seat in the registry, who else is there, and how to reach them.
//!
//! | room | what |
//! |---|---|
//! | `peers` | the registry and the DTL as a volume's replication sees them |
//! | [`succession`] | which router is to open a volume; a pure function |
//!
//! A seat is a lease with `node/{name}` bound to it. Volumes are claimed in the name of a seat, and a router whose seat
//! is lost has authority over none of them: it takes another seat and claims them again (rule 4).

pub(crate) mod attraction;
mod peers;
pub mod succession;

pub(crate) use peers::RegistryPeers;

use crate::registry::records::encode;
use crate::registry::{
    Addresses, Incarnation, NodeRecord, Records, RouterRecord, Stored, WriteBuffer, node_key, router_key,
};
use common::error::Context;
use common::kv::{KvAssert, KvOp, Lease, Registry};
use common::{Error, ErrorKind, Name, Result};
use dtl::client::Client;
use dtl::owner::Patience;
use dtl::registration::{Config, Mode, Needed, OnFailure};
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

/// Makes a client of the DTL service at an address.
pub type DialDtl = Arc<dyn Fn(&Addresses) -> Result<Client> + Send + Sync>;

/// How a new vDisk's tail is replicated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DefaultDtl {
    /// `sync` when it is made while other routers are there, `none` otherwise.
    #[default]
    Auto,
    /// Not at all.
    None,
    /// What was flushed is at the peers.
    Async,
    /// Every acknowledged write is at the peers.
    Sync,
}

/// What this router is in its cluster.
#[derive(Clone)]
pub struct Membership {
    /// Its name: one of a kind.
    pub name: Name,
    /// Its write buffer, and the start of the machine that it is in.
    pub write_buffer: WriteBuffer,
    /// It began the cluster: what its registry had before there were others is its own.
    pub founder: bool,
    /// What it may fail with.
    pub domains: Vec<String>,
    /// Domains where its volumes are to be recovered.
    pub recovery_domains: Vec<String>,
    /// How long the registry waits for its sign of life.
    pub lease: Duration,
    /// How it reaches the DTL of others.
    pub dial: DialDtl,
    /// How long peers may take.
    pub patience: Patience,
}

/// Where a DTL listens: TCP, and the unix socket of one on this machine.
type DtlAddress = (String, Option<String>);

/// This storage router among the others.
pub(crate) struct Cluster {
    records: Records<dyn Registry>,
    me: Membership,
    seat: RwLock<Option<Arc<dyn Lease>>>,
    /// Where others reach this router.
    addresses: RwLock<Addresses>,
    nodes: RwLock<BTreeMap<Name, NodeRecord>>,
    clients: Mutex<HashMap<DtlAddress, Arc<Client>>>,
}

impl Cluster {
    pub(crate) fn new(registry: Arc<dyn Registry>, me: Membership) -> Self {
        Self {
            records: Records::new(registry),
            me,
            seat: RwLock::new(None),
            addresses: RwLock::default(),
            nodes: RwLock::default(),
            clients: Mutex::default(),
        }
    }

    pub(crate) fn me(&self) -> &Name {
        &self.me.name
    }

    pub(crate) fn write_buffer(&self) -> &WriteBuffer {
        &self.me.write_buffer
    }

    pub(crate) fn patience(&self) -> Patience {
        self.me.patience
    }

    pub(crate) fn records(&self) -> &Records<dyn Registry> {
        &self.records
    }

    /// The lease of the present seat; `Unavailable` without one.
    pub(crate) fn seat(&self) -> Result<Arc<dyn Lease>> {
        self.seat.read().clone().ok_or_else(|| {
            Error::unavailable(
                "this storage router has no lease of the registry now: it serves again when it has one",
            )
        })
    }

    /// As what this router claims volumes.
    pub(crate) fn incarnation(&self) -> Result<Incarnation> {
        Ok(Incarnation { node: self.me.name.clone(), lease: self.seat()?.id() })
    }

    /// Takes a seat. What an earlier process left is over: it held the data directory that this one holds.
    ///
    /// # Errors
    /// `Conflict` when another router has this name.
    pub(crate) async fn take_seat(&self) -> Result<Arc<dyn Lease>> {
        let kv = self.records.kv();
        let name = &self.me.name;
        let known = self.records.router(name).await?;
        let device = self.me.write_buffer.device;
        if let Some(known) = &known
            && known.record.device != device
        {
            return Err(Error::conflict(format!(
                "the cluster has a storage router '{name}' with another data directory: choose another cluster.name, or, if \
                 that one is gone for ever, remove it first (storagerouter router remove {name})"
            )));
        }
        if known.is_none() {
            let others = self.records.routers().await?;
            if let Some((other, _)) = others.iter().find(|(_, router)| router.device == device) {
                return Err(Error::conflict(format!(
                    "this data directory is that of storage router '{other}': set cluster.name to that, or remove it first \
                     (storagerouter router remove {other}, on another router)"
                )));
            }
        }
        if let Some(pair) = kv.get(&node_key(name)).await? {
            let before: Stored<NodeRecord> = Stored::read(&pair)?;
            kv.end_lease(before.record.lease).await?;
        }
        let lease = kv.hold(self.me.lease).await.context("taking a lease of the registry")?;
        let node = self.about(&*lease, known.as_ref().is_some_and(|known| known.record.draining));
        let mut asserts = vec![KvAssert::LeaseLive(lease.id()), KvAssert::Absent(node_key(name))];
        let mut ops = vec![KvOp::PutWithLease(node_key(name), encode(&node)?, lease.id())];
        match known {
            Some(known) => asserts.push(KvAssert::Revision(router_key(name), known.revision)),
            None => {
                asserts.push(KvAssert::Absent(router_key(name)));
                ops.push(KvOp::Put(router_key(name), encode(&RouterRecord::new(device))?));
            }
        }
        kv.txn(asserts, ops).await.context("taking a seat in the registry")?;
        self.nodes.write().insert(name.clone(), node);
        *self.seat.write() = Some(lease.clone());
        tracing::info!(router = %name, lease = lease.id(), "this router has a seat in the registry");
        Ok(lease)
    }

    fn about(&self, lease: &dyn Lease, draining: bool) -> NodeRecord {
        let mut node =
            NodeRecord::new(lease.id(), self.me.write_buffer.device, self.addresses.read().clone());
        node.domains = self.me.domains.clone();
        node.recovery_domains = self.me.recovery_domains.clone();
        node.draining = draining;
        node
    }

    /// Tells the others where they reach this router.
    pub(crate) async fn reached_at(&self, addresses: Addresses) -> Result<()> {
        *self.addresses.write() = addresses;
        let name = &self.me.name;
        match self.records.router(name).await? {
            Some(Stored { record, revision }) => self.announce(&record, revision).await,
            None => Err(Error::not_found(format!("the registry has no storage router '{name}'"))),
        }
    }

    /// Changes what the registry says of this router for good, and tells the others.
    pub(crate) async fn announce(&self, router: &RouterRecord, based_on: u64) -> Result<()> {
        let (name, lease) = (&self.me.name, self.seat()?);
        let node = self.about(&*lease, router.draining);
        let asserts = vec![KvAssert::LeaseLive(lease.id()), KvAssert::Revision(router_key(name), based_on)];
        let ops = vec![
            KvOp::PutWithLease(node_key(name), encode(&node)?, lease.id()),
            KvOp::Put(router_key(name), encode(router)?),
        ];
        self.records.kv().txn(asserts, ops).await?;
        self.nodes.write().insert(name.clone(), node);
        Ok(())
    }

    /// Tells the others that this router gives everything away and takes nothing, as long as it has this seat.
    pub(crate) async fn retire(&self) -> Result<()> {
        let (name, lease) = (&self.me.name, self.seat()?);
        let node = self.about(&*lease, true);
        let ops = vec![KvOp::PutWithLease(node_key(name), encode(&node)?, lease.id())];
        self.records.kv().txn(vec![KvAssert::LeaseLive(lease.id())], ops).await?;
        self.nodes.write().insert(name.clone(), node);
        Ok(())
    }

    /// Forgets a router that is not there.
    pub(crate) async fn forget(&self, name: &Name, based_on: u64) -> Result<()> {
        let asserts = vec![KvAssert::Revision(router_key(name), based_on), KvAssert::Absent(node_key(name))];
        self.records.kv().txn(asserts, vec![KvOp::Delete(router_key(name))]).await.map(drop)
    }

    /// Without a seat from now on.
    pub(crate) fn leave_seat(&self) {
        *self.seat.write() = None;
        self.nodes.write().remove(&self.me.name);
    }

    /// Everybody who is there, as the registry has it; the revision of that.
    pub(crate) async fn meet(&self) -> Result<u64> {
        let (pairs, revision) = self.records.kv().snapshot(crate::registry::NODES).await?;
        let mut nodes = BTreeMap::new();
        for pair in &pairs {
            let name = crate::registry::name_of(&pair.key, crate::registry::NODES)?;
            let Stored { record, .. } = Stored::<NodeRecord>::read(pair)?;
            nodes.insert(name, record);
        }
        *self.nodes.write() = nodes;
        Ok(revision)
    }

    /// Somebody came, or changed.
    pub(crate) fn came(&self, name: Name, node: NodeRecord) {
        self.nodes.write().insert(name, node);
    }

    /// Somebody is gone.
    pub(crate) fn went(&self, name: &Name) {
        self.nodes.write().remove(name);
    }

    /// Who is there.
    pub(crate) fn nodes(&self) -> BTreeMap<Name, NodeRecord> {
        self.nodes.read().clone()
    }

    pub(crate) fn node(&self, name: &Name) -> Option<NodeRecord> {
        self.nodes.read().get(name).cloned()
    }

    /// A client of a router's DTL; `None` when it is not known where that is.
    fn dtl(&self, name: &Name) -> Option<Arc<Client>> {
        let addresses = self.nodes.read().get(name)?.addresses.clone();
        let tcp = addresses.dtl.clone()?;
        let address = (tcp.clone(), addresses.dtl_unix.clone());
        let mut clients = self.clients.lock();
        if let Some(client) = clients.get(&address) {
            return Some(client.clone());
        }
        match (self.me.dial)(&addresses) {
            Ok(client) => {
                let client = Arc::new(client);
                clients.insert(address, client.clone());
                Some(client)
            }
            Err(error) => {
                tracing::warn!(node = %name, address = tcp, %error, "can't reach the DTL of a storage router");
                None
            }
        }
    }

    /// How the tail of a new vDisk is replicated.
    pub(crate) fn default_config(&self, default: DefaultDtl) -> Config {
        let others = self
            .nodes
            .read()
            .iter()
            .any(|(name, node)| *name != self.me.name && node.addresses.dtl.is_some());
        let mode = match default {
            DefaultDtl::Auto if others => Mode::Sync,
            DefaultDtl::Auto | DefaultDtl::None => Mode::None,
            DefaultDtl::Async => Mode::Async,
            DefaultDtl::Sync => Mode::Sync,
        };
        let wanted = u8::from(mode != Mode::None);
        Config::alone(mode, wanted, Needed::All, OnFailure::Degrade)
    }
}

/// Whether an error says that what a transaction was based on has changed.
pub(crate) fn changed_meanwhile(error: &Error) -> bool {
    error.kind == ErrorKind::Conflict
}
