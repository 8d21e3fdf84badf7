//! Which storage router is to open a volume: every router comes to the same answer by itself, and the registry lets
//! one claim it in any case.

use crate::registry::{NodeRecord, VolumeRecord};
use common::crc::crc32c_parts;
use common::{Name, VolumeId};
use dtl::{Mode, Status};
use std::collections::BTreeMap;

/// The router that should have the volume, of those that are there; `None` where nobody may take it without losing
/// what was acknowledged, as far as the registry knows (R6): its owner has to come back, or an operator to force it.
///
/// In this order: who holds it and lives; where an operator moves it; who had it last and is there again; where its tail is. A volume of which
/// the backend has everything goes to anybody.
pub fn successor(id: VolumeId, volume: &VolumeRecord, there: &BTreeMap<Name, NodeRecord>) -> Option<Name> {
    // Authority first: nobody can claim it while that lives.
    if let Some(holder) = &volume.holder
        && there.get(&holder.node).is_some_and(|node| node.lease == holder.lease)
    {
        return Some(holder.node.clone());
    }
    let is_there = |name: &&Name| there.contains_key(*name);
    if let Some(to) = volume.moving_to.as_ref().filter(is_there) {
        return Some(to.clone());
    }
    let registration = &volume.registration;
    let holder = volume.holder.as_ref().map(|holder| &holder.node);
    let takes = |name: &&Name| there.get(*name).is_some_and(|node| !node.draining);
    // Its last owner has what it accepted in its write buffer; who claimed it since, and died, has not.
    if let Some(owner) = Some(&registration.owner).filter(is_there).filter(|owner| {
        // One that drains takes nothing back that somebody else can have.
        takes(owner) || !others_may(volume)
    }) {
        return Some(owner.clone());
    }
    if registration.clean && registration.tails.is_empty() {
        if let Some(holder) = holder.filter(takes) {
            return Some(holder.clone());
        }
        let weight = |name: &Name| crc32c_parts(&[&id.0.to_le_bytes(), name.as_str().as_bytes()]);
        let all = there.iter().filter(|(_, node)| !node.draining).map(|(name, _)| name);
        return all.min_by_key(|name| (weight(name), (*name).clone())).cloned();
    }
    if is_replicated(volume) {
        let mut peers = registration.config.peers.iter().map(|peer| &peer.node);
        return peers
            .find(takes)
            .or_else(|| registration.config.peers.iter().map(|peer| &peer.node).find(is_there))
            .cloned();
    }
    None
}

/// Whether the registry says that peers have everything that was acknowledged.
pub fn is_replicated(volume: &VolumeRecord) -> bool {
    let config = &volume.registration.config;
    config.status == Status::InSync && config.mode != Mode::None && !config.peers.is_empty()
}

fn others_may(volume: &VolumeRecord) -> bool {
    let registration = &volume.registration;
    (registration.clean && registration.tails.is_empty()) || is_replicated(volume)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::{Addresses, Incarnation};
    use common::{Epoch, Lsn};
    use dtl::registration::{Config, Incarnation as LogIncarnation, Needed, OnFailure, PeerLog};

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn there(names: &[&str]) -> BTreeMap<Name, NodeRecord> {
        let node = |n: &&str| (name(n), NodeRecord::new(1, VolumeId(1), Addresses::default()));
        names.iter().map(node).collect()
    }

    fn record(clean: bool, peers: &[&str]) -> VolumeRecord {
        let mut config = Config::alone(Mode::Sync, 1, Needed::All, OnFailure::Degrade);
        let log = |n: &&str| PeerLog { node: name(n), incarnation: LogIncarnation(1) };
        config.peers = peers.iter().map(log).collect();
        if !peers.is_empty() {
            config.status = Status::InSync;
        }
        let mut record = VolumeRecord::new(name("p"), name("d"), name("a"), config);
        record.holder = Some(Incarnation { node: name("a"), lease: 7 });
        record.registration.clean = clean;
        record.registration.epoch = Epoch(3);
        record
    }

    fn next(record: &VolumeRecord, names: &[&str]) -> Option<String> {
        successor(VolumeId(5), record, &there(names)).map(|name| name.to_string())
    }

    #[test]
    fn who_holds_it_and_lives_has_it_whatever_else_the_record_says() {
        let mut held = record(false, &["c"]);
        held.holder = Some(Incarnation { node: name("b"), lease: 1 });
        assert_eq!(next(&held, &["a", "b", "c"]), Some("b".into()));
        // In another life it has no authority.
        held.holder = Some(Incarnation { node: name("b"), lease: 2 });
        assert_eq!(next(&held, &["a", "b", "c"]), Some("a".into()));
    }

    #[test]
    fn the_tail_decides_who_may_have_it() {
        // Nobody but its owner has the tail: it waits for that one.
        assert_eq!(next(&record(false, &[]), &["b", "c"]), None);
        assert_eq!(next(&record(false, &[]), &["a", "b"]), Some("a".into()));
        // A peer in sync has it.
        assert_eq!(next(&record(false, &["c"]), &["b", "c"]), Some("c".into()));
        assert_eq!(next(&record(false, &["c"]), &["b"]), None);
        assert_eq!(next(&record(false, &["c"]), &["a", "b", "c"]), Some("a".into()));
        // The backend has all: anybody, and everybody agrees who.
        let clean = next(&record(true, &[]), &["b", "c"]);
        assert!(clean.is_some());
        assert_eq!(clean, next(&record(true, &[]), &["c", "b"]));
        // Not so while an earlier tail is needed.
        let mut tails = record(true, &[]);
        tails.registration.tails.push(dtl::Tail { epoch: Epoch(2), last: Lsn(9), holders: Vec::new() });
        assert_eq!(next(&tails, &["b", "c"]), None);
    }

    #[test]
    fn a_move_goes_where_it_was_sent_unless_that_router_is_gone() {
        let mut moving = record(false, &["c"]);
        moving.holder = None;
        moving.moving_to = Some(name("b"));
        assert_eq!(next(&moving, &["a", "b", "c"]), Some("b".into()));
        assert_eq!(next(&moving, &["a", "c"]), Some("a".into()));
        assert_eq!(next(&moving, &["c"]), Some("c".into()));
    }

    #[test]
    fn who_drains_takes_nothing_that_others_can_have() {
        let mut nodes = there(&["a", "c"]);
        nodes.get_mut(&name("a")).unwrap().draining = true;
        assert_eq!(successor(VolumeId(5), &record(false, &["c"]), &nodes), Some(name("c")));
        assert_eq!(successor(VolumeId(5), &record(false, &[]), &nodes), Some(name("a")));
    }
}
