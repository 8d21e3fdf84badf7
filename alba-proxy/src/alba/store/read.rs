//! Gets: from those that answer first, and around those that don't.

use super::{CALL, Inner, REMEMBERED, Remembered};
use crate::alba::layout::{Extent, decode, reconstruct};
use crate::alba::osds::Outcome;
use crate::alba::records::{Found, Record};
use bytes::{Bytes, BytesMut};
use common::crc::crc32c;
use common::osd::{Call, OsdId};
use common::{Error, ErrorKind, Result};
use futures::StreamExt;
use futures::future::{BoxFuture, join_all};
use futures::stream::FuturesUnordered;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// What became of a read of a piece of a fragment.
enum Piece {
    /// Here it is.
    Whole(Bytes),
    /// The disk does not have it, or can't read it as it was stored, or gave something else.
    Missing(String),
    /// It may have it: it did not answer.
    Away(Error),
}

/// Why an object can't be read now.
enum Trouble {
    /// Fragments are not where the record says: it may be out of date.
    Stale(Error),
    /// The same with bytes that are not what was put.
    Wrong(String),
    /// Nothing that another record would mend.
    Other(Error),
}

impl Inner {
    /// The object, or a range of it.
    pub(super) async fn get(self: &Arc<Self>, key: &str, range: Option<Range<u64>>) -> Result<Bytes> {
        let absent = || Error::not_found("there is no such object");
        // Only a part of an object may be read by a record from memory: what it leads to never changes, it can only be gone.
        let known = range.as_ref().and_then(|_| self.cache.get(key));
        let mut cached = known.filter(|r| self.clock.now() - r.since < REMEMBERED).map(|r| r.found);
        let mut last: Option<(u64, Error)> = None;
        loop {
            let (from_memory, asked) = (cached.is_some(), self.clock.now());
            let found = match cached.take() {
                Some(found) => found,
                None => self.records.get(key).await?.ok_or_else(absent)?,
            };
            if let Some((revision, error)) = last.take()
                && revision == found.revision
            {
                return Err(error);
            }
            let record = &found.record;
            let want = range.clone().unwrap_or(0..record.shape.len);
            if want.start > want.end || want.end > record.shape.len {
                if from_memory {
                    self.cache.remove(key);
                    continue;
                }
                let what = format!(
                    "it has {} bytes, and {}..{} were asked for",
                    record.shape.len, want.start, want.end
                );
                return Err(Error::corrupt(what));
            }
            match self.read(key, &found, &want).await {
                Ok(bytes) => {
                    if range.is_some() && !from_memory {
                        self.cache.insert(key.to_string(), Remembered { found, since: asked });
                    }
                    return Ok(bytes);
                }
                Err(Trouble::Other(error)) if !from_memory => return Err(error),
                Err(Trouble::Wrong(why)) if !from_memory => {
                    return Err(Error::corrupt(format!("too few fragments are what was put: {why}")));
                }
                // It may have been deleted, replaced or repaired meanwhile: then there is another record.
                Err(Trouble::Stale(error)) if !from_memory => last = Some((found.revision, error)),
                Err(_) => {
                    self.cache.remove(key);
                }
            }
        }
    }

    async fn read(self: &Arc<Self>, name: &str, found: &Found, want: &Range<u64>) -> Result<Bytes, Trouble> {
        let (record, shape) = (&found.record, &found.record.shape);
        let frames = shape.frames_of(want);
        if frames.is_empty() {
            return Ok(Bytes::new());
        }
        let key = self.object_key(record).map_err(Trouble::Other)?;
        let extents = shape.extents(&shape.stream_range(&frames));
        let pieces = join_all(extents.iter().map(|extent| self.extent(record, extent))).await;
        let pieces = pieces.into_iter().collect::<Result<Vec<_>, _>>()?;
        match decode(shape, key.as_ref(), &frames, &pieces, want) {
            Ok(bytes) => Ok(bytes),
            Err(bad) => {
                tracing::warn!(
                    object = name,
                    frame = bad.frame,
                    why = bad.why,
                    "a disk gave bytes that are not what was put; reading all of the object to find out which"
                );
                let pieces = self.carefully(name, found, &extents).await?;
                decode(shape, key.as_ref(), &frames, &pieces, want)
                    .map_err(|bad| Trouble::Wrong(format!("frame {}: {}", bad.frame, bad.why)))
            }
        }
    }

