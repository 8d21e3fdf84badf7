//! `edge`: words only.

use clap::{ArgGroup, Args, Subcommand};
use std::path::PathBuf;

/// `edge`.
#[derive(Debug, Args)]
#[command(after_help = "\
A vDisk is named VPOOL/VDISK, a snapshot of it VPOOL/VDISK@SNAPSHOT. --router may be repeated: any router that
answers will do, and while one is away another one is asked.

Examples:
  storagerouter edge info demo/disk1
  storagerouter edge copy ./image.raw demo/disk1
  storagerouter edge bench demo/disk1 --depth 32
  storagerouter edge serve --unix /run/vm7.sock --router 10.0.0.1:10810 --router 10.0.0.2:10810")]
pub struct Edge {
    /// Which.
    #[command(subcommand)]
    pub action: EdgeAction,
}

/// `edge ...`.
#[derive(Debug, Subcommand)]
pub enum EdgeAction {
    /// Show a vDisk as its owner has it
    Info(Info),
    /// Copy between vDisks, files, block devices and pipes, holes and all
    Copy(Copy),
    /// Measure requests to a vDisk
    Bench(Bench),
    /// Serve vDisks by NBD on this machine, and keep them alive whatever router dies
    Serve(Serve),
}

/// How routers are reached.
#[derive(Debug, Clone, Args)]
pub struct Routers {
    /// Where a router listens: HOST:PORT or unix:PATH (may be repeated)
    #[arg(
        long = "router",
        value_name = "ADDRESS",
        env = "STORAGEROUTER_EDGE",
        default_value = "127.0.0.1:10810",
        value_delimiter = ','
    )]
    pub addresses: Vec<String>,
    /// Speak TLS over TCP: certificates (PEM) that routers are checked against
    #[arg(long, value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// Certificate chain (PEM) that is shown to routers
    #[arg(long, value_name = "FILE", requires = "tls_key", requires = "tls_ca")]
    pub tls_cert: Option<PathBuf>,
    /// Private key (PEM) of that certificate
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Seconds that a request may wait for a router before it fails; 0: for ever
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub deadline: u32,
    /// Seconds to wait for a router, and for whoever has the vDisk attached to go
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub wait: u32,
}

/// `edge info`.
#[derive(Debug, Args)]
#[command(after_help = "\
It is attached as a reader for a moment: a vDisk that somebody else has for himself is not shown, but who that is.

Examples:
  storagerouter edge info demo/disk1
  storagerouter edge info demo/disk1@monday --router unix:/var/lib/storagerouter/edge.sock --json")]
pub struct Info {
    /// VPOOL/VDISK, or VPOOL/VDISK@SNAPSHOT
    #[arg(value_name = "VPOOL/VDISK")]
    pub export: String,
    /// Print JSON, sizes in bytes
    #[arg(long)]
    pub json: bool,
    /// How routers are reached.
    #[command(flatten)]
    pub routers: Routers,
}

/// `edge copy`.
#[derive(Debug, Args)]
#[command(after_help = "\
What begins with / or . is a file or a block device, - is a pipe, anything else is a vDisk. One of the two must be
a vDisk, which must be there. What is zero or not allocated is not written, but made a hole. A copy is whole and
flushed when the command returns 0.

A vDisk or block device that is smaller than what is copied is refused; of one that is larger the rest stays as it is.

Examples:
  storagerouter edge copy ./image.raw demo/disk1
  storagerouter edge copy demo/disk1@monday /srv/monday.raw
  storagerouter edge copy demo/disk1 demo/disk2
  zstdcat image.zst | storagerouter edge copy - demo/disk1")]
pub struct Copy {
    /// What is copied: VPOOL/VDISK[@SNAPSHOT], a path, or - for stdin
    #[arg(value_name = "FROM")]
    pub from: String,
    /// Where to: VPOOL/VDISK, a path, or - for stdout
    #[arg(value_name = "TO")]
    pub to: String,
    /// Write over a file that is there
    #[arg(long)]
    pub overwrite: bool,
    /// Parts that are copied at a time, 1 to 256
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub depth: u16,
    /// How routers are reached.
    #[command(flatten)]
    pub routers: Routers,
}

/// `edge bench`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  storagerouter edge bench demo/disk1
  storagerouter edge bench demo/scratch --read-percent 70 --depth 32 --seconds 30 --destroy-data
  storagerouter edge bench demo/scratch --read-percent 0 --block-size 1MiB --sequential --destroy-data --json")]
pub struct Bench {
    /// VPOOL/VDISK, or VPOOL/VDISK@SNAPSHOT
    #[arg(value_name = "VPOOL/VDISK")]
    pub export: String,
    /// Requests under way at a time
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub depth: u16,
    /// Bytes of a request
    #[arg(long, value_name = "SIZE", default_value = "4KiB", value_parser = crate::size::parse)]
    pub block_size: u64,
    /// How many of a hundred requests are reads
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub read_percent: u8,
    /// How long
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=86400))]
    pub seconds: u32,
    /// One block after the other, not at random
    #[arg(long)]
    pub sequential: bool,
    /// Allow writes: what is on the vDisk is lost
    #[arg(long)]
    pub destroy_data: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// How routers are reached.
    #[command(flatten)]
    pub routers: Routers,
}

/// `edge serve`.
#[derive(Debug, Args)]
#[command(
    group = ArgGroup::new("endpoint").required(true).multiple(true).args(["unix", "listen"]),
    after_help = "\
NBD clients name a vDisk, VPOOL/VDISK[@SNAPSHOT]; it is attached when the first of them comes and detached when the
last one has gone. They may have several connections to it. While routers die and vDisks move they see latency, not
errors, until --deadline. A vDisk that another process has attached is waited for, --wait seconds.

SIGTERM and SIGINT stop it: what is under way is answered, everything is flushed and detached; a second one stops it
at once. For systemd use Type=notify.

Examples:
  storagerouter edge serve --unix /run/vm7.sock demo/vm7
  storagerouter edge serve --listen 127.0.0.1:10809 --router 10.0.0.1:10810 --router 10.0.0.2:10810 \\
      --tls-ca ca.pem --tls-cert host.pem --tls-key host-key.pem"
)]
pub struct Serve {
    /// What NBD clients may have; without any, whatever they ask for
    #[arg(value_name = "VPOOL/VDISK")]
    pub exports: Vec<String>,
    /// Unix socket for NBD clients (mode 0600)
    #[arg(long, value_name = "PATH")]
    pub unix: Option<PathBuf>,
    /// TCP address for NBD clients, of this machine only
    #[arg(long, value_name = "HOST:PORT")]
    pub listen: Option<String>,
    /// Allow --listen beyond this machine: whoever reaches it can read and write
    #[arg(long)]
    pub insecure: bool,
    /// Attach vDisks that other hosts share, too: their clients must agree among themselves, as a cluster file system does
    #[arg(long)]
    pub shared: bool,
    /// Threads; 1 has the lowest latency
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub threads: u16,
    /// Memory for payload of NBD requests, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 256)]
    pub memory_mib: u64,
    /// Log filter
    #[arg(long, value_name = "FILTER", default_value = "info")]
    pub log: String,
    /// How routers are reached.
    #[command(flatten)]
    pub routers: Routers,
}
