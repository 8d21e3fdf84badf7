//! The client of the replicated registry: `common::Kv`, and what goes beyond it.
//!
//! | room | what |
//! |---|---|
//! | `connection` | requests and responses on one connection |
//! | `route` | who leads: found, followed, tried again until the deadline |
//! | `session` | which request is which, so that one is executed once |
//! | [`lease`] | a lease that is kept, and until when its holder may believe in it |
//! | [`watch`] | changes, in order, from a revision on |
//!
//! Does not own: what an error means to whoever asked. Each says whether the request may have happened.

mod connection;
pub mod lease;
mod route;
mod session;
#[cfg(test)]
mod tests;
pub mod watch;

use crate::backup::{RESTORED_KEY, Restored};
use crate::machine::{Answer, Assert, Command, LeaseId, Op, Page, Range};
use crate::node::request::{Request, Response};
use crate::node::{Change, Handle, Status};
use async_trait::async_trait;
use common::kv::{Kv, KvAssert, KvChange, KvChanges, KvOp, KvPair, Registry};
use common::{Clock, Error, ErrorKind, Result};
use route::Route;
use session::Session;
use std::sync::Arc;
use std::time::Duration;
use watch::Watched;

/// How a client finds its group, and how long it tries.
#[derive(Clone)]
pub struct ClientConfig {
    /// The group that must answer; 0 is whichever answers first, and from then on that one.
    pub group: u128,
    /// Where members listen (host:port); one that is up is enough.
    pub addresses: Vec<String>,
    /// A member in this process: asked first, without a network.
    pub local: Option<Handle>,
    /// TLS, if it is used.
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// A request that has no answer by then fails.
    pub deadline: Duration,
    /// Where leases are kept alive, on connections of their own; without it, where they are held. What blocks the threads of
    /// other work must not end a lease.
    pub hearts: Option<tokio::runtime::Handle>,
}

impl ClientConfig {
    /// Asks members at `addresses`, for at most ten seconds each time.
    pub fn new(addresses: Vec<String>) -> Self {
        Self { group: 0, addresses, local: None, tls: None, deadline: Duration::from_secs(10), hearts: None }
    }
}

/// A client of the replicated registry. Clones share connection and session.
#[derive(Clone)]
pub struct Client {
    route: Arc<Route>,
    session: Arc<Session>,
    clock: Arc<dyn Clock>,
    deadline: Duration,
}

fn unexpected(response: &Response) -> Error {
    match response {
        Response::Failed { kind, message } => Error::new(*kind, message.clone()),
        other => Error::internal(format!("the registry answered what does not fit the question: {other:?}")),
    }
}

impl Client {
    /// A client; it connects when it is asked something.
    pub fn new(config: ClientConfig, clock: Arc<dyn Clock>) -> Self {
        let deadline = config.deadline;
        Self {
            route: Arc::new(Route::new(config, clock.clone())),
            session: Arc::new(Session::default()),
            clock,
            deadline,
        }
    }

    /// The same client, for requests that fail when they have no answer after `deadline`.
    pub fn within(&self, deadline: Duration) -> Self {
        Self { deadline, ..self.clone() }
    }

    pub(crate) async fn ask(&self, request: Request) -> Result<Response> {
        let until = self.clock.now() + self.deadline;
        Ok(self.route.ask(&request, until).await?.response)
    }

    async fn execute(
        &self,
        command: impl Fn(crate::machine::RequestId) -> Command + Send + Sync,
    ) -> Result<Answer> {
        let until = self.clock.now() + self.deadline;
        self.session.execute(&self.route, &*self.clock, until, &command).await
    }

    /// Checks every assert and then does every operation, all or nothing, once. The result is the transaction's revision.
    ///
    /// Errors: `Conflict` when an assert failed; `Invalid` beyond the limits; `Unavailable` when there was no answer in time:
    /// the message says whether it may have happened.
    pub async fn transact(&self, asserts: Vec<Assert>, ops: Vec<Op>) -> Result<u64> {
        crate::machine::command::check_txn(&asserts, &ops)?;
        let command = |request| Command::Txn { request, asserts: asserts.clone(), ops: ops.clone() };
        match self.execute(command).await? {
            Answer::Done { revision } => Ok(revision),
            other => Err(not_done(other)),
        }
    }

    /// The pairs of `range`, as they are at one moment.
    pub async fn range(&self, range: Range) -> Result<Page> {
        match self.ask(Request::Range(range)).await? {
            Response::Page(page) => Ok(page),
            other => Err(unexpected(&other)),
        }
    }

    /// A new lease, and the time to live that it was asked with, counted from before the request was sent.
    pub async fn grant(&self, ttl: Duration) -> Result<LeaseId> {
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        match self.execute(|request| Command::Grant { request, ttl_ms }).await? {
            Answer::Granted { lease } => Ok(lease),
            other => Err(not_done(other)),
        }
    }

    /// Ends a lease, with all keys that are bound to it.
    pub async fn revoke(&self, lease: LeaseId) -> Result<u64> {
        match self.execute(|request| Command::Revoke { request, lease }).await? {
            Answer::Done { revision } => Ok(revision),
            other => Err(not_done(other)),
        }
    }

