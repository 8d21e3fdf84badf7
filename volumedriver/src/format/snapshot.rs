//! Snapshots: the marker that begins one in the log, and the pages that list those of a volume.
//!
//! A marker's content is a whole number of clusters with a description in front and zeroes behind; its
//! checksums are those of clusters at address 0. A page is `first block | nothing | snapshots | footer`.

use super::cursor::{Reader, Writer, refuse};
use super::envelope::{self, Envelope, ObjectKind, ObjectRef};
use super::pool::{MAX_NAME, read_name};
use bytes::Bytes;
use common::{Epoch, Error, ErrorKind, Lsn, Result, VolumeId};
use std::fmt;

/// The most bytes that a person may attach to a snapshot.
pub const MAX_METADATA: usize = 4096;
/// The most ranges of LSNs that a snapshot may be made of: one more than there were rollbacks.
pub const MAX_RANGES: usize = 1024;
/// The most snapshots in one page.
pub const MAX_PER_PAGE: usize = 64;

const KINDS: [ObjectKind; 1] = [ObjectKind::SnapshotPage];
const VERSION: u16 = 1;
const CONSISTENT: u16 = 1;
const STICKY: u16 = 2;
const TEMPLATE: u16 = 4;
/// Bytes of a description without name and metadata.
const FIXED: usize = 40;
/// Bytes of a snapshot in a page without its description and its ranges.
const PLACE: usize = 24;

/// What whoever took a snapshot said about it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Description {
    /// Identity, random.
    pub id: u128,
    /// Name, unique among the snapshots of its volume; at most 255 bytes.
    pub name: String,
    /// When it was taken, in seconds since 1970 UTC.
    pub created_at: u64,
    /// Whether whoever took it says that the guest had nothing in flight.
    pub consistent: bool,
    /// Whether schedules leave it alone.
    pub sticky: bool,
    /// Whether its volume is a template since then: never written again.
    pub template: bool,
    /// Whatever the user wants to keep with it; at most [`MAX_METADATA`] bytes.
    pub metadata: Bytes,
}

/// A snapshot: a prefix of the log, or what rollbacks left of one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot {
    /// What was said about it.
    pub about: Description,
    /// The LSN of its marker.
    pub lsn: Lsn,
    /// Bytes of the volume then.
    pub size: u64,
    /// Which LSNs it is made of, first and last, ascending; the last of all is its marker's.
    pub view: Vec<(Lsn, Lsn)>,
}

/// A page of snapshots, as a Manifest names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotPageRef {
    /// The object.
    pub obj: ObjectRef,
    /// Snapshots in it.
    pub count: u32,
}

impl SnapshotPageRef {
    /// Bytes of a reference.
    pub(crate) const LEN: usize = ObjectRef::LEN + 8;

    pub(crate) fn write(&self, w: &mut Writer) {
        self.obj.write(w);
        w.u32(self.count).u32(0);
    }

    pub(crate) fn read(r: &mut Reader<'_>) -> Result<SnapshotPageRef> {
        let page = SnapshotPageRef { obj: ObjectRef::read(r)?, count: r.u32()? };
        r.zeroes(4)?;
        Ok(page)
    }

    pub(crate) fn check(&self, who: &dyn fmt::Display) -> Result<()> {
        match self.obj.kind == ObjectKind::SnapshotPage && (1..=MAX_PER_PAGE as u32).contains(&self.count) {
            true => Ok(()),
            false => Err(Error::corrupt(format!(
                "{who}: {} with {} snapshots is not a page of snapshots",
                self.obj, self.count
            ))),
        }
    }
}

impl Description {
    fn write(&self, w: &mut Writer) {
        let flag = |on: bool, flag: u16| if on { flag } else { 0 };
        let flags =
            flag(self.consistent, CONSISTENT) | flag(self.sticky, STICKY) | flag(self.template, TEMPLATE);
        w.u16(VERSION).u16(flags);
        w.u16(self.name.len() as u16).u16(self.metadata.len() as u16);
        w.u128(self.id).u64(self.created_at).u64(0);
        w.bytes(self.name.as_bytes()).bytes(&self.metadata);
    }

    fn read(who: &dyn fmt::Display, r: &mut Reader<'_>) -> Result<Description> {
        let unsupported = |what: String| Err(Error::new(ErrorKind::Unsupported, format!("{who}: {what}")));
        let version = r.u16()?;
        if version != VERSION {
            return unsupported(format!("a snapshot's description of version {version}"));
        }
        let flags = r.u16()?;
        if flags & !(CONSISTENT | STICKY | TEMPLATE) != 0 {
            return unsupported(format!("a snapshot with unknown flags {flags:#x}"));
        }
        let (name, metadata) = (r.u16()? as usize, r.u16()? as usize);
        let (id, created_at) = (r.u128()?, r.u64()?);
        r.zeroes(8)?;
        let about = Description {
            id,
            name: read_name(who, r.take(name)?)?,
            created_at,
            consistent: flags & CONSISTENT != 0,
            sticky: flags & STICKY != 0,
            template: flags & TEMPLATE != 0,
            metadata: Bytes::copy_from_slice(r.take(metadata)?),
        };
        about.check().map_err(|e| e.context(who.to_string()))?;
        Ok(about)
    }

    fn len(&self) -> usize {
        FIXED + self.name.len() + self.metadata.len()
    }

    fn check(&self) -> Result<()> {
        if self.name.is_empty() || self.name.len() > MAX_NAME || self.metadata.len() > MAX_METADATA {
            return Err(Error::corrupt(format!(
                "a snapshot with a name of {} and metadata of {} bytes (at most {MAX_NAME} and {MAX_METADATA})",
                self.name.len(),
                self.metadata.len()
            )));
        }
        Ok(())
    }

