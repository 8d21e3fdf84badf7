//! One connection: frames in, replies out.

use super::Service;
use super::channel::{Channel, Verdict};
use crate::entry::Packed;
use crate::registration::LogInfo;
use crate::storage::{Incoming, Key};
use crate::transport::{Stream, WriteHalf};
use crate::wire::{self, Decoder, Frame, HEAD, Open, PROLOGUE, Reply, Request};
use bytes::{Buf, BytesMut};
use common::alone::Solo;
use common::{Epoch, Error, Lsn, Result, VolumeId};
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use std::collections::{BTreeMap, HashMap};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Bytes that are received at a time, as a rule.
const RECEIVE: usize = 128 << 10;
/// Replies that may pile up before data of reads is left where it is.
const REPLIES: usize = 256 << 10;
/// Data of a read that is fetched at a time.
const FETCH: usize = 64 << 10;
/// Reads of one connection.
const MAX_READS: usize = 64;
/// Slow requests of one connection, beside a flush of each channel.
const MAX_SLOW: usize = 4096;
/// Fetches at a time: each may bring an entry of the largest size.
const MAX_FETCHES: usize = 4;

/// What a slow thing came to.
enum Done {
    Flushed(u32, Result<Lsn>),
    Sealed(u32, Result<(Epoch, Vec<LogInfo>)>),
    Fetched(u32, Result<Vec<Packed>>),
}

/// A log that is sent to the client.
struct Reading {
    key: Key,
    next: Lsn,
    credit: u64,
    fetching: bool,
}

struct Connection<'s> {
    service: &'s Service,
    channels: HashMap<u32, Channel>,
    stalled: Vec<u32>,
    reads: BTreeMap<u32, Reading>,
    /// Entries of one go, for one write.
    batch: Vec<Incoming>,
    batch_of: Vec<u32>,
    touched: Vec<u32>,
    /// None of them holds a lock of the storage while it waits here to be polled: this loop may be busy for long.
    slow: FuturesUnordered<BoxFuture<'s, Done>>,
    fetching: usize,
    out: BytesMut,
}

/// Serves `stream` to its end; an error says what was wrong with it.
pub(super) async fn serve(service: &Service, mut stream: Stream) -> std::result::Result<(), String> {
    let solo = Solo::new(service.threads.clone(), false);
    match stream.read.attend(&solo) {
        true => solo.run(transmit(service, stream, &solo)).await,
        false => transmit(service, stream, &solo).await,
    }
}

