//! The one writer. All requests that wait are judged in order, their large values written and synced together, then one
//! batch of the table, synced, says what is where. Then everybody is answered.
//!
//! It runs in a task of its own: what was begun is finished, whoever gives up waiting.

use super::format::{self, Body, INLINE, Record, SegmentState, Totals, keys, padded};
use super::space::{Lane, Open};
use super::{Core, count};
use bytes::Bytes;
use common::osd::{Assert, BackendId, Changes, Priority, shown};
use common::table::Batch;
use common::{Error, ErrorKind, Result, blocking, mutant};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, oneshot};

/// Bytes of values in one batch, unless one request alone has more; of those that can wait, a quarter.
const BATCH: usize = 16 << 20;
/// Requests of one batch.
const JOBS: usize = 1024;
/// Bytes that wait, beyond which who comes is turned away: what is in memory is bounded before, where it is received.
const WAITING: usize = 256 << 20;

type Done = oneshot::Sender<Result<()>>;

static ZEROES: [u8; common::osd::BLOCK] = [0; common::osd::BLOCK];

/// A change of one key, its sums made by who asks.
enum Change {
    Delete,
    Inline(Bytes, u32),
    Large { bytes: Bytes, crc: u32, crcs: Bytes },
}

/// What was asked for, checked.
pub struct Request {
    asserts: Vec<Assert>,
    changes: Vec<(Bytes, Change)>,
    backend: Option<BackendId>,
    deadline: Duration,
    bytes: usize,
}

impl Request {
    /// Checks it, and sums the blocks of large values.
    pub fn new(changes: Changes, backend: Option<BackendId>, deadline: Duration) -> Result<Request> {
        if !mutant::is_on("asd-values-unchecked") {
            changes.check()?;
        }
        let bytes = changes.bytes();
        let deletes = changes.deletes.into_iter().map(|key| (key, Change::Delete));
        let sets = changes.sets.into_iter().map(|(key, value)| {
            let change = if value.bytes.len() <= INLINE {
                Change::Inline(value.bytes, value.crc)
            } else {
                let crcs = format::block_crcs(&value.bytes);
                Change::Large { bytes: value.bytes, crc: value.crc, crcs }
            };
            (key, change)
        });
        Ok(Request {
            asserts: changes.asserts,
            changes: sets.chain(deletes).collect(),
            backend,
            deadline,
            bytes,
        })
    }

    fn has_sets(&self) -> bool {
        self.changes.iter().any(|(_, change)| !matches!(change, Change::Delete))
    }

    /// Whether `record` is what the change of this key wants.
    fn is_done(change: &Change, record: Option<&Record>) -> bool {
        match (change, record) {
            (Change::Delete, None) => true,
            (Change::Inline(bytes, _), Some(Record { body: Body::Inline(there), .. })) => bytes == there,
            (
                Change::Large { bytes, crc, crcs },
                Some(Record { len, crc: sum, body: Body::Placed { crcs: there, .. } }),
            ) => bytes.len() == *len as usize && crc == sum && crcs == there,
            _ => false,
        }
    }
}

/// A value that is copied out of a segment.
pub struct Move {
    pub key: Bytes,
    pub record: Record,
    pub bytes: Bytes,
}

/// What the writer does.
pub enum Job {
    Apply(Request, Done),
    Claim {
        from: Option<BackendId>,
        to: Option<BackendId>,
        done: Done,
    },
    /// Copies, unless they have changed meanwhile.
    Move(Vec<Move>, Done),
    /// Forgets an empty segment.
    Release(u64, Done),
    /// Where the scrub is.
    Scrubbed(Bytes, Done),
}

impl Job {
    fn bytes(&self) -> usize {
        match self {
            Job::Apply(request, _) => request.bytes,
            Job::Move(moves, _) => moves.iter().map(|m| m.bytes.len()).sum(),
            _ => 0,
        }
    }

    fn refuse(self, error: Error) {
        let done = match self {
            Job::Apply(_, done)
            | Job::Claim { done, .. }
            | Job::Move(_, done)
            | Job::Release(_, done)
            | Job::Scrubbed(_, done) => done,
        };
        let _ = done.send(Err(error));
    }
}

/// What waits for the writer.
#[derive(Default)]
pub struct Queue {
    waiting: Mutex<Waiting>,
    wake: Notify,
}

