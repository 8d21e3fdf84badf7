//! The leader's clock of the leases.
//!
//! A deadline only ever moves to a later time than the holder's, who counts from the sending of what was
//! received here. Time is counted in ticks, which never run faster than the clock: late is safe.

use crate::machine::LeaseId;
use common::mutant;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Default)]
pub(super) struct LeaseClock {
    deadlines: BTreeMap<LeaseId, u64>,
    /// Their end is proposed and not decided: nobody may be told that they live.
    ending: BTreeSet<LeaseId>,
}

/// Ticks that are at least `ttl_ms`.
fn ticks(ttl_ms: u64, tick_ms: u64) -> u64 {
    // One more: the tick that is under way has partly passed.
    ttl_ms.div_ceil(tick_ms.max(1)) + 1
}

impl LeaseClock {
    /// A new leader restarts all of them: it does not know when they were renewed.
    pub fn restart(&mut self, leases: impl Iterator<Item = (LeaseId, u64)>, now: u64, tick_ms: u64) {
        self.ending.clear();
        let old = std::mem::take(&mut self.deadlines);
        self.deadlines = leases.map(|(id, ttl_ms)| (id, now + ticks(ttl_ms, tick_ms))).collect();
        if mutant::is_on("lease-clock-not-restarted") {
            self.deadlines.extend(old);
        }
    }

    /// Nobody leads here.
    pub fn stop(&mut self) {
        if !mutant::is_on("lease-clock-not-restarted") {
            self.deadlines.clear();
        }
        self.ending.clear();
    }

    /// A lease was granted, or its holder was heard of.
    pub fn renew(&mut self, lease: LeaseId, ttl_ms: u64, now: u64, tick_ms: u64) {
        let deadline = now + ticks(ttl_ms, tick_ms);
        let known = self.deadlines.entry(lease).or_insert(deadline);
        *known = deadline.max(*known);
    }

    /// Those that do not live any more need no clock.
    pub fn keep(&mut self, lives: impl Fn(LeaseId) -> bool) {
        self.deadlines.retain(|id, _| lives(*id));
        self.ending.retain(|id| lives(*id));
    }

    pub fn is_ending(&self, lease: LeaseId) -> bool {
        self.ending.contains(&lease)
    }

    /// Leases whose end is to be proposed.
    pub fn due(&self, now: u64) -> Vec<LeaseId> {
        let due =
            self.deadlines.iter().filter(|(id, deadline)| **deadline <= now && !self.ending.contains(id));
        due.map(|(id, _)| *id).collect()
    }

    pub fn proposed(&mut self, lease: LeaseId) {
        self.ending.insert(lease);
    }
}
