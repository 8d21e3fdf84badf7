//! Puts and gets that do not give up while there is hope, and tell why they wait.

use super::Shared;
use bytes::Bytes;
use common::object::{Haste, Precondition};
use common::{Error, ErrorKind, ObjectStore, Result, mutant};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

/// The operations of a volume that fail and are tried on, each with its reason. The volume is
/// degraded as long as there is one.
#[derive(Debug, Default)]
pub(crate) struct Trouble(Mutex<Reasons>);

#[derive(Debug, Default)]
struct Reasons {
    next: u64,
    waiting: BTreeMap<u64, String>,
}

impl Trouble {
    /// Why the operation that waits longest does, in words.
    pub fn get(&self) -> Option<String> {
        self.0.lock().waiting.values().next().cloned()
    }
}

/// One operation's reason to wait; it is gone with the operation.
struct Waiting<'a> {
    trouble: &'a Trouble,
    key: Option<u64>,
}

impl Waiting<'_> {
    /// Whether this is the operation's first failure.
    fn set(&mut self, reason: String) -> bool {
        let mut reasons = self.trouble.0.lock();
        let first = self.key.is_none();
        let next = reasons.next;
        let key = *self.key.get_or_insert(next);
        reasons.next += u64::from(first);
        reasons.waiting.insert(key, reason);
        first
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.trouble.0.lock().waiting.remove(&key);
        }
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

/// Times that something is read again whose checksum is wrong: a bit that flipped on the way comes
/// right, one that flipped where it lies does not.
const REREADS: usize = 2;

/// Puts an object that nobody else may have put: one that is there already with the same bytes
/// is ours, its reply was lost. `Conflict` when other bytes are there.
pub(crate) async fn put_own(store: &dyn ObjectStore, key: &str, parts: &[Bytes]) -> Result<()> {
    put_own_at(store, key, parts, Haste::Full).await
}

async fn put_own_at(store: &dyn ObjectStore, key: &str, parts: &[Bytes], haste: Haste) -> Result<()> {
    let precondition = match mutant::is_on("put-overwrites") {
        true => Precondition::None,
        false => Precondition::IfAbsent,
    };
    match store.put_parts(key, parts, precondition, haste).await {
        Err(error) if error.kind == ErrorKind::Unavailable && mutant::is_on("lost-put-counts") => Ok(()),
        Err(error) if error.kind == ErrorKind::Conflict && mutant::is_on("own-reply-lost-is-an-error") => {
            Err(error)
        }
        Err(error) if error.kind == ErrorKind::Conflict => match store.get(key).await {
            Ok(there) if there == parts.concat() => Ok(()),
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
    pub async fn persist<T, F>(&self, what: &str, op: impl FnMut() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        self.persist_while(may_pass, what, op).await
    }

    async fn persist_while<T, F>(
        &self,
        may_pass: impl Fn(ErrorKind) -> bool,
        what: &str,
        mut op: impl FnMut() -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let mut wait = FIRST_WAIT;
        let mut rereads = 0;
        let mut waiting = Waiting { trouble: &self.trouble, key: None };
        loop {
            match op().await {
                Err(error) if error.kind == ErrorKind::Corrupt && rereads < REREADS => {
                    rereads += 1;
                    tracing::warn!(volume = %self.id, %error, "{what}: reading again");
                }
                Err(error) if may_pass(error.kind) => {
                    self.core.lock().check()?;
                    if waiting.set(format!("{what}: {error}")) {
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
                    if waiting.key.is_some() && outcome.is_ok() {
                        tracing::info!(volume = %self.id, "{what} succeeds again");
                    }
                    return outcome;
                }
            }
        }
    }

    /// Puts an object of ours, for as long as it takes.
    pub async fn persist_put(&self, what: &str, key: &str, parts: &[Bytes]) -> Result<()> {
        self.persist_put_at(what, key, parts, Haste::Full).await
    }

    /// As [`Shared::persist_put`], in so much haste.
    pub async fn persist_put_at(&self, what: &str, key: &str, parts: &[Bytes], haste: Haste) -> Result<()> {
        self.persist(what, || put_own_at(&*self.store, key, parts, haste)).await
    }

    /// As [`Shared::persist_put_at`], but fails with `NoSpace` on a full store: for what can do without.
    pub async fn persist_put_if_room(
        &self,
        what: &str,
        key: &str,
        parts: &[Bytes],
        haste: Haste,
    ) -> Result<()> {
        let may_pass = |kind| kind != ErrorKind::NoSpace && may_pass(kind);
        self.persist_while(may_pass, what, || put_own_at(&*self.store, key, parts, haste)).await
    }
}
