//! The storage daemon's door: one disk that keeps values by key, changes several of them at once or none, and verifies
//! what it reads.
//!
//! A key is any 1 to [`MAX_KEY`] bytes, ordered as bytes. What the keys mean is the caller's business.

use crate::crc::crc32c;
use crate::error::{Error, Result};
use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::time::Duration;

/// The longest key, in bytes.
pub const MAX_KEY: usize = 1024;
/// The largest value, in bytes.
pub const MAX_VALUE: usize = 32 << 20;
/// The largest value that an assert compares with, in bytes.
pub const MAX_ASSERTED: usize = 4096;
/// Asserts, sets and deletes of one request, together.
pub const MAX_CHANGES: usize = 1024;
/// Bytes of all keys and values of one request.
pub const MAX_APPLY: usize = 48 << 20;
/// Keys that one page of [`Osd::range`] or [`Osd::verify`] has, at most.
pub const MAX_PAGE: usize = 4096;
/// Keys of one [`Osd::multi_get`].
pub const MAX_KEYS: usize = 256;
/// The unit of verified reading: each has a checksum of its own on the disk.
pub const BLOCK: usize = 4096;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u128);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }

        impl FromStr for $name {
            type Err = Error;
            fn from_str(s: &str) -> Result<Self> {
                let digits = s.len() == 32 && s.bytes().all(|b| b.is_ascii_hexdigit());
                let id = digits.then(|| u128::from_str_radix(s, 16).ok()).flatten();
                id.map($name).ok_or_else(|| {
                    Error::invalid(format!("'{}' is not {} (32 hexadecimal digits)", s.escape_debug(), $what))
                })
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

id!(
    /// The random identity of a disk, made when it was formatted. A client names the one that it means.
    OsdId,
    "the id of an OSD"
);
id!(
    /// The identity of a backend, the one user that a disk may have.
    BackendId,
    "the id of a backend"
);

/// Who is served first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Priority {
    /// Somebody waits for it.
    Client,
    /// Repair, rebalancing, verifying: gets what clients leave, and a small share in any case.
    Maintenance,
}

/// How a request is to be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// Before or behind whom.
    pub priority: Priority,
    /// How long the answer may take. A daemon that comes to it later answers without doing it.
    pub timeout: Duration,
}

impl Call {
    /// A request that a client waits for.
    pub fn client(timeout: Duration) -> Call {
        Call { priority: Priority::Client, timeout }
    }

    /// A request that can wait.
    pub fn maintenance(timeout: Duration) -> Call {
        Call { priority: Priority::Maintenance, timeout }
    }
}

/// What must hold for a request to happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Assert {
    /// There is no such key.
    Absent(Bytes),
    /// There is such a key.
    Present(Bytes),
    /// The key has this value, of at most [`MAX_ASSERTED`] bytes.
    Value(Bytes, Bytes),
}

impl Assert {
    /// The key that it is about.
    pub fn key(&self) -> &Bytes {
        match self {
            Assert::Absent(key) | Assert::Present(key) | Assert::Value(key, _) => key,
        }
    }
}

/// A value and its checksum, made where the value was made: it is checked wherever the value arrives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    /// The bytes.
    pub bytes: Bytes,
    /// CRC32C of them.
    pub crc: u32,
}

impl Value {
    /// The value of these bytes, which are summed here.
    pub fn new(bytes: impl Into<Bytes>) -> Value {
        let bytes = bytes.into();
        Value { crc: crc32c(&bytes), bytes }
    }

    /// Whether the bytes are those that were summed.
    pub fn is_whole(&self) -> bool {
        crc32c(&self.bytes) == self.crc
    }
}

/// What one request changes: all of it or nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// What must hold before.
    pub asserts: Vec<Assert>,
    /// Keys that get a value, no key twice.
    pub sets: Vec<(Bytes, Value)>,
    /// Keys that go, those that are not there too; none of them among the sets.
    pub deletes: Vec<Bytes>,
}

impl Changes {
    /// Nothing, to be added to.
    pub fn new() -> Changes {
        Changes::default()
    }

