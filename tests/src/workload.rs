//! Random requests over several connections, each recorded in the model before it is sent and
//! after it was answered.

use crate::block::BLOCK;
use crate::model::{Model, Promise};
use crate::nbd::{Client, Endpoint, FUA, NO_HOLE, NbdError};
use anyhow::{Context, Result, bail};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::runtime::Runtime;

/// What to do to a volume.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Connections.
    pub connections: usize,
    /// Requests in flight on each.
    pub depth: usize,
    /// Longest request, in blocks.
    pub longest: usize,
    /// Of 100 requests, how many go to the first 64 blocks, so that overwrites are common.
    pub hot: u32,
    /// Whether it flushes and writes with FUA now and then.
    pub syncs: bool,
    /// Which random choices are made.
    pub seed: u64,
}

impl Default for Plan {
    fn default() -> Self {
        Self { connections: 4, depth: 8, longest: 16, hot: 30, syncs: true, seed: 1 }
    }
}

/// One volume under test: where it is served, and what may be on it.
pub struct Subject {
    /// Where.
    pub endpoint: Endpoint,
    /// The export's name.
    pub export: String,
    model: Arc<Mutex<Model>>,
    flushed: Arc<AtomicU64>,
    runtime: Runtime,
}

/// A workload that is running.
pub struct Running {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    workers: Vec<tokio::task::JoinHandle<Result<()>>>,
}

/// For an answer; far longer than any pause that a test makes.
const LONGEST_WAIT: Duration = Duration::from_secs(120);

/// NBD_ESHUTDOWN.
const SHUTDOWN: u32 = 108;

fn lock(model: &Mutex<Model>) -> MutexGuard<'_, Model> {
    model.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Subject {
    /// A fresh volume of zeroes, of which the first `blocks` are used.
    pub fn new(endpoint: Endpoint, export: &str, blocks: usize) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let model = Arc::new(Mutex::new(Model::new(fastrand::u32(..).into(), blocks)));
        Ok(Self { endpoint, export: export.into(), model, flushed: Arc::default(), runtime })
    }

    /// This moment on the model's clock.
    pub fn now(&self) -> u64 {
        lock(&self.model).now()
    }

    /// What was acknowledged before this moment survives a power cut: the sending of the last flush
    /// that was answered, or the last [`Subject::settle`].
    pub fn flushed(&self) -> u64 {
        self.flushed.load(Ordering::SeqCst)
    }

    /// Flushes, on a connection of its own.
    pub fn flush(&self) -> Result<()> {
        let issued = self.now();
        self.ask(async |client| client.flush().await)?;
        self.flushed.fetch_max(issued, Ordering::SeqCst);
        Ok(())
    }

    /// Sends something on a connection of its own; what it writes is unknown to the model.
    pub fn ask<T>(&self, request: impl AsyncFnOnce(&Client) -> Result<T, NbdError>) -> Result<T> {
        self.runtime.block_on(async {
            let client = Client::connect(&self.endpoint, &self.export).await?;
            let answer = tokio::time::timeout(LONGEST_WAIT, request(&client)).await;
            Ok(answer.context("no answer within two minutes")??)
        })
    }

    /// Starts a workload. Its connections are made before this returns.
    pub fn start(&self, plan: &Plan) -> Result<Running> {
        let stop = Arc::new(AtomicBool::new(false));
        let done = Arc::new(AtomicU64::new(0));
        let mut workers = Vec::new();
        for connection in 0..plan.connections {
            let client = self.runtime.block_on(Client::connect(&self.endpoint, &self.export));
            let client = Arc::new(client.with_context(|| format!("connecting to {:?}", self.endpoint))?);
            for slot in 0..plan.depth {
                let worker = Worker {
                    client: client.clone(),
                    model: self.model.clone(),
                    flushed: self.flushed.clone(),
                    plan: plan.clone(),
                    writer: connection as u64,
                    random: fastrand::Rng::with_seed(plan.seed ^ ((connection * 1000 + slot) as u64) << 32),
                };
                workers.push(self.runtime.spawn(worker.run(stop.clone(), done.clone())));
            }
        }
        Ok(Running { stop, done, workers })
    }

    /// After the server is gone: collects the workers. A read that returned wrong data, or an error
    /// that the server answered with, is an error here; a lost connection is not.
    pub fn gather(&self, running: Running) -> Result<u64> {
        running.stop.store(true, Ordering::Relaxed);
        let done = running.done.clone();
        self.runtime.block_on(async {
            for worker in running.workers {
                tokio::time::timeout(LONGEST_WAIT, worker)
                    .await
                    .context("a request was not answered within two minutes")???;
            }
            anyhow::Ok(())
        })?;
        Ok(done.load(Ordering::Relaxed))
    }

    /// Where the server must fail for good: every worker comes, unasked, to a request that is answered
    /// with this error number, and ends with it.
    pub fn gather_failed(&self, running: Running, errno: u32) -> Result<()> {
        self.runtime.block_on(async {
            for worker in running.workers {
                let ended = tokio::time::timeout(LONGEST_WAIT / 4, worker)
                    .await
                    .context("a worker met no failure within half a minute")??;
                let error = ended.err().context("a worker ended without an error")?;
                if error.downcast_ref() != Some(&NbdError::Errno(errno)) {
                    return Err(error.context(format!("not error {errno}")));
                }
            }
            Ok(())
        })
    }

    /// Runs a workload for a while and waits until all its requests are answered.
    pub fn run_for(&self, plan: &Plan, milliseconds: u64) -> Result<u64> {
        let running = self.start(plan)?;
        crate::time::pause(milliseconds);
        let done = self.gather(running)?;
        if done == 0 {
            bail!("the workload got no answer within {milliseconds} ms");
        }
        Ok(done)
    }

    /// Reads the whole volume.
    pub fn image(&self) -> Result<Vec<u8>> {
        let length = lock(&self.model).len() * BLOCK;
        self.runtime.block_on(async {
            let client = Client::connect(&self.endpoint, &self.export).await?;
            let mut image = Vec::with_capacity(length);
            while image.len() < length {
                let piece = (length - image.len()).min(1 << 20);
                image.extend(client.read(image.len() as u64, piece as u32).await?);
            }
            client.disconnect().await?;
            anyhow::Ok(image)
        })
    }

    /// Reads the whole volume and checks it; what was seen is the truth from now on.
    pub fn settle(&self, promise: Promise) -> Result<()> {
        let image = self.image().context("reading the volume back")?;
        lock(&self.model).settle(&image, promise)?;
        let now = self.now();
        self.flushed.fetch_max(now, Ordering::SeqCst);
        Ok(())
    }

    /// How many acknowledged changes came after a moment.
    pub fn acknowledged_after(&self, moment: u64) -> usize {
        lock(&self.model).acknowledged_after(moment)
    }
}

