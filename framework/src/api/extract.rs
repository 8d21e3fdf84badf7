//! Bodies, queries and paths, refused in the API's own words.

use super::problem::Failure;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use common::Error;
use serde::de::DeserializeOwned;

/// A JSON body.
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        let json = request.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).is_some_and(|value| {
            let media = value.split(';').next().unwrap_or_default().trim();
            media.eq_ignore_ascii_case("application/json")
        });
        // A web page can't send this type to another origin without asking first.
        if !json {
            let detail = "the body must have the content type application/json";
            return Err(Failure::new(415, "unsupported_media_type", "Unsupported media type", detail)
                .hint("Send the header 'content-type: application/json'."));
        }
        let body = axum::body::Bytes::from_request(request, state).await.map_err(|rejection| {
            if rejection.status().as_u16() == 413 {
                let detail = format!("the body is larger than {} bytes", super::BODY_LIMIT);
                Failure::new(413, "too_large", "Body too large", detail)
            } else {
                Error::invalid(format!("can't read the body: {rejection}")).into()
            }
        })?;
        let value = serde_json::from_slice(&body).map_err(|e| Error::invalid(format!("body: {e}")))?;
        Ok(Body(value))
    }
}

/// The query of a URI.
pub(super) struct Params<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        let Query(value) = Query::try_from_uri(&parts.uri)
            .map_err(|rejection| Error::invalid(format!("query: {}", rejection.body_text())))?;
        Ok(Params(value))
    }
}

/// The variable parts of a path.
pub(super) struct Names<T>(pub(super) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Names<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let Path(value) = Path::from_request_parts(parts, state)
            .await
            .map_err(|rejection| Error::invalid(format!("path: {}", rejection.body_text())))?;
        Ok(Names(value))
    }
}
