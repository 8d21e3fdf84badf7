//! vDisks leave as streams and come back from them: whole, or what changed between two snapshots.
//!
//! A snapshot that an import takes has the identity of the one that was exported. So whether the next stream
//! goes on where a copy stands is told by the copy's newest snapshot, and a copy can be exported in turn.

use super::{CreateVdisk, Router};
use crate::handle::Handle;
use crate::stream::{Begin, Decoder, Encoder, MAX_DATA, Record, StreamSnapshot, Totals};
use crate::vdisk::{Vdisk, VdiskInfo};
use bytes::Bytes;
use common::error::Context;
use common::{BlockDevice, Difference, Error, ErrorKind, Name, Result};
use futures::future::BoxFuture;
use futures::stream::{BoxStream, FuturesUnordered};
use futures::{Stream, StreamExt, TryStreamExt};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use volumedriver::{Description, SnapshotInfo, Volume};

/// Records that are read or written at a time.
const PARALLEL: usize = 4;
/// How much of a refused stream is still taken, and for how long, so that its sender hears why.
const LINGER: (u64, Duration) = (256 << 20, Duration::from_secs(10));

/// A part of a stream, before it is read.
enum Part {
    Data(u64, u32),
    Zero(u64, u64),
    Hole(u64, u64),
}

/// Finds out what a stream holds, a part at a time.
struct Planner {
    device: Arc<dyn BlockDevice>,
    since: Option<u128>,
    at: u64,
    size: u64,
    runs: VecDeque<Difference>,
    parts: VecDeque<Part>,
}

impl Planner {
    async fn next(&mut self) -> Result<Option<Part>> {
        loop {
            if let Some(part) = self.parts.pop_front() {
                return Ok(Some(part));
            }
            match self.runs.front_mut() {
                Some(run) if run.changed && run.len > 0 => {
                    let extents = self.device.extents(self.at, run.len).await?;
                    for extent in extents {
                        let len = extent.len.min(run.len);
                        run.len -= len;
                        match (extent.hole, extent.zero) {
                            (true, _) => self.parts.push_back(Part::Hole(self.at, len)),
                            (false, true) => self.parts.push_back(Part::Zero(self.at, len)),
                            (false, false) => {
                                for from in (self.at..self.at + len).step_by(MAX_DATA) {
                                    let n = (self.at + len - from).min(MAX_DATA as u64);
                                    self.parts.push_back(Part::Data(from, n as u32));
                                }
                            }
                        }
                        self.at += len;
                    }
                }
                Some(run) => {
                    self.at += run.len;
                    self.runs.pop_front();
                }
                None if self.at >= self.size => return Ok(None),
                None => {
                    let left = self.size - self.at;
                    self.runs = match self.since {
                        Some(since) => self.device.differences(since, self.at, left).await?.into(),
                        None => [Difference { len: left, changed: true }].into(),
                    };
                }
            }
        }
    }
}

/// A vDisk, or what of it changed, as a stream.
pub struct Export {
    encoder: Encoder,
    begin: Option<Box<Begin>>,
    records: BoxStream<'static, Result<Record>>,
    failed: Option<Error>,
    ended: bool,
    vdisk: String,
}

impl Export {
    /// The next bytes; an error, after which there is nothing, when the rest can't be had. The stream says so too.
    pub async fn next(&mut self) -> Option<Result<Bytes>> {
        if let Some(begin) = self.begin.take() {
            return Some(Ok(self.encoder.begin(&begin)));
        }
        if let Some(error) = self.failed.take() {
            self.ended = true;
            return Some(Err(error));
        }
        if self.ended {
            return None;
        }
        Some(Ok(match self.records.next().await {
            Some(Ok(Record::Data(offset, data))) => self.encoder.data(offset, &data),
            Some(Ok(Record::Zero(offset, len))) => self.encoder.zero(offset, len),
            Some(Ok(Record::Hole(offset, len))) => self.encoder.hole(offset, len),
            Some(Err(error)) => {
                tracing::warn!(vdisk = self.vdisk, %error, "the export breaks off");
                let record = self.encoder.failure(error.message());
                self.failed = Some(error);
                record
            }
            Some(Ok(_)) | None => {
                self.ended = true;
                self.encoder.end()
            }
        }))
    }
}

