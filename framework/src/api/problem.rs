//! Errors as RFC 9457 has them.

use crate::types::Problem;
use axum::http::header::{ALLOW, CONTENT_TYPE, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use common::{Error, ErrorKind};

/// What every handler fails with.
#[derive(Debug)]
pub(super) struct Failure(Problem);

/// What every handler returns.
pub(super) type Answer<T> = Result<T, Failure>;

fn title(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Unavailable => "Not available now",
        ErrorKind::NotOwner => "Owned by another storage router",
        ErrorKind::Fenced => "Taken over by a newer owner",
        ErrorKind::NotFound => "Not found",
        ErrorKind::Conflict => "Exists already or changed meanwhile",
        ErrorKind::Invalid => "Invalid request",
        ErrorKind::NoSpace => "Out of space",
        ErrorKind::Corrupt => "Stored data is damaged",
        ErrorKind::Unsupported => "Not supported",
        ErrorKind::Denied => "Not allowed",
        ErrorKind::Internal => "Internal error",
    }
}

fn hint(kind: ErrorKind) -> Option<&'static str> {
    Some(match kind {
        ErrorKind::Unavailable => {
            "It may come back by itself: try again. GET /api/v1/health says what is not well."
        }
        ErrorKind::NotOwner => "Ask the storage router that owns it.",
        ErrorKind::NoSpace => "Free some space; then it goes on.",
        ErrorKind::Corrupt => "Run `storagerouter fsck` on the vDisk before anything else.",
        ErrorKind::Internal => "The log of the storage router says more.",
        ErrorKind::Fenced
        | ErrorKind::NotFound
        | ErrorKind::Conflict
        | ErrorKind::Invalid
        | ErrorKind::Unsupported
        | ErrorKind::Denied => return None,
    })
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let kind = error.kind;
        let mut failure = Failure::new(kind.http_status(), kind.code(), title(kind), error.message());
        failure.0.hint = hint(kind).map(String::from);
        failure
    }
}

impl Failure {
    /// A failure of the protocol, which no [`ErrorKind`] names.
    pub(super) fn new(status: u16, code: &str, title: &str, detail: impl Into<String>) -> Self {
        Self(Problem {
            kind: format!("urn:storagerouter:error:{code}"),
            title: title.into(),
            status,
            code: code.into(),
            detail: detail.into(),
            hint: None,
        })
    }

    pub(super) fn hint(mut self, hint: &str) -> Self {
        self.0.hint = Some(hint.into());
        self
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        if status.is_server_error() {
            tracing::warn!(
                status = self.0.status,
                code = self.0.code,
                detail = self.0.detail,
                "API request failed"
            );
        }
        // Strings and integers always become JSON.
        let body = serde_json::to_vec(&self.0).unwrap_or_default();
        let mut response = (status, body).into_response();
        let json = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(CONTENT_TYPE, json);
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

pub(super) async fn unknown_path(uri: Uri) -> Failure {
    let path = uri.path().escape_debug();
    Failure::new(404, "not_found", title(ErrorKind::NotFound), format!("there is nothing at '{path}'"))
        .hint("GET /openapi.json lists all routes.")
}

pub(super) async fn unknown_method(method: Method, uri: Uri) -> Response {
    let path = uri.path().escape_debug();
    let detail = format!("'{path}' has no method {method}");
    let mut response = Failure::new(405, "method_not_allowed", "Method not allowed", detail).into_response();
    // The caller's router replaces it by what the path has.
    response.headers_mut().remove(ALLOW);
    response
}
