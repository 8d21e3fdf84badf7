//! `storagerouter cluster` and `storagerouter registry`.

use super::membership::{FOUNDER, Membership, Stage, shown};
use super::settings::is_this_machine;
use super::start::{ROCKS, peers};
use super::stopped;
use crate::cli::cluster::{Cluster, ClusterAction, Registry, RegistryAction};
use crate::cli::{ConfigArgs, Output};
use crate::client::http::Api;
use crate::client::{cluster as tables, print, show};
use crate::config::Settings;
use crate::datadir::DataDir;
use crate::failure::{Exit, Failure};
use anyhow::{Context, Result};
use common::clock::SystemClock;
use common::{Clock, Name};
use framework::types::{BackedUp, Backup, ClusterStatus};
use hyper::Method;
use kvstore::Stopped;
use kvstore::backup::{RestoreConfig, restore};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// A member that leaves hands over what it has: longer than it may take to give its vDisks away.
const PATIENCE: Duration = Duration::from_secs(400);
/// How long a member may take to say which cluster it is of.
const LOOK: Duration = Duration::from_secs(5);

/// `cluster ...`.
pub async fn cluster(args: &Cluster) -> Result<()> {
    let output = args.api.output;
    match &args.action {
        ClusterAction::Init { one_machine } => {
            let status: ClusterStatus = Api::new(&args.api)?.get("/api/v1/cluster").await?;
            let host = status.address.rsplit_once(':').map_or("", |(host, _)| host);
            if is_this_machine(host) && !one_machine {
                return Err(Failure::error(
                    Exit::Conflict,
                    format!(
                        "other machines can't reach this router at {}: set cluster.listen and cluster.advertise to an address of this \
                         machine, and cluster.tls_cert, cluster.tls_key and cluster.tls_ca, and start it again; or say \
                         --one-machine when all routers run here",
                        status.address
                    ),
                ));
            }
            show(output, &status, tables::how_to_join)
        }
        ClusterAction::Join { config, peers } => join(config, peers, output).await,
        ClusterAction::Leave { member, force } => {
            let api = Api::new(&args.api)?.with_timeout(PATIENCE);
            let member_query = member.map(|member| format!("&member={member}")).unwrap_or_default();
            let query = format!("?force={force}{member_query}");
            api.request(Method::POST, &format!("/api/v1/cluster/leave{query}"), None::<&()>).await?;
            match (output, member) {
                (Output::Json, _) => Ok(()),
                (Output::Table, Some(member)) => print(&format!("member {member} was removed")),
                (Output::Table, None) => print("the router has left its cluster, and stops"),
            }
        }
        ClusterAction::Status => {
            let status: ClusterStatus = Api::new(&args.api)?.get("/api/v1/cluster").await?;
            show(output, &status, tables::status)
        }
    }
}

/// `registry ...`.
pub async fn registry(args: &Registry) -> Result<()> {
    let output = args.api.output;
    match &args.action {
        RegistryAction::Backup { file } => {
            let path = std::path::absolute(file)?.display().to_string();
            let api = Api::new(&args.api)?.with_timeout(Duration::from_secs(600));
            let made: BackedUp =
                api.call(Method::POST, "/api/v1/cluster/backup", Some(&Backup { path })).await?;
            show(output, &made, tables::backed_up)
        }
        RegistryAction::Restore { config, from, quiet } => {
            let (settings, data_dir, clock) = open(config)?;
            let port = settings.cluster.listen.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
            let restored = restore(
                RestoreConfig {
                    backup: from.clone(),
                    dir: data_dir.cluster(),
                    member: FOUNDER,
                    address: settings.cluster.advertised(port.unwrap_or_default()),
                    quiet: Duration::from_secs(*quiet),
                    rocks: ROCKS,
                },
                clock,
            )
            .await?;
            // Whatever cluster it was in: it is the first of its own now.
            Membership::remove(data_dir.path())?;
            print(&format!(
                "registry {} was made from revision {} of registry {}; start it with 'storagerouter serve'",
                shown(restored.incarnation),
                restored.from_revision,
                shown(restored.from)
            ))
        }
    }
}

