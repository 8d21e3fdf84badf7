//! Prints any of our formats for people: what it says, and whether every checksum in it is right.
//!
//! | room | what |
//! |---|---|
//! | [`objects`] | SCO, TLog, list page |
//! | [`roots`] | Manifest, `vpool` object |
//! | `journal::show` | journal segment |
//!
//! Of what is cut off or damaged, as much is shown as can be read: then its checksums are taken as
//! if they were right, and the text says so.
//!
//! Does not own: reading files or objects, or deciding what to do about damage.

mod objects;
mod roots;

pub(crate) use objects::kind_name;

use crate::format::envelope::{self, MAGIC};
use crate::format::{BLOCK, Envelope, FOOTER_LEN, Footer, ObjectKind, ScoId, keys};
use bytes::Bytes;
use common::{Epoch, Error, Result, VolumeId};
use std::fmt::{Display, Write};

/// How many lines are written before the rest is only counted.
const MAX_LINES: usize = 200_000;

/// What an examination found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// For people; ends with the verdict.
    pub text: String,
    /// What is wrong, in the order of the text; empty when all is well.
    pub problems: Vec<String>,
    lines: usize,
}

impl Report {
    pub(crate) fn line(&mut self, line: impl Display) {
        self.lines += 1;
        if self.lines <= MAX_LINES {
            // Writing to a String can't fail.
            let _ = writeln!(self.text, "{line}");
        }
    }

    pub(crate) fn field(&mut self, name: &str, value: impl Display) {
        self.line(format_args!("  {name:<14} {value}"));
    }

    pub(crate) fn problem(&mut self, problem: impl Display) {
        self.line(format_args!("  WRONG: {problem}"));
        self.problems.push(problem.to_string());
    }

    /// The value, or a problem.
    pub(crate) fn check<T>(&mut self, result: Result<T>) -> Option<T> {
        result.map_err(|e| self.problem(e)).ok()
    }

    fn finish(mut self) -> Report {
        if self.lines > MAX_LINES {
            let _ = writeln!(self.text, "  ... and {} lines more", self.lines - MAX_LINES);
        }
        let _ = match self.problems.len() {
            0 => writeln!(self.text, "verdict: all is well, every checksum is right"),
            1 => writeln!(self.text, "verdict: 1 problem"),
            n => writeln!(self.text, "verdict: {n} problems"),
        };
        self
    }
}

/// What `bytes`, called `name` (a file name, or a key with whatever before it), are. `Invalid` when
/// they are not of ours at all.
pub fn describe(name: &str, bytes: &Bytes) -> Result<String> {
    examine(name, bytes).map(|report| report.text)
}

/// As [`describe`], with the problems apart.
pub fn examine(name: &str, bytes: &Bytes) -> Result<Report> {
    let mut report = Report::default();
    if bytes.starts_with(&MAGIC) {
        object(name, bytes, &mut report);
    } else if crate::journal::show::recognises(bytes) {
        report.line(format_args!("journal segment ({name}, {} bytes)", bytes.len()));
        crate::journal::show::show(name, bytes, &mut report);
    } else if let Ok(footer) = Footer::decode(bytes, bytes.len() as u64) {
        report.line(format_args!("{} ({name}, {} bytes)", footer.kind, bytes.len()));
        report.problem("the first block is not there; the footer is");
    } else {
        let start = &bytes[..bytes.len().min(8)];
        return Err(Error::invalid(format!(
            "{name}: {} bytes beginning with \"{}\" are no journal segment, SCO, TLog, Manifest, list page or vpool object",
            bytes.len(),
            start.escape_ascii()
        )));
    }
    Ok(report.finish())
}