    /// Adds an assert.
    #[must_use]
    pub fn assert(mut self, assert: Assert) -> Changes {
        self.asserts.push(assert);
        self
    }

    /// Sets `key`.
    #[must_use]
    pub fn set(mut self, key: impl Into<Bytes>, value: Value) -> Changes {
        self.sets.push((key.into(), value));
        self
    }

    /// Removes `key`.
    #[must_use]
    pub fn delete(mut self, key: impl Into<Bytes>) -> Changes {
        self.deletes.push(key.into());
        self
    }

    /// Bytes of all keys and values.
    pub fn bytes(&self) -> usize {
        let asserts = self.asserts.iter().map(|a| match a {
            Assert::Value(key, value) => key.len() + value.len(),
            other => other.key().len(),
        });
        let sets = self.sets.iter().map(|(key, value)| key.len() + value.bytes.len());
        asserts.chain(sets).chain(self.deletes.iter().map(Bytes::len)).sum()
    }

    /// Says what can't be: sizes, a key that is changed twice, a value that is not the one that was summed.
    ///
    /// # Errors
    /// `Invalid`; `Corrupt` for a value that changed on its way.
    pub fn check(&self) -> Result<()> {
        let count = self.asserts.len() + self.sets.len() + self.deletes.len();
        if count > MAX_CHANGES {
            return Err(Error::invalid(format!(
                "{count} asserts and changes in one request: at most {MAX_CHANGES}"
            )));
        }
        let bytes = self.bytes();
        if bytes > MAX_APPLY {
            return Err(Error::invalid(format!("{bytes} bytes in one request: at most {MAX_APPLY}")));
        }
        for assert in &self.asserts {
            check_key(assert.key())?;
            if let Assert::Value(key, value) = assert
                && value.len() > MAX_ASSERTED
            {
                let key = shown(key);
                return Err(Error::invalid(format!(
                    "an assert compares {key} with {} bytes: at most {MAX_ASSERTED}",
                    value.len()
                )));
            }
        }
        let mut changed = std::collections::HashSet::new();
        for key in self.sets.iter().map(|(key, _)| key).chain(&self.deletes) {
            check_key(key)?;
            if !changed.insert(key) {
                return Err(Error::invalid(format!("key {} is changed twice in one request", shown(key))));
            }
        }
        for (key, value) in &self.sets {
            if value.bytes.len() > MAX_VALUE {
                let key = shown(key);
                return Err(Error::invalid(format!(
                    "the value of {key} has {} bytes: at most {MAX_VALUE}",
                    value.bytes.len()
                )));
            }
            if !value.is_whole() {
                return Err(Error::corrupt(format!(
                    "the value of {} is not the one that was sent",
                    shown(key)
                )));
            }
        }
        Ok(())
    }
}

/// Says what can't be a key.
///
/// # Errors
/// `Invalid`.
pub fn check_key(key: &[u8]) -> Result<()> {
    if (1..=MAX_KEY).contains(&key.len()) {
        return Ok(());
    }
    Err(Error::invalid(format!("a key of {} bytes: 1 to {MAX_KEY} are possible", key.len())))
}

/// A key as people read it: text as it is, anything else escaped, long ones cut.
pub fn shown(key: &[u8]) -> String {
    const MOST: usize = 96;
    let text = key[..key.len().min(MOST)].escape_ascii();
    if key.len() > MOST { format!("'{text}'...") } else { format!("'{text}'") }
}

/// Keys from one on to before another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyRange {
    /// The first one.
    pub from: Bytes,
    /// The first one behind; `None`: to the end.
    pub to: Option<Bytes>,
}

impl KeyRange {
    /// All keys.
    pub fn all() -> KeyRange {
        KeyRange::default()
    }

    /// All keys that begin with `prefix`.
    pub fn prefix(prefix: &[u8]) -> KeyRange {
        let kept = prefix.iter().rposition(|byte| *byte != 0xff);
        let to = kept.map(|kept| {
            let mut end = prefix[..=kept].to_vec();
            end[kept] += 1;
            Bytes::from(end)
        });
        KeyRange { from: Bytes::copy_from_slice(prefix), to }
    }

