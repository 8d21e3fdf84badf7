//! The task of a client: connects, receives, resends, and notices death.

use super::replica::Inner;
use super::track::Phase;
use super::{Chunk, Shared};
use crate::transport::{Dial, ReadHalf};
use crate::wire::{self, Decoder, Frame, PROLOGUE, Reply, Request};
use bytes::BytesMut;
use common::{ErrorKind, Lsn, Result};
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Bytes that are received at a time, as a rule.
const RECEIVE: usize = 64 << 10;
/// Chunks that are read from sources at a time.
const MAX_CHUNKS: usize = 8;

type Reads = FuturesUnordered<BoxFuture<'static, (Arc<Inner>, u32, Result<Chunk>)>>;

struct Pump {
    shared: Arc<Shared>,
    replicas: Vec<Arc<Inner>>,
    /// By channel, on the present connection.
    channels: HashMap<u32, Arc<Inner>>,
    /// Logs that the service does not make now; asked again after a pause.
    refused: Vec<Arc<Inner>>,
    reads: Reads,
    /// Something may have to be opened or read again.
    look: bool,
}

pub(super) async fn run(shared: Arc<Shared>, dial: Arc<dyn Dial>) {
    let mut pump = Pump {
        shared,
        replicas: Vec::new(),
        channels: HashMap::new(),
        refused: Vec::new(),
        reads: FuturesUnordered::new(),
        look: true,
    };
    while !pump.shared.closed.load(Ordering::Acquire) {
        match pump.connect(&*dial).await {
            Ok((read, decoder)) => {
                pump.shared.connected.send_replace(true);
                let why = pump.serve(read, decoder).await;
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
    async fn connect(&mut self, dial: &dyn Dial) -> std::result::Result<(ReadHalf, Decoder), String> {
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
        Ok((stream.read, Decoder::default()))
    }

    fn disconnected(&mut self) {
        self.shared.connected.send_replace(false);
        self.shared.link.disconnect();
        self.shared.calls.fail_all();
        self.reads = FuturesUnordered::new();
        self.channels.clear();
        self.refused.clear();
        for inner in &self.replicas {
            inner.update(&self.shared, |track| track.closed());
        }
    }

    /// Takes over new replicas and lets go of dropped ones.
    fn adopt(&mut self) {
        let new = std::mem::take(&mut *self.shared.new.lock());
        self.replicas.extend(new);
        let shared = &self.shared;
        let channels = &mut self.channels;
        self.replicas.retain(|inner| {
            let dropped = inner.dropped.load(Ordering::Acquire);
            if dropped {
                let channel = inner.track.lock().channel;
                if channels.remove(&channel).is_some() {
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
        self.channels.insert(channel, inner.clone());
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
            if phase == Phase::Closed && !self.refused.iter().any(|r| Arc::ptr_eq(r, &inner)) {
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

    fn frame(&mut self, frame: &Frame) -> std::result::Result<(), String> {
        let reply = frame.reply()?;
        let shared = self.shared.clone();
        let Some(inner) = self.channels.get(&frame.id) else {
            shared.calls.answer(frame.id, reply);
            return Ok(());
        };
        let inner = inner.clone();
        let closes = matches!(reply, Reply::Failed(..));
        match reply {
            Reply::Confirmed(lsn) => inner.update(&shared, |t| t.confirmed(lsn)),
            Reply::Flushed(lsn) => inner.update(&shared, |t| t.flushed(lsn)),
            Reply::Opened(info, window) => inner.update(&shared, |t| t.opened(&info, window)),
            Reply::Vouched => inner.update(&shared, |t| t.vouched()),
            Reply::Stall(_) => inner.update(&shared, |t| t.stalled()),
            Reply::Resume(last) => inner.update(&shared, |t| t.resumed(last)),
            Reply::Failed(kind, message) => {
                self.channels.remove(&frame.id);
                tracing::info!(volume = %inner.start.volume, "DTL: a log was refused: {message}");
                let again = matches!(kind, ErrorKind::NoSpace | ErrorKind::Unavailable | ErrorKind::Internal);
                inner.update(&shared, |t| if again { t.closed() } else { t.lost(kind) });
                if again {
                    self.refused.push(inner.clone());
                }
            }
            _ => return Err("a reply that no channel expects".into()),
        }
        // This one alone is looked at: with a thousand quiet ones beside it, a confirmation costs the same.
        self.look |= closes || inner.track.lock().wants_chunk(self.shared.settings.chunk / 4).is_some();
        Ok(())
    }

    async fn serve(&mut self, mut read: ReadHalf, mut decoder: Decoder) -> String {
        let shared = self.shared.clone();
        let (clock, settings) = (&shared.clock, shared.settings);
        let mut heard = clock.now();
        let mut beat = clock.sleep(settings.heartbeat);
        // Retrying what failed waits for a beat, so that it does not spin.
        let mut paused = false;
        self.look = true;
        loop {
            if std::mem::take(&mut self.look) && !paused {
                self.work();
            }
            shared.link.drive_again();
            if shared.link.is_broken() {
                return "it does not take anything".into();
            }
            if shared.closed.load(Ordering::Acquire) {
                return "closed".into();
            }
            let want = decoder.missing().max(RECEIVE);
            decoder.buffer().reserve(want);
            tokio::select! {
                biased;
                n = read.read_buf(decoder.buffer()) => {
                    match n {
                        Ok(0) => return "the service closed it".into(),
                        Ok(_) => {}
                        Err(error) => return error.to_string(),
                    }
                    heard = clock.now();
                    loop {
                        match decoder.frame() {
                            Ok(None) => break,
                            Ok(Some(frame)) => if let Err(why) = self.frame(&frame) { return why },
                            Err(why) => return why.into(),
                        }
                    }
                    // However much comes in, chunks get sent.
                    while let Some(Some((inner, channel, chunk))) = self.reads.next().now_or_never() {
                        paused |= self.resend(inner, channel, chunk);
                        self.look = true;
                    }
                }
                Some((inner, channel, chunk)) = self.reads.next(), if !self.reads.is_empty() => {
                    paused |= self.resend(inner, channel, chunk);
                    self.look = true;
                }
                () = shared.link.woken() => self.look = true,
                () = &mut beat => {
                    let silence = clock.now().saturating_sub(heard);
                    if silence >= settings.timeout {
                        return format!("no sign of life for {silence:?}");
                    }
                    if silence + Duration::from_millis(1) >= settings.heartbeat {
                        shared.link.request(&Request::Ping, shared.calls.id());
                    }
                    beat = clock.sleep(settings.heartbeat);
                    self.refused.clear();
                    (paused, self.look) = (false, true);
                }
            }
        }
    }
}
