//! Changes, in order, from a revision on: also across members that die.

use super::{Client, unexpected};
use crate::machine::Event;
use crate::node::request::{Request, Response};
use common::Result;

/// How long a member waits for a change before it says that there was none, in milliseconds. One that is frozen is noticed then.
const WAIT_MS: u64 = 3_000;

/// What a watch tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Watched {
    /// Changes, in order of revision; none of the prefix in between was left out.
    Events(Vec<Event>),
    /// The history begins later than where the watch was: read everything, and watch from behind that revision.
    Compacted {
        /// The first revision that the history has.
        oldest: u64,
    },
}

/// A stream of changes.
pub struct Watch {
    client: Client,
    prefix: String,
    from: u64,
}

impl Client {
    /// Changes of keys that begin with `prefix`, from revision `from` on: one more than that of what was read.
    pub fn watch(&self, prefix: &str, from: u64) -> Watch {
        Watch { client: self.clone(), prefix: prefix.to_string(), from }
    }
}

impl Watch {
    /// The revision that it goes on from.
    pub fn position(&self) -> u64 {
        self.from
    }

    /// Waits for the next changes. Safe to cancel: what was not returned is told again.
    ///
    /// Errors: `Unavailable` when no member answers for as long as the client tries; ask again.
    pub async fn next(&mut self) -> Result<Watched> {
        loop {
            let until =
                self.client.clock.now() + self.client.deadline + std::time::Duration::from_millis(WAIT_MS);
            let request = Request::Watch { prefix: self.prefix.clone(), from: self.from, wait_ms: WAIT_MS };
            match self.client.route.ask(&request, until).await?.response {
                Response::Events { events, next } => {
                    self.from = next;
                    if !events.is_empty() {
                        return Ok(Watched::Events(events));
                    }
                }
                Response::Compacted { oldest } => return Ok(Watched::Compacted { oldest }),
                other => return Err(unexpected(&other)),
            }
        }
    }
}
