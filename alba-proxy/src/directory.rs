//! The `directory` store: one folder of the local machine, one file per object.
//!
//! An object is put by writing a file in `.tmp/`, syncing it, and giving it its name: by `link`,
//! which fails when the name is taken, or by `rename`, which replaces. So an object is there whole
//! or not at all, of two racing puts one wins, and a crash leaves nothing but files in `.tmp/`.
//!
//! The folder belongs to one router. Two that open it do no harm to each other's puts in flight
//! (each has its own folder in `.tmp/`, locked while it lives), but an open file of an object that
//! the other one deletes or replaces is read until it falls out of the cache of open files.
//!
//! | room | what |
//! |---|---|
//! | `files` | the cache of open files, and reads |
//! | `tree` | folders: made durable, tidied when empty |
//! | `scan` | listings |
//! | `write` | a file, durably; a large one past the page cache |
//! | `temp` | this process's folder in `.tmp/`, and what dead ones left there |

mod files;
mod scan;
mod temp;
mod tree;
mod write;

use crate::key::{check_key, check_prefix};
use async_trait::async_trait;
use bytes::Bytes;
use common::object::{Haste, Listing, ObjectStore, Precondition};
use common::{Clock, Error, ErrorKind, Result};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// File names of Linux have at most this many bytes.
const MAX_PART_BYTES: usize = 255;

/// A folder of the local machine, as an object store.
pub struct DirectoryStore {
    inner: Arc<Inner>,
}

struct Inner {
    root: PathBuf,
    temp: temp::TempDir,
    files: files::Files,
    tree: tree::Tree,
    scan: scan::Scanner,
    writer: write::Writer,
}

impl DirectoryStore {
    /// Opens the folder `path`, which is created (mode 0700) when its parent exists. Blocks on the disk.
    ///
    /// Errors: `NotFound` when its parent does not exist, `Invalid` when it is no folder, `Denied`.
    pub fn open(path: &Path, clock: Arc<dyn Clock>) -> Result<Self> {
        let root = std::path::absolute(path)
            .map_err(|e| Error::io(format!("directory store '{}'", path.display()), &e))?;
        tree::open_root(&root)?;
        let temp = temp::TempDir::create(&root, &*clock)?;
        Ok(Self {
            inner: Arc::new(Inner {
                temp,
                files: files::Files::new(),
                tree: tree::Tree::new(root.clone()),
                scan: scan::Scanner::new(clock),
                writer: write::Writer::default(),
                root,
            }),
        })
    }

    /// Runs what may wait for the disk where waiting is allowed.
    async fn blocking<T: Send + 'static>(
        &self,
        what: impl FnOnce(&Inner) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let inner = self.inner.clone();
        common::blocking::run(move || what(&inner)).await
    }
}

impl Inner {
    fn path(&self, key: &str) -> Result<PathBuf> {
        check_key(key)?;
        if key == temp::TEMP || key.split_once('/').is_some_and(|(first, _)| first == temp::TEMP) {
            return Err(Error::invalid(format!(
                "object key '{key}': '{}' is where a directory store keeps what is not complete",
                temp::TEMP
            )));
        }
        if key.split('/').any(|part| part.len() > MAX_PART_BYTES) {
            return Err(Error::invalid(format!(
                "object key '{key}': in a directory store, a part between slashes has at most {MAX_PART_BYTES} bytes"
            )));
        }
        Ok(self.root.join(key))
    }

    fn fail(&self, what: &str, key: &str, error: &std::io::Error) -> Error {
        use std::io::ErrorKind as K;
        let told = format!("{what} '{key}' in directory store {}", self.root.display());
        match error.kind() {
            K::NotADirectory | K::IsADirectory => Error::invalid(format!(
                "{told}: the key of one object can't be a folder of another's in a directory store ({error})"
            )),
            K::StorageFull | K::QuotaExceeded => Error::new(
                ErrorKind::NoSpace,
                format!("{told}: no space left on its disk; free some, then it goes on ({error})"),
            ),
            K::ReadOnlyFilesystem => Error::new(ErrorKind::Denied, format!("{told}: {error}")),
            _ => Error::io(told, error),
        }
    }

    /// Nothing was found: told apart from a store that is gone, as when its disk is not mounted any more.
    fn absent(&self, key: &str) -> Error {
        match self.still_there() {
            Ok(()) => {
                Error::not_found(format!("no object '{key}' in directory store {}", self.root.display()))
            }
            Err(gone) => gone,
        }
    }

    fn still_there(&self) -> Result<()> {
        if self.temp.is_there() {
            return Ok(());
        }
        Err(Error::unavailable(format!(
            "directory store {}: its files are not there any more; is its disk still mounted?",
            self.root.display()
        )))
    }

