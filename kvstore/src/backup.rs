//! Backup and restore of the replicated registry.
//!
//! | room | what |
//! |---|---|
//! | `file` | the file: parts with checksums, and an end that tells how much there is |
//! | `restored` | what a restored registry says about itself |
//!
//! A backup is the state of one member at one moment, streamed from a frozen view while it goes on. A restore makes a group of
//! one member from it, with an identity of its own: whatever the lost registry gave out after the backup must not be
//! taken for what the new one gives out. So its revisions begin far behind, nobody's sessions and leases are in it, and
//! for a quiet time no lease is granted and none counts as ended: holders of leases of the lost registry stop
//! believing in them meanwhile.
//!
//! Does not own: what the statuses in it are worth now (the layer above asks [`Client::restored`](crate::Client::restored)).

mod file;
mod restored;
#[cfg(test)]
mod tests;

pub use restored::{RESTORED_KEY, Restored};

use crate::machine::layout::{Configuration, HEAD_KEY, Meta, RESTORING_KEY, decode_pair, encode_pair};
use crate::machine::staging::{Frozen, Staging, records};
use crate::machine::{LeaseId, MAX_KEY_BYTES, MAX_TTL_MS, MAX_VALUE_BYTES, RocksState, StateStore};
use crate::table::RocksSettings;
use bytes::Bytes;
use common::disk::local::sync_dir;
use common::table::Batch;
use common::{Clock, Error, Result, blocking};
use file::{Head, Source};
use std::fs::File;
use std::io::{BufReader, BufWriter, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Between the last revision of a backup and the first one after it is restored: more than a registry gives in its life.
const REVISIONS_LATER: u64 = 1 << 32;
/// The entry that the restored state counts as.
const FIRST: u64 = 1;

/// What a backup holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupInfo {
    /// The group that it is of.
    pub group: u128,
    /// The last entry in it.
    pub index: u64,
    /// The last revision in it.
    pub revision: u64,
    /// When it was made, by the clock of its member: milliseconds since 1970.
    pub made_ms: u64,
    /// Bytes of its content.
    pub bytes: u64,
}

/// How a registry is made from a backup.
pub struct RestoreConfig {
    /// The backup.
    pub backup: PathBuf,
    /// The folder of its first member: missing or empty.
    pub dir: PathBuf,
    /// Its id.
    pub member: u64,
    /// Where others reach it.
    pub address: String,
    /// For how long no lease is granted, and none counts as ended: the longest time to live of a lease of the lost
    /// registry, and what clocks may differ.
    pub quiet: Duration,
    /// How its state uses memory.
    pub rocks: RocksSettings,
}

