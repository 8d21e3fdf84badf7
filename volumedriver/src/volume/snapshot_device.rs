//! A snapshot as a block device that nobody writes.

use super::Shared;
use super::pump::Command;
use crate::read_cache::streams::Streams;
use crate::view::View;
use async_trait::async_trait;
use bytes::Bytes;
use common::{Baseline, BlockDevice, Difference, Error, ErrorKind, Extent, Geometry, Result};
use std::sync::Arc;
use tokio::sync::mpsc;

/// What a volume was when a snapshot was taken. Reads fail once the volume is closed.
pub struct SnapshotDevice {
    shared: Arc<Shared>,
    view: Arc<View>,
    commands: mpsc::WeakSender<Command>,
    streams: Streams,
}

impl SnapshotDevice {
    pub(super) fn new(shared: Arc<Shared>, view: Arc<View>, commands: mpsc::WeakSender<Command>) -> Self {
        Self { shared, view, commands, streams: Streams::default() }
    }

    fn check(&self, offset: u64, len: u64) -> Result<()> {
        self.shared.core.lock().check()?;
        match offset.checked_add(len) {
            Some(end) if end <= self.view.size() => Ok(()),
            _ => Err(Error::invalid(format!(
                "{len} bytes at {offset} are beyond the end of the snapshot ({} bytes)",
                self.view.size()
            ))),
        }
    }

    fn refuse(&self) -> Result<()> {
        Err(Error::new(ErrorKind::Denied, "a snapshot can't be written; write to a clone of it"))
    }
}

#[async_trait]
impl BlockDevice for SnapshotDevice {
    fn geometry(&self) -> Geometry {
        Geometry {
            size: self.view.size(),
            min_block: 512,
            preferred_block: self.shared.cluster,
            max_payload: 32 << 20,
            read_only: true,
        }
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Bytes> {
        let len = u64::from(len);
        self.check(offset, len)?;
        if len == 0 {
            return Ok(Bytes::new());
        }
        let cluster = u64::from(self.shared.cluster);
        let first = offset / cluster;
        let count = (offset + len).div_ceil(cluster) - first;
        self.shared.look_ahead(&self.streams, Some(&self.view), offset, len as u32);
        let clusters = self.shared.read_view(&self.view, first, count).await?;
        let skip = (offset - first * cluster) as usize;
        Ok(clusters.slice(skip..skip + len as usize))
    }

    async fn write(&self, _offset: u64, _data: Bytes, _fua: bool) -> Result<()> {
        self.refuse()
    }

    async fn write_zeroes(&self, _offset: u64, _len: u64, _hole: bool, _fua: bool) -> Result<()> {
        self.refuse()
    }

    async fn discard(&self, _offset: u64, _len: u64, _fua: bool) -> Result<()> {
        self.refuse()
    }

    async fn flush(&self) -> Result<()> {
        Ok(())
    }

    async fn extents(&self, offset: u64, len: u64) -> Result<Vec<Extent>> {
        self.check(offset, len)?;
        self.shared.view_extents(&self.view, offset, len).await
    }

    async fn prefetch(&self, offset: u64, len: u64) -> Result<()> {
        // The most that one request brings nearer: what a read of it would.
        self.read(offset, len.min(1 << 20) as u32).await.map(drop)
    }

    fn baselines(&self) -> Vec<Baseline> {
        self.shared.snapshots.baselines()
    }

    async fn differences(&self, since: u128, offset: u64, len: u64) -> Result<Vec<Difference>> {
        self.check(offset, len)?;
        let (commands, of) = (self.commands.upgrade(), self.view.snapshot());
        self.shared.differences_from(commands.as_ref(), of, since, (offset, len)).await
    }
}
