//! The client's task: connects, sends what waits, gives replies to who waits for them, and begins anew.

use super::{Link, Queue, Shared};
use crate::outbox::Outbox;
use crate::transport::{ReadHalf, Stream, WriteHalf};
use crate::wire::{self, Decoder, PROLOGUE, Reply, Request, encode_request};
use common::osd::OsdId;
use common::{Error, Result};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Bytes that are received at a time, as a rule.
const RECEIVE: usize = 256 << 10;
/// The request that a hello is; others count from 1.
const HELLO: u32 = 0;

/// Runs until it is aborted.
pub(super) async fn run(shared: Arc<Shared>) {
    loop {
        let connected = tokio::select! {
            connected = connect(&shared) => connected,
            () = shared.clock.sleep(shared.settings.connect) => Err(Error::unavailable("it can't be reached in time")),
        };
        match connected {
            Ok((stream, osd)) => {
                *shared.queue.lock() = Queue { open: true, ..Queue::default() };
                shared.link.send_replace(Link::Up(osd));
                let end = exchange(&shared, stream).await;
                shared.link.send_replace(Link::Connecting);
                shared.disconnected();
                if let Err(why) = end {
                    tracing::debug!(why, at = shared.dial.describe(), "ASD: the connection broke");
                }
            }
            Err(error) => {
                shared.link.send_replace(Link::Down(error));
            }
        }
        shared.clock.sleep(shared.settings.reconnect).await;
    }
}

/// Whatever goes wrong before there is a connection, nothing was done, and another attempt may do better.
async fn connect(shared: &Shared) -> Result<(Stream, OsdId)> {
    let away = |why: &dyn std::fmt::Display| Error::unavailable(format!("it can't be reached: {why}"));
    let mut stream = shared.dial.dial().await.map_err(|e| away(&e))?;
    let hello = encode_request(&Request::Hello(shared.osd, shared.backend), HELLO, wire::no_call());
    let prologue = wire::prologue(wire::VERSION, wire::VERSION);
    stream.write.write_all(&prologue).await.map_err(|e| away(&e))?;
    for part in hello {
        stream.write.write_all(&part).await.map_err(|e| away(&e))?;
    }
    stream.write.flush().await.map_err(|e| away(&e))?;
    let mut first = [0u8; PROLOGUE];
    stream.read.read_exact(&mut first).await.map_err(|e| away(&e))?;
    let (version, _) = wire::read_prologue(&first).map_err(|e| away(&e))?;
    if wire::choose_version(version, version).is_none() {
        return Err(away(&format!("it does not speak version {} of the protocol", wire::VERSION)));
    }
    let mut decoder = Decoder::default();
    let frame = loop {
        match decoder.frame().map_err(|e| away(&e))? {
            Some(frame) => break frame,
            None => {
                // Not a byte more than the answer: what follows belongs to the exchange.
                let missing = decoder.missing().min(RECEIVE);
                let mut bytes = vec![0; missing];
                stream.read.read_exact(&mut bytes).await.map_err(|e| away(&e))?;
                decoder.buffer().extend_from_slice(&bytes);
            }
        }
    };
    match frame.reply().map_err(|e| away(&e))? {
        Reply::Welcome(osd) if shared.osd.is_none_or(|wanted| wanted == osd) => Ok((stream, osd)),
        Reply::Welcome(osd) => Err(away(&format!("this is OSD {osd}"))),
        Reply::Failed(_, message) => Err(away(&message)),
        _ => Err(away(&"it answers something else than it was asked")),
    }
}

/// Until the connection breaks.
async fn exchange(shared: &Shared, stream: Stream) -> std::result::Result<(), String> {
    let Stream { read, write } = stream;
    tokio::select! {
        end = receive(shared, read) => end,
        end = send(shared, write) => end,
    }
}

async fn send(shared: &Shared, mut write: WriteHalf) -> std::result::Result<(), String> {
    let mut out: Outbox<()> = Outbox::default();
    loop {
        {
            let mut queue = shared.queue.lock();
            out.append(&mut queue.out);
            queue.bytes = 0;
        }
        if out.is_empty() {
            shared.wake.notified().await;
        } else {
            out.send(&mut *write).await.map_err(|e| e.to_string())?;
        }
    }
}

async fn receive(shared: &Shared, mut read: ReadHalf) -> std::result::Result<(), String> {
    let mut decoder = Decoder::default();
    let settings = &shared.settings;
    let (mut heard, mut last) = (shared.clock.now(), shared.clock.now());
    let mut beat = shared.clock.sleep(settings.heartbeat);
    loop {
        while let Some(frame) = decoder.frame()? {
            let reply = frame.reply()?;
            // Nobody waits for a pong, nor for what came too late.
            if let Some(waiter) = shared.calls.lock().remove(&frame.id) {
                let _ = waiter.send(reply);
            }
        }
        let want = decoder.missing().max(RECEIVE);
        decoder.buffer().reserve(want);
        tokio::select! {
            biased;
            n = read.read_buf(decoder.buffer()) => {
                if n.map_err(|e| e.to_string())? == 0 {
                    return Err("the daemon closed it".into());
                }
                heard = shared.clock.now();
            }
            () = &mut beat => {
                let now = shared.clock.now();
                if now.saturating_sub(heard) >= settings.timeout && last > heard {
                    return Err("the daemon gives no sign of life".into());
                }
                // It is asked also when something is under way: a request may take long, an answer to this may not.
                let ping = encode_request(&Request::Ping, HELLO, wire::no_call());
                if shared.send(ping).is_ok() {
                    last = now;
                }
                beat = shared.clock.sleep(settings.heartbeat);
            }
        }
    }
}
