//! SCOs, TLogs, list pages and pages of snapshots for people.

use super::{Report, addresses, head, index_of, time};
use crate::format::{BLOCK, Description, ObjectKind, Sco, TLogEntry, TLogRef, list, sco, snapshot, tlog};
use crate::log::Kind;
use bytes::Bytes;
use common::crc::crc32c;

pub(super) fn sco(bytes: &Bytes, whole: bool, report: &mut Report) {
    let Some((_, header)) = report.check(sco::decode_head(head(bytes))) else { return };
    report.field("LSNs", format_args!("{} to {}", header.lsn_lo, header.lsn_hi));
    report.field("committed SCO", header.committed_sco);
    report.field("cluster size", header.cluster_size());
    if !whole {
        let area = bytes.len().saturating_sub(BLOCK);
        let clusters = area / header.cluster_size().max(1) as usize;
        report.field("cut off", format_args!("without index, behind at most {clusters} whole clusters"));
        return;
    }
    let Some(sco) = report.check(sco::decode(bytes)) else { return };
    report.field("clusters", sco.index.crcs.len());
    report.field("entries", sco.index.entries.len());
    for e in &sco.index.entries {
        let what = match e.kind {
            Kind::Data => format!("{} slot {}", addresses(e.addr, e.count), e.slot),
            Kind::Resize => format!("to {} bytes", e.addr),
            Kind::Snapshot => marker(&sco, e.slot, e.count),
            kind if kind.is_range() => addresses(e.addr, e.count),
            _ => format!("{}", e.addr),
        };
        report.line(format_args!("  {:<8} LSN {} {what}", kind_name(e.kind), e.lsn));
        if e.kind.has_content() {
            for (addr, slot) in (e.addr..e.addr + e.count).zip(e.slot..) {
                report.check(sco.verify_cluster(addr, slot));
            }
        }
    }
}

/// What the marker in these slots says of its snapshot.
fn marker(sco: &Sco, slot: u32, count: u64) -> String {
    let content: Vec<Bytes> = (slot..).take(count as usize).map_while(|slot| sco.cluster(slot)).collect();
    match Description::decode_marker(&content.concat()) {
        Ok(about) => format!("'{}' {:032x} slot {slot}", about.name, about.id),
        Err(error) => format!("slot {slot}: {error}"),
    }
}

pub(super) fn snapshots(bytes: &Bytes, whole: bool, report: &mut Report) {
    if !whole {
        report.field("cut off", "without footer nothing more can be read");
        return;
    }
    let Some((_, snapshots)) = report.check(snapshot::decode(bytes)) else { return };
    report.field("snapshots", snapshots.len());
    for s in &snapshots {
        report.line(format_args!(
            "    '{}' {:032x} at LSN {}: {} bytes, taken {}, {} bytes of metadata{}{}",
            s.about.name,
            s.about.id,
            s.lsn,
            s.size,
            time(s.about.created_at),
            s.about.metadata.len(),
            if s.about.consistent { ", consistent" } else { "" },
            if s.about.sticky { ", sticky" } else { "" },
        ));
        for (lo, hi) in &s.view {
            report.line(format_args!("        LSNs {lo} to {hi}"));
        }
    }
}

pub(super) fn tlog(bytes: &Bytes, whole: bool, report: &mut Report) {
    let Some((envelope, header)) = report.check(tlog::decode_head(head(bytes))) else { return };
    report.field("LSNs", format_args!("{} to {}", header.lsn_lo, header.lsn_hi));
    report.field("addresses", until(header.addr_lo, header.addr_hi));
    report.field("entries", header.entries);
    report.field("clusters", header.clusters);
    if !whole {
        report.field("cut off", "without index nothing more can be read");
        return;
    }
    let Some(footer) = report.check(tlog::decode_footer(bytes, bytes.len() as u64)) else { return };
    let index = tlog::decode_index(&envelope, &header, &footer, index_of(&footer, bytes));
    let Some(mut index) = report.check(index) else { return };
    report.field("dictionary", index.dict.len());
    for (i, d) in index.dict.iter().enumerate() {
        report.line(format_args!(
            "    {i}: {} {}, {} bytes, at most {} clusters live",
            d.kind, d.id, d.len, d.live_upper_bound
        ));
    }
    let (mut blocks_are_right, before) = (true, report.problems.len());
    for i in 0..index.blocks.len() {
        let b = index.blocks[i];
        let block = bytes.get(b.off as usize..b.off as usize + b.len as usize).unwrap_or_default();
        report.line(format_args!("  block {i} at {}: {} bytes, {} records", b.off, b.len, b.records));
        let mut decoded = tlog::decode_block(&envelope, &header, &index, i, block);
        if let Err(error) = &decoded {
            report.problem(error);
            blocks_are_right = false;
            index.blocks[i].crc = crc32c(block);
            decoded = tlog::decode_block(&envelope, &header, &index, i, block);
        }
        let Ok((entries, _)) = decoded else { continue };
        for e in &entries {
            report.line(format_args!("    {}", entry(e, &index)));
        }
    }
    // What is only seen when the blocks are put together.
    if blocks_are_right && before == 0 {
        report.check(tlog::decode(bytes));
    }
}

fn entry(e: &TLogEntry, index: &tlog::TLogIndex) -> String {
    let range = addresses(e.addr, e.count);
    let kind = kind_name(e.kind);
    match index.dict.get(e.dict as usize) {
        Some(d) if e.kind == Kind::Data => {
            let of = if d.kind == ObjectKind::RelocSco { "relocation SCO" } else { "SCO" };
            format!("{kind:<8} LSN {} {range} {of} {} slot {}", e.lsn, d.id, e.slot)
        }
        _ => format!("{kind:<8} LSN {} {range}", e.lsn),
    }
}

pub(super) fn list_page(bytes: &Bytes, whole: bool, report: &mut Report) {
    if !whole {
        report.field("cut off", "without footer nothing more can be read");
        return;
    }
    let Some((_, refs)) = report.check(list::decode(bytes)) else { return };
    report.field("references", refs.len());
    refs.iter().for_each(|t| report.line(format_args!("    {}", tlog_ref(t))));
}

pub(super) fn tlog_ref(t: &TLogRef) -> String {
    format!(
        "{}: LSNs {} to {}, addresses {}, {} bytes, index checksum {:08x}, {} bytes in its SCOs",
        t.obj,
        t.lsn_lo,
        t.lsn_hi,
        until(t.addr_lo, t.addr_hi),
        t.obj.len,
        t.obj.index_crc,
        t.sco_bytes
    )
}

fn until(lo: u64, hi: u64) -> String {
    match (lo, hi) {
        (0, u64::MAX) => "all".into(),
        (lo, u64::MAX) => format!("{lo} and above"),
        (lo, hi) => format!("{lo} to {}", hi.saturating_sub(1)),
    }
}

pub(crate) fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Data => "data",
        Kind::Zero => "zero",
        Kind::Discard => "discard",
        Kind::Snapshot => "snapshot",
        Kind::Resize => "resize",
        Kind::Rollback => "rollback",
    }
}