    fn put(&self, key: &str, parts: &[Bytes], precondition: Precondition, haste: Haste) -> Result<()> {
        let path = self.path(key)?;
        let temp = self.temp.next();
        let outcome = self.writer.write(&temp, parts, haste).and_then(|()| {
            match self.name(&temp, &path, key, precondition) {
                // Another router that has this store too found the folder empty, and took it away.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                    self.tree.forget();
                    self.name(&temp, &path, key, precondition)
                }
                outcome => outcome,
            }
        });
        // After a rename it is gone already; otherwise it is of no use, whatever happened.
        if let Err(e) = std::fs::remove_file(&temp)
            && e.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %temp.display(), error = %e, "a temporary file stays behind");
        }
        match outcome {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                self.still_there()?;
                Err(Error::unavailable(format!(
                    "put '{key}' in directory store {}: its folder was removed meanwhile by someone else ({e})",
                    self.root.display()
                )))
            }
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                if path.is_dir() {
                    return Err(self.fail("put", key, &std::io::ErrorKind::IsADirectory.into()));
                }
                Err(Error::conflict(format!(
                    "object '{key}' exists already in directory store {}",
                    self.root.display()
                )))
            }
            Err(e) => Err(self.fail("put", key, &e)),
        }
    }

    fn name(&self, temp: &Path, path: &Path, key: &str, precondition: Precondition) -> std::io::Result<()> {
        let parent = path.parent().unwrap_or(&self.root);
        {
            let _kept = self.tree.keep(parent)?;
            match precondition {
                Precondition::IfAbsent => std::fs::hard_link(temp, path)?,
                Precondition::None => self.files.replace(key, || std::fs::rename(temp, path))?,
            }
        }
        self.scan.changed(parent);
        tree::sync_dir(parent).or_else(|e| match e.kind() {
            // Deleted again meanwhile, and its folder with it.
            std::io::ErrorKind::NotFound => Ok(()),
            _ => Err(e),
        })
    }

    fn delete(&self, key: &str) -> Result<()> {
        let path = self.path(key)?;
        let parent = path.parent().unwrap_or(&self.root);
        match self.files.replace(key, || std::fs::remove_file(&path)) {
            Ok(()) => {}
            Err(e) => {
                use std::io::ErrorKind as K;
                return match e.kind() {
                    // A folder has the name, or a file has the name of a folder: no such object.
                    K::NotFound | K::NotADirectory | K::IsADirectory => self.still_there(),
                    _ => Err(self.fail("delete", key, &e)),
                };
            }
        }
        self.scan.changed(parent);
        self.tree.tidy(parent).map_err(|e| self.fail("delete", key, &e))
    }

    fn head(&self, key: &str) -> Result<Option<u64>> {
        match std::fs::symlink_metadata(self.path(key)?) {
            Ok(meta) if meta.is_file() => Ok(Some(meta.len())),
            Ok(_) => Ok(None),
            Err(e) => match e.kind() {
                std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => {
                    self.still_there().map(|()| None)
                }
                _ => Err(self.fail("look up", key, &e)),
            },
        }
    }

    fn file(&self, key: &str) -> Result<Arc<files::Object>> {
        let path = self.path(key)?;
        match self.files.open(key, &path) {
            Ok(Some(file)) => Ok(file),
            Ok(None) => Err(self.absent(key)),
            Err(e) => match e.kind() {
                std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => Err(self.absent(key)),
                _ => Err(self.fail("open", key, &e)),
            },
        }
    }

    fn check_range(&self, key: &str, range: &Range<u64>, file: &files::Object) -> Result<usize> {
        if range.start > range.end || range.end > file.len {
            return Err(Error::corrupt(format!(
                "object '{key}' in directory store {} has {} bytes; bytes {} to {} were asked for",
                self.root.display(),
                file.len,
                range.start,
                range.end
            )));
        }
        usize::try_from(range.end - range.start).map_err(|_| {
            Error::invalid(format!("object '{key}': a range of more bytes than fit into memory"))
        })
    }

    fn read(&self, key: &str, range: Option<Range<u64>>) -> Result<Bytes> {
        let file = self.file(key)?;
        let range = range.unwrap_or(0..file.len);
        let len = self.check_range(key, &range, &file)?;
        let data = file.read(range.start, len).map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => Error::corrupt(format!(
                "object '{key}' in directory store {} became shorter; somebody else writes there",
                self.root.display()
            )),
            _ => self.fail("read", key, &e),
        })?;
        Ok(data)
    }
}

#[async_trait]
impl ObjectStore for DirectoryStore {
    async fn put(&self, key: &str, data: Bytes, precondition: Precondition) -> Result<()> {
        self.put_parts(key, &[data], precondition, Haste::Full).await
    }

    async fn put_parts(
        &self,
        key: &str,
        parts: &[Bytes],
        precondition: Precondition,
        haste: Haste,
    ) -> Result<()> {
        let (key, parts) = (key.to_string(), parts.to_vec());
        self.blocking(move |inner| inner.put(&key, &parts, precondition, haste)).await
    }

    async fn get(&self, key: &str) -> Result<Bytes> {
        let key = key.to_string();
        self.blocking(move |inner| inner.read(&key, None)).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        // The hot path: an open file whose bytes are in the page cache is read right here, which
        // costs less than handing the read to another thread.
        if let Some(file) = self.inner.files.cached(key) {
            let len = self.inner.check_range(key, &range, &file)?;
            if let Some(data) = file.read_cached(range.start, len) {
                return Ok(data);
            }
        }
        let key = key.to_string();
        self.blocking(move |inner| inner.read(&key, Some(range))).await
    }

    async fn head(&self, key: &str) -> Result<Option<u64>> {
        let key = key.to_string();
        self.blocking(move |inner| inner.head(&key)).await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        delimiter: bool,
        limit: usize,
    ) -> Result<Listing> {
        check_prefix(prefix)?;
        let (prefix, after) = (prefix.to_string(), after.map(str::to_string));
        self.blocking(move |inner| {
            let page = inner.scan.page(&inner.root, &prefix, after.as_deref(), delimiter, limit);
            let page = page.map_err(|e| inner.fail("list", &prefix, &e))?;
            inner.still_there()?;
            Ok(page)
        })
        .await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        let key = key.to_string();
        self.blocking(move |inner| inner.delete(&key)).await
    }

    fn describe(&self) -> String {
        format!("directory store {}", self.inner.root.display())
    }
}

#[cfg(test)]
mod tests;
