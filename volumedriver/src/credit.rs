//! Dirty bytes are credits: what is acknowledged and not yet on the backend is bounded per
//! device, per vPool and per volume. Who finds none waits in line; what commits gives back.

use common::{Error, Result, VolumeId};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{Semaphore, TryAcquireError};

/// Credits are counted in sectors, so that an account fits the semaphore.
const UNIT: u64 = 512;

/// What a record's header costs the journal, about.
const OVERHEAD: u64 = 512;

/// A bounded amount of dirty bytes with a fair queue.
#[derive(Debug)]
pub(crate) struct Account {
    limit: u64,
    free: Semaphore,
    /// Taken beyond the limit (by recovery, which can't wait): paid before anything is given back.
    debt: AtomicU64,
}

impl Account {
    pub fn new(limit_bytes: u64) -> Arc<Self> {
        let limit = (limit_bytes / UNIT).clamp(1, u64::from(u32::MAX).min(Semaphore::MAX_PERMITS as u64));
        Arc::new(Self { limit, free: Semaphore::new(limit as usize), debt: AtomicU64::new(0) })
    }

    /// What may be taken in all, in bytes.
    pub fn limit_bytes(&self) -> u64 {
        self.limit * UNIT
    }

    fn units(&self, bytes: u64) -> u64 {
        (bytes + OVERHEAD).div_ceil(UNIT)
    }

    async fn acquire(&self, units: u64) -> Result<()> {
        let units = units.min(self.limit) as u32;
        match self.free.try_acquire_many(units) {
            Ok(permit) => permit.forget(),
            Err(TryAcquireError::NoPermits) => match self.free.acquire_many(units).await {
                Ok(permit) => permit.forget(),
                Err(_) => return Err(Error::unavailable("the volume is closing")),
            },
            Err(TryAcquireError::Closed) => return Err(Error::unavailable("the volume is closing")),
        }
        Ok(())
    }

    fn take_now(&self, units: u64) {
        let units = units.min(self.limit);
        let got = self.free.forget_permits(units as usize) as u64;
        self.debt.fetch_add(units - got, Ordering::Relaxed);
    }

    fn release(&self, units: u64) {
        let mut units = units.min(self.limit);
        let pay = |debt: u64| Some(debt - debt.min(units));
        let paid = match self.debt.fetch_update(Ordering::Relaxed, Ordering::Relaxed, pay) {
            Ok(debt) | Err(debt) => debt.min(units),
        };
        units -= paid;
        if units > 0 {
            self.free.add_permits(units as usize);
        }
    }

    fn try_acquire(&self, units: u64) -> bool {
        match self.free.try_acquire_many(units.min(self.limit) as u32) {
            Ok(permit) => {
                permit.forget();
                true
            }
            Err(_) => false,
        }
    }

    /// Nobody gets credit any more; who waits gets an error.
    pub fn close(&self) {
        self.free.close();
    }

    /// Share of the account that is taken, 0.0 to 1.0.
    pub fn fill(&self) -> f64 {
        1.0 - self.free.available_permits() as f64 / self.limit as f64
    }
}

/// The three accounts a write must find credit in.
#[derive(Debug, Clone)]
pub(crate) struct Credits {
    pub volume: Arc<Account>,
    pub pool: Arc<Account>,
    pub device: Arc<Account>,
}

/// Credit that was taken for one entry; given back when dropped, or kept in the log as a number.
pub(crate) struct Credit<'a> {
    credits: &'a Credits,
    levels: u8,
    units: u64,
}

impl Credits {
    /// Share of the account that is taken most, 0.0 to 1.0.
    pub fn fill(&self) -> f64 {
        [&self.volume, &self.pool, &self.device].map(|account| account.fill()).into_iter().fold(0.0, f64::max)
    }