/// Writes `frozen` of `group` to a new file at `path`; it has its name when all of it is durable.
pub(crate) fn write_to(path: &Path, frozen: &Frozen, group: u128, made_ms: u64) -> Result<BackupInfo> {
    let what = || format!("writing the backup {}", path.display());
    if path.exists() {
        return Err(Error::conflict(format!("{}: there is a file already", what())));
    }
    let mut name = path.as_os_str().to_os_string();
    name.push(".part");
    let part = PathBuf::from(name);
    let file = File::create(&part).map_err(|e| Error::io(what(), &e))?;
    let head = Head { group, index: frozen.meta().index, revision: frozen.meta().revision, made_ms };
    let mut out = BufWriter::with_capacity(1 << 20, file);
    let written = file::write(&mut out, &head, frozen).and_then(|bytes| {
        let file = out.into_inner().map_err(|e| Error::io(what(), e.error()))?;
        file.sync_all().map_err(|e| Error::io(what(), &e))?;
        // Renaming replaces; two backups to one name at a time are nobody's wish.
        std::fs::rename(&part, path).map_err(|e| Error::io(what(), &e))?;
        sync_dir(path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")))?;
        Ok(bytes)
    });
    if written.is_err() {
        let _ = std::fs::remove_file(&part);
    }
    Ok(BackupInfo { group, index: head.index, revision: head.revision, made_ms, bytes: written? })
}

/// Reads all of a backup, and says what it holds.
///
/// Errors: `Corrupt` when it is damaged or not whole; `Unsupported`.
pub async fn verify(path: PathBuf) -> Result<BackupInfo> {
    blocking::run(move || {
        let mut source = open(&path)?;
        let head = source.head();
        let mut bytes = 0;
        while let Some(part) = source.next()? {
            bytes += part.len() as u64;
            for record in records(part) {
                record?;
            }
        }
        let Head { group, index, revision, made_ms } = head;
        Ok(BackupInfo { group, index, revision, made_ms, bytes })
    })
    .await
}

/// Makes the folder of the first member of a new group from a backup. Started there with any [`Origin`](crate::Origin), it goes on
/// from what the backup has. When it fails or dies nothing can start there, and it may be tried again.
///
/// Errors: `Corrupt` when the backup is damaged, `Conflict` when there is something in the folder, `Invalid`.
pub async fn restore(config: RestoreConfig, clock: Arc<dyn Clock>) -> Result<Restored> {
    let (incarnation, now) = (clock.random_u128(), clock.unix_time());
    blocking::run(move || {
        let source = open(&config.backup)?;
        if config.dir.join("log").exists() {
            return Err(Error::conflict(format!("{} has a registry's log", config.dir.display())));
        }
        let store: Arc<dyn StateStore> = Arc::new(RocksState::open(&config.dir, config.rocks)?);
        let restored = into(store, source, &config, incarnation, now)?;
        sync_dir(&config.dir)?;
        Ok(restored)
    })
    .await
}

fn open(path: &Path) -> Result<Source<BufReader<File>>> {
    let what = || format!("the backup {}", path.display());
    let file = File::open(path).map_err(|e| Error::io(what(), &e))?;
    Source::open(BufReader::with_capacity(1 << 20, file)).map_err(|e| e.context(what()))
}

fn into<R: Read>(
    store: Arc<dyn StateStore>,
    mut source: Source<R>,
    config: &RestoreConfig,
    incarnation: u128,
    now: Duration,
) -> Result<Restored> {
    let head = source.head();
    let quiet_ms = u64::try_from(config.quiet.as_millis()).unwrap_or(u64::MAX);
    if config.member == 0 || !(1..=MAX_TTL_MS).contains(&quiet_ms) || config.address.is_empty() {
        return Err(Error::invalid(format!(
            "a restored registry needs a member that is not 0, an address, and a quiet time of 1 to {MAX_TTL_MS} ms"
        )));
    }
    if store.get(HEAD_KEY)?.is_some() {
        return Err(Error::conflict(format!("{} has a registry already", config.dir.display())));
    }
    let revision = head.revision.checked_add(REVISIONS_LATER);
    let revision = revision.ok_or_else(|| Error::corrupt("the backup has a revision that nobody gave"))?;
    // From now on a start in this folder is refused until there is all of it.
    let mut batch = Batch::default();
    batch.put(RESTORING_KEY, b"1".to_vec());
    store.write(batch)?;
    store.checkpoint()?;
    let staging = Staging::begin(store.clone(), 1)?;
    let mut before = Vec::new();
    while let Some(part) = source.next()? {
        let mut batch = Batch::default();
        for record in records(part) {
            let (key, value) = record?;
            if key[..] <= before[..] {
                return Err(Error::corrupt("the backup's records are not in order"));
            }
            before = key.to_vec();
            if let Some(stored) = kept(&key, value, head.revision)? {
                staging.put(&mut batch, b'k', &key[1..], stored);
            }
        }
        store.write(batch)?;
    }
    let restored = Restored {
        incarnation,
        from: head.group,
        from_revision: head.revision,
        from_ms: head.made_ms,
        revision,
        at_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
        guard: LeaseId(revision),
    };
    let mut batch = Batch::default();
    staging.put(
        &mut batch,
        b'k',
        RESTORED_KEY.as_bytes(),
        encode_pair(revision, None, restored.to_string().as_bytes()),
    );
    staging.put(&mut batch, b'r', b"", restored.encode());
    staging.put(&mut batch, b'l', &restored.guard.0.to_be_bytes(), quiet_ms.to_le_bytes().to_vec().into());
    staging.put(&mut batch, b'n', &config.member.to_be_bytes(), config.address.clone().into());
    store.write(batch)?;
    let configuration = Configuration { voters: vec![config.member], ..Configuration::default() };
    let (index, term, installed) = (FIRST, 1, FIRST);
    staging.set_meta(&Meta {
        index,
        term,
        installed,
        revision,
        history_from: revision + 1,
        configuration,
    })?;
    staging.activate(incarnation, config.member)?;
    Ok(restored)
}

/// The pair that a record of a backup is, unless it belongs to what ended with the lost registry.
fn kept(key: &Bytes, value: Bytes, revision: u64) -> Result<Option<Bytes>> {
    let text = match key.split_first() {
        Some((b'k', key)) => std::str::from_utf8(key).ok().filter(|k| (1..=MAX_KEY_BYTES).contains(&k.len())),
        Some((b'b' | b'h' | b'l' | b'm' | b'n' | b'r' | b's' | b'x', _)) => return Ok(None),
        _ => return Err(Error::corrupt("the backup has a record of an unknown kind")),
    };
    let text = text.ok_or_else(|| Error::corrupt("the backup has a key that can't be one"))?;
    let (pair, lease) = decode_pair(text, value)?;
    if pair.revision > revision || pair.value.len() > MAX_VALUE_BYTES {
        return Err(Error::corrupt(format!("the backup has a pair that can't be, of key '{text}'")));
    }
    Ok(lease.is_none().then(|| encode_pair(pair.revision, None, &pair.value)))
}

/// The decoder of backups, for fuzzers: whatever the bytes are, it returns.
pub(crate) fn read_all(bytes: &[u8]) -> Result<u64> {
    let mut source = Source::open(bytes)?;
    let (revision, mut pairs) = (source.head().revision, 0);
    while let Some(part) = source.next()? {
        for record in records(part) {
            let (key, value) = record?;
            pairs += u64::from(kept(&key, value, revision)?.is_some());
        }
    }
    Ok(pairs)
}
