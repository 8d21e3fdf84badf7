//! Where the figures of the special benchmarks come from, and how they are printed.

use anyhow::{Context, Result, ensure};
use std::fmt;
use std::path::Path;
use tests::census::Amounts;
use tests::nbd::{Client, Endpoint};
use tests::router::Router;

/// Bytes of objects of all kinds that were put, as the router counts them where they go out.
pub const PUT: &str =
    "storagerouter_alba_proxy_transferred_bytes_total{store=\"directory\",direction=\"put\"}";
/// The same of what was got.
pub const GOT: &str =
    "storagerouter_alba_proxy_transferred_bytes_total{store=\"directory\",direction=\"get\"}";
/// Bytes of clusters read from SCOs.
pub const READ: &str = "storagerouter_volumedriver_backend_read_bytes_total";

/// The value of a counter or gauge in `/metrics`.
pub fn metric(router: &Router, name: &str) -> Result<f64> {
    let (_, text) = router.get("/metrics")?;
    let line = text.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
    let value = line.and_then(|line| line.rsplit(' ').next()).and_then(|value| value.parse().ok());
    value.with_context(|| format!("no metric {name}"))
}

/// Resident bytes of a process.
pub fn resident(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("VmRSS")?;
    let kib: u64 = line.split_whitespace().nth(1).context("VmRSS")?.parse()?;
    ensure!(kib > 0, "no resident memory");
    Ok(kib << 10)
}

/// Seconds that all processors were not idle.
pub fn all_cpu() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().context("no line in /proc/stat")?;
    let ticks: Vec<f64> = line.split_whitespace().skip(1).filter_map(|n| n.parse().ok()).collect();
    ensure!(ticks.len() >= 8, "too few numbers in /proc/stat");
    // Idle and waiting for disks come fourth and fifth.
    Ok((ticks.iter().take(8).sum::<f64>() - ticks[3] - ticks[4]) / 100.0)
}

pub fn cpus() -> f64 {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as f64
}

/// Median, lowest and highest of some runs.
pub struct Spread {
    pub median: f64,
    pub low: f64,
    pub high: f64,
}

impl Spread {
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        let median = super::median(&mut values);
        let end = |value: Option<&f64>| value.copied().unwrap_or(f64::NAN);
        Self { median, low: end(values.first()), high: end(values.last()) }
    }
}

/// With as many digits as the formatter says, 2 otherwise.
impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(2);
        write!(f, "{:.digits$} ({:.digits$}..{:.digits$})", self.median, self.low, self.high)
    }
}

/// The value of which `share` of all are lower.
pub fn percentile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = (values.len() as f64 * share) as usize;
    values.get(at.min(values.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

/// Whether a figure is what was wanted.
pub fn at_most(value: f64, limit: f64) -> String {
    format!("wanted at most {limit}: {}", if value <= limit { "held" } else { "MISSED" })
}

/// The same the other way round.
pub fn at_least(value: f64, limit: f64) -> String {
    format!("wanted at least {limit}: {}", if value >= limit { "held" } else { "MISSED" })
}

/// Amounts on one line.
pub fn told(amounts: &Amounts) -> String {
    let each = amounts.iter().map(|(kind, amount)| {
        format!("{} {kind} of {:.2} MiB", amount.objects, amount.bytes as f64 / f64::from(1 << 20))
    });
    each.collect::<Vec<_>>().join(", ")
}

/// The runtime of the harness's own clients.
pub fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

/// A connection to an export of our server, over its socket file.
pub async fn connect(router: &Router, export: &str) -> Result<Client> {
    connect_to(&Endpoint::Unix(router.socket()), export).await
}

/// A connection to any server.
pub async fn connect_to(endpoint: &Endpoint, export: &str) -> Result<Client> {
    Client::connect(endpoint, export).await.with_context(|| format!("connecting to '{export}'"))
}

/// Forgets what the page cache has of the files in a folder; what is dirty is written first.
pub fn forget_pages(folder: &Path) -> Result<()> {
    use rustix::fs::{Advice, fadvise};
    for key in tests::census::objects(folder)?.keys() {
        // It may have been deleted meanwhile.
        let Ok(file) = std::fs::File::open(folder.join(key)) else { continue };
        file.sync_data()?;
        fadvise(&file, 0, None, Advice::DontNeed)?;
    }
    Ok(())
}
