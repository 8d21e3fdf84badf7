//! Who leads: found, followed, and tried again until the deadline.

use super::ClientConfig;
use super::connection::Connection;
use crate::node::Status;
use crate::node::request::{Request, Response};
use common::{Clock, Error, ErrorKind, Result};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;

/// A member that says nothing for so long is given up for another one, which may be the leader by now; for a write it is twice as
/// long the next time, up to the longest, so that what takes long is not asked for again and again.
const PATIENCE: Duration = Duration::from_millis(700);
const LONGEST_PATIENCE: Duration = Duration::from_secs(5);
/// For so long nobody is believed who says that a silent member leads.
const SILENCE: Duration = Duration::from_millis(700);
/// Tries for which there is room even if nobody answers: a heartbeat must reach another leader while its lease lives.
const TRIES: u32 = 4;
/// Members come and go: who there is, is asked so often.
const REFRESH: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// Where to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Target {
    Local,
    Remote(String),
}

struct State {
    target: Target,
    /// Counts through the addresses when nobody knows better.
    turn: usize,
    /// Addresses that members told, and when they were asked last.
    learned: Vec<String>,
    asked: Option<Duration>,
    connection: Option<(String, Arc<Connection>)>,
    /// The group that answered first, if none was asked for. Sessions, leases and revisions are its own: of another one, restored
    /// from a backup say, they would name what somebody else has.
    group: u128,
    /// Who said nothing, and when that was noticed: the others may not know yet, and still send everybody there.
    silent: Option<(Target, Duration)>,
}

pub(super) struct Route {
    config: ClientConfig,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    /// One connects at a time.
    connecting: tokio::sync::Mutex<()>,
}

/// A response, and whether an earlier try of the same request may have been executed.
pub(super) struct Heard {
    pub response: Response,
    pub maybe_before: bool,
}

impl Route {
    pub fn new(config: ClientConfig, clock: Arc<dyn Clock>) -> Self {
        let first = config.addresses.first().cloned().unwrap_or_default();
        let target = if config.local.is_some() { Target::Local } else { Target::Remote(first) };
        let state = State {
            target,
            turn: 0,
            learned: Vec::new(),
            asked: None,
            connection: None,
            group: config.group,
            silent: None,
        };
        Self { config, clock, state: Mutex::new(state), connecting: tokio::sync::Mutex::new(()) }
    }

    /// The same way anew, and the runtime that is to go it, where heartbeats have one of their own.
    pub fn hearts(&self) -> Option<(Route, tokio::runtime::Handle)> {
        let runtime = self.config.hearts.clone()?;
        let mut config = self.config.clone();
        let state = self.state.lock();
        config.group = state.group;
        let learned = state.learned.iter().filter(|address| !self.config.addresses.contains(address));
        config.addresses.extend(learned.cloned());
        Some((Route::new(config, self.clock.clone()), runtime))
    }

    /// Asks the leader until there is an answer that says something.
    pub async fn ask(&self, request: &Request, until: Duration) -> Result<Heard> {
        self.try_until(request, until, true).await
    }

    /// The same for what must not be done twice: what may have been done is not tried again.
    pub async fn ask_once(&self, request: &Request, until: Duration) -> Result<Heard> {
        self.try_until(request, until, false).await
    }

