//! Our registry beside etcd: three members each, as processes on loopback, with their logs on the same disk, asked in
//! turn by the same load generator. A client is a connection of its own, to the member that leads. Then our leader is
//! killed, again and again.

use super::Options;
use super::figures::{Spread, at_least, at_most, percentile, runtime};
use super::grpc::Etcd;
use anyhow::{Context, Result, bail, ensure};
use common::clock::SystemClock;
use common::kv::{Kv, KvOp};
use kvstore::node::{Change, Metrics, Settings};
use kvstore::{Client, ClientConfig, Instance, InstanceConfig, Origin, RocksSettings};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tests::process::Process;
use tests::time::{Stopwatch, pause};
use tests::tools::{command, find, free_port, run_within};

const MEMBERS: u64 = 3;
const CLIENTS: usize = 64;
const KEYS: u32 = 10_000;
const VALUE: [u8; 256] = [b'v'; 256];
/// Deaths of our leader.
const DEATHS: usize = 7;

/// What is asked of both, and how ours is judged.
struct Load {
    name: &'static str,
    clients: usize,
    write: bool,
    wanted: Wanted,
}

enum Wanted {
    Latency(f64),
    Rate(f64),
}

const LOADS: [Load; 4] = [
    Load { name: "put, 1 client", clients: 1, write: true, wanted: Wanted::Latency(1.0) },
    Load { name: "put, 64 clients", clients: CLIENTS, write: true, wanted: Wanted::Rate(1.5) },
    Load { name: "linearizable read, 1 client", clients: 1, write: false, wanted: Wanted::Latency(1.0) },
    Load { name: "linearizable read, 64 clients", clients: CLIENTS, write: false, wanted: Wanted::Rate(1.0) },
];

/// A run of one load at one of both: microseconds at the median, and requests per second.
#[derive(Clone, Copy)]
struct Figures {
    p50: f64,
    rate: f64,
}

/// A member of our registry, until it is killed.
pub fn member(told: &str) -> Result<()> {
    let [folder, member, address, group] = told.split('|').collect::<Vec<_>>()[..] else {
        bail!("--member: FOLDER|MEMBER|ADDRESS|GROUP")
    };
    let (member, group) = (member.parse()?, u128::from_str_radix(group, 16)?);
    let origin = match member {
        1 => Origin::Found { address: address.into(), local: None },
        _ => Origin::Join { group },
    };
    runtime()?.block_on(async {
        let instance = Instance::start(InstanceConfig {
            dir: folder.into(),
            member,
            origin,
            listener: tokio::net::TcpListener::bind(address).await?,
            tls: None,
            clock: Arc::new(SystemClock::new()),
            settings: Settings::default(),
            rocks: RocksSettings {
                block_cache_bytes: 8 << 20,
                write_buffer_bytes: 8 << 20,
                ..RocksSettings::default()
            },
            metrics: Metrics::default(),
        });
        instance.await?.handle().stopped().await;
        bail!("the member stopped")
    })
}

/// Our three members.
struct Ours {
    addresses: BTreeMap<u64, String>,
    group: u128,
    members: BTreeMap<u64, Process>,
}

impl Ours {
    async fn start(folder: &Path) -> Result<Self> {
        let mut ours = Ours { addresses: BTreeMap::new(), group: 0, members: BTreeMap::new() };
        for id in 1..=MEMBERS {
            ours.addresses.insert(id, format!("127.0.0.1:{}", free_port()?));
        }
        ours.launch(folder, 1)?;
        let client = ours.client(ours.addresses.values());
        client.status().await?;
        ours.group = client.group().context("a member of no group")?;
        for member in 2..=MEMBERS {
            ours.launch(folder, member)?;
            let address = ours.addresses.get(&member).cloned().unwrap_or_default();
            client.change(vec![Change::AddLearner { member, address }]).await?;
            let watch = Stopwatch::start();
            while let Err(error) = client.change(vec![Change::Promote { member }]).await {
                ensure!(!watch.past(60), "member {member} does not become a voter: {error}");
                tokio::task::spawn_blocking(|| pause(50)).await?;
            }
        }
        Ok(ours)
    }

