//! The sections of a Manifest.

use super::super::cursor::{Reader, Writer, crc_error};
use super::super::envelope::{Envelope, ObjectRef};
use super::super::pool::read_name;
use super::super::snapshot::SnapshotPageRef;
use super::{
    HistoryEntry, MAX_HISTORY, MAX_LEN, Manifest, ManifestKind, PageRef, Parent, TLogRef, Tail, unsupported,
};
use common::crc::crc32c_parts;
use common::{Epoch, Error, Lsn, Result, VolumeId};

/// Bytes before a section's content: tag u16, flags u16, length u32, crc u32, reserved u32.
const HEAD: usize = 16;
/// Flag: a reader that does not know this section must refuse the Manifest.
const INCOMPAT: u16 = 1;

const CORE: u16 = 1;
const NAME: u16 = 2;
const PARENT: u16 = 3;
const HISTORY: u16 = 4;
const RANGES: u16 = 5;
const PAGES: u16 = 6;
const TLOGS: u16 = 7;
const SNAPSHOTS: u16 = 8;
const RELOCATIONS: u16 = 9;

const CORE_LEN: usize = 72;
const PARENT_LEN: usize = 40;
const HISTORY_LEN: usize = 24;
const RANGE_LEN: usize = 16;

/// A section's checksum: over its head with the checksum as zero, and its content.
fn crc(tag: u16, flags: u16, content: &[u8]) -> u32 {
    let mut w = Writer::default();
    w.u16(tag).u16(flags).u32(content.len() as u32).u64(0);
    crc32c_parts(&[&w.buf, content])
}

/// What a reader must do that does not know the section.
fn flags(tag: u16) -> u16 {
    if tag == RELOCATIONS { 0 } else { INCOMPAT }
}

fn section(w: &mut Writer, tag: u16, content: &[u8]) {
    w.u16(tag).u16(flags(tag)).u32(content.len() as u32).u32(crc(tag, flags(tag), content)).u32(0);
    w.bytes(content);
}

/// Bytes of all sections.
pub(super) fn len(m: &Manifest) -> usize {
    let lists = 8 * 5
        + m.history.len() * HISTORY_LEN
        + m.head.len() * RANGE_LEN
        + m.pages.len() * PageRef::LEN
        + m.tlogs.len() * TLogRef::LEN
        + m.snapshots.len() * SnapshotPageRef::LEN;
    let parent = if m.parent.is_some() { HEAD + PARENT_LEN } else { 0 };
    let relocations = if m.relocations > 0 { HEAD + 8 } else { 0 };
    7 * HEAD + CORE_LEN + m.name.len() + parent + lists + relocations
}

/// All sections, by ascending tag.
pub(super) fn write(m: &Manifest) -> Vec<u8> {
    let mut out = Writer::with_capacity(len(m));
    let mut w = Writer::default();
    w.u8(m.kind as u8).u8(m.cluster_log2).zeroes(2).u32(m.prev_crc).u64(m.size).u32(m.sco_size).u32(0);
    w.u64(m.created_at).u64(m.deleted_at).u64(m.tail.epoch.0).u64(m.tail.first_sco).u64(m.tlog_lsn.0).u64(0);
    section(&mut out, CORE, &w.buf);
    section(&mut out, NAME, m.name.as_bytes());
    if let Some(p) = &m.parent {
        let mut w = Writer::default();
        w.u128(p.volume.0).u128(p.snapshot).u64(p.lsn.0);
        section(&mut out, PARENT, &w.buf);
    }
    list(&mut out, HISTORY, &m.history, |w, h| {
        w.u64(h.epoch_lo.0).u64(h.epoch_hi.0).u64(h.last_lsn.0);
    });
    list(&mut out, RANGES, &m.head, |w, (lo, hi)| {
        w.u64(lo.0).u64(hi.0);
    });
    list(&mut out, PAGES, &m.pages, |w, p| {
        p.obj.write(w);
        w.u32(p.count).u32(0).u64(p.lsn_lo.0).u64(p.lsn_hi.0);
    });
    list(&mut out, TLOGS, &m.tlogs, |w, t| t.write(w));
    list(&mut out, SNAPSHOTS, &m.snapshots, |w, p| p.write(w));
    if m.relocations > 0 {
        let mut w = Writer::default();
        w.u64(m.relocations);
        section(&mut out, RELOCATIONS, &w.buf);
    }
    out.buf
}

