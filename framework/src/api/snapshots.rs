//! Snapshots of vDisks, clones, rollback, templates.

use super::State;
use super::extract::{Body, Names};
use super::problem::Answer;
use super::vdisks::shown;
use crate::types::{
    CloneCreate, GroupSnapshotCreate, MakeTemplate, Problem, Rollback, Snapshot, SnapshotCreate,
    SnapshotList, SnapshotPatch, Vdisk,
};
use axum::Json;
use axum::extract;
use axum::http::StatusCode;
use axum::http::header::LOCATION;
use axum::response::{IntoResponse, Response};
use common::{Error, Result};
use objectrouter::{DescribeSnapshot, SnapshotShown, TakeSnapshot};

fn snapshot(vdisk: String, shown: SnapshotShown) -> Snapshot {
    let SnapshotShown { info, clones } = shown;
    Snapshot {
        name: info.about.name,
        vdisk,
        id: format!("{:032x}", info.about.id),
        size_bytes: info.size,
        created_at: info.about.created_at,
        consistent: info.about.consistent,
        sticky: info.about.sticky,
        metadata: String::from_utf8_lossy(&info.about.metadata).into_owned(),
        on_backend: info.lsn.is_some(),
        lsn: info.lsn.map(|lsn| lsn.0),
        clones: clones.iter().map(ToString::to_string).collect(),
    }
}

fn spec(body: SnapshotCreate) -> Result<TakeSnapshot> {
    Ok(TakeSnapshot {
        name: body.name.parse()?,
        consistent: body.consistent,
        sticky: body.sticky,
        metadata: body.metadata.into(),
    })
}

/// The full name of a vDisk.
fn full(state: &State, vpool: &str, name: &str) -> Result<String> {
    let info = state.router.vdisk(vpool, name)?;
    Ok(format!("{}/{}", info.vpool, info.name))
}

/// The snapshots of a vDisk, the oldest first.
#[utoipa::path(get, path = "/api/v1/vdisks/{vpool}/{name}/snapshots", tag = "snapshots",
    params(("vpool" = String, Path, description = "Name or id"), ("name" = String, Path, description = "Name or id")),
    responses(
    (status = 200, description = "The snapshots", body = SnapshotList),
    (status = 404, description = "There is no such vDisk", body = Problem),
    (status = 503, description = "The vDisk is not open", body = Problem),
))]
pub(super) async fn list(
    extract::State(state): extract::State<State>,
    Names((vpool, name)): Names<(String, String)>,
) -> Answer<Json<SnapshotList>> {
    let vdisk = full(&state, &vpool, &name)?;
    let snapshots = state.router.snapshots(&vpool, &name).await?;
    Ok(Json(SnapshotList { items: snapshots.into_iter().map(|s| snapshot(vdisk.clone(), s)).collect() }))
}

/// Take a snapshot, online. It is durable when this returns, also while the backend is away.
#[utoipa::path(post, path = "/api/v1/vdisks/{vpool}/{name}/snapshots", tag = "snapshots", request_body = SnapshotCreate,
    params(("vpool" = String, Path, description = "Name or id"), ("name" = String, Path, description = "Name or id")),
    responses(
    (status = 201, description = "The new snapshot", body = Snapshot),
    (status = 400, description = "The request can't be right", body = Problem),
    (status = 403, description = "The vDisk is a template", body = Problem),
    (status = 404, description = "There is no such vDisk", body = Problem),
    (status = 409, description = "The name is taken", body = Problem),
    (status = 503, description = "The vDisk is not open", body = Problem),
))]
pub(super) async fn create(
    extract::State(state): extract::State<State>,
    Names((vpool, name)): Names<(String, String)>,
    Body(body): Body<SnapshotCreate>,
) -> Answer<impl IntoResponse> {
    let vdisk = full(&state, &vpool, &name)?;
    let taken = snapshot(vdisk, state.router.take_snapshot(&vpool, &name, spec(body)?).await?);
    let location = format!("/api/v1/vdisks/{}/snapshots/{}", taken.vdisk, taken.name);
    Ok((StatusCode::CREATED, [(LOCATION, location)], Json(taken)))
}

