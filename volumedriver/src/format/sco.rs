//! Storage container objects: the clusters of a range of the log, and the index that says what
//! each is. `first block | clusters | index | footer`; slot i lies at 4096 + i * cluster size.

use super::cursor::{Reader, Writer, refuse};
use super::envelope::{self, BLOCK, Envelope, Footer, ObjectKind, ObjectRef};
use super::pool::check_cluster;
use crate::log::{Kind, cluster_crc};
use bytes::Bytes;
use common::{Epoch, Error, ErrorKind, Lsn, Result, VolumeId};
use std::fmt;

/// The most clusters in one SCO: a slot fits 16 bits.
pub const MAX_SLOTS: usize = 1 << 16;
/// The most entries in one SCO.
pub const MAX_ENTRIES: usize = 1 << 20;

const KINDS: [ObjectKind; 2] = [ObjectKind::LogSco, ObjectKind::RelocSco];
const RECORD: usize = 32;

/// Where the numbers of relocation SCOs begin: so a number alone says which kind of SCO it is.
pub const FIRST_RELOC: u64 = 1 << 31;

/// Epoch and number: names a SCO, a TLog or a list page within its volume and kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ScoId {
    /// The epoch that put it.
    pub epoch: Epoch,
    /// Its number in that epoch, from 1.
    pub number: u64,
}

impl ScoId {
    /// Which kind of SCO has this name.
    pub fn kind(self) -> ObjectKind {
        if self.number < FIRST_RELOC { ObjectKind::LogSco } else { ObjectKind::RelocSco }
    }
}

impl fmt::Display for ScoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.epoch, self.number)
    }
}

/// What a SCO says about itself in its first block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScoHeader {
    /// First LSN.
    pub lsn_lo: Lsn,
    /// Last LSN.
    pub lsn_hi: Lsn,
    /// The highest SCO number that its writer knew to be committed: tells a lost object from the
    /// end of the log.
    pub committed_sco: u64,
    /// log2 of the bytes in a cluster.
    pub cluster_log2: u8,
    /// How clusters are packed: 0, not at all.
    pub codec: u8,
}

impl ScoHeader {
    /// Bytes in a cluster.
    pub fn cluster_size(&self) -> u32 {
        1u32.checked_shl(u32::from(self.cluster_log2)).unwrap_or(0)
    }

    fn write(&self) -> Vec<u8> {
        let mut w = Writer::default();
        w.u64(self.lsn_lo.0).u64(self.lsn_hi.0).u64(self.committed_sco);
        w.u8(self.cluster_log2).u8(self.codec).zeroes(6);
        w.buf
    }

    fn read(envelope: &Envelope, body: &[u8]) -> Result<ScoHeader> {
        let mut r = Reader::new(envelope, body);
        let (lsn_lo, lsn_hi, committed_sco) = (Lsn(r.u64()?), Lsn(r.u64()?), r.u64()?);
        let header = ScoHeader { lsn_lo, lsn_hi, committed_sco, cluster_log2: r.u8()?, codec: r.u8()? };
        r.zeroes(6)?;
        r.end()?;
        header.check(envelope)?;
        Ok(header)
    }

    fn check(&self, envelope: &Envelope) -> Result<()> {
        check_lsns(envelope, self.lsn_lo, self.lsn_hi)?;
        check_cluster(envelope, self.cluster_log2)?;
        if self.codec != 0 {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("{envelope}: unknown codec {}", self.codec),
            ));
        }
        Ok(())
    }
}

/// What a SCO or a part of it does to a range of addresses, or to the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapEntry {
    /// First cluster, or the size in bytes for [`Kind::Resize`].
    pub addr: u64,
    /// Number of clusters; 0 when the kind has neither a range nor content.
    pub count: u64,
    /// When it was written.
    pub lsn: Lsn,
    /// What it does.
    pub kind: Kind,
    /// Slot of its first cluster if it has content ([`Kind::has_content`]), else 0.
    pub slot: u32,
}

