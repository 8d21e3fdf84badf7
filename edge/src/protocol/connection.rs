//! Frames in, replies out: one task per connection.
//!
//! A request is begun where it is decoded, and answered there when the device answers at once. What takes longer goes
//! on beside the rest, and is run to its end also when the connection is gone: a request that is cut off could take
//! effect at any later time (rule 3).
//!
//! Payload takes from the memory of all connections: a large one before it is received, and what is read until it is
//! sent. While there is none, nothing is received, and the client hears that the router lives.

use super::check::check;
use super::door::Attached;
use super::server::Server;
use crate::memory::{Account, Held, Way};
use common::alone::Solo;
use common::{Error, Geometry, Lsn};
use edge_client::outgoing::Outgoing;
use edge_client::transport::Stream;
use edge_client::wire::{
    self, Attach, Credit, Decoder, Frame, MAX_SMALL, Op, Outcome, PROLOGUE, Refusal, Reply, Request,
    ToClient, ToServer,
};
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;

/// Replies that may pile up before requests are left in the socket; payload is bounded by credit as well.
const REPLIES: usize = 1 << 20;

/// How often a client whose requests are not read hears that the router lives: more often than it needs to.
const BEAT: Duration = Duration::from_millis(500);

/// Why a connection ended.
pub enum End {
    /// It broke, or nobody is there.
    Gone(String),
    /// What came makes no sense.
    Protocol(String),
}

/// What a slow thing came to.
enum Done {
    Attached(u32, Result<Arc<dyn Attached>, Refusal>),
    Detached(u32),
    Replied(u32, Credit, Reply, Option<Held>),
}

struct Channel {
    attached: Arc<dyn Attached>,
    account: Account,
    geometry: Geometry,
    /// What the client may have under way in addition.
    credit: Credit,
}

enum Slot {
    /// Somebody is being attached to an export that takes from here.
    Opening(Account),
    Open(Channel),
    /// Requests of before go on.
    Closing,
}

/// There is no memory; nothing is received until there is.
struct Waiting<'s> {
    held: BoxFuture<'s, Held>,
    /// What it is for; `None`: the payload that comes next.
    request: Option<(u32, Request)>,
    beat: BoxFuture<'s, ()>,
}

struct Connection<'s> {
    server: &'s Server,
    channels: HashMap<u32, Slot>,
    /// Dropped with the connection.
    attaching: FuturesUnordered<BoxFuture<'s, Done>>,
    /// Run to their end.
    slow: FuturesUnordered<BoxFuture<'s, Done>>,
    out: Outgoing,
    decoder: Decoder,
    waiting: Option<Waiting<'s>>,
    /// For the payload that is being received.
    reserved: Option<Held>,
    /// What was read and is not sent yet: it is when so many bytes have been.
    unsent: VecDeque<(u64, Held)>,
}

/// Serves `stream` to its end.
pub async fn serve(
    server: &Server,
    mut stream: Stream,
    mut shutdown: watch::Receiver<bool>,
) -> Result<(), End> {
    let idle = Duration::from_secs(server.settings.idle_seconds);
    greet(server, &mut stream, idle).await?;
    let mut connection = Connection {
        server,
        channels: HashMap::new(),
        attaching: FuturesUnordered::new(),
        slow: FuturesUnordered::new(),
        out: Outgoing::default(),
        decoder: Decoder::default(),
        waiting: None,
        reserved: None,
        unsent: VecDeque::new(),
    };
    let solo = Solo::new(server.threads.clone(), true);
    let end = match stream.read.attend(&solo) {
        true => solo.run(connection.run(stream, idle, &mut shutdown, &solo)).await,
        false => connection.run(stream, idle, &mut shutdown, &solo).await,
    };
    // The clients are gone for their volumes, but what they asked for is not: a session drains.
    connection.close_all();
    connection.attaching.clear();
    (connection.waiting, connection.reserved) = (None, None);
    connection.unsent.clear();
    while connection.slow.next().await.is_some() {}
    end
}

fn gone(e: std::io::Error) -> End {
    End::Gone(e.to_string())
}

