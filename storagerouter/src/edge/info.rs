//! `edge info`.

use super::connect::Connect;
use crate::cli::edge::Info;
use crate::client::{print, tables};
use anyhow::{Context, Result};
use common::BlockDevice;
use edge_client::wire::Mode;
use serde_json::json;

/// `edge info`.
pub async fn run(args: &Info) -> Result<()> {
    let connect = Connect::new(&args.routers, "edge info", super::say)?;
    let device = connect.open(&args.export, Mode::ReadOnly).await?;
    let home = device.home().context("the router has gone")?;
    let geometry = device.geometry();
    let in_sync = device.in_sync();
    device.close().await;
    let (read_only, forwarded) = (home.granted.disk_read_only, home.granted.forwarded);
    if args.json {
        let told = json!({
            "name": args.export,
            "size_bytes": geometry.size,
            "cluster_size_bytes": geometry.preferred_block,
            "read_only": read_only,
            "epoch": home.granted.epoch.0,
            "in_sync": in_sync,
            "router": home.router,
            "address": home.address,
            "forwarded": forwarded,
        });
        return print(&serde_json::to_string_pretty(&told)?);
    }
    let yes = |is: bool| Some(if is { "yes" } else { "no" }.to_string());
    let router = format!("{} at {}", home.router, home.address);
    print(&tables::pairs(vec![
        ("name", Some(args.export.clone())),
        ("size", Some(tables::both(geometry.size))),
        ("cluster", Some(crate::size::human(geometry.preferred_block.into()))),
        ("read only", yes(read_only)),
        ("epoch", Some(home.granted.epoch.0.to_string())),
        ("in sync", yes(in_sync)),
        ("owner", (!forwarded).then(|| router.clone())),
        ("forwarded by", forwarded.then_some(router)),
    ]))
}
