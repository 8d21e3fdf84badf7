//! The registry opened: founded, upgraded, joined, or gone on with.

use super::membership::{FOUNDER, Membership, Stage, shown};
use super::settings::ClusterSettings;
use super::{Cluster, may_pass, refuse_left, roster};
use crate::datadir::DataDir;
use anyhow::{Context, Result};
use common::kv::Kv;
use common::{Clock, Error, ErrorKind};
use kvstore::node::{Metrics, Settings};
use kvstore::transport::Tls;
use kvstore::{Client, ClientConfig, Instance, InstanceConfig, LocalKv, Origin, RocksSettings, Stopped};
use prometheus_client::registry::Registry;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Notify;

/// How long it is waited for an answer of the registry before that is told.
const TELL: Duration = Duration::from_secs(5);
/// How long the others may take to say whether this router is one of them.
const LOOK: Duration = Duration::from_secs(1);
/// The registry is small: a few records for each vDisk.
pub(super) const ROCKS: RocksSettings = RocksSettings {
    block_cache_bytes: 8 << 20,
    write_buffer_bytes: 8 << 20,
    max_open_files: 64,
    background_jobs: 1,
};

/// What a registry is opened with.
pub struct Opening<'a> {
    /// `[cluster]`.
    pub settings: &'a ClusterSettings,
    /// The data directory, held.
    pub data_dir: &'a DataDir,
    /// Where members and clients connect.
    pub listener: TcpListener,
    /// Time and chance.
    pub clock: Arc<dyn Clock>,
}

impl Opening<'_> {
    /// Opens it and waits until it answers; nothing when this router has left its cluster by that. It lives on the runtime that this
    /// is called on, and leases are kept alive there.
    pub async fn open(self, metrics: &mut Registry) -> Result<Option<Arc<Cluster>>> {
        let tls = self.settings.tls()?;
        let dir = self.data_dir.path();
        let port = self.listener.local_addr().context("cluster.listen")?.port();
        let address = self.settings.advertised(port);
        let mut note = Membership::read(dir)?;
        if let Some(note) = &mut note
            && note.at == Stage::Asked
        {
            begin_to_join(note, self.data_dir, tls.as_ref(), &self.clock).await?;
        }
        let (member, origin) = match &note {
            None => {
                let local = Some(self.data_dir.registry());
                (FOUNDER, Origin::Found { address: address.clone(), local })
            }
            Some(note) => match note.at {
                Stage::Left { .. } | Stage::Asked => return Err(refuse_left(self.data_dir)),
                Stage::Joining { member } | Stage::Member { member } | Stage::Leaving { member } => {
                    (member, Origin::Join { group: note.group()? })
                }
            },
        };
        let instance = Instance::start(InstanceConfig {
            dir: self.data_dir.cluster(),
            member,
            origin,
            listener: self.listener,
            tls: tls.clone(),
            clock: self.clock.clone(),
            settings: Settings::default(),
            rocks: ROCKS,
            metrics: Metrics::new(metrics),
        })
        .await?;
        self.data_dir.raise_format()?;
        let mut config = ClientConfig::new(note.as_ref().map(|n| n.peers.clone()).unwrap_or_default());
        config.group = instance.group();
        config.local = Some(instance.handle());
        config.tls = tls.as_ref().map(|tls| tls.client.clone());
        config.hearts = Some(tokio::runtime::Handle::current());
        let cluster = Cluster {
            client: Client::new(config, self.clock.clone()),
            instance,
            data_dir: dir.to_path_buf(),
            name: self.settings.name(self.data_dir.id()),
            address,
            tls,
            clock: self.clock,
            changing: tokio::sync::Mutex::new(()),
            left: Notify::new(),
        };
        match note {
            Some(mut note) if matches!(note.at, Stage::Leaving { .. }) => {
                cluster.finish_leaving(&mut note, None).await?;
                cluster.instance.kill().await;
                return Ok(None);
            }
            Some(mut note) if matches!(note.at, Stage::Joining { .. }) => {
                cluster.finish_joining(&mut note, self.data_dir).await?;
            }
            _ => {}
        }
        // What is known of the others, for when this one does not lead.
        cluster.client.status().await?;
        cluster.wait(self.data_dir).await?;
        cluster.seats(&cluster.client, None).relocate(member, &cluster.address).await?;
        roster::enter(&cluster.client, member, &cluster.name).await?;
        Ok(Some(Arc::new(cluster)))
    }
}

