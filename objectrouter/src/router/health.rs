//! What is not well, and whether everything that can open has opened.

use super::Router;
use crate::vdisk::{Phase, VdiskInfo, VdiskState};
use crate::vpool::VpoolState;

/// How bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum HealthLevel {
    /// Nothing is wrong: a notice.
    Ok,
    /// Serves; somebody should look.
    Warning,
    /// Something does not serve.
    Error,
}

/// One thing that is not well, or a notice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthItem {
    /// What: `vpool/NAME`, `vdisk/VPOOL/NAME`, `journal`, `read-cache`, `cluster`, `dtl`.
    pub subject: String,
    /// How bad.
    pub level: HealthLevel,
    /// Why.
    pub reason: String,
}

impl HealthItem {
    fn new(subject: String, level: HealthLevel, reason: impl Into<String>) -> Self {
        Self { subject, level, reason: reason.into() }
    }
}

impl Router {
    /// What is not well, the worst first, and notices.
    pub fn health(&self) -> Vec<HealthItem> {
        let mut items = Vec::new();
        if let Some(problem) = self.driver.journal_problem() {
            items.push(HealthItem::new("journal".into(), HealthLevel::Error, problem));
        }
        if let Some(problem) = self.driver.read_cache_problem() {
            let reason = format!("its part on the SSD is off until the next start: {problem}");
            items.push(HealthItem::new("read-cache".into(), HealthLevel::Warning, reason));
        }
        let vdisks = self.vdisks();
        if let Err(error) = self.cluster.seat() {
            items.push(HealthItem::new("cluster".into(), HealthLevel::Error, error.to_string()));
        }
        items.extend(self.unreplicated(&vdisks));
        for pool in self.vpools() {
            let subject = format!("vpool/{}", pool.name);
            match (pool.state, pool.reason) {
                (VpoolState::Serving, _) => {}
                (VpoolState::Opening, None) => {
                    let reason = "its object store is being opened";
                    items.push(HealthItem::new(subject.clone(), HealthLevel::Warning, reason));
                }
                (VpoolState::Opening | VpoolState::Failed, reason) => {
                    let reason = reason.unwrap_or_default();
                    items.push(HealthItem::new(subject.clone(), HealthLevel::Error, reason));
                }
                (VpoolState::Deleting, _) => {
                    items.push(HealthItem::new(subject.clone(), HealthLevel::Ok, "it is being deleted"));
                }
            }
            let degraded =
                || vdisks.iter().filter(|v| v.vpool == pool.name && v.state == VdiskState::Degraded);
            if let Some(first) = degraded().next() {
                let reason = format!(
                    "{} of {} vDisks can't send to the object store, '{}' for one: {}",
                    degraded().count(),
                    pool.vdisks,
                    first.name,
                    first.reason.as_deref().unwrap_or("no reason known")
                );
                items.push(HealthItem::new(subject.clone(), HealthLevel::Warning, reason));
            }
            if let Some(warning) = pool.warning {
                items.push(HealthItem::new(subject, HealthLevel::Ok, warning));
            }
        }
        for vdisk in vdisks {
            let level = match vdisk.state {
                VdiskState::Failed | VdiskState::Stopped | VdiskState::Orphaned => HealthLevel::Error,
                VdiskState::Creating | VdiskState::Deleting if vdisk.reason.is_some() => HealthLevel::Warning,
                _ => continue,
            };
            let subject = format!("vdisk/{}/{}", vdisk.vpool, vdisk.name);
            items.push(HealthItem::new(subject, level, vdisk.reason.unwrap_or_default()));
        }
        items.sort_by_key(|item| std::cmp::Reverse(item.level));
        items
    }

    /// vDisks whose tail should be elsewhere too, and is not.
    fn unreplicated(&self, vdisks: &[VdiskInfo]) -> Option<HealthItem> {
        let alone = |v: &&VdiskInfo| {
            v.status.is_some() && v.dtl.mode != dtl::Mode::None && v.dtl.status != dtl::Status::InSync
        };
        let first = vdisks.iter().find(alone)?;
        let reason = format!(
            "{} vDisk(s) have nobody else who has all that was acknowledged, '{}/{}' for one: they have {} of {} DTL peers",
            vdisks.iter().filter(alone).count(),
            first.vpool,
            first.name,
            first.dtl.peers.len(),
            first.dtl.wanted
        );
        Some(HealthItem::new("dtl".into(), HealthLevel::Warning, reason))
    }

    /// `Ok` when each vPool and each volume was tried: it is open, or `health` says why not.
    /// Else what is still awaited.
    pub fn ready(&self) -> Result<(), Vec<String>> {
        let mut awaited = Vec::new();
        for pool in self.pools() {
            if !pool.was_tried() {
                awaited.push(format!("vPool '{}' is being opened", pool.name));
            }
        }
        let opening = self
            .all_vdisks()
            .iter()
            .filter(|v| v.pool.pool().is_ok() && matches!(v.phase(), Phase::Closed) && v.tries() == 0)
            .filter(|v| self.is_mine(v))
            .count();
        if opening > 0 {
            awaited.push(format!("{opening} vDisk(s) are being opened"));
        }
        if awaited.is_empty() { Ok(()) } else { Err(awaited) }
    }
}
