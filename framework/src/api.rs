//! The routes of the REST API.
//!
//! | room | what |
//! |---|---|
//! | `vpools`, `vdisks` | the resources |
//! | `backup` | vDisks as streams |
//! | `qos` | limits of a vDisk |
//! | `routers` | the storage routers, and vDisks that go from one to another |
//! | `redirect` | what another router owns is asked there |
//! | `cluster` | the members of the cluster, and backups of its registry |
//! | `system` | health, readiness, metrics, log level, version, the OpenAPI document |
//! | `auth` | the bearer token |
//! | `extract` | bodies, queries and paths, refused in the API's own words |
//! | `problem` | errors as RFC 9457 has them |

mod auth;
mod backup;
mod cluster;
mod extract;
mod problem;
mod qos;
mod redirect;
mod routers;
mod snapshots;
mod system;
#[cfg(test)]
mod tests;
mod vdisks;
mod vpools;

pub use cluster::ClusterControl;

use crate::config::Token;
use crate::types;
use axum::extract::DefaultBodyLimit;
use axum::middleware;
use common::Result;
use prometheus_client::registry::Registry;
use std::sync::Arc;
use utoipa::openapi::{Info, OpenApi, OpenApiBuilder};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// The largest body of a request, in bytes.
const BODY_LIMIT: usize = 1 << 20;

/// Reads the directives of the log filter.
pub type GetFilter = Arc<dyn Fn() -> String + Send + Sync>;
/// Sets the directives of the log filter; `Invalid` when they can't be read.
pub type SetFilter = Arc<dyn Fn(&str) -> Result<()> + Send + Sync>;

/// How the log level is read and set at run time.
#[derive(Clone)]
pub struct LogFilter {
    /// The directives in force.
    pub get: GetFilter,
    /// Puts directives in force.
    pub set: SetFilter,
}

/// What the routes work on.
#[derive(Clone)]
pub struct State {
    /// vPools and vDisks.
    pub router: Arc<objectrouter::Router>,
    /// All metrics of the process.
    pub metrics: Arc<Registry>,
    /// The log level.
    pub log: LogFilter,
    /// The cluster.
    pub cluster: ClusterControl,
    /// What the product is.
    pub version: types::Version,
    /// What clients must send; `None` lets everyone in.
    pub token: Option<Token>,
    /// URI of a vDisk over TCP, with `{vpool}` and `{vdisk}` in it.
    pub nbd_uri: Option<String>,
    /// Path of the unix socket of the NBD server.
    pub nbd_unix: Option<String>,
    /// Addresses of the edge protocol's server.
    pub edge: Vec<String>,
}

fn routes() -> OpenApiRouter<State> {
    OpenApiRouter::default()
        .routes(routes!(vpools::list, vpools::create))
        .routes(routes!(vpools::show, vpools::delete))
        .routes(routes!(vdisks::list, vdisks::create))
        .routes(routes!(vdisks::show, vdisks::change, vdisks::delete))
        .routes(routes!(vdisks::drain))
        .routes(routes!(vdisks::scrub))
        .routes(routes!(routers::migrate))
        .routes(routes!(routers::force))
        .routes(routes!(routers::list))
        .routes(routes!(routers::show, routers::remove))
        .routes(routes!(routers::drain))
        .routes(routes!(routers::resume))
        .routes(routes!(snapshots::list, snapshots::create))
        .routes(routes!(snapshots::show, snapshots::change, snapshots::delete))
        .routes(routes!(snapshots::create_group))
        .routes(routes!(snapshots::clone))
        .routes(routes!(snapshots::rollback))
        .routes(routes!(snapshots::template))
        .routes(routes!(backup::export))
        .routes(routes!(backup::import))
        .routes(routes!(cluster::status))
        .routes(routes!(cluster::leave))
        .routes(routes!(cluster::backup))
        .routes(routes!(system::health))
        .routes(routes!(system::log_level, system::set_log_level))
        .routes(routes!(system::version))
        .routes(routes!(system::openapi))
        .routes(routes!(system::openapi_v1))
        .routes(routes!(system::healthz))
        .routes(routes!(system::readyz))
        .routes(routes!(system::metrics))
}

/// The OpenAPI document of the API, generated from its code.
pub fn openapi() -> OpenApi {
    let mut info = Info::new("storagerouter", "1");
    info.description = Some("vPools and vDisks of a storage router. Sizes are integers in bytes.".into());
    let mut document = OpenApiBuilder::new().info(info).build();
    document.merge(routes().into_openapi());
    document
}

/// The whole API.
pub fn app(state: State) -> axum::Router {
    let (router, _) = routes().split_for_parts();
    router
        .fallback(problem::unknown_path)
        .method_not_allowed_fallback(problem::unknown_method)
        .layer(middleware::from_fn_with_state(state.clone(), redirect::to_the_owner))
        .layer(middleware::from_fn_with_state(state.clone(), auth::check))
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(state)
}
