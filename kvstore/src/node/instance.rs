//! A member in the real world: a task that drives it, a thread for its disk, and who connects.

use super::core::{Effect, Member, Token};
use super::message::PeerMessage;
use super::metrics::Metrics;
use super::request::{Request, Response, Status};
use super::server::Server;
use super::{Settings, disk, opening};
use crate::backup::BackupInfo;
use crate::log::LogSettings;
use crate::machine::layout::MAX_MEMBERS;
use crate::machine::staging::Frozen;
use crate::machine::{Limits, RocksState, StateStore};
use crate::table::RocksSettings;
use crate::transport::tcp::TcpTransport;
use crate::transport::{Tls, Transport};
use crate::upgrade::{self, Origin};
use common::disk::local::LocalDisk;
use common::{Clock, Error, Result, blocking};
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

/// Inputs that wait for the member.
const INBOX: usize = 4096;
/// Inputs that are taken before what they make possible is done.
const TOGETHER: usize = 256;

/// What a member needs to begin.
pub struct InstanceConfig {
    /// Where its state and log lie: a folder of its own.
    pub dir: PathBuf,
    /// Its id in the group, never used before in it.
    pub member: u64,
    /// Where its group comes from, when the folder is empty.
    pub origin: Origin,
    /// Where members and clients connect.
    pub listener: TcpListener,
    /// TLS, if it is used.
    pub tls: Option<Tls>,
    /// Time and chance.
    pub clock: Arc<dyn Clock>,
    /// How it behaves.
    pub settings: Settings,
    /// How its state uses memory.
    pub rocks: RocksSettings,
    /// What it counts.
    pub metrics: Metrics,
}

/// What comes to the member's task.
pub(crate) enum Input {
    Peer {
        from: u64,
        message: PeerMessage,
    },
    /// A member says where it listens.
    HeardOf {
        member: u64,
        address: String,
    },
    Request {
        request: Request,
        reply: oneshot::Sender<Response>,
    },
    /// The state as it is now, to be read while it goes on.
    Freeze {
        reply: oneshot::Sender<Result<Frozen>>,
    },
    /// Hand the lead over; answered when somebody else has it, or nobody can.
    HandOver {
        done: oneshot::Sender<()>,
    },
}

/// Asks a member in the same process.
#[derive(Clone)]
pub struct Handle {
    inbox: mpsc::Sender<Input>,
}

impl Handle {
    /// The answer. An error means that it was not asked, or that nothing depends on whether it was.
    pub(crate) async fn call(&self, request: Request) -> Result<Response> {
        let gone = || Error::unavailable("this member of the registry has stopped");
        let writes = matches!(request, Request::Command(_) | Request::Change(_));
        let (reply, response) = oneshot::channel();
        self.inbox.send(Input::Request { request, reply }).await.map_err(|_| gone())?;
        match response.await {
            Ok(response) => Ok(response),
            // It may have told the others before it stopped.
            Err(_) if writes => Ok(Response::Lost),
            Err(_) => Err(gone()),
        }
    }

    async fn freeze(&self) -> Result<Frozen> {
        let gone = || Error::unavailable("this member of the registry has stopped");
        let (reply, frozen) = oneshot::channel();
        self.inbox.send(Input::Freeze { reply }).await.map_err(|_| gone())?;
        frozen.await.map_err(|_| gone())?
    }

    /// Waits until the member has stopped: its disk failed, it was removed from the group, or the process ends it.
    pub async fn stopped(&self) {
        self.inbox.closed().await;
    }

    /// Hands the lead over, if it has it; returns when somebody else has it, or nobody can.
    pub async fn hand_over(&self) {
        let (done, handed_over) = oneshot::channel();
        if self.inbox.send(Input::HandOver { done }).await.is_ok() {
            // A member that stopped leads no more.
            let _ = handed_over.await;
        }
    }

    pub(crate) async fn peer(&self, from: u64, message: PeerMessage) -> Result<()> {
        let gone = |_| Error::unavailable("this member of the registry has stopped");
        self.inbox.send(Input::Peer { from, message }).await.map_err(gone)
    }

    pub(crate) async fn heard_of(&self, member: u64, address: String) -> Result<()> {
        let gone = |_| Error::unavailable("this member of the registry has stopped");
        self.inbox.send(Input::HeardOf { member, address }).await.map_err(gone)
    }

    /// How the member sees its group.
    pub async fn status(&self) -> Result<Status> {
        match self.call(Request::Status).await? {
            Response::Status(status) => Ok(status),
            other => Err(Error::internal(format!("a member answered {other:?} when asked for its status"))),
        }
    }
}

/// A running member. Dropping it is as good as killing it; [`Instance::stop`] hands the lead over first.
pub struct Instance {
    handle: Handle,
    group: u128,
    member: u64,
    address: SocketAddr,
    clock: Arc<dyn Clock>,
    driver: Option<JoinHandle<Result<()>>>,
    server: Option<Server>,
    disk: Option<disk::DiskThread>,
}

