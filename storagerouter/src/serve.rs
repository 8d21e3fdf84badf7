//! `serve`: start, run, stop. What starts depends on what started before it; what stops is what
//! clients see first.

mod front;
mod keeper;
mod node;
pub mod signals;
pub mod system;

use crate::cluster::{Cluster, End, Opening};
use crate::config::{Settings, Sources};
use crate::datadir::{self, DataDir};
use crate::failure::{Exit, Failure};
use crate::logging::{self, LogControl};
use crate::{cli, stores};
use anyhow::{Context, Result};
use common::clock::SystemClock;
use common::disk::local::LocalDisk;
use common::{Clock, Disk, Error, ErrorKind, Table};
use dtl::service::Door;
use edge::listen::bind_unix;
use edge::nbd::{Server, TlsMode};
use edge::protocol::{self, Attachments, Forwarder};
use edge_client::trunk::Patience;
use front::FrontDoor;
use keeper::Keeper;
use kvstore::RocksTable;
use objectrouter::{Router, RouterAttachments, RouterExports};
use prometheus_client::registry::Registry;
use sd_notify::NotifyState;
use signals::Signals;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use volumedriver::Driver;

/// What a stop keeps back from its time for the end of the process itself.
const LAST_STEPS: Duration = Duration::from_millis(500);

/// Threads of the registry and of this router's signs of life: one may wait for a disk.
const CONTROL_THREADS: usize = 2;

/// How allocators are told to keep little of what is given back to them (ADR 7); they look when a process starts.
///
/// RocksDB allocates by glibc, which keeps in an arena per thread what was freed there: many times what is
/// in use, and more with every GiB that is written. Ours keeps freed pages for a second, in which a busy disk
/// frees hundreds of MiB, and a huge page whole for one small piece of it.
const FRUGAL: [(&str, &str); 3] =
    [("MALLOC_ARENA_MAX", "1"), ("MIMALLOC_PURGE_DELAY", "10"), ("MIMALLOC_ALLOW_THP", "0")];

/// Begins the process once more with [`FRUGAL`] allocators; what the environment says stays.
pub fn with_frugal_allocators() {
    let missing = FRUGAL.into_iter().filter(|(name, _)| std::env::var_os(name).is_none());
    let missing: Vec<_> = missing.collect();
    let Ok(program) = std::env::current_exe() else { return };
    if missing.is_empty() {
        return;
    }
    let mut arguments = std::env::args_os();
    let mut again = Command::new(program);
    if let Some(name) = arguments.next() {
        again.arg0(name);
    }
    // It only returns when it can't; then it costs memory, and no more.
    let error = again.args(arguments).envs(missing).exec();
    let text = format!("storagerouter: can't begin with frugal allocators, will use more memory: {error}\n");
    let _ = std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes());
}

