//! `vdisk snapshot` and what belongs to it: what is asked, and how the answer is shown.

use super::commands::{NOTHING, done, name, vdisk_path};
use super::http::{Api, escape};
use super::{show, tables};
use crate::cli::{Output, SnapshotAction};
use crate::failure::Failure;
use anyhow::Result;
use framework::types::{
    CloneCreate, GroupSnapshotCreate, MakeTemplate, Rollback, Snapshot, SnapshotCreate, SnapshotList,
    SnapshotPatch, Vdisk,
};
use hyper::Method;
use std::time::Duration;

/// The backend may have to take gigabytes first.
const PATIENCE: Duration = Duration::from_secs(120);

/// Carries one of them out.
pub async fn run(api: Api, output: Output, action: &SnapshotAction) -> Result<()> {
    let api = api.with_timeout(PATIENCE);
    match action {
        SnapshotAction::Snapshot { vdisk, name: snapshot, with, consistent, sticky, metadata } => {
            let body = SnapshotCreate {
                name: name(snapshot)?,
                consistent: *consistent,
                sticky: *sticky,
                metadata: metadata.clone(),
            };
            let path = vdisk_path(&api, vdisk).await?;
            if with.is_empty() {
                let taken: Snapshot =
                    api.call(Method::POST, &format!("{path}/snapshots"), Some(&body)).await?;
                return show(output, &taken, tables::snapshot);
            }
            let mut vdisks = Vec::with_capacity(1 + with.len());
            for vdisk in std::iter::once(vdisk).chain(with) {
                let vdisk: Vdisk = api.get(&vdisk_path(&api, vdisk).await?).await?;
                vdisks.push(format!("{}/{}", vdisk.vpool, vdisk.name));
            }
            let body = GroupSnapshotCreate { vdisks, snapshot: body };
            let list: SnapshotList = api.call(Method::POST, "/api/v1/snapshots", Some(&body)).await?;
            show(output, &list, |list| tables::snapshots(&list.items))
        }
        SnapshotAction::Snapshots { vdisk } => {
            let list: SnapshotList =
                api.get(&format!("{}/snapshots", vdisk_path(&api, vdisk).await?)).await?;
            show(output, &list, |list| tables::snapshots(&list.items))
        }
        SnapshotAction::SnapshotShow { vdisk, snapshot } => {
            let shown: Snapshot = api.get(&snapshot_path(&api, vdisk, snapshot).await?).await?;
            show(output, &shown, tables::snapshot)
        }
        SnapshotAction::SnapshotSet { vdisk, snapshot, consistent, sticky, metadata } => {
            let path = snapshot_path(&api, vdisk, snapshot).await?;
            let body = SnapshotPatch { consistent: *consistent, sticky: *sticky, metadata: metadata.clone() };
            let shown: Snapshot = api.call(Method::PATCH, &path, Some(&body)).await?;
            show(output, &shown, tables::snapshot)
        }
        SnapshotAction::SnapshotDelete { vdisk, snapshot } => {
            let path = snapshot_path(&api, vdisk, snapshot).await?;
            api.request(Method::DELETE, &path, NOTHING).await?;
            done(output, &format!("snapshot {vdisk}@{snapshot} deleted"))
        }
        SnapshotAction::Clone { origin, name: clone } => {
            let (vdisk, snapshot) = match origin.split_once('@') {
                Some((vdisk, snapshot)) => (vdisk, Some(self::snapshot(snapshot)?)),
                None => (origin.as_str(), None),
            };
            let path = vdisk_path(&api, vdisk).await?;
            let body = CloneCreate { name: name(clone)?, snapshot };
            let made: Vdisk = api.call(Method::POST, &format!("{path}/clone"), Some(&body)).await?;
            show(output, &made, tables::vdisk)
        }
        SnapshotAction::Rollback { vdisk, snapshot, force } => {
            let path = vdisk_path(&api, vdisk).await?;
            let body = Rollback { snapshot: self::snapshot(snapshot)?, force: *force };
            let vdisk: Vdisk = api.call(Method::POST, &format!("{path}/rollback"), Some(&body)).await?;
            show(output, &vdisk, tables::vdisk)
        }
        SnapshotAction::Template { vdisk, force } => {
            let path = vdisk_path(&api, vdisk).await?;
            let body = MakeTemplate { force: *force };
            let vdisk: Vdisk = api.call(Method::POST, &format!("{path}/template"), Some(&body)).await?;
            show(output, &vdisk, tables::vdisk)
        }
    }
}

/// Checks a snapshot's name before it is sent.
fn snapshot(text: &str) -> Result<String> {
    name(text).map_err(|error| Failure::usage(format!("snapshot: {error}")))
}

async fn snapshot_path(api: &Api, vdisk: &str, text: &str) -> Result<String> {
    Ok(format!("{}/snapshots/{}", vdisk_path(api, vdisk).await?, escape(&snapshot(text)?)))
}