fn list<T>(out: &mut Writer, tag: u16, items: &[T], each: impl Fn(&mut Writer, &T)) {
    let mut w = Writer::default();
    w.u32(items.len() as u32).u32(0);
    items.iter().for_each(|item| each(&mut w, item));
    section(out, tag, &w.buf);
}

fn read_list<'a, T>(
    mut r: Reader<'a>,
    (what, size, max): (&str, usize, usize),
    each: impl Fn(&mut Reader<'a>) -> Result<T>,
) -> Result<Vec<T>> {
    let count = r.count(what, size, max)?;
    r.zeroes(4)?;
    let mut items = Vec::with_capacity(count);
    for _ in 0..count {
        items.push(each(&mut r)?);
    }
    r.end()?;
    Ok(items)
}

/// The Manifest that the sections in `bytes` describe.
pub(super) fn read(envelope: &Envelope, bytes: &[u8]) -> Result<Manifest> {
    let mut m = Manifest {
        kind: ManifestKind::Normal,
        volume: envelope.volume,
        epoch: envelope.epoch,
        number: envelope.number,
        writer: envelope.writer,
        prev_crc: 0,
        name: String::new(),
        size: 0,
        cluster_log2: 0,
        sco_size: 0,
        created_at: 0,
        deleted_at: 0,
        parent: None,
        tail: Tail::default(),
        tlog_lsn: Lsn(0),
        history: Vec::new(),
        head: Vec::new(),
        pages: Vec::new(),
        tlogs: Vec::new(),
        snapshots: Vec::new(),
        relocations: 0,
    };
    let mut seen = [false; RELOCATIONS as usize + 1];
    let mut last = 0;
    let mut all = Reader::new(envelope, bytes);
    while all.left() > 0 {
        let (tag, set) = (all.u16()?, all.u16()?);
        let (len, stored) = (all.u32()? as usize, all.u32()?);
        all.zeroes(4)?;
        let content = all.take(len)?;
        let computed = crc(tag, set, content);
        if computed != stored {
            return Err(crc_error(envelope, &format!("section {tag}"), computed, stored));
        }
        if tag <= last {
            return Err(Error::corrupt(format!("{envelope}: section {tag} is out of order")));
        }
        last = tag;
        if !(CORE..=RELOCATIONS).contains(&tag) {
            if set & INCOMPAT == 0 {
                continue;
            }
            return Err(unsupported(format!(
                "{envelope}: needs section {tag} that this program does not know"
            )));
        }
        if set != flags(tag) {
            return Err(unsupported(format!("{envelope}: section {tag} has unknown flags {set:#x}")));
        }
        seen[tag as usize] = true;
        read_section(&mut m, envelope, tag, content)?;
    }
    // Only a clone has a parent.
    seen[PARENT as usize] = true;
    match (CORE..=SNAPSHOTS).find(|tag| !seen[*tag as usize]) {
        Some(tag) => Err(Error::corrupt(format!("{envelope}: section {tag} is missing"))),
        None => Ok(m),
    }
}