/// What became of an import.
#[derive(Debug, Clone)]
pub struct Imported {
    /// The vDisk as it is now.
    pub vdisk: VdiskInfo,
    /// Whether it was made.
    pub created: bool,
    /// The snapshot that was taken at the end.
    pub snapshot: Option<Name>,
    /// What the stream held.
    pub totals: Totals,
}

fn named(info: &SnapshotInfo) -> Result<StreamSnapshot> {
    let about = &info.about;
    Ok(StreamSnapshot {
        id: about.id,
        name: about.name.parse()?,
        created_at: about.created_at,
        consistent: about.consistent,
        metadata: about.metadata.clone(),
    })
}

impl Router {
    /// Exports a snapshot of a vDisk, or its head when no client is there; with `since`, what differs from
    /// that snapshot.
    pub async fn export(
        self: &Arc<Self>,
        vpool: &str,
        name: &str,
        snapshot: Option<&str>,
        since: Option<&str>,
    ) -> Result<Export> {
        let (vdisk, volume) = self.open_vdisk(vpool, name).await?;
        let find = |text: &str| volume.find_snapshot(text).context(format!("vDisk '{vdisk}'"));
        let target = match (snapshot, volume.template()) {
            (Some(snapshot), _) => Some(find(snapshot)?),
            (None, template) => template,
        };
        let base = since.map(find).transpose()?;
        let hint =
            format!("take one, as in 'storagerouter vdisk snapshot {vdisk} NAME', and export {vdisk}@NAME");
        let device: Arc<dyn BlockDevice> = match &target {
            Some(target) => self.open_snapshot(&vdisk, &target.about.name).await?,
            None if base.is_some() => {
                return Err(Error::invalid(format!("what changed is exported up to a snapshot: {hint}")));
            }
            None => {
                free(
                    &vdisk,
                    &format!("exported without a snapshot, or its parts would be of different times; {hint}"),
                )?;
                Arc::new(vdisk.enter().ok_or_else(|| vdisk.why_closed())?)
            }
        };
        let geometry = device.geometry();
        let begin = Begin {
            vdisk: vdisk.to_string(),
            size: geometry.size,
            cluster_size: geometry.preferred_block,
            target: target.as_ref().map(named).transpose()?,
            base: base.as_ref().map(named).transpose()?,
        };
        let planner = Planner {
            device: device.clone(),
            since: begin.base.as_ref().map(|base| base.id),
            at: 0,
            size: geometry.size,
            runs: VecDeque::new(),
            parts: VecDeque::new(),
        };
        let parts = futures::stream::try_unfold(planner, |mut planner| async move {
            Ok(planner.next().await?.map(|part| (part, planner)))
        });
        let read = move |part| {
            let device = device.clone();
            async move {
                Ok(match part {
                    Part::Data(offset, len) => Record::Data(offset, device.read(offset, len).await?),
                    Part::Zero(offset, len) => Record::Zero(offset, len),
                    Part::Hole(offset, len) => Record::Hole(offset, len),
                })
            }
        };
        let records = parts.map_ok(read).try_buffered(PARALLEL).boxed();
        let (begin, vdisk) = (Some(Box::new(begin)), vdisk.to_string());
        Ok(Export { encoder: Encoder::default(), begin, records, failed: None, ended: false, vdisk })
    }

    /// Imports a stream into a new vDisk, or into one that stands where the stream goes on. With `force`,
    /// into any, whatever it holds. When that fails the error says how far it came, and the same
    /// stream can be imported again; a vDisk that was made for it is gone.
    pub async fn import<S>(
        self: &Arc<Self>,
        vpool: &str,
        name: Name,
        force: bool,
        body: S,
    ) -> Result<Imported>
    where
        S: Stream<Item = Result<Bytes>> + Send + Unpin + 'static,
    {
        let (router, vpool) = (self.clone(), vpool.to_owned());
        let task = format!("import vDisk {name}");
        let work = async move {
            let mut import = Import { body, decoder: Decoder::default(), ready: VecDeque::new() };
            let outcome = import.run(&router, &vpool, &name, force).await;
            if outcome.is_err() {
                let clock = router.clock.clone();
                let discard = async move {
                    tokio::select! {
                        biased;
                        () = import.discard() => {}
                        () = clock.sleep(LINGER.1) => {}
                    }
                };
                // A router that is stopping has no time for that.
                let _ = router.tasks.spawn("let go of a refused import", discard);
            }
            outcome
        };
        self.tasks.run(task, work).await
    }
}

