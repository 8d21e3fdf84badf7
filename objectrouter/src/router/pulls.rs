//! vDisks follow their clients: one that is asked for most through another router moves there.
//!
//! The owner counts what is asked of each vDisk and by way of whom, and looks now and then ([`Attraction`] says when that is enough).
//! No clients are cut off for it: while any have handles of this router, the vDisk stays.

use super::Router;
use super::moves::MovedBy;
use crate::cluster::attraction::{Attraction, Pull, Rule};
use crate::vdisk::Vdisk;
use common::{Name, VolumeId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// vDisks that moved to where they are used, since the start.
#[derive(Debug, Default)]
pub(crate) struct Followed {
    pub(crate) moved: AtomicU64,
    pub(crate) failed: AtomicU64,
}

impl Router {
    /// Looks where vDisks are used from, until the router stops.
    pub(super) async fn follow_clients(self: &Arc<Self>) {
        let window = Duration::from_secs(self.settings.auto_migrate_seconds);
        let mut attractions = BTreeMap::new();
        while self.tasks.sleep(&*self.clock, window).await {
            for (vdisk, pull) in self.pulls(&mut attractions) {
                let router = self.clone();
                let task = format!("move vDisk {vdisk} to {}, where it is used", pull.to);
                if self.tasks.spawn(task, async move { router.follow_pull(&vdisk, &pull).await }).is_err() {
                    return;
                }
            }
        }
    }

    /// What is to move now.
    fn pulls(&self, attractions: &mut BTreeMap<VolumeId, Attraction>) -> Vec<(Arc<Vdisk>, Pull)> {
        let rule =
            Rule { reads: self.settings.auto_migrate_reads, writes: self.settings.auto_migrate_writes };
        let nodes = self.cluster.nodes();
        let may = |name: &Name| {
            nodes.get(name).is_some_and(|node| !node.draining && !node.addresses.edge.is_empty())
        };
        let mut before = std::mem::take(attractions);
        let mut pulls = Vec::new();
        for vdisk in self.all_vdisks() {
            let wanted = vdisk.stored().record.auto_migrate.unwrap_or(self.settings.auto_migrate);
            let Some(volume) = vdisk.volume().filter(|_| wanted) else { continue };
            let (epoch, uses) = (volume.status().epoch, vdisk.traffic.uses());
            let mut attraction =
                before.remove(&vdisk.id).unwrap_or_else(|| Attraction::new(epoch, uses.clone()));
            let pull = attraction.look(epoch, uses, rule, |name| may(name) && !vdisk.has_handles());
            attractions.insert(vdisk.id, attraction);
            pulls.extend(pull.map(|pull| (vdisk, pull)));
        }
        pulls
    }

    async fn follow_pull(self: &Arc<Self>, vdisk: &Arc<Vdisk>, pull: &Pull) {
        let Pull { to, asked, of } = pull;
        tracing::info!(
            vdisk = %vdisk,
            %to,
            reads = asked.reads,
            of_reads = of.reads,
            writes = asked.writes,
            of_writes = of.writes,
            seconds = self.settings.auto_migrate_seconds,
            "most of what is asked of the vDisk comes through another router: it moves there"
        );
        match self.do_move(vdisk, to, MovedBy::Clients).await {
            Ok(()) => self.followed.moved.fetch_add(1, Ordering::Relaxed),
            Err(error) => {
                tracing::warn!(vdisk = %vdisk, %to, %error, "the vDisk did not move to where it is used");
                self.followed.failed.fetch_add(1, Ordering::Relaxed)
            }
        };
    }
}