/// The settings and the data directory of a router that does not run.
fn open(config: &ConfigArgs) -> Result<(Settings, DataDir, Arc<dyn Clock>)> {
    let settings = config.sources().load()?;
    settings.check(config.insecure)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let data_dir =
        DataDir::open(&settings.data_dir()?, &*clock).context("the router has to be stopped for this")?;
    Ok((settings, data_dir, clock))
}

async fn join(config: &ConfigArgs, addresses: &[String], output: Output) -> Result<()> {
    for address in addresses {
        let port = address
            .rsplit_once(':')
            .filter(|(host, _)| !host.is_empty())
            .map(|(_, port)| port.parse::<u16>());
        if !matches!(port, Some(Ok(1..))) {
            return Err(Failure::usage(format!(
                "--peer {address}: write HOST:PORT, as 'cluster init' there says it"
            )));
        }
    }
    let (settings, data_dir, clock) = open(config)?;
    if settings.cluster.listen.ends_with(":0") {
        return Err(Failure::usage(
            "cluster.listen has port 0: others have to find this router again, so name a port",
        ));
    }
    let tls = settings.cluster.tls()?;
    let asked = peers(addresses.to_vec(), 0, tls.as_ref(), &clock).within(LOOK);
    let status = asked.status().await.map_err(|e| e.context("asking the cluster"))?;
    let group = asked.group().context("the cluster did not say which one it is")?;
    let done = |what: &str| match output {
        Output::Json => Ok(()),
        Output::Table => print(what),
    };
    if let Some(note) = Membership::read(data_dir.path())? {
        let same = note.group()? == group;
        match note.at {
            Stage::Asked | Stage::Left { .. } => {}
            Stage::Joining { .. } | Stage::Member { .. } if same => {
                return done("it has joined this cluster already; start it with 'storagerouter serve'");
            }
            _ => return Err(elsewhere(&data_dir)),
        }
    }
    refuse_own(&data_dir, group).await?;
    // Everybody that is known: the one that was named may be gone when this router starts.
    let mut known = addresses.to_vec();
    known.extend(status.members.into_values().filter(|address| !addresses.contains(address)));
    Membership::asked(group, known).write(data_dir.path())?;
    done(&format!("it joins cluster {} when it is started: storagerouter serve", shown(group)))
}

fn elsewhere(data_dir: &DataDir) -> anyhow::Error {
    Failure::error(
        Exit::Conflict,
        format!(
            "the router of {} is in another cluster: start it, and let it leave that with 'storagerouter cluster leave'",
            data_dir.path().display()
        ),
    )
}

/// What a router has of its own would be lost: nobody joins with it.
async fn refuse_own(data_dir: &DataDir, group: u128) -> Result<()> {
    let left =
        matches!(Membership::read(data_dir.path())?, Some(note) if matches!(note.at, Stage::Left { .. }));
    if left || !has_registry(data_dir) {
        return Ok(());
    }
    if let Some(own) = Stopped::open(data_dir.cluster())? {
        let members = own.status().configuration;
        if own.group() == group {
            return Err(Failure::error(
                Exit::Conflict,
                "the router of this data directory began that cluster: it is in it",
            ));
        }
        if members.ids().any(|id| id != own.status().member) {
            return Err(elsewhere(data_dir));
        }
    }
    let vpools = objectrouter::offline::vpools(stopped(data_dir)?).await?;
    match vpools.as_slice() {
        [] => Ok(()),
        names => Err(Failure::error(
            Exit::Conflict,
            format!(
                "the router of {} has vPools of its own ({}): start it and detach them with 'storagerouter vpool delete NAME --detach'; \
                 their data stays, and the cluster can adopt them",
                data_dir.path().display(),
                names.iter().map(Name::as_str).collect::<Vec<_>>().join(", ")
            ),
        )),
    }
}

fn has_registry(data_dir: &DataDir) -> bool {
    let is_there = |folder: &Path| folder.join("CURRENT").exists();
    is_there(&data_dir.cluster().join("state")) || is_there(&data_dir.registry())
}
