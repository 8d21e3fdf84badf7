//! Puts.

use super::{ATTEMPTS, CALL, Inner, LOOK_AGAIN, PATIENCE};
use crate::alba::layout::{Encoded, FragmentHeader, FragmentKey, Packing, Plan, encode};
use crate::alba::osds::Outcome;
use crate::alba::placement::{Candidate, place};
use crate::alba::preset::{Encryption, Policy};
use crate::alba::records::{Epoch, Found, Place, Record};
use bytes::Bytes;
use common::object::Precondition;
use common::osd::{Assert, Call, Changes, Osd, OsdId, Value};
use common::{Error, ErrorKind, Result};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

/// An object of at least so many bytes is laid out on a thread that may compute for long.
const LARGE: usize = 256 << 10;
/// A fragment that takes so long is also written elsewhere, if it took a multiple of what the others took.
const LATE_LEAST: Duration = Duration::from_millis(250);
const LATE_FACTOR: u32 = 10;

/// Between a put that could not be stored and the next try.
const AGAIN: Duration = Duration::from_millis(50);

/// What became of writing a fragment to an OSD.
struct Done {
    fragment: usize,
    osd: OsdId,
    took: Duration,
    result: Result<()>,
}

/// Where the fragments of an object are, and those that are still on their way.
struct Written {
    places: Vec<Option<Place>>,
    late: JoinSet<Done>,
}

/// What one put writes to every OSD.
struct Cargo {
    key: String,
    encoded: Encoded,
    epoch: Epoch,
    put_at: u64,
}

impl Cargo {
    fn place(&self, osd: OsdId) -> Place {
        Place { osd, epoch: self.epoch.number, version: 0 }
    }

    fn fragment_key(&self, namespace: u32, fragment: usize) -> FragmentKey {
        let (epoch, id) = (self.epoch.number, self.encoded.shape.id);
        FragmentKey { namespace, epoch, id, fragment: fragment as u8, version: 0 }
    }

    /// The requests that write a fragment: each asserts that its epoch is open there, and the last one has the header.
    fn requests(&self, namespace: u32, fragment: usize) -> Vec<Changes> {
        let (shape, key) = (&self.encoded.shape, self.fragment_key(namespace, fragment));
        let bytes = &self.encoded.fragments[fragment];
        let guard = || match common::mutant::is_on("alba-osd-ignores-epoch") {
            true => Changes::new(),
            false => Changes::new().assert(Assert::Absent(FragmentKey::closed(namespace, self.epoch.number))),
        };
        let values = shape.values();
        let mut requests: Vec<Changes> = (0..values)
            .map(|n| {
                let range = shape.value_range(n);
                let part = bytes.slice(range.start as usize..range.end as usize);
                let value = match values {
                    1 => Value { bytes: part, crc: self.encoded.crcs[fragment] },
                    _ => Value::new(part),
                };
                guard().set(key.value(n), value)
            })
            .collect();
        let header = FragmentHeader {
            key,
            name: self.key.clone(),
            put_at: self.put_at,
            crcs: self.encoded.crcs.clone(),
            shape: shape.clone(),
        };
        if let Some(last) = requests.pop() {
            requests.push(last.set(key.header(), Value::new(header.encode())));
        }
        requests
    }
}

/// One fragment on its way.
#[derive(Default, Clone)]
struct Slot {
    done: Option<OsdId>,
    asked: Vec<OsdId>,
    under_way: Vec<OsdId>,
}

impl Inner {
    /// The epoch that puts belong to, as it was known, or asked for anew.
    pub(super) async fn epoch(&self, anew: bool) -> Result<Epoch> {
        if let Some(epoch) = self.epoch.lock().filter(|_| !anew) {
            return Ok(epoch);
        }
        let epoch = self.records.epoch().await?;
        *self.epoch.lock() = Some(epoch);
        Ok(epoch)
    }

