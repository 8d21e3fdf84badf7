//! Segments: made ahead of need, cleaned by copying forward, freed when the control state that names what
//! replaced them is durable.

use super::Store;
use super::append::{DiskBack, Spare, Work, entry_item};
use super::format::FREE;
use super::logs::{Key, Place, Slot};
use super::segment::Segment;
use bytes::Bytes;
use common::crc::crc32c;
use common::{Lsn, Result, mutant};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Segments that are ready to be written.
const READY: usize = 2;
/// Bytes that are copied forward in one go.
const COPY: usize = 1 << 20;
/// How long to wait when there is no room.
const PAUSE: Duration = Duration::from_secs(1);

pub(super) async fn keep_house(store: Weak<Store>) {
    loop {
        let Some(strong) = store.upgrade() else { return };
        let Some(back) = &strong.back else { return };
        let wake = back.wake.clone();
        let clock = strong.clock.clone();
        let short = match strong.tidy().await {
            Ok(()) => back.needed.load(Ordering::Acquire) && !back.has_room(),
            Err(error) => {
                if back.check().is_err() {
                    return;
                }
                tracing::warn!(%error, "the DTL's storage has no room");
                true
            }
        };
        drop(strong);
        if short {
            tokio::select! {
                biased;
                () = wake.notified() => {}
                () = clock.sleep(PAUSE) => {}
            }
        } else {
            wake.notified().await;
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if let Some(back) = &self.back {
            back.wake.notify_one();
        }
    }
}

impl Store {
    /// Sees to it that there is a segment to write to. A store of which nobody wants anything writes nothing: a segment costs as much as
    /// it is large.
    pub(super) async fn prepare(&self) -> Result<()> {
        let Some(back) = &self.back else { return Ok(()) };
        if back.needed.load(Ordering::Acquire) {
            return Ok(());
        }
        let _alone = back.housework.lock().await;
        if back.needed.load(Ordering::Acquire) {
            return Ok(());
        }
        back.check()?;
        // One is enough to begin with; more are made behind whoever waits here.
        self.make(back).await?;
        self.begin(back).await?;
        back.needed.store(true, Ordering::Release);
        back.wake.notify_one();
        Ok(())
    }

    /// Removes what an earlier process left, if nothing in it is known of.
    pub(super) async fn sweep(&self) -> Result<()> {
        let Some(back) = &self.back else { return Ok(()) };
        let left = std::mem::take(&mut back.space.lock().closed);
        for segment in left {
            back.disk.remove(&segment.name).await?;
            back.space.lock().files -= 1;
        }
        Ok(())
    }

    /// Frees, makes and cleans segments until there is nothing to do.
    pub(super) async fn tidy(&self) -> Result<()> {
        let Some(back) = &self.back else { return Ok(()) };
        if !back.needed.load(Ordering::Acquire) {
            return Ok(());
        }
        let _alone = back.housework.lock().await;
        // Each segment is cleaned once at most in one go: what is full of what is needed stays so.
        let mut cleanings = back.space.lock().closed.len();
        loop {
            back.check()?;
            let freed = self.free(back).await?;
            let made = self.make(back).await;
            self.begin(back).await?;
            let cleaned = !matches!(made, Ok(true)) && cleanings > 0 && self.clean(back).await?;
            cleanings -= usize::from(cleaned);
            if freed || matches!(made, Ok(true)) {
                self.room.send_modify(|n| *n = n.wrapping_add(1));
            }
            if !freed && !cleaned && !matches!(made, Ok(true)) {
                return made.map(|_| ());
            }
        }
    }

    /// Opens the first segment.
    async fn begin(&self, back: &DiskBack) -> Result<()> {
        let mut appender = back.appender.lock().await;
        let ready = !back.space.lock().spares.is_empty();
        if ready && !appender.is_open() && back.roll(&mut appender, &self.logs, true).await? {
            drop(appender);
            return back.sync().await;
        }
        Ok(())
    }

    /// Makes one segment if there are too few; whether it did.
    async fn make(&self, back: &DiskBack) -> Result<bool> {
        let number = {
            let mut space = back.space.lock();
            if space.spares.len() >= READY || space.files >= space.most {
                return Ok(false);
            }
            space.next_name += 1;
            space.next_name - 1
        };
        let name = format!("{number:016x}.dtl");
        let file = back.disk.create(&name, back.settings.segment_size).await?;
        let mut space = back.space.lock();
        space.files += 1;
        space.spares.push(Spare { file, name });
        Ok(true)
    }

    /// Frees segments that nothing needs; whether there were any.
    async fn free(&self, back: &DiskBack) -> Result<bool> {
        // It may still be on the list of what is to be synced, which the sync below ends. What becomes idle from here
        // on does so by a trim that is not durable yet: it is for the next time.
        let idle = |s: &Arc<Segment>| s.live.load(Ordering::Relaxed) == 0;
        let lives: Vec<u64> = {
            let space = back.space.lock();
            space.closed.iter().filter(|s| idle(s)).map(|s| s.life).collect()
        };
        if lives.is_empty() {
            return Ok(false);
        }
        // What was trimmed must be known to be trimmed before it is gone, and what was copied must be durable. All
        // control state is in the active segment, or is written to it now.
        {
            let mut appender = back.appender.lock().await;
            if !appender.is_open() {
                return Ok(false);
            }
            if !mutant::is_on("freed-before-the-trim-is-durable") {
                back.write_states(&self.logs, &mut appender).await?;
            }
        }
        back.sync().await?;
        let mut freed = Vec::new();
        {
            let mut space = back.space.lock();
            let closed = std::mem::take(&mut space.closed);
            let early = mutant::is_on("dtl-freed-what-was-trimmed-since");
            for segment in closed {
                if !early && !lives.contains(&segment.life) {
                    space.closed.push(segment);
                    continue;
                }
                match Arc::try_unwrap(segment) {
                    Ok(segment) => freed.push(segment),
                    Err(segment) => space.closed.push(segment),
                }
            }
        }
        let any = !freed.is_empty();
        for segment in freed {
            if segment.found {
                back.disk.remove(&segment.name).await?;
                back.space.lock().files -= 1;
                continue;
            }
            // A power cut may keep what its next life begins with and lose the header of that life: under the old one
            // the rest would look like records that are lost.
            if !mutant::is_on("dtl-freed-without-a-mark") {
                let marked = async {
                    segment.file.write_at(0, &[Bytes::from_static(&FREE)]).await?;
                    segment.file.sync().await
                };
                marked.await.map_err(|e| back.fail(e))?;
            }
            back.space.lock().spares.push(Spare { file: segment.file, name: segment.name });
        }
        Ok(any)
    }

    /// Copies what is needed of the emptiest segment forward, if no other way is left; whether it did.
    async fn clean(&self, back: &DiskBack) -> Result<bool> {
        let victim = {
            let space = back.space.lock();
            if space.spares.len() >= READY || space.spares.is_empty() {
                return Ok(false);
            }
            let live = |s: &Arc<Segment>| s.live.load(Ordering::Relaxed);
            let (size, n) = (back.settings.segment_size, space.closed.len() as u64);
            let needed: u64 = space.closed.iter().map(live).sum();
            // Where all of them together have no segment's worth of garbage, copying gives nothing back.
            if n * size < needed + size + size / 4 {
                return Ok(false);
            }
            match space.closed.iter().min_by_key(|s| live(s)).cloned() {
                // A nearly full one gives nearly nothing back.
                Some(v) if live(&v) < size / 4 * 3 => v,
                _ => return Ok(false),
            }
        };
        let needed = self.entries_in(&victim);
        let mut progress = false;
        let mut rest = &needed[..];
        while !rest.is_empty() {
            let mut bytes = 0;
            let within = |(_, _, slot): &&(Key, Lsn, Slot)| {
                let first = bytes == 0;
                bytes += slot.len as usize;
                first || bytes <= COPY
            };
            let n = rest.iter().take_while(within).count();
            let (now, later) = rest.split_at(n);
            rest = later;
            let copied = self.copy(back, &victim, now).await?;
            progress |= copied > 0;
            if copied < n {
                break;
            }
        }
        drop(needed);
        drop(victim);
        Ok(progress)
    }

    fn entries_in(&self, victim: &Arc<Segment>) -> Vec<(Key, Lsn, Slot)> {
        let logs = self.logs.lock();
        let mut found = Vec::new();
        for (volume, v) in &logs.volumes {
            for (epoch, log) in &v.logs {
                let key = Key { volume: *volume, epoch: *epoch, incarnation: log.incarnation };
                for (i, slot) in log.entries.iter().enumerate() {
                    if matches!(&slot.place, Place::Disk { held, .. } if Arc::ptr_eq(&held.segment, victim)) {
                        found.push((key, Lsn(log.base.0 + 1 + i as u64), slot.clone()));
                    }
                }
            }
        }
        found
    }

    /// Copies entries; returns how many are not in `victim` any more.
    async fn copy(
        &self,
        back: &DiskBack,
        victim: &Arc<Segment>,
        entries: &[(Key, Lsn, Slot)],
    ) -> Result<usize> {
        let mut work: Vec<Work> = Vec::with_capacity(entries.len());
        let mut from = Vec::with_capacity(entries.len());
        for (key, lsn, slot) in entries {
            let Place::Disk { offset, .. } = slot.place else { continue };
            let body = victim.file.read_at(offset, slot.len as usize).await?;
            if crc32c(&body) != slot.crc {
                // It stays where it is: nothing better is known, and it must not be taken for good.
                if let Ok(log) = self.logs.lock().log_mut(key) {
                    log.damaged = true;
                }
                tracing::error!(volume = %key.volume, lsn = lsn.0, segment = %victim.name, "an entry of the DTL is damaged");
                continue;
            }
            work.push(entry_item(*key, *lsn, slot.crc, body));
            from.push((*key, *lsn));
        }
        let mut appender = back.appender.lock().await;
        let places = back.write(&mut appender, &self.logs, &work, true).await?;
        drop(appender);
        let copied = places.len();
        let mut logs = self.logs.lock();
        for ((key, lsn), (segment, offset)) in from.into_iter().zip(places) {
            let Ok(log) = logs.log_mut(&key) else { continue };
            let Some(i) = lsn.0.checked_sub(log.base.0 + 1) else { continue };
            if let Some(slot) = log.entries.get_mut(i as usize)
                && matches!(&slot.place, Place::Disk { held, .. } if Arc::ptr_eq(&held.segment, victim))
            {
                let held = super::segment::Held::new(&segment, slot.len);
                slot.place = Place::Disk { held, offset };
            }
        }
        Ok(copied)
    }
}
