//! The bearer token.

use super::State;
use super::problem::Failure;
use axum::extract::{self, Request};
use axum::http::header::AUTHORIZATION;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

/// Open to whoever watches the process.
const OPEN: [&str; 2] = ["/healthz", "/readyz"];

pub(super) async fn check(
    extract::State(state): extract::State<State>,
    request: Request,
    next: Next,
) -> Response {
    let Some(token) = &state.token else { return next.run(request).await };
    if OPEN.contains(&request.uri().path()) {
        return next.run(request).await;
    }
    let given = request.headers().get(AUTHORIZATION).and_then(|value| {
        let (scheme, credentials) = value.as_bytes().split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then_some(credentials)
    });
    match given {
        Some(given) if token.is(given) => next.run(request).await,
        Some(_) => refuse("the bearer token is not the right one"),
        None => refuse("there is no bearer token"),
    }
}

fn refuse(detail: &str) -> Response {
    Failure::new(401, "unauthorized", "Unauthorized", detail)
        .hint("Send 'authorization: Bearer TOKEN'; the token is in the file that api.token_file names.")
        .into_response()
}
