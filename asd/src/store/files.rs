//! Segments as files: made, opened when they are needed, a bounded number kept open.

use super::format::{self, HEADER};
use common::osd::OsdId;
use common::{Disk, DiskFile, Error, ErrorKind, Result};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

/// The files of a store.
pub struct Files {
    id: OsdId,
    disk: Arc<dyn Disk>,
    most: usize,
    open: Mutex<Cache>,
}

#[derive(Default)]
struct Cache {
    files: HashMap<u64, (Arc<dyn DiskFile>, u64)>,
    uses: u64,
}

impl Cache {
    fn get(&mut self, number: u64) -> Option<Arc<dyn DiskFile>> {
        self.uses += 1;
        let now = self.uses;
        self.files.get_mut(&number).map(|(file, used)| {
            *used = now;
            file.clone()
        })
    }

    fn put(&mut self, number: u64, file: Arc<dyn DiskFile>, most: usize) {
        self.uses += 1;
        self.files.insert(number, (file, self.uses));
        if self.files.len() > most
            && let Some(oldest) = self.files.iter().min_by_key(|(_, (_, used))| *used).map(|(n, _)| *n)
        {
            // Whoever reads it right now keeps it until he is done.
            self.files.remove(&oldest);
        }
    }
}

impl Files {
    pub fn new(id: OsdId, disk: Arc<dyn Disk>, most: usize) -> Files {
        Files { id, disk, most: most.max(4), open: Mutex::default() }
    }

    /// Makes a segment. Its head becomes durable with the first data in it.
    ///
    /// # Errors
    /// `NoSpace`, and then nothing is left behind; anything else is the disk's fault.
    pub async fn make(&self, number: u64, size: u64, kept_free: u64) -> Result<()> {
        if self.disk.available().await? < size.saturating_add(kept_free) {
            return Err(Error::new(ErrorKind::NoSpace, "the disk has no room for another segment"));
        }
        let name = format::segment_name(number);
        let file = self.disk.allocate(&name, size).await?;
        file.write_at(0, &[format::encode_header(self.id, number, size)]).await?;
        self.open.lock().put(number, file, self.most);
        Ok(())
    }

    /// A segment, checked to be the one that it is taken for when it is opened.
    ///
    /// # Errors
    /// `NotFound`: it was removed meanwhile, or is missing. `Corrupt`: it is another one.
    pub async fn get(&self, number: u64) -> Result<Arc<dyn DiskFile>> {
        if let Some(file) = self.open.lock().get(number) {
            return Ok(file);
        }
        let file = self.disk.open(&format::segment_name(number)).await?;
        if file.len() < HEADER {
            return Err(Error::corrupt(format!("segment {} has no head", format::segment_name(number))));
        }
        format::check_header(&file.read_at(0, HEADER as usize).await?, self.id, number)?;
        self.open.lock().put(number, file.clone(), self.most);
        Ok(file)
    }

    /// Removes a segment.
    ///
    /// # Errors
    /// Of the disk.
    pub async fn remove(&self, number: u64) -> Result<()> {
        self.open.lock().files.remove(&number);
        self.disk.remove(&format::segment_name(number)).await
    }
}