fn read_section(m: &mut Manifest, envelope: &Envelope, tag: u16, content: &[u8]) -> Result<()> {
    let mut r = Reader::new(envelope, content);
    match tag {
        CORE => {
            let kind = r.u8()?;
            m.kind = ManifestKind::from_u8(kind)
                .ok_or_else(|| unsupported(format!("{envelope}: unknown kind of Manifest {kind}")))?;
            m.cluster_log2 = r.u8()?;
            r.zeroes(2)?;
            (m.prev_crc, m.size, m.sco_size) = (r.u32()?, r.u64()?, r.u32()?);
            r.zeroes(4)?;
            (m.created_at, m.deleted_at) = (r.u64()?, r.u64()?);
            m.tail = Tail { epoch: Epoch(r.u64()?), first_sco: r.u64()? };
            m.tlog_lsn = Lsn(r.u64()?);
            r.zeroes(8)?;
            r.end()
        }
        NAME => {
            m.name = read_name(envelope, content)?;
            Ok(())
        }
        PARENT => {
            let (volume, snapshot) = (VolumeId(r.u128()?), r.u128()?);
            m.parent = Some(Parent { volume, snapshot, lsn: Lsn(r.u64()?) });
            r.end()
        }
        HISTORY => {
            m.history = read_list(r, ("entries of the history", HISTORY_LEN, MAX_HISTORY), |r| {
                let (epoch_lo, epoch_hi) = (Epoch(r.u64()?), Epoch(r.u64()?));
                Ok(HistoryEntry { epoch_lo, epoch_hi, last_lsn: Lsn(r.u64()?) })
            })?;
            Ok(())
        }
        RANGES => {
            m.head = read_list(r, ("ranges of the head", RANGE_LEN, MAX_LEN), |r| {
                Ok((Lsn(r.u64()?), Lsn(r.u64()?)))
            })?;
            Ok(())
        }
        PAGES => {
            m.pages = read_list(r, ("list pages", PageRef::LEN, MAX_LEN), |r| {
                let obj = ObjectRef::read(r)?;
                let count = r.u32()?;
                r.zeroes(4)?;
                Ok(PageRef { obj, count, lsn_lo: Lsn(r.u64()?), lsn_hi: Lsn(r.u64()?) })
            })?;
            Ok(())
        }
        TLOGS => {
            m.tlogs = read_list(r, ("TLogs", TLogRef::LEN, MAX_LEN), TLogRef::read)?;
            Ok(())
        }
        SNAPSHOTS => {
            let pages = ("pages of snapshots", SnapshotPageRef::LEN, MAX_LEN);
            m.snapshots = read_list(r, pages, SnapshotPageRef::read)?;
            Ok(())
        }
        _ => {
            m.relocations = r.u64()?;
            if m.relocations == 0 {
                return Err(Error::corrupt(format!("{envelope}: section {tag} counts no relocations")));
            }
            r.end()
        }
    }
}

/// A section as it lies there: tag, flags, length, and its checksum as it is and as it should be.
pub(crate) struct Outline {
    pub(crate) tag: u16,
    pub(crate) flags: u16,
    pub(crate) len: usize,
    pub(crate) computed: u32,
    pub(crate) stored: u32,
}

/// Which sections there are, up to the first that is cut off.
pub(crate) fn outline(bytes: &[u8]) -> Vec<Outline> {
    let mut found = Vec::new();
    let mut r = Reader::new(&"", bytes);
    while r.left() >= HEAD {
        let mut next = || {
            let (tag, flags, len, stored) = (r.u16()?, r.u16()?, r.u32()? as usize, r.u32()?);
            r.u32()?;
            Ok::<_, Error>(Outline { tag, flags, len, stored, computed: crc(tag, flags, r.take(len)?) })
        };
        match next() {
            Ok(section) => found.push(section),
            Err(_) => break,
        }
    }
    found
}

/// The same sections with right checksums, as far as they can be told apart: for the fuzzer, and to
/// show what a damaged Manifest seems to say.
pub(crate) fn with_checksums(bytes: &[u8]) -> Vec<u8> {
    let mut out = bytes.to_vec();
    let mut at = 0;
    while let Some(head) = bytes.get(at..at + HEAD) {
        let (tag, flags) = (u16::from_le_bytes([head[0], head[1]]), u16::from_le_bytes([head[2], head[3]]));
        let len = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
        let Some(content) = bytes.get(at + HEAD..at + HEAD + len) else { break };
        out[at + 8..at + 12].copy_from_slice(&crc(tag, flags, content).to_le_bytes());
        at += HEAD + len;
    }
    out
}
