//! Formatting a disk, and opening what an earlier process left.
//!
//! The start reads the identity, a row for each segment and the names of the files: its time does not depend on how many
//! values there are.

use super::commit::{self, Queue};
use super::files::Files;
use super::format::{self, IDENTITY, Identity, SegmentState, Totals, keys};
use super::space::Space;
use super::{Core, Found, Settings, Store, clean, scrub};
use common::osd::{BLOCK, MAX_VALUE, OsdId};
use common::table::Batch;
use common::{Clock, Disk, Error, ErrorKind, Result, Table};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::{Notify, watch};

/// Rows that are read from the table at a time.
const ROWS: usize = 4096;
/// The smallest segment, and the largest one.
const SIZES: std::ops::RangeInclusive<u64> = 32 << 10..=1 << 30;

impl Store {
    /// Makes an empty disk the storage of a new OSD, with segments of `segment_size` bytes; returns its id.
    ///
    /// # Errors
    /// `Conflict`: it is not empty.
    pub async fn format(
        disk: &dyn Disk,
        table: &dyn Table,
        clock: &dyn Clock,
        segment_size: u64,
    ) -> Result<OsdId> {
        if !SIZES.contains(&segment_size) || !segment_size.is_multiple_of(BLOCK as u64) {
            return Err(Error::invalid(format!(
                "segments of {segment_size} bytes: choose a multiple of {BLOCK} from {} to {}",
                SIZES.start(),
                SIZES.end()
            )));
        }
        let files = disk.list().await?;
        let begun = files == [IDENTITY] && identity(disk).await.is_err();
        if !files.is_empty() && !begun {
            return Err(Error::conflict(format!(
                "there is something already ({}): an OSD is made in an empty directory",
                files[0]
            )));
        }
        if begun {
            // A format that was cut off: nothing was ever stored here.
            disk.remove(IDENTITY).await?;
        }
        let id = OsdId(clock.random_u128());
        let block = Identity { id, segment_size }.encode();
        for prefix in [keys::SEGMENTS, keys::PLACES, keys::VALUES, keys::CLAIM, keys::SCRUB] {
            table.delete_prefix(prefix)?;
        }
        let mut batch = Batch::default();
        batch.put(keys::IDENTITY, block.clone());
        batch.put(keys::TOTALS, Totals::default().encode());
        table.write(batch)?;
        table.checkpoint()?;
        // The file last: with it, it is a storage.
        let file = disk.create(IDENTITY, BLOCK as u64).await?;
        file.write_at(0, &[block]).await?;
        file.sync().await?;
        Ok(id)
    }

    /// Opens what was formatted.
    ///
    /// # Errors
    /// `NotFound`: it was not formatted. `Corrupt`, `Conflict`: disk and table do not belong together.
    pub async fn open(
        settings: Settings,
        disk: Arc<dyn Disk>,
        table: Arc<dyn Table>,
        clock: Arc<dyn Clock>,
    ) -> Result<(Store, Found)> {
        let identity = identity(&*disk).await?;
        match table.get(keys::IDENTITY)? {
            None => return Err(Error::corrupt(format!("the table of OSD {} is gone", identity.id))),
            Some(block) => {
                let other = Identity::decode(&block)?;
                if other != identity {
                    return Err(Error::conflict(format!(
                        "the disk is that of OSD {}, the table that of OSD {}",
                        identity.id, other.id
                    )));
                }
            }
        }
        // What is read now, a power cut must not take back.
        table.checkpoint()?;
        let totals =
            table.get(keys::TOTALS)?.ok_or_else(|| Error::corrupt("the table has lost its totals"))?;
        let totals = Totals::decode(totals)?;
        let claim = table.get(keys::CLAIM)?.map(|claim| format::decode_claim(&claim)).transpose()?;
        let cursor = table.get(keys::SCRUB)?.unwrap_or_default();
        let (segments, next, found) = reconcile(&*disk, &*table, identity).await?;
        let taken = segments.len() as u64 * identity.segment_size;
        let capacity = match settings.capacity {
            Some(capacity) => capacity,
            None => disk.available().await?.saturating_add(taken).saturating_add(totals.table),
        };
        let least = settings.table_reserve + 6 * identity.segment_size;
        if capacity < least {
            return Err(Error::invalid(format!(
                "a capacity of {capacity} bytes is too small for segments of {} bytes: give it {least} at least",
                identity.segment_size
            )));
        }
        let missing: Vec<u64> = found.missing.iter().map(|(number, _)| *number).collect();
        let mut space =
            Space::new(identity.segment_size, capacity, settings.table_reserve, segments, totals, next);
        for (number, lost) in &found.missing {
            tracing::error!(
                osd = %identity.id, segment = format::segment_name(*number), lost,
                "a segment is missing or too short: its values are lost"
            );
        }
        missing.into_iter().for_each(|number| space.stick(number));
        let core = Arc::new(Core {
            id: identity.id,
            segment_size: identity.segment_size,
            settings,
            files: Files::new(identity.id, disk, settings.open_files),
            table,
            clock,
            queue: Queue::default(),
            space: Mutex::new(space),
            in_flight: Mutex::default(),
            durable: watch::Sender::new(0),
            failure: Mutex::default(),
            claim: Mutex::new(claim),
            damage: Mutex::default(),
            scrub: Mutex::default(),
            garbage: Notify::new(),
            counters: Default::default(),
            apply_times: Default::default(),
            get_times: Default::default(),
        });
        let tasks = vec![
            tokio::spawn(commit::run(core.clone())),
            tokio::spawn(clean::run(core.clone())),
            tokio::spawn(scrub::run(core.clone(), cursor)),
        ];
        Ok((Store { core, tasks: Mutex::new(tasks) }, found))
    }

