//! Reading: nothing is returned that was not checked, and nothing that is not durable.

use super::format::{self, Body, Record, keys};
use super::{Core, Store, count};
use bytes::Bytes;
use common::crc::crc32c;
use common::osd::{
    self, BLOCK, Damage, KeyInfo, KeyPage, KeyRange, MAX_KEYS, MAX_PAGE, MAX_VALUE, Value, Verified,
};
use common::{DiskFile, Error, ErrorKind, Result, mutant};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// Rows that are read from the table at a time.
const ROWS: usize = 256;
/// Values that one request verifies, at most: what is damaged must fit the answer.
const MAX_VERIFIED: usize = 1024;
/// How often a value may move while it is looked for.
const MOVES: usize = 8;

/// Keys with their records, and where to go on.
type Rows = (Vec<(Bytes, Record)>, Option<Bytes>);

impl Core {
    /// Waits until what was written in the table before this call is durable, if `concerns` any of it.
    async fn settled(&self, concerns: impl Fn(&std::collections::HashSet<Bytes>) -> bool) -> Result<()> {
        let written = {
            let in_flight = self.in_flight.lock();
            if !concerns(&in_flight.keys) || mutant::is_on("asd-reads-unsynced") {
                return Ok(());
            }
            in_flight.written
        };
        let mut durable = self.durable.subscribe();
        let reached = durable.wait_for(|durable| *durable >= written).await;
        if reached.is_ok_and(|durable| *durable == u64::MAX) {
            // It may be there after the next start, or not.
            return self.check();
        }
        Ok(())
    }

    async fn visible(&self, key: &[u8]) -> Result<Option<Record>> {
        let record = self.record(key).map_err(|e| named(key, e))?;
        self.settled(|keys| keys.contains(key)).await?;
        Ok(record)
    }

    /// The record of `key`, and the segment that its value is in. A value that moves meanwhile is looked up again.
    async fn find(&self, key: &[u8]) -> Result<Option<(Record, Option<Arc<dyn DiskFile>>)>> {
        let mut missing = None;
        for _ in 0..MOVES {
            let Some(record) = self.visible(key).await? else { return Ok(None) };
            let Body::Placed { segment, .. } = &record.body else { return Ok(Some((record, None))) };
            match self.files.get(*segment).await {
                Ok(file) => return Ok(Some((record, Some(file)))),
                // Missing for good if the record still says so when it is read again.
                Err(error) if error.kind == ErrorKind::NotFound => {
                    if missing.replace(*segment) == Some(*segment) {
                        return Err(Error::corrupt(format!(
                            "segment {} is missing",
                            format::segment_name(*segment)
                        )));
                    }
                }
                Err(error) => return Err(unreadable(error)),
            }
        }
        Err(Error::unavailable("the value is moving"))
    }

    /// Bytes `range` of a value, checked. Blocks that it does not touch are not read.
    async fn read(
        &self,
        record: &Record,
        file: Option<&Arc<dyn DiskFile>>,
        range: Range<u64>,
    ) -> Result<Bytes> {
        let (start, end) = (range.start as usize, range.end as usize);
        match &record.body {
            Body::Inline(bytes) => {
                if crc32c(bytes) != record.crc && !mutant::is_on("asd-read-unverified") {
                    return Err(Error::corrupt("its checksum in the table is wrong"));
                }
                Ok(bytes.slice(start..end))
            }
            Body::Placed { segment, offset, crcs } => {
                if start == end {
                    return Ok(Bytes::new());
                }
                let file = file.ok_or_else(|| Error::internal("a segment is not open"))?;
                let from = start / BLOCK * BLOCK;
                let to = end.next_multiple_of(BLOCK).min(record.len as usize);
                let read = file.read_at(offset + from as u64, to - from).await.map_err(unreadable)?;
                count(&self.counters.read, (to - from) as u64);
                for (n, block) in read.chunks(BLOCK).enumerate() {
                    let at = (from / BLOCK + n) * 4;
                    let right = crcs.get(at..at + 4).is_some_and(|crc| crc == crc32c(block).to_le_bytes());
                    if !right && !mutant::is_on("asd-read-unverified") {
                        return Err(Error::corrupt(format!(
                            "bytes {} to {} of it are not what was stored (segment {}, offset {offset})",
                            from + n * BLOCK,
                            from + n * BLOCK + block.len(),
                            format::segment_name(*segment)
                        )));
                    }
                }
                Ok(read.slice(start - from..end - from))
            }
        }
    }

