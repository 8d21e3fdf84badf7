//! One vPool in memory: its record, and its object store when open.

use crate::registry::{Stored, VpoolLife, VpoolRecord};
use common::{Error, Name};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::{Notify, RwLock, watch};
use volumedriver::Pool;

/// Whether a vPool serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VpoolState {
    /// Its object store has not answered yet; it is tried again and again.
    Opening,
    /// Open.
    Serving,
    /// Its object store gave an answer that seldom changes by itself; it is tried now and then.
    Failed,
    /// Being deleted.
    Deleting,
}

/// What is told about a vPool.
#[derive(Debug, Clone)]
pub struct VpoolInfo {
    /// Name.
    pub name: Name,
    /// Identity.
    pub id: u128,
    /// The backend specification, as it was given: may hold secrets.
    pub backend: Value,
    /// Bytes in a cluster.
    pub cluster_size: u32,
    /// The object store, for people; empty until it was opened.
    pub description: String,
    /// What the operator should know about the object store.
    pub warning: Option<String>,
    /// Whether it serves.
    pub state: VpoolState,
    /// Why it does not serve.
    pub reason: Option<String>,
    /// Number of vDisks.
    pub vdisks: usize,
}

#[derive(Clone)]
pub(crate) enum PoolPhase {
    /// Not open; the error of the last try, if there was one.
    Opening(Option<Error>),
    /// Open.
    Open(Pool),
    /// Forgotten here: its tasks end.
    Gone,
}

/// One vPool in memory.
pub(crate) struct Vpool {
    pub(crate) name: Name,
    stored: Mutex<Stored<VpoolRecord>>,
    about: Mutex<(String, Option<String>)>,
    pub(crate) phase: watch::Sender<PoolPhase>,
    /// Held for reading by who adds a vDisk, for writing by who takes the vPool away.
    pub(crate) members: RwLock<()>,
    /// Held by who makes a clone, and by who takes a snapshot or a vDisk away, while they look who depends on
    /// whom and write down what they do. Taken after a vDisk's `work`.
    pub(crate) lineage: tokio::sync::Mutex<()>,
    /// There is something to do: try again now.
    pub(crate) kick: Notify,
}

impl Vpool {
    pub(crate) fn new(name: Name, stored: Stored<VpoolRecord>, phase: PoolPhase) -> Self {
        Self {
            name,
            stored: Mutex::new(stored),
            about: Mutex::new((String::new(), None)),
            phase: watch::Sender::new(phase),
            members: RwLock::new(()),
            lineage: tokio::sync::Mutex::new(()),
            kick: Notify::new(),
        }
    }

    pub(crate) fn stored(&self) -> Stored<VpoolRecord> {
        self.stored.lock().clone()
    }

    /// The registry has this; what is older than what is known does not count.
    pub(crate) fn set_stored(&self, stored: Stored<VpoolRecord>) {
        let mut known = self.stored.lock();
        if stored.revision > known.revision {
            *known = stored;
        }
    }

    /// It is open by somebody else's doing; what is open stays.
    pub(crate) fn opened(&self, now: PoolPhase) {
        self.phase.send_if_modified(|phase| match (&*phase, &now) {
            (PoolPhase::Opening(_), PoolPhase::Open(_)) => {
                *phase = now;
                true
            }
            _ => false,
        });
    }

    pub(crate) fn set_about(&self, description: String, warning: Option<String>) {
        *self.about.lock() = (description, warning);
    }

    /// The open vPool, or why it is not open.
    pub(crate) fn pool(&self) -> Result<Pool, Error> {
        match &*self.phase.borrow() {
            PoolPhase::Open(pool) => Ok(pool.clone()),
            PoolPhase::Opening(Some(error)) => {
                Err(error.clone().context(format!("vPool '{}' is not open", self.name)))
            }
            PoolPhase::Opening(None) => {
                Err(Error::unavailable(format!("vPool '{}' is not open yet; try again soon", self.name)))
            }
            PoolPhase::Gone => Err(Error::not_found(format!("vPool '{}' was removed", self.name))),
        }
    }

    /// Why it does not serve, when a try has shown that.
    pub(crate) fn problem(&self) -> Option<Error> {
        match &*self.phase.borrow() {
            PoolPhase::Opening(Some(_)) => {}
            _ => return None,
        }
        self.pool().err()
    }

    /// Whether at least one try to open it has ended.
    pub(crate) fn was_tried(&self) -> bool {
        !matches!(&*self.phase.borrow(), PoolPhase::Opening(None))
    }

    pub(crate) fn is_gone(&self) -> bool {
        matches!(&*self.phase.borrow(), PoolPhase::Gone)
    }

    /// What is told about it, `vdisks` counted by the caller.
    pub(crate) fn info(&self, vdisks: usize) -> VpoolInfo {
        let Stored { record, .. } = self.stored();
        let (description, warning) = self.about.lock().clone();
        let (state, reason) = match &*self.phase.borrow() {
            _ if record.state == VpoolLife::Deleting => (VpoolState::Deleting, None),
            PoolPhase::Open(_) => (VpoolState::Serving, None),
            PoolPhase::Opening(None) => (VpoolState::Opening, None),
            PoolPhase::Opening(Some(e)) if e.kind.is_transient() => {
                (VpoolState::Opening, Some(e.to_string()))
            }
            PoolPhase::Opening(Some(e)) => (VpoolState::Failed, Some(e.to_string())),
            PoolPhase::Gone => (VpoolState::Deleting, None),
        };
        VpoolInfo {
            name: self.name.clone(),
            id: record.id.0,
            backend: record.backend,
            cluster_size: record.cluster_size,
            description,
            warning: warning.or(record.warning),
            state,
            reason,
            vdisks,
        }
    }
}
