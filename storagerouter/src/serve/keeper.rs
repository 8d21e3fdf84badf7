//! The DTL service: what this router keeps for others.

use crate::cluster::settings::{ClusterSettings, mutual_tls};
use common::disk::local::LocalDisk;
use common::{Clock, Result};
use dtl::config::{Settings, StorageKind};
use dtl::metrics::ServiceMetrics;
use dtl::service::{Door, Service};
use dtl::storage::Store;
use edge::listen::SocketFile;
use prometheus_client::registry::Registry;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// The service. Opening its logs makes room for them on the disk, which nobody here has to wait for: who comes before that waits in its
/// listener.
pub struct Keeper {
    stop: watch::Sender<bool>,
    task: JoinHandle<Result<()>>,
}

/// What guards the service: its own certificates, or those of the cluster.
pub fn tls(settings: &Settings, cluster: &ClusterSettings) -> Result<Option<TlsAcceptor>> {
    let tls = match (&settings.tls_cert, &settings.tls_key, &settings.tls_client_ca) {
        (Some(cert), Some(key), Some(ca)) => {
            Some(mutual_tls(["dtl.tls_cert", "dtl.tls_key", "dtl.tls_client_ca"], cert, key, ca)?)
        }
        _ => cluster.tls()?,
    };
    Ok(tls.map(|tls| TlsAcceptor::from(tls.server)))
}

impl Keeper {
    /// Serves who comes to one of `doors`, the network's and that of this machine, from logs in `folder` where they are on disk.
    pub fn start(
        settings: &Settings,
        folder: PathBuf,
        doors: (Door, Option<(UnixListener, SocketFile)>),
        clock: Arc<dyn Clock>,
        registry: &mut Registry,
    ) -> Keeper {
        let metrics = ServiceMetrics::new(registry);
        let (stop, stopped) = watch::channel(false);
        let settings = settings.clone();
        let task = tokio::spawn(async move {
            let mut told = stopped.clone();
            let store = tokio::select! {
                store = open(&settings, folder, clock.clone()) => store?,
                _ = told.wait_for(|stop| *stop) => return Ok(()),
            };
            let service = Service::new(store, settings.service(), clock, metrics);
            let (far, near) = doors;
            let near = async {
                if let Some((listener, _file)) = near {
                    service.listen(Door::Unix(listener), stopped.clone()).await;
                }
            };
            tokio::join!(service.listen(far, stopped.clone()), near);
            Ok(())
        });
        Keeper { stop, task }
    }

    /// Waits until it ends by itself; why.
    pub async fn ended(&mut self) -> anyhow::Error {
        match (&mut self.task).await {
            Ok(Ok(())) => anyhow::anyhow!("the DTL service ended by itself"),
            Ok(Err(error)) => error.into(),
            Err(error) => error.into(),
        }
    }

    /// Ends it.
    pub async fn stop(self) {
        let _ = self.stop.send(true);
        // A panic in it has ended the process already.
        let _ = self.task.await;
    }
}

async fn open(settings: &Settings, folder: PathBuf, clock: Arc<dyn Clock>) -> Result<Arc<Store>> {
    if settings.storage == StorageKind::Memory {
        return Ok(Store::memory(settings.limits(), clock));
    }
    let disk = Arc::new(LocalDisk::open(folder)?);
    let begun = clock.now();
    let (store, found) =
        Store::open(settings.disk(), disk, clock.clone()).await.map_err(|e| e.context("the DTL"))?;
    let took = format!("{:.1?}", clock.now().saturating_sub(begun));
    tracing::info!(took, volumes = found.volumes, logs = found.logs, entries = found.entries, "DTL open");
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
