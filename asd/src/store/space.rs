//! Where the bytes are: what each segment holds, what may still be taken, which segment is worth emptying. Sans-I/O.
//!
//! The numbers of committed segments and totals are those of the table, changed in the same batch as the values: they
//! are exact, whatever happens.

use super::format::{HEADER, SegmentState, Totals};
use common::osd::OsdSpace;
use std::collections::{BTreeMap, BTreeSet};

/// Segments that only what gives space back may take: what is copied out of one segment may end in two.
const KEPT: u64 = 2;

/// Who writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Clients.
    Fresh,
    /// Whoever empties segments: what it copies is old, and lives long.
    Moved,
}

/// A segment that is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Open {
    /// Which one.
    pub number: u64,
    /// Where the next value goes.
    pub at: u64,
}

/// Where the bytes are.
#[derive(Debug)]
pub struct Space {
    segment_size: u64,
    capacity: u64,
    /// Kept for the table's own work.
    table_reserve: u64,
    /// As the table has them.
    pub segments: BTreeMap<u64, SegmentState>,
    /// As the table has them.
    pub totals: Totals,
    open: [Option<Open>; 2],
    /// Segments that can't be emptied, since a value in them can't be read.
    stuck: BTreeSet<u64>,
    next: u64,
    /// A set found no room, and nothing was given back since.
    full: bool,
}

impl Space {
    /// What was found.
    pub fn new(
        segment_size: u64,
        capacity: u64,
        table_reserve: u64,
        segments: BTreeMap<u64, SegmentState>,
        totals: Totals,
        next: u64,
    ) -> Space {
        // The youngest ones that are not full are gone on with: behind their ends nothing counts.
        let mut open = segments
            .iter()
            .rev()
            .filter(|(_, s)| s.end < segment_size)
            .map(|(number, s)| Open { number: *number, at: s.end });
        let open = [open.next(), open.next()];
        Space {
            segment_size,
            capacity,
            table_reserve,
            segments,
            totals,
            open,
            stuck: BTreeSet::new(),
            next,
            full: false,
        }
    }

    /// Bytes of the table as they count against the capacity: as much again for what RocksDB has not merged yet.
    fn table(totals: &Totals) -> u64 {
        totals.table.saturating_mul(2)
    }

    fn most_segments(&self) -> u64 {
        self.capacity.saturating_sub(self.table_reserve).saturating_sub(Self::table(&self.totals))
            / self.segment_size
    }

    fn room(&self, lane: Lane) -> bool {
        let kept = if lane == Lane::Fresh { KEPT } else { 0 };
        self.files() + 1 + kept <= self.most_segments()
    }

    /// Segments, with those that nothing was committed to yet.
    fn files(&self) -> u64 {
        let new = self.open.iter().flatten().filter(|o| !self.segments.contains_key(&o.number)).count();
        (self.segments.len() + new) as u64
    }

    /// Whether the table may grow to `totals`.
    pub fn table_fits(&self, totals: &Totals) -> bool {
        let segments = self.files().saturating_mul(self.segment_size);
        let kept = KEPT * self.segment_size;
        Self::table(totals) + segments + kept + self.table_reserve <= self.capacity
    }

    /// A place for `bytes` in the segment that is written, if it has room.
    pub fn take(&mut self, lane: Lane, bytes: u64) -> Option<(u64, u64)> {
        let size = self.segment_size;
        let open = self.open[lane as usize].as_mut().filter(|o| size - o.at >= bytes)?;
        let at = open.at;
        open.at += bytes;
        Some((open.number, at))
    }

    /// The number of a segment that may be made for `lane`.
    pub fn next_segment(&mut self, lane: Lane) -> Option<u64> {
        if !self.room(lane) {
            return None;
        }
        self.next += 1;
        Some(self.next - 1)
    }

    /// A segment was made: `lane` writes it.
    pub fn begin(&mut self, lane: Lane, number: u64) {
        self.open[lane as usize] = Some(Open { number, at: HEADER });
    }

    /// There is no room for more. What is open and holds garbage is not written any further, so that it can be emptied.
    pub fn no_room(&mut self, lane: Lane) {
        self.full = true;
        let open = &mut self.open[lane as usize];
        if open.is_some_and(|o| self.segments.get(&o.number).is_some_and(|s| s.end - HEADER > s.live)) {
            *open = None;
        }
    }

    /// The place where the lane stands, to come back to.
    pub fn mark(&self, lane: Lane) -> Option<Open> {
        self.open[lane as usize]
    }

    /// Back to `mark`: what was taken since is not used.
    pub fn rewind(&mut self, lane: Lane, mark: Option<Open>) {
        if let Some(open) = &mut self.open[lane as usize] {
            open.at = mark.filter(|m| m.number == open.number).map_or(HEADER, |m| m.at);
        }
    }

    /// A batch is durable.
    pub fn commit(&mut self, segments: &[(u64, SegmentState)], totals: Totals) {
        let less = totals.table < self.totals.table;
        let freed = segments.iter().any(|(n, s)| self.segments.get(n).is_some_and(|old| s.live < old.live));
        self.segments.extend(segments.iter().copied());
        self.totals = totals;
        if less || freed {
            self.full = false;
        }
    }

    /// A segment is gone.
    pub fn remove(&mut self, number: u64) {
        self.segments.remove(&number);
        self.stuck.remove(&number);
        self.full = false;
    }

    /// A value in it can't be read, so it stays.
    pub fn stick(&mut self, number: u64) {
        self.stuck.insert(number);
    }

    fn is_open(&self, number: u64) -> bool {
        self.open.iter().flatten().any(|o| o.number == number)
    }

