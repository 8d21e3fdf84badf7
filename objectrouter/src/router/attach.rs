//! Clients of the edge protocol: attached here, at the router that owns the volume, or sent to it.

use super::Router;
use crate::registry::{AttachedRecord, NodeRecord, VolumeRecord};
use crate::traffic::Tally;
use crate::vdisk::Vdisk;
use async_trait::async_trait;
use common::{BlockDevice, Epoch, Error, ErrorKind, Geometry, Lsn, Name, Result, VolumeId, mutant};
use edge::protocol::{
    Attach, Attached, Attachments, Done, Forwarder, Granted, Holder, Mode, Moved, Op, Outcome, Owned, Plain,
    Recovered, Refusal, Refused, Reply, Request, Volume,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The door for clients of the edge protocol.
pub struct RouterAttachments {
    router: Arc<Router>,
    forwarder: Forwarder,
    lease: Duration,
    redirect: bool,
}

/// Where a vDisk is served.
enum Place {
    Here,
    At(Name, NodeRecord),
    Nowhere(Error),
}

impl RouterAttachments {
    /// Keeps an attachment for `lease` when its client is gone. Who wants what is owned elsewhere is sent there if
    /// `redirect` and it did not come from there in vain, else served through this router.
    pub fn new(router: Arc<Router>, forwarder: Forwarder, lease: Duration, redirect: bool) -> Self {
        Self { router, forwarder, lease, redirect }
    }

    async fn attach_here(&self, vdisk: &Arc<Vdisk>, attach: &Attach) -> Result<Arc<dyn Attached>, Refusal> {
        let router = &self.router;
        router.serve(vdisk).await?;
        let make = |volume: Arc<volumedriver::Volume>| {
            let before = vdisk.owned().record.attached.into_iter();
            let before = before.map(|record| Holder {
                attachment: record.attachment.0,
                mode: Mode::Exclusive,
                client: record.client,
            });
            let served =
                Served { router: router.clone(), vdisk: vdisk.clone(), epoch: volume.status().epoch, volume };
            Owned::new(Arc::new(served), self.lease, before.collect(), router.clock.clone())
        };
        let Some(owned) = vdisk.attachments(make) else { return Err(vdisk.why_closed().into()) };
        let attached = owned.attach(attach).await?;
        if attach.mode == Mode::Exclusive && !note(router, vdisk, &owned).await? {
            // The next owner would not know it, and who does not know it turns it away for good.
            return Err(vdisk.why_closed().into());
        }
        Ok(match self.via(attach) {
            Some(via) => Arc::new(Through { attached, tally: vdisk.traffic.by_way_of(&via) }),
            None => attached,
        })
    }

    /// The other router by way of which a client comes. Names of nobody are not kept.
    fn via(&self, attach: &Attach) -> Option<Name> {
        let name: Name = attach.via.parse().ok()?;
        let cluster = &self.router.cluster;
        (name != *cluster.me() && cluster.node(&name).is_some()).then_some(name)
    }

    async fn attach_snapshot(
        &self,
        vdisk: &Arc<Vdisk>,
        snapshot: &str,
        attach: &Attach,
    ) -> Result<Arc<dyn Attached>, Refusal> {
        let device = self.router.open_snapshot(vdisk, snapshot).await?;
        let epoch = vdisk.owned().record.registration.epoch;
        let owned = Owned::new(
            Arc::new(Plain::new(device, epoch)),
            self.lease,
            Vec::new(),
            self.router.clock.clone(),
        );
        owned.attach(attach).await
    }
}

/// Writes down who is attached, when that has changed; false where this router does not own the volume any more, so that
/// it is not written.
async fn note(router: &Router, vdisk: &Vdisk, owned: &Arc<Owned>) -> Result<bool> {
    let attached = || {
        let exclusive = owned.holders().into_iter().filter(|holder| holder.mode == Mode::Exclusive);
        let record = |holder: Holder| AttachedRecord {
            attachment: VolumeId(holder.attachment),
            client: holder.client,
        };
        exclusive.map(record).collect::<Vec<_>>()
    };
    let current = |record: &VolumeRecord| {
        vdisk.attached().is_some_and(|now| Arc::ptr_eq(&now, owned)) && router.holds(record)
    };
    let known = vdisk.owned().record;
    if known.attached == attached() {
        return Ok(current(&known));
    }
    let noted = AtomicBool::new(false);
    router
        .change_volume(vdisk, |record| {
            // As it is when it is written: of two that write at a time the later one may know less.
            noted.store(current(record), Ordering::Relaxed);
            if noted.load(Ordering::Relaxed) {
                record.attached = attached();
            }
        })
        .await?;
    Ok(noted.into_inner())
}

#[async_trait]
impl Attachments for RouterAttachments {
    async fn attach(&self, attach: Attach) -> Result<Arc<dyn Attached>, Refusal> {
        let (name, snapshot) = match attach.export.split_once('@') {
            Some((name, snapshot)) => (name, Some(snapshot)),
            None => (attach.export.as_str(), None),
        };
        let vdisk = self.router.find_export(name)?;
        match self.router.place(&vdisk) {
            Place::Here => match snapshot {
                None => self.attach_here(&vdisk, &attach).await,
                Some(snapshot) => self.attach_snapshot(&vdisk, snapshot, &attach).await,
            },
            Place::At(owner, node) if attach.hops > 0 || self.redirect && !attach.pass_on => {
                Err(Refusal::Moved(moved(&vdisk, &owner, node)))
            }
            Place::At(_, node) => {
                let attach = Attach { via: self.router.node().to_string(), ..attach };
                self.forwarder.attach(&node.addresses.edge, attach).await
            }
            Place::Nowhere(error) => Err(error.into()),
        }
    }

    async fn tidy(&self) {
        for vdisk in self.router.all_vdisks() {
            if let Some(owned) = vdisk.attached()
                && let Err(error) = note(&self.router, &vdisk, &owned).await
            {
                tracing::debug!(vdisk = %vdisk, %error, "can't write down who is attached");
            }
        }
    }
}

fn moved(vdisk: &Vdisk, owner: &Name, node: NodeRecord) -> Moved {
    Moved {
        owner: owner.to_string(),
        addresses: node.addresses.edge,
        epoch: vdisk.owned().record.registration.claimed,
    }
}

impl Router {
    fn place(&self, vdisk: &Vdisk) -> Place {
        let nowhere = |why: &str| Place::Nowhere(Error::unavailable(format!("vDisk '{vdisk}': {why}")));
        match self.successor(vdisk) {
            Some(name) if name == *self.cluster.me() => Place::Here,
            Some(name) => match self.cluster.node(&name) {
                Some(node) if !node.addresses.edge.is_empty() => Place::At(name, node),
                _ => nowhere("its owner can't be reached by the edge protocol"),
            },
            None => nowhere("its owner is away, and nobody else has what it acknowledged"),
        }
    }
}

/// A volume that is open here, for clients of the edge protocol.
struct Served {
    router: Arc<Router>,
    vdisk: Arc<Vdisk>,
    volume: Arc<volumedriver::Volume>,
    epoch: Epoch,
}

impl Served {
    fn is_open(&self) -> bool {
        self.vdisk.volume().is_some_and(|volume| Arc::ptr_eq(&volume, &self.volume))
    }

    async fn pay(&self, op: &Op) {
        let limits = &self.vdisk.limits;
        let (lane, bytes) = match op {
            Op::Read { len, .. } => (&limits.reads, u64::from(*len)),
            Op::Write { data, .. } => (&limits.writes, data.len() as u64),
            Op::Zeroes { .. } | Op::Discard { .. } => (&limits.writes, 0),
            _ => return,
        };
        if lane.is_limited() && !lane.try_pay(bytes) {
            lane.pay(bytes, || !self.is_open()).await;
        }
    }

    async fn carry_out(&self, op: Op) -> Result<Done> {
        let volume = &self.volume;
        let done = |lsn| Done { lsn, outcome: Outcome::Done };
        Ok(match op {
            Op::Read { offset, len } => {
                Done { lsn: Lsn(0), outcome: Outcome::Data(volume.read(offset, len).await?) }
            }
            Op::Extents { offset, len } => {
                Done { lsn: Lsn(0), outcome: Outcome::Extents(volume.extents(offset, len).await?) }
            }
            Op::Write { offset, data, fua } => done(volume.log_write(offset, data, fua).await?),
            Op::Zeroes { offset, len, hole, fua } => done(volume.log_zeroes(offset, len, hole, fua).await?),
            Op::Discard { offset, len, fua } => done(volume.log_zeroes(offset, len, true, fua).await?),
            Op::Flush => done(volume.log_flush().await?),
            Op::Prefetch { offset, len } => {
                volume.prefetch(offset, len).await?;
                done(Lsn(0))
            }
        })
    }

    /// Of an error that comes from losing the volume, its client hears where it is now.
    fn refused(&self, error: Error) -> Refused {
        let lost = matches!(error.kind, ErrorKind::NotOwner | ErrorKind::Fenced);
        if !lost && self.is_open() {
            return Refused::Failed(error);
        }
        match self.router.place(&self.vdisk) {
            Place::At(owner, node) => Refused::Moved(moved(&self.vdisk, &owner, node)),
            _ => Refused::Failed(Error::new(ErrorKind::NotOwner, error.message())),
        }
    }
}

#[async_trait]
impl Volume for Served {
    fn geometry(&self) -> Geometry {
        let mut geometry = self.volume.geometry();
        geometry.read_only = self.vdisk.stored().record.read_only || self.volume.template().is_some();
        geometry
    }

    fn epoch(&self) -> Epoch {
        self.epoch
    }

    fn recovered(&self, since: Epoch) -> Recovered {
        if mutant::is_on("recovered-says-all") {
            return Recovered::All;
        }
        self.volume.recovered(since).map_or(Recovered::All, Recovered::UpTo)
    }

    fn in_sync(&self) -> bool {
        self.volume.is_in_sync()
    }

    async fn apply(&self, op: Op) -> Result<Done, Refused> {
        self.pay(&op).await;
        if !self.is_open() {
            return Err(self.refused(Error::new(ErrorKind::NotOwner, "the vDisk is not open here any more")));
        }
        let asked = Tally::weigh(&op);
        let done = self.carry_out(op).await.map_err(|error| self.refused(error))?;
        self.vdisk.traffic.all.add(asked);
        Ok(done)
    }
}

/// An attachment by way of another router: what is done for it is counted.
struct Through {
    attached: Arc<dyn Attached>,
    tally: Arc<Tally>,
}

#[async_trait]
impl Attached for Through {
    fn granted(&self) -> Granted {
        self.attached.granted()
    }

    fn geometry(&self) -> Geometry {
        self.attached.geometry()
    }

    fn heard(&self) {
        self.attached.heard();
    }

    async fn call(&self, request: Request) -> Reply {
        let asked = Tally::weigh(&request.op);
        let reply = self.attached.call(request).await;
        if matches!(reply.outcome, Outcome::Done | Outcome::Data(_)) {
            self.tally.add(asked);
        }
        reply
    }

    async fn detach(&self) {
        self.attached.detach().await;
    }
}
