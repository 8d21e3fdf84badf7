//! Limits of a vDisk: requests and bytes per second, reads and writes apart.
//!
//! | room | what |
//! |---|---|
//! | `bucket` | tokens per second up to a burst: exact arithmetic |
//! | `lane` | one direction of a vDisk: who may go, and the line of those who wait |
//!
//! What counts: a read and a prefetch are one read with its bytes, a write is one write with its
//! bytes, a discard and a write of zeroes are one write without bytes. Flushes and questions for
//! extents are free. All handles of a vDisk share its limits.

mod bucket;
mod lane;
#[cfg(test)]
mod tests;

pub(crate) use lane::Lane;

use common::{Clock, Error, Result};
use serde::{Deserialize, Serialize};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

/// Requests per second that a limit may allow.
const IOPS: RangeInclusive<u64> = 1..=1_000_000_000;
/// Bytes per second that a limit may allow.
const BANDWIDTH: RangeInclusive<u64> = 4096..=1 << 40;
/// Bursts, in milliseconds. Less than the least would lose tokens to timers that are late.
const BURST_MS: RangeInclusive<u32> = 100..=60_000;

/// What the clients of a vDisk may do at most, all together. A limit that is absent is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Qos {
    /// Reads per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_iops: Option<u64>,
    /// Writes per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_iops: Option<u64>,
    /// Bytes read per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_bytes_per_second: Option<u64>,
    /// Bytes written per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_bytes_per_second: Option<u64>,
    /// How much of each limit may pass at once after a quiet time, in milliseconds of it.
    pub burst_ms: u32,
}

impl Qos {
    /// The burst unless said otherwise, in milliseconds.
    pub const DEFAULT_BURST_MS: u32 = 1000;

    /// Says by its name which limit can't be right.
    ///
    /// # Errors
    /// [`common::ErrorKind::Invalid`], also when there is no limit at all.
    pub fn check(&self) -> Result<()> {
        let limits = [
            ("read_iops", self.read_iops, IOPS),
            ("write_iops", self.write_iops, IOPS),
            ("read_bytes_per_second", self.read_bytes_per_second, BANDWIDTH),
            ("write_bytes_per_second", self.write_bytes_per_second, BANDWIDTH),
        ];
        for (name, limit, range) in &limits {
            if let Some(limit) = limit.filter(|limit| !range.contains(limit)) {
                let (least, most) = (range.start(), range.end());
                return Err(Error::invalid(format!(
                    "{name} = {limit} is out of range ({least} to {most}; absent: no limit)"
                )));
            }
        }
        if !BURST_MS.contains(&self.burst_ms) {
            let (least, most) = (BURST_MS.start(), BURST_MS.end());
            return Err(Error::invalid(format!(
                "burst_ms = {} is out of range ({least} to {most})",
                self.burst_ms
            )));
        }
        if limits.iter().all(|(_, limit, _)| limit.is_none()) {
            return Err(Error::invalid(format!(
                "burst_ms = {} alone limits nothing: give a limit with it",
                self.burst_ms
            )));
        }
        Ok(())
    }
}

/// Requests that had to wait for a limit, and for how long, since the router started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Waited {
    /// How many, with those that wait now.
    pub requests: u64,
    /// The sum of their times; of those that wait no longer.
    pub time: Duration,
}

/// Holds the requests of a vDisk to its limits.
pub(crate) struct Limiter {
    pub(crate) reads: Lane,
    pub(crate) writes: Lane,
}

impl Limiter {
    pub(crate) fn new(clock: Arc<dyn Clock>, qos: Option<&Qos>) -> Self {
        let limiter = Self { reads: Lane::new(clock.clone()), writes: Lane::new(clock) };
        limiter.set(qos);
        limiter
    }

    /// Puts other limits in force at once, also for requests that wait. What was used up stays so.
    pub(crate) fn set(&self, qos: Option<&Qos>) {
        let burst = Duration::from_millis(qos.map_or(0, |q| q.burst_ms.into()));
        let limit = |pick: fn(&Qos) -> Option<u64>| qos.and_then(pick);
        self.reads.set(limit(|q| q.read_iops), limit(|q| q.read_bytes_per_second), burst);
        self.writes.set(limit(|q| q.write_iops), limit(|q| q.write_bytes_per_second), burst);
    }

    /// Requests that wait ask again whether they still have to.
    pub(crate) fn look_again(&self) {
        self.reads.look_again();
        self.writes.look_again();
    }
}
