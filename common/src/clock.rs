//! Time and chance enter here and nowhere else (`clippy.toml` bans them elsewhere), so that a
//! simulation can run on virtual time and a seed.

use async_trait::async_trait;
use std::time::Duration;

/// Time and chance.
#[async_trait]
pub trait Clock: Send + Sync {
    /// Time since some fixed point of this process; never goes back.
    fn now(&self) -> Duration;

    /// Time since the Unix epoch, for people and for records; may jump.
    fn unix_time(&self) -> Duration;

    /// Sleeps.
    async fn sleep(&self, duration: Duration);

    /// Random bits: for identities, jitter and sampling. Not for keys.
    fn random(&self) -> u64;

    /// 128 random bits.
    fn random_u128(&self) -> u128 {
        (u128::from(self.random()) << 64) | u128::from(self.random())
    }
}

/// The machine's clock and the process's random source.
pub struct SystemClock {
    start: tokio::time::Instant,
}

impl SystemClock {
    /// A clock that starts at zero now.
    #[allow(clippy::disallowed_methods)]
    pub fn new() -> Self {
        Self { start: tokio::time::Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
#[allow(clippy::disallowed_methods)]
impl Clock for SystemClock {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn unix_time(&self) -> Duration {
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
    }

    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }

    fn random(&self) -> u64 {
        fastrand::u64(..)
    }
}