async fn greet(server: &Server, stream: &mut Stream, idle: Duration) -> Result<(), End> {
    let mut first = [0u8; PROLOGUE];
    tokio::select! {
        biased;
        done = stream.read.read_exact(&mut first) => { done.map_err(gone)?; }
        () = server.clock.sleep(idle) => return Err(End::Gone("no prologue came".into())),
    }
    let (lowest, highest) = wire::prologue(&first).map_err(|e| End::Protocol(e.into()))?;
    let version = wire::choose_version(lowest, highest);
    let mut out = bytes::BytesMut::with_capacity(512);
    wire::put_prologue(&mut out, version.unwrap_or(0), version.unwrap_or(0));
    if version.is_some() {
        let _ = ToClient::Hello(server.name.clone()).put(&mut out, 0);
    }
    stream.write.write_all_buf(&mut out).await.map_err(gone)?;
    stream.write.flush().await.map_err(gone)?;
    match version {
        Some(_) => Ok(()),
        None => Err(End::Protocol(format!("versions {lowest} to {highest} are not spoken here"))),
    }
}

impl<'s> Connection<'s> {
    async fn run(
        &mut self,
        stream: Stream,
        idle: Duration,
        shutdown: &mut watch::Receiver<bool>,
        solo: &Solo,
    ) -> Result<(), End> {
        let Stream { mut read, mut write } = stream;
        let clock = &self.server.clock;
        let mut quiet = clock.sleep(idle);
        let mut heard = false;
        let stop = async {
            // Without its sender nobody could say stop any more.
            let _ = shutdown.wait_for(|stop| *stop).await;
        };
        tokio::pin!(stop);
        loop {
            let mut requests = 0;
            // A client that asks and does not read the answers is asked to wait, not served.
            while self.out.len() < REPLIES && self.waiting.is_none() {
                let frame = self.decoder.frame().map_err(|e| End::Protocol(e.into()))?;
                let Some(frame) = frame else {
                    self.reserve();
                    break;
                };
                heard = true;
                requests += 1;
                self.frame(frame).await?;
            }
            // However much comes in, what is slow gets on.
            while let Some(Some(done)) = self.slow.next().now_or_never() {
                self.done(done);
            }
            while let Some(Some(done)) = self.attaching.next().now_or_never() {
                self.done(done);
            }
            let was_full = self.out.len() >= REPLIES;
            if !self.out.is_empty() {
                let sent = poll_fn(|cx| Poll::Ready(self.out.poll_send(&mut write, cx))).await;
                if let Poll::Ready(sent) = sent {
                    sent.map_err(gone)?;
                }
            }
            let sent = self.out.queued() - self.out.len() as u64;
            while self.unsent.pop_front_if(|(end, _)| *end <= sent).is_some() {}
            let full = self.out.len() >= REPLIES;
            if was_full && !full {
                // Requests may be there that were not looked at.
                continue;
            }
            let sending = !self.out.is_empty();
            let deaf = full || self.waiting.is_some();
            solo.turn(requests, !sending && !deaf && self.slow.is_empty() && self.attaching.is_empty());
            let Connection { out, slow, attaching, decoder, waiting, .. } = self;
            tokio::select! {
                biased;
                n = read.read_buf(decoder.buffer()), if !deaf => {
                    if n.map_err(gone)? == 0 {
                        return Ok(());
                    }
                }
                Some(done) = slow.next(), if !slow.is_empty() => self.done(done),
                Some(done) = attaching.next(), if !attaching.is_empty() => self.done(done),
                sent = poll_fn(|cx| out.poll_send(&mut write, cx)), if sending => sent.map_err(gone)?,
                held = wait(waiting) => match held {
                    Some(held) => self.take_up(held).await,
                    None => {
                        heard = true;
                        self.beat();
                    }
                },
                () = &mut quiet => {
                    if !heard {
                        return Err(End::Gone("nothing was heard for too long".into()));
                    }
                    heard = false;
                    quiet = clock.sleep(idle);
                }
                () = &mut stop => {
                    self.stop(&mut write).await;
                    return Ok(());
                }
            }
        }
    }

    /// Lets what is under way finish, and says that it will be elsewhere, or here later.
    async fn stop(&mut self, write: &mut edge_client::transport::WriteHalf) {
        while let Some(done) = self.slow.next().await {
            self.done(done);
        }
        let ids: Vec<u32> = self.channels.keys().copied().collect();
        for id in ids {
            let closed = ToClient::Closed(Error::unavailable("the router stops"));
            self.out.frame(|buffer| closed.put(buffer, id));
        }
        let send = poll_fn(|cx| self.out.poll_send(write, cx));
        tokio::select! {
            biased;
            _ = send => {}
            () = self.server.clock.sleep(Duration::from_secs(1)) => {}
        }
    }