/// Puts away the registry of before, and takes an id in the group. Killed in between, it does so once more, and an id is lost.
async fn begin_to_join(
    note: &mut Membership,
    data_dir: &DataDir,
    tls: Option<&Tls>,
    clock: &Arc<dyn Clock>,
) -> Result<()> {
    for old in [data_dir.cluster(), data_dir.registry()] {
        match std::fs::remove_dir_all(&old) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e).with_context(|| format!("removing {}", old.display()));
            }
            _ => {}
        }
    }
    let client = peers(note.peers.clone(), note.group()?, tls, clock);
    let member = roster::draw_id(&client).await.map_err(|e| e.context("joining the cluster"))?;
    note.move_to(Stage::Joining { member }, data_dir.path())?;
    Ok(())
}

/// A client of the members at `peers`, whatever is in this process.
pub(super) fn peers(peers: Vec<String>, group: u128, tls: Option<&Tls>, clock: &Arc<dyn Clock>) -> Client {
    let mut config = ClientConfig::new(peers);
    config.group = group;
    config.tls = tls.map(|tls| tls.client.clone());
    Client::new(config, clock.clone())
}

impl Cluster {
    /// A client of the others alone.
    async fn others(&self) -> common::Result<Option<Client>> {
        let (status, own) = (self.instance.handle().status().await?, self.instance.member());
        let addresses: Vec<_> =
            status.members.into_iter().filter(|(id, _)| *id != own).map(|(_, address)| address).collect();
        Ok((!addresses.is_empty()).then(|| self.peers(addresses)))
    }

    async fn finish_joining(&self, note: &mut Membership, data_dir: &DataDir) -> Result<()> {
        // Not through this process: until it has caught up it knows nothing.
        let client = self.peers(note.peers.clone());
        let (member, handle) = (self.instance.member(), self.instance.handle());
        roster::enter(&client, member, &self.name).await?;
        let seats = self.seats(&client, None);
        let taken = tokio::select! {
            taken = seats.take(member, &self.address) => taken,
            () = handle.stopped() => Err(has_stopped()),
        };
        match taken {
            Ok(()) => {
                note.move_to(Stage::Member { member }, &self.data_dir)?;
                tracing::info!(member, group = shown(self.group()), "joined the cluster");
                Ok(())
            }
            Err(error) if error.kind == ErrorKind::Conflict => {
                // Removed before it was in: its id is used up.
                tracing::error!(member, %error, "it does not become a member of the cluster");
                note.move_to(Stage::Left { member }, &self.data_dir)?;
                Err(refuse_left(data_dir))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until the registry answers. A group of one does so at once, others when enough of them are there.
    async fn wait(&self, data_dir: &DataDir) -> Result<()> {
        let handle = self.instance.handle();
        loop {
            let answered = tokio::select! {
                answered = answers(&self.client) => answered,
                () = handle.stopped() => Err(has_stopped()),
            };
            if self.was_removed().await? {
                let mut note = Membership::here(&self.data_dir, self.group(), self.instance.member())?;
                note.move_to(Stage::Left { member: self.instance.member() }, &self.data_dir)?;
                return Err(refuse_left(data_dir));
            }
            match answered {
                Ok(()) => return Ok(()),
                Err(error) if may_pass(&error) => {
                    let status = handle.status().await?;
                    let voters = status.configuration.voters.len();
                    let (needed, members) = (voters / 2 + 1, format!("{:?}", status.members));
                    tracing::warn!(%error, members, "waiting for the registry: {needed} of {voters} voters have to be there");
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Whether the others, as far as they can be asked, have gone on without this router.
    async fn was_removed(&self) -> common::Result<bool> {
        let Some(others) = self.others().await? else { return Ok(false) };
        let Ok(theirs) = others.within(LOOK).status().await else { return Ok(false) };
        let own = self.instance.handle().status().await;
        let behind = own.is_ok_and(|own| own.applied > theirs.applied);
        Ok(!behind && theirs.leader.is_some() && !theirs.configuration.contains(self.instance.member()))
    }
}

fn has_stopped() -> Error {
    Error::fenced("the registry in this process has stopped; why is in the log")
}

async fn answers(client: &Client) -> common::Result<()> {
    client.within(TELL).get("cluster/next").await.map(drop)
}

/// What the registry of a stopped router says, of this release or the one before; its data directory is held.
pub fn stopped(data_dir: &DataDir) -> common::Result<Arc<dyn Kv>> {
    match Stopped::open(data_dir.cluster())? {
        Some(registry) => Ok(Arc::new(registry)),
        None => Ok(Arc::new(LocalKv::open(data_dir.registry())?)),
    }
}
