//! This router as a member of a cluster: the registry in its process, and how members come and go.
//!
//! | room | what |
//! |---|---|
//! | [`settings`] | `[cluster]` of the configuration |
//! | [`membership`] | the note in the data directory: which group, which id, how far it came |
//! | `start` | the registry opened: founded, upgraded, joined, gone on with |
//! | `seats` | members added, promoted, moved and removed, in steps that may be cut off anywhere |
//! | `roster` | what the registry says about the members: their names, ids that were given out |
//! | `status` | who is there, who leads, who may fail |
//! | `commands` | `storagerouter cluster` and `storagerouter registry` |
//!
//! A router begins as a group of one: the same code, with one voter. Does not own: the registry itself (kvstore), what its other keys
//! mean (objectrouter).

pub mod commands;
pub mod membership;
mod roster;
mod seats;
pub mod settings;
mod start;
mod status;

pub use start::{Opening, stopped};

use crate::datadir::DataDir;
use common::{Clock, Error, ErrorKind, Result};
use framework::ClusterControl;
use framework::types::BackedUp;
use kvstore::transport::Tls;
use kvstore::{Client, Instance};
use membership::{Membership, Stage};
use objectrouter::Router;
use seats::Seats;
use start::peers;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// How long a change of the members may take before it is looked at again.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long somebody who asks for a change waits for it.
const CHANGE: Duration = Duration::from_secs(30);
/// How long it is waited that somebody else takes the lead.
const HAND_OVER: Duration = Duration::from_secs(2);

/// How long a router that leaves may take to give its vDisks away.
const EMPTYING: Duration = Duration::from_secs(300);

/// The registry of this process, and this router's place in it.
pub struct Cluster {
    instance: Instance,
    client: Client,
    /// Where the membership is noted.
    data_dir: PathBuf,
    name: String,
    address: String,
    tls: Option<Tls>,
    clock: Arc<dyn Clock>,
    /// One change of the members by this router at a time.
    changing: tokio::sync::Mutex<()>,
    left: Notify,
}

/// Why a router stops by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It has left its cluster, as it was told.
    Left,
    /// The registry in this process has stopped.
    Failed,
}

impl Cluster {
    /// The registry, asked in this process first.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Where other members reach this one.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Whether this router began the cluster.
    pub fn is_founder(&self) -> bool {
        self.instance.member() == membership::FOUNDER
    }

    /// The group.
    pub fn group(&self) -> u128 {
        self.instance.group()
    }

    /// Waits until this router can't go on as a member.
    pub async fn ended(&self) -> End {
        let handle = self.instance.handle();
        tokio::select! {
            () = self.left.notified() => return End::Left,
            () = handle.stopped() => {}
        }
        // A member that leaves may hear so from the others before its own note is written.
        let _noted = self.changing.lock().await;
        let note = Membership::read(&self.data_dir).ok().flatten();
        match note.map(|note| note.at) {
            Some(Stage::Left { .. }) => End::Left,
            _ => End::Failed,
        }
    }

    /// Ends the registry in this process; what leads here is handed over first.
    pub async fn stop(self: Arc<Self>) {
        match Arc::try_unwrap(self) {
            Ok(cluster) => cluster.instance.stop().await,
            // A request that is still answered holds it; what ends now is as good as killed.
            Err(cluster) => cluster.hand_over().await,
        }
    }

    /// What the API works on.
    pub fn control(self: &Arc<Self>, router: &Arc<Router>) -> ClusterControl {
        let (status, leave, backup) = (self.clone(), self.clone(), self.clone());
        let router = router.clone();
        ClusterControl {
            status: Arc::new(move || {
                let cluster = status.clone();
                Box::pin(async move { cluster.status().await })
            }),
            leave: Arc::new(move |member, force| {
                let (cluster, router) = (leave.clone(), router.clone());
                Box::pin(async move { cluster.leave(member, force, &router).await })
            }),
            backup: Arc::new(move |path| {
                let cluster = backup.clone();
                Box::pin(async move { cluster.backup(Path::new(&path)).await })
            }),
        }
    }

