//! Requests that change the log.
//!
//! A write is cut into entries, finds credit, gets its LSN under the volume's lock and goes to
//! the journal's queue; then it steps back once, so that neighbours may join, and whoever comes
//! first appends everything that waits.

use super::Shared;
use crate::core::{Append, Core, Retired};
use crate::journal::Sink;
use crate::log::{Crcs, Kind, cluster_crc, cluster_crcs};
use bytes::Bytes;
use common::{Error, ErrorKind, Lsn, Result, mutant};
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

/// Largest content of one entry.
const MAX_ENTRY: u64 = 1 << 20;

/// Largest volume.
pub(crate) const MAX_SIZE: u64 = 64 << 40;

/// Lets every other future of the task run once.
struct StepBack(bool);

impl Future for StepBack {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if std::mem::replace(&mut self.0, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// Submitted entries that nobody has driven to the journal yet: dropping this does, so that a
/// client that goes away does not leave them lying.
pub(super) struct Submitted<'a> {
    shared: &'a Arc<Shared>,
    waiting: Vec<Retired>,
    /// The last place in the log that was given out.
    last: Lsn,
}

impl<'a> Submitted<'a> {
    fn nothing(shared: &'a Arc<Shared>) -> Self {
        Self { shared, waiting: Vec::new(), last: Lsn(0) }
    }

    /// Returns when all of it is accepted, with its last place in the log.
    pub(super) async fn retired(mut self) -> Result<Lsn> {
        StepBack(false).await;
        if mutant::is_on("acknowledge-before-the-journal") {
            return Ok(self.last);
        }
        self.shared.commit();
        for retired in std::mem::take(&mut self.waiting) {
            // A dropped sender means that the volume went away with the entry.
            retired.await.map_err(|_| Error::unavailable("the volume is closed"))??;
        }
        Ok(self.last)
    }
}

impl Drop for Submitted<'_> {
    fn drop(&mut self) {
        if !self.waiting.is_empty() {
            self.shared.commit();
        }
    }
}

/// A cluster that this task reads, changes and writes: nobody else writes it meanwhile.
struct Claim<'a> {
    shared: &'a Shared,
    addr: u64,
    /// The append that retires gives the cluster free.
    handed_over: bool,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if !self.handed_over {
            self.shared.core.lock().unclaim(self.addr);
            self.shared.claims_free.notify_waiters();
        }
    }
}

impl Shared {
    fn check_write(&self, offset: u64, len: u64) -> Result<()> {
        self.demand.arrived();
        let core = self.core.lock();
        core.check()?;
        match offset.checked_add(len) {
            Some(end) if end <= core.size() => Ok(()),
            _ => Err(Error::new(
                ErrorKind::NoSpace,
                format!("{len} bytes at {offset} are beyond the end of the device ({} bytes)", core.size()),
            )),
        }
    }

    /// Writes `data` at `offset`; when it returns it is accepted. The result is its last place in the log.
    pub async fn write(self: &Arc<Self>, offset: u64, mut data: Bytes) -> Result<Lsn> {
        self.check_write(offset, data.len() as u64)?;
        let cluster = u64::from(self.cluster);
        let mut submitted = Submitted::nothing(self);
        let mut at = offset;
        while !data.is_empty() {
            let (addr, skip) = (at / cluster, at % cluster);
            let n = if skip != 0 || (data.len() as u64) < cluster {
                let part = data.split_to(((cluster - skip) as usize).min(data.len()));
                let n = part.len() as u64;
                self.modify(&mut submitted, addr, skip as usize, &part).await?;
                n
            } else {
                let n = (data.len() as u64).min(self.longest_entry()) / cluster * cluster;
                let part = data.split_to(n as usize);
                let crcs = cluster_crcs(self.id, addr, &part, cluster as usize);
                self.append(&mut submitted, Kind::Data, addr, n / cluster, part, crcs).await?;
                n
            };
            at += n;
        }
        submitted.retired().await
    }

