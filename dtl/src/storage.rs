//! The logs that a service keeps: in memory, bounded, or on disk.
//!
//! | room | what |
//! |---|---|
//! | `logs` | the pure state: what is there, what is refused |
//! | `segment` | a file, and the hold on it |
//! | `format` | the codec of what lies in it |
//! | `append` | records, group sync |
//! | `house` | segments: made ahead of need, cleaned, freed |
//! | `recover` | what an earlier process left |
//!
//! An entry that [`Store::append`] has taken survives the death of the process (disk) or does not (memory);
//! after [`Store::flush`] it survives a loss of power (disk).
//!
//! Does not own: connections, what an entry means, whom to trust ([`crate::takeover`]).

mod append;
mod format;
mod house;
mod logs;
mod recover;
mod segment;

#[cfg(test)]
mod tests;

pub use logs::{Admission, Key, Limits};
pub use recover::{Damage, Recovered};

use crate::entry::{Head, Packed};
use crate::registration::{Incarnation, LogInfo};
use append::DiskBack;
use bytes::Bytes;
use common::{Clock, Disk, Epoch, Error, Lsn, Result, VolumeId, mutant};
use logs::{Logs, Place, Slot};
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::sync::watch;

/// How disk storage uses its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskSettings {
    /// Bytes of a segment; a multiple of 4096, at least 64 KiB.
    pub segment_size: u64,
    /// Segments, at least 4; two are kept for control and cleaning.
    pub segments: usize,
    /// Bounds of the logs.
    pub limits: Limits,
}

impl Default for DiskSettings {
    fn default() -> Self {
        DiskSettings { segment_size: 32 << 20, segments: 64, limits: Limits::default() }
    }
}

impl DiskSettings {
    /// Says what can't be.
    ///
    /// # Errors
    /// `Invalid`.
    pub fn check(&self) -> Result<()> {
        if !self.segment_size.is_multiple_of(4096) || !(64 << 10..=1 << 30).contains(&self.segment_size) {
            return Err(Error::invalid(
                "dtl: the segment size is not a multiple of 4096 from 64 KiB to 1 GiB",
            ));
        }
        if self.segments < 4 {
            return Err(Error::invalid("dtl: there are fewer than four segments"));
        }
        // Behind it the largest entry must fit, half a segment.
        if self.limits.control_bytes() > self.segment_size / 8 * 3 || self.limits.logs_per_volume > 1024 {
            return Err(Error::invalid(
                "dtl: a segment is too small for what is to be known of so many volumes and logs",
            ));
        }
        Ok(())
    }
}

/// An entry to be appended, and what became of it.
#[derive(Debug, Clone)]
pub struct Incoming {
    /// To which log.
    pub key: Key,
    /// What it says of itself.
    pub head: Head,
    /// The entry, checked.
    pub packed: Packed,
}

/// What a store holds, and what it cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// Volumes of which anything is known.
    pub volumes: u64,
    /// Logs.
    pub logs: u64,
    /// Bytes of them, with what is needed to find them.
    pub bytes: u64,
    /// The most of these bytes.
    pub capacity: u64,
    /// Syncs of segments.
    pub syncs: u64,
    /// A write or a sync failed: nothing is taken until the next start.
    pub failed: bool,
}

/// The logs of a service.
pub struct Store {
    logs: Mutex<Logs>,
    back: Option<DiskBack>,
    clock: Arc<dyn Clock>,
    /// Changes when there may be room again.
    room: watch::Sender<u64>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.tally().fmt(f)
    }
}

impl Store {
    /// Logs in memory, of at most `limits.capacity` bytes. They die with the process.
    pub fn memory(limits: Limits, clock: Arc<dyn Clock>) -> Arc<Store> {
        let room = watch::Sender::new(0);
        Arc::new(Store { logs: Mutex::new(Logs::new(limits)), back: None, clock, room })
    }

    /// Logs on `disk`: reads what earlier processes left, which is `suspect` where it was not sealed.
    ///
    /// # Errors
    /// Settings that can't be, and a disk that can't be read.
    pub async fn open(
        settings: DiskSettings,
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
    ) -> Result<(Arc<Store>, Recovered)> {
        settings.check()?;
        let found = recover::recover(&disk, settings.limits).await?;
        let back = DiskBack::new(settings, disk, found.segments, found.next_life, found.names, &*clock);
        let room = watch::Sender::new(0);
        let store = Arc::new(Store { logs: Mutex::new(found.logs), back: Some(back), clock, room });
        if found.report.volumes > 0 {
            // What is kept can be sealed at once.
            store.prepare().await?;
        } else {
            store.sweep().await?;
        }
        tokio::spawn(house::keep_house(Arc::downgrade(&store)));
        Ok((store, found.report))
    }

