use super::bucket::Bucket;
use super::*;
use async_trait::async_trait;
use common::sim::SimClock;
use futures::FutureExt;
use futures::future::join_all;
use parking_lot::Mutex;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};

const SECOND: Duration = Duration::from_secs(1);
/// What a timer may be late: tokio's count milliseconds.
const TICK: Duration = Duration::from_millis(1);

const NONE: Qos = Qos {
    read_iops: None,
    write_iops: None,
    read_bytes_per_second: None,
    write_bytes_per_second: None,
    burst_ms: Qos::DEFAULT_BURST_MS,
};

/// Virtual time, and how often somebody slept.
struct CountingClock {
    clock: SimClock,
    sleeps: AtomicU64,
}

#[async_trait]
impl Clock for CountingClock {
    fn now(&self) -> Duration {
        self.clock.now()
    }
    fn unix_time(&self) -> Duration {
        self.clock.unix_time()
    }
    async fn sleep(&self, duration: Duration) {
        self.sleeps.fetch_add(1, Ordering::Relaxed);
        self.clock.sleep(duration).await;
    }
    fn random(&self) -> u64 {
        self.clock.random()
    }
}

/// A limiter in virtual time, and what passed it.
struct World {
    clock: Arc<CountingClock>,
    limiter: Limiter,
    /// When each request passed, and which.
    passed: Mutex<Vec<(Duration, usize)>>,
}

impl World {
    fn new(qos: Qos) -> Self {
        let clock = Arc::new(CountingClock { clock: SimClock::new(1), sleeps: AtomicU64::new(0) });
        let limiter = Limiter::new(clock.clone(), Some(&qos));
        Self { clock, limiter, passed: Mutex::default() }
    }

    /// One request, as a handle has it.
    async fn pass(&self, lane: &Lane, bytes: u64, number: usize) {
        if lane.is_limited() && !lane.try_pay(bytes) {
            lane.pay(bytes, || false).await;
        }
        self.passed.lock().push((self.clock.now(), number));
    }

    async fn read(&self, bytes: u64, number: usize) {
        self.pass(&self.limiter.reads, bytes, number).await;
    }

    fn numbers(&self) -> Vec<usize> {
        self.passed.lock().iter().map(|(_, number)| *number).collect()
    }

    fn now(&self) -> Duration {
        self.clock.now()
    }
}

#[test]
fn a_bucket_lets_pass_after_the_time_that_it_says_and_not_a_nanosecond_earlier() {
    for rate in [1, 3, 7, 200, 999_999_937, 1 << 40] {
        for tokens in [1, 5, 4096, 1 << 25] {
            let burst = Duration::from_millis(300);
            let mut now = Duration::from_secs(5);
            let mut bucket = Bucket::full(NonZeroU64::new(rate).unwrap(), burst, now);
            assert_eq!(bucket.wait(tokens, now), Duration::ZERO, "a full bucket lets everything pass");
            let (begin, mut taken) = (now, 0u128);
            for _ in 0..1000 {
                bucket.take(tokens);
                taken += u128::from(tokens);
                let wait = bucket.wait(tokens, now);
                if !wait.is_zero() {
                    let just_before = now + wait - Duration::from_nanos(1);
                    assert!(!bucket.wait(tokens, just_before).is_zero(), "{rate} {tokens}");
                }
                now += wait;
                assert_eq!(bucket.wait(tokens, now), Duration::ZERO, "{rate} {tokens}");
                // What was taken came in since the begin, or was there, or is the debt of one.
                let most = u128::from(rate) * (now - begin + burst).as_nanos() / 1_000_000_000;
                assert!(taken <= most + 1, "{rate} {tokens}: {taken} of {most}");
            }
            // Nothing was lost either: the last one leaves it empty, or as deep in debt as it is large.
            let came = u128::from(rate) * (now - begin + burst).as_nanos() / 1_000_000_000;
            assert!(taken + u128::from(tokens.max(rate)) >= came, "{rate} {tokens}: {taken} of {came}");
        }
    }
}

#[test]
fn numbers_that_no_check_has_seen_break_nothing() {
    let most = NonZeroU64::MAX;
    let mut bucket = Bucket::full(most, Duration::from_millis(u32::MAX.into()), Duration::ZERO);
    for n in 1..10 {
        bucket.take(u64::MAX);
        let _ = bucket.wait(u64::MAX, Duration::from_secs(u64::MAX / 10 * n));
    }
    bucket.change(NonZeroU64::MIN, Duration::ZERO, Duration::ZERO);
    assert!(bucket.wait(1, Duration::ZERO) <= Duration::MAX);
}

#[tokio::test(start_paused = true)]
async fn a_burst_passes_at_once_and_then_exactly_the_rate() {
    let world = World::new(Qos { read_iops: Some(200), burst_ms: 500, ..NONE });
    join_all((0..1100).map(|n| world.read(4096, n))).await;
    let passed = world.passed.lock();
    assert_eq!(passed.iter().filter(|(at, _)| at.is_zero()).count(), 100, "half a second of 200");
    for (count, (at, _)) in passed.iter().enumerate() {
        let most = 100.0 + 200.0 * at.as_secs_f64();
        assert!((count + 1) as f64 <= most + 1e-6, "{} after {at:?}", count + 1);
    }
    assert!(world.now() >= 5 * SECOND && world.now() <= 5 * SECOND + TICK, "{:?}", world.now());
}

