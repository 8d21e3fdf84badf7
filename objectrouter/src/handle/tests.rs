use super::*;
use crate::qos::Qos;
use crate::registry::{Stored, VdiskRecord, VolumeRecord, VpoolRecord};
use crate::vpool::{PoolPhase, Vpool};
use async_trait::async_trait;
use common::sim::SimClock;
use common::{Clock, VolumeId};
use futures::FutureExt;
use futures::future::join_all;
use std::time::Duration;

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
    limited(read_only, None)
}

fn limited(read_only: bool, qos: Option<Qos>) -> (Handle, Revoked) {
    let pool = VpoolRecord::new(1, serde_json::Value::Null, 4096, None);
    let stored = Stored { record: pool, revision: 1 };
    let pool = Arc::new(Vpool::new("p".parse().unwrap(), stored, PoolPhase::Opening(None)));
    let mut record = VdiskRecord::new(VolumeId(1), 8192, 8 << 20);
    record.qos = qos;
    let name = || "d".parse().unwrap();
    let volume = VolumeRecord::new(pool.name.clone(), name(), name(), dtl::Config::default());
    let stored = (Stored { record, revision: 1 }, Stored { record: volume, revision: 1 });
    let vdisk = Vdisk::new(pool, "d".parse().unwrap(), stored, Arc::new(SimClock::new(1)));
    vdisk.count_client();
    let revoked = vdisk.door();
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
    assert_eq!(vdisk.clients(), 1);
    drop(handle);
    assert_eq!(vdisk.clients(), 0);
}

const KIB: u64 = 1024;

/// One request per second and 16 KiB per second in each direction, and four seconds of both at once.
fn slow() -> Option<Qos> {
    Some(Qos {
        read_iops: Some(1),
        write_iops: Some(1),
        read_bytes_per_second: Some(16 * KIB),
        write_bytes_per_second: Some(16 * KIB),
        burst_ms: 4000,
    })
}

/// How many of these in a row go at once.
fn at_once<T>(request: impl Fn() -> Pending<'static, T>) -> usize {
    (0..100).take_while(|_| request().now_or_never().is_some()).count()
}

#[tokio::test(start_paused = true)]
async fn each_request_costs_what_is_promised() {
    let new = || -> &'static Handle { Box::leak(Box::new(limited(false, slow()).0)) };
    let small = Bytes::from_static(&[1; 512]);
    let large = Bytes::from(vec![1; 32 << 10]);
    // Four requests, or 64 KiB.
    let h = new();
    assert_eq!(at_once(|| h.read(0, 512)), 4);
    assert_eq!(at_once(|| h.prefetch(0, 512)), 0, "a prefetch is a read");
    assert_eq!(at_once(|| h.write(0, small.clone(), false)), 4, "writes have limits of their own");
    assert_eq!(at_once(|| h.discard(0, 4, false)), 0, "a discard is a write");
    assert_eq!(at_once(|| h.write_zeroes(0, 4, false, false)), 0, "a write of zeroes is a write");
    for _ in 0..100 {
        h.flush().await.unwrap();
        h.extents(0, 4).await.unwrap();
    }
    let h = new();
    assert_eq!(at_once(|| h.read(0, 32 << 10)), 2, "bytes count");
    assert_eq!(at_once(|| h.write(0, large.clone(), false)), 2, "bytes count");
    let h = new();
    assert_eq!(at_once(|| h.discard(0, u64::MAX, false)), 4, "no bytes");
    let h = new();
    assert_eq!(at_once(|| h.write_zeroes(0, u64::MAX, true, false)), 4, "no bytes");
    let h = new();
    h.prefetch(0, u64::MAX).await.unwrap();
    let clock = SimClock::new(1);
    h.read(0, 512).await.unwrap();
    let paid = Duration::from_secs(1024 / 16 - 4);
    assert!((paid..=2 * paid).contains(&clock.now()), "a prefetch of all costs 1 MiB: {:?}", clock.now());
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_costs_nothing() {
    let (handle, _) = limited(true, slow());
    for _ in 0..100 {
        let error = handle.write(0, Bytes::from_static(b"x"), false).now_or_never().unwrap().unwrap_err();
        assert_eq!(error.kind, ErrorKind::Denied);
    }
}

#[tokio::test(start_paused = true)]
async fn all_handles_of_a_vdisk_share_its_limits() {
    let (one, revoked) = limited(false, slow());
    one.vdisk.count_client();
    let two = Handle::new(Arc::new(Device), revoked, false, one.vdisk.clone());
    let clock = SimClock::new(1);
    let both = [&one, &two];
    join_all((0..14).map(|n| both[n % 2].read(0, 4))).await;
    assert!((10..=11).contains(&clock.now().as_secs()), "{:?}", clock.now());
}

#[tokio::test(start_paused = true)]
async fn requests_that_wait_are_freed_when_their_handle_is_revoked() {
    let (handle, revoked) = limited(false, slow());
    assert_eq!(join_all((0..4).map(|_| handle.read(0, 4))).await.len(), 4);
    let clock = SimClock::new(1);
    let mut waiting: Vec<_> = (0..10).map(|_| handle.read(0, 4)).collect();
    for one in &mut waiting {
        assert!(futures::poll!(one).is_pending());
    }
    handle.vdisk.revoke();
    assert!(revoked.load(Ordering::Acquire));
    for answer in join_all(waiting).await {
        assert_eq!(answer.unwrap_err().kind, ErrorKind::Fenced);
    }
    assert_eq!(clock.now(), Duration::ZERO);
    assert_eq!(handle.vdisk.limits.reads.waited().requests, 10);
}
