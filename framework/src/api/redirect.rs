//! Requests about a vDisk that another storage router owns are sent to that one's API.

use super::State;
use axum::extract::{self, Request};
use axum::http::StatusCode;
use axum::http::header::LOCATION;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

const VDISKS: &str = "/api/v1/vdisks/";

pub(super) async fn to_the_owner(
    extract::State(state): extract::State<State>,
    request: Request,
    next: Next,
) -> Response {
    let owner = request.uri().path().strip_prefix(VDISKS).and_then(|path| {
        let mut parts = path.split('/');
        let (vpool, name, what) = (parts.next()?, parts.next()?, parts.next());
        // Who forces a vDisk wants it here.
        if what == Some("force") { None } else { state.router.owner_api(vpool, name) }
    });
    match (owner, request.uri().path_and_query()) {
        (Some(owner), Some(path)) => {
            (StatusCode::TEMPORARY_REDIRECT, [(LOCATION, format!("{owner}{path}"))]).into_response()
        }
        _ => next.run(request).await,
    }
}
