//! Requests in, replies out: one task per connection.
//!
//! Each turn decodes every complete request in the buffer, polls the device's futures, sends all
//! replies that are ready with one system call, and reads again; the task sleeps when none of
//! these goes on. At queue depth 1 that is one receive and one send per request.
//!
//! Memory of a connection is bounded by `max_inflight_bytes` of payload (written bytes from the
//! header on, read bytes until they are sent), `max_inflight_requests` requests, and small change;
//! that of all connections by `memory`. When a bound is reached the socket is not read.

mod check;

use super::alone::{self, Habit, Threads};
use super::buffers::{Buffer, Buffers};
use super::handshake::{Chosen, Replies};
use super::inflight::{Done, Inflight, Outcome, Work};
use super::input::Input;
use super::meta::{self, Selected};
use super::proto::{self, Command, Request, flag};
use super::reply::Queue;
use super::socket::Line;
use super::stop::StopSignal;
use crate::config::Settings;
use crate::memory::{Memory, Share, Way};
use crate::metrics::Metrics;
use bytes::{Bytes, BytesMut};
use common::{BlockDevice, Clock, Error, ErrorKind, Geometry};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncWriteExt, ReadBuf};
use tokio::sync::watch;

/// Payload from here on is read straight into memory of its own; less goes through the buffer.
const STRAIGHT_FROM: u64 = 32 << 10;
/// Replies without payload that may pile up before requests are left in the socket.
const MAX_REPLIES: usize = 128 << 10;
/// Payload that is served, in parts that the device takes, to clients that never asked what it
/// takes.
const MAX_SERVED: u64 = 64 << 20;
/// Payload of a refused write that is read and thrown away; a larger one ends the connection.
const MAX_REFUSED: u64 = 128 << 20;
/// Turns without sleeping before other tasks get their turn.
const TURNS: usize = 32;
/// Quiet time after which a connection gives its large buffers back.
const QUIET: Duration = Duration::from_secs(5);
/// Failed requests of a connection that are logged one by one; then only powers of two.
const LOGGED: u64 = 8;

/// Why a transmission ended.
#[derive(Debug)]
pub enum End {
    /// The client said goodbye.
    Disconnected,
    /// The client went away without a word.
    Gone(Option<std::io::Error>),
    /// The client broke the protocol.
    Protocol(String),
    /// The server stops.
    Stopped,
}

/// What a transmission needs from the server.
#[derive(Clone)]
pub struct Serving {
    /// Bounds.
    pub settings: Arc<Settings>,
    /// For the payload of all connections.
    pub memory: Arc<Memory>,
    /// Counters.
    pub metrics: Metrics,
    /// For latencies and quiet connections.
    pub clock: Arc<dyn Clock>,
    /// Turns true when the server stops.
    pub shutdown: watch::Receiver<bool>,
    /// For clients that send one request at a time.
    pub threads: Threads,
    /// For large payloads.
    pub buffers: Buffers,
}

/// Serves requests until the client or the server ends it.
pub async fn transmit<S>(stream: &mut S, input: Input, chosen: &Chosen, context: &Serving) -> End
where
    S: Line,
{
    let stop = StopSignal::new(context.shutdown.clone());
    let mut connection = Connection {
        input,
        receive: Receive::Header,
        inflight: Inflight::new(context.settings.max_inflight_requests),
        done: Vec::new(),
        queue: Queue::new(chosen.replies),
        device: &*chosen.device,
        geometry: chosen.device.geometry(),
        extended: chosen.replies == Replies::Extended,
        structured: chosen.replies != Replies::Simple,
        contexts: &chosen.contexts,
        name: &chosen.name,
        memory: context.memory.share(&chosen.name),
        closing: None,
        stop,
        quiet: None,
        worked: false,
        habit: Habit::default(),
        alone: false,
        failures: 0,
        context,
    };
    let end = poll_fn(|cx| connection.poll(stream, cx)).await;
    drop(connection);
    if matches!(end, End::Disconnected | End::Stopped) {
        // Says goodbye in TLS; a client that is gone already does not mind.
        let _ = stream.shutdown().await;
    }
    end
}

