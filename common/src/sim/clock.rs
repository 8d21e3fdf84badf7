//! Virtual time (tokio's paused clock) and a seeded random source.

use crate::clock::Clock;
use async_trait::async_trait;
use parking_lot::Mutex;
use std::time::Duration;

/// Time that jumps to the next timer when everyone waits, and chance from a seed. Use it in a
/// current-thread runtime with `start_paused`.
pub struct SimClock {
    start: tokio::time::Instant,
    random: Mutex<fastrand::Rng>,
}

#[allow(clippy::disallowed_methods)]
impl SimClock {
    /// A clock at zero with the random sequence of `seed`.
    pub fn new(seed: u64) -> Self {
        Self { start: tokio::time::Instant::now(), random: Mutex::new(fastrand::Rng::with_seed(seed)) }
    }
}

#[async_trait]
#[allow(clippy::disallowed_methods)]
impl Clock for SimClock {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn unix_time(&self) -> Duration {
        Duration::from_secs(1_700_000_000) + self.start.elapsed()
    }

    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }

    fn random(&self) -> u64 {
        self.random.lock().u64(..)
    }
}
