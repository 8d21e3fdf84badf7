//! Metadata contexts: which there are, and what block status says in them.

use super::proto::Malformed;
use common::{Baseline, BlockDevice, Difference, Error, Extent, Result};

/// What is a hole, and what reads as zeroes.
pub const BASE_ALLOCATION: &str = "base:allocation";
/// What may differ from a snapshot: its name or identity follows.
pub const DIFF: &str = "x-storagerouter:diff:";
/// The namespace of the contexts that only this server has.
const OWN: &str = "x-storagerouter:";
/// Most contexts that a connection may have selected.
pub const MAX_SELECTED: usize = 32;
/// Most runs in one reply, of all contexts; the client asks again for the rest.
const MAX_RUNS: usize = 4096;

const STATE_HOLE: u32 = 1;
const STATE_ZERO: u32 = 1 << 1;
const STATE_DIRTY: u32 = 1;

/// A context that block status is told in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Context {
    /// [`BASE_ALLOCATION`].
    Allocation,
    /// [`DIFF`], of the snapshot with this identity.
    Diff(u128),
}

/// A context that a client selected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selected {
    /// The number it has on the connection.
    pub id: u32,
    /// What it is.
    pub context: Context,
}

/// What a query of `NBD_OPT_SET_META_CONTEXT` selects on a device with these snapshots.
pub fn select(query: &str, baselines: &[Baseline]) -> Option<Context> {
    if query == BASE_ALLOCATION {
        return Some(Context::Allocation);
    }
    let wanted = query.strip_prefix(DIFF)?;
    let by_name = baselines.iter().find(|b| b.name == wanted);
    let found = by_name.or_else(|| baselines.iter().find(|b| format!("{:032x}", b.id) == wanted));
    found.map(|b| Context::Diff(b.id))
}

/// The contexts that queries of `NBD_OPT_LIST_META_CONTEXT` list; all of them without a query.
pub fn list(queries: &[&str], baselines: &[Baseline]) -> Vec<String> {
    let asks = |wildcards: &[&str]| queries.is_empty() || queries.iter().any(|q| wildcards.contains(q));
    let mut found = Vec::new();
    if asks(&["base:", BASE_ALLOCATION]) {
        found.push(BASE_ALLOCATION.to_owned());
    }
    if asks(&[OWN, DIFF]) {
        found.extend(baselines.iter().map(|b| format!("{DIFF}{}", b.name)));
    } else {
        let exact = queries.iter().filter(|q| q.starts_with(DIFF) && select(q, baselines).is_some());
        found.extend(exact.map(|q| (*q).to_owned()));
    }
    found
}

/// One run of a block status reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Bytes.
    pub len: u64,
    /// Bits of the context.
    pub state: u32,
}

impl From<&Extent> for Run {
    fn from(extent: &Extent) -> Run {
        let hole = if extent.hole { STATE_HOLE } else { 0 };
        let zero = if extent.zero { STATE_ZERO } else { 0 };
        Run { len: extent.len, state: hole | zero }
    }
}

impl From<&Difference> for Run {
    fn from(difference: &Difference) -> Run {
        Run { len: difference.len, state: if difference.changed { STATE_DIRTY } else { 0 } }
    }
}

/// What a device says of a range in each of the contexts: the context's number, and runs.
pub async fn status(
    device: &dyn BlockDevice,
    contexts: &[Selected],
    offset: u64,
    length: u64,
    one: bool,
) -> Result<Vec<(u32, Vec<Run>)>> {
    let most = if one { 1 } else { MAX_RUNS / contexts.len().max(1) };
    let mut all = Vec::with_capacity(contexts.len());
    for Selected { id, context } in contexts {
        let said: Vec<Run> = match context {
            Context::Allocation => device.extents(offset, length).await?.iter().map(Run::from).collect(),
            Context::Diff(since) => {
                device.differences(*since, offset, length).await?.iter().map(Run::from).collect()
            }
        };
        all.push((*id, runs(&said, length, most).map_err(|e| Error::internal(e.0))?));
    }
    Ok(all)
}

/// The runs of a reply to a request of `length` bytes: neighbours of one state are one run,
/// nothing reaches beyond the request, and there are `most` at most.
///
/// # Errors
/// When the device described nothing.
fn runs(said: &[Run], length: u64, most: usize) -> std::result::Result<Vec<Run>, Malformed> {
    let mut runs: Vec<Run> = Vec::with_capacity(said.len().min(most));
    let mut left = length;
    for Run { len, state } in said {
        let (len, state) = ((*len).min(left), *state);
        if len == 0 {
            continue;
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
