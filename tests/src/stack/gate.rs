//! A process as its doors see it: everything that comes in or goes out passes its gate, which stands still with the
//! process (SIGSTOP) and never opens again when it is dead (SIGKILL).

use super::signal::Signal;
use async_trait::async_trait;
use common::Clock;
use common::sim::SimClock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Runs,
    Stands,
    Dead,
}

/// The gate of a process; clones are the same one.
#[derive(Clone)]
pub struct Gate {
    state: Arc<Signal<State>>,
    /// Effects that it still has before it dies; 0 is no end.
    left: Arc<AtomicU64>,
}

impl Default for Gate {
    fn default() -> Self {
        Gate { state: Arc::new(Signal::new(State::Runs)), left: Arc::default() }
    }
}

impl Gate {
    /// Waits while the process stands still, for ever when it is dead.
    pub async fn pass(&self) {
        self.state.wait(|state| *state == State::Runs).await;
    }

    /// As [`Gate::pass`], before something that others could see: a process that dies at its n-th effect dies here.
    pub async fn effect(&self) {
        let left = self.left.load(Ordering::Relaxed);
        if left > 0 {
            self.left.store(left - 1, Ordering::Relaxed);
            if left == 1 {
                self.die();
            }
        }
        self.pass().await;
    }

    /// It dies at the `n`-th effect from now on.
    pub fn die_at(&self, n: u64) {
        self.left.store(n, Ordering::Relaxed);
    }

    /// SIGKILL.
    pub fn die(&self) {
        self.left.store(0, Ordering::Relaxed);
        self.state.change(|state| *state = State::Dead);
    }

    /// SIGSTOP, and SIGCONT.
    pub fn stand_still(&self, stands: bool) {
        self.state.change(|state| {
            if *state != State::Dead {
                *state = if stands { State::Stands } else { State::Runs };
            }
        });
    }

    /// Whether it goes on.
    pub fn runs(&self) -> bool {
        self.state.see(|state| *state == State::Runs)
    }

    /// Whether it is dead.
    pub fn is_dead(&self) -> bool {
        self.state.see(|state| *state == State::Dead)
    }

    /// Waits for its death.
    pub async fn death(&self) {
        self.state.wait(|state| *state == State::Dead).await;
    }
}

/// The clock of a process: it goes a little wrong, and its timers wait for the process.
pub struct ProcessClock {
    base: Arc<SimClock>,
    gate: Gate,
    /// Its seconds in a thousand true ones.
    rate: u32,
    ahead: Duration,
    random: Mutex<fastrand::Rng>,
}

impl ProcessClock {
    /// A clock that says `ahead` now, and counts `rate` milliseconds in each second.
    pub fn new(base: Arc<SimClock>, gate: Gate, rate: u32, ahead: Duration, seed: u64) -> Self {
        let random = Mutex::new(fastrand::Rng::with_seed(seed));
        Self { base, gate, rate, ahead, random }
    }
}

#[async_trait]
impl Clock for ProcessClock {
    fn now(&self) -> Duration {
        self.ahead + self.base.now() * self.rate / 1000
    }

    fn unix_time(&self) -> Duration {
        self.base.unix_time()
    }

    async fn sleep(&self, duration: Duration) {
        // Hours are as good as for ever, and can be multiplied.
        let duration = duration.min(Duration::from_secs(1 << 30));
        self.base.sleep(duration * 1000 / self.rate).await;
        self.gate.pass().await;
    }

    fn random(&self) -> u64 {
        self.random.lock().map_or(0, |mut random| random.u64(..))
    }
}
