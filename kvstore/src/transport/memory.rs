//! A network in memory that loses, delays, reorders and duplicates, with links that can be cut one way.
//!
//! Time is an argument: the owner asks when the next message is due and takes it then.

use std::collections::{BTreeMap, BTreeSet};

/// What happens to messages, from now on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NetFaults {
    /// Of 1000 messages this many are lost.
    pub lost: u32,
    /// Of 1000 messages this many come twice.
    pub doubled: u32,
    /// Microseconds on the way, at least and at most: what differs is reordered.
    pub delay: (u64, u64),
    /// Of 1000 messages this many take up to a hundred times as long.
    pub late: u32,
}

impl Default for NetFaults {
    fn default() -> Self {
        Self { lost: 0, doubled: 0, delay: (100, 1000), late: 0 }
    }
}

/// The network. Everybody on it has a number.
pub(crate) struct Net<T> {
    random: fastrand::Rng,
    pub faults: NetFaults,
    cut: BTreeSet<(u64, u64)>,
    queue: BTreeMap<(u64, u64), (u64, u64, T)>,
    sent: u64,
    /// Messages that were lost.
    pub lost: u64,
}

impl<T: Clone> Net<T> {
    pub fn new(seed: u64) -> Self {
        Self {
            random: fastrand::Rng::with_seed(seed),
            faults: NetFaults::default(),
            cut: BTreeSet::new(),
            queue: BTreeMap::new(),
            sent: 0,
            lost: 0,
        }
    }

    /// Cuts the link from one to another, in this direction alone.
    pub fn cut(&mut self, from: u64, to: u64) {
        self.cut.insert((from, to));
    }

    pub fn heal(&mut self) {
        self.cut.clear();
    }

    pub fn send(&mut self, now: u64, from: u64, to: u64, message: T) {
        let chance = |random: &mut fastrand::Rng, of: u32| random.u32(..1000) < of;
        if self.cut.contains(&(from, to)) || chance(&mut self.random, self.faults.lost) {
            self.lost += 1;
            return;
        }
        let copies = 1 + u64::from(chance(&mut self.random, self.faults.doubled));
        for _ in 0..copies {
            let (least, most) = self.faults.delay;
            let mut delay = self.random.u64(least..=most);
            if chance(&mut self.random, self.faults.late) {
                delay *= self.random.u64(1..100);
            }
            self.sent += 1;
            self.queue.insert((now + delay, self.sent), (from, to, message.clone()));
        }
    }

    /// When the next message arrives.
    pub fn next(&self) -> Option<u64> {
        self.queue.keys().next().map(|(at, _)| *at)
    }

    /// The next message that has arrived by now. One on a link that was cut meanwhile is lost.
    pub fn receive(&mut self, now: u64) -> Option<(u64, u64, T)> {
        while let Some(first) = self.queue.first_entry() {
            if first.key().0 > now {
                return None;
            }
            let (from, to, message) = first.remove();
            if self.cut.contains(&(from, to)) {
                self.lost += 1;
                continue;
            }
            return Some((from, to, message));
        }
        None
    }
}
