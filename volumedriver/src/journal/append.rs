//! The committer: whoever calls [`Journal::commit`] while nobody commits appends all that is queued,
//! its own entries and those that others queue meanwhile.
//!
//! The future is polled once where it was called: a buffered write completes in that poll, so a lone
//! write costs no task. What does not complete moves to a task, so that no caller can drop it.

use super::record::{self, Place, Position};
use super::segment::{HEADER_BLOCK, JournalLoc, Segment};
use super::space::{Prepared, Span};
use super::{Journal, Mark, PAGE, Retired, Sink};
use crate::log::LogEntry;
use bytes::{Bytes, BytesMut};
use common::{Error, Result, VolumeId, mutant};
use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Waker};
use tokio::sync::oneshot;

/// Appends of one leader before it lets others run.
const FAIR: u32 = 16;
static ZEROES: [u8; PAGE as usize] = [0; PAGE as usize];

struct Pending {
    /// None for a copy.
    sink: Option<Arc<dyn Sink>>,
    entry: LogEntry,
    payload_at: u64,
    payload_len: u32,
}

impl Pending {
    fn new(sink: Option<Arc<dyn Sink>>, entry: LogEntry) -> Self {
        Self { sink, entry, payload_at: 0, payload_len: 0 }
    }
}

/// Entries to be copied forward, and where to say where they lie now.
pub(super) struct CopyJob {
    pub entries: Vec<LogEntry>,
    pub reply: oneshot::Sender<Vec<JournalLoc>>,
}

/// What waits for the committer.
pub(super) struct Queue {
    pending: VecDeque<Pending>,
    copies: Option<CopyJob>,
    /// The committer's state while nobody commits.
    idle: Option<Box<Appender>>,
    closed: bool,
}

impl Queue {
    pub fn new(appender: Appender) -> Self {
        Self { pending: VecDeque::new(), copies: None, idle: Some(Box::new(appender)), closed: false }
    }

    pub fn submit(&mut self, sink: &Arc<dyn Sink>, entry: LogEntry) -> Option<()> {
        if self.closed {
            return None;
        }
        self.pending.push_back(Pending::new(Some(sink.clone()), entry));
        Some(())
    }

    pub fn close(&mut self) {
        self.closed = true;
    }

    pub fn is_closed(&self) -> bool {
        self.closed
    }

    pub fn is_idle(&self) -> bool {
        self.idle.is_some() && self.pending.is_empty() && self.copies.is_none()
    }

    /// Gives up everything; what is returned is dropped without the lock.
    pub fn abandon(&mut self) -> impl Sized + use<> {
        self.closed = true;
        (std::mem::take(&mut self.pending), self.copies.take())
    }
}

/// The segment that is being written.
struct Active {
    segment: Arc<Segment>,
    /// The next record begins here.
    offset: u64,
    /// What the page of `offset` holds before it: written again with what follows.
    tail: Vec<u8>,
    spans: HashMap<VolumeId, Span>,
}

/// The committer's own state.
pub(super) struct Appender {
    active: Option<Active>,
    work: VecDeque<Pending>,
    copies: VecDeque<Pending>,
    copied: Vec<JournalLoc>,
    copy_reply: Option<oneshot::Sender<Vec<JournalLoc>>>,
    header: BytesMut,
    parts: Vec<Bytes>,
    batch: Vec<Pending>,
    prev_crc: u32,
}

/// Fails the journal when the committer is dropped or panics half-way.
struct Leading {
    journal: Arc<Journal>,
    done: bool,
}

impl Drop for Leading {
    fn drop(&mut self) {
        if !self.done {
            self.journal.fail(Error::internal("the committer of the write buffer was stopped half-way"));
        }
    }
}

impl Journal {
    /// Sees to it that everything queued is appended: by the one who does it now, or by the caller.
    /// Call it without the volume's lock: sinks are called from within.
    pub fn commit(self: &Arc<Self>) {
        let appender = {
            let mut queue = self.queue.lock();
            if queue.pending.is_empty() && queue.copies.is_none() {
                return;
            }
            match queue.idle.take() {
                Some(appender) => appender,
                None => return,
            }
        };
        let mut leader: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(lead(self.clone(), appender));
        if leader.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
            self.runtime.spawn(leader);
        }
    }

    /// Copies entries forward; returns where they lie, in order. Not yet synced.
    pub(super) async fn append_copies(self: &Arc<Self>, entries: Vec<LogEntry>) -> Result<Vec<JournalLoc>> {
        let (reply, done) = oneshot::channel();
        {
            let mut queue = self.queue.lock();
            if queue.closed {
                return Err(self.error());
            }
            queue.copies = Some(CopyJob { entries, reply });
        }
        self.room.notify_one();
        self.commit();
        done.await.map_err(|_| self.error())
    }

    /// Sets the bytes that a copy in progress still needs.
    pub(super) fn reserve_for_copies(&self, bytes: u64) {
        self.reserved.store(bytes, Ordering::Release);
        self.room.notify_one();
    }
}

