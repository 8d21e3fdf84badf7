//! The task of a device: connects, attaches, receives, and notices death.

use crate::device::{Core, Home, goodbye};
use crate::incoming::{Incoming, greet};
use crate::ledger::Broken;
use crate::transport::{Dial, WriteHalf};
use crate::wire::{self, Attach, Granted, Moved, Refusal, ToClient, ToServer};
use bytes::{Bytes, BytesMut};
use common::{Error, ErrorKind, Result};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;

/// The only channel of a device's connection.
pub const CHANNEL: u32 = 1;
/// Owners that are asked one after the other, each named by the one before, without a pause.
const HOPS: u32 = 4;
/// A connection that lived as long was a sound one.
const SOUND: Duration = Duration::from_secs(1);
/// Time for the last requests and the goodbye.
const GOODBYE: Duration = Duration::from_secs(2);

type Opened = watch::Sender<Option<Result<()>>>;

struct Pump {
    core: Arc<Core>,
    dial: Arc<dyn Dial>,
    addresses: Vec<String>,
    /// Where an owner is said to be: asked first.
    named: VecDeque<String>,
    /// Of `addresses`, the next one to ask.
    next: usize,
    /// Whoever was named as the owner did not answer: others are asked to pass on what is for it.
    owner_is_out_of_reach: bool,
    session: u64,
    opened: Opened,
}

/// Why there is no attachment.
enum Failure {
    /// Not there.
    Error(Error),
    Moved(Moved),
    /// For good.
    Dead(Error),
}

pub(crate) async fn run(core: Arc<Core>, dial: Arc<dyn Dial>, addresses: Vec<String>, opened: Opened) {
    let (named, next, owner_is_out_of_reach) = (VecDeque::new(), 0, false);
    let mut pump = Pump { core, dial, addresses, named, next, owner_is_out_of_reach, session: 0, opened };
    let core = pump.core.clone();
    let give_up = core.clock.now() + core.options.open;
    let (mut tried, mut hops, mut pause) = (0, 0, core.options.pause);
    let mut last = Error::unavailable("no router answered");
    while core.ledger.lock().dead().is_none() {
        match pump.attach().await {
            Ok(connection) => {
                let since = core.clock.now();
                pump.opened.send_replace(Some(Ok(())));
                core.inbox.connect(connection, core.clock.now());
                let end = pump.serve().await;
                core.inbox.disconnect();
                core.ledger.lock().away();
                core.link.disconnect();
                // The way to the owner may be free again.
                pump.owner_is_out_of_reach = false;
                hops = 0;
                if core.clock.now().saturating_sub(since) >= SOUND {
                    (tried, pause) = (0, core.options.pause);
                } else {
                    // One that attaches and then does not serve is not asked again and again.
                    tried = pump.addresses.len();
                }
                match end {
                    None => break,
                    Some(Broken::Moved(moved)) => pump.follow(moved),
                    Some(Broken::Why(why)) => {
                        tracing::info!(export = core.export, "edge: left a router: {why}")
                    }
                }
            }
            Err(Failure::Moved(moved)) if hops < HOPS => {
                hops += 1;
                pump.follow(moved);
                continue;
            }
            Err(Failure::Moved(moved)) => {
                hops = 0;
                tried = pump.addresses.len();
                pump.follow(moved);
            }
            Err(Failure::Dead(error)) => {
                core.link.disconnect();
                core.ledger.lock().die(error);
                break;
            }
            Err(Failure::Error(error)) => {
                tracing::debug!(export = core.export, "edge: not attached: {error}");
                last = error;
                tried += 1;
            }
        }
        core.link.disconnect();
        if core.closing.load(Ordering::Acquire) {
            break;
        }
        if pump.opened.borrow().is_none() && core.clock.now() >= give_up {
            core.ledger.lock().die(last.clone().context("no router attached the disk"));
            break;
        }
        if tried >= pump.addresses.len() {
            tried = 0;
            pump.rest(pause).await;
            pause = (pause * 2).min(core.options.pause * 10);
        }
    }
    let mut ledger = core.ledger.lock();
    ledger.die(Error::unavailable("the device was closed"));
    let why = ledger.dead().cloned();
    drop(ledger);
    if pump.opened.borrow().is_none() {
        pump.opened.send_replace(why.map(Err));
    }
}