/// Runs the storage router until it is told to stop.
pub fn run(args: &cli::Serve) -> Result<()> {
    with_frugal_allocators();
    let mut sources = args.config.sources();
    sources.log = args.log.clone();
    sources.log_format = args.log_format;
    let mut settings = sources.load()?;
    settings.check(args.config.insecure)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let path = settings.data_dir()?;
    let data_dir = DataDir::open(&path, &*clock)?;
    settings.nbd.unix.get_or_insert_with(|| datadir::nbd_socket(data_dir.path()));
    settings.edge.unix.get_or_insert_with(|| datadir::edge_socket(data_dir.path()));
    if settings.dtl.unix.is_none() {
        let path =
            datadir::dtl_socket(data_dir.path(), data_dir.id()).context("the path of the DTL's socket")?;
        settings.dtl.unix = Some(path);
    }
    let log = logging::start(&settings.log)?;
    logging::abort_on_panic();

    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(settings.worker_threads())
        .thread_name("router")
        .enable_all()
        .build()
        .context("starting the runtime")?;
    // Volumes that wait for a disk must not keep the registry from the sign of life that it waits for.
    let control = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("registry")
        .enable_all()
        .build()
        .context("starting the registry's runtime")?;
    let result = runtime.block_on(async {
        let mut signals = Signals::listen()?;
        let mut running = tokio::select! {
            running = Running::start(&settings, &data_dir, clock.clone(), &log, control.handle()) => match running? {
                Some(running) => running,
                None => return Ok(()),
            },
            number = signals.stop_at_once() => {
                tracing::info!("told to stop while starting");
                std::process::exit(128 + number)
            }
        };
        let why = running.until_stopped(&mut signals, &sources, &log).await?;
        tracing::info!(why, seconds = settings.shutdown_seconds, "stopping; a second signal ends it at once");
        system::notify(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
        tokio::select! {
            () = running.stop(Duration::from_secs(settings.shutdown_seconds), &*clock) => Ok(()),
            number = signals.stop_at_once() => {
                tracing::warn!("second signal: exit now; nothing acknowledged is lost");
                std::process::exit(128 + number)
            }
        }
    });
    // A call into a disk that hangs would hold the end for ever.
    runtime.shutdown_timeout(LAST_STEPS);
    control.shutdown_timeout(LAST_STEPS);
    result
}

/// Does the work such that whatever it starts goes on at `runtime`.
async fn on<T>(runtime: &Handle, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    poll_fn(|context| {
        let _there = runtime.enter();
        work.as_mut().poll(context)
    })
    .await
}

/// What has to be there before clients may come.
struct Parts {
    router: Arc<Router>,
    cluster: Arc<Cluster>,
    keeper: Option<Keeper>,
    dtl_port: Option<u16>,
    api: TcpListener,
    registry: Registry,
}

/// A storage router that serves.
struct Running {
    router: Arc<Router>,
    cluster: Arc<Cluster>,
    keeper: Option<Keeper>,
    stop: watch::Sender<bool>,
    nbd: JoinHandle<()>,
    edge: JoinHandle<()>,
    front: Arc<FrontDoor>,
    tidy: JoinHandle<()>,
    api: JoinHandle<common::Result<()>>,
    watchdog: Option<JoinHandle<()>>,
}

impl Running {
    /// Starts everything; nothing when it has left its cluster by that.
    async fn start(
        settings: &Settings,
        data_dir: &DataDir,
        clock: Arc<dyn Clock>,
        log: &LogControl,
        control: &Handle,
    ) -> Result<Option<Running>> {
        let begin = clock.now();
        let took = |since: Duration| format!("{:.1?}", clock.now().saturating_sub(since));
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            data_dir = %data_dir.path().display(),
            id = data_dir.id(),
            new = data_dir.created(),
            workers = settings.worker_threads(),
            "storage router starts"
        );
        system::raise_open_files();
        // These two bind when there is something to serve; what is taken is better told now.
        for (key, address) in [("nbd.listen", settings.nbd.tcp()), ("edge.listen", settings.edge.tcp())] {
            drop(address.map(|address| listen_on(key, address)).transpose()?);
        }
        let api = listen_on("api.listen", &settings.api.listen)?;
        let members = {
            let _there = control.enter();
            listen_on("cluster.listen", &settings.cluster.listen)?
        };
        let guests = settings.dtl.tcp().map(|address| listen_on("dtl.listen", address)).transpose()?;
        let guard = keeper::tls(&settings.dtl, &settings.cluster)?;

        system::notify(&[NotifyState::Status("opening the registry and the index")]);
        let since = clock.now();
        let mut registry = Registry::default();
        let opening =
            Opening { settings: &settings.cluster, data_dir, listener: members, clock: clock.clone() };
        let opened = on(control, opening.open(&mut registry)).await?;
        let Some(cluster) = opened else { return Ok(None) };
        let table = open_index(&data_dir.index(), settings)?;
        tracing::info!(took = took(since), "registry and index open");
        let dtl_port = guests.as_ref().and_then(|l| l.local_addr().ok()).map(|address| address.port());
        let keeper = match guests {
            Some(listener) => {
                let near = match settings.dtl.unix_path() {
                    Some(path) => Some(bind_unix("dtl", path).await?),
                    None => None,
                };
                let doors = (Door::Tcp(listener, guard), near);
                Some(Keeper::start(&settings.dtl, data_dir.dtl(), doors, clock.clone(), &mut registry))
            }
            None => None,
        };

        system::notify(&[NotifyState::Status("scanning the journal")]);
        let since = clock.now();
        let disk = Arc::new(LocalDisk::open(data_dir.journal())?);
        let driver = Driver::start_with_ssd_cache(
            settings.volumedriver.clone(),
            disk,
            read_cache_disk(data_dir),
            table,
            clock.clone(),
            &mut registry,
        )
        .await?;
        tracing::info!(took = took(since), "journal scanned");

        let stores = stores::stores(clock.clone(), alba_proxy::Metrics::register(&mut registry));
        let router = Router::start(
            Arc::new(cluster.client()),
            node::membership(settings, data_dir, cluster.is_founder(), clock.clone())?,
            driver,
            stores,
            clock.clone(),
            settings.objectrouter.clone(),
            &mut registry,
        )
        .await?;
        tracing::info!(
            vpools = router.vpools().len(),
            vdisks = router.vdisks().len(),
            node = %router.node(),
            "registry read; volumes open in the background"
        );
        let parts = Parts { router: router.clone(), cluster, keeper, dtl_port, api, registry };
        match Self::listen(settings, parts, clock.clone(), log).await {
            Ok(running) => {
                system::notify(&[NotifyState::Ready, NotifyState::Status("serving")]);
                tracing::info!(took = took(begin), "serving");
                Ok(Some(running))
            }
            Err(e) => {
                router.shutdown(Duration::from_secs(settings.shutdown_seconds)).await;
                Err(e)
            }
        }
    }

    /// Binds the listeners and serves.
    async fn listen(
        settings: &Settings,
        parts: Parts,
        clock: Arc<dyn Clock>,
        log: &LogControl,
    ) -> Result<Running> {
        let Parts { router, cluster, keeper, dtl_port, api, mut registry } = parts;
        let dialer = Arc::new(node::edge_dialer(settings)?);
        let forwarder = Forwarder::new(dialer.clone(), Patience::default(), clock.clone());
        let redirect = settings.objectrouter.redirect;
        let attachments: Arc<dyn Attachments> =
            Arc::new(RouterAttachments::new(router.clone(), forwarder, settings.edge.lease(), redirect));
        let edge = edge_server(settings, &router, attachments, clock.clone(), &mut registry);
        let edge_listeners = edge.bind().await?;
        let edge_addresses = edge_addresses(&edge_listeners);
        let local = RouterExports(router.clone());
        let front = Arc::new(FrontDoor::new(local, edge_addresses.clone(), dialer, clock.clone()));
        let mut nbd = settings.nbd.clone();
        nbd.max_connections = system::connections_within_open_files("nbd", nbd.max_connections, 2);
        let nbd = Server::bind(nbd, front.clone(), clock.clone(), &mut registry).await?;
        let tls = settings.api.tls()?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let address = api.local_addr().context("api.listen")?;
        let url = format!("{scheme}://{address}");
        let reached = node::addresses(settings, &edge_listeners, dtl_port, (scheme, address.port()));
        router.reached_at(reached).await?;
        let app = framework::app(framework::State {
            router: router.clone(),
            metrics: Arc::new(registry),
            log: log_filter(log),
            cluster: cluster.control(&router),
            version: framework::types::Version {
                product: "storagerouter".to_string(),
                version: env!("CARGO_PKG_VERSION").to_string(),
                revision: option_env!("STORAGEROUTER_REVISION").map(str::to_string),
                format: datadir::FORMAT,
                node: router.node().to_string(),
            },
            token: settings.api.token()?,
            nbd_uri: nbd.local_addr().map(|address| nbd_uri(address, settings.nbd.tls)),
            nbd_unix: nbd.unix_path().map(|path| path.display().to_string()),
            edge: edge_addresses.clone(),
        });
        tracing::info!(
            api = url,
            nbd = nbd.local_addr().map(|a| a.to_string()),
            nbd_unix = nbd.unix_path().map(|p| p.display().to_string()),
            registry = cluster.address(),
            edge = edge_addresses.join(", "),
            "listening"
        );
        let (stop, stopped) = watch::channel(false);
        let mut api_stopped = stopped.clone();
        Ok(Running {
            router,
            cluster,
            keeper,
            nbd: tokio::spawn(nbd.serve(stopped.clone())),
            edge: tokio::spawn(edge.serve(edge_listeners, stopped)),
            tidy: tokio::spawn({
                let (front, clock) = (front.clone(), clock.clone());
                async move { front.tidy(&*clock).await }
            }),
            front,
            api: tokio::spawn(framework::serve(api, app, tls, async move {
                // A sender that is gone means stop, too.
                let _ = api_stopped.wait_for(|stop| *stop).await;
            })),
            stop,
            watchdog: system::watchdog(clock),
        })
    }

    /// Serves until a signal comes, or the router has left its cluster; which it was. What ends by itself is an error.
    async fn until_stopped(
        &mut self,
        signals: &mut Signals,
        sources: &Sources,
        log: &LogControl,
    ) -> Result<&'static str> {
        let kept = async {
            match &mut self.keeper {
                Some(keeper) => keeper.ended().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            name = signals.stop(sources, log) => Ok(name),
            why = kept => Err(why),
            end = self.cluster.ended() => match end {
                End::Left => Ok("it has left its cluster"),
                End::Failed => Err(anyhow::anyhow!(
                    "the registry in this process has stopped; why is in the log before this"
                )),
            },
            ended = &mut self.nbd => Err(ended_early("the NBD server", ended)),
            ended = &mut self.edge => Err(ended_early("the edge protocol's server", ended)),
            ended = &mut self.api => Err(ended_early("the API server", ended)),
        }
    }

    /// Stops: first who talks to clients, then what they talked to. Takes `limit` at most.
    async fn stop(self, limit: Duration, clock: &dyn Clock) {
        let begin = clock.now();
        let work = limit.saturating_sub(LAST_STEPS);
        let Running { router, cluster, keeper, stop, nbd, edge, front, tidy, api, watchdog } = self;
        let orderly = async {
            let _ = stop.send(true);
            // Requests that wait for a limit are in flight, and end.
            router.lift_limits();
            // A panic in them has ended the process already.
            let _ = tokio::join!(nbd, edge, api);
            tidy.abort();
            if let Err(error) = front.close().await {
                tracing::error!(%error, "what NBD clients of vDisks of other routers did not flush may be lost");
            }
            tracing::info!("no client is connected any more");
            let left = work.saturating_sub(clock.now().saturating_sub(begin));
            router.shutdown(left).await;
            if let Some(keeper) = keeper {
                keeper.stop().await;
            }
            cluster.stop().await;
        };
        let in_time = tokio::time::timeout(limit, orderly).await.is_ok();
        if let Some(watchdog) = watchdog {
            watchdog.abort();
        }
        let took = format!("{:.1?}", clock.now().saturating_sub(begin));
        if in_time {
            tracing::info!(took, "stopped");
        } else {
            tracing::warn!(took, "stopped before everything had ended; nothing acknowledged is lost");
        }
    }
}