    fn close_all(&mut self) {
        for (_, slot) in self.channels.drain() {
            if matches!(slot, Slot::Open(_)) {
                self.server.metrics.attachments.dec();
            }
        }
    }

    async fn frame(&mut self, frame: Frame) -> Result<(), End> {
        let id = frame.channel;
        match frame.to_server().map_err(|e| End::Protocol(e.into()))? {
            ToServer::Request(request) => return self.request(id, request).await,
            ToServer::Attach(attach) => self.attach(id, attach)?,
            ToServer::Detach => self.detach(id),
            ToServer::Leave => self.leave(id),
            ToServer::Ping => self.ping(id),
        }
        Ok(())
    }

    fn attach(&mut self, id: u32, attach: Attach) -> Result<(), End> {
        if self.channels.contains_key(&id) {
            return Err(End::Protocol(format!("channel {id} is open already")));
        }
        if self.channels.len() >= self.server.settings.max_channels {
            let refusal = Refusal::Failed(Error::unavailable("too many attachments on one connection"));
            self.out.frame(|buffer| ToClient::Refused(refusal).put(buffer, id));
            return Ok(());
        }
        self.channels.insert(id, Slot::Opening(self.server.memory.account(&attach.export)));
        let attachments = &self.server.attachments;
        self.attaching.push(async move { Done::Attached(id, attachments.attach(attach).await) }.boxed());
        Ok(())
    }

    /// What came before it is answered before it is.
    fn detach(&mut self, id: u32) {
        let Some(Slot::Open(channel)) = self.channels.get(&id) else { return };
        let attached = channel.attached.clone();
        self.channels.insert(id, Slot::Closing);
        self.server.metrics.attachments.dec();
        self.slow.push(
            async move {
                attached.detach().await;
                Done::Detached(id)
            }
            .boxed(),
        );
    }

    /// Also while it is being opened: then what comes of that is dropped.
    fn leave(&mut self, id: u32) {
        if let Some(Slot::Open(_)) = self.channels.remove(&id) {
            self.server.metrics.attachments.dec();
        }
    }

    fn ping(&mut self, id: u32) {
        self.out.frame(|buffer| ToClient::Pong.put(buffer, id));
        for (id, slot) in &mut self.channels {
            let Slot::Open(channel) = slot else { continue };
            channel.attached.heard();
            let geometry = channel.attached.geometry();
            if geometry.size != channel.geometry.size {
                self.out.frame(|buffer| ToClient::Resized(geometry.size).put(buffer, *id));
            }
            channel.geometry = geometry;
        }
    }

    /// Takes memory for the payload that comes next, if that is a large one.
    fn reserve(&mut self) {
        let Some((id, len)) = self.decoder.coming().filter(|(_, len)| *len > MAX_SMALL) else { return };
        let Some(Slot::Open(channel)) = self.channels.get(&id) else { return };
        if self.reserved.is_none() {
            self.reserved = channel.account.take(Way::In, len as u32);
        }
        if self.reserved.is_none() {
            let held = channel.account.wait(Way::In, len as u32).boxed();
            self.wait(held, None);
        }
    }

    fn wait(&mut self, held: BoxFuture<'s, Held>, request: Option<(u32, Request)>) {
        self.server.metrics.memory_waits.inc();
        self.waiting = Some(Waiting { held, request, beat: self.server.clock.sleep(BEAT) });
    }

    /// What the client says is not read; it is to know that somebody is there.
    fn beat(&mut self) {
        self.out.frame(|buffer| ToClient::Pong.put(buffer, 0));
        if let Some(waiting) = &mut self.waiting {
            waiting.beat = self.server.clock.sleep(BEAT);
        }
    }

    /// There is memory for what waited.
    async fn take_up(&mut self, held: Held) {
        match self.waiting.take().and_then(|waiting| waiting.request) {
            Some((id, request)) => self.begin(id, request, Some(held)).await,
            None => self.reserved = Some(held),
        }
    }