/// The index of a SCO.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ScoIndex {
    /// Ranges by ascending address, disjoint; then whatever has no range, by LSN.
    /// Slots of content are dense from 0 in this order.
    pub entries: Vec<MapEntry>,
    /// Checksum of the cluster in each slot ([`cluster_crc`]).
    pub crcs: Vec<u32>,
}

impl ScoIndex {
    fn write(&self) -> Vec<u8> {
        let mut w = Writer::with_capacity(16 + self.entries.len() * RECORD + self.crcs.len() * 4);
        w.u32(self.entries.len() as u32).u32(self.crcs.len() as u32).u64(0);
        for e in &self.entries {
            w.u64(e.addr).u64(e.count).u64(e.lsn.0).u8(e.kind as u8).zeroes(3).u32(e.slot);
        }
        for crc in &self.crcs {
            w.u32(*crc);
        }
        w.buf
    }

    fn read(envelope: &Envelope, bytes: &[u8]) -> Result<ScoIndex> {
        let mut r = Reader::new(envelope, bytes);
        let entries = r.count("entries", RECORD, MAX_ENTRIES)?;
        let slots = r.count("clusters", 4, MAX_SLOTS)?;
        r.zeroes(8)?;
        let mut index = ScoIndex { entries: Vec::with_capacity(entries), crcs: Vec::with_capacity(slots) };
        for _ in 0..entries {
            let (addr, count, lsn) = (r.u64()?, r.u64()?, Lsn(r.u64()?));
            let kind = read_entry_kind(envelope, &mut r)?;
            r.zeroes(3)?;
            index.entries.push(MapEntry { addr, count, lsn, kind, slot: r.u32()? });
        }
        for _ in 0..slots {
            index.crcs.push(r.u32()?);
        }
        r.end()?;
        Ok(index)
    }

    /// Every invariant of an index, given the header and the bytes of the cluster area.
    fn check(&self, envelope: &Envelope, header: &ScoHeader, area: u64) -> Result<()> {
        let bad = |i: usize, what: String| Err(Error::corrupt(format!("{envelope}: entry {i} {what}")));
        if self.entries.len() > MAX_ENTRIES || self.crcs.len() > MAX_SLOTS {
            return Err(Error::corrupt(format!(
                "{envelope}: {} entries and {} clusters, more than the limit of {MAX_ENTRIES} and {MAX_SLOTS}",
                self.entries.len(),
                self.crcs.len()
            )));
        }
        let slots = self.crcs.len() as u64;
        let clusters = slots * u64::from(header.cluster_size());
        if clusters != area {
            return Err(Error::corrupt(format!(
                "{envelope}: {area} bytes of clusters, should be {clusters} ({slots} slots)"
            )));
        }
        let (mut end, mut slot, mut marker) = (0, 0, None);
        for (i, e) in self.entries.iter().enumerate() {
            if !(header.lsn_lo..=header.lsn_hi).contains(&e.lsn) {
                return bad(
                    i,
                    format!("has LSN {}, outside of {} to {}", e.lsn, header.lsn_lo, header.lsn_hi),
                );
            }
            if e.kind.is_range() {
                if marker.is_some() {
                    return bad(i, "is a range behind an entry without one".into());
                }
                if e.addr < end {
                    return bad(
                        i,
                        format!("at address {} overlaps, or sorts before, its predecessor", e.addr),
                    );
                }
                end = check_range(envelope, i, e.addr, e.count)?;
            } else {
                if !e.kind.fits(e.addr, e.count) {
                    return bad(i, format!("is a {:?} of {} clusters at {}", e.kind, e.count, e.addr));
                }
                if marker.is_some_and(|last| last >= e.lsn) {
                    return bad(i, format!("has LSN {}, not above its predecessor's", e.lsn));
                }
                marker = Some(e.lsn);
            }
            if !e.kind.has_content() {
                if e.slot != 0 {
                    return bad(i, format!("has slot {} but no data", e.slot));
                }
            } else {
                if u64::from(e.slot) != slot || e.count > slots - slot {
                    return bad(
                        i,
                        format!("has slots {} + {}, should begin at {slot} of {slots}", e.slot, e.count),
                    );
                }
                slot += e.count;
            }
        }
        if slot != slots {
            return Err(Error::corrupt(format!("{envelope}: {slots} clusters, entries name {slot}")));
        }
        Ok(())
    }
}

