//! Manifests and the `vpool` object for people.

use super::objects::tlog_ref;
use super::{Report, head, index_of, time};
use crate::format::envelope::{BLOCK, FOOTER_LEN, with_checksums};
use crate::format::manifest::sections::{self, outline};
use crate::format::{Footer, Manifest, ManifestKind, PoolObject};
use bytes::Bytes;

pub(super) fn pool(bytes: &Bytes, report: &mut Report) {
    let Some(pool) = report.check(PoolObject::decode(bytes)) else { return };
    report.field("id", format_args!("{:032x}", pool.id));
    report.field("name", &pool.name);
    report.field("cluster size", 1u64 << pool.cluster_log2);
    report.field("created", time(pool.created));
}

pub(super) fn manifest(bytes: &Bytes, whole: bool, report: &mut Report) {
    let before = report.problems.len();
    let index = match Footer::decode(bytes, bytes.len() as u64) {
        Ok(footer) if whole => index_of(&footer, bytes),
        _ => bytes.get(BLOCK..).unwrap_or_default(),
    };
    for s in outline(index) {
        if s.computed != s.stored {
            let is = format!("checksum is {:08x}, should be {:08x}", s.computed, s.stored);
            report.problem(format_args!("section {} ({} bytes): {is}", s.tag, s.len));
        }
        if report.problems.len() > before || !whole {
            report.line(format_args!("  section {:<6} {} bytes, flags {:#x}", s.tag, s.len, s.flags));
        }
    }
    if !whole {
        report.field("cut off", format_args!("behind {} bytes of sections", index.len()));
        return;
    }
    let decoded = if report.problems.len() > before {
        let fixed =
            [head(bytes), &sections::with_checksums(index), &bytes[bytes.len() - FOOTER_LEN..]].concat();
        Manifest::decode(&with_checksums(&fixed))
    } else {
        Manifest::decode(bytes)
    };
    let Some(m) = report.check(decoded) else { return };
    report.field(
        "state",
        match m.kind {
            ManifestKind::Normal => "normal",
            ManifestKind::Fence => "fence",
            ManifestKind::Cut => "cut",
            ManifestKind::Deleted => "deleted",
        },
    );
    report.field("name", &m.name);
    report.field("size", m.size);
    report.field("cluster size", 1u64 << m.cluster_log2);
    report.field("SCO size", m.sco_size);
    report.field("created", time(m.created_at));
    if m.kind == ManifestKind::Deleted {
        report.field("deleted", time(m.deleted_at));
    }
    report.field("predecessor", format_args!("checksum {:08x}", m.prev_crc));
    if let Some(p) = &m.parent {
        report.field(
            "parent",
            format_args!("snapshot {:032x} of volume {} at LSN {}", p.snapshot, p.volume, p.lsn),
        );
    }
    report.field("TLogs end at", format_args!("LSN {}", m.tlog_lsn));
    report.field("tail", format_args!("from SCO {}/{}", m.tail.epoch, m.tail.first_sco));
    report.field("history", m.history.len());
    for h in &m.history {
        let epochs = if h.epoch_lo == h.epoch_hi {
            format!("epoch {}", h.epoch_lo)
        } else {
            format!("epochs {} to {}", h.epoch_lo, h.epoch_hi)
        };
        report.line(format_args!("    {epochs}: up to LSN {}", h.last_lsn));
    }
    report.field("head", m.head.len());
    for (lo, hi) in &m.head {
        match hi.0 {
            u64::MAX => report.line(format_args!("    LSN {lo} and above")),
            _ => report.line(format_args!("    LSNs {lo} to {hi}")),
        }
    }
    report.field("pages of snapshots", m.snapshots.len());
    for p in &m.snapshots {
        report.line(format_args!(
            "    {}: {} snapshots, {} bytes, index checksum {:08x}",
            p.obj, p.count, p.obj.len, p.obj.index_crc
        ));
    }
    report.field("list pages", m.pages.len());
    for p in &m.pages {
        report.line(format_args!(
            "    {}: {} references, LSNs {} to {}, {} bytes, index checksum {:08x}",
            p.obj, p.count, p.lsn_lo, p.lsn_hi, p.obj.len, p.obj.index_crc
        ));
    }
    report.field("TLogs", m.tlogs.len());
    m.tlogs.iter().for_each(|t| report.line(format_args!("    {}", tlog_ref(t))));
}