    /// The content of its marker: whole clusters of `cluster` bytes.
    pub fn encode_marker(&self, cluster: usize) -> Result<Bytes> {
        self.check().map_err(refuse)?;
        let mut w = Writer::with_capacity(self.len().next_multiple_of(cluster));
        self.write(&mut w);
        w.buf.resize(w.buf.len().next_multiple_of(cluster), 0);
        Ok(w.buf.into())
    }

    /// What the content of a marker says.
    pub fn decode_marker(content: &[u8]) -> Result<Description> {
        let who = "snapshot marker";
        let mut r = Reader::new(&who, content);
        let about = Self::read(&who, &mut r)?;
        r.zeroes(r.left())?;
        Ok(about)
    }
}

impl Snapshot {
    fn write(&self, w: &mut Writer) {
        w.u64(self.lsn.0).u64(self.size).u32(self.view.len() as u32).u32(0);
        self.about.write(w);
        for (lo, hi) in &self.view {
            w.u64(lo.0).u64(hi.0);
        }
    }

    fn read(who: &dyn fmt::Display, r: &mut Reader<'_>) -> Result<Snapshot> {
        let (lsn, size) = (Lsn(r.u64()?), r.u64()?);
        let ranges = r.count("ranges of a snapshot", 16, MAX_RANGES)?;
        r.zeroes(4)?;
        let about = Description::read(who, r)?;
        let mut view = Vec::with_capacity(ranges.min(r.left() / 16));
        for _ in 0..ranges {
            view.push((Lsn(r.u64()?), Lsn(r.u64()?)));
        }
        let snapshot = Snapshot { about, lsn, size, view };
        snapshot.check().map_err(|e| e.context(who.to_string()))?;
        Ok(snapshot)
    }

    fn check(&self) -> Result<()> {
        self.about.check()?;
        let ranges = self.view.iter().all(|(lo, hi)| lo.0 >= 1 && lo <= hi);
        let order = self.view.windows(2).all(|pair| pair[0].1 < pair[1].0);
        let end = self.view.last().map(|(_, hi)| *hi) == Some(self.lsn);
        match ranges && order && end && self.view.len() <= MAX_RANGES {
            true => Ok(()),
            false => Err(Error::corrupt(format!(
                "snapshot '{}' at LSN {} has {} ranges that can't be",
                self.about.name,
                self.lsn,
                self.view.len()
            ))),
        }
    }
}

/// The whole page, and how the Manifest names it.
pub fn encode(envelope: &Envelope, snapshots: &[Snapshot]) -> Result<(Bytes, SnapshotPageRef)> {
    envelope::check_kind(envelope, &KINDS)?;
    check(envelope, snapshots).map_err(refuse)?;
    let mut w = Writer::default();
    w.u32(snapshots.len() as u32).u32(0);
    snapshots.iter().for_each(|s| s.write(&mut w));
    let (bytes, obj) = envelope::assemble(envelope, &[], 0, |_| {}, &w.buf)?;
    Ok((bytes, SnapshotPageRef { obj, count: snapshots.len() as u32 }))
}

/// What the page holds.
pub fn decode(bytes: &[u8]) -> Result<(Envelope, Vec<Snapshot>)> {
    let (envelope, body, footer, index) = envelope::take_apart(&KINDS, bytes)?;
    if !body.is_empty() || footer.index_off != super::BLOCK as u64 {
        return Err(Error::corrupt(format!(
            "{envelope}: more between header and snapshots than there should be"
        )));
    }
    let mut r = Reader::new(&envelope, index);
    let count = r.count("snapshots", PLACE + FIXED, MAX_PER_PAGE)?;
    r.zeroes(4)?;
    let mut snapshots = Vec::with_capacity(count);
    for _ in 0..count {
        snapshots.push(Snapshot::read(&envelope, &mut r)?);
    }
    r.end()?;
    check(&envelope, &snapshots)?;
    Ok((envelope, snapshots))
}

fn check(envelope: &Envelope, snapshots: &[Snapshot]) -> Result<()> {
    if snapshots.is_empty() || snapshots.len() > MAX_PER_PAGE {
        return Err(Error::corrupt(format!(
            "{envelope}: {} snapshots, should be 1 to {MAX_PER_PAGE}",
            snapshots.len()
        )));
    }
    snapshots.iter().try_for_each(Snapshot::check)?;
    match snapshots.windows(2).find(|pair| pair[0].lsn >= pair[1].lsn) {
        Some(pair) => {
            Err(Error::corrupt(format!("{envelope}: snapshots at LSN {} are out of order", pair[1].lsn)))
        }
        None => Ok(()),
    }
}

/// Input of a fuzzer: as a marker, raw, and as snapshots with right checksums.
pub fn fuzz(data: &[u8]) {
    if let Ok(about) = Description::decode_marker(data) {
        let again = about.encode_marker(512).and_then(|content| Description::decode_marker(&content));
        assert_eq!(again.ok(), Some(about));
    }
    verify(data);
    let envelope = Envelope {
        kind: ObjectKind::SnapshotPage,
        volume: VolumeId(1),
        epoch: Epoch(1),
        number: 1,
        writer: 1,
        compat: 0,
    };
    if let Ok((bytes, _)) = envelope::assemble(&envelope, &[], 0, |_| {}, data) {
        verify(&bytes);
    }
}

/// Whatever is read is written the same.
pub(crate) fn verify(data: &[u8]) {
    if let Ok((envelope, snapshots)) = decode(data) {
        assert!(
            encode(&envelope, &snapshots).is_ok_and(|(again, _)| again == data),
            "{envelope:?} {snapshots:?}"
        );
    }
}