/// `Denied` when clients are there.
fn free(vdisk: &Vdisk, what: &str) -> Result<()> {
    match vdisk.clients() {
        0 => Ok(()),
        n => Err(Error::new(
            ErrorKind::Denied,
            format!(
                "vDisk '{vdisk}' is in use by {n} client{} and can't be {what}",
                if n == 1 { "" } else { "s" }
            ),
        )),
    }
}

/// Where a stream goes.
struct Goal {
    vdisk: Arc<Vdisk>,
    volume: Arc<Volume>,
    handle: Arc<Handle>,
    created: bool,
    /// The snapshot that all differs from as the stream says.
    base: Option<StreamSnapshot>,
}

struct Import<S> {
    body: S,
    decoder: Decoder,
    ready: VecDeque<Bytes>,
}

impl<S: Stream<Item = Result<Bytes>> + Send + Unpin> Import<S> {
    /// The next record; `None` at the end of the stream, when all of it was right.
    async fn next(&mut self) -> Result<Option<Record>> {
        loop {
            if let Some(record) = self.decoder.next_record()? {
                return Ok(Some(record));
            }
            let mut bytes = match self.ready.pop_front() {
                Some(bytes) => bytes,
                None => match self.body.next().await {
                    Some(bytes) => bytes?,
                    None => {
                        self.decoder.finish()?;
                        return Ok(None);
                    }
                },
            };
            // What the decoder holds is bounded, however much comes at once.
            let now = bytes.split_to(bytes.len().min(MAX_DATA));
            self.decoder.push(&now);
            if !bytes.is_empty() {
                self.ready.push_front(bytes);
            }
        }
    }

    async fn discard(&mut self) {
        let mut left = LINGER.0;
        while let Some(Ok(bytes)) = self.body.next().await {
            left = left.saturating_sub(bytes.len() as u64);
            if left == 0 {
                return;
            }
        }
    }

    async fn run(&mut self, router: &Arc<Router>, vpool: &str, name: &Name, force: bool) -> Result<Imported> {
        let Some(Record::Begin(begin)) = self.next().await? else {
            return Err(Error::invalid("the stream is empty"));
        };
        let goal = goal(router, vpool, name, force, &begin).await?;
        let done = self.fill(&goal, &begin).await;
        let Goal { vdisk, volume, handle, created, .. } = goal;
        drop(handle);
        let reached = self.decoder.reached();
        match done {
            Ok(totals) => {
                let snapshot = begin.target.map(|target| target.name);
                tracing::info!(vdisk = %vdisk, from = begin.vdisk, ?snapshot, ?totals, "imported");
                Ok(Imported { vdisk: router.info(&vdisk), created, snapshot, totals })
            }
            Err(error) if created => {
                drop(volume);
                if let Err(error) = router.delete_vdisk(vpool, name.as_str(), false).await {
                    tracing::warn!(vdisk = %vdisk, %error, "the vDisk of an import that failed stays");
                }
                let size = begin.size;
                Err(error.context(format!(
                    "vDisk '{vdisk}' is not imported: the stream was right up to byte {reached} of {size} of the vDisk"
                )))
            }
            Err(error) => Err(error.context(format!(
                "vDisk '{vdisk}' is imported up to byte {reached} of {} only: import the same stream again",
                begin.size
            ))),
        }
    }

    async fn fill(&mut self, goal: &Goal, begin: &Begin) -> Result<Totals> {
        let mut totals = None;
        let mut reached = 0;
        let mut writes: FuturesUnordered<BoxFuture<'static, Result<()>>> = FuturesUnordered::new();
        while let Some(record) = self.next().await? {
            let device = goal.handle.clone();
            let (from, to): (u64, u64) = match record {
                Record::Data(offset, data) => {
                    let end = offset + data.len() as u64;
                    writes.push(Box::pin(async move { device.write(offset, data, false).await }));
                    (offset, end)
                }
                Record::Zero(offset, len) => {
                    writes
                        .push(Box::pin(async move { device.write_zeroes(offset, len, false, false).await }));
                    (offset, offset + len)
                }
                Record::Hole(offset, len) => {
                    if !goal.created {
                        writes.push(Box::pin(async move { device.discard(offset, len, false).await }));
                    }
                    (offset, offset + len)
                }
                Record::End(found) => {
                    totals = Some(found);
                    (begin.size, begin.size)
                }
                Record::Begin(_) => return Err(Error::internal("the stream began twice")),
            };
            goal.check_unchanged(reached, from).await?;
            reached = to;
            while writes.len() > PARALLEL {
                writes.try_next().await?;
            }
        }
        while writes.try_next().await?.is_some() {}
        goal.handle.flush().await?;
        if let Some(target) = &begin.target {
            let about = Description {
                id: target.id,
                name: target.name.to_string(),
                created_at: target.created_at,
                consistent: target.consistent,
                sticky: false,
                template: false,
                metadata: target.metadata.clone(),
            };
            goal.volume.snapshot(about).await?;
        }
        totals.ok_or_else(|| Error::internal("the stream has no last record"))
    }
}

