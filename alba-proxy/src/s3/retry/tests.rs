use super::*;
use async_trait::async_trait;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

/// Time passes only by sleeping; chance is always the same.
#[derive(Default)]
struct Still(Mutex<Duration>);

#[async_trait]
impl Clock for Still {
    fn now(&self) -> Duration {
        *self.0.lock()
    }

    fn unix_time(&self) -> Duration {
        self.now()
    }

    async fn sleep(&self, duration: Duration) {
        // An attempt that is ready is ahead of its own limit.
        tokio::task::yield_now().await;
        *self.0.lock() += duration;
    }

    fn random(&self) -> u64 {
        u64::MAX
    }
}

fn retry(clock: &Arc<Still>) -> (Retry, Counter) {
    let counter = Counter::default();
    (Retry::new(clock.clone(), Duration::from_secs(30), counter.clone()), counter)
}

fn busy() -> Failure {
    Failure { error: Error::unavailable("busy"), again: true }
}

#[tokio::test]
async fn an_attempt_that_fails_for_good_is_the_last() {
    let (retry, counter) = retry(&Arc::default());
    let tries = AtomicU32::new(0);
    let error = retry
        .run(|n| {
            tries.fetch_add(1, Ordering::Relaxed);
            async move { if n < 3 { Err::<(), _>(busy()) } else { Err(Failure::last(Error::invalid("no"))) } }
        })
        .await
        .unwrap_err();
    assert_eq!((error.kind, error.message()), (ErrorKind::Invalid, "no"));
    assert_eq!((tries.into_inner(), counter.get()), (4, 3));
}

#[tokio::test]
async fn at_the_deadline_it_is_unavailable_with_the_last_reason() {
    let clock = Arc::<Still>::default();
    let (retry, _) = retry(&clock);
    let tries = AtomicU32::new(0);
    let outcome = retry.run(|_| {
        tries.fetch_add(1, Ordering::Relaxed);
        async { Err::<(), _>(busy()) }
    });
    let error = outcome.await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert!(error.message().contains("30 s") && error.message().contains("busy"), "{error}");
    assert!(clock.now() <= Duration::from_secs(30));
    // Pauses grow to 3 s: not a storm, and not a single try either.
    let tries = tries.into_inner();
    assert!((10..100).contains(&tries), "{tries} attempts in 30 s");
}

#[tokio::test]
async fn a_server_that_never_answers_is_asked_again_and_then_given_up() {
    let (retry, _) = retry(&Arc::default());
    let tries = AtomicU32::new(0);
    let outcome = retry.run(|_| {
        tries.fetch_add(1, Ordering::Relaxed);
        std::future::pending::<Result<(), Failure>>()
    });
    let error = outcome.await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert!(error.message().contains("no answer within"), "{error}");
    assert_eq!(tries.into_inner(), 2);
}
