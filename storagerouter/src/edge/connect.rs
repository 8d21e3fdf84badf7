//! How a command gets at a vDisk.

use crate::cli::edge::Routers;
use crate::failure::{Exit, Failure};
use anyhow::Result;
use common::clock::SystemClock;
use common::{Clock, Error, ErrorKind};
use edge_client::transport::{Address, Dialer, client_tls};
use edge_client::wire::Mode;
use edge_client::{Device, Options};
use std::sync::Arc;
use std::time::Duration;

/// Between two looks whether a vDisk is still attached elsewhere.
const LOOK: Duration = Duration::from_millis(250);
/// How long a router waits for another one to let its clients in.
const PATIENCE: Duration = Duration::from_secs(30);

/// Attaches vDisks by way of routers.
pub struct Connect {
    routers: Vec<String>,
    dialer: Arc<Dialer>,
    options: Options,
    wait: Duration,
    /// Says that something is waited for.
    tell: fn(&str),
    /// The machine's.
    pub clock: Arc<dyn Clock>,
}

impl Connect {
    /// As the command line says. `command` is what others are told who want what this one has; `tell` says that
    /// something is waited for.
    pub fn new(args: &Routers, command: &str, tell: fn(&str)) -> Result<Connect> {
        for address in &args.addresses {
            address.parse::<Address>().map_err(|e| Failure::usage(format!("--router: {e}")))?;
        }
        let own = args.tls_cert.as_deref().zip(args.tls_key.as_deref());
        let tls = args.tls_ca.as_deref().map(|ca| client_tls(ca, own)).transpose()?;
        let wait = Duration::from_secs(args.wait.into());
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Ok(Connect {
            routers: args.addresses.clone(),
            dialer: Arc::new(Dialer { tls }),
            options: Options {
                client: format!("storagerouter {command} on {host}, process {}", std::process::id()),
                deadline: Duration::from_secs(args.deadline.into()),
                open: wait,
                ..Options::default()
            },
            wait,
            tell,
            clock: Arc::new(SystemClock::new()),
        })
    }

    /// For the clients of the router `via`, which has `own` addresses; they wait as long as they like.
    pub fn of_a_router(
        own: Vec<String>,
        dialer: Arc<Dialer>,
        (client, via): (String, String),
        clock: Arc<dyn Clock>,
    ) -> Connect {
        let options = Options { client, via, deadline: Duration::ZERO, open: PATIENCE, ..Options::default() };
        Connect {
            routers: own,
            dialer,
            options,
            wait: PATIENCE,
            tell: |text| tracing::warn!("{text}"),
            clock,
        }
    }

    /// Attaches a vDisk. One that somebody else has attached is waited for: a process that was killed keeps it for a
    /// lease.
    pub async fn attach(&self, export: &str, mode: Mode) -> common::Result<Device> {
        let give_up = self.clock.now() + self.wait;
        let mut told = false;
        loop {
            let options = Options { mode, ..self.options.clone() };
            let (dial, clock) = (self.dialer.clone(), self.clock.clone());
            let error = match Device::open(self.routers.clone(), export, options, dial, clock).await {
                Ok(device) => return Ok(device),
                Err(error) => error,
            };
            if error.kind != ErrorKind::Conflict || self.clock.now() >= give_up {
                return Err(self.explain(error));
            }
            if !std::mem::replace(&mut told, true) {
                let seconds = self.wait.as_secs();
                (self.tell)(&format!("{}: waiting up to {seconds} s for it to be given up", error.message()));
            }
            self.clock.sleep(LOOK).await;
        }
    }

    /// The same for a command: its exit code says whether a router was there.
    pub async fn open(&self, export: &str, mode: Mode) -> Result<Device> {
        check_name(export)?;
        self.attach(export, mode).await.map_err(|error| match error.kind {
            ErrorKind::Unavailable => Failure::error(Exit::Unreachable, error.to_string()),
            _ => error.into(),
        })
    }

    fn explain(&self, error: Error) -> Error {
        match error.kind {
            ErrorKind::Unavailable => error.context(format!("asked {}", self.routers.join(", "))),
            ErrorKind::Conflict => Error::conflict(format!(
                "{}: stop that one, or wait until its lease has ended if it was killed (--wait)",
                error.message()
            )),
            _ => error,
        }
    }
}

/// Whether `export` can be one: `vpool/vdisk` or `vpool/vdisk@snapshot`.
pub fn check_name(export: &str) -> Result<()> {
    let wrong = |why: &dyn std::fmt::Display| {
        Failure::usage(format!(
            "'{}' is no vDisk: {why}: write VPOOL/VDISK or VPOOL/VDISK@SNAPSHOT",
            export.escape_debug()
        ))
    };
    let (vpool, rest) = export.split_once('/').ok_or_else(|| wrong(&"its vPool is missing"))?;
    let (vdisk, snapshot) =
        rest.split_once('@').map_or((rest, None), |(vdisk, snapshot)| (vdisk, Some(snapshot)));
    for name in [vpool, vdisk].into_iter().chain(snapshot) {
        name.parse::<common::Name>().map_err(|e| wrong(&e))?;
    }
    Ok(())
}
