//! Who is a good peer: a pure function of the nodes that there are.

use common::crc::crc32c_parts;
use common::{Name, VolumeId};
use std::cmp::Reverse;

/// A storage router, as far as placing logs goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: Name,
    /// What it may fail with: its machine, rack, room. Two nodes that share one may fail together.
    pub domains: Vec<String>,
    /// The domains where its volumes should be recovered: peers are taken from there first.
    pub recovery_domains: Vec<String>,
    /// It has a lease and a DTL service.
    pub alive: bool,
    /// Logs that it keeps for others: fewer is better among equals.
    pub logs: u32,
}

/// A peer that was chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// The node.
    pub node: Name,
    /// It may fail together with the owner or another peer: there was nobody better, and it is to be told.
    pub shares_a_domain: bool,
}

/// Chooses up to `want` peers for `volume`, owned by `owner`, whose peers are `present` already, and never one of
/// `avoid`. Best first: who shares no domain with the owner or another peer, who lies in a recovery domain of
/// the owner, who has fewer logs (coarsely, so that volumes spread), then by a hash of volume and node.
pub fn place(
    volume: VolumeId,
    owner: &Node,
    nodes: &[Node],
    present: &[Name],
    avoid: &[Name],
    want: usize,
) -> Vec<Placed> {
    let mut company: Vec<&Node> = vec![owner];
    company.extend(nodes.iter().filter(|n| present.contains(&n.name)));
    let mut chosen: Vec<Placed> = Vec::new();
    while chosen.len() < want {
        let fits = |n: &&Node| {
            n.alive
                && n.name != owner.name
                && !present.contains(&n.name)
                && !avoid.contains(&n.name)
                && chosen.iter().all(|c| c.node != n.name)
        };
        let shared = |n: &Node| company.iter().filter(|c| share(&c.domains, &n.domains)).count();
        let outside =
            |n: &Node| !owner.recovery_domains.is_empty() && !share(&owner.recovery_domains, &n.domains);
        let weight = |n: &Node| crc32c_parts(&[&volume.0.to_le_bytes(), n.name.as_str().as_bytes()]);
        let best = nodes.iter().filter(fits).min_by_key(|n| {
            (shared(n), outside(n), n.logs.checked_ilog2(), Reverse(weight(n)), n.name.clone())
        });
        let Some(best) = best else { break };
        chosen.push(Placed { node: best.name.clone(), shares_a_domain: shared(best) > 0 });
        company.push(best);
    }
    chosen
}

fn share(a: &[String], b: &[String]) -> bool {
    a.iter().any(|d| b.contains(d))
}

#[cfg(test)]
mod tests;
