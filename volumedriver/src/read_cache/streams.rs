//! Who reads one address after the other, and how far ahead of that to read. No I/O, no time.

use parking_lot::Mutex;
use std::ops::Range;

/// Sequential readers of one device that are told apart.
const STREAMS: usize = 4;
/// Requests in a row, each where the one before ended, that make a sequential reader.
const IN_A_ROW: u32 = 3;

#[derive(Debug, Clone, Copy, Default)]
struct Stream {
    /// Where the next request begins, if it goes on.
    next: u64,
    /// Requests in a row.
    requests: u32,
    /// Clusters to be ahead.
    window: u64,
    /// Everything below this was read, or asked for.
    ahead: u64,
    /// Of the last request.
    tick: u64,
}

#[derive(Debug, Default)]
struct State {
    streams: [Stream; STREAMS],
    tick: u64,
}

/// The sequential readers of one device.
#[derive(Debug, Default)]
pub(crate) struct Streams(Mutex<State>);

impl Streams {
    /// Notes a read of `count` clusters from `addr` on; what to read ahead now. Windows begin at `least` clusters and
    /// double up to `most`; no range is longer. With a `most` of 0 nothing is read ahead.
    pub fn note(&self, addr: u64, count: u64, least: u64, most: u64) -> Option<Range<u64>> {
        if most == 0 {
            return None;
        }
        let end = addr.checked_add(count)?;
        let mut state = self.0.lock();
        state.tick += 1;
        let tick = state.tick;
        let streams = &mut state.streams;
        // A few requests of one reader may be under way at a time, and arrive out of order.
        let goes_on = |s: &&mut Stream| {
            let slack = if s.requests >= IN_A_ROW { s.window } else { 0 };
            s.requests > 0 && (s.next..=s.next.saturating_add(slack)).contains(&addr)
        };
        let Some(stream) = streams.iter_mut().find(goes_on) else {
            let late = |s: &Stream| s.requests >= IN_A_ROW && addr < s.next && s.next - addr <= s.window;
            if streams.iter().any(late) {
                return None;
            }
            let oldest = streams.iter_mut().min_by_key(|s| s.tick)?;
            *oldest = Stream { next: end, requests: 1, window: 0, ahead: end, tick };
            return None;
        };
        stream.tick = tick;
        stream.next = end;
        stream.requests = stream.requests.saturating_add(1);
        if stream.requests < IN_A_ROW {
            stream.ahead = stream.ahead.max(end);
            return None;
        }
        if stream.window == 0 {
            stream.window = least.max(count).min(most);
        }
        stream.ahead = stream.ahead.max(end);
        if stream.ahead - end > stream.window / 2 {
            return None;
        }
        let from = stream.ahead;
        stream.ahead = end.saturating_add(stream.window).max(from);
        let range = from..stream.ahead.min(from.saturating_add(most));
        stream.window = (stream.window * 2).min(most);
        (!range.is_empty()).then_some(range)
    }

    /// What was to be read ahead from `addr` on was not: a later request asks for it again.
    pub fn not_ahead(&self, range: &Range<u64>) {
        for stream in &mut self.0.lock().streams {
            if stream.ahead == range.end {
                stream.ahead = range.start.max(stream.next);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_grow_to_the_limit_and_no_address_is_asked_for_twice() {
        let streams = Streams::default();
        let (mut asked, mut longest) = (0, 0);
        for i in 0..1000u64 {
            if let Some(range) = streams.note(i * 4, 4, 32, 1024) {
                assert!(range.start >= asked && range.start >= i * 4, "{range:?} after {asked}");
                assert!(range.end <= (i + 1) * 4 + 1024, "{range:?} at {i}");
                longest = longest.max(range.end - range.start);
                asked = range.end;
            }
            assert!(i < 2 || asked >= (i + 1) * 4, "request {i} finds nothing ahead: {asked}");
        }
        assert!((512..=1024).contains(&longest), "{longest}");
    }

    #[test]
    fn random_reads_are_never_read_ahead() {
        let streams = Streams::default();
        let mut chance = fastrand::Rng::with_seed(3);
        for _ in 0..100_000 {
            assert_eq!(streams.note(chance.u64(0..1 << 24), 1, 32, 1024), None);
        }
    }

    #[test]
    fn several_readers_and_requests_out_of_order_are_seen() {
        let streams = Streams::default();
        let mut asked = [0; STREAMS];
        for i in 0..200u64 {
            // Pairs are swapped: as two requests that are under way at a time.
            let i = if i > 8 { i ^ 1 } else { i };
            for (n, asked) in asked.iter_mut().enumerate() {
                let base = n as u64 * 1_000_000;
                if let Some(range) = streams.note(base + i, 1, 32, 128) {
                    *asked = range.end - base;
                }
            }
        }
        assert!(asked.iter().all(|a| *a >= 200), "{asked:?}");
    }

    #[test]
    fn what_was_not_read_ahead_is_asked_for_again() {
        let streams = Streams::default();
        let ask = |i| streams.note(i, 1, 32, 64);
        assert_eq!((ask(0), ask(1)), (None, None));
        let range = ask(2).unwrap();
        streams.not_ahead(&range);
        assert_eq!(streams.note(3, 1, 32, 64).map(|r| r.start), Some(4));
    }
}
