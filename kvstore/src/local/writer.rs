//! The one thread that writes the registry: groups transactions under one sync.

use super::{REVISION_KEY, Store, data_key, synced};
use common::kv::{KvAssert, KvOp};
use common::{Error, Result};
use rocksdb::{WriteBatch, WriteOptions};
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// The most transactions of one group.
const GROUP: usize = 64;
/// A group takes no further transaction once its values have this many bytes.
const GROUP_BYTES: usize = 8 << 20;

/// A transaction that waits for the writer.
pub(super) struct Request {
    pub asserts: Vec<KvAssert>,
    pub ops: Vec<KvOp>,
    pub reply: oneshot::Sender<Result<u64>>,
}

pub(super) struct Writer {
    store: Arc<Store>,
    /// The last revision given, also when its transaction failed on its way to the disk: what
    /// reached the log may come back, so its number is not given twice.
    revision: u64,
    options: WriteOptions,
}

/// What the transactions of a group have changed so far: the revision of each key, `None` when deleted.
type Pending = HashMap<String, Option<u64>>;

impl Writer {
    pub(super) fn new(store: Arc<Store>, revision: u64) -> Self {
        Self { store, revision, options: synced() }
    }

    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Request>) {
        while let Some(first) = queue.blocking_recv() {
            self.group(first, &mut queue);
        }
    }

    fn group(&mut self, first: Request, queue: &mut mpsc::Receiver<Request>) {
        let mut batch = WriteBatch::default();
        let mut pending = Pending::new();
        let mut accepted = Vec::new();
        let mut refused = Vec::new();
        let mut next = Some(first);
        while let Some(request) = next {
            match self.check(&request.asserts, &pending) {
                Ok(()) => {
                    self.revision += 1;
                    self.apply(request.ops, &mut batch, &mut pending);
                    accepted.push((request.reply, self.revision));
                }
                // It may have failed because of a transaction of this group, so it is answered
                // when that one is durable.
                Err(error) => refused.push((request.reply, error)),
            }
            let full = accepted.len() + refused.len() >= GROUP || batch.size_in_bytes() >= GROUP_BYTES;
            next = if full { None } else { queue.try_recv().ok() };
        }
        let outcome = if accepted.is_empty() { Ok(()) } else { self.write(batch) };
        // A receiver that is gone has stopped waiting; the transaction happened all the same.
        for (reply, revision) in accepted {
            let _ = reply.send(outcome.clone().map(|()| revision));
        }
        for (reply, error) in refused {
            let _ = reply.send(Err(outcome.clone().err().unwrap_or(error)));
        }
    }

    fn check(&self, asserts: &[KvAssert], pending: &Pending) -> Result<()> {
        for assert in asserts {
            let (KvAssert::Absent(key) | KvAssert::Revision(key, _)) = assert else {
                return Err(super::no_leases());
            };
            let have = match pending.get(key) {
                Some(revision) => *revision,
                None => self.store.get(key)?.map(|pair| pair.revision),
            };
            match assert {
                KvAssert::Absent(_) if have.is_some() => {
                    return Err(Error::conflict(format!("registry key '{key}' exists")));
                }
                KvAssert::Revision(_, expected) if have != Some(*expected) => {
                    let found = match have {
                        Some(revision) => format!("has revision {revision}"),
                        None => "does not exist".to_string(),
                    };
                    return Err(Error::conflict(format!(
                        "registry key '{key}' {found}, expected revision {expected}: it changed meanwhile"
                    )));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn apply(&self, ops: Vec<KvOp>, batch: &mut WriteBatch, pending: &mut Pending) {
        for op in ops {
            match op {
                KvOp::Put(key, value) => {
                    let mut stored = Vec::with_capacity(value.len() + 8);
                    stored.extend_from_slice(&self.revision.to_le_bytes());
                    stored.extend_from_slice(&value);
                    batch.put(data_key(&key), stored);
                    pending.insert(key, Some(self.revision));
                }
                KvOp::Delete(key) => {
                    batch.delete(data_key(&key));
                    pending.insert(key, None);
                }
                // Refused where the transaction came in.
                KvOp::PutWithLease(..) => {}
            }
        }
    }

    fn write(&self, mut batch: WriteBatch) -> Result<()> {
        batch.put(REVISION_KEY, self.revision.to_le_bytes());
        self.store.db.write_opt(batch, &self.options).map_err(|e| {
            let error = self.store.fail("write to the registry", &e);
            tracing::warn!(%error, "registry transactions failed");
            error
        })
    }
}