fn ended_early<T>(what: &str, ended: Result<T, tokio::task::JoinError>) -> anyhow::Error {
    match ended {
        Ok(_) => anyhow::anyhow!("{what} ended by itself"),
        Err(e) => anyhow::anyhow!("{what} ended by itself: {e}"),
    }
}

/// Binds an address. The error names the key and what to do.
fn listen_on(key: &str, address: &str) -> Result<TcpListener> {
    let bind = || {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    };
    bind().map_err(|e: std::io::Error| {
        let exit = match e.kind() {
            std::io::ErrorKind::AddrInUse => Exit::Conflict,
            std::io::ErrorKind::AddrNotAvailable | std::io::ErrorKind::InvalidInput => Exit::Usage,
            _ => Exit::Failure,
        };
        Failure::error(
            exit,
            format!(
                "{key}: can't listen on {address}: {e}. Choose another address with --set {key}=HOST:PORT, or stop \
                 what uses it"
            ),
        )
    })
}

/// The edge protocol's server of this router.
fn edge_server(
    settings: &Settings,
    router: &Router,
    attachments: Arc<dyn Attachments>,
    clock: Arc<dyn Clock>,
    registry: &mut Registry,
) -> Arc<protocol::Server> {
    let mut edge = settings.edge.clone();
    edge.max_connections = system::connections_within_open_files("edge", edge.max_connections, 4);
    let metrics = protocol::server::Metrics::new(registry);
    protocol::Server::new(router.node().to_string(), edge, attachments, clock, metrics)
}

