//! From a spec to a store.

use crate::directory::DirectoryStore;
use crate::metrics::{Metered, Metrics};
use crate::probe::probe;
use crate::s3::S3Store;
use crate::spec::BackendSpec;
use common::{Clock, Error, ObjectStore, Result};
use std::sync::Arc;

/// Opens the store of `spec`. An S3 server is not asked anything yet, so it may be away.
///
/// Errors: `Invalid` (the spec, or a file that it names), `NotFound` (a directory, a file or
/// credentials that are not there), `Denied`.
pub async fn open(
    spec: &BackendSpec,
    clock: Arc<dyn Clock>,
    metrics: &Metrics,
) -> Result<Arc<dyn ObjectStore>> {
    spec.check()?;
    let kind = spec.kind();
    let (owned, its_clock, retries) = (spec.clone(), clock.clone(), metrics.retries(kind));
    let opened = tokio::task::spawn_blocking(move || -> Result<Opened> {
        match &owned {
            BackendSpec::Directory(spec) => {
                Ok(Opened::Directory(DirectoryStore::open(&spec.path, its_clock)?))
            }
            BackendSpec::S3(spec) => Ok(Opened::S3(Box::new(S3Store::open(spec, its_clock, retries)?))),
        }
    })
    .await
    .map_err(|e| Error::internal(format!("opening the {kind} store did not finish: {e}")))??;
    Ok(match opened {
        Opened::Directory(store) => Arc::new(Metered::new(store, kind, clock, metrics)),
        Opened::S3(store) => Arc::new(Metered::new(*store, kind, clock, metrics)),
    })
}

enum Opened {
    Directory(DirectoryStore),
    S3(Box<S3Store>),
}

/// Opens the store of `spec` and tries out that it keeps its promises: what is done once, when a
/// vPool is created or adopted.
///
/// Errors: those of [`open`] and of the store, and `Unsupported` when the store breaks a promise.
pub async fn attach(
    spec: &BackendSpec,
    clock: Arc<dyn Clock>,
    metrics: &Metrics,
) -> Result<Arc<dyn ObjectStore>> {
    let store = open(spec, clock.clone(), metrics).await?;
    let report = probe(store.as_ref(), clock.as_ref()).await?;
    report.into_result(&store.describe())?;
    Ok(store)
}
