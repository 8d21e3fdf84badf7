//! RocksDB's errors as ours: what the caller can do about them decides the kind.

use common::{Error, ErrorKind};
use std::path::Path;

/// The error of a RocksDB call on the database in `path`, told with what was being done.
pub(crate) fn from_rocksdb(what: &str, path: &Path, error: &rocksdb::Error) -> Error {
    let text = error.to_string();
    let place = path.display();
    if is_lock(&text) {
        return Error::unavailable(format!(
            "{what} {place}: the database is held by another process (or opened twice by this one); stop the \
             other storagerouter that uses this data directory, then try again ({text})"
        ));
    }
    // RocksDB tells the errno only in words.
    if text.contains("No space left on device") || text.contains("Disk quota exceeded") {
        return Error::new(
            ErrorKind::NoSpace,
            format!("{what} {place}: no space left on its disk; free some, then it goes on ({text})"),
        );
    }
    if text.contains("Permission denied") || text.contains("Read-only file system") {
        return Error::new(
            ErrorKind::Denied,
            format!("{what} {place}: this user may not write there; check owner and mount ({text})"),
        );
    }
    let (kind, told) = match error.kind() {
        rocksdb::ErrorKind::Corruption => (ErrorKind::Corrupt, "the database is damaged"),
        rocksdb::ErrorKind::NotSupported => {
            (ErrorKind::Unsupported, "the database was written by another version of RocksDB")
        }
        rocksdb::ErrorKind::InvalidArgument => (ErrorKind::Invalid, "the database does not open this way"),
        rocksdb::ErrorKind::Busy
        | rocksdb::ErrorKind::TimedOut
        | rocksdb::ErrorKind::TryAgain
        | rocksdb::ErrorKind::Incomplete => (ErrorKind::Unavailable, "the database is busy"),
        // A file that the database's own list names is gone.
        rocksdb::ErrorKind::IOError if text.contains("No such file or directory") => {
            (ErrorKind::Corrupt, "a file of the database is missing")
        }
        _ => (ErrorKind::Internal, "the database failed"),
    };
    Error::new(kind, format!("{what} {place}: {told} ({text})"))
}

fn is_lock(text: &str) -> bool {
    // "While lock file: .../LOCK: Resource temporarily unavailable" from another process,
    // "lock hold by current process" from this one.
    text.contains("lock hold by")
        || (text.contains("lock file") && text.contains("Resource temporarily unavailable"))
}
