//! One vDisk in memory: its record, its volume when open, its clients.

use crate::handle::{Handle, Revoked};
use crate::qos::{Limiter, Qos, Waited};
use crate::registry::{ParentRecord, Stored, VdiskLife, VdiskRecord, VolumeRecord};
use crate::traffic::{Traffic, Uses};
use crate::vpool::Vpool;
use common::kv::Lease;
use common::{BlockDevice, Clock, Epoch, Error, ErrorKind, Name, Result, VolumeId};
use dtl::{Config, Loss};
use edge::protocol::Owned;
use parking_lot::Mutex;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use volumedriver::{Volume, VolumeState, VolumeStatus};

/// Whether a vDisk serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VdiskState {
    /// Serves.
    Serving,
    /// Serves, but the backend does not take what is sealed.
    Degraded,
    /// Stopped for good in this process.
    Stopped,
    /// Not open yet, or waiting for its vPool; opens by itself.
    Opening,
    /// Could not be opened.
    Failed,
    /// Being created.
    Creating,
    /// Being deleted.
    Deleting,
    /// Another storage router owns it.
    Elsewhere,
    /// Nobody may open it: what was acknowledged may be out of reach. Its owner comes back, or an operator forces it.
    Orphaned,
}

/// What is told about a vDisk.
#[derive(Debug, Clone)]
pub struct VdiskInfo {
    /// Name of its vPool.
    pub vpool: Name,
    /// Name.
    pub name: Name,
    /// Identity of its volume.
    pub id: VolumeId,
    /// Bytes.
    pub size: u64,
    /// Bytes of clusters in one SCO.
    pub sco_size: u32,
    /// The epoch that serves, or the newest one given out.
    pub epoch: Epoch,
    /// The storage router that owns it, or did last.
    pub owner: Name,
    /// How its acknowledged tail is replicated, as the registry has it.
    pub dtl: Config,
    /// Earlier logs that are needed until the backend has what they hold.
    pub tails: usize,
    /// What was given up by force.
    pub losses: Vec<Loss>,
    /// Whether writes are refused.
    pub read_only: bool,
    /// What it is a clone of.
    pub parent: Option<ParentRecord>,
    /// Whether it is a template.
    pub template: bool,
    /// What its clients may do at most; `None` is anything.
    pub qos: Option<Qos>,
    /// Bytes that the read cache may hold of it; `None` is any.
    pub cache_quota: Option<u64>,
    /// Whether it moves to where it is used; `None`: as the router's configuration says.
    pub auto_migrate: Option<bool>,
    /// What was asked of it at this router, since that began.
    pub uses: Uses,
    /// Reads that waited for a limit.
    pub reads_waited: Waited,
    /// Writes that waited for a limit, with discards and zeroes.
    pub writes_waited: Waited,
    /// Whether it serves.
    pub state: VdiskState,
    /// Why it does not serve, or not fully.
    pub reason: Option<String>,
    /// Number of open handles.
    pub clients: u64,
    /// What the open volume says.
    pub status: Option<VolumeStatus>,
}

#[derive(Clone)]
pub(crate) enum Phase {
    /// Nobody tried yet.
    Closed,
    /// Serves, or is stopped: the volume knows.
    Open(Arc<Volume>),
    /// The last try to create, open or delete ended so.
    Failed(Error),
    /// Being taken away; nobody gets in any more.
    Leaving,
}

struct Slot {
    phase: Phase,
    clients: u64,
    revoked: Revoked,
    /// Number of finished tries to make it serve.
    tries: u64,
    /// What was claimed and given to no open yet.
    claim: Option<Claim>,
    /// The attachments of the epoch that is open.
    edge: Option<Arc<Owned>>,
}

/// The right to open a volume in an epoch.
#[derive(Clone)]
pub(crate) struct Claim {
    /// The seat in whose name it was claimed.
    pub(crate) seat: Arc<dyn Lease>,
    /// The volume's record, with the claim in it.
    pub(crate) volume: VolumeRecord,
}

