//! The data directory: who holds it, and which format it has.
//!
//! ```text
//! format      {"format":2,"id":"..."}
//! lock        flock'ed by the router that runs; holds its process id
//! membership  which cluster it belongs to; absent: it is the first of its own
//! cluster/    its copy of the registry: vPools and vDisks
//! journal/    the write buffer
//! dtl/        what it keeps for other routers
//! read-cache/ clusters that were read again and again: may be deleted while the router is stopped
//! index/      the cluster index: derived, may be deleted while the router is stopped
//! registry/   format 1: the registry of one node, from which `cluster/` was made
//! nbd.sock    where NBD clients of this machine connect
//! edge.sock   where edge clients of this machine connect
//! ```
//!
//! Format 2 has `cluster/` in place of `registry/`, which says itself that it has moved.
//!
//! A format is raised only together with code that reads the one before: a router opens its own
//! format and the one before it, brings the directory to its own and writes `format` last. A
//! newer one is refused and left as it is.

#[cfg(test)]
mod tests;

use crate::failure::{Exit, Failure};
use anyhow::{Context, Result};
use common::Clock;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The format that this binary writes.
pub const FORMAT: u32 = 2;

#[derive(Debug, Serialize, Deserialize)]
struct FormatFile {
    format: u32,
    #[serde(default)]
    id: String,
}

/// A data directory that this process holds until it is dropped.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    id: String,
    format: u32,
    created: bool,
    /// Holds the lock as long as it is open.
    _lock: File,
}

/// Who holds a data directory, found without taking it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// Nobody.
    Free,
    /// A process, with its id when it could be read.
    Held(Option<u32>),
}

impl DataDir {
    /// Takes `path`, making it (mode 0700) when it is not there.
    pub fn open(path: &Path, clock: &dyn Clock) -> Result<DataDir> {
        let path = std::path::absolute(path).with_context(|| format!("data directory {}", path.display()))?;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).with_context(|| {
            format!("creating the data directory {}: choose another with --data-dir", path.display())
        })?;
        refuse_foreign(&path)?;
        let lock = take_lock(&path)?;
        let known = read_format(&path)?;
        let created = known.is_none();
        let format = match known {
            Some(format) => format,
            None => {
                let format = FormatFile { format: FORMAT, id: format!("{:032x}", clock.random_u128()) };
                write_format(&path, &format)?;
                format
            }
        };
        Ok(DataDir { path, id: format.id, format: format.format, created, _lock: lock })
    }

    /// The directory, absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The random identity that it got when it was made: the node's.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Whether this call made it.
    pub fn created(&self) -> bool {
        self.created
    }

    /// The write buffer's directory.
    pub fn journal(&self) -> PathBuf {
        self.path.join("journal")
    }

    /// The directory of the read cache's part on the SSD.
    pub fn read_cache(&self) -> PathBuf {
        self.path.join("read-cache")
    }

    /// The cluster index's directory.
    pub fn index(&self) -> PathBuf {
        self.path.join("index")
    }

    /// The directory of this router's copy of the registry.
    pub fn cluster(&self) -> PathBuf {
        self.path.join("cluster")
    }

    /// Where format 1 had the registry of one node.
    pub fn registry(&self) -> PathBuf {
        self.path.join("registry")
    }

    /// The directory of what is kept for other routers.
    pub fn dtl(&self) -> PathBuf {
        self.path.join("dtl")
    }

    /// Notes that everything in it has the present format: the last step of an upgrade.
    pub fn raise_format(&self) -> Result<()> {
        if self.format == FORMAT {
            return Ok(());
        }
        tracing::info!(from = self.format, to = FORMAT, "the data directory was upgraded");
        write_format(&self.path, &FormatFile { format: FORMAT, id: self.id.clone() })
    }
}

/// The NBD socket of a data directory.
pub fn nbd_socket(data_dir: &Path) -> PathBuf {
    data_dir.join("nbd.sock")
}

/// The edge protocol's socket of a data directory.
pub fn edge_socket(data_dir: &Path) -> PathBuf {
    data_dir.join("edge.sock")
}

/// The DTL service's socket of a data directory. Other routers look for it on their own machine: its name is nobody else's.
pub fn dtl_socket(data_dir: &Path, id: &str) -> std::io::Result<PathBuf> {
    let short = id.get(..8).unwrap_or(id);
    std::path::absolute(data_dir.join(format!("dtl-{short}.sock")))
}

