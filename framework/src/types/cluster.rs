//! What travels about the cluster.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// Reply to `GET /api/v1/cluster`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClusterStatus {
    /// Identity of the cluster's registry, 32 hexadecimal digits.
    pub group: String,
    /// The id of the router that answers.
    pub member: u64,
    /// Its name.
    pub name: String,
    /// Where other routers reach its registry.
    pub address: String,
    /// The id of who leads the registry, as far as somebody who answers knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<u64>,
    /// The term of the lead.
    pub term: u64,
    /// The last revision of the registry that somebody who answers knows.
    pub revision: u64,
    /// How many members vote.
    pub voters: u64,
    /// How many of them have to be there.
    pub needed: u64,
    /// How many of them answer.
    pub answering: u64,
    /// How many of those may fail before the registry stops.
    pub may_fail: u64,
    /// All members.
    pub members: Vec<ClusterMember>,
}

/// A member of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClusterMember {
    /// Its id, which is never used again.
    pub member: u64,
    /// Its name, while the registry answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Where its registry listens.
    pub address: String,
    /// Whether it votes; one that does not is on its way in or out.
    pub votes: bool,
    /// Whether it leads.
    pub leads: bool,
    /// Whether it answers.
    pub answers: bool,
    /// The last change that it has, if it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied: Option<u64>,
    /// Why it does not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Query of `POST /api/v1/cluster/leave`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct ClusterLeave {
    /// Who is removed; absent: the router that is asked, which stops then.
    #[serde(default)]
    pub member: Option<u64>,
    /// Leave without giving the vDisks away first: what others have goes to them when the router stops, and the rest waits for what it can still upload then.
    #[serde(default)]
    pub force: bool,
}

/// Body of `POST /api/v1/cluster/backup`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Backup {
    /// The file to make, an absolute path on the router's machine.
    pub path: String,
}

/// Reply to `POST /api/v1/cluster/backup`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BackedUp {
    /// The file.
    pub path: String,
    /// The registry that it is of.
    pub group: String,
    /// The last revision in it.
    pub revision: u64,
    /// Bytes of its content.
    pub bytes: u64,
}