/// Whether an LSN range is one.
pub(crate) fn check_lsns(who: &dyn fmt::Display, lo: Lsn, hi: Lsn) -> Result<()> {
    if lo.0 >= 1 && lo <= hi {
        return Ok(());
    }
    Err(Error::corrupt(format!("{who}: LSNs {lo} to {hi} are not a range")))
}

/// The end of a range of clusters, if it is one.
pub(crate) fn check_range(who: &dyn fmt::Display, i: usize, addr: u64, count: u64) -> Result<u64> {
    match addr.checked_add(count) {
        Some(end) if count > 0 => Ok(end),
        _ => Err(Error::corrupt(format!("{who}: entry {i}: {count} clusters from {addr} are not a range"))),
    }
}

/// The kind of an entry.
pub(crate) fn read_entry_kind(who: &dyn fmt::Display, r: &mut Reader<'_>) -> Result<Kind> {
    let n = r.u8()?;
    Kind::from_u8(n)
        .ok_or_else(|| Error::new(ErrorKind::Unsupported, format!("{who}: an entry of unknown kind {n}")))
}

/// A SCO that was read whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sco {
    /// Who and what.
    pub envelope: Envelope,
    /// Its LSNs and cluster size.
    pub header: ScoHeader,
    /// Where its index lies.
    pub footer: Footer,
    /// What it holds.
    pub index: ScoIndex,
    /// The whole object.
    pub bytes: Bytes,
}

impl Sco {
    /// Epoch and number.
    pub fn id(&self) -> ScoId {
        ScoId { epoch: self.envelope.epoch, number: self.envelope.number }
    }

    /// How another object names it.
    pub fn object_ref(&self) -> ObjectRef {
        ObjectRef {
            kind: self.envelope.kind,
            epoch: self.envelope.epoch,
            number: self.envelope.number,
            len: self.footer.total_len,
            index_crc: self.footer.index_crc,
        }
    }

    /// The cluster in `slot`, not verified; shares the object's memory.
    pub fn cluster(&self, slot: u32) -> Option<Bytes> {
        if slot as usize >= self.index.crcs.len() {
            return None;
        }
        let size = self.header.cluster_size();
        let from = cluster_offset(slot, size) as usize;
        Some(self.bytes.slice(from..from + size as usize))
    }

    /// Checks every cluster against the index.
    pub fn verify_clusters(&self) -> Result<()> {
        for e in self.index.entries.iter().filter(|e| e.kind.has_content()) {
            for (addr, slot) in (e.addr..e.addr + e.count).zip(e.slot..) {
                self.verify_cluster(addr, slot)?;
            }
        }
        Ok(())
    }

    /// Checks the cluster in `slot`, that of address `addr`, against the index.
    pub fn verify_cluster(&self, addr: u64, slot: u32) -> Result<()> {
        let (Some(cluster), Some(should)) = (self.cluster(slot), self.index.crcs.get(slot as usize)) else {
            return Err(Error::corrupt(format!("{}: no slot {slot}", self.envelope)));
        };
        match cluster_crc(self.envelope.volume, addr, &cluster) {
            is if is == *should => Ok(()),
            is => Err(Error::corrupt(format!(
                "{}: the cluster in slot {slot} (address {addr}): checksum is {is:08x}, should be {should:08x}",
                self.envelope
            ))),
        }
    }
}

/// Where slot `slot` begins, in bytes from the object's start.
pub fn cluster_offset(slot: u32, cluster_size: u32) -> u64 {
    BLOCK as u64 + u64::from(slot) * u64::from(cluster_size)
}

