//! What comes over a device's connection, and who receives it: the task, or a thread that waits for just that.
//!
//! A thread that may wait ([`common::blocking`]) receives what it waits for itself, and all else that comes with it. It
//! may have the connection to itself meanwhile ([`common::loan`]).

use crate::device::Core;
use crate::incoming::Incoming;
use crate::ledger::Broken;
use crate::pump::CHANNEL;
use crate::wire::{Decoder, ToClient};
use common::ErrorKind;
use common::loan::Loan;
use parking_lot::Mutex;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::Duration;

/// See the module's head.
#[derive(Default)]
pub(crate) struct Inbox {
    state: Mutex<State>,
    pub loan: Loan,
}

#[derive(Default)]
struct State {
    connection: Option<Incoming>,
    /// A thread has seen the end of the connection.
    ended: Option<Broken>,
    /// When something came last.
    heard: Duration,
    /// A thread looked since the last beat.
    looked: bool,
}

fn closed() -> Broken {
    Broken::Why("it closed the connection".into())
}

impl Inbox {
    pub fn connect(&self, connection: Incoming, now: Duration) {
        *self.state.lock() = State { connection: Some(connection), heard: now, ..State::default() };
        self.loan.recall();
    }

    pub fn disconnect(&self) -> Option<Incoming> {
        let state = std::mem::take(&mut *self.state.lock());
        self.loan.recall();
        state.connection
    }

    /// When something came last. What nobody has looked at since the last call is the runtime's.
    pub fn beat(&self) -> Duration {
        let mut state = self.state.lock();
        if !std::mem::take(&mut state.looked) {
            self.loan.recall();
        }
        state.heard
    }

    /// Receives once, for the task.
    pub fn poll(&self, core: &Core, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        let mut state = self.state.lock();
        if let Some(broken) = state.ended.take() {
            return Poll::Ready(Err(broken));
        }
        if self.loan.is_lent() {
            return Poll::Pending;
        }
        let State { connection: Some(connection), heard, .. } = &mut *state else {
            return Poll::Ready(Err(closed()));
        };
        match pin!(connection.fill()).poll(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(0)) => return Poll::Ready(Err(closed())),
            Poll::Ready(Ok(_)) => *heard = core.clock.now(),
            Poll::Ready(Err(error)) => return Poll::Ready(Err(Broken::Why(error.to_string()))),
        }
        Poll::Ready(receive(core, &mut connection.decoder, *heard))
    }

    /// Receives what is there, for a thread that waits. Whether the task has to be told.
    pub fn look(&self, core: &Core) -> bool {
        // Who holds it gets what comes.
        let Some(mut state) = self.state.try_lock() else { return false };
        state.looked = true;
        let State { connection: Some(connection), ended: None, heard, .. } = &mut *state else {
            return false;
        };
        if self.loan.lend(|| connection.unwatch()) {
            return true;
        }
        let broken = match connection.look() {
            Ok(None) => return false,
            Ok(Some(0)) => closed(),
            Ok(Some(_)) => {
                *heard = core.clock.now();
                match receive(core, &mut connection.decoder, *heard) {
                    Ok(()) => return false,
                    Err(broken) => broken,
                }
            }
            Err(error) => Broken::Why(error.to_string()),
        };
        state.ended = Some(broken);
        true
    }
}

/// All frames that are there, under one lock.
fn receive(core: &Core, decoder: &mut Decoder, now: Duration) -> Result<(), Broken> {
    let mut ledger = core.ledger.lock();
    let mut replies = false;
    loop {
        let frame = decoder.frame().map_err(|e| Broken::Why(e.into()))?;
        let Some(frame) = frame else { break };
        if frame.channel != CHANNEL && frame.channel != 0 {
            continue;
        }
        match frame.to_client().map_err(|e| Broken::Why(e.into()))? {
            ToClient::Reply(reply) => {
                ledger.reply(reply, now)?;
                replies = true;
            }
            ToClient::Resized(size) => ledger.resized(size),
            ToClient::Closed(error) if error.kind == ErrorKind::Fenced => {
                ledger.die(error);
                return Err(Broken::Why("the attachment was revoked".into()));
            }
            ToClient::Closed(error) => return Err(Broken::Why(error.to_string())),
            _ => {}
        }
    }
    if replies {
        core.dispatch(&mut ledger);
    }
    drop(ledger);
    core.link.drive();
    Ok(())
}
