//! What a router provides to the edge protocol.

use async_trait::async_trait;
use common::{Epoch, Error, Geometry, Lsn, Result};
use edge_client::wire::{Attach, Granted, Moved, Op, Outcome, Recovered, Refusal, Reply, Request};
use std::sync::Arc;

/// Attaches clients to volumes, wherever they are. A router implements it.
#[async_trait]
pub trait Attachments: Send + Sync {
    /// Attaches a client: to a volume that is owned here ([`crate::protocol::Owned::attach`]), or through a router that
    /// owns it ([`crate::protocol::Forwarder::attach`]), or not: then the client hears who owns it.
    ///
    /// What came with `hops` above 0 is answered here or refused with `Moved`: it is not passed on again.
    ///
    /// # Errors
    /// See [`Refusal`]. `Unavailable` makes the client try another router, and this one again later.
    async fn attach(&self, attach: Attach) -> Result<Arc<dyn Attached>, Refusal>;

    /// Called about once a second: closes what nobody is attached to any more.
    async fn tidy(&self) {}
}

/// One attachment in one session. Dropping it is the end of the session, not of the attachment: its client may
/// be back.
#[async_trait]
pub trait Attached: Send + Sync {
    /// What the client hears first. Its `credit` is a bound of the owner's that is elsewhere, or 0 for none.
    fn granted(&self) -> Granted;

    /// The device now: it may have grown.
    fn geometry(&self) -> Geometry;

    /// There was a sign of life of the client.
    fn heard(&self);

    /// Does what is asked; what comes of it, all but the `grant`. Once begun it is run to its end: dropped, nobody
    /// could say when it takes effect.
    async fn call(&self, request: Request) -> Reply;

    /// Gives up the attachment.
    async fn detach(&self);
}

/// What came of an [`Op`].
#[derive(Debug, Clone)]
pub struct Done {
    /// Of a change: its last place in the log, once it may be acknowledged. Of a flush: everything up to here is
    /// durable, and that is at least all that was answered before the flush came. Else 0.
    pub lsn: Lsn,
    /// `Done`, `Data` or `Extents`.
    pub outcome: Outcome,
}

/// Why an [`Op`] was not done.
#[derive(Debug, Clone)]
pub enum Refused {
    /// An error. `NotOwner`, `Fenced` and `Unavailable` are not the caller's: its client waits, and tries elsewhere or again.
    Failed(Error),
    /// Somebody else owns the volume, and it was not done.
    Moved(Moved),
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Refused::Failed(error)
    }
}

/// A volume (or a snapshot of one) that is open here in one epoch. The handle of another epoch is another one.
#[async_trait]
pub trait Volume: Send + Sync {
    /// The device now. No request comes that it rules out.
    fn geometry(&self) -> Geometry;

    /// The epoch in which it was opened.
    fn epoch(&self) -> Epoch;

    /// What there is here of what was written up to the epoch `since`: the smallest last LSN of all epochs from
    /// `since` to the one before this (the Manifest's history of epochs has them). [`Recovered::All`] when `since` is
    /// this epoch, or handed its whole log over. Not asked for 0.
    fn recovered(&self, since: Epoch) -> Recovered;

    /// Whether the DTL is in sync, as of the acknowledgement that was given last (R3).
    fn in_sync(&self) -> bool;

    /// Does it, under the authority of the epoch: checked before the answer, not before the work (rule 4). Run to
    /// its end by the caller, always.
    async fn apply(&self, op: Op) -> Result<Done, Refused>;
}
