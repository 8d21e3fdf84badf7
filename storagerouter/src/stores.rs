//! From what a vPool's record says to an object store: the only place that knows both sides.

use alba_proxy::{BackendSpec, Metrics};
use common::{Clock, Error, ObjectStore, Result};
use futures::FutureExt;
use objectrouter::{OpenedStore, Stores};
use serde_json::Value;
use std::sync::Arc;

/// Reads a backend specification; the error names the field.
pub fn spec(value: Value) -> Result<BackendSpec> {
    serde_json::from_value(value).map_err(|e| Error::invalid(format!("backend: {e}")))
}

/// What the object router opens its stores with.
pub fn stores(clock: Arc<dyn Clock>, metrics: Metrics) -> Stores {
    let (attach_clock, attach_metrics) = (clock.clone(), metrics.clone());
    Stores {
        open: Arc::new(move |value| {
            let (clock, metrics) = (clock.clone(), metrics.clone());
            async move {
                let spec = spec(value)?;
                let store = alba_proxy::open(&spec, clock, &metrics).await?;
                Ok(opened(&spec, store))
            }
            .boxed()
        }),
        attach: Arc::new(move |value| {
            let (clock, metrics) = (attach_clock.clone(), attach_metrics.clone());
            async move {
                let spec = spec(value)?;
                let store = alba_proxy::attach(&spec, clock, &metrics).await?;
                Ok(opened(&spec, store))
            }
            .boxed()
        }),
    }
}

fn opened(spec: &BackendSpec, store: Arc<dyn ObjectStore>) -> OpenedStore {
    let single_writer = matches!(spec, BackendSpec::S3(s3) if s3.single_writer);
    OpenedStore {
        description: store.describe(),
        warning: single_writer.then(|| {
            "single_writer is set: a second router that opens this vPool is not noticed, and destroys data".to_string()
        }),
        store,
    }
}
