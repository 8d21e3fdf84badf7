//! Limits of a vDisk.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What the clients of a vDisk may do at most, all together. A limit that is absent or null is none.
///
/// Discards and writes of zeroes count as one write without bytes; flushes do not count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Qos {
    /// Reads per second, 1 to 1000000000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_iops: Option<u64>,
    /// Writes per second, 1 to 1000000000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_iops: Option<u64>,
    /// Bytes read per second, 4096 to 1099511627776.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_bytes_per_second: Option<u64>,
    /// Bytes written per second, 4096 to 1099511627776.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_bytes_per_second: Option<u64>,
    /// How much of each limit may pass at once after a quiet time, in milliseconds of it: 100 to 60000.
    /// Default 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst_ms: Option<u32>,
}
