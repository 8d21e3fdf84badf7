//! The daemon: opens the disk, listens, stops.

use super::open_table;
use crate::cli::asd::Serve;
use crate::client::print;
use crate::cluster::settings::mutual_tls;
use crate::config::{LogFormat, LogSettings};
use crate::failure::{Exit, Failure};
use crate::logging;
use crate::serve::signals::Signals;
use crate::serve::{system, with_frugal_allocators};
use ::asd::metrics::Metrics;
use ::asd::service::{Service, Settings as ServiceSettings};
use ::asd::store::{Settings, Store};
use ::asd::transport::Door;
use anyhow::{Context, Result};
use axum::routing::get;
use common::clock::SystemClock;
use common::disk::local::LocalDisk;
use common::{Clock, Error};
use kvstore::RocksSettings;
use prometheus_client::registry::Registry;
use sd_notify::NotifyState;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

/// The table's write buffers.
const BUFFERS: usize = 64 << 20;

/// `asd`.
pub fn run(args: &Serve) -> Result<()> {
    with_frugal_allocators();
    logging::start(&LogSettings { filter: args.log.clone(), format: LogFormat::Text })?;
    logging::abort_on_panic();
    let runtime = tokio::runtime::Builder::new_multi_thread().thread_name("asd").enable_all().build();
    runtime.context("starting the runtime")?.block_on(serve(args))
}

async fn serve(args: &Serve) -> Result<()> {
    let Some(dir) = &args.dir else {
        return Err(Failure::usage("say which disk: --dir DIR (see storagerouter asd --help)"));
    };
    if !dir.is_dir() {
        return Err(Failure::error(
            Exit::NotFound,
            format!("there is no directory {}: is the disk mounted?", dir.display()),
        ));
    }
    let mut signals = Signals::listen()?;
    system::raise_open_files();
    let metrics_door = match &args.metrics {
        Some(address) => Some(loopback("--metrics", address).await?),
        None => None,
    };
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let store = Arc::new(open(args, dir, clock.clone()).await?);
    // Only now: who has the disk has the socket file, too.
    let doors = doors(args).await?;
    let mut registry = Registry::default();
    let settings = ServiceSettings {
        memory_kib: u32::try_from(args.memory >> 10).unwrap_or(u32::MAX / 4),
        max_connections: system::connections_within_open_files(
            "asd",
            ServiceSettings::default().max_connections,
            4,
        ),
        ..ServiceSettings::default()
    };
    let service = Service::new(store.clone(), settings, Metrics::new(&mut registry));
    let (stop, stopped) = watch::channel(false);
    let mut listening = tokio::task::JoinSet::new();
    for (door, shown) in doors {
        print(&format!("OSD {} at {shown}", store.id()))?;
        let (service, stopped) = (service.clone(), stopped.clone());
        listening.spawn(async move { service.listen(door, stopped).await });
    }
    if let Some(listener) = metrics_door {
        let registry = Arc::new(registry);
        let app = axum::Router::new().route("/metrics", get(move || metrics(registry.clone())));
        listening.spawn(async move {
            if let Err(error) = axum::serve(listener, app).await {
                tracing::error!(%error, "nobody answers GET /metrics any more");
            }
        });
    }
    let watchdog = system::watchdog(clock);
    system::notify(&[NotifyState::Ready, NotifyState::Status("serving")]);
    tracing::info!(osd = %store.id(), dir = %dir.display(), "serving");
    let signal = signals.stop_at_once().await;
    tracing::info!(signal, "stopping; a second signal ends it at once");
    system::notify(&[NotifyState::Stopping]);
    let orderly = async {
        let _ = stop.send(true);
        listening.abort_all();
        while listening.join_next().await.is_some() {}
        store.close().await;
    };
    tokio::select! {
        () = orderly => {}
        number = signals.stop_at_once() => std::process::exit(128 + number),
    }
    if let Some(watchdog) = watchdog {
        watchdog.abort();
    }
    tracing::info!("stopped");
    Ok(())
}

