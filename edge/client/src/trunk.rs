//! One connection to a router for the attachments of many clients: what a router that forwards has to each owner.
//!
//! A channel stands for one session of one client, whose attachment, session, epoch and sequence numbers it passes on
//! as they are. Nothing is ever sent a second time (rule 3): when the connection breaks, all its channels end, and each
//! client attaches again in a session of its own.

use crate::incoming::{Incoming, greet};
use crate::link::Link;
use crate::transport::Dial;
use crate::wire::{self, Attach, Granted, Refusal, Reply, Request, ToClient, ToServer};
use common::{Clock, Error, Geometry, Result};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Poll, Waker};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// How patient a trunk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// A router is asked for a sign of life this often.
    pub heartbeat: Duration,
    /// One that gives no sign for this long is dead; also while connecting.
    pub timeout: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience { heartbeat: Duration::from_millis(500), timeout: Duration::from_secs(2) }
    }
}

/// The connection.
pub struct Trunk {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    link: Link,
    next: AtomicU32,
    /// `None`: the connection is gone.
    lanes: Mutex<Option<HashMap<u32, Lane>>>,
}

enum Lane {
    Opening(oneshot::Sender<Result<Granted, Refusal>>),
    Open(OpenLane),
}

#[derive(Default)]
struct OpenLane {
    geometry: Option<Geometry>,
    calls: HashMap<u64, Call>,
    closed: Option<Error>,
    detached: Option<oneshot::Sender<()>>,
}

#[derive(Default)]
struct Call {
    waker: Option<Waker>,
    reply: Option<Reply>,
}

fn broken() -> Error {
    Error::new(common::ErrorKind::NotOwner, "the connection to the owner broke")
}

impl Trunk {
    /// Connects to the router at `address`.
    ///
    /// # Errors
    /// `Unavailable`: it does not answer.
    pub async fn connect(
        dial: &dyn Dial,
        address: &str,
        patience: Patience,
        clock: Arc<dyn Clock>,
    ) -> Result<Trunk> {
        let failed = |why: &str| Error::unavailable(format!("{address}: {why}"));
        let (write, mut incoming) = tokio::select! {
            biased;
            greeted = greet(dial, address) => greeted.map_err(|e| failed(&e))?,
            () = clock.sleep(patience.timeout) => return Err(failed("no answer")),
        };
        incoming.decoder.allow(wire::MAX_PAYLOAD);
        let shared = Arc::new(Shared {
            link: Link::new(),
            next: AtomicU32::new(1),
            lanes: Mutex::new(Some(HashMap::new())),
        });
        shared.link.connect(write);
        let (address, inner) = (address.to_owned(), shared.clone());
        let task = tokio::spawn(async move {
            let why = inner.serve(incoming, patience, &*clock).await;
            tracing::info!(address, "edge: the connection to another router ended: {why}");
            inner.end();
        });
        Ok(Trunk { shared, task })
    }

    /// Whether nothing goes over it any more.
    pub fn is_broken(&self) -> bool {
        self.shared.lanes.lock().is_none()
    }

    /// Attaches a client there, in the name of the client.
    ///
    /// # Errors
    /// What the router says; `Unavailable` when the connection broke.
    pub async fn attach(&self, attach: Attach) -> Result<Channel, Refusal> {
        let (sender, answer) = oneshot::channel();
        let shared = self.shared.clone();
        let id = shared.next.fetch_add(1, Ordering::Relaxed);
        let gone = || Refusal::Failed(Error::unavailable("the connection to the owner broke"));
        match &mut *shared.lanes.lock() {
            Some(lanes) => _ = lanes.insert(id, Lane::Opening(sender)),
            None => return Err(gone()),
        }
        // Given up half-way, it is left as well.
        let mut channel = Channel { shared, id, granted: None };
        channel.send(&ToServer::Attach(attach));
        let granted = match answer.await {
            Ok(Ok(granted)) => granted,
            Ok(Err(refusal)) => return Err(refusal),
            Err(_) => return Err(gone()),
        };
        channel.granted = Some(granted);
        Ok(channel)
    }
}

impl Drop for Trunk {
    fn drop(&mut self) {
        self.task.abort();
        self.shared.end();
    }
}

impl Shared {
    fn end(&self) {
        self.link.disconnect();
        let Some(lanes) = self.lanes.lock().take() else { return };
        for lane in lanes.into_values() {
            if let Lane::Open(lane) = lane {
                lane.calls.into_values().filter_map(|call| call.waker).for_each(Waker::wake);
            }
        }
    }

