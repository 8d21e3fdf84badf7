//! The DTL service: what this router keeps for others.

use crate::cluster::settings::{ClusterSettings, mutual_tls};
use common::Clock;
use common::disk::local::LocalDisk;
use dtl::config::{Settings, StorageKind};
use dtl::metrics::ServiceMetrics;
use dtl::service::{Door, Service};
use dtl::storage::Store;
use prometheus_client::registry::Registry;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// The service, running.
pub struct Keeper {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

/// Opens the logs. Making room for them takes a moment, so it is done beside other things.
pub async fn open_store(
    settings: Settings,
    folder: PathBuf,
    clock: Arc<dyn Clock>,
) -> common::Result<Arc<Store>> {
    if settings.storage == StorageKind::Memory {
        return Ok(Store::memory(settings.limits(), clock));
    }
    let disk = Arc::new(LocalDisk::open(folder)?);
    let (store, found) = Store::open(settings.disk(), disk, clock).await.map_err(|e| e.context("the DTL"))?;
    tracing::info!(volumes = found.volumes, logs = found.logs, entries = found.entries, "DTL open");
    for damage in &found.damage {
        tracing::error!(
            file = damage.file,
            offset = damage.offset,
            "the DTL has lost what was durable ({}): its logs count no more, and their owners make new ones",
            damage.what
        );
    }
    Ok(store)
}

/// What guards the service: its own certificates, or those of the cluster.
pub fn tls(settings: &Settings, cluster: &ClusterSettings) -> common::Result<Option<TlsAcceptor>> {
    let tls = match (&settings.tls_cert, &settings.tls_key, &settings.tls_client_ca) {
        (Some(cert), Some(key), Some(ca)) => {
            Some(mutual_tls(["dtl.tls_cert", "dtl.tls_key", "dtl.tls_client_ca"], cert, key, ca)?)
        }
        _ => cluster.tls()?,
    };
    Ok(tls.map(|tls| TlsAcceptor::from(tls.server)))
}

impl Keeper {
    /// Serves who comes to `listener`.
    pub fn start(
        settings: &Settings,
        store: Arc<Store>,
        listener: TcpListener,
        tls: Option<TlsAcceptor>,
        clock: Arc<dyn Clock>,
        registry: &mut Registry,
    ) -> Keeper {
        let metrics = ServiceMetrics::new(registry, &store);
        let service = Service::new(store, settings.service(), clock, metrics);
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(async move { service.listen(Door::Tcp(listener, tls), stopped).await });
        Keeper { stop, task }
    }

    /// Ends it.
    pub async fn stop(self) {
        let _ = self.stop.send(true);
        // A panic in it has ended the process already.
        let _ = self.task.await;
    }
}
