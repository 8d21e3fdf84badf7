//! The command line: words only, no work.

pub mod asd;
pub mod backup;
pub mod cluster;
pub mod edge;
pub mod qos;
pub mod routers;
mod snapshots;

pub use snapshots::SnapshotAction;

use crate::config::{LogFormat, Sources};
use crate::failure::EXIT_CODES;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// A block device whose writes become immutable objects on an object store.
#[derive(Debug, Parser)]
#[command(name = "storagerouter", version, propagate_version = true, after_help = EXIT_CODES, after_long_help = LONG)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const LONG: &str = "\
A first vDisk, in two shells:
  storagerouter serve
  storagerouter vpool create demo --backend directory --path /srv/demo
  storagerouter vdisk create disk1 --vpool demo --size 10GiB
  nbdinfo nbd://127.0.0.1/demo/disk1

Sizes: 4096, 512MiB, 10GiB, 1.5TiB. K, M, G and T alone mean KiB, MiB, GiB and TiB.

Exit codes:
  0  done
  1  it failed (also: doctor or fsck found something bad)
  2  the command line or the configuration can't be right
  3  there is no such vPool, vDisk, object or file
  4  it exists already, is in use, or the data directory or an address is held by another process
  5  no storage router answers";

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the storage router, in the foreground
    Serve(Serve),
    /// Check the configuration, or show it with all defaults
    Config(Config),
    /// Look at this machine: memory, disk, limits, ports
    Doctor(Doctor),
    /// Create, list, show and delete vPools
    Vpool(Vpool),
    /// Create, list, show, resize, limit, drain and delete vDisks
    Vdisk(Vdisk),
    /// Join, leave and watch a cluster of storage routers
    Cluster(cluster::Cluster),
    /// Back up the registry of vPools and vDisks, or make a new one from a backup
    Registry(cluster::Registry),
    /// List, show, drain and remove the storage routers of the cluster
    Router(routers::Router),
    /// Use vDisks from this machine, whatever router serves them: show, copy, measure, serve by NBD
    Edge(edge::Edge),
    /// Serve one disk or directory to a backend; format one, show one
    Asd(asd::Asd),
    /// Say what is not well; exit code 1 when something does not serve
    Health(Plain),
    /// Show the running router's log filter, or change it until it restarts
    LogLevel(LogLevel),
    /// Show the version of this program, and of the router when one answers
    Version(Plain),
    /// Print what a journal segment, SCO, TLog or Manifest says
    Inspect(Inspect),
    /// Check a vDisk's objects end to end: all there, every checksum right, every address resolves
    Fsck(Fsck),
}

/// Where the configuration comes from.
#[derive(Debug, Clone, Default, Args)]
pub struct ConfigArgs {
    /// TOML file; without it, the defaults hold
    #[arg(long, value_name = "FILE", env = "STORAGEROUTER_CONFIG")]
    pub config: Option<PathBuf>,
    /// Data directory [default: /var/lib/storagerouter for root, else ~/.local/share/storagerouter]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Set one key, as in --set nbd.listen=127.0.0.1:10819 (may be repeated; wins over the file)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Allow listeners beyond loopback without TLS and credentials
    #[arg(long)]
    pub insecure: bool,
}

impl ConfigArgs {
    /// As the configuration wants it.
    pub fn sources(&self) -> Sources {
        Sources {
            file: self.config.clone(),
            overrides: self.set.clone(),
            data_dir: self.data_dir.clone(),
            ..Sources::default()
        }
    }
}

/// `serve`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  storagerouter serve
  storagerouter serve --data-dir /srv/router --set nbd.listen=127.0.0.1:10819
  storagerouter serve --config /etc/storagerouter/storagerouter.toml --log info,volumedriver=debug

SIGTERM and SIGINT stop it: what is acknowledged is flushed, what is cheap is uploaded, within
shutdown_seconds; a second one stops it at once. SIGHUP reads log.filter again.
Logs go to stderr. Exit codes: 0 stopped, 1 failed, 2 configuration, 4 held by another process.")]
pub struct Serve {
    /// Where the configuration comes from.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Log filter, as in info,volumedriver=debug
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
    /// How a log line looks
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
}

/// `config`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  storagerouter config check --config storagerouter.toml
  storagerouter config show --set volumedriver.journal_mib=8192
  storagerouter config example > storagerouter.toml")]
pub struct Config {
    /// Which.
    #[command(subcommand)]
    pub action: ConfigAction,
}

