//! What is copied, cut into parts.

use super::zeroes::{self, Run};
use super::{PART, Place, io};
use crate::edge::connect::Connect;
use crate::failure::{Exit, Failure};
use anyhow::{Context, Result};
use bytes::Bytes;
use common::BlockDevice;
use edge_client::Device;
use edge_client::wire::Mode;
use futures::Stream;
use rustix::fs::SeekFrom;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;
use std::sync::Arc;

/// The router is asked about so many bytes at a time.
const LOOK: u64 = 1 << 30;

/// Where the bytes come from.
pub enum Source {
    /// A vDisk or a snapshot.
    Disk(Arc<Device>, u64),
    /// A file or a block device, and its size.
    File(Arc<File>, u64),
    /// Something that is read once.
    Pipe(Arc<File>),
}

/// A part of it, in order.
pub struct Part {
    /// Where it begins.
    pub offset: u64,
    /// Its length.
    pub len: u64,
    content: Content,
}

enum Content {
    /// It reads as zeroes.
    Hole,
    /// It is to be read.
    Stored,
    Held(Bytes),
}

/// A part that was read.
pub struct Loaded {
    /// Its length.
    pub len: u64,
    offset: u64,
    /// `None`: it reads as zeroes.
    data: Option<Bytes>,
}

impl Loaded {
    /// What is zero in it, and what is not.
    pub fn runs(&self) -> Vec<(u64, Run)> {
        match &self.data {
            Some(data) => zeroes::cut(self.offset, data),
            None => vec![(self.offset, Run::Zero(self.len))],
        }
    }
}

/// Where the next part begins, and what is known of the map there: lengths, and whether they are holes.
#[derive(Default)]
struct Cursor {
    offset: u64,
    runs: VecDeque<(u64, bool)>,
}

impl Source {
    /// Opens it.
    pub async fn open(place: Place<'_>, connect: &Connect) -> Result<Source> {
        match place {
            Place::Disk(name) => {
                let device = connect.open(name, Mode::ReadOnly).await?;
                let size = device.geometry().size;
                Ok(Source::Disk(Arc::new(device), size))
            }
            Place::Path(path) => open_file(path),
            Place::Pipe => {
                let stdin = std::io::stdin().as_fd().try_clone_to_owned().context("opening stdin")?;
                Ok(Source::Pipe(Arc::new(File::from(stdin))))
            }
        }
    }

    /// Its size, if that is known before the end.
    pub fn size(&self) -> Option<u64> {
        match self {
            Source::Disk(_, size) | Source::File(_, size) => Some(*size),
            Source::Pipe(_) => None,
        }
    }

    /// All of it, in order.
    pub fn parts(&self) -> impl Stream<Item = Result<Part>> + '_ {
        futures::stream::try_unfold(Cursor::default(), |cursor| self.next(cursor))
    }

    async fn next(&self, mut cursor: Cursor) -> Result<Option<(Part, Cursor)>> {
        let offset = cursor.offset;
        let (len, content) = match self {
            Source::Pipe(file) => {
                let data = read_pipe(file.clone()).await?;
                (data.len() as u64, Content::Held(data))
            }
            Source::Disk(_, size) | Source::File(_, size) if offset == *size => return Ok(None),
            Source::Disk(device, size) => {
                if cursor.runs.is_empty() {
                    let extents = device.extents(offset, LOOK.min(size - offset)).await?;
                    cursor.runs = extents.iter().map(|e| (e.len, e.zero)).collect();
                }
                next_run(&mut cursor)
            }
            Source::File(file, size) => {
                if cursor.runs.is_empty() {
                    cursor.runs.push_back(map_file(file, offset, *size)?);
                }
                next_run(&mut cursor)
            }
        };
        if len == 0 {
            return Ok(None);
        }
        cursor.offset += len;
        Ok(Some((Part { offset, len, content }, cursor)))
    }

    /// Reads a part.
    pub async fn load(&self, part: Part) -> Result<Loaded> {
        let Part { offset, len, content } = part;
        let data = match (content, self) {
            (Content::Hole, _) => None,
            (Content::Held(data), _) => Some(data),
            (Content::Stored, Source::Disk(device, _)) => Some(device.read(offset, len as u32).await?),
            (Content::Stored, Source::File(file, _) | Source::Pipe(file)) => {
                let file = file.clone();
                let read = move || {
                    let mut data = vec![0; len as usize];
                    file.read_exact_at(&mut data, offset).map(|()| Bytes::from(data))
                };
                Some(io("reading the file", read).await?)
            }
        };
        Ok(Loaded { len, offset, data })
    }

    /// Gives it up.
    pub async fn close(&self) {
        if let Source::Disk(device, _) = self {
            device.close().await;
        }
    }
}

/// The next part of what is known of the map.
fn next_run(cursor: &mut Cursor) -> (u64, Content) {
    let Some((left, hole)) = cursor.runs.front_mut() else { return (0, Content::Hole) };
    let len = if *hole { *left } else { PART.min(*left) };
    let content = if *hole { Content::Hole } else { Content::Stored };
    *left -= len;
    if *left == 0 {
        cursor.runs.pop_front();
    }
    (len, content)
}

fn open_file(path: &Path) -> Result<Source> {
    let shown = path.display();
    let mut file = File::open(path).map_err(|e| match e.kind() {
        ErrorKind::NotFound => Failure::error(Exit::NotFound, format!("there is no file {shown}")),
        _ => Failure::error(Exit::Failure, format!("opening {shown}: {e}")),
    })?;
    let kind = file.metadata().with_context(|| format!("looking at {shown}"))?.file_type();
    if kind.is_dir() {
        return Err(Failure::usage(format!("{shown} is a directory")));
    }
    if !kind.is_file() && !kind.is_block_device() {
        return Ok(Source::Pipe(Arc::new(file)));
    }
    let size = file.seek(std::io::SeekFrom::End(0)).with_context(|| format!("the size of {shown}"))?;
    Ok(Source::File(Arc::new(file), size))
}

/// How far it goes on from `offset` as it is there, and whether that is a hole.
fn map_file(file: &File, offset: u64, size: u64) -> Result<(u64, bool)> {
    let data = match rustix::fs::seek(file, SeekFrom::Data(offset)) {
        Ok(data) => data.min(size),
        Err(rustix::io::Errno::NXIO) => size,
        // Devices and some file systems do not tell.
        Err(_) => return Ok((size - offset, false)),
    };
    if data > offset {
        return Ok((data - offset, true));
    }
    let hole = rustix::fs::seek(file, SeekFrom::Hole(offset)).unwrap_or(size);
    // One that changes while it is looked at.
    Ok((hole.clamp(offset + 1, size) - offset, false))
}

/// Reads a part, or what there is before the end.
async fn read_pipe(file: Arc<File>) -> common::Result<Bytes> {
    io("reading from the pipe", move || {
        let mut data = Vec::new();
        (&*file).take(PART).read_to_end(&mut data).map(|_| Bytes::from(data))
    })
    .await
}
