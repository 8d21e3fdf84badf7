//! Settings of the object router, with their defaults.

pub use crate::cluster::DefaultDtl;
use serde::{Deserialize, Serialize};

/// `[objectrouter]` of the configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Volumes that are opened at a time in the background; a client's own request does not wait for them.
    pub parallel_opens: usize,
    /// Longest pause, in seconds, between two tries to open a vPool or a volume.
    pub retry_seconds: u64,
    /// Seconds that detaching a vPool waits for the unsent data of each of its vDisks.
    pub detach_drain_seconds: u64,
    /// Seconds after which the last traces of a deleted vDisk are removed from the object store;
    /// longer than any router that lost a vDisk may go on writing to it.
    pub purge_after_seconds: u64,
    /// How the unsent tail of a new vDisk is replicated to other routers (DTL): `auto` (`sync` when there are any, else
    /// `none`), `none`, `async` or `sync`.
    pub dtl: DefaultDtl,
    /// Whether a client of the edge protocol that wants a vDisk of another router is sent there; else this router passes
    /// its requests on.
    pub redirect: bool,
    /// Whether vDisks that are not told otherwise move to the router through which most of what is asked of them comes.
    pub auto_migrate: bool,
    /// How much has to be read through one router in `auto_migrate_seconds`, twice in a row, for a vDisk to move there: requests, a large one once
    /// for each 64 KiB; 0: reads move nothing.
    pub auto_migrate_reads: u64,
    /// The same of writes.
    pub auto_migrate_writes: u64,
    /// Seconds in which that is counted.
    pub auto_migrate_seconds: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            parallel_opens: 16,
            retry_seconds: 30,
            detach_drain_seconds: 600,
            purge_after_seconds: 3700,
            dtl: DefaultDtl::Auto,
            redirect: true,
            auto_migrate: false,
            auto_migrate_reads: 4096,
            auto_migrate_writes: 4096,
            auto_migrate_seconds: 30,
        }
    }
}

impl Settings {
    /// Says which setting can't be right, by its key.
    pub fn check(&self) -> Result<(), String> {
        if !(1..=1024).contains(&self.parallel_opens) {
            return Err(format!(
                "objectrouter.parallel_opens = {} is out of range (1 to 1024)",
                self.parallel_opens
            ));
        }
        if !(1..=3600).contains(&self.retry_seconds) {
            return Err(format!(
                "objectrouter.retry_seconds = {} is out of range (1 to 3600)",
                self.retry_seconds
            ));
        }
        if !(1..=86400).contains(&self.auto_migrate_seconds) {
            return Err(format!(
                "objectrouter.auto_migrate_seconds = {} is out of range (1 to 86400)",
                self.auto_migrate_seconds
            ));
        }
        Ok(())
    }
}
