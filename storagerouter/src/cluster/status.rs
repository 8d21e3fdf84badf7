//! How the cluster is, as this router can tell.

use super::membership::shown;
use super::{Cluster, roster};
use common::{Error, Result};
use framework::types::{ClusterMember, ClusterStatus};
use futures::future::join_all;
use kvstore::node::Status;
use std::collections::BTreeMap;
use std::time::Duration;

/// How long a member may take to answer.
const LOOK: Duration = Duration::from_secs(1);

impl Cluster {
    /// Who is there, who leads, and how many may fail.
    pub async fn status(&self) -> Result<ClusterStatus> {
        let own = self.instance.handle().status().await?;
        // Names are in the registry, which may not answer; the members do then.
        let names = roster::names(&self.client.within(LOOK)).await;
        let asked = join_all(own.members.iter().map(|(id, address)| async {
            if *id == own.member {
                return (*id, Ok(own.clone()));
            }
            let client = self.peers(vec![address.clone()]);
            (*id, client.within(LOOK).status().await)
        }))
        .await;
        let mut heard: BTreeMap<u64, Result<Status>> = asked.into_iter().collect();
        let newest = heard.values().flatten().max_by_key(|s| (s.term, s.applied)).unwrap_or(&own).clone();
        let names = names.unwrap_or_default();
        let voters = newest.configuration.voters.clone();
        let members: Vec<_> = newest
            .members
            .iter()
            .map(|(id, address)| {
                let answer = heard.remove(id);
                let (applied, reason) = match answer {
                    Some(Ok(status)) => (Some(status.applied), None),
                    Some(Err(error)) => (None, Some(reason(&error, address))),
                    None => (None, Some("it came while the others were asked".to_string())),
                };
                ClusterMember {
                    member: *id,
                    name: names.get(id).cloned(),
                    address: address.clone(),
                    votes: voters.contains(id),
                    leads: newest.leader == Some(*id),
                    answers: applied.is_some(),
                    applied,
                    reason,
                }
            })
            .collect();
        let needed = voters.len() / 2 + 1;
        let answering = members.iter().filter(|m| m.votes && m.answers).count();
        Ok(ClusterStatus {
            group: shown(self.group()),
            member: own.member,
            name: self.name.clone(),
            address: self.address.clone(),
            leader: newest.leader,
            term: newest.term,
            revision: newest.revision,
            voters: voters.len() as u64,
            needed: needed as u64,
            answering: answering as u64,
            may_fail: answering.saturating_sub(needed) as u64,
            members,
        })
    }
}

/// Why a member does not answer, without what everybody knows who asked it.
fn reason(error: &Error, address: &str) -> String {
    let mut text = error.message();
    let about = format!("member {address}: ");
    let connecting = format!("connecting to member {address} of the registry: ");
    for before in ["the registry does not answer: ", &about, &connecting] {
        text = text.strip_prefix(before).unwrap_or(text);
    }
    text.strip_suffix("; nothing was read").unwrap_or(text).to_string()
}
