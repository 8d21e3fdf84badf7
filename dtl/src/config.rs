//! Settings of the DTL, with their defaults, and the rule about who may reach the service.

use crate::entry::MAX_PACKED;
use crate::owner::Patience;
use crate::storage::{DiskSettings, Limits};
use crate::{client, service};
use common::{Error, Result};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// What the service keeps its logs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StorageKind {
    /// Memory: a restart of this router loses its logs, and the volumes that have them are degraded until others have
    /// caught up.
    Memory,
    /// Segments in the data directory, synced when an owner flushes.
    #[default]
    Disk,
}

/// `[dtl]` of the configuration file: what this router keeps for others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// TCP address to listen on, `HOST:PORT`; empty: none, and this router keeps nothing for others.
    pub listen: String,
    /// Path of the unix socket to listen on as well (mode 0600), for routers on the same machine; empty: none. No other
    /// router on any machine may have one of the same path.
    pub unix: Option<PathBuf>,
    /// PEM file with the service's certificate chain, its own certificate first. With it go the two below: whoever
    /// connects then shows a certificate, too.
    pub tls_cert: Option<PathBuf>,
    /// PEM file with the private key of that certificate.
    pub tls_key: Option<PathBuf>,
    /// PEM file with the authorities of the other routers' certificates.
    pub tls_client_ca: Option<PathBuf>,
    /// Where logs are kept: `memory` or `disk`.
    pub storage: StorageKind,
    /// Size of all logs together, in MiB.
    pub size_mib: u64,
    /// Size of the logs of one volume, in MiB. A volume without room waits alone.
    pub volume_mib: u64,
    /// Size of a segment on disk, in MiB.
    pub segment_mib: u64,
    /// Volumes that have logs here, at most.
    pub volumes: usize,
    /// Connections at a time; each other router has one.
    pub max_connections: usize,
    /// Unconfirmed KiB that a volume may have under way.
    pub window_kib: u32,
    /// Seconds without a word after which a connection is closed.
    pub idle_seconds: u64,
    /// Seconds that a connection has to say who it is, TLS and all.
    pub handshake_seconds: u64,
    /// Threads for connections on which one entry comes at a time: each may keep a processor busy while its volume is.
    /// Never more than there are processors; 0 for none.
    pub alone_threads: usize,
    /// How this router writes to others.
    pub client: ClientSettings,
}

/// `[dtl.client]` of the configuration file: how this router's volumes are replicated to others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClientSettings {
    /// Milliseconds after which a quiet connection is asked for a sign of life.
    pub heartbeat_ms: u64,
    /// Milliseconds without a sign of life after which a peer is taken for dead.
    pub timeout_ms: u64,
    /// Milliseconds that an answer of a peer that gives signs of life may take: a seal, the next entry of a read.
    pub answer_ms: u64,
    /// Milliseconds between two attempts to connect.
    pub reconnect_ms: u64,
    /// KiB that wait to be sent to one peer; what is more is read from the write buffer again.
    pub queue_kib: usize,
    /// KiB of a log that are read ahead in a takeover.
    pub read_ahead_kib: u32,
    /// Milliseconds that a peer may be away, or confirm nothing though something waits, until the volume goes on
    /// without it, and says so.
    pub fail_after_ms: u64,
    /// Milliseconds after which a peer that failed is given up for another one.
    pub replace_after_ms: u64,
    /// Milliseconds between two attempts to find a peer.
    pub retry_after_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:10820".to_owned(),
            unix: None,
            tls_cert: None,
            tls_key: None,
            tls_client_ca: None,
            storage: StorageKind::Disk,
            size_mib: 1024,
            volume_mib: 256,
            segment_mib: 32,
            volumes: 16384,
            max_connections: 256,
            window_kib: 4096,
            idle_seconds: 30,
            handshake_seconds: 5,
            alone_threads: 4,
            client: ClientSettings::default(),
        }
    }
}

