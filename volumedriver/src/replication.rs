//! The doors of replication: what the volume driver needs of the registry and of other routers.
//!
//! The volume driver decides what may be acknowledged and what is recovered (`core`, `volume/takeover.rs`);
//! the registry, who may be a peer, and leases belong to whoever opens volumes.

use async_trait::async_trait;
use common::kv::Lease;
use common::{Epoch, Lsn, Name, Result, VolumeId};
use dtl::client::Client;
use dtl::owner::{Outcome, Patience};
use dtl::{Config, Loss, Registration, Status, Tail};
use std::sync::Arc;

/// The registry and the other routers, as a volume's replication sees them.
#[async_trait]
pub trait Peers: Send + Sync {
    /// This router.
    fn node(&self) -> &Name;

    /// A client of the DTL of a router; `None` when the registry does not know where it is.
    fn client(&self, node: &Name) -> Option<Arc<Client>>;

    /// Up to `want` routers that may keep a log of the volume: none of `avoid`, nor this one.
    async fn recruit(&self, volume: VolumeId, want: usize, avoid: &[Name]) -> Vec<(Name, Arc<Client>)>;

    /// Replaces how the volume is replicated, if the registry still has this epoch and number of a configuration.
    async fn propose(&self, volume: VolumeId, expect: (Epoch, u64), new: &Config) -> Outcome;

    /// A new owner has recovered the volume up to `recovered.last` and is about to serve: the logs that the registry
    /// names become a tail of it, and the epoch begins with nobody but this router. The result is how it is to be
    /// replicated, as the registry has it then.
    ///
    /// # Errors
    /// `Fenced` when another router owns it. After any other it may have happened; it may be called again.
    async fn begin(&self, volume: VolumeId, recovered: Recovered) -> Result<Registration>;

    /// The backend has everything up to `committed`: tails that end there are needed no more. The result is what the
    /// registry still names.
    async fn drop_tails(&self, volume: VolumeId, epoch: Epoch, committed: Lsn) -> Result<Vec<Tail>>;
}

/// What a takeover found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// The new epoch.
    pub epoch: Epoch,
    /// The backend has everything up to here.
    pub committed: Lsn,
    /// The last LSN that counts.
    pub last: Lsn,
    /// What it went without, where it was forced.
    pub lost: Option<Loss>,
}

/// What is known of a volume before it is opened.
#[derive(Clone)]
pub struct Opening {
    /// What the registry says of its last owner, with the epoch that is to be opened claimed.
    pub registration: Registration,
    /// The last owner was this router, with the write buffer that it has now.
    pub same_journal: bool,
    /// The machine has not been restarted since.
    pub same_boot: bool,
    /// An operator accepts the loss of what can't be had.
    pub forced: bool,
    /// The registry, and the other routers.
    pub peers: Arc<dyn Peers>,
    /// How long peers may take.
    pub patience: Patience,
    /// Under which the volume is served: without it nobody is answered (rule 4).
    pub authority: Arc<dyn Lease>,
}

impl Opening {
    /// What is to be believed of it when the backend knows an epoch, `before`, that the registry did not know when this
    /// one was claimed: the registry is one of before, from a backup (rule 18). Who owned the volume last and who has
    /// its tail is not known then, but for this router's write buffer, if that is of the epoch: `journal` is its newest.
    pub(crate) fn older_than(&self, before: Epoch, journal: Option<Epoch>) -> Opening {
        let mut known = self.clone();
        known.registration.clean = false;
        known.registration.config.status = Status::Degraded;
        known.same_journal &= journal == Some(before);
        tracing::warn!(epoch = %before, "the registry is older than the volume: nobody's log of it is believed");
        known
    }
}
