//! This process's folder in `.tmp/`. It is locked while the store is open, so that another one
//! that opens the same root removes only what dead processes left.

use super::tree::{make_dir, sync_dir};
use common::{Clock, Error, Result};
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// The folder in the root that holds what is not complete.
pub(super) const TEMP: &str = ".tmp";

pub(super) struct TempDir {
    path: PathBuf,
    next: AtomicU64,
    /// Holds the lock.
    _dir: File,
}

impl TempDir {
    /// Makes a folder of its own in `root/.tmp`, and removes those of dead processes.
    pub(super) fn create(root: &Path, clock: &dyn Clock) -> Result<Self> {
        let all = root.join(TEMP);
        let told = |e: std::io::Error| Error::io(format!("directory store {}", root.display()), &e);
        make_dir(&all).and_then(|()| sync_dir(root)).map_err(told)?;
        clean(&all).map_err(told)?;
        // A cleaner may take the new folder for a dead one until it is locked: then once more.
        for _ in 0..16 {
            let path = all.join(format!("{:016x}", clock.random()));
            match std::fs::create_dir(&path) {
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => continue,
                outcome => outcome.map_err(told)?,
            }
            let Ok(dir) = File::open(&path) else { continue };
            match dir.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => continue,
                // A file system without locks: then nobody cleans either.
                Err(TryLockError::Error(e)) => {
                    tracing::warn!(path = %path.display(), error = %e, "no lock on the temporary files");
                }
            }
            if path.is_dir() {
                return Ok(Self { path, next: AtomicU64::new(0), _dir: dir });
            }
        }
        Err(Error::unavailable(format!(
            "directory store {}: another process keeps removing the temporary files; only one router may use it",
            root.display()
        )))
    }

    /// A new name for a file.
    pub(super) fn next(&self) -> PathBuf {
        self.path.join(self.next.fetch_add(1, Ordering::Relaxed).to_string())
    }

    pub(super) fn is_there(&self) -> bool {
        self.path.is_dir()
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        // What can't be removed now is removed by the next open.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// Removes the folders in `.tmp` that no living process has locked.
fn clean(all: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(all)? {
        let path = entry?.path();
        let Ok(dir) = File::open(&path) else { continue };
        if dir.try_lock().is_err() {
            continue;
        }
        let outcome =
            if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        if let Err(e) = outcome {
            tracing::warn!(path = %path.display(), error = %e, "a leftover temporary file stays");
        }
    }
    Ok(())
}