/// One vDisk in memory.
pub(crate) struct Vdisk {
    pub(crate) pool: Arc<Vpool>,
    pub(crate) name: Name,
    pub(crate) id: VolumeId,
    stored: Mutex<Stored<VdiskRecord>>,
    owned: Mutex<Stored<VolumeRecord>>,
    slot: Mutex<Slot>,
    /// As the record says.
    pub(crate) limits: Limiter,
    pub(crate) traffic: Traffic,
    /// Held by whoever creates, opens, resizes, deletes it or changes its record.
    pub(crate) work: tokio::sync::Mutex<()>,
}

impl Slot {
    /// Handles, and attachments of the edge protocol, also of clients that may be back.
    fn users(&self) -> u64 {
        self.clients + self.edge.as_ref().map_or(0, |edge| edge.holders().len() as u64)
    }
}

impl fmt::Display for Vdisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.pool.name, self.name)
    }
}

impl Vdisk {
    pub(crate) fn new(
        pool: Arc<Vpool>,
        name: Name,
        (stored, owned): (Stored<VdiskRecord>, Stored<VolumeRecord>),
        clock: Arc<dyn Clock>,
    ) -> Arc<Self> {
        Arc::new(Self {
            pool,
            name,
            id: stored.record.id,
            traffic: Traffic::default(),
            limits: Limiter::new(clock, stored.record.qos.as_ref()),
            stored: Mutex::new(stored),
            owned: Mutex::new(owned),
            slot: Mutex::new(Slot {
                phase: Phase::Closed,
                clients: 0,
                revoked: Arc::new(AtomicBool::new(false)),
                tries: 0,
                claim: None,
                edge: None,
            }),
            work: tokio::sync::Mutex::new(()),
        })
    }

    pub(crate) fn stored(&self) -> Stored<VdiskRecord> {
        self.stored.lock().clone()
    }

    /// The registry has this; what is older than what is known does not count. Whether it was news.
    pub(crate) fn set_stored(&self, stored: Stored<VdiskRecord>) -> bool {
        let mut known = self.stored.lock();
        if stored.revision <= known.revision {
            return false;
        }
        let qos = stored.record.qos;
        let before = std::mem::replace(&mut *known, stored);
        drop(known);
        if before.record.qos != qos {
            self.limits.set(qos.as_ref());
        }
        true
    }

    /// Who owns its volume, as far as is known here.
    pub(crate) fn owned(&self) -> Stored<VolumeRecord> {
        self.owned.lock().clone()
    }

    /// As [`Vdisk::set_stored`].
    pub(crate) fn set_owned(&self, owned: Stored<VolumeRecord>) -> bool {
        let mut known = self.owned.lock();
        let news = owned.revision > known.revision;
        if news {
            *known = owned;
        }
        news
    }

    pub(crate) fn phase(&self) -> Phase {
        self.slot.lock().phase.clone()
    }

    /// The volume, when it is open.
    pub(crate) fn volume(&self) -> Option<Arc<Volume>> {
        match self.phase() {
            Phase::Open(volume) => Some(volume),
            _ => None,
        }
    }

    /// Number of finished tries to make it serve: who waited for one need not start the next.
    pub(crate) fn tries(&self) -> u64 {
        self.slot.lock().tries
    }

    /// Ends a try.
    pub(crate) fn tried(&self, phase: Phase) {
        let mut slot = self.slot.lock();
        slot.tries += 1;
        slot.phase = phase;
        slot.edge = None;
    }

    pub(crate) fn give_claim(&self, claim: Claim) {
        self.slot.lock().claim = Some(claim);
    }

    pub(crate) fn take_claim(&self) -> Option<Claim> {
        self.slot.lock().claim.take()
    }

    pub(crate) fn has_claim(&self) -> bool {
        self.slot.lock().claim.is_some()
    }

    /// Whether what is open, if anything, was claimed in another seat than this.
    pub(crate) fn is_of_another_seat(&self, lease: Option<u64>) -> bool {
        self.volume().is_some_and(|volume| volume.lease() != lease)
    }

    /// The attachments of the epoch that is open, which `make` begins; `None` when it is not open.
    pub(crate) fn attachments(&self, make: impl FnOnce(Arc<Volume>) -> Arc<Owned>) -> Option<Arc<Owned>> {
        let mut slot = self.slot.lock();
        let Phase::Open(volume) = &slot.phase else { return None };
        let volume = volume.clone();
        Some(slot.edge.get_or_insert_with(|| make(volume)).clone())
    }