async fn transmit(service: &Service, stream: Stream, solo: &Solo) -> std::result::Result<(), String> {
    let Stream { mut read, mut write } = stream;
    let say = |e: std::io::Error| e.to_string();
    let mut first = [0u8; PROLOGUE];
    tokio::select! {
        biased;
        done = read.read_exact(&mut first) => { done.map_err(say)?; }
        () = service.clock.sleep(service.settings.handshake) => return Err("no prologue came".into()),
    }
    let (lowest, highest) = wire::prologue(&first)?;
    let version = wire::choose_version(lowest, highest);
    let mut out = BytesMut::with_capacity(4096);
    wire::put_prologue(&mut out, version.unwrap_or(0), version.unwrap_or(0));
    write.write_all_buf(&mut out).await.map_err(say)?;
    write.flush().await.map_err(say)?;
    if version.is_none() {
        return Err(format!("versions {lowest} to {highest} are not spoken here"));
    }
    let mut connection = Connection {
        service,
        channels: HashMap::new(),
        stalled: Vec::new(),
        reads: BTreeMap::new(),
        batch: Vec::new(),
        batch_of: Vec::new(),
        touched: Vec::new(),
        slow: FuturesUnordered::new(),
        fetching: 0,
        out,
    };
    let mut decoder = Decoder::default();
    let mut room = service.store.room();
    let idle = service.settings.idle;
    let mut quiet = service.clock.sleep(idle);
    let mut heard = false;
    loop {
        let mut requests = 0;
        while let Some(frame) = decoder.frame()? {
            heard = true;
            requests += 1;
            connection.frame(frame).await?;
        }
        connection.commit().await;
        connection.fetch();
        // However much comes in, what is slow gets on.
        while let Some(Some(done)) = connection.slow.next().now_or_never() {
            connection.done(done);
        }
        // A client reads at all times, so this ends; one that does not is dead.
        if connection.out.has_remaining() {
            let out = &mut connection.out;
            // TLS keeps back what the socket does not take, until it is flushed.
            let send = async |write: &mut WriteHalf, out: &mut BytesMut| {
                write.write_all_buf(out).await?;
                write.flush().await
            };
            match send(&mut write, out).now_or_never() {
                Some(sent) => sent.map_err(say)?,
                None => tokio::select! {
                    biased;
                    sent = send(&mut write, out) => sent.map_err(say)?,
                    () = service.clock.sleep(idle) => return Err("it does not read".into()),
                },
            }
            if connection.out.capacity() > 2 * REPLIES {
                connection.out = BytesMut::new();
            }
        }
        decoder.make_room(RECEIVE);
        // What could be fetched goes on when nothing came in, not when something does.
        let more = connection.may_fetch();
        solo.turn(requests, connection.slow.is_empty() && connection.stalled.is_empty() && !more);
        tokio::select! {
            biased;
            n = read.read_buf(decoder.buffer()) => {
                if n.map_err(say)? == 0 {
                    return Ok(());
                }
            }
            Some(done) = connection.slow.next(), if !connection.slow.is_empty() => connection.done(done),
            _ = room.changed(), if !connection.stalled.is_empty() => connection.unstall(),
            () = &mut quiet => {
                if !heard {
                    return Err("nothing was heard for too long".into());
                }
                heard = false;
                quiet = service.clock.sleep(idle);
            }
            () = std::future::ready(()), if more => {}
        }
    }
}

impl<'s> Connection<'s> {
    async fn frame(&mut self, frame: Frame) -> std::result::Result<(), String> {
        let id = frame.id;
        if let Some((head, packed)) = frame.append()? {
            if let Some(channel) = self.channels.get_mut(&id)
                && channel.listens(head.lsn)
            {
                if head.volume != channel.key.volume {
                    return Err(format!(
                        "an entry of volume {} in a channel of {}",
                        head.volume, channel.key.volume
                    ));
                }
                self.batch.push(Incoming { key: channel.key, head, packed });
                self.batch_of.push(id);
            }
            return Ok(());
        }
        // Everything else is about what came before it.
        self.commit().await;
        match frame.request()? {
            Request::Append(_) => {}
            Request::Hello { volume, epoch, open } => self.hello(id, volume, epoch, open).await,
            Request::Flush => {
                if self.slow.len() >= MAX_SLOW + self.service.settings.max_channels {
                    return Err("too many flushes at a time".into());
                }
                self.flush(id);
            }
            Request::Trim(lsn) => self.on_channel(id, |s, key| s.store.trim(key, lsn).map(|()| None)),
            Request::Vouch(lsn) => {
                self.on_channel(id, |s, key| s.store.vouch(key, lsn).map(|()| Some(Reply::Vouched)));
            }
            Request::Close => {
                self.channels.remove(&id);
                self.reads.remove(&id);
            }
            Request::Seal(volume, epoch) => self.seal(id, volume, epoch),
            Request::Status(volume) => {
                let (floor, logs) = self.service.store.status(volume);
                Reply::Logs(floor, logs).put(&mut self.out, id);
            }
            Request::TrimLog(key, lsn) => {
                let done = self.service.store.trim(&key, lsn);
                self.answer(id, done);
            }
            Request::Forget(volume, below) => {
                let done = self.service.store.forget(volume, below);
                self.answer(id, done);
            }
            Request::Read(key, next, credit) => {
                if self.reads.len() >= MAX_READS || self.slow.len() >= MAX_SLOW {
                    self.fail(id, &Error::unavailable("too many reads at a time"));
                } else {
                    let reading = Reading { key, next, credit: u64::from(credit), fetching: false };
                    if self.reads.insert(id, reading).is_some() {
                        return Err("a read of a number that is in use".into());
                    }
                }
            }
            Request::Credit(credit) => {
                if let Some(reading) = self.reads.get_mut(&id) {
                    reading.credit = reading.credit.saturating_add(u64::from(credit)).min(1 << 30);
                }
            }
            Request::Ping => Reply::Pong.put(&mut self.out, id),
        }
        Ok(())
    }