/// What the next bytes of the client are.
enum Receive {
    Header,
    /// The payload of a write, which goes to memory of its own.
    Payload {
        request: Request,
        start: Duration,
        data: Buffer,
    },
    /// The payload of a request that is refused when it is complete.
    Refused {
        request: Request,
        errno: u32,
        message: &'static str,
        left: u64,
    },
}

/// Why decoding stopped.
#[derive(PartialEq, Eq, Clone, Copy)]
enum Want {
    /// More bytes are needed.
    Bytes,
    /// Something must complete first.
    Room,
}

struct Connection<'d> {
    input: Input,
    receive: Receive,
    inflight: Inflight<'d>,
    /// Kept for its memory.
    done: Vec<Done>,
    queue: Queue,
    device: &'d dyn BlockDevice,
    geometry: Geometry,
    extended: bool,
    structured: bool,
    contexts: &'d [Selected],
    name: &'d str,
    /// Payload in memory: of writes that are received or worked on, of reads until they are sent.
    memory: Share,
    /// Set when no more requests are read: how it ends once all replies are out.
    closing: Option<Closing>,
    stop: StopSignal,
    quiet: Option<Pin<Box<dyn Future<Output = ()> + Send + 'd>>>,
    /// Whether anything was received since `quiet` was set.
    worked: bool,
    habit: Habit,
    /// Whether this thread has the stream for itself.
    alone: bool,
    failures: u64,
    context: &'d Serving,
}

#[derive(Clone, Copy)]
enum Closing {
    Disconnected,
    Stopped,
}