/// Take one snapshot of each of several vDisks, all at one instant: a consistency group.
#[utoipa::path(post, path = "/api/v1/snapshots", tag = "snapshots", request_body = GroupSnapshotCreate, responses(
    (status = 201, description = "The new snapshots, in the order of the vDisks", body = SnapshotList),
    (status = 400, description = "The request can't be right", body = Problem),
    (status = 403, description = "One of the vDisks is a template", body = Problem),
    (status = 404, description = "There is no such vDisk", body = Problem),
    (status = 307, description = "Another storage router owns all of them: ask there"),
    (status = 409, description = "The name is taken, or several storage routers own them; no snapshot was made", body = Problem),
    (status = 503, description = "A vDisk is not open", body = Problem),
))]
pub(super) async fn create_group(
    extract::State(state): extract::State<State>,
    Body(body): Body<GroupSnapshotCreate>,
) -> Answer<Response> {
    let names = body.vdisks.iter().map(|vdisk| match vdisk.split_once('/') {
        Some((vpool, name)) => Ok((vpool.to_owned(), name.to_owned())),
        None => Err(Error::invalid(format!("vdisks: '{}' is not VPOOL/NAME", vdisk.escape_debug()))),
    });
    let names: Vec<(String, String)> = names.collect::<Result<_>>()?;
    // All of another router's: that one takes them.
    let mut owners = names.iter().map(|(vpool, name)| state.router.owner_api(vpool, name));
    if let Some(Some(owner)) = owners.next()
        && owners.all(|other| other.as_ref() == Some(&owner))
    {
        let location = format!("{owner}/api/v1/snapshots");
        return Ok((StatusCode::TEMPORARY_REDIRECT, [(LOCATION, location)]).into_response());
    }
    let taken = state.router.take_snapshots(&names, spec(body.snapshot)?).await?;
    let items =
        taken.into_iter().map(|(info, s)| snapshot(format!("{}/{}", info.vpool, info.name), s)).collect();
    Ok((StatusCode::CREATED, Json(SnapshotList { items })).into_response())
}

/// One snapshot.
#[utoipa::path(get, path = "/api/v1/vdisks/{vpool}/{name}/snapshots/{snapshot}", tag = "snapshots",
    params(("vpool" = String, Path, description = "Name or id"), ("name" = String, Path, description = "Name or id"),
        ("snapshot" = String, Path, description = "Name or id")),
    responses(
    (status = 200, description = "The snapshot", body = Snapshot),
    (status = 404, description = "There is no such snapshot", body = Problem),
    (status = 503, description = "The vDisk is not open", body = Problem),
))]
pub(super) async fn show(
    extract::State(state): extract::State<State>,
    Names((vpool, name, which)): Names<(String, String, String)>,
) -> Answer<Json<Snapshot>> {
    let vdisk = full(&state, &vpool, &name)?;
    Ok(Json(snapshot(vdisk, state.router.snapshot(&vpool, &name, &which).await?)))
}

/// Change what is said about a snapshot.
#[utoipa::path(patch, path = "/api/v1/vdisks/{vpool}/{name}/snapshots/{snapshot}", tag = "snapshots",
    request_body = SnapshotPatch,
    params(("vpool" = String, Path, description = "Name or id"), ("name" = String, Path, description = "Name or id"),
        ("snapshot" = String, Path, description = "Name or id")),
    responses(
    (status = 200, description = "The snapshot as it is now", body = Snapshot),
    (status = 400, description = "Nothing to change, or too much metadata", body = Problem),
    (status = 404, description = "There is no such snapshot", body = Problem),
    (status = 503, description = "The vDisk is not open, or its backend does not answer", body = Problem),
))]
pub(super) async fn change(
    extract::State(state): extract::State<State>,
    Names((vpool, name, which)): Names<(String, String, String)>,
    Body(body): Body<SnapshotPatch>,
) -> Answer<Json<Snapshot>> {
    if body == SnapshotPatch::default() {
        return Err(Error::invalid("nothing to change: give 'consistent', 'sticky' or 'metadata'").into());
    }
    let vdisk = full(&state, &vpool, &name)?;
    let SnapshotPatch { consistent, sticky, metadata } = body;
    let words = DescribeSnapshot { consistent, sticky, metadata: metadata.map(Into::into) };
    let shown = state.router.describe_snapshot(&vpool, &name, &which, words).await?;
    Ok(Json(snapshot(vdisk, shown)))
}