    /// The same, from `next` on: what [`KeyPage::next`] said.
    #[must_use]
    pub fn onward(&self, next: Bytes) -> KeyRange {
        KeyRange { from: next, to: self.to.clone() }
    }

    /// Whether `key` is in it.
    pub fn contains(&self, key: &[u8]) -> bool {
        key >= &self.from[..] && self.to.as_ref().is_none_or(|to| key < &to[..])
    }
}

/// A key and what is known of its value without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyInfo {
    /// The key.
    pub key: Bytes,
    /// Bytes of the value.
    pub len: u64,
    /// CRC32C of the value.
    pub crc: u32,
}

/// Some keys of a range, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyPage {
    /// The keys.
    pub keys: Vec<KeyInfo>,
    /// Where to go on; `None`: that was all.
    pub next: Option<Bytes>,
}

/// A value that can't be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Its key.
    pub key: Bytes,
    /// What is wrong with it.
    pub why: String,
}

/// What a daemon found when it read some values of a range.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    /// Values that were read.
    pub keys: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Those that are not what was stored.
    pub damaged: Vec<Damage>,
    /// Where to go on; `None`: that was all.
    pub next: Option<Bytes>,
}

/// What a daemon does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OsdState {
    /// Everything.
    Serving,
    /// It reads, and takes nothing any more: why.
    ReadOnly(String),
}

/// Where the bytes of a disk are. `segments + table + reserved + free` is `capacity`, unless it was made smaller than what
/// there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OsdSpace {
    /// What the daemon may take.
    pub capacity: u64,
    /// What segments take, whatever is in them.
    pub segments: u64,
    /// Of that: values, rounded up to blocks.
    pub live: u64,
    /// Of that: deleted and not given back yet, or the end of a segment that no value fitted into.
    pub dead: u64,
    /// Of that: not yet written.
    pub open: u64,
    /// What records and small values count for in the table.
    pub table: u64,
    /// Kept for giving space back, and for the table's own work.
    pub reserved: u64,
    /// What nothing has taken.
    pub free: u64,
    /// Whether sets are refused for want of space.
    pub full: bool,
}

/// How far a daemon has come with reading everything by itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubStatus {
    /// Rounds that were finished.
    pub rounds: u64,
    /// Values that were read in this round.
    pub keys: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Share of this round that is done, in thousandths.
    pub done_permille: u16,
    /// When this round began, in seconds of Unix time.
    pub began: u64,
}

/// How long something took, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LatencyStatus {
    /// How often.
    pub count: u64,
    /// Half of them took no longer.
    pub p50: u64,
    /// 99 of 100 took no longer.
    pub p99: u64,
    /// The longest.
    pub max: u64,
}

/// What a daemon says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OsdStatus {
    /// Which disk.
    pub id: OsdId,
    /// Whose.
    pub claimed_by: Option<BackendId>,
    /// What it does.
    pub state: OsdState,
    /// Where its bytes are.
    pub space: OsdSpace,
    /// Keys.
    pub keys: u64,
    /// Bytes of all values as they were given.
    pub bytes: u64,
    /// Values that are known to be damaged: some of them, by name.
    pub damaged: Vec<Damage>,
    /// How many there are.
    pub damaged_keys: u64,
    /// Reading everything, by itself.
    pub scrub: ScrubStatus,
    /// Changes, from request to durable.
    pub apply: LatencyStatus,
    /// Reads.
    pub get: LatencyStatus,
    /// What it counted since it started, by name.
    pub counters: Vec<(String, u64)>,
}

/// One disk that keeps values by key.
///
/// Errors of all: `Unavailable` (away, another disk in its place, its disk failed, too late: what it did is unknown, and
/// asking again is safe), `Denied` (claimed by another backend, or by none).
#[async_trait]
pub trait Osd: Send + Sync {
    /// Checks every assert and then makes every change, all or nothing; durable when it returns.
    ///
    /// Safe to ask again: when an assert fails that is about a key that this request changes, and all that it changes is
    /// already as it wants it, that is a success. (Who must know that it was he, writes something of his own.)
    ///
    /// # Errors
    /// `Conflict`: an assert does not hold, by name. `NoSpace`: a set found no room; deletes always do.
    async fn apply(&self, call: Call, changes: Changes) -> Result<()>;

