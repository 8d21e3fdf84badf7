//! Prints a journal segment for people (part of [`crate::inspect`]).

use super::record::{self, FIXED, Position, Record};
use super::segment::{HEADER_BLOCK, SegmentHeader, file_name, segno_of};
use crate::inspect::{Report, addresses, kind_name, of_volume};
use crate::log::Kind;
use bytes::Bytes;

/// Whether `bytes` begin like a segment.
pub(crate) fn recognises(bytes: &[u8]) -> bool {
    bytes.starts_with(b"SRjs")
}

/// Writes what the segment `bytes`, in file `name`, says.
pub(crate) fn show(name: &str, bytes: &Bytes, report: &mut Report) {
    let block = bytes.get(..HEADER_BLOCK as usize).unwrap_or(bytes);
    let header = report.check(SegmentHeader::decode(block));
    let mut segment = None;
    if let Some(h) = &header {
        show_header(h, report);
        if h.size != bytes.len() as u64 {
            report.problem(format_args!("the file has {} bytes, should have {}", bytes.len(), h.size));
        }
        let file = name.rsplit('/').next().unwrap_or(name);
        if segno_of(file).is_some_and(|segno| segno != h.segno) {
            report
                .problem(format_args!("the file is called {file}, but it is segment {}", file_name(h.segno)));
        }
        segment = Some((h.process, h.life, u64::from(h.align)));
    }
    let mut walk = Walk { bytes, segment, at: HEADER_BLOCK, prev_crc: None, entries: 0 };
    walk.run(report);
    report.field("entries", walk.entries);
}

fn show_header(h: &SegmentHeader, report: &mut Report) {
    report.field("device", format_args!("{:032x}", h.device));
    report.field("process", format_args!("{:032x}", h.process));
    report.field("segment", file_name(h.segno));
    report.field("life", h.life);
    report.field("alignment", h.align);
    report.field("durable", position(&h.durable));
    for cut in &h.cuts {
        let Position { life, offset, .. } = Position { segno: 0, life: cut.life, offset: cut.offset };
        report.field(
            "cut",
            format_args!("process {:032x} counts up to offset {offset} of life {life}", cut.process),
        );
    }
}

fn position(p: &Position) -> String {
    match p.life {
        0 => "nothing".into(),
        life => format!("up to offset {} of segment {} life {life}", p.offset, file_name(p.segno)),
    }
}

/// A walk through the records; without a header the first record found tells whose they are.
struct Walk<'a> {
    bytes: &'a Bytes,
    /// Process, life and alignment.
    segment: Option<(u128, u64, u64)>,
    at: u64,
    prev_crc: Option<u32>,
    entries: usize,
}

impl Walk<'_> {
    fn run(&mut self, report: &mut Report) {
        let mut bad_from: Option<(u64, &'static str)> = None;
        while self.at + (FIXED as u64) <= self.bytes.len() as u64 {
            let align = self.segment.map_or(512, |(_, _, align)| align);
            let record = match self.record() {
                Ok(record) => record,
                Err(why) => {
                    bad_from.get_or_insert((self.at, why));
                    self.at = (self.at + 1).next_multiple_of(align);
                    continue;
                }
            };
            if let Some((from, why)) = bad_from.take() {
                report.problem(format_args!(
                    "at {from}: {why}; valid records go on at {}, {} bytes further",
                    self.at,
                    self.at - from
                ));
                self.prev_crc = None;
            }
            self.show(&record, report);
            if record.last {
                report.line(format_args!("  the segment was left at {}", self.at));
                return;
            }
            self.prev_crc = Some(record.crc);
            self.at += record.len(align);
        }
        match bad_from {
            // A record can't know that what comes behind it became durable; a later segment might.
            Some((from, why)) => report.line(format_args!("  the records end at {from}: {why}")),
            None => report.line(format_args!("  the segment is full at {}", self.at)),
        }
    }

    /// The record at the offset, when it is one of this segment's life.
    fn record(&mut self) -> Result<Record, &'static str> {
        let rest = self.bytes.get(self.at as usize..).unwrap_or_default();
        let record = record::decode(rest)?;
        if record.place.at.offset != self.at {
            return Err("the record belongs elsewhere");
        }
        let (process, life, align) =
            *self.segment.get_or_insert((record.place.process, record.place.at.life, 512));
        if (record.place.process, record.place.at.life) != (process, life) {
            return Err("the record is of another life");
        }
        if record.len(align) > rest.len() as u64 {
            return Err("the record is longer than what is left of the segment");
        }
        Ok(record)
    }

    fn show(&mut self, record: &Record, report: &mut Report) {
        let place = &record.place;
        report.line(format_args!(
            "  record at {}: {} entries, header {} bytes, payload {} bytes, durable {}",
            self.at,
            record.entries.len(),
            record.header_len,
            record.payload_len,
            position(&place.durable)
        ));
        if self.prev_crc.is_some_and(|crc| crc != place.prev_crc) {
            report.problem(format_args!("the record at {} does not follow the one before it", self.at));
        }
        let from = self.at as usize + record.header_len;
        let payload = self.bytes.get(from..from + record.payload_len).unwrap_or_default();
        for e in &record.entries {
            self.entries += 1;
            let what = match e.kind {
                Kind::Resize => format!("to {} bytes", e.addr),
                kind if kind.is_range() => addresses(e.addr, e.count),
                _ => e.addr.to_string(),
            };
            let copy = if e.copy { " (copy)" } else { "" };
            let whose = of_volume(e.volume, e.epoch);
            report.line(format_args!("    {:<8} {whose} LSN {} {what}{copy}", kind_name(e.kind), e.lsn));
            if let Some(addr) = e.bad_cluster(payload) {
                report.problem(format_args!(
                    "the record at {}: LSN {} of volume {}: the checksum of address {addr} is wrong",
                    self.at, e.lsn, e.volume
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests;
