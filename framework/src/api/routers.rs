//! The storage routers of the cluster, and vDisks that go from one to another.

use super::State;
use super::extract::{Body, Names};
use super::problem::Answer;
use super::vdisks::shown;
use crate::types::{Problem, Router, RouterList, Vdisk, VdiskMove};
use axum::Json;
use axum::extract;
use axum::http::StatusCode;
use axum::http::header::LOCATION;
use axum::response::{IntoResponse, Response};
use common::{Error, Name, Result};
use objectrouter::RouterInfo;

fn told(state: &State, info: RouterInfo) -> Router {
    let this = info.name == *state.router.node();
    let (node, there) = (info.node.clone(), info.node.is_some());
    let addresses = node.as_ref().map(|node| node.addresses.clone()).unwrap_or_default();
    Router {
        name: info.name.to_string(),
        this,
        there,
        draining: info.draining,
        vdisks: info.vdisks as u64,
        edge: addresses.edge,
        dtl: addresses.dtl,
        api: addresses.api,
        domains: node.map(|node| node.domains).unwrap_or_default(),
    }
}

async fn find(state: &State, name: &str) -> Result<RouterInfo> {
    let found = state.router.routers().await?.into_iter().find(|info| info.name.as_str() == name);
    found.ok_or_else(|| Error::not_found(format!("there is no storage router '{}'", name.escape_debug())))
}

/// All storage routers that belong to the cluster.
#[utoipa::path(get, path = "/api/v1/routers", tag = "routers", responses(
    (status = 200, description = "In order of name", body = RouterList),
))]
pub(super) async fn list(extract::State(state): extract::State<State>) -> Answer<Json<RouterList>> {
    let items = state.router.routers().await?.into_iter().map(|info| told(&state, info)).collect();
    Ok(Json(RouterList { items }))
}

/// One storage router.
#[utoipa::path(get, path = "/api/v1/routers/{name}", tag = "routers",
    params(("name" = String, Path, description = "Name")), responses(
    (status = 200, description = "The router", body = Router),
    (status = 404, description = "There is no such router", body = Problem),
))]
pub(super) async fn show(
    extract::State(state): extract::State<State>,
    Names(name): Names<String>,
) -> Answer<Json<Router>> {
    Ok(Json(told(&state, find(&state, &name).await?)))
}

/// Forget a storage router that will not come back.
#[utoipa::path(delete, path = "/api/v1/routers/{name}", tag = "routers",
    params(("name" = String, Path, description = "Name")), responses(
    (status = 204, description = "It is forgotten"),
    (status = 404, description = "There is no such router", body = Problem),
    (status = 409, description = "It is there, or has what nobody else has", body = Problem),
))]
pub(super) async fn remove(
    extract::State(state): extract::State<State>,
    Names(name): Names<String>,
) -> Answer<StatusCode> {
    let name: Name = name.parse()?;
    state.router.remove_router(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Let a storage router give its vDisks away and take none, also after a restart.
#[utoipa::path(post, path = "/api/v1/routers/{name}/drain", tag = "routers",
    params(("name" = String, Path, description = "Name")), responses(
    (status = 200, description = "It has begun; the number of its vDisks says how far it is", body = Router),
    (status = 307, description = "Ask that router"),
    (status = 404, description = "There is no such router", body = Problem),
))]
pub(super) async fn drain(
    extract::State(state): extract::State<State>,
    Names(name): Names<String>,
) -> Answer<Response> {
    set_draining(&state, &name, true).await
}

/// Let a storage router take vDisks again.
#[utoipa::path(post, path = "/api/v1/routers/{name}/resume", tag = "routers",
    params(("name" = String, Path, description = "Name")), responses(
    (status = 200, description = "It takes vDisks", body = Router),
    (status = 307, description = "Ask that router"),
    (status = 404, description = "There is no such router", body = Problem),
))]
pub(super) async fn resume(
    extract::State(state): extract::State<State>,
    Names(name): Names<String>,
) -> Answer<Response> {
    set_draining(&state, &name, false).await
}

async fn set_draining(state: &State, name: &str, draining: bool) -> Answer<Response> {
    let info = find(state, name).await?;
    if info.name != *state.router.node() {
        let api = info.node.and_then(|node| node.addresses.api).ok_or_else(|| {
            Error::unavailable(format!(
                "storage router '{name}' is not there: it does this when it is asked itself"
            ))
        })?;
        let what = if draining { "drain" } else { "resume" };
        let there = format!("{api}/api/v1/routers/{name}/{what}");
        return Ok((StatusCode::TEMPORARY_REDIRECT, [(LOCATION, there)]).into_response());
    }
    state.router.drain_router(draining).await?;
    Ok(Json(told(state, find(state, name).await?)).into_response())
}

/// Give a vDisk to another storage router. Its clients wait for less than a second as a rule.
#[utoipa::path(post, path = "/api/v1/vdisks/{vpool}/{name}/move", tag = "vdisks", request_body = VdiskMove,
    params(("vpool" = String, Path, description = "Name or id"), ("name" = String, Path, description = "Name or id")),
    responses(
    (status = 200, description = "It serves there", body = Vdisk),
    (status = 403, description = "That router takes no vDisks", body = Problem),
    (status = 404, description = "There is no such vDisk or router", body = Problem),
    (status = 503, description = "Not done in time; it goes on by itself", body = Problem),
))]
pub(super) async fn migrate(
    extract::State(state): extract::State<State>,
    Names((vpool, name)): Names<(String, String)>,
    Body(body): Body<VdiskMove>,
) -> Answer<Json<Vdisk>> {
    let to: Name = body.to.parse()?;
    let info = state.router.move_vdisk(&vpool, &name, &to).await?;
    Ok(Json(shown(&state, info)))
}

/// Open an orphaned vDisk on this storage router, without what only its owner had; that is recorded for good.
#[utoipa::path(post, path = "/api/v1/vdisks/{vpool}/{name}/force", tag = "vdisks",
    params(("vpool" = String, Path, description = "Name or id"), ("name" = String, Path, description = "Name or id")),
    responses(
    (status = 200, description = "It serves here", body = Vdisk),
    (status = 404, description = "There is no such vDisk", body = Problem),
    (status = 409, description = "It is open here", body = Problem),
    (status = 421, description = "Its owner lives", body = Problem),
))]
pub(super) async fn force(
    extract::State(state): extract::State<State>,
    Names((vpool, name)): Names<(String, String)>,
) -> Answer<Json<Vdisk>> {
    Ok(Json(shown(&state, state.router.force_vdisk(&vpool, &name).await?)))
}