    /// The value of `key`, verified; `None`: there is none.
    ///
    /// # Errors
    /// `Corrupt`: it can't be read as it was stored.
    async fn get(&self, call: Call, key: &[u8]) -> Result<Option<Value>>;

    /// Bytes `range` of the value of `key`, verified; of the disk only the blocks that they touch are read.
    ///
    /// # Errors
    /// `Corrupt`: a block of them can't be read as it was stored. `Invalid`: it goes beyond the end.
    async fn get_range(&self, call: Call, key: &[u8], range: Range<u64>) -> Result<Option<Bytes>>;

    /// The values of several keys, at most [`MAX_KEYS`], in one request.
    ///
    /// # Errors
    /// `Invalid`: all together are larger than [`MAX_VALUE`]. `Corrupt`: one of them is damaged.
    async fn multi_get(&self, call: Call, keys: &[Bytes]) -> Result<Vec<Option<Value>>>;

    /// Up to `limit` keys of `range`, at most [`MAX_PAGE`].
    async fn range(&self, call: Call, range: KeyRange, limit: usize) -> Result<KeyPage>;

    /// Reads values of `range` where they lie, up to `limit` of them or for as long as the call may take.
    async fn verify(&self, call: Call, range: KeyRange, limit: usize) -> Result<Verified>;

    /// What the disk says of itself. Anybody may ask.
    async fn status(&self, call: Call) -> Result<OsdStatus>;

    /// Makes `to` the backend of this disk if `from` is it now. Anybody may ask.
    ///
    /// # Errors
    /// `Conflict`: another one is.
    async fn claim(&self, call: Call, from: Option<BackendId>, to: Option<BackendId>) -> Result<()>;

    /// A text that tells a person which disk this is.
    fn describe(&self) -> String;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    #[test]
    fn what_can_not_be_asked_for_is_named() {
        let value = || Value::new("x");
        let said = |c: Changes| c.check().unwrap_err().message().to_owned();
        assert!(
            said(Changes::new().set(key("a"), value()).delete(key("a"))).contains("'a' is changed twice")
        );
        assert!(said(Changes::new().delete(Bytes::new())).contains("a key of 0 bytes"));
        assert!(said(Changes::new().delete(vec![0; MAX_KEY + 1])).contains("a key of 1025 bytes"));
        let long = Assert::Value(key("a"), vec![0; MAX_ASSERTED + 1].into());
        assert!(said(Changes::new().assert(long)).contains("4097 bytes"));
        assert!(said(Changes::new().set(key("a"), Value::new(vec![0; MAX_VALUE + 1]))).contains("33554433"));
        let flipped = Value { bytes: key("y"), crc: value().crc };
        assert_eq!(
            Changes::new().set(key("a"), flipped).check().unwrap_err().kind,
            crate::ErrorKind::Corrupt
        );
        let many = Changes {
            deletes: (0..2000u32).map(|n| n.to_be_bytes().to_vec().into()).collect(),
            ..Changes::new()
        };
        assert!(said(many).contains("at most 1024"));
        Changes::new().set(key("a"), value()).assert(Assert::Absent(key("a"))).check().unwrap();
    }

    #[test]
    fn a_prefix_is_the_keys_that_begin_with_it() {
        let range = KeyRange::prefix(b"a\xff");
        assert!(range.contains(b"a\xff") && range.contains(b"a\xff\xff\xff"));
        assert!(!range.contains(b"a\xfe") && !range.contains(b"b"));
        assert!(KeyRange::prefix(b"\xff").contains(b"\xff\xff") && KeyRange::all().contains(b"x"));
        assert_eq!("0123456789abcdef0123456789abcdef".parse::<OsdId>().unwrap().to_string().len(), 32);
        assert!("+123456789abcdef0123456789abcdef".parse::<OsdId>().is_err());
    }
}
