use super::*;

fn name(s: &str) -> Name {
    s.parse().unwrap()
}

fn node(n: &str, domains: &[&str]) -> Node {
    Node {
        name: name(n),
        domains: domains.iter().map(|d| d.to_string()).collect(),
        recovery_domains: Vec::new(),
        alive: true,
        logs: 0,
    }
}

fn chosen(placed: &[Placed]) -> Vec<&str> {
    placed.iter().map(|p| p.node.as_str()).collect()
}

#[test]
fn an_owner_is_never_its_own_peer() {
    let owner = node("a", &[]);
    assert!(place(VolumeId(1), &owner, std::slice::from_ref(&owner), &[], &[], 2).is_empty());
    let nodes = [owner.clone(), node("b", &[])];
    assert_eq!(chosen(&place(VolumeId(1), &owner, &nodes, &[], &[], 2)), ["b"]);
}

#[test]
fn peers_share_no_domain_with_the_owner_or_each_other_where_that_can_be() {
    let owner = node("a", &["rack1"]);
    let nodes = [
        owner.clone(),
        node("b", &["rack1"]),
        node("c", &["rack2"]),
        node("d", &["rack2"]),
        node("e", &["rack3"]),
    ];
    for v in 0..50 {
        let placed = place(VolumeId(v), &owner, &nodes, &[], &[], 2);
        let mut racks: Vec<&str> = placed
            .iter()
            .map(|p| nodes.iter().find(|n| n.name == p.node).unwrap().domains[0].as_str())
            .collect();
        racks.sort_unstable();
        assert_eq!(racks, ["rack2", "rack3"]);
        assert!(placed.iter().all(|p| !p.shares_a_domain));
    }
    let near = place(VolumeId(1), &owner, &nodes[..2], &[], &[], 1);
    assert_eq!(near, [Placed { node: name("b"), shares_a_domain: true }], "better than none, and told");
}

#[test]
fn recovery_domains_come_first_and_a_dead_or_failed_node_never() {
    let mut owner = node("a", &["here"]);
    owner.recovery_domains = vec!["there".into()];
    let mut nodes =
        vec![owner.clone(), node("b", &["elsewhere"]), node("c", &["there"]), node("d", &["there"])];
    nodes[3].alive = false;
    assert_eq!(chosen(&place(VolumeId(1), &owner, &nodes, &[], &[], 1)), ["c"]);
    assert_eq!(chosen(&place(VolumeId(1), &owner, &nodes, &[], &[name("c")], 1)), ["b"]);
    assert_eq!(chosen(&place(VolumeId(1), &owner, &nodes, &[name("c")], &[], 1)), ["b"]);
}

#[test]
fn volumes_spread_and_choose_the_same_again() {
    let owner = node("a", &[]);
    let nodes: Vec<Node> = ["a", "b", "c", "d", "e"].map(|n| node(n, &[])).to_vec();
    let mut counts = std::collections::BTreeMap::new();
    for v in 0..400u128 {
        let volume = VolumeId(v << 64 | v.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let placed = place(volume, &owner, &nodes, &[], &[], 1);
        assert_eq!(placed, place(volume, &owner, &nodes, &[], &[], 1));
        *counts.entry(placed[0].node.clone()).or_insert(0) += 1;
    }
    assert_eq!(counts.len(), 4);
    assert!(counts.values().all(|n| *n > 50), "{counts:?}");
}
