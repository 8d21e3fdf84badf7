//! One world from its beginning to its end.

use super::model::{Model, Promise, Range, SECTOR};
use super::plan::{Client, Crash, Life, Plan, Step, When};
use super::snapshots::Snapshots;
use super::world::{Coverage, World};
use bytes::Bytes;
use common::{BlockDevice, Clock, Error, ErrorKind};
use std::cell::RefCell;
use std::time::Duration;
use volumedriver::{Description, SnapshotChange, Volume};

/// A life that goes on for longer than this ends: the store may be away for good.
const LIFE: Duration = Duration::from_secs(300);

/// What came out of a world in which nothing was wrong.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// A number made of all that happened: the same for the same plan.
    pub digest: u64,
    /// Requests that were issued.
    pub operations: u64,
    /// Crashes.
    pub crashes: u64,
    /// How often each fault took effect.
    pub coverage: Coverage,
    /// How much time passed in the world.
    pub virtual_time: Duration,
}

/// Runs a plan; an error says what was wrong.
pub fn run(plan: &Plan) -> Result<Outcome, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.map_err(|e| e.to_string())?;
    let told = |e: Box<dyn std::any::Any + Send>| {
        let text = e.downcast_ref::<String>().cloned();
        text.or_else(|| e.downcast_ref::<&str>().map(|s| s.to_string())).unwrap_or_default()
    };
    let world = std::panic::AssertUnwindSafe(|| runtime.block_on(Run::all(plan)));
    std::panic::catch_unwind(world).unwrap_or_else(|e| Err(format!("panicked: {}", told(e))))
}

struct Run<'p> {
    plan: &'p Plan,
    world: World,
    truth: RefCell<Truth>,
    crashes: u64,
}

/// What the clients know.
struct Truth {
    models: Vec<Model>,
    snapshots: Vec<Snapshots>,
    /// Moments of each volume: what was acknowledged before is flushed, is committed.
    flushed: Vec<u64>,
    committed: Vec<u64>,
    digest: u64,
    operations: u64,
    /// The first thing that was wrong.
    wrong: Option<String>,
    /// The first error of this life, which some fault must have caused.
    error: Option<String>,
}

impl Truth {
    fn event(&mut self, what: u64) {
        self.digest = (self.digest ^ what).wrapping_mul(0x0100_0000_01b3).rotate_left(23);
    }

    fn wrong(&mut self, what: String) {
        self.wrong.get_or_insert(what);
    }

    fn check(&self) -> Result<(), String> {
        self.wrong.clone().map_or(Ok(()), Err)
    }
}