/// `config ...`.
#[derive(Debug, Subcommand)]
pub enum ConfigAction {
    /// Say whether the configuration is right; exit code 2 when it is not
    Check(ConfigArgs),
    /// Print the configuration as TOML, with all defaults
    Show(ConfigArgs),
    /// Print a configuration file with every key, its default and its meaning
    Example,
}

/// `doctor`.
#[derive(Debug, Args)]
#[command(after_help = "\
Each line is OK, WARN or FAIL, and says what to do. Exit code 1 when one is FAIL.

Example:
  storagerouter doctor --data-dir /srv/router")]
pub struct Doctor {
    /// Where the configuration comes from.
    #[command(flatten)]
    pub config: ConfigArgs,
}

/// Where the API is and how to talk to it.
#[derive(Debug, Clone, Args)]
pub struct ApiArgs {
    /// URL of the router's API
    #[arg(
        long,
        value_name = "URL",
        env = "STORAGEROUTER_API",
        default_value = "http://127.0.0.1:8080",
        global = true
    )]
    pub api: String,
    /// File that holds the API's token
    #[arg(long, value_name = "FILE", env = "STORAGEROUTER_TOKEN_FILE", global = true)]
    pub token_file: Option<PathBuf>,
    /// Certificates (PEM) that an https API is checked against
    #[arg(long, value_name = "FILE", env = "STORAGEROUTER_API_CA", global = true)]
    pub api_ca_file: Option<PathBuf>,
    /// How the answer looks: json has sizes in bytes
    #[arg(short, long, value_name = "FORMAT", default_value = "table", global = true)]
    pub output: Output,
}

/// How an answer looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// The API's JSON.
    Json,
}

/// A command that only talks to the API.
#[derive(Debug, Args)]
pub struct Plain {
    /// The API.
    #[command(flatten)]
    pub api: ApiArgs,
}

/// `vpool`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  storagerouter vpool create demo --backend directory --path /srv/demo
  storagerouter vpool create cloud --backend s3 --endpoint https://s3.example.com --bucket blocks \\
      --credentials-file /etc/storagerouter/s3.credentials
  storagerouter vpool list -o json")]
pub struct Vpool {
    /// The API.
    #[command(flatten)]
    pub api: ApiArgs,
    /// Which.
    #[command(subcommand)]
    pub action: VpoolAction,
}

/// `vpool ...`.
#[derive(Debug, Subcommand)]
pub enum VpoolAction {
    /// Make a vPool on an empty place, or adopt the one that lies there
    #[command(after_help = "\
Examples:
  storagerouter vpool create demo --backend directory --path /srv/demo
  storagerouter vpool create cloud --backend s3 --endpoint https://s3.example.com --bucket blocks \\
      --prefix routers/a --region eu-west-1 --credentials-file /etc/storagerouter/s3.credentials
  storagerouter vpool create cloud --backend s3 --endpoint https://s3.example.com --bucket blocks --adopt

Files and directories are the router's: on its machine, readable by its user.")]
    Create(VpoolCreate),
    /// List all vPools
    List,
    /// Show one vPool
    Show {
        /// Name of the vPool
        name: String,
    },
    /// Delete a vPool that holds no vDisks, or detach it
    Delete {
        /// Name of the vPool
        name: String,
        /// Forget the vPool and its vDisks here, and leave all data on the object store
        #[arg(long)]
        detach: bool,
        /// With --detach: also while clients are connected
        #[arg(long, requires = "detach")]
        force: bool,
    },
}

/// `vpool create`.
#[derive(Debug, Args)]
pub struct VpoolCreate {
    /// Name of the vPool: letters, digits, '.', '_' and '-'
    pub name: String,
    /// The object store.
    #[command(flatten)]
    pub backend: BackendArgs,
    /// Open the vPool that lies there already, with its vDisks
    #[arg(long)]
    pub adopt: bool,
    /// Size of a cluster: the unit of mapping and checksums, 4KiB to 64KiB [default: 4KiB]
    #[arg(long, value_name = "SIZE", value_parser = crate::size::parse)]
    pub cluster_size: Option<u64>,
}

/// An object store, by flags.
#[derive(Debug, Clone, Default, Args)]
pub struct BackendArgs {
    /// Kind of object store
    #[arg(long, value_name = "KIND")]
    pub backend: Option<BackendKind>,
    /// directory: where the objects lie
    #[arg(long, value_name = "DIR")]
    pub path: Option<PathBuf>,
    /// s3: URL of the service [default: AWS's own in the region]
    #[arg(long, value_name = "URL")]
    pub endpoint: Option<String>,
    /// s3: name of the bucket, which must exist
    #[arg(long, value_name = "NAME")]
    pub bucket: Option<String>,
    /// s3: prefix of all keys
    #[arg(long, value_name = "PREFIX")]
    pub prefix: Option<String>,
    /// s3: region
    #[arg(long, value_name = "REGION")]
    pub region: Option<String>,
    /// s3: file with access key and secret, as the AWS tools write it
    #[arg(long, value_name = "FILE")]
    pub credentials_file: Option<PathBuf>,
    /// s3: certificates (PEM) that an https endpoint is checked against
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// s3: the store has no put-if-absent; promise that no other router will ever open this vPool
    #[arg(long)]
    pub single_writer: bool,
}