    /// The longest content of an entry that fits a SCO, the write buffer's segments and every account.
    fn longest_entry(&self) -> u64 {
        let limits = [u64::from(self.sco_size), self.journal.max_payload() as u64, self.credits.max_entry()];
        limits.into_iter().fold(MAX_ENTRY, u64::min).max(u64::from(self.cluster))
    }

    /// Makes a range read as zeroes: as a hole, or allocated. The result is its last place in the log.
    pub async fn write_range(self: &Arc<Self>, offset: u64, len: u64, hole: bool) -> Result<Lsn> {
        self.check_write(offset, len)?;
        let cluster = u64::from(self.cluster);
        let (end, mut at) = (offset + len, offset);
        let mut submitted = Submitted::nothing(self);
        while at < end {
            let (addr, skip) = (at / cluster, at % cluster);
            if skip != 0 || end - at < cluster {
                let n = (cluster - skip).min(end - at);
                self.modify(&mut submitted, addr, skip as usize, &vec![0; n as usize]).await?;
                at += n;
            } else {
                let count = (end - at) / cluster;
                let kind = if hole { Kind::Discard } else { Kind::Zero };
                self.append(&mut submitted, kind, addr, count, Bytes::new(), Crcs::new()).await?;
                at += count * cluster;
            }
        }
        submitted.retired().await
    }

