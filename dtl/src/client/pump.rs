//! The task of a client: connects, receives, resends, and notices death.

use super::replica::Inner;
use super::track::Phase;
use super::{Chunk, Shared};
use crate::transport::{Dial, ReadHalf};
use crate::wire::{self, PROLOGUE, Request};
use bytes::BytesMut;
use common::{Lsn, Result};
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Chunks that are read from sources at a time.
const MAX_CHUNKS: usize = 8;

type Reads = FuturesUnordered<BoxFuture<'static, (Arc<Inner>, u32, Result<Chunk>)>>;

struct Pump {
    shared: Arc<Shared>,
    replicas: Vec<Arc<Inner>>,
    reads: Reads,
}

pub(super) async fn run(shared: Arc<Shared>, dial: Arc<dyn Dial>) {
    let mut pump = Pump { shared, replicas: Vec::new(), reads: FuturesUnordered::new() };
    while !pump.shared.closed.load(Ordering::Acquire) {
        match pump.connect(&*dial).await {
            Ok(read) => {
                pump.shared.inbox.connect(read, pump.shared.clock.now());
                pump.shared.connected.send_replace(true);
                let why = pump.serve().await;
                tracing::info!("DTL: the connection ended: {why}");
            }
            Err(why) => tracing::debug!("DTL: no connection: {why}"),
        }
        pump.disconnected();
        if pump.shared.closed.load(Ordering::Acquire) {
            break;
        }
        let pause = pump.shared.clock.sleep(pump.shared.settings.reconnect);
        pause.await;
        pump.adopt();
    }
    pump.disconnected();
}

impl Pump {
    async fn connect(&mut self, dial: &dyn Dial) -> std::result::Result<ReadHalf, String> {
        let shared = &self.shared;
        let attempt = async {
            let mut stream = dial.dial().await.map_err(|e| e.to_string())?;
            let mut hello = BytesMut::with_capacity(PROLOGUE);
            wire::put_prologue(&mut hello, wire::VERSION, wire::VERSION);
            stream.write.write_all_buf(&mut hello).await.map_err(|e| e.to_string())?;
            stream.write.flush().await.map_err(|e| e.to_string())?;
            let mut answer = [0u8; PROLOGUE];
            stream.read.read_exact(&mut answer).await.map_err(|e| e.to_string())?;
            let (lowest, highest) = wire::prologue(&answer)?;
            if wire::choose_version(lowest, highest).is_none() || lowest != highest {
                return Err(format!("the service speaks another version ({lowest} to {highest})"));
            }
            Ok(stream)
        };
        let stream = tokio::select! {
            biased;
            stream = attempt => stream?,
            () = shared.clock.sleep(shared.settings.timeout) => return Err("no answer".into()),
        };
        shared.link.connect(stream.write);
        Ok(stream.read)
    }

    fn disconnected(&mut self) {
        self.shared.connected.send_replace(false);
        self.shared.link.disconnect();
        self.shared.inbox.disconnect();
        self.shared.calls.fail_all();
        self.reads = FuturesUnordered::new();
        for inner in &self.replicas {
            inner.update(&self.shared, |track| track.closed());
        }
    }

    /// Takes over new replicas and lets go of dropped ones.
    fn adopt(&mut self) {
        let new = std::mem::take(&mut *self.shared.new.lock());
        self.replicas.extend(new);
        let shared = &self.shared;
        self.replicas.retain(|inner| {
            let dropped = inner.dropped.load(Ordering::Acquire);
            if dropped {
                let channel = inner.track.lock().channel;
                if shared.inbox.close(channel) {
                    shared.link.request(&Request::Close, channel);
                }
            }
            !dropped
        });
    }

    fn open(&mut self, inner: &Arc<Inner>) {
        let channel = self.shared.calls.id();
        let start = inner.start;
        let mut track = inner.track.lock();
        let open = track.hello(channel);
        let hello = Request::Hello { volume: start.volume, epoch: start.epoch, open };
        self.shared.link.request(&hello, channel);
        drop(track);
        self.shared.inbox.open(channel, inner.clone());
    }

