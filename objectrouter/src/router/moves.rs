//! Volumes that go to another router: moved by an operator, given away at a stop, and taken by force.
//!
//! A move does not wait for the backend where a peer has the tail already (R7): the volume is closed here and given up
//! with the name of the router that is to claim it. Where nobody else has the tail, it is sent to the backend first,
//! while the volume serves, and what was written meanwhile in the short time in which it does not.

use super::Router;
use super::vpools::named;
use crate::cluster::succession::is_replicated;
use crate::registry::{NodeRecord, RouterRecord, Stored, VdiskLife};
use crate::vdisk::{Vdisk, VdiskInfo};
use common::error::Context;
use common::{Error, ErrorKind, Name, Result, mutant};
use dtl::{Config, Mode, Needed, OnFailure};
use futures::StreamExt;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use volumedriver::{Volume, VolumeState};

/// How long what is not at a peer may take to the backend, while the volume serves.
const DRAIN: Duration = Duration::from_secs(600);
/// The same while it does not.
const LAST_DRAIN: Duration = Duration::from_secs(20);
/// How long the other router may take to open it.
const ARRIVAL: Duration = Duration::from_secs(15);
/// Between two looks whether it has.
const LOOK: Duration = Duration::from_millis(20);
/// vDisks that are moved at a time when a router gives all of them away.
const MOVES: usize = 4;
/// The name of the task that does it.
const GIVE_AWAY: &str = "give all vDisks away";
/// Between two rounds of a router that drains.
const ROUND: Duration = Duration::from_secs(5);

/// A storage router, as an operator sees it.
#[derive(Debug, Clone)]
pub struct RouterInfo {
    /// Its name.
    pub name: Name,
    /// What it says of itself, when it is there.
    pub node: Option<NodeRecord>,
    /// It gives its vDisks away, and takes none.
    pub draining: bool,
    /// vDisks that it owns.
    pub vdisks: usize,
}

/// Who wants a vDisk to be elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MovedBy {
    /// An operator, or this router, which drains.
    Operator,
    /// Its clients at the other router: those that are here are not cut off for them.
    Clients,
}

/// What is to change in how the tail of a vDisk is replicated; `None` stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DtlWish {
    /// What is promised.
    pub mode: Option<Mode>,
    /// How many routers keep it.
    pub peers: Option<u8>,
    /// Of how many of them an acknowledgement needs the confirmation.
    pub needed: Option<Needed>,
    /// What to do when none is left.
    pub on_failure: Option<OnFailure>,
}

impl DtlWish {
    /// The configuration that is wished for in place of `now`; `None` when it is that already.
    fn over(&self, now: &Config) -> Result<Option<Config>> {
        let mode = self.mode.unwrap_or(now.mode);
        let peers = self.peers.unwrap_or(match (mode, now.wanted) {
            (Mode::None, _) => 0,
            (_, 0) => 1,
            (_, wanted) => wanted,
        });
        let right = if mode == Mode::None { 0..=0 } else { 1..=2 };
        if !right.contains(&peers) {
            let (least, most) = (right.start(), right.end());
            return Err(Error::invalid(format!(
                "{peers} DTL peers: with this mode there are {least} to {most}"
            )));
        }
        let (needed, on_failure) =
            (self.needed.unwrap_or(now.needed), self.on_failure.unwrap_or(now.on_failure));
        let same = (mode, peers, needed, on_failure) == (now.mode, now.wanted, now.needed, now.on_failure);
        Ok((!same).then(|| now.with_policy(mode, peers, needed, on_failure)))
    }
}

impl Router {
    /// All storage routers that belong here, in order of name.
    pub async fn routers(&self) -> Result<Vec<RouterInfo>> {
        let nodes = self.cluster.nodes();
        let mut owned: BTreeMap<Name, usize> = BTreeMap::new();
        for vdisk in self.all_vdisks() {
            *owned.entry(vdisk.owned().record.owner().clone()).or_default() += 1;
        }
        let known = self.records().routers().await?;
        let info = |(name, record): (Name, RouterRecord)| RouterInfo {
            node: nodes.get(&name).cloned(),
            draining: record.draining,
            vdisks: owned.get(&name).copied().unwrap_or(0),
            name,
        };
        Ok(known.into_iter().map(info).collect())
    }

