//! Several storage routers of one cluster, as processes.

use crate::edge::{EdgeServe, address};
use crate::netns::{Net, Place};
use crate::router::{Config, Router};
use crate::time::eventually;
use crate::tools::{free_port, run_within, scratch};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::Path;
use tempfile::TempDir;

/// The vDisk that they serve.
pub const DISK: &str = "p/v";

/// Three routers, a vPool on a directory, and a vDisk that is replicated to a peer.
pub struct Cluster {
    /// The routers, `a` first.
    pub routers: Vec<Router>,
    /// Their network: nodes 0 to 2 are the routers, and [`CLIENT`] is who uses them. None: all share this machine's.
    pub net: Option<Net>,
    /// Where all of it lies.
    pub folder: TempDir,
}

/// The node of the client in the network.
pub const CLIENT: usize = 3;

/// The names of the routers.
const NAMES: [&str; 3] = ["a", "b", "c"];

fn config(folder: &Path, name: &str, settings: &[&str]) -> Result<Config> {
    let config = Config { registry_port: free_port()?, ..Config::new(&folder.join(name))? };
    let small = ["volumedriver.journal_mib=128", "volumedriver.segment_mib=8", "volumedriver.buffer_mib=64"];
    let config = config.set(&format!("cluster.name={name}"));
    Ok(small.iter().chain(settings).fold(config, |config, setting| config.set(setting)))
}

/// Lets a router that was never started join the cluster of one that runs.
fn join(config: &Config, member: &Router) -> Result<()> {
    let peer = format!("{}:{}", member.config.place.host(), member.config.registry_port);
    run_within(30, config.command_of(&["cluster", "join", "--peer", &peer])?)?.ok().map(drop)
}

impl Cluster {
    /// Starts them, and waits until the vDisk of `size` is in sync.
    pub fn start(name: &str, size: &str, settings: &[&str]) -> Result<Self> {
        Self::start_in(None, name, size, |_| settings.to_vec())
    }

    /// The same, with settings for each router by its name.
    pub fn start_each<'s>(name: &str, size: &str, settings: impl Fn(&str) -> Vec<&'s str>) -> Result<Self> {
        Self::start_in(None, name, size, settings)
    }

    /// The same, each router and the client in a network of its own.
    pub fn start_apart(name: &str, size: &str, settings: &[&str]) -> Result<Self> {
        Self::start_in(Some(Net::new(CLIENT + 1)?), name, size, |_| settings.to_vec())
    }

    fn start_in<'s>(
        net: Option<Net>,
        name: &str,
        size: &str,
        settings: impl Fn(&str) -> Vec<&'s str>,
    ) -> Result<Self> {
        let folder = scratch(name)?;
        let mut routers: Vec<Router> = Vec::new();
        for (node, name) in NAMES.into_iter().enumerate() {
            let config = config(folder.path(), name, &settings(name))?;
            let config = match &net {
                Some(net) => config.at(net.place(node)),
                None => config,
            };
            if let Some(first) = routers.first() {
                join(&config, first)?;
            }
            routers.push(Router::start(config)?);
        }
        let cluster = Self { routers, net, folder };
        let place = cluster.folder.path().join("pool").display().to_string();
        cluster.routers[0].cli(&["vpool", "create", "p", "--backend", "directory", "--path", &place])?;
        cluster.routers[0].cli(&["vdisk", "create", "v", "--vpool", "p", "--size", size])?;
        cluster.in_sync()?;
        Ok(cluster)
    }

    /// What some router that answers says of the vDisk, and the number of its owner.
    fn asked(&self) -> Result<(usize, Value)> {
        let mut last = None;
        for router in &self.routers {
            // One that stands still is not waited for.
            let shown = router.try_cli_within(10, &["vdisk", "show", DISK, "-o", "json"]);
            match shown.and_then(|ran| ran.ok()?.json()) {
                // The owner is who answers in the end: others send the question on to it.
                Ok(said) if said["state"] == "serving" => {
                    let at = |r: &Router| {
                        said["edge"].as_array().is_some_and(|all| all.iter().any(|a| *a == address(r)))
                    };
                    let owner = self.routers.iter().position(at).context("an owner of no name")?;
                    return Ok((owner, said));
                }
                Ok(said) => last = Some(anyhow::anyhow!("{said}")),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| anyhow::anyhow!("there is no router")))
    }

    /// Waits until somebody serves the vDisk; who.
    pub fn owner(&self) -> Result<usize> {
        eventually("somebody serves the vDisk", 60, || Ok(self.asked()?.0))
    }

    /// Waits until its owner has a peer in sync; the owner and the peer.
    pub fn in_sync(&self) -> Result<(usize, usize)> {
        eventually("the vDisk is in sync", 60, || {
            let (owner, said) = self.asked()?;
            ensure!(said["dtl"]["status"] == "in_sync", "{said}");
            let peer = said["dtl"]["peers"][0].as_str().context("no peer")?;
            let peer = NAMES.iter().position(|name| *name == peer).context("a peer of no name")?;
            Ok((owner, peer))
        })
    }

    /// `edge serve` on all routers, with the vDisk attached.
    pub fn serve(&self) -> Result<EdgeServe> {
        let addresses: Vec<_> = self.routers.iter().map(address).collect();
        let place = self.net.as_ref().map_or_else(Place::default, |net| net.place(CLIENT));
        EdgeServe::start_at(
            &place,
            &addresses[0],
            self.folder.path(),
            &["--router", &addresses[1], "--router", &addresses[2], DISK],
        )
    }

    /// A router whose disk is lost, and which is not running: the others are told that it will not come back, and it
    /// joins them anew with an empty one.
    pub fn replace(&mut self, router: usize) -> Result<()> {
        let other = &self.routers[(router + 1) % 3];
        let name = NAMES[router];
        let status = other.cli_json(&["cluster", "status"])?;
        let members = status["members"].as_array().context("members")?;
        let member = members.iter().find(|member| member["name"] == name).context("no such member")?;
        let member = member["member"].to_string();
        // Refused as long as it may be there, or may have what nobody else has.
        eventually("it is removed", 60, || other.cli(&["router", "remove", name]))?;
        other.cli(&["cluster", "leave", "--member", &member])?;
        std::fs::create_dir_all(&self.routers[router].config.data_dir)?;
        join(&self.routers[router].config, other)?;
        self.routers[router].start_again()
    }

    /// The name of a router.
    pub fn name(&self, router: usize) -> &'static str {
        NAMES[router]
    }
}
