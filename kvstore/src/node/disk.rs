//! The thread that waits for the disk: one record and one fsync for all that has come meanwhile.

use super::metrics::Metrics;
use crate::log::{Log, LogBatch, Position};
use crate::machine::StateStore;
use common::{Clock, Error, ErrorKind, Result, blocking};
use futures::executor::block_on;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::{mpsc, watch};

/// Jobs that wait for the disk; then the member waits.
const QUEUE: usize = 1024;
/// Bytes that one record takes of what waits.
const GROUP_BYTES: usize = 16 << 20;

/// Work for the disk, in order.
pub(super) enum Job {
    Persist {
        number: u64,
        batch: LogBatch,
    },
    Compact {
        floor: Position,
    },
    /// Wakes the thread, to see that it is to end.
    Stop,
}

/// How far the disk is.
#[derive(Debug, Clone, Default)]
pub(super) struct Progress {
    pub number: u64,
    pub failed: Option<Error>,
}

/// The thread. Dropping it waits for what it is doing and for nothing else: a database must not be closed by a thread that
/// nobody waits for, while the process ends.
pub(super) struct DiskThread {
    thread: Option<std::thread::JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    jobs: mpsc::Sender<Job>,
}

type Started = (DiskThread, mpsc::Sender<Job>, watch::Receiver<Progress>);

impl DiskThread {
    pub fn start(
        log: Log,
        store: Arc<dyn StateStore>,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
    ) -> Result<Started> {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let (progress, watched) = watch::channel(Progress::default());
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::Builder::new()
            .name("registry-log".into())
            .spawn({
                let stop = stop.clone();
                move || {
                    blocking::allow(|| work(log, &*store, queue, (&progress, &*stop), (&*clock, &metrics)))
                }
            })
            .map_err(|e| Error::io("starting the thread of the registry's log", &e))?;
        Ok((Self { thread: Some(thread), stop, jobs: jobs.clone() }, jobs, watched))
    }

    /// Ends it, and waits until it has ended.
    pub async fn end(self) {
        let ended = blocking::run(move || {
            drop(self);
            Ok(())
        });
        if let Err(error) = ended.await {
            tracing::error!(%error, "the thread of the registry's log did not end well");
        }
    }
}

impl Drop for DiskThread {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Without room it has something to do, and looks before the next.
        let _ = self.jobs.try_send(Job::Stop);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread of the registry's log had panicked");
        }
    }
}

fn work(
    mut log: Log,
    store: &dyn StateStore,
    mut queue: mpsc::Receiver<Job>,
    (progress, stop): (&watch::Sender<Progress>, &AtomicBool),
    (clock, metrics): (&dyn Clock, &Metrics),
) {
    let mut next = queue.blocking_recv();
    while let Some(first) = next.take() {
        // What waits was promised to nobody.
        if stop.load(Ordering::Acquire) {
            return;
        }
        let done = match first {
            Job::Persist { number, batch } => {
                let (mut number, mut batches) = (number, vec![batch]);
                let mut bytes = size(&batches[0]);
                while bytes < GROUP_BYTES {
                    match queue.try_recv() {
                        Ok(Job::Persist { number: n, batch }) => {
                            number = n;
                            bytes += size(&batch);
                            batches.push(batch);
                        }
                        Ok(other) => {
                            next = Some(other);
                            break;
                        }
                        Err(_) => break,
                    }
                }
                let begun = clock.now();
                let done = append(&mut log, &batches, stop);
                metrics.wrote(clock.now().saturating_sub(begun));
                done.map(|()| number)
            }
            Job::Compact { floor } => {
                // What the log gives up must be in the state for good.
                match store.checkpoint().and_then(|()| block_on(log.compact(floor))) {
                    // It keeps more than it must, until the next time.
                    Err(error) if error.kind == ErrorKind::NoSpace => {
                        tracing::warn!(%error, "the registry's log keeps what it could give up");
                        Ok(0)
                    }
                    done => done.map(|()| 0),
                }
            }
            Job::Stop => return,
        };
        let failed = match done {
            Ok(number) => {
                progress.send_modify(|p| p.number = p.number.max(number));
                false
            }
            Err(error) => {
                progress.send_modify(|p| p.failed = Some(error));
                true
            }
        };
        if failed {
            return;
        }
        if next.is_none() {
            next = queue.blocking_recv();
        }
    }
}

fn size(batch: &LogBatch) -> usize {
    batch.entries.iter().map(|e| e.data.len() + 64).sum()
}

/// A full disk is waited for: nothing was written, and nothing was promised.
fn append(log: &mut Log, batches: &[LogBatch], stop: &AtomicBool) -> Result<()> {
    loop {
        match block_on(log.append(batches)) {
            Err(error) if error.kind == ErrorKind::NoSpace && !stop.load(Ordering::Acquire) => {
                tracing::warn!(%error, "the registry waits for room on its disk");
                pause();
            }
            done => return done,
        }
    }
}

// On a thread of its own, which nothing simulates.
#[allow(clippy::disallowed_methods)]
fn pause() {
    std::thread::sleep(std::time::Duration::from_millis(200));
}