#[tokio::test(start_paused = true)]
async fn a_quiet_time_gives_the_burst_back_and_no_more() {
    let world = World::new(Qos { write_iops: Some(10), burst_ms: 2000, ..NONE });
    for round in 0..3 {
        let at_once = (0..100).take_while(|_| world.limiter.writes.try_pay(0)).count();
        assert_eq!(at_once, 20, "round {round}");
        world.clock.sleep(600 * SECOND).await;
    }
    assert!((0..20).all(|_| world.limiter.writes.try_pay(0)));
    world.clock.sleep(SECOND).await;
    assert_eq!((0..100).take_while(|_| world.limiter.writes.try_pay(0)).count(), 10);
}

#[tokio::test(start_paused = true)]
async fn bytes_are_limited_and_what_is_larger_than_the_burst_passes() {
    let world = World::new(Qos { read_bytes_per_second: Some(1 << 20), burst_ms: 100, ..NONE });
    join_all((0..4).map(|n| world.read(32 << 20, n))).await;
    let at: Vec<_> = world.passed.lock().iter().map(|(at, _)| *at).collect();
    for (n, at) in at.iter().enumerate() {
        // Each waits until the one before it is paid in full.
        let due = 32 * n as u32 * SECOND;
        assert!(*at >= due && *at <= due + 4 * TICK, "{n} after {at:?}");
    }
    world.clock.sleep(33 * SECOND).await;
    let begin = world.now();
    // 100 MiB in small pieces, of which a tenth of a second is there.
    join_all((0..25600).map(|n| world.read(4096, n))).await;
    let (took, due) = (world.now() - begin, Duration::from_millis(99_900));
    assert!(took >= due && took <= due + TICK, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn the_tighter_of_two_limits_holds_and_the_other_is_not_charged_for_who_waits() {
    let qos = Qos { read_iops: Some(100), read_bytes_per_second: Some(1 << 20), ..NONE };
    let world = World::new(qos);
    // Large: 1 MiB/s, and 1 of 100 requests. Small: 100 requests per second.
    join_all((0..11).map(|n| world.read(1 << 20, n))).await;
    assert!(world.now() >= 10 * SECOND && world.now() <= 10 * SECOND + 11 * TICK, "{:?}", world.now());
    // Their bucket is full but for the last of them, however often one asks in vain.
    assert!((0..1000).all(|_| !world.limiter.reads.try_pay(1 << 20)));
    assert_eq!((0..1000).take_while(|_| world.limiter.reads.try_pay(0)).count(), 99);
    world.clock.sleep(10 * SECOND).await;
    let begin = world.now();
    join_all((0..1100).map(|n| world.read(512, n))).await;
    let took = world.now() - begin;
    assert!(took >= 10 * SECOND && took <= 10 * SECOND + TICK, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn reads_do_not_wait_for_writes_nor_writes_for_reads() {
    let world = World::new(Qos { write_iops: Some(1), ..NONE });
    assert!(!world.limiter.reads.is_limited() && world.limiter.writes.is_limited());
    let writes = join_all((0..10).map(|n| world.pass(&world.limiter.writes, 0, n)));
    let reads = join_all((10..1000).map(|n| world.read(1 << 30, n)));
    let (_, at) = futures::join!(writes, reads.map(|_| world.now()));
    assert_eq!(at, Duration::ZERO);
    assert!(world.now() >= 9 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn nobody_is_overtaken() {
    let world = World::new(Qos { read_bytes_per_second: Some(1 << 20), ..NONE });
    let early = join_all((0..50).map(|n| world.read(if n % 10 == 0 { 8 << 20 } else { 512 }, n)));
    // What came in by now would often be enough for one of these, but not for the large one in front.
    let late = join_all((50..100).map(|n| {
        let world = &world;
        async move {
            world.clock.sleep(SECOND / 4 * (n as u32 - 49)).await;
            world.read(512, n).await;
        }
    }));
    futures::join!(early, late);
    let numbers = world.numbers();
    let early: Vec<_> = numbers.iter().filter(|n| **n < 50).copied().collect();
    assert_eq!(early, (0..50).collect::<Vec<_>>());
    assert_eq!(numbers[..50], early, "who came late went first");
}

#[tokio::test(start_paused = true)]
async fn who_waits_sleeps_once_for_each_turn() {
    let world = World::new(Qos { read_iops: Some(50), burst_ms: 100, ..NONE });
    join_all((0..505).map(|n| world.read(0, n))).await;
    assert!(world.now() >= 10 * SECOND);
    let sleeps = world.clock.sleeps.load(Ordering::Relaxed);
    assert!(sleeps <= 505, "{sleeps} sleeps for 500 requests that waited");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_cancelled_loses_no_token_and_blocks_nobody() {
    let world = World::new(Qos { read_iops: Some(1), ..NONE });
    world.read(0, 0).await;
    let mut waiting: Vec<_> = (1..=5).map(|n| Some(world.read(0, n).boxed())).collect();
    for one in waiting.iter_mut().flatten() {
        assert!(futures::poll!(one).is_pending());
    }
    world.clock.sleep(SECOND / 2).await;
    // The first in line, which sleeps, and one in the middle.
    waiting[0] = None;
    waiting[2] = None;
    join_all(waiting.into_iter().flatten()).await;
    assert_eq!(world.numbers(), [0, 2, 4, 5]);
    let at: Vec<_> = world.passed.lock().iter().map(|(at, _)| at.as_secs()).collect();
    assert_eq!(at, [0, 1, 2, 3]);
    let waited = world.limiter.reads.waited();
    assert_eq!(waited.requests, 5);
    let due = Duration::from_millis(500 + 1000 + 500 + 2000 + 3000);
    assert!(waited.time >= due && waited.time <= due + 5 * TICK, "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn changed_limits_hold_at_once_for_who_waits() {
    let slow = Qos { read_iops: Some(1), ..NONE };
    let world = World::new(slow);
    let requests = join_all((0..1001).map(|n| world.read(0, n)));
    let change = async {
        world.clock.sleep(SECOND * 21 / 2).await;
        assert_eq!(world.numbers().len(), 11);
        world.limiter.set(Some(&Qos { read_iops: Some(100), ..NONE }));
        world.clock.sleep(SECOND).await;
        let passed = world.numbers().len();
        assert!((110..=112).contains(&passed), "{passed}: a second of the new rate, no burst anew");
        world.limiter.set(Some(&slow));
        world.clock.sleep(10 * SECOND).await;
        let passed = world.numbers().len() - passed;
        assert!((10..=11).contains(&passed), "{passed}: ten seconds of the old rate");
        world.limiter.set(None);
        tokio::task::yield_now().await;
        world.now()
    };
    let (_, cleared) = futures::join!(requests, change);
    assert_eq!(world.now(), cleared, "without limits nobody waits");
    assert_eq!(world.numbers(), (0..1001).collect::<Vec<_>>());
    assert!(!world.limiter.reads.is_limited());
}

#[tokio::test(start_paused = true)]
async fn changing_limits_again_and_again_gives_no_more_than_they_allow() {
    let qos = |n: u32| Qos { read_iops: Some(10), burst_ms: 100 + n, ..NONE };
    let world = World::new(qos(0));
    let requests = join_all((0..200).map(|n| world.read(0, n)));
    let change = async {
        for n in 0..1000 {
            world.clock.sleep(SECOND / 100).await;
            world.limiter.set(Some(&qos(n)));
        }
        let passed = world.numbers().len();
        assert!((100..=102).contains(&passed), "{passed} in 10 s");
        world.limiter.set(None);
    };
    futures::join!(requests, change);
}

#[tokio::test(start_paused = true)]
async fn who_need_not_wait_any_more_goes_at_once_and_pays_nothing() {
    let world = World::new(Qos { read_iops: Some(1), burst_ms: 60_000, ..NONE });
    while world.limiter.reads.try_pay(0) {}
    let over = std::sync::atomic::AtomicBool::new(false);
    let waiting = join_all((0..10).map(|_| world.limiter.reads.pay(0, || over.load(Ordering::Relaxed))));
    let end = async {
        world.clock.sleep(SECOND / 2).await;
        over.store(true, Ordering::Relaxed);
        world.limiter.look_again();
    };
    futures::join!(waiting, end);
    assert_eq!(world.now(), SECOND / 2);
    world.clock.sleep(SECOND / 2).await;
    assert!(world.limiter.reads.try_pay(0), "the token of that second is still there");
}

#[test]
fn limits_that_cannot_be_right_are_refused_by_name() {
    let some = Qos { read_iops: Some(1), ..NONE };
    some.check().unwrap();
    for (qos, words) in [
        (Qos { read_iops: Some(0), ..NONE }, ["read_iops = 0", "1 to 1000000000"]),
        (Qos { write_iops: Some(1_000_000_001), ..NONE }, ["write_iops = 1000000001", "1 to"]),
        (Qos { read_bytes_per_second: Some(4095), ..some }, ["read_bytes_per_second = 4095", "4096 to"]),
        (
            Qos { write_bytes_per_second: Some(u64::MAX), ..NONE },
            ["write_bytes_per_second = 1844", "4096 to"],
        ),
        (Qos { burst_ms: 99, ..some }, ["burst_ms = 99", "100 to 60000"]),
        (Qos { burst_ms: 60_001, ..some }, ["burst_ms = 60001", "100 to 60000"]),
        (NONE, ["burst_ms", "give a limit"]),
    ] {
        let error = qos.check().unwrap_err();
        assert_eq!(error.kind, common::ErrorKind::Invalid);
        assert!(words.iter().all(|word| error.message().contains(word)), "{error}");
    }
}
