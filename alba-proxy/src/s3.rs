//! The `s3` store: a bucket of any server that speaks S3, through the AWS SDK.
//!
//! An object is one PUT, its condition `If-None-Match: *`. The SDK's own retries are off: every
//! request is tried again here, with jitter and a deadline, since only here is known what a lost
//! reply means. When the reply of a conditional put was lost and the next attempt finds the key
//! taken, the object is read back: its own bytes mean that it was ours all along.
//!
//! | room | what |
//! |---|---|
//! | `client` | the SDK's client: endpoint, region, TLS |
//! | [`credentials`] | keys from a file or from the environment |
//! | `ca` | the certificate authorities of a file |
//! | `fault` | what a failed attempt means, in words |
//! | `retry` | attempts, pauses and the deadline |
//! | `list` | listings |

mod ca;
mod client;
pub mod credentials;
mod fault;
mod list;
mod retry;

use crate::key::{check_key, check_prefix};
use crate::spec::S3Spec;
use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::primitives::ByteStream;
use bytes::Bytes;
use common::object::{Listing, ObjectStore, Precondition};
use common::{Clock, Error, ErrorKind, Result};
use fault::{Failure, Place};
use prometheus_client::metrics::counter::Counter;
use retry::Retry;
use std::hash::{BuildHasher, RandomState};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// Longer objects are not ours: nothing of ours is put in more than one PUT.
const MAX_OBJECT_BYTES: u64 = 1 << 30;
const DEADLINE: Duration = Duration::from_secs(30);
const LOCKS: usize = 64;

/// A bucket of a server that speaks S3, as an object store.
pub struct S3Store {
    client: Client,
    place: Place,
    /// Empty, or ends with a slash.
    prefix: String,
    retry: Retry,
    single_writer: Option<SingleWriter>,
}

/// Puts of one key take turns, where the store does not see to it that one of them wins.
struct SingleWriter {
    locks: Box<[tokio::sync::Mutex<()>]>,
    hasher: RandomState,
}

impl SingleWriter {
    fn new() -> Self {
        let locks = (0..LOCKS).map(|_| tokio::sync::Mutex::new(())).collect();
        Self { locks, hasher: RandomState::new() }
    }

    fn of(&self, key: &str) -> &tokio::sync::Mutex<()> {
        &self.locks[self.hasher.hash_one(key) as usize % LOCKS]
    }
}

impl S3Store {
    /// Makes the store of `spec` without asking the server anything. Reads the credentials and the
    /// certificate authorities; counts repeated attempts in `retries`.
    ///
    /// Errors: `NotFound` when a file or the credentials are missing, `Invalid` when they can't be
    /// read, `Denied` when every certificate authority has expired.
    pub fn open(spec: &S3Spec, clock: Arc<dyn Clock>, retries: Counter) -> Result<Self> {
        let credentials = credentials::load(spec.credentials_file.as_deref())?;
        let place = Place::new(spec, credentials.source.clone());
        let client = client::build(spec, credentials, clock.as_ref())?;
        let prefix = spec.prefix.as_deref().unwrap_or_default().trim_end_matches('/');
        let deadline = spec.deadline_seconds.map_or(DEADLINE, Duration::from_secs);
        Ok(Self {
            client,
            place,
            prefix: if prefix.is_empty() { String::new() } else { format!("{prefix}/") },
            retry: Retry::new(clock, deadline, retries),
            single_writer: spec.single_writer.then(SingleWriter::new),
        })
    }

    /// The key as the server knows it.
    fn full(&self, key: &str) -> Result<String> {
        check_key(key)?;
        Ok(format!("{}{key}", self.prefix))
    }

    async fn put_once(&self, full: &str, data: Bytes, if_absent: bool) -> Result<(), Failure> {
        let mut request = self.client.put_object().bucket(&self.place.bucket).key(full);
        request = request.content_length(i64::try_from(data.len()).unwrap_or(i64::MAX));
        if if_absent {
            request = request.if_none_match("*");
        }
        let sent = request.body(ByteStream::from(data)).send().await;
        sent.map(|_| ()).map_err(|e| self.place.failure("put", full, e))
    }

