//! List pages: references to TLogs that no longer fit the Manifest.
//! `first block | nothing | references | footer`.

use super::cursor::{Reader, Writer, refuse};
use super::envelope::{self, Envelope, ObjectKind};
use super::manifest::{PageRef, TLogRef, check_tlogs};
use bytes::Bytes;
use common::{Epoch, Error, Result, VolumeId};

/// The most references in one page.
pub const MAX_REFS: usize = 512;

const KINDS: [ObjectKind; 1] = [ObjectKind::ListPage];

/// The whole object, and how the Manifest names it. `refs` are by (first LSN, first address).
pub fn encode(envelope: &Envelope, refs: &[TLogRef]) -> Result<(Bytes, PageRef)> {
    envelope::check_kind(envelope, &KINDS)?;
    check(envelope, refs).map_err(refuse)?;
    let mut w = Writer::with_capacity(8 + refs.len() * TLogRef::LEN);
    w.u32(refs.len() as u32).u32(0);
    refs.iter().for_each(|r| r.write(&mut w));
    let (bytes, obj) = envelope::assemble(envelope, &[], 0, |_| {}, &w.buf)?;
    let (lsn_lo, lsn_hi) = lsns(refs);
    Ok((bytes, PageRef { obj, count: refs.len() as u32, lsn_lo, lsn_hi }))
}

/// What the page holds.
pub fn decode(bytes: &[u8]) -> Result<(Envelope, Vec<TLogRef>)> {
    let (envelope, body, footer, index) = envelope::take_apart(&KINDS, bytes)?;
    if !body.is_empty() || footer.index_off != super::BLOCK as u64 {
        return Err(Error::corrupt(format!(
            "{envelope}: more between header and references than there should be"
        )));
    }
    let mut r = Reader::new(&envelope, index);
    let count = r.count("references", TLogRef::LEN, MAX_REFS)?;
    r.zeroes(4)?;
    let mut refs = Vec::with_capacity(count);
    for _ in 0..count {
        refs.push(TLogRef::read(&mut r)?);
    }
    r.end()?;
    check(&envelope, &refs)?;
    Ok((envelope, refs))
}

fn check(envelope: &Envelope, refs: &[TLogRef]) -> Result<()> {
    if refs.is_empty() || refs.len() > MAX_REFS {
        return Err(Error::corrupt(format!(
            "{envelope}: {} references, should be 1 to {MAX_REFS}",
            refs.len()
        )));
    }
    check_tlogs(envelope, refs)
}

/// The lowest and highest LSN.
fn lsns(refs: &[TLogRef]) -> (common::Lsn, common::Lsn) {
    let lo = refs.iter().map(|r| r.lsn_lo).min().unwrap_or_default();
    let hi = refs.iter().map(|r| r.lsn_hi).max().unwrap_or_default();
    (lo, hi)
}

/// Whether `refs`, read from the page that `page` names, are what the Manifest promised.
pub fn check_page(page: &PageRef, refs: &[TLogRef]) -> Result<()> {
    if (refs.len(), lsns(refs)) == (page.count as usize, (page.lsn_lo, page.lsn_hi)) {
        return Ok(());
    }
    Err(Error::corrupt(format!(
        "{}: {} references to LSNs {} to {}, should be {} to LSNs {} to {}",
        page.obj,
        refs.len(),
        lsns(refs).0,
        lsns(refs).1,
        page.count,
        page.lsn_lo,
        page.lsn_hi
    )))
}

/// Input of a fuzzer: raw, and as references with right checksums.
pub fn fuzz(data: &[u8]) {
    verify(data);
    let envelope = Envelope {
        kind: ObjectKind::ListPage,
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
    if let Ok((envelope, refs)) = decode(data) {
        assert!(encode(&envelope, &refs).is_ok_and(|(again, _)| again == data), "{envelope:?} {refs:?}");
    }
}
