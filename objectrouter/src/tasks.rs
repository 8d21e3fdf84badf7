//! Background work: every task has a name, can be listed, and ends at shutdown.

#[cfg(test)]
mod tests;

use common::{Clock, Error, Result};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tokio::task::AbortHandle;

struct Running {
    name: String,
    abort: Option<AbortHandle>,
}

#[derive(Default)]
struct Inner {
    next: u64,
    running: BTreeMap<u64, Running>,
    stopping: bool,
}

/// The tasks of one router.
pub(crate) struct Tasks {
    inner: Mutex<Inner>,
    count: watch::Sender<usize>,
    stop: watch::Sender<bool>,
}

/// Takes its task off the list, however the task ends.
struct Listed {
    tasks: Arc<Tasks>,
    id: u64,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.tasks.inner.lock().running.remove(&self.id);
        self.tasks.count.send_modify(|n| *n -= 1);
    }
}

impl Tasks {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::new(Inner::default()),
            count: watch::Sender::new(0),
            stop: watch::Sender::new(false),
        })
    }

    /// Starts a task. `Unavailable` once the router is stopping.
    pub(crate) fn spawn<F>(self: &Arc<Self>, name: impl Into<String>, work: F) -> Result<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listed = {
            let mut inner = self.inner.lock();
            if inner.stopping {
                return Err(Error::unavailable("the storage router is stopping"));
            }
            let id = inner.next;
            inner.next += 1;
            inner.running.insert(id, Running { name: name.into(), abort: None });
            self.count.send_modify(|n| *n += 1);
            Listed { tasks: self.clone(), id }
        };
        let id = listed.id;
        let handle = tokio::spawn(async move {
            let _listed = listed;
            work.await;
        });
        if let Some(running) = self.inner.lock().running.get_mut(&id) {
            running.abort = Some(handle.abort_handle());
        }
        Ok(())
    }

    /// Runs work to its end even when the caller goes away, and gives its result.
    pub(crate) async fn run<T, F>(self: &Arc<Self>, name: impl Into<String>, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let name = name.into();
        let (done, result) = oneshot::channel();
        self.spawn(name.clone(), async move {
            // Nobody listens any more when the caller went away; the work was still to be done.
            let _ = done.send(work.await);
        })?;
        match result.await {
            Ok(result) => result,
            Err(_) => Err(Error::internal(format!("'{name}' was cut short; the log says by what"))),
        }
    }

    /// Names of the tasks that run.
    pub(crate) fn names(&self) -> Vec<String> {
        self.inner.lock().running.values().map(|r| r.name.clone()).collect()
    }

    /// Returns when the router begins to stop.
    pub(crate) async fn stopped(&self) {
        // The sender lives in `self`: an error can't come.
        let _ = self.stop.subscribe().wait_for(|stop| *stop).await;
    }

    /// Sleeps; false when the router began to stop meanwhile.
    pub(crate) async fn sleep(&self, clock: &dyn Clock, duration: Duration) -> bool {
        tokio::select! {
            biased;
            () = clock.sleep(duration) => true,
            () = self.stopped() => false,
        }
    }

    /// Lets no new task begin, waits until `deadline` has passed for those that run, and then cuts
    /// the rest short, whose names it gives back.
    pub(crate) async fn stop(&self, clock: &dyn Clock, deadline: Duration) -> Vec<String> {
        self.inner.lock().stopping = true;
        self.stop.send_replace(true);
        let mut count = self.count.subscribe();
        let ended = tokio::select! {
            biased;
            _ = count.wait_for(|n| *n == 0) => true,
            () = clock.sleep(deadline) => false,
        };
        if ended {
            return Vec::new();
        }
        let cut = self.names();
        for running in self.inner.lock().running.values() {
            if let Some(abort) = &running.abort {
                abort.abort();
            }
        }
        cut
    }
}
