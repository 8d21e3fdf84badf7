//! One connection: requests in, replies out.

use super::Service;
use crate::local::LocalOsd;
use crate::outbox::Outbox;
use crate::transport::Stream;
use crate::wire::{self, Decoder, Frame, PROLOGUE, Reply, Request, encode_reply};
use common::osd::{BackendId, Call, MAX_VALUE, OsdId};
use common::{Error, Osd, Result};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes that are received at a time, as a rule.
const RECEIVE: usize = 128 << 10;
/// Frames up to here take no memory from the others.
const SMALL: usize = 32 << 10;

type Hold = OwnedSemaphorePermit;

/// Takes memory for `bytes`.
async fn hold(memory: &Arc<Semaphore>, bytes: usize) -> Option<Hold> {
    if bytes <= SMALL {
        return None;
    }
    let kib = u32::try_from(bytes.div_ceil(1 << 10)).unwrap_or(u32::MAX);
    memory.clone().acquire_many_owned(kib).await.ok()
}

/// Serves `stream` to its end; an error says what was wrong with it.
pub(super) async fn serve(service: &Service, stream: Stream) -> std::result::Result<(), String> {
    let Stream { mut read, mut write } = stream;
    let say = |e: std::io::Error| e.to_string();
    let mut first = [0u8; PROLOGUE];
    tokio::select! {
        done = read.read_exact(&mut first) => { done.map_err(say)?; }
        () = service.clock.sleep(service.settings.handshake) => return Err("no prologue came".into()),
    }
    let (lowest, highest) = wire::read_prologue(&first)?;
    let version = wire::choose_version(lowest, highest);
    let chosen = version.unwrap_or(0);
    write.write_all(&wire::prologue(chosen, chosen)).await.map_err(say)?;
    write.flush().await.map_err(say)?;
    if version.is_none() {
        return Err(format!("versions {lowest} to {highest} are not spoken here"));
    }
    let idle = service.settings.idle;
    let mut decoder = Decoder::default();
    let mut osd: Option<LocalOsd> = None;
    // What is under way. A change that was begun is finished by the store, also when its client hangs up.
    let mut running = FuturesUnordered::new();
    let mut out: Outbox<Hold> = Outbox::default();
    let mut receiving: Option<Hold> = None;
    let mut quiet = service.clock.sleep(service.settings.handshake);
    let mut heard = false;
    loop {
        // A frame is cut when there is room to work on it.
        let mut full = running.len() >= service.settings.max_requests;
        while !full && let Some(frame) = decoder.frame()? {
            heard = true;
            let held = receiving.take();
            match &osd {
                None => {
                    let id = frame.id;
                    let (_, request) = frame.request()?;
                    let greeted = hello(service, request);
                    let reply = match &greeted {
                        Ok(_) => Reply::Welcome(service.osd.store().id()),
                        Err(error) => failed(error),
                    };
                    out.push(encode_reply(&reply, id), None);
                    match greeted {
                        Ok(backend) => osd = Some(service.osd.by(backend)),
                        Err(error) => {
                            out.send(&mut *write).await.map_err(say)?;
                            return Err(error.to_string());
                        }
                    }
                }
                Some(osd) => {
                    let memory = service.memory.clone();
                    running.push(answer(osd.clone(), memory, frame, held));
                    full = running.len() >= service.settings.max_requests;
                }
            }
        }
        if let Some(len) = decoder.announced()
            && receiving.is_none()
            && !full
        {
            if osd.is_none() && len > SMALL {
                return Err("it does not say hello".into());
            }
            // What runs gives memory back when it is sent: it goes on meanwhile.
            let wanted = hold(&service.memory, len);
            tokio::pin!(wanted);
            receiving = loop {
                tokio::select! {
                    biased;
                    got = &mut wanted => break got,
                    Some(done) = running.next(), if !running.is_empty() => {
                        let (frame, held) = done?;
                        out.push(frame, held);
                        send(service, &mut out, &mut write).await?;
                    }
                }
            };
        }
        send(service, &mut out, &mut write).await?;
        let want = decoder.missing().max(RECEIVE);
        if !full {
            decoder.buffer().reserve(want);
        }
        tokio::select! {
            biased;
            Some(done) = running.next(), if !running.is_empty() => {
                let (frame, held) = done?;
                out.push(frame, held);
                // Whatever else is ready goes with it.
                while let Some(Some(done)) = futures::FutureExt::now_or_never(running.next()) {
                    let (frame, held) = done?;
                    out.push(frame, held);
                }
            }
            n = read.read_buf(decoder.buffer()), if !full => {
                if n.map_err(say)? == 0 {
                    return Ok(());
                }
            }
            () = &mut quiet => {
                if !heard && running.is_empty() {
                    return Err("nothing was heard for too long".into());
                }
                heard = false;
                quiet = service.clock.sleep(idle);
            }
        }
    }
}