impl Run<'_> {
    async fn all(plan: &Plan) -> Result<Outcome, String> {
        let world = World::new(plan).await.map_err(|e| format!("creating the volumes: {e}"))?;
        let models = (0..plan.volumes).map(|v| Model::new(v as u64, plan.size, plan.most)).collect();
        let none = vec![0; plan.volumes];
        let truth = Truth {
            models,
            snapshots: (0..plan.volumes).map(|_| Snapshots::default()).collect(),
            flushed: none.clone(),
            committed: none,
            digest: 0xcbf2_9ce4_8422_2325,
            operations: 0,
            wrong: None,
            error: None,
        };
        let mut run = Run { plan, world, truth: RefCell::new(truth), crashes: 0 };
        run.world.crash(Crash::Kill);
        run.boot().await?;
        for (number, life) in plan.lives.iter().enumerate() {
            if run.crashes >= 3 && run.truth.borrow().operations >= plan.enough as u64 {
                break;
            }
            run.live(life).await.map_err(|e| format!("life {number}, {:?}: {e}", life.crash))?;
        }
        let virtual_time = run.world.clock.now();
        let truth = run.truth.into_inner();
        let (digest, operations) = (truth.digest, truth.operations);
        Ok(Outcome { digest, operations, crashes: run.crashes, coverage: run.world.coverage(), virtual_time })
    }

    async fn boot(&mut self) -> Result<(), String> {
        self.world.boot().await.map_err(|e| format!("the process does not start: {e}"))
    }

    async fn live(&mut self, life: &Life) -> Result<(), String> {
        let flips = self.world.flips();
        let (syncs, failures) = self.world.disk_failures();
        match life.when {
            When::DiskEffect(n) => self.world.die_at(Some(n), None),
            When::StoreEffect(n) => self.world.die_at(None, Some(n)),
            When::Done | When::After(_) => {}
        }
        let end = match life.when {
            When::After(end) => end,
            _ => LIFE,
        };
        self.requests(life, end).await;
        self.world.fair_weather();
        self.truth.borrow().check()?;
        let flipped = self.world.flips() > flips;
        let (now_syncs, now_failures) = self.world.disk_failures();
        let error = self.truth.borrow_mut().error.take();
        if let Some(error) = error.filter(|_| now_failures == failures && !flipped) {
            return Err(format!("an error without a cause: {error}"));
        }
        let crash = match life.crash {
            // After a failed sync the kernel's memory is not to be relied on: only what was flushed is.
            Crash::Kill | Crash::Clean if now_syncs > syncs => Crash::Power(50),
            Crash::Clean if now_failures == failures && !flipped => {
                self.stop().await?;
                Crash::Clean
            }
            Crash::Clean => Crash::Kill,
            crash => crash,
        };
        let zombies = self.world.volumes.clone();
        self.world.crash(crash);
        self.crashes += 1;
        if life.twice {
            self.world.fsck().await?;
        }
        self.stumble(life).await;
        if crash == Crash::Takeover {
            self.take_over(&zombies).await?;
        } else {
            self.boot().await?;
        }
        self.settle(crash).await?;
        if crash == Crash::Takeover {
            self.fenced(zombies).await?;
        }
        if flipped {
            self.world.note("life with wrong bits");
        }
        // What comes late from the dead changes nothing.
        self.world.late_puts();
        if life.twice {
            self.world.crash(Crash::Kill);
            self.boot().await?;
            self.settle(Crash::Kill).await?;
        }
        Ok(())
    }

    /// Runs the clients and the weather until the clients are done, or `end`.
    async fn requests(&mut self, life: &Life, end: Duration) {
        let volumes = self.world.volumes.clone();
        let (clock, truth) = (self.world.clock.clone(), &self.truth);
        let clients =
            life.clients.iter().map(|client| Talk { volumes: &volumes, clock: &*clock, truth }.run(client));
        let clients = futures::future::join_all(clients);
        let world = &mut self.world;
        let weather = async {
            let mut now = Duration::ZERO;
            for (at, what) in &life.weather {
                clock.sleep(at.saturating_sub(now)).await;
                now = now.max(*at);
                world.change(what);
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            biased;
            _ = clients => {}
            () = weather => {}
            () = clock.sleep(end) => {}
        }
    }

    /// A clean stop: in fair weather everything can be uploaded.
    async fn stop(&mut self) -> Result<(), String> {
        for (volume, v) in self.world.volumes.clone().into_iter().enumerate() {
            let moment = self.truth.borrow_mut().models[volume].now();
            let drained = v.drain(Duration::from_secs(600)).await;
            drained.map_err(|e| format!("volume {volume} does not drain in fair weather: {e}"))?;
            self.truth.borrow_mut().committed[volume] = moment;
            v.close().await;
        }
        Ok(())
    }

    /// The new owner starts while clients still write to the old one, and upload.
    async fn take_over(&mut self, zombies: &[std::sync::Arc<Volume>]) -> Result<(), String> {
        let mut client = Client::new();
        for n in 0..200 {
            let volume = n % zombies.len();
            let range = Range { first: 0, count: 8 };
            client.push((Step::Write { volume, range, fua: false }, Duration::from_millis(1)));
            client.push((Step::Drain { volume }, Duration::ZERO));
        }
        let clock = self.world.clock.clone();
        let talk = Talk { volumes: zombies, clock: &*clock, truth: &self.truth };
        // They may wait for room in a write buffer that nobody empties any more.
        let clients = tokio::time::timeout(LIFE, talk.run(&client));
        let (booted, _) = futures::join!(self.world.boot(), clients);
        // That the old owner fails them is right.
        self.truth.borrow_mut().error = None;
        self.truth.borrow().check()?;
        booted.map_err(|e| format!("the new owner does not start: {e}"))
    }

    /// A deposed owner that wakes up neither commits anything nor changes the backend's image.
    async fn fenced(&mut self, zombies: Vec<std::sync::Arc<Volume>>) -> Result<(), String> {
        for (volume, zombie) in zombies.iter().enumerate() {
            // It may as well wait for room in a write buffer that nobody empties any more.
            let write = zombie.write(0, Bytes::from(vec![0xdd; SECTOR]), false);
            let wrote = tokio::time::timeout(Duration::from_secs(30), write).await;
            if matches!(wrote, Ok(Ok(()))) && zombie.drain(Duration::from_secs(30)).await.is_ok() {
                return Err(format!("volume {volume}: a deposed owner says that a write is on the backend"));
            }
        }
        self.world.crash(Crash::Kill);
        self.boot().await?;
        self.settle(Crash::Kill).await
    }

    /// Starts that die half-way.
    async fn stumble(&mut self, life: &Life) {
        for &(effect, store) in &life.stumbles {
            self.world.die_at((!store).then_some(effect), store.then_some(effect));
            // With no store that answers, it may try for ever.
            let _ = tokio::time::timeout(Duration::from_secs(60), self.world.boot()).await;
            self.world.fair_weather();
            self.world.note("death while starting");
            self.world.crash(Crash::Kill);
        }
    }

    /// Checks which snapshots a volume has, and what each shows.
    async fn settle_snapshots(&mut self, volume: usize, crash: Crash) -> Result<(), String> {
        let v = self.world.volumes[volume].clone();
        let listed: Vec<u128> = v.snapshots().iter().map(|s| s.about.id).collect();
        let only_committed = matches!(crash, Crash::LostDataDir | Crash::OldDataDir | Crash::Takeover);
        let told = |e: String| format!("volume {volume}: {e}");
        self.truth.borrow_mut().snapshots[volume].settle(&listed, only_committed).map_err(told)?;
        for id in listed {
            let image =
                read_snapshot(&v, id).await.map_err(|e| told(format!("snapshot {id} does not read: {e}")))?;
            self.world.note("snapshot read after a crash");
            let mut truth = self.truth.borrow_mut();
            truth.event(u64::from(common::crc::crc32c(&image)));
            truth.snapshots[volume].check(id, &image).map_err(told)?;
        }
        Ok(())
    }

    /// Reads every volume and checks it against what was promised.
    async fn settle(&mut self, crash: Crash) -> Result<(), String> {
        for volume in 0..self.plan.volumes {
            let image =
                self.world.image(volume).await.map_err(|e| format!("the image does not read: {e}"))?;
            {
                let mut truth = self.truth.borrow_mut();
                let promise = match crash {
                    Crash::Kill | Crash::Clean => Promise::Everything,
                    Crash::Power(_) => Promise::Flushed(truth.flushed[volume].max(truth.committed[volume])),
                    Crash::LostDataDir | Crash::OldDataDir | Crash::Takeover => {
                        Promise::Committed(truth.committed[volume])
                    }
                };
                truth.models[volume].settle(&image, promise)?;
                let committed = truth.committed[volume];
                truth.models[volume].forget(committed);
                let sum = common::crc::crc32c(&image);
                truth.event(u64::from(sum));
            }
            self.settle_snapshots(volume, crash).await?;
            if !matches!(crash, Crash::LostDataDir | Crash::OldDataDir | Crash::Takeover) {
                continue;
            }
            // What was not committed may be in the new write buffer only, and never was flushed there.
            let mut truth = self.truth.borrow_mut();
            let now = truth.models[volume].now();
            truth.committed[volume] = now;
            truth.flushed[volume] = now;
        }
        let now = self.world.clock.now().as_micros() as u64;
        self.truth.borrow_mut().event(now);
        Ok(())
    }
}