impl Instance {
    /// Opens what is in the folder, or makes it, and begins.
    ///
    /// Errors: `Corrupt` when state or log are damaged, `Unavailable` when another process uses them, `Invalid`.
    pub async fn start(config: InstanceConfig) -> Result<Self> {
        let store: Arc<dyn StateStore> = Arc::new(RocksState::open(&config.dir, config.rocks)?);
        let head =
            upgrade::prepare(store.clone(), config.member, &config.origin, config.clock.random_u128())?;
        let folder = Arc::new(LocalDisk::open(config.dir.join("log"))?);
        let (machine, log, recovered) =
            opening::open(store.clone(), Limits::default(), folder, LogSettings::default()).await?;
        let tick = Duration::from_millis(config.settings.tick_ms.max(1));
        let settings = Settings { seed: config.settings.seed ^ config.clock.random(), ..config.settings };
        let member = Member::new(settings, machine, recovered)?;
        let (lost, unreachable) = mpsc::channel(64);
        let client_tls = config.tls.as_ref().map(|tls| tls.client.clone());
        let transport = TcpTransport::new(head.group, head.member, client_tls, config.clock.clone(), lost);
        let (inbox, inputs) = mpsc::channel(INBOX);
        let handle = Handle { inbox };
        let address = config.listener.local_addr().map_err(|e| Error::io("the registry's address", &e))?;
        let server = Server::start(
            config.listener,
            config.tls,
            (head.group, head.member),
            handle.clone(),
            config.clock.clone(),
        );
        let (thread, jobs, durable) =
            disk::DiskThread::start(log, store, config.clock.clone(), config.metrics.clone())?;
        let driver = Driver {
            member,
            clock: config.clock.clone(),
            tick,
            inputs,
            unreachable,
            transport: Arc::new(transport),
            jobs,
            durable,
            metrics: config.metrics,
            members: BTreeMap::new(),
            heard_of: BTreeMap::new(),
            waiting: HashMap::new(),
            next_token: 0,
            handing_over: Vec::new(),
        };
        let (group, id) = (head.group, head.member);
        let driver = tokio::spawn(async move {
            let outcome = driver.run().await;
            if let Err(error) = &outcome {
                tracing::error!(member = id, %error, "this member of the registry has stopped; restart it");
            }
            outcome
        });
        Ok(Self {
            handle,
            group,
            member: id,
            address,
            clock: config.clock,
            driver: Some(driver),
            server: Some(server),
            disk: Some(thread),
        })
    }

    /// Asks it from within this process.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Writes a backup of its state to a new file at `path`; the member goes on meanwhile. What was acknowledged before this is in
    /// it if this member leads, else what this member has heard of.
    ///
    /// Errors: `Conflict` when there is such a file; `NoSpace`; `Unavailable`.
    pub async fn backup(&self, path: impl Into<PathBuf>) -> Result<BackupInfo> {
        let frozen = self.handle.freeze().await?;
        if frozen.meta().index == 0 {
            return Err(Error::unavailable("this member of the registry has nothing yet"));
        }
        let (path, group, now) = (path.into(), self.group, self.clock.unix_time());
        let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        blocking::run(move || crate::backup::write_to(&path, &frozen, group, now)).await
    }

    /// Its group.
    pub fn group(&self) -> u128 {
        self.group
    }

