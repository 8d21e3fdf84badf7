//! Where the fragments of an object go: rendezvous hashing, weighted by free space, spread across domains, nodes and disks.
//!
//! Every OSD draws a number from (object, OSD) and its weight; the best draw is taken first, then the best one of the least used
//! domain and node. So who is asked makes no difference, each OSD gets a share like its weight, and an OSD that comes or goes
//! moves what it gains or loses and nothing else.

use crate::alba::layout::ObjectId;
use common::osd::OsdId;
use std::collections::HashMap;
use std::sync::Arc;

/// An OSD that may be given fragments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Which.
    pub osd: OsdId,
    /// The machine that it is in: lost with it.
    pub node: Arc<str>,
    /// What the machine is in (a rack, a room): lost with it.
    pub domain: Arc<str>,
    /// Free bytes: it gets fragments in this proportion. Without any, none.
    pub weight: u64,
}

/// 64 well mixed bits of an object and an OSD (the finaliser of SplitMix64, over their words).
fn mixed(object: ObjectId, osd: OsdId) -> u64 {
    let words = [object.0 as u64, (object.0 >> 64) as u64, osd.0 as u64, (osd.0 >> 64) as u64];
    words.iter().fold(0x9e37_79b9_7f4a_7c15u64, |sum, word| {
        let mut z = (sum ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    })
}

/// The draw of an OSD for an object: exponential with its weight as rate, so the smallest of several falls to each by weight.
fn draw(object: ObjectId, candidate: &Candidate) -> f64 {
    let uniform = ((mixed(object, candidate.osd) >> 11) as f64 + 1.0) / (1u64 << 53) as f64;
    -uniform.ln() / candidate.weight as f64
}

/// Up to `n` OSDs for fragments of `object`, the first for the first, none twice and at most `x` on a node, beside those
/// that have some already (`taken`). Fewer when there are not enough.
pub fn place(
    object: ObjectId,
    candidates: &[Candidate],
    n: usize,
    x: Option<u8>,
    taken: &[OsdId],
) -> Vec<OsdId> {
    let (mut nodes, mut domains) = (HashMap::new(), HashMap::new());
    for candidate in candidates.iter().filter(|c| taken.contains(&c.osd)) {
        *nodes.entry(&candidate.node).or_insert(0usize) += 1;
        *domains.entry(&candidate.domain).or_insert(0usize) += 1;
    }
    let mut left: Vec<(f64, &Candidate)> = candidates
        .iter()
        .filter(|c| c.weight > 0 && !taken.contains(&c.osd))
        .map(|c| (draw(object, c), c))
        .collect();
    left.sort_by(|(a, c), (b, d)| a.total_cmp(b).then(c.osd.cmp(&d.osd)));
    let most = match x {
        Some(x) if !common::mutant::is_on("alba-node-limit-ignored") => usize::from(x),
        _ => usize::MAX,
    };
    let mut placed = Vec::with_capacity(n);
    while placed.len() < n {
        let used = |c: &Candidate| {
            (domains.get(&c.domain).copied().unwrap_or(0), nodes.get(&c.node).copied().unwrap_or(0))
        };
        let fits = left.iter().enumerate().filter(|(_, (_, c))| used(c).1 < most);
        // Of equals the first: the best draw.
        let Some((at, _)) = fits.min_by_key(|(_, (_, c))| used(c)) else { break };
        let (_, chosen) = left.remove(at);
        *nodes.entry(&chosen.node).or_insert(0) += 1;
        *domains.entry(&chosen.domain).or_insert(0) += 1;
        placed.push(chosen.osd);
    }
    placed
}

/// What must move so that the fragments of `object` lie where [`place`] would put them now: (fragment, its new OSD).
/// A fragment whose OSD stays among the chosen stays where it is, whatever its number.
pub fn moves(
    object: ObjectId,
    places: &[Option<OsdId>],
    candidates: &[Candidate],
    x: Option<u8>,
) -> Vec<(usize, OsdId)> {
    let wanted = place(object, candidates, places.len(), x, &[]);
    let mut free = wanted.iter().filter(|osd| !places.contains(&Some(**osd))).copied();
    let leaving = |osd: &Option<OsdId>| osd.is_none_or(|osd| !wanted.contains(&osd));
    let moving = places.iter().enumerate().filter(|(_, osd)| leaving(osd));
    moving.map_while(|(n, _)| Some((n, free.next()?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn candidates(shape: &[(&str, &str, usize)], weight: u64) -> Vec<Candidate> {
        let (mut all, mut ids) = (Vec::new(), fastrand::Rng::with_seed(42));
        for (domain, node, disks) in shape {
            for _ in 0..*disks {
                let id = ids.u128(..);
                let (node, domain) = ((*node).into(), (*domain).into());
                all.push(Candidate { osd: OsdId(id), node, domain, weight });
            }
        }
        all
    }

    fn objects(n: u64) -> impl Iterator<Item = ObjectId> {
        let mut random = fastrand::Rng::with_seed(n);
        (0..n).map(move |_| ObjectId(random.u128(..)))
    }

    fn most_per<'a>(placed: &[OsdId], all: &'a [Candidate], of: impl Fn(&'a Candidate) -> &'a str) -> usize {
        let mut counts: HashMap<&str, usize> = HashMap::new();
        for osd in placed {
            *counts.entry(of(all.iter().find(|c| c.osd == *osd).unwrap())).or_default() += 1;
        }
        counts.values().copied().max().unwrap_or(0)
    }

    proptest! {
        #[test]
        fn no_osd_twice_and_never_more_than_x_on_a_node(
            nodes in proptest::collection::vec((0usize..3, 0usize..6), 0..8),
            n in 0usize..14, x in proptest::option::of(1u8..4), id: u128, seed: u64,
        ) {
            let names: Vec<(String, String, usize)> =
                nodes.iter().enumerate().map(|(i, (d, disks))| (format!("d{d}"), format!("n{i}"), *disks)).collect();
            let shape: Vec<(&str, &str, usize)> = names.iter().map(|(d, n, k)| (&d[..], &n[..], *k)).collect();
            let mut all = candidates(&shape, 1 << 40);
            let mut random = fastrand::Rng::with_seed(seed);
            all.iter_mut().for_each(|c| c.weight = random.u64(0..5) << 30);
            let placed = place(ObjectId(id), &all, n, x, &[]);
            let room = |c: &(String, String, usize)| {
                let fit = all.iter().filter(|a| *a.node == c.1 && a.weight > 0).count();
                fit.min(x.map_or(usize::MAX, usize::from))
            };
            prop_assert_eq!(placed.len(), n.min(names.iter().map(room).sum()), "as many as there is room for");
            prop_assert!(placed.iter().enumerate().all(|(i, osd)| !placed[..i].contains(osd)));
            prop_assert!(most_per(&placed, &all, |c| &c.node) <= x.map_or(usize::MAX, usize::from));
            prop_assert!(placed.iter().all(|osd| all.iter().any(|c| c.osd == *osd && c.weight > 0)));
            // The order in which they are known makes no difference.
            random.shuffle(&mut all);
            prop_assert_eq!(&place(ObjectId(id), &all, n, x, &[]), &placed);
            // A replacement keeps to the same rules beside those that stay.
            let (taken, gone) = placed.split_at(placed.len() / 2);
            let more = place(ObjectId(id), &all, gone.len(), x, taken);
            let both: Vec<OsdId> = taken.iter().chain(&more).copied().collect();
            prop_assert!(both.iter().enumerate().all(|(i, osd)| !both[..i].contains(osd)));
            prop_assert!(most_per(&both, &all, |c| &c.node) <= x.map_or(usize::MAX, usize::from));
        }
    }

    #[test]
    fn domains_are_used_alike_before_nodes_and_nodes_before_disks() {
        let all =
            candidates(&[("a", "1", 4), ("a", "2", 4), ("b", "3", 4), ("c", "4", 4), ("c", "5", 4)], 1 << 40);
        for id in objects(300) {
            let placed = place(id, &all, 6, None, &[]);
            assert_eq!(most_per(&placed, &all, |c| &c.domain), 2);
            assert_eq!(most_per(&placed, &all, |c| &c.node), 2, "domain b has one node");
            let three = place(id, &all, 3, Some(1), &[]);
            assert_eq!(most_per(&three, &all, |c| &c.domain), 1);
        }
    }

    #[test]
    fn each_osd_gets_a_share_like_its_free_space() {
        let nodes: Vec<String> = (0..8).map(|n| n.to_string()).collect();
        let shape: Vec<(&str, &str, usize)> = nodes.iter().map(|n| ("d", &n[..], 4)).collect();
        let mut all = candidates(&shape, 1 << 40);
        // The last disk of each node is half as free.
        all.iter_mut().skip(3).step_by(4).for_each(|c| c.weight /= 2);
        let mut counts: HashMap<OsdId, f64> = HashMap::new();
        let n = 20_000;
        for id in objects(n) {
            for osd in place(id, &all, 6, Some(2), &[]) {
                *counts.entry(osd).or_default() += 1.0;
            }
        }
        let total: u64 = all.iter().map(|c| c.weight).sum();
        for candidate in &all {
            let fair = 6.0 * n as f64 * candidate.weight as f64 / total as f64;
            let has = counts[&candidate.osd];
            assert!((has / fair - 1.0).abs() < 0.08, "{has} fragments where {fair} are fair");
        }
    }

    #[test]
    fn a_new_node_moves_little_more_than_what_it_gets() {
        for (before, n) in [(3, 6), (5, 6), (8, 6), (8, 11), (12, 4)] {
            let nodes: Vec<String> = (0..=before).map(|n| n.to_string()).collect();
            let shape: Vec<(&str, &str, usize)> = nodes.iter().map(|n| ("d", &n[..], 4)).collect();
            let new = candidates(&shape, 1 << 40);
            let old = &new[..4 * before];
            let (mut moved, mut to_old) = (0, 0);
            let count = 5000;
            for id in objects(count) {
                let places: Vec<_> = place(id, old, n, None, &[]).into_iter().map(Some).collect();
                let moves = moves(id, &places, &new, None);
                moved += moves.len();
                to_old += moves.iter().filter(|(_, osd)| old.iter().any(|c| c.osd == *osd)).count();
            }
            let needed = count as f64 * n as f64 / (before + 1) as f64;
            assert!(
                (moved as f64) < 1.2 * needed,
                "{moved} moved where {needed} are needed: {before} nodes, {n}"
            );
            assert_eq!(to_old, 0, "fragments that went from an old node to an old one");
        }
    }

    #[test]
    fn a_lost_disk_moves_only_what_it_had() {
        let all = candidates(&[("d", "1", 4), ("d", "2", 4), ("d", "3", 4), ("d", "4", 4)], 1 << 40);
        for id in objects(500) {
            let places: Vec<_> = place(id, &all, 6, Some(2), &[]).into_iter().map(Some).collect();
            let lost = places[2].unwrap();
            let left: Vec<Candidate> = all.iter().filter(|c| c.osd != lost).cloned().collect();
            let moves = moves(id, &places, &left, Some(2));
            // Its node may have been the fuller one; then another node takes it, and nothing else moves.
            assert!(moves.len() == 1 && moves[0].0 == 2, "{moves:?}");
        }
    }
}
