//! What the cluster says, for people.

use super::tables::{pairs, table, text};
use framework::types::{BackedUp, ClusterStatus};

/// `cluster status`.
pub fn status(cluster: &ClusterStatus) -> String {
    let leader = cluster.members.iter().find(|member| member.leads);
    let leader = leader.map_or("nobody at the moment".to_string(), |m| {
        m.name.as_ref().map_or(format!("member {}", m.member), |name| format!("{name} (member {})", m.member))
    });
    let answering =
        format!("{} of {} voters answer, {} have to", cluster.answering, cluster.voters, cluster.needed);
    let registry = match cluster.may_fail {
        _ if cluster.answering < cluster.needed => format!("stopped: {answering}"),
        0 => format!("serves: {answering}; none of them may fail"),
        1 => format!("serves: {answering}; one of them may fail"),
        n => format!("serves: {answering}; {n} of them may fail"),
    };
    let head = pairs(vec![
        ("cluster", Some(cluster.group.clone())),
        ("this router", Some(format!("{} (member {})", cluster.name, cluster.member))),
        ("registry", Some(registry)),
        ("leader", Some(format!("{leader}, term {}", cluster.term))),
        ("revision", Some(cluster.revision.to_string())),
    ]);
    let mut members = table(&["MEMBER", "NAME", "ADDRESS", "ROLE", "APPLIED", "ANSWERS"]);
    for member in &cluster.members {
        let role = match (member.votes, member.leads) {
            (_, true) => "leads",
            (true, false) => "votes",
            (false, false) => "learns",
        };
        members.add_row(vec![
            member.member.to_string(),
            member.name.clone().unwrap_or_default(),
            member.address.clone(),
            role.to_string(),
            member.applied.map(|applied| applied.to_string()).unwrap_or_default(),
            member.reason.as_ref().map_or("yes".to_string(), |reason| format!("no: {reason}")),
        ]);
    }
    format!("{head}\n{}", text(&members))
}

/// `cluster init`.
pub fn how_to_join(cluster: &ClusterStatus) -> String {
    let head =
        pairs(vec![("cluster", Some(cluster.group.clone())), ("address", Some(cluster.address.clone()))]);
    format!(
        "{head}
On each router that is to join, stopped and without a vPool, with its own configuration:
  storagerouter cluster join --peer {}
  storagerouter serve
",
        cluster.address
    )
}

/// `registry backup`.
pub fn backed_up(made: &BackedUp) -> String {
    pairs(vec![
        ("file", Some(made.path.clone())),
        ("cluster", Some(made.group.clone())),
        ("revision", Some(made.revision.to_string())),
        ("bytes", Some(made.bytes.to_string())),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_how_many_may_fail() {
        let cluster = |answering, may_fail| ClusterStatus {
            group: "0".into(),
            member: 1,
            name: "a".into(),
            address: "a:1".into(),
            leader: None,
            term: 3,
            revision: 9,
            voters: 3,
            needed: 2,
            answering,
            may_fail,
            members: vec![],
        };
        for (answering, may_fail, said) in
            [(1, 0, "stopped: 1 of 3"), (2, 0, "none of them may fail"), (3, 1, "one of them may fail")]
        {
            let text = status(&cluster(answering, may_fail));
            assert!(text.contains(said) && text.contains("nobody at the moment, term 3"), "{text}");
        }
    }
}