fn object(name: &str, bytes: &Bytes, report: &mut Report) {
    let mut fixed = None;
    let decoded = Envelope::decode(bytes).or_else(|error| {
        let again = Bytes::from(envelope::with_checksums(bytes));
        let envelope = Envelope::decode(&again).map(|(e, _)| e);
        fixed = Some((error, again.clone()));
        envelope.map(|e| (e, &[][..]))
    });
    let Ok((envelope, _)) = decoded else {
        report.line(format_args!("an object ({name}, {} bytes)", bytes.len()));
        if let Some((error, _)) = fixed {
            report.problem(error);
        }
        return;
    };
    match envelope.kind {
        ObjectKind::Pool => report.line(format_args!("{envelope} ({name}, {} bytes)", bytes.len())),
        _ => report.line(format_args!(
            "{envelope} of volume {} ({name}, {} bytes)",
            envelope.volume,
            bytes.len()
        )),
    }
    if let Some((error, _)) = &fixed {
        report.problem(error);
    }
    report.field("writer", format_args!("{:032x}", envelope.writer));
    if envelope.compat != 0 {
        report.field("compat", format_args!("{:#x}", envelope.compat));
    }
    check_name(name, &envelope, report);

    // From here on with an object whose own checksums are right, or taken as if they were.
    let whole = envelope.kind == ObjectKind::Pool || check_ends(&envelope, bytes, report);
    let bytes = if report.problems.is_empty() {
        bytes.clone()
    } else {
        report.line("  what follows is shown as if those checksums were right");
        Bytes::from(envelope::with_checksums(bytes))
    };
    match envelope.kind {
        ObjectKind::Pool => roots::pool(&bytes, report),
        ObjectKind::LogSco | ObjectKind::RelocSco => objects::sco(&bytes, whole, report),
        ObjectKind::TLog => objects::tlog(&bytes, whole, report),
        ObjectKind::ListPage => objects::list_page(&bytes, whole, report),
        ObjectKind::Manifest => roots::manifest(&bytes, whole, report),
        ObjectKind::SnapshotPage => objects::snapshots(&bytes, whole, report),
    }
}

/// Whether the object has an end, even a damaged one.
fn check_ends(envelope: &Envelope, bytes: &Bytes, report: &mut Report) -> bool {
    let total = bytes.len() as u64;
    let footer = match Footer::decode(bytes, total) {
        Ok(footer) => footer,
        Err(error) => {
            report.problem(error);
            let fixed = envelope::with_checksums(bytes);
            match Footer::decode(&fixed, total) {
                Ok(_) => return true,
                Err(_) => return false,
            }
        }
    };
    report.check(footer.check_head(envelope, bytes));
    report.check(footer.check_index(envelope, index_of(&footer, bytes)));
    true
}

/// The bytes that `footer`, the footer of `bytes`, means.
fn index_of<'a>(footer: &Footer, bytes: &'a [u8]) -> &'a [u8] {
    let end = bytes.len().saturating_sub(FOOTER_LEN);
    bytes.get(footer.index_off as usize..end).unwrap_or_default()
}

/// A name that is one of our keys (with anything before it) must be the object's.
fn check_name(name: &str, envelope: &Envelope, report: &mut Report) {
    let parts: Vec<&str> = name.split('/').collect();
    let key = [4, 3, 1].iter().find_map(|n| {
        let from = parts.len().checked_sub(*n)?;
        keys::parse(&parts[from..].join("/")).ok()
    });
    if let Some(key) = key {
        let id = ScoId { epoch: envelope.epoch, number: envelope.number };
        let should = keys::place(envelope.volume, envelope.kind, id);
        if key.to_string() != should {
            report.problem(format_args!("the object is called {key}, but it is {should}"));
        }
    }
}

/// Whether the first block and nothing else is needed and there.
fn head(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.len().min(BLOCK)]
}

/// A range of addresses for people.
pub(crate) fn addresses(addr: u64, count: u64) -> String {
    match count {
        0 => format!("no address from {addr} on"),
        1 => format!("address {addr}"),
        n => format!("addresses {addr} to {} ({n})", addr.saturating_add(n - 1)),
    }
}

/// A volume and an epoch for people.
pub(crate) fn of_volume(volume: VolumeId, epoch: Epoch) -> String {
    format!("volume {volume} epoch {epoch}")
}

/// Seconds since 1970 as date and time, UTC.
pub fn time(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    if days > 1_000_000 {
        return format!("{seconds} seconds after 1970");
    }
    // Days counted from 1 March of year 0 in eras of 400 years, so that leap days end the year.
    let z = days + 719_468;
    let (era, day) = (z / 146_097, z % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let (m, d) = (if month < 10 { month + 3 } else { month - 9 }, of_year - (153 * month + 2) / 5 + 1);
    let y = era * 400 + year + u64::from(m <= 2);
    format!("{y:04}-{m:02}-{d:02} {:02}:{:02}:{:02} UTC", rest / 3600, rest / 60 % 60, rest % 60)
}

/// Input of a fuzzer.
pub fn fuzz(data: &[u8]) {
    let data = Bytes::copy_from_slice(data);
    let _ = describe("fuzz", &data);
}

#[cfg(test)]
mod tests;
