//! Which sizes a vPool and a vDisk may have; refusals name the nearest that is valid.

#[cfg(test)]
mod tests;

use common::{Error, ErrorKind, Result};

/// Bytes in a cluster unless said otherwise.
pub const DEFAULT_CLUSTER_SIZE: u32 = 4096;
/// Bytes of clusters in one SCO unless said otherwise.
pub const DEFAULT_SCO_SIZE: u32 = 8 << 20;
/// The largest vDisk: 64 TiB.
pub const MAX_SIZE: u64 = 64 << 40;
const SCO_SIZES: std::ops::RangeInclusive<u32> = 1 << 20..=128 << 20;

/// Whether a vPool may have this cluster size.
pub(crate) fn check_cluster_size(size: u32) -> Result<()> {
    if size.is_power_of_two() && (4096..=65536).contains(&size) {
        return Ok(());
    }
    Err(Error::invalid(format!("cluster size {size} is not one of 4096, 8192, 16384, 32768, 65536 bytes")))
}

/// The valid size nearest to `size`; of two equally near ones the larger.
fn nearest(size: u64, step: u64, min: u64, max: u64) -> u64 {
    let size = size.clamp(min, max);
    let below = size / step * step;
    let above = below.saturating_add(step);
    let near = if size - below < above - size { below } else { above };
    near.clamp(min, max / step * step)
}

/// Whether a vDisk in a vPool of `cluster_size` may have this size.
pub(crate) fn check_size(size: u64, cluster_size: u32) -> Result<()> {
    let cluster = u64::from(cluster_size);
    if size.is_multiple_of(cluster) && (cluster..=MAX_SIZE).contains(&size) {
        return Ok(());
    }
    let why = if size > MAX_SIZE {
        format!("more than 64 TiB ({MAX_SIZE} bytes)")
    } else if size < cluster {
        format!("less than one cluster of {cluster} bytes")
    } else {
        format!("not a multiple of the vPool's cluster size, {cluster} bytes")
    };
    let nearest = nearest(size, cluster, cluster, MAX_SIZE);
    Err(Error::invalid(format!("size {size} is {why}; the nearest valid size is {nearest} bytes")))
}

/// Whether a vDisk of size `from` may be given size `to`.
pub(crate) fn check_growth(from: u64, to: u64, cluster_size: u32) -> Result<()> {
    check_size(to, cluster_size)?;
    if to < from {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("size {to} is smaller than the present {from} bytes: a vDisk can only grow"),
        ));
    }
    Ok(())
}

/// Whether a vDisk in a vPool of `cluster_size` may have SCOs of this size.
pub(crate) fn check_sco_size(size: u32, cluster_size: u32) -> Result<()> {
    if SCO_SIZES.contains(&size) && size.is_multiple_of(cluster_size) {
        return Ok(());
    }
    let (min, max) = (u64::from(*SCO_SIZES.start()), u64::from(*SCO_SIZES.end()));
    let nearest = nearest(u64::from(size), u64::from(cluster_size), min, max);
    Err(Error::invalid(format!(
        "SCO size {size} is not a multiple of the cluster size ({cluster_size} bytes) from 1 to 128 MiB; \
         the nearest valid one is {nearest} bytes"
    )))
}