    /// Tells the registry that the holder of `lease` lives; the result is its time to live from the sending of this.
    ///
    /// Errors: `Fenced` when it has ended.
    pub async fn keep_alive(&self, lease: LeaseId) -> Result<Duration> {
        match self.ask(Request::KeepAlive { lease }).await? {
            Response::Alive { ttl_ms } => Ok(Duration::from_millis(ttl_ms)),
            other => Err(unexpected(&other)),
        }
    }

    /// That this registry was restored from a backup, unless it never was (or somebody has removed the note, since it is
    /// dealt with). Then statuses in it say what was, and leases of before mean nothing.
    pub async fn restored(&self) -> Result<Option<Restored>> {
        let Some(pair) = self.get(RESTORED_KEY).await? else { return Ok(None) };
        let restored = std::str::from_utf8(&pair.value).ok().and_then(Restored::parse);
        restored.map(Some).ok_or_else(|| {
            Error::corrupt(format!(
                "registry key '{RESTORED_KEY}' does not say what a restored registry says"
            ))
        })
    }

    /// The group that it talks to, once somebody has answered.
    pub fn group(&self) -> Option<u128> {
        self.route.group()
    }

    /// How the member that answers first sees the group; it need not lead.
    pub async fn status(&self) -> Result<Status> {
        match self.ask(Request::Status).await? {
            Response::Status(status) => {
                self.route.learn(&status);
                Ok(status)
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Changes the membership; returns when the change is done.
    ///
    /// Errors: `Unavailable` when another one is under way, a new voter has not caught up, or it is not known what became of
    /// it (ask for the status); `Conflict`, `Invalid`, `NotFound`.
    pub async fn change(&self, changes: Vec<Change>) -> Result<()> {
        let until = self.clock.now() + self.deadline;
        match self.route.ask_once(&Request::Change(changes), until).await?.response {
            Response::Done => Ok(()),
            Response::Lost => Err(Error::unavailable(
                "the registry's leader changed meanwhile: look at its members to see what became of the change",
            )),
            other => Err(unexpected(&other)),
        }
    }

    /// Asks the leader to hand the lead to `member`; it may not succeed.
    pub async fn transfer(&self, member: u64) -> Result<()> {
        match self.ask(Request::Transfer { to: member }).await? {
            Response::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }
}

fn not_done(answer: Answer) -> Error {
    match answer {
        Answer::Refused { kind, message, .. } => Error::new(kind, message),
        other => Error::internal(format!("the registry answered what does not fit the command: {other:?}")),
    }
}

#[async_trait]
impl Kv for Client {
    async fn get(&self, key: &str) -> Result<Option<KvPair>> {
        match self.ask(Request::Get { key: key.to_string() }).await? {
            Response::Pair { pair, .. } => Ok(pair),
            other => Err(unexpected(&other)),
        }
    }

    async fn scan(&self, prefix: &str) -> Result<Vec<KvPair>> {
        Ok(self.range(Range::prefix(prefix)).await?.pairs)
    }

    async fn page(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<KvPair>> {
        let limit = u32::try_from(limit).unwrap_or(u32::MAX);
        if limit == 0 {
            return Ok(Vec::new());
        }
        let range = Range::prefix(prefix).limit(limit);
        // A key in front of the prefix would begin the range there.
        let range = match after.filter(|after| *after >= prefix) {
            Some(after) => range.after(after),
            None => range,
        };
        Ok(self.range(range).await?.pairs)
    }

    async fn txn(&self, asserts: Vec<KvAssert>, ops: Vec<KvOp>) -> Result<u64> {
        let asserts = asserts.into_iter().map(|assert| match assert {
            KvAssert::Absent(key) => Assert::Absent(key),
            KvAssert::Revision(key, revision) => Assert::Revision(key, revision),
            KvAssert::LeaseLive(lease) => Assert::LeaseLive(LeaseId(lease)),
            KvAssert::LeaseEnded(lease) => Assert::LeaseExpired(LeaseId(lease)),
        });
        let ops = ops.into_iter().map(|op| match op {
            KvOp::Put(key, value) => Op::Put { key, value, lease: None },
            KvOp::PutWithLease(key, value, lease) => Op::Put { key, value, lease: Some(LeaseId(lease)) },
            KvOp::Delete(key) => Op::Delete { key },
        });
        self.transact(asserts.collect(), ops.collect()).await
    }
}

#[async_trait]
impl Registry for Client {
    async fn snapshot(&self, prefix: &str) -> Result<(Vec<KvPair>, u64)> {
        let page = self.range(Range::prefix(prefix)).await?;
        Ok((page.pairs, page.revision))
    }

    async fn changes(&self, prefix: &str, from: u64) -> Result<KvChanges> {
        let mut watch = self.watch(prefix, from);
        Ok(match watch.next().await? {
            Watched::Events(events) => {
                let change = |event: crate::machine::Event| KvChange {
                    key: event.key,
                    value: event.value,
                    revision: event.revision,
                };
                KvChanges::Changed(events.into_iter().map(change).collect(), watch.position())
            }
            Watched::Compacted { .. } => KvChanges::Forgotten,
        })
    }

    async fn hold(&self, ttl: Duration) -> Result<Arc<dyn common::kv::Lease>> {
        Ok(Arc::new(Client::hold(self, ttl).await?))
    }

    async fn end_lease(&self, lease: u64) -> Result<()> {
        match self.revoke(LeaseId(lease)).await {
            Err(e) if e.kind == ErrorKind::NotFound => Ok(()),
            done => done.map(drop),
        }
    }
}
