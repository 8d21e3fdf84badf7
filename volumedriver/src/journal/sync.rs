//! Group commit: one fdatasync at a time serves all that wait; whoever comes meanwhile is served by the
//! next, which begins when it returns.

use super::record::Position;
use super::segment::Segment;
use super::{Journal, Mark};
use common::{DiskFile, Error, Result, mutant};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Waker};
use tokio::sync::oneshot;

/// How far the journal is written, and how far that is durable.
#[derive(Default)]
pub(super) struct Frontier {
    written: u64,
    at: Position,
    durable_at: Position,
    /// Segments with unsynced records, in order: an earlier one is synced before a later one counts.
    dirty: Vec<Arc<dyn DiskFile>>,
    /// The life of the last of them.
    dirty_life: u64,
}

/// Who waits for a sync.
#[derive(Default)]
pub(super) struct Syncs {
    waiting: Vec<oneshot::Sender<Result<()>>>,
    running: bool,
}

impl Syncs {
    pub fn fail(&mut self, error: &Error) {
        for waiter in self.waiting.drain(..) {
            let _ = waiter.send(Err(error.clone().context("the write buffer failed")));
        }
    }
}

impl Journal {
    /// Returns when everything that was retired before the call survives a power cut. An error is final.
    pub async fn sync(self: &Arc<Self>) -> Result<()> {
        self.check()?;
        let target = self.written.load(Ordering::Acquire);
        if self.durable.load(Ordering::Acquire) >= target {
            return Ok(());
        }
        let (done, wait) = oneshot::channel();
        let leads = {
            let mut syncs = self.syncs.lock();
            syncs.waiting.push(done);
            !std::mem::replace(&mut syncs.running, true)
        };
        if leads {
            let mut leader: Pin<Box<dyn Future<Output = ()> + Send>> =
                Box::pin(serve(Serving { journal: self.clone(), done: false }));
            // Where the thread may wait for the disk, it is done in one poll. The rest goes to a task, so
            // that a waiter who goes away takes nobody's sync with him.
            if leader.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
                self.runtime.spawn(leader);
            }
        }
        wait.await.unwrap_or_else(|_| Err(self.error()))
    }

    /// A record was written up to `at`.
    pub(super) fn appended(&self, at: Position, bytes: u64, segment: &Segment) -> Mark {
        let mut frontier = self.frontier.lock();
        frontier.written += bytes;
        frontier.at = at;
        if frontier.dirty_life != segment.life {
            frontier.dirty_life = segment.life;
            if mutant::is_on("sync-of-the-last-segment-only") {
                frontier.dirty.clear();
            }
            frontier.dirty.push(segment.file.clone());
        }
        self.written.store(frontier.written, Ordering::Release);
        Mark(frontier.written)
    }

    /// Everything before it survives a power cut.
    pub(super) fn durable_position(&self) -> Position {
        self.frontier.lock().durable_at
    }

    /// Everything before it has been handed to the kernel.
    pub(super) fn written_position(&self) -> Position {
        self.frontier.lock().at
    }

    async fn sync_once(&self) -> Result<()> {
        let (target, at, dirty) = {
            let mut frontier = self.frontier.lock();
            frontier.dirty_life = 0;
            (frontier.written, frontier.at, std::mem::take(&mut frontier.dirty))
        };
        let begin = self.clock.now();
        for file in &dirty {
            self.check()?;
            match file.sync().await {
                Err(_) if mutant::is_on("failed-sync-ignored") => {}
                outcome => outcome?,
            }
        }
        self.check()?;
        self.metrics.syncs.inc();
        self.metrics.sync_seconds.observe(self.clock.now().saturating_sub(begin).as_secs_f64());
        self.frontier.lock().durable_at = at;
        self.durable.store(target, Ordering::Release);
        Ok(())
    }
}

/// Fails the journal when the task that syncs is dropped or panics half-way.
struct Serving {
    journal: Arc<Journal>,
    done: bool,
}

impl Drop for Serving {
    fn drop(&mut self) {
        if !self.done {
            self.journal.fail(Error::internal("a sync of the write buffer was stopped half-way"));
        }
    }
}

async fn serve(mut serving: Serving) {
    let journal = serving.journal.clone();
    let mut first = true;
    loop {
        {
            let mut syncs = journal.syncs.lock();
            if syncs.waiting.is_empty() {
                syncs.running = false;
                break;
            }
        }
        if !std::mem::replace(&mut first, false) {
            // Others wait, not the one who led so far.
            tokio::task::yield_now().await;
        }
        let waiters = std::mem::take(&mut journal.syncs.lock().waiting);
        let result = journal.sync_once().await;
        let result = match mutant::is_on("failed-sync-is-tried-again") && result.is_err() {
            true => journal.sync_once().await,
            false => result,
        };
        if let Err(error) = &result {
            journal.fail(error.clone());
        }
        // Between the sync and here the journal may have failed: then nothing is promised any more.
        let result = result.and_then(|()| journal.check()).map_err(|e| e.context("the write buffer's sync"));
        for waiter in waiters {
            let _ = waiter.send(result.clone());
        }
    }
    serving.done = true;
}
