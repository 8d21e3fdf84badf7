//! What is refused before a device hears of it.

use common::{Error, ErrorKind, Geometry, Result};
use edge_client::wire::Op;

/// Whether a device of this geometry may be asked for `op`.
///
/// # Errors
/// `Invalid`, `NoSpace` (a change beyond the end) or `Denied`.
pub fn check(geometry: &Geometry, op: &Op) -> Result<()> {
    if matches!(op, Op::Flush) {
        return Ok(());
    }
    if geometry.read_only && op.changes() {
        return Err(Error::new(ErrorKind::Denied, "the disk is read-only"));
    }
    let (offset, len) = op.range();
    if len == 0 {
        return Err(Error::invalid("a request for nothing"));
    }
    let unit = u64::from(geometry.min_block);
    if !offset.is_multiple_of(unit) || !len.is_multiple_of(unit) {
        return Err(Error::invalid(format!("{offset}+{len} is not a multiple of {unit}")));
    }
    if op.cost().bytes > geometry.max_payload {
        return Err(Error::invalid(format!("a payload of {len} bytes: at most {}", geometry.max_payload)));
    }
    if offset.checked_add(len).is_none_or(|end| end > geometry.size) {
        let kind = if op.changes() { ErrorKind::NoSpace } else { ErrorKind::Invalid };
        return Err(Error::new(kind, format!("{offset}+{len} is beyond the end ({} bytes)", geometry.size)));
    }
    Ok(())
}