#[derive(Default)]
struct Waiting {
    jobs: [VecDeque<Job>; 2],
    bytes: usize,
    closed: bool,
}

impl Queue {
    pub fn push(&self, priority: Priority, job: Job) -> Result<()> {
        let mut waiting = self.waiting.lock();
        if waiting.closed {
            return Err(Error::unavailable("the storage daemon is stopping"));
        }
        if waiting.bytes > WAITING {
            return Err(Error::unavailable("too much waits for this disk"));
        }
        waiting.bytes += job.bytes();
        waiting.jobs[priority as usize].push_back(job);
        drop(waiting);
        self.wake.notify_one();
        Ok(())
    }

    pub fn close(&self) {
        self.waiting.lock().closed = true;
        self.wake.notify_one();
    }

    /// The next batch, clients' first; `None`: it is closed, and everything is done.
    async fn next(&self) -> Option<Vec<Job>> {
        loop {
            {
                let mut waiting = self.waiting.lock();
                let mut batch = Vec::new();
                for (class, limit) in [(0, BATCH), (1, BATCH / 4)] {
                    let mut bytes = 0;
                    while batch.len() < JOBS
                        && let Some(job) = waiting.jobs[class].front()
                        && (bytes == 0 || bytes + job.bytes() <= limit)
                    {
                        bytes += job.bytes();
                        batch.extend(waiting.jobs[class].pop_front());
                    }
                    waiting.bytes -= bytes;
                }
                if !batch.is_empty() {
                    return Some(batch);
                }
                if waiting.closed {
                    return None;
                }
            }
            self.wake.notified().await;
        }
    }
}

/// What one batch comes to.
#[derive(Default)]
struct Plan {
    /// Keys as they will be.
    changed: HashMap<Bytes, Option<Record>>,
    batch: Batch,
    segments: BTreeMap<u64, SegmentState>,
    totals: Totals,
    /// What is written where.
    data: BTreeMap<u64, Vec<(u64, Bytes)>>,
    claim: Option<Option<BackendId>>,
    released: Vec<u64>,
    freed: bool,
    answers: Vec<(Done, Result<()>)>,
}

/// Runs until the queue is closed and empty.
pub async fn run(core: Arc<Core>) {
    while let Some(jobs) = core.queue.next().await {
        core.commit(jobs).await;
    }
}

impl Core {
    async fn commit(&self, jobs: Vec<Job>) {
        if let Err(error) = self.check() {
            jobs.into_iter().for_each(|job| job.refuse(error.clone()));
            return;
        }
        let mut plan = Plan { totals: self.space.lock().totals, ..Plan::default() };
        for job in jobs {
            self.judge(&mut plan, job).await;
        }
        let result = self.make_durable(&mut plan).await;
        if result.is_ok() {
            self.publish(&plan);
        }
        if plan.freed {
            self.garbage.notify_one();
        }
        for (done, answer) in plan.answers {
            // What a refusal was based on may be in this batch: it holds as little as the batch does.
            let _ = done.send(result.clone().and(answer));
        }
    }

    async fn judge(&self, plan: &mut Plan, job: Job) {
        match job {
            Job::Apply(request, done) => {
                let answer = self.apply(plan, request).await;
                let counter = match &answer {
                    Ok(()) => &self.counters.applies,
                    Err(e) if e.kind == ErrorKind::Conflict => &self.counters.conflicts,
                    Err(e) if e.kind == ErrorKind::NoSpace => &self.counters.no_space,
                    Err(_) => &self.counters.late,
                };
                count(counter, 1);
                plan.answers.push((done, answer));
            }
            Job::Claim { from, to, done } => {
                let answer = self.claim(plan, from, to);
                plan.answers.push((done, answer));
            }
            Job::Move(moves, done) => {
                let mut answer = Ok(());
                for each in moves {
                    answer = answer.and(self.relocate(plan, each).await);
                }
                plan.answers.push((done, answer));
            }
            Job::Release(number, done) => {
                let state = self.segment(plan, number);
                let answer = if state.count == 0 {
                    plan.batch.delete(keys::segment(number));
                    plan.released.push(number);
                    Ok(())
                } else {
                    Err(Error::conflict("the segment is not empty"))
                };
                plan.answers.push((done, answer));
            }
            Job::Scrubbed(cursor, done) => {
                plan.batch.put(keys::SCRUB, cursor);
                plan.answers.push((done, Ok(())));
            }
        }
    }

