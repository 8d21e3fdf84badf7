//! What a failed attempt means: whether another one may help, and in words, with what to do.

use crate::spec::S3Spec;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use common::{Error, ErrorKind};
use std::fmt;

/// A failed attempt.
#[derive(Debug)]
pub(super) struct Failure {
    pub error: Error,
    /// Another attempt may succeed. What this one did at the server is unknown.
    pub again: bool,
}

impl Failure {
    /// A failure that another attempt would only repeat.
    pub(super) fn last(error: Error) -> Self {
        Self { error, again: false }
    }

    fn again(error: Error) -> Self {
        Self { error, again: true }
    }
}

/// Where requests go and on whose behalf, for messages.
pub(super) struct Place {
    pub bucket: String,
    endpoint: String,
    region: String,
    credentials: String,
    trust: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3 store {} bucket '{}'", self.endpoint, self.bucket)
    }
}

impl Place {
    pub(super) fn new(spec: &S3Spec, credentials: String) -> Self {
        let region = super::client::region(spec).to_string();
        let endpoint = spec.endpoint.as_deref().map(|e| e.trim_end_matches('/').to_string());
        Self {
            bucket: spec.bucket.clone(),
            endpoint: endpoint.unwrap_or_else(|| format!("of AWS in {region}")),
            region,
            credentials,
            trust: match &spec.ca_file {
                Some(file) => format!("the ca_file {}", file.display()),
                None => "this machine's certificate authorities (no ca_file is set)".to_string(),
            },
        }
    }