/// Kind of object store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BackendKind {
    /// Files in a directory.
    Directory,
    /// An S3 service.
    S3,
}

/// `vdisk`.
#[derive(Debug, Args)]
#[command(after_help = "\
A vDisk is named VPOOL/NAME, or NAME alone when no other vPool has one of that name.

Examples:
  storagerouter vdisk create disk1 --vpool demo --size 10GiB
  storagerouter vdisk show disk1
  storagerouter vdisk resize demo/disk1 --size 20GiB
  storagerouter vdisk set demo/disk1 --read-only true
  storagerouter vdisk snapshot disk1 monday
  storagerouter vdisk clone disk1@monday disk2
  storagerouter vdisk rollback disk1 monday
  storagerouter vdisk delete disk1")]
pub struct Vdisk {
    /// The API.
    #[command(flatten)]
    pub api: ApiArgs,
    /// Which.
    #[command(subcommand)]
    pub action: VdiskAction,
}

/// `vdisk ...`.
#[derive(Debug, Subcommand)]
pub enum VdiskAction {
    /// Make a vDisk, thin
    #[command(after_help = "\
Example:
  storagerouter vdisk create disk1 --vpool demo --size 10GiB

Sizes: 10GiB, 10G (the same), 512MiB, 1TiB, or bytes; up to 64 TiB.")]
    Create {
        /// Name of the vDisk: letters, digits, '.', '_' and '-'
        name: String,
        /// Name of the vPool
        #[arg(long, value_name = "VPOOL")]
        vpool: String,
        /// Size of the vDisk
        #[arg(long, value_name = "SIZE", value_parser = crate::size::parse)]
        size: u64,
        /// Bytes of data in one object, 1MiB to 128MiB [default: 8MiB]
        #[arg(long, value_name = "SIZE", value_parser = crate::size::parse)]
        sco_size: Option<u64>,
    },
    /// List vDisks
    List {
        /// Only those of this vPool
        #[arg(long, value_name = "VPOOL")]
        vpool: Option<String>,
    },
    /// Show one vDisk
    Show {
        /// VPOOL/NAME, or NAME when unique
        vdisk: String,
    },
    /// Grow a vDisk, also while it is in use
    Resize {
        /// VPOOL/NAME, or NAME when unique
        vdisk: String,
        /// The new size
        #[arg(long, value_name = "SIZE", value_parser = crate::size::parse)]
        size: u64,
    },
    /// Make a vDisk read-only or writable, bound what the read cache holds of it, or change how it is replicated and moves
    #[command(group = clap::ArgGroup::new("change").required(true).multiple(true))]
    Set {
        /// VPOOL/NAME, or NAME when unique
        vdisk: String,
        /// Whether clients that connect from then on may only read
        #[arg(long, value_name = "true|false", group = "change")]
        read_only: Option<bool>,
        /// Bytes of the read cache, memory and SSD, for the clusters of this vDisk
        #[arg(long, value_name = "SIZE|none", group = "change", value_parser = cache_quota)]
        cache_quota: Option<u64>,
        /// dtl.mode=none|async|sync, dtl.peers=1|2, dtl.needed=all|one, dtl.on_failure=degrade|block,
        /// auto_migrate=on|off|default
        #[arg(value_name = "KEY=VALUE", group = "change", value_parser = routers::setting)]
        settings: Vec<routers::Setting>,
    },
    /// Give a vDisk to another storage router; its clients wait for a moment
    Move {
        /// VPOOL/NAME, or NAME when unique
        vdisk: String,
        /// The storage router that is to have it
        #[arg(long, value_name = "ROUTER")]
        to: String,
    },
    /// Open an orphaned vDisk here, without what only its owner had: that is lost, and recorded
    Force {
        /// VPOOL/NAME, or NAME when unique
        vdisk: String,
    },
    /// Show or set how many requests and bytes per second the clients of a vDisk may take
    Qos(qos::Qos),
    /// Delete a vDisk and all its data
    Delete {
        /// VPOOL/NAME, or NAME when unique
        vdisk: String,
        /// Also while clients are connected: their requests fail from then on
        #[arg(long)]
        force: bool,
    },
    /// Bring everything that is acknowledged to the object store, and wait for it
    Drain {
        /// VPOOL/NAME, or NAME when unique
        vdisk: String,
        /// Seconds to wait; 0 starts it and does not wait
        #[arg(long, value_name = "SECONDS", default_value_t = 60)]
        wait: u64,
    },
    /// Give back the space of what nobody reads any more, and wait for it
    #[command(after_help = "\
Examples:
  storagerouter vdisk scrub disk1
  storagerouter vdisk scrub disk1 --merge      (TLogs only; no SCO is rewritten)

A router scrubs by itself when a vDisk has more garbage than 'volumedriver.scrub_percent' allows; this
gives all of it back at once. It runs beside clients, and goes on by itself when it is not waited for.")]
    Scrub {
        /// VPOOL/NAME, or NAME when unique
        vdisk: String,
        /// Only merge TLogs: opening without the local index, clones and restores read fewer objects then
        #[arg(long)]
        merge: bool,
        /// Seconds to wait; 0 starts it and does not wait
        #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
        wait: u64,
    },
    /// Write a vDisk, or what changed between two snapshots of it, as a stream
    Export(backup::Export),
    /// Make a vDisk of a stream, or bring it up to where the stream ends
    Import(backup::Import),
    /// Snapshots, clones, rollback, templates.
    #[command(flatten)]
    Snapshots(SnapshotAction),
}