    /// A key as it is behind everything judged before.
    fn current(&self, plan: &Plan, key: &Bytes) -> Result<Option<Record>> {
        match plan.changed.get(key) {
            Some(record) => Ok(record.clone()),
            None => self.record(key),
        }
    }

    fn segment(&self, plan: &Plan, number: u64) -> SegmentState {
        let known = || self.space.lock().segments.get(&number).copied();
        let state = plan.segments.get(&number).copied().or_else(known);
        state.unwrap_or(SegmentState { end: format::HEADER, live: 0, count: 0 })
    }

    fn holds(&self, plan: &Plan, assert: &Assert) -> Result<bool> {
        let record = self.current(plan, assert.key())?;
        Ok(match (assert, record) {
            (Assert::Absent(_), record) => record.is_none(),
            (Assert::Present(_), record) => record.is_some(),
            // What can be asserted is so small that it lies in the table.
            (Assert::Value(_, value), Some(Record { body: Body::Inline(there), .. })) => *value == there,
            (Assert::Value(..), _) => false,
        })
    }

    async fn apply(&self, plan: &mut Plan, request: Request) -> Result<()> {
        if self.clock.now() > request.deadline {
            return Err(Error::unavailable("the request came too late to be done in time"));
        }
        self.admit(request.backend)?;
        // Everything that can fail is done before anything of it is in the plan.
        let olds =
            request.changes.iter().map(|(key, _)| self.current(plan, key)).collect::<Result<Vec<_>>>()?;
        let mut failed = None;
        for assert in &request.asserts {
            if !mutant::is_on("asd-asserts-ignored") && !self.holds(plan, assert)? {
                let own = request.changes.iter().any(|(key, _)| key == assert.key());
                if !own {
                    return Err(refusal(assert));
                }
                failed = failed.or(Some(assert));
            }
        }
        if let Some(assert) = failed {
            // Asked again after it was done, or somebody did just the same.
            let done =
                request.changes.iter().zip(&olds).all(|((_, c), old)| Request::is_done(c, old.as_ref()));
            return if done { Ok(()) } else { Err(refusal(assert)) };
        }
        if request.has_sets() && !self.table_has_room(plan, &request, &olds) {
            self.space.lock().no_room(Lane::Fresh);
            self.garbage.notify_one();
            return Err(no_space());
        }
        let mark = self.space.lock().mark(Lane::Fresh);
        let mut sizes = Vec::new();
        for (_, change) in &request.changes {
            if let Change::Large { bytes, .. } = change {
                sizes.push(padded(bytes.len()));
            }
        }
        let mut places = self.places(Lane::Fresh, mark, &sizes).await?.into_iter();
        for ((key, change), old) in request.changes.into_iter().zip(olds) {
            let record = match change {
                Change::Delete => None,
                Change::Inline(bytes, crc) => {
                    Some(Record { len: bytes.len() as u32, crc, body: Body::Inline(bytes) })
                }
                Change::Large { bytes, crc, crcs } => {
                    let (segment, offset) =
                        places.next().ok_or_else(|| Error::internal("a value has no place"))?;
                    let len = bytes.len() as u32;
                    plan.data.entry(segment).or_default().push((offset, bytes));
                    Some(Record { len, crc, body: Body::Placed { segment, offset, crcs } })
                }
            };
            let counter = if record.is_some() { &self.counters.sets } else { &self.counters.deletes };
            count(counter, 1);
            self.change(plan, key, old, record);
        }
        Ok(())
    }

    /// Whether the table may take what this request adds to it.
    fn table_has_room(&self, plan: &Plan, request: &Request, olds: &[Option<Record>]) -> bool {
        let (mut more, mut less) = (0, 0);
        for ((key, change), old) in request.changes.iter().zip(olds) {
            less += old.as_ref().map_or(0, |record| record.table_bytes(key));
            let body = match change {
                Change::Delete => continue,
                Change::Inline(bytes, _) => Body::Inline(bytes.clone()),
                Change::Large { crcs, .. } => Body::Placed { segment: 0, offset: 0, crcs: crcs.clone() },
            };
            more += Record { len: 0, crc: 0, body }.table_bytes(key);
        }
        let table = (plan.totals.table + more).saturating_sub(less);
        more <= less || self.space.lock().table_fits(&Totals { table, ..plan.totals })
    }