    /// What the failure of an attempt to `what` the object `key` means.
    pub(super) fn failure<E>(&self, what: &str, key: &str, error: SdkError<E, HttpResponse>) -> Failure
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let told = format!("{what} '{key}' at {self}");
        match &error {
            SdkError::ServiceError(service) => {
                let meta = service.err().meta();
                let status = service.raw().status().as_u16();
                self.answer(
                    &told,
                    status,
                    meta.code().unwrap_or_default(),
                    meta.message().unwrap_or_default(),
                )
            }
            SdkError::ResponseError(response) => {
                let status = response.raw().status().as_u16();
                self.answer(&told, status, "", &chain(&error))
            }
            SdkError::ConstructionFailure(_) => Failure::last(Error::internal(format!(
                "{told}: the request can't be made: {}",
                chain(&error)
            ))),
            SdkError::TimeoutError(_) => {
                Failure::again(Error::unavailable(format!("{told}: no answer in time: {}", chain(&error))))
            }
            _ => self.no_answer(&told, &chain(&error)),
        }
    }

    /// The connection broke within a body.
    pub(super) fn broken_body(&self, key: &str, error: &(dyn std::error::Error + 'static)) -> Failure {
        Failure::again(Error::unavailable(format!(
            "get '{key}' at {self}: the connection broke in the middle of the object: {}",
            chain(error)
        )))
    }

    /// There was no answer; `chain` is the story of the connection.
    fn no_answer(&self, told: &str, chain: &str) -> Failure {
        let has = |text: &str| chain.contains(text);
        let certificate = if has("UnknownIssuer") {
            Some(format!(
                "its certificate is not signed by any of {}; set ca_file to the one that signed it",
                self.trust
            ))
        } else if has("certificate expired") || has("Expired") {
            Some(
                "its certificate has expired; renew it on the server (or this machine's clock is wrong)"
                    .into(),
            )
        } else if has("not valid yet") || has("NotValidYet") {
            Some("its certificate is not valid yet; this machine's clock is probably wrong".into())
        } else if has("not valid for name") || has("NotValidForName") {
            Some("its certificate is for another host name; use the name in it as endpoint".into())
        } else if has("invalid peer certificate") {
            Some(format!("its certificate is not accepted; it is checked against {}", self.trust))
        } else {
            None
        };
        if let Some(certificate) = certificate {
            return Failure::last(Error::new(ErrorKind::Denied, format!("{told}: {certificate} ({chain})")));
        }
        if has("InvalidContentType") {
            return Failure::last(Error::invalid(format!(
                "{told}: the server does not speak TLS; is it http:// rather than https://? ({chain})"
            )));
        }
        let advice = if has("Connection refused") {
            "nothing listens there; is the server running, and host and port of 'endpoint' right?"
        } else if has("dns error") || has("failed to lookup address") || has("Name or service not known") {
            "its host name can't be resolved; check 'endpoint' and the DNS of this machine"
        } else if has("No route to host") || has("Network is unreachable") {
            "its host can't be reached from this machine"
        } else {
            "the connection failed"
        };
        Failure::again(Error::unavailable(format!("{told}: {advice} ({chain})")))
    }

    /// The server answered with an error: its HTTP status, and the code and the message of S3.
    fn answer(&self, told: &str, status: u16, code: &str, message: &str) -> Failure {
        let shown: String = message.chars().take(300).collect();
        let raw = match (code.is_empty(), shown.is_empty()) {
            (true, true) => format!("HTTP {status}"),
            (false, true) => format!("HTTP {status} {code}"),
            _ => format!("HTTP {status} {code}: {shown}"),
        };
        let last = |kind, advice: &str| Failure::last(Error::new(kind, format!("{told}: {advice} ({raw})")));
        let denied = |advice: &str| last(ErrorKind::Denied, advice);
        let (credentials, bucket) = (&self.credentials, &self.bucket);
        match code {
            "NoSuchKey" => last(ErrorKind::NotFound, "no such object"),
            // Not `NotFound`: that would say of each object that it was never put.
            "NoSuchBucket" => last(
                ErrorKind::Invalid,
                &format!("the bucket '{bucket}' does not exist there; create it, or correct 'bucket'"),
            ),
            "InvalidBucketName" => last(ErrorKind::Invalid, "the server takes that for no bucket name"),
            "InvalidAccessKeyId" => denied(&format!(
                "the server does not know the access key; check the access key in {credentials}"
            )),
            "SignatureDoesNotMatch" => denied(&format!(
                "the secret key does not belong to the access key; check the secret key in {credentials}"
            )),
            "RequestTimeTooSkewed" | "RequestExpired" => denied(
                "this machine's clock differs too much from the server's; set both by NTP (timedatectl shows the state)",
            ),
            "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired" => {
                denied(&format!("the session token is not valid any more; renew it in {credentials}"))
            }
            "AuthorizationHeaderMalformed" | "PermanentRedirect" | "IllegalLocationConstraintException" => {
                last(
                    ErrorKind::Invalid,
                    &format!(
                        "the bucket is in another region than '{}'; correct 'region' or 'endpoint'",
                        self.region
                    ),
                )
            }
            "PreconditionFailed" => last(ErrorKind::Conflict, "it exists already"),
            "QuotaExceeded" | "XMinioStorageFull" | "InsufficientStorage" => Failure::again(Error::new(
                ErrorKind::NoSpace,
                format!("{told}: the store is full; free space or raise the quota ({raw})"),
            )),
            "InvalidRange" => last(ErrorKind::Corrupt, "the object is shorter than what was asked for"),
            "EntityTooLarge" => last(ErrorKind::Invalid, "the store does not take objects of that size"),
            "AccessDenied" | "AllAccessDisabled" | "AccountProblem" => denied(&format!(
                "the key from {credentials} may not do this; it needs to list '{bucket}' and to get, put and delete \
                 objects in it"
            )),
            // Two conditional writes met at the server, and neither is decided; or the body was
            // damaged, or did not come, on its way.
            "ConditionalRequestConflict"
            | "OperationAborted"
            | "SlowDown"
            | "RequestTimeout"
            | "BadDigest"
            | "XAmzContentSHA256Mismatch"
            | "IncompleteBody"
            | "InternalError"
            | "ServiceUnavailable" => {
                Failure::again(Error::unavailable(format!("{told}: the server could not do it now ({raw})")))
            }
            _ => match status {
                404 => last(ErrorKind::NotFound, "no such object"),
                401 | 403 => denied(&format!("the server does not accept the key from {credentials}")),
                412 => last(ErrorKind::Conflict, "it exists already"),
                416 => last(ErrorKind::Corrupt, "the object is shorter than what was asked for"),
                507 => Failure::again(Error::new(
                    ErrorKind::NoSpace,
                    format!("{told}: the store is full; free space or raise the quota ({raw})"),
                )),
                501 => last(ErrorKind::Unsupported, "the server does not offer this"),
                408 | 409 | 425 | 429 | 500..=599 => Failure::again(Error::unavailable(format!(
                    "{told}: the server could not do it now ({raw})"
                ))),
                // Cut off, or not from an S3 server at all.
                200..=299 => Failure::again(Error::unavailable(format!(
                    "{told}: the answer can't be read; is this an S3 server? ({raw})"
                ))),
                300..=399 => {
                    last(ErrorKind::Invalid, "the server redirects elsewhere; correct 'endpoint' or 'region'")
                }
                _ => last(ErrorKind::Invalid, "the server refuses the request"),
            },
        }
    }
}

/// An error and its causes, in one line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut told: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        if !told.iter().any(|earlier| earlier.contains(&text)) {
            told.push(text);
        }
        next = error.source();
        if told.len() >= 8 {
            break;
        }
    }
    told.join(": ")
}

#[cfg(test)]
mod tests;
