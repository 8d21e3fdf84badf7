//! Folders: made durable before an object in them counts, and removed when the last one is gone.

use common::{Error, Result};
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use std::collections::HashSet;
use std::fs::{DirBuilder, File};
use std::io::ErrorKind as K;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Folders known to be durable, at most; then they are found out anew.
const KNOWN: usize = 4096;

/// Checks that the root is a folder, or creates it in an existing parent.
pub(super) fn open_root(root: &Path) -> Result<()> {
    let told = format!("directory store {}", root.display());
    match std::fs::metadata(root) {
        Ok(meta) if meta.is_dir() => return Ok(()),
        Ok(_) => return Err(Error::invalid(format!("{told}: this is not a directory"))),
        Err(e) if e.kind() == K::NotFound => {}
        Err(e) => return Err(Error::io(told, &e)),
    }
    let parent = root.parent().unwrap_or(root);
    if !parent.is_dir() {
        return Err(Error::not_found(format!(
            "{told}: its parent directory {} does not exist; create it (mkdir -p {}), or mount the disk that \
             should be there",
            parent.display(),
            parent.display()
        )));
    }
    match make_dir(root).and_then(|()| sync_dir(parent)) {
        Ok(()) => Ok(()),
        Err(e) => Err(Error::io(format!("{told}: create it"), &e)),
    }
}

/// Makes one folder; that it exists already is fine.
pub(super) fn make_dir(path: &Path) -> std::io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(e) if e.kind() == K::AlreadyExists => Ok(()),
        outcome => outcome,
    }
}

/// Makes the names in a folder durable.
pub(super) fn sync_dir(path: &Path) -> std::io::Result<()> {
    File::open(path)?.sync_all()
}

pub(super) struct Tree {
    root: PathBuf,
    /// Folders that exist and whose name is durable, up to the root.
    known: Mutex<HashSet<PathBuf>>,
    /// Shared: a name is being put into a folder. Exclusive: empty folders are being removed.
    shape: RwLock<()>,
}

impl Tree {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root, known: Mutex::new(HashSet::new()), shape: RwLock::new(()) }
    }

    /// Makes sure that `dir` exists durably, and that it stays until the guard is dropped.
    pub(super) fn keep(&self, dir: &Path) -> std::io::Result<RwLockReadGuard<'_, ()>> {
        let guard = self.shape.read();
        self.ensure(dir)?;
        Ok(guard)
    }

    fn ensure(&self, dir: &Path) -> std::io::Result<()> {
        // From the root down: the first that is not known to be durable may be new, or may have
        // been made by a put that has not synced its parent yet, so the parent is synced here.
        let Ok(relative) = dir.strip_prefix(&self.root) else { return Ok(()) };
        if self.known.lock().contains(dir) {
            return Ok(());
        }
        let mut at = self.root.clone();
        for part in relative {
            let parent = at.clone();
            at.push(part);
            if self.known.lock().contains(&at) {
                continue;
            }
            make_dir(&at)?;
            sync_dir(&parent)?;
            let mut known = self.known.lock();
            if known.len() >= KNOWN {
                known.clear();
            }
            known.insert(at.clone());
        }
        Ok(())
    }

    /// Folders are not where they were: from now on they are looked for.
    pub(super) fn forget(&self) {
        self.known.lock().clear();
    }

    /// Makes a removal from `dir` durable, and removes `dir` and its parents as far as they are empty.
    pub(super) fn tidy(&self, dir: &Path) -> std::io::Result<()> {
        let mut at = dir.to_path_buf();
        while at != self.root && at.starts_with(&self.root) {
            let removed = {
                let _alone = self.shape.write();
                match std::fs::remove_dir(&at) {
                    Ok(()) => {
                        self.known.lock().remove(&at);
                        true
                    }
                    Err(e) if e.kind() == K::NotFound => true,
                    // What keeps a folder from going is nobody's trouble.
                    Err(_) => false,
                }
            };
            if !removed {
                break;
            }
            at.pop();
        }
        match sync_dir(&at) {
            // Somebody else tidied it away.
            Err(e) if e.kind() == K::NotFound => Ok(()),
            outcome => outcome,
        }
    }
}