    /// Places for values of these sizes: for all or for none.
    async fn places(&self, lane: Lane, mark: Option<Open>, sizes: &[u64]) -> Result<Vec<(u64, u64)>> {
        let mut places = Vec::with_capacity(sizes.len());
        for size in sizes {
            match self.place(lane, *size).await {
                Ok(place) => places.push(place),
                Err(error) => {
                    self.space.lock().rewind(lane, mark);
                    return Err(error);
                }
            }
        }
        Ok(places)
    }

    async fn place(&self, lane: Lane, size: u64) -> Result<(u64, u64)> {
        let number = {
            let mut space = self.space.lock();
            if let Some(place) = space.take(lane, size) {
                return Ok(place);
            }
            match space.next_segment(lane) {
                Some(number) => number,
                None => {
                    space.no_room(lane);
                    self.garbage.notify_one();
                    return Err(no_space());
                }
            }
        };
        let segment_size = self.segment_size;
        match self.files.make(number, segment_size, self.settings.table_reserve).await {
            Ok(()) => {}
            Err(error) if error.kind == ErrorKind::NoSpace => {
                let mut space = self.space.lock();
                space.no_room(lane);
                self.garbage.notify_one();
                return Err(error.context("no space for another segment"));
            }
            Err(error) => return Err(self.fail(error)),
        }
        let mut space = self.space.lock();
        space.begin(lane, number);
        space.take(lane, size).ok_or_else(|| Error::invalid("a value is larger than a segment of this disk"))
    }

    /// Makes `record` the record of `key`, and counts what that changes.
    fn change(&self, plan: &mut Plan, key: Bytes, old: Option<Record>, record: Option<Record>) {
        if let Some(old) = &old {
            plan.totals.keys -= 1;
            plan.totals.bytes -= u64::from(old.len);
            plan.totals.table -= old.table_bytes(&key);
            if let Body::Placed { segment, offset, .. } = &old.body {
                let mut state = self.segment(plan, *segment);
                state.live -= padded(old.len as usize);
                state.count -= 1;
                plan.segments.insert(*segment, state);
                plan.batch.delete(keys::place(*segment, *offset));
                plan.freed = true;
            }
        }
        match &record {
            None => plan.batch.delete(keys::value(&key)),
            Some(new) => {
                plan.totals.keys += 1;
                plan.totals.bytes += u64::from(new.len);
                plan.totals.table += new.table_bytes(&key);
                if let Body::Placed { segment, offset, .. } = &new.body {
                    let mut state = self.segment(plan, *segment);
                    state.live += padded(new.len as usize);
                    // From here, and not from where its lane stands: that may be in another segment by now.
                    state.end = state.end.max(offset + padded(new.len as usize));
                    state.count += 1;
                    plan.segments.insert(*segment, state);
                    plan.batch.put(keys::place(*segment, *offset), key.clone());
                }
                plan.batch.put(keys::value(&key), new.encode());
            }
        }
        plan.changed.insert(key, record);
    }

    /// Copies a value, if it is still where it was read.
    async fn relocate(&self, plan: &mut Plan, each: Move) -> Result<()> {
        let old = self.current(plan, &each.key)?;
        let unchanged = old.as_ref() == Some(&each.record);
        if !unchanged && !mutant::is_on("asd-move-overwrites") {
            return Ok(());
        }
        let Body::Placed { crcs, .. } = each.record.body else { return Ok(()) };
        let (segment, offset) = self.place(Lane::Moved, padded(each.bytes.len())).await?;
        count(&self.counters.cleaned, each.bytes.len() as u64);
        plan.data.entry(segment).or_default().push((offset, each.bytes));
        let record = Record { body: Body::Placed { segment, offset, crcs }, ..each.record };
        self.change(plan, each.key, old, Some(record));
        Ok(())
    }

