//! Writing a file and making it durable: a large one past the page cache, since it is about to be synced
//! anyway, and a copy in the cache would cost more than everything else and push out what is read.
//!
//! A write of a megabyte keeps a disk busy for as long as tens of reads take. What nobody waits for is written
//! in smaller pieces, with gaps between them: a read meets at most one piece.

use bytes::Bytes;
use common::object::Haste;
use parking_lot::Mutex;
use rustix::fs::OFlags;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, IoSlice, Result, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// What direct writes are aligned to, in memory and in the file: no disk asks for more.
const PAGE: usize = 4096;
/// Bytes of one direct write.
const CHUNK: usize = 1 << 20;
/// Bytes of one direct write that nobody waits for, and the gap behind it.
const PIECE: usize = 64 << 10;
const GAP: Duration = Duration::from_millis(10);
/// All gaps of a file together: who closes a volume waits for what is under way, and not for long.
const GAPS: Duration = Duration::from_millis(1300);
/// Files from this size on are written directly.
const LARGE: usize = 1 << 20;
/// Chunks that are kept for later files.
const KEPT: usize = 16;
/// Pieces that one `writev` takes (`IOV_MAX`).
const MAX_SLICES: usize = 1024;

#[derive(FromBytes, Immutable, IntoBytes)]
#[repr(C, align(4096))]
struct Page([u8; PAGE]);

/// Writes files; keeps aligned memory from one to the next.
#[derive(Default)]
pub(super) struct Writer {
    chunks: Mutex<Vec<Box<[Page]>>>,
}

impl Writer {
    /// Writes the parts to a new file, durably.
    pub fn write(&self, path: &Path, parts: &[Bytes], haste: Haste) -> Result<()> {
        let mut new = OpenOptions::new();
        new.write(true).create_new(true).mode(0o600);
        if parts.iter().map(Bytes::len).sum::<usize>() >= LARGE {
            let direct = new.clone().custom_flags(OFlags::DIRECT.bits() as i32).open(path);
            match direct.and_then(|mut file| self.write_direct(&mut file, parts, haste).map(|()| file)) {
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

    fn write_direct(&self, file: &mut File, parts: &[Bytes], haste: Haste) -> Result<()> {
        let kept = self.chunks.lock().pop();
        let mut chunk = kept.unwrap_or_else(|| (0..CHUNK / PAGE).map(|_| Page([0; PAGE])).collect());
        let written = write_through(chunk.as_mut_bytes(), file, parts, haste);
        let mut chunks = self.chunks.lock();
        if chunks.len() < KEPT {
            chunks.push(chunk);
        }
        drop(chunks);
        file.set_len(written? as u64)
    }
}

/// Writes the parts, the last of them filled up to a page; their length. What lies in memory as the disk
/// wants it is written from there, the rest by way of `chunk`.
fn write_through(chunk: &mut [u8], file: &mut File, parts: &[Bytes], haste: Haste) -> Result<usize> {
    let (most, gap) = match haste {
        Haste::Full => (CHUNK, None),
        Haste::Gentle => {
            let pieces = parts.iter().map(Bytes::len).sum::<usize>().div_ceil(PIECE).max(1);
            (PIECE, Some(GAP.min(GAPS.div_f64(pieces as f64))))
        }
    };
    let mut copied = Copied { chunk: &mut chunk[..most], start: 0, end: 0 };
    let (mut batch, mut total) = (Batch::default(), 0);
    for part in parts {
        let mut rest = &part[..];
        total += rest.len();
        while !rest.is_empty() {
            let straight = if copied.is_aligned() && is_aligned(rest) { rest.len() / PAGE * PAGE } else { 0 };
            if straight > 0 {
                let (now, later) = rest.split_at(straight.min(most));
                copied.close(&mut batch);
                batch.add(Piece::Part(now));
                rest = later;
            } else {
                rest = &rest[copied.copy(rest)..];
            }
            if copied.is_full() || batch.bytes >= most || batch.pieces.len() == MAX_SLICES / 2 {
                copied.close(&mut batch);
                batch.write(copied.chunk, file)?;
                (copied.start, copied.end) = (0, 0);
                if let Some(gap) = gap {
                    pause(gap);
                }
            }
        }
    }
    let end = copied.end.next_multiple_of(PAGE);
    copied.chunk[copied.end..end].fill(0);
    copied.end = end;
    copied.close(&mut batch);
    batch.write(copied.chunk, file)?;
    Ok(total)
}

/// On a thread that may wait, of a store on a real disk: nothing that a simulation sees.
#[expect(clippy::disallowed_methods, reason = "see above")]
fn pause(gap: Duration) {
    std::thread::sleep(gap);
}

fn is_aligned(bytes: &[u8]) -> bool {
    bytes.as_ptr().addr().is_multiple_of(PAGE) && bytes.len() >= PAGE
}

/// What does not lie in memory as the disk wants it: copied to where it does.
struct Copied<'c> {
    chunk: &'c mut [u8],
    /// From here on it is in no batch yet.
    start: usize,
    end: usize,
}

impl Copied<'_> {
    fn is_aligned(&self) -> bool {
        self.end.is_multiple_of(PAGE)
    }

    fn is_full(&self) -> bool {
        self.end == self.chunk.len()
    }

    /// Copies as much as there is room for.
    fn copy(&mut self, bytes: &[u8]) -> usize {
        let n = bytes.len().min(self.chunk.len() - self.end);
        self.chunk[self.end..self.end + n].copy_from_slice(&bytes[..n]);
        self.end += n;
        n
    }

    /// Hands whole pages to the batch.
    fn close(&mut self, batch: &mut Batch<'_>) {
        if self.end > self.start {
            batch.add(Piece::Copied(self.start, self.end));
            self.start = self.end;
        }
    }
}

enum Piece<'p> {
    Copied(usize, usize),
    Part(&'p [u8]),
}

/// What one system call writes.
#[derive(Default)]
struct Batch<'p> {
    pieces: Vec<Piece<'p>>,
    bytes: usize,
}

