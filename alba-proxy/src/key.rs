//! Which keys are allowed: what every store can hold under its plain name.

use common::{Error, Result};

/// The longest key, in bytes.
pub const MAX_KEY_BYTES: usize = 512;

fn allowed(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'/')
}

/// Checks a whole key: 1 to 512 bytes of `a-z A-Z 0-9 . _ - /`, and no component that is empty,
/// `.` or `..`. The error is `Invalid`.
pub fn check_key(key: &str) -> Result<()> {
    let fault = if key.is_empty() || key.len() > MAX_KEY_BYTES {
        "it must have 1 to 512 bytes"
    } else if !key.bytes().all(allowed) {
        "only a-z A-Z 0-9 . _ - / are allowed"
    } else if key.split('/').any(|part| matches!(part, "" | "." | "..")) {
        "no part of it between slashes may be empty, '.' or '..'"
    } else {
        return Ok(());
    };
    Err(Error::invalid(format!("object key '{}': {fault}", shown(key))))
}

/// Checks the prefix of a listing: the beginning of some key, or empty. The error is `Invalid`.
pub fn check_prefix(prefix: &str) -> Result<()> {
    let whole = prefix.rsplit_once('/').map(|(whole, _)| whole);
    let fault = if prefix.len() > MAX_KEY_BYTES {
        "it must have at most 512 bytes"
    } else if !prefix.bytes().all(allowed) {
        "only a-z A-Z 0-9 . _ - / are allowed"
    } else if whole.is_some_and(|whole| whole.split('/').any(|part| matches!(part, "" | "." | ".."))) {
        "no part of it between slashes may be empty, '.' or '..'"
    } else {
        return Ok(());
    };
    Err(Error::invalid(format!("object key prefix '{}': {fault}", shown(prefix))))
}

/// A key as a message shows it: printable, and not longer than a line.
fn shown(key: &str) -> String {
    key.chars().take(80).flat_map(char::escape_default).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_could_leave_the_store_are_refused() {
        let long = "k".repeat(513);
        for bad in
            ["", "/", "a//b", "/a", "a/", ".", "..", "a/../b", "a/./b", "a b", "ä", "a\0", "a\\b", &long]
        {
            assert_eq!(check_key(bad).unwrap_err().kind, common::ErrorKind::Invalid, "{bad:?}");
        }
        for good in ["a", "vpool", "0123/s/00/1", "a.b", "..a", "a...", "-", &long[..512]] {
            check_key(good).unwrap();
        }
    }

    #[test]
    fn prefixes_that_could_leave_the_store_are_refused() {
        for bad in ["/", "../", "a/../", "a//", "a/./b", "a b"] {
            assert_eq!(check_prefix(bad).unwrap_err().kind, common::ErrorKind::Invalid, "{bad:?}");
        }
        for good in ["", "a", "a/", "a/b", "a/.", "."] {
            check_prefix(good).unwrap();
        }
    }
}