impl Default for ClientSettings {
    fn default() -> Self {
        Self {
            heartbeat_ms: 500,
            timeout_ms: 1500,
            answer_ms: 5000,
            reconnect_ms: 200,
            queue_kib: 8192,
            read_ahead_kib: 2048,
            fail_after_ms: 1500,
            replace_after_ms: 5000,
            retry_after_ms: 500,
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
        self.unix.as_ref().filter(|path| self.tcp().is_some() && !path.as_os_str().is_empty())
    }

    /// Whether connections are mutual TLS.
    pub fn tls(&self) -> bool {
        self.tls_cert.is_some()
    }

    /// Checks what can be checked without opening anything: bounds, TLS files that belong together, and that a listener
    /// beyond loopback asks for TLS. `insecure` waives the last.
    ///
    /// # Errors
    /// [`common::ErrorKind::Invalid`], naming the key and what to do.
    pub fn check(&self, insecure: bool) -> Result<()> {
        let c = &self.client;
        let (kib, most_mib) = (1 << 10, 1 << 24);
        for (key, value, least, most) in [
            ("dtl.size_mib", self.size_mib, 64, most_mib),
            // An eighth of it is what a volume that waits for room waits for: an entry must fit.
            ("dtl.volume_mib", self.volume_mib, 16, self.size_mib),
            ("dtl.segment_mib", self.segment_mib, 4, 1024),
            ("dtl.volumes", self.volumes as u64, 1, 1 << 20),
            ("dtl.max_connections", self.max_connections as u64, 1, 1 << 16),
            ("dtl.window_kib", self.window_kib.into(), 64, 1 << 20),
            ("dtl.idle_seconds", self.idle_seconds, 2, 3600),
            ("dtl.handshake_seconds", self.handshake_seconds, 1, 600),
            ("dtl.client.heartbeat_ms", c.heartbeat_ms, 10, 60_000),
            ("dtl.client.timeout_ms", c.timeout_ms, c.heartbeat_ms.saturating_mul(2), 600_000),
            ("dtl.client.answer_ms", c.answer_ms, 100, 600_000),
            ("dtl.client.reconnect_ms", c.reconnect_ms, 1, 60_000),
            ("dtl.client.queue_kib", c.queue_kib as u64, (MAX_PACKED / kib) as u64 + 1, 1 << 20),
            ("dtl.client.read_ahead_kib", c.read_ahead_kib.into(), 64, 1 << 20),
            ("dtl.client.fail_after_ms", c.fail_after_ms, 100, 600_000),
            ("dtl.client.replace_after_ms", c.replace_after_ms, c.fail_after_ms, 3_600_000),
            ("dtl.client.retry_after_ms", c.retry_after_ms, 10, 600_000),
        ] {
            if !(least..=most).contains(&value) {
                return Err(Error::invalid(format!("{key} is {value}: choose {least} to {most}")));
            }
        }
        if let Some(path) = self.unix_path().filter(|path| path.is_relative()) {
            let path = path.display();
            return Err(Error::invalid(format!(
                "dtl.unix is {path}, which other routers would look for in their own folders: write it from / on"
            )));
        }
        self.disk().check()?;
        let files = [&self.tls_cert, &self.tls_key, &self.tls_client_ca];
        let set = files.iter().filter(|f| f.is_some()).count();
        if set != 0 && set != files.len() {
            return Err(Error::invalid(
                "of dtl.tls_cert, dtl.tls_key and dtl.tls_client_ca only some are set: name all of them, or none",
            ));
        }
        let Some(address) = self.tcp() else { return Ok(()) };
        if !is_loopback(address)? && !self.tls() && !insecure {
            return Err(Error::invalid(format!(
                "dtl.listen is {address}, which other machines can reach, and any of them could read and stop every \
                 volume: set dtl.tls_cert, dtl.tls_key and dtl.tls_client_ca, or listen on 127.0.0.1, or say --insecure"
            )));
        }
        Ok(())
    }

    /// Bounds of the logs.
    pub fn limits(&self) -> Limits {
        Limits {
            capacity: self.size_mib << 20,
            volume_bytes: self.volume_mib << 20,
            volumes: self.volumes,
            ..Limits::default()
        }
    }

    /// Disk storage. It takes a quarter more than the logs, and some segments to work with.
    pub fn disk(&self) -> DiskSettings {
        let bytes = self.size_mib.saturating_mul(5) / 4;
        let segments = bytes.div_ceil(self.segment_mib.max(1)) + 4;
        DiskSettings {
            segment_size: self.segment_mib << 20,
            segments: usize::try_from(segments).unwrap_or(usize::MAX),
            limits: self.limits(),
        }
    }

    /// Bounds of the service.
    pub fn service(&self) -> service::Settings {
        service::Settings {
            max_connections: self.max_connections,
            max_channels: self.volumes,
            window: self.window_kib.saturating_mul(1 << 10),
            idle: Duration::from_secs(self.idle_seconds),
            handshake: Duration::from_secs(self.handshake_seconds),
            alone_threads: self.alone_threads,
        }
    }
}

impl ClientSettings {
    /// For [`client::Client::new`].
    pub fn client(&self) -> client::Settings {
        client::Settings {
            heartbeat: Duration::from_millis(self.heartbeat_ms),
            timeout: Duration::from_millis(self.timeout_ms),
            answer: Duration::from_millis(self.answer_ms),
            reconnect: Duration::from_millis(self.reconnect_ms),
            queue: self.queue_kib.saturating_mul(1 << 10),
            read_ahead: self.read_ahead_kib.saturating_mul(1 << 10),
            ..client::Settings::default()
        }
    }