    pub(super) async fn put(
        self: &Arc<Self>,
        key: &str,
        parts: &[Bytes],
        precondition: Precondition,
    ) -> Result<()> {
        let deadline = self.clock.now() + PATIENCE;
        let taken = || Error::conflict(format!("object '{key}' exists"));
        let mut anew = false;
        loop {
            let old = self.records.get(key).await?;
            if precondition == Precondition::IfAbsent && old.is_some() {
                return Err(taken());
            }
            let policy = self.policy(deadline).await?;
            let epoch = self.epoch(anew).await?;
            let cargo = Arc::new(self.lay_out(key, parts, policy, epoch).await?);
            let written = match self.write(&cargo).await {
                Ok(written) => written,
                Err(error) => {
                    anew = error.kind == ErrorKind::Conflict;
                    let again = anew || error.is_worth_another_try();
                    if !again || self.clock.now() >= deadline {
                        return Err(error);
                    }
                    // Those that failed are avoided by now; what no view shows must not be tried without end.
                    self.clock.sleep(AGAIN).await;
                    continue;
                }
            };
            let Cargo { encoded, put_at, .. } = &*cargo;
            let (shape, crcs) = (encoded.shape.clone(), encoded.crcs.clone());
            let record = Record { shape, put_at: *put_at, places: written.places, crcs };
            match self.commit(key, &record, old, precondition, epoch).await? {
                Commit::Done(replaced) => {
                    self.cache.remove(key);
                    *self.waiting.lock() = None;
                    if let Some(replaced) = replaced {
                        self.remove_later(replaced.record);
                    }
                    self.finish_later(cargo, record, written.late);
                    return Ok(());
                }
                Commit::Taken => {
                    self.discard(&cargo, record.places);
                    return Err(taken());
                }
                Commit::EpochClosed => {
                    if self.clock.now() >= deadline {
                        return Err(Error::unavailable("the collection epoch is closed again and again"));
                    }
                    anew = true;
                }
            }
        }
    }

    /// The first policy that is possible; waits until there is one.
    async fn policy(&self, deadline: Duration) -> Result<Policy> {
        loop {
            let able = self.osds.candidates().into_iter().filter(|c| c.weight > 0);
            if let Some((_, policy)) = self.preset.choose(able.map(|c| c.node)) {
                return Ok(policy);
            }
            let least = self.preset.policies.last().map_or_else(String::new, Policy::to_string);
            let why = format!("not even policy {least} can be satisfied: {}", self.osds.told());
            *self.waiting.lock() = Some(why.clone());
            if self.clock.now() >= deadline {
                return Err(Error::unavailable(format!(
                    "{why}; it goes on by itself when more of them are back"
                )));
            }
            tokio::select! {
                () = self.osds.changed() => {}
                () = self.clock.sleep(LOOK_AGAIN) => self.osds.refresh().await,
            }
        }
    }

    async fn lay_out(
        self: &Arc<Self>,
        key: &str,
        parts: &[Bytes],
        policy: Policy,
        epoch: Epoch,
    ) -> Result<Cargo> {
        let id = (self.draw)()?;
        let newest = match self.preset.encryption {
            Encryption::None => None,
            Encryption::ChaCha20Poly1305 => self.keys.last_key_value().map(|(_, key)| key),
        };
        let zstd = self.compression() != crate::alba::preset::Compression::None;
        let packing = Packing { zstd, key: newest.map(|key| key.number()) };
        let (frame_size, value_len) = (self.preset.frame_size, self.preset.fragment_size);
        let plan = Plan { policy, frame_size, value_len, packing };
        let sealing = newest.map(|key| key.object(id)).transpose()?;
        let (compression, parts) = (self.compression(), parts.to_vec());
        let large = parts.iter().map(Bytes::len).sum::<usize>() >= LARGE;
        let work = move || encode(&parts, id, &plan, compression, sealing.as_ref());
        let encoded = if large { common::blocking::run(work).await? } else { work()? };
        let put_at = self.clock.unix_time().as_millis() as u64;
        Ok(Cargo { key: key.to_string(), encoded, epoch, put_at })
    }

