//! Which store a vPool uses. A spec is stored in the registry and shown by the API, so it never
//! holds a secret: credentials come from a file that it names, or from the environment.

use common::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Where the objects of a vPool live.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum BackendSpec {
    /// A folder of the local machine.
    Directory(DirectorySpec),
    /// A bucket of a server that speaks S3.
    S3(S3Spec),
}

/// A folder of the local machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DirectorySpec {
    /// The folder; it is created when its parent exists.
    pub path: PathBuf,
}

/// A bucket of a server that speaks S3.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct S3Spec {
    /// `http://host[:port]` or `https://host[:port]`; without it, AWS's own of the region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The bucket; it must exist.
    pub bucket: String,
    /// Goes before every key, for several vPools in one bucket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// The region that requests are signed for; `us-east-1` without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// The bucket goes into the path, not into the host name; without it: true with an `endpoint`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_style: Option<bool>,
    /// PEM file of the certificate authorities to trust instead of the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// File with the access key and the secret key, mode 0600; without it, they come from the
    /// environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_file: Option<PathBuf>,
    /// This router is the only writer of the prefix: accept a store whose conditional put does not
    /// exclude a second writer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub single_writer: bool,
    /// Seconds that a request goes on trying before it is `Unavailable`; 30 without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_seconds: Option<u64>,
}

impl S3Spec {
    /// A spec of `bucket` with everything else by default.
    pub fn new(bucket: impl Into<String>) -> Self {
        Self {
            endpoint: None,
            bucket: bucket.into(),
            prefix: None,
            region: None,
            path_style: None,
            ca_file: None,
            credentials_file: None,
            single_writer: false,
            deadline_seconds: None,
        }
    }
}

impl BackendSpec {
    /// `directory` or `s3`.
    pub fn kind(&self) -> &'static str {
        match self {
            BackendSpec::Directory(_) => "directory",
            BackendSpec::S3(_) => "s3",
        }
    }

    /// Checks what can be told without asking the store. The error is `Invalid` and names the field.
    pub fn check(&self) -> Result<()> {
        match self {
            BackendSpec::Directory(spec) => {
                if spec.path.as_os_str().is_empty() {
                    return Err(Error::invalid("backend field 'path' is empty"));
                }
                Ok(())
            }
            BackendSpec::S3(spec) => spec.check(),
        }
    }
}

impl S3Spec {
    fn check(&self) -> Result<()> {
        let bucket = &self.bucket;
        let named = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-');
        if !(3..=63).contains(&bucket.len()) || !bucket.bytes().all(named) {
            return Err(Error::invalid(format!(
                "backend field 'bucket': '{}' is no bucket name (3 to 63 of a-z 0-9 . -)",
                bucket.escape_default()
            )));
        }
        if let Some(endpoint) = &self.endpoint {
            let rest = endpoint.strip_prefix("http://").or_else(|| endpoint.strip_prefix("https://"));
            let rest = rest.map(|rest| rest.trim_end_matches('/'));
            if !rest.is_some_and(|rest| {
                !rest.is_empty()
                    && rest.bytes().all(|b| b.is_ascii_graphic() && b != b'@' && b != b'?' && b != b'#')
            }) {
                // A user name or password in it would be a secret in the registry: not even shown.
                return Err(Error::invalid(
                    "backend field 'endpoint' must be http://HOST[:PORT] or https://HOST[:PORT], without \
                     credentials in it",
                ));
            }
        }
        if let Some(prefix) = &self.prefix {
            let inner = prefix.trim_end_matches('/');
            if !inner.is_empty() {
                crate::key::check_key(inner).map_err(|e| e.context("backend field 'prefix'"))?;
            }
            if inner.len() > 256 {
                return Err(Error::invalid("backend field 'prefix' must have at most 256 bytes"));
            }
        }
        if self.ca_file.is_some() && self.endpoint.as_ref().is_some_and(|e| e.starts_with("http://")) {
            return Err(Error::invalid(
                "backend field 'ca_file' is given, but the endpoint is http:// and so has no certificate; write \
                 https:// or leave 'ca_file' away",
            ));
        }
        if self.region.as_ref().is_some_and(|r| {
            r.is_empty()
                || r.len() > 64
                || !r.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        }) {
            return Err(Error::invalid("backend field 'region' must be a name like us-east-1"));
        }
        if self.deadline_seconds.is_some_and(|s| !(1..=3600).contains(&s)) {
            return Err(Error::invalid("backend field 'deadline_seconds' must be 1 to 3600"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_reads_and_writes_as_documented() {
        let text = r#"{"kind":"directory","path":"/srv/objects"}"#;
        let spec: BackendSpec = serde_json::from_str(text).unwrap();
        assert_eq!(spec, BackendSpec::Directory(DirectorySpec { path: "/srv/objects".into() }));
        assert_eq!(serde_json::to_string(&spec).unwrap(), text);

        let text = r#"{"kind":"s3","endpoint":"http://h:1","bucket":"bkt","prefix":"p/q","region":"r","path_style":true,"ca_file":"/ca","credentials_file":"/c","single_writer":true}"#;
        let spec: BackendSpec = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&spec).unwrap(), text);
        let short: BackendSpec = serde_json::from_str(r#"{"kind":"s3","bucket":"bkt"}"#).unwrap();
        assert_eq!(short, BackendSpec::S3(S3Spec::new("bkt")));
    }

    #[test]
    fn unknown_fields_are_refused_by_name() {
        for text in [
            r#"{"kind":"s3","bucket":"bkt","secret_key":"x"}"#,
            r#"{"kind":"directory","path":"/x","secret_key":1}"#,
        ] {
            let error = serde_json::from_str::<BackendSpec>(text).unwrap_err().to_string();
            assert!(error.contains("secret_key"), "{error}");
        }
    }

    #[test]
    fn bad_fields_are_refused_by_name_and_secrets_are_not_repeated() {
        let base = S3Spec::new("bkt");
        let bad = [
            ("bucket", S3Spec { bucket: "A/b".into(), ..base.clone() }),
            ("endpoint", S3Spec { endpoint: Some("host:9000".into()), ..base.clone() }),
            ("endpoint", S3Spec { endpoint: Some("http://key:hunter2@host".into()), ..base.clone() }),
            ("prefix", S3Spec { prefix: Some("a/../b".into()), ..base.clone() }),
            ("region", S3Spec { region: Some("".into()), ..base.clone() }),
            ("deadline_seconds", S3Spec { deadline_seconds: Some(0), ..base.clone() }),
            (
                "ca_file",
                S3Spec { endpoint: Some("http://h".into()), ca_file: Some("/ca".into()), ..base.clone() },
            ),
        ];
        for (field, spec) in bad {
            let error = BackendSpec::S3(spec).check().unwrap_err();
            assert_eq!(error.kind, common::ErrorKind::Invalid);
            assert!(error.message().contains(field), "{error}");
            assert!(!error.message().contains("hunter2"), "{error}");
        }
        let good = S3Spec { endpoint: Some("https://[::1]:9/".into()), prefix: Some("a/".into()), ..base };
        BackendSpec::S3(good).check().unwrap();
    }
}
