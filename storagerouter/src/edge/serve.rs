//! `edge serve`: vDisks by NBD on this machine.

use super::attached::Attached;
use super::connect::{Connect, check_name};
use crate::cli::edge::Serve;
use crate::client::http::escape;
use crate::config::{LogFormat, LogSettings};
use crate::failure::Failure;
use crate::serve::signals::Signals;
use crate::serve::system;
use crate::{client, logging};
use anyhow::{Context, Result};
use common::{Clock, Error};
use edge::nbd::{Server, Settings};
use edge_client::wire::Mode;
use prometheus_client::registry::Registry;
use sd_notify::NotifyState;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Builder;
use tokio::sync::watch;

/// Between two looks for vDisks that nobody uses.
const TIDY: Duration = Duration::from_secs(1);

/// `edge serve`.
pub fn run(args: &Serve) -> Result<()> {
    for export in &args.exports {
        check_name(export)?;
    }
    let settings = settings(args)?;
    let connect = Connect::new(&args.routers, "edge serve", |text| tracing::warn!("{text}"))?;
    logging::start(&LogSettings { filter: args.log.clone(), format: LogFormat::Text })?;
    logging::abort_on_panic();
    let mut runtime = match args.threads {
        // What comes from a router wakes nobody on another thread.
        1 => Builder::new_current_thread(),
        threads => {
            let mut several = Builder::new_multi_thread();
            several.worker_threads(threads.into());
            several
        }
    };
    let runtime = runtime.thread_name("edge").enable_all().build().context("starting the runtime")?;
    runtime.block_on(serve(args, settings, connect))
}

/// The NBD server's part of the command line.
fn settings(args: &Serve) -> Result<Settings> {
    let settings = Settings {
        listen: args.listen.clone().unwrap_or_default(),
        unix: args.unix.clone(),
        memory_mib: args.memory_mib,
        // A request's answer comes from elsewhere: there is nothing to wait for in place.
        alone_threads: 0,
        ..Settings::default()
    };
    settings.check(true).map_err(by_flag)?;
    if !args.insecure && settings.check(false).is_err() {
        return Err(Failure::usage(format!(
            "--listen {}: other machines can reach it, and any of them could read and write: listen on 127.0.0.1, or \
             say --insecure",
            settings.listen
        )));
    }
    Ok(settings)
}

async fn serve(args: &Serve, settings: Settings, connect: Connect) -> Result<()> {
    let mut signals = Signals::listen()?;
    system::raise_open_files();
    let clock = connect.clock.clone();
    let mode = if args.shared { Mode::Shared } else { Mode::Exclusive };
    let attached = Arc::new(Attached::new(connect, args.exports.clone(), mode));
    let registry = &mut Registry::default();
    let server = Server::bind(settings, attached.clone(), clock.clone(), registry).await.map_err(by_flag)?;
    client::print(&uris(args, server.local_addr()))?;
    let (stop, stopped) = watch::channel(false);
    let tidy = tokio::spawn(tidy(attached.clone(), clock.clone(), stopped.clone()));
    let mut served = tokio::spawn(server.serve(stopped));
    let watchdog = system::watchdog(clock);
    system::notify(&[NotifyState::Ready, NotifyState::Status("serving")]);
    let signal = tokio::select! {
        signal = signals.stop_at_once() => signal,
        ended = &mut served => return Err(anyhow::anyhow!("the NBD server ended by itself: {ended:?}")),
    };
    tracing::info!(signal, "stopping: everything is flushed and detached; a second signal ends it at once");
    system::notify(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
    let orderly = async {
        let _ = stop.send(true);
        // A panic in them has ended the process already.
        let _ = tokio::join!(served, tidy);
        attached.close().await
    };
    let closed = tokio::select! {
        closed = orderly => closed,
        number = signals.stop_at_once() => std::process::exit(128 + number),
    };
    if let Some(watchdog) = watchdog {
        watchdog.abort();
    }
    closed.map_err(Into::into)
}

/// Detaches what nobody uses, until `stopped`. Never half-way: what is being flushed then is flushed.
async fn tidy(attached: Arc<Attached>, clock: Arc<dyn Clock>, mut stopped: watch::Receiver<bool>) {
    loop {
        let stop = tokio::select! {
            _ = stopped.wait_for(|stop| *stop) => true,
            () = clock.sleep(TIDY) => false,
        };
        if stop {
            return;
        }
        attached.tidy().await;
    }
}

/// The NBD server names keys of the configuration; here they are flags.
fn by_flag(error: Error) -> Error {
    let message = [("nbd.listen", "--listen"), ("nbd.unix", "--unix"), ("nbd.memory_mib", "--memory-mib")]
        .iter()
        .fold(error.message().to_string(), |text, (key, flag)| text.replace(key, flag));
    Error::new(error.kind, message)
}

/// What NBD clients connect to, a line for each vDisk and way.
fn uris(args: &Serve, tcp: Option<SocketAddr>) -> String {
    let any = ["VPOOL/VDISK".to_string()];
    let exports = if args.exports.is_empty() { &any[..] } else { &args.exports };
    let escaped = |path: &Path| path.to_string_lossy().split('/').map(escape).collect::<Vec<_>>().join("/");
    let unix = args.unix.as_deref().map(escaped);
    let mut out = String::new();
    for export in exports {
        if let Some(path) = &unix {
            out.push_str(&format!("nbd+unix:///{export}?socket={path}\n"));
        }
        if let Some(address) = tcp {
            out.push_str(&format!("nbd://{address}/{export}\n"));
        }
    }
    out
}