    /// Makes a log that begins behind `base`, or finds the one that the same request (`serial`) made.
    ///
    /// # Errors
    /// `Fenced`: the epoch is over. `Conflict`: a later request made one. `NoSpace`: too many.
    pub async fn create(
        self: &Arc<Self>,
        volume: VolumeId,
        epoch: Epoch,
        serial: u64,
        base: Lsn,
    ) -> Result<LogInfo> {
        let incarnation = Incarnation(self.clock.random_u128());
        let store = self.clone();
        let result = if self.back.is_none() {
            self.logs.lock().create(volume, epoch, serial, base, incarnation)
        } else {
            apart(async move {
                store.prepare().await?;
                let Some(back) = &store.back else { return Err(Error::internal("the DTL has no disk")) };
                let mut appender = back.appender.lock().await;
                let info = store.logs.lock().create(volume, epoch, serial, base, incarnation)?;
                back.write_states(&store.logs, &mut appender).await?;
                Ok(info)
            })
            .await
        };
        self.wake();
        result
    }

    /// Finds a log that its owner goes on with.
    ///
    /// # Errors
    /// `Fenced`: the epoch is over. `NotFound`: it is gone, or damaged; make another one.
    pub fn resume(&self, key: &Key) -> Result<LogInfo> {
        self.check()?;
        self.logs.lock().resume(key)
    }

    /// Appends what may be appended, in order. What was taken, or is there already, survives as far as the kind of
    /// storage goes.
    pub async fn append(&self, batch: &[Incoming]) -> Vec<Result<Admission>> {
        match &self.back {
            None => {
                let mut logs = self.logs.lock();
                let mut take = |i: &Incoming| {
                    let next = logs.log(&i.key)?.last().next();
                    let admission = logs.admit(&i.key, &i.head, &i.packed, next, 0)?;
                    if admission != Admission::Take {
                        return Ok(admission);
                    }
                    // A copy: what came shares its memory with its neighbours on the wire.
                    let place = Place::Memory(Bytes::copy_from_slice(&i.packed.bytes));
                    let slot = Slot { crc: i.packed.crc, len: i.packed.bytes.len() as u32, place };
                    logs.insert(&i.key, i.head.lsn, slot)
                };
                batch.iter().map(&mut take).collect()
            }
            Some(back) => back.append(&self.logs, batch).await,
        }
    }

    /// Makes everything that the log has survive a loss of power, as far as the storage can; returns its last LSN.
    ///
    /// # Errors
    /// A failed sync is final: nothing is taken after it.
    pub async fn flush(self: &Arc<Self>, key: &Key) -> Result<Lsn> {
        let last = self.logs.lock().log(key)?.last();
        if self.back.is_some() && !mutant::is_on("confirm-before-durable") {
            let store = self.clone();
            apart(async move { store.sync().await }).await?;
        }
        let mut logs = self.logs.lock();
        let log = logs.log_mut(key)?;
        log.flushed = log.flushed.max(last);
        Ok(last)
    }

    /// The backend has everything up to `lsn`.
    ///
    /// # Errors
    /// `NotFound`: there is no such log.
    pub fn trim(&self, key: &Key, lsn: Lsn) -> Result<()> {
        self.logs.lock().trim(key, lsn)?;
        self.wake();
        Ok(())
    }

    /// The owner has resent what it had ever seen confirmed: the log is not suspect any more.
    ///
    /// # Errors
    /// `Invalid`: the log does not reach `lsn`.
    pub fn vouch(&self, key: &Key, lsn: Lsn) -> Result<()> {
        self.check()?;
        self.logs.lock().vouch(key, lsn)
    }

    /// Refuses every epoch below `epoch` from now on, durably; returns all logs of the volume.
    ///
    /// # Errors
    /// What kept it from being durable: then it may or may not be sealed.
    pub async fn seal(self: &Arc<Self>, volume: VolumeId, epoch: Epoch) -> Result<Vec<LogInfo>> {
        if self.back.is_none() {
            let mut logs = self.logs.lock();
            logs.seal(volume, epoch)?;
            return Ok(logs.infos(volume));
        }
        let store = self.clone();
        apart(async move {
            store.prepare().await?;
            let Some(back) = &store.back else { return Err(Error::internal("the DTL has no disk")) };
            let infos = {
                // Behind every append: what is confirmed is in the log that is sealed.
                let mut appender = back.appender.lock().await;
                store.logs.lock().seal(volume, epoch)?;
                back.write_states(&store.logs, &mut appender).await?;
                store.logs.lock().infos(volume)
            };
            back.sync().await?;
            Ok(infos)
        })
        .await
    }

