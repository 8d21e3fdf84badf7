//! Gauges and counters, computed when they are asked for: a vDisk that is gone leaves no line behind.

use crate::router::Router;
use crate::vdisk::VdiskInfo;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use std::fmt;
use std::sync::Weak;
use std::sync::atomic::Ordering;

pub(crate) struct RouterMetrics(pub(crate) Weak<Router>);

impl fmt::Debug for RouterMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RouterMetrics")
    }
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    let name = format!("storagerouter_objectrouter_{name}");
    let metric = encoder.encode_descriptor(&name, help, None, MetricType::Gauge)?;
    ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(metric)
}

/// What limits made wait, of each vDisk that has limits or had some.
fn qos(encoder: &mut DescriptorEncoder<'_>, vdisks: &[VdiskInfo]) -> fmt::Result {
    let both = |v: &VdiskInfo| [("read", v.reads_waited), ("write", v.writes_waited)];
    let had = |v: &&VdiskInfo| v.qos.is_some() || both(v).iter().any(|(_, waited)| waited.requests > 0);
    for (name, help, in_seconds) in [
        ("requests", "Requests of each vDisk that had to wait for one of its limits", false),
        ("seconds", "Time that they waited", true),
    ] {
        let name = format!("storagerouter_objectrouter_qos_waited_{name}");
        let mut metric = encoder.encode_descriptor(&name, help, None, MetricType::Counter)?;
        for vdisk in vdisks.iter().filter(had) {
            for (direction, waited) in both(vdisk) {
                let (vpool, name) = (vdisk.vpool.as_str(), vdisk.name.as_str());
                let labels = [("vpool", vpool), ("vdisk", name), ("direction", direction)];
                let metric = metric.encode_family(&labels)?;
                match in_seconds {
                    true => ConstCounter::new(waited.time.as_secs_f64()).encode(metric)?,
                    false => ConstCounter::new(waited.requests).encode(metric)?,
                }
            }
        }
    }
    Ok(())
}

/// What was asked of each vDisk by way of other routers, and what came of it.
fn traffic(encoder: &mut DescriptorEncoder<'_>, router: &Router, vdisks: &[VdiskInfo]) -> fmt::Result {
    let name = "storagerouter_objectrouter_remote_requests";
    let help = "Requests of each vDisk that came by way of another router, a large one once for each 64 KiB";
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for vdisk in vdisks {
        for (via, asked) in &vdisk.uses.by_way_of {
            for (direction, count) in [("read", asked.reads), ("write", asked.writes)] {
                let labels = [
                    ("vpool", vdisk.vpool.as_str()),
                    ("vdisk", vdisk.name.as_str()),
                    ("router", via.as_str()),
                    ("direction", direction),
                ];
                ConstCounter::new(count).encode(metric.encode_family(&labels)?)?;
            }
        }
    }
    let name = "storagerouter_objectrouter_auto_migrations";
    let help = "vDisks that moved to the router through which they are used, or did not";
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    let followed = &router.followed;
    for (outcome, count) in [("moved", &followed.moved), ("failed", &followed.failed)] {
        let count = count.load(Ordering::Relaxed);
        ConstCounter::new(count).encode(metric.encode_family(&[("outcome", outcome)])?)?;
    }
    Ok(())
}

impl Collector for RouterMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(router) = self.0.upgrade() else { return Ok(()) };
        let vpools = router.vpools();
        let vdisks = router.vdisks();
        let open = vdisks.iter().filter(|v| v.status.is_some()).count();
        let handles = vdisks.iter().map(|v| v.clients).sum();
        gauge(&mut encoder, "vpools", "vPools attached", vpools.len() as u64)?;
        gauge(&mut encoder, "vdisks", "vDisks registered", vdisks.len() as u64)?;
        gauge(&mut encoder, "open_volumes", "Volumes open", open as u64)?;
        gauge(
            &mut encoder,
            "routers",
            "Storage routers that are there, this one among them",
            router.nodes().len() as u64,
        )?;
        gauge(&mut encoder, "handles", "Handles held by clients, all vDisks together", handles)?;

        let name = "storagerouter_objectrouter_frontier_lsn";
        let help = "Frontiers of each open vDisk: positions in its log";
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for vdisk in &vdisks {
            let Some(status) = &vdisk.status else { continue };
            let f = status.frontiers;
            for (frontier, lsn) in [
                ("accepted", f.accepted),
                ("synced", f.synced),
                ("sealed", f.sealed),
                ("committed", f.committed),
                ("trimmed", f.trimmed),
            ] {
                let labels =
                    [("vpool", vdisk.vpool.as_str()), ("vdisk", vdisk.name.as_str()), ("frontier", frontier)];
                let value = i64::try_from(lsn.0).unwrap_or(i64::MAX);
                ConstGauge::new(value).encode(metric.encode_family(&labels)?)?;
            }
        }
        for (name, help, pick) in [
            (
                "stored_bytes",
                "Bytes of SCOs and TLogs of each open vDisk",
                (|s| s.stored_bytes) as fn(&volumedriver::VolumeStatus) -> u64,
            ),
            ("live_bytes", "Bytes of clusters that the head or a snapshot of each open vDisk reads", |s| {
                s.live_bytes + s.scrub.snapshot_bytes
            }),
            (
                "dtl_in_sync",
                "Whether the DTL peers of each open vDisk have all that was acknowledged; 0 without peers",
                |s| {
                    u64::from(s.replication.as_ref().is_some_and(|r| r.in_sync && !r.config.peers.is_empty()))
                },
            ),
            ("dirty_bytes", "Bytes of each open vDisk that are not on the backend yet", |s| s.dirty_bytes),
        ] {
            let name = format!("storagerouter_objectrouter_{name}");
            let mut metric = encoder.encode_descriptor(&name, help, None, MetricType::Gauge)?;
            for vdisk in &vdisks {
                let Some(status) = &vdisk.status else { continue };
                let labels = [("vpool", vdisk.vpool.as_str()), ("vdisk", vdisk.name.as_str())];
                let value = i64::try_from(pick(status)).unwrap_or(i64::MAX);
                ConstGauge::new(value).encode(metric.encode_family(&labels)?)?;
            }
        }
        traffic(&mut encoder, &router, &vdisks)?;
        qos(&mut encoder, &vdisks)
    }
}