    fn send(self: &Arc<Self>, cargo: &Arc<Cargo>, fragment: usize, id: OsdId, set: &mut JoinSet<Done>) {
        let (inner, cargo) = (self.clone(), cargo.clone());
        set.spawn(async move {
            let began = inner.clock.now();
            let result = match inner.osds.get(id) {
                Some(osd) => inner.write_fragment(&*osd, &cargo, fragment).await,
                None => Err(Error::unavailable(format!("OSD {id} is gone"))),
            };
            Done { fragment, osd: id, took: inner.clock.now() - began, result }
        });
    }

    async fn write_fragment(&self, osd: &dyn Osd, cargo: &Cargo, fragment: usize) -> Result<()> {
        for changes in cargo.requests(self.records.namespace(), fragment) {
            tokio::select! {
                applied = osd.apply(Call::client(CALL), changes) => applied?,
                // Also when the daemon does not keep to its deadline.
                () = self.clock.sleep(CALL) => {
                    return Err(Error::unavailable(format!("{}: no answer within {CALL:?}", osd.describe())));
                }
            }
        }
        Ok(())
    }

    /// Writes the fragments, all at a time, until c of them are durable and the others had their chance.
    async fn write(self: &Arc<Self>, cargo: &Arc<Cargo>) -> Result<Written> {
        let policy = cargo.encoded.shape.policy;
        let (all, id) = (policy.fragments(), cargo.encoded.shape.id);
        let needed =
            if common::mutant::is_on("alba-c-ignored") { policy.data() } else { usize::from(policy.c) };
        let mut slots = vec![Slot::default(); all];
        let mut set = JoinSet::new();
        let began = self.clock.now();
        for (fragment, osd) in place(id, &self.osds.candidates(), all, policy.x, &[]).into_iter().enumerate()
        {
            self.ask(cargo, fragment, osd, &mut slots, &mut set);
        }
        let (mut look_at, mut last_error) = (began + LATE_LEAST, None);
        loop {
            let done = slots.iter().filter(|slot| slot.done.is_some()).count();
            let now = self.clock.now();
            if done == all || set.is_empty() || (done >= needed && now >= look_at) {
                break;
            }
            let joined = tokio::select! {
                biased;
                joined = set.join_next() => joined,
                () = self.clock.sleep(look_at.saturating_sub(now)) => {
                    if done < needed {
                        let waited = self.clock.now() - began;
                        self.replace_late(cargo, &mut slots, &mut set, waited);
                        look_at = began + waited + LATE_LEAST.max(waited);
                    }
                    continue;
                }
            };
            let Some(Ok(finished)) = joined else { continue };
            let slot = &mut slots[finished.fragment];
            slot.under_way.retain(|osd| *osd != finished.osd);
            match finished.result {
                Ok(()) => {
                    self.osds.report(finished.osd, Outcome::Answered(finished.took));
                    match slot.done {
                        None => slot.done = Some(finished.osd),
                        Some(_) => self.discard_one(cargo, finished.fragment, finished.osd),
                    }
                    let done = slots.iter().filter(|slot| slot.done.is_some()).count();
                    if done == needed {
                        // The others get a little more time; then they follow.
                        let now = self.clock.now();
                        look_at = look_at.min(now + (now - began) / 5);
                    }
                }
                Err(error) => {
                    // Either the epoch is closed there, and so it is in the registry since before; or it is another disk.
                    if error.kind == ErrorKind::Conflict {
                        if self.epoch(true).await? != cargo.epoch {
                            self.discard_all(cargo, &slots);
                            return Err(error);
                        }
                        self.osds.report(finished.osd, Outcome::Failed);
                    }
                    self.osds.report_error(finished.osd, &error);
                    last_error = Some(error);
                    if slot.done.is_none() && slot.under_way.is_empty() {
                        self.ask_another(cargo, finished.fragment, &mut slots, &mut set);
                    }
                }
            }
        }
        let places: Vec<_> = slots.iter().map(|slot| slot.done.map(|osd| cargo.place(osd))).collect();
        let done = places.iter().flatten().count();
        if done < needed {
            self.discard_all(cargo, &slots);
            let why = last_error.map_or_else(String::new, |e| format!(": {e}"));
            return Err(Error::unavailable(format!("{done} of {needed} fragments could be stored{why}")));
        }
        Ok(Written { places, late: set })
    }

