//! A folder behind a FUSE mount that fails on command: errors and delays of chosen writes and syncs,
//! and a power cut, which forgets any subset of the sectors that were written and not synced.
//!
//! A failed sync is the worst that Linux can do: what was not synced by then is lost at the next power
//! cut, although a second sync succeeds. Names (create, rename, remove) and truncation are durable at
//! once, as if the folder were synced each time; what is forgotten is content, and the growth of files.
//!
//! It runs in the process of the test, on a thread of its own, and lies over a plain folder.

mod server;
mod unsynced;

use anyhow::{Context, Result, bail};
use server::Server;
use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use unsynced::Unsynced;

/// What a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Writing bytes.
    Write,
    /// `fsync` and `fdatasync`.
    Sync,
}

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Fails with this error number, and does nothing.
    Fail(i32),
    /// Answers that much later.
    Delay(Duration),
    /// Answers as a disk would that takes so many bytes a second, of all files together.
    Rate(u64),
}

/// EIO, the error of a broken disk.
pub const EIO: i32 = 5;
/// ENOSPC, the error of a full one.
pub const ENOSPC: i32 = 28;

struct Rule {
    op: Op,
    pattern: String,
    effect: Effect,
}

/// What the server and the test share.
#[derive(Default)]
struct State {
    backing: PathBuf,
    /// Paths below the backing folder, by the number that the kernel knows.
    paths: HashMap<u64, PathBuf>,
    numbers: HashMap<PathBuf, u64>,
    last_number: u64,
    handles: HashMap<u64, (u64, Arc<File>)>,
    last_handle: u64,
    unsynced: HashMap<u64, Unsynced>,
    /// Until when a disk of limited rate is at work, since `begin`.
    busy: Duration,
    begin: Option<std::time::Instant>,
    rules: Vec<Rule>,
    hits: u64,
    syncs: u64,
    retries: u64,
}

type Shared = Arc<Mutex<State>>;

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The mounted folder. It is unmounted when dropped.
pub struct FaultFs {
    place: PathBuf,
    state: Shared,
    _session: fuser::BackgroundSession,
}

impl Drop for FaultFs {
    fn drop(&mut self) {
        // The files of a process that was killed may be closed a little later: it must not matter.
        let mut unmount = crate::tools::command("umount");
        unmount.arg("-l").arg(&self.place);
        // Nothing is left to do when it fails.
        let _ = crate::tools::run_within(20, unmount);
    }
}

impl FaultFs {
    /// Mounts `place` over the folder `backing`; both are made.
    pub fn mount(place: &Path, backing: &Path) -> Result<Self> {
        if !Path::new("/dev/fuse").exists() {
            bail!("this test mounts a file system of its own, and /dev/fuse is missing");
        }
        std::fs::create_dir_all(place)?;
        std::fs::create_dir_all(backing)?;
        let state: Shared = Arc::new(Mutex::new(State { backing: backing.into(), ..State::default() }));
        {
            let mut state = lock(&state);
            let root = state.number_of(PathBuf::new());
            debug_assert_eq!(root, fuser::INodeNo::ROOT.0);
        }
        let mut config = fuser::Config::default();
        config.mount_options = vec![fuser::MountOption::FSName("faultfs".into())];
        let session = fuser::spawn_mount(Server::new(state.clone()), place, &config)
            .with_context(|| format!("mounting a FUSE file system on {}", place.display()))?;
        Ok(Self { place: place.into(), state, _session: session })
    }

    /// Where it is mounted.
    pub fn place(&self) -> &Path {
        &self.place
    }

    /// From now on, `op` on files whose path below the mount holds `pattern` has this effect.
    pub fn when(&self, op: Op, pattern: &str, effect: Effect) {
        lock(&self.state).rules.push(Rule { op, pattern: pattern.into(), effect });
    }

    /// Takes all rules back.
    pub fn heal(&self) {
        lock(&self.state).rules.clear();
    }

    /// How often a rule has had its effect.
    pub fn hits(&self) -> u64 {
        lock(&self.state).hits
    }

    /// How many syncs of files have been asked for.
    pub fn syncs(&self) -> u64 {
        lock(&self.state).syncs
    }

    /// How many of them were of a file of which a sync had failed since the last power cut.
    pub fn syncs_after_failure(&self) -> u64 {
        lock(&self.state).retries
    }

    /// Cuts the power: each sector that was not synced keeps its new content or gets its old one
    /// back, and each file that grew keeps a part of the growth. Whoever used the files must be dead.
    /// Returns how many sectors were forgotten.
    pub fn power_cut(&self, random: &mut fastrand::Rng) -> Result<usize> {
        let mut state = lock(&self.state);
        // From a disk that had written nearly all back to one that had written nearly nothing.
        let forgets = random.f64();
        let mut forgotten = 0;
        for (number, unsynced) in std::mem::take(&mut state.unsynced) {
            let Some(path) = state.paths.get(&number) else { continue };
            let path = state.backing.join(path);
            forgotten += unsynced
                .cut(&path, forgets, random)
                .with_context(|| format!("cutting {}", path.display()))?;
        }
        Ok(forgotten)
    }
}

impl State {
    fn number_of(&mut self, path: PathBuf) -> u64 {
        if let Some(number) = self.numbers.get(&path) {
            return *number;
        }
        self.last_number += 1;
        self.paths.insert(self.last_number, path.clone());
        self.numbers.insert(path, self.last_number);
        self.last_number
    }

    /// A name is gone; open handles go on.
    fn forget(&mut self, path: &Path) {
        if let Some(number) = self.numbers.remove(path) {
            self.paths.remove(&number);
            self.unsynced.remove(&number);
        }
    }

    /// A file or folder has another name now; what had that name is gone.
    fn renamed(&mut self, from: &Path, to: &Path) {
        self.forget(to);
        for (number, path) in &mut self.paths {
            if let Ok(rest) = path.strip_prefix(from) {
                let new = if rest.as_os_str().is_empty() { to.to_path_buf() } else { to.join(rest) };
                self.numbers.remove(path);
                self.numbers.insert(new.clone(), *number);
                *path = new;
            }
        }
    }

    /// What is to happen to an operation on a file: an error, and how long to wait before the answer.
    #[allow(clippy::disallowed_methods)]
    fn judge(&mut self, op: Op, number: u64, bytes: usize) -> (Option<i32>, Duration) {
        let now = self.begin.get_or_insert_with(std::time::Instant::now).elapsed();
        let path = self.paths.get(&number).map(|path| path.to_string_lossy().into_owned());
        let path = path.unwrap_or_default();
        let (mut error, mut delay) = (None, Duration::ZERO);
        for rule in self.rules.iter().filter(|rule| rule.op == op && path.contains(&rule.pattern)) {
            self.hits += 1;
            match rule.effect {
                Effect::Fail(number) => error = Some(number),
                Effect::Delay(time) => delay += time,
                Effect::Rate(rate) => {
                    let takes = Duration::from_secs_f64(bytes as f64 / rate as f64);
                    self.busy = self.busy.max(now) + takes;
                    delay += self.busy - now;
                }
            }
        }
        (error, delay)
    }
}

#[cfg(test)]
mod tests;