async fn open(args: &Serve, dir: &Path, clock: Arc<dyn Clock>) -> Result<Store> {
    if !dir.join("identity").exists() {
        return Err(Failure::error(
            Exit::NotFound,
            format!(
                "{0} is not formatted (or its disk is not mounted): storagerouter asd format --dir {0}",
                dir.display()
            ),
        ));
    }
    let cache = usize::try_from(args.cache).unwrap_or(usize::MAX);
    let rocks =
        RocksSettings { block_cache_bytes: cache, write_buffer_bytes: BUFFERS, ..RocksSettings::default() };
    let table = open_table(dir, rocks)?;
    let settings = Settings {
        capacity: args.capacity,
        clean_rate: args.clean_rate.max(1 << 20),
        scrub_rate: args.scrub_rate,
        ..Settings::default()
    };
    // What it may take of little must not be all kept.
    let reserve = args.capacity.map_or(settings.table_reserve, |c| (c / 16).min(settings.table_reserve));
    let settings = Settings { table_reserve: reserve.max(16 << 20), ..settings };
    let disk = Arc::new(LocalDisk::open(dir)?);
    let (store, found) = Store::open(settings, disk, Arc::new(table), clock)
        .await
        .map_err(|e| e.context(format!("opening {}", dir.display())))?;
    if found.leftovers > 0 {
        tracing::info!(segments = found.leftovers, "what an earlier process left unfinished was removed");
    }
    Ok(store)
}

fn cannot_listen(flag: &str, address: &str, error: &std::io::Error) -> anyhow::Error {
    let exit = match error.kind() {
        std::io::ErrorKind::AddrInUse => Exit::Conflict,
        std::io::ErrorKind::AddrNotAvailable | std::io::ErrorKind::InvalidInput => Exit::Usage,
        _ => Exit::Failure,
    };
    Failure::error(exit, format!("{flag} {address}: can't listen there: {error}"))
}

async fn loopback(flag: &str, address: &str) -> Result<TcpListener> {
    let listener = TcpListener::bind(address).await.map_err(|e| cannot_listen(flag, address, &e))?;
    let local: SocketAddr = listener.local_addr()?;
    if local.ip().to_canonical().is_loopback() {
        return Ok(listener);
    }
    Err(Failure::usage(format!("{flag} {address}: other machines can reach it: listen on 127.0.0.1")))
}

/// Where clients come in, and how that is written.
async fn doors(args: &Serve) -> Result<Vec<(Door, String)>> {
    let mut doors = Vec::new();
    if !args.listen.is_empty() {
        let tls = match (&args.tls_cert, &args.tls_key, &args.tls_ca) {
            (Some(cert), Some(key), Some(ca)) => {
                Some(mutual_tls(["--tls-cert", "--tls-key", "--tls-ca"], cert, key, ca)?)
            }
            _ => None,
        };
        let address = &args.listen;
        let listener =
            TcpListener::bind(address).await.map_err(|e| cannot_listen("--listen", address, &e))?;
        let local = listener.local_addr()?;
        if !local.ip().to_canonical().is_loopback() && tls.is_none() && !args.insecure {
            return Err(Failure::usage(format!(
                "--listen {address}: other machines can reach it, and any of them could read and delete everything: \
                 give --tls-cert, --tls-key and --tls-ca, or listen on 127.0.0.1, or say --insecure"
            )));
        }
        doors.push((Door::Tcp(listener, tls.map(|tls| TlsAcceptor::from(tls.server))), local.to_string()));
    }
    if let Some(path) = &args.unix {
        // One that a killed process left: a living one has the disk, and this process would have ended there.
        let _ = std::fs::remove_file(path);
        let failed = |e: std::io::Error| Error::io(format!("--unix {}", path.display()), &e);
        let listener = UnixListener::bind(path).map_err(failed)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
        doors.push((Door::Unix(listener), format!("unix:{}", path.display())));
    }
    if doors.is_empty() {
        return Err(Failure::usage("nobody could reach it: give --listen HOST:PORT or --unix PATH"));
    }
    Ok(doors)
}

async fn metrics(registry: Arc<Registry>) -> Result<String, (axum::http::StatusCode, String)> {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)
        .map(|()| text)
        .map_err(|e| (axum::http::StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))
}