/// Delete a snapshot. What only it held is given back soon after.
#[utoipa::path(delete, path = "/api/v1/vdisks/{vpool}/{name}/snapshots/{snapshot}", tag = "snapshots",
    params(("vpool" = String, Path, description = "Name or id"), ("name" = String, Path, description = "Name or id"),
        ("snapshot" = String, Path, description = "Name or id")),
    responses(
    (status = 204, description = "It is gone"),
    (status = 403, description = "It has clones", body = Problem),
    (status = 404, description = "There is no such snapshot", body = Problem),
    (status = 503, description = "The vDisk is not open, or its backend does not answer", body = Problem),
))]
pub(super) async fn delete(
    extract::State(state): extract::State<State>,
    Names((vpool, name, which)): Names<(String, String, String)>,
) -> Answer<StatusCode> {
    state.router.delete_snapshot(&vpool, &name, &which).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Make a vDisk that begins as a snapshot of another, or as a template: instant, whatever the size.
#[utoipa::path(post, path = "/api/v1/vdisks/{vpool}/{name}/clone", tag = "snapshots", request_body = CloneCreate,
    params(("vpool" = String, Path, description = "Name or id"), ("name" = String, Path, description = "Name or id")),
    responses(
    (status = 201, description = "The new vDisk", body = Vdisk),
    (status = 400, description = "The request can't be right", body = Problem),
    (status = 404, description = "There is no such vDisk or snapshot", body = Problem),
    (status = 409, description = "The name is taken, or the snapshot is being deleted", body = Problem),
    (status = 503, description = "The snapshot is not on the backend yet, and it does not answer", body = Problem),
))]
pub(super) async fn clone(
    extract::State(state): extract::State<State>,
    Names((vpool, name)): Names<(String, String)>,
    Body(body): Body<CloneCreate>,
) -> Answer<impl IntoResponse> {
    let clone = body.name.parse()?;
    let info = state.router.clone_vdisk(&vpool, &name, body.snapshot.as_deref(), clone).await?;
    let vdisk = shown(&state, info);
    let location = format!("/api/v1/vdisks/{}/{}", vdisk.vpool, vdisk.name);
    Ok((StatusCode::CREATED, [(LOCATION, location)], Json(vdisk)))
}

/// Bring a vDisk back to a snapshot. Its size and its snapshots stay.
#[utoipa::path(post, path = "/api/v1/vdisks/{vpool}/{name}/rollback", tag = "snapshots", request_body = Rollback,
    params(("vpool" = String, Path, description = "Name or id"), ("name" = String, Path, description = "Name or id")),
    responses(
    (status = 200, description = "The vDisk as it is now", body = Vdisk),
    (status = 403, description = "It is in use, or a template", body = Problem),
    (status = 404, description = "There is no such vDisk or snapshot", body = Problem),
    (status = 503, description = "The backend does not take what was written before; nothing changed", body = Problem),
))]
pub(super) async fn rollback(
    extract::State(state): extract::State<State>,
    Names((vpool, name)): Names<(String, String)>,
    Body(body): Body<Rollback>,
) -> Answer<Json<Vdisk>> {
    let info = state.router.roll_back(&vpool, &name, &body.snapshot, body.force).await?;
    Ok(Json(shown(&state, info)))
}

/// Make a vDisk a template: never written again, and cloned by its name.
#[utoipa::path(post, path = "/api/v1/vdisks/{vpool}/{name}/template", tag = "snapshots", request_body = MakeTemplate,
    params(("vpool" = String, Path, description = "Name or id"), ("name" = String, Path, description = "Name or id")),
    responses(
    (status = 200, description = "The template", body = Vdisk),
    (status = 403, description = "It is in use", body = Problem),
    (status = 404, description = "There is no such vDisk", body = Problem),
    (status = 409, description = "It has another snapshot called 'template'", body = Problem),
    (status = 503, description = "The vDisk is not open", body = Problem),
))]
pub(super) async fn template(
    extract::State(state): extract::State<State>,
    Names((vpool, name)): Names<(String, String)>,
    Body(body): Body<MakeTemplate>,
) -> Answer<Json<Vdisk>> {
    Ok(Json(shown(&state, state.router.make_template(&vpool, &name, body.force).await?)))
}
