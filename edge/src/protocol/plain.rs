//! The exports of a router that knows no epochs, as the edge protocol wants them.
//!
//! An export's epoch is the time at which it was opened. Places in the log are counted here: a request has the
//! number in whose order it was answered. After a restart nothing is known of them, so a client does everything
//! again that no flush covered.

use super::door::{Attached, Attachments, Done, Refused, Volume};
use super::owned::Owned;
use async_trait::async_trait;
use common::{BlockDevice, Clock, Epoch, Error, Exports, Geometry, Lsn, Result};
use edge_client::wire::{Attach, Op, Outcome, Recovered, Refusal};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::OnceCell;

/// A block device as a volume of one epoch. Two changes of one place at a time are ordered as they were answered.
pub struct Plain {
    device: Arc<dyn BlockDevice>,
    epoch: Epoch,
    answered: AtomicU64,
}

impl Plain {
    /// A device that was just opened.
    pub fn new(device: Arc<dyn BlockDevice>, epoch: Epoch) -> Self {
        Plain { device, epoch, answered: AtomicU64::new(0) }
    }
}

#[async_trait]
impl Volume for Plain {
    fn geometry(&self) -> Geometry {
        self.device.geometry()
    }

    fn epoch(&self) -> Epoch {
        self.epoch
    }

    fn recovered(&self, since: Epoch) -> Recovered {
        if since == self.epoch { Recovered::All } else { Recovered::Flushed }
    }

    fn in_sync(&self) -> bool {
        // There is no DTL: nothing is out of sync.
        true
    }

    async fn apply(&self, op: Op) -> Result<Done, Refused> {
        let device = &self.device;
        let changes = op.changes();
        let flushed = Lsn(self.answered.load(Ordering::Acquire));
        let outcome = match op {
            Op::Read { offset, len } => Outcome::Data(device.read(offset, len).await?),
            Op::Extents { offset, len } => Outcome::Extents(device.extents(offset, len).await?),
            other => {
                match other {
                    Op::Write { offset, data, fua } => device.write(offset, data, fua).await?,
                    Op::Zeroes { offset, len, hole, fua } => {
                        device.write_zeroes(offset, len, hole, fua).await?;
                    }
                    Op::Discard { offset, len, fua } => device.discard(offset, len, fua).await?,
                    Op::Prefetch { offset, len } => device.prefetch(offset, len).await?,
                    _ => {
                        device.flush().await?;
                        return Ok(Done { lsn: flushed, outcome: Outcome::Done });
                    }
                }
                Outcome::Done
            }
        };
        let lsn = if changes { Lsn(self.answered.fetch_add(1, Ordering::AcqRel) + 1) } else { Lsn(0) };
        Ok(Done { lsn, outcome })
    }
}

type Open = Arc<OnceCell<Arc<Owned>>>;

/// The exports of one router, all of them served by it. A disk is open while somebody is attached.
pub struct PlainExports {
    exports: Arc<dyn Exports>,
    lease: Duration,
    clock: Arc<dyn Clock>,
    open: Mutex<BTreeMap<String, Open>>,
    last_epoch: AtomicU64,
}

impl PlainExports {
    /// Keeps an attachment for `lease` when its client is gone.
    pub fn new(exports: Arc<dyn Exports>, lease: Duration, clock: Arc<dyn Clock>) -> Self {
        PlainExports { exports, lease, clock, open: Mutex::default(), last_epoch: AtomicU64::new(0) }
    }

    /// The time in microseconds, and never the same twice.
    fn next_epoch(&self) -> Epoch {
        let now = self.clock.unix_time().as_micros() as u64;
        let before = self.last_epoch.fetch_max(now, Ordering::AcqRel);
        if before < now { Epoch(now) } else { Epoch(self.last_epoch.fetch_add(1, Ordering::AcqRel) + 1) }
    }
}

#[async_trait]
impl Attachments for PlainExports {
    async fn attach(&self, attach: Attach) -> Result<Arc<dyn Attached>, Refusal> {
        if !attach.export.contains('/') {
            // A disk has one name here, so that it has one owner.
            return Err(
                Error::invalid(format!("'{}': write vpool/vdisk", attach.export.escape_debug())).into()
            );
        }
        let open = self.open.lock().entry(attach.export.clone()).or_default().clone();
        let owned = open
            .get_or_try_init(|| async {
                let device = self.exports.open(&attach.export).await?;
                let volume = Arc::new(Plain::new(device, self.next_epoch()));
                Ok::<_, Error>(Owned::new(volume, self.lease, Vec::new(), self.clock.clone()))
            })
            .await?;
        owned.attach(&attach).await
    }

    async fn tidy(&self) {
        self.open.lock().retain(|_, open| {
            // Who is about to attach holds it as well.
            Arc::strong_count(open) > 1 || open.get().is_some_and(|owned| !owned.is_idle())
        });
    }
}
