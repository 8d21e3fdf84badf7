//! Requests with an answer: those of a takeover, and of who cleans up.

use super::{Client, Shared};
use crate::entry::{Entry, Packed};
use crate::registration::LogInfo;
use crate::storage::Key;
use crate::wire::{HEAD, Reply, Request};
use common::blocking::Lookout;
use common::{Epoch, Error, Lsn, Result, VolumeId};
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use tokio::sync::{Notify, oneshot};

/// Who waits for what. Whoever waits gives up by itself ([`super::Settings::answer`]): a service may be alive while its
/// disk is not.
#[derive(Default)]
pub(super) struct Calls {
    waiting: Mutex<HashMap<u32, Waiter>>,
    next: std::sync::atomic::AtomicU32,
}

enum Waiter {
    Once(oneshot::Sender<Result<Reply>>),
    Stream(Arc<Stream>),
}

/// What came of a read; bounded by the credit that was given.
#[derive(Default)]
struct Stream {
    state: Mutex<(VecDeque<Packed>, Option<Result<()>>)>,
    more: Notify,
}

fn gone() -> Error {
    Error::unavailable("the connection to the DTL broke")
}

fn late() -> Error {
    Error::unavailable("the DTL gave no answer in time")
}

impl Calls {
    /// A number for a channel or a request, never used before on this connection.
    pub fn id(&self) -> u32 {
        self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
    }

    /// Gives a reply to who waits for it; `false`: nobody does.
    pub fn answer(&self, id: u32, reply: Reply) -> bool {
        let mut waiting = self.waiting.lock();
        match waiting.get(&id) {
            None => return false,
            Some(Waiter::Stream(stream)) => {
                let end = {
                    let mut state = stream.state.lock();
                    match reply {
                        Reply::Data(packed) => state.0.push_back(packed),
                        Reply::Failed(kind, message) => state.1 = Some(Err(Error::new(kind, message))),
                        _ => state.1 = Some(Ok(())),
                    }
                    state.1.is_some()
                };
                stream.more.notify_one();
                if end {
                    waiting.remove(&id);
                }
            }
            Some(Waiter::Once(_)) => {
                if let Some(Waiter::Once(waiter)) = waiting.remove(&id) {
                    let reply = match reply {
                        Reply::Failed(kind, message) => Err(Error::new(kind, message)),
                        other => Ok(other),
                    };
                    let _ = waiter.send(reply);
                }
            }
        }
        true
    }

    /// The connection is gone, and all answers with it.
    pub fn fail_all(&self) {
        for (_, waiter) in self.waiting.lock().drain() {
            match waiter {
                Waiter::Once(waiter) => {
                    let _ = waiter.send(Err(gone()));
                }
                Waiter::Stream(stream) => {
                    stream.state.lock().1 = Some(Err(gone()));
                    stream.more.notify_one();
                }
            }
        }
    }
}

/// A place among those who wait, given back however the waiting ends.
struct Waiting<'c>(&'c Calls, u32);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.lock().remove(&self.1);
    }
}

impl Client {
    /// Waits for a connection, sends, and waits for the answer. A frozen service holds up nobody for ever: what it
    /// did is unknown then, as it is when the connection breaks.
    async fn call(&self, request: Request) -> Result<Reply> {
        let shared = &self.shared;
        self.wait_connected().await?;
        let (sender, answer) = oneshot::channel();
        let id = shared.calls.id();
        shared.calls.waiting.lock().insert(id, Waiter::Once(sender));
        let _waiting = Waiting(&shared.calls, id);
        if !shared.link.request(&request, id) {
            return Err(gone());
        }
        shared.link.drive();
        shared.leave();
        tokio::select! {
            biased;
            answer = answer => answer.unwrap_or_else(|_| Err(gone())),
            () = shared.clock.sleep(shared.settings.answer) => Err(late()),
        }
    }

    async fn wait_connected(&self) -> Result<()> {
        let mut connected = self.shared.connected.subscribe();
        tokio::select! {
            biased;
            is = connected.wait_for(|c| *c) => is.map(|_| ()).map_err(|_| gone()),
            () = self.shared.clock.sleep(self.shared.settings.timeout) => Err(Error::unavailable("the DTL can't be reached")),
        }
    }

