//! What comes over a connection, and who receives it: the task, or a thread that waits for just that.
//!
//! A thread that may wait ([`common::blocking`]) receives what it waits for itself, and all else that comes with it. It
//! may have the connection to itself meanwhile ([`common::loan`]).

use super::replica::Inner;
use super::{Shared, Track};
use crate::transport::ReadHalf;
use crate::wire::{Decoder, Frame, Reply};
use common::ErrorKind;
use common::loan::Loan;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::AsyncReadExt;

/// Bytes that are received at a time, as a rule.
const RECEIVE: usize = 64 << 10;

/// See the module's head.
#[derive(Default)]
pub(super) struct Inbox {
    state: Mutex<State>,
    pub loan: Loan,
}

#[derive(Default)]
struct State {
    read: Option<ReadHalf>,
    decoder: Decoder,
    /// By channel, on the present connection.
    channels: HashMap<u32, Arc<Inner>>,
    /// Logs that the service does not make now; asked again after a pause.
    refused: Vec<Arc<Inner>>,
    /// Something may have to be opened or read again.
    look: bool,
    /// When something came last.
    heard: Duration,
    /// A thread has seen the end of the connection.
    ended: Option<String>,
    /// A thread looked since the last beat.
    looked: bool,
}

impl Inbox {
    pub fn connect(&self, read: ReadHalf, now: Duration) {
        *self.state.lock() = State { read: Some(read), look: true, heard: now, ..State::default() };
        self.loan.recall();
    }

    pub fn disconnect(&self) {
        *self.state.lock() = State::default();
        self.loan.recall();
    }

    pub fn open(&self, channel: u32, inner: Arc<Inner>) {
        self.state.lock().channels.insert(channel, inner);
    }

    /// Whether it was open.
    pub fn close(&self, channel: u32) -> bool {
        self.state.lock().channels.remove(&channel).is_some()
    }

    pub fn is_refused(&self, inner: &Arc<Inner>) -> bool {
        self.state.lock().refused.iter().any(|refused| Arc::ptr_eq(refused, inner))
    }

    /// Whether something may have to be opened or read again.
    pub fn take_look(&self) -> bool {
        std::mem::take(&mut self.state.lock().look)
    }

    /// How long nothing has come.
    pub fn silence(&self, now: Duration) -> Duration {
        now.saturating_sub(self.state.lock().heard)
    }

    /// Time passed: who was refused may ask again, and what nobody looks at is the runtime's.
    pub fn beat(&self) {
        let mut state = self.state.lock();
        state.refused.clear();
        if !std::mem::take(&mut state.looked) {
            self.loan.recall();
        }
    }

    /// Receives once, for the task.
    pub fn poll(&self, shared: &Shared, cx: &mut Context<'_>) -> Poll<Result<(), String>> {
        let mut state = self.state.lock();
        if let Some(why) = state.ended.take() {
            return Poll::Ready(Err(why));
        }
        if self.loan.is_lent() {
            return Poll::Pending;
        }
        let State { read: Some(read), decoder, .. } = &mut *state else {
            return Poll::Ready(Err("closed".into()));
        };
        decoder.make_room(RECEIVE);
        match pin!(read.read_buf(decoder.buffer())).poll(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(0)) => return Poll::Ready(Err("the service closed it".into())),
            Poll::Ready(Ok(_)) => {}
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error.to_string())),
        }
        Poll::Ready(state.frames(shared))
    }

    /// Receives what is there, for a thread that waits. Whether the task has to be told.
    pub fn look(&self, shared: &Shared) -> bool {
        // Who holds it gets what comes.
        let Some(mut state) = self.state.try_lock() else { return false };
        state.looked = true;
        let State { read: Some(read), decoder, ended: None, .. } = &mut *state else { return false };
        if self.loan.lend(|| read.unwatch()) {
            return true;
        }
        let why = match read.look(decoder.buffer()) {
            Ok(None) => return false,
            Ok(Some(0)) => "the service closed it".into(),
            Ok(Some(_)) => match state.frames(shared) {
                Ok(()) => return state.look,
                Err(why) => why,
            },
            Err(error) => error.to_string(),
        };
        state.ended = Some(why);
        true
    }
}

impl State {
    /// Does what all frames say that are there.
    fn frames(&mut self, shared: &Shared) -> Result<(), String> {
        self.heard = shared.clock.now();
        while let Some(frame) = self.decoder.frame()? {
            self.frame(shared, &frame)?;
        }
        Ok(())
    }

    fn frame(&mut self, shared: &Shared, frame: &Frame) -> Result<(), String> {
        let reply = frame.reply()?;
        let Some(inner) = self.channels.get(&frame.id) else {
            shared.calls.answer(frame.id, reply);
            return Ok(());
        };
        let inner = inner.clone();
        let closes = matches!(reply, Reply::Failed(..));
        let update = |change: &mut dyn FnMut(&mut Track)| inner.update(shared, |track| change(track));
        match reply {
            Reply::Confirmed(lsn) => update(&mut |t| t.confirmed(lsn)),
            Reply::Flushed(lsn) => update(&mut |t| t.flushed(lsn)),
            Reply::Opened(info, window) => update(&mut |t| t.opened(&info, window)),
            Reply::Vouched => update(&mut Track::vouched),
            Reply::Stall(_) => update(&mut Track::stalled),
            Reply::Resume(last) => update(&mut |t| t.resumed(last)),
            Reply::Failed(kind, message) => {
                self.channels.remove(&frame.id);
                tracing::info!(volume = %inner.start.volume, "DTL: a log was refused: {message}");
                let again = matches!(kind, ErrorKind::NoSpace | ErrorKind::Unavailable | ErrorKind::Internal);
                update(&mut |t| if again { t.closed() } else { t.lost(kind) });
                if again {
                    self.refused.push(inner.clone());
                }
            }
            _ => return Err("a reply that no channel expects".into()),
        }
        // This one alone is looked at: with a thousand quiet ones beside it, a confirmation costs the same.
        self.look |= closes || inner.track.lock().wants_chunk(shared.settings.chunk / 4).is_some();
        Ok(())
    }
}