    /// Gives a vDisk to another router; returns when it serves there. Its clients wait meanwhile.
    ///
    /// # Errors
    /// `NotFound` when that router is not there, `Denied` when it takes no vDisks, `NotOwner` when the vDisk is not
    /// this router's. After any other the vDisk is here or there, and opens by itself.
    pub async fn move_vdisk(self: &Arc<Self>, vpool: &str, name: &str, to: &Name) -> Result<VdiskInfo> {
        let vdisk = self.find_vdisk(vpool, name)?;
        let Some(node) = self.cluster.node(to) else {
            let there: Vec<_> = self.cluster.nodes().into_keys().map(|name| name.to_string()).collect();
            return Err(Error::not_found(format!(
                "storage router '{to}' is not there; there are {}",
                there.join(", ")
            )));
        };
        if node.draining {
            return Err(Error::new(
                ErrorKind::Denied,
                format!("storage router '{to}' is draining: it takes no vDisks"),
            ));
        }
        self.serve(&vdisk).await?;
        if to == self.cluster.me() {
            return Ok(self.info(&vdisk));
        }
        let (router, to) = (self.clone(), to.clone());
        let task = format!("move vDisk {vdisk} to {to}");
        let work = async move {
            router
                .do_move(&vdisk, &to, MovedBy::Operator)
                .await
                .context(format!("vDisk '{vdisk}' was not moved to '{to}'"))?;
            Ok(router.info(&vdisk))
        };
        self.tasks.run(task, work).await
    }

    pub(super) async fn do_move(self: &Arc<Self>, vdisk: &Arc<Vdisk>, to: &Name, by: MovedBy) -> Result<()> {
        let has_tail = |v: &Vdisk| {
            let record = v.owned().record;
            is_replicated(&record) && record.registration.config.peers.iter().any(|peer| peer.node == *to)
        };
        let Some(volume) = vdisk.volume() else { return Err(vdisk.why_closed()) };
        if !has_tail(vdisk) {
            // Twice: what came while the first one was under way is little.
            volume.drain(DRAIN).await?;
            volume.drain(DRAIN).await?;
        }
        {
            let _work = vdisk.work.lock().await;
            let why = Error::new(ErrorKind::NotOwner, format!("it is on its way to router '{to}'"));
            // If it stays, who was attached is attached: what they asked for in this epoch may be under way.
            let attached = vdisk.attached();
            if by == MovedBy::Clients && vdisk.has_handles() {
                return Err(Error::new(ErrorKind::Denied, "clients of this router have it open"));
            }
            let Some(volume) = vdisk.evict(why) else { return Err(vdisk.why_closed()) };
            let peer = has_tail(vdisk);
            let done = match peer {
                true => volume.log_flush().await.map(drop),
                false => volume.close_drained(LAST_DRAIN).await,
            };
            if let Err(error) = done {
                if matches!(volume.status().state, VolumeState::Stopped(_)) {
                    vdisk.forgive();
                    vdisk.pool.kick.notify_one();
                } else {
                    vdisk.reopen(volume, attached);
                    self.expel_if_lost(vdisk);
                }
                return Err(error);
            }
            // Whoever had passed the door before it was shut has their answer from the peer, or none.
            if !mutant::is_on("moves-before-it-is-closed") {
                volume.close().await;
            }
            if let Err(error) = self.let_go(&[(vdisk.clone(), !peer)], Some(to)).await {
                // Whether that was noted or not, the registry says whose it is.
                self.relearn_volume(vdisk).await;
                vdisk.forgive();
                vdisk.pool.kick.notify_one();
                return Err(error);
            }
        }
        self.arrived(vdisk, to).await
    }