/// A client at work.
struct Talk<'a> {
    volumes: &'a [std::sync::Arc<Volume>],
    clock: &'a dyn Clock,
    truth: &'a RefCell<Truth>,
}

impl Talk<'_> {
    async fn run(self, client: &Client) {
        for (step, pause) in client {
            let outcome = self.step(step).await;
            if !self.note(step, outcome) {
                // A volume that stopped tells everybody; nobody goes on.
                return;
            }
            if !pause.is_zero() {
                self.clock.sleep(*pause).await;
            }
        }
    }

    /// Writes down what became of a request; whether the client goes on.
    fn note(&self, step: &Step, outcome: Result<(), Trouble>) -> bool {
        let now = self.clock.now().as_micros() as u64;
        let mut truth = self.truth.borrow_mut();
        truth.operations += 1;
        truth.event(now << 1 | u64::from(outcome.is_ok()));
        match outcome {
            Ok(()) => return true,
            Err(Trouble::Wrong(what)) => truth.wrong(format!("{step:?}: {what}")),
            Err(Trouble::Error(error)) => drop(truth.error.get_or_insert(format!("{step:?}: {error}"))),
        }
        false
    }

    async fn step(&self, step: &Step) -> Result<(), Trouble> {
        let truth = self.truth;
        match *step {
            Step::Write { volume, range, fua } => {
                let Some(range) = self.clip(volume, range) else { return Ok(()) };
                let (ticket, data) = truth.borrow_mut().models[volume].begin_write(range);
                self.volumes[volume].write((range.first * SECTOR) as u64, Bytes::from(data), fua).await?;
                truth.borrow_mut().models[volume].ack(ticket, fua);
            }
            Step::Zero { volume, range, hole, fua } => {
                let Some(range) = self.clip(volume, range) else { return Ok(()) };
                let ticket = truth.borrow_mut().models[volume].begin_zero(range);
                let (offset, len) = ((range.first * SECTOR) as u64, (range.count * SECTOR) as u64);
                match hole {
                    true => self.volumes[volume].discard(offset, len, fua).await?,
                    false => self.volumes[volume].write_zeroes(offset, len, false, fua).await?,
                }
                truth.borrow_mut().models[volume].ack(ticket, fua);
            }
            Step::Flush { volume } => {
                let moment = truth.borrow_mut().models[volume].now();
                self.volumes[volume].flush().await?;
                let flushed = &mut truth.borrow_mut().flushed[volume];
                *flushed = moment.max(*flushed);
            }
            Step::Read { volume, range } => {
                let Some(range) = self.clip(volume, range) else { return Ok(()) };
                let issued = truth.borrow_mut().models[volume].now();
                let (offset, len) = ((range.first * SECTOR) as u64, (range.count * SECTOR) as u32);
                let data = self.volumes[volume].read(offset, len).await?;
                let mut truth = truth.borrow_mut();
                truth.event(u64::from(common::crc::crc32c(&data)));
                truth.models[volume].check_read(range, issued, &data).map_err(Trouble::Wrong)?;
            }
            Step::Extents { volume, range } => {
                let Some(range) = self.clip(volume, range) else { return Ok(()) };
                let issued = truth.borrow_mut().models[volume].now();
                let (offset, len) = ((range.first * SECTOR) as u64, (range.count * SECTOR) as u64);
                let extents = self.volumes[volume].extents(offset, len).await?;
                let truth = truth.borrow();
                let mut first = range.first;
                for extent in extents {
                    let count = extent.len as usize / SECTOR;
                    if extent.zero || extent.hole {
                        let run = Range { first, count };
                        truth.models[volume].check_zero(run, issued).map_err(Trouble::Wrong)?;
                    }
                    first += count;
                }
            }
            Step::Grow { volume, by } => {
                let size = {
                    let model = &truth.borrow().models[volume];
                    (model.size() + by).min(model.most())
                };
                let number = truth.borrow_mut().models[volume].begin_resize(size);
                self.volumes[volume].resize((size * SECTOR) as u64).await?;
                truth.borrow_mut().models[volume].ack_resize(number);
            }
            Step::Drain { volume } => {
                let moment = truth.borrow_mut().models[volume].now();
                let taken = truth.borrow().snapshots[volume].taken();
                // It may take longer than that: then nothing is promised.
                if self.volumes[volume].drain(Duration::from_secs(60)).await.is_ok() {
                    let mut truth = truth.borrow_mut();
                    truth.snapshots[volume].committed(&taken);
                    let committed = &mut truth.committed[volume];
                    *committed = moment.max(*committed);
                }
            }
            Step::Scrub { volume, effort } => {
                // The store may be away for longer than anybody waits; it goes on by itself.
                match self.volumes[volume].scrub(effort, Duration::from_secs(60)).await {
                    Ok(scrubbed) => truth.borrow_mut().event(scrubbed.scos << 32 | scrubbed.tlogs),
                    Err(e) if matches!(e.kind, ErrorKind::Unavailable | ErrorKind::Corrupt) => {}
                    Err(e) => return Err(e.into()),
                }
            }
            Step::Snapshot { volume } => {
                let issued = truth.borrow_mut().models[volume].now();
                let id = truth.borrow_mut().snapshots[volume].begin();
                let about = Description { id, name: snapshot_name(id), ..Description::default() };
                self.volumes[volume].snapshot(about).await?;
                let mut truth = truth.borrow_mut();
                let may = truth.models[volume].may(issued);
                truth.snapshots[volume].ack(id, may);
            }
            Step::ReadSnapshot { volume, nth } => {
                let Some(id) = truth.borrow().snapshots[volume].some(nth) else { return Ok(()) };
                let read = read_snapshot(&self.volumes[volume], id).await;
                let mut truth = truth.borrow_mut();
                match read {
                    Ok(image) => truth.snapshots[volume].check(id, &image).map_err(Trouble::Wrong)?,
                    // The store may be away for longer than anybody waits; another client may have deleted it.
                    Err(e) if e.kind == ErrorKind::Unavailable => {}
                    Err(e) if truth.snapshots[volume].taken().contains(&id) => return Err(e.into()),
                    Err(_) => {}
                }
            }
            Step::Differences { volume, nth } => {
                let Some(id) = truth.borrow().snapshots[volume].some(nth) else { return Ok(()) };
                let v = &self.volumes[volume];
                // What changes between the two is said to have changed.
                let image = v.read(0, v.geometry().size as u32).await?;
                let told = async {
                    let changed = differences(&**v, id, image.len()).await?;
                    Ok((changed, read_snapshot(v, id).await?))
                };
                match told.await {
                    Ok((changed, snapshot)) => {
                        unchanged_is_the_same(&image, &snapshot, &changed).map_err(Trouble::Wrong)?;
                    }
                    Err(Error { kind: ErrorKind::Unavailable, .. }) => {}
                    Err(e) if truth.borrow().snapshots[volume].taken().contains(&id) => return Err(e.into()),
                    Err(_) => {}
                }
            }
            Step::DeleteSnapshot { volume, nth } => {
                let Some(id) = truth.borrow().snapshots[volume].some(nth) else { return Ok(()) };
                truth.borrow_mut().snapshots[volume].begin_delete(id);
                let wait = Duration::from_secs(60);
                match self.volumes[volume].change_snapshot(id, SnapshotChange::Delete, wait).await {
                    Ok(()) => truth.borrow_mut().snapshots[volume].ack_delete(id),
                    // It goes on by itself.
                    Err(e) if e.kind == ErrorKind::Unavailable => {}
                    Err(e) => return Err(e.into()),
                }
            }
        }
        Ok(())
    }

    /// The part of a range that is in the volume now.
    fn clip(&self, volume: usize, range: Range) -> Option<Range> {
        let size = self.truth.borrow().models[volume].size();
        let end = (range.first + range.count).min(size);
        (range.first < end).then(|| Range { first: range.first, count: end - range.first })
    }
}