    async fn sync(&self) -> Result<()> {
        match &self.back {
            Some(back) => back.sync().await,
            None => Ok(()),
        }
    }

    /// All logs of a volume, and the epoch below which all are refused.
    pub fn status(&self, volume: VolumeId) -> (Epoch, Vec<LogInfo>) {
        let logs = self.logs.lock();
        (logs.floor(volume), logs.infos(volume))
    }

    /// Entries of a log from `from` on, about `max` bytes of them, at least one unless it ends there. Each is checked.
    ///
    /// # Errors
    /// `NotFound`: there is no such log, or `from` was trimmed. `Corrupt`: an entry can't be read.
    pub async fn read(&self, key: &Key, from: Lsn, max: usize) -> Result<Vec<Packed>> {
        let slots = self.logs.lock().slots(key, from, max)?;
        let mut entries = Vec::with_capacity(slots.len());
        for slot in slots {
            let bytes = match slot.place {
                Place::Memory(bytes) => bytes,
                Place::Disk { held, offset } => held.segment.file.read_at(offset, slot.len as usize).await?,
            };
            match Packed::check(slot.crc, bytes) {
                Ok((_, packed)) => entries.push(packed),
                // What is in front of it can be had.
                Err(_) if !entries.is_empty() => break,
                Err(why) => {
                    if let Ok(log) = self.logs.lock().log_mut(key) {
                        log.damaged = true;
                    }
                    return Err(Error::corrupt(format!(
                        "volume {}: log {}: {why}",
                        key.volume, key.incarnation
                    )));
                }
            }
        }
        Ok(entries)
    }

    /// Drops the sealed logs of epochs below `below`. `u64::MAX`: the volume was deleted, and nobody can own it.
    ///
    /// # Errors
    /// `Conflict`: one of them is not sealed.
    pub fn forget(&self, volume: VolumeId, below: Epoch) -> Result<()> {
        self.logs.lock().forget(volume, below)?;
        self.wake();
        Ok(())
    }

    /// Whether a volume that was told to stop may go on.
    pub fn has_room(&self, volume: VolumeId) -> bool {
        self.logs.lock().has_room(volume) && self.back.as_ref().is_none_or(DiskBack::has_room)
    }

    /// Changes when there may be room again.
    pub fn room(&self) -> watch::Receiver<u64> {
        self.room.subscribe()
    }

    /// Bytes of all logs.
    pub fn bytes(&self) -> u64 {
        self.logs.lock().bytes()
    }

    /// What it holds, and what it cost.
    pub fn tally(&self) -> Tally {
        let back = self.back.as_ref();
        let logs = self.logs.lock();
        Tally {
            volumes: logs.volumes.len() as u64,
            logs: logs.volumes.values().map(|v| v.logs.len() as u64).sum(),
            bytes: logs.bytes(),
            capacity: logs.capacity(),
            syncs: back.map_or(0, DiskBack::syncs),
            failed: back.is_some_and(|b| b.check().is_err()),
        }
    }

    /// Volumes of which anything is known.
    pub fn volumes(&self) -> Vec<VolumeId> {
        self.logs.lock().volumes.keys().copied().collect()
    }

    fn check(&self) -> Result<()> {
        self.back.as_ref().map_or(Ok(()), DiskBack::check)
    }

    /// Something was given back.
    fn wake(&self) {
        self.room.send_modify(|n| *n = n.wrapping_add(1));
        if let Some(back) = &self.back {
            back.wake.notify_one();
        }
    }
}

/// Runs what holds the appender or the sync in a task of its own. Who asked may be a connection that is busy with
/// something else, waits for a client that does not read, or is gone: the locks must not wait for it, and what
/// was begun must not be left half done, least of all an `fdatasync` whose error nobody hears.
async fn apart<T: Send + 'static>(work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    match tokio::spawn(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::internal(format!("a request to the DTL's storage did not finish: {error}"))),
    }
}

/// Decoders of what lies on disk, for fuzzers and property tests: they must not panic.
pub fn fuzz(bytes: &[u8]) {
    let _ = format::SegmentHeader::decode(bytes);
    if let Ok(state) = format::VolumeState::decode(bytes) {
        let mut again = bytes::BytesMut::new();
        state.encode(&mut again);
        assert_eq!(again, bytes);
    }
    if let Ok(record) = format::decode_record(bytes) {
        assert!(record.header_len <= bytes.len());
    }
}

/// The same bytes with the checksums of a segment's header and of a record made right, for fuzzers.
pub fn with_checksums(bytes: &[u8]) -> Vec<u8> {
    format::with_checksums(bytes)
}