    /// Waits until a router serves what was sent there.
    async fn arrived(&self, vdisk: &Vdisk, to: &Name) -> Result<()> {
        let until = self.clock.now() + ARRIVAL;
        loop {
            let volume = vdisk.owned().record;
            let begun = volume.registration.epoch == volume.registration.claimed;
            if begun && volume.holder.as_ref().is_some_and(|holder| holder.node == *to) {
                return Ok(());
            }
            if self.clock.now() >= until {
                // If it can't open it, somebody else is to.
                self.change_volume(vdisk, |record| {
                    if record.holder.is_none() && record.moving_to.as_ref() == Some(to) {
                        record.moving_to = None;
                    }
                })
                .await?;
                return Err(Error::unavailable(format!(
                    "router '{to}' has not opened it in {ARRIVAL:?}; it goes on trying"
                )));
            }
            self.clock.sleep(LOOK).await;
        }
    }

    /// Opens a vDisk here without what can't be had of what was acknowledged, which is recorded. It must not be served
    /// anywhere.
    pub async fn force_vdisk(self: &Arc<Self>, vpool: &str, name: &str) -> Result<VdiskInfo> {
        let vdisk = self.find_vdisk(vpool, name)?;
        let router = self.clone();
        let task = format!("force vDisk {vdisk}");
        let work = async move {
            let _work = vdisk.work.lock().await;
            if vdisk.volume().is_some() {
                return Err(Error::conflict(format!(
                    "vDisk '{vdisk}' is open here: there is nothing to force"
                )));
            }
            if vdisk.stored().record.state != VdiskLife::Active {
                let why = format!("vDisk '{vdisk}' is being made or deleted: there is nothing to force");
                return Err(Error::conflict(why));
            }
            // Who can have all of it is not to be passed over, but for this router, which may have tried in vain.
            if router.successor(&vdisk).is_some_and(|owner| owner != *router.cluster.me()) {
                return Err(router.elsewhere(&vdisk));
            }
            let pool = vdisk.pool.pool()?;
            let claim = router.claim_anyway(&vdisk, router.cluster.seat()?, true).await?;
            tracing::warn!(vdisk = %vdisk, "opened by force");
            router.open_claimed(&vdisk, &pool, &claim, true).await?;
            Ok(router.info(&vdisk))
        };
        self.tasks.run(task, work).await
    }

    /// The URL of the API of the router that owns a vDisk, when that is another one and is there.
    pub fn owner_api(&self, vpool: &str, name: &str) -> Option<String> {
        let vdisk = self.find_vdisk(vpool, name).ok()?;
        let owner = self.successor(&vdisk).filter(|owner| owner != self.cluster.me())?;
        self.cluster.node(&owner)?.addresses.api
    }

    /// Changes how the tail of a vDisk is replicated; the owner sees to it at once.
    ///
    /// # Errors
    /// `Invalid` for a number of peers that can't be; `NotOwner`.
    pub async fn set_dtl(self: &Arc<Self>, vpool: &str, name: &str, wish: DtlWish) -> Result<VdiskInfo> {
        let vdisk = self.find_vdisk(vpool, name)?;
        wish.over(&vdisk.owned().record.registration.config)?;
        self.serve(&vdisk).await?;
        let router = self.clone();
        let work = async move {
            let _work = vdisk.work.lock().await;
            let Some(volume) = vdisk.volume() else { return Err(vdisk.why_closed()) };
            router
                .change_volume(&vdisk, |record| {
                    if router.holds(record)
                        && let Ok(Some(config)) = wish.over(&record.registration.config)
                    {
                        record.registration.config = config;
                    }
                })
                .await?;
            if !router.holds(&vdisk.owned().record) {
                return Err(router.elsewhere(&vdisk));
            }
            let registration = vdisk.owned().record.registration;
            volume.observe(registration.claimed, registration.config);
            Ok(router.info(&vdisk))
        };
        self.tasks.run(format!("change the DTL of vDisk {vpool}/{name}"), work).await
    }