    /// The attachments of the epoch that is open, if there were any.
    pub(crate) fn attached(&self) -> Option<Arc<Owned>> {
        self.slot.lock().edge.clone()
    }

    /// Closes the door on everybody, because somebody else owns the volume or may; the volume, when it was open.
    pub(crate) fn evict(&self, why: Error) -> Option<Arc<Volume>> {
        let before = {
            let mut slot = self.slot.lock();
            slot.claim = None;
            slot.edge = None;
            match &slot.phase {
                Phase::Leaving => return None,
                _ => std::mem::replace(&mut slot.phase, Phase::Failed(why)),
            }
        };
        self.revoke();
        match before {
            Phase::Open(volume) => Some(volume),
            _ => None,
        }
    }

    /// The volume stays open after all, for those who were attached.
    pub(crate) fn reopen(&self, volume: Arc<Volume>, edge: Option<Arc<Owned>>) {
        let mut slot = self.slot.lock();
        slot.phase = Phase::Open(volume);
        slot.edge = edge;
    }

    /// A try that failed may succeed now.
    pub(crate) fn forgive(&self) {
        let mut slot = self.slot.lock();
        if matches!(slot.phase, Phase::Failed(_)) {
            slot.phase = Phase::Closed;
        }
    }

    /// Whether another try by itself makes sense: it does not serve, and that may change.
    pub(crate) fn is_unsettled(&self) -> bool {
        if self.stored.lock().record.state == VdiskLife::Deleting {
            return true;
        }
        match &self.slot.lock().phase {
            Phase::Closed | Phase::Leaving => true,
            Phase::Open(_) => false,
            Phase::Failed(error) => error.kind.is_transient(),
        }
    }

    /// Lets a client in; `None` when the volume is not open.
    pub(crate) fn enter(self: &Arc<Self>) -> Option<Handle> {
        let volume = self.volume()?;
        let read_only = self.stored.lock().record.read_only || volume.template().is_some();
        self.let_in(volume, read_only)
    }

    /// Lets a client of something that is read from the open vDisk in; `None` when it is not open.
    pub(crate) fn enter_as(self: &Arc<Self>, device: Arc<dyn BlockDevice>) -> Option<Handle> {
        self.let_in(device, true)
    }

    fn let_in(self: &Arc<Self>, device: Arc<dyn BlockDevice>, read_only: bool) -> Option<Handle> {
        let mut slot = self.slot.lock();
        let Phase::Open(_) = &slot.phase else { return None };
        let revoked = slot.revoked.clone();
        slot.clients += 1;
        drop(slot);
        Some(Handle::new(device, revoked, read_only, self.clone()))
    }

    /// `Denied` for a template.
    pub(crate) fn must_not_be_template(&self) -> Result<()> {
        match self.volume().is_some_and(|volume| volume.template().is_some()) {
            true => Err(Error::new(
                ErrorKind::Denied,
                format!("vDisk '{self}' is a template: it does not change, clone it"),
            )),
            false => Ok(()),
        }
    }

    #[cfg(test)]
    pub(crate) fn count_client(&self) {
        self.slot.lock().clients += 1;
    }

    #[cfg(test)]
    pub(crate) fn door(&self) -> Revoked {
        self.slot.lock().revoked.clone()
    }

    /// Whether clients have handles here, who would be cut off if it moved away.
    pub(crate) fn has_handles(&self) -> bool {
        self.slot.lock().clients > 0
    }

    /// Clients that use it.
    pub(crate) fn clients(&self) -> u64 {
        self.slot.lock().users()
    }

    pub(crate) fn client_left(&self) {
        self.slot.lock().clients -= 1;
    }

    /// Bars the door, if nobody is inside or `force`; gives back the phase from before.
    pub(crate) fn leave(&self, force: bool, what: &str) -> Result<Phase> {
        let mut slot = self.slot.lock();
        let clients = slot.users();
        if clients > 0 && !force {
            return Err(Error::new(
                ErrorKind::Denied,
                format!(
                    "vDisk '{self}' is not {what}: it is in use by {clients} client{}; \
                     disconnect, or use --force",
                    if clients == 1 { "" } else { "s" }
                ),
            ));
        }
        Ok(std::mem::replace(&mut slot.phase, Phase::Leaving))
    }

