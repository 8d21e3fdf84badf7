//! A client's handle of an open vDisk: counts as a use, can be revoked, and keeps to the vDisk's limits.
//!
//! Costs a request one pointer and two flags: the futures are those of the device itself, but for
//! requests that wait for a limit.

#[cfg(test)]
mod tests;

use crate::qos::Lane;
use crate::vdisk::Vdisk;
use bytes::Bytes;
use common::{Baseline, BlockDevice, Difference, Error, ErrorKind, Extent, Geometry, Result};
use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The most that one prefetch brings nearer, so that it costs a limit what it does.
const MOST_PREFETCHED: u64 = 1 << 20;

type Pending<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

/// Shared by the handles of one opening of a vDisk; set once, when they are all revoked.
pub(crate) type Revoked = Arc<AtomicBool>;

/// A client's handle of an open vDisk.
pub(crate) struct Handle {
    device: Arc<dyn BlockDevice>,
    revoked: Revoked,
    read_only: bool,
    vdisk: Arc<Vdisk>,
}

impl Handle {
    /// A handle that was counted in `vdisk` already.
    pub(crate) fn new(
        device: Arc<dyn BlockDevice>,
        revoked: Revoked,
        read_only: bool,
        vdisk: Arc<Vdisk>,
    ) -> Self {
        Self { device, revoked, read_only, vdisk }
    }

    #[inline]
    fn refusal(&self, changes: bool) -> Option<Error> {
        if self.revoked.load(Ordering::Acquire) {
            return Some(Error::fenced(format!("vDisk '{}' was taken away from its clients", self.vdisk)));
        }
        if changes && self.read_only {
            return Some(Error::new(ErrorKind::Denied, format!("vDisk '{}' is read-only", self.vdisk)));
        }
        None
    }

    /// The request, once the vDisk's limits let `bytes` pass.
    #[inline]
    fn admit<'a, T: Send + 'a>(
        &'a self,
        lane: &'a Lane,
        bytes: u64,
        request: impl FnOnce() -> Pending<'a, T> + Send + 'a,
    ) -> Pending<'a, T> {
        if !lane.is_limited() || lane.try_pay(bytes) {
            return request();
        }
        Box::pin(async move {
            lane.pay(bytes, || self.revoked.load(Ordering::Acquire)).await;
            match self.refusal(false) {
                Some(error) => Err(error),
                None => request().await,
            }
        })
    }
}

fn refuse<'a, T: Send + 'a>(error: Error) -> Pending<'a, T> {
    Box::pin(ready(Err(error)))
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.vdisk.client_left();
    }
}

// Written out in place of `#[async_trait]`, which would wrap each future of the device in a second one.
impl BlockDevice for Handle {
    fn geometry(&self) -> Geometry {
        let mut geometry = self.device.geometry();
        geometry.read_only |= self.read_only;
        geometry
    }

    fn read<'s, 'a>(&'s self, offset: u64, len: u32) -> Pending<'a, Bytes>
    where
        's: 'a,
        Self: 'a,
    {
        match self.refusal(false) {
            Some(error) => refuse(error),
            None => {
                self.vdisk.traffic.all.read(len.into());
                self.admit(&self.vdisk.limits.reads, len.into(), move || self.device.read(offset, len))
            }
        }
    }

    fn write<'s, 'a>(&'s self, offset: u64, data: Bytes, fua: bool) -> Pending<'a, ()>
    where
        's: 'a,
        Self: 'a,
    {
        match self.refusal(true) {
            Some(error) => refuse(error),
            None => {
                let bytes = data.len() as u64;
                self.vdisk.traffic.all.wrote(bytes);
                self.admit(&self.vdisk.limits.writes, bytes, move || self.device.write(offset, data, fua))
            }
        }
    }

    fn write_zeroes<'s, 'a>(&'s self, offset: u64, len: u64, hole: bool, fua: bool) -> Pending<'a, ()>
    where
        's: 'a,
        Self: 'a,
    {
        match self.refusal(true) {
            Some(error) => refuse(error),
            None => {
                self.vdisk.traffic.all.wrote(0);
                self.admit(&self.vdisk.limits.writes, 0, move || {
                    self.device.write_zeroes(offset, len, hole, fua)
                })
            }
        }
    }

    fn discard<'s, 'a>(&'s self, offset: u64, len: u64, fua: bool) -> Pending<'a, ()>
    where
        's: 'a,
        Self: 'a,
    {
        match self.refusal(true) {
            Some(error) => refuse(error),
            None => {
                self.vdisk.traffic.all.wrote(0);
                self.admit(&self.vdisk.limits.writes, 0, move || self.device.discard(offset, len, fua))
            }
        }
    }

    fn flush<'s, 'a>(&'s self) -> Pending<'a, ()>
    where
        's: 'a,
        Self: 'a,
    {
        match self.refusal(false) {
            Some(error) => refuse(error),
            None => self.device.flush(),
        }
    }

    fn extents<'s, 'a>(&'s self, offset: u64, len: u64) -> Pending<'a, Vec<Extent>>
    where
        's: 'a,
        Self: 'a,
    {
        match self.refusal(false) {
            Some(error) => refuse(error),
            None => self.device.extents(offset, len),
        }
    }

    fn prefetch<'s, 'a>(&'s self, offset: u64, len: u64) -> Pending<'a, ()>
    where
        's: 'a,
        Self: 'a,
    {
        match self.refusal(false) {
            Some(error) => refuse(error),
            None => {
                let len = len.min(MOST_PREFETCHED);
                self.admit(&self.vdisk.limits.reads, len, move || self.device.prefetch(offset, len))
            }
        }
    }

    fn baselines(&self) -> Vec<Baseline> {
        self.device.baselines()
    }

    fn differences<'s, 'a>(&'s self, since: u128, offset: u64, len: u64) -> Pending<'a, Vec<Difference>>
    where
        's: 'a,
        Self: 'a,
    {
        match self.refusal(false) {
            Some(error) => refuse(error),
            None => self.device.differences(since, offset, len),
        }
    }
}
