//! The configuration: one TOML file, one `Settings` made of each crate's own, `--set` on top.
//!
//! Defaults are in the code; `docs/storagerouter.example.toml` and the table in
//! `docs/operations.md` are generated from them (see `config/document.rs`).

pub mod document;
mod suggest;
#[cfg(test)]
mod tests;

use crate::cluster::settings::ClusterSettings;
use crate::failure::Failure;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// The whole configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where the write buffer, the index and the registry are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_dir: Option<PathBuf>,
    /// Seconds that a stop may take.
    pub shutdown_seconds: u64,
    /// Threads of the runtime; 0 is one per core, at least 2.
    pub worker_threads: usize,
    /// `[log]`.
    pub log: LogSettings,
    /// `[nbd]`.
    pub nbd: edge::config::Settings,
    /// `[edge]`.
    pub edge: edge::protocol::Settings,
    /// `[api]`.
    pub api: framework::Settings,
    /// `[objectrouter]`.
    pub objectrouter: objectrouter::config::Settings,
    /// `[index]`.
    pub index: IndexSettings,
    /// `[volumedriver]`.
    pub volumedriver: volumedriver::Settings,
    /// `[cluster]`.
    pub cluster: ClusterSettings,
    /// `[dtl]`.
    pub dtl: dtl::config::Settings,
}

/// `[log]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogSettings {
    /// What is logged: directives as in `info,volumedriver=debug`.
    pub filter: String,
    /// How a line looks.
    pub format: LogFormat,
}

/// `[index]`: the local table that holds the cluster index.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IndexSettings {
    /// Memory for its blocks, in MiB.
    pub cache_mib: u64,
    /// Memory for its unflushed writes, in MiB.
    pub write_buffer_mib: u64,
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            data_dir: None,
            shutdown_seconds: 20,
            worker_threads: 0,
            log: LogSettings::default(),
            nbd: Default::default(),
            edge: Default::default(),
            api: Default::default(),
            objectrouter: Default::default(),
            index: Default::default(),
            volumedriver: Default::default(),
            cluster: Default::default(),
            dtl: Default::default(),
        }
    }
}

impl Default for IndexSettings {
    fn default() -> Self {
        Self { cache_mib: 128, write_buffer_mib: 64 }
    }
}

impl IndexSettings {
    /// As the table wants it.
    pub fn rocks(&self) -> kvstore::RocksSettings {
        let bytes = |mib: u64| usize::try_from(mib << 20).unwrap_or(usize::MAX);
        kvstore::RocksSettings {
            block_cache_bytes: bytes(self.cache_mib),
            write_buffer_bytes: bytes(self.write_buffer_mib),
            ..Default::default()
        }
    }
}

impl Default for LogSettings {
    fn default() -> Self {
        Self { filter: "info".to_string(), format: LogFormat::Text }
    }
}

/// Where the settings come from: the same for `serve`, `config` and `doctor`.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The TOML file.
    pub file: Option<PathBuf>,
    /// `key=value`, in order.
    pub overrides: Vec<String>,
    /// `--data-dir`.
    pub data_dir: Option<PathBuf>,
    /// `--log`.
    pub log: Option<String>,
    /// `--log-format`.
    pub log_format: Option<LogFormat>,
}

impl Sources {
    /// Reads everything; later sources win. An unknown key is an error that names it.
    pub fn load(&self) -> Result<Settings> {
        let mut table = match &self.file {
            None => Table::new(),
            Some(path) => read_file(path)?,
        };
        let mut settings = from_table(&table).map_err(|e| Failure::usage(suggest::with_suggestion(&e)))?;
        for text in &self.overrides {
            settings = apply(&mut table, text)?;
        }
        if let Some(dir) = &self.data_dir {
            settings.data_dir = Some(dir.clone());
        }
        if let Some(filter) = &self.log {
            settings.log.filter = filter.clone();
        }
        if let Some(format) = self.log_format {
            settings.log.format = format;
        }
        Ok(settings)
    }
}

impl Settings {
    /// The data directory: the configured one, or the default of this user.
    pub fn data_dir(&self) -> Result<PathBuf> {
        match &self.data_dir {
            Some(dir) => Ok(dir.clone()),
            None => crate::datadir::default_path(),
        }
    }