    /// For [`crate::owner::Owner::new`].
    pub fn patience(&self) -> Patience {
        Patience {
            fail_after: Duration::from_millis(self.fail_after_ms),
            replace_after: Duration::from_millis(self.replace_after_ms),
            retry_after: Duration::from_millis(self.retry_after_ms),
            ..Patience::default()
        }
    }
}

/// Whether `address` (`HOST:PORT`) can be reached from this machine only. A host name other than `localhost` counts as
/// reachable: what it resolves to may change.
fn is_loopback(address: &str) -> Result<bool> {
    if let Ok(socket) = address.parse::<SocketAddr>() {
        return Ok(socket.ip().to_canonical().is_loopback());
    }
    match address.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(host == "localhost"),
        _ => Err(Error::invalid(format!(
            "dtl.listen is {address:?}: write HOST:PORT, for example 127.0.0.1:10820, or nothing for no service"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut Settings)) -> String {
        let mut settings = Settings::default();
        change(&mut settings);
        settings.check(false).unwrap_err().message().to_owned()
    }

    #[test]
    fn defaults_are_loopback_and_those_of_the_parts() {
        let settings = Settings::default();
        settings.check(false).unwrap();
        assert_eq!(settings.limits(), Limits::default());
        assert_eq!(settings.client.client(), client::Settings::default());
        assert_eq!(settings.client.patience(), Patience::default());
        assert_eq!(settings.service(), service::Settings::default());
        let text = serde_json::to_string(&settings).unwrap();
        assert_eq!(serde_json::from_str::<Settings>(&text).unwrap(), settings);
        assert_eq!(serde_json::from_str::<Settings>("{}").unwrap(), settings);
        assert!(serde_json::from_str::<Settings>(r#"{"lisen":""}"#).is_err());
    }

    #[test]
    fn beyond_loopback_needs_tls_or_an_explicit_choice() {
        for address in ["0.0.0.0:1", "[::]:1", "192.0.2.1:1", "router-b:1"] {
            assert!(refused(|s| s.listen = address.into()).contains("dtl.tls_cert"), "{address}");
            let settings = Settings { listen: address.into(), ..Settings::default() };
            settings.check(true).unwrap();
            let file = || Some(PathBuf::from("x.pem"));
            Settings { tls_cert: file(), tls_key: file(), tls_client_ca: file(), ..settings }
                .check(false)
                .unwrap();
        }
        for address in ["", "127.0.0.1:0", "[::1]:1", "[::ffff:127.0.0.1]:1", "localhost:1"] {
            Settings { listen: address.into(), ..Settings::default() }.check(false).unwrap();
        }
        assert!(refused(|s| s.listen = "here".into()).contains("HOST:PORT"));
        assert!(refused(|s| s.tls_key = Some("x.pem".into())).contains("all of them"));
    }

    #[test]
    fn what_can_not_work_is_named() {
        assert!(refused(|s| s.volume_mib = 2000).contains("dtl.volume_mib"));
        assert!(refused(|s| s.segment_mib = 2).contains("dtl.segment_mib"));
        assert!(refused(|s| s.volumes = 1 << 18).contains("a segment is too small"));
        assert!(refused(|s| s.client.timeout_ms = 600).contains("dtl.client.timeout_ms"));
        assert!(refused(|s| s.client.replace_after_ms = 1000).contains("dtl.client.replace_after_ms"));
        assert!(refused(|s| s.unix = Some("dtl.sock".into())).contains("dtl.unix"));
    }
}