    /// As `read`, and notes what is damaged.
    async fn read_key(&self, key: &[u8], range: Option<Range<u64>>) -> Result<Option<(Record, Bytes)>> {
        let judged = |e: Error| match e.kind {
            ErrorKind::Corrupt => self.note_damage(&Bytes::copy_from_slice(key), named(key, e)),
            _ => e,
        };
        let Some((record, file)) = self.find(key).await.map_err(judged)? else { return Ok(None) };
        let len = u64::from(record.len);
        let range = range.unwrap_or(0..len);
        if range.start > range.end || range.end > len {
            return Err(Error::invalid(format!(
                "bytes {} to {} of key {}, which has {len}",
                range.start,
                range.end,
                osd::shown(key)
            )));
        }
        let bytes = self.read(&record, file.as_ref(), range).await.map_err(judged)?;
        Ok(Some((record, bytes)))
    }

    /// Rows of keys, and where to go on.
    fn rows(&self, range: &KeyRange, limit: usize) -> Result<Rows> {
        let from = keys::value(&range.from);
        let mut rows = Vec::new();
        for (row, bytes) in self.table.scan(keys::VALUES, &from, limit.saturating_add(1))? {
            let key = Bytes::from(row).slice(keys::VALUES.len()..);
            if !range.contains(&key) {
                return Ok((rows, None));
            }
            if rows.len() == limit {
                return Ok((rows, Some(key)));
            }
            let record = Record::decode(bytes).map_err(|e| named(&key, e))?;
            rows.push((key, record));
        }
        Ok((rows, None))
    }

    /// Reads whole values of `range` to see whether they are right.
    pub(super) async fn verify(
        &self,
        range: &KeyRange,
        limit: usize,
        go_on: impl Fn() -> bool,
    ) -> Result<Verified> {
        let mut verified = Verified::default();
        let (rows, next) = self.rows(range, limit)?;
        self.settled(|keys| !keys.is_empty()).await?;
        verified.next = next;
        for (n, (key, _)) in rows.into_iter().enumerate() {
            if n > 0 && !go_on() {
                verified.next = Some(key);
                break;
            }
            match self.read_key(&key, None).await {
                // Deleted meanwhile.
                Ok(None) => {}
                Ok(Some((_, bytes))) => {
                    verified.keys += 1;
                    verified.bytes += bytes.len() as u64;
                    self.forget_damage(&key);
                }
                Err(error) if error.kind == ErrorKind::Corrupt => {
                    verified.keys += 1;
                    verified.damaged.push(Damage { key, why: error.to_string() });
                }
                Err(error) => return Err(error),
            }
        }
        Ok(verified)
    }

    /// A value as it lies in a segment, to be copied.
    pub(super) async fn read_placed(&self, key: &[u8], record: &Record) -> Result<Bytes> {
        let Body::Placed { segment, .. } = &record.body else {
            return Err(Error::internal("a small value is not in a segment"));
        };
        let file = self.files.get(*segment).await.map_err(unreadable)?;
        let whole = 0..u64::from(record.len);
        self.read(record, Some(&file), whole).await.map_err(|e| named(key, e))
    }
}

/// What the disk does not give is as good as wrong: others have it.
fn unreadable(error: Error) -> Error {
    Error::corrupt(format!("it can't be read: {error}"))
}

fn named(key: &[u8], error: Error) -> Error {
    error.context(format!("the value of key {}", osd::shown(key)))
}

impl Store {
    /// Bytes of the value of `key`, 0 if there is none: what memory a read of it takes.
    ///
    /// # Errors
    /// Of the table.
    pub fn value_len(&self, key: &[u8]) -> Result<usize> {
        Ok(self.core.record(key)?.map_or(0, |record| record.len as usize))
    }

    /// See [`common::Osd::get`].
    ///
    /// # Errors
    /// As the door says.
    pub async fn get(&self, key: &[u8]) -> Result<Option<Value>> {
        osd::check_key(key)?;
        let begin = self.core.clock.now();
        let found = self.core.read_key(key, None).await?;
        count(&self.core.counters.gets, 1);
        self.core.get_times.record(self.core.clock.now().saturating_sub(begin));
        Ok(found.map(|(record, bytes)| Value { bytes, crc: record.crc }))
    }

