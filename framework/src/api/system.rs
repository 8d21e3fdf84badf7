//! Health, readiness, metrics, log level, version, the OpenAPI document.

use super::State;
use super::extract::Body;
use super::problem::Answer;
use crate::types::{Health, HealthItem, HealthLevel, LogLevel, Problem, Ready, Version};
use axum::Json;
use axum::extract;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use common::Error;
use prometheus_client::encoding::text::encode;

fn level(level: objectrouter::HealthLevel) -> HealthLevel {
    match level {
        objectrouter::HealthLevel::Ok => HealthLevel::Ok,
        objectrouter::HealthLevel::Warning => HealthLevel::Warning,
        objectrouter::HealthLevel::Error => HealthLevel::Error,
    }
}

/// What is not well, and why.
#[utoipa::path(get, path = "/api/v1/health", tag = "system", responses(
    (status = 200, description = "The worst first; the level says how bad", body = Health),
))]
pub(super) async fn health(extract::State(state): extract::State<State>) -> Json<Health> {
    let items: Vec<_> = state
        .router
        .health()
        .into_iter()
        .map(|item| HealthItem { subject: item.subject, level: level(item.level), reason: item.reason })
        .collect();
    let worst = items.iter().map(|item| item.level).max().unwrap_or(HealthLevel::Ok);
    Json(Health { level: worst, items })
}

/// The log level.
#[utoipa::path(get, path = "/api/v1/log-level", tag = "system", responses(
    (status = 200, description = "The directives in force", body = LogLevel),
))]
pub(super) async fn log_level(extract::State(state): extract::State<State>) -> Json<LogLevel> {
    Json(LogLevel { filter: (state.log.get)() })
}

/// Set the log level until the process ends.
#[utoipa::path(put, path = "/api/v1/log-level", tag = "system", request_body = LogLevel, responses(
    (status = 200, description = "The directives in force from now on", body = LogLevel),
    (status = 400, description = "The directives can't be read", body = Problem),
))]
pub(super) async fn set_log_level(
    extract::State(state): extract::State<State>,
    Body(body): Body<LogLevel>,
) -> Answer<Json<LogLevel>> {
    (state.log.set)(&body.filter)?;
    tracing::info!(filter = body.filter, "log level set through the API");
    Ok(Json(LogLevel { filter: (state.log.get)() }))
}

/// What answers here.
#[utoipa::path(get, path = "/api/v1/version", tag = "system", responses(
    (status = 200, description = "Product, version, node", body = Version),
))]
pub(super) async fn version(extract::State(state): extract::State<State>) -> Json<Version> {
    Json(state.version)
}

/// This document.
#[utoipa::path(get, path = "/openapi.json", tag = "system", responses(
    (status = 200, description = "OpenAPI", body = Object),
))]
pub(super) async fn openapi() -> impl IntoResponse {
    Json(super::openapi())
}

/// This document.
#[utoipa::path(get, path = "/api/v1/openapi.json", tag = "system", responses(
    (status = 200, description = "OpenAPI", body = Object),
))]
pub(super) async fn openapi_v1() -> impl IntoResponse {
    Json(super::openapi())
}

/// The process can serve.
#[utoipa::path(get, path = "/healthz", tag = "system", security(()), responses(
    (status = 200, description = "It can", body = String, content_type = "text/plain"),
))]
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// Everything that can open has opened.
#[utoipa::path(get, path = "/readyz", tag = "system", security(()), responses(
    (status = 200, description = "It has", body = Ready),
    (status = 503, description = "Not yet; the reasons say what is awaited", body = Ready),
))]
pub(super) async fn readyz(extract::State(state): extract::State<State>) -> impl IntoResponse {
    match state.router.ready() {
        Ok(()) => (StatusCode::OK, Json(Ready { ready: true, reasons: Vec::new() })),
        Err(reasons) => (StatusCode::SERVICE_UNAVAILABLE, Json(Ready { ready: false, reasons })),
    }
}

/// Metrics for Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "system", responses(
    (status = 200, description = "Metrics", body = String,
        content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8"),
))]
pub(super) async fn metrics(extract::State(state): extract::State<State>) -> Answer<impl IntoResponse> {
    let mut text = String::new();
    encode(&mut text, &state.metrics).map_err(|e| Error::internal(format!("metrics: {e}")))?;
    Ok(([(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text))
}