    fn ask(
        self: &Arc<Self>,
        cargo: &Arc<Cargo>,
        fragment: usize,
        osd: OsdId,
        slots: &mut [Slot],
        set: &mut JoinSet<Done>,
    ) {
        slots[fragment].asked.push(osd);
        slots[fragment].under_way.push(osd);
        self.send(cargo, fragment, osd, set);
    }

    /// Asks an OSD that was not asked yet for this fragment; false when there is none.
    fn ask_another(
        self: &Arc<Self>,
        cargo: &Arc<Cargo>,
        fragment: usize,
        slots: &mut [Slot],
        set: &mut JoinSet<Done>,
    ) -> bool {
        let mut candidates: Vec<Candidate> = self.osds.candidates();
        let asked = |osd: &OsdId| slots.iter().any(|slot| slot.asked.contains(osd));
        candidates.iter_mut().filter(|c| asked(&c.osd)).for_each(|c| c.weight = 0);
        // What is there, or may come to be there: whichever of them it will be, no node gets more than x.
        let others = slots.iter().enumerate().filter(|(n, _)| *n != fragment);
        let taken: Vec<OsdId> = others
            .flat_map(|(_, slot)| match slot.done {
                Some(osd) => vec![osd],
                None => slot.under_way.clone(),
            })
            .collect();
        let policy = cargo.encoded.shape.policy;
        let Some(osd) = place(cargo.encoded.shape.id, &candidates, 1, policy.x, &taken).pop() else {
            return false;
        };
        self.ask(cargo, fragment, osd, slots, set);
        true
    }

    /// Fragments that are much later than the others are written elsewhere too; the first that is durable counts.
    fn replace_late(
        self: &Arc<Self>,
        cargo: &Arc<Cargo>,
        slots: &mut [Slot],
        set: &mut JoinSet<Done>,
        waited: Duration,
    ) {
        let late: Vec<usize> = (0..slots.len()).filter(|n| slots[*n].done.is_none()).collect();
        for fragment in late {
            let Some(osd) = slots[fragment].asked.last().copied() else { continue };
            let usual = self.osds.hedge_after(osd);
            if slots[fragment].under_way.len() == 1 && waited >= (usual * LATE_FACTOR).min(2 * LATE_LEAST) {
                self.osds.report(osd, Outcome::Late(waited));
                self.ask_another(cargo, fragment, slots, set);
            }
        }
    }

    /// Makes the object exist.
    async fn commit(
        &self,
        key: &str,
        record: &Record,
        mut old: Option<Found>,
        precondition: Precondition,
        epoch: Epoch,
    ) -> Result<Commit> {
        for _ in 0..ATTEMPTS {
            let outcome = self.records.put(key, record, old.as_ref(), epoch).await;
            let error = match outcome {
                Ok(_) => return Ok(Commit::Done(old)),
                Err(error) if matches!(error.kind, ErrorKind::Conflict | ErrorKind::Unavailable) => error,
                Err(error) => return Err(error),
            };
            let now = self.records.get(key).await.map_err(|_| error.clone())?;
            if now.as_ref().is_some_and(|found| found.record.id() == record.id()) {
                return Ok(Commit::Done(old));
            }
            if error.kind == ErrorKind::Unavailable {
                // It may happen yet, so nothing can be told, and nothing be removed.
                return Err(error);
            }
            let changed = now.as_ref().map(|f| f.revision) != old.as_ref().map(|f| f.revision);
            match changed {
                true if precondition == Precondition::IfAbsent && now.is_some() => return Ok(Commit::Taken),
                true => old = now,
                false => return Ok(Commit::EpochClosed),
            }
        }
        Err(Error::unavailable(format!("object '{key}' changes all the time")))
    }

