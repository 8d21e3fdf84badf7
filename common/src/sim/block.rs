//! Devices in memory behind a directory of exports, that hold their callers to the rules of the door.

use crate::block::{BlockDevice, ExportInfo, Exports, Extent, Geometry};
use crate::error::{Error, Result};
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A device in memory. A request that a front end should have refused (beyond the end, not in whole
/// blocks, larger than the largest payload, a write to what is read-only) is a panic.
pub struct SimDevice {
    geometry: Geometry,
    /// Bytes, and whether each block is a hole.
    content: Mutex<(Vec<u8>, Vec<bool>)>,
}

impl SimDevice {
    /// A device of holes. Its size is a multiple of its smallest block.
    pub fn new(geometry: Geometry) -> Self {
        let blocks = geometry.size / u64::from(geometry.min_block);
        let content = (vec![0; geometry.size as usize], vec![true; blocks as usize]);
        Self { geometry, content: Mutex::new(content) }
    }

    fn check(&self, offset: u64, len: u64) {
        let unit = u64::from(self.geometry.min_block);
        assert!(len > 0, "a request for nothing");
        assert!(offset.is_multiple_of(unit) && len.is_multiple_of(unit), "{offset}+{len}: a part of a block");
        let end = offset.checked_add(len);
        assert!(end.is_some_and(|end| end <= self.geometry.size), "{offset}+{len}: beyond the end");
    }

    fn change(&self, offset: u64, len: u64, hole: bool, fill: impl FnOnce(&mut [u8])) {
        self.check(offset, len);
        assert!(!self.geometry.read_only, "a change of what is read-only");
        let (from, to) = (offset as usize, (offset + len) as usize);
        let unit = self.geometry.min_block as usize;
        let mut content = self.content.lock();
        fill(&mut content.0[from..to]);
        content.1[from / unit..to / unit].fill(hole);
    }
}

#[async_trait]
impl BlockDevice for SimDevice {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Bytes> {
        self.check(offset, u64::from(len));
        assert!(len <= self.geometry.max_payload, "a read of {len} bytes");
        let content = self.content.lock();
        Ok(Bytes::copy_from_slice(&content.0[offset as usize..offset as usize + len as usize]))
    }

    async fn write(&self, offset: u64, data: Bytes, _fua: bool) -> Result<()> {
        assert!(data.len() as u64 <= u64::from(self.geometry.max_payload), "a write of {} bytes", data.len());
        self.change(offset, data.len() as u64, false, |bytes| bytes.copy_from_slice(&data));
        Ok(())
    }

    async fn write_zeroes(&self, offset: u64, len: u64, hole: bool, _fua: bool) -> Result<()> {
        self.change(offset, len, hole, |bytes| bytes.fill(0));
        Ok(())
    }

    async fn discard(&self, offset: u64, len: u64, _fua: bool) -> Result<()> {
        self.change(offset, len, true, |bytes| bytes.fill(0));
        Ok(())
    }

    async fn flush(&self) -> Result<()> {
        Ok(())
    }

    async fn extents(&self, offset: u64, len: u64) -> Result<Vec<Extent>> {
        // Whoever asks for a part of a block hears of the whole block.
        let unit = u64::from(self.geometry.min_block);
        let blocks = (offset / unit) as usize..(offset + len).div_ceil(unit) as usize;
        let content = self.content.lock();
        let holes = &content.1[blocks];
        let runs = holes.chunk_by(|a, b| a == b);
        Ok(runs.map(|run| Extent { len: run.len() as u64 * unit, hole: run[0], zero: run[0] }).collect())
    }

    async fn prefetch(&self, offset: u64, len: u64) -> Result<()> {
        self.check(offset, len);
        Ok(())
    }
}

/// Some devices by name.
#[derive(Default)]
pub struct SimExports {
    /// The devices, by full name.
    pub devices: BTreeMap<String, Arc<SimDevice>>,
}

#[async_trait]
impl Exports for SimExports {
    async fn list(&self) -> Result<Vec<ExportInfo>> {
        let info =
            |name: &String| ExportInfo { name: name.clone(), description: format!("simulated {name}") };
        Ok(self.devices.keys().map(info).collect())
    }

    async fn open(&self, name: &str) -> Result<Arc<dyn BlockDevice>> {
        match self.devices.get(name) {
            Some(device) => Ok(device.clone()),
            None => Err(Error::not_found(format!("there is no vDisk {name:?}"))),
        }
    }
}