    /// Says which setting can't be right, by its key. `insecure` allows listeners beyond loopback
    /// without TLS and credentials.
    pub fn check(&self, insecure: bool) -> Result<()> {
        let own = || -> Result<(), String> {
            if !(1..=3600).contains(&self.shutdown_seconds) {
                return Err(format!("shutdown_seconds = {} is not within 1 to 3600", self.shutdown_seconds));
            }
            if self.worker_threads > 1024 {
                return Err(format!("worker_threads = {} is more than 1024", self.worker_threads));
            }
            for (key, mib) in
                [("cache_mib", self.index.cache_mib), ("write_buffer_mib", self.index.write_buffer_mib)]
            {
                if !(4..=1 << 20).contains(&mib) {
                    return Err(format!("index.{key} = {mib} is not within 4 to 1048576"));
                }
            }
            crate::logging::parse_filter(&self.log.filter).map(drop).map_err(|e| format!("log.filter: {e}"))
        };
        own().map_err(Failure::usage)?;
        self.nbd.check(insecure).map_err(|e| Failure::usage(e.to_string()))?;
        self.edge.check(insecure).map_err(|e| Failure::usage(e.to_string()))?;
        self.api.check(insecure).map_err(Failure::usage)?;
        self.objectrouter.check().map_err(Failure::usage)?;
        self.volumedriver.check().map_err(Failure::usage)?;
        self.cluster.check(insecure).map_err(|e| Failure::usage(e.to_string()))?;
        self.cluster.dtl(&self.dtl).check(insecure).map_err(|e| Failure::usage(e.to_string()))
    }

    /// The effective settings as TOML.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).context("writing the settings as TOML")
    }

    /// Files that hold secrets, with the keys that name them.
    pub fn secret_files(&self) -> Vec<(&'static str, PathBuf)> {
        [
            ("nbd.tls_key", &self.nbd.tls_key),
            ("edge.tls_key", &self.edge.tls_key),
            ("api.tls_key", &self.api.tls_key),
            ("api.token_file", &self.api.token_file),
            ("cluster.tls_key", &self.cluster.tls_key),
            ("dtl.tls_key", &self.dtl.tls_key),
        ]
        .into_iter()
        .filter_map(|(key, path)| Some((key, path.clone()?)))
        .collect()
    }

    /// Threads of the runtime.
    pub fn worker_threads(&self) -> usize {
        match self.worker_threads {
            0 => std::thread::available_parallelism().map_or(2, |n| n.get()).max(2),
            n => n,
        }
    }
}

fn read_file(path: &Path) -> Result<Table> {
    let name = path.display();
    let text = std::fs::read_to_string(path)
        .map_err(|e| Failure::usage(format!("reading the configuration {name}: {e}")))?;
    // Read as Settings first: only this error knows the line.
    toml::from_str::<Settings>(&text)
        .map_err(|e| Failure::usage(format!("{name}: {}", suggest::with_suggestion(&e))))?;
    toml::from_str(&text).map_err(|e| Failure::usage(format!("{name}: {e}")))
}

fn from_table(table: &Table) -> Result<Settings, toml::de::Error> {
    Settings::deserialize(table.clone())
}

/// Sets one `key=value` in `table` and returns the settings that come out. The value is read as
/// TOML; where that is no value, or not of the key's type, as text.
fn apply(table: &mut Table, text: &str) -> Result<Settings> {
    let Some((key, value)) = text.split_once('=') else {
        return Err(Failure::usage(format!(
            "--set {text}: write key=value, as in --set nbd.listen=127.0.0.1:10819"
        )));
    };
    let (key, value) = (key.trim(), value.trim());
    let mut last = None;
    for candidate in candidates(value) {
        let mut changed = table.clone();
        insert(&mut changed, key, candidate).map_err(|e| Failure::usage(format!("--set {text}: {e}")))?;
        match from_table(&changed) {
            Ok(settings) => {
                *table = changed;
                return Ok(settings);
            }
            // The error about the value as it was written says more than the one about text.
            Err(e) => last = last.or(Some(e)),
        }
    }
    let why = last.map(|e| suggest::with_suggestion(&e)).unwrap_or_default();
    Err(Failure::usage(format!("--set {text}: {}", why.trim_end())))
}

fn candidates(value: &str) -> Vec<Value> {
    let mut found = Vec::new();
    if let Ok(mut table) = toml::from_str::<Table>(&format!("value = {value}"))
        && table.len() == 1
        && let Some(value) = table.remove("value")
    {
        found.push(value);
    }
    found.push(Value::String(value.to_string()));
    found
}

fn insert(table: &mut Table, key: &str, value: Value) -> Result<(), String> {
    let (path, last) = match key.rsplit_once('.') {
        Some((path, last)) => (path.split('.').collect(), last),
        None => (Vec::new(), key),
    };
    if last.is_empty() || path.iter().any(|part: &&str| part.is_empty()) {
        return Err(format!("'{key}' is not a key"));
    }
    let mut at = table;
    for part in path {
        at = match at.entry(part).or_insert_with(|| Value::Table(Table::new())) {
            Value::Table(inner) => inner,
            _ => return Err(format!("'{part}' is a value, not a section")),
        };
    }
    at.insert(last.to_string(), value);
    Ok(())
}