    fn claim(&self, plan: &mut Plan, from: Option<BackendId>, to: Option<BackendId>) -> Result<()> {
        let now = plan.claim.unwrap_or(*self.claim.lock());
        if now == to {
            // Asked again.
            return Ok(());
        }
        if now != from {
            let who = now.map_or("no backend".to_owned(), |b| format!("backend {b}"));
            return Err(Error::conflict(format!("OSD {} is claimed by {who}", self.id)));
        }
        match to {
            Some(backend) => plan.batch.put(keys::CLAIM, format::encode_claim(backend)),
            None => plan.batch.delete(keys::CLAIM),
        }
        plan.claim = Some(to);
        Ok(())
    }

    /// Data, then records. Whatever fails is the end, but for a table without room.
    async fn make_durable(&self, plan: &mut Plan) -> Result<()> {
        for (number, values) in std::mem::take(&mut plan.data) {
            self.write(number, values).await.map_err(|e| self.fail(e))?;
        }
        for (number, state) in &plan.segments {
            if !plan.released.contains(number) {
                plan.batch.put(keys::segment(*number), state.encode());
            }
        }
        let mut batch = std::mem::take(&mut plan.batch);
        if batch.ops.is_empty() {
            return Ok(());
        }
        batch.put(keys::TOTALS, plan.totals.encode());
        let written = {
            let mut in_flight = self.in_flight.lock();
            in_flight.keys.extend(plan.changed.keys().cloned());
            in_flight.written += 1;
            in_flight.written
        };
        let table = self.table.clone();
        let early = mutant::is_on("asd-answer-before-sync");
        let done = blocking::run(move || {
            match table.write(batch) {
                Err(error) if error.kind == ErrorKind::NoSpace => {
                    return Ok(Err(error.context("the table has no room")));
                }
                other => other?,
            }
            if !early {
                table.checkpoint()?;
            }
            Ok(Ok(()))
        });
        let done = done.await;
        count(&self.counters.table_syncs, 1);
        done.map_err(|e| self.fail(e))?.inspect_err(|_| {
            // Nothing of it was applied, and it can be tried again when there is room.
            self.settle(written);
        })
    }

    async fn write(&self, number: u64, mut values: Vec<(u64, Bytes)>) -> Result<()> {
        let file = self.files.get(number).await?;
        values.sort_by_key(|(offset, _)| *offset);
        let mut values = values.into_iter().peekable();
        while let Some((start, first)) = values.next() {
            let mut end = start;
            let mut parts = Vec::new();
            let mut add = |end: &mut u64, bytes: Bytes| {
                let pad = padded(bytes.len()) as usize - bytes.len();
                *end += (bytes.len() + pad) as u64;
                count(&self.counters.written, (bytes.len() + pad) as u64);
                parts.push(bytes);
                // Whole pages, so that the kernel need not read one first.
                if pad > 0 {
                    parts.push(Bytes::from_static(&ZEROES[..pad]));
                }
            };
            add(&mut end, first);
            while let Some((_, bytes)) = values.next_if(|(offset, _)| *offset == end) {
                add(&mut end, bytes);
            }
            file.write_at(start, &parts).await?;
        }
        if mutant::is_on("asd-data-unsynced") {
            return Ok(());
        }
        count(&self.counters.data_syncs, 1);
        file.sync().await
    }

    /// Everything of the plan is durable: it holds.
    fn publish(&self, plan: &Plan) {
        let segments: Vec<(u64, SegmentState)> = plan.segments.iter().map(|(n, s)| (*n, *s)).collect();
        {
            let mut space = self.space.lock();
            space.commit(&segments, plan.totals);
            plan.released.iter().for_each(|number| space.remove(*number));
        }
        if let Some(claim) = plan.claim {
            *self.claim.lock() = claim;
        }
        plan.changed.keys().for_each(|key| self.forget_damage(key));
        let written = self.in_flight.lock().written;
        self.settle(written);
    }

    /// Nothing is in flight any more: whoever waits for it may go on.
    fn settle(&self, written: u64) {
        self.in_flight.lock().keys.clear();
        self.durable.send_replace(written);
    }
}

fn refusal(assert: &Assert) -> Error {
    let key = shown(assert.key());
    Error::conflict(match assert {
        Assert::Absent(_) => format!("key {key} exists"),
        Assert::Present(_) => format!("key {key} does not exist"),
        Assert::Value(..) => format!("key {key} does not have the value that was asserted"),
    })
}

fn no_space() -> Error {
    Error::new(ErrorKind::NoSpace, "the disk is full: delete something, or give it more capacity")
}
