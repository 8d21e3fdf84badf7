//! The logs of a service as a pure state machine: what may be appended, what is there, what is refused for ever.
//!
//! Does not own: where bytes lie ([`Place`] is the storage's), durability.

use super::segment::Held;
use crate::entry::{Head, Packed};
use crate::registration::{Incarnation, LogInfo};
use bytes::Bytes;
use common::{Epoch, Error, ErrorKind, Lsn, Result, VolumeId, mutant};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// What an entry costs beside its bytes: about what the index needs.
const OVERHEAD: u64 = 64;

/// Names a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Whose.
    pub volume: VolumeId,
    /// The epoch of the owner that writes it.
    pub epoch: Epoch,
    /// Which one.
    pub incarnation: Incarnation,
}

/// Bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of all logs together.
    pub capacity: u64,
    /// Bytes of one volume's logs.
    pub volume_bytes: u64,
    /// Volumes.
    pub volumes: usize,
    /// Logs of one volume: one, and one more for each takeover that the backend has not caught up with.
    pub logs_per_volume: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { capacity: 1 << 30, volume_bytes: 256 << 20, volumes: 16384, logs_per_volume: 12 }
    }
}

impl Limits {
    /// What the control state may take on disk, at most: each segment begins with all of it.
    pub(super) fn control_bytes(&self) -> u64 {
        const VOLUME: u64 = 80;
        const LOG: u64 = 49;
        (self.volumes as u64).saturating_mul((self.logs_per_volume as u64).saturating_mul(LOG) + VOLUME)
    }
}

/// Where an entry's bytes are.
#[derive(Debug, Clone)]
pub(super) enum Place {
    Memory(Bytes),
    Disk { held: Held, offset: u64 },
}

/// An entry of a log.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    pub crc: u32,
    pub len: u32,
    pub place: Place,
}

impl Slot {
    fn cost(&self) -> u64 {
        u64::from(self.len) + OVERHEAD
    }
}

#[derive(Debug)]
pub(super) struct Log {
    pub incarnation: Incarnation,
    /// The number of the request that made it, in its owner's process.
    pub serial: u64,
    pub base: Lsn,
    pub flushed: Lsn,
    pub sealed: bool,
    pub suspect: bool,
    pub damaged: bool,
    pub entries: VecDeque<Slot>,
}

impl Log {
    pub fn last(&self) -> Lsn {
        Lsn(self.base.0 + self.entries.len() as u64)
    }

    pub fn info(&self, epoch: Epoch) -> LogInfo {
        LogInfo {
            epoch,
            incarnation: self.incarnation,
            base: self.base,
            last: self.last(),
            flushed: self.flushed,
            sealed: self.sealed,
            suspect: self.suspect,
            damaged: self.damaged,
        }
    }

    fn slot(&self, lsn: Lsn) -> Option<&Slot> {
        let i = lsn.0.checked_sub(self.base.0 + 1)?;
        self.entries.get(usize::try_from(i).ok()?)
    }
}

#[derive(Debug, Default)]
pub(super) struct Volume {
    /// Epochs below it are refused, for ever.
    pub floor: Epoch,
    pub logs: BTreeMap<Epoch, Log>,
    bytes: u64,
}

/// What becomes of an entry that is to be appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// It is the next one.
    Take,
    /// It is there already, the same.
    Have,
    /// It leaves a gap.
    Gap,
    /// There is no room now.
    Full,
}

/// All logs of a service.
#[derive(Debug)]
pub(super) struct Logs {
    pub volumes: BTreeMap<VolumeId, Volume>,
    /// Volumes whose control state is not on disk as it is here.
    pub dirty: BTreeSet<VolumeId>,
    limits: Limits,
    bytes: u64,
}

fn fenced(volume: VolumeId, epoch: Epoch, floor: Epoch) -> Error {
    Error::fenced(format!("volume {volume}: epoch {epoch} is over, this DTL was sealed at epoch {floor}"))
}

/// The last epoch is what a volume that was forgotten has as its floor; nobody can own one in it.
fn possible(epoch: Epoch) -> Result<()> {
    if epoch == Epoch(u64::MAX) { Err(Error::invalid("an impossible epoch")) } else { Ok(()) }
}

fn gone(key: &Key) -> Error {
    Error::not_found(format!(
        "volume {}: there is no log {} of epoch {}",
        key.volume, key.incarnation, key.epoch
    ))
}

impl Logs {
    pub fn new(limits: Limits) -> Self {
        Logs { volumes: BTreeMap::new(), dirty: BTreeSet::new(), limits, bytes: 0 }
    }