    /// Waits for credit for an entry with `bytes` of payload, first in line first.
    pub async fn acquire(&self, bytes: u64) -> Result<Credit<'_>> {
        let mut credit = Credit { credits: self, levels: 0, units: self.device.units(bytes) };
        for account in [&self.volume, &self.pool, &self.device] {
            account.acquire(credit.units).await?;
            credit.levels += 1;
        }
        Ok(credit)
    }

    /// Credit for an entry with `bytes` of payload, if there is some right now.
    pub fn try_acquire(&self, bytes: u64) -> Option<Credit<'_>> {
        let mut credit = Credit { credits: self, levels: 0, units: self.device.units(bytes) };
        for account in [&self.volume, &self.pool, &self.device] {
            if !account.try_acquire(credit.units) {
                return None;
            }
            credit.levels += 1;
        }
        Some(credit)
    }

    /// Takes credit for a recovered entry, whether there is any or not; the units to release.
    pub fn take_now(&self, bytes: u64) -> u64 {
        let units = self.device.units(bytes);
        for account in [&self.volume, &self.pool, &self.device] {
            account.take_now(units);
        }
        units
    }

    /// Gives `units` back; a sum of several entries is right as long as each was below the limits.
    pub fn release(&self, units: u64) {
        for account in [&self.volume, &self.pool, &self.device] {
            account.release(units);
        }
    }

    /// The largest payload that one entry may have, so that it fits every account.
    pub fn max_entry(&self) -> u64 {
        let units = self.volume.limit.min(self.pool.limit).min(self.device.limit);
        (units * UNIT).saturating_sub(OVERHEAD)
    }
}

/// Credit of closed volumes. What they left in the write buffer takes its room, until they are opened
/// again, and take it anew, or nobody will ask for it any more.
#[derive(Debug, Default)]
pub(crate) struct Left(Mutex<HashMap<VolumeId, (Credits, u64)>>);

impl Left {
    /// A volume closed and left entries with so much credit.
    pub fn put(&self, volume: VolumeId, credits: &Credits, units: u64) {
        if units > 0 {
            self.0.lock().insert(volume, (credits.clone(), units));
        }
    }

    /// Gives back what the volume left.
    pub fn settle(&self, volume: VolumeId) {
        let left = self.0.lock().remove(&volume);
        if let Some((credits, mut units)) = left {
            // A recovered volume may hold more than an account has.
            while units > 0 {
                let part = units.min(credits.volume.limit);
                credits.release(part);
                units -= part;
            }
        }
    }
}

impl Credit<'_> {
    /// Hands the credit to the log, which releases that many units later.
    pub fn keep(mut self) -> u64 {
        self.levels = 0;
        self.units
    }
}

impl Drop for Credit<'_> {
    fn drop(&mut self) {
        let accounts = [&self.credits.volume, &self.credits.pool, &self.credits.device];
        for account in &accounts[..self.levels as usize] {
            account.release(self.units);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credits(limit: u64) -> Credits {
        Credits { volume: Account::new(limit), pool: Account::new(limit), device: Account::new(limit) }
    }

    #[tokio::test]
    async fn a_writer_waits_until_something_commits() {
        let credits = credits(8192);
        let units = credits.acquire(4096).await.unwrap().keep();
        let second = credits.acquire(4096);
        tokio::pin!(second);
        assert!(futures::poll!(&mut second).is_pending());
        credits.release(units);
        assert!(futures::poll!(&mut second).is_ready());
    }

    #[tokio::test]
    async fn recovered_entries_beyond_the_limit_are_paid_first() {
        let credits = credits(8192);
        let first = credits.take_now(4096);
        let second = credits.take_now(4096);
        credits.release(first);
        assert!(futures::poll!(Box::pin(credits.acquire(4096))).is_pending(), "the debt is paid first");
        credits.release(second);
        assert!(futures::poll!(Box::pin(credits.acquire(4096))).is_ready());
    }

    #[tokio::test]
    async fn credit_of_a_write_that_was_given_up_comes_back() {
        let credits = credits(4608);
        drop(credits.acquire(4096).await.unwrap());
        assert!(futures::poll!(Box::pin(credits.acquire(4096))).is_ready());
    }
}
