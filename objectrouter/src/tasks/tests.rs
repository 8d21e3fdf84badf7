use super::*;
use common::sim::SimClock;

#[tokio::test(start_paused = true)]
async fn work_goes_on_when_its_caller_goes_away() {
    let tasks = Tasks::new();
    let (release, wait) = oneshot::channel::<()>();
    let (done, mut seen) = oneshot::channel();
    let call = tasks.run("work", async move {
        let _ = wait.await;
        let _ = done.send(());
        Ok(())
    });
    assert!(tokio::time::timeout(Duration::from_secs(1), call).await.is_err());
    assert_eq!(tasks.names(), ["work"]);
    release.send(()).unwrap();
    tokio::task::yield_now().await;
    tokio::task::yield_now().await;
    assert!(seen.try_recv().is_ok());
    assert!(tasks.names().is_empty());
}

#[tokio::test(start_paused = true)]
async fn stop_waits_for_the_deadline_and_then_cuts_by_name() {
    let clock = Arc::new(SimClock::new(1));
    let tasks = Tasks::new();
    let (quick, stuck) = (tasks.clone(), tasks.clone());
    let quick_clock = clock.clone();
    tasks
        .spawn("quick", async move {
            quick.stopped().await;
            quick_clock.sleep(Duration::from_secs(1)).await;
        })
        .unwrap();
    stuck.spawn("stuck", std::future::pending()).unwrap();
    assert_eq!(tasks.stop(&*clock, Duration::from_secs(5)).await, ["stuck"]);
    assert_eq!(clock.now(), Duration::from_secs(5));
    let refused = tasks.spawn("late", async {}).unwrap_err();
    assert_eq!(refused.kind, common::ErrorKind::Unavailable);
    while !tasks.names().is_empty() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn work_that_panics_is_an_error_and_leaves_the_list() {
    let tasks = Tasks::new();
    let error = tasks.run::<(), _>("broken", async { panic!("on purpose") }).await.unwrap_err();
    assert!(error.message().contains("broken"), "{error}");
    assert!(tasks.names().is_empty());
}
