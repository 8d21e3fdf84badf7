//! Manifests: the root of a volume. `first block | nothing | sections | footer`.
//!
//! Every section has a tag, a length and a checksum; one that this version does not know is
//! skipped, or refused when it says that it may not be ignored. So fields are added by new
//! sections, never by changing one.

pub(crate) mod sections;

use super::cursor::{Reader, Writer, refuse};
use super::envelope::{self, BLOCK, Envelope, FOOTER_LEN, ObjectKind, ObjectRef};
use super::pool::{MAX_NAME, check_cluster};
use super::sco::MAX_SLOTS;
use super::snapshot::SnapshotPageRef;
use bytes::Bytes;
use common::crc::crc32c;
use common::{Epoch, Error, ErrorKind, Lsn, Result, VolumeId};
use std::fmt;

/// The longest Manifest, in bytes.
pub const MAX_LEN: usize = 64 << 10;
/// To how many entries [`Manifest::fold_history`] brings the history down.
pub const FOLD_HISTORY: usize = 256;
/// The most entries of the history.
pub const MAX_HISTORY: usize = 1024;

const KINDS: [ObjectKind; 1] = [ObjectKind::Manifest];

/// Why a Manifest was put.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ManifestKind {
    /// TLogs or the size changed.
    Normal = 1,
    /// A new epoch shut the older ones out; it has not recovered yet.
    Fence = 2,
    /// The new epoch recorded what it recovered.
    Cut = 3,
    /// The volume is no more.
    Deleted = 4,
}

impl ManifestKind {
    /// The kind with number `n`.
    pub fn from_u8(n: u8) -> Option<ManifestKind> {
        Some(match n {
            1 => ManifestKind::Normal,
            2 => ManifestKind::Fence,
            3 => ManifestKind::Cut,
            4 => ManifestKind::Deleted,
            _ => return None,
        })
    }
}

/// The snapshot that a clone began as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parent {
    /// Whose snapshot.
    pub volume: VolumeId,
    /// Which.
    pub snapshot: u128,
    /// Its LSN in the parent's log.
    pub lsn: Lsn,
}

/// Where the log behind the TLogs begins: the first SCO that is read as tail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tail {
    /// Its epoch.
    pub epoch: Epoch,
    /// Its number.
    pub first_sco: u64,
}

/// How far the log of some epochs counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistoryEntry {
    /// First epoch.
    pub epoch_lo: Epoch,
    /// Last epoch.
    pub epoch_hi: Epoch,
    /// Nothing of these epochs above this LSN counts.
    pub last_lsn: Lsn,
}

/// A TLog, as a Manifest or a list page names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TLogRef {
    /// The object.
    pub obj: ObjectRef,
    /// First LSN.
    pub lsn_lo: Lsn,
    /// Last LSN.
    pub lsn_hi: Lsn,
    /// First address.
    pub addr_lo: u64,
    /// The address behind the last one; `u64::MAX` when it is not split.
    pub addr_hi: u64,
    /// Bytes of the SCOs in its dictionary.
    pub sco_bytes: u64,
}

impl TLogRef {
    /// Bytes of a reference.
    pub(crate) const LEN: usize = ObjectRef::LEN + 40;

    pub(crate) fn write(&self, w: &mut Writer) {
        self.obj.write(w);
        w.u64(self.lsn_lo.0).u64(self.lsn_hi.0).u64(self.addr_lo).u64(self.addr_hi).u64(self.sco_bytes);
    }

    pub(crate) fn read(r: &mut Reader<'_>) -> Result<TLogRef> {
        Ok(TLogRef {
            obj: ObjectRef::read(r)?,
            lsn_lo: Lsn(r.u64()?),
            lsn_hi: Lsn(r.u64()?),
            addr_lo: r.u64()?,
            addr_hi: r.u64()?,
            sco_bytes: r.u64()?,
        })
    }
}

/// A list page, as a Manifest names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRef {
    /// The object.
    pub obj: ObjectRef,
    /// References in it.
    pub count: u32,
    /// The lowest LSN of its TLogs.
    pub lsn_lo: Lsn,
    /// The highest LSN of its TLogs.
    pub lsn_hi: Lsn,
}

