//! The words of `cluster` and `registry`.

use super::{ApiArgs, ConfigArgs};
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// `cluster`.
#[derive(Debug, Args)]
#[command(after_help = "\
A router begins as a cluster of one. Others join it, each once, while it is stopped and has no vPool of its own:

Examples:
  storagerouter cluster init                                  (on the first: what the others have to know)
  storagerouter cluster join --peer router-a:10830            (on another, stopped)
  storagerouter serve                                         (there: it joins, and serves)
  storagerouter cluster status
  storagerouter cluster leave")]
pub struct Cluster {
    /// The API.
    #[command(flatten)]
    pub api: ApiArgs,
    /// Which.
    #[command(subcommand)]
    pub action: ClusterAction,
}

/// `cluster ...`.
#[derive(Debug, Subcommand)]
pub enum ClusterAction {
    /// Say what others have to know to join the running router
    Init {
        /// All routers of the cluster are on this machine
        #[arg(long)]
        one_machine: bool,
    },
    /// Let the stopped router of a data directory join a cluster at its next start
    #[command(after_help = "\
Examples:
  storagerouter cluster join --peer router-a:10830
  storagerouter cluster join --config /etc/storagerouter/storagerouter.toml --peer router-a:10830 --peer router-b:10830

The configuration must be that of the router: its certificates are used. A router that has vPools does not join; nor
does one that is in another cluster, before it has left that.")]
    Join {
        /// Where the configuration comes from.
        #[command(flatten)]
        config: ConfigArgs,
        /// A member of the cluster, HOST:PORT of its registry (may be repeated)
        #[arg(long = "peer", value_name = "HOST:PORT", required = true)]
        peers: Vec<String>,
    },
    /// Give all vDisks of the running router away, and take it out of its cluster; it stops then
    #[command(after_help = "\
Examples:
  storagerouter cluster leave
  storagerouter cluster leave --member 3        (another one, that is dead and will not come back)")]
    Leave {
        /// Remove this dead member, in place of the router that is asked
        #[arg(long, value_name = "ID")]
        member: Option<u64>,
        /// Do not wait until all vDisks are given away
        #[arg(long, conflicts_with = "member")]
        force: bool,
    },
    /// Show the members, who leads, who answers, and how many may fail
    Status,
}

/// `registry`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  storagerouter registry backup /var/backups/registry-monday
  storagerouter registry restore --data-dir /srv/router --from /var/backups/registry-monday")]
pub struct Registry {
    /// The API.
    #[command(flatten)]
    pub api: ApiArgs,
    /// Which.
    #[command(subcommand)]
    pub action: RegistryAction,
}

/// `registry ...`.
#[derive(Debug, Subcommand)]
pub enum RegistryAction {
    /// Write the running router's copy of the registry to a new file on its machine
    Backup {
        /// The file
        file: PathBuf,
    },
    /// Make the registry of a stopped router from a backup: it is the first member of a new cluster then
    #[command(after_help = "\
What was in the registry after the backup is lost, so this is for when no majority of the members is left. The data directory must
have no registry; the others join anew. For the quiet time nothing is taken over.")]
    Restore {
        /// Where the configuration comes from.
        #[command(flatten)]
        config: ConfigArgs,
        /// The backup
        #[arg(long, value_name = "FILE")]
        from: PathBuf,
        /// Seconds in which routers of the lost cluster find out: more than their cluster.lease_ms
        #[arg(long, value_name = "SECONDS", default_value_t = 90)]
        quiet: u64,
    },
}