impl Pump {
    fn follow(&mut self, moved: Moved) {
        tracing::info!(export = self.core.export, owner = moved.owner, epoch = moved.epoch.0, "edge: moved");
        self.core.ledger.lock().moved();
        self.named = moved.addresses.into();
        self.owner_is_out_of_reach = false;
    }

    /// Waits, and fails what can't wait as long.
    async fn rest(&self, time: Duration) {
        self.core.clock.sleep(time).await;
        self.tick();
    }

    fn tick(&self) {
        let core = &self.core;
        let mut ledger = core.ledger.lock();
        if ledger.tick(core.clock.now()) {
            core.dispatch(&mut ledger);
        }
    }

    /// One attempt at one router.
    async fn attach(&mut self) -> std::result::Result<Incoming, Failure> {
        let named = self.named.pop_front();
        let is_named = named.is_some();
        let address = named.unwrap_or_else(|| {
            let address = self.addresses[self.next % self.addresses.len()].clone();
            self.next += 1;
            address
        });
        let attached = self.attempt_in_time(&address).await;
        if is_named && matches!(attached, Err(Failure::Error(_))) {
            self.owner_is_out_of_reach = true;
        }
        attached
    }

    async fn attempt_in_time(&mut self, address: &str) -> std::result::Result<Incoming, Failure> {
        let core = self.core.clone();
        // Whatever becomes of this attempt, its number is not used again.
        self.session += 1;
        let attempt = self.attempt(address);
        tokio::pin!(attempt);
        let end = core.clock.now() + core.options.timeout;
        let mut beat = core.clock.sleep(core.options.heartbeat.min(core.options.timeout));
        loop {
            tokio::select! {
                biased;
                attached = &mut attempt => return attached,
                () = &mut beat => {
                    let mut ledger = core.ledger.lock();
                    ledger.tick(core.clock.now());
                    drop(ledger);
                    if core.clock.now() >= end {
                        return Err(Failure::Error(Error::unavailable(format!("{address} does not answer"))));
                    }
                    beat = core.clock.sleep(core.options.heartbeat.min(core.options.timeout));
                }
            }
        }
    }

    async fn attempt(&mut self, address: &str) -> std::result::Result<Incoming, Failure> {
        let core = self.core.clone();
        let failed =
            |e: &dyn std::fmt::Display| Failure::Error(Error::unavailable(format!("{address}: {e}")));
        let (mut write, mut connection) = match greet(&*self.dial, address).await {
            Ok(greeted) => greeted,
            Err(why) => return Err(failed(&why)),
        };
        loop {
            let (since, first) = {
                let ledger = core.ledger.lock();
                (ledger.epoch(), ledger.geometry().is_none())
            };
            let attach = Attach {
                export: core.export.clone(),
                mode: core.options.mode,
                attachment: core.attachment,
                session: self.session,
                since,
                resumed: first && core.options.resume.is_some(),
                pass_on: self.owner_is_out_of_reach,
                hops: 0,
                client: core.options.client.clone(),
                via: core.options.via.clone(),
            };
            let mut out = BytesMut::new();
            let _: Bytes = ToServer::Attach(attach).put(&mut out, CHANNEL);
            let sent = async {
                write.write_all_buf(&mut out).await?;
                write.flush().await
            };
            sent.await.map_err(|e| failed(&e))?;
            let answer = connection.next().await.map_err(|e| failed(&e))?;
            match answer {
                (CHANNEL, ToClient::Attached(granted)) => {
                    self.start(write, &granted).map_err(Failure::Error)?;
                    let (router, address) = (connection.router.clone(), address.to_owned());
                    tracing::debug!(export = core.export, router, address, "edge: attached");
                    *core.home.lock() = Some(Home { router, address, granted });
                    connection.decoder.allow(wire::MAX_PAYLOAD);
                    return Ok(connection);
                }
                (CHANNEL, ToClient::Refused(Refusal::Stale(session)))
                    if first && core.options.resume.is_some() =>
                {
                    self.session = session.saturating_add(1);
                }
                (CHANNEL, ToClient::Refused(refusal)) => return Err(refused(refusal, first)),
                _ => return Err(failed(&"something else was answered")),
            }
        }
    }

