//! `vdisk snapshot` and what belongs to it.

use clap::Subcommand;

/// Snapshots, clones, rollback, templates.
#[derive(Debug, Subcommand)]
pub enum SnapshotAction {
    /// Take a snapshot, also while the vDisk is in use
    #[command(after_help = "\
Examples:
  storagerouter vdisk snapshot disk1 monday
  storagerouter vdisk snapshot demo/db-data monday --with demo/db-log --consistent --metadata 'ticket 17'

It is durable when the command returns, also while the object store is away. With --with, one
snapshot of that name is taken of each vDisk, all at one instant. To read a snapshot, connect an NBD
client to VPOOL/NAME@SNAPSHOT.")]
    Snapshot {
        /// VPOOL/NAME, or NAME when unique
        vdisk: String,
        /// Name of the snapshot: letters, digits, '.', '_' and '-'
        name: String,
        /// Another vDisk, for a snapshot at the same instant; may be given several times
        #[arg(long, value_name = "VDISK")]
        with: Vec<String>,
        /// The guest has nothing in flight
        #[arg(long)]
        consistent: bool,
        /// Schedules leave it alone
        #[arg(long)]
        sticky: bool,
        /// Anything to keep with it, at most 4096 bytes
        #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
        metadata: String,
    },
    /// List the snapshots of a vDisk
    Snapshots {
        /// VPOOL/NAME, or NAME when unique
        vdisk: String,
    },
    /// Show one snapshot
    SnapshotShow {
        /// VPOOL/NAME, or NAME when unique
        vdisk: String,
        /// Name or id of the snapshot
        snapshot: String,
    },
    /// Change what is said about a snapshot
    #[command(after_help = "\
Example:
  storagerouter vdisk snapshot-set disk1 monday --sticky true")]
    SnapshotSet {
        /// VPOOL/NAME, or NAME when unique
        vdisk: String,
        /// Name or id of the snapshot
        snapshot: String,
        /// Whether the guest had nothing in flight
        #[arg(long, value_name = "true|false")]
        consistent: Option<bool>,
        /// Whether schedules leave it alone
        #[arg(long, value_name = "true|false")]
        sticky: Option<bool>,
        /// Anything to keep with it, at most 4096 bytes
        #[arg(long, value_name = "TEXT")]
        metadata: Option<String>,
    },
    /// Delete a snapshot that has no clones
    SnapshotDelete {
        /// VPOOL/NAME, or NAME when unique
        vdisk: String,
        /// Name or id of the snapshot
        snapshot: String,
    },
    /// Make a vDisk that begins as a snapshot, or as a template: instant, whatever the size
    #[command(after_help = "\
Examples:
  storagerouter vdisk clone demo/disk1@monday test1
  storagerouter vdisk clone demo/debian web-01        (demo/debian is a template)")]
    Clone {
        /// VDISK@SNAPSHOT, or the name of a template
        #[arg(value_name = "VDISK[@SNAPSHOT]")]
        origin: String,
        /// Name of the new vDisk, in the same vPool
        name: String,
    },
    /// Bring a vDisk back to a snapshot; its size and all its snapshots stay
    #[command(after_help = "\
Example:
  storagerouter vdisk rollback disk1 monday

What was written since is dropped. To keep it, take a snapshot first.")]
    Rollback {
        /// VPOOL/NAME, or NAME when unique
        vdisk: String,
        /// Name or id of the snapshot
        snapshot: String,
        /// Also while clients are connected: their requests fail from then on
        #[arg(long)]
        force: bool,
    },
    /// Make a vDisk a template: never written again, and cloned by its name
    Template {
        /// VPOOL/NAME, or NAME when unique
        vdisk: String,
        /// Also while clients are connected: their requests fail from then on
        #[arg(long)]
        force: bool,
    },
}