impl PageRef {
    /// Bytes of a reference.
    pub(crate) const LEN: usize = ObjectRef::LEN + 24;
}

/// The root of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Why it was put.
    pub kind: ManifestKind,
    /// Whose it is.
    pub volume: VolumeId,
    /// The epoch that put it.
    pub epoch: Epoch,
    /// Its number, ascending from 1.
    pub number: u64,
    /// Random, drawn by the process that put it.
    pub writer: u128,
    /// [`manifest_crc`] of the Manifest before it; 0 for the first.
    pub prev_crc: u32,
    /// The vDisk's name.
    pub name: String,
    /// Bytes of the volume.
    pub size: u64,
    /// log2 of the bytes in a cluster.
    pub cluster_log2: u8,
    /// Bytes of clusters in a SCO.
    pub sco_size: u32,
    /// When the volume was created, in seconds since 1970 UTC.
    pub created_at: u64,
    /// When it was deleted, in seconds since 1970 UTC; 0 unless it is.
    pub deleted_at: u64,
    /// What it was cloned from.
    pub parent: Option<Parent>,
    /// Where the log behind the TLogs begins.
    pub tail: Tail,
    /// Last LSN covered by the TLogs.
    pub tlog_lsn: Lsn,
    /// By ascending epoch, disjoint; the LSN never falls.
    pub history: Vec<HistoryEntry>,
    /// Which LSNs the head is made of, first and last, ascending; a gap is a rollback.
    pub head: Vec<(Lsn, Lsn)>,
    /// Pages with older TLogs, by ascending LSN.
    pub pages: Vec<PageRef>,
    /// The newest TLogs, by (first LSN, first address).
    pub tlogs: Vec<TLogRef>,
    /// Pages with its snapshots, by ascending LSN.
    pub snapshots: Vec<SnapshotPageRef>,
    /// How often clusters were moved to relocation SCOs: a copy of the map from before is of no use.
    pub relocations: u64,
}

impl fmt::Display for Manifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Manifest {}/{}", self.epoch, self.number)
    }
}

/// The checksum of a whole Manifest, for the next one's `prev_crc`.
pub fn manifest_crc(bytes: &[u8]) -> u32 {
    crc32c(bytes)
}

impl Manifest {
    /// The object. `Invalid` when it would be longer than [`MAX_LEN`]: see [`Manifest::excess_tlogs`].
    pub fn encode(&self) -> Result<Bytes> {
        self.check().map_err(refuse)?;
        if self.encoded_len() > MAX_LEN {
            return Err(Error::invalid(format!(
                "{self}: {} bytes, more than the limit of {MAX_LEN}: the oldest {} of its {} TLogs must move to list pages",
                self.encoded_len(),
                self.excess_tlogs(),
                self.tlogs.len()
            )));
        }
        self.encode_unchecked()
    }

    /// As [`Manifest::encode`], whatever it says.
    pub(super) fn encode_unchecked(&self) -> Result<Bytes> {
        let index = sections::write(self);
        Ok(envelope::assemble(&self.envelope(), &[], 0, |_| {}, &index)?.0)
    }

    /// Bytes of the object that [`Manifest::encode`] makes.
    pub fn encoded_len(&self) -> usize {
        BLOCK + sections::len(self) + FOOTER_LEN
    }

    /// How many of the oldest inline TLogs must move to list pages (of up to
    /// [`super::list::MAX_REFS`] each) before [`Manifest::encode`] succeeds; 0 when it fits.
    pub fn excess_tlogs(&self) -> usize {
        let mut excess = 0usize;
        // Each page that is needed takes room itself; few rounds, since a page makes room for 40.
        loop {
            let pages = excess.div_ceil(super::list::MAX_REFS) * PageRef::LEN;
            let too_much = (self.encoded_len() + pages).saturating_sub(MAX_LEN);
            let needed = too_much.div_ceil(TLogRef::LEN).min(self.tlogs.len());
            if needed <= excess {
                return excess;
            }
            excess = needed;
        }
    }