    /// What recovery found of a volume.
    pub fn restore(&mut self, id: VolumeId, floor: Epoch, logs: BTreeMap<Epoch, Log>) {
        let bytes = logs.values().flat_map(|l| &l.entries).map(Slot::cost).sum();
        self.bytes += bytes;
        self.volumes.insert(id, Volume { floor, logs, bytes });
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn capacity(&self) -> u64 {
        self.limits.capacity
    }

    fn volume(&mut self, id: VolumeId) -> Result<&mut Volume> {
        let full = self.volumes.len() >= self.limits.volumes && !self.volumes.contains_key(&id);
        if full {
            let most = self.limits.volumes;
            return Err(Error::new(
                ErrorKind::NoSpace,
                format!("this DTL has logs of {most} volumes, the most it takes"),
            ));
        }
        Ok(self.volumes.entry(id).or_default())
    }

    pub fn log(&self, key: &Key) -> Result<&Log> {
        let log = self.volumes.get(&key.volume).and_then(|v| v.logs.get(&key.epoch));
        log.filter(|l| l.incarnation == key.incarnation).ok_or_else(|| gone(key))
    }

    pub fn log_mut(&mut self, key: &Key) -> Result<&mut Log> {
        let log = self.volumes.get_mut(&key.volume).and_then(|v| v.logs.get_mut(&key.epoch));
        log.filter(|l| l.incarnation == key.incarnation).ok_or_else(|| gone(key))
    }

    /// The log that may be written: not fenced, not sealed, not damaged.
    fn open_log(&self, key: &Key) -> Result<&Log> {
        let volume = self.volumes.get(&key.volume).ok_or_else(|| gone(key))?;
        if key.epoch < volume.floor && !mutant::is_on("old-epoch-accepted") {
            return Err(fenced(key.volume, key.epoch, volume.floor));
        }
        let log = self.log(key)?;
        if log.sealed && !mutant::is_on("old-epoch-accepted") {
            return Err(fenced(key.volume, key.epoch, volume.floor));
        }
        if log.damaged { Err(gone(key)) } else { Ok(log) }
    }

    /// Makes a log that begins behind `base`, or finds the one that the same request made.
    pub fn create(
        &mut self,
        volume: VolumeId,
        epoch: Epoch,
        serial: u64,
        base: Lsn,
        incarnation: Incarnation,
    ) -> Result<LogInfo> {
        let limit = self.limits.logs_per_volume;
        possible(epoch)?;
        if self.volumes.get(&volume).is_some_and(|v| epoch < v.floor) && !mutant::is_on("old-epoch-accepted")
        {
            let floor = self.volumes.get(&volume).map(|v| v.floor).unwrap_or_default();
            return Err(fenced(volume, epoch, floor));
        }
        let v = self.volume(volume)?;
        if let Some(log) = v.logs.get(&epoch) {
            if log.serial > serial && !mutant::is_on("delayed-create-replaces") {
                return Err(Error::conflict(format!(
                    "volume {volume}: a later request made the log of epoch {epoch}"
                )));
            }
            if log.serial == serial && !log.damaged {
                return Ok(log.info(epoch));
            }
        } else if v.logs.len() >= limit {
            return Err(Error::new(
                ErrorKind::NoSpace,
                format!("volume {volume} has {limit} logs here that the backend does not have yet"),
            ));
        }
        let log = Log {
            incarnation,
            serial,
            base,
            flushed: base,
            sealed: false,
            suspect: false,
            damaged: false,
            entries: VecDeque::new(),
        };
        let info = log.info(epoch);
        let old = v.logs.insert(epoch, log);
        self.dirty.insert(volume);
        self.raise(volume, epoch);
        if let Some(old) = old {
            self.give_back(volume, old.entries.iter().map(Slot::cost).sum());
        }
        Ok(info)
    }

    /// Finds a log that is to be written on.
    pub fn resume(&self, key: &Key) -> Result<LogInfo> {
        Ok(self.open_log(key)?.info(key.epoch))
    }

    /// Whether an entry may be appended, with `ahead` bytes admitted and not inserted yet.
    pub fn admit(&self, key: &Key, head: &Head, packed: &Packed, next: Lsn, ahead: u64) -> Result<Admission> {
        let log = self.open_log(key)?;
        if head.epoch > key.epoch {
            return Err(Error::invalid(format!(
                "volume {}: an entry of epoch {} in {}",
                key.volume, head.epoch, key.epoch
            )));
        }
        if head.lsn <= log.base {
            return Ok(Admission::Have);
        }
        if let Some(slot) = log.slot(head.lsn) {
            return if slot.crc == packed.crc && slot.len as usize == packed.bytes.len() {
                Ok(Admission::Have)
            } else {
                // One process gives out the LSNs of an epoch, once.
                Err(Error::corrupt(format!(
                    "volume {}: LSN {} comes again with another content",
                    key.volume, head.lsn
                )))
            };
        }
        if head.lsn != next {
            return Ok(Admission::Gap);
        }
        let cost = packed.bytes.len() as u64 + OVERHEAD + ahead;
        let used = self.volumes.get(&key.volume).map_or(0, |v| v.bytes);
        let fits = used + cost <= self.limits.volume_bytes && self.bytes + cost <= self.limits.capacity;
        Ok(if fits { Admission::Take } else { Admission::Full })
    }

    /// Bytes that an admitted entry will take.
    pub fn cost(packed: &Packed) -> u64 {
        packed.bytes.len() as u64 + OVERHEAD
    }

    /// An entry that was admitted and is written. What may have happened since is a trim, over another connection.
    pub fn insert(&mut self, key: &Key, lsn: Lsn, slot: Slot) -> Result<Admission> {
        let cost = slot.cost();
        let log = self.log_mut(key)?;
        if lsn <= log.base {
            return Ok(Admission::Have);
        }
        if lsn != log.last().next() {
            return Ok(Admission::Gap);
        }
        log.entries.push_back(slot);
        if let Some(v) = self.volumes.get_mut(&key.volume) {
            v.bytes += cost;
        }
        self.bytes += cost;
        Ok(Admission::Take)
    }

    /// Whether a volume that was told to stop may go on: with some room, so that it does not stop again at once.
    pub fn has_room(&self, volume: VolumeId) -> bool {
        let used = self.volumes.get(&volume).map_or(0, |v| v.bytes);
        used <= self.limits.volume_bytes / 8 * 7 && self.bytes <= self.limits.capacity / 16 * 15
    }

    /// The backend has everything up to `lsn`, so also what is not here yet need not come.
    pub fn trim(&mut self, key: &Key, lsn: Lsn) -> Result<()> {
        let log = self.log_mut(key)?;
        if lsn <= log.base || (log.sealed && lsn > log.last()) {
            return Ok(());
        }
        let n = (lsn.0 - log.base.0).min(log.entries.len() as u64) as usize;
        let freed = log.entries.drain(..n).map(|s| s.cost()).sum();
        log.base = lsn;
        log.flushed = log.flushed.max(lsn);
        self.dirty.insert(key.volume);
        self.give_back(key.volume, freed);
        Ok(())
    }

    /// The owner has resent everything that it had ever seen confirmed, which is up to `lsn`.
    pub fn vouch(&mut self, key: &Key, lsn: Lsn) -> Result<()> {
        self.open_log(key)?;
        let log = self.log_mut(key)?;
        if log.last() < lsn {
            return Err(Error::invalid(format!(
                "volume {}: the log ends at {}, not {lsn}",
                key.volume,
                log.last()
            )));
        }
        log.suspect = false;
        self.dirty.insert(key.volume);
        Ok(())
    }

    /// Refuses every epoch below `epoch` from now on.
    pub fn seal(&mut self, volume: VolumeId, epoch: Epoch) -> Result<()> {
        possible(epoch)?;
        self.volume(volume)?;
        self.raise(volume, epoch);
        Ok(())
    }

    fn raise(&mut self, volume: VolumeId, epoch: Epoch) {
        let Some(v) = self.volumes.get_mut(&volume) else { return };
        if epoch > v.floor {
            v.floor = epoch;
            self.dirty.insert(volume);
        }
        for (_, log) in v.logs.range_mut(..v.floor) {
            if !log.sealed {
                log.sealed = true;
                self.dirty.insert(volume);
            }
        }
    }

    pub fn infos(&self, volume: VolumeId) -> Vec<LogInfo> {
        let logs = self.volumes.get(&volume).map(|v| v.logs.iter().map(|(e, l)| l.info(*e)).collect());
        logs.unwrap_or_default()
    }

    pub fn floor(&self, volume: VolumeId) -> Epoch {
        self.volumes.get(&volume).map(|v| v.floor).unwrap_or_default()
    }

    /// Drops the sealed logs of epochs below `below`; all of a volume, floor and all, where `below` is the last epoch.
    pub fn forget(&mut self, volume: VolumeId, below: Epoch) -> Result<()> {
        let Some(v) = self.volumes.get_mut(&volume) else { return Ok(()) };
        let everything = below == Epoch(u64::MAX);
        if below > v.floor && !everything {
            return Err(Error::conflict(format!(
                "volume {volume}: logs of epoch {} are not sealed",
                v.floor
            )));
        }
        let kept = v.logs.split_off(&below);
        let dropped = std::mem::replace(&mut v.logs, kept);
        let freed = dropped.values().flat_map(|l| &l.entries).map(Slot::cost).sum();
        self.dirty.insert(volume);
        self.give_back(volume, freed);
        if everything {
            self.volumes.remove(&volume);
        }
        Ok(())
    }

    /// Entries of a log from `from` on, of about `max` bytes.
    pub fn slots(&self, key: &Key, from: Lsn, max: usize) -> Result<Vec<Slot>> {
        let log = self.log(key)?;
        if from <= log.base {
            return Err(Error::not_found(format!(
                "volume {}: LSN {from} was trimmed, as far as {}",
                key.volume, log.base
            )));
        }
        let skip = usize::try_from(from.0 - log.base.0 - 1).unwrap_or(usize::MAX);
        let mut bytes = 0;
        let fits = |s: &&Slot| {
            let first = bytes == 0;
            bytes += s.len as usize;
            first || bytes <= max
        };
        Ok(log.entries.iter().skip(skip).take_while(fits).cloned().collect())
    }

    fn give_back(&mut self, volume: VolumeId, bytes: u64) {
        self.bytes -= bytes;
        if let Some(v) = self.volumes.get_mut(&volume) {
            v.bytes -= bytes;
        }
    }
}
