//! Attempts, the pauses between them, and the deadline.

use super::fault::Failure;
use common::{Clock, Error, ErrorKind, Result};
use futures::future::{Either, select};
use prometheus_client::metrics::counter::Counter;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

/// The first pause is up to this long; each next one up to twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);

pub(super) struct Retry {
    clock: Arc<dyn Clock>,
    deadline: Duration,
    retries: Counter,
}

impl Retry {
    pub(super) fn new(clock: Arc<dyn Clock>, deadline: Duration, retries: Counter) -> Self {
        Self { clock, deadline, retries }
    }

    /// Tries until an attempt succeeds or fails for good, or the deadline passes: then
    /// `Unavailable`, and what the last attempts did is unknown. `attempt` gets its number, from 0.
    pub(super) async fn run<T, F>(&self, attempt: impl Fn(u32) -> F) -> Result<T>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let end = self.clock.now() + self.deadline;
        // So that a server that answers nothing is asked twice at least.
        let patience = self.deadline / 2;
        let mut last: Option<Error> = None;
        for number in 0u32.. {
            let left = end.saturating_sub(self.clock.now());
            if left.is_zero() {
                break;
            }
            let patience = patience.min(left);
            let outcome = match select(pin!(attempt(number)), pin!(self.clock.sleep(patience))).await {
                Either::Left((outcome, _)) => Some(outcome),
                Either::Right(_) => None,
            };
            match outcome {
                Some(Ok(value)) => return Ok(value),
                Some(Err(failure)) if !failure.again => return Err(failure.error),
                Some(Err(failure)) => last = Some(failure.error),
                None => {
                    // The error of an earlier attempt says more than silence does.
                    let told = format!("no answer within {:.1} s", patience.as_secs_f64());
                    last = Some(match last {
                        Some(earlier) => earlier.context(format!("{told}, before that")),
                        None => Error::unavailable(told),
                    });
                }
            }
            self.retries.inc();
            let left = end.saturating_sub(self.clock.now());
            let pause = self.pause(number);
            if pause >= left {
                break;
            }
            self.clock.sleep(pause).await;
        }
        let last = last.unwrap_or_else(|| Error::unavailable("no attempt was made"));
        let kind = if last.kind == ErrorKind::NoSpace { ErrorKind::NoSpace } else { ErrorKind::Unavailable };
        Err(Error::new(kind, format!("given up after {} s: {}", self.deadline.as_secs(), last.message())))
    }

    /// Full jitter: anything up to the bound, so that clients that failed together don't come back together.
    fn pause(&self, number: u32) -> Duration {
        let bound = FIRST_PAUSE.saturating_mul(1 << number.min(16)).min(LONGEST_PAUSE);
        Duration::from_nanos(self.clock.random() % (bound.as_nanos() as u64 + 1))
    }
}

#[cfg(test)]
mod tests;
