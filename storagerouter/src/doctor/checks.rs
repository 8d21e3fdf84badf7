//! The single checks. Each looks at one thing and changes nothing that stays.

use super::Finding;
use crate::config::Settings;
use crate::datadir::{self, Holder};
use crate::size::human;
use common::Clock;
use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Open files that many connections and the index need.
const OPEN_FILES: u64 = 8192;
/// A group flush that is slower than this is felt by every client.
const SLOW_SYNC: Duration = Duration::from_millis(10);
/// 2026-01-01: the clock can't be before this program was written.
const EARLIEST: Duration = Duration::from_secs(1_767_225_600);

/// Whether `serve` would take the configuration.
pub fn configuration(settings: &Settings, insecure: bool) -> Finding {
    match settings.check(insecure) {
        Ok(()) => Finding::ok("configuration", "every setting can be right"),
        Err(e) => Finding::fail("configuration", e.to_string()),
    }
}

/// Cores.
pub fn cores(settings: &Settings) -> Finding {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let text = format!("{cores}, worker threads {}", settings.worker_threads());
    if cores < 2 {
        Finding::warn("cores", format!("{text}: it works, 2 or more serve clients while data is uploaded"))
    } else {
        Finding::ok("cores", text)
    }
}

/// Memory: what the settings may take against what there is.
pub fn memory(settings: &Settings) -> Finding {
    let driver = &settings.volumedriver;
    let budget = (driver.buffer_mib.saturating_add(driver.read_cache_mib))
        .saturating_add(driver.index_cache_mib)
        .saturating_add(settings.index.cache_mib)
        .saturating_add(settings.index.write_buffer_mib)
        .saturating_add(settings.nbd.memory_mib)
        .saturating_add(settings.edge.memory_mib)
        .saturating_add(256)
        .saturating_mul(1 << 20);
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = |key: &str| -> Option<u64> {
        let rest = info.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
    };
    let (Some(total), Some(available)) = (line("MemTotal"), line("MemAvailable")) else {
        return Finding::warn("memory", "/proc/meminfo can't be read: make sure that there is enough");
    };
    // A control group may allow less than the machine has.
    let limit = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|t| t.trim().parse().ok());
    let total = limit.map_or(total, |limit: u64| limit.min(total));
    let text = format!(
        "{} of {} available, the settings may take about {}",
        human(available.min(total)),
        human(total),
        human(budget)
    );
    let hint = "lower volumedriver.buffer_mib, volumedriver.read_cache_mib or volumedriver.index_cache_mib";
    if budget > total {
        Finding::fail("memory", format!("{text}: {hint}"))
    } else if budget > available {
        Finding::warn("memory", format!("{text}: {hint}, or stop what else runs"))
    } else {
        Finding::ok("memory", text)
    }
}

/// The limit on open files.
pub fn open_files() -> Finding {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let shown = |n: Option<u64>| n.map_or("unlimited".to_string(), |n| n.to_string());
    let text = format!("{} (hard limit {})", shown(limit.current), shown(limit.maximum));
    if limit.maximum.is_some_and(|n| n < OPEN_FILES) {
        Finding::warn(
            "open files",
            format!("{text}: raise it to {OPEN_FILES}, with LimitNOFILE= or ulimit -Hn"),
        )
    } else {
        Finding::ok("open files", format!("{text}; serve raises its own to the hard limit"))
    }
}

/// The clock: S3 refuses a request whose time is 15 minutes off.
pub fn time(clock: &dyn Clock) -> Finding {
    if clock.unix_time() < EARLIEST {
        return Finding::fail("clock", "it is before 2026: set it, or TLS and S3 will refuse this machine");
    }
    // A file that systemd-timesyncd keeps; other daemons leave no trace that needs no rights.
    if Path::new("/run/systemd/timesync/synchronized").exists() {
        Finding::ok("clock", "synchronized")
    } else {
        Finding::ok(
            "clock",
            "plausible; S3 services refuse one that is 15 minutes off, so keep it synchronized",
        )
    }
}

/// The data directory: who holds it, its format, its disk.
pub async fn data_dir(settings: &Settings, path: &Path, clock: &dyn Clock) -> Vec<Finding> {
    let mut findings = Vec::new();
    let shown = path.display();
    match datadir::holder(path) {
        Ok(Holder::Free) => {}
        Ok(Holder::Held(pid)) => {
            let pid = pid.map_or("?".to_string(), |pid| pid.to_string());
            findings
                .push(Finding::ok("data dir", format!("a storage router runs on {shown} (process {pid})")));
        }
        Err(e) => findings.push(Finding::fail("data dir", format!("{e:#}"))),
    }
    if let Err(e) = datadir::check_format(path) {
        findings.push(Finding::fail("data dir", format!("{e:#}")));
    }
    if let Ok(meta) = std::fs::metadata(path)
        && meta.permissions().mode() & 0o077 != 0
    {
        findings.push(Finding::warn("data dir", format!("others may look into {shown}: chmod 700 {shown}")));
    }
    let Some(base) = existing(path) else {
        findings.push(Finding::fail("data dir", format!("no part of {shown} exists")));
        return findings;
    };
    match sync_times(&base, clock) {
        Ok(times) => {
            findings.push(Finding::ok("data dir", format!("{shown} can be written")));
            let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
            let text = format!("4 KiB and fdatasync takes {median:.1?}, at worst {worst:.1?}");
            findings.push(if median > SLOW_SYNC {
                Finding::warn(
                    "disk sync",
                    format!("{text}: each flush of a client takes as long; use a faster disk"),
                )
            } else {
                Finding::ok("disk sync", text)
            });
        }
        Err(e) => {
            findings.push(Finding::fail(
                "data dir",
                format!(
                    "{} can't be written ({e}): choose another with --data-dir, or give it to this user",
                    base.display()
                ),
            ));
        }
    }
    findings.push(space(settings, path, &base));
    findings
}