    fn answer(&mut self, id: u32, done: Result<()>) {
        match done {
            Ok(()) => Reply::Done.put(&mut self.out, id),
            Err(error) => self.fail(id, &error),
        }
    }

    fn fail(&mut self, id: u32, error: &Error) {
        Reply::Failed(error.kind, error.message().into()).put(&mut self.out, id);
    }

    /// What is said of a channel that is not open is late, and ignored.
    fn on_channel(&mut self, id: u32, f: impl FnOnce(&Service, &Key) -> Result<Option<Reply>>) {
        let Some(channel) = self.channels.get_mut(&id) else { return };
        match f(self.service, &channel.key) {
            Ok(reply) => {
                if let Ok(info) = self.service.store.resume(&channel.key) {
                    // A trim may go beyond the end.
                    channel.last = channel.last.max(info.last);
                }
                if let Some(reply) = reply {
                    reply.put(&mut self.out, id);
                }
            }
            Err(error) => {
                self.channels.remove(&id);
                self.fail(id, &error);
            }
        }
    }

    async fn hello(&mut self, id: u32, volume: VolumeId, epoch: Epoch, open: Open) {
        let store = &self.service.store;
        let opened = match open {
            _ if self.channels.len() >= self.service.settings.max_channels => {
                Err(Error::unavailable("too many channels on one connection"))
            }
            _ if self.channels.contains_key(&id) => Err(Error::invalid("the channel is open already")),
            Open::Create { serial, base } => store.create(volume, epoch, serial, base).await,
            Open::Resume(incarnation) => store.resume(&Key { volume, epoch, incarnation }),
        };
        match opened {
            Ok(info) => {
                let key = Key { volume, epoch, incarnation: info.incarnation };
                self.channels.insert(id, Channel::new(key, info.last));
                Reply::Opened(info, self.service.settings.window).put(&mut self.out, id);
            }
            Err(error) => self.fail(id, &error),
        }
    }

    /// Appends what has gathered, in one write, and confirms it.
    async fn commit(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        let verdicts = self.service.store.append(&self.batch).await;
        let metrics = &self.service.metrics;
        for ((id, incoming), admission) in self.batch_of.drain(..).zip(self.batch.drain(..)).zip(verdicts) {
            let Some(channel) = self.channels.get_mut(&id) else { continue };
            match channel.judge(incoming.head.lsn, admission) {
                Verdict::Nothing => {}
                Verdict::Confirm => {
                    metrics.entries.inc();
                    metrics.bytes.inc_by(incoming.packed.bytes.len() as u64);
                    if !std::mem::replace(&mut channel.touched, true) {
                        self.touched.push(id);
                    }
                }
                Verdict::Stall => {
                    metrics.stalls.inc();
                    Reply::Stall(channel.last).put(&mut self.out, id);
                    self.stalled.push(id);
                }
                Verdict::Close(error) => {
                    self.channels.remove(&id);
                    Reply::Failed(error.kind, error.message().into()).put(&mut self.out, id);
                }
            }
        }
        for id in self.touched.drain(..) {
            if let Some(channel) = self.channels.get_mut(&id) {
                channel.touched = false;
                Reply::Confirmed(channel.last).put(&mut self.out, id);
            }
        }
        if !self.stalled.is_empty() {
            // Room may have been made between the refusal and now, and nobody will say so again.
            self.unstall();
        }
    }

