//! Names of objects on the store, both ways. All numbers are hexadecimal and of fixed width, so
//! that names sort as numbers do; a Manifest's number is turned round, so that the newest lists first.

use super::envelope::{ObjectKind, ObjectRef};
use super::sco::ScoId;
use common::{Epoch, Error, Result, VolumeId};
use std::fmt;

/// Name of the `vpool` object.
pub const POOL: &str = "vpool";

/// What a name means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Key {
    /// The `vpool` object.
    Pool,
    /// A Manifest.
    Manifest {
        /// Whose.
        volume: VolumeId,
        /// Its number, ascending from 1.
        number: u64,
    },
    /// A SCO of the log.
    Sco {
        /// Whose.
        volume: VolumeId,
        /// Which.
        id: ScoId,
    },
    /// A relocation SCO.
    Reloc {
        /// Whose.
        volume: VolumeId,
        /// Which.
        id: ScoId,
    },
    /// A TLog.
    TLog {
        /// Whose.
        volume: VolumeId,
        /// Which.
        id: ScoId,
    },
    /// A list page or a page of snapshots.
    List {
        /// Whose.
        volume: VolumeId,
        /// Which.
        id: ScoId,
    },
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (volume, room, id) = match self {
            Key::Pool => return f.write_str(POOL),
            Key::Manifest { volume, number } => return write!(f, "{volume}/m/{:016x}", u64::MAX - number),
            Key::Sco { volume, id } => (volume, 's', id),
            Key::Reloc { volume, id } => (volume, 'r', id),
            Key::TLog { volume, id } => (volume, 't', id),
            Key::List { volume, id } => (volume, 'l', id),
        };
        write!(f, "{volume}/{room}/{:016x}/{:016x}", id.epoch.0, id.number)
    }
}

impl Key {
    /// Whose object it is; `None` for the `vpool` object.
    pub fn volume(&self) -> Option<VolumeId> {
        match *self {
            Key::Pool => None,
            Key::Manifest { volume, .. }
            | Key::Sco { volume, .. }
            | Key::Reloc { volume, .. }
            | Key::TLog { volume, .. }
            | Key::List { volume, .. } => Some(volume),
        }
    }
}

/// What the name `key` means; `Corrupt` for a name that we never give.
pub fn parse(key: &str) -> Result<Key> {
    let parsed = parse_any(key).filter(|parsed| parsed.to_string() == key);
    parsed.ok_or_else(|| {
        Error::corrupt(format!("'{}' is not the name of an object of ours", key.escape_debug()))
    })
}

fn parse_any(key: &str) -> Option<Key> {
    if key == POOL {
        return Some(Key::Pool);
    }
    let mut parts = key.split('/');
    let volume: VolumeId = parts.next()?.parse().ok()?;
    let room = parts.next()?;
    let first = hex(parts.next()?)?;
    let second = parts.next();
    if parts.next().is_some() {
        return None;
    }
    if room == "m" {
        return second.is_none().then_some(Key::Manifest { volume, number: u64::MAX - first });
    }
    let id = ScoId { epoch: Epoch(first), number: hex(second?)? };
    Some(match room {
        "s" => Key::Sco { volume, id },
        "r" => Key::Reloc { volume, id },
        "t" => Key::TLog { volume, id },
        "l" => Key::List { volume, id },
        _ => return None,
    })
}

fn hex(digits: &str) -> Option<u64> {
    u64::from_str_radix(digits, 16).ok()
}

/// The volume whose objects lie under `prefix` (`{volume}/`), as a listing with a delimiter gives it.
pub fn parse_volume_prefix(prefix: &str) -> Result<VolumeId> {
    let volume = prefix.strip_suffix('/').and_then(|v| v.parse::<VolumeId>().ok());
    volume
        .filter(|v| volume_prefix(*v) == prefix)
        .ok_or_else(|| Error::corrupt(format!("'{}' is not the place of a volume", prefix.escape_debug())))
}

/// Where all objects of a volume lie.
pub fn volume_prefix(volume: VolumeId) -> String {
    format!("{volume}/")
}

/// Where the Manifests of a volume lie, the newest first.
pub fn manifest_prefix(volume: VolumeId) -> String {
    format!("{volume}/m/")
}

/// Name of a Manifest.
pub fn manifest_key(volume: VolumeId, number: u64) -> String {
    Key::Manifest { volume, number }.to_string()
}

/// Where the SCOs of all epochs of a volume lie.
pub fn sco_volume_prefix(volume: VolumeId) -> String {
    format!("{volume}/s/")
}

/// Where the SCOs of one epoch of a volume lie.
pub fn sco_prefix(volume: VolumeId, epoch: Epoch) -> String {
    format!("{volume}/s/{:016x}/", epoch.0)
}

/// Name of a SCO, of the log or of a relocation.
pub fn sco_key(volume: VolumeId, id: ScoId) -> String {
    place(volume, id.kind(), id)
}

/// Name of a TLog.
pub fn tlog_key(volume: VolumeId, epoch: Epoch, number: u64) -> String {
    Key::TLog { volume, id: ScoId { epoch, number } }.to_string()
}

/// Name of a list page or of a page of snapshots: they share their numbers.
pub fn list_key(volume: VolumeId, epoch: Epoch, number: u64) -> String {
    Key::List { volume, id: ScoId { epoch, number } }.to_string()
}

/// Name of the object that `reference`, found in an object of `volume`, means.
pub fn object_key(volume: VolumeId, reference: &ObjectRef) -> String {
    place(volume, reference.kind, reference.id())
}

/// Name of the object of `kind` with `id`.
pub fn place(volume: VolumeId, kind: ObjectKind, id: ScoId) -> String {
    match kind {
        ObjectKind::Pool => Key::Pool,
        ObjectKind::Manifest => Key::Manifest { volume, number: id.number },
        ObjectKind::LogSco => Key::Sco { volume, id },
        ObjectKind::RelocSco => Key::Reloc { volume, id },
        ObjectKind::TLog => Key::TLog { volume, id },
        ObjectKind::ListPage | ObjectKind::SnapshotPage => Key::List { volume, id },
    }
    .to_string()
}

/// Input of a fuzzer.
pub fn fuzz(data: &[u8]) {
    if let Ok(key) = std::str::from_utf8(data) {
        if let Ok(volume) = parse_volume_prefix(key) {
            assert_eq!(volume_prefix(volume), key);
        }
        if let Ok(parsed) = parse(key) {
            assert_eq!(parsed.to_string(), key);
        }
    }
}
