//! What this router is for the others: its name, its write buffer, how it reaches them and they reach it.

use crate::config::Settings;
use crate::datadir::DataDir;
use anyhow::{Context, Result};
use common::{Clock, Error, Name};
use dtl::client::Client;
use dtl::transport::Address;
use edge::nbd::TlsMode;
use edge::protocol::server::Listeners;
use edge_client::transport::Dialer;
use objectrouter::{Addresses, Membership, WriteBuffer};
use rustls_pki_types::ServerName;
use std::sync::Arc;
use std::time::Duration;

/// The kernel's name of this start of the machine.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// How the object router takes part in the cluster.
pub fn membership(
    settings: &Settings,
    data_dir: &DataDir,
    founder: bool,
    clock: Arc<dyn Clock>,
) -> Result<Membership> {
    let cluster = &settings.cluster;
    let name: Name = cluster.name(data_dir.id()).parse()?;
    // Without it every start would pass for one of another boot, and warn of writes that may be lost.
    let boot = std::fs::read_to_string(BOOT_ID).with_context(|| format!("reading {BOOT_ID}"))?;
    let tls = cluster.tls()?.map(|tls| tls.client);
    let client = settings.dtl.client.client();
    Ok(Membership {
        name,
        write_buffer: WriteBuffer { device: data_dir.id().parse()?, boot: boot.trim().to_owned() },
        founder,
        domains: cluster.domains.clone(),
        recovery_domains: cluster.recovery_domains.clone(),
        lease: Duration::from_millis(cluster.lease_ms),
        dial: Arc::new(move |addresses| {
            let tcp = addresses.dtl.clone().unwrap_or_default();
            let tls = tls.clone().map(|tls| Ok::<_, Error>((tls, server_name(&tcp)?))).transpose()?;
            let far = Address::Tcp(tcp, tls);
            let address = match &addresses.dtl_unix {
                Some(path) => Address::Near(path.into(), Box::new(far)),
                None => far,
            };
            Ok(Client::new(Arc::new(address), client, clock.clone()))
        }),
        patience: settings.dtl.client.patience(),
    })
}

/// The name that the certificate of `HOST:PORT` has.
fn server_name(address: &str) -> common::Result<ServerName<'static>> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']);
    let bad = |e| Error::invalid(format!("'{address}' is no address that a certificate can be for: {e}"));
    ServerName::try_from(host.to_owned()).map_err(bad)
}

/// How this router connects to the edge protocol of others.
pub fn edge_dialer(settings: &Settings) -> Result<Dialer> {
    let tls = match settings.edge.tls {
        TlsMode::Require => settings.cluster.tls()?.map(|tls| tls.client),
        _ => None,
    };
    Ok(Dialer { tls })
}

/// Where others reach this router.
pub fn addresses(settings: &Settings, edge: &Listeners, dtl: Option<u16>, api: (&str, u16)) -> Addresses {
    let at = |port| settings.cluster.advertised(port);
    let unix = edge.unix_path().map(|path| format!("unix:{}", path.display()));
    Addresses {
        edge: edge.local_addr().map(|address| at(address.port())).into_iter().chain(unix).collect(),
        dtl: dtl.map(at),
        dtl_unix: settings.dtl.unix_path().map(|path| path.display().to_string()),
        api: Some(format!("{}://{}", api.0, at(api.1))),
    }
}