fn snapshot_name(id: u128) -> String {
    format!("s{id}")
}

/// Reads all of a snapshot.
async fn read_snapshot(volume: &Volume, id: u128) -> common::Result<Bytes> {
    let device = volume.open_snapshot(&snapshot_name(id), Duration::from_secs(60)).await?;
    device.read(0, device.geometry().size as u32).await
}

/// For each sector, whether the device says that it may differ from the snapshot.
pub async fn differences(device: &dyn BlockDevice, since: u128, bytes: usize) -> common::Result<Vec<bool>> {
    let mut changed = Vec::with_capacity(bytes / SECTOR);
    while changed.len() * SECTOR < bytes {
        let offset = (changed.len() * SECTOR) as u64;
        let runs = device.differences(since, offset, bytes as u64 - offset).await?;
        changed.extend(runs.iter().flat_map(|run| vec![run.changed; run.len as usize / SECTOR]));
    }
    Ok(changed)
}

/// Checks that what is said to be unchanged is the same in both images; behind its end an image has nothing.
pub fn unchanged_is_the_same(image: &[u8], snapshot: &[u8], changed: &[bool]) -> Result<(), String> {
    for (sector, changed) in changed.iter().enumerate() {
        let at = sector * SECTOR..(sector + 1) * SECTOR;
        if !changed && image.get(at.clone()) != snapshot.get(at) {
            return Err(format!("sector {sector} is said to be as in the snapshot, and is not"));
        }
    }
    Ok(())
}

/// Why a client stopped.
enum Trouble {
    /// An answer that can't be true.
    Wrong(String),
    /// An error.
    Error(Error),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Trouble::Error(error)
    }
}