async fn lead(journal: Arc<Journal>, mut appender: Box<Appender>) {
    let mut guard = Leading { journal: journal.clone(), done: false };
    let mut rounds = 0;
    loop {
        if journal.failed.load(Ordering::Acquire) {
            break;
        }
        {
            let mut queue = journal.queue.lock();
            if appender.copies.is_empty()
                && let Some(job) = queue.copies.take()
            {
                appender.copies.extend(job.entries.into_iter().map(|e| Pending::new(None, e)));
                appender.copy_reply = Some(job.reply);
            }
            if appender.work.is_empty() {
                std::mem::swap(&mut appender.work, &mut queue.pending);
            }
            if appender.work.is_empty() && appender.copies.is_empty() {
                queue.idle = Some(appender);
                break;
            }
        }
        if let Err(error) = appender.step(&journal).await {
            journal.fail(error);
            break;
        }
        rounds += 1;
        if rounds % FAIR == 0 {
            tokio::task::yield_now().await;
        }
    }
    guard.done = true;
    journal.idle.notify_waiters();
}

impl Appender {
    pub fn new() -> Self {
        Self {
            active: None,
            work: VecDeque::new(),
            copies: VecDeque::new(),
            copied: Vec::new(),
            copy_reply: None,
            header: BytesMut::new(),
            parts: Vec::new(),
            batch: Vec::new(),
            prev_crc: 0,
        }
    }

    /// One write: a record, or the end of a segment; or waits for room.
    async fn step(&mut self, journal: &Arc<Journal>) -> Result<()> {
        let copying = !self.copies.is_empty();
        let Some(active) = &self.active else {
            let ready = journal.space.lock().take_ready(copying);
            match ready {
                Some(prepared) => self.activate(journal, prepared),
                None => return journal.wait_for_room().await,
            }
            return Ok(());
        };
        let room = active.segment.file.len() - active.offset - u64::from(journal.settings.align);
        let kept = match journal.reserved.load(Ordering::Acquire) {
            kept if kept > 0 && !copying && !journal.space.lock().has_ready() => kept,
            _ => 0,
        };
        let n = self.fitting(journal, room.saturating_sub(kept), copying);
        if n > 0 {
            return self.append(journal, n, copying).await;
        }
        if kept > 0 {
            return journal.wait_for_room().await;
        }
        self.leave(journal).await
    }

    fn activate(&mut self, journal: &Journal, prepared: Prepared) {
        let segment = Arc::new(Segment {
            file: prepared.file,
            segno: prepared.segno,
            life: prepared.life,
            wake: journal.wake.clone(),
        });
        journal.space.lock().activated(&segment);
        self.active = Some(Active { segment, offset: HEADER_BLOCK, tail: Vec::new(), spans: HashMap::new() });
    }

    /// How many of the waiting entries make the next record, in `room` bytes.
    fn fitting(&self, journal: &Journal, room: u64, copying: bool) -> usize {
        let s = &journal.settings;
        let (mut heads, mut payload, mut n) = (0, 0, 0);
        let mut fits = |e: &LogEntry| {
            heads += record::entry_len(e.crcs.len());
            payload += e.data.len();
            let header = record::header_len(heads);
            let fits = n < s.max_batch_entries
                && (n == 0 || (payload <= s.max_batch_bytes && header <= record::MAX_HEADER))
                && record::record_len(header, payload, u64::from(s.align)) <= room;
            n += usize::from(fits);
            fits
        };
        let from = if copying { &self.copies } else { &self.work };
        from.iter().take_while(|p| fits(&p.entry)).count()
    }

    /// Appends the first `n` waiting entries as one record and tells their sinks.
    async fn append(&mut self, journal: &Journal, n: usize, copying: bool) -> Result<()> {
        let from = if copying { &mut self.copies } else { &mut self.work };
        self.batch.extend(from.drain(..n));
        let mark = self.write(journal, false, copying).await?;
        // After a failure nothing is retired: what is told to sinks must be syncable.
        journal.check()?;
        journal.metrics.batch.observe(n as f64);
        let Some(active) = &mut self.active else { return Ok(()) };
        if copying {
            self.copied.extend(self.batch.iter().map(|p| p.loc(&active.segment)));
        }
        // One call to each sink; within a volume the order stays.
        let first = self.batch.first().map(|p| p.entry.volume);
        if self.batch.iter().any(|p| Some(p.entry.volume) != first) {
            self.batch.sort_by_key(|p| p.entry.volume);
        }
        for group in self.batch.chunk_by(|a, b| a.entry.volume == b.entry.volume && a.same_sink(b)) {
            let volume = group[0].entry.volume;
            let span = active.spans.entry(volume).or_default();
            group.iter().for_each(|p| span.add(p.entry.lsn, p.cost()));
            if let Some(sink) = &group[0].sink {
                let segment = &active.segment;
                sink.retired(&mut group.iter().map(|p| Retired {
                    epoch: p.entry.epoch,
                    lsn: p.entry.lsn,
                    mark,
                    loc: p.loc(segment),
                }));
            }
        }
        self.batch.clear();
        if copying
            && self.copies.is_empty()
            && let Some(reply) = self.copy_reply.take()
        {
            // If nobody listens any more, the copies are superfluous but right.
            let _ = reply.send(std::mem::take(&mut self.copied));
        }
        Ok(())
    }