    /// Forgets a router that will not come back.
    ///
    /// # Errors
    /// `Conflict` while it is there, or while there are vDisks that only it can open: they are named.
    pub async fn remove_router(&self, name: &Name) -> Result<()> {
        let Some(Stored { revision, .. }) = self.records().router(name).await? else {
            return Err(Error::not_found(format!("there is no storage router '{name}'")));
        };
        if self.cluster.node(name).is_some() {
            return Err(Error::conflict(format!(
                "storage router '{name}' is there: stop it first (storagerouter cluster leave, on it)"
            )));
        }
        let owned = |vdisk: &Arc<Vdisk>| vdisk.owned().record.registration.owner == *name;
        let lost: Vec<_> =
            self.all_vdisks().into_iter().filter(|v| owned(v) && self.successor(v).is_none()).collect();
        if !lost.is_empty() {
            return Err(Error::conflict(format!(
                "only storage router '{name}' has all of {} vDisk(s): {}; bring it back, or force them (storagerouter vdisk force)",
                lost.len(),
                named(lost.iter())
            )));
        }
        self.cluster.forget(name, revision).await
    }

    /// Lets this router give its vDisks away and take none, or ends that. It lasts over restarts. Those that nobody else
    /// can have stay.
    pub async fn drain_router(self: &Arc<Self>, draining: bool) -> Result<()> {
        let name = self.cluster.me().clone();
        let Some(Stored { mut record, revision }) = self.records().router(&name).await? else {
            return Err(Error::not_found(format!("the registry has no storage router '{name}'")));
        };
        record.draining = draining;
        self.cluster.announce(&record, revision).await?;
        self.give_away_if_draining()
    }

    /// Gives all vDisks away before this router leaves for good; returns when it owns none. Nothing of that outlasts its seat.
    ///
    /// # Errors
    /// `Conflict`, with their names, when some are left after `limit`, or nobody is there to take them: then it takes vDisks as before.
    pub async fn give_all_away(self: &Arc<Self>, limit: Duration) -> Result<()> {
        let me = self.cluster.me().clone();
        let mine = || {
            let all = self.all_vdisks().into_iter();
            all.filter(|vdisk| vdisk.owned().record.owner() == &me).collect::<Vec<_>>()
        };
        self.cluster.retire().await?;
        self.give_away_if_draining()?;
        let until = self.clock.now() + limit;
        loop {
            let left = mine();
            if left.is_empty() {
                return Ok(());
            }
            let takers =
                self.cluster.nodes().into_iter().filter(|(name, node)| *name != me && !node.draining);
            let alone = takers.count() == 0;
            if alone || self.clock.now() >= until {
                self.take_vdisks_again().await?;
                let why = if alone {
                    "no other storage router is there to take them".to_owned()
                } else {
                    format!("the log says why, and {limit:?} have passed")
                };
                return Err(Error::conflict(format!(
                    "storage router '{me}' still owns {} vDisk(s), {}: {why}",
                    left.len(),
                    named(left.iter())
                )));
            }
            self.clock.sleep(LOOK).await;
        }
    }

    /// Ends what [`Router::give_all_away`] began; one that drains by an operator's wish goes on with that.
    pub async fn take_vdisks_again(&self) -> Result<()> {
        let name = self.cluster.me();
        match self.records().router(name).await? {
            Some(Stored { record, revision }) => self.cluster.announce(&record, revision).await,
            None => Err(Error::not_found(format!("the registry has no storage router '{name}'"))),
        }
    }

    /// Begins to give all vDisks away, unless that is under way or not wished.
    pub(super) fn give_away_if_draining(self: &Arc<Self>) -> Result<()> {
        let draining = self.cluster.node(self.cluster.me()).is_some_and(|node| node.draining);
        if draining && !self.tasks.names().iter().any(|name| name == GIVE_AWAY) {
            let router = self.clone();
            self.tasks.spawn(GIVE_AWAY, async move { router.give_away().await })?;
        }
        Ok(())
    }

