//! Limits of a vDisk, from the words of the API to those of the router and back.

use crate::types::Qos;
use common::Result;

/// What the router is asked for; an empty object is no limit at all.
pub(super) fn asked(qos: Qos) -> Result<Option<objectrouter::Qos>> {
    if qos == Qos::default() {
        return Ok(None);
    }
    let asked = objectrouter::Qos {
        read_iops: qos.read_iops,
        write_iops: qos.write_iops,
        read_bytes_per_second: qos.read_bytes_per_second,
        write_bytes_per_second: qos.write_bytes_per_second,
        burst_ms: qos.burst_ms.unwrap_or(objectrouter::Qos::DEFAULT_BURST_MS),
    };
    asked.check().map_err(|e| e.context("qos"))?;
    Ok(Some(asked))
}

/// What is told.
pub(super) fn shown(qos: objectrouter::Qos) -> Qos {
    Qos {
        read_iops: qos.read_iops,
        write_iops: qos.write_iops,
        read_bytes_per_second: qos.read_bytes_per_second,
        write_bytes_per_second: qos.write_bytes_per_second,
        burst_ms: Some(qos.burst_ms),
    }
}
