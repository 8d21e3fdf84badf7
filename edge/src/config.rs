//! Settings of the NBD server, with their defaults, and the rule about who may reach it.

use crate::memory::LEAST;
use common::{Error, Result};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// What the server does about TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TlsMode {
    /// Plain text only; `NBD_OPT_STARTTLS` is refused.
    #[default]
    Off,
    /// The client chooses.
    Allow,
    /// Nothing but the upgrade to TLS is answered in plain text.
    Require,
}

/// `[nbd]` of the configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// TCP address to listen on, `HOST:PORT`; empty: none.
    pub listen: String,
    /// Path of the unix socket to listen on (mode 0600); absent or empty: none.
    pub unix: Option<PathBuf>,
    /// TLS: `off`, `allow` (the client chooses) or `require`.
    pub tls: TlsMode,
    /// PEM file with the server's certificate chain, its own certificate first.
    pub tls_cert: Option<PathBuf>,
    /// PEM file with the private key of that certificate.
    pub tls_key: Option<PathBuf>,
    /// PEM file with the authorities of client certificates; when set, a client must show one.
    pub tls_client_ca: Option<PathBuf>,
    /// Connections at a time, TCP and unix together.
    pub max_connections: usize,
    /// Requests of one connection that are worked on at a time.
    pub max_inflight_requests: usize,
    /// Bytes of payload that one connection may hold in memory.
    pub max_inflight_bytes: u64,
    /// Memory for payload, in MiB, all connections together.
    pub memory_mib: u64,
    /// Threads for clients that send one request at a time: each may keep a processor busy while its client
    /// is. Never more than there are processors; 0 for none.
    pub alone_threads: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:10809".to_owned(),
            unix: None,
            tls: TlsMode::Off,
            tls_cert: None,
            tls_key: None,
            tls_client_ca: None,
            max_connections: 1024,
            max_inflight_requests: 256,
            max_inflight_bytes: 64 << 20,
            memory_mib: 256,
            alone_threads: 4,
        }
    }
}

impl Settings {
    /// The TCP address, if there is one.
    pub fn tcp(&self) -> Option<&str> {
        (!self.listen.is_empty()).then_some(self.listen.as_str())
    }

    /// The unix socket's path, if there is one.
    pub fn unix_path(&self) -> Option<&PathBuf> {
        self.unix.as_ref().filter(|p| !p.as_os_str().is_empty())
    }

    /// Checks what can be checked without opening anything: bounds, TLS files that belong
    /// together, and that a TCP listener beyond loopback asks for TLS with client certificates.
    /// `insecure` waives the last.
    ///
    /// # Errors
    /// [`common::ErrorKind::Invalid`], naming the key and what to do.
    pub fn check(&self, insecure: bool) -> Result<()> {
        for (key, value, most) in [
            ("nbd.max_connections", self.max_connections as u64, 1 << 20),
            ("nbd.max_inflight_requests", self.max_inflight_requests as u64, 1 << 16),
            ("nbd.max_inflight_bytes", self.max_inflight_bytes, 1 << 40),
        ] {
            if value == 0 || value > most {
                return Err(Error::invalid(format!("{key} is {value}: choose 1 to {most}")));
            }
        }
        let least = LEAST >> 20;
        if self.memory_mib < least || self.memory_mib > 1 << 20 {
            return Err(Error::invalid(format!(
                "nbd.memory_mib is {}: choose {least} to {}",
                self.memory_mib,
                1 << 20
            )));
        }
        if self.tls == TlsMode::Off {
            if self.tls_cert.is_some() || self.tls_key.is_some() || self.tls_client_ca.is_some() {
                return Err(Error::invalid(
                    "nbd.tls is \"off\", but nbd.tls_cert, nbd.tls_key or nbd.tls_client_ca is set: \
                     set nbd.tls to \"allow\" or \"require\", or remove them",
                ));
            }
        } else if self.tls_cert.is_none() || self.tls_key.is_none() {
            return Err(Error::invalid(
                "nbd.tls needs nbd.tls_cert and nbd.tls_key: name the PEM files of the server's \
                 certificate and key, or set nbd.tls to \"off\"",
            ));
        }
        let Some(address) = self.tcp() else { return Ok(()) };
        let loopback = is_loopback("nbd", address)?;
        let guarded = self.tls == TlsMode::Require && self.tls_client_ca.is_some();
        if !loopback && !guarded && !insecure {
            return Err(Error::invalid(format!(
                "nbd.listen is {address}, which other machines can reach, and any of them could read and \
                 write every disk: set nbd.tls = \"require\" with nbd.tls_cert, nbd.tls_key and \
                 nbd.tls_client_ca, or listen on 127.0.0.1, or say --insecure"
            )));
        }
        Ok(())
    }
}

/// Whether `address` (`HOST:PORT`) can be reached from this machine only. A host name other than
/// `localhost` counts as reachable: what it resolves to may change.
pub(crate) fn is_loopback(section: &str, address: &str) -> Result<bool> {
    if let Ok(socket) = address.parse::<SocketAddr>() {
        return Ok(match socket.ip() {
            IpAddr::V4(ip) => ip.is_loopback(),
            IpAddr::V6(ip) => ip.is_loopback() || ip.to_ipv4_mapped().is_some_and(|ip| ip.is_loopback()),
        });
    }
    match address.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(host == "localhost"),
        _ => Err(Error::invalid(format!(
            "{section}.listen is {address:?}: write HOST:PORT, for example 127.0.0.1:10809, or nothing for no TCP"
        ))),
    }
}

#[cfg(test)]
mod tests;
