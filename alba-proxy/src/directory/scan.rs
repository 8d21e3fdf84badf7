//! Listings: a walk over the folders in the order of the keys, without those that can't matter.
//!
//! The order of keys is not the order of names: a folder `a` stands for keys that begin with `a/`,
//! and `a.b` sorts before them. So the names of a folder are sorted with that slash.
//!
//! The names of a folder are read at once. Those of big folders are remembered for the next page,
//! until something in that folder changes. Each folder has (by hash) a counter that every change
//! raises before it returns; and what another process changes gives the folder another time of
//! modification. So a listing that begins after a change sees it, whoever made the change.

use super::temp::TEMP;
use common::Clock;
use common::object::{Listing, ObjectMeta};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// A folder with more names than this is remembered.
const BIG: usize = 1000;
/// That many big folders.
const REMEMBERED: usize = 4;
const COUNTERS: usize = 1024;
/// More than a tick of the clock that stamps folders: a change that comes so long after the last one has
/// another stamp.
const TICK: Duration = Duration::from_millis(20);

/// The names of one folder in the order of their keys; those of folders end with a slash.
type Names = Arc<Vec<Box<str>>>;

struct Snapshot {
    dir: PathBuf,
    change: u64,
    modified: SystemTime,
    names: Names,
}

pub(super) struct Scanner {
    changes: Box<[AtomicU64]>,
    hasher: RandomState,
    remembered: Mutex<VecDeque<Snapshot>>,
    clock: Arc<dyn Clock>,
}

/// What is left of one page.
struct Page<'a> {
    prefix: &'a str,
    after: Option<&'a str>,
    delimiter: bool,
    limit: usize,
    listing: Listing,
    last: String,
}

impl Page<'_> {
    /// Whether there is room for `key`; if not, the listing says where to go on.
    fn room(&mut self, key: &str) -> bool {
        if self.listing.objects.len() + self.listing.prefixes.len() == self.limit {
            self.listing.next = Some(std::mem::take(&mut self.last));
            return false;
        }
        self.last = key.to_string();
        true
    }

    fn is_before(&self, key: &str) -> bool {
        self.after.is_some_and(|after| key <= after)
    }
}

impl Scanner {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            changes: (0..COUNTERS).map(|_| AtomicU64::new(0)).collect(),
            hasher: RandomState::new(),
            remembered: Mutex::new(VecDeque::new()),
            clock,
        }
    }

    fn counter(&self, dir: &Path) -> &AtomicU64 {
        &self.changes[self.hasher.hash_one(dir) as usize % COUNTERS]
    }

    /// A name in `dir` was put or removed.
    pub(super) fn changed(&self, dir: &Path) {
        self.counter(dir).fetch_add(1, Ordering::SeqCst);
    }

    /// One page of a listing, as `ObjectStore::list` says.
    pub(super) fn page(
        &self,
        root: &Path,
        prefix: &str,
        after: Option<&str>,
        delimiter: bool,
        limit: usize,
    ) -> std::io::Result<Listing> {
        let limit = limit.clamp(1, 1000);
        let mut page =
            Page { prefix, after, delimiter, limit, listing: Listing::default(), last: String::new() };
        // Every key of the listing is in the folder of the prefix's last slash.
        let base = prefix.rfind('/').map_or("", |slash| &prefix[..=slash]);
        self.walk(root, base, &mut page)?;
        Ok(page.listing)
    }

    /// Adds what is in the folder `dir` (empty, or ends with a slash). False when the page is full.
    fn walk(&self, root: &Path, dir: &str, page: &mut Page<'_>) -> std::io::Result<bool> {
        let path = root.join(dir);
        let names = self.names(&path, dir.is_empty())?;
        let mut key = dir.to_string();
        // Names that sort before the one that holds `after` are skipped at once.
        let start = match page.after.and_then(|after| after.strip_prefix(dir)) {
            Some(rest) => names.partition_point(|name| {
                &**name <= rest && !(name.ends_with('/') && rest.starts_with(&**name))
            }),
            None => 0,
        };
        for name in &names[start..] {
            key.truncate(dir.len());
            key.push_str(name);
            let inside = key.starts_with(page.prefix);
            if !name.ends_with('/') {
                if !inside || page.is_before(&key) {
                    continue;
                }
                let len = match std::fs::symlink_metadata(path.join(&**name)) {
                    Ok(meta) => meta.len(),
                    Err(e) if is_gone(&e) => continue,
                    Err(e) => return Err(e),
                };
                if !page.room(&key) {
                    return Ok(false);
                }
                page.listing.objects.push(ObjectMeta { key: key.clone(), len });
                continue;
            }
            if !inside && !page.prefix.starts_with(&key) {
                continue;
            }
            if page.is_before(&key) && page.after.is_some_and(|after| !after.starts_with(&key)) {
                continue;
            }
            if page.delimiter && inside {
                if page.is_before(&key) || !self.holds_file(root, &key)? {
                    continue;
                }
                if !page.room(&key) {
                    return Ok(false);
                }
                page.listing.prefixes.push(key.clone());
            } else if !self.walk(root, &key, page)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether there is an object in the folder: a crash or a put in flight leaves empty ones.
    fn holds_file(&self, root: &Path, dir: &str) -> std::io::Result<bool> {
        for name in self.names(&root.join(dir), false)?.iter() {
            if !name.ends_with('/') || self.holds_file(root, &format!("{dir}{name}"))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn names(&self, path: &Path, root: bool) -> std::io::Result<Names> {
        let change = self.counter(path).load(Ordering::SeqCst);
        let modified = match std::fs::metadata(path).and_then(|meta| meta.modified()) {
            Ok(modified) => modified,
            Err(e) if is_gone(&e) => return Ok(Names::default()),
            Err(e) => return Err(e),
        };
        {
            let mut remembered = self.remembered.lock();
            if let Some(at) = remembered.iter().position(|s| s.dir == path) {
                if (remembered[at].change, remembered[at].modified) == (change, modified) {
                    return Ok(remembered[at].names.clone());
                }
                remembered.remove(at);
            }
        }
        let begin = SystemTime::UNIX_EPOCH + self.clock.unix_time();
        let names: Names = Arc::new(read_names(path, root)?);
        let settled = begin.duration_since(modified).is_ok_and(|age| age > TICK);
        if names.len() > BIG && settled {
            let mut remembered = self.remembered.lock();
            if remembered.len() >= REMEMBERED {
                remembered.pop_front();
            }
            let dir = path.to_path_buf();
            remembered.push_back(Snapshot { dir, change, modified, names: names.clone() });
        }
        Ok(names)
    }
}

fn is_gone(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)
}

fn read_names(path: &Path, root: bool) -> std::io::Result<Vec<Box<str>>> {
    let mut names = Vec::new();
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(e) if is_gone(&e) => return Ok(names),
        Err(e) => return Err(e),
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        // What has no name of ours is not ours, `lost+found` for one.
        let Some(name) = name.to_str().filter(|name| crate::key::check_key(name).is_ok()) else { continue };
        let kind = match entry.file_type() {
            Ok(kind) => kind,
            Err(e) if is_gone(&e) => continue,
            Err(e) => return Err(e),
        };
        if kind.is_dir() && !(root && name == TEMP) {
            names.push(format!("{name}/").into_boxed_str());
        } else if kind.is_file() {
            names.push(name.into());
        }
    }
    names.sort_unstable();
    Ok(names)
}