    fn launch(&mut self, folder: &Path, id: u64) -> Result<()> {
        let address = self.addresses.get(&id).context("no address")?;
        let told = format!("{}|{id}|{address}|{:x}", folder.join(format!("ours{id}")).display(), self.group);
        let mut program = command(std::env::current_exe()?);
        program.args(["--member", &told]);
        let log = folder.join(format!("ours{id}.log"));
        self.members.insert(id, Process::spawn("a member of our registry", program, &log)?);
        Ok(())
    }

    fn client<'a>(&self, addresses: impl Iterator<Item = &'a String>) -> Client {
        let mut config = ClientConfig::new(addresses.cloned().collect());
        config.group = self.group;
        config.deadline = Duration::from_secs(20);
        Client::new(config, Arc::new(SystemClock::new()))
    }
}

/// etcd's three members; the address of the one that leads.
fn start_etcd(folder: &Path) -> Result<(Vec<Process>, String)> {
    let mut at = Vec::new();
    for id in 1..=MEMBERS {
        at.push((format!("m{id}"), free_port()?, free_port()?));
    }
    let cluster: Vec<String> =
        at.iter().map(|(name, peer, _)| format!("{name}=http://127.0.0.1:{peer}")).collect();
    let mut members = Vec::new();
    for (name, peer, client) in &at {
        let mut etcd = command("etcd");
        etcd.args(["--name", name, "--initial-cluster", &cluster.join(","), "--log-level", "error"]);
        for flag in ["listen-peer-urls", "initial-advertise-peer-urls"] {
            etcd.arg(format!("--{flag}=http://127.0.0.1:{peer}"));
        }
        for flag in ["listen-client-urls", "advertise-client-urls"] {
            etcd.arg(format!("--{flag}=http://127.0.0.1:{client}"));
        }
        etcd.arg("--data-dir").arg(folder.join(name));
        members.push(Process::spawn("etcd", etcd, &folder.join(format!("{name}.log")))?);
    }
    let all: Vec<String> = at.iter().map(|(_, _, client)| format!("127.0.0.1:{client}")).collect();
    let leader = tests::time::eventually("etcd has a leader", 60, || {
        let mut etcdctl = command("etcdctl");
        etcdctl.env("ETCDCTL_API", "3").args(["endpoint", "status", "-w", "json", "--endpoints"]);
        etcdctl.arg(all.join(","));
        let said = run_within(10, etcdctl)?.ok()?.json()?;
        let leads = |one: &&serde_json::Value| {
            let status = &one["Status"];
            status["leader"].as_u64().is_some_and(|id| id != 0)
                && status["leader"] == status["header"]["member_id"]
        };
        let found = said.as_array().and_then(|all| all.iter().find(leads)).context("no leader")?;
        found["Endpoint"].as_str().map(str::to_string).context("a leader without an address")
    })?;
    Ok((members, leader))
}

/// One client of either.
#[derive(Clone)]
enum Asked {
    Ours(Client),
    Etcd(Etcd),
}

impl Asked {
    async fn put(&self, key: String) -> Result<()> {
        match self {
            Asked::Ours(client) => {
                client.txn(Vec::new(), vec![KvOp::Put(key, VALUE.to_vec().into())]).await?;
                Ok(())
            }
            Asked::Etcd(etcd) => etcd.put(&key, &VALUE).await,
        }
    }

    async fn get(&self, key: &str) -> Result<()> {
        match self {
            Asked::Ours(client) => {
                let pair = client.get(key).await?.with_context(|| format!("there is no {key}"))?;
                ensure!(pair.value[..] == VALUE, "something else is in {key}");
                Ok(())
            }
            Asked::Etcd(etcd) => etcd.get(key, &VALUE).await,
        }
    }
}

async fn measure(load: &Load, clients: &[Asked], seconds: u64) -> Result<Figures> {
    let watch = Stopwatch::start();
    let mut tasks = tokio::task::JoinSet::new();
    for client in clients.iter().take(load.clients) {
        let write = load.write;
        let client = client.clone();
        tasks.spawn(async move {
            let (mut random, mut times, watch) = (fastrand::Rng::new(), Vec::new(), Stopwatch::start());
            while !watch.past(seconds) {
                let key = format!("bench/{:05}", random.u32(..KEYS));
                let one = Stopwatch::start();
                match write {
                    true => client.put(key).await?,
                    false => client.get(&key).await?,
                }
                times.push(one.seconds() * 1e6);
            }
            anyhow::Ok(times)
        });
    }
    let mut times = Vec::new();
    while let Some(done) = tasks.join_next().await {
        times.extend(done??);
    }
    let rate = times.len() as f64 / watch.seconds();
    Ok(Figures { p50: percentile(&mut times, 0.5), rate })
}

