//! Settings of the edge protocol's server, with their defaults, and the rule about who may reach it.

use crate::config::{TlsMode, is_loopback};
use common::{Error, Result};
use edge_client::wire::MAX_PAYLOAD;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// The least memory that makes sense: the largest request fits the share of a vPool's reads, a quarter.
const LEAST: u64 = 4 * MAX_PAYLOAD as u64;

/// `[edge]` of the configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// TCP address to listen on, `HOST:PORT`; empty: none.
    pub listen: String,
    /// Path of the unix socket to listen on (mode 0600); absent or empty: none.
    pub unix: Option<PathBuf>,
    /// TLS on TCP: `off` or `require`.
    pub tls: TlsMode,
    /// PEM file with the server's certificate chain, its own certificate first.
    pub tls_cert: Option<PathBuf>,
    /// PEM file with the private key of that certificate.
    pub tls_key: Option<PathBuf>,
    /// PEM file with the authorities of client certificates; when set, a client must show one.
    pub tls_client_ca: Option<PathBuf>,
    /// Connections at a time, TCP and unix together.
    pub max_connections: usize,
    /// Attachments of one connection: a router that forwards has many.
    pub max_channels: usize,
    /// Requests of one attachment that may be under way.
    pub window_requests: u32,
    /// Bytes of payload of one attachment that may be under way; a disk's largest payload at least.
    pub window_bytes: u32,
    /// Memory for payload, in MiB, all connections together.
    pub memory_mib: u64,
    /// Seconds for which an attachment is kept when its client is gone.
    pub lease_seconds: u64,
    /// Seconds after which a connection that says nothing is closed.
    pub idle_seconds: u64,
    /// Threads for clients that send one request at a time: each may keep a processor busy while its client is. Never
    /// more than there are processors; 0 for none.
    pub alone_threads: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:10810".to_owned(),
            unix: None,
            tls: TlsMode::Off,
            tls_cert: None,
            tls_key: None,
            tls_client_ca: None,
            max_connections: 1024,
            max_channels: 4096,
            window_requests: 256,
            window_bytes: 16 << 20,
            memory_mib: 256,
            lease_seconds: 10,
            idle_seconds: 10,
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

    /// For how long an attachment is kept when its client is gone.
    pub fn lease(&self) -> Duration {
        Duration::from_secs(self.lease_seconds)
    }

    /// Checks what can be checked without opening anything. `insecure` waives that a TCP listener beyond loopback asks
    /// for TLS with client certificates.
    ///
    /// # Errors
    /// [`common::ErrorKind::Invalid`], naming the key and what to do.
    pub fn check(&self, insecure: bool) -> Result<()> {
        for (key, value, most) in [
            ("edge.max_connections", self.max_connections as u64, 1 << 20),
            ("edge.max_channels", self.max_channels as u64, 1 << 20),
            ("edge.window_requests", u64::from(self.window_requests), 1 << 16),
            ("edge.window_bytes", u64::from(self.window_bytes), 1 << 30),
            ("edge.lease_seconds", self.lease_seconds, 3600),
            ("edge.idle_seconds", self.idle_seconds, 3600),
        ] {
            if value == 0 || value > most {
                return Err(Error::invalid(format!("{key} is {value}: choose 1 to {most}")));
            }
        }
        let least = LEAST >> 20;
        if self.memory_mib < least || self.memory_mib > 1 << 20 {
            return Err(Error::invalid(format!(
                "edge.memory_mib is {}: choose {least} to {}",
                self.memory_mib,
                1 << 20
            )));
        }
        match self.tls {
            TlsMode::Allow => {
                return Err(Error::invalid("edge.tls is \"allow\": choose \"off\" or \"require\""));
            }
            TlsMode::Off
                if self.tls_cert.is_some() || self.tls_key.is_some() || self.tls_client_ca.is_some() =>
            {
                return Err(Error::invalid(
                    "edge.tls is \"off\", but edge.tls_cert, edge.tls_key or edge.tls_client_ca is set: set edge.tls \
                     to \"require\", or remove them",
                ));
            }
            TlsMode::Require if self.tls_cert.is_none() || self.tls_key.is_none() => {
                return Err(Error::invalid(
                    "edge.tls needs edge.tls_cert and edge.tls_key: name the PEM files of the server's certificate and \
                     key, or set edge.tls to \"off\"",
                ));
            }
            _ => {}
        }
        let Some(address) = self.tcp() else { return Ok(()) };
        let loopback = is_loopback("edge", address)?;
        let guarded = self.tls == TlsMode::Require && self.tls_client_ca.is_some();
        if !loopback && !guarded && !insecure {
            return Err(Error::invalid(format!(
                "edge.listen is {address}, which other machines can reach, and any of them could read and write every \
                 disk: set edge.tls = \"require\" with edge.tls_cert, edge.tls_key and edge.tls_client_ca, or listen on \
                 127.0.0.1, or say --insecure"
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