/// The whole object. `clusters` are in the order of slots, each a whole number of clusters.
pub fn encode(
    envelope: &Envelope,
    header: &ScoHeader,
    index: &ScoIndex,
    clusters: Vec<Bytes>,
) -> Result<Vec<Bytes>> {
    envelope::check_kind(envelope, &KINDS)?;
    header.check(envelope).map_err(refuse)?;
    let area: usize = clusters.iter().map(Bytes::len).sum();
    if let Some(odd) = clusters.iter().find(|c| c.len() % header.cluster_size() as usize != 0) {
        return Err(Error::internal(format!("will not write {envelope}: a cluster of {} bytes", odd.len())));
    }
    index.check(envelope, header, area as u64).map_err(refuse)?;
    encode_unchecked(envelope, header, index, clusters)
}

/// As [`encode`], whatever the index says.
pub(super) fn encode_unchecked(
    envelope: &Envelope,
    header: &ScoHeader,
    index: &ScoIndex,
    clusters: Vec<Bytes>,
) -> Result<Vec<Bytes>> {
    let area: usize = clusters.iter().map(Bytes::len).sum();
    let (first, end, _) = envelope::frame(envelope, &header.write(), area, &index.write())?;
    Ok(std::iter::once(first).chain(clusters).chain([end]).collect())
}

/// What the first block says.
pub fn decode_head(block: &[u8]) -> Result<(Envelope, ScoHeader)> {
    let (envelope, body) = Envelope::decode_as(&KINDS, block)?;
    let header = ScoHeader::read(&envelope, body)?;
    Ok((envelope, header))
}

/// What the end says; `tail` are the last bytes (at least 64) of an object of `total_len` bytes.
pub fn decode_footer(tail: &[u8], total_len: u64) -> Result<Footer> {
    let footer = Footer::decode(tail, total_len)?;
    match footer.kind {
        ObjectKind::LogSco | ObjectKind::RelocSco => Ok(footer),
        kind => Err(Error::corrupt(format!("footer: that of a {kind}, should be that of a SCO"))),
    }
}

/// The index, from the bytes that the footer names.
pub fn decode_index(
    envelope: &Envelope,
    header: &ScoHeader,
    footer: &Footer,
    bytes: &[u8],
) -> Result<ScoIndex> {
    footer.check_index(envelope, bytes)?;
    let index = ScoIndex::read(envelope, bytes)?;
    index.check(envelope, header, footer.index_off.saturating_sub(BLOCK as u64))?;
    Ok(index)
}

/// Everything but the checksums of clusters ([`Sco::verify_clusters`]).
pub fn decode(bytes: &Bytes) -> Result<Sco> {
    let (envelope, body, footer, index) = envelope::take_apart(&KINDS, bytes)?;
    let header = ScoHeader::read(&envelope, body)?;
    let index = decode_index(&envelope, &header, &footer, index)?;
    Ok(Sco { envelope, header, footer, index, bytes: bytes.clone() })
}

/// Input of a fuzzer: raw, and as header and index of an object with right checksums and as many
/// clusters as it asks for.
pub fn fuzz(data: &[u8]) {
    check(data);
    let envelope = Envelope {
        kind: ObjectKind::LogSco,
        volume: VolumeId(1),
        epoch: Epoch(1),
        number: 1,
        writer: 1,
        compat: 0,
    };
    let (body, index) = data.split_at(data.len().min(32));
    let log2 = body.get(24).copied().unwrap_or(0).min(16);
    let slots = Reader::new(&"", index.get(4..).unwrap_or_default()).u32().unwrap_or(0).min(16);
    let area = (slots as usize) << log2;
    let fill = |buf: &mut Vec<u8>| buf.resize(buf.len() + area, 0);
    if let Ok((bytes, _)) = envelope::assemble(&envelope, body, area, fill, index) {
        check(&bytes);
    }
}

/// Whatever is read is written the same.
pub(crate) fn check(data: &[u8]) {
    let _ = decode_head(data);
    let _ = decode_footer(data, data.len() as u64);
    let Ok(sco) = decode(&Bytes::copy_from_slice(data)) else { return };
    let _ = sco.verify_clusters();
    let clusters: Vec<Bytes> = (0..).map_while(|slot| sco.cluster(slot)).collect();
    let again = encode(&sco.envelope, &sco.header, &sco.index, clusters);
    assert!(again.is_ok_and(|again| again.concat() == data), "{:?} {:?}", sco.header, sco.index);
}