    /// Its id.
    pub fn member(&self) -> u64 {
        self.member
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether it has given up: its disk failed, or it was removed from the group.
    pub fn has_stopped(&self) -> bool {
        self.driver.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Hands the lead over if it has it, then ends; when this returns the folder can be opened again.
    pub async fn stop(mut self) {
        tokio::select! {
            () = self.handle.hand_over() => {}
            // Nobody takes it: they will find out by themselves.
            () = self.clock.sleep(Duration::from_secs(2)) => {}
        }
        self.end().await;
    }

    /// Ends at once, as a process that is killed.
    pub async fn kill(mut self) {
        self.end().await;
    }

    /// What decides ends, as when the disk fails; the process lives.
    #[cfg(test)]
    pub(crate) fn fail(&self) {
        if let Some(driver) = &self.driver {
            driver.abort();
        }
    }

    async fn end(&mut self) {
        if let Some(server) = self.server.take() {
            server.end().await;
        }
        if let Some(driver) = self.driver.take() {
            driver.abort();
            let _ = driver.await;
        }
        if let Some(disk) = self.disk.take() {
            disk.end().await;
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if let Some(driver) = &self.driver {
            driver.abort();
        }
    }
}

/// The task that drives the member.
struct Driver {
    member: Member,
    clock: Arc<dyn Clock>,
    tick: Duration,
    inputs: mpsc::Receiver<Input>,
    unreachable: mpsc::Receiver<u64>,
    transport: Arc<dyn Transport>,
    jobs: mpsc::Sender<disk::Job>,
    durable: watch::Receiver<disk::Progress>,
    metrics: Metrics,
    members: BTreeMap<u64, String>,
    /// Members that said where they are: a new member has no other way to answer.
    heard_of: BTreeMap<u64, String>,
    waiting: HashMap<Token, oneshot::Sender<Response>>,
    next_token: Token,
    handing_over: Vec<oneshot::Sender<()>>,
}

impl Driver {
    async fn run(mut self) -> Result<()> {
        let clock = self.clock.clone();
        self.effects().await?;
        let mut tick = clock.sleep(self.tick);
        loop {
            tokio::select! {
                () = &mut tick => {
                    self.member.tick();
                    self.waiting.retain(|_, reply| !reply.is_closed());
                    self.metrics.update(&self.member.vitals());
                    // From now, not from when it was due: ticks are never faster than the clock.
                    tick = clock.sleep(self.tick);
                }
                input = self.inputs.recv() => {
                    let Some(input) = input else { return Ok(()) };
                    self.input(input)?;
                    for _ in 1..TOGETHER {
                        let Ok(input) = self.inputs.try_recv() else { break };
                        self.input(input)?;
                    }
                }
                changed = self.durable.changed() => {
                    if changed.is_err() {
                        return Err(Error::internal("the thread of the registry's log is gone"));
                    }
                    let progress = self.durable.borrow_and_update().clone();
                    if let Some(error) = progress.failed {
                        return Err(error);
                    }
                    self.member.persisted(progress.number);
                }
                Some(peer) = self.unreachable.recv() => self.member.unreachable(peer),
            }
            self.effects().await?;
            if self.member.is_removed() {
                return Err(Error::fenced(format!("member {} was removed from its group", self.member.id())));
            }
        }
    }

    fn input(&mut self, input: Input) -> Result<()> {
        match input {
            Input::Peer { from, message } => {
                if let Err(error) = self.member.peer(from, message) {
                    if error.kind != common::ErrorKind::Invalid {
                        return Err(error);
                    }
                    self.metrics.refused.inc();
                    tracing::warn!(member = from, %error, "a message was refused");
                }
            }
            Input::HeardOf { member, address } => {
                if !address.is_empty()
                    && (self.heard_of.len() < MAX_MEMBERS || self.heard_of.contains_key(&member))
                {
                    self.heard_of.insert(member, address);
                }
            }
            Input::Request { request, reply } => {
                self.next_token += 1;
                self.waiting.insert(self.next_token, reply);
                self.member.request(self.next_token, request)?;
            }
            Input::Freeze { reply } => {
                let _ = reply.send(self.member.machine().freeze());
            }
            Input::HandOver { done } => {
                if self.member.hand_over() {
                    self.handing_over.push(done);
                } else {
                    let _ = done.send(());
                }
            }
        }
        Ok(())
    }

    async fn effects(&mut self) -> Result<()> {
        let effects = self.member.flush()?;
        let known = self.member.machine().members();
        if !self.heard_of.is_empty() {
            // What the group says counts more, as soon as it says something.
            self.heard_of.retain(|id, _| !known.contains_key(id));
        }
        if self.members.len() != known.len() + self.heard_of.len()
            || !known.iter().chain(&self.heard_of).all(|(id, address)| self.members.get(id) == Some(address))
        {
            self.members = known.iter().chain(&self.heard_of).map(|(id, a)| (*id, a.clone())).collect();
            self.transport.set_members(&self.members);
        }
        for effect in effects {
            match effect {
                Effect::Send { to, message } => self.transport.send(to, message),
                Effect::Reply { token, response } => {
                    if let Some(reply) = self.waiting.remove(&token) {
                        // Who does not wait any more asks again, or does not care.
                        let _ = reply.send(response);
                    }
                }
                Effect::Persist { number, batch } => self.job(disk::Job::Persist { number, batch }).await?,
                Effect::Compact { floor } => self.job(disk::Job::Compact { floor }).await?,
            }
        }
        if !self.member.leads() {
            for done in self.handing_over.drain(..) {
                let _ = done.send(());
            }
        }
        Ok(())
    }

    async fn job(&self, job: disk::Job) -> Result<()> {
        self.jobs.send(job).await.map_err(|_| Error::internal("the thread of the registry's log is gone"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Command;

    #[tokio::test]
    async fn what_a_member_was_asked_before_it_died_may_have_been_done() {
        let (inbox, mut inputs) = mpsc::channel(4);
        let handle = Handle { inbox };
        // It takes the request, and tells the others perhaps; then it dies.
        let member = tokio::spawn(async move {
            drop(inputs.recv().await);
            drop(inputs.recv().await);
        });
        let command = Request::Command(Command::OpenSession);
        assert_eq!(handle.call(command.clone()).await.unwrap(), Response::Lost);
        let read = handle.call(Request::Get { key: "k".into() }).await;
        assert_eq!(read.unwrap_err().kind, common::ErrorKind::Unavailable);
        member.await.unwrap();
        assert_eq!(handle.call(command).await.unwrap_err().kind, common::ErrorKind::Unavailable);
    }
}
