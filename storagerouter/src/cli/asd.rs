//! `asd`: words only.

use clap::{Args, Subcommand};
use std::path::PathBuf;

/// `asd`.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
One daemon keeps values of a backend on one disk or directory. The directory is formatted first; what is on it then
has an id, which clients name. Other machines reach it with TLS alone, in which both sides show a certificate.

SIGTERM and SIGINT stop it; what was acknowledged is durable at any moment. For systemd use Type=notify.

Examples:
  storagerouter asd format --dir /srv/disk1
  storagerouter asd --dir /srv/disk1
  storagerouter asd --dir /srv/disk2 --listen 127.0.0.1:10841 --capacity 500GiB
  storagerouter asd --dir /srv/disk3 --listen 10.0.0.1:10840 --tls-cert host.pem --tls-key host-key.pem --tls-ca ca.pem
  storagerouter asd status --at 127.0.0.1:10841"
)]
pub struct Asd {
    /// What to do instead of serving.
    #[command(subcommand)]
    pub action: Option<AsdAction>,
    /// Serving.
    #[command(flatten)]
    pub serve: Serve,
}

/// `asd ...`.
#[derive(Debug, Subcommand)]
pub enum AsdAction {
    /// Make an empty directory the storage of a new OSD, and print its id
    Format(Format),
    /// Show what a running daemon says of its disk
    Status(Status),
    /// Give a disk to a backend, or take it back
    Claim(Claim),
}

/// `asd` itself.
#[derive(Debug, Args)]
pub struct Serve {
    /// Directory of the disk, formatted
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// TCP address to listen on; empty for none
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:10840")]
    pub listen: String,
    /// Unix socket to listen on (mode 0600)
    #[arg(long, value_name = "PATH")]
    pub unix: Option<PathBuf>,
    /// What it may take of the disk [default: all that is free]
    #[arg(long, value_name = "SIZE", value_parser = crate::size::parse)]
    pub capacity: Option<u64>,
    /// Certificate chain (PEM) that is shown to clients; with it go the two below
    #[arg(long, value_name = "FILE", requires = "tls_key", requires = "tls_ca")]
    pub tls_cert: Option<PathBuf>,
    /// Private key (PEM) of that certificate
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Certificates (PEM) that clients are checked against
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_ca: Option<PathBuf>,
    /// Allow --listen beyond this machine without TLS: whoever reaches it can read and delete everything
    #[arg(long)]
    pub insecure: bool,
    /// TCP address that answers GET /metrics, of this machine only
    #[arg(long, value_name = "HOST:PORT")]
    pub metrics: Option<String>,
    /// What is read a second to see whether it is still right; 0: nothing
    #[arg(long, value_name = "SIZE", default_value = "8MiB", value_parser = crate::size::parse)]
    pub scrub_rate: u64,
    /// What is copied a second to give space back, unless there is little left
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = crate::size::parse)]
    pub clean_rate: u64,
    /// Memory for values that are received and sent
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = crate::size::parse)]
    pub memory: u64,
    /// Memory for records of where values are
    #[arg(long, value_name = "SIZE", default_value = "128MiB", value_parser = crate::size::parse)]
    pub cache: u64,
    /// Log filter
    #[arg(long, value_name = "FILTER", default_value = "info")]
    pub log: String,
}

/// `asd format`.
#[derive(Debug, Args)]
pub struct Format {
    /// Directory of the disk; made if it is not there
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// Size of the files that values are kept in: at most a sixth of the capacity
    #[arg(long, value_name = "SIZE", default_value = "128MiB", value_parser = crate::size::parse)]
    pub segment_size: u64,
}

/// How a daemon is reached.
#[derive(Debug, Args)]
pub struct Reach {
    /// Where it listens: HOST:PORT or unix:PATH
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:10840")]
    pub at: String,
    /// Speak TLS over TCP: certificates (PEM) that the daemon is checked against; with it go the two below
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_ca: Option<PathBuf>,
    /// Certificate chain (PEM) that is shown to the daemon
    #[arg(long, value_name = "FILE", requires = "tls_key", requires = "tls_ca")]
    pub tls_cert: Option<PathBuf>,
    /// Private key (PEM) of that certificate
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
}

/// `asd status`.
#[derive(Debug, Args)]
pub struct Status {
    /// How it is reached.
    #[command(flatten)]
    pub reach: Reach,
    /// Print JSON, sizes in bytes
    #[arg(long)]
    pub json: bool,
}

/// `asd claim`.
#[derive(Debug, Args)]
#[command(after_help = "\
Backends claim their disks themselves; this is for disks whose backend is gone. Values stay: whoever claims the disk
next finds them.

Example:
  storagerouter asd claim --from 0f3c1d5e0f3c1d5e0f3c1d5e0f3c1d5e --release")]
pub struct Claim {
    /// How it is reached.
    #[command(flatten)]
    pub reach: Reach,
    /// The backend that has it now; without it, none has
    #[arg(long, value_name = "ID")]
    pub from: Option<common::osd::BackendId>,
    /// The backend that gets it
    #[arg(long, value_name = "ID", required_unless_present = "release", conflicts_with = "release")]
    pub to: Option<common::osd::BackendId>,
    /// No backend gets it
    #[arg(long)]
    pub release: bool,
}