    /// Waits in the background for the fragments that were still on their way, and names them in the record.
    fn finish_later(self: &Arc<Self>, cargo: Arc<Cargo>, record: Record, mut late: JoinSet<Done>) {
        if late.is_empty() {
            return;
        }
        let inner = self.clone();
        tokio::spawn(async move {
            let mut stored: Vec<(usize, OsdId)> = Vec::new();
            while let Some(joined) = late.join_next().await {
                let Ok(Done { fragment, osd, took, result }) = joined else { continue };
                match result {
                    Ok(()) => {
                        inner.osds.report(osd, Outcome::Answered(took));
                        stored.push((fragment, osd));
                    }
                    Err(error) => inner.osds.report_error(osd, &error),
                }
            }
            if let Err(error) = inner.add_places(&cargo, &record, stored).await {
                tracing::debug!(object = %record.id(), %error, "late fragments stay for maintenance");
            }
        });
    }

    async fn add_places(
        self: &Arc<Self>,
        cargo: &Arc<Cargo>,
        record: &Record,
        stored: Vec<(usize, OsdId)>,
    ) -> Result<()> {
        let mut refused = None;
        for _ in 0..ATTEMPTS {
            let found = self.records.get(&cargo.key).await?.filter(|found| found.record.id() == record.id());
            // Refused although nobody changed it: the epoch is closed, and they will never be named.
            let closed = found.is_some() && refused == found.as_ref().map(|f| f.revision);
            let mut next = found.as_ref().map_or_else(|| record.clone(), |found| (*found.record).clone());
            let mut added = false;
            for (fragment, osd) in &stored {
                let free = !next.places.iter().flatten().any(|p| p.osd == *osd);
                match &mut next.places[*fragment] {
                    place @ None if found.is_some() && free && !closed => {
                        *place = Some(cargo.place(*osd));
                        added = true;
                    }
                    Some(place) if *place == cargo.place(*osd) => {}
                    // Another one got there first, or the object is gone.
                    _ => self.discard_one(cargo, *fragment, *osd),
                }
            }
            let (true, Some(found)) = (added, found) else { return Ok(()) };
            match self.records.put(&cargo.key, &next, Some(&found), cargo.epoch).await {
                Ok(_) => {
                    self.cache.remove(&cargo.key);
                    return Ok(());
                }
                Err(e) if e.kind == ErrorKind::Conflict => refused = Some(found.revision),
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Removes, as well as may be, what no record names and none ever will; the rest is garbage of its epoch.
    fn discard(self: &Arc<Self>, cargo: &Arc<Cargo>, places: Vec<Option<Place>>) {
        for (fragment, place) in places.into_iter().enumerate() {
            if let Some(place) = place {
                self.discard_one(cargo, fragment, place.osd);
            }
        }
    }

    fn discard_all(self: &Arc<Self>, cargo: &Arc<Cargo>, slots: &[Slot]) {
        for (fragment, slot) in slots.iter().enumerate() {
            slot.asked.iter().for_each(|osd| self.discard_one(cargo, fragment, *osd));
        }
    }

    fn discard_one(self: &Arc<Self>, cargo: &Arc<Cargo>, fragment: usize, id: OsdId) {
        let Some(osd) = self.osds.get(id) else { return };
        let key = cargo.fragment_key(self.records.namespace(), fragment);
        let values = cargo.encoded.shape.values();
        let changes = (0..values).fold(Changes::new().delete(key.header()), |c, v| c.delete(key.value(v)));
        tokio::spawn(async move { osd.apply(Call::maintenance(CALL), changes).await });
    }
}

/// What became of a record.
enum Commit {
    /// It is there, in place of this one.
    Done(Option<Found>),
    /// Another object has the key.
    Taken,
    /// The epoch of its fragments is over.
    EpochClosed,
}

/// Whether writing elsewhere may help.
trait WorthAnotherTry {
    fn is_worth_another_try(&self) -> bool;
}

impl WorthAnotherTry for Error {
    fn is_worth_another_try(&self) -> bool {
        self.kind.is_transient()
    }
}