    /// See [`common::Osd::get_range`].
    ///
    /// # Errors
    /// As the door says.
    pub async fn get_range(&self, key: &[u8], range: Range<u64>) -> Result<Option<Bytes>> {
        osd::check_key(key)?;
        let begin = self.core.clock.now();
        let found = self.core.read_key(key, Some(range)).await?;
        count(&self.core.counters.gets, 1);
        self.core.get_times.record(self.core.clock.now().saturating_sub(begin));
        Ok(found.map(|(_, bytes)| bytes))
    }

    /// See [`common::Osd::multi_get`].
    ///
    /// # Errors
    /// As the door says.
    pub async fn multi_get(&self, wanted: &[Bytes]) -> Result<Vec<Option<Value>>> {
        if wanted.len() > MAX_KEYS {
            return Err(Error::invalid(format!("{} keys in one request: at most {MAX_KEYS}", wanted.len())));
        }
        let mut bytes = 0;
        let mut found = Vec::with_capacity(wanted.len());
        for key in wanted {
            let len = self.core.record(key)?.map_or(0, |record| record.len as usize);
            if bytes + len > MAX_VALUE {
                return Err(Error::invalid(format!(
                    "all values together are larger than {MAX_VALUE} bytes: ask for fewer keys"
                )));
            }
            let value = self.get(key).await?;
            bytes += value.as_ref().map_or(0, |v| v.bytes.len());
            found.push(value);
        }
        Ok(found)
    }

    /// See [`common::Osd::range`].
    ///
    /// # Errors
    /// As the door says.
    pub async fn range(&self, range: &KeyRange, limit: usize) -> Result<KeyPage> {
        let limit = limit.clamp(1, MAX_PAGE);
        let mut page = KeyPage { keys: Vec::new(), next: Some(range.from.clone()) };
        while page.keys.len() < limit
            && let Some(from) = page.next.take()
        {
            let some = ROWS.min(limit - page.keys.len());
            let (rows, next) = self.core.rows(&range.onward(from), some)?;
            let info = |(key, r): (Bytes, Record)| KeyInfo { key, len: r.len.into(), crc: r.crc };
            page.keys.extend(rows.into_iter().map(info));
            page.next = next;
        }
        self.core.settled(|keys| !keys.is_empty()).await?;
        Ok(page)
    }

    /// See [`common::Osd::verify`].
    ///
    /// # Errors
    /// As the door says.
    pub async fn verify(&self, range: &KeyRange, limit: usize, until: Duration) -> Result<Verified> {
        let clock = &self.core.clock;
        self.core.verify(range, limit.clamp(1, MAX_VERIFIED), || clock.now() < until).await
    }

    /// Counts everything anew from the records; an error says which number of those that are kept is wrong. Reads the
    /// whole table, and expects that nothing changes meanwhile: for tests, and for who doubts.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn audit(&self) -> Result<()> {
        let (mut totals, mut segments) = (format::Totals::default(), std::collections::BTreeMap::new());
        let mut next = Some(Bytes::new());
        while let Some(from) = next {
            let (rows, more) = self.core.rows(&KeyRange { from, to: None }, ROWS)?;
            for (key, record) in rows {
                totals.keys += 1;
                totals.bytes += u64::from(record.len);
                totals.table += record.table_bytes(&key);
                if let Body::Placed { segment, offset, .. } = record.body {
                    let (live, count) = segments.entry(segment).or_insert((0, 0));
                    *live += format::padded(record.len as usize);
                    *count += 1u64;
                    if self.core.table.get(&keys::place(segment, offset))?.as_ref() != Some(&key) {
                        return Err(Error::corrupt(format!(
                            "nothing says that {} lies there",
                            osd::shown(&key)
                        )));
                    }
                }
            }
            next = more;
        }
        let places = self.core.table.scan(keys::PLACES, keys::PLACES, usize::MAX)?.len() as u64;
        let space = self.core.space.lock();
        let counted = segments.values().map(|(_, count)| count).sum::<u64>();
        if space.totals != totals || places != counted {
            return Err(Error::corrupt(format!(
                "totals are {:?}, {places} places: {totals:?}",
                space.totals
            )));
        }
        for (number, state) in &space.segments {
            let is = segments.remove(number).unwrap_or_default();
            if is != (state.live, state.count) {
                return Err(Error::corrupt(format!(
                    "segment {number} is {state:?}: live and count are {is:?}"
                )));
            }
        }
        match segments.keys().next() {
            Some(number) => Err(Error::corrupt(format!("segment {number} is not known"))),
            None => Ok(()),
        }
    }
}