    async fn logs(&self, request: Request) -> Result<(Epoch, Vec<LogInfo>)> {
        match self.call(request).await? {
            Reply::Logs(floor, logs) => Ok((floor, logs)),
            _ => Err(Error::internal("the DTL answered something else")),
        }
    }

    /// Refuses every epoch below `epoch` there, for ever; returns the floor and the logs.
    ///
    /// # Errors
    /// It may or may not be sealed.
    pub async fn seal(&self, volume: VolumeId, epoch: Epoch) -> Result<(Epoch, Vec<LogInfo>)> {
        self.logs(Request::Seal(volume, epoch)).await
    }

    /// What is there of a volume: the floor and the logs.
    ///
    /// # Errors
    /// Of the connection.
    pub async fn status(&self, volume: VolumeId) -> Result<(Epoch, Vec<LogInfo>)> {
        self.logs(Request::Status(volume)).await
    }

    /// The backend has everything up to `lsn` of a sealed log.
    ///
    /// # Errors
    /// `NotFound`: there is no such log.
    pub async fn trim_log(&self, key: Key, lsn: Lsn) -> Result<()> {
        self.call(Request::TrimLog(key, lsn)).await.map(|_| ())
    }

    /// Drops the sealed logs of epochs below `below`; `u64::MAX` when the volume was deleted and nobody can own it.
    ///
    /// # Errors
    /// `Conflict`: one of them is not sealed.
    pub async fn forget(&self, volume: VolumeId, below: Epoch) -> Result<()> {
        self.call(Request::Forget(volume, below)).await.map(|_| ())
    }

    /// Reads a log from `from` on.
    ///
    /// # Errors
    /// Of the connection; those of the log come with the entries.
    pub async fn read(&self, key: Key, from: Lsn) -> Result<Reading> {
        self.wait_connected().await?;
        let shared = self.shared.clone();
        let stream = Arc::new(Stream::default());
        let id = shared.calls.id();
        shared.calls.waiting.lock().insert(id, Waiter::Stream(stream.clone()));
        if !shared.link.request(&Request::Read(key, from, shared.settings.read_ahead), id) {
            shared.calls.waiting.lock().remove(&id);
            return Err(gone());
        }
        shared.link.drive();
        shared.leave();
        Ok(Reading { shared, stream, id, key, next: from, taken: 0 })
    }
}

/// Entries of a log as they come.
pub struct Reading {
    shared: Arc<Shared>,
    stream: Arc<Stream>,
    id: u32,
    key: Key,
    next: Lsn,
    taken: u32,
}

impl Reading {
    /// The next entry, checked; `None` at the end of the log.
    ///
    /// # Errors
    /// What ended it before.
    pub async fn next(&mut self) -> Result<Option<Entry>> {
        loop {
            let packed = {
                let mut state = self.stream.state.lock();
                match state.0.pop_front() {
                    Some(packed) => Some(packed),
                    None => match state.1.clone() {
                        Some(Ok(())) => return Ok(None),
                        Some(Err(error)) => return Err(error),
                        None => None,
                    },
                }
            };
            let Some(packed) = packed else {
                tokio::select! {
                    biased;
                    () = self.stream.more.notified() => {}
                    () = self.shared.clock.sleep(self.shared.settings.answer) => return Err(late()),
                }
                continue;
            };
            self.taken += (packed.bytes.len() + HEAD) as u32;
            if self.taken >= self.shared.settings.read_ahead / 2 {
                self.shared.link.request(&Request::Credit(std::mem::take(&mut self.taken)), self.id);
                self.shared.link.drive();
            }
            let entry = packed
                .unpack()
                .map_err(|why| Error::corrupt(format!("volume {}: {why}", self.key.volume)))?;
            if entry.lsn != self.next || entry.volume != self.key.volume || entry.epoch > self.key.epoch {
                return Err(Error::corrupt(format!(
                    "volume {}: the DTL sent ({}, {}) where {} was due",
                    self.key.volume, entry.epoch, entry.lsn, self.next
                )));
            }
            self.next = self.next.next();
            return Ok(Some(entry));
        }
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        // What comes yet is thrown away. The service has only so many reads of one connection.
        if self.shared.calls.waiting.lock().remove(&self.id).is_some() {
            self.shared.link.request(&Request::Close, self.id);
            self.shared.link.drive();
        }
    }
}
