//! `[cluster]` of the configuration: who this router is for others, and how they talk to each other.

use common::{Error, Name, Result};
use kvstore::transport::Tls;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// `[cluster]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClusterSettings {
    /// This router's name in the cluster. Absent: the data directory's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// What it shares with others and may fail as one.
    pub domains: Vec<String>,
    /// Domains in which its vDisks are kept a second time by preference.
    pub recovery_domains: Vec<String>,
    /// Host that other routers reach this one at.
    pub advertise: String,
    /// TCP address of the registry.
    pub listen: String,
    /// Milliseconds without a sign of life after which others may take over.
    pub lease_ms: u64,
    /// PEM file with this router's certificate chain, its own certificate first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_cert: Option<PathBuf>,
    /// PEM file with the private key of that certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<PathBuf>,
    /// PEM file with the authorities of all routers' certificates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_ca: Option<PathBuf>,
}

impl Default for ClusterSettings {
    fn default() -> Self {
        Self {
            name: None,
            domains: Vec::new(),
            recovery_domains: Vec::new(),
            advertise: "127.0.0.1".to_string(),
            listen: "127.0.0.1:10830".to_string(),
            lease_ms: 2000,
            tls_cert: None,
            tls_key: None,
            tls_ca: None,
        }
    }
}

impl ClusterSettings {
    /// Says which setting can't be right. `insecure` allows a listener beyond loopback without TLS.
    pub fn check(&self, insecure: bool) -> Result<()> {
        if !(500..=60_000).contains(&self.lease_ms) {
            return Err(Error::invalid(format!(
                "cluster.lease_ms is {}: choose 500 to 60000",
                self.lease_ms
            )));
        }
        for (key, names) in
            [("cluster.domains", &self.domains), ("cluster.recovery_domains", &self.recovery_domains)]
        {
            for name in names {
                name.parse::<Name>().map_err(|e| e.context(key))?;
            }
        }
        let host = &self.advertise;
        let colons = host.parse::<std::net::Ipv6Addr>().is_ok();
        if host.is_empty() || host.contains(['/', '[', ']', ' ']) || (host.contains(':') && !colons) {
            return Err(Error::invalid(format!(
                "cluster.advertise is {host:?}: it is the host that other routers reach this one at, a name or an address without \
                 a port"
            )));
        }
        let files = [&self.tls_cert, &self.tls_key, &self.tls_ca];
        if self.has_tls() && files.iter().any(|file| file.is_none()) {
            return Err(Error::invalid(
                "of cluster.tls_cert, cluster.tls_key and cluster.tls_ca only some are set: name all of them, or none",
            ));
        }
        if !is_loopback(&self.listen)? && !self.has_tls() && !insecure {
            return Err(Error::invalid(format!(
                "cluster.listen is {}, which other machines can reach, and any of them could take every vDisk: set \
                 cluster.tls_cert, cluster.tls_key and cluster.tls_ca, or listen on 127.0.0.1, or say --insecure",
                self.listen
            )));
        }
        Ok(())
    }

    /// Whether connections between routers are mutual TLS.
    pub fn has_tls(&self) -> bool {
        [&self.tls_cert, &self.tls_key, &self.tls_ca].iter().any(|file| file.is_some())
    }

    /// The name of the router with the data directory `id`.
    pub fn name(&self, id: &str) -> String {
        self.name.as_ref().map_or(id, Name::as_str).to_string()
    }

    /// Where others reach what listens here on `port`.
    pub fn advertised(&self, port: u16) -> String {
        match self.advertise.contains(':') {
            true => format!("[{}]:{port}", self.advertise),
            false => format!("{}:{port}", self.advertise),
        }
    }

    /// The settings of the DTL, with these certificates where it names none of its own.
    pub fn dtl(&self, dtl: &dtl::config::Settings) -> dtl::config::Settings {
        let mut dtl = dtl.clone();
        if dtl.tls_cert.is_none() && dtl.tls_key.is_none() && dtl.tls_client_ca.is_none() {
            dtl.tls_cert = self.tls_cert.clone();
            dtl.tls_key = self.tls_key.clone();
            dtl.tls_client_ca = self.tls_ca.clone();
        }
        dtl
    }

    /// Reads the certificates, when there are any.
    pub fn tls(&self) -> Result<Option<Tls>> {
        let (Some(cert), Some(key), Some(ca)) = (&self.tls_cert, &self.tls_key, &self.tls_ca) else {
            return Ok(None);
        };
        mutual_tls(["cluster.tls_cert", "cluster.tls_key", "cluster.tls_ca"], cert, key, ca).map(Some)
    }
}

/// TLS in which both sides show a certificate; `keys` name the settings of the files.
pub fn mutual_tls(keys: [&str; 3], cert: &Path, key: &Path, ca: &Path) -> Result<Tls> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    for certificate in certificates(keys[2], ca)? {
        let bad =
            |e| Error::invalid(format!("{}: a certificate in {} is not usable: {e}", keys[2], ca.display()));
        roots.add(certificate).map_err(bad)?;
    }
    let roots = Arc::new(roots);
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
        .build()
        .map_err(|e| Error::invalid(format!("{}: {}: {e}", keys[2], ca.display())))?;
    let unfit = |e| {
        let (cert, key) = (cert.display(), key.display());
        Error::invalid(format!("{} {cert} and {} {key} do not go together: {e}", keys[0], keys[1]))
    };
    let failed = |e| Error::internal(format!("TLS: {e}"));
    let server = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(failed)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(keys[0], cert)?, private_key(keys[1], key)?)
        .map_err(unfit)?;
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(failed)?
        .with_root_certificates(roots)
        .with_client_auth_cert(certificates(keys[0], cert)?, private_key(keys[1], key)?)
        .map_err(unfit)?;
    Ok(Tls { server: Arc::new(server), client: Arc::new(client) })
}

fn read(key: &str, path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| Error::io(format!("{key}: reading {}", path.display()), &e))
}

fn certificates(key: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let bytes = read(key, path)?;
    let found = CertificateDer::pem_slice_iter(&bytes)
        .collect::<std::result::Result<Vec<_>, _>>()
        .map_err(|e| Error::invalid(format!("{key}: {} is not PEM: {e}", path.display())))?;
    match found.is_empty() {
        true => Err(Error::invalid(format!("{key}: {} holds no certificate", path.display()))),
        false => Ok(found),
    }
}

fn private_key(key: &str, path: &Path) -> Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_slice(&read(key, path)?).map_err(|e| {
        Error::invalid(format!("{key}: no private key can be read from {}: {e}", path.display()))
    })
}

/// Whether `address` (`HOST:PORT`) can be reached from this machine only. A host name other than
/// `localhost` counts as reachable: what it resolves to may change.
fn is_loopback(address: &str) -> Result<bool> {
    if let Ok(socket) = address.parse::<SocketAddr>() {
        return Ok(socket.ip().to_canonical().is_loopback());
    }
    match address.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(host == "localhost"),
        _ => Err(Error::invalid(format!(
            "cluster.listen is {address:?}: write HOST:PORT, for example 127.0.0.1:10830; every router has a registry"
        ))),
    }
}

/// Whether `host` means this machine to whoever asks it.
pub fn is_this_machine(host: &str) -> bool {
    let host = host.trim_matches(['[', ']']);
    host == "localhost"
        || host.parse::<std::net::IpAddr>().is_ok_and(|ip| {
            let ip = ip.to_canonical();
            ip.is_loopback() || ip.is_unspecified()
        })
}

#[cfg(test)]
mod tests;