    /// Opens the door again after [`Vdisk::leave`].
    pub(crate) fn stay(&self, phase: Phase) {
        self.slot.lock().phase = phase;
    }

    /// Requests of all handles fail from now on.
    pub(crate) fn revoke(&self) {
        let mut slot = self.slot.lock();
        slot.revoked.store(true, Ordering::Release);
        slot.revoked = Arc::new(AtomicBool::new(false));
        self.limits.look_again();
    }

    /// Why it can't be opened now.
    pub(crate) fn why_closed(&self) -> Error {
        match self.phase() {
            Phase::Failed(error) => error.context(format!("vDisk '{self}' can't be opened")),
            Phase::Leaving => Error::not_found(format!("vDisk '{self}' is being deleted")),
            Phase::Closed | Phase::Open(_) => match self.pool.problem() {
                Some(error) => error.context(format!("vDisk '{self}' waits for its vPool")),
                None => Error::unavailable(format!("vDisk '{self}' is not open yet; try again in a moment")),
            },
        }
    }

    /// What is told about it; `successor` is the router that should have it, and `me` this one.
    pub(crate) fn info(&self, me: &Name, successor: Option<&Name>) -> VdiskInfo {
        let Stored { record, .. } = self.stored();
        let volume = self.owned().record;
        let owner = volume.owner();
        let (phase, clients) = {
            let slot = self.slot.lock();
            (slot.phase.clone(), slot.users())
        };
        let status = match &phase {
            Phase::Open(volume) => Some(volume.status()),
            _ => None,
        };
        let (state, reason) = match (&phase, &status, record.state) {
            (Phase::Failed(error), _, VdiskLife::Deleting) => (VdiskState::Deleting, Some(error.to_string())),
            (_, _, VdiskLife::Deleting) | (Phase::Leaving, _, _) => (VdiskState::Deleting, None),
            (_, Some(status), _) => match &status.state {
                VolumeState::Serving => (VdiskState::Serving, None),
                VolumeState::Degraded(reason) => (VdiskState::Degraded, Some(reason.clone())),
                VolumeState::Stopped(reason) => (VdiskState::Stopped, Some(reason.clone())),
            },
            (_, None, VdiskLife::Active) if successor.is_some_and(|name| name != me) => {
                (VdiskState::Elsewhere, None)
            }
            (_, None, VdiskLife::Active) if successor.is_none() => {
                let why = format!(
                    "router '{owner}' is away, and nobody else is known to have what it acknowledged"
                );
                (VdiskState::Orphaned, Some(why))
            }
            (Phase::Failed(error), _, VdiskLife::Creating) => (VdiskState::Creating, Some(error.to_string())),
            (_, _, VdiskLife::Creating) => (VdiskState::Creating, None),
            (Phase::Failed(error), _, _) => (VdiskState::Failed, Some(error.to_string())),
            (Phase::Closed | Phase::Open(_), _, _) => {
                (VdiskState::Opening, self.pool.problem().map(|e| e.to_string()))
            }
        };
        VdiskInfo {
            vpool: self.pool.name.clone(),
            name: self.name.clone(),
            id: record.id,
            size: status.as_ref().map_or(record.size, |s| s.size),
            sco_size: record.sco_size,
            epoch: status.as_ref().map_or(volume.registration.claimed, |s| s.epoch),
            owner: owner.clone(),
            tails: volume.registration.tails.len(),
            losses: volume.registration.losses.clone(),
            dtl: volume.registration.config,
            read_only: record.read_only,
            parent: record.parent,
            template: status.as_ref().is_some_and(|s| s.template),
            qos: record.qos,
            cache_quota: record.cache_quota,
            auto_migrate: record.auto_migrate,
            uses: self.traffic.uses(),
            reads_waited: self.limits.reads.waited(),
            writes_waited: self.limits.writes.waited(),
            state,
            reason,
            clients,
            status,
        }
    }
}
