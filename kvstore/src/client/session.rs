//! Which request is which, so that one is executed once however often it is sent.

use super::route::Route;
use crate::machine::{Answer, Command, RequestId, WINDOW};
use crate::node::request::{Request, Response};
use common::{Clock, Error, Result};
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::sync::Notify;

/// Requests without an answer at a time; fewer than the registry remembers, since one may lag behind.
const OUTSTANDING: u64 = WINDOW - 16;

#[derive(Default)]
struct State {
    /// None until the registry has opened one.
    id: Option<u64>,
    last: u64,
    outstanding: BTreeSet<u64>,
}

/// The session of a client; a forgotten one is replaced.
#[derive(Default)]
pub(super) struct Session {
    state: Mutex<State>,
    room: Notify,
    opening: tokio::sync::Mutex<()>,
}

/// A number that is in use until it is dropped.
struct Number<'a> {
    session: &'a Session,
    request: RequestId,
}

impl Drop for Number<'_> {
    fn drop(&mut self) {
        let mut state = self.session.state.lock();
        if state.id == Some(self.request.session) {
            state.outstanding.remove(&self.request.sequence);
        }
        drop(state);
        self.session.room.notify_waiters();
    }
}

impl Session {
    /// Executes a command once; the answer, or why there is none.
    pub async fn execute(
        &self,
        route: &Route,
        clock: &dyn Clock,
        until: Duration,
        command: &(dyn Fn(RequestId) -> Command + Send + Sync),
    ) -> Result<Answer> {
        loop {
            let number = self.number(route, clock, until).await?;
            let heard = route.ask(&Request::Command(command(number.request)), until).await?;
            match heard.response {
                Response::Answer(Answer::NoSession | Answer::Stale) => {
                    self.forget(number.request.session);
                    if heard.maybe_before {
                        return Err(Error::unavailable(
                            "the registry has forgotten this session: whether the request was done is not known",
                        ));
                    }
                    // It was sent once, and this is its answer: it was not executed.
                }
                Response::Answer(answer) => return Ok(answer),
                other => return Err(super::unexpected(&other)),
            }
            if clock.now() >= until {
                return Err(Error::unavailable("the registry forgets sessions too fast; it was not done"));
            }
        }
    }

    fn forget(&self, id: u64) {
        let mut state = self.state.lock();
        if state.id == Some(id) {
            *state = State::default();
        }
    }

    async fn number(&self, route: &Route, clock: &dyn Clock, until: Duration) -> Result<Number<'_>> {
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            if let Some(number) = self.take() {
                return Ok(number);
            }
            if self.state.lock().id.is_none() {
                self.open(route, until).await?;
                continue;
            }
            tokio::select! {
                () = room => {}
                () = clock.sleep(until.saturating_sub(clock.now())) => {
                    return Err(Error::unavailable("too many requests to the registry wait for an answer; it was not done"));
                }
            }
        }
    }

    fn take(&self) -> Option<Number<'_>> {
        let mut state = self.state.lock();
        let session = state.id?;
        let sequence = state.last + 1;
        let answered_below = state.outstanding.first().copied().unwrap_or(sequence);
        if sequence - answered_below >= OUTSTANDING {
            return None;
        }
        state.last = sequence;
        state.outstanding.insert(sequence);
        Some(Number { session: self, request: RequestId { session, sequence, answered_below } })
    }

    async fn open(&self, route: &Route, until: Duration) -> Result<()> {
        let _one = self.opening.lock().await;
        if self.state.lock().id.is_some() {
            return Ok(());
        }
        // Opened twice, one of them is never used.
        match route.ask(&Request::Command(Command::OpenSession), until).await?.response {
            Response::Answer(Answer::Session(id)) => {
                *self.state.lock() = State { id: Some(id), ..State::default() };
                Ok(())
            }
            other => Err(super::unexpected(&other)),
        }
    }
}