    /// A segment that is not written any more and holds nothing.
    pub fn empty(&self) -> Option<u64> {
        self.segments.iter().find(|(n, s)| s.count == 0 && !self.is_open(**n)).map(|(n, _)| *n)
    }

    /// Bytes in it that something once needed. What a segment never got is not among them: copying values that do not
    /// fill one into another that they do not fill would go on for ever.
    fn garbage(state: &SegmentState) -> u64 {
        (state.end - HEADER).saturating_sub(state.live)
    }

    /// Bytes in it that nothing needs: of one that is not written any more also what it never got.
    fn dead(&self, number: u64, state: &SegmentState) -> u64 {
        let end = if self.is_open(number) { state.end } else { self.segment_size };
        (end - HEADER).saturating_sub(state.live)
    }

    /// Whether there is so little room that giving it back may take what it needs.
    pub fn is_short(&self) -> bool {
        self.full || self.files() + KEPT + 2 > self.most_segments()
    }

    /// The segment that is best emptied, if one is worth it: much garbage first, and of equals the older one, which will
    /// not get more of it soon.
    pub fn victim(&self) -> Option<u64> {
        let usable = self.segment_size - HEADER;
        let least = if self.is_short() { usable / 16 } else { usable / 4 };
        let score = |number: u64, state: &SegmentState| {
            let dead = Self::garbage(state) as f64 / usable as f64;
            let age = (self.next.saturating_sub(number)) as f64;
            dead * (1.0 + age.ln_1p()) / (2.0 - dead)
        };
        let closed = self.segments.iter().filter(|(n, _)| !self.is_open(**n) && !self.stuck.contains(n));
        let worth = closed.filter(|(_, s)| s.count > 0 && Self::garbage(s) >= least.max(1));
        let best = worth.max_by(|(a, s), (b, t)| score(**a, s).total_cmp(&score(**b, t)));
        // Some garbage is cheaper than copying what lives around it.
        let dead: u64 = self.segments.values().map(Self::garbage).sum();
        let much = dead * 5 >= self.segments.len() as u64 * usable && dead >= usable;
        best.filter(|_| much || self.is_short()).map(|(n, _)| *n)
    }

    /// For people and for who places values.
    pub fn status(&self) -> OsdSpace {
        let segments = self.files().saturating_mul(self.segment_size);
        let live = self.segments.values().map(|s| s.live).sum();
        let open: u64 = self.open.iter().flatten().map(|o| self.segment_size - o.at).sum();
        let dead: u64 = self.segments.iter().map(|(n, s)| self.dead(*n, s)).sum();
        let table = Self::table(&self.totals);
        let reserved = self.table_reserve + KEPT * self.segment_size;
        let free = self.capacity.saturating_sub(segments + table + reserved);
        let full = self.full || (!self.room(Lane::Fresh) && open < HEADER);
        OsdSpace { capacity: self.capacity, segments, live, dead, open, table, reserved, free, full }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 64 << 10;

    fn space(segments: u64) -> Space {
        Space::new(SIZE, segments * SIZE, 0, BTreeMap::new(), Totals::default(), 1)
    }

    fn fill(space: &mut Space, live: u64) -> u64 {
        let number = space.next_segment(Lane::Fresh).unwrap();
        space.begin(Lane::Fresh, number);
        space.take(Lane::Fresh, SIZE - HEADER).unwrap();
        let count = u64::from(live > 0);
        space.commit(&[(number, SegmentState { end: SIZE, live, count })], Totals::default());
        number
    }

    #[test]
    fn two_segments_are_kept_for_giving_space_back() {
        let mut space = space(6);
        for _ in 0..4 {
            fill(&mut space, SIZE - HEADER);
        }
        assert_eq!(space.next_segment(Lane::Fresh), None);
        assert!(space.next_segment(Lane::Moved).is_some());
        let status = space.status();
        assert!(status.full && status.free == 0);
        assert_eq!(status.segments + status.table + status.reserved + status.free, status.capacity);
    }

    #[test]
    fn the_emptiest_goes_first_and_a_segment_that_is_written_never() {
        let mut space = space(20);
        let (half, most, open) =
            (fill(&mut space, SIZE / 2), fill(&mut space, HEADER), fill(&mut space, HEADER));
        assert_eq!(space.victim(), Some(most));
        space.stick(most);
        assert_eq!(space.victim(), Some(half));
        space.remove(half);
        assert_eq!(space.victim(), None, "{open} is being written");
        assert_eq!(space.empty(), None);
        space.commit(&[(most, SegmentState { end: SIZE, live: 0, count: 0 })], Totals::default());
        assert_eq!(space.empty(), Some(most));
    }

    #[test]
    fn a_segment_that_was_never_full_is_not_copied_over_and_over() {
        let mut space = space(6);
        for _ in 0..4 {
            let number = space.next_segment(Lane::Fresh).unwrap();
            space.begin(Lane::Fresh, number);
            let end = HEADER + 32768;
            space.commit(&[(number, SegmentState { end, live: 32768, count: 1 })], Totals::default());
        }
        assert!(space.is_short());
        assert_eq!(space.victim(), None);
    }

    #[test]
    fn what_was_taken_and_not_used_is_taken_again() {
        let mut space = space(8);
        fill(&mut space, SIZE - HEADER);
        let number = space.next_segment(Lane::Fresh).unwrap();
        space.begin(Lane::Fresh, number);
        let mark = space.mark(Lane::Fresh);
        assert_eq!(space.take(Lane::Fresh, 8192), Some((number, HEADER)));
        space.rewind(Lane::Fresh, mark);
        assert_eq!(space.take(Lane::Fresh, 4096), Some((number, HEADER)));
    }
}