    async fn give_away(self: &Arc<Self>) {
        loop {
            if self.cluster.node(self.cluster.me()).is_none_or(|node| !node.draining) {
                return;
            }
            let mine: Vec<_> = self.all_vdisks().into_iter().filter(|v| v.volume().is_some()).collect();
            futures::stream::iter(mine)
                .for_each_concurrent(MOVES, |vdisk| async move {
                    // Where all its peers give theirs away, too, it is drained, and anybody may have it.
                    let heir = self.heir(&vdisk, false).or_else(|| self.heir(&vdisk, true));
                    let Some(to) = heir else { return };
                    if let Err(error) = self.do_move(&vdisk, &to, MovedBy::Operator).await {
                        tracing::warn!(vdisk = %vdisk, %to, %error, "can't give a vDisk away yet");
                    }
                })
                .await;
            if !self.tasks.sleep(&*self.clock, ROUND).await {
                return;
            }
        }
    }

    /// Who is to have a vDisk when this router gives it away: a peer that has its tail; anybody, if it has none or `drained` says
    /// that the backend has all.
    fn heir(&self, vdisk: &Vdisk, drained: bool) -> Option<Name> {
        let mut there = self.cluster.nodes();
        there.remove(self.cluster.me());
        there.retain(|_, node| !node.draining);
        let mut record = vdisk.owned().record;
        if drained || !is_replicated(&record) {
            record.registration.clean = true;
            record.registration.tails.clear();
        }
        record.holder = None;
        record.moving_to = None;
        crate::cluster::succession::successor(vdisk.id, &record, &there)
    }

    /// Ends the background work and gives the volumes up: what peers have goes to them at once, of the rest what can be
    /// uploaded before `deadline` has passed is uploaded. What clients were told is durable stays so.
    pub async fn shutdown(&self, deadline: Duration) {
        let begin = self.clock.now();
        for name in self.tasks.stop(&*self.clock, deadline / 2).await {
            tracing::warn!(task = name, "cut short at shutdown; the next start resumes it");
        }
        let mut given: BTreeMap<Name, Vec<(Arc<Vdisk>, bool)>> = BTreeMap::new();
        let mut rest = Vec::new();
        for vdisk in self.all_vdisks() {
            let Some(volume) = vdisk.volume() else { continue };
            match self.heir(&vdisk, false).filter(|_| is_replicated(&vdisk.owned().record)) {
                Some(heir) => given.entry(heir).or_default().push((vdisk, false)),
                None => rest.push((vdisk, volume)),
            }
        }
        for (heir, vdisks) in given {
            futures::stream::iter(&vdisks)
                .for_each_concurrent(64, |(vdisk, _)| async move {
                    let why = Error::new(ErrorKind::NotOwner, "this router stops");
                    if let Some(volume) = vdisk.evict(why) {
                        if let Err(error) = volume.log_flush().await {
                            tracing::warn!(vdisk = %vdisk, %error, "can't flush before it is given away");
                        }
                        // Its peers have what the backend has not.
                        let _ = volume.close().await;
                    }
                })
                .await;
            tracing::info!(vdisks = vdisks.len(), to = %heir, "vDisks are given away");
            if let Err(error) = self.let_go(&vdisks, Some(&heir)).await {
                tracing::warn!(%error, "can't give vDisks away; others take them when the lease ends");
            }
        }
        let left = deadline.saturating_sub(self.clock.now().saturating_sub(begin));
        let drained = self.driver.shutdown(left).await;
        let rest: Vec<(Arc<Vdisk>, bool)> = rest
            .into_iter()
            .map(|(vdisk, _): (Arc<Vdisk>, Arc<Volume>)| {
                let clean = drained.contains(&vdisk.id);
                (vdisk, clean)
            })
            .collect();
        if let Err(error) = self.let_go(&rest, None).await {
            tracing::warn!(%error, "can't note in the registry that this router stops");
        }
        if let Ok(seat) = self.cluster.seat()
            && let Err(error) = seat.release().await
        {
            tracing::warn!(%error, "can't leave the registry's seat; it ends by itself");
        }
    }
}