    /// The object, or a part of it (which is not empty).
    async fn get_once(&self, full: &str, range: Option<Range<u64>>) -> Result<Bytes, Failure> {
        let mut request = self.client.get_object().bucket(&self.place.bucket).key(full);
        let expected = range.as_ref().map(|range| range.end - range.start);
        if let Some(range) = &range {
            request = request.range(format!("bytes={}-{}", range.start, range.end - 1));
        }
        let reply = request.send().await.map_err(|e| self.place.failure("get", full, e))?;
        let announced = reply.content_length.and_then(|len| u64::try_from(len).ok());
        if announced.or(expected).is_none_or(|len| len > MAX_OBJECT_BYTES) {
            return Err(Failure::last(Error::corrupt(format!(
                "get '{full}' from {}: it has more than {MAX_OBJECT_BYTES} bytes or no length, so it is none of ours",
                self.place
            ))));
        }
        if let (Some(expected), Some(announced)) = (expected, announced)
            && announced > expected
        {
            return Err(Failure::last(Error::new(
                ErrorKind::Unsupported,
                format!("get '{full}' from {}: the server ignores ranges of reads", self.place),
            )));
        }
        let body = reply.body.collect().await.map_err(|e| self.place.broken_body(full, &e))?.into_bytes();
        if let Some(expected) = expected
            && body.len() as u64 != expected
        {
            return Err(Failure::last(self.too_short(full, body.len() as u64, expected)));
        }
        Ok(body)
    }

    fn too_short(&self, full: &str, got: u64, expected: u64) -> Error {
        Error::corrupt(format!(
            "get '{full}' from {}: {expected} bytes were asked for, the object has only {got} there",
            self.place
        ))
    }

    async fn read(&self, full: &str, range: Option<Range<u64>>) -> Result<Bytes> {
        self.retry.run(|_| self.get_once(full, range.clone())).await
    }

    async fn head_once(&self, full: &str) -> Result<Option<u64>, Failure> {
        let sent = self.client.head_object().bucket(&self.place.bucket).key(full).send().await;
        match sent {
            Ok(reply) => match reply.content_length.and_then(|len| u64::try_from(len).ok()) {
                Some(len) => Ok(Some(len)),
                None => Err(Failure::last(Error::corrupt(format!(
                    "look up '{full}' in {}: the server gave no length",
                    self.place
                )))),
            },
            Err(e) if e.raw_response().is_some_and(|r| r.status().as_u16() == 404) => {
                // The reply of a HEAD has no body that could tell a missing object from a missing
                // bucket, and an object must not be called absent when all of them are away.
                self.absent_or_not(full).await
            }
            Err(e) => Err(self.place.failure("look up", full, e)),
        }
    }

    async fn absent_or_not(&self, full: &str) -> Result<Option<u64>, Failure> {
        let request = self.client.get_object().bucket(&self.place.bucket).key(full);
        match request.send().await {
            // It appeared meanwhile; the body is dropped unread.
            Ok(reply) => Ok(reply.content_length.and_then(|len| u64::try_from(len).ok())),
            Err(e) => match self.place.failure("look up", full, e) {
                failure if failure.error.kind == ErrorKind::NotFound => Ok(None),
                failure => Err(failure),
            },
        }
    }

    /// The key is taken. After a lost reply that may be by this very put.
    async fn taken(&self, full: &str, data: &Bytes, attempt: u32) -> Result<(), Failure> {
        let conflict =
            || Failure::last(Error::conflict(format!("object '{full}' exists already in {}", self.place)));
        if attempt == 0 {
            return Err(conflict());
        }
        match self.get_once(full, None).await {
            Ok(stored) if stored == data => Ok(()),
            Ok(_) => Err(conflict()),
            // Deleted again in between: the key was taken when it counted.
            Err(failure) if failure.error.kind == ErrorKind::NotFound => Err(conflict()),
            Err(failure) => Err(failure),
        }
    }