    /// Queues an entry whose credit and place are settled; the caller lets go of the core before it
    /// waits.
    pub(super) fn submit_alone<'a>(
        self: &'a Arc<Self>,
        core: &mut Core,
        append: Append,
    ) -> Result<Submitted<'a>> {
        let mut submitted = Submitted::nothing(self);
        self.submit(core, &mut submitted, append)?;
        Ok(submitted)
    }

    /// Queues an entry, waiting for credit and for whoever claims a cluster of it, or froze the volume.
    async fn append(
        self: &Arc<Self>,
        submitted: &mut Submitted<'_>,
        kind: Kind,
        addr: u64,
        count: u64,
        data: Bytes,
        crcs: Crcs,
    ) -> Result<()> {
        let credit = match self.credits.try_acquire(data.len() as u64) {
            Some(credit) => credit,
            None => {
                // What was submitted may be what others wait for.
                self.commit();
                self.credits.acquire(data.len() as u64).await?
            }
        };
        let mut waiting: Option<Pin<Box<tokio::sync::futures::Notified<'_>>>> = None;
        loop {
            {
                let mut core = self.core.lock();
                core.check()?;
                if !core.is_frozen() && (!kind.is_range() || !core.is_claimed(addr, count)) {
                    let units = credit.keep();
                    let append = Append { kind, addr, count, data, crcs, units, claim: None };
                    return self.submit(&mut core, submitted, append);
                }
            }
            match waiting.take() {
                // Listen first, look again, then wait.
                None => {
                    let mut notified = Box::pin(self.claims_free.notified());
                    notified.as_mut().enable();
                    waiting = Some(notified);
                }
                Some(notified) => {
                    self.commit();
                    notified.await;
                }
            }
        }
    }

    fn submit(
        self: &Arc<Self>,
        core: &mut Core,
        submitted: &mut Submitted<'_>,
        append: Append,
    ) -> Result<()> {
        let (entry, retired) = core.append(append)?;
        if let Some(replicas) = &self.replicas {
            replicas.append(core, &entry, &*self.clock);
        }
        let (sink, lsn): (Arc<dyn Sink>, Lsn) = (self.clone(), entry.lsn);
        if let Err(error) = self.journal.submit(&sink, entry) {
            // The LSN is given out and will never retire: the log of this epoch ends here.
            core.stop(error.clone());
            return Err(error);
        }
        submitted.last = submitted.last.max(lsn);
        submitted.waiting.push(retired);
        Ok(())
    }

    /// Changes a part of one cluster: read, modify, write, with the cluster claimed.
    async fn modify(
        self: &Arc<Self>,
        submitted: &mut Submitted<'_>,
        addr: u64,
        skip: usize,
        bytes: &[u8],
    ) -> Result<()> {
        let mut claim = self.claim(addr).await?;
        let retired = self.core.lock().wait_retired();
        if let Some(retired) = retired
            && !mutant::is_on("modify-reads-too-early")
        {
            self.commit();
            retired.await.map_err(|_| Error::unavailable("the volume is closed"))?;
        }
        let mut content = self.read_clusters(addr, 1).await?.to_vec();
        content[skip..skip + bytes.len()].copy_from_slice(bytes);
        let data = Bytes::from(content);
        let crcs: Crcs = std::iter::once(cluster_crc(self.id, addr, &data)).collect();
        let credit = self.credits.acquire(data.len() as u64).await?;
        let mut core = self.core.lock();
        core.check()?;
        let units = credit.keep();
        let append = Append { kind: Kind::Data, addr, count: 1, data, crcs, units, claim: Some(addr) };
        self.submit(&mut core, submitted, append)?;
        claim.handed_over = true;
        Ok(())
    }

    async fn claim(&self, addr: u64) -> Result<Claim<'_>> {
        loop {
            let mut notified = pin!(self.claims_free.notified());
            notified.as_mut().enable();
            {
                let mut core = self.core.lock();
                core.check()?;
                if core.claim(addr) {
                    return Ok(Claim { shared: self, addr, handed_over: false });
                }
            }
            self.commit();
            notified.await;
        }
    }

    /// Returns when everything acknowledged before the call survives a power cut; how far that is.
    pub async fn flush(&self) -> Result<Lsn> {
        let (lsn, mark, peers) = {
            let mut core = self.core.lock();
            core.check()?;
            let (lsn, mark) = core.accepted();
            let peers = self.replicas.is_some() && core.flush_wanted(lsn, self.clock.now());
            (lsn, mark, peers)
        };
        if peers && let Some(replicas) = &self.replicas {
            // They sync while we do.
            replicas.flush(lsn);
        }
        if !self.journal.is_durable(mark) && !mutant::is_on("flush-without-sync") {
            self.journal.sync().await?;
        }
        let flushed = {
            let mut core = self.core.lock();
            core.synced(lsn);
            core.wait_flushed(lsn)
        };
        if let Some(flushed) = flushed
            && !mutant::is_on("flush-without-peers")
            && flushed.await.is_err()
        {
            self.core.lock().check()?;
            return Err(Error::unavailable("the volume is closed"));
        }
        Ok(lsn)
    }

    /// Grows the volume: an entry of the log, durable before it is acknowledged.
    pub async fn resize(self: &Arc<Self>, size: u64) -> Result<()> {
        check_size(size, self.cluster)?;
        let old = self.core.lock().size();
        if size < old {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("the device has {old} bytes: it can grow, not shrink to {size}"),
            ));
        }
        if size > old {
            let mut submitted = Submitted::nothing(self);
            self.append(&mut submitted, Kind::Resize, size, 0, Bytes::new(), Crcs::new()).await?;
            submitted.retired().await?;
        }
        if mutant::is_on("resize-not-durable") {
            return Ok(());
        }
        self.flush().await.map(drop)
    }
}

/// Whether a volume may have this size; the error names the nearest sizes that it may have.
pub fn check_size(size: u64, cluster: u32) -> Result<()> {
    let cluster = u64::from(cluster);
    if size == 0 || size > MAX_SIZE {
        return Err(Error::invalid(format!(
            "a size of {size} bytes is not possible: from {cluster} bytes to 64 TiB ({MAX_SIZE} bytes)"
        )));
    }
    if !size.is_multiple_of(cluster) {
        let below = size / cluster * cluster;
        return Err(Error::invalid(format!(
            "a size of {size} bytes is not a multiple of the cluster size ({cluster}): take {} or {}",
            below.max(cluster),
            below + cluster
        )));
    }
    Ok(())
}