    /// Opens what has no channel, reads for what lags.
    fn work(&mut self) {
        self.adopt();
        for i in 0..self.replicas.len() {
            let inner = self.replicas[i].clone();
            let (phase, wants) = {
                let track = inner.track.lock();
                (track.phase, track.wants_chunk(self.shared.settings.chunk / 4))
            };
            if phase == Phase::Closed && !self.shared.inbox.is_refused(&inner) {
                self.open(&inner);
            }
            if let Some(from) = wants
                && self.shared.link.has_room()
            {
                self.read(inner, from);
            }
        }
    }

    fn read(&mut self, inner: Arc<Inner>, from: Lsn) {
        if self.reads.len() >= MAX_CHUNKS {
            return;
        }
        let channel = {
            let mut track = inner.track.lock();
            track.reading = true;
            track.channel
        };
        let max = self.shared.settings.chunk;
        self.reads.push(
            async move {
                let chunk = inner.source.read(from, max).await;
                (inner, channel, chunk)
            }
            .boxed(),
        );
    }

    /// Sends a chunk, as far as it is what is due.
    fn resend(&mut self, inner: Arc<Inner>, channel: u32, chunk: Result<Chunk>) -> bool {
        let shared = self.shared.clone();
        let mut failed = false;
        inner.update(&shared, |track| {
            if track.channel != channel {
                return;
            }
            track.reading = false;
            match chunk {
                Ok(chunk) => {
                    let before = track.wants_chunk(0);
                    if let Some(control) = track.skip(chunk.committed) {
                        inner.send(&shared, track, control);
                    }
                    for entry in chunk.entries.iter().skip_while(|e| !track.is_next(e.lsn)).collect::<Vec<_>>() {
                        let bytes = entry.packed_len();
                        if !track.is_next(entry.lsn) || !track.fits(bytes) || !shared.link.append(entry, channel) {
                            break;
                        }
                        track.sent(entry.lsn, bytes);
                    }
                    track.catch_up();
                    // Nothing of it could be sent: not now, and not at once again.
                    failed = before.is_some() && track.wants_chunk(0) == before;
                }
                Err(error) => {
                    tracing::warn!(volume = %inner.start.volume, %error, "DTL: the log could not be read again");
                    failed = true;
                }
            }
        });
        failed
    }

    async fn serve(&mut self) -> String {
        let shared = self.shared.clone();
        let (clock, settings) = (&shared.clock, shared.settings);
        let mut beat = clock.sleep(settings.heartbeat);
        // Retrying what failed waits for a beat, so that it does not spin.
        let mut paused = false;
        let mut look = true;
        loop {
            look |= shared.inbox.take_look();
            if !paused && std::mem::take(&mut look) {
                self.work();
            }
            shared.link.drive_again();
            if shared.link.is_broken() {
                return "it does not take anything".into();
            }
            if shared.closed.load(Ordering::Acquire) {
                return "closed".into();
            }
            tokio::select! {
                biased;
                received = poll_fn(|cx| shared.inbox.poll(&shared, cx)) => {
                    if let Err(why) = received {
                        return why;
                    }
                    // However much comes in, chunks get sent.
                    while let Some(Some((inner, channel, chunk))) = self.reads.next().now_or_never() {
                        paused |= self.resend(inner, channel, chunk);
                        look = true;
                    }
                }
                Some((inner, channel, chunk)) = self.reads.next(), if !self.reads.is_empty() => {
                    paused |= self.resend(inner, channel, chunk);
                    look = true;
                }
                () = shared.link.woken() => look = true,
                () = &mut beat => {
                    let silence = shared.inbox.silence(clock.now());
                    if silence >= settings.timeout {
                        return format!("no sign of life for {silence:?}");
                    }
                    if silence + Duration::from_millis(1) >= settings.heartbeat {
                        shared.link.request(&Request::Ping, shared.calls.id());
                    }
                    beat = clock.sleep(settings.heartbeat);
                    shared.inbox.beat();
                    (paused, look) = (false, true);
                }
            }
        }
    }
}
