//! Settings of the volume driver, with their defaults.

use crate::read_cache::MAX_SSD_CACHE_MIB;
use serde::{Deserialize, Serialize};

/// The largest segment that the journal takes, in MiB.
const MAX_SEGMENT_MIB: u64 = 4096;
/// More than any machine has, and far from where bytes no longer fit a number: 1 PiB.
const MAX_MIB: u64 = 1 << 30;

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
    /// Room on the data directory's disk for clusters that are read again, in MiB; 0 for none. It is taken as it is
    /// needed, and only while the disk has room for the whole write buffer beside it.
    pub ssd_cache_mib: u64,
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
    /// Whether volumes are scrubbed by themselves.
    pub scrub: bool,
    /// Bytes stored for each 100 live ones from which on a volume is scrubbed; less takes more copying.
    pub scrub_percent: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            journal_mib: 4096,
            segment_mib: 64,
            buffer_mib: 512,
            read_cache_mib: 512,
            ssd_cache_mib: 8192,
            index_cache_mib: 256,
            seal_age_seconds: 5,
            uploads_per_volume: 4,
            uploads: 8,
            tlog_scos: 512,
            tlog_entries: 1 << 20,
            scrub: true,
            scrub_percent: 136,
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
        let within = |key: &str, value: u64, min: u64, max: u64| match value > max {
            true => Err(format!("volumedriver.{key} = {value} is too large (at most {max})")),
            false => at_least(key, value, min),
        };
        within("segment_mib", self.segment_mib, 1, MAX_SEGMENT_MIB)?;
        within("journal_mib", self.journal_mib, 8 * self.segment_mib, MAX_MIB)?;
        within("buffer_mib", self.buffer_mib, 16, MAX_MIB)?;
        within("read_cache_mib", self.read_cache_mib, 1, MAX_MIB)?;
        within("ssd_cache_mib", self.ssd_cache_mib, 0, MAX_SSD_CACHE_MIB)?;
        within("index_cache_mib", self.index_cache_mib, 4, MAX_MIB)?;
        at_least("uploads_per_volume", self.uploads_per_volume as u64, 1)?;
        at_least("uploads", self.uploads as u64, 1)?;
        at_least("tlog_scos", self.tlog_scos as u64, 1)?;
        at_least("tlog_entries", self.tlog_entries as u64, 1024)?;
        within("scrub_percent", self.scrub_percent, 105, 1000)
    }
}
