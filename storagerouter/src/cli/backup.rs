//! `vdisk export` and `vdisk import`.

use clap::Args;

/// `vdisk export`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  storagerouter vdisk export demo/db@monday --to monday.sr
  storagerouter vdisk export demo/db@tuesday --since monday --to tuesday.sr
  storagerouter vdisk export demo/db@tuesday --since monday | ssh other storagerouter vdisk import demo/copy

Without @SNAPSHOT a vDisk is exported as it is now, which is refused while clients are connected.
A file that is there is not overwritten; one that was not written to its end is removed.")]
pub struct Export {
    /// VPOOL/NAME, or NAME when unique; with a snapshot of it
    #[arg(value_name = "VDISK[@SNAPSHOT]")]
    pub vdisk: String,
    /// Only what differs from this snapshot, by name or id
    #[arg(long, value_name = "SNAPSHOT")]
    pub since: Option<String>,
    /// Where the stream goes; - is stdout
    #[arg(long, value_name = "FILE", default_value = "-")]
    pub to: String,
}

/// `vdisk import`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  storagerouter vdisk import demo/copy --from monday.sr
  storagerouter vdisk import demo/copy --from tuesday.sr

A full stream makes a new vDisk. One that was made with --since goes to a vDisk whose newest snapshot is
that one, and which was not written since; the vDisk then gets the snapshot at which the stream ends.")]
pub struct Import {
    /// VPOOL/NAME of a new vDisk, or of the one that the stream goes on from
    pub vdisk: String,
    /// Where the stream comes from; - is stdin
    #[arg(long, value_name = "FILE", default_value = "-")]
    pub from: String,
    /// Into any vDisk, whatever it holds and whoever is connected
    #[arg(long)]
    pub force: bool,
}
