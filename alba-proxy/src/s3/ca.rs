//! The certificate authorities of a file.
//!
//! A trust anchor's dates are not looked at when a server's certificate is checked, so an authority
//! that has expired is found here, when the store is opened, and told by name of its file.

use common::{Error, ErrorKind, Result};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::path::Path;
use std::time::Duration;

/// A longer file is not one of certificates; that of a whole system has about 250 KiB.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// Reads the PEM file and checks it: at least one certificate, each of them readable, not all of
/// them expired at `now` (since the Unix epoch). Returns the file's content.
pub(super) fn load(file: &Path, now: Duration) -> Result<Vec<u8>> {
    let told = format!("ca_file {}", file.display());
    let meta = std::fs::metadata(file).map_err(|e| Error::io(&told, &e))?;
    if !meta.is_file() || meta.len() > MAX_FILE_BYTES {
        return Err(Error::invalid(format!("{told}: this is not a file of certificates")));
    }
    let pem = std::fs::read(file).map_err(|e| Error::io(&told, &e))?;
    let unreadable = |what: &str| Error::invalid(format!("{told}: {what}"));
    let mut roots = RootCertStore::empty();
    let (mut count, mut expired) = (0, 0);
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|e| unreadable(&format!("it is no PEM file ({e:?})")))?;
        count += 1;
        let until = not_after(&certificate);
        roots
            .add(certificate)
            .map_err(|e| unreadable(&format!("certificate {count} can't be read ({e})")))?;
        let until =
            until.ok_or_else(|| unreadable(&format!("certificate {count} has no readable validity")))?;
        if until < now.as_secs() {
            expired += 1;
        }
    }
    if count == 0 {
        return Err(unreadable("there is no certificate in it (-----BEGIN CERTIFICATE-----)"));
    }
    if expired == count {
        return Err(Error::new(
            ErrorKind::Denied,
            format!(
                "{told}: the certificate authority in it has expired; put the new one there (or this machine's \
                 clock is wrong)"
            ),
        ));
    }
    if expired > 0 {
        tracing::warn!(file = %file.display(), expired, count, "some certificate authorities have expired");
    }
    Ok(pem)
}

/// The end of a certificate's validity, in seconds since the Unix epoch (X.509, RFC 5280 4.1).
fn not_after(certificate: &[u8]) -> Option<u64> {
    const SEQUENCE: u8 = 0x30;
    let (tag, certificate, _) = element(certificate)?;
    let (tbs_tag, tbs, _) = element(certificate)?;
    if tag != SEQUENCE || tbs_tag != SEQUENCE {
        return None;
    }
    // The version is there only when it is not the first.
    let (tag, _, mut rest) = element(tbs)?;
    if tag == 0xa0 {
        (_, _, rest) = element(rest)?;
    }
    // `rest` is behind the serial number: algorithm, issuer, validity.
    (_, _, rest) = element(rest)?;
    (_, _, rest) = element(rest)?;
    let (tag, validity, _) = element(rest)?;
    if tag != SEQUENCE {
        return None;
    }
    let (_, _, rest) = element(validity)?;
    let (tag, time, _) = element(rest)?;
    unix_seconds(tag, std::str::from_utf8(time).ok()?)
}

/// The first DER element: its tag, its content, and what follows it.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (len, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
        if bytes.len() > 4 {
            return None;
        }
        (bytes.iter().fold(0usize, |len, byte| len << 8 | usize::from(*byte)), rest)
    };
    let (content, rest) = rest.split_at_checked(len)?;
    Some((tag, content, rest))
}

/// UTCTime `YYMMDDHHMMSSZ` or GeneralizedTime `YYYYMMDDHHMMSSZ`.
fn unix_seconds(tag: u8, text: &str) -> Option<u64> {
    let digits = text.strip_suffix('Z').filter(|d| d.bytes().all(|b| b.is_ascii_digit()))?;
    let (year, rest) = match (tag, digits.len()) {
        (0x17, 12) => {
            let year: u64 = digits[..2].parse().ok()?;
            (if year < 50 { 2000 + year } else { 1900 + year }, &digits[2..])
        }
        (0x18, 14) => (digits[..4].parse().ok()?, &digits[4..]),
        _ => return None,
    };
    let field = |at: usize| rest[at..at + 2].parse::<u64>().ok();
    let (month, day, hour, minute, second) = (field(0)?, field(2)?, field(4)?, field(6)?, field(8)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || year < 1950 {
        return None;
    }
    // Days since the epoch by the civil calendar, whose year begins in March here, so that the
    // leap day is its last.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = y * 365 + y / 4 - y / 100 + y / 400 + (m * 153 + 2) / 5 + day - 1;
    let seconds = days * 86_400 + hour * 3600 + minute * 60 + second;
    // 1970-01-01 is day 719,468 of that count. What ended before is over in any case.
    Some(seconds.saturating_sub(719_468 * 86_400))
}

#[cfg(test)]
mod tests;
