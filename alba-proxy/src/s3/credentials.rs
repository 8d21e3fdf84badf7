//! Keys, from a file or from the environment; never from the spec.
//!
//! The file looks like the one of other S3 tools: lines `aws_access_key_id = ...` and
//! `aws_secret_access_key = ...`, and `aws_session_token = ...` when there is one, alone or in a
//! section `[default]`. Lines that begin with `#` or `;` are comments; other sections are skipped.

use common::{Error, ErrorKind, Result};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const ACCESS: &str = "AWS_ACCESS_KEY_ID";
const SECRET: &str = "AWS_SECRET_ACCESS_KEY";
const TOKEN: &str = "AWS_SESSION_TOKEN";
/// A longer file is not one of keys.
const MAX_FILE_BYTES: u64 = 64 << 10;

/// Keys, and where they are from. `Debug` shows no secret.
pub struct Credentials {
    pub(super) access_key: String,
    pub(super) secret_key: String,
    pub(super) session_token: Option<String>,
    /// In words, for messages.
    pub source: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("source", &self.source).finish_non_exhaustive()
    }
}

/// Reads the keys from `file`, or from the environment when there is none.
///
/// Errors: `NotFound` when there are none, `Invalid` when the file has another form, `Denied` when
/// it may not be read.
pub fn load(file: Option<&Path>) -> Result<Credentials> {
    match file {
        Some(file) => from_file(file),
        None => from_environment(|name| std::env::var(name).ok()),
    }
}

fn from_environment(get: impl Fn(&str) -> Option<String>) -> Result<Credentials> {
    let get = |name| get(name).map(|value| value.trim().to_string()).filter(|value| !value.is_empty());
    match (get(ACCESS), get(SECRET)) {
        (Some(access_key), Some(secret_key)) => Ok(Credentials {
            access_key,
            secret_key,
            session_token: get(TOKEN),
            source: format!("the environment ({ACCESS}, {SECRET})"),
        }),
        (access, _) => Err(Error::not_found(format!(
            "no S3 credentials: {} is not set in the router's environment; set {ACCESS} and {SECRET} there, or name \
             a credentials_file",
            if access.is_none() { ACCESS } else { SECRET }
        ))),
    }
}

fn from_file(file: &Path) -> Result<Credentials> {
    let told = format!("credentials file {}", file.display());
    let meta = std::fs::metadata(file).map_err(|e| Error::io(&told, &e))?;
    if !meta.is_file() || meta.len() > MAX_FILE_BYTES {
        return Err(Error::invalid(format!("{told}: this is not a file of keys")));
    }
    let mode = meta.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        tracing::warn!(
            file = %file.display(),
            mode = format!("{mode:04o}"),
            "others may read the S3 credentials; chmod 0600 the file"
        );
    }
    let text = std::fs::read(file).map_err(|e| Error::io(&told, &e))?;
    let text = String::from_utf8(text).map_err(|_| Error::invalid(format!("{told}: it is not text")))?;
    parse(&text, &told)
}

fn parse(text: &str, told: &str) -> Result<Credentials> {
    let (mut access_key, mut secret_key, mut session_token) = (None, None, None);
    let mut ours = true;
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(section) = line.strip_prefix('[') {
            ours = section.trim_end_matches(']').trim() == "default";
            continue;
        }
        // The line itself is not shown: it may hold a secret.
        let Some((name, value)) = line.split_once('=') else {
            return Err(Error::invalid(format!("{told}: line {} is not 'name = value'", number + 1)));
        };
        if !ours {
            continue;
        }
        let value = Some(value.trim().to_string()).filter(|value| !value.is_empty());
        match name.trim().to_ascii_lowercase().as_str() {
            "aws_access_key_id" => access_key = value,
            "aws_secret_access_key" => secret_key = value,
            "aws_session_token" => session_token = value,
            _ => {}
        }
    }
    let missing = |name| Error::new(ErrorKind::Invalid, format!("{told}: there is no line '{name} = ...'"));
    Ok(Credentials {
        access_key: access_key.ok_or_else(|| missing("aws_access_key_id"))?,
        secret_key: secret_key.ok_or_else(|| missing("aws_secret_access_key"))?,
        session_token,
        source: told.to_string(),
    })
}

#[cfg(test)]
mod tests;
