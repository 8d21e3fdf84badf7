//! vPools.

use super::State;
use super::extract::{Body, Names, Params};
use super::problem::Answer;
use crate::types::{AdoptedVdisk, Problem, Vpool, VpoolCreate, VpoolDelete, VpoolList, VpoolState};
use axum::Json;
use axum::extract;
use axum::http::StatusCode;
use axum::http::header::LOCATION;
use axum::response::IntoResponse;
use common::Error;
use objectrouter::{CreateVpool, VpoolInfo};

fn shown(info: VpoolInfo) -> Vpool {
    Vpool {
        name: info.name.to_string(),
        id: format!("{:032x}", info.id),
        backend: info.backend,
        cluster_size_bytes: info.cluster_size,
        description: info.description,
        state: match info.state {
            objectrouter::VpoolState::Opening => VpoolState::Opening,
            objectrouter::VpoolState::Serving => VpoolState::Serving,
            objectrouter::VpoolState::Failed => VpoolState::Failed,
            objectrouter::VpoolState::Deleting => VpoolState::Deleting,
        },
        reason: info.reason,
        warning: info.warning,
        vdisks: info.vdisks as u64,
        adopted: None,
    }
}

/// All vPools.
#[utoipa::path(get, path = "/api/v1/vpools", tag = "vpools", responses(
    (status = 200, description = "All vPools, in order of name", body = VpoolList),
))]
pub(super) async fn list(extract::State(state): extract::State<State>) -> Json<VpoolList> {
    Json(VpoolList { items: state.router.vpools().into_iter().map(shown).collect() })
}

/// Make a vPool on an empty place of an object store, or adopt the one that lies there.
#[utoipa::path(post, path = "/api/v1/vpools", tag = "vpools", request_body = VpoolCreate, responses(
    (status = 201, description = "The new vPool", body = Vpool),
    (status = 400, description = "The request can't be right", body = Problem),
    (status = 404, description = "To adopt: there is no vPool", body = Problem),
    (status = 409, description = "The name is taken, or something lies there", body = Problem),
    (status = 503, description = "The object store does not answer", body = Problem),
))]
pub(super) async fn create(
    extract::State(state): extract::State<State>,
    Body(body): Body<VpoolCreate>,
) -> Answer<impl IntoResponse> {
    let spec = CreateVpool {
        name: body.name.parse()?,
        backend: body.backend,
        cluster_size: body.cluster_size_bytes,
        adopt: body.adopt,
    };
    let (info, adopted) = state.router.create_vpool(spec).await?;
    let mut vpool = shown(info);
    vpool.adopted = body.adopt.then(|| {
        adopted
            .into_iter()
            .map(|a| AdoptedVdisk {
                name: a.name.to_string(),
                id: a.id.to_string(),
                renamed_from: a.renamed_from,
            })
            .collect()
    });
    let location = format!("/api/v1/vpools/{}", vpool.name);
    Ok((StatusCode::CREATED, [(LOCATION, location)], Json(vpool)))
}

/// One vPool.
#[utoipa::path(get, path = "/api/v1/vpools/{name}", tag = "vpools",
    params(("name" = String, Path, description = "Name or id")), responses(
    (status = 200, description = "The vPool", body = Vpool),
    (status = 404, description = "There is no such vPool", body = Problem),
))]
pub(super) async fn show(
    extract::State(state): extract::State<State>,
    Names(name): Names<String>,
) -> Answer<Json<Vpool>> {
    Ok(Json(shown(state.router.vpool(&name)?)))
}

/// Delete an empty vPool, or detach one: forget it here and leave its data on the object store.
#[utoipa::path(delete, path = "/api/v1/vpools/{name}", tag = "vpools",
    params(("name" = String, Path, description = "Name or id"), VpoolDelete), responses(
    (status = 204, description = "It is gone"),
    (status = 403, description = "To detach: a vDisk is in use or not open", body = Problem),
    (status = 404, description = "There is no such vPool", body = Problem),
    (status = 409, description = "It has vDisks", body = Problem),
    (status = 503, description = "The object store does not answer", body = Problem),
))]
pub(super) async fn delete(
    extract::State(state): extract::State<State>,
    Names(name): Names<String>,
    Params(query): Params<VpoolDelete>,
) -> Answer<StatusCode> {
    match (query.detach, query.force) {
        (true, force) => state.router.detach_vpool(&name, force).await?,
        (false, false) => state.router.delete_vpool(&name).await?,
        (false, true) => {
            return Err(Error::invalid(
                "query: 'force' goes with 'detach' only: a vPool is deleted when empty",
            )
            .into());
        }
    }
    Ok(StatusCode::NO_CONTENT)
}
