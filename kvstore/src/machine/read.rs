//! What can be asked of the state: pairs, ranges, history.

use super::Machine;
use super::layout::{Event, decode_events, decode_pair, tagged};
use crate::table::prefix_end;
use crate::wire::Reader;
use common::kv::KvPair;
use common::{Error, Result};

/// The most bytes that one answer to a range holds.
pub(crate) const MAX_RANGE_BYTES: usize = 64 << 20;
/// A history answer ends behind this many bytes.
const EVENTS_BYTES: usize = 2 << 20;
/// Records read from the table at a time.
const STEP: usize = 256;

/// Which keys.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Range {
    /// The first key that may be among them.
    pub start: Vec<u8>,
    /// The first key behind them; none when there is no end.
    pub end: Option<Vec<u8>>,
    /// At most this many of them; 0 is all.
    pub limit: u32,
}

impl Range {
    /// All keys that begin with `prefix`.
    pub fn prefix(prefix: &str) -> Self {
        Self { start: prefix.as_bytes().to_vec(), end: prefix_end(prefix.as_bytes()), limit: 0 }
    }

    /// At most `limit` of them.
    pub fn limit(mut self, limit: u32) -> Self {
        self.limit = limit;
        self
    }

    /// Those behind `key`.
    pub fn after(mut self, key: &str) -> Self {
        self.start = key.as_bytes().to_vec();
        self.start.push(0);
        self
    }
}

/// Pairs in order, and what there is beyond them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Page {
    /// The pairs.
    pub pairs: Vec<KvPair>,
    /// Whether the range has more of them.
    pub more: bool,
    /// The last revision that was given when the range was read.
    pub revision: u64,
}

impl Machine {
    /// The pair of `key`.
    pub fn get(&self, key: &str) -> Result<Option<KvPair>> {
        let stored = self.store.get(&tagged(self.head.generation, b'k', key.as_bytes()))?;
        stored.map(|stored| Ok(decode_pair(key, stored)?.0)).transpose()
    }

    /// The pairs of `range`.
    pub fn range(&self, range: &Range) -> Result<Page> {
        let prefix = tagged(self.head.generation, b'k', b"");
        let mut from = tagged(self.head.generation, b'k', &range.start);
        let end = range.end.as_ref().map(|end| tagged(self.head.generation, b'k', end));
        let mut page = Page { revision: self.meta.revision, ..Page::default() };
        let limit = if range.limit == 0 { usize::MAX } else { range.limit as usize };
        let mut bytes = 0;
        loop {
            let found = self.store.scan(&prefix, &from, STEP)?;
            let last = found.len() < STEP;
            if let Some((key, _)) = found.last() {
                from = key.clone();
                from.push(0);
            }
            for (key, stored) in found {
                if end.as_ref().is_some_and(|end| key >= *end) {
                    return Ok(page);
                }
                if page.pairs.len() >= limit {
                    page.more = true;
                    return Ok(page);
                }
                bytes += key.len() + stored.len();
                if bytes > MAX_RANGE_BYTES {
                    return Err(Error::invalid(format!(
                        "a range has more than {MAX_RANGE_BYTES} bytes: read it in parts, with a limit"
                    )));
                }
                let text = std::str::from_utf8(&key[prefix.len()..])
                    .map_err(|_| Error::corrupt("replicated registry: a key is not text"))?;
                page.pairs.push(decode_pair(text, stored)?.0);
            }
            if last {
                return Ok(page);
            }
        }
    }

    /// The first revision that the history has.
    pub fn history_from(&self) -> u64 {
        self.meta.history_from
    }

    /// Changes of keys that begin with `prefix`, from revision `from` on, in order; and the revision to go on from.
    pub fn events(&self, prefix: &str, from: u64) -> Result<(Vec<Event>, u64)> {
        let tag = tagged(self.head.generation, b'h', b"");
        let mut at = from;
        let (mut events, mut bytes) = (Vec::new(), 0);
        loop {
            let start = tagged(self.head.generation, b'h', &at.to_be_bytes());
            let found = self.store.scan(&tag, &start, STEP)?;
            let last = found.len() < STEP;
            for (key, record) in found {
                let revision = super::layout::number(&key)?;
                bytes += record.len();
                let mut r = Reader::new(record, "replicated registry: history");
                events.extend(decode_events(&mut r)?.into_iter().filter(|e| e.key.starts_with(prefix)));
                at = revision + 1;
                if bytes >= EVENTS_BYTES {
                    return Ok((events, at));
                }
            }
            if last {
                return Ok((events, at.max(self.meta.revision + 1)));
            }
        }
    }

    /// Bytes of a value, for tests.
    #[cfg(test)]
    pub fn value(&self, key: &str) -> Option<bytes::Bytes> {
        self.get(key).ok().flatten().map(|pair| pair.value)
    }
}
