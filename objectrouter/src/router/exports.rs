//! Clients come in by name.

use super::Router;
use crate::registry::VdiskLife;
use crate::vdisk::{Phase, Vdisk, VdiskState};
use crate::vpool::PoolPhase;
use async_trait::async_trait;
use common::{BlockDevice, Error, ExportInfo, Exports, Name, Result};
use std::sync::Arc;

impl Router {
    /// The vDisk that a client means.
    pub(super) fn find_export(&self, name: &str) -> Result<Arc<Vdisk>> {
        if let Some((pool, vdisk)) = name.split_once('/') {
            return self.find_vdisk(pool, vdisk);
        }
        if name.is_empty() {
            return Err(Error::not_found("no export was named; give 'vpool/vdisk'"));
        }
        let no_such = || Error::not_found(format!("there is no vDisk '{}'", name.escape_debug()));
        let wanted: Name = name.parse().map_err(|_| no_such())?;
        let found: Vec<_> = self.all_vdisks().into_iter().filter(|v| v.name == wanted).collect();
        match &found[..] {
            [] => Err(no_such()),
            [one] => Ok(one.clone()),
            many => {
                let candidates: Vec<_> = many.iter().map(|v| format!("'{v}'")).collect();
                let candidates = candidates.join(", ");
                Err(Error::invalid(format!(
                    "more than one vDisk is called '{wanted}': say which of {candidates}"
                )))
            }
        }
    }

    /// The whole name of what a client means: `vpool/vdisk` or `vpool/vdisk@snapshot`.
    pub fn export_name(&self, name: &str) -> Result<String> {
        let (vdisk, snapshot) =
            name.split_once('@').map_or((name, None), |(vdisk, rest)| (vdisk, Some(rest)));
        let vdisk = self.find_export(vdisk)?;
        Ok(snapshot.map_or(vdisk.to_string(), |snapshot| format!("{vdisk}@{snapshot}")))
    }

    /// Makes the vDisk serve, at once, whatever the background is busy with.
    pub(super) async fn serve(self: &Arc<Self>, vdisk: &Arc<Vdisk>) -> Result<()> {
        if vdisk.stored().record.state == VdiskLife::Deleting {
            return Err(Error::not_found(format!("vDisk '{vdisk}' is being deleted")));
        }
        if self.successor(vdisk).is_some_and(|owner| owner != *self.cluster.me()) {
            return Err(self.elsewhere(vdisk));
        }
        match vdisk.phase() {
            Phase::Open(_) => return Ok(()),
            Phase::Leaving => return Err(vdisk.why_closed()),
            Phase::Failed(error) if !error.kind.is_transient() => return Err(vdisk.why_closed()),
            Phase::Closed | Phase::Failed(_) => {}
        }
        // Right after the start its vPool may not have been tried yet; that try ends.
        let mut phase = vdisk.pool.phase.subscribe();
        if phase.wait_for(|phase| !matches!(phase, PoolPhase::Opening(None))).await.is_err() {
            return Err(vdisk.why_closed());
        }
        vdisk.pool.pool()?;
        let (router, subject) = (self.clone(), vdisk.clone());
        let seen = vdisk.tries();
        self.tasks
            .run(format!("open vDisk {vdisk}"), async move {
                router.advance(&subject, seen).await;
                Ok(())
            })
            .await?;
        if vdisk.volume().is_some() {
            return Ok(());
        }
        // The client may not come back: it is tried again without one.
        vdisk.pool.kick.notify_one();
        Err(vdisk.why_closed())
    }

    /// Opens a vDisk for a client, by `vpool/vdisk` or by a plain name when it is unique; with `@snapshot`
    /// behind it, a snapshot of it, to be read.
    pub async fn open_export(self: &Arc<Self>, name: &str) -> Result<Arc<dyn BlockDevice>> {
        if let Some((vdisk, snapshot)) = name.split_once('@') {
            return self.open_snapshot(&self.find_export(vdisk)?, snapshot).await;
        }
        let vdisk = self.find_export(name)?;
        if let Some(handle) = vdisk.enter() {
            return Ok(Arc::new(handle));
        }
        self.serve(&vdisk).await?;
        match vdisk.enter() {
            Some(handle) => Ok(Arc::new(handle)),
            None => Err(vdisk.why_closed()),
        }
    }
}

/// The door for block front ends.
#[derive(Clone)]
pub struct RouterExports(pub Arc<Router>);

#[async_trait]
impl Exports for RouterExports {
    async fn list(&self) -> Result<Vec<ExportInfo>> {
        let vdisks = self.0.vdisks().into_iter();
        let listed = vdisks.filter(|v| !matches!(v.state, VdiskState::Deleting | VdiskState::Creating));
        let mut exports: Vec<_> = listed
            .map(|v| ExportInfo {
                name: format!("{}/{}", v.vpool, v.name),
                description: match (&v.reason, v.status.is_some()) {
                    (Some(reason), false) => format!("{} bytes, not open: {reason}", v.size),
                    (None, false) => format!("{} bytes, not open yet", v.size),
                    (_, true) => format!("{} bytes", v.size),
                },
            })
            .collect();
        exports.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(exports)
    }

    async fn open(&self, name: &str) -> Result<Arc<dyn BlockDevice>> {
        self.0.open_export(name).await
    }
}