/// Every key is there, so that reads find it.
async fn fill(clients: &[Asked]) -> Result<()> {
    let mut tasks = tokio::task::JoinSet::new();
    for (n, client) in (0u32..).zip(clients.iter().cloned()) {
        tasks.spawn(async move {
            for key in (n..KEYS).step_by(CLIENTS) {
                client.put(format!("bench/{key:05}")).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

pub fn etcd(options: &Options, folder: &Path) -> Result<()> {
    let missing: Vec<_> = ["etcd", "etcdctl"].into_iter().filter(|name| find(name).is_none()).collect();
    ensure!(missing.is_empty(), "not installed: {missing:?}; apt-get install etcd-server etcd-client");
    let (etcds, leader) = start_etcd(folder)?;
    let runtime = runtime()?;
    runtime.block_on(async {
        let mut ours = Ours::start(folder).await?;
        let (mut own, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..CLIENTS {
            own.push(Asked::Ours(ours.client(ours.addresses.values())));
            theirs.push(Asked::Etcd(Etcd::connect(&leader).await?));
        }
        fill(&own).await.context("our registry")?;
        fill(&theirs).await.context("etcd")?;
        let chosen =
            |load: &&Load| options.only.as_ref().is_none_or(|only| load.name.contains(only.as_str()));
        for load in LOADS.iter().filter(chosen) {
            let mut runs = Vec::new();
            for _ in 0..options.runs {
                let one = measure(load, &own, options.seconds).await.context("our registry")?;
                runs.push((one, measure(load, &theirs, options.seconds).await.context("etcd")?));
            }
            print(load, &runs);
        }
        drop((theirs, etcds));
        deaths(&mut ours, folder).await
    })
}

fn print(load: &Load, runs: &[(Figures, Figures)]) {
    let spread = |pick: fn(&(Figures, Figures)) -> f64| Spread::of(runs.iter().map(pick));
    let verdict = match load.wanted {
        Wanted::Latency(limit) => {
            let ratio = spread(|(ours, etcd)| ours.p50 / etcd.p50);
            format!("{ratio} x its latency ({})", at_most(ratio.median, limit))
        }
        Wanted::Rate(limit) => {
            let ratio = spread(|(ours, etcd)| ours.rate / etcd.rate);
            format!("{ratio} x its rate ({})", at_least(ratio.median, limit))
        }
    };
    println!(
        "{}: p50 {:.0} us, {:.0}/s; etcd {:.0} us, {:.0}/s: {verdict}",
        load.name,
        spread(|(ours, _)| ours.p50),
        spread(|(ours, _)| ours.rate),
        spread(|(_, etcd)| etcd.p50),
        spread(|(_, etcd)| etcd.rate),
    );
}

/// Kills our leader again and again; how long it takes until the next write is acknowledged.
async fn deaths(ours: &mut Ours, folder: &Path) -> Result<()> {
    let client = ours.client(ours.addresses.values());
    let mut times = Vec::new();
    for n in 0..DEATHS {
        Asked::Ours(client.clone()).put(format!("deaths/{n}/before")).await?;
        let leader = client.status().await?.leader.context("nobody leads")?;
        let watch = Stopwatch::start();
        ours.members.get_mut(&leader).context("a leader of no process")?.kill9()?;
        Asked::Ours(client.clone()).put(format!("deaths/{n}")).await?;
        times.push(watch.seconds());
        ours.launch(folder, leader)?;
        // Until it has everything: or the next death would be one of two members.
        let applied = client.status().await?.applied;
        let back = ours.client(ours.addresses.get(&leader).into_iter());
        let since = Stopwatch::start();
        while back.status().await.is_ok_and(|status| status.applied < applied) && !since.past(60) {
            tokio::task::spawn_blocking(|| pause(20)).await?;
        }
    }
    let times = Spread::of(times);
    println!("leader killed to next write: {times} s (longest {})", at_most(times.high, 2.0));
    Ok(())
}