    /// Writes a record of the batch at the end of the active segment.
    async fn write(&mut self, journal: &Journal, last: bool, copy: bool) -> Result<Mark> {
        let Self { active, header, parts, batch, prev_crc, .. } = self;
        let Some(active) = active else {
            return Err(Error::internal("no segment of the write buffer is open"));
        };
        let begin = active.position();
        let place = Place {
            process: journal.process,
            at: begin,
            durable: journal.durable_position(),
            prev_crc: *prev_crc,
        };
        let page = active.offset - active.tail.len() as u64;
        header.extend_from_slice(&active.tail);
        let before = header.len();
        let crc = record::encode(header, &place, last, batch.iter().map(|p| &p.entry), copy);
        let header_len = header.len() - before;
        parts.push(header.split().freeze());
        let mut payload_end = active.offset + header_len as u64;
        for p in batch.iter_mut() {
            p.payload_at = payload_end;
            p.payload_len = p.entry.data.len() as u32;
            payload_end += u64::from(p.payload_len);
            if p.payload_len > 0 {
                parts.push(std::mem::take(&mut p.entry.data));
            }
        }
        let payload_len = (payload_end - active.offset) as usize - header_len;
        let end =
            active.offset + record::record_len(header_len, payload_len, u64::from(journal.settings.align));
        let pad = (end.next_multiple_of(PAGE) - payload_end) as usize;
        if pad > 0 {
            parts.push(Bytes::from_static(&ZEROES[..pad]));
        }
        let written_from = journal.clock.now();
        match active.segment.file.write_at(page, parts).await {
            Err(_) if mutant::is_on("failed-write-ignored") => {}
            outcome => outcome?,
        }
        journal.metrics.write_seconds.observe((journal.clock.now() - written_from).as_secs_f64());
        if pad > 0 {
            parts.pop();
        }
        active.keep_tail(parts, end, payload_end);
        parts.clear();
        *prev_crc = crc;
        active.offset = end;
        journal.metrics.records.inc();
        journal.metrics.written.inc_by(end - begin.offset);
        if copy {
            journal.metrics.copied.inc_by(payload_len as u64);
        }
        Ok(journal.appended(active.position(), end - begin.offset, &active.segment))
    }

    /// Ends the active segment, so that recovery need not guess where it ends.
    async fn leave(&mut self, journal: &Journal) -> Result<()> {
        self.write(journal, true, false).await?;
        if let Some(active) = self.active.take() {
            let end = active.position();
            journal.space.lock().left(&active.segment, journal.process, active.spans, end);
            journal.wake.notify_one();
        }
        Ok(())
    }
}

impl Pending {
    fn loc(&self, segment: &Arc<Segment>) -> JournalLoc {
        JournalLoc { segment: segment.clone(), offset: self.payload_at, len: self.payload_len }
    }

    fn same_sink(&self, other: &Pending) -> bool {
        match (&self.sink, &other.sink) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        }
    }

    /// What it takes to copy it.
    fn cost(&self) -> u64 {
        u64::from(self.payload_len) + record::entry_len(self.entry.crcs.len()) as u64
    }
}

impl Active {
    fn position(&self) -> Position {
        Position { segno: self.segment.segno, life: self.segment.life, offset: self.offset }
    }

    /// Keeps what the page that holds `end` has before it. What was written ends with `parts`, whose
    /// last byte lies before `written`; from there to `end` there are zeroes.
    fn keep_tail(&mut self, parts: &[Bytes], end: u64, written: u64) {
        let len = (end % PAGE) as usize;
        let zeroes = len.min((end - written) as usize);
        self.tail.clear();
        self.tail.resize(len, 0);
        let mut to = len - zeroes;
        for part in parts.iter().rev() {
            let n = to.min(part.len());
            self.tail[to - n..to].copy_from_slice(&part[part.len() - n..]);
            to -= n;
            if to == 0 {
                break;
            }
        }
    }
}
