//! The same judge over real processes: members that die by SIGKILL and freeze by SIGSTOP, on real disks and sockets, in real time.

// Real processes live in real time.
#![allow(clippy::disallowed_methods)]

use super::judge::Judge;
use super::plan::Tally;
use crate::client::{Client, ClientConfig};
use crate::log::{Log, LogSettings, Position};
use crate::machine::{Answer, Assert, Command, Limits, Machine, Op, Range, RequestId, RocksState};
use crate::node::request::{Request, Response};
use crate::node::{Change, Instance, InstanceConfig, Metrics, Settings};
use crate::table::RocksSettings;
use crate::upgrade::Origin;
use common::ErrorKind;
use common::clock::SystemClock;
use common::disk::local::LocalDisk;
use common::kv::Kv;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Program, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const CHILD: &str = "STORAGEROUTER_TEST_KVSTORE_MEMBER";
const MEMBERS: u64 = 3;
const SECONDS: u64 = 14;
const WORKERS: u64 = 4;
/// How long the lease is that somebody holds all the time: longer than any election, shorter than the test.
const LEASE: Duration = Duration::from_secs(7);
/// Beyond this it hangs: how long it takes on a good machine is for the benchmarks.
const PATIENCE: Duration = Duration::from_secs(60);

fn rocks() -> RocksSettings {
    RocksSettings { block_cache_bytes: 4 << 20, write_buffer_bytes: 4 << 20, ..RocksSettings::default() }
}

/// Not a test of its own: a member, until it is killed or nobody listens any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by another test"]
async fn child_is_a_member() {
    let Ok(told) = std::env::var(CHILD) else { return };
    let [dir, id, address, group] = told.split('|').collect::<Vec<_>>()[..] else { panic!("{told}") };
    let (member, group) = (id.parse().unwrap(), u128::from_str_radix(group, 16).unwrap());
    let origin = match member {
        1 => Origin::Found { address: address.to_string(), local: None },
        _ => Origin::Join { group },
    };
    let config = InstanceConfig {
        dir: PathBuf::from(dir),
        member,
        origin,
        listener: tokio::net::TcpListener::bind(address).await.unwrap(),
        tls: None,
        clock: Arc::new(SystemClock::new()),
        settings: Settings::default(),
        rocks: rocks(),
        metrics: Metrics::default(),
    };
    let instance = Instance::start(config).await.unwrap();
    // Ends when the parent does, however it does.
    let _ = tokio::task::spawn_blocking(|| std::io::stdin().read(&mut [0; 1])).await;
    instance.kill().await;
}

struct Group {
    dir: tempfile::TempDir,
    addresses: BTreeMap<u64, String>,
    group: u128,
    children: BTreeMap<u64, Child>,
}

impl Group {
    fn start(&mut self, id: u64) {
        let told = format!("{}|{id}|{}|{:x}", self.folder(id).display(), self.addresses[&id], self.group);
        let child = Program::new(std::env::current_exe().unwrap())
            .args(["--exact", "simulation::processes::child_is_a_member", "--ignored", "--nocapture"])
            .env(CHILD, told)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        self.children.insert(id, child);
    }

    fn folder(&self, id: u64) -> PathBuf {
        self.dir.path().join(id.to_string())
    }