    /// The largest value that fits a segment of this disk.
    pub fn largest(&self) -> u64 {
        (self.core.segment_size - format::HEADER).min(MAX_VALUE as u64)
    }
}

/// Reads which disk this is.
///
/// # Errors
/// `NotFound`: it was not formatted. `Corrupt`: it was, and can't be read.
async fn identity(disk: &dyn Disk) -> Result<Identity> {
    let file = disk.open(IDENTITY).await.map_err(|e| match e.kind {
        ErrorKind::NotFound => Error::not_found("there is no OSD here: format the directory first"),
        _ => e,
    })?;
    if file.len() != BLOCK as u64 {
        return Err(Error::corrupt("the identity of this disk has a wrong length"));
    }
    let identity = Identity::decode(&file.read_at(0, BLOCK).await?)?;
    if SIZES.contains(&identity.segment_size) && identity.segment_size.is_multiple_of(BLOCK as u64) {
        return Ok(identity);
    }
    Err(Error::corrupt("the identity of this disk says an impossible size of segments"))
}

/// Compares files and records. What nothing was committed to goes.
async fn reconcile(
    disk: &dyn Disk,
    table: &dyn Table,
    identity: Identity,
) -> Result<(BTreeMap<u64, SegmentState>, u64, Found)> {
    let mut segments = BTreeMap::new();
    let mut from = keys::SEGMENTS.to_vec();
    loop {
        let rows = table.scan(keys::SEGMENTS, &from, ROWS)?;
        let Some((last, _)) = rows.last() else { break };
        from = [last.as_slice(), &[0]].concat();
        for (row, state) in rows {
            let digits = row[keys::SEGMENTS.len()..].try_into();
            let number =
                digits.map(u64::from_be_bytes).map_err(|_| Error::corrupt("the row of a segment"))?;
            segments.insert(number, SegmentState::decode(state)?);
        }
    }
    let mut found = Found::default();
    let mut next = segments.keys().next_back().map_or(1, |last| last + 1);
    let mut there = std::collections::BTreeSet::new();
    for name in disk.list().await? {
        let Some(number) = format::segment_number(&name) else { continue };
        next = next.max(number + 1);
        there.insert(number);
        if !segments.contains_key(&number) {
            found.leftovers += 1;
            disk.remove(&name).await?;
        }
    }
    let mut forgotten = Batch::default();
    segments.retain(|number, state| {
        if there.contains(number) {
            return true;
        }
        if state.count == 0 {
            // It was being removed.
            forgotten.delete(keys::segment(*number));
            return false;
        }
        found.missing.push((*number, state.count));
        true
    });
    if !forgotten.ops.is_empty() {
        table.write(forgotten)?;
    }
    if segments.values().any(|s| s.end > identity.segment_size) {
        return Err(Error::corrupt("a segment ends behind its end"));
    }
    Ok((segments, next, found))
}

/// The place of a value and the identity, for tests that damage them.
#[cfg(test)]
pub(super) fn place_of(store: &Store, key: &[u8]) -> Option<(String, u64)> {
    match store.core.record(key).ok().flatten()?.body {
        format::Body::Placed { segment, offset, .. } => Some((format::segment_name(segment), offset)),
        format::Body::Inline(_) => None,
    }
}
