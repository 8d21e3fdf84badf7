//! Where the state of a new member comes from: a new group, the registry of one node, or the other members.
//!
//! A registry of one node becomes the first member of a group in steps, each durable before the next: its records are copied
//! beside whatever there is; the old registry is marked, so that no release writes to it any more; the copy becomes
//! the state; then the old one is marked again: its records are old from now on, and never taken twice, also not when the new folder is
//! lost. Until the last step nothing but copies exists, and a crash anywhere begins anew. Between the second and the last
//! nobody serves, so nothing can be written that the copy lacks.

use crate::local::moving::Moving;
use crate::machine::layout::{Configuration, HEAD_KEY, Head, Meta, RESTORING_KEY, encode_pair};
use crate::machine::staging::Staging;
use crate::machine::{Machine, StateStore};
use common::table::Batch;
use common::{Error, Result};
use std::path::PathBuf;
use std::sync::Arc;

/// Records copied at a time.
const STEP: usize = 256;
/// The entry that the state of a new group counts as: what comes from elsewhere begins with a snapshot of it.
const FIRST: u64 = 1;

/// Where the group of a member comes from, when its folder is empty.
#[derive(Debug, Clone)]
pub enum Origin {
    /// It founds the group, as its only voter.
    Found {
        /// Where others reach it.
        address: String,
        /// The registry of one node that it goes on from, if there is one there.
        local: Option<PathBuf>,
    },
    /// It will be added to this group by its leader.
    Join {
        /// The id of the group.
        group: u128,
    },
}

/// Makes the state if there is none, and says what it is. `random` is the id of a new group.
pub(crate) fn prepare(
    store: Arc<dyn StateStore>,
    member: u64,
    origin: &Origin,
    random: u128,
) -> Result<Head> {
    if let Some(head) = store.get(HEAD_KEY)? {
        let head = Head::decode(head)?;
        if head.member != member {
            return Err(Error::invalid(format!(
                "this folder holds member {} of the registry, and member {member} was to start there",
                head.member
            )));
        }
        if let Origin::Join { group } = origin
            && *group != head.group
        {
            return Err(Error::invalid(format!(
                "this folder holds a member of group {:032x} of the registry, and not of group {group:032x}",
                head.group
            )));
        }
        if let Origin::Found { local: Some(local), .. } = origin {
            // The process may have died right before it noted so.
            Moving::finish(local)?;
        }
        return Ok(head);
    }
    if store.get(RESTORING_KEY)?.is_some() {
        return Err(Error::conflict(
            "a restore of the registry into this folder did not end well: restore it again, nothing can start here before",
        ));
    }
    if member == 0 {
        return Err(Error::invalid("the id of a member of the registry is not 0"));
    }
    match origin {
        Origin::Join { group } => {
            Machine::create(store, *group, member)?;
            Ok(Head { group: *group, member, generation: 1 })
        }
        Origin::Found { address, local } => {
            let old = local.as_deref().map(Moving::open).transpose()?.flatten();
            found(store, member, address, old.as_ref(), random)?;
            Ok(Head { group: random, member, generation: 1 })
        }
    }
}

fn found(
    store: Arc<dyn StateStore>,
    member: u64,
    address: &str,
    old: Option<&Moving>,
    group: u128,
) -> Result<()> {
    let staging = Staging::begin(store.clone(), 1)?;
    let mut meta = Meta {
        index: FIRST,
        term: 1,
        installed: FIRST,
        history_from: 1,
        configuration: Configuration { voters: vec![member], ..Configuration::default() },
        ..Meta::default()
    };
    let mut batch = Batch::default();
    staging.put(&mut batch, b'n', &member.to_be_bytes(), address.to_string().into());
    store.write(batch)?;
    if let Some(old) = old {
        copy(&*store, &staging, old)?;
        meta.revision = old.revision()?;
        // What was before has no history here.
        meta.history_from = meta.revision + 1;
    }
    staging.set_meta(&meta)?;
    store.checkpoint()?;
    if let Some(old) = old {
        old.mark_moved()?;
    }
    staging.activate(group, member)?;
    old.map_or(Ok(()), Moving::mark_done)
}

fn copy(store: &dyn StateStore, staging: &Staging, old: &Moving) -> Result<()> {
    let mut from = String::new();
    loop {
        let pairs = old.pairs(&from, STEP)?;
        let Some((last, _, _)) = pairs.last() else { return Ok(()) };
        from = format!("{last}\0");
        let mut batch = Batch::default();
        for (key, revision, value) in pairs {
            staging.put(&mut batch, b'k', key.as_bytes(), encode_pair(revision, None, &value));
        }
        store.write(batch)?;
    }
}

#[cfg(test)]
mod tests;
