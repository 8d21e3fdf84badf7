//! A volume that is served here, to whoever is attached to it.

use super::door::{Attached, Done, Refused, Volume};
use super::gate::Gate;
use super::sessions::{Admission, Holder, Sessions};
use async_trait::async_trait;
use common::{Clock, Epoch, Error, ErrorKind, Geometry, Lsn, mutant};
use edge_client::wire::{
    Attach, Credit, Granted, MAX_PAYLOAD, Mode, Outcome, Recovered, Refusal, Reply, Request,
};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;

/// An open volume and its attachments. One for each epoch; it ends with the volume's handle.
pub struct Owned {
    volume: Arc<dyn Volume>,
    epoch: Epoch,
    sessions: Mutex<Sessions>,
    clock: Arc<dyn Clock>,
}

impl Owned {
    /// Serves `volume`, which was just opened. An attachment whose client is gone is kept for `lease`; `before` were
    /// attached when it was open elsewhere.
    pub fn new(
        volume: Arc<dyn Volume>,
        lease: Duration,
        before: Vec<Holder>,
        clock: Arc<dyn Clock>,
    ) -> Arc<Owned> {
        let epoch = volume.epoch();
        let sessions = Mutex::new(Sessions::new(epoch, lease, before, clock.now()));
        Arc::new(Owned { volume, epoch, sessions, clock })
    }

    /// Attaches a client; returns when nothing of its sessions before can happen any more.
    ///
    /// # Errors
    /// Those of [`Sessions::attach`].
    pub async fn attach(self: &Arc<Self>, attach: &Attach) -> Result<Arc<dyn Attached>, Refusal> {
        let admission = self.sessions.lock().attach(attach, self.clock.now())?;
        let Admission { gate, draining, known } = admission;
        // From here on the end of the client's connection is the end of the session.
        let seat = Arc::new(Seat {
            owned: self.clone(),
            gate,
            attachment: attach.attachment,
            read_only: attach.mode == Mode::ReadOnly,
            recovered: match attach.since {
                since if since == Epoch(0) || since == self.epoch => Recovered::All,
                since => self.volume.recovered(since),
            },
            known,
        });
        if !mutant::is_on("lower-session-not-drained") {
            for gate in &draining {
                gate.drained().await;
            }
        }
        self.sessions.lock().drained(attach.attachment, &draining);
        if seat.gate.is_shut() {
            return Err(Error::unavailable("the client attached again meanwhile").into());
        }
        Ok(seat)
    }

    /// Takes an attachment away, by an operator's wish; returns when its last request has ended.
    pub async fn revoke(&self, attachment: u128) {
        let draining = self.sessions.lock().revoke(attachment);
        for gate in draining {
            gate.drained().await;
        }
    }

    /// Who is attached, or may come back: to be written down for the next owner.
    pub fn holders(&self) -> Vec<Holder> {
        self.sessions.lock().holders()
    }

    /// Whether no client is here, or was less than a lease ago: the volume may be closed.
    pub fn is_idle(&self) -> bool {
        self.sessions.lock().is_idle(self.clock.now())
    }
}

/// An attachment in a session.
struct Seat {
    owned: Arc<Owned>,
    gate: Arc<Gate>,
    attachment: u128,
    read_only: bool,
    recovered: Recovered,
    known: bool,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.gate.leave(self.owned.clock.now());
    }
}

impl Seat {
    async fn apply(&self, request: Request) -> Result<Done, Refused> {
        if request.epoch != self.owned.epoch {
            let why = format!("a request of epoch {} in epoch {}", request.epoch, self.owned.epoch);
            return Err(Error::new(ErrorKind::NotOwner, why).into());
        }
        if self.read_only && request.op.changes() {
            return Err(Error::new(ErrorKind::Denied, "the disk is attached read-only").into());
        }
        let pass = self.gate.enter()?;
        let done = self.owned.volume.apply(request.op).await;
        pass.end();
        done
    }
}

#[async_trait]
impl Attached for Seat {
    fn granted(&self) -> Granted {
        Granted {
            geometry: self.geometry(),
            epoch: self.owned.epoch,
            recovered: self.recovered,
            known: self.known,
            in_sync: self.owned.volume.in_sync(),
            disk_read_only: self.owned.volume.geometry().read_only,
            forwarded: false,
            credit: Credit::default(),
        }
    }

    fn geometry(&self) -> Geometry {
        let geometry = self.owned.volume.geometry();
        Geometry {
            read_only: geometry.read_only || self.read_only,
            max_payload: geometry.max_payload.min(MAX_PAYLOAD),
            ..geometry
        }
    }

    fn heard(&self) {
        self.gate.hear(self.owned.clock.now());
    }

    async fn call(&self, request: Request) -> Reply {
        let sequence = request.sequence;
        let (lsn, outcome) = match self.apply(request).await {
            Ok(done) => (done.lsn, done.outcome),
            Err(Refused::Failed(error)) => (Lsn(0), Outcome::Failed(error)),
            Err(Refused::Moved(moved)) => (Lsn(0), Outcome::Moved(moved)),
        };
        let in_sync = self.owned.volume.in_sync();
        Reply { sequence, epoch: self.owned.epoch, lsn, in_sync, grant: Credit::default(), outcome }
    }

    async fn detach(&self) {
        let draining = self.owned.sessions.lock().detach(self.attachment, &self.gate);
        for gate in draining {
            gate.drained().await;
        }
    }
}
