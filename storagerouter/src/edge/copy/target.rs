//! Where a copy goes.

use super::{PART, Place, io};
use crate::edge::connect::Connect;
use crate::failure::{Exit, Failure};
use anyhow::{Context, Result};
use bytes::{Bytes, BytesMut};
use common::BlockDevice;
use edge_client::Device;
use edge_client::wire::Mode;
use rustix::fs::{FallocateFlags, OFlags, fallocate};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, IsTerminal, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where the bytes go.
pub enum Target {
    /// A vDisk, and its size.
    Disk(Device, u64),
    /// A block device, and its size.
    Block(Arc<File>, u64),
    /// A file that was empty; where it is.
    File(Arc<File>, PathBuf),
    /// Something that is written once, in order.
    Pipe(Arc<File>),
}

impl Target {
    /// Opens it, for a copy of `size` bytes if that is known. A file that holds something is only taken with
    /// `overwrite`.
    pub async fn open(
        place: Place<'_>,
        connect: &Connect,
        overwrite: bool,
        size: Option<u64>,
    ) -> Result<Target> {
        match place {
            Place::Disk(name) => {
                if name.contains('@') {
                    return Err(Failure::usage(format!("{name} is a snapshot, which is never written")));
                }
                let device = connect.open(name, Mode::Exclusive).await?;
                let geometry = device.geometry();
                if geometry.read_only {
                    device.close().await;
                    return Err(Failure::error(Exit::Failure, format!("{name} is read-only")));
                }
                Ok(Target::Disk(device, geometry.size))
            }
            Place::Path(path) => open_path(path, overwrite, size),
            Place::Pipe if std::io::stdout().is_terminal() => {
                Err(Failure::usage("a copy is not for a terminal: name a file, or pipe it"))
            }
            Place::Pipe => {
                let stdout = std::io::stdout().as_fd().try_clone_to_owned().context("opening stdout")?;
                Ok(Target::Pipe(Arc::new(File::from(stdout))))
            }
        }
    }

    /// How much there is room for, if that is fixed.
    pub fn room(&self) -> Option<u64> {
        match self {
            Target::Disk(_, size) | Target::Block(_, size) => Some(*size),
            Target::File(..) | Target::Pipe(_) => None,
        }
    }

    /// Whether parts must come in order, one at a time.
    pub fn is_ordered(&self) -> bool {
        matches!(self, Target::Pipe(_))
    }

    /// Writes `data` at `offset`.
    pub async fn put(&self, offset: u64, data: Bytes) -> Result<()> {
        match self {
            Target::Disk(device, _) => put_disk(device, offset, data).await?,
            Target::Block(file, _) | Target::File(file, _) => {
                let file = file.clone();
                io("writing to the file", move || file.write_all_at(&data, offset)).await?;
            }
            Target::Pipe(file) => {
                let file = file.clone();
                io("writing to the pipe", move || (&*file).write_all(&data)).await?;
            }
        }
        Ok(())
    }

    /// Makes a range read as zeroes, and take no room where that is possible.
    pub async fn clear(&self, offset: u64, len: u64) -> Result<()> {
        match self {
            Target::Disk(device, _) => clear_disk(device, offset, len).await?,
            // It was empty.
            Target::File(..) => {}
            Target::Block(file, _) => {
                let punched = {
                    let file = file.clone();
                    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                    io("clearing a range", move || Ok(fallocate(&*file, flags, offset, len).is_ok())).await?
                };
                if !punched {
                    self.put_zeroes(offset, len).await?;
                }
            }
            Target::Pipe(_) => self.put_zeroes(offset, len).await?,
        }
        Ok(())
    }