    async fn request(&mut self, id: u32, request: Request) -> Result<(), End> {
        let reserved = self.reserved.take();
        let Some(Slot::Open(channel)) = self.channels.get_mut(&id) else {
            // What is said in a channel that is not open is late.
            return Ok(());
        };
        let cost = request.op.cost();
        let left = channel.credit.requests.checked_sub(cost.requests);
        let (Some(requests), Some(bytes)) = (left, channel.credit.bytes.checked_sub(cost.bytes)) else {
            return Err(End::Protocol("more is under way than there was credit for".into()));
        };
        channel.credit = Credit { requests, bytes };
        let (sequence, epoch) = (request.sequence, request.epoch);
        let checked = check(&channel.geometry, &request.op).or_else(|_| {
            // It may have grown.
            channel.geometry = channel.attached.geometry();
            check(&channel.geometry, &request.op)
        });
        if let Err(error) = checked {
            let outcome = Outcome::Failed(error);
            let grant = Credit::default();
            let reply = Reply {
                sequence,
                epoch,
                lsn: Lsn(0),
                in_sync: channel.attached.granted().in_sync,
                grant,
                outcome,
            };
            self.done(Done::Replied(id, cost, reply, None));
            return Ok(());
        }
        let way = if matches!(request.op, Op::Read { .. }) { Way::Out } else { Way::In };
        if cost.bytes == 0 || way == Way::In && reserved.is_some() {
            self.begin(id, request, reserved).await;
        } else if let Some(held) = channel.account.take(way, cost.bytes) {
            self.begin(id, request, Some(held)).await;
        } else {
            let held = channel.account.wait(way, cost.bytes).boxed();
            self.wait(held, Some((id, request)));
        }
        Ok(())
    }

    async fn begin(&mut self, id: u32, request: Request, held: Option<Held>) {
        // One that waited may be late as well.
        let Some(Slot::Open(channel)) = self.channels.get(&id) else { return };
        let cost = request.op.cost();
        let attached = channel.attached.clone();
        let mut call = async move { Done::Replied(id, cost, attached.call(request).await, held) }.boxed();
        match futures::poll!(&mut call) {
            Poll::Ready(done) => self.done(done),
            Poll::Pending => self.slow.push(call),
        }
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Attached(id, Ok(attached)) => self.opened(id, attached),
            Done::Attached(id, Err(refusal)) => {
                self.channels.remove(&id);
                if matches!(refusal, Refusal::Moved(_)) {
                    self.server.metrics.moved.inc();
                }
                self.out.frame(|buffer| ToClient::Refused(refusal).put(buffer, id));
            }
            Done::Detached(id) => {
                self.channels.remove(&id);
                self.out.frame(|buffer| ToClient::Detached.put(buffer, id));
            }
            Done::Replied(id, cost, mut reply, held) => {
                let metrics = &self.server.metrics;
                metrics.requests.inc();
                match &reply.outcome {
                    Outcome::Failed(_) => _ = metrics.errors.inc(),
                    Outcome::Moved(_) => _ = metrics.moved.inc(),
                    _ => {}
                }
                match self.channels.get_mut(&id) {
                    Some(Slot::Open(channel)) => {
                        channel.credit.requests += cost.requests;
                        channel.credit.bytes += cost.bytes;
                        reply.grant = cost;
                    }
                    Some(_) => {}
                    None => return,
                }
                self.out.frame(|buffer| reply.put(buffer, id));
                if let (Outcome::Data(_), Some(held)) = (&reply.outcome, held) {
                    self.unsent.push_back((self.out.queued(), held));
                }
            }
        }
    }

    fn opened(&mut self, id: u32, attached: Arc<dyn Attached>) {
        let Some(Slot::Opening(account)) = self.channels.get(&id) else { return };
        let account = account.clone();
        let settings = &self.server.settings;
        let mut granted = attached.granted();
        let most = granted.geometry.max_payload;
        let mut credit =
            Credit { requests: settings.window_requests, bytes: settings.window_bytes.max(most) };
        if granted.credit.requests > 0 {
            // Of an owner that is elsewhere: no more may be under way there.
            credit.requests = credit.requests.min(granted.credit.requests);
            credit.bytes = credit.bytes.min(granted.credit.bytes);
        }
        granted.credit = credit;
        self.decoder.allow(most);
        self.server.metrics.attachments.inc();
        let geometry = granted.geometry;
        self.channels.insert(id, Slot::Open(Channel { attached, account, geometry, credit }));
        self.out.frame(|buffer| ToClient::Attached(granted).put(buffer, id));
    }
}

/// Memory for what waits; `None` when its client should hear something. Never, if nothing waits.
async fn wait(waiting: &mut Option<Waiting<'_>>) -> Option<Held> {
    let Some(waiting) = waiting else { return std::future::pending().await };
    tokio::select! {
        biased;
        held = &mut waiting.held => Some(held),
        () = &mut waiting.beat => None,
    }
}