    fn unstall(&mut self) {
        let mut waiting = std::mem::take(&mut self.stalled);
        waiting.retain(|id| {
            let Some(channel) = self.channels.get_mut(id) else { return false };
            if !channel.is_stalled() || !self.service.store.has_room(channel.key.volume) {
                return channel.is_stalled();
            }
            channel.resume();
            Reply::Resume(channel.last).put(&mut self.out, *id);
            false
        });
        self.stalled = waiting;
    }

    fn flush(&mut self, id: u32) {
        let Some(channel) = self.channels.get_mut(&id) else { return };
        if std::mem::replace(&mut channel.flushing, true) {
            channel.flush_again = true;
            return;
        }
        self.service.metrics.flushes.inc();
        let (store, key) = (&self.service.store, channel.key);
        self.slow.push(Box::pin(async move { Done::Flushed(id, store.flush(&key).await) }));
    }

    fn seal(&mut self, id: u32, volume: VolumeId, epoch: Epoch) {
        if self.slow.len() >= MAX_SLOW {
            return self.fail(id, &Error::unavailable("too many requests at a time"));
        }
        self.service.metrics.seals.inc();
        let store = &self.service.store;
        self.slow.push(Box::pin(async move {
            let sealed = store.seal(volume, epoch).await;
            Done::Sealed(id, sealed.map(|logs| (store.status(volume).0, logs)))
        }));
    }

    /// Fetches what clients have credit for, as long as they take it.
    fn fetch(&mut self) {
        if self.out.len() >= REPLIES {
            return;
        }
        for (id, reading) in self.reads.iter_mut().filter(|(_, r)| r.credit > 0 && !r.fetching) {
            if self.fetching >= MAX_FETCHES {
                return;
            }
            reading.fetching = true;
            self.fetching += 1;
            let (store, key, next, id) = (&self.service.store, reading.key, reading.next, *id);
            let max = FETCH.min(reading.credit as usize);
            self.slow.push(Box::pin(async move { Done::Fetched(id, store.read(&key, next, max).await) }));
        }
    }

    fn may_fetch(&self) -> bool {
        self.fetching < MAX_FETCHES && self.reads.values().any(|r| r.credit > 0 && !r.fetching)
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Flushed(id, Ok(lsn)) => {
                let Some(channel) = self.channels.get_mut(&id) else { return };
                channel.flushing = false;
                Reply::Flushed(lsn).put(&mut self.out, id);
                if std::mem::take(&mut channel.flush_again) {
                    self.flush(id);
                }
            }
            Done::Flushed(id, Err(error)) => {
                if self.channels.remove(&id).is_some() {
                    self.fail(id, &error);
                }
            }
            Done::Sealed(id, Ok((floor, logs))) => Reply::Logs(floor, logs).put(&mut self.out, id),
            Done::Sealed(id, Err(error)) => self.fail(id, &error),
            Done::Fetched(id, fetched) => {
                self.fetching -= 1;
                let Some(reading) = self.reads.get_mut(&id) else { return };
                reading.fetching = false;
                let error = match fetched {
                    Ok(entries) if !entries.is_empty() => {
                        for packed in entries {
                            let cost = (packed.bytes.len() + HEAD) as u64;
                            reading.credit = reading.credit.saturating_sub(cost);
                            reading.next = reading.next.next();
                            wire::put_data_head(&mut self.out, id, &packed);
                            self.out.extend_from_slice(&packed.bytes);
                        }
                        return;
                    }
                    Ok(_) => None,
                    Err(error) => Some(error),
                };
                self.reads.remove(&id);
                match error {
                    None => Reply::Done.put(&mut self.out, id),
                    Some(error) => self.fail(id, &error),
                }
            }
        }
    }
}
