//! Real time: pauses, deadlines, waiting for something to become true.

use anyhow::{Result, bail};
use std::time::{Duration, Instant};

/// Sleeps.
pub fn pause(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
}

/// Measures elapsed time.
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// Starts now.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Seconds since the start.
    pub fn seconds(&self) -> f64 {
        self.0.elapsed().as_secs_f64()
    }

    /// Whether more than `seconds` have passed.
    pub fn past(&self, seconds: u64) -> bool {
        self.0.elapsed() > Duration::from_secs(seconds)
    }
}

/// Asks again until the answer is `Ok`, at most for `seconds`; then fails with the last reason.
pub fn eventually<T>(what: &str, seconds: u64, mut ask: impl FnMut() -> Result<T>) -> Result<T> {
    let watch = Stopwatch::start();
    loop {
        match ask() {
            Ok(value) => return Ok(value),
            Err(reason) if watch.past(seconds) => bail!("{what}: not within {seconds} s: {reason:#}"),
            Err(_) => pause(50),
        }
    }
}

/// A count of rounds that the environment may raise: `rounds("SR_KILL_ROUNDS", 20)`.
pub fn rounds(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}
