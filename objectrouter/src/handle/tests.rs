use super::*;
use crate::registry::{Stored, VdiskRecord, VpoolRecord};
use crate::vpool::{PoolPhase, Vpool};
use async_trait::async_trait;
use common::{Epoch, VolumeId};

struct Device;

#[async_trait]
impl BlockDevice for Device {
    fn geometry(&self) -> Geometry {
        Geometry { size: 8192, min_block: 1, preferred_block: 4096, max_payload: 1 << 20, read_only: false }
    }
    async fn read(&self, _: u64, len: u32) -> Result<Bytes> {
        Ok(vec![7; len as usize].into())
    }
    async fn write(&self, _: u64, _: Bytes, _: bool) -> Result<()> {
        Ok(())
    }
    async fn write_zeroes(&self, _: u64, _: u64, _: bool, _: bool) -> Result<()> {
        Ok(())
    }
    async fn discard(&self, _: u64, _: u64, _: bool) -> Result<()> {
        Ok(())
    }
    async fn flush(&self) -> Result<()> {
        Ok(())
    }
    async fn extents(&self, _: u64, len: u64) -> Result<Vec<Extent>> {
        Ok(vec![Extent { len, hole: true, zero: true }])
    }
    async fn prefetch(&self, _: u64, _: u64) -> Result<()> {
        Ok(())
    }
}

fn handle(read_only: bool) -> (Handle, Revoked) {
    let pool = VpoolRecord::new(1, serde_json::Value::Null, 4096, None);
    let stored = Stored { record: pool, revision: 1 };
    let pool = Arc::new(Vpool::new("p".parse().unwrap(), stored, PoolPhase::Opening(None)));
    let record = VdiskRecord::new(VolumeId(1), 8192, 8 << 20, Epoch(1), "node");
    let vdisk = Vdisk::new(pool, "d".parse().unwrap(), Stored { record, revision: 1 });
    vdisk.count_client();
    let revoked = Revoked::default();
    (Handle::new(Arc::new(Device), revoked.clone(), read_only, vdisk), revoked)
}

async fn all_requests(h: &Handle) -> Vec<(&'static str, Option<ErrorKind>)> {
    let kind = |r: Result<()>| r.err().map(|e| e.kind);
    vec![
        ("read", kind(h.read(0, 4).await.map(drop))),
        ("flush", kind(h.flush().await)),
        ("extents", kind(h.extents(0, 4).await.map(drop))),
        ("prefetch", kind(h.prefetch(0, 4).await)),
        ("write", kind(h.write(0, Bytes::from_static(b"x"), false).await)),
        ("write_zeroes", kind(h.write_zeroes(0, 4, false, false).await)),
        ("discard", kind(h.discard(0, 4, false).await)),
    ]
}

#[tokio::test]
async fn a_handle_passes_everything_through() {
    let (handle, _) = handle(false);
    assert_eq!(handle.read(0, 3).await.unwrap(), Bytes::from_static(&[7, 7, 7]));
    assert!(!handle.geometry().read_only);
    for (request, error) in all_requests(&handle).await {
        assert_eq!(error, None, "{request}");
    }
}

#[tokio::test]
async fn every_request_of_a_revoked_handle_is_fenced() {
    let (handle, revoked) = handle(false);
    revoked.store(true, Ordering::Release);
    for (request, error) in all_requests(&handle).await {
        assert_eq!(error, Some(ErrorKind::Fenced), "{request}");
    }
}

#[tokio::test]
async fn a_read_only_vdisk_takes_no_change() {
    let (handle, _) = handle(true);
    assert!(handle.geometry().read_only);
    for (request, error) in all_requests(&handle).await {
        let changes = matches!(request, "write" | "write_zeroes" | "discard");
        assert_eq!(error, changes.then_some(ErrorKind::Denied), "{request}");
    }
}

#[tokio::test]
async fn a_dropped_handle_no_longer_counts() {
    let (handle, _) = handle(false);
    let vdisk = handle.vdisk.clone();
    assert_eq!(vdisk.info().clients, 1);
    drop(handle);
    assert_eq!(vdisk.info().clients, 0);
}
