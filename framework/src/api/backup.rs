//! vDisks as streams: export and import, piped through without being held.

use super::State;
use super::extract::{Names, Params};
use super::problem::{Answer, Failure};
use super::vdisks::shown;
use crate::types::{ExportQuery, ImportQuery, Imported, Problem};
use axum::Json;
use axum::body::Body;
use axum::extract::{self, Request};
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use common::Error;
use futures::TryStreamExt;

/// The media type of a stream.
const STREAM: &str = "application/x-storagerouter-export";

/// Export a snapshot of a vDisk, or with `since` what differs from an older one, as a stream. One that can't be
/// had to its end lacks its last record.
#[utoipa::path(get, path = "/api/v1/vdisks/{vpool}/{name}/export", tag = "backup",
    params(("vpool" = String, Path, description = "Name or id"), ("name" = String, Path, description = "Name or id"),
        ExportQuery),
    responses(
    (status = 200, description = "The stream (docs/formats.md)", body = String,
        content_type = "application/x-storagerouter-export"),
    (status = 400, description = "'since' without 'snapshot'", body = Problem),
    (status = 403, description = "The vDisk is in use: export a snapshot of it", body = Problem),
    (status = 404, description = "There is no such vDisk or snapshot", body = Problem),
    (status = 503, description = "The snapshot is not on the backend yet, and it does not answer", body = Problem),
))]
pub(super) async fn export(
    extract::State(state): extract::State<State>,
    Names((vpool, name)): Names<(String, String)>,
    Params(query): Params<ExportQuery>,
) -> Answer<impl IntoResponse> {
    let export =
        state.router.export(&vpool, &name, query.snapshot.as_deref(), query.since.as_deref()).await?;
    let bytes =
        futures::stream::unfold(export, |mut export| async { export.next().await.map(|b| (b, export)) });
    Ok(([(CONTENT_TYPE, STREAM)], Body::from_stream(bytes)))
}

/// Import a stream into a vDisk that it makes, or that stands where the stream goes on. When it ends at a
/// snapshot, the vDisk gets that one, with its name and identity.
#[utoipa::path(post, path = "/api/v1/vdisks/{vpool}/{name}/import", tag = "backup",
    params(("vpool" = String, Path, description = "Name or id"), ("name" = String, Path, description = "Name"),
        ImportQuery),
    request_body(content = String, content_type = "application/x-storagerouter-export",
        description = "The stream (docs/formats.md)"),
    responses(
    (status = 200, description = "It is all there", body = Imported),
    (status = 400, description = "This is no export, or it is cut off", body = Problem),
    (status = 403, description = "The vDisk is in use", body = Problem),
    (status = 404, description = "There is no such vPool, or no vDisk to put an incremental stream on", body = Problem),
    (status = 409, description = "The stream does not go on where the vDisk stands", body = Problem),
    (status = 415, description = "The body has another media type", body = Problem),
    (status = 500, description = "The stream is damaged", body = Problem),
    (status = 503, description = "The vDisk is not open", body = Problem),
))]
pub(super) async fn import(
    extract::State(state): extract::State<State>,
    Names((vpool, name)): Names<(String, String)>,
    Params(query): Params<ImportQuery>,
    request: Request,
) -> Answer<Json<Imported>> {
    // A web page can't send this type to another origin without asking first.
    let media = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if media != Some(STREAM) {
        let detail = format!("the body must have the content type {STREAM}");
        return Err(Failure::new(415, "unsupported_media_type", "Unsupported media type", detail));
    }
    let name = state.router.vdisk(&vpool, &name).map(|vdisk| vdisk.name).or_else(|_| name.parse())?;
    let body = request.into_body().into_data_stream();
    let body = body.map_err(|e| Error::invalid(format!("the stream broke off: {e}")));
    let done = state.router.import(&vpool, name, query.force, body).await?;
    Ok(Json(Imported {
        vdisk: shown(&state, done.vdisk),
        created: done.created,
        snapshot: done.snapshot.map(|name| name.to_string()),
        data_bytes: done.totals.data,
        zero_bytes: done.totals.zero,
        hole_bytes: done.totals.hole,
    }))
}