/// Where edge clients connect, as they want it written.
fn edge_addresses(listeners: &protocol::server::Listeners) -> Vec<String> {
    let unix = listeners.unix_path().map(|path| format!("unix:{}", path.display()));
    listeners.local_addr().map(reachable).into_iter().chain(unix).collect()
}

/// The URI of a vDisk, with places for its names.
fn nbd_uri(address: SocketAddr, tls: TlsMode) -> String {
    let scheme = if tls == TlsMode::Require { "nbds" } else { "nbd" };
    format!("{scheme}://{}/{{vpool}}/{{vdisk}}", reachable(address))
}

/// Where a listener is found.
fn reachable(address: SocketAddr) -> String {
    if address.ip().is_unspecified() {
        // Reachable under each name of this machine: its own is the best guess.
        format!("{}:{}", rustix::system::uname().nodename().to_string_lossy(), address.port())
    } else {
        address.to_string()
    }
}

fn log_filter(log: &LogControl) -> framework::LogFilter {
    let (get, set) = (log.clone(), log.clone());
    framework::LogFilter {
        get: Arc::new(move || get.filter()),
        set: Arc::new(move |text| {
            set.set_filter(text).map_err(Error::invalid)?;
            tracing::info!(filter = text, "log filter changed");
            Ok(())
        }),
    }
}

/// The folder of the read cache's part on the SSD. One that can't be made is no reason not to serve.
fn read_cache_disk(data_dir: &DataDir) -> Option<Arc<dyn Disk>> {
    match LocalDisk::open(data_dir.read_cache()) {
        Ok(disk) => Some(Arc::new(disk)),
        Err(error) => {
            tracing::error!(%error, "the read cache is in memory alone");
            None
        }
    }
}

/// Opens the index. It is derived: one that can't be read is made again.
fn open_index(path: &Path, settings: &Settings) -> Result<Arc<dyn Table>> {
    let open = || RocksTable::open(path, settings.index.rocks());
    match open() {
        Ok(table) => Ok(Arc::new(table)),
        Err(e) if matches!(e.kind, ErrorKind::Corrupt | ErrorKind::Unsupported | ErrorKind::Invalid) => {
            tracing::warn!(error = %e, "the index can't be read: it is made again from the object stores; the first reads are slower");
            RocksTable::destroy(path)?;
            Ok(Arc::new(open()?))
        }
        Err(e) => Err(e.into()),
    }
}
