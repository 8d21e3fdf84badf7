//! Settings of the volume driver, with their defaults.

use serde::{Deserialize, Serialize};

/// `[volumedriver]` of the configuration file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Size of the write buffer on disk, in MiB. Bounds what is acknowledged and not yet on the backend.
    pub journal_mib: u64,
    /// Size of one journal segment, in MiB.
    pub segment_mib: u64,
    /// Memory for unsealed and unsent data, in MiB, all volumes together; beyond it the journal is read.
    pub buffer_mib: u64,
    /// Memory for clusters read from the backend, in MiB.
    pub read_cache_mib: u64,
    /// Memory for pages of the cluster index, in MiB.
    pub index_cache_mib: u64,
    /// Seconds after which the oldest unsealed write is sealed into a SCO, full or not.
    pub seal_age_seconds: u64,
    /// SCOs of one volume that are uploaded at a time.
    pub uploads_per_volume: usize,
    /// SCOs of all volumes that are uploaded at a time.
    pub uploads: usize,
    /// SCOs covered by one TLog.
    pub tlog_scos: usize,
    /// Map entries covered by one TLog.
    pub tlog_entries: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            journal_mib: 4096,
            segment_mib: 64,
            buffer_mib: 512,
            read_cache_mib: 512,
            index_cache_mib: 256,
            seal_age_seconds: 5,
            uploads_per_volume: 4,
            uploads: 8,
            tlog_scos: 512,
            tlog_entries: 1 << 20,
        }
    }
}

impl Settings {
    /// Says which setting can't be right, by its key.
    pub fn check(&self) -> Result<(), String> {
        let at_least = |key: &str, value: u64, min: u64| {
            if value < min {
                Err(format!("volumedriver.{key} = {value} is too small (at least {min})"))
            } else {
                Ok(())
            }
        };
        at_least("segment_mib", self.segment_mib, 1)?;
        at_least("journal_mib", self.journal_mib, 8 * self.segment_mib)?;
        at_least("buffer_mib", self.buffer_mib, 16)?;
        at_least("read_cache_mib", self.read_cache_mib, 1)?;
        at_least("index_cache_mib", self.index_cache_mib, 4)?;
        at_least("uploads_per_volume", self.uploads_per_volume as u64, 1)?;
        at_least("uploads", self.uploads as u64, 1)?;
        at_least("tlog_scos", self.tlog_scos as u64, 1)?;
        at_least("tlog_entries", self.tlog_entries as u64, 1024)
    }
}
