//! What a restored registry says about itself.

use crate::machine::LeaseId;
use crate::wire::{Reader, Writer};
use bytes::Bytes;
use common::Result;
use std::fmt;

/// The key under which a restored registry says so, in words that [`Restored::parse`] reads. Whoever relies on statuses in the
/// registry watches it: what they say was true when the backup was made.
pub const RESTORED_KEY: &str = "kvstore/restored";

/// That a registry was made from a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restored {
    /// Its incarnation, which is its group: a new one with each restore.
    pub incarnation: u128,
    /// The group that the backup is of.
    pub from: u128,
    /// The last revision in the backup; whatever that group did later is lost.
    pub from_revision: u64,
    /// When the backup was made: milliseconds since 1970.
    pub from_ms: u64,
    /// The revision of the restore. What is of an earlier one came from the backup.
    pub revision: u64,
    /// When it was restored: milliseconds since 1970.
    pub at_ms: u64,
    /// While this lease lives no other one is granted, and none counts as ended. It ends by itself; who knows that nobody
    /// of before is left may revoke it.
    pub guard: LeaseId,
}

impl fmt::Display for Restored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "restored\nincarnation {:032x}\nfrom {:032x}\nfrom_revision {}\nfrom_ms {}\nrevision {}\nat_ms {}\nguard {}\n",
            self.incarnation,
            self.from,
            self.from_revision,
            self.from_ms,
            self.revision,
            self.at_ms,
            self.guard.0
        )
    }
}

impl Restored {
    /// What the value of [`RESTORED_KEY`] says.
    pub fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let mut field = |name: &str| lines.next()?.strip_prefix(name).map(str::trim);
        field("restored")?;
        let long = |text: &str| u128::from_str_radix(text, 16).ok();
        Some(Self {
            incarnation: long(field("incarnation ")?)?,
            from: long(field("from ")?)?,
            from_revision: field("from_revision ")?.parse().ok()?,
            from_ms: field("from_ms ")?.parse().ok()?,
            revision: field("revision ")?.parse().ok()?,
            at_ms: field("at_ms ")?.parse().ok()?,
            guard: LeaseId(field("guard ")?.parse().ok()?),
        })
    }

    pub(crate) fn encode(&self) -> Bytes {
        let mut w = Writer::new();
        w.u128(self.incarnation).u128(self.from).u64(self.from_revision).u64(self.from_ms);
        w.u64(self.revision).u64(self.at_ms).u64(self.guard.0);
        w.finish()
    }

    pub(crate) fn decode(bytes: Bytes) -> Result<Self> {
        let mut r = Reader::new(bytes, "replicated registry: where it was restored from");
        let restored = Self {
            incarnation: r.u128()?,
            from: r.u128()?,
            from_revision: r.u64()?,
            from_ms: r.u64()?,
            revision: r.u64()?,
            at_ms: r.u64()?,
            guard: LeaseId(r.u64()?),
        };
        r.end()?;
        Ok(restored)
    }
}