/// The directory itself, or the nearest one above it that is there.
fn existing(path: &Path) -> Option<PathBuf> {
    let path = std::path::absolute(path).ok()?;
    path.ancestors().find(|p| p.is_dir()).map(Path::to_path_buf)
}

/// What a small durable write costs, sorted.
fn sync_times(dir: &Path, clock: &dyn Clock) -> std::io::Result<Vec<Duration>> {
    let name = dir.join(format!(".storagerouter-doctor-{:016x}", clock.random()));
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&name)?;
    let measure = || -> std::io::Result<Vec<Duration>> {
        let block = [0x5a; 4096];
        // As the write buffer does: over bytes that are allocated already.
        file.write_all_at(&vec![0; 64 << 12], 0)?;
        file.sync_all()?;
        let mut times = Vec::new();
        for i in 0..32u64 {
            let start = clock.now();
            file.write_all_at(&block, i << 12)?;
            file.sync_data()?;
            times.push(clock.now().saturating_sub(start));
        }
        times.sort();
        Ok(times)
    };
    let times = measure();
    std::fs::remove_file(&name)?;
    times
}

fn space(settings: &Settings, path: &Path, base: &Path) -> Finding {
    let free = match rustix::fs::statvfs(base) {
        Ok(stat) => stat.f_bavail.saturating_mul(stat.f_frsize),
        Err(e) => return Finding::fail("disk space", format!("{}: {e}", base.display())),
    };
    let journal = settings.volumedriver.journal_mib.saturating_mul(1 << 20);
    let taken = std::fs::read_dir(path.join("journal"))
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.metadata().ok())
        .map(|meta| meta.blocks() * 512)
        .sum::<u64>();
    let needed = journal.saturating_sub(taken);
    let text = format!(
        "{} free, the write buffer may take {} more (volumedriver.journal_mib = {})",
        human(free),
        human(needed),
        settings.volumedriver.journal_mib
    );
    if needed > free {
        Finding::fail("disk space", format!("{text}: free some, or lower volumedriver.journal_mib"))
    } else if free - needed < 1 << 30 {
        Finding::warn("disk space", format!("{text}: less than 1 GiB is left for the index"))
    } else {
        Finding::ok("disk space", text)
    }
}

/// Whether the addresses are free, or held by the router that runs here.
pub fn ports(settings: &Settings, data_dir: &Path) -> Vec<Finding> {
    let runs = matches!(datadir::holder(data_dir), Ok(Holder::Held(_)));
    let listeners = [
        ("nbd.listen", &settings.nbd.listen),
        ("edge.listen", &settings.edge.listen),
        ("api.listen", &settings.api.listen),
        ("cluster.listen", &settings.cluster.listen),
        ("dtl.listen", &settings.dtl.listen),
    ];
    listeners
        .into_iter()
        .filter(|(_, address)| !address.is_empty())
        .map(|(key, address)| match std::net::TcpListener::bind(address.as_str()) {
            Ok(_) => Finding::ok("port", format!("{key} {address} is free")),
            Err(e) if e.kind() == ErrorKind::AddrInUse && runs => Finding::ok(
                "port",
                format!("{key} {address} is taken, by the running storage router it seems"),
            ),
            Err(e) => Finding::fail(
                "port",
                format!("{key} {address}: {e}; choose another with --set {key}=127.0.0.1:PORT"),
            ),
        })
        .collect()
}

/// Files with secrets: there, readable by this user, and by nobody else.
pub fn key_files(settings: &Settings) -> Vec<Finding> {
    settings
        .secret_files()
        .into_iter()
        .map(|(key, path)| {
            let shown = path.display();
            match std::fs::File::open(&path).and_then(|file| file.metadata()) {
                Err(e) => Finding::fail("key file", format!("{key}: {shown}: {e}")),
                Ok(meta) if meta.permissions().mode() & 0o077 != 0 => Finding::fail(
                    "key file",
                    format!(
                        "{key}: others may read {shown} (mode {:o}): chmod 600 {shown}",
                        meta.permissions().mode() & 0o777
                    ),
                ),
                Ok(_) => Finding::ok("key file", format!("{key}: {shown}")),
            }
        })
        .collect()
}

/// FUSE: only needed to mount a vDisk on this machine.
pub fn fuse() -> Finding {
    if !Path::new("/dev/fuse").exists() {
        return Finding::warn(
            "fuse",
            "no /dev/fuse: nbdfuse can't mount vDisks on this machine (modprobe fuse)",
        );
    }
    match OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        Ok(_) => Finding::ok("fuse", "/dev/fuse is there, nbdfuse can mount vDisks on this machine"),
        Err(e) => Finding::warn("fuse", format!("/dev/fuse: {e}: nbdfuse can't mount vDisks as this user")),
    }
}
