//! Writing a file and making it durable: a large one past the page cache, since it is about to be synced
//! anyway, and a copy in the cache would cost more than everything else and push out what is read.

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::fs::OFlags;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, IoSlice, Result, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use zerocopy::{FromBytes, IntoBytes};

/// What direct writes are aligned to, in memory and in the file: no disk asks for more.
const PAGE: usize = 4096;
/// Bytes of one direct write.
const CHUNK: usize = 1 << 20;
/// Files from this size on are written directly.
const LARGE: usize = 1 << 20;
/// Chunks that are kept for later files.
const KEPT: usize = 16;
/// Pieces that one `writev` takes (`IOV_MAX`).
const MAX_SLICES: usize = 1024;

#[derive(FromBytes, IntoBytes)]
#[repr(C, align(4096))]
struct Page([u8; PAGE]);

/// Writes files; keeps aligned memory from one to the next.
#[derive(Default)]
pub(super) struct Writer {
    chunks: Mutex<Vec<Box<[Page]>>>,
}

impl Writer {
    /// Writes the parts to a new file, durably.
    pub fn write(&self, path: &Path, parts: &[Bytes]) -> Result<()> {
        let mut new = OpenOptions::new();
        new.write(true).create_new(true).mode(0o600);
        if parts.iter().map(Bytes::len).sum::<usize>() >= LARGE {
            let direct = new.clone().custom_flags(OFlags::DIRECT.bits() as i32).open(path);
            match direct.and_then(|mut file| self.write_direct(&mut file, parts).map(|()| file)) {
                Ok(file) => return file.sync_all(),
                // This file system can't; it may have made the file all the same.
                Err(e) if e.kind() == ErrorKind::InvalidInput => match std::fs::remove_file(path) {
                    Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
                    _ => {}
                },
                Err(e) => return Err(e),
            }
        }
        let mut file = new.open(path)?;
        write_cached(&mut file, parts)?;
        file.sync_all()
    }

    fn write_direct(&self, file: &mut File, parts: &[Bytes]) -> Result<()> {
        let kept = self.chunks.lock().pop();
        let mut chunk = kept.unwrap_or_else(|| (0..CHUNK / PAGE).map(|_| Page([0; PAGE])).collect());
        let written = write_through(chunk.as_mut_bytes(), file, parts);
        let mut chunks = self.chunks.lock();
        if chunks.len() < KEPT {
            chunks.push(chunk);
        }
        drop(chunks);
        file.set_len(written? as u64)
    }
}

/// Writes the parts by way of `chunk`, the last of it filled up to a page; their length.
fn write_through(chunk: &mut [u8], file: &mut File, parts: &[Bytes]) -> Result<usize> {
    let (mut filled, mut total) = (0, 0);
    for part in parts {
        let mut rest = &part[..];
        while !rest.is_empty() {
            let n = rest.len().min(chunk.len() - filled);
            chunk[filled..filled + n].copy_from_slice(&rest[..n]);
            filled += n;
            total += n;
            rest = &rest[n..];
            if filled == chunk.len() {
                file.write_all(chunk)?;
                filled = 0;
            }
        }
    }
    let end = filled.next_multiple_of(PAGE);
    chunk[filled..end].fill(0);
    file.write_all(&chunk[..end])?;
    Ok(total)
}

fn write_cached(file: &mut File, parts: &[Bytes]) -> Result<()> {
    for group in parts.chunks(MAX_SLICES) {
        let mut slices: Vec<IoSlice<'_>> = group.iter().map(|part| IoSlice::new(part)).collect();
        let mut rest = &mut slices[..];
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            match file.write_vectored(rest) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => IoSlice::advance_slices(&mut rest, n),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_any_length_are_what_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let writer = Writer::default();
        let data = |len: usize| (0..len).map(|i| (i * 31 % 251) as u8).collect::<Vec<u8>>();
        for len in [0, 1, PAGE, LARGE - 1, LARGE, LARGE + 1, 3 * CHUNK + PAGE, 3 * CHUNK + 5] {
            let whole = Bytes::from(data(len));
            let third = len / 3;
            let parts = [whole.slice(..third), Bytes::new(), whole.slice(third..)];
            let path = folder.path().join(len.to_string());
            writer.write(&path, &parts).unwrap();
            assert!(std::fs::read(&path).unwrap() == whole, "{len} bytes");
        }
        let taken = writer.write(&folder.path().join("1"), &[Bytes::from(data(LARGE))]).unwrap_err();
        assert_eq!(taken.kind(), ErrorKind::AlreadyExists);
    }

    /// tmpfs took no direct writes until lately; wherever it is refused, the file is written all the same.
    #[test]
    fn a_file_system_without_direct_writes_will_do() {
        let Ok(folder) = tempfile::tempdir_in("/dev/shm") else { return };
        let whole = Bytes::from(vec![7; LARGE + 3]);
        Writer::default().write(&folder.path().join("f"), std::slice::from_ref(&whole)).unwrap();
        assert!(std::fs::read(folder.path().join("f")).unwrap() == whole);
    }
}