    async fn put_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        let zeroes = Bytes::from(vec![0; PART.min(len) as usize]);
        for from in (0..len).step_by(PART as usize) {
            self.put(offset + from, zeroes.slice(..PART.min(len - from) as usize)).await?;
        }
        Ok(())
    }

    /// All `size` bytes are there: makes them durable.
    pub async fn finish(&self, size: u64) -> Result<()> {
        match self {
            Target::Disk(device, _) => device.flush().await?,
            Target::Block(file, _) => {
                let file = file.clone();
                io("syncing the device", move || file.sync_all()).await?;
            }
            Target::File(file, _) => {
                let file = file.clone();
                io("syncing the file", move || file.set_len(size).and_then(|()| file.sync_all())).await?;
            }
            Target::Pipe(_) => {}
        }
        Ok(())
    }

    /// Gives it up. A file that is not `whole` would look like a copy: it is removed.
    pub async fn close(self, whole: bool) {
        match self {
            Target::Disk(device, _) => device.close().await,
            // That it can't be removed changes nothing.
            Target::File(_, path) if !whole => _ = std::fs::remove_file(path),
            _ => {}
        }
    }
}

fn open_path(path: &Path, overwrite: bool, size: Option<u64>) -> Result<Target> {
    let shown = path.display();
    let failed = |e: std::io::Error| Failure::error(Exit::Failure, format!("opening {shown}: {e}"));
    let found = match std::fs::metadata(path) {
        Ok(found) => found,
        Err(e) if e.kind() == ErrorKind::NotFound => {
            let file = File::create_new(path).map_err(failed)?;
            return Ok(Target::File(Arc::new(file), path.to_owned()));
        }
        Err(e) => return Err(failed(e)),
    };
    let kind = found.file_type();
    if kind.is_dir() {
        return Err(Failure::usage(format!("{shown} is a directory: name a file in it")));
    }
    if kind.is_block_device() {
        // Exclusive: one that is mounted, or part of something else, is refused.
        let exclusive = OFlags::EXCL.bits() as i32;
        let mut file = OpenOptions::new().write(true).custom_flags(exclusive).open(path).map_err(failed)?;
        let room = file.seek(SeekFrom::End(0)).map_err(failed)?;
        return Ok(Target::Block(Arc::new(file), room));
    }
    if !kind.is_file() {
        let file = OpenOptions::new().write(true).open(path).map_err(failed)?;
        return Ok(Target::Pipe(Arc::new(file)));
    }
    if found.len() > 0 && !overwrite {
        let larger =
            if size.is_some_and(|size| size < found.len()) { " and is larger than the copy" } else { "" };
        return Err(Failure::error(
            Exit::Conflict,
            format!("{shown} is there already{larger}: say --overwrite, or choose another name"),
        ));
    }
    let file = OpenOptions::new().write(true).truncate(true).open(path).map_err(failed)?;
    Ok(Target::File(Arc::new(file), path.to_owned()))
}

/// The end of a file need not be one of a block: then what is behind it stays.
async fn put_disk(device: &Device, offset: u64, data: Bytes) -> common::Result<()> {
    let unit = device.geometry().min_block.max(1) as usize;
    let tail = data.len() % unit;
    let whole = data.len() - tail;
    if whole > 0 {
        device.write(offset, data.slice(..whole), false).await?;
    }
    if tail > 0 {
        let at = offset + whole as u64;
        let mut block = BytesMut::from(&device.read(at, unit as u32).await?[..]);
        block[..tail].copy_from_slice(&data[whole..]);
        device.write(at, block.freeze(), false).await?;
    }
    Ok(())
}

/// Only what is not a hole already is asked for: a fresh vDisk stays as empty as it is.
async fn clear_disk(device: &Device, offset: u64, len: u64) -> common::Result<()> {
    let tail = len % u64::from(device.geometry().min_block.max(1));
    let (mut at, end) = (offset, offset + len - tail);
    while at < end {
        for extent in device.extents(at, end - at).await? {
            let len = extent.len.min(end - at);
            if !(extent.hole && extent.zero) {
                device.write_zeroes(at, len, true, false).await?;
            }
            at += len;
        }
    }
    if tail > 0 {
        put_disk(device, end, vec![0; tail as usize].into()).await?;
    }
    Ok(())
}