impl Running {
    /// Waits until more than this many requests were answered.
    pub fn wait_past(&self, answers: u64) -> Result<()> {
        crate::time::eventually("requests are answered", 60, || match self.done() {
            done if done > answers => Ok(()),
            done => bail!("{done} answers, not more than {answers}"),
        })
    }

    /// Answers so far.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }
}

struct Worker {
    client: Arc<Client>,
    model: Arc<Mutex<Model>>,
    flushed: Arc<AtomicU64>,
    plan: Plan,
    writer: u64,
    random: fastrand::Rng,
}

impl Worker {
    async fn run(mut self, stop: Arc<AtomicBool>, done: Arc<AtomicU64>) -> Result<()> {
        while !stop.load(Ordering::Relaxed) {
            match self.step().await {
                Ok(()) => done.fetch_add(1, Ordering::Relaxed),
                Err(error) => match error.downcast_ref::<NbdError>() {
                    Some(NbdError::Gone(why)) if !why.starts_with("protocol") => return Ok(()),
                    // The server stops in order.
                    Some(NbdError::Errno(SHUTDOWN)) => return Ok(()),
                    _ => return Err(error),
                },
            };
        }
        Ok(())
    }

    async fn step(&mut self) -> Result<()> {
        let blocks = lock(&self.model).len();
        let count = 1 + self.random.usize(..self.plan.longest.min(blocks));
        let area = if self.random.u32(..100) < self.plan.hot { blocks.min(64.max(count)) } else { blocks };
        let first = self.random.usize(..=area - count);
        let (offset, length) = ((first * BLOCK) as u64, (count * BLOCK) as u32);
        let fua = if self.plan.syncs { FUA } else { 0 };
        match self.random.u32(..if self.plan.syncs { 100 } else { 95 }) {
            0..60 => {
                let (ticket, data) = lock(&self.model).begin_write(first, count, self.writer);
                let flags = if self.random.u32(..10) == 0 { fua } else { 0 };
                self.client.write(offset, &data, flags).await?;
                lock(&self.model).ack(ticket);
            }
            60..70 => {
                let ticket = lock(&self.model).begin_zero(first, count);
                self.client.trim(offset, length, 0).await?;
                lock(&self.model).ack(ticket);
            }
            70..80 => {
                let ticket = lock(&self.model).begin_zero(first, count);
                let flags = [0, NO_HOLE, fua, NO_HOLE | fua][self.random.usize(..4)];
                self.client.write_zeroes(offset, length, flags).await?;
                lock(&self.model).ack(ticket);
            }
            80..95 => {
                let issued = lock(&self.model).now();
                let data = self.client.read(offset, length).await?;
                lock(&self.model).check_read(first, issued, &data).context("a read under load")?;
            }
            _ => {
                let issued = lock(&self.model).now();
                self.client.flush().await?;
                self.flushed.fetch_max(issued, Ordering::SeqCst);
            }
        }
        Ok(())
    }
}
