//! State and log of a member, opened together: what one of them lacks must not be taken for what never was.

use super::core::fits;
use crate::log::{Log, LogBatch, LogSettings, Position, Recovered};
use crate::machine::layout::LOG_KEY;
use crate::machine::{Limits, Machine, StateStore};
use common::table::Batch;
use common::{Disk, Error, Result};
use std::sync::Arc;

/// Opens what is in `store` and on `disk`.
///
/// Errors: `Corrupt` when one of them is damaged or missing, or they do not go together.
pub(crate) async fn open(
    store: Arc<dyn StateStore>,
    limits: Limits,
    disk: Arc<dyn Disk>,
    settings: LogSettings,
) -> Result<(Machine, Log, Recovered)> {
    let machine = Machine::open(store.clone(), limits)?;
    let machine = machine.ok_or_else(|| Error::internal("the registry's state was made and is not there"))?;
    let (head, meta) = (machine.head(), machine.meta());
    let applied = Position { index: meta.index, term: meta.term };
    let begun = store.get(LOG_KEY)?.is_some();
    if begun && !Log::is_there(&*disk).await? {
        return Err(Error::corrupt(format!(
            "the registry's log is not in its folder, and the state beside it is that of entry {}: is a disk not mounted? \
             What this member voted for and confirmed was in it; if it is lost, remove this member from its group and \
             add it again under a new id",
            applied.index
        )));
    }
    let (mut log, mut recovered) = Log::open(disk, settings, head.group, head.member, applied).await?;
    if !begun {
        let mut batch = Batch::default();
        batch.put(LOG_KEY, b"1".to_vec());
        store.write(batch)?;
        store.checkpoint()?;
    }
    if fits(applied, meta.installed, &recovered)? {
        let reset =
            LogBatch { reset: Some(applied), hard: Some(recovered.hard.clone()), ..LogBatch::default() };
        log.append(&[reset]).await?;
        recovered.floor = applied;
        recovered.entries.clear();
    }
    Ok((machine, log, recovered))
}