impl<'d> Connection<'d> {
    fn poll<S: Line>(&mut self, stream: &mut S, cx: &mut Context<'_>) -> Poll<End> {
        self.notice_stop(cx);
        for _ in 0..TURNS {
            match self.turn(stream, cx) {
                Ok(true) => {}
                Ok(false) => {
                    if S::OWNABLE
                        && let Some(_thread) = self.habit.thread(&self.context.threads)
                    {
                        let served = tokio::task::block_in_place(|| self.serve_alone(stream, cx));
                        match served {
                            Ok(()) => continue,
                            Err(end) => return Poll::Ready(end),
                        }
                    }
                    self.watch_quiet(cx);
                    if self.inflight.arm(cx) {
                        return Poll::Pending;
                    }
                }
                Err(end) => return Poll::Ready(end),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn notice_stop(&mut self, cx: &mut Context<'_>) {
        if self.closing.is_none() && self.stop.poll(cx) {
            self.closing = Some(Closing::Stopped);
        }
    }

    /// Serves one request after the other on this thread, until there is more to do than that, or
    /// nothing.
    fn serve_alone<S: Line>(&mut self, stream: &mut S, cx: &mut Context<'_>) -> Result<(), End> {
        let gone = |e| End::Gone(Some(e));
        stream.take_out(alone::PATIENCE).map_err(gone)?;
        self.alone = true;
        self.context.metrics.alone.inc();
        let mut requests = 0;
        let served = common::blocking::allow(|| {
            while self.alone {
                let mut moved = self.turn(stream, cx)?;
                if !moved && self.inflight.len() > 0 {
                    // What it waits for may come from another router.
                    moved = common::blocking::look(|| self.inflight.is_ready());
                }
                let goes_on = moved && self.habit.is_single();
                requests += 1;
                if requests % alone::LOOK == 0 {
                    self.notice_stop(cx);
                }
                self.alone = goes_on && self.closing.is_none();
            }
            Ok(())
        });
        self.alone = false;
        self.context.metrics.alone.dec();
        self.habit.forget();
        stream.put_back().map_err(gone)?;
        served
    }

    /// One turn. Whether another one may get further.
    fn turn<S: Line>(&mut self, stream: &mut S, cx: &mut Context<'_>) -> Result<bool, End> {
        let mut moved = self.memory.poll(cx);
        let mut want = if self.closing.is_none() { self.decode()? } else { Want::Room };
        moved |= self.work();
        if !self.queue.is_empty() {
            let (freed, sent) = self.queue.poll_send(stream, cx).map_err(|e| End::Gone(Some(e)))?;
            self.memory.give(Way::Out, freed);
            moved |= freed > 0 || sent.is_ready();
        }
        if let Some(closing) = self.closing {
            if self.inflight.len() == 0 && self.queue.is_empty() {
                return Err(match closing {
                    Closing::Disconnected => End::Disconnected,
                    Closing::Stopped => End::Stopped,
                });
            }
            return Ok(moved);
        }
        if want == Want::Room && moved {
            // Room was made: what is in the buffer goes first.
            want = self.decode()?;
            if want == Want::Room {
                return Ok(true);
            }
        }
        let idle = self.is_idle();
        if want == Want::Bytes && self.closing.is_none() && (idle || !self.alone) {
            match self.fill(stream, cx) {
                Poll::Ready(Ok(0)) => return Err(End::Gone(None)),
                Poll::Ready(Ok(_)) => {
                    self.worked = true;
                    self.habit.received(idle);
                    moved = true;
                }
                // TLS without its goodbye; a TCP client need not say any either.
                Poll::Ready(Err(e)) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
                    return Err(End::Gone(None));
                }
                Poll::Ready(Err(e)) => return Err(End::Gone(Some(e))),
                Poll::Pending => {}
            }
        }
        Ok(moved || self.closing.is_some())
    }

    /// Reads once, to where the next bytes belong.
    fn fill<S: Line>(&mut self, stream: &mut S, cx: &mut Context<'_>) -> Poll<std::io::Result<usize>> {
        if let Receive::Payload { data, .. } = &mut self.receive {
            let mut rest = ReadBuf::new(data.rest());
            ready!(Pin::new(stream).poll_read(cx, &mut rest))?;
            let n = rest.filled().len();
            data.advance(n);
            return Poll::Ready(Ok(n));
        }
        self.input.poll_fill(stream, cx)
    }

    /// Whether there is nothing to do before more bytes come, and they begin something new.
    fn is_idle(&self) -> bool {
        let header = matches!(self.receive, Receive::Header);
        header && self.inflight.len() == 0 && self.queue.is_empty()
    }

    /// Polls the device's futures and queues the replies of those that are done.
    fn work(&mut self) -> bool {
        if self.inflight.len() == 0 {
            return false;
        }
        let mut done = std::mem::take(&mut self.done);
        let polled = self.inflight.poll(&mut done);
        if !done.is_empty() {
            let now = self.context.clock.now();
            for one in done.drain(..) {
                self.complete(one, now);
            }
        }
        self.done = done;
        polled
    }

    /// Starts every complete request in the buffer.
    fn decode(&mut self) -> Result<Want, End> {
        let mut now = None;
        loop {
            match std::mem::replace(&mut self.receive, Receive::Header) {
                Receive::Header => {}
                Receive::Payload { request, start, data } => {
                    if (data.len() as u64) < request.length {
                        self.receive = Receive::Payload { request, start, data };
                        return Ok(Want::Bytes);
                    }
                    self.write(request, start, data.freeze());
                }
                Receive::Refused { request, errno, message, left } => {
                    let here = left.min(self.input.bytes().len() as u64);
                    self.input.consume(here as usize);
                    if here < left {
                        self.receive = Receive::Refused { request, errno, message, left: left - here };
                        return Ok(Want::Bytes);
                    }
                    self.refuse(&request, errno, message);
                }
            }
            if self.inflight.is_full() || self.queue.held() > MAX_REPLIES {
                return Ok(Want::Room);
            }
            let header = proto::decode_request(self.input.bytes(), self.extended);
            let Some((request, size)) = header.map_err(|e| End::Protocol(e.0.to_owned()))? else {
                return Ok(Want::Bytes);
            };
            if request.command == Command::Disconnect {
                self.closing = Some(Closing::Disconnected);
                return Ok(Want::Room);
            }
            let payload = request.payload();
            if let Err((errno, message)) = self.check(&request) {
                if payload > MAX_REFUSED {
                    return Err(End::Protocol(format!(
                        "a {} of {payload} bytes at {}: {message}",
                        request.command.name(),
                        request.offset
                    )));
                }
                self.input.consume(size);
                self.receive = Receive::Refused { request, errno, message, left: payload };
                continue;
            }
            let (way, held) = match request.command {
                Command::Read => (Way::Out, request.length),
                _ => (Way::In, payload),
            };
            let (now_held, limit) = (self.memory.held(), self.context.settings.max_inflight_bytes);
            if now_held > 0 && now_held.saturating_add(held) > limit {
                return Ok(Want::Room);
            }
            let buffered = self.input.bytes().len() - size;
            if payload > buffered as u64 && payload < STRAIGHT_FROM {
                // Small and incomplete: it will be, and then it is copied once.
                self.input.hold(size + payload as usize);
                return Ok(Want::Bytes);
            }
            if held > 0 && !self.memory.take(way, held) {
                return Ok(Want::Room);
            }
            let start = *now.get_or_insert_with(|| self.context.clock.now());
            self.input.consume(size);
            self.habit.started();
            if request.command != Command::Write {
                self.start(request, start);
            } else if payload <= buffered as u64 {
                let data = Bytes::copy_from_slice(&self.input.bytes()[..payload as usize]);
                self.input.consume(payload as usize);
                self.write(request, start, data);
            } else {
                let Some(mut data) = self.context.buffers.take(payload as usize) else {
                    return Err(End::Protocol(format!("no memory for a payload of {payload} bytes")));
                };
                data.rest()[..buffered].copy_from_slice(self.input.bytes());
                data.advance(buffered);
                self.input.consume(buffered);
                self.input.stay_small();
                self.receive = Receive::Payload { request, start, data };
            }
        }
    }

    /// The smallest unit of a request to the device.
    fn unit(&self) -> u64 {
        u64::from(self.geometry.min_block.max(1))
    }

    /// Starts a checked read of something, widened to whole units of the device.
    fn read(&mut self, offset: u64, length: u64) -> Work<'d> {
        let unit = self.unit();
        let from = offset - offset % unit;
        let to = (offset + length).next_multiple_of(unit).min(self.geometry.size);
        let (device, part) = (self.device, self.part());
        if to - from > part {
            return Work::Read(Box::pin(async move {
                let mut all = BytesMut::with_capacity((to - from) as usize);
                for at in (from..to).step_by(part as usize) {
                    all.extend_from_slice(&device.read(at, part.min(to - at) as u32).await?);
                }
                Ok(all.freeze())
            }));
        }
        // No more than the device's maximum, which has 32 bits.
        Work::Read(device.read(from, (to - from) as u32))
    }

    /// The most that the device takes in one request, in whole units.
    fn part(&self) -> u64 {
        let most = u64::from(self.geometry.max_payload);
        (most - most % self.unit()).max(self.unit())
    }

    /// Starts a checked request without payload.
    fn start(&mut self, request: Request, start: Duration) {
        let Request { flags, offset, length, .. } = request;
        let fua = flags & flag::FUA != 0;
        let device = self.device;
        let work = match request.command {
            Command::Flush => Work::Unit(device.flush()),
            _ if length == 0 => {
                let outcome = match request.command {
                    Command::Read => Outcome::Read(Ok(Bytes::new())),
                    _ => Outcome::Unit(Ok(())),
                };
                return self.complete(Done { request, start, outcome }, start);
            }
            Command::Read => self.read(offset, length),
            Command::Trim => Work::Unit(device.discard(offset, length, fua)),
            Command::WriteZeroes => {
                Work::Unit(device.write_zeroes(offset, length, flags & flag::NO_HOLE == 0, fua))
            }
            Command::Cache => Work::Unit(device.prefetch(offset, length)),
            Command::BlockStatus => {
                let one = flags & flag::REQ_ONE != 0;
                Work::Status(Box::pin(meta::status(device, self.contexts, offset, length, one)))
            }
            Command::Write | Command::Disconnect | Command::Unknown => return,
        };
        self.inflight.push(request, start, work);
    }

    /// Starts a write whose payload is complete.
    fn write(&mut self, request: Request, start: Duration, data: Bytes) {
        self.context.metrics.bytes_written.inc_by(data.len() as u64);
        if data.is_empty() {
            return self.complete(Done { request, start, outcome: Outcome::Unit(Ok(())) }, start);
        }
        let fua = request.flags & flag::FUA != 0;
        let (device, offset, part) = (self.device, request.offset, self.part());
        let work = if data.len() as u64 > part {
            Box::pin(async move {
                let mut rest = data;
                let mut at = offset;
                while !rest.is_empty() {
                    let next = rest.split_to(rest.len().min(part as usize));
                    let length = next.len() as u64;
                    device.write(at, next, fua).await?;
                    at += length;
                }
                Ok(())
            })
        } else {
            device.write(offset, data, fua)
        };
        self.inflight.push(request, start, Work::Unit(work));
    }

    /// Queues the reply of a request that is done.
    fn complete(&mut self, done: Done, now: Duration) {
        let Done { request, start, outcome } = done;
        self.context.metrics.request(request.command, now.saturating_sub(start));
        self.memory.give(Way::In, request.payload());
        match outcome {
            Outcome::Unit(Ok(())) => self.queue.ok(&request),
            Outcome::Read(Ok(data)) if data.len() as u64 > request.length => {
                // It was widened.
                let skip = (request.offset % self.unit()) as usize;
                let end = skip + request.length as usize;
                let data = if end <= data.len() { data.slice(skip..end) } else { Bytes::new() };
                self.read_done(&request, data);
            }
            Outcome::Read(Ok(data)) => self.read_done(&request, data),
            Outcome::Read(Err(e)) => {
                self.memory.give(Way::Out, request.length);
                self.fail(&request, &e);
            }
            Outcome::Status(Ok(contexts)) => self.queue.status(&request, &contexts),
            Outcome::Unit(Err(e)) | Outcome::Status(Err(e)) => self.fail(&request, &e),
        }
    }

    /// Queues the reply of a read.
    fn read_done(&mut self, request: &Request, data: Bytes) {
        if data.len() as u64 == request.length {
            self.context.metrics.bytes_read.inc_by(request.length);
            let freed = self.queue.data(request, data);
            self.memory.give(Way::Out, freed);
        } else {
            self.memory.give(Way::Out, request.length);
            let message = format!("the device read {} bytes of {}", data.len(), request.length);
            self.fail(request, &Error::internal(message));
        }
    }

    /// Answers a request with the device's error.
    fn fail(&mut self, request: &Request, error: &Error) {
        self.queue.error(request, error.kind.nbd_errno(), error.message());
        self.context.metrics.error(error.kind);
        self.failures += 1;
        if self.failures <= LOGGED || self.failures.is_power_of_two() {
            tracing::warn!(
                export = self.name,
                command = request.command.name(),
                offset = request.offset,
                length = request.length,
                failures = self.failures,
                "request failed: {error}"
            );
        }
    }

    /// Answers a request that never got to the device.
    fn refuse(&mut self, request: &Request, errno: u32, message: &str) {
        self.queue.error(request, errno, message);
        self.context.metrics.request(request.command, Duration::ZERO);
        self.context.metrics.error(ErrorKind::Invalid);
        tracing::debug!(
            export = self.name,
            command = request.command.name(),
            offset = request.offset,
            length = request.length,
            "request refused: {message}"
        );
    }

    /// Gives large buffers back when nothing came for a while.
    fn watch_quiet(&mut self, cx: &mut Context<'_>) {
        if self.inflight.len() > 0 || !self.input.is_large() {
            return;
        }
        let context = self.context;
        loop {
            let quiet = self.quiet.get_or_insert_with(|| {
                self.worked = false;
                context.clock.sleep(QUIET)
            });
            if quiet.as_mut().poll(cx).is_pending() {
                return;
            }
            self.quiet = None;
            if !self.worked {
                self.input.shrink();
                self.queue.shrink();
                return;
            }
        }
    }
}