    async fn serve(&self, mut incoming: Incoming, patience: Patience, clock: &dyn Clock) -> String {
        let mut heard = clock.now();
        let mut beat = clock.sleep(patience.heartbeat);
        loop {
            self.link.drive_again();
            if self.link.is_broken() {
                return "it does not take anything".into();
            }
            tokio::select! {
                biased;
                n = incoming.fill() => {
                    match n {
                        Ok(0) => return "it closed the connection".into(),
                        Ok(_) => heard = clock.now(),
                        Err(error) => return error.to_string(),
                    }
                    loop {
                        match incoming.decoder.frame() {
                            Ok(None) => break,
                            Ok(Some(frame)) => {
                                let id = frame.channel;
                                match frame.to_client() {
                                    Ok(said) => self.said(id, said),
                                    Err(why) => return why.into(),
                                }
                            }
                            Err(why) => return why.into(),
                        }
                    }
                }
                () = self.link.woken() => {}
                () = &mut beat => {
                    let silence = clock.now().saturating_sub(heard);
                    if silence >= patience.timeout {
                        return format!("no sign of life for {silence:?}");
                    }
                    self.link.frame(|buffer| ToServer::Ping.put(buffer, 0));
                    beat = clock.sleep(patience.heartbeat);
                }
            }
        }
    }

    fn said(&self, id: u32, said: ToClient) {
        let mut lanes = self.lanes.lock();
        let Some(lanes) = &mut *lanes else { return };
        let Some(lane) = lanes.get_mut(&id) else { return };
        match (lane, said) {
            (Lane::Opening(_), ToClient::Attached(granted)) => {
                let open = OpenLane { geometry: Some(granted.geometry), ..OpenLane::default() };
                if let Some(Lane::Opening(waiting)) = lanes.insert(id, Lane::Open(open)) {
                    let _ = waiting.send(Ok(granted));
                }
            }
            (Lane::Opening(_), ToClient::Refused(refusal)) => {
                if let Some(Lane::Opening(waiting)) = lanes.remove(&id) {
                    let _ = waiting.send(Err(refusal));
                }
            }
            (Lane::Open(lane), ToClient::Reply(reply)) => {
                if let Some(call) = lane.calls.get_mut(&reply.sequence) {
                    call.reply = Some(reply);
                    if let Some(waker) = call.waker.take() {
                        waker.wake();
                    }
                }
            }
            (Lane::Open(lane), ToClient::Resized(size)) => {
                if let Some(geometry) = &mut lane.geometry {
                    geometry.size = size;
                }
            }
            (Lane::Open(lane), ToClient::Closed(error)) => {
                lane.closed = Some(error);
                lane.calls.values_mut().filter_map(|call| call.waker.take()).for_each(Waker::wake);
            }
            (Lane::Open(lane), ToClient::Detached) => {
                _ = lane.detached.take().map(|waiting| waiting.send(()))
            }
            _ => {}
        }
    }

    fn with<T>(&self, id: u32, f: impl FnOnce(&mut OpenLane) -> T) -> Option<T> {
        match self.lanes.lock().as_mut()?.get_mut(&id) {
            Some(Lane::Open(lane)) => Some(f(lane)),
            _ => None,
        }
    }
}

/// One session of one client over a trunk. Dropped, it is the end of the session, not of the attachment.
pub struct Channel {
    shared: Arc<Shared>,
    id: u32,
    granted: Option<Granted>,
}

impl Channel {
    /// What the owner said.
    pub fn granted(&self) -> Option<Granted> {
        let geometry = self.shared.with(self.id, |lane| lane.geometry).flatten();
        self.granted.map(|granted| Granted { geometry: geometry.unwrap_or(granted.geometry), ..granted })
    }

    /// Passes a request on, and its reply back.
    ///
    /// # Errors
    /// Nobody knows what becomes of the request; this session can't say.
    pub async fn call(&self, request: Request) -> Result<Reply> {
        struct Waiting<'c>(&'c Channel, u64);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                self.0.shared.with(self.0.id, |lane| lane.calls.remove(&self.1));
            }
        }
        let sequence = request.sequence;
        let waiting = Waiting(self, sequence);
        self.shared.with(self.id, |lane| lane.calls.insert(sequence, Call::default())).ok_or_else(broken)?;
        self.shared.link.frame(|buffer| request.put(buffer, self.id));
        self.shared.link.drive();
        let reply = poll_fn(|cx| {
            let found = self.shared.with(self.id, |lane| {
                let Some(call) = lane.calls.get_mut(&sequence) else { return Poll::Ready(Err(broken())) };
                if let Some(reply) = call.reply.take() {
                    return Poll::Ready(Ok(reply));
                }
                if let Some(error) = &lane.closed {
                    return Poll::Ready(Err(error.clone()));
                }
                call.waker = Some(cx.waker().clone());
                Poll::Pending
            });
            found.unwrap_or_else(|| Poll::Ready(Err(broken())))
        });
        let reply = reply.await;
        drop(waiting);
        reply
    }

    /// Gives up the attachment; returns when the owner has, or the connection is gone.
    pub async fn detach(&self) {
        let (sender, answer) = oneshot::channel();
        if self.shared.with(self.id, |lane| lane.detached = Some(sender)).is_some() {
            self.send(&ToServer::Detach);
            let _ = answer.await;
        }
    }

    fn send(&self, said: &ToServer) {
        self.shared.link.frame(|buffer| said.put(buffer, self.id));
        self.shared.link.drive();
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        let known = self.shared.lanes.lock().as_mut().and_then(|lanes| lanes.remove(&self.id));
        if known.is_some() {
            self.send(&ToServer::Leave);
        }
    }
}
