//! Metadata contexts: which there are, and what block status says in them.

use super::proto::Malformed;
use common::Extent;

/// The one context there is.
pub const BASE_ALLOCATION: &str = "base:allocation";
/// The number it has on a connection that selected it.
pub const BASE_ALLOCATION_ID: u32 = 1;
/// Most runs in one reply; the client asks again for the rest.
const MAX_RUNS: usize = 4096;

const STATE_HOLE: u32 = 1;
const STATE_ZERO: u32 = 1 << 1;

/// Whether a query of `NBD_OPT_SET_META_CONTEXT` selects [`BASE_ALLOCATION`].
pub fn selects(query: &str) -> bool {
    query == BASE_ALLOCATION
}

/// Whether a query of `NBD_OPT_LIST_META_CONTEXT` lists [`BASE_ALLOCATION`].
pub fn lists(query: &str) -> bool {
    query == BASE_ALLOCATION || query == "base:"
}

/// One run of a block status reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Bytes.
    pub len: u64,
    /// Bits of the context.
    pub state: u32,
}

/// The runs of a reply to a request of `length` bytes: neighbours of one state are one run,
/// nothing reaches beyond the request, and with `one` there is one run.
///
/// # Errors
/// When the device described nothing.
pub fn runs(extents: &[Extent], length: u64, one: bool) -> Result<Vec<Run>, Malformed> {
    let mut runs: Vec<Run> = Vec::with_capacity(extents.len().min(MAX_RUNS));
    let most = if one { 1 } else { MAX_RUNS };
    let mut left = length;
    for extent in extents {
        let len = extent.len.min(left);
        if len == 0 {
            continue;
        }
        let mut state = 0;
        if extent.hole {
            state |= STATE_HOLE;
        }
        if extent.zero {
            state |= STATE_ZERO;
        }
        let full = runs.len() == most;
        match runs.last_mut() {
            Some(last) if last.state == state => last.len += len,
            Some(_) if full => break,
            _ => runs.push(Run { len, state }),
        }
        left -= len;
    }
    if runs.is_empty() {
        return Err(Malformed("the device described no extent"));
    }
    Ok(runs)
}