impl Goal {
    /// `Conflict` when the range differs from the base: the stream says that it must not.
    async fn check_unchanged(&self, mut from: u64, to: u64) -> Result<()> {
        let Some(base) = &self.base else { return Ok(()) };
        while from < to {
            for Difference { len, changed } in self.handle.differences(base.id, from, to - from).await? {
                if changed {
                    return Err(Error::conflict(format!(
                        "vDisk '{}' was written since snapshot '{}', at byte {from} for example, and the stream leaves that: \
                         'storagerouter vdisk rollback {} {}' first, or say --force",
                        self.vdisk, base.name, self.vdisk, base.name
                    )));
                }
                from += len;
            }
        }
        Ok(())
    }
}

/// Finds or makes the vDisk that a stream goes to, and sees that it may.
async fn goal(router: &Arc<Router>, vpool: &str, name: &Name, force: bool, begin: &Begin) -> Result<Goal> {
    router.find_pool(vpool)?;
    let created = router.find_vdisk(vpool, name.as_str()).is_err();
    if created {
        if let Some(base) = &begin.base {
            return Err(Error::not_found(format!(
                "the stream goes on from snapshot '{}' of vDisk '{}', and there is no vDisk '{vpool}/{name}': \
                 import the full export of that snapshot first",
                base.name, begin.vdisk
            )));
        }
        let size = begin.size;
        let spec = CreateVdisk { vpool: vpool.to_owned(), name: name.clone(), size, sco_size: None };
        router.create_vdisk(spec).await?;
    }
    let (vdisk, volume) = router.open_vdisk(vpool, name.as_str()).await?;
    if !created {
        check(&vdisk, &volume, force, begin)?;
    }
    if volume.status().size < begin.size {
        router.resize_vdisk(vpool, name.as_str(), begin.size).await?;
    }
    let handle = Arc::new(vdisk.enter().ok_or_else(|| vdisk.why_closed())?);
    let base = begin.base.clone().filter(|_| !force);
    Ok(Goal { vdisk, volume, handle, created, base })
}

/// Whether a stream may go to a vDisk that is there.
fn check(vdisk: &Vdisk, volume: &Volume, force: bool, begin: &Begin) -> Result<()> {
    let size = volume.status().size;
    if size > begin.size {
        let text =
            format!("vDisk '{vdisk}' has {size} bytes, the stream {}: vDisks do not shrink", begin.size);
        return Err(Error::new(ErrorKind::Unsupported, text));
    }
    let snapshots = volume.snapshots();
    if let Some(target) = &begin.target
        && snapshots.iter().any(|s| s.about.id == target.id || s.about.name == target.name.as_str())
    {
        let text = format!(
            "vDisk '{vdisk}' has a snapshot '{}' already: was the stream imported before?",
            target.name
        );
        return Err(Error::conflict(text));
    }
    if force {
        return Ok(());
    }
    free(vdisk, "imported to; disconnect, or say --force")?;
    let newest = snapshots.last().map(|s| &s.about);
    match (&begin.base, newest) {
        (None, _) => Err(Error::conflict(format!(
            "vDisk '{vdisk}' exists already, and the stream is a full one: import it to a new vDisk, or say --force"
        ))),
        (Some(base), Some(newest)) if newest.id == base.id => Ok(()),
        (Some(base), newest) => {
            let has =
                newest.map_or("it has none".to_owned(), |s| format!("that is '{}' ({:032x})", s.name, s.id));
            Err(Error::conflict(format!(
                "the stream goes on from snapshot '{}' ({:032x}), which is not the newest of vDisk '{vdisk}': {has}; \
                 import what is in between first, or say --force",
                base.name, base.id
            )))
        }
    }
}
