//! Threads for what computes while nobody waits for it.

use common::{Error, Result};
use std::future::Future;
use thread_priority::{NormalThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// Where some work has come to on its first thread.
enum Stage<T, W> {
    Ended(T),
    Hurried(W),
}

/// Does `work` on a thread of its own, which gives way to every other one of the machine (`SCHED_IDLE`: whoever
/// wakes gets its processor at once). When `hurry` ends before it, the rest is done on a thread like any other: on
/// a machine that is busy all the time it would never end. Dropping this does not stop the work.
///
/// # Errors
/// `Internal` when there is no thread to be had, or the work panicked.
pub(crate) async fn run<T: Send + 'static>(
    name: &'static str,
    work: impl Future<Output = T> + Send + 'static,
    hurry: impl Future<Output = ()> + Send + 'static,
) -> Result<T> {
    let failed = |why: String| Error::internal(format!("the {name} thread: {why}"));
    let (send, stage) = oneshot::channel();
    let runtime = Handle::current();
    let first = std::thread::Builder::new().name(name.into()).spawn(move || {
        give_way(name);
        let mut work = Box::pin(work);
        let ended = runtime.block_on(async {
            tokio::select! {
                biased;
                ended = &mut work => Some(ended),
                () = hurry => None,
            }
        });
        // Who waited may have gone.
        let _ = send.send(ended.map_or_else(|| Stage::Hurried(work), Stage::Ended));
    });
    first.map_err(|e| failed(e.to_string()))?;
    match stage.await {
        Ok(Stage::Ended(ended)) => Ok(ended),
        Ok(Stage::Hurried(work)) => tokio::task::spawn_blocking(|| Handle::current().block_on(work))
            .await
            .map_err(|e| failed(e.to_string())),
        Err(_) => Err(failed("it panicked".into())),
    }
}

/// Needs no privilege; to take it back would.
fn give_way(name: &str) {
    let idle = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
    let thread = thread_priority::thread_native_id();
    if let Err(error) = thread_priority::set_thread_priority_and_policy(thread, ThreadPriority::Min, idle) {
        tracing::debug!(name, ?error, "a thread in the background competes with those that clients wait for");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::{pending, ready};

    #[tokio::test(flavor = "multi_thread")]
    async fn work_goes_on_elsewhere_when_it_must_hurry() {
        let thread = || std::thread::current().name().unwrap_or_default().to_string();
        assert_eq!(run("idle", async move { thread() }, pending()).await.unwrap(), "idle");
        let (go, wait) = oneshot::channel::<()>();
        let work = async move {
            let before = thread();
            wait.await.unwrap();
            (before, thread())
        };
        let hurry = async move {
            ready(()).await;
            go.send(()).unwrap();
        };
        let (before, after) = run("idle", work, hurry).await.unwrap();
        assert_eq!(before, "idle");
        assert_ne!(after, "idle");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_panic_is_an_error() {
        let work = async {
            if true {
                panic!("as planned")
            }
        };
        let error = run("idle", work, pending()).await.unwrap_err();
        assert!(error.to_string().contains("panicked"), "{error}");
    }
}