/// The data directory when none is named: root's, or the user's own.
pub fn default_path() -> Result<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/storagerouter"));
    }
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    absolute("XDG_DATA_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/share")))
        .map(|base| base.join("storagerouter"))
        .ok_or_else(|| {
            Failure::usage("neither HOME nor XDG_DATA_HOME is set: name a directory with --data-dir")
        })
}

/// Who holds `path` now.
pub fn holder(path: &Path) -> Result<Holder> {
    let lock = match File::open(path.join("lock")) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Holder::Free),
        Err(e) => return Err(e).with_context(|| format!("opening {}", path.join("lock").display())),
    };
    match flock(&lock, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(Holder::Free),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(Holder::Held(pid_in(&lock))),
        Err(e) => Err(std::io::Error::from(e)).context("looking at the lock"),
    }
}

/// The format of the directory, or `None` when it has none yet; a newer one is an error.
pub fn check_format(path: &Path) -> Result<Option<u32>> {
    Ok(read_format(path)?.map(|f| f.format))
}

fn pid_in(lock: &File) -> Option<u32> {
    let mut text = String::new();
    lock.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn take_lock(path: &Path) -> Result<File> {
    let name = path.join("lock");
    let lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&name)
        .with_context(|| format!("opening {}", name.display()))?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let who = match pid_in(&lock) {
                Some(pid) => format!("process {pid}"),
                None => "another process".to_string(),
            };
            return Err(Failure::error(
                Exit::Conflict,
                format!(
                    "the data directory {} is held by {who}: stop that storage router, or choose another \
                     directory with --data-dir",
                    path.display()
                ),
            ));
        }
        Err(e) => return Err(std::io::Error::from(e)).with_context(|| format!("locking {}", name.display())),
    }
    lock.set_len(0)
        .and_then(|()| (&lock).write_all(format!("{}\n", std::process::id()).as_bytes()))
        .with_context(|| format!("writing {}", name.display()))?;
    Ok(lock)
}

/// A directory that holds something, but nothing that says it is a data directory, is not taken.
fn refuse_foreign(path: &Path) -> Result<()> {
    if path.join("format").exists() {
        return Ok(());
    }
    let what = || format!("reading the data directory {}", path.display());
    for entry in std::fs::read_dir(path).with_context(what)? {
        let name = entry.with_context(what)?.file_name();
        if !["lock", "format.new", "lost+found"].iter().any(|own| name == *own) {
            return Err(Failure::usage(format!(
                "{} is not a data directory: it has no file 'format', but holds '{}'. Choose an empty or a new \
                 directory with --data-dir",
                path.display(),
                name.display()
            )));
        }
    }
    Ok(())
}

fn read_format(path: &Path) -> Result<Option<FormatFile>> {
    let name = path.join("format");
    let text = match std::fs::read_to_string(&name) {
        Ok(text) => text,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).with_context(|| format!("reading {}", name.display())),
    };
    let format: FormatFile = serde_json::from_str(&text).map_err(|e| {
        Failure::usage(format!("{} can't be read ({e}): restore it, it is one line of JSON", name.display()))
    })?;
    if format.format > FORMAT {
        return Err(Failure::usage(format!(
            "the data directory {} has format {}, newer than the format {FORMAT} of this storage router {}: it was \
             left as it is; run the newer version, or choose another directory with --data-dir",
            path.display(),
            format.format,
            env!("CARGO_PKG_VERSION")
        )));
    }
    if format.format == 0 {
        return Err(Failure::usage(format!("{} names format 0, which there never was", name.display())));
    }
    Ok(Some(format))
}

fn write_format(path: &Path, format: &FormatFile) -> Result<()> {
    Ok(write_durably(path, "format", &serde_json::to_string(format)?)?)
}

/// Writes the one line of a file in the data directory; a crash leaves the old one or the new one.
pub fn write_durably(dir: &Path, name: &str, line: &str) -> common::Result<()> {
    let (fresh, path) = (dir.join(format!("{name}.new")), dir.join(name));
    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(format!("{line}\n").as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&fresh, &path)
    };
    write().map_err(|e| common::Error::io(format!("writing {}", path.display()), &e))?;
    common::disk::local::sync_dir(dir)
}