    async fn hand_over(&self) {
        let handle = self.instance.handle();
        tokio::select! {
            () = handle.hand_over() => {}
            () = self.clock.sleep(HAND_OVER) => {}
        }
    }

    /// Changes of the members, through `client`.
    fn seats(&self, client: &Client, limit: Option<Duration>) -> Seats {
        Seats { client: client.within(PATIENCE), clock: self.clock.clone(), limit }
    }

    /// Takes `member` out of the cluster, or this router itself, once it owns nothing any more or by `force`.
    async fn leave(&self, member: Option<u64>, force: bool, router: &Arc<Router>) -> Result<()> {
        let _one = self.changing.lock().await;
        let own = self.instance.member();
        let member = member.unwrap_or(own);
        let status = self.client.status().await?;
        if !status.configuration.contains(member) {
            return Err(Error::not_found(format!(
                "the cluster has no member {member}: 'storagerouter cluster status' shows who there is"
            )));
        }
        if status.configuration.ids().all(|id| id == own) {
            return Err(Error::conflict(
                "this router is alone in its cluster, so there is nothing to leave: stop it, and remove its data directory if it \
                 is not needed any more",
            ));
        }
        if member != own {
            self.seats(&self.client, Some(CHANGE)).remove(member).await?;
            tracing::info!(member, "removed from the cluster");
            return roster::forget(&self.client, member).await;
        }
        if !force {
            router.give_all_away(EMPTYING).await.map_err(|e| {
                e.context("the router does not leave yet (mend that, or leave with --force: then they wait for what it uploads when it stops)")
            })?;
        }
        let mut note = Membership::here(&self.data_dir, self.group(), own)?;
        note.peers = status.members.iter().filter(|(id, _)| **id != own).map(|(_, a)| a.clone()).collect();
        note.move_to(Stage::Leaving { member: own }, &self.data_dir)?;
        match self.finish_leaving(&mut note, Some(CHANGE)).await {
            Ok(()) => {
                self.left.notify_one();
                Ok(())
            }
            Err(error) if may_pass(&error) => Err(error.context(
                "leaving is under way, and goes on when it is asked for again or at the next start",
            )),
            Err(error) => {
                note.move_to(Stage::Member { member: own }, &self.data_dir)?;
                if !force && let Err(again) = router.take_vdisks_again().await {
                    tracing::warn!(error = %again, "the router takes no vDisks until it is started again");
                }
                Err(error)
            }
        }
    }

    /// The steps of leaving behind the note; each may have been done before.
    async fn finish_leaving(&self, note: &mut Membership, limit: Option<Duration>) -> Result<()> {
        let own = self.instance.member();
        self.hand_over().await;
        // The others alone: what this member believes does not count any more.
        let others = self.peers(note.peers.clone());
        self.seats(&others, limit).remove(own).await?;
        roster::forget(&others, own).await?;
        note.move_to(Stage::Left { member: own }, &self.data_dir)?;
        tracing::info!(member = own, "this router has left its cluster");
        Ok(())
    }

    /// A client of members at these addresses, whatever is in this process.
    fn peers(&self, addresses: Vec<String>) -> Client {
        peers(addresses, self.group(), self.tls.as_ref(), &self.clock)
    }

    async fn backup(&self, path: &Path) -> Result<BackedUp> {
        if !path.is_absolute() {
            return Err(Error::invalid(format!(
                "'{}' is not an absolute path: the file is made on the router's machine",
                path.display()
            )));
        }
        let info = self.instance.backup(path).await?;
        Ok(BackedUp {
            path: path.display().to_string(),
            group: membership::shown(info.group),
            revision: info.revision,
            bytes: info.bytes,
        })
    }
}

/// Whether an error may be gone the next time.
fn may_pass(error: &Error) -> bool {
    error.kind == ErrorKind::Unavailable
}

/// Refuses what would start on the registry of a router that has left.
fn refuse_left(data_dir: &DataDir) -> anyhow::Error {
    crate::failure::Failure::error(
        crate::failure::Exit::Conflict,
        format!(
            "the router of the data directory {} has left its cluster, or was removed from it, and what it has of the registry is \
             old: join again with 'storagerouter cluster join', or choose another directory with --data-dir",
            data_dir.path().display()
        ),
    )
}