/// `log-level`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  storagerouter log-level
  storagerouter log-level info,volumedriver=debug")]
pub struct LogLevel {
    /// The API.
    #[command(flatten)]
    pub api: ApiArgs,
    /// The new filter
    pub filter: Option<String>,
}

/// `inspect`.
#[derive(Debug, Args)]
#[command(after_help = "\
A local file is recognised by what is in it. A key is read from the vPool's object store: the
running router is asked where that lies, or the data directory of a stopped one, or --backend says it.

Examples:
  storagerouter inspect /var/lib/storagerouter/journal/0000000000000001
  storagerouter inspect --vpool demo 6f1c.../s/0000000000000001/0000000000000001
  storagerouter inspect --backend directory --path /srv/demo vpool")]
pub struct Inspect {
    /// A local file, or with --vpool or --backend a key on the object store
    #[arg(value_name = "FILE|KEY")]
    pub what: String,
    /// Read the key from this vPool's object store
    #[arg(long, value_name = "VPOOL", conflicts_with = "backend")]
    pub vpool: Option<String>,
    /// An object store, by flags.
    #[command(flatten)]
    pub backend: BackendArgs,
    /// How the router is found.
    #[command(flatten)]
    pub router: RouterArgs,
}

/// `fsck`.
#[derive(Debug, Args)]
#[command(after_help = "\
Reads the object store only, so it may run while the router does; what is acknowledged and not yet
uploaded is not looked at (see 'vdisk drain'). Exit code 1 when something is wrong.

Examples:
  storagerouter fsck demo/disk1
  storagerouter fsck demo/disk1 --data-dir /srv/router
  storagerouter fsck demo/disk1 --backend directory --path /srv/demo")]
pub struct Fsck {
    /// VPOOL/NAME
    #[arg(value_name = "VPOOL/VDISK")]
    pub vdisk: String,
    /// An object store, by flags.
    #[command(flatten)]
    pub backend: BackendArgs,
    /// How the router is found.
    #[command(flatten)]
    pub router: RouterArgs,
}

/// How a command finds the router, running or not.
#[derive(Debug, Clone, Args)]
pub struct RouterArgs {
    /// The API of the running router.
    #[command(flatten)]
    pub api: ApiArgs,
    /// Data directory of a stopped router, in place of asking a running one
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
}

/// A cache quota; `none` is 0, as in the API.
fn cache_quota(text: &str) -> Result<u64, String> {
    if text == "none" { Ok(0) } else { crate::size::parse(text) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_help_tells_the_exit_codes_the_same_way() {
        assert!(LONG.contains(EXIT_CODES));
    }

    #[test]
    fn api_flags_work_before_and_behind_the_action() {
        for words in [["--api", "http://x:1", "list"], ["list", "--api", "http://x:1"]] {
            let cli = Cli::try_parse_from(["storagerouter", "vdisk"].into_iter().chain(words)).unwrap();
            let Command::Vdisk(vdisk) = cli.command else { panic!("not vdisk") };
            assert_eq!(vdisk.api.api, "http://x:1");
        }
    }
}
