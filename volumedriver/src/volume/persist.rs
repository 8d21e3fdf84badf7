//! Puts and gets that do not give up while there is hope, and tell why they wait.

use super::Shared;
use bytes::Bytes;
use common::object::Precondition;
use common::{Error, ErrorKind, ObjectStore, Result};
use parking_lot::Mutex;
use std::future::Future;
use std::time::Duration;

/// What keeps a volume's background work from going on, in words; `None` when nothing does.
#[derive(Debug, Default)]
pub(crate) struct Trouble(Mutex<Option<String>>);

impl Trouble {
    pub fn get(&self) -> Option<String> {
        self.0.lock().clone()
    }

    fn set(&self, reason: Option<String>) -> bool {
        let mut trouble = self.0.lock();
        let news = trouble.is_some() != reason.is_some();
        *trouble = reason;
        news
    }
}

/// The first and the longest wait between two tries.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Whether trying the same again may help. A wrong key or a full disk is mended by a person,
/// without anyone telling us; a conflict or a checksum is not.
fn may_pass(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Unavailable | ErrorKind::NoSpace | ErrorKind::Denied | ErrorKind::Internal)
}

/// Puts an object that nobody else may have put: one that is there already with the same bytes
/// is ours, its reply was lost. `Conflict` when other bytes are there.
pub(crate) async fn put_own(store: &dyn ObjectStore, key: &str, data: &Bytes) -> Result<()> {
    match store.put(key, data.clone(), Precondition::IfAbsent).await {
        Err(error) if error.kind == ErrorKind::Conflict => match store.get(key).await {
            Ok(there) if there == *data => Ok(()),
            Ok(_) => Err(error),
            // Between the two somebody deleted it, or the store does not keep its word: ask again.
            Err(e) if e.kind == ErrorKind::NotFound => {
                Err(Error::unavailable(format!("'{key}' comes and goes")))
            }
            Err(e) => Err(e),
        },
        outcome => outcome,
    }
}

impl Shared {
    /// Tries `op` until it succeeds, fails for good, or the volume stops; the volume's state tells
    /// the reason meanwhile.
    pub async fn persist<T, F>(&self, what: &str, mut op: impl FnMut() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let mut wait = FIRST_WAIT;
        loop {
            match op().await {
                Err(error) if may_pass(error.kind) => {
                    self.core.lock().check()?;
                    if self.trouble.set(Some(format!("{what}: {error}"))) {
                        tracing::warn!(volume = %self.id, %error, "{what} does not succeed; trying on");
                    }
                    // Half of it by chance, so that many volumes do not come back as one.
                    let half = wait.as_millis() as u64 / 2;
                    let chance = self.clock.random() % (half + 1);
                    self.clock.sleep(Duration::from_millis(half + chance)).await;
                    self.core.lock().check()?;
                    wait = (wait * 2).min(LONGEST_WAIT);
                }
                outcome => {
                    if self.trouble.set(None) {
                        tracing::info!(volume = %self.id, "{what} succeeds again");
                    }
                    return outcome;
                }
            }
        }
    }

    /// Puts an object of ours, for as long as it takes.
    pub async fn persist_put(&self, what: &str, key: &str, data: &Bytes) -> Result<()> {
        self.persist(what, || put_own(&*self.store, key, data)).await
    }
}