impl<'p> Batch<'p> {
    fn add(&mut self, piece: Piece<'p>) {
        self.bytes += match &piece {
            Piece::Copied(from, to) => to - from,
            Piece::Part(bytes) => bytes.len(),
        };
        self.pieces.push(piece);
    }

    fn write(&mut self, chunk: &[u8], file: &mut File) -> Result<()> {
        let slice = |piece: &Piece<'p>| match piece {
            Piece::Copied(from, to) => IoSlice::new(&chunk[*from..*to]),
            Piece::Part(bytes) => IoSlice::new(bytes),
        };
        let mut slices: Vec<IoSlice<'_>> = self.pieces.iter().map(slice).collect();
        write_all(file, &mut slices)?;
        drop(slices);
        self.pieces.clear();
        self.bytes = 0;
        Ok(())
    }
}

fn write_cached(file: &mut File, parts: &[Bytes]) -> Result<()> {
    for group in parts.chunks(MAX_SLICES) {
        let mut slices: Vec<IoSlice<'_>> = group.iter().map(|part| IoSlice::new(part)).collect();
        write_all(file, &mut slices)?;
    }
    Ok(())
}

fn write_all(file: &mut File, mut rest: &mut [IoSlice<'_>]) -> Result<()> {
    IoSlice::advance_slices(&mut rest, 0);
    while !rest.is_empty() {
        match file.write_vectored(rest) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(n) => IoSlice::advance_slices(&mut rest, n),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
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
            for haste in [Haste::Full, Haste::Gentle] {
                let path = folder.path().join(format!("{len} {haste:?}"));
                writer.write(&path, &parts, haste).unwrap();
                assert!(std::fs::read(&path).unwrap() == whole, "{len} bytes");
            }
        }
        let taken = writer
            .write(&folder.path().join("1 Full"), &[Bytes::from(data(LARGE))], Haste::Full)
            .unwrap_err();
        assert_eq!(taken.kind(), ErrorKind::AlreadyExists);
    }

    /// What lies at page boundaries in memory is written from where it is, between what is copied.
    #[test]
    fn aligned_parts_come_out_in_their_places() {
        struct Aligned(Box<[Page]>);
        impl AsRef<[u8]> for Aligned {
            fn as_ref(&self) -> &[u8] {
                self.0.as_bytes()
            }
        }
        let mut pages: Box<[Page]> = (0..700).map(|i| Page([i as u8; PAGE])).collect();
        pages.as_mut_bytes()[5] = 77;
        let aligned = Bytes::from_owner(Aligned(pages));
        let odd = Bytes::from((0..3 * PAGE + 17).map(|i| (i * 7 % 253) as u8).collect::<Vec<_>>());
        let page = |from: usize, to: usize| aligned.slice(from * PAGE..to * PAGE);
        let layouts: [&[Bytes]; 5] = [
            &[odd.slice(..PAGE), aligned.clone(), odd.clone()],
            &[odd.clone(), aligned.clone(), page(0, 3)],
            &[page(0, 256), page(300, 301), odd.slice(..2 * PAGE), page(10, 600), odd.slice(1..)],
            &[page(0, 300).slice(..300 * PAGE - 9), odd.slice(..9), aligned.clone()],
            &[odd.slice(..PAGE), page(3, 4), odd.slice(..PAGE), page(5, 400), aligned.slice(1..)],
        ];
        let folder = tempfile::tempdir().unwrap();
        for (n, parts) in layouts.iter().enumerate() {
            for haste in [Haste::Full, Haste::Gentle] {
                let path = folder.path().join(format!("{n} {haste:?}"));
                Writer::default().write(&path, parts, haste).unwrap();
                assert!(std::fs::read(&path).unwrap() == parts.concat(), "layout {n}");
            }
        }
        // As many pieces as there can be.
        let many: Vec<Bytes> = (0..3000)
            .map(|i| if i % 2 == 0 { page(i % 700, i % 700 + 1) } else { odd.slice(..PAGE) })
            .collect();
        let path = folder.path().join("many");
        Writer::default().write(&path, &many, Haste::Full).unwrap();
        assert!(std::fs::read(&path).unwrap() == many.concat());
    }

    /// tmpfs took no direct writes until lately; wherever it is refused, the file is written all the same.
    #[test]
    fn a_file_system_without_direct_writes_will_do() {
        let Ok(folder) = tempfile::tempdir_in("/dev/shm") else { return };
        let whole = Bytes::from(vec![7; LARGE + 3]);
        let parts = std::slice::from_ref(&whole);
        Writer::default().write(&folder.path().join("f"), parts, Haste::Full).unwrap();
        assert!(std::fs::read(folder.path().join("f")).unwrap() == whole);
    }
}