    async fn put_if_absent_once(&self, full: &str, data: Bytes, attempt: u32) -> Result<(), Failure> {
        match self.put_once(full, data.clone(), true).await {
            Err(failure) if failure.error.kind == ErrorKind::Conflict => {
                self.taken(full, &data, attempt).await
            }
            outcome => outcome,
        }
    }

    /// Put-if-absent on a store that ignores the condition: right while nobody else writes.
    async fn put_alone_once(&self, full: &str, data: Bytes, attempt: u32) -> Result<(), Failure> {
        match self.head_once(full).await? {
            Some(_) => self.taken(full, &data, attempt).await,
            None => self.put_once(full, data, false).await,
        }
    }

    async fn delete_once(&self, full: &str) -> Result<(), Failure> {
        let sent = self.client.delete_object().bucket(&self.place.bucket).key(full).send().await;
        match sent.map_err(|e| self.place.failure("delete", full, e)) {
            Err(failure) if failure.error.kind == ErrorKind::NotFound => Ok(()),
            outcome => outcome.map(|_| ()),
        }
    }
}

#[async_trait]
impl ObjectStore for S3Store {
    async fn put(&self, key: &str, data: Bytes, precondition: Precondition) -> Result<()> {
        let full = self.full(key)?;
        match (precondition, &self.single_writer) {
            (Precondition::None, _) => self.retry.run(|_| self.put_once(&full, data.clone(), false)).await,
            (Precondition::IfAbsent, None) => {
                self.retry.run(|attempt| self.put_if_absent_once(&full, data.clone(), attempt)).await
            }
            (Precondition::IfAbsent, Some(alone)) => {
                let _turn = alone.of(&full).lock().await;
                self.retry.run(|attempt| self.put_alone_once(&full, data.clone(), attempt)).await
            }
        }
    }

    async fn get(&self, key: &str) -> Result<Bytes> {
        self.read(&self.full(key)?, None).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        let full = self.full(key)?;
        if range.start > range.end {
            return Err(Error::corrupt(format!(
                "get '{full}' from {}: a range from {} to {}",
                self.place, range.start, range.end
            )));
        }
        if range.end - range.start > MAX_OBJECT_BYTES {
            return Err(Error::corrupt(format!(
                "get '{full}' from {}: a range of more than {MAX_OBJECT_BYTES} bytes",
                self.place
            )));
        }
        if range.is_empty() {
            // A range header can't say nothing.
            return match self.retry.run(|_| self.head_once(&full)).await? {
                Some(len) if range.end <= len => Ok(Bytes::new()),
                Some(len) => Err(self.too_short(&full, len, range.end)),
                None => Err(Error::not_found(format!("no object '{full}' in {}", self.place))),
            };
        }
        self.read(&full, Some(range)).await
    }

    async fn head(&self, key: &str) -> Result<Option<u64>> {
        let full = self.full(key)?;
        self.retry.run(|_| self.head_once(&full)).await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        delimiter: bool,
        limit: usize,
    ) -> Result<Listing> {
        check_prefix(prefix)?;
        self.list_page(prefix, after, delimiter, limit.clamp(1, 1000)).await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        let full = self.full(key)?;
        self.retry.run(|_| self.delete_once(&full)).await
    }

    fn describe(&self) -> String {
        let mut told = self.place.to_string();
        if !self.prefix.is_empty() {
            told.push_str(&format!(", prefix '{}'", self.prefix));
        }
        if self.single_writer.is_some() {
            told.push_str(
                " (WARNING: single_writer is set, so nothing keeps a second writer from overwriting objects here)",
            );
        }
        told
    }
}
