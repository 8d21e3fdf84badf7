//! Several storage routers of one cluster, as processes.

use crate::edge::EdgeServe;
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
    /// Where all of it lies.
    pub folder: TempDir,
}

/// The names of the routers.
const NAMES: [&str; 3] = ["a", "b", "c"];

fn config(folder: &Path, name: &str, settings: &[&str]) -> Result<Config> {
    let config = Config { registry_port: free_port()?, ..Config::new(&folder.join(name))? };
    let small = ["volumedriver.journal_mib=128", "volumedriver.segment_mib=8", "volumedriver.buffer_mib=64"];
    let config = config.set(&format!("cluster.name={name}"));
    Ok(small.iter().chain(settings).fold(config, |config, setting| config.set(setting)))
}

impl Cluster {
    /// Starts them, and waits until the vDisk of `size` is in sync.
    pub fn start(name: &str, size: &str, settings: &[&str]) -> Result<Self> {
        Self::start_each(name, size, |_| settings.to_vec())
    }

    /// The same, with settings for each router by its name.
    pub fn start_each<'s>(name: &str, size: &str, settings: impl Fn(&str) -> Vec<&'s str>) -> Result<Self> {
        let folder = scratch(name)?;
        let mut routers: Vec<Router> = Vec::new();
        for name in NAMES {
            let config = config(folder.path(), name, &settings(name))?;
            if let Some(first) = routers.first() {
                let peer = format!("127.0.0.1:{}", first.config.registry_port);
                run_within(30, config.command_of(&["cluster", "join", "--peer", &peer])?)?.ok()?;
            }
            routers.push(Router::start(config)?);
        }
        let cluster = Self { routers, folder };
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
            match router.show(DISK) {
                // The owner is who answers in the end: others send the question on to it.
                Ok(said) if said["state"] == "serving" => {
                    let path = |r: &Router| r.config.data_dir.join("edge.sock").display().to_string();
                    let at = |r: &Router| {
                        said["edge"]
                            .as_array()
                            .is_some_and(|all| all.iter().any(|a| *a == format!("unix:{}", path(r))))
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
        eventually("somebody serves the vDisk", 30, || Ok(self.asked()?.0))
    }

    /// Waits until its owner has a peer in sync; the owner and the peer.
    pub fn in_sync(&self) -> Result<(usize, usize)> {
        eventually("the vDisk is in sync", 30, || {
            let (owner, said) = self.asked()?;
            ensure!(said["dtl"]["status"] == "in_sync", "{said}");
            let peer = said["dtl"]["peers"][0].as_str().context("no peer")?;
            let peer = NAMES.iter().position(|name| *name == peer).context("a peer of no name")?;
            Ok((owner, peer))
        })
    }

    /// `edge serve` on all routers, with the vDisk attached.
    pub fn serve(&self) -> Result<EdgeServe> {
        let addresses: Vec<_> = self.routers.iter().map(crate::edge::address).collect();
        EdgeServe::start(
            &addresses[0],
            self.folder.path(),
            &["--router", &addresses[1], "--router", &addresses[2], DISK],
        )
    }

    /// The name of a router.
    pub fn name(&self, router: usize) -> &'static str {
        NAMES[router]
    }
}