    fn kill(&mut self, id: u64) {
        if let Some(mut child) = self.children.remove(&id) {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    fn signal(&self, id: u64, signal: &str) {
        let pid = self.children[&id].id().to_string();
        assert!(Program::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// Waits until each member answers and knows a leader, so that one fault at a time is what is survived.
    async fn whole(&self) {
        let begun = Instant::now();
        for address in self.addresses.values() {
            let member = self.client_of(vec![address.clone()], 4);
            while leader(&member).await.is_none() {
                assert!(begun.elapsed() < PATIENCE, "{address} does not come back");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }

    fn client(&self, seconds: u64) -> Client {
        self.client_of(self.addresses.values().cloned().collect(), seconds)
    }

    fn client_of(&self, addresses: Vec<String>, seconds: u64) -> Client {
        let mut config = ClientConfig::new(addresses);
        config.deadline = Duration::from_secs(seconds);
        config.group = self.group;
        Client::new(config, Arc::new(SystemClock::new()))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for id in 1..=MEMBERS {
            self.kill(id);
        }
    }
}

/// What clients saw, and when.
struct Witness {
    judge: Mutex<Judge>,
    begun: Instant,
    tokens: AtomicU64,
    answered: AtomicU64,
    unknown: AtomicU64,
    over: AtomicBool,
    /// When a write was last acknowledged, and the longest time between two.
    last: Mutex<(Instant, Duration)>,
}

impl Witness {
    fn now(&self) -> u64 {
        self.begun.elapsed().as_micros() as u64
    }

    async fn ask(&self, client: &Client, request: Request) -> Option<Response> {
        let token = self.tokens.fetch_add(1, Ordering::Relaxed);
        self.judge.lock().asked(token, request.clone(), self.now());
        let response = match client.ask(request.clone()).await {
            Ok(response) => response,
            Err(error) => {
                assert_eq!(error.kind, ErrorKind::Unavailable, "{request:?}: {error}");
                self.unknown.fetch_add(1, Ordering::Relaxed);
                return None;
            }
        };
        self.judge.lock().answered(token, self.now(), response.clone());
        self.answered.fetch_add(1, Ordering::Relaxed);
        if let Response::Answer(_) = response {
            let mut last = self.last.lock();
            last.1 = last.1.max(last.0.elapsed());
            last.0 = Instant::now();
        }
        Some(response)
    }
}

/// Writes, compares and reads a few keys, until it is over.
async fn work(witness: Arc<Witness>, client: Client, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut seen: BTreeMap<String, u64> = BTreeMap::new();
    let (mut session, mut sequence) = (None, 0);
    while !witness.over.load(Ordering::Relaxed) {
        let Some(id) = session else {
            let open = Request::Command(Command::OpenSession);
            if let Some(Response::Answer(Answer::Session(id))) = witness.ask(&client, open).await {
                (session, sequence) = (Some(id), 0);
            }
            continue;
        };
        let key = format!("k{}", random.u8(..5));
        let kind = random.u8(..10);
        let request = match kind {
            0..3 => Request::Get { key: key.clone() },
            3 => Request::Range(Range::prefix("k")),
            _ => {
                sequence += 1;
                let request = RequestId { session: id, sequence, answered_below: sequence };
                let assert = match seen.get(&key) {
                    Some(revision) => Assert::Revision(key.clone(), *revision),
                    None => Assert::Absent(key.clone()),
                };
                let asserts = if random.bool() { vec![assert] } else { vec![] };
                let value = format!("{id}:{sequence}").into();
                let op = match kind {
                    4 => Op::Delete { key: key.clone() },
                    _ => Op::Put { key: key.clone(), value, lease: None },
                };
                Request::Command(Command::Txn { request, asserts, ops: vec![op] })
            }
        };
        match witness.ask(&client, request).await {
            Some(Response::Pair { pair: Some(pair), .. }) => {
                seen.insert(key, pair.revision);
            }
            Some(Response::Answer(Answer::Done { revision })) if kind != 4 => {
                seen.insert(key, revision);
            }
            Some(Response::Answer(Answer::NoSession)) => session = None,
            Some(Response::Page(page)) => seen.extend(page.pairs.into_iter().map(|p| (p.key, p.revision))),
            // Not known, or not as expected: whatever it is now, it is not what was seen.
            _ => {
                seen.remove(&key);
            }
        }
    }
}

async fn watch(witness: Arc<Witness>, client: Client) {
    let mut from = 1;
    while !witness.over.load(Ordering::Relaxed) {
        let request = Request::Watch { prefix: "k".into(), from, wait_ms: 300 };
        match witness.ask(&client, request).await {
            Some(Response::Events { next, .. }) => from = next,
            Some(Response::Compacted { oldest }) => from = oldest,
            _ => {}
        }
    }
}

async fn leader(client: &Client) -> Option<u64> {
    client.status().await.ok().and_then(|s| s.leader)
}

/// All that was decided, from a folder whose process is gone.
async fn log_of(dir: &Path) -> (Vec<raft::eraftpb::Entry>, u64) {
    let store = Arc::new(RocksState::open(dir, rocks()).unwrap());
    let machine = Machine::open(store, Limits::default()).unwrap().unwrap();
    let disk = Arc::new(LocalDisk::open(dir.join("log")).unwrap());
    let head = machine.head();
    let base = Position { index: machine.meta().index, term: machine.meta().term };
    let (_, log) = Log::open(disk, LogSettings::default(), head.group, head.member, base).await.unwrap();
    (log.entries, machine.index())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_that_are_killed_and_frozen_lose_nothing_and_answer_in_order() {
    let port = |_| {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let mut group = Group {
        dir: tempfile::tempdir().unwrap(),
        addresses: (1..=MEMBERS).map(|id| (id, port(id))).collect(),
        group: 0,
        children: BTreeMap::new(),
    };
    group.start(1);
    let first = group.client(20);
    first.status().await.unwrap();
    group.group = first.group().expect("somebody answered");
    for id in 2..=MEMBERS {
        group.start(id);
        let add = Change::AddLearner { member: id, address: group.addresses[&id].clone() };
        first.change(vec![add]).await.unwrap();
        while let Err(error) = first.change(vec![Change::Promote { member: id }]).await {
            assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    let witness = Arc::new(Witness {
        judge: Mutex::default(),
        begun: Instant::now(),
        tokens: AtomicU64::new(0),
        answered: AtomicU64::new(0),
        unknown: AtomicU64::new(0),
        over: AtomicBool::new(false),
        last: Mutex::new((Instant::now(), Duration::ZERO)),
    });
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..WORKERS {
        tasks.spawn(work(witness.clone(), group.client(4), n));
    }
    tasks.spawn(watch(witness.clone(), group.client(4)));
    let held = first.hold(LEASE).await.unwrap();
    let mut random = fastrand::Rng::new();
    let (mut kills, mut freezes, mut longest) = (0, 0, Duration::ZERO);
    while witness.begun.elapsed() < Duration::from_secs(SECONDS) {
        let any = random.u64(1..=MEMBERS);
        let victim = if random.u8(..4) > 0 { leader(&first).await.unwrap_or(any) } else { any };
        *witness.last.lock() = (Instant::now(), Duration::ZERO);
        let pause = Duration::from_millis(random.u64(300..2200));
        if random.bool() {
            kills += 1;
            group.kill(victim);
            tokio::time::sleep(pause).await;
            group.start(victim);
        } else {
            freezes += 1;
            group.signal(victim, "-STOP");
            tokio::time::sleep(pause).await;
            group.signal(victim, "-CONT");
        }
        group.whole().await;
        // And some work in peace.
        tokio::time::sleep(Duration::from_millis(500)).await;
        longest = longest.max(witness.last.lock().1);
    }
    witness.over.store(true, Ordering::Relaxed);
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    // A heartbeat may be under way, or was not answered; what has ended never lives again.
    let begun = Instant::now();
    while !held.is_live() {
        assert!(
            begun.elapsed() < PATIENCE,
            "its holder lived all the time, and one member at a time did not"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let contents = first.scan("").await.unwrap();
    drop((held, first));
    let index_of_all = Instant::now();
    let (mut judge, mut applied) = (std::mem::take(&mut *witness.judge.lock()), 0);
    // The last entries reach the others with the next heartbeat.
    tokio::time::sleep(Duration::from_millis(500)).await;
    for id in 1..=MEMBERS {
        group.kill(id);
        let (entries, index) = log_of(&group.folder(id)).await;
        applied = applied.max(index);
        // When a lease ended is not in the log: that it was not too early is asked of its holder above.
        let decided = entries.into_iter().filter(|e| e.index <= index).collect();
        judge.applied_by(id, u64::MAX, decided).unwrap();
    }
    let mut tally = Tally::default();
    judge.verdict(&contents, &mut tally).unwrap();
    let answered = witness.answered.load(Ordering::Relaxed);
    let unknown = witness.unknown.load(Ordering::Relaxed);
    println!(
        "{answered} answers, {unknown} unknown, {applied} entries, {kills} kills, {freezes} freezes, longest time between two \
         writes {longest:?}, judged in {:?}",
        index_of_all.elapsed()
    );
    assert!(answered > 200 && kills + freezes > 3);
    assert!(longest < PATIENCE, "{longest:?} between two writes");
}