    /// From here on whoever asks sends.
    fn start(&self, write: WriteHalf, granted: &Granted) -> Result<()> {
        let core = &self.core;
        core.link.connect(write);
        let mut ledger = core.ledger.lock();
        ledger.attached(granted)?;
        core.dispatch(&mut ledger);
        drop(ledger);
        core.link.drive();
        Ok(())
    }

    /// Receives until the connection ends; `None`: the device was closed.
    async fn serve(&mut self) -> Option<Broken> {
        let core = &self.core.clone();
        let (clock, options) = (&core.clock, &core.options);
        let why = |why: String| Some(Broken::Why(why));
        let mut asked_at = None;
        let mut closing = None;
        let mut beat = clock.sleep(options.heartbeat);
        loop {
            core.link.drive_again();
            if core.link.is_broken() {
                return why("it does not take anything".into());
            }
            if core.closing.load(Ordering::Acquire) {
                // What was asked for before is answered before.
                let since = *closing.get_or_insert(clock.now());
                let late = clock.now().saturating_sub(since) >= GOODBYE;
                if late || core.ledger.lock().is_idle() {
                    if let Some(connection) = core.inbox.disconnect() {
                        self.leave(connection).await;
                    }
                    return None;
                }
            }
            tokio::select! {
                biased;
                received = poll_fn(|cx| core.inbox.poll(core, cx)) => {
                    if let Err(broken) = received {
                        return Some(broken);
                    }
                }
                () = core.link.woken() => {}
                () = &mut beat => {
                    let now = clock.now();
                    let heard = core.inbox.beat();
                    let silence = now.saturating_sub(heard);
                    if asked_at.is_some_and(|at| at >= heard) && silence >= options.timeout {
                        return why(format!("no sign of life for {silence:?}"));
                    }
                    // Asked of a busy one as well: it is how a router knows that its client is there.
                    core.link.frame(|buffer| ToServer::Ping.put(buffer, 0));
                    asked_at = Some(now);
                    self.tick();
                    let left = options.timeout.saturating_sub(silence).max(Duration::from_millis(1));
                    beat = clock.sleep(options.heartbeat.min(left));
                }
            }
        }
    }

    /// Says goodbye, and waits for the answer, so that somebody else may attach at once.
    async fn leave(&self, mut connection: Incoming) {
        let core = &self.core;
        goodbye(core);
        let answered = async {
            loop {
                core.link.drive_again();
                tokio::select! {
                    biased;
                    next = connection.next() => match next {
                        Ok((CHANNEL, ToClient::Detached)) | Err(_) => return,
                        Ok(_) => {}
                    },
                    () = core.link.woken() => {}
                }
            }
        };
        tokio::select! {
            biased;
            () = answered => {}
            () = core.clock.sleep(GOODBYE) => {}
        }
    }
}

fn refused(refusal: Refusal, first: bool) -> Failure {
    match refusal {
        Refusal::Moved(moved) => Failure::Moved(moved),
        Refusal::Stale(_) => Failure::Dead(Error::fenced("another process took the attachment over")),
        Refusal::Failed(error) => match error.kind {
            ErrorKind::Fenced => Failure::Dead(error),
            // Somebody else holds it now and may have written: what is kept here must not go over that.
            ErrorKind::Conflict if !first => Failure::Dead(Error::fenced(error.message())),
            ErrorKind::Unavailable | ErrorKind::NotOwner | ErrorKind::Internal => Failure::Error(error),
            _ if first => Failure::Dead(error),
            _ => Failure::Error(error),
        },
    }
}