async fn send(
    service: &Service,
    out: &mut Outbox<Hold>,
    write: &mut crate::transport::WriteHalf,
) -> std::result::Result<(), String> {
    if out.is_empty() {
        return Ok(());
    }
    // A client reads at all times, so this ends; one that does not is dead.
    tokio::select! {
        biased;
        sent = out.send(&mut **write) => sent.map_err(|e| e.to_string()),
        () = service.clock.sleep(service.settings.idle) => Err("it does not read".into()),
    }
}

fn hello(service: &Service, request: Request) -> Result<Option<BackendId>> {
    let Request::Hello(wanted, backend) = request else {
        return Err(Error::invalid("the first request is not a hello"));
    };
    let is = service.osd.store().id();
    if wanted.is_some_and(|wanted| wanted != is) {
        return Err(wrong_disk(is, wanted));
    }
    Ok(backend)
}

/// Another disk answers where one was expected.
fn wrong_disk(is: OsdId, wanted: Option<OsdId>) -> Error {
    let wanted = wanted.map_or_else(String::new, |w| format!(", not {w}"));
    Error::conflict(format!("this is OSD {is}{wanted}"))
}

fn failed(error: &Error) -> Reply {
    Reply::Failed(error.kind, error.message().into())
}

type Answer = std::result::Result<(Vec<bytes::Bytes>, Option<Hold>), &'static str>;

/// Does what a frame asks for. `held` is the memory of what was received.
async fn answer(osd: LocalOsd, memory: Arc<Semaphore>, frame: Frame, held: Option<Hold>) -> Answer {
    let id = frame.id;
    let (call, request) = frame.request()?;
    drop(frame);
    let (reply, hold) = match perform(&osd, &memory, call, request).await {
        Ok(done) => done,
        Err(error) => (failed(&error), None),
    };
    drop(held);
    Ok((encode_reply(&reply, id), hold))
}

async fn perform(
    osd: &LocalOsd,
    memory: &Arc<Semaphore>,
    call: Call,
    request: Request,
) -> Result<(Reply, Option<Hold>)> {
    let done = |reply| Ok((reply, None));
    match request {
        Request::Hello(..) => Err(Error::invalid("hello was said before")),
        Request::Ping => done(Reply::Pong),
        Request::Apply(changes) => {
            osd.apply(call, changes).await?;
            done(Reply::Done)
        }
        Request::Get(key) => {
            let hold = hold(memory, osd.store().value_len(&key)?).await;
            Ok((Reply::Value(osd.get(call, &key).await?), hold))
        }
        Request::GetRange(key, range) => {
            let len = range.end.saturating_sub(range.start).min(MAX_VALUE as u64);
            let hold = hold(memory, len as usize).await;
            Ok((Reply::Bytes(osd.get_range(call, &key, range).await?), hold))
        }
        Request::MultiGet(keys) => {
            let lens = keys.iter().map(|key| osd.store().value_len(key)).collect::<Result<Vec<_>>>()?;
            let hold = hold(memory, lens.iter().sum::<usize>().min(MAX_VALUE)).await;
            Ok((Reply::Values(osd.multi_get(call, &keys).await?), hold))
        }
        Request::Range(range, limit) => done(Reply::Page(osd.range(call, range, limit as usize).await?)),
        Request::Verify(range, limit) => {
            done(Reply::Verified(osd.verify(call, range, limit as usize).await?))
        }
        Request::Status => done(Reply::Status(Box::new(osd.status(call).await?))),
        Request::Claim(from, to) => {
            osd.claim(call, from, to).await?;
            done(Reply::Done)
        }
    }
}
