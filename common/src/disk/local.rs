//! The real disk: files in one directory, buffered writes, `fdatasync`.

use super::{Disk, DiskFile};
use crate::blocking;
use crate::error::{Context, Error, ErrorKind, Result};
use async_trait::async_trait;
use bytes::Bytes;
use std::fs::{File, OpenOptions};
use std::io::{IoSlice, IoSliceMut};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A directory of preallocated files.
pub struct LocalDisk {
    dir: PathBuf,
}

impl LocalDisk {
    /// Opens `dir`, making it (mode 0700) when it is not there.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        let dir = dir.into();
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .context(format!("creating directory {}", dir.display()))?;
        Ok(Self { dir })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

/// Makes the names in `dir` durable.
pub fn sync_dir(dir: &Path) -> Result<()> {
    let what = || format!("syncing directory {}", dir.display());
    File::open(dir).context(what())?.sync_all().context(what())
}

fn create_file(path: &Path, dir: &Path, size: u64, zeroed: bool) -> Result<File> {
    const STEP: usize = 1 << 20;
    let what = || format!("creating {} ({size} bytes)", path.display());
    let file =
        OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path).context(what())?;
    let fill = || -> Result<()> {
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, size)
            .map_err(std::io::Error::from)
            .context(what())?;
        let zeroes = vec![0u8; if zeroed { STEP } else { 0 }];
        let mut at = 0;
        while zeroed && at < size {
            let n = (size - at).min(STEP as u64) as usize;
            file.write_all_at(&zeroes[..n], at).context(what())?;
            at += n as u64;
        }
        file.sync_all().context(what())?;
        sync_dir(dir)
    };
    match fill() {
        Ok(()) => Ok(file),
        Err(e) => {
            // Nothing names the file yet; what can't be removed here is only space.
            let _ = std::fs::remove_file(path);
            Err(e)
        }
    }
}

#[async_trait]
impl Disk for LocalDisk {
    async fn create(&self, name: &str, size: u64) -> Result<Arc<dyn DiskFile>> {
        let (path, dir) = (self.path(name), self.dir.clone());
        blocking::run(move || {
            let file = create_file(&path, &dir, size, true)?;
            Ok(Arc::new(LocalFile::new(file, path, size)) as Arc<dyn DiskFile>)
        })
        .await
    }

    async fn allocate(&self, name: &str, size: u64) -> Result<Arc<dyn DiskFile>> {
        let (path, dir) = (self.path(name), self.dir.clone());
        blocking::run(move || {
            let file = create_file(&path, &dir, size, false)?;
            Ok(Arc::new(LocalFile::new(file, path, size)) as Arc<dyn DiskFile>)
        })
        .await
    }

    async fn open(&self, name: &str) -> Result<Arc<dyn DiskFile>> {
        let path = self.path(name);
        blocking::run(move || {
            let what = || format!("opening {}", path.display());
            let file = OpenOptions::new().read(true).write(true).open(&path).context(what())?;
            let size = file.metadata().context(what())?.len();
            Ok(Arc::new(LocalFile::new(file, path, size)) as Arc<dyn DiskFile>)
        })
        .await
    }

    async fn available(&self) -> Result<u64> {
        let dir = self.dir.clone();
        blocking::run(move || {
            let stat = rustix::fs::statvfs(&dir).map_err(std::io::Error::from);
            let stat = stat.context(format!("asking for the free space of {}", dir.display()))?;
            Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
        })
        .await
    }

    async fn list(&self) -> Result<Vec<String>> {
        let dir = self.dir.clone();
        blocking::run(move || {
            let what = || format!("listing {}", dir.display());
            let mut names = Vec::new();
            for entry in std::fs::read_dir(&dir).context(what())? {
                let entry = entry.context(what())?;
                if entry.file_type().context(what())?.is_file()
                    && let Ok(name) = entry.file_name().into_string()
                {
                    names.push(name);
                }
            }
            names.sort();
            Ok(names)
        })
        .await
    }

    async fn remove(&self, name: &str) -> Result<()> {
        let (path, dir) = (self.path(name), self.dir.clone());
        blocking::run(move || {
            std::fs::remove_file(&path).context(format!("removing {}", path.display()))?;
            sync_dir(&dir)
        })
        .await
    }
}

struct LocalFile {
    file: Arc<File>,
    path: PathBuf,
    size: u64,
}

impl LocalFile {
    fn new(file: File, path: PathBuf, size: u64) -> Self {
        Self { file: Arc::new(file), path, size }
    }
}

/// The largest number of parts that one `pwritev` takes (`IOV_MAX`).
const MAX_PARTS: usize = 1024;

fn write_vectored(file: &File, mut offset: u64, parts: &[Bytes]) -> std::io::Result<()> {
    for group in parts.chunks(MAX_PARTS) {
        let mut slices: Vec<IoSlice<'_>> = group.iter().map(|p| IoSlice::new(p)).collect();
        let mut rest: &mut [IoSlice<'_>] = &mut slices;
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            let n = match rustix::io::pwritev(file, rest, offset) {
                Ok(0) => return Err(std::io::ErrorKind::WriteZero.into()),
                Ok(n) => n,
                Err(rustix::io::Errno::INTR) => continue,
                Err(e) => return Err(e.into()),
            };
            offset += n as u64;
            IoSlice::advance_slices(&mut rest, n);
        }
    }
    Ok(())
}

#[async_trait]
impl DiskFile for LocalFile {
    fn len(&self) -> u64 {
        self.size
    }

    async fn write_at(&self, offset: u64, parts: &[Bytes]) -> Result<()> {
        let end = offset + parts.iter().map(|p| p.len() as u64).sum::<u64>();
        if end > self.size {
            return Err(Error::internal(format!("write to {end} beyond the end of {}", self.path.display())));
        }
        // Into the page cache: a copy, cheaper than handing it to another thread.
        write_vectored(&self.file, offset, parts).context(format!("writing {}", self.path.display()))
    }

    async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes> {
        let mut buf = vec![0u8; len];
        // What the page cache has is a copy, cheaper than handing it to another thread.
        let nowait = rustix::io::ReadWriteFlags::NOWAIT;
        let done = rustix::io::preadv2(&self.file, &mut [IoSliceMut::new(&mut buf)], offset, nowait);
        if done == Ok(len) {
            return Ok(buf.into());
        }
        // The rest is on the device, or this file system does not tell.
        let (file, path) = (self.file.clone(), self.path.clone());
        blocking::run(move || {
            file.read_exact_at(&mut buf, offset).map_err(|e| match e.kind() {
                std::io::ErrorKind::UnexpectedEof => Error::new(
                    ErrorKind::Corrupt,
                    format!("{} is shorter than {} bytes", path.display(), offset.saturating_add(len as u64)),
                ),
                _ => Error::io(format!("reading {}", path.display()), &e),
            })?;
            Ok(buf.into())
        })
        .await
    }

    async fn sync(&self) -> Result<()> {
        let file = self.file.clone();
        let path = self.path.clone();
        blocking::run(move || file.sync_data().context(format!("fdatasync of {}", path.display()))).await
    }
}
