//! Whose turn it is to read: clients at once, as many as a disk has use for; whoever can wait, a few at a time and not
//! beside many clients.

use common::osd::Priority;
use common::{Clock, Error, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};

/// Reads of clients under way.
const CLIENTS: usize = 256;
/// Reads of others under way.
const OTHERS: usize = 2;
/// What they wait while clients read, each time: their share is small, and never nothing.
const GIVE_WAY: Duration = Duration::from_millis(2);

/// Whose turn it is.
pub struct Gate {
    clock: Arc<dyn Clock>,
    clients: Semaphore,
    others: Semaphore,
    reading: AtomicUsize,
}

/// Somebody's turn, until it is dropped.
pub struct Turn<'g> {
    _permit: SemaphorePermit<'g>,
    of: Option<&'g AtomicUsize>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(reading) = self.of {
            reading.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Gate {
    pub fn new(clock: Arc<dyn Clock>) -> Gate {
        Gate {
            clock,
            clients: Semaphore::new(CLIENTS),
            others: Semaphore::new(OTHERS),
            reading: AtomicUsize::new(0),
        }
    }

    /// Waits for its turn; after `deadline` there is none.
    pub async fn enter(&self, priority: Priority, deadline: Duration) -> Result<Turn<'_>> {
        let closed = |_| Error::internal("the gate of a storage daemon is closed");
        let turn = match priority {
            Priority::Client => {
                let permit = self.clients.acquire().await.map_err(closed)?;
                self.reading.fetch_add(1, Ordering::Relaxed);
                Turn { _permit: permit, of: Some(&self.reading) }
            }
            Priority::Maintenance => {
                let permit = self.others.acquire().await.map_err(closed)?;
                if self.reading.load(Ordering::Relaxed) > 0 {
                    self.clock.sleep(GIVE_WAY).await;
                }
                Turn { _permit: permit, of: None }
            }
        };
        if self.clock.now() > deadline {
            return Err(Error::unavailable("the request came too late to be done in time"));
        }
        Ok(turn)
    }
}