    /// The Manifest that `bytes` are.
    pub fn decode(bytes: &[u8]) -> Result<Manifest> {
        if bytes.len() > MAX_LEN {
            return Err(Error::corrupt(format!(
                "Manifest: {} bytes, more than the limit of {MAX_LEN}",
                bytes.len()
            )));
        }
        let (envelope, body, footer, index) = envelope::take_apart(&KINDS, bytes)?;
        if !body.is_empty() || footer.index_off != BLOCK as u64 {
            return Err(Error::corrupt(format!(
                "{envelope}: more between header and sections than there should be"
            )));
        }
        let manifest = sections::read(&envelope, index)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// How far the log of `epoch` counts; `None` when the history does not know the epoch.
    pub fn last_lsn(&self, epoch: Epoch) -> Option<Lsn> {
        let i = self.history.partition_point(|h| h.epoch_hi < epoch);
        self.history.get(i).filter(|h| h.epoch_lo <= epoch).map(|h| h.last_lsn)
    }

    /// Shortens the history, without changing what counts.
    ///
    /// Neighbours with consecutive epochs and one LSN become one entry. If more than
    /// [`FOLD_HISTORY`] entries are left, the oldest of those that the TLogs cover become one: what
    /// lies at or below `tlog_lsn` is read from TLogs alone, so any limit up to there means the same.
    pub fn fold_history(&mut self) {
        self.history.dedup_by(|next, kept| {
            let same =
                kept.last_lsn == next.last_lsn && kept.epoch_hi.0.checked_add(1) == Some(next.epoch_lo.0);
            if same {
                kept.epoch_hi = next.epoch_hi;
            }
            same
        });
        let excess = self.history.len().saturating_sub(FOLD_HISTORY);
        let covered = self.history.partition_point(|h| h.last_lsn <= self.tlog_lsn);
        // `n + 1` entries become one.
        let n = excess.min(covered.saturating_sub(1));
        if n > 0 {
            self.history[n].epoch_lo = self.history[0].epoch_lo;
            self.history.drain(..n);
        }
    }

    /// What its first block says.
    pub fn envelope(&self) -> Envelope {
        Envelope {
            kind: ObjectKind::Manifest,
            volume: self.volume,
            epoch: self.epoch,
            number: self.number,
            writer: self.writer,
            compat: 0,
        }
    }

    fn check(&self) -> Result<()> {
        let bad = |what: String| Err(Error::corrupt(format!("{self}: {what}")));
        check_cluster(self, self.cluster_log2)?;
        let cluster = 1u64 << self.cluster_log2;
        if !self.size.is_multiple_of(cluster) {
            return bad(format!("a size of {} is not a multiple of {cluster}", self.size));
        }
        let slots = u64::from(self.sco_size) / cluster;
        if u64::from(self.sco_size) % cluster != 0 || slots == 0 || slots > MAX_SLOTS as u64 {
            return bad(format!("a SCO size of {} can't be", self.sco_size));
        }
        if self.name.len() > MAX_NAME {
            return bad(format!("a name of {} bytes", self.name.len()));
        }
        if self.deleted_at != 0 && self.kind != ManifestKind::Deleted {
            return bad("it has a time of deletion, but is not deleted".into());
        }
        if self.history.len() > MAX_HISTORY {
            return bad(format!(
                "{} entries in the history, more than the limit of {MAX_HISTORY}",
                self.history.len()
            ));
        }
        if let Some(h) = self.history.iter().find(|h| h.epoch_lo > h.epoch_hi) {
            return bad(format!("history: epochs {} to {} are not a range", h.epoch_lo, h.epoch_hi));
        }
        for pair in self.history.windows(2) {
            if pair[0].epoch_hi >= pair[1].epoch_lo || pair[0].last_lsn > pair[1].last_lsn {
                return bad(format!("history: epoch {} is out of order", pair[1].epoch_lo));
            }
        }
        if let Some((lo, hi)) = self.head.iter().find(|(lo, hi)| lo > hi) {
            return bad(format!("head: LSNs {lo} to {hi} are not a range"));
        }
        for pair in self.head.windows(2) {
            if pair[0].1 >= pair[1].0 {
                return bad(format!("head: LSN {} is out of order", pair[1].0));
            }
        }
        for page in &self.pages {
            if page.obj.kind != ObjectKind::ListPage || page.count == 0 || page.lsn_lo > page.lsn_hi {
                return bad(format!("{} with {} references is not a list page", page.obj, page.count));
            }
        }
        if self.pages.windows(2).any(|p| p[0].lsn_lo > p[1].lsn_lo) {
            return bad("list pages are out of order".into());
        }
        self.snapshots.iter().try_for_each(|page| page.check(self))?;
        check_tlogs(self, &self.tlogs)?;
        if let (Some(page), Some(first)) = (self.pages.last(), self.tlogs.first())
            && page.lsn_lo > first.lsn_lo
        {
            return bad(format!("{} is older than what the list pages hold", first.obj));
        }
        let last = self.tlogs.iter().map(|t| t.lsn_hi).chain(self.pages.iter().map(|p| p.lsn_hi)).max();
        match last {
            Some(last) if last > self.tlog_lsn => {
                bad(format!("TLogs reach LSN {last}, should end at {}", self.tlog_lsn))
            }
            _ => Ok(()),
        }
    }
}

/// Whether references are to TLogs, in order, and no two speak about one address at one LSN.
pub(crate) fn check_tlogs(who: &dyn fmt::Display, refs: &[TLogRef]) -> Result<()> {
    for (i, t) in refs.iter().enumerate() {
        if t.obj.kind != ObjectKind::TLog {
            return Err(Error::corrupt(format!("{who}: {} is named as a TLog", t.obj)));
        }
        if t.lsn_lo.0 == 0 || t.lsn_lo > t.lsn_hi || t.addr_lo >= t.addr_hi {
            return Err(Error::corrupt(format!(
                "{who}: {}: LSNs {} to {} and addresses {} to {} are not ranges",
                t.obj, t.lsn_lo, t.lsn_hi, t.addr_lo, t.addr_hi
            )));
        }
        let later = &refs[i + 1..];
        if let Some(next) = later.first()
            && (t.lsn_lo, t.addr_lo) >= (next.lsn_lo, next.addr_lo)
        {
            return Err(Error::corrupt(format!("{who}: {} is out of order", next.obj)));
        }
        let same_lsns = later.iter().take_while(|o| o.lsn_lo <= t.lsn_hi);
        if let Some(other) = same_lsns.into_iter().find(|o| o.addr_lo < t.addr_hi && t.addr_lo < o.addr_hi) {
            return Err(Error::corrupt(format!("{who}: {} and {} overlap", t.obj, other.obj)));
        }
    }
    Ok(())
}

/// Input of a fuzzer: raw, as sections with right checksums, and as sections with wrong ones.
pub fn fuzz(data: &[u8]) {
    verify(data);
    let envelope = Envelope {
        kind: ObjectKind::Manifest,
        volume: VolumeId(1),
        epoch: Epoch(1),
        number: 1,
        writer: 1,
        compat: 0,
    };
    for index in [data.to_vec(), sections::with_checksums(data)] {
        if let Ok((bytes, _)) = envelope::assemble(&envelope, &[], 0, |_| {}, &index) {
            verify(&bytes);
        }
    }
}

/// Whatever is read is written so that the same is read again, without what may be ignored.
pub(crate) fn verify(data: &[u8]) {
    if let Ok(mut manifest) = Manifest::decode(data) {
        let again = manifest.encode().and_then(|bytes| Manifest::decode(&bytes));
        assert_eq!(again.ok().as_ref(), Some(&manifest));
        manifest.excess_tlogs();
        manifest.fold_history();
        assert!(manifest.encode().is_ok(), "a history that was folded is a history");
    }
}

/// The same Manifest with right checksums of its sections, as far as they can be told apart.
pub(crate) fn with_checksums(bytes: &[u8]) -> Vec<u8> {
    match bytes.len().checked_sub(FOOTER_LEN).filter(|tail| *tail >= BLOCK) {
        Some(tail) => {
            [&bytes[..BLOCK], &sections::with_checksums(&bytes[BLOCK..tail]), &bytes[tail..]].concat()
        }
        None => bytes.to_vec(),
    }
}

pub(super) fn unsupported(message: String) -> Error {
    Error::new(ErrorKind::Unsupported, message)
}
