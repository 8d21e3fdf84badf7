//! A state that comes from elsewhere: built beside the one there is, and then put in its place by one durable batch.

use super::layout::{HEAD_KEY, Head, Meta, Session, prefix, tagged};
use super::store::{StateStore, View};
use super::{MAX_KEY_BYTES, MAX_VALUE_BYTES, Machine};
use crate::wire::{Reader, Writer};
use bytes::Bytes;
use common::table::Batch;
use common::{Error, Result, mutant};
use std::sync::Arc;

/// A part of a snapshot ends behind this many bytes.
pub(crate) const PART_BYTES: usize = 1 << 20;
/// The longest record of a state: a session with its answers, or a revision of the history.
const MAX_RECORD: usize = 24 << 20;
/// The most bytes of a part.
pub(crate) const MAX_PART: usize = PART_BYTES + MAX_RECORD + MAX_KEY_BYTES + 64;
const _: () = assert!(MAX_VALUE_BYTES < MAX_RECORD);

/// A state as it was at one moment, read part by part.
pub(crate) struct Frozen {
    view: Box<dyn View>,
    prefix: Vec<u8>,
    meta: Meta,
}

impl Frozen {
    /// Where in the log the state was.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// The records behind `cursor`, as a part; `None` as the new cursor when these are the last.
    pub fn part(&self, cursor: &[u8], part_bytes: usize) -> Result<(Bytes, Option<Vec<u8>>)> {
        let mut from = self.prefix.clone();
        from.extend_from_slice(cursor);
        let mut w = Writer::new();
        loop {
            let found = self.view.scan(&self.prefix, &from, 64)?;
            let last = found.len() < 64;
            for (key, value) in found {
                let value = sent(&key, value)?;
                w.bytes(&key[self.prefix.len()..]).bytes(&value);
                from = key;
                from.push(0);
                if w.len() >= part_bytes {
                    return Ok((w.finish(), Some(from[self.prefix.len()..].to_vec())));
                }
            }
            if last {
                return Ok((w.finish(), None));
            }
        }
    }
}

fn sent(key: &[u8], value: Bytes) -> Result<Bytes> {
    if mutant::is_on("dedup-forgotten-in-snapshot") && key[5] == b's' {
        return Ok(Session { answers: Default::default(), ..Session::decode(value)? }.encode());
    }
    Ok(value)
}

/// The records of a part: key without its generation, value. Ends behind the first that is none.
pub(crate) fn records(part: Bytes) -> impl Iterator<Item = Result<(Bytes, Bytes)>> {
    let mut rest = Some(Reader::new(part, "part of a state"));
    std::iter::from_fn(move || {
        let r = rest.as_mut().filter(|r| !r.is_empty())?;
        let record = match (r.bytes(MAX_KEY_BYTES + 16), r.bytes(MAX_RECORD)) {
            (Ok(key), Ok(_)) if key.is_empty() => Err(r.bad("a record without a key")),
            (Ok(key), Ok(value)) => Ok((key, value)),
            (Err(e), _) | (_, Err(e)) => Err(e),
        };
        if record.is_err() {
            rest = None;
        }
        Some(record)
    })
}

/// A state under construction, in the generation after the one that is.
pub(crate) struct Staging {
    store: Arc<dyn StateStore>,
    generation: u32,
}

impl Staging {
    /// Begins anew in `generation`.
    pub fn begin(store: Arc<dyn StateStore>, generation: u32) -> Result<Self> {
        store.delete_prefix(&prefix(generation))?;
        Ok(Self { store, generation })
    }

    /// Adds the records of a part. One that is none is `Invalid`: it came from elsewhere, nothing here is damaged.
    pub fn add(&self, part: Bytes) -> Result<()> {
        let batch = self.decode(part).map_err(|e| Error::invalid(e.message()))?;
        self.store.write(batch)
    }

    fn decode(&self, part: Bytes) -> Result<Batch> {
        let prefix = prefix(self.generation);
        let mut batch = Batch::default();
        for record in records(part) {
            let (key, value) = record?;
            batch.put([&prefix[..], &key].concat(), value);
        }
        Ok(batch)
    }

    /// Where its records lie.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// What the state says about itself, once it is whole.
    pub fn meta(&self) -> Result<Meta> {
        let meta = self.store.get(&tagged(self.generation, b'm', b""))?;
        Meta::decode(meta.ok_or_else(|| Error::corrupt("a snapshot without its head arrived"))?)
    }

    /// Adds `meta`, for a state that is made here.
    pub fn set_meta(&self, meta: &Meta) -> Result<()> {
        let mut batch = Batch::default();
        batch.put(tagged(self.generation, b'm', b""), meta.encode());
        self.store.write(batch)
    }

    /// Adds one record.
    pub fn put(&self, batch: &mut Batch, tag: u8, key: &[u8], value: Bytes) {
        batch.put(tagged(self.generation, tag, key), value);
    }

    /// Makes it the state of `member` of `group`, durably.
    pub fn activate(self, group: u128, member: u64) -> Result<()> {
        // All of it first: the batch that names it may survive a power cut alone.
        self.store.checkpoint()?;
        let mut batch = Batch::default();
        batch.put(HEAD_KEY, Head { group, member, generation: self.generation }.encode());
        self.store.write(batch)?;
        self.store.checkpoint()
    }

    /// Throws it away.
    pub fn abandon(self) -> Result<()> {
        self.store.delete_prefix(&prefix(self.generation))
    }
}

impl Machine {
    /// The state as it is now.
    pub fn freeze(&self) -> Result<Frozen> {
        Ok(Frozen { view: self.store.view()?, prefix: prefix(self.head.generation), meta: self.meta.clone() })
    }

    /// Begins to receive another state.
    pub fn stage(&self) -> Result<Staging> {
        Staging::begin(self.store.clone(), self.next_generation())
    }

    fn next_generation(&self) -> u32 {
        // Two are enough: the one that is, and the one that will be.
        if self.head.generation == 1 { 2 } else { 1 }
    }

    /// Puts a whole staged state, of entry `index`, in place of this one.
    pub fn install(&mut self, staging: Staging, index: u64, term: u64) -> Result<()> {
        let mut meta = staging.meta()?;
        if (meta.index, meta.term) != (index, term) {
            return Err(Error::corrupt(format!(
                "a snapshot of entry {index} of term {term} holds the state of entry {} of term {}",
                meta.index, meta.term
            )));
        }
        meta.installed = index;
        staging.set_meta(&meta)?;
        let old = self.head.generation;
        let generation = staging.generation;
        staging.activate(self.head.group, self.head.member)?;
        self.head.generation = generation;
        self.batch = Batch::default();
        self.overlay.clear();
        self.load()?;
        self.store.delete_prefix(&prefix(old))
    }
}
