//! The cluster that this storage router is a member of.

use super::State;
use super::extract::{Body, Params};
use super::problem::Answer;
use crate::types::{BackedUp, Backup, ClusterLeave, ClusterStatus, Problem};
use axum::Json;
use axum::extract;
use axum::http::StatusCode;
use common::Result;
use futures::future::BoxFuture;
use std::sync::Arc;

/// Tells how the cluster is.
pub type GetCluster = Arc<dyn Fn() -> BoxFuture<'static, Result<ClusterStatus>> + Send + Sync>;
/// Removes a member, or this router where none is named; that one gives its vDisks away first, unless it is forced.
pub type LeaveCluster = Arc<dyn Fn(Option<u64>, bool) -> BoxFuture<'static, Result<()>> + Send + Sync>;
/// Writes a backup of the registry to a new file.
pub type BackUp = Arc<dyn Fn(String) -> BoxFuture<'static, Result<BackedUp>> + Send + Sync>;

/// How the cluster is seen and changed.
#[derive(Clone)]
pub struct ClusterControl {
    /// Who is there.
    pub status: GetCluster,
    /// Who goes.
    pub leave: LeaveCluster,
    /// What is kept elsewhere.
    pub backup: BackUp,
}

/// Who is there, who leads, and how many may fail.
#[utoipa::path(get, path = "/api/v1/cluster", tag = "cluster", responses(
    (status = 200, description = "As this router sees it, and whoever answered", body = ClusterStatus),
    (status = 503, description = "The registry in this router has stopped", body = Problem),
))]
pub(super) async fn status(extract::State(state): extract::State<State>) -> Answer<Json<ClusterStatus>> {
    Ok(Json((state.cluster.status)().await?))
}

/// Leave the cluster: this router gives its vDisks away first, and stops then. With a member: remove that one, which must be dead.
#[utoipa::path(post, path = "/api/v1/cluster/leave", tag = "cluster", params(ClusterLeave), responses(
    (status = 204, description = "It is no member any more"),
    (status = 404, description = "There is no such member", body = Problem),
    (status = 409, description = "It is alone, or has vDisks that nobody takes, or the member to remove leads", body = Problem),
    (status = 503, description = "Too few members answer", body = Problem),
))]
pub(super) async fn leave(
    extract::State(state): extract::State<State>,
    Params(query): Params<ClusterLeave>,
) -> Answer<StatusCode> {
    (state.cluster.leave)(query.member, query.force).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Write a backup of the registry to a new file on this router's machine.
#[utoipa::path(post, path = "/api/v1/cluster/backup", tag = "cluster", request_body = Backup, responses(
    (status = 201, description = "What it holds", body = BackedUp),
    (status = 400, description = "The path is not absolute", body = Problem),
    (status = 409, description = "There is such a file", body = Problem),
))]
pub(super) async fn backup(
    extract::State(state): extract::State<State>,
    Body(body): Body<Backup>,
) -> Answer<(StatusCode, Json<BackedUp>)> {
    let made = (state.cluster.backup)(body.path).await?;
    Ok((StatusCode::CREATED, Json(made)))
}