    /// A piece of a data fragment: from its disk, or made of the same piece of k others when that one does not have it, does not
    /// answer or takes too long.
    async fn extent(&self, record: &Record, extent: &Extent) -> Result<Bytes, Trouble> {
        let (shape, k) = (&record.shape, record.shape.policy.data());
        let mut order: Vec<usize> =
            (0..record.places.len()).filter(|n| record.places[*n].is_some()).collect();
        let place = |n: usize| record.places[n].map(|p| p.osd);
        order.sort_by_key(|n| place(*n).map(|osd| self.osds.sort_key(osd)));
        // Of replicas the best one; of data fragments the one that has it, unless it is known to be in trouble.
        let direct = match k {
            1 => order.first().copied(),
            _ => Some(extent.fragment).filter(|n| place(*n).is_some_and(|osd| !self.osds.avoided(osd))),
        };
        let mut left: Vec<usize> = order.into_iter().filter(|n| Some(*n) != direct).rev().collect();
        let mut reads: FuturesUnordered<BoxFuture<'_, (usize, Piece)>> = FuturesUnordered::new();
        let ask = |n: usize| -> BoxFuture<'_, (usize, Piece)> {
            Box::pin(async move { (n, self.piece(record, n, &extent.range).await) })
        };
        let mut have: Vec<(usize, Bytes)> = Vec::new();
        let (mut others, mut missing, mut away) = (0, Vec::new(), None);
        let mut patience = direct.and_then(place).map(|osd| self.osds.hedge_after(osd));
        reads.extend(direct.map(ask));
        // Once the direct one is not relied on, so many of the others are had or under way.
        let (mut relied, mut wanted) = (direct.is_some(), k);
        loop {
            while !relied
                && have.len() + others < wanted
                && let Some(n) = left.pop()
            {
                reads.push(ask(n));
                others += 1;
                let patient = place(n).map_or(Duration::ZERO, |osd| self.osds.hedge_after(osd));
                patience = Some(patience.map_or(patient, |p| p.max(patient)));
            }
            if reads.is_empty() {
                let told = format!("{} of {k} fragments that are needed can be read", have.len());
                return Err(match away {
                    Some(error) => Trouble::Other(Error::unavailable(format!("{told}: {error}"))),
                    None => {
                        let told = Error::corrupt(format!("{told}: {}", missing.join("; ")));
                        Trouble::Stale(told)
                    }
                });
            }
            let wait = patience;
            let hedge = async {
                match wait {
                    Some(long) => self.clock.sleep(long).await,
                    None => std::future::pending().await,
                }
            };
            let (n, piece) = tokio::select! {
                biased;
                Some(read) = reads.next() => read,
                () = hedge => {
                    match (relied, direct.and_then(place), patience) {
                        (true, Some(osd), Some(waited)) => self.osds.report(osd, Outcome::Late(waited)),
                        // One of the others is slow too: one more than is needed.
                        _ => wanted += 1,
                    }
                    (patience, relied) = (None, false);
                    continue;
                }
            };
            others -= usize::from(Some(n) != direct);
            match piece {
                Piece::Whole(bytes) if Some(n) == direct => return Ok(bytes),
                Piece::Whole(bytes) if k == 1 || n == extent.fragment => return Ok(bytes),
                Piece::Whole(bytes) => have.push((n, bytes)),
                Piece::Missing(why) => missing.push(why),
                Piece::Away(error) => away = Some(error),
            }
            if Some(n) == direct && relied {
                (patience, relied) = (None, false);
            }
            if have.len() == k {
                return reconstruct(shape, &have, extent.fragment).map_err(Trouble::Other);
            }
        }
    }

    /// Reads bytes of a fragment where it is.
    async fn piece(&self, record: &Record, fragment: usize, range: &Range<u64>) -> Piece {
        let Some((id, key)) = record.key(self.records.namespace(), fragment) else {
            return Piece::Missing(format!("fragment {fragment} is nowhere"));
        };
        let Some(osd) = self.osds.get(id) else {
            return Piece::Away(Error::unavailable(format!("OSD {id} is not known here")));
        };
        let began = self.clock.now();
        let read = async {
            let mut parts = Vec::with_capacity(1);
            for (value, part) in record.shape.values_of(range) {
                let held = record.shape.value_range(value);
                let (key, call) = (key.value(value), Call::client(CALL));
                let bytes = match part == (0..held.end - held.start) {
                    true => osd.get(call, &key).await?.map(|value| value.bytes),
                    false => osd.get_range(call, &key, part.clone()).await?,
                };
                match bytes {
                    Some(bytes) if bytes.len() as u64 == part.end - part.start => parts.push(bytes),
                    Some(bytes) => return Err(Error::corrupt(format!("{} bytes of {part:?}", bytes.len()))),
                    None => return Ok(None),
                }
            }
            Ok(Some(joined(parts)))
        };
        let outcome = tokio::select! {
            outcome = read => outcome,
            () = self.clock.sleep(CALL) => Err(Error::unavailable(format!("no answer within {CALL:?}"))),
        };
        let told =
            |what: &dyn std::fmt::Display| format!("fragment {fragment} at {}: {what}", osd.describe());
        match outcome {
            Ok(Some(bytes)) => {
                let whole = *range == (0..record.shape.fragment_len);
                if whole
                    && crc32c(&bytes) != record.crcs[fragment]
                    && !common::mutant::is_on("alba-liar-believed")
                {
                    self.osds.report(id, Outcome::Lied);
                    tracing::warn!(osd = %id, object = %record.id(), fragment, "a disk gave bytes that are not what was put");
                    return Piece::Missing(told(&"not what was put"));
                }
                self.osds.report(id, Outcome::Answered(self.clock.now() - began));
                Piece::Whole(bytes)
            }
            Ok(None) => Piece::Missing(told(&"it is not there")),
            Err(error) if matches!(error.kind, ErrorKind::Corrupt | ErrorKind::Invalid) => {
                Piece::Missing(told(&error))
            }
            Err(error) => {
                self.osds.report(id, Outcome::Failed);
                Piece::Away(Error::unavailable(told(&error)))
            }
        }
    }

    /// The pieces, from fragments that were read whole and are known to be right. Those that are not are taken out of the
    /// record, so that they are made anew.
    async fn carefully(
        self: &Arc<Self>,
        name: &str,
        found: &Found,
        extents: &[Extent],
    ) -> Result<Vec<Bytes>, Trouble> {
        let (record, k) = (&found.record, found.record.shape.policy.data());
        let whole = 0..record.shape.fragment_len;
        let all = join_all((0..record.places.len()).map(|n| self.piece(record, n, &whole))).await;
        let (mut have, mut wrong, mut away, mut told) = (Vec::new(), Vec::new(), None, Vec::new());
        for (n, piece) in all.into_iter().enumerate() {
            match piece {
                Piece::Whole(bytes) => have.push((n, bytes)),
                Piece::Missing(why) => {
                    wrong.push(n);
                    told.push(why);
                }
                Piece::Away(error) => away = Some(error),
            }
        }
        if have.len() < k {
            return Err(match away {
                Some(error) => Trouble::Other(error),
                None => Trouble::Wrong(told.join("; ")),
            });
        }
        self.take_out(name, found, &wrong).await;
        let piece = |extent: &Extent| {
            let range = extent.range.start as usize..extent.range.end as usize;
            match have.iter().find(|(n, _)| *n == extent.fragment) {
                Some((_, bytes)) => Ok(bytes.slice(range)),
                None => {
                    let slices: Vec<_> =
                        have[..k].iter().map(|(n, b)| (*n, b.slice(range.clone()))).collect();
                    reconstruct(&record.shape, &slices, extent.fragment).map_err(Trouble::Other)
                }
            }
        };
        extents.iter().map(piece).collect()
    }

    /// Takes fragments that are not what they should be out of the record: so it is in the repair index.
    async fn take_out(&self, name: &str, found: &Found, wrong: &[usize]) {
        let mut record = (*found.record).clone();
        let named: Vec<OsdId> =
            wrong.iter().filter_map(|n| record.places[*n].take()).map(|p| p.osd).collect();
        if named.is_empty() {
            return;
        }
        let Ok(epoch) = self.epoch(false).await else { return };
        match self.records.put(name, &record, Some(found), epoch).await {
            Ok(_) => drop(self.cache.remove(name)),
            // Another reader did, or will.
            Err(error) => {
                tracing::debug!(object = name, %error, ?named, "wrong fragments stay in the record for now")
            }
        }
    }
}

fn joined(mut parts: Vec<Bytes>) -> Bytes {
    if parts.len() == 1 {
        return parts.swap_remove(0);
    }
    let mut whole = BytesMut::with_capacity(parts.iter().map(Bytes::len).sum());
    parts.iter().for_each(|part| whole.extend_from_slice(part));
    whole.freeze()
}