    async fn try_until(&self, request: &Request, until: Duration, again: bool) -> Result<Heard> {
        let mut maybe_before = false;
        let mut pause = FIRST_PAUSE;
        let mut why;
        let writes = matches!(request, Request::Command(_) | Request::Change(_));
        let begun = until.saturating_sub(self.clock.now());
        let mut patience = PATIENCE.min(begun / TRIES);
        let wait = match request {
            Request::Watch { wait_ms, .. } => Duration::from_millis(*wait_ms),
            _ => Duration::ZERO,
        };
        loop {
            let target = self.state.lock().target.clone();
            let left = until.saturating_sub(self.clock.now()).min(patience + wait);
            let (sent, outcome) = tokio::select! {
                tried = self.attempt(&target, request) => tried,
                () = self.clock.sleep(left) => {
                    self.state.lock().silent = Some((target.clone(), self.clock.now()));
                    if writes {
                        patience = (patience * 2).min(LONGEST_PATIENCE);
                    }
                    (true, Err(Error::unavailable("there was no answer in time")))
                }
            };
            match outcome {
                Ok(Response::NotLeader { leader }) => {
                    let known = leader.as_ref().is_some_and(|(_, address)| !address.is_empty());
                    why = "nobody leads it at the moment".to_string();
                    self.follow(leader.map(|(_, address)| address));
                    if known && pause == FIRST_PAUSE {
                        pause *= 2;
                        continue;
                    }
                }
                Ok(Response::Lost) if again => {
                    maybe_before = true;
                    why = "its leader changed meanwhile".to_string();
                }
                Ok(Response::Failed { kind: ErrorKind::Unavailable, message }) if again => why = message,
                Ok(response) => return Ok(Heard { response, maybe_before }),
                Err(error) => {
                    maybe_before |= sent;
                    why = format!("{}: {error}", self.told(&target));
                    self.give_up(&target);
                    if sent && writes && !again {
                        return Err(Error::unavailable(format!("{why}; whether it was done is not known")));
                    }
                }
            }
            if self.clock.now() + pause >= until {
                let outcome = match (writes, maybe_before) {
                    (true, true) => "whether it was done is not known",
                    (true, false) => "it was not done",
                    (false, _) => "nothing was read",
                };
                return Err(Error::unavailable(format!("the registry does not answer: {why}; {outcome}")));
            }
            self.clock.sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Asks one member; whether the request was sent, and what came.
    async fn attempt(&self, target: &Target, request: &Request) -> (bool, Result<Response>) {
        match (target, &self.config.local) {
            (Target::Local, Some(handle)) => (true, handle.call(request.clone()).await),
            (Target::Local, None) => (false, Err(Error::internal("there is no member in this process"))),
            (Target::Remote(address), _) => match self.connection(address).await {
                Ok(connection) => {
                    self.refresh(&connection).await;
                    (true, connection.call(request).await)
                }
                Err(error) => (false, Err(error)),
            },
        }
    }

    /// Asks a member that answers who else there is, now and then, so that the client finds them when this one dies.
    async fn refresh(&self, connection: &Connection) {
        let now = self.clock.now();
        {
            let mut state = self.state.lock();
            if state.asked.is_some_and(|asked| now < asked + REFRESH) {
                return;
            }
            state.asked = Some(now);
        }
        if let Ok(Response::Status(status)) = connection.call(&Request::Status).await {
            self.learn(&status);
        }
    }

    /// The group, once it is known.
    pub fn group(&self) -> Option<u128> {
        Some(self.state.lock().group).filter(|group| *group != 0)
    }

    /// What a member says of the others.
    pub fn learn(&self, status: &Status) {
        if !status.members.is_empty() {
            self.state.lock().learned = status.members.values().cloned().collect();
        }
    }

    async fn connection(&self, address: &str) -> Result<Arc<Connection>> {
        let open = || {
            let state = self.state.lock();
            let connection = state.connection.as_ref().filter(|(to, c)| to == address && !c.is_broken());
            connection.map(|(_, c)| c.clone())
        };
        if let Some(connection) = open() {
            return Ok(connection);
        }
        let _one = self.connecting.lock().await;
        if let Some(connection) = open() {
            return Ok(connection);
        }
        if address.is_empty() {
            return Err(Error::invalid("no address of a member of the registry is known"));
        }
        let group = self.state.lock().group;
        let connection = Arc::new(Connection::open(address, group, self.config.tls.as_ref()).await?);
        let mut state = self.state.lock();
        state.group = connection.group();
        state.connection = Some((address.to_string(), connection.clone()));
        Ok(connection)
    }

    /// Somebody said who leads, or that nobody does.
    fn follow(&self, leader: Option<String>) {
        let mut state = self.state.lock();
        match leader.filter(|address| !address.is_empty()) {
            Some(address) if self.is_silent(&state, &Target::Remote(address.clone())) => {
                self.turn(&mut state)
            }
            Some(address) => {
                if !state.learned.contains(&address) && state.learned.len() < 64 {
                    state.learned.push(address.clone());
                }
                state.target = Target::Remote(address);
            }
            None => self.turn(&mut state),
        }
    }

    fn give_up(&self, target: &Target) {
        let mut state = self.state.lock();
        if state.target == *target {
            state.connection = None;
            self.turn(&mut state);
        }
    }

    /// The next one in turn.
    fn turn(&self, state: &mut State) {
        let mut all: Vec<Target> = Vec::new();
        all.extend(self.config.local.is_some().then_some(Target::Local));
        let addresses = self.config.addresses.iter().chain(&state.learned);
        all.extend(addresses.map(|a| Target::Remote(a.clone())));
        if all.is_empty() {
            return;
        }
        for _ in 0..all.len() {
            state.turn = state.turn.wrapping_add(1);
            state.target = all[state.turn % all.len()].clone();
            if !self.is_silent(state, &state.target) {
                break;
            }
        }
    }

    fn is_silent(&self, state: &State, target: &Target) -> bool {
        let silent = state.silent.as_ref().filter(|(_, since)| self.clock.now() < *since + SILENCE);
        silent.is_some_and(|(who, _)| who == target)
    }

    fn told(&self, target: &Target) -> String {
        match target {
            Target::Local => "the member in this process".into(),
            Target::Remote(address) => format!("member {address}"),
        }
    }
}
