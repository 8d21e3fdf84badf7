//! Reads from the backend that are under way: whoever wants the same clusters waits for them, and nothing is read twice.

use crate::format::sco::ScoId;
use bytes::Bytes;
use common::VolumeId;
use foldhash::fast::FixedState;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::ops::Range;
use tokio::sync::watch;

type Landed = watch::Receiver<Option<Bytes>>;

/// One read of consecutive slots.
struct Flight {
    slots: Range<u32>,
    landed: Landed,
}

/// The reads that are under way, by SCO.
#[derive(Default)]
pub(crate) struct Flights(Mutex<HashMap<(VolumeId, ScoId), Vec<Flight>, FixedState>>);

/// How a part of a range of slots is to be had.
pub(crate) enum Part<'a> {
    /// It is in memory by now.
    Here { slot: u32, data: Bytes },
    /// Somebody reads it.
    Joined(Join),
    /// The caller reads it, and others wait for that.
    Own(Own<'a>),
}

/// Slots that somebody else reads.
pub(crate) struct Join {
    pub slots: Range<u32>,
    flight: Range<u32>,
    landed: Landed,
}

impl Join {
    /// The clusters; `None` when whoever read them had no success, or was called off.
    pub async fn wait(mut self, cluster: u32) -> Option<Bytes> {
        let data = self.landed.wait_for(Option::is_some).await.ok()?.clone()?;
        let at = |slot: u32| (slot - self.flight.start) as usize * cluster as usize;
        let (from, to) = (at(self.slots.start), at(self.slots.end));
        (to <= data.len()).then(|| data.slice(from..to))
    }
}

/// Slots that the caller reads; when this is dropped, nobody waits for them any more.
pub(crate) struct Own<'a> {
    flights: &'a Flights,
    sco: (VolumeId, ScoId),
    pub slots: Range<u32>,
    landed: watch::Sender<Option<Bytes>>,
}

impl Own<'_> {
    /// Gives the verified clusters to whoever waits. They are in memory already, for those who come later.
    pub fn land(self, data: Bytes) {
        self.landed.send_replace(Some(data));
    }
}

impl Drop for Own<'_> {
    fn drop(&mut self) {
        let mut all = self.flights.0.lock();
        if let Some(flights) = all.get_mut(&self.sco) {
            flights.retain(|flight| flight.slots != self.slots);
            if flights.is_empty() {
                all.remove(&self.sco);
            }
        }
    }
}

impl Flights {
    /// Splits the slots into what `here` has, what is under way, and what the caller has to read.
    pub fn split(
        &self,
        volume: VolumeId,
        sco: ScoId,
        slots: Range<u32>,
        here: impl Fn(u32) -> Option<Bytes>,
    ) -> Vec<Part<'_>> {
        let mut parts = Vec::with_capacity(1);
        let sco = (volume, sco);
        let mut all = self.0.lock();
        let flights = all.entry(sco).or_default();
        let mut at = slots.start;
        while at < slots.end {
            if let Some(flight) = flights.iter().find(|flight| flight.slots.contains(&at)) {
                let end = flight.slots.end.min(slots.end);
                let (flight, landed) = (flight.slots.clone(), flight.landed.clone());
                parts.push(Part::Joined(Join { slots: at..end, flight, landed }));
                at = end;
                continue;
            }
            // Looked at under the lock: a read that has landed put it there before it left the list.
            if let Some(data) = here(at) {
                parts.push(Part::Here { slot: at, data });
                at += 1;
                continue;
            }
            let beyond = |slot: &u32| here(*slot).is_some() || flights.iter().any(|f| f.slots.contains(slot));
            let end = (at + 1..slots.end).find(beyond).unwrap_or(slots.end);
            let (landed, waits) = watch::channel(None);
            flights.push(Flight { slots: at..end, landed: waits });
            parts.push(Part::Own(Own { flights: self, sco, slots: at..end, landed }));
            at = end;
        }
        if flights.is_empty() {
            all.remove(&sco);
        }
        parts
    }

    /// Reads that are under way.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.0.lock().values().map(Vec::len).sum()
    }
}
